//! Credentials the way AWS's own tools find them: environment, profile files, web identity, container
//! and instance metadata; in that order, which is `aws-config`'s.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use borealis_base::{Clock, Timestamp};
use object_store::aws::AwsCredential;
use object_store::client::CredentialProvider;
use tokio::sync::Mutex;

use super::location::Location;

/// Credentials are renewed this long before they expire; requests signed with them take seconds.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// What is signed for where nobody names a region and the endpoint is not AWS's.
const REGION_DEFAULT: &str = "us-east-1";

/// Why there are no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub(super) struct NoCredentials {
    /// Whether asking again may help.
    pub(super) transient: bool,
    what: String,
}

/// What the surroundings say of AWS: region, endpoint and where credentials come from.
pub(super) async fn surroundings(location: &Location) -> SdkConfig {
    let named = location.region.clone().map(Region::new);
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &location.profile {
        profile = profile.profile_name(name);
    }
    let known = RegionProviderChain::first_try(named)
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build());
    // Only AWS's own machines are asked where they are.
    let region = if location.endpoint.is_some() {
        known.or_else(Region::from_static(REGION_DEFAULT))
    } else {
        known.or_default_provider()
    };
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).region(region);
    if let Some(name) = &location.profile {
        loader = loader.profile_name(name);
    }
    loader.load().await
}

/// Asks a provider, and again only when what it said is about to expire.
pub(super) struct Cached {
    provider: SharedCredentialsProvider,
    clock: Arc<dyn Clock>,
    held: Mutex<Option<(Arc<AwsCredential>, Option<Timestamp>)>>,
}

impl Cached {
    pub(super) fn new(provider: SharedCredentialsProvider, clock: Arc<dyn Clock>) -> Self {
        Self {
            provider,
            clock,
            held: Mutex::default(),
        }
    }
}

// The secrets must not be shown, nor that of what holds them.
impl std::fmt::Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cached")
    }
}

#[async_trait]
impl CredentialProvider for Cached {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut held = self.held.lock().await;
        if let Some((credential, expires)) = held.as_ref()
            && expires.is_none_or(|expires| self.clock.now().plus(RENEW_BEFORE) < expires)
        {
            return Ok(credential.clone());
        }
        let fresh = self.provider.provide_credentials().await;
        let fresh = fresh.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(explain(&error)),
        })?;
        let credential = Arc::new(AwsCredential {
            key_id: fresh.access_key_id().to_owned(),
            secret_key: fresh.secret_access_key().to_owned(),
            token: fresh.session_token().map(str::to_owned),
        });
        let expires = fresh.expiry().map(|moment| {
            let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timestamp(0).plus(since)
        });
        *held = Some((credential.clone(), expires));
        Ok(credential)
    }
}

/// The causes of a failed look for credentials; none of them holds a secret.
fn explain(error: &CredentialsError) -> NoCredentials {
    let transient = matches!(
        error,
        CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_)
    );
    if matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
        let what = "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name \
                    a profile with AWS_PROFILE or profile=… in the URL, or give this machine a role";
        return NoCredentials {
            transient: false,
            what: what.to_owned(),
        };
    }
    let mut what = format!("AWS credentials: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        what = format!("{what}: {inner}");
        cause = inner.source();
    }
    NoCredentials { transient, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::future;
    use borealis_base::ManualClock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Gives credentials that live an hour from the moment of the `n`th question on.
    #[derive(Debug, Default)]
    struct Hourly(AtomicU64);

    impl ProvideCredentials for Hourly {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let asked = self.0.fetch_add(1, Ordering::Relaxed);
            let expiry = UNIX_EPOCH + Duration::from_hours(asked + 1);
            let made =
                Credentials::new(format!("key{asked}"), "secret", None, Some(expiry), "test");
            future::ProvideCredentials::ready(Ok(made))
        }
    }

    #[tokio::test]
    async fn credentials_are_renewed_before_they_expire_and_not_sooner() {
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let provider = SharedCredentialsProvider::new(Hourly::default());
        let cached = Cached::new(provider, clock.clone());
        let key = async || cached.get_credential().await.unwrap().key_id.clone();
        assert_eq!(key().await, "key0");
        clock.advance(Duration::from_mins(54));
        assert_eq!(key().await, "key0");
        clock.advance(Duration::from_mins(2));
        assert_eq!(key().await, "key1");
        assert!(!format!("{cached:?}").contains("secret"));
    }

    #[test]
    fn a_provider_that_fails_may_be_asked_again_and_missing_credentials_name_the_ways() {
        assert!(explain(&CredentialsError::provider_error("503")).transient);
        let missing = explain(&CredentialsError::not_loaded_no_source());
        assert!(!missing.transient && missing.to_string().contains("AWS_PROFILE"));
    }
}
