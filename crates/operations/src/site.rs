//! An open repository and the cluster meant in it.

use std::sync::Arc;

use borealis_base::{Clock, Entropy, ErrorKind};
use borealis_keys::KeyUrl;
use borealis_repository::catalog::Cluster;
use borealis_repository::store::{self, Absent, Counters, Outfit};
use borealis_repository::{Environment, Lineage, Repository};

use crate::error::{Error, Result};

/// A repository, opened with a root key.
pub struct Site {
    /// The repository.
    pub repository: Repository,
    /// Where it is, as it was named.
    pub url: String,
    /// The root key that opened it.
    pub key: KeyUrl,
    /// Requests and bytes so far.
    pub usage: Arc<Counters>,
}

impl Site {
    /// Opens the repository at `url`.
    pub async fn open(
        url: &str,
        key: impl Into<KeyUrl>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        let key = key.into();
        let outfit = borealis_keys::Outfit {
            clock: clock.clone(),
            entropy: entropy.clone(),
        };
        let provider = borealis_keys::open(&key, &outfit).await;
        let provider = provider.map_err(borealis_repository::Error::from)?;
        let usage = Arc::new(Counters::default());
        let outfit = Outfit {
            clock: clock.clone(),
            entropy: entropy.clone(),
            counters: usage.clone(),
        };
        let store = store::open(url, Absent::Refuse, &outfit).await;
        let store = store.map_err(borealis_repository::Error::from)?;
        let repository = Repository::open(
            Environment {
                store,
                clock,
                entropy,
            },
            provider,
        )
        .await?;
        Ok(Self {
            repository,
            url: url.to_owned(),
            key,
            usage,
        })
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.repository.environment().clock
    }

    /// The cluster named, or the only one.
    pub async fn cluster(&self, name: Option<&str>) -> Result<Cluster> {
        if let Some(name) = name {
            return Ok(self.repository.cluster(name).await?);
        }
        let mut clusters = self.live_clusters().await?;
        match (clusters.pop(), clusters.len()) {
            (Some(only), 0) => Ok(only),
            (None, _) => Err(Error::with_hint(
                ErrorKind::NotFound,
                format!("repository {} holds no cluster", self.url),
                "Run borealis protect first.",
            )),
            (Some(last), _) => {
                clusters.push(last);
                let names: Vec<_> = clusters.into_iter().map(|cluster| cluster.name).collect();
                Err(Error::with_hint(
                    ErrorKind::Usage,
                    format!(
                        "repository {} holds several clusters: {}",
                        self.url,
                        names.join(", ")
                    ),
                    "Name one with --cluster.",
                ))
            }
        }
    }

    /// All clusters that are not retired.
    pub async fn live_clusters(&self) -> Result<Vec<Cluster>> {
        let mut clusters = self.repository.clusters().await?;
        clusters.retain(|cluster| cluster.retired_at.is_none());
        Ok(clusters)
    }

    /// The lineage of a cluster whose identifier begins with `prefix`; the newest one without.
    pub async fn lineage_named(&self, cluster: &Cluster, prefix: Option<&str>) -> Result<Lineage> {
        let Some(prefix) = prefix else {
            return self.lineage(cluster).await;
        };
        let records = cluster.lineages.iter();
        let mut found = records.filter(|record| record.lineage.to_string().starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(self.repository.lineage(only.lineage).await?),
            (None, _) => Err(Error::with_hint(
                ErrorKind::NotFound,
                format!("cluster {} has no lineage {prefix}", cluster.name),
                "borealis status shows the lineages of a cluster.",
            )),
            (Some(_), Some(_)) => Err(Error::with_hint(
                ErrorKind::Usage,
                format!(
                    "several lineages of cluster {} begin with {prefix}",
                    cluster.name
                ),
                "Name more of its digits.",
            )),
        }
    }

    /// The newest lineage of a cluster.
    pub async fn lineage(&self, cluster: &Cluster) -> Result<Lineage> {
        Ok(self
            .repository
            .lineage(cluster.newest_lineage().lineage)
            .await?)
    }
}

/// What a cluster's entry in the catalog says of the server it was made for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClusterIdentity {
    /// The number `initdb` gave the cluster.
    pub system_id: u64,
}

impl ClusterIdentity {
    /// Reads it out of the catalog.
    pub fn of(cluster: &Cluster) -> Result<Self> {
        serde_json::from_slice(&cluster.engine).map_err(|error| {
            Error::new(
                ErrorKind::Damaged,
                format!("the catalog's entry of cluster {}: {error}", cluster.name),
            )
        })
    }
}
