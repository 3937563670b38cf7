//! A store in a bucket of S3 or of anything that speaks its protocol.
//!
//! The client is `object_store`'s. Around it: credentials the AWS way ([`credentials`]), every answer
//! judged in one place ([`answer`]), every request counted, bounded in time and tried again with jitter
//! ([`retry`]).
//!
//! A create is one PUT with `If-None-Match: *`. A reply that was lost and a rival look the same here:
//! both are [`Created::Exists`], and the caller tells them apart by what it reads back. Bodies carry a
//! SHA-256 that the store compares before it answers.
//!
//! State: the answer to [`Store::fencing`], asked once; credentials until they expire; connections.
//! Nothing survives a crash but the objects, and the parts of uploads that were not completed.

mod answer;
mod credentials;
mod http;
mod location;
mod multipart;
mod retry;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use borealis_aws::{Credentials, SharedCredentialsProvider};
use borealis_base::Timestamp;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::client::HttpError;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, Error as InnerError, GetOptions, GetRange,
    GetResult, HeaderMap, HeaderValue, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    RetryConfig,
};
use tokio::sync::OnceCell;
use url::Url;

use self::answer::{Answer, Verdict};
use self::credentials::{Cached, NoCredentials};
use self::location::{Location, SingleWriter};
use self::retry::{ANSWER_TIMEOUT, ATTEMPTS_MAX, Failure, patiently, pause, time_limit};
use super::{
    Created, Fencing, Listed, Outfit, Stat, Store, StoreError, StoreErrorKind, check_name,
};
use crate::layout;

/// How long it may take to be connected.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The content of the object by which a store is asked whether it honours create-if-absent.
const FENCING_PROBE: &[u8] =
    b"Borealis asks with this object whether the store honours create-if-absent.\n";
/// How often that object is created, all times with success, before a store is said to ignore it.
const FENCING_QUESTIONS: u32 = 3;
/// In single-writer mode, how much of an object is read back after it was created. Every object's
/// random identifiers lie within.
const READ_BACK_BYTES: u64 = 64 << 10;
/// A download that got this far since it was last interrupted has not failed once more.
const PROGRESS_BYTES: usize = 1 << 20;
/// Memory that a download reserves on the store's word alone.
const RESERVE_BYTES_MAX: u64 = 64 << 20;

/// A store in a bucket.
pub struct S3Store {
    inner: AmazonS3,
    /// As `inner`, with `If-None-Match: *` on every request: completes uploads in parts.
    completing: AmazonS3,
    location: Location,
    shown: String,
    outfit: Outfit,
    fencing: OnceCell<Fencing>,
}

impl S3Store {
    /// The store at `url`, which begins with `s3://`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// Invalid where the URL, the certificates or the surroundings make no sense.
    pub async fn open(url: &str, outfit: &Outfit) -> Result<Self, StoreError> {
        Self::with(url, outfit, None).await
    }

    /// As [`Self::open`], with these keys instead of those that the surroundings name.
    pub async fn open_with_keys(
        url: &str,
        outfit: &Outfit,
        access_key: &str,
        secret_key: &str,
    ) -> Result<Self, StoreError> {
        let keys = Credentials::from_keys(access_key, secret_key, None);
        Self::with(url, outfit, Some(keys)).await
    }

    async fn with(
        url: &str,
        outfit: &Outfit,
        keys: Option<Credentials>,
    ) -> Result<Self, StoreError> {
        let location = Location::parse(url)?;
        let shown = location.shown();
        let invalid = |what: String| {
            StoreError::new(
                StoreErrorKind::Invalid,
                "open",
                "the repository",
                &shown,
                what,
            )
        };
        let builder = builder(&location, outfit, keys).await.map_err(invalid)?;
        let build =
            |builder: AmazonS3Builder| builder.build().map_err(|error| invalid(error.to_string()));
        let options = client_options(&location).map_err(invalid)?;
        let mut if_absent = HeaderMap::new();
        if_absent.insert("if-none-match", HeaderValue::from_static("*"));
        let completing = options.clone().with_default_headers(if_absent);
        Ok(Self {
            completing: build(builder.clone().with_client_options(completing))?,
            inner: build(builder.with_client_options(options))?,
            location,
            shown,
            outfit: outfit.clone(),
            fencing: OnceCell::new(),
        })
    }

    fn key(&self, operation: &'static str, name: &str) -> Result<Key, StoreError> {
        check_name(&self.shown, operation, name)?;
        Ok(Key::from(self.location.key(name)))
    }

    fn error(
        &self,
        kind: StoreErrorKind,
        operation: &'static str,
        name: &str,
        what: impl Into<String>,
    ) -> StoreError {
        StoreError::new(kind, operation, name, &self.shown, what)
    }

    fn later(&self, operation: &'static str, name: &str, what: impl Into<String>) -> Failure {
        Failure {
            verdict: Verdict::Later,
            error: self.error(StoreErrorKind::Unreachable, operation, name, what),
        }
    }

    fn failure(&self, operation: &'static str, name: &str, error: &InnerError) -> Failure {
        let (verdict, what) = judge(error);
        let kind = match verdict {
            Verdict::Absent => StoreErrorKind::NotFound,
            Verdict::Later | Verdict::NoUpload => StoreErrorKind::Unreachable,
            Verdict::Exists | Verdict::PastEnd | Verdict::NoCondition => StoreErrorKind::Invalid,
            Verdict::Never(kind) => kind,
        };
        Failure {
            verdict,
            error: self.error(kind, operation, name, what),
        }
    }

    /// Waits for one request that sends `bytes`.
    async fn within<T>(
        &self,
        operation: &'static str,
        name: &str,
        bytes: usize,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failure> {
        let limit = time_limit(bytes);
        if let Ok(outcome) = tokio::time::timeout(limit, request).await {
            return outcome.map_err(|error| self.failure(operation, name, &error));
        }
        let what = format!("no answer within {} s", limit.as_secs());
        Err(self.later(operation, name, what))
    }

    /// Tries a request until it has an answer that counts.
    async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        once: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        patiently(&self.outfit.counters, &*self.outfit.entropy, once).await
    }

    /// One PUT, tried again as long as there is no answer that counts. After a try without an answer,
    /// [`Verdict::Exists`] may be this very put.
    async fn put(&self, name: &str, bytes: &Bytes, mode: PutMode) -> Result<(), Failure> {
        let key = Key::from(self.location.key(name));
        let once = || {
            let options = PutOptions::from(mode.clone());
            let put = self.inner.put_opts(&key, bytes.clone().into(), options);
            self.within("create", name, bytes.len(), put)
        };
        self.patiently(once).await.map(|_| ())
    }

    async fn store_whole(&self, name: &str, bytes: &Bytes, mode: PutMode) -> Result<(), Failure> {
        if bytes.len() > multipart::SINGLE_PUT_BYTES_MAX {
            return self.put_in_parts(name, bytes, mode).await;
        }
        self.put(name, bytes, mode).await
    }

    /// Looks, puts and looks again: what is there is left alone, and a second writer is noticed, unless
    /// both do each step at the same moment.
    async fn create_as_the_only_writer(
        &self,
        name: &str,
        bytes: &Bytes,
    ) -> Result<Created, StoreError> {
        self.outfit.counters.unfenced_create();
        if self.stat(name).await?.is_some() {
            return Ok(Created::Exists);
        }
        let stored = self.store_whole(name, bytes, PutMode::Overwrite).await;
        stored.map_err(|failure| failure.error)?;
        let back = self.read_range(name, 0..READ_BACK_BYTES).await?;
        let written = &bytes[..bytes.len().min(READ_BACK_BYTES as usize)];
        Ok(if back == written {
            Created::New
        } else {
            Created::Exists
        })
    }

    /// Whether a second create of an object that exists is answered as it must be.
    async fn ask_fencing(&self) -> Result<Fencing, StoreError> {
        let content = Bytes::from_static(FENCING_PROBE);
        for _ in 0..FENCING_QUESTIONS {
            match self
                .put(layout::FENCING_PROBE, &content, PutMode::Create)
                .await
            {
                Ok(()) => {}
                Err(failure) => match failure.verdict {
                    Verdict::Exists => return Ok(Fencing::Atomic),
                    Verdict::NoCondition => break,
                    _ => return Err(failure.error),
                },
            }
        }
        if self.location.single_writer == SingleWriter::Forbid {
            return Err(self.error(
                StoreErrorKind::SingleWriter,
                "create",
                layout::FENCING_PROBE,
                "the store ignores create-if-absent, and the URL says single-writer=forbid",
            ));
        }
        tracing::warn!(
            store = %self.shown,
            "the store ignores create-if-absent: single-writer mode; see to it that nothing else writes"
        );
        Ok(Fencing::SingleWriter)
    }

    /// Bytes from `start` to `end`, or to the end of the object. Where the connection breaks, it goes on
    /// where it was: objects never change.
    async fn download(&self, name: &str, start: u64, end: Option<u64>) -> Result<Bytes, Failure> {
        let mut part = Part {
            start,
            end,
            got: BytesMut::new(),
        };
        let mut attempt = 1;
        loop {
            let before = part.got.len();
            let failure = match self.download_on(name, &mut part).await {
                Ok(()) => return Ok(part.got.freeze()),
                Err(failure) if failure.verdict == Verdict::PastEnd && before == 0 => {
                    return Ok(Bytes::new());
                }
                Err(failure) => failure,
            };
            if part.got.len() - before >= PROGRESS_BYTES {
                attempt = 1;
            }
            if failure.verdict != Verdict::Later || attempt >= ATTEMPTS_MAX {
                return Err(failure);
            }
            tracing::debug!(error = %failure.error, attempt, "trying again");
            self.outfit.counters.retry();
            tokio::time::sleep(pause(attempt, &*self.outfit.entropy)).await;
            attempt += 1;
        }
    }

    /// Reads on until all is there or the connection breaks.
    async fn download_on(&self, name: &str, part: &mut Part) -> Result<(), Failure> {
        if part.is_whole() {
            return Ok(());
        }
        let result = self.get("read", name, part.range()).await?;
        let end = result.range.end;
        part.end = Some(end);
        let missing = end.saturating_sub(part.next()).min(RESERVE_BYTES_MAX);
        part.got.reserve(missing as usize);
        let mut stream = result.into_stream();
        while let Some(bytes) = self.within("read", name, 0, stream.try_next()).await? {
            part.got.extend_from_slice(&bytes);
        }
        if part.is_whole() {
            return Ok(());
        }
        let what = format!("the answer ended at byte {} of {end}", part.next());
        Err(self.later("read", name, what))
    }

    async fn get(
        &self,
        operation: &'static str,
        name: &str,
        range: Option<GetRange>,
    ) -> Result<GetResult, Failure> {
        let key = Key::from(self.location.key(name));
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        self.within(operation, name, 0, self.inner.get_opts(&key, options))
            .await
    }

    /// One byte of the object, for what the store says of it. A GET costs what a HEAD does, and its
    /// answer tells a missing key from a missing bucket.
    async fn stat_once(&self, name: &str) -> Result<Stat, Failure> {
        let result = self
            .get("stat", name, Some(GetRange::Bounded(0..1)))
            .await?;
        let stat = stat_of(&result.meta);
        self.within("stat", name, 0, result.bytes()).await?;
        Ok(stat)
    }

    async fn list_once(&self, prefix: &str) -> Result<Vec<Listed>, Failure> {
        // The client lists whole folders: take the one that holds the prefix, then filter.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let below = self.location.key(folder);
        let below = below.trim_end_matches('/');
        let below = (!below.is_empty()).then(|| Key::from(below));
        let mut lines = Vec::new();
        let mut pages = self.inner.list(below.as_ref());
        while let Some(meta) = self.within("list", prefix, 0, pages.try_next()).await? {
            let name = meta.location.as_ref();
            let name = match self.location.prefix.as_str() {
                "" => Some(name),
                own => name
                    .strip_prefix(own)
                    .and_then(|rest| rest.strip_prefix('/')),
            };
            if let Some(name) = name.filter(|name| name.starts_with(prefix)) {
                lines.push(Listed {
                    name: name.to_owned(),
                    stat: stat_of(&meta),
                });
            }
        }
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(lines)
    }
}

/// A download on its way.
struct Part {
    start: u64,
    /// `None` until the store has said how long the object is.
    end: Option<u64>,
    got: BytesMut,
}

impl Part {
    fn next(&self) -> u64 {
        self.start + self.got.len() as u64
    }

    fn is_whole(&self) -> bool {
        self.end.is_some_and(|end| self.next() >= end)
    }

    fn range(&self) -> Option<GetRange> {
        match (self.next(), self.end) {
            (0, None) => None,
            (next, None) => Some(GetRange::Offset(next)),
            (next, Some(end)) => Some(GetRange::Bounded(next..end)),
        }
    }
}

fn stat_of(meta: &object_store::ObjectMeta) -> Stat {
    Stat {
        len: meta.size,
        modified: Timestamp(meta.last_modified.timestamp_micros()),
    }
}

/// What an error of the client means: the store's answer, if there was one, is among its sources.
fn judge(error: &InnerError) -> (Verdict, String) {
    let mut transport: Option<Vec<String>> = None;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(answer) = inner.downcast_ref::<Answer>() {
            return (answer.verdict(), answer.to_string());
        }
        if let Some(missing) = inner.downcast_ref::<NoCredentials>() {
            let verdict = if missing.transient {
                Verdict::Later
            } else {
                Verdict::Never(StoreErrorKind::Denied)
            };
            return (verdict, missing.to_string());
        }
        let text = inner.to_string();
        if let Some(told) = &mut transport {
            if !told.iter().any(|before| before.contains(&text)) {
                told.push(text);
            }
        } else if inner.is::<HttpError>() {
            transport = Some(Vec::new());
        }
        cause = inner.source();
    }
    match transport {
        // Nothing was answered, or not to its end.
        Some(told) => (Verdict::Later, told.join(": ")),
        // An answer that the client does not understand.
        None => (Verdict::Never(StoreErrorKind::Invalid), error.to_string()),
    }
}

/// Whatever does not depend on which requests are made.
async fn builder(
    location: &Location,
    outfit: &Outfit,
    keys: Option<Credentials>,
) -> Result<AmazonS3Builder, String> {
    let surroundings = credentials::surroundings(location).await;
    let endpoint = match &location.endpoint {
        Some(endpoint) => Some(endpoint.clone()),
        None => named_endpoint(surroundings.endpoint_url())?,
    };
    let Some(region) = surroundings.region() else {
        return Err(
            "no region is named; name it with region=… in the URL or in AWS_REGION".to_owned(),
        );
    };
    let provider = (keys.map(SharedCredentialsProvider::new))
        .or_else(|| surroundings.credentials_provider())
        .ok_or("there is no source of AWS credentials")?;
    let path_style = location.path_style.unwrap_or(endpoint.is_some());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&location.bucket)
        .with_region(region.as_ref())
        .with_virtual_hosted_style_request(!path_style)
        .with_credentials(Arc::new(Cached::new(provider, outfit.clock.clone())))
        .with_checksum_algorithm(Checksum::SHA256)
        .with_disable_bulk_delete(true)
        .with_http_connector(http::Connector {
            counters: outfit.counters.clone(),
        })
        // Tried again by us: only we know which answers may be.
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 0,
            retry_timeout: ANSWER_TIMEOUT,
        });
    if let Some(mut endpoint) = endpoint {
        if !path_style {
            let host = endpoint.host_str().unwrap_or_default();
            let host = format!("{}.{host}", location.bucket);
            endpoint.set_host(Some(&host)).map_err(|e| e.to_string())?;
        }
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    Ok(builder)
}

/// The endpoint that the surroundings name, as AWS's tools read them.
fn named_endpoint(general: Option<&str>) -> Result<Option<Url>, String> {
    let own = std::env::var("AWS_ENDPOINT_URL_S3").ok();
    own.as_deref()
        .or(general)
        .filter(|text| !text.is_empty())
        .map(location::endpoint)
        .transpose()
}

fn client_options(location: &Location) -> Result<ClientOptions, String> {
    let mut options = ClientOptions::new()
        // Each request has a limit of its own, by what it sends.
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        // Only where the endpoint says http: signatures are not secret, and all objects are sealed.
        .with_allow_http(true);
    let named = location.ca_file.clone();
    let named = named.or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(Into::into));
    if let Some(path) = named.filter(|path| !path.as_os_str().is_empty()) {
        let shown = path.display();
        let pem = std::fs::read(&path).map_err(|e| format!("read certificates {shown}: {e}"))?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|e| format!("certificates {shown}: {e}"))?;
        if certificates.is_empty() {
            return Err(format!("certificates {shown}: the file holds none"));
        }
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

#[async_trait]
impl Store for S3Store {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        self.key("create", name)?;
        if self.fencing().await? == Fencing::SingleWriter {
            return self.create_as_the_only_writer(name, &bytes).await;
        }
        match self.store_whole(name, &bytes, PutMode::Create).await {
            Ok(()) => Ok(Created::New),
            Err(failure) if failure.verdict == Verdict::Exists => Ok(Created::Exists),
            Err(failure) => Err(failure.error),
        }
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.key("read", name)?;
        let read = self.download(name, 0, None).await;
        read.map_err(|failure| failure.error)
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.key("read", name)?;
        if range.is_empty() {
            return match self.stat(name).await? {
                Some(_) => Ok(Bytes::new()),
                None => Err(self.error(StoreErrorKind::NotFound, "read", name, "no such object")),
            };
        }
        let read = self.download(name, range.start, Some(range.end)).await;
        read.map_err(|failure| failure.error)
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        let key = self.key("stat", name)?;
        match self.patiently(|| self.stat_once(name)).await {
            Ok(stat) => Ok(Some(stat)),
            Err(failure) if failure.verdict == Verdict::Absent => Ok(None),
            // An empty object has no first byte.
            Err(failure) if failure.verdict == Verdict::PastEnd => {
                let head = || self.within("stat", name, 0, self.inner.head(&key));
                let meta = self
                    .patiently(head)
                    .await
                    .map_err(|failure| failure.error)?;
                Ok(Some(stat_of(&meta)))
            }
            Err(failure) => Err(failure.error),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let listed = self.patiently(|| self.list_once(prefix)).await;
        listed.map_err(|failure| failure.error)
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let key = self.key("delete", name)?;
        let once = || self.within("delete", name, 0, self.inner.delete(&key));
        match self.patiently(once).await {
            Err(failure) if failure.verdict != Verdict::Absent => Err(failure.error),
            _ => Ok(()),
        }
    }

    async fn fencing(&self) -> Result<Fencing, StoreError> {
        self.fencing
            .get_or_try_init(|| self.ask_fencing())
            .await
            .copied()
    }

    fn url(&self) -> String {
        self.shown.clone()
    }
}
