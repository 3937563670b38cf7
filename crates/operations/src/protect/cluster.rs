//! Which cluster of the repository the server is.

use borealis_base::ErrorKind;
use borealis_pg_server::source::ServerFacts;
use borealis_repository::Lineage;
use borealis_repository::catalog::Cluster;
use borealis_repository::ledger::{EntryBody, Retired};

use super::epoch::open_writer;
use super::source::OTHER_SYSTEM;
use super::supervise::Options;
use crate::error::{Error, Result};
use crate::restore::recovery_file::RecoveryFile;
use crate::site::{ClusterIdentity, Site};

/// The name of a cluster for which none is given.
const DEFAULT_CLUSTER: &str = "main";

/// The cluster's lineage, made if the name is new.
pub(super) async fn find_cluster(
    site: &Site,
    options: &Options,
    facts: &ServerFacts,
    restored: Option<&RecoveryFile>,
) -> Result<(Cluster, Lineage)> {
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
        let engine = identity_of(facts.system_id)?;
        let lineage = site.repository.create_cluster(&name, engine).await?;
        return Ok((site.repository.cluster(&name).await?, lineage));
    };
    let identity = ClusterIdentity::of(cluster)?;
    if identity.system_id != facts.system_id {
        if options.new_lineage {
            let why = format!(
                "its system identifier is {}, and was {}",
                facts.system_id, identity.system_id
            );
            end_lineage(site, cluster, options, &why).await?;
            return begin_lineage(site, cluster, facts.system_id, &why).await;
        }
        return Err(Error::refused(
            format!(
                "cluster {name} is another server: its system identifier is {}, this one's is {}",
                identity.system_id, facts.system_id
            ),
            OTHER_SYSTEM,
        ));
    }
    refuse_restored(restored, cluster)?;
    Ok((cluster.clone(), site.lineage(cluster).await?))
}

/// Says in the ledger why the lineage takes no more log; refused while a `protect` of it runs.
async fn end_lineage(site: &Site, cluster: &Cluster, options: &Options, why: &str) -> Result<()> {
    let lineage = site.lineage(cluster).await?;
    let log_unit = lineage.load_stored_state().await?.log_unit;
    let mut writer = open_writer(site, &lineage, options, log_unit).await?;
    let retired = Retired {
        reason: format!("another server took its place: {why}"),
    };
    (writer.append(&EntryBody::Retired(retired), Vec::new())).await?;
    Ok(writer.close().await?)
}

/// Begins a lineage that has nothing in common with those before it; they stay as they are.
pub(super) async fn begin_lineage(
    site: &Site,
    cluster: &Cluster,
    system_id: u64,
    why: &str,
) -> Result<(Cluster, Lineage)> {
    let before = cluster.newest_lineage().lineage;
    let engine = identity_of(system_id)?;
    let repository = &site.repository;
    let lineage = (repository.begin_lineage(&cluster.name, before, engine)).await?;
    tracing::warn!(
        lineage = %lineage.id(), %before,
        "a new lineage of cluster {} begins: {why}; what was stored before stays restorable with --lineage {before}",
        cluster.name
    );
    Ok((repository.cluster(&cluster.name).await?, lineage))
}

fn identity_of(system_id: u64) -> Result<bytes::Bytes> {
    let identity = serde_json::to_vec(&ClusterIdentity { system_id });
    identity
        .map(Into::into)
        .map_err(|error| Error::new(ErrorKind::Bug, error.to_string()))
}

/// A restored server shares its parent's system identifier, and perhaps its timeline number; what it
/// writes belongs into a history of its own.
pub(super) fn refuse_restored(found: Option<&RecoveryFile>, cluster: &Cluster) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::recovery_file::State;
    use borealis_base::{Branch, LineageId, Position, Timestamp};

    fn cluster(lineage: LineageId) -> Cluster {
        Cluster::new("sales", lineage, Timestamp(0))
    }

    /// It has its parent's system identifier and, until it is promoted again, its timelines.
    #[test]
    fn a_restored_directory_is_refused_under_its_parents_name_only() {
        let (parent, other) = (LineageId([1; 16]), LineageId([2; 16]));
        refuse_restored(None, &cluster(parent)).unwrap();
        let file = RecoveryFile {
            state: State::Complete,
            cluster: "sales".to_owned(),
            lineage: parent,
            repository: "/srv/backup".to_owned(),
            key_file: None,
            key: None,
            branch: Branch(1),
            log_start: Position(0),
            log_in_place: None,
            log_end: None,
            segment_size: 16 << 20,
            directory: None,
        };
        let error = refuse_restored(Some(&file), &cluster(parent)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("restored from cluster sales"));
        assert!(error.hint().is_some_and(|hint| hint.contains("--cluster")));
        refuse_restored(Some(&file), &cluster(other)).unwrap();
    }
}
