//! The catalog: which clusters there are, and which lineages each has.

mod lineage;
mod message;
mod terms;

use borealis_base::{Branch, LineageId, Position, Timestamp};
use bytes::Bytes;

pub use lineage::Lineage;
pub(crate) use message::CatalogBody;
pub use terms::{HOLD_NAME_BYTES_MAX, HOLD_REASON_BYTES_MAX, NewHold, Objectives};

use crate::numbered::{Item, Logged};
use crate::retention::{Days, Hold};
use crate::{Error, Result, layout};

/// Longest name of a cluster.
pub const CLUSTER_NAME_BYTES_MAX: usize = 63;

/// Where a lineage left its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The parent.
    pub lineage: LineageId,
    /// The branch of `at`.
    pub branch: Branch,
    /// The position at which the lineage was born.
    pub at: Position,
}

/// A lineage as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineageRecord {
    /// Its id.
    pub lineage: LineageId,
    /// Where it came from; `None` for the first of a cluster, and for one that has nothing in common with
    /// those before it.
    pub parent: Option<Parent>,
    /// When it was entered.
    pub added_at: Timestamp,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its name, unique among those not retired.
    pub name: String,
    /// What the engine wants to remember of it, opaque; of its newest lineage.
    pub engine: Bytes,
    /// Its lineages, the first one first. Never empty.
    pub lineages: Vec<LineageRecord>,
    /// When it was retired.
    pub retired_at: Option<Timestamp>,
    /// For how many days its window is promised, where that was said.
    pub retention: Option<Days>,
    /// Holds that were made and not deleted; some may have ended.
    pub holds: Vec<Hold>,
    /// What recovery is to achieve.
    pub objectives: Objectives,
}

impl Cluster {
    /// A new cluster with its first lineage, entered at `added_at`.
    pub fn new(name: impl Into<String>, lineage: LineageId, added_at: Timestamp) -> Self {
        Self {
            name: name.into(),
            engine: Bytes::new(),
            lineages: vec![LineageRecord {
                lineage,
                parent: None,
                added_at,
            }],
            retired_at: None,
            retention: None,
            holds: Vec::new(),
            objectives: Objectives::default(),
        }
    }

    /// The lineage that was entered last.
    pub fn newest_lineage(&self) -> &LineageRecord {
        self.lineages
            .last()
            .expect("a cluster has its first lineage from birth")
    }
}

/// The catalog, folded.
#[derive(Debug, Default)]
pub(crate) struct CatalogState {
    pub(crate) clusters: Vec<Cluster>,
}

impl CatalogState {
    /// The cluster of this name that is not retired.
    pub(crate) fn live(&self, name: &str) -> Option<&Cluster> {
        (self.clusters.iter()).find(|cluster| cluster.name == name && cluster.retired_at.is_none())
    }

    pub(crate) fn record(&self, lineage: LineageId) -> Option<&LineageRecord> {
        (self.clusters.iter())
            .flat_map(|cluster| &cluster.lineages)
            .find(|record| record.lineage == lineage)
    }

    fn live_mut(&mut self, name: &str) -> Option<&mut Cluster> {
        (self.clusters.iter_mut())
            .find(|cluster| cluster.name == name && cluster.retired_at.is_none())
    }
}

impl Logged for CatalogState {
    fn apply(&mut self, item: &Item) -> Result<()> {
        let name = layout::catalog(item.head.number);
        let added_at = item.head.recorded_at;
        let unknown = |cluster: &str| {
            Err(Error::damaged(
                &name,
                format!("it speaks of a cluster `{cluster}` that is not there"),
            ))
        };
        match CatalogBody::decode(&name, item.body.clone())? {
            CatalogBody::ClusterCreated {
                name: cluster,
                lineage,
                engine,
            } => {
                if self.live(&cluster).is_some() {
                    return Err(Error::damaged(
                        &name,
                        format!("it creates cluster `{cluster}` anew"),
                    ));
                }
                self.clusters.push(Cluster {
                    engine,
                    ..Cluster::new(cluster, lineage, added_at)
                });
            }
            CatalogBody::LineageAdded {
                cluster,
                lineage,
                parent,
                engine,
            } => {
                let Some(found) = self.live_mut(&cluster) else {
                    return unknown(&cluster);
                };
                if !engine.is_empty() {
                    found.engine = engine;
                }
                found.lineages.push(LineageRecord {
                    lineage,
                    parent,
                    added_at,
                });
            }
            CatalogBody::ClusterRetired { cluster } => {
                let Some(found) = self.live_mut(&cluster) else {
                    return unknown(&cluster);
                };
                found.retired_at = Some(added_at);
            }
            CatalogBody::RetentionSet { cluster, days } => {
                let Some(found) = self.live_mut(&cluster) else {
                    return unknown(&cluster);
                };
                found.retention = Some(days);
            }
            CatalogBody::HoldCreated {
                cluster,
                name,
                reason,
                range,
                until,
            } => {
                let Some(found) = self.live_mut(&cluster) else {
                    return unknown(&cluster);
                };
                found.holds.push(Hold {
                    number: item.head.number,
                    name,
                    reason,
                    range,
                    until,
                    created_at: added_at,
                });
            }
            CatalogBody::HoldDeleted {
                cluster, number, ..
            } => {
                let Some(found) = self.live_mut(&cluster) else {
                    return unknown(&cluster);
                };
                found.holds.retain(|hold| hold.number != number);
            }
            CatalogBody::ObjectivesSet {
                cluster,
                objectives,
            } => {
                let Some(found) = self.live_mut(&cluster) else {
                    return unknown(&cluster);
                };
                found.objectives = objectives;
            }
        }
        Ok(())
    }
}

/// Refuses what is no name for a cluster.
pub fn check_cluster_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let good = bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && name.len() <= CLUSTER_NAME_BYTES_MAX;
    if good {
        return Ok(());
    }
    Err(Error::Usage {
        what: format!(
            "`{name}` is not a cluster name: 1 to {CLUSTER_NAME_BYTES_MAX} of a-z, 0-9 and -, a letter first"
        ),
    })
}
