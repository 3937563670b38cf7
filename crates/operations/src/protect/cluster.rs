//! Which cluster of the repository the server is.

use std::path::Path;

use borealis_base::ErrorKind;
use borealis_pg_server::source::ServerFacts;
use borealis_repository::Lineage;

use super::supervise::Options;
use crate::error::{Error, FileContext, Result};
use crate::restore::recovery_file::RecoveryFile;
use crate::site::{ClusterIdentity, Site};

/// The name of a cluster for which none is given.
const DEFAULT_CLUSTER: &str = "main";

/// The cluster's lineage, made if the name is new.
pub(super) async fn find_cluster(
    site: &Site,
    options: &Options,
    facts: &ServerFacts,
    data_dir: &Path,
) -> Result<(String, Lineage)> {
    let clusters = site.live_clusters().await?;
    let same_server = clusters.iter().find(|cluster| {
        ClusterIdentity::of(cluster).is_ok_and(|identity| identity.system_id == facts.system_id)
    });
    let name = match (&options.cluster, same_server) {
        (Some(name), _) => name.clone(),
        (None, Some(cluster)) => cluster.name.clone(),
        (None, None) => DEFAULT_CLUSTER.to_owned(),
    };
    let Some(cluster) = clusters.iter().find(|cluster| cluster.name == name) else {
        let identity = ClusterIdentity {
            system_id: facts.system_id,
        };
        let engine = serde_json::to_vec(&identity)
            .map_err(|error| Error::new(ErrorKind::Bug, error.to_string()))?;
        return Ok((
            name.clone(),
            site.repository.create_cluster(&name, engine.into()).await?,
        ));
    };
    let identity = ClusterIdentity::of(cluster)?;
    if identity.system_id != facts.system_id {
        return Err(Error::refused(
            format!(
                "cluster {name} is another server: its system identifier is {}, this one's is {}",
                identity.system_id, facts.system_id
            ),
            "Choose another name with --cluster.",
        ));
    }
    refuse_restored(data_dir, cluster)?;
    Ok((name, site.lineage(cluster).await?))
}

/// A restored server shares its parent's system identifier, and perhaps its timeline number; what it
/// writes belongs into a history of its own.
fn refuse_restored(data_dir: &Path, cluster: &borealis_repository::catalog::Cluster) -> Result<()> {
    // One that can't be read is not one that is not there.
    let found = RecoveryFile::load(data_dir).at("read the mark of a restore in", data_dir)?;
    let born_here = |lineage| {
        cluster
            .lineages
            .iter()
            .any(|record| record.lineage == lineage)
    };
    match found {
        Some(file) if born_here(file.lineage) => Err(Error::refused(
            format!(
                "this server was restored from cluster {}, and is not it",
                cluster.name
            ),
            "Protect it under a name of its own with --cluster.",
        )),
        _ => Ok(()),
    }
}
