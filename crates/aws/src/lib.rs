//! What AWS's own tools find in their surroundings: the region, the endpoint and credentials, for
//! whatever of ours speaks to a service of AWS (buckets, the key service).
//!
//! Credentials come from the environment, profile files, web identity, container and machine
//! metadata; in that order, which is `aws-config`'s. They are held until they are about to expire.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use borealis_base::{Clock, Timestamp};
use tokio::sync::Mutex;

pub use aws_config::{Region, SdkConfig};
pub use aws_credential_types::Credentials;
pub use aws_credential_types::provider::SharedCredentialsProvider;

/// Credentials are renewed this long before they expire; requests signed with them take seconds.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// What is signed for where nobody names a region and the endpoint is not AWS's.
const REGION_DEFAULT: &str = "us-east-1";

/// What a URL of ours says, before the surroundings are asked.
#[derive(Debug, Clone, Default)]
pub struct Named {
    /// The region.
    pub region: Option<String>,
    /// The profile of AWS's configuration files.
    pub profile: Option<String>,
    /// Whether an endpoint is named, which then is not AWS's own.
    pub has_endpoint: bool,
}

/// Why there are no credentials.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct NoCredentials {
    /// Whether asking again may help.
    pub transient: bool,
    what: String,
}

/// What the surroundings say of AWS: region, endpoint and where credentials come from.
pub async fn surroundings(named: &Named) -> SdkConfig {
    let region = named.region.clone().map(Region::new);
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &named.profile {
        profile = profile.profile_name(name);
    }
    let known = RegionProviderChain::first_try(region)
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build());
    // Only AWS's own machines are asked where they are.
    let region = if named.has_endpoint {
        known.or_else(Region::from_static(REGION_DEFAULT))
    } else {
        known.or_default_provider()
    };
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).region(region);
    if let Some(name) = &named.profile {
        loader = loader.profile_name(name);
    }
    loader.load().await
}

/// Credentials of a provider, which is asked again only when they are about to expire.
pub struct CachedCredentials {
    provider: SharedCredentialsProvider,
    clock: Arc<dyn Clock>,
    held: Mutex<Option<(Credentials, Option<Timestamp>)>>,
}

impl CachedCredentials {
    /// What `provider` says.
    pub fn new(provider: SharedCredentialsProvider, clock: Arc<dyn Clock>) -> Self {
        Self {
            provider,
            clock,
            held: Mutex::default(),
        }
    }

    /// The credentials to sign with now.
    ///
    /// # Errors
    /// [`NoCredentials`], with the causes.
    pub async fn get(&self) -> Result<Credentials, NoCredentials> {
        let mut held = self.held.lock().await;
        if let Some((credentials, expires)) = held.as_ref()
            && expires.is_none_or(|expires| self.clock.now().plus(RENEW_BEFORE) < expires)
        {
            return Ok(credentials.clone());
        }
        let fresh = self.provider.provide_credentials().await;
        let fresh = fresh.map_err(|error| explain(&error))?;
        let expires = fresh.expiry().map(|moment| {
            let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timestamp(0).plus(since)
        });
        *held = Some((fresh.clone(), expires));
        Ok(fresh)
    }

    /// Has the provider asked anew the next time: a service refused what it said.
    pub async fn forget(&self) {
        *self.held.lock().await = None;
    }
}

// The secrets must not be shown, nor that of what holds them.
impl std::fmt::Debug for CachedCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CachedCredentials")
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
        let cached = CachedCredentials::new(provider, clock.clone());
        let key = async || cached.get().await.unwrap().access_key_id().to_owned();
        assert_eq!(key().await, "key0");
        clock.advance(Duration::from_mins(54));
        assert_eq!(key().await, "key0");
        clock.advance(Duration::from_mins(2));
        assert_eq!(key().await, "key1");
        cached.forget().await;
        assert_eq!(key().await, "key2", "what was refused is asked for again");
        assert!(!format!("{cached:?}").contains("secret"));
    }

    #[test]
    fn a_provider_that_fails_may_be_asked_again_and_missing_credentials_name_the_ways() {
        assert!(explain(&CredentialsError::provider_error("503")).transient);
        let missing = explain(&CredentialsError::not_loaded_no_source());
        assert!(!missing.transient && missing.to_string().contains("AWS_PROFILE"));
    }
}
