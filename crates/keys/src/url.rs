//! Which root key, as a person names it: `file:/path`, `aws-kms:KEY`, `vault:https://host/mount/keys/NAME`. Pure.
//!
//! Everything that it takes to reach a key, except credentials, stands in one text, which holds no secret and
//! may be an argument.

use std::fmt;
use std::path::{Path, PathBuf};

use url::Url;

use crate::Error;

/// The name of a root key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyUrl {
    /// A key file.
    File(PathBuf),
    /// A key of AWS's key service.
    AwsKms(KmsUrl),
    /// A key of a transit engine of HashiCorp Vault or OpenBao.
    Vault(VaultUrl),
}

/// `aws-kms:KEY[?region=…&endpoint=…&profile=…&ca-file=…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsUrl {
    text: String,
    /// A key id, an alias (`alias/NAME`) or the ARN of either.
    pub key: String,
    /// The region that requests are signed for.
    pub region: Option<String>,
    /// Where the service is, if not where AWS has it.
    pub endpoint: Option<Url>,
    /// The profile of AWS's configuration files.
    pub profile: Option<String>,
    /// Certificates that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// `vault:[https://HOST:PORT/]MOUNT/keys/NAME[?namespace=…&token-file=…&ca-file=…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultUrl {
    text: String,
    /// Scheme, host and port; `None`: `VAULT_ADDR` says.
    pub address: Option<Url>,
    /// Where the transit engine is mounted, such as `transit`.
    pub mount: String,
    /// The key's name there.
    pub name: String,
    /// The namespace; `None`: `VAULT_NAMESPACE` says.
    pub namespace: Option<String>,
    /// The file with the token; `None`: found as the vault program finds it.
    pub token_file: Option<PathBuf>,
    /// The certificate of the authority; `None`: `VAULT_CACERT` says.
    pub ca_file: Option<PathBuf>,
}

const FILE: &str = "file:";
const AWS_KMS: &str = "aws-kms:";
const VAULT: &str = "vault:";
const FORMS: &str =
    "a key is written file:/PATH, aws-kms:KEY or vault:https://HOST/MOUNT/keys/NAME";

impl KeyUrl {
    /// Reads `text`. What begins with none of the words and a colon is the path of a key file.
    ///
    /// # Errors
    /// [`Error::BadUrl`]. A message never repeats what could be a secret.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix(FILE) {
            let path = match path.strip_prefix("//") {
                // file:///path
                Some(path) if path.starts_with('/') => path,
                Some(_) => return Err(bad(text, "a file on another host can't be read")),
                None => path,
            };
            return Self::file(text, path);
        }
        if let Some(rest) = text.strip_prefix(AWS_KMS) {
            return kms(text, rest).map(Self::AwsKms);
        }
        if let Some(rest) = text.strip_prefix(VAULT) {
            return vault(text, rest).map(Self::Vault);
        }
        match text.split_once(':') {
            Some((word, _)) if !word.contains('/') => Err(bad(word, FORMS)),
            _ => Self::file(text, text),
        }
    }

    fn file(text: &str, path: &str) -> Result<Self, Error> {
        if path.is_empty() {
            return Err(bad(text, FORMS));
        }
        Ok(Self::File(PathBuf::from(path)))
    }

    /// The path, where it is a key file.
    pub fn key_file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::AwsKms(_) | Self::Vault(_) => None,
        }
    }

    /// With the path of a key file made absolute by `absolute`.
    #[must_use]
    pub fn anchored(&self, absolute: impl FnOnce(&Path) -> PathBuf) -> Self {
        match self {
            Self::File(path) => Self::File(absolute(path)),
            other => other.clone(),
        }
    }
}

impl From<PathBuf> for KeyUrl {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for KeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{FILE}{}", path.display()),
            Self::AwsKms(url) => f.write_str(&url.text),
            Self::Vault(url) => f.write_str(&url.text),
        }
    }
}

fn bad(url: &str, what: impl Into<String>) -> Error {
    Error::BadUrl {
        url: url.to_owned(),
        what: what.into(),
    }
}

/// Splits off the parameters.
fn parameters(text: &str) -> (&str, Vec<(String, String)>) {
    let (rest, query) = text.split_once('?').unwrap_or((text, ""));
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    (rest, pairs.into_owned().collect())
}

/// An unknown parameter, whose value could be a secret under a name of someone's own.
fn unknown(text: &str, name: &str, known: &str) -> Error {
    let shown = text.split('?').next().unwrap_or_default();
    bad(
        shown,
        format!("`{name}` is no parameter; there are {known}"),
    )
}

/// Scheme, host and port, nothing else.
fn address(text: &str, wanted: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{wanted}: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{wanted}, without credentials"));
    }
    let plain = matches!(url.scheme(), "https" | "http") && url.has_host();
    if plain && url.path() == "/" && url.query().is_none() && url.fragment().is_none() {
        Ok(url)
    } else {
        Err(wanted.to_owned())
    }
}

/// Whether this is a name that the key service takes: a key id, an alias, or the ARN of either.
fn is_kms_key(key: &str) -> bool {
    let plain = |text: &str| {
        !text.is_empty()
            && (text.bytes()).all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'/'))
    };
    match key.strip_prefix("arn:") {
        Some(arn) => {
            let parts: Vec<&str> = arn.splitn(5, ':').collect();
            matches!(parts[..], [partition, "kms", region, account, resource]
                if plain(partition) && plain(region) && plain(account) && plain(resource)
                    && (resource.starts_with("key/") || resource.starts_with("alias/")))
        }
        None => match key.strip_prefix("alias/") {
            Some(name) => plain(name),
            None => plain(key) && !key.contains('/'),
        },
    }
}

fn kms(text: &str, rest: &str) -> Result<KmsUrl, Error> {
    let (key, pairs) = parameters(rest);
    if !is_kms_key(key) {
        return Err(bad(
            text.split('?').next().unwrap_or_default(),
            "a key of AWS KMS is named by its ARN, its id or alias/NAME",
        ));
    }
    let mut url = KmsUrl {
        text: text.to_owned(),
        key: key.to_owned(),
        region: None,
        endpoint: None,
        profile: None,
        ca_file: None,
    };
    for (name, value) in pairs {
        match name.as_str() {
            "region" => url.region = Some(value),
            "endpoint" => {
                let wanted = "an endpoint is written https://host or http://host:port";
                url.endpoint = Some(address(&value, wanted).map_err(|what| bad(key, what))?);
            }
            "profile" => url.profile = Some(value),
            "ca-file" => url.ca_file = Some(value.into()),
            _ => {
                return Err(unknown(
                    text,
                    &name,
                    "region, endpoint, profile and ca-file",
                ));
            }
        }
    }
    Ok(url)
}

/// Scheme, host and port of a Vault, as a URL of ours or `VAULT_ADDR` names it.
pub(crate) fn vault_address(text: &str) -> Result<Url, String> {
    address(
        text,
        "the address of a Vault is written https://host:8200 or http://host:8200",
    )
}

fn vault(text: &str, rest: &str) -> Result<VaultUrl, Error> {
    let shown = text.split('?').next().unwrap_or_default();
    let (place, pairs) = parameters(rest);
    let (server, path) = match place.split_once("://") {
        Some((scheme, after)) => {
            if after.split('/').next().unwrap_or_default().contains('@') {
                return Err(bad(
                    "vault:…",
                    "the URL holds credentials, which others can read in the list of processes; use \
                     VAULT_TOKEN or a token file",
                ));
            }
            let (host, path) = after.split_once('/').unwrap_or((after, ""));
            let server = vault_address(&format!("{scheme}://{host}"));
            (Some(server.map_err(|what| bad(shown, what))?), path)
        }
        None => (None, place),
    };
    let path = path.trim_matches('/');
    let good = |segment: &str| {
        !segment.is_empty()
            && !matches!(segment, "." | "..")
            && (segment.bytes())
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
    };
    let wanted =
        "a key of Vault's transit engine is written vault:https://HOST:8200/MOUNT/keys/NAME";
    let parts: Vec<&str> = path.split('/').collect();
    let [mount @ .., "keys", name] = parts.as_slice() else {
        return Err(bad(shown, wanted));
    };
    if mount.is_empty() || mount.first() == Some(&"v1") || !parts.iter().all(|part| good(part)) {
        return Err(bad(shown, wanted));
    }
    let mut url = VaultUrl {
        text: text.to_owned(),
        address: server,
        mount: mount.join("/"),
        name: (*name).to_owned(),
        namespace: None,
        token_file: None,
        ca_file: None,
    };
    for (parameter, value) in pairs {
        match parameter.as_str() {
            "namespace" => url.namespace = Some(value),
            "token-file" => url.token_file = Some(value.into()),
            "ca-file" => url.ca_file = Some(value.into()),
            _ => {
                return Err(unknown(
                    text,
                    &parameter,
                    "namespace, token-file and ca-file",
                ));
            }
        }
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::ErrorKind;

    #[test]
    fn a_key_file_is_named_with_and_without_its_word() {
        for text in ["/etc/k", "file:/etc/k", "file:///etc/k"] {
            let url = KeyUrl::parse(text).unwrap();
            assert_eq!(url.key_file(), Some(Path::new("/etc/k")), "{text}");
            assert_eq!(url.to_string(), "file:/etc/k");
        }
        assert_eq!(
            KeyUrl::parse("keys/a:b").unwrap().key_file(),
            Some(Path::new("keys/a:b"))
        );
    }

    #[test]
    fn every_documented_part_is_read() {
        let arn = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        for key in [
            arn,
            "arn:aws-cn:kms:cn-north-1:123456789012:alias/backup",
            "alias/backup/main",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "mrk-1234abcd12ab34cd56ef1234567890ab",
        ] {
            let text = format!(
                "aws-kms:{key}?region=here&endpoint=http://[::1]:5000&profile=p&ca-file=/c"
            );
            let parsed = KeyUrl::parse(&text).unwrap();
            assert_eq!(parsed.to_string(), text);
            let KeyUrl::AwsKms(url) = parsed else {
                panic!("{text} is no key of KMS")
            };
            assert_eq!(url.key, key);
            assert_eq!(url.region.as_deref(), Some("here"));
            assert_eq!(url.endpoint.unwrap().as_str(), "http://[::1]:5000/");
            assert_eq!(url.profile.as_deref(), Some("p"));
            assert_eq!(url.ca_file, Some("/c".into()));
        }
        let text = "vault:https://v.example:8200/team/transit/keys/backup-1?namespace=a/b&token-file=/t&ca-file=/c";
        let KeyUrl::Vault(url) = KeyUrl::parse(text).unwrap() else {
            panic!("{text} is no key of Vault")
        };
        assert_eq!(url.address.unwrap().as_str(), "https://v.example:8200/");
        assert_eq!((&*url.mount, &*url.name), ("team/transit", "backup-1"));
        assert_eq!(url.namespace.as_deref(), Some("a/b"));
        assert_eq!(url.token_file, Some("/t".into()));
        assert_eq!(url.ca_file, Some("/c".into()));
        let KeyUrl::Vault(url) = KeyUrl::parse("vault:transit/keys/x").unwrap() else {
            panic!("no key of Vault")
        };
        assert_eq!(url.address, None);
    }

    #[test]
    fn malformed_names_are_refused_with_the_forms() {
        for (text, word) in [
            ("", "file:/PATH"),
            ("file:", "file:/PATH"),
            ("file://host/k", "another host"),
            ("gcp-kms:projects/x", "aws-kms:KEY"),
            ("aws-kms:", "its ARN"),
            ("aws-kms:alias/", "its ARN"),
            ("aws-kms:arn:aws:s3:::bucket", "its ARN"),
            ("aws-kms:a/b", "its ARN"),
            ("aws-kms:alias/x?endpoint=host:1", "https://host"),
            ("aws-kms:alias/x?endpoint=https://host/path", "https://host"),
            ("aws-kms:alias/x?regoin=y", "`regoin`"),
            ("vault:https://host:8200", "MOUNT/keys/NAME"),
            (
                "vault:https://host:8200/v1/transit/keys/x",
                "MOUNT/keys/NAME",
            ),
            ("vault:https://host:8200/transit/x", "MOUNT/keys/NAME"),
            ("vault:transit/keys/../x", "MOUNT/keys/NAME"),
            ("vault:ftp://host/transit/keys/x", "https://host:8200"),
            ("vault:transit/keys/x?tls=no", "`tls`"),
        ] {
            let error = KeyUrl::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn secrets_in_a_name_are_refused_and_not_repeated() {
        for text in [
            "vault:https://hvs.geheim@host:8200/transit/keys/x",
            "vault:https://host:8200/transit/keys/x?token=geheim",
            "aws-kms:alias/x?secret_access_key=geheim",
            "aws-kms:alias/x?endpoint=https://a:geheim@host",
            "borealis-key:geheim",
        ] {
            let error = KeyUrl::parse(text).unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
