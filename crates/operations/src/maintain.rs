//! Maintenance: what keeps a repository small and quick to read, from the store alone.
//!
//! By hand for one cluster or all, or beside a running `protect` for the lineage that it writes.

use std::time::Duration;

use borealis_base::{ErrorKind, LineageId, NoProgress, Progress};
use borealis_repository::Lineage;
use borealis_repository::catalog::Cluster;
use borealis_repository::ledger::Holder;
use borealis_repository::maintenance::{Bounds, Limits, Turn, Upkeep};
use borealis_repository::store::Fencing;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::host::ProcessIdentity;
use crate::protect::ledger::Ledger;
use crate::site::Site;

/// How often a running `protect` maintains, where nothing is said.
pub const DEFAULT_INTERVAL: Duration = Duration::from_mins(10);

/// Turns after which the lineages from before the present one get theirs: there is seldom anything to do.
const FORMER_EVERY: u64 = 6;

/// What is told where the right to delete is missing.
pub const MAY_NOT_REMOVE: &str = "the credentials do not give the right to delete: what merged log replaced and what has expired stays, \
     and takes room, until borealis maintain --once runs with that right";

/// What was done for one lineage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Maintained {
    /// The cluster's name.
    pub cluster: String,
    /// The lineage.
    pub lineage: LineageId,
    /// Log pieces that are merged log now.
    pub pieces_merged: u64,
    /// Objects that they became.
    pub objects: u64,
    /// Bytes of the former objects.
    pub bytes_before: u64,
    /// Bytes of the new ones.
    pub bytes_after: u64,
    /// The lowest ledger entry that readers begin at, if that has risen.
    pub floor: Option<u64>,
    /// Objects removed, of which merged log and baselines say what they said.
    pub removed: u64,
    /// Base backups that no promise holds any more: hidden from here on.
    pub expired_base_backups: u64,
    /// Stored bytes that have expired: log and names, and what the base backups had added.
    pub expired_bytes: u64,
    /// Of what had expired, the bytes that some promise holds after all.
    pub kept_after_all_bytes: u64,
    /// Objects deleted of what had expired,
    pub deleted: u64,
    /// and their bytes.
    pub deleted_bytes: u64,
    /// Whether the right to remove and to delete is missing.
    pub may_not_remove: bool,
    /// Log pieces that can't be merged.
    pub skipped: u64,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MaintainReport {
    /// For each lineage.
    pub lineages: Vec<Maintained>,
}

/// Who maintains.
fn holder(single_writer: bool) -> Result<Holder> {
    let me = ProcessIdentity::current()?;
    Ok(Holder {
        host: format!("{} {}", me.host, me.process_space),
        pid: me.pid,
        process_start: me.started_ticks,
        control: String::new(),
        program: format!("borealis {}", env!("CARGO_PKG_VERSION")),
        single_writer,
    })
}

/// Maintains the cluster named, or all, retired ones included, until nothing is left to do. The newest log
/// is merged only if it is older than `merge_after`.
///
/// # Errors
/// Refused where the store keeps no second writer away; fenced where another process maintains meanwhile.
pub async fn maintain(
    site: &Site,
    cluster: Option<&str>,
    merge_after: Duration,
    progress: &dyn Progress,
) -> Result<MaintainReport> {
    let clusters = match cluster {
        Some(name) => vec![site.cluster(Some(name)).await?],
        None => site.repository.clusters().await?,
    };
    let limits = Limits {
        wait: merge_after,
        ..Limits::default()
    };
    let mut lineages = Vec::new();
    let mut failed = None;
    for cluster in &clusters {
        for record in &cluster.lineages {
            let mut done = Maintained::nothing(&cluster.name, record.lineage);
            match maintain_one(site, record.lineage, limits, &mut done, progress).await {
                Ok(()) => lineages.push(done),
                // One that can't be read is no reason to leave the others as they are.
                Err(error) => {
                    tracing::warn!(%error, cluster = cluster.name, lineage = %record.lineage, "not maintained");
                    failed = failed.or(Some(error));
                }
            }
        }
    }
    failed.map_or(Ok(MaintainReport { lineages }), Err)
}

async fn maintain_one(
    site: &Site,
    lineage: LineageId,
    limits: Limits,
    done: &mut Maintained,
    progress: &dyn Progress,
) -> Result<()> {
    let lineage = site.repository.lineage(lineage).await?;
    refuse_unfenced(&lineage).await?;
    let mut upkeep = Upkeep::new(lineage, holder(false)?)
        .with_limits(limits)
        .with_expiry(&site.repository);
    loop {
        let turn = upkeep.turn(Bounds::default(), progress).await?;
        done.add(turn);
        if !turn.more {
            break;
        }
    }
    Ok(upkeep.close().await?)
}

async fn refuse_unfenced(lineage: &Lineage) -> Result<()> {
    let fencing = lineage.store().fencing().await;
    match fencing.map_err(borealis_repository::Error::from)? {
        Fencing::Atomic => Ok(()),
        Fencing::SingleWriter => Err(Error::refused(
            "the store ignores create-if-absent (single-writer mode), so that two maintainers could \
             write over each other",
            "Leave maintenance to the protect of the cluster.",
        )),
    }
}

impl Maintained {
    fn nothing(cluster: &str, lineage: LineageId) -> Self {
        Self {
            cluster: cluster.to_owned(),
            lineage,
            pieces_merged: 0,
            objects: 0,
            bytes_before: 0,
            bytes_after: 0,
            floor: None,
            removed: 0,
            expired_base_backups: 0,
            expired_bytes: 0,
            kept_after_all_bytes: 0,
            deleted: 0,
            deleted_bytes: 0,
            may_not_remove: false,
            skipped: 0,
        }
    }

    fn add(&mut self, turn: Turn) {
        self.pieces_merged += turn.pieces;
        self.objects += turn.objects;
        self.bytes_before += turn.bytes_before;
        self.bytes_after += turn.bytes_after;
        self.floor = turn.floor.or(self.floor);
        self.removed += turn.removed;
        self.expired_base_backups += turn.expired_base_backups;
        self.expired_bytes += turn.expired_bytes;
        self.kept_after_all_bytes += turn.kept_after_all;
        self.deleted += turn.deleted;
        self.deleted_bytes += turn.deleted_bytes;
        self.may_not_remove |= turn.may_not_remove;
        self.skipped += turn.skipped;
    }
}

/// Maintains the lineage of a running `protect`, and those of `cluster` from before it, one turn of bounded work each
/// `interval`, and never returns. What fails is told and tried again at the next turn: nothing that is protected depends
/// on it.
pub async fn maintain_beside(
    site: &Site,
    cluster: &Cluster,
    lineage: Lineage,
    ledger: Ledger,
    interval: Duration,
) -> Error {
    let single_writer = match lineage.store().fencing().await {
        Ok(fencing) => fencing == Fencing::SingleWriter,
        Err(error) => return borealis_repository::Error::from(error).into(),
    };
    let holder = match holder(single_writer) {
        Ok(holder) => holder,
        Err(error) => return error,
    };
    let own = lineage.id();
    let mut upkeep = Upkeep::new(lineage, holder.clone()).with_expiry(&site.repository);
    let mut former = Vec::new();
    for record in cluster.lineages.iter().filter(|it| it.lineage != own) {
        match site.repository.lineage(record.lineage).await {
            Ok(lineage) => {
                let upkeep = Upkeep::new(lineage, holder.clone());
                former.push(upkeep.with_expiry(&site.repository));
            }
            Err(error) => {
                tracing::warn!(%error, lineage = %record.lineage, "an earlier lineage is not maintained");
            }
        }
    }
    for number in 0_u64.. {
        tokio::time::sleep(interval).await;
        told(upkeep.turn(Bounds::default(), &NoProgress).await);
        if number.is_multiple_of(FORMER_EVERY) {
            for upkeep in &mut former {
                told(upkeep.turn(Bounds::default(), &NoProgress).await);
            }
        }
        // Else what the writer knows of the log would grow for as long as it runs. One that was fenced
        // finds out by itself.
        if let Err(error) = ledger.refresh().await {
            tracing::debug!(%error, "the maintenance could not be read");
        }
    }
    Error::new(ErrorKind::Bug, "maintenance came to an end")
}

/// Says what came of a turn.
fn told(turn: borealis_repository::Result<Turn>) {
    match turn {
        Ok(turn) if turn == Turn::default() => {}
        Ok(turn) => {
            // It is tried, and told, once a day.
            if turn.may_not_remove {
                tracing::warn!("{MAY_NOT_REMOVE}");
            }
            tracing::info!(
                pieces = turn.pieces,
                objects = turn.objects,
                before = turn.bytes_before,
                after = turn.bytes_after,
                floor = turn.floor,
                removed = turn.removed,
                expired_base_backups = turn.expired_base_backups,
                expired_bytes = turn.expired_bytes,
                deleted = turn.deleted,
                deleted_bytes = turn.deleted_bytes,
                "maintained"
            );
        }
        Err(error) if error.kind() == ErrorKind::Fenced => {
            tracing::info!(%error, "another process maintains this cluster");
        }
        Err(error) => tracing::warn!(%error, "maintenance failed; it is tried again"),
    }
}
