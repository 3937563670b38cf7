//! What the backups of a cluster take, in bytes and in money, beside what Aurora would bill.

use std::collections::{BTreeMap, BTreeSet};

use borealis_base::{ByteLen, LineageId, Timestamp};
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::Manifest;
use borealis_repository::plan::LineageState;
use borealis_repository::retention::{
    Object, PackUse, Promise, RetentionPlan, SnapshotBytes, plan, snapshot_bytes,
};
use serde::Serialize;

use super::{Loaded, load};
use crate::error::Result;
use crate::site::Site;

/// Bytes of a GB, as prices count them.
const GIB: f64 = 1_073_741_824.0;
/// Days of a month, as prices are compared.
const DAYS_OF_A_MONTH: f64 = 30.0;

/// Prices, in any one currency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prices {
    /// A GB (2^30 bytes) kept for a month.
    pub gb_month: f64,
    /// A thousand objects written.
    pub thousand_puts: f64,
}

impl Default for Prices {
    /// An example, not a quote: what object stores have asked for standard storage.
    fn default() -> Self {
        Self {
            gb_month: 0.023,
            thousand_puts: 0.005,
        }
    }
}

/// A snapshot's share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotUsage {
    /// Its name.
    pub name: String,
    /// Its lineage.
    pub lineage: LineageId,
    /// Its bytes.
    #[serde(flatten)]
    pub bytes: SnapshotBytes,
}

/// What Aurora's own metrics would show of the same history. Its volumes are counted at the size of the files
/// that a base backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuroraBytes {
    /// The size of the database now.
    pub volume_bytes_used: u64,
    /// At most what the window takes: the size of the database on each of its days.
    pub backup_retention_period_storage_used: u64,
    /// Snapshots from before the window, each at the size of the database then.
    pub snapshot_storage_used: u64,
    /// Both, without what is free: the size of the database now.
    pub total_backup_storage_billed: u64,
}

/// What a cluster's backups take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterUsage {
    /// Its name.
    pub name: String,
    /// Stored bytes of log.
    pub log_bytes: u64,
    /// Stored bytes of base backups, each object counted once.
    pub page_bytes: u64,
    /// Of all bytes, those that the window, the latest state or what is young needs.
    pub window_bytes: u64,
    /// Of all bytes, those that no promise holds.
    pub unpromised_bytes: u64,
    /// Besides, bytes that have expired and are not deleted yet: of base backups those that they added when they were taken.
    pub expired_bytes: u64,
    /// Snapshots.
    pub snapshots: Vec<SnapshotUsage>,
    /// Ledger entries written in the last day, each an object.
    pub entries_last_day: u64,
    /// What a month costs at the prices named, if the last day is like the others.
    pub cost_per_month: f64,
    /// Aurora's figures.
    pub aurora: AuroraBytes,
}

/// The answer to `usage`.
#[derive(Debug, Clone, Serialize)]
pub struct UsageReport {
    /// The prices.
    pub prices: Prices,
    /// The clusters.
    pub clusters: Vec<ClusterUsage>,
}

/// Adds up what a cluster's backups take, or all clusters'. Reads the manifest of each base backup, one at a
/// time, and no pages.
pub async fn usage(site: &Site, cluster: Option<&str>, prices: Prices) -> Result<UsageReport> {
    let clusters = match cluster {
        Some(name) => vec![site.cluster(Some(name)).await?],
        None => site.live_clusters().await?,
    };
    let now = site.clock().now();
    let mut report = UsageReport {
        prices,
        clusters: Vec::new(),
    };
    for cluster in &clusters {
        let loaded = load(site, cluster, None).await?;
        let (mut packs, mut volumes) = (PackUse::default(), BTreeMap::new());
        for it in &loaded {
            read(&mut packs, &mut volumes, it).await?;
        }
        let mut usage = add_up(&cluster.name, &loaded, &packs, &volumes, now);
        for it in &loaded {
            let reader = it.lineage.reader().await?;
            let expired = reader.marks().iter().map(|mark| mark.selected.bytes());
            usage.expired_bytes += expired.sum::<u64>();
        }
        #[allow(clippy::cast_precision_loss)] // an estimate
        let (stored, puts) = (
            (usage.log_bytes + usage.page_bytes) as f64 / GIB,
            usage.entries_last_day as f64 * DAYS_OF_A_MONTH / 1_000.0,
        );
        usage.cost_per_month = stored * prices.gb_month + puts * prices.thousand_puts;
        report.clusters.push(usage);
    }
    Ok(report)
}

/// Sizes of the database, by lineage and entry of the base backup.
type Volumes = BTreeMap<(LineageId, u64), u64>;

async fn read(packs: &mut PackUse, volumes: &mut Volumes, loaded: &Loaded) -> Result<()> {
    let fetcher = Fetcher::of(&loaded.lineage);
    for base in &loaded.state.base_backups {
        let manifest = Manifest::load(&fetcher, &base.manifest).await?;
        packs.add(loaded.lineage.id(), base.entry, &manifest);
        volumes.insert((loaded.lineage.id(), base.entry), volume(&manifest));
    }
    Ok(())
}

/// The size of the files of a base backup.
fn volume(manifest: &Manifest) -> u64 {
    let files = manifest.files();
    let pages =
        (files.page_files.values()).map(|file| u64::from(file.length) * u64::from(file.page_size));
    pages.chain(files.blobs.iter().map(|blob| blob.len)).sum()
}

fn add_up(
    name: &str,
    loaded: &[Loaded],
    packs: &PackUse,
    volumes: &Volumes,
    now: Timestamp,
) -> ClusterUsage {
    let plans: Vec<RetentionPlan> = (loaded.iter())
        .map(|it| plan(&it.state, &it.terms, now))
        .collect();
    let kept: BTreeSet<(LineageId, u64)> = (plans.iter())
        .flat_map(|plan| {
            plan.base_backups()
                .iter()
                .map(|entry| (plan.lineage, *entry))
        })
        .collect();
    let mut usage = ClusterUsage {
        name: name.to_owned(),
        log_bytes: 0,
        page_bytes: packs.bytes(|_, _| true),
        window_bytes: 0,
        unpromised_bytes: 0,
        expired_bytes: 0,
        snapshots: Vec::new(),
        entries_last_day: 0,
        cost_per_month: 0.0,
        aurora: AuroraBytes::default(),
    };
    let recent = |promise: &Promise| {
        matches!(
            promise,
            Promise::Window { .. } | Promise::Latest | Promise::Young
        )
    };
    let mut window: BTreeSet<(LineageId, u64)> = BTreeSet::new();
    for (it, plan) in loaded.iter().zip(&plans) {
        let state = &it.state;
        let log: u64 = state.pieces.iter().map(|piece| piece.stored_bytes).sum();
        usage.log_bytes += log;
        usage.unpromised_bytes += log.saturating_sub(plan.log_bytes());
        usage.entries_last_day += entries_since(state, now.plus_micros(-86_400_000_000));
        for kept in plan
            .kept
            .iter()
            .filter(|kept| kept.promises.iter().any(recent))
        {
            match &kept.object {
                Object::Log { .. } => usage.window_bytes += kept.bytes,
                Object::BaseBackup { entry, .. } => {
                    window.insert((plan.lineage, *entry));
                }
                _ => {}
            }
        }
        usage
            .snapshots
            .extend(state.pins.iter().map(|pin| SnapshotUsage {
                name: pin.name.clone(),
                lineage: plan.lineage,
                bytes: snapshot_bytes(plan, packs, &pin.name, &kept),
            }));
    }
    let held = packs.bytes(|lineage, entry| kept.contains(&(lineage, entry)));
    usage.unpromised_bytes += usage.page_bytes.saturating_sub(held);
    usage.window_bytes += packs.bytes(|lineage, entry| window.contains(&(lineage, entry)));
    usage.aurora = aurora(loaded, volumes, now);
    usage
}

fn entries_since(state: &LineageState, since: Timestamp) -> u64 {
    let pieces = state.pieces.iter().map(|it| it.recorded_at);
    let settled = state.settled.iter().map(|it| it.recorded_at);
    let bases = state.base_backups.iter().map(|it| it.recorded_at);
    let all = pieces.chain(settled).chain(bases);
    all.filter(|at| *at >= since).count() as u64
}

/// The newest size of the database at or before a moment.
fn volume_at(loaded: &[Loaded], volumes: &Volumes, at: Timestamp) -> Option<u64> {
    let bases = loaded.iter().flat_map(|it| {
        let id = it.lineage.id();
        (it.state.base_backups.iter()).map(move |base| (base.ended_at, (id, base.entry)))
    });
    let newest = bases.filter(|(ended_at, _)| *ended_at <= at).max()?;
    volumes.get(&newest.1).copied()
}

/// The window costs at most the database's size on each of its days; a snapshot within the window costs nothing,
/// and an older one the size of its time; as much as the database has now is free.
fn aurora(loaded: &[Loaded], volumes: &Volumes, now: Timestamp) -> AuroraBytes {
    let Some(days) = loaded.last().map(|it| it.terms.policy.retention) else {
        return AuroraBytes::default();
    };
    let day = |back: u32| now.minus(std::time::Duration::from_secs(u64::from(back) * 86_400));
    let window = (0..days.get())
        .filter_map(|back| volume_at(loaded, volumes, day(back)))
        .sum();
    let begin = now.minus(days.duration());
    let snapshots = (loaded.iter())
        .flat_map(|it| &it.state.pins)
        .filter_map(|pin| pin.time)
        .filter(|time| *time < begin)
        .filter_map(|time| volume_at(loaded, volumes, time))
        .sum();
    AuroraBytes::of(
        volume_at(loaded, volumes, now).unwrap_or(0),
        window,
        snapshots,
    )
}

impl AuroraBytes {
    fn of(volume: u64, window: u64, snapshots: u64) -> Self {
        Self {
            volume_bytes_used: volume,
            backup_retention_period_storage_used: window,
            snapshot_storage_used: snapshots,
            total_backup_storage_billed: (window + snapshots).saturating_sub(volume),
        }
    }
}

impl UsageReport {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for cluster in &self.clusters {
            out += &cluster.to_text(&self.prices);
        }
        if out.is_empty() {
            out += "no cluster yet: run borealis protect\n";
        }
        out
    }
}

impl ClusterUsage {
    fn to_text(&self, prices: &Prices) -> String {
        let aurora = &self.aurora;
        let mut lines = vec![
            format!("cluster {}", self.name),
            format!(
                "  stored        {} of base backups, {} of log",
                ByteLen(self.page_bytes),
                ByteLen(self.log_bytes)
            ),
            format!("  window        {}", ByteLen(self.window_bytes)),
            format!("  unpromised    {}", ByteLen(self.unpromised_bytes)),
            format!(
                "  expired       {}, to be deleted",
                ByteLen(self.expired_bytes)
            ),
        ];
        for snapshot in &self.snapshots {
            lines.push(format!(
                "  snapshot      `{}`: its deletion gives back {}, {} are shared",
                snapshot.name,
                ByteLen(snapshot.bytes.unique_bytes),
                ByteLen(snapshot.bytes.shared_bytes)
            ));
        }
        lines.push(format!(
            "  entries       {} in the last day",
            self.entries_last_day
        ));
        lines.push(format!(
            "  cost          {:.2} a month, at {} a GB and month and {} a thousand puts",
            self.cost_per_month, prices.gb_month, prices.thousand_puts
        ));
        lines.push(format!(
            "  as Aurora     volume {}, window at most {}, snapshots {}, billed at most {}",
            ByteLen(aurora.volume_bytes_used),
            ByteLen(aurora.backup_retention_period_storage_used),
            ByteLen(aurora.snapshot_storage_used),
            ByteLen(aurora.total_backup_storage_billed)
        ));
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of the billing rule: 100 and 150 GiB on two days, and a snapshot of 100 GiB.
    #[test]
    fn auroras_figures_are_those_of_its_own_example() {
        let gib = |count: u64| count << 30;
        let aurora = AuroraBytes::of(gib(150), gib(250), gib(100));
        assert_eq!(aurora.total_backup_storage_billed, gib(200));
        // As much as the database has is free.
        assert_eq!(
            AuroraBytes::of(gib(150), gib(150), 0).total_backup_storage_billed,
            0
        );
        assert_eq!(
            AuroraBytes::of(gib(150), gib(100), 0).total_backup_storage_billed,
            0
        );
    }
}
