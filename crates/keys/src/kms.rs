//! A root key in AWS's key management service (`TrentService`, protocol `awsJson1.1`).
//!
//! Three operations are used: `Encrypt` and `Decrypt`, with an encryption context that says what is
//! wrapped for whom and that the service writes into its own log, and `DescribeKey`, which tells an
//! alias or an id from the ARN that is the key's name. An ARN needs no `DescribeKey` to be opened with.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use borealis_aws::{
    CachedCredentials, Credentials, Named, SharedCredentialsProvider, surroundings,
};
use borealis_base::{Clock, Entropy};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::envelope::{bound, unbound};
use crate::service::{Answer, Failed, Http, Request, Tries, Trust, certificates};
use crate::url::KmsUrl;
use crate::{Error, KeyId, KeyProvider, Outfit, SecretKey, Why, WrapContext, WrappedKey};

/// The word for this kind of provider.
pub(crate) const SCHEME: &str = "aws-kms";
const SERVICE: &str = "kms";
/// The only kind of key that wraps and unwraps without showing half of itself.
const SYMMETRIC: &str = "SYMMETRIC_DEFAULT";
const BOTH_WAYS: &str = "ENCRYPT_DECRYPT";

/// A key of AWS KMS.
pub struct KmsKey {
    service: Service,
    arn: String,
    id: KeyId,
}

struct Service {
    http: Http,
    endpoint: Url,
    region: String,
    credentials: CachedCredentials,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    key_metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    arn: String,
    key_state: Option<String>,
    key_usage: Option<String>,
    key_spec: Option<String>,
    /// What [`Self::key_spec`] was called before.
    customer_master_key_spec: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    ciphertext_blob: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    plaintext: String,
}

/// What an answer that is no success means.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Trying again may help.
    Later,
    /// The credentials are not taken, perhaps because they have expired.
    Credentials,
    /// The key may not be used.
    Unusable(Why),
    /// The wrapped bytes or their context were changed.
    BadCiphertext,
    /// Another key has wrapped.
    OtherKey,
    /// The key is of another kind.
    Unfit,
    /// Anything else.
    Other,
}

/// Judges an answer that is no success; returns the service's words, too.
fn judge(status: u16, body: &[u8]) -> (Refusal, String) {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
    let kind = text("__type").rsplit('#').next().unwrap_or_default();
    let message = [text("message"), text("Message")].join("");
    let said = match (kind, message.as_str()) {
        ("", _) => format!("status {status}"),
        (kind, "") => kind.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    };
    let refusal = match kind {
        "DisabledException" => Refusal::Unusable(Why::Disabled),
        "KMSInvalidStateException" => Refusal::Unusable(Why::Dying),
        "NotFoundException" | "InvalidArnException" => Refusal::Unusable(Why::Gone),
        "AccessDeniedException" => Refusal::Unusable(Why::Forbidden),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "OptInRequired"
        | "NotAuthorized" => Refusal::Credentials,
        "InvalidCiphertextException" => Refusal::BadCiphertext,
        "IncorrectKeyException" => Refusal::OtherKey,
        "InvalidKeyUsageException" => Refusal::Unfit,
        "ThrottlingException"
        | "LimitExceededException"
        | "KMSInternalException"
        | "DependencyTimeoutException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "ServiceUnavailable"
        | "RequestExpired" => Refusal::Later,
        _ if status >= 500 || status == 429 => Refusal::Later,
        _ => Refusal::Other,
    };
    (refusal, said)
}

/// Where AWS has the service.
fn standard_endpoint(region: &str) -> String {
    let suffix = match region.split('-').next() {
        Some("cn") => "amazonaws.com.cn",
        _ => "amazonaws.com",
    };
    format!("https://{SERVICE}.{region}.{suffix}")
}

/// The region that an ARN names.
fn region_of(key: &str) -> Option<&str> {
    key.strip_prefix("arn:")?.split(':').nth(2)
}

/// The public name of the key with this ARN. The replicas of a multi-Region key are one key: their ARNs
/// differ by the region alone.
fn id_of(arn: &str) -> KeyId {
    let parts: Vec<&str> = arn.split(':').collect();
    match parts.as_slice() {
        [a, partition, service, _, account, key] if key.starts_with("key/mrk-") => {
            let arn = [*a, *partition, *service, "", *account, *key].join(":");
            KeyId::of_name(SCHEME, &[&arn])
        }
        _ => KeyId::of_name(SCHEME, &[arn]),
    }
}

fn encryption_context(context: &WrapContext) -> Value {
    json!({
        "borealis:purpose": context.purpose.name(),
        "borealis:owner": KeyId(context.owner).to_string(),
        "borealis:subject": KeyId(context.subject).to_string(),
    })
}

fn shown(key: &str) -> String {
    format!("AWS KMS key {key}")
}

impl KmsKey {
    /// Finds the key that `url` names.
    ///
    /// # Errors
    /// Unusable or unreachable by the word of the service; usage for surroundings that make no sense.
    pub async fn open(url: &KmsUrl, outfit: &Outfit) -> Result<Self, Error> {
        Self::with(url, outfit, None).await
    }

    /// As [`Self::open`], with these credentials instead of those that the surroundings name.
    pub async fn open_with_keys(
        url: &KmsUrl,
        outfit: &Outfit,
        access_key: &str,
        secret_key: &str,
    ) -> Result<Self, Error> {
        let keys = Credentials::from_keys(access_key, secret_key, None);
        Self::with(url, outfit, Some(keys)).await
    }

    async fn with(url: &KmsUrl, outfit: &Outfit, keys: Option<Credentials>) -> Result<Self, Error> {
        let service = Service::find(url, outfit, keys).await?;
        let arn = if url.key.starts_with("arn:") && url.key.contains(":key/") {
            url.key.clone()
        } else {
            service.describe(&url.key).await?.arn
        };
        Ok(Self {
            id: id_of(&arn),
            service,
            arn,
        })
    }
}

impl Service {
    async fn find(url: &KmsUrl, outfit: &Outfit, keys: Option<Credentials>) -> Result<Self, Error> {
        let bad = |what: String| Error::BadUrl {
            url: format!("{SCHEME}:{}", url.key),
            what,
        };
        let in_arn = region_of(&url.key).map(str::to_owned);
        let config = surroundings(&Named {
            region: url.region.clone().or(in_arn),
            profile: url.profile.clone(),
            has_endpoint: url.endpoint.is_some(),
        })
        .await;
        let region = config.region().map(ToString::to_string).ok_or_else(|| {
            bad("no region is named; name it with region=… or in AWS_REGION".to_owned())
        })?;
        let named = std::env::var("AWS_ENDPOINT_URL_KMS").ok();
        let named = named.as_deref().or(config.endpoint_url());
        let endpoint = match (&url.endpoint, named.filter(|text| !text.is_empty())) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, named) => {
                let text = named.map_or_else(|| standard_endpoint(&region), str::to_owned);
                Url::parse(&text).map_err(|error| bad(format!("endpoint {text}: {error}")))?
            }
        };
        let bundle = url.ca_file.clone();
        let bundle = bundle.or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(Into::into));
        let trust = match bundle.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => Trust::Besides(certificates(&path).map_err(bad)?),
            None => Trust::System,
        };
        let provider = (keys.map(SharedCredentialsProvider::new))
            .or_else(|| config.credentials_provider())
            .ok_or_else(|| bad("there is no source of AWS credentials".to_owned()))?;
        Ok(Self {
            http: Http::new(trust).map_err(bad)?,
            endpoint,
            region,
            credentials: CachedCredentials::new(provider, outfit.clock.clone()),
            clock: outfit.clock.clone(),
            entropy: outfit.entropy.clone(),
        })
    }

    fn name(&self) -> String {
        format!(
            "key service {}",
            self.endpoint.as_str().trim_end_matches('/')
        )
    }

    async fn describe(&self, key: &str) -> Result<Metadata, Error> {
        let body = Zeroizing::new(json!({ "KeyId": key }).to_string());
        let answer = self.ask("DescribeKey", key, &body).await;
        let nothing_wrapped = || self.unreachable("its answer makes no sense".to_owned());
        let answer = answer.map_err(|refused| refused.into_error(key, "key", nothing_wrapped))?;
        let described: Described = self.read(&answer)?;
        Ok(described.key_metadata)
    }

    /// Asks until there is an answer that counts.
    async fn ask(&self, operation: &str, key: &str, body: &str) -> Result<Answer, Refused> {
        let (mut tries, mut renewed) = (Tries::new(), false);
        loop {
            let later = match self.ask_once(operation, key, body).await {
                Ok(answer) if answer.status == 200 => return Ok(answer),
                Ok(answer) => match judge(answer.status, &answer.body) {
                    (Refusal::Later, said) => self.unreachable(said),
                    // What was held may have been rotated meanwhile.
                    (Refusal::Credentials, _) if !renewed => {
                        renewed = true;
                        self.credentials.forget().await;
                        continue;
                    }
                    (refusal, said) => return Err(Refused::Said(refusal, said)),
                },
                Err(Failed::Later(error)) => error,
                Err(Failed::Final(error)) => return Err(Refused::Unanswered(error)),
            };
            let waited = tries.again(&*self.entropy, later).await;
            waited.map_err(Refused::Unanswered)?;
        }
    }

    async fn ask_once(&self, operation: &str, key: &str, body: &str) -> Result<Answer, Failed> {
        let credentials = self.credentials.get().await.map_err(|error| {
            if error.transient {
                return Failed::Later(self.unreachable(error.to_string()));
            }
            Failed::Final(Error::Unusable {
                key: shown(key),
                why: Why::Unknown,
                said: error.to_string(),
            })
        })?;
        let request = self.request(operation, body, credentials);
        let request = request.map_err(|what| Failed::Final(self.unreachable(what)))?;
        let answer = self.http.send(request).await;
        answer.map_err(|what| Failed::Later(self.unreachable(what)))
    }

    /// Signs a request.
    fn request(
        &self,
        operation: &str,
        body: &str,
        credentials: Credentials,
    ) -> Result<Request, String> {
        let target = format!("TrentService.{operation}");
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", &target),
        ];
        let identity = credentials.into();
        let now = Duration::from_micros(self.clock.now().0.unsigned_abs());
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(SERVICE)
            .time(UNIX_EPOCH + now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| error.to_string())?
            .into();
        let signable = SignableRequest::new(
            "POST",
            self.endpoint.as_str(),
            headers.into_iter(),
            SignableBody::Bytes(body.as_bytes()),
        );
        let signed = signable.and_then(|request| sign(request, &parameters));
        let (signature, _) = signed.map_err(|error| error.to_string())?.into_parts();
        let headers = headers.into_iter().chain(signature.headers());
        Ok(Request {
            method: Method::POST,
            url: self.endpoint.clone(),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: Zeroizing::new(body.as_bytes().to_vec()),
        })
    }

    fn unreachable(&self, what: String) -> Error {
        Error::Unreachable {
            service: self.name(),
            what,
        }
    }

    fn read<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, Error> {
        // The parser's words could repeat a part of what it read.
        serde_json::from_slice(&answer.body)
            .map_err(|_| self.unreachable("its answer makes no sense".to_owned()))
    }
}

/// A request without success.
enum Refused {
    Unanswered(Error),
    Said(Refusal, String),
}

impl Refused {
    fn into_error(
        self,
        key: &str,
        purpose: &'static str,
        bad_ciphertext: impl FnOnce() -> Error,
    ) -> Error {
        let (refusal, said) = match self {
            Self::Unanswered(error) => return error,
            Self::Said(refusal, said) => (refusal, said),
        };
        let key = shown(key);
        match refusal {
            Refusal::Unusable(why) => Error::Unusable { key, why, said },
            Refusal::Credentials => Error::Unusable {
                key,
                why: Why::Unknown,
                said,
            },
            Refusal::BadCiphertext => bad_ciphertext(),
            Refusal::OtherKey => Error::OtherKey { key, purpose, said },
            Refusal::Unfit => Error::Unfit { key, what: said },
            Refusal::Later | Refusal::Other => Error::Unreachable {
                service: key,
                what: said,
            },
        }
    }
}

/// Refuses a key that is not symmetric: whoever knows the public half of one could wrap with it.
fn check_fit(metadata: &Metadata) -> Result<(), Error> {
    let spec = metadata.key_spec.as_ref();
    let spec = spec.or(metadata.customer_master_key_spec.as_ref());
    let kind = spec.map_or(SYMMETRIC, String::as_str);
    let usage = metadata.key_usage.as_deref().unwrap_or(BOTH_WAYS);
    if kind == SYMMETRIC && usage == BOTH_WAYS {
        return Ok(());
    }
    Err(Error::Unfit {
        key: shown(&metadata.arn),
        what: format!("it is of kind {kind}, for {usage}"),
    })
}

/// What the state of a key means, where the service tells it before the key is used.
fn check_state(metadata: &Metadata) -> Result<(), Error> {
    let state = metadata.key_state.as_deref().unwrap_or("Enabled");
    let why = match state {
        "Enabled" | "Creating" | "Updating" => return Ok(()),
        "Disabled" => Why::Disabled,
        _ => Why::Dying,
    };
    Err(Error::Unusable {
        key: shown(&metadata.arn),
        why,
        said: format!("its state is {state}"),
    })
}

#[async_trait]
impl KeyProvider for KmsKey {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn key_id(&self) -> KeyId {
        self.id
    }

    fn place(&self) -> String {
        shown(&self.arn)
    }

    fn label(&self) -> String {
        self.arn.clone()
    }

    async fn wrap(
        &self,
        context: &WrapContext,
        secret: &SecretKey,
        _entropy: &dyn Entropy,
    ) -> Result<WrappedKey, Error> {
        let metadata = self.service.describe(&self.arn).await?;
        check_fit(&metadata)?;
        check_state(&metadata)?;
        let plaintext = Zeroizing::new(STANDARD.encode(&*bound(context, secret)));
        // Written by hand, since a JSON value would leave a copy of the key behind.
        let body = Zeroizing::new(format!(
            "{{\"KeyId\":\"{}\",\"EncryptionContext\":{},\"Plaintext\":\"{}\"}}",
            self.arn,
            encryption_context(context),
            plaintext.as_str()
        ));
        let answer = self.service.ask("Encrypt", &self.arn, &body).await;
        let purpose = context.purpose.name();
        let answer =
            answer.map_err(|refused| refused.into_error(&self.arn, purpose, || context.bad()))?;
        let encrypted: Encrypted = self.service.read(&answer)?;
        let ciphertext = STANDARD.decode(encrypted.ciphertext_blob);
        Ok(WrappedKey {
            nonce: Vec::new(),
            ciphertext: ciphertext.map_err(|_| {
                self.service
                    .unreachable("its answer is not base64".to_owned())
            })?,
            version: String::new(),
        })
    }

    async fn unwrap(
        &self,
        context: &WrapContext,
        wrapped: &WrappedKey,
    ) -> Result<SecretKey, Error> {
        let body = json!({
            "KeyId": self.arn,
            "EncryptionContext": encryption_context(context),
            "CiphertextBlob": STANDARD.encode(&wrapped.ciphertext),
        });
        let body = Zeroizing::new(body.to_string());
        let answer = self.service.ask("Decrypt", &self.arn, &body).await;
        let purpose = context.purpose.name();
        let answer =
            answer.map_err(|refused| refused.into_error(&self.arn, purpose, || context.bad()))?;
        let decrypted: Decrypted = self.service.read(&answer)?;
        let plaintext = Zeroizing::new(decrypted.plaintext);
        let content = Zeroizing::new(STANDARD.decode(plaintext.as_bytes()).map_err(|_| {
            self.service
                .unreachable("its answer is not base64".to_owned())
        })?);
        unbound(context, &content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies as the API reference has them.
    #[test]
    fn every_refusal_of_the_service_is_told_from_the_others() {
        let body = |kind: &str| format!("{{\"__type\":\"{kind}\",\"message\":\"arn:x says so\"}}");
        for (kind, wanted) in [
            ("DisabledException", Refusal::Unusable(Why::Disabled)),
            (
                "com.amazonaws.kms#DisabledException",
                Refusal::Unusable(Why::Disabled),
            ),
            ("KMSInvalidStateException", Refusal::Unusable(Why::Dying)),
            ("NotFoundException", Refusal::Unusable(Why::Gone)),
            ("AccessDeniedException", Refusal::Unusable(Why::Forbidden)),
            ("UnrecognizedClientException", Refusal::Credentials),
            ("ExpiredTokenException", Refusal::Credentials),
            ("InvalidSignatureException", Refusal::Credentials),
            ("InvalidCiphertextException", Refusal::BadCiphertext),
            ("IncorrectKeyException", Refusal::OtherKey),
            ("InvalidKeyUsageException", Refusal::Unfit),
            ("ThrottlingException", Refusal::Later),
            ("KMSInternalException", Refusal::Later),
            ("KeyUnavailableException", Refusal::Later),
            ("ValidationException", Refusal::Other),
        ] {
            let (refusal, said) = judge(400, body(kind).as_bytes());
            assert_eq!(refusal, wanted, "{kind}");
            assert!(said.contains("says so"), "{said}");
        }
        assert_eq!(judge(503, b"<html>").0, Refusal::Later);
        assert_eq!(judge(429, b"").0, Refusal::Later);
        assert_eq!(judge(403, b"").0, Refusal::Other);
    }

    #[test]
    fn the_replicas_of_a_multi_region_key_are_one_key_and_other_keys_are_their_arn() {
        let arn = |region: &str, id: &str| format!("arn:aws:kms:{region}:123456789012:key/{id}");
        assert_eq!(
            id_of(&arn("eu-west-1", "mrk-1")),
            id_of(&arn("us-east-1", "mrk-1"))
        );
        assert_ne!(id_of(&arn("eu-west-1", "1")), id_of(&arn("us-east-1", "1")));
        assert_ne!(id_of(&arn("a", "mrk-1")), id_of(&arn("a", "mrk-2")));
        assert_eq!(
            id_of(&arn("a", "1")),
            KeyId::of_name(SCHEME, &[&arn("a", "1")])
        );
    }

    #[test]
    fn regions_lead_to_their_endpoint() {
        assert_eq!(
            standard_endpoint("eu-west-1"),
            "https://kms.eu-west-1.amazonaws.com"
        );
        assert_eq!(
            standard_endpoint("cn-north-1"),
            "https://kms.cn-north-1.amazonaws.com.cn"
        );
        assert_eq!(region_of("arn:aws:kms:here:1:key/2"), Some("here"));
        assert_eq!(region_of("alias/x"), None);
    }

    #[test]
    fn keys_that_are_not_symmetric_or_not_enabled_are_refused_before_they_wrap() {
        let metadata = |spec: &str, usage: &str, state: &str| Metadata {
            arn: "arn:x".into(),
            key_state: Some(state.into()),
            key_usage: Some(usage.into()),
            key_spec: Some(spec.into()),
            customer_master_key_spec: None,
        };
        let good = metadata(SYMMETRIC, BOTH_WAYS, "Enabled");
        assert!(check_fit(&good).is_ok() && check_state(&good).is_ok());
        for (spec, usage) in [
            ("RSA_2048", BOTH_WAYS),
            ("RSA_2048", "SIGN_VERIFY"),
            (SYMMETRIC, "GENERATE_VERIFY_MAC"),
        ] {
            assert!(check_fit(&metadata(spec, usage, "Enabled")).is_err());
        }
        for (state, wanted) in [
            ("Disabled", Why::Disabled),
            ("PendingDeletion", Why::Dying),
            ("PendingImport", Why::Dying),
            ("Unavailable", Why::Dying),
        ] {
            let error = check_state(&metadata(SYMMETRIC, BOTH_WAYS, state)).unwrap_err();
            assert!(matches!(error, Error::Unusable { why, .. } if why == wanted));
        }
    }
}
