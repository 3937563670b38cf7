//! Where a bucket is, as its URL says. Pure.
//!
//! Everything that it takes to reach a bucket, except credentials, stands in one URL, so that whatever
//! carries the URL (an option, a variable, a configuration file, the file of a restore) carries all of it.

use std::path::PathBuf;

use url::Url;

use crate::store::{StoreError, StoreErrorKind};

/// The parameters of an S3 URL, for messages.
const PARAMETERS: &str = "endpoint, region, path-style, ca-file, profile and single-writer";

/// What may be done with a store that ignores create-if-absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum SingleWriter {
    /// Serve it in single-writer mode.
    #[default]
    Allow,
    /// Refuse to write to it.
    Forbid,
}

/// A parsed `s3://bucket/prefix?…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) bucket: String,
    /// Without a slash at either end; empty for the whole bucket.
    pub(super) prefix: String,
    pub(super) endpoint: Option<Url>,
    pub(super) region: Option<String>,
    pub(super) path_style: Option<bool>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) profile: Option<String>,
    pub(super) single_writer: SingleWriter,
}

impl Location {
    /// Reads `text`, which begins with `s3://`.
    ///
    /// # Errors
    /// Invalid. A message never repeats what could be a secret.
    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        let url = Url::parse(text).map_err(|error| invalid(text, &error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                "s3://…",
                "the URL holds credentials, which others can read in the list of processes; use the \
                 environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile or a role",
            ));
        }
        let bucket = url.host_str().unwrap_or_default().to_owned();
        if bucket.is_empty() || url.port().is_some() || url.fragment().is_some() {
            return Err(invalid(text, "an S3 URL is written s3://bucket/prefix"));
        }
        let prefix = url.path().trim_matches('/').to_owned();
        let good = |segment: &str| {
            !segment.is_empty()
                && !matches!(segment, "." | "..")
                && (segment.bytes())
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
        };
        if !prefix.is_empty() && !prefix.split('/').all(good) {
            return Err(invalid(
                text,
                "the prefix may hold letters, digits and `._-`, in parts separated by `/`",
            ));
        }
        let mut location = Self {
            bucket,
            prefix,
            endpoint: None,
            region: None,
            path_style: None,
            ca_file: None,
            profile: None,
            single_writer: SingleWriter::default(),
        };
        for (name, value) in url.query_pairs() {
            location.take(text, &name, value.into_owned())?;
        }
        Ok(location)
    }

    fn take(&mut self, text: &str, name: &str, value: String) -> Result<(), StoreError> {
        if value.is_empty() {
            return Err(invalid(text, &format!("{name} is empty")));
        }
        match name {
            "endpoint" => self.endpoint = Some(endpoint(&value).map_err(|e| invalid(text, &e))?),
            "region" => self.region = Some(value),
            "path-style" => {
                self.path_style = Some(match value.as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(invalid(text, "path-style is true or false")),
                });
            }
            "ca-file" => self.ca_file = Some(value.into()),
            "profile" => self.profile = Some(value),
            "single-writer" => {
                self.single_writer = match value.as_str() {
                    "allow" => SingleWriter::Allow,
                    "forbid" => SingleWriter::Forbid,
                    _ => return Err(invalid(text, "single-writer is allow or forbid")),
                };
            }
            _ => {
                let what = format!("`{name}` is no parameter; there are {PARAMETERS}");
                // It could be a secret under a name of someone's own.
                return Err(invalid(text.split('?').next().unwrap_or_default(), &what));
            }
        }
        Ok(())
    }

    /// Bucket and prefix, for messages.
    pub(super) fn shown(&self) -> String {
        match self.prefix.as_str() {
            "" => format!("s3://{}", self.bucket),
            prefix => format!("s3://{}/{prefix}", self.bucket),
        }
    }

    /// The key of object `name` in the bucket.
    pub(super) fn key(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }
}

/// An endpoint: scheme, host and port, nothing else.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    let wanted = "an endpoint is written https://host or http://host:port";
    let url = Url::parse(text).map_err(|error| format!("{wanted}: {error}"))?;
    let plain = matches!(url.scheme(), "https" | "http")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none();
    if plain {
        Ok(url)
    } else {
        Err(wanted.to_owned())
    }
}

fn invalid(url: &str, what: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Invalid, "open", "the repository", url, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_parameter_is_read() {
        let text = "s3://my-bucket/some/Prefix_1?endpoint=https://s3.example.org:9000&region=here\
                    &path-style=false&ca-file=/etc/ca.pem&profile=backup&single-writer=forbid";
        let location = Location::parse(text).unwrap();
        assert_eq!(location.bucket, "my-bucket");
        assert_eq!(location.prefix, "some/Prefix_1");
        assert_eq!(
            location.endpoint.as_ref().map(Url::as_str),
            Some("https://s3.example.org:9000/")
        );
        assert_eq!(location.region.as_deref(), Some("here"));
        assert_eq!(location.path_style, Some(false));
        assert_eq!(location.ca_file, Some(PathBuf::from("/etc/ca.pem")));
        assert_eq!(location.profile.as_deref(), Some("backup"));
        assert_eq!(location.single_writer, SingleWriter::Forbid);
        assert_eq!(location.shown(), "s3://my-bucket/some/Prefix_1");
        assert_eq!(location.key("a/b"), "some/Prefix_1/a/b");
        let whole = Location::parse("s3://bucket/").unwrap();
        assert_eq!(
            (whole.shown(), whole.key("a")),
            ("s3://bucket".into(), "a".into())
        );
    }

    #[test]
    fn malformed_urls_are_refused_with_the_reason() {
        for (text, word) in [
            ("s3://", "s3://bucket/prefix"),
            ("s3://bucket:90/x", "s3://bucket/prefix"),
            ("s3://bucket/a//b", "prefix"),
            ("s3://bucket/a%20b", "prefix"),
            ("s3://bucket/a?endpoint=host:9000", "https://host"),
            ("s3://bucket/a?endpoint=ftp://host", "https://host"),
            ("s3://bucket/a?endpoint=https://host/path", "https://host"),
            ("s3://bucket/a?endpoint=https://u:p@host", "https://host"),
            ("s3://bucket/a?region=", "region is empty"),
            ("s3://bucket/a?path-style=yes", "true or false"),
            ("s3://bucket/a?single-writer=no", "allow or forbid"),
            ("s3://bucket/a?regoin=x", "`regoin`"),
        ] {
            let error = Location::parse(text).unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Invalid, "{text}");
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for text in [
            "s3://AKIAKEY:geheim@bucket/prefix",
            "s3://bucket/prefix?secret_access_key=geheim",
            "s3://bucket/prefix?aws_secret=geheim&region=x",
        ] {
            let error = Location::parse(text).unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
