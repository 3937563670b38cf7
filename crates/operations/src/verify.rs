//! Checks that what the repository holds of clusters can be restored, lineage by lineage.

use std::collections::BTreeSet;
use std::sync::Arc;

use borealis_base::{LineageId, Progress};
use borealis_repository::catalog::Cluster;
use borealis_repository::layout;
use borealis_repository::store::{Listed, Store};
use borealis_repository::verify::{Finding, FindingKind, verify_lineage};
use serde::Serialize;

use crate::error::Result;
use crate::site::Site;

/// What was checked and found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// Whether every byte was read.
    pub deep: bool,
    /// Whether everything that is promised was found.
    pub sound: bool,
    /// The lineages checked.
    pub lineages: Vec<LineageReport>,
}

/// A lineage of a cluster.
#[derive(Debug, Clone, Serialize)]
pub struct LineageReport {
    /// The cluster.
    pub cluster: String,
    /// The lineage.
    pub lineage: LineageId,
    /// Base backups checked.
    pub base_backups: u64,
    /// Packs checked.
    pub packs: u64,
    /// Log pieces checked.
    pub log_pieces: u64,
    /// Blobs whose digest was checked.
    pub blobs: u64,
    /// Bytes of packs and log pieces read.
    pub bytes_read: u64,
    /// Everything that is wrong.
    pub findings: Vec<FindingReport>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct FindingReport {
    /// `damaged`, `missing` or `incomplete`.
    pub kind: &'static str,
    /// The object's name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// What cannot be restored because of it.
    pub affects: Vec<String>,
}

impl From<Finding> for FindingReport {
    fn from(finding: Finding) -> Self {
        Self {
            kind: match finding.kind {
                FindingKind::Damaged => "damaged",
                FindingKind::Missing => "missing",
                FindingKind::Incomplete => "incomplete",
            },
            object: finding.object,
            what: finding.what,
            affects: finding.affects,
        }
    }
}

/// Checks the cluster named, or all, retired ones included: their backups are promised too.
pub async fn verify(
    site: &Site,
    cluster: Option<&str>,
    deep: bool,
    progress: &dyn Progress,
) -> Result<VerifyReport> {
    let clusters = match cluster {
        Some(name) => vec![site.cluster(Some(name)).await?],
        None => site.repository.clusters().await?,
    };
    let mut lineages = Vec::new();
    for cluster in &clusters {
        for record in &cluster.lineages {
            let lineage = site.repository.lineage(record.lineage).await?;
            let report = verify_lineage(&lineage, deep, progress).await?;
            lineages.push(LineageReport {
                cluster: cluster.name.clone(),
                lineage: record.lineage,
                base_backups: report.base_backups,
                packs: report.packs,
                log_pieces: report.pieces,
                blobs: report.blobs,
                bytes_read: report.bytes_read,
                findings: report.findings.into_iter().map(Into::into).collect(),
            });
        }
    }
    if deep && cluster.is_none() {
        lineages.extend(unnamed(site, &clusters).await?);
    }
    Ok(VerifyReport {
        deep,
        sound: lineages.iter().all(|lineage| lineage.findings.is_empty()),
        lineages,
    })
}

/// Lineages with a ledger that the catalog does not name. The end of the catalog can be cut off without
/// a trace in what is left of it; what it named is still there.
async fn unnamed(site: &Site, clusters: &[Cluster]) -> Result<Vec<LineageReport>> {
    let store = &site.repository.environment().store;
    let named: BTreeSet<String> = (clusters.iter())
        .flat_map(|cluster| &cluster.lineages)
        .map(|record| layout::lineage(record.lineage))
        .collect();
    let stored = list(store, "lineages/").await?;
    let with_ledger: BTreeSet<LineageId> = (stored.iter())
        .filter(|object| !named.iter().any(|prefix| object.name.starts_with(prefix)))
        .filter_map(|object| {
            object
                .name
                .strip_prefix("lineages/")?
                .split_once("/ledger/")
        })
        .filter_map(|(id, _)| id.parse().ok())
        .collect();
    let entries = list(store, "catalog/").await?.len() as u64;
    let object = layout::catalog(entries + 1);
    let report = |lineage: LineageId| LineageReport {
        cluster: "(not in the catalog)".to_owned(),
        lineage,
        base_backups: 0,
        packs: 0,
        log_pieces: 0,
        blobs: 0,
        bytes_read: 0,
        findings: vec![FindingReport {
            kind: "missing",
            what: format!("the catalog does not name lineage {lineage}: {object} is missing"),
            object: object.clone(),
            affects: vec![format!("all restores of lineage {lineage}")],
        }],
    };
    Ok(with_ledger.into_iter().map(report).collect())
}

async fn list(store: &Arc<dyn Store>, prefix: &str) -> Result<Vec<Listed>> {
    let listed = store.list(prefix).await;
    Ok(listed.map_err(borealis_repository::Error::from)?)
}
