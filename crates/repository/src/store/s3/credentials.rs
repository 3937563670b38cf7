//! Credentials the AWS way (`borealis_aws`), as the S3 client takes them.

use std::sync::Arc;

use async_trait::async_trait;
use borealis_aws::{CachedCredentials, Named, SdkConfig, SharedCredentialsProvider};
use borealis_base::Clock;
use object_store::aws::AwsCredential;
use object_store::client::CredentialProvider;

use super::location::Location;

pub(super) use borealis_aws::NoCredentials;

/// What the surroundings say of AWS: region, endpoint and where credentials come from.
pub(super) async fn surroundings(location: &Location) -> SdkConfig {
    let named = Named {
        region: location.region.clone(),
        profile: location.profile.clone(),
        has_endpoint: location.endpoint.is_some(),
    };
    borealis_aws::surroundings(&named).await
}

/// Asks a provider, and again only when what it said is about to expire.
#[derive(Debug)]
pub(super) struct Cached(CachedCredentials);

impl Cached {
    pub(super) fn new(provider: SharedCredentialsProvider, clock: Arc<dyn Clock>) -> Self {
        Self(CachedCredentials::new(provider, clock))
    }
}

#[async_trait]
impl CredentialProvider for Cached {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let credentials = self.0.get().await;
        let credentials = credentials.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(error),
        })?;
        Ok(Arc::new(AwsCredential {
            key_id: credentials.access_key_id().to_owned(),
            secret_key: credentials.secret_access_key().to_owned(),
            token: credentials.session_token().map(str::to_owned),
        }))
    }
}
