//! Scrubs: everything live is read at a bounded rate, and what is lost or damaged is told with what it costs.
//!
//! [`borealis_repository::scrub`] reads and records; here are the rate, the period, and what damage means to
//! people: the moments, positions and snapshots that can't be restored to because of it, which are those that the
//! windows lose when it is withdrawn.

pub mod pace;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{ByteLen, ErrorKind, LineageId, Progress, Timestamp};
use borealis_repository::catalog::Cluster;
use borealis_repository::plan::{Damage, LineageState, lost, lost_pins, windows};
use borealis_repository::scrub::{Host, Outcome, scrub as scrub_lineage};
use borealis_repository::{Lineage, layout};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::site::Site;
use crate::status::exact_windows;
use pace::Pace;

/// In which time everything live is read, unless something else is said.
pub const PERIOD: Duration = Duration::from_hours(30 * 24);
/// Before something that looks damaged is read again.
const SECOND_LOOK_PAUSE: Duration = Duration::from_secs(1);

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes a second at most; `None` reads as fast as it can.
    pub rate: Option<ByteLen>,
    /// Where the last complete pass began less than this ago, nothing is read.
    pub every: Option<Duration>,
}

/// What was read and found.
#[derive(Debug, Clone, Serialize)]
pub struct ScrubReport {
    /// Whether everything that was read is sound and no damage stands.
    pub sound: bool,
    /// The lineages, in the order of the catalog.
    pub lineages: Vec<LineageScrub>,
}

/// A lineage of a cluster.
#[derive(Debug, Clone, Serialize)]
pub struct LineageScrub {
    /// The cluster.
    pub cluster: String,
    /// The lineage.
    pub lineage: LineageId,
    /// Whether everything live was read; false where it was stopped before.
    pub complete: bool,
    /// When it is due, where it was not.
    pub due_at: Option<Timestamp>,
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Everything that is lost or damaged.
    pub findings: Vec<ScrubFinding>,
    /// Objects that had been lost or damaged and are sound again.
    pub sound_again: Vec<String>,
    /// Why what was read and found could not be recorded.
    pub not_recorded: Option<String>,
}

/// Something lost or damaged.
#[derive(Debug, Clone, Serialize)]
pub struct ScrubFinding {
    /// `missing` or `damaged`.
    pub kind: &'static str,
    /// The object's name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// When it was found.
    pub found_at: Timestamp,
    /// What can't be restored because of it.
    pub affects: Vec<String>,
}

/// Scrubs the cluster named, or all, retired ones and earlier lineages included. Stopped, it records how far it
/// has come.
pub async fn scrub(
    site: &Site,
    cluster: Option<&str>,
    options: &Options,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<ScrubReport> {
    let clusters = match cluster {
        Some(name) => vec![site.cluster(Some(name)).await?],
        None => site.repository.clusters().await?,
    };
    let mut lineages = Vec::new();
    if cluster.is_none() {
        lineages.extend(scrub_catalog(site).await?);
    }
    for cluster in &clusters {
        for record in &cluster.lineages {
            if stop.is_cancelled() {
                break;
            }
            lineages.push(one(site, cluster, record.lineage, options, progress, stop).await?);
        }
    }
    Ok(ScrubReport {
        sound: lineages.iter().all(|lineage| lineage.findings.is_empty()),
        lineages,
    })
}

/// The entries of the catalog, which opening the repository does not all read.
async fn scrub_catalog(site: &Site) -> Result<Option<LineageScrub>> {
    let damaged = site.repository.read_catalog().await?;
    if damaged.is_empty() {
        return Ok(None);
    }
    let finding = |(object, error): (String, borealis_repository::Error)| ScrubFinding {
        kind: if error.is_absent() {
            "missing"
        } else {
            "damaged"
        },
        object,
        what: error.to_string(),
        found_at: site.clock().now(),
        affects: vec!["the catalog: clusters named there may not be found".to_owned()],
    };
    Ok(Some(LineageScrub {
        cluster: "(catalog)".to_owned(),
        lineage: LineageId(site.repository.id().0),
        complete: true,
        due_at: None,
        objects: 0,
        bytes: 0,
        findings: damaged.into_iter().map(finding).collect(),
        sound_again: Vec::new(),
        not_recorded: None,
    }))
}

async fn one(
    site: &Site,
    cluster: &Cluster,
    id: LineageId,
    options: &Options,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<LineageScrub> {
    let mut report = LineageScrub {
        cluster: cluster.name.clone(),
        lineage: id,
        complete: false,
        due_at: None,
        objects: 0,
        bytes: 0,
        findings: Vec::new(),
        sound_again: Vec::new(),
        not_recorded: None,
    };
    let host = ByHand {
        pace: Pace::new(site.clock().clone(), options.rate, stop.clone()),
    };
    let outcome = async {
        let lineage = site.repository.lineage(id).await?;
        if let Some(every) = options.every
            && let Some(due_at) = due_at(&lineage, every).await?
            && due_at > site.clock().now()
        {
            let standing = lineage.scrubs().await?.damage().to_vec();
            let findings = findings(&lineage, &standing).await?;
            return Ok((Some(due_at), Outcome::default(), findings));
        }
        let outcome = scrub_lineage(&lineage, &host, progress).await?;
        let findings = findings(&lineage, &outcome.standing).await?;
        Ok::<_, crate::Error>((None, outcome, findings))
    };
    match outcome.await {
        Ok((due_at, outcome, findings)) => Ok(LineageScrub {
            complete: outcome.complete,
            due_at,
            objects: outcome.objects,
            bytes: outcome.bytes,
            findings,
            sound_again: outcome.sound,
            not_recorded: outcome.not_recorded,
            ..report
        }),
        // Nothing of the lineage can be read without what is damaged here.
        Err(error) if error.kind() == ErrorKind::Damaged => {
            let object = object_of(&error).unwrap_or_else(|| layout::lineage(id));
            let affects = if object.contains("/scrubs/") {
                format!("what scrubs of lineage {id} have found, and no restore")
            } else {
                format!("all restores of lineage {id}")
            };
            report.findings.push(ScrubFinding {
                kind: "damaged",
                object,
                what: error.to_string(),
                found_at: site.clock().now(),
                affects: vec![affects],
            });
            Ok(report)
        }
        Err(error) => Err(error),
    }
}

fn object_of(error: &crate::Error) -> Option<String> {
    match error {
        crate::Error::Repository(
            borealis_repository::Error::Damaged { object, .. }
            | borealis_repository::Error::Missing { object, .. },
        ) => Some(object.clone()),
        _ => None,
    }
}

/// When the next pass is due; `None` where one is under way or none was ever completed.
pub async fn due_at(lineage: &Lineage, every: Duration) -> Result<Option<Timestamp>> {
    let scrubs = lineage.scrubs().await?;
    if scrubs.current().is_some() {
        return Ok(None);
    }
    Ok((scrubs.complete()).map(|pass| pass.began_at.plus(every)))
}

async fn findings(lineage: &Lineage, standing: &[Damage]) -> Result<Vec<ScrubFinding>> {
    let stored = lineage.load_stored_state().await?;
    let mut findings = Vec::new();
    for damage in standing {
        findings.push(ScrubFinding {
            kind: damage.fault.word(),
            object: damage.object.clone(),
            what: damage.what.clone(),
            found_at: damage.found_at,
            affects: affected(lineage, &stored, damage).await?,
        });
    }
    Ok(findings)
}

/// What can't be restored because of `damage` alone: what the windows lose when it is withdrawn.
pub async fn affected(
    lineage: &Lineage,
    stored: &LineageState,
    damage: &Damage,
) -> Result<Vec<String>> {
    let mut without = stored.clone();
    without.withdraw([damage]);
    let (before, after) = (
        told_windows(lineage, stored).await?,
        told_windows(lineage, &without).await?,
    );
    let mut affected: Vec<String> = (lost(&before, &after).iter())
        .map(ToString::to_string)
        .collect();
    let pins = lost_pins(stored, &without);
    affected.extend(pins.iter().map(|name| format!("snapshot `{name}`")));
    let lost_entries: BTreeSet<u64> = (without.damaged.iter())
        .map(|damaged| damaged.base_backup.entry)
        .collect();
    let base_backups =
        (stored.base_backups.iter()).filter(|base| lost_entries.contains(&base.entry));
    affected.extend(base_backups.map(|base| {
        format!(
            "the base backup {} to {} of branch {}, ended {}",
            base.start, base.end, base.branch, base.ended_at
        )
    }));
    if affected.is_empty() {
        affected.push("no restore".to_owned());
    }
    Ok(affected)
}

/// Windows with exact edges, or where a log piece that would tell them is itself damaged, those of the ledger.
async fn told_windows(
    lineage: &Lineage,
    state: &LineageState,
) -> Result<Vec<borealis_repository::plan::Window>> {
    match exact_windows(lineage, state).await {
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(windows(state)),
        other => other,
    }
}

/// A scrub that somebody waits for.
struct ByHand {
    pace: Pace,
}

#[async_trait]
impl Host for ByHand {
    async fn begins(&self, _left: u64, _total: u64) {}

    async fn has_read(&self, bytes: u64) -> bool {
        self.pace.spend(bytes).await
    }

    async fn before_second_look(&self) {
        tokio::time::sleep(SECOND_LOOK_PAUSE).await;
    }

    async fn found(&self, damage: &Damage, _stored: &LineageState) {
        tracing::debug!(object = damage.object, what = damage.what, "damage found");
    }

    async fn sound(&self, object: &str) {
        tracing::debug!(object, "sound again");
    }
}

/// A scrub in the background: reads everything live within its period, at most at `rate_max`.
pub struct InBackground<'a> {
    pace: Pace,
    period: Duration,
    rate_max: ByteLen,
    lineage: &'a Lineage,
    /// What was found and is to be told, in the order it was found.
    news: Mutex<Vec<Damage>>,
    heard: tokio::sync::Notify,
}

/// Slower than this nothing is read: there is always a little time.
const RATE_MIN: u64 = 256 << 10;

impl<'a> InBackground<'a> {
    /// One of `lineage`.
    pub fn new(
        site: &Site,
        lineage: &'a Lineage,
        period: Duration,
        rate_max: ByteLen,
        stop: CancellationToken,
    ) -> Self {
        Self {
            pace: Pace::new(site.clock().clone(), Some(rate_max), stop),
            period,
            rate_max,
            lineage,
            news: Mutex::default(),
            heard: tokio::sync::Notify::new(),
        }
    }

    /// Waits for what is found.
    pub async fn news(&self) -> Vec<Damage> {
        loop {
            let heard = self.heard.notified();
            let news =
                std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner));
            if !news.is_empty() {
                return news;
            }
            heard.await;
        }
    }
}

/// The rate at which `total` bytes are read in half of `period`, the other half being for what comes between,
/// within bounds; and whether that is fast enough for all of it.
fn rate(total: u64, period: Duration, rate_max: ByteLen) -> (ByteLen, bool) {
    let seconds = (period.as_secs() / 2).max(1);
    let wanted = total / seconds;
    let rate = wanted.max(RATE_MIN).min(rate_max.0.max(1));
    (ByteLen(rate), total / rate.max(1) <= period.as_secs())
}

#[async_trait]
impl Host for InBackground<'_> {
    async fn begins(&self, left: u64, total: u64) {
        let (rate, enough) = rate(total, self.period, self.rate_max);
        self.pace.set(rate);
        tracing::info!(left = %ByteLen(left), total = %ByteLen(total), rate = %rate, "scrub goes on");
        if !enough {
            tracing::warn!(
                total = %ByteLen(total), rate = %rate,
                "everything can't be read within its period at this rate; allow more with --scrub-rate"
            );
        }
    }

    async fn has_read(&self, bytes: u64) -> bool {
        self.pace.spend(bytes).await
    }

    async fn before_second_look(&self) {
        tokio::time::sleep(SECOND_LOOK_PAUSE).await;
    }

    async fn found(&self, damage: &Damage, stored: &LineageState) {
        let affects = match affected(self.lineage, stored, damage).await {
            Ok(affects) => affects.join("; "),
            Err(error) => format!("what can't be told: {error}"),
        };
        tracing::error!(
            object = damage.object,
            fault = damage.fault.word(),
            what = damage.what,
            affects,
            "a scrub found damage in the repository"
        );
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.push(damage.clone());
        self.heard.notify_one();
    }

    async fn sound(&self, object: &str) {
        tracing::info!(object, "an object that was damaged is sound again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_read_in_half_the_period_within_bounds() {
        let day = Duration::from_hours(24);
        let max = ByteLen(16 << 20);
        assert_eq!(rate(0, day, max), (ByteLen(RATE_MIN), true));
        assert_eq!(rate(43_200 << 20, day, max), (ByteLen(1 << 20), true));
        assert_eq!(rate(u64::MAX, day, max), (max, false));
        assert!(!rate(1 << 40, day, ByteLen(0)).1);
    }
}
