//! A root key in the transit engine of HashiCorp Vault or OpenBao.
//!
//! `encrypt` and `decrypt` are asked with the associated data of the wrap, and with the same bytes as the
//! context that a derived key needs; servers ignore what the key has no use for. Key types without
//! associated data are asymmetric, and refused. Versions of a key are the service's own: what an older one
//! has wrapped opens until the service forbids it.
//!
//! Address, token, namespace and certificates are found as the `vault` program finds them. The token is
//! read anew for each request, so that one that an agent renews in its file is followed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use borealis_base::Entropy;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::envelope::{bound, unbound};
use crate::service::{Answer, Http, Request, Tries, Trust, certificates};
use crate::url::{VaultUrl, vault_address};
use crate::{Error, KeyId, KeyProvider, Outfit, SecretKey, Why, WrapContext, WrappedKey};

/// The word for this kind of provider.
pub(crate) const SCHEME: &str = "vault";
/// Kinds of key that authenticate what they encrypt, with one secret for both ways.
const SYMMETRIC: [&str; 4] = [
    "aes256-gcm96",
    "aes128-gcm96",
    "chacha20-poly1305",
    "xchacha20-poly1305",
];
/// Begins whatever a transit engine has encrypted.
const PREFIX: &str = "vault:v";

/// A key of a transit engine.
pub struct VaultKey {
    http: Http,
    address: Url,
    namespace: String,
    mount: String,
    name: String,
    token: TokenSource,
    entropy: Arc<dyn Entropy>,
    id: KeyId,
}

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TokenSource {
    Variable,
    File(PathBuf),
}

/// What the surroundings say, by the names that the `vault` program gives it.
struct Surroundings<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Surroundings<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn token(&self) -> Option<TokenSource> {
        if self.get("VAULT_TOKEN").is_some() {
            return Some(TokenSource::Variable);
        }
        let file = self.get("VAULT_TOKEN_FILE").map(PathBuf::from);
        let own = || Some(PathBuf::from(self.get("HOME")?).join(".vault-token"));
        file.or_else(own).map(TokenSource::File)
    }
}

#[derive(Deserialize)]
struct Wrapped<T> {
    data: T,
}

#[derive(Deserialize)]
struct KeyInfo {
    #[serde(rename = "type")]
    kind: String,
    /// Version to when it was made.
    keys: Map<String, Value>,
    latest_version: u64,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: String,
}

/// What an answer that is no success means.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Later,
    Sealed,
    Unusable(Why),
    /// The request is not one that the engine can carry out with this key.
    Senseless,
    Other,
}

/// Judges an answer that is no success; returns the service's words, too.
fn judge(status: u16, body: &[u8]) -> (Refusal, String) {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let errors: Vec<&str> = (body.get("errors").and_then(Value::as_array))
        .map(|errors| errors.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let words = errors.join("; ").replace(['\n', '\t'], " ");
    let said = match words.as_str() {
        "" => format!("status {status}"),
        words => format!("status {status}, {}", words.trim()),
    };
    let refusal = match status {
        503 if words.contains("sealed") => Refusal::Sealed,
        400 if words.contains("key not found") => Refusal::Unusable(Why::Gone),
        400 if words.contains("too old") => Refusal::Unusable(Why::VersionRetired),
        400 => Refusal::Senseless,
        403 => Refusal::Unusable(Why::Forbidden),
        404 => Refusal::Unusable(Why::Gone),
        412 | 429 | 472 | 473 | 500.. => Refusal::Later,
        _ => Refusal::Other,
    };
    (refusal, said)
}

/// The version in what the engine encrypted, `vault:v3:…`.
fn version_of(ciphertext: &str) -> Option<u64> {
    let (version, _) = ciphertext.strip_prefix(PREFIX)?.split_once(':')?;
    version.parse().ok()
}

impl KeyInfo {
    /// When a version was made, as the service tells it.
    fn made(&self, version: u64) -> Option<String> {
        match self.keys.get(&version.to_string())? {
            Value::Object(fields) => Some(fields.get("creation_time")?.as_str()?.to_owned()),
            moment => Some(moment.to_string()),
        }
    }
}

/// A request without success.
enum Refused {
    Unanswered(Error),
    Said(Refusal, String),
}

impl VaultKey {
    /// The key that `url` names. Nothing is asked of the service yet.
    ///
    /// # Errors
    /// Usage for surroundings that make no sense.
    pub(crate) fn open(url: &VaultUrl, outfit: &Outfit) -> Result<Self, Error> {
        Self::with(url, outfit, &Surroundings(&|name| std::env::var(name).ok()))
    }

    fn with(
        url: &VaultUrl,
        outfit: &Outfit,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, Error> {
        let bad = |what: String| Error::BadUrl {
            url: format!("{SCHEME}:{}/keys/{}", url.mount, url.name),
            what,
        };
        let address = match (&url.address, surroundings.get("VAULT_ADDR")) {
            (Some(address), _) => address.clone(),
            (None, Some(text)) => vault_address(text.trim_end_matches('/'))
                .map_err(|what| bad(format!("VAULT_ADDR: {what}")))?,
            (None, None) => {
                return Err(bad(
                    "no address is named; name it in front, vault:https://HOST:8200/…, or in VAULT_ADDR"
                        .to_owned(),
                ));
            }
        };
        let authority = url.ca_file.clone();
        let authority = authority.or_else(|| surroundings.get("VAULT_CACERT").map(PathBuf::from));
        let trust = match authority {
            Some(path) => Trust::Only(certificates(&path).map_err(bad)?),
            None => Trust::System,
        };
        let namespace = url.namespace.clone();
        let namespace = namespace.or_else(|| surroundings.get("VAULT_NAMESPACE"));
        let namespace = namespace.unwrap_or_default().trim_matches('/').to_owned();
        let token = url.token_file.clone().map(TokenSource::File);
        let token = token
            .or_else(|| surroundings.token())
            .ok_or_else(|| bad("no token is named; name one in VAULT_TOKEN".to_owned()))?;
        Ok(Self {
            http: Http::new(trust).map_err(bad)?,
            id: KeyId::of_name(
                SCHEME,
                &[&namespace, &format!("{}/keys/{}", url.mount, url.name)],
            ),
            address,
            namespace,
            mount: url.mount.clone(),
            name: url.name.clone(),
            token,
            entropy: outfit.entropy.clone(),
        })
    }

    fn server(&self) -> &str {
        self.address.as_str().trim_end_matches('/')
    }

    fn shown(&self) -> String {
        let namespace = match self.namespace.as_str() {
            "" => String::new(),
            namespace => format!(" of namespace {namespace}"),
        };
        format!(
            "Vault key {}/keys/{}{namespace} at {}",
            self.mount,
            self.name,
            self.server()
        )
    }

    fn unreachable(&self, what: impl Into<String>) -> Error {
        Error::Unreachable {
            service: format!("Vault at {}", self.server()),
            what: what.into(),
        }
    }

    fn unusable(&self, why: Why, said: impl Into<String>) -> Error {
        Error::Unusable {
            key: self.shown(),
            why,
            said: said.into(),
        }
    }

    /// The token, as it is now.
    fn token(&self) -> Result<Zeroizing<String>, Error> {
        let unknown = |said: String| self.unusable(Why::Unknown, said);
        let token = match &self.token {
            TokenSource::Variable => std::env::var("VAULT_TOKEN").unwrap_or_default(),
            TokenSource::File(path) => read_token(path).map_err(unknown)?,
        };
        let token = Zeroizing::new(token);
        let trimmed = token.trim();
        // It becomes a header, and what can't be one must not be told.
        if trimmed.is_empty() || !trimmed.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(unknown(format!("{} holds no token", self.token)));
        }
        Ok(Zeroizing::new(trimmed.to_owned()))
    }

    fn request(&self, method: Method, path: &str, body: &str) -> Result<Request, Error> {
        let url = self.address.join(&format!("/v1/{path}"));
        let mut headers = vec![
            ("x-vault-request".to_owned(), "true".to_owned()),
            ("x-vault-token".to_owned(), self.token()?.to_string()),
        ];
        if !self.namespace.is_empty() {
            headers.push(("x-vault-namespace".to_owned(), self.namespace.clone()));
        }
        Ok(Request {
            method,
            url: url.map_err(|error| self.unreachable(error.to_string()))?,
            headers,
            body: Zeroizing::new(body.as_bytes().to_vec()),
        })
    }

    /// Asks until there is an answer that counts.
    async fn ask(&self, method: Method, path: &str, body: &str) -> Result<Answer, Refused> {
        let mut tries = Tries::new();
        loop {
            let request = self.request(method.clone(), path, body);
            let sent = self.http.send(request.map_err(Refused::Unanswered)?);
            let later = match sent.await {
                Ok(answer) if (200..300).contains(&answer.status) => return Ok(answer),
                Ok(answer) => match judge(answer.status, &answer.body) {
                    (Refusal::Later, said) => self.unreachable(said),
                    (refusal, said) => return Err(Refused::Said(refusal, said)),
                },
                Err(what) => self.unreachable(what),
            };
            let waited = tries.again(&*self.entropy, later).await;
            waited.map_err(Refused::Unanswered)?;
        }
    }

    /// What a refusal means. A token that is not known and a right that is missing look the same, so that
    /// the token is asked about.
    async fn explain(&self, refused: Refused) -> Error {
        let (refusal, said) = match refused {
            Refused::Unanswered(error) => return error,
            Refused::Said(refusal, said) => (refusal, said),
        };
        match refusal {
            Refusal::Unusable(Why::Forbidden) => {
                let known = self.ask(Method::GET, "auth/token/lookup-self", "").await;
                match known {
                    Err(Refused::Said(Refusal::Unusable(Why::Forbidden), _)) => self.unusable(
                        Why::Unknown,
                        format!("the token is not valid, or not any more ({said})"),
                    ),
                    // Known, or that can't be told: some tokens may not look at themselves.
                    _ => self.unusable(Why::Forbidden, said),
                }
            }
            Refusal::Unusable(why) => self.unusable(why, said),
            Refusal::Sealed => Error::Sealed {
                service: format!("Vault at {}", self.server()),
            },
            Refusal::Senseless => Error::Unfit {
                key: self.shown(),
                what: said,
            },
            Refusal::Later | Refusal::Other => self.unreachable(said),
        }
    }

    async fn post(&self, operation: &str, body: &str) -> Result<Answer, Refused> {
        let path = format!("{}/{operation}/{}", self.mount, self.name);
        self.ask(Method::POST, &path, body).await
    }

    async fn info(&self) -> Result<KeyInfo, Error> {
        let path = format!("{}/keys/{}", self.mount, self.name);
        match self.ask(Method::GET, &path, "").await {
            Ok(answer) => self.read(&answer),
            Err(refused) => Err(self.explain(refused).await),
        }
    }

    fn read<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, Error> {
        // The parser's words could repeat a part of what it read.
        let read: Result<Wrapped<T>, _> = serde_json::from_slice(&answer.body);
        read.map(|wrapped| wrapped.data)
            .map_err(|_| self.unreachable("its answer makes no sense"))
    }

    /// Why something does not decrypt. The service has one answer for another key and for changed bytes;
    /// when the version that wrapped was made tells them apart.
    async fn judge_undecrypted(
        &self,
        context: &WrapContext,
        wrapped: &WrappedKey,
        said: String,
    ) -> Error {
        let purpose = context.purpose.name();
        let other = |said: String| Error::OtherKey {
            key: self.shown(),
            purpose,
            said,
        };
        let (version, made) = match wrapped.version.split_once('@') {
            Some((version, made)) => (version.parse().ok(), made),
            None => (None, ""),
        };
        let (Some(version), Ok(info)) = (version, self.info().await) else {
            return other(format!(
                "{said}; it is another key, or the ring was changed: with `read` on the key that is told apart"
            ));
        };
        match info.made(version) {
            Some(found) if found == made => context.bad(),
            Some(_) => other(format!(
                "{said}; its version {version} was made at another time"
            )),
            None => other(format!(
                "{said}; it has no version {version}, the newest is {}",
                info.latest_version
            )),
        }
    }
}

impl std::fmt::Display for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Variable => f.write_str("VAULT_TOKEN"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

fn read_token(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| {
        format!(
            "no token was found; set VAULT_TOKEN, or write it to {}: {error}",
            path.display()
        )
    })
}

#[async_trait]
impl KeyProvider for VaultKey {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn key_id(&self) -> KeyId {
        self.id
    }

    fn place(&self) -> String {
        self.shown()
    }

    fn label(&self) -> String {
        let namespace = match self.namespace.as_str() {
            "" => String::new(),
            namespace => format!("?namespace={namespace}"),
        };
        format!(
            "{}/{}/keys/{}{namespace}",
            self.server(),
            self.mount,
            self.name
        )
    }

    async fn wrap(
        &self,
        context: &WrapContext,
        secret: &SecretKey,
        _entropy: &dyn Entropy,
    ) -> Result<WrappedKey, Error> {
        // First: to encrypt with a key that does not exist would make one.
        let info = self.info().await?;
        if !SYMMETRIC.contains(&info.kind.as_str()) {
            return Err(Error::Unfit {
                key: self.shown(),
                what: format!("it is of type {}", info.kind),
            });
        }
        let plaintext = Zeroizing::new(STANDARD.encode(&*bound(context, secret)));
        let binding = STANDARD.encode(context.associated_data());
        // Written by hand, since a JSON value would leave a copy of the key behind.
        let body = Zeroizing::new(format!(
            "{{\"associated_data\":\"{binding}\",\"context\":\"{binding}\",\"plaintext\":\"{}\"}}",
            plaintext.as_str()
        ));
        let answer = match self.post("encrypt", &body).await {
            Ok(answer) => answer,
            Err(refused) => return Err(self.explain(refused).await),
        };
        let Encrypted { ciphertext } = self.read(&answer)?;
        let version = version_of(&ciphertext)
            .ok_or_else(|| self.unreachable("its answer names no version"))?;
        let made = info.made(version).unwrap_or_default();
        Ok(WrappedKey {
            nonce: Vec::new(),
            ciphertext: ciphertext.into_bytes(),
            version: format!("{version}@{made}"),
        })
    }

    async fn unwrap(
        &self,
        context: &WrapContext,
        wrapped: &WrappedKey,
    ) -> Result<SecretKey, Error> {
        let ciphertext = std::str::from_utf8(&wrapped.ciphertext).unwrap_or_default();
        if version_of(ciphertext).is_none() {
            return Err(context.bad());
        }
        let binding = STANDARD.encode(context.associated_data());
        let body = json!({
            "ciphertext": ciphertext,
            "associated_data": binding,
            "context": binding,
        });
        let answer = match self.post("decrypt", &body.to_string()).await {
            Ok(answer) => answer,
            Err(Refused::Said(Refusal::Senseless, said)) => {
                return Err(self.judge_undecrypted(context, wrapped, said).await);
            }
            Err(refused) => return Err(self.explain(refused).await),
        };
        let decrypted: Decrypted = self.read(&answer)?;
        let plaintext = Zeroizing::new(decrypted.plaintext);
        let content = STANDARD.decode(plaintext.as_bytes());
        let content =
            Zeroizing::new(content.map_err(|_| self.unreachable("its answer is not base64"))?);
        unbound(context, &content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyUrl;
    use borealis_base::{SystemClock, SystemEntropy};

    #[test]
    fn every_refusal_of_the_service_is_told_from_the_others() {
        let body = |words: &str| json!({ "errors": [words] }).to_string();
        for (status, words, wanted) in [
            (503, "Vault is sealed", Refusal::Sealed),
            (503, "error performing token check", Refusal::Later),
            (
                403,
                "1 error occurred:\n\t* permission denied\n\n",
                Refusal::Unusable(Why::Forbidden),
            ),
            (
                400,
                "encryption key not found",
                Refusal::Unusable(Why::Gone),
            ),
            (
                404,
                "no handler for route \"transit/decrypt/x\". route entry not found.",
                Refusal::Unusable(Why::Gone),
            ),
            (
                400,
                "ciphertext or signature version is disallowed by policy (too old)",
                Refusal::Unusable(Why::VersionRetired),
            ),
            (
                400,
                "invalid ciphertext: unable to decrypt",
                Refusal::Senseless,
            ),
            (429, "request path quota exceeded", Refusal::Later),
            (500, "internal error", Refusal::Later),
            (412, "required index state not present", Refusal::Later),
            (307, "", Refusal::Other),
        ] {
            let (refusal, said) = judge(status, body(words).as_bytes());
            assert_eq!(refusal, wanted, "{status} {words}");
            assert!(said.contains(&status.to_string()) && !said.contains('\n'));
        }
        assert_eq!(
            judge(404, b"{\"errors\":[]}").0,
            Refusal::Unusable(Why::Gone)
        );
        assert_eq!(judge(502, b"<html>").0, Refusal::Later);
    }

    #[test]
    fn versions_are_read_from_what_the_engine_made() {
        assert_eq!(version_of("vault:v12:AAAA"), Some(12));
        for text in ["", "vault:v:x", "vault:vx:y", "vault:v1", "bao:v1:x"] {
            assert_eq!(version_of(text), None, "{text}");
        }
    }

    fn opened(url: &str, variables: &[(&str, &str)]) -> Result<VaultKey, Error> {
        let KeyUrl::Vault(url) = KeyUrl::parse(url).unwrap() else {
            panic!("{url} is no key of Vault")
        };
        let outfit = Outfit {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
        };
        let get = |name: &str| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        };
        VaultKey::with(&url, &outfit, &Surroundings(&get))
    }

    #[test]
    fn the_surroundings_are_those_of_the_vault_program() {
        let here = [
            ("VAULT_ADDR", "https://v:8200/"),
            ("VAULT_NAMESPACE", "team/"),
            ("HOME", "/home/me"),
        ];
        let key = opened("vault:transit/keys/x", &here).unwrap();
        assert_eq!(key.server(), "https://v:8200");
        assert_eq!(key.namespace, "team");
        assert_eq!(key.token, TokenSource::File("/home/me/.vault-token".into()));
        assert_eq!(key.label(), "https://v:8200/transit/keys/x?namespace=team");
        let more = [&here[..], &[("VAULT_TOKEN_FILE", "/run/token")]].concat();
        let key = opened("vault:transit/keys/x", &more).unwrap();
        assert_eq!(key.token, TokenSource::File("/run/token".into()));
        let more = [&more[..], &[("VAULT_TOKEN", "hvs.x")]].concat();
        let key = opened("vault:transit/keys/x", &more).unwrap();
        assert_eq!(key.token, TokenSource::Variable);
        let url = "vault:http://other:1/transit/keys/x?namespace=a&token-file=/t";
        let key = opened(url, &more).unwrap();
        assert_eq!(key.server(), "http://other:1");
        assert_eq!(key.namespace, "a");
        assert_eq!(key.token, TokenSource::File("/t".into()));
    }

    #[test]
    fn what_is_missing_in_the_surroundings_is_said() {
        for (variables, word) in [
            (&[][..], "VAULT_ADDR"),
            (&[("VAULT_ADDR", "v:8200")][..], "https://host:8200"),
            (&[("VAULT_ADDR", "https://v:8200")][..], "VAULT_TOKEN"),
            (
                &[
                    ("VAULT_ADDR", "https://v:8200"),
                    ("VAULT_CACERT", "/nowhere"),
                ][..],
                "/nowhere",
            ),
        ] {
            let error = opened("vault:transit/keys/x", variables).err().unwrap();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn the_id_of_a_key_is_its_name_and_not_its_address() {
        let id = |url: &str| opened(url, &[("VAULT_TOKEN", "t")]).unwrap().key_id();
        let here = id("vault:https://a:8200/transit/keys/x");
        assert_eq!(here, id("vault:https://b:8200/transit/keys/x"));
        for other in [
            "vault:https://a:8200/transit/keys/y",
            "vault:https://a:8200/other/keys/x",
            "vault:https://a:8200/transit/keys/x?namespace=n",
        ] {
            assert_ne!(here, id(other), "{other}");
        }
    }
}
