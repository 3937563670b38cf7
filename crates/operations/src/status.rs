//! What is protected, and to which moments it can be restored. Computed from what is stored (law 2),
//! never from what was asked for.

mod states;

use std::path::Path;
use std::time::Duration;

use borealis_base::{ByteLen, ErrorKind, LineageId, Position, Timestamp};
use borealis_repository::Lineage;
use borealis_repository::catalog::Cluster;
use borealis_repository::ledger::{Presence, SILENCE_MAX};
use borealis_repository::log::LogReader;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::Manifest;
use borealis_repository::plan::{
    BaseBackupSummary, KnownSteps, LineageState, Window, steps_wanted, windows_with,
};
use borealis_repository::store::Usage;
use serde::Serialize;

pub use states::{BaseBackupState, DamageStatus, ScrubStatus};
use states::{base_backup_states, damage_status, scrub_status, told};
pub(crate) use states::{scrubbed_at, unless_damaged};

use crate::base_backup::facts::{DamagedPage, ServerState};
use crate::drill::{DrillSummary, complaints, last_run};
use crate::error::Result;
use crate::protect::{control, process_of};
use crate::retention::{
    PromiseStatus, missed_recovery_point, missed_recovery_time, promise_status,
};
use crate::site::Site;

/// Damaged pages that a note names; more are counted.
const DAMAGED_PAGES_NAMED: usize = 3;

/// What `status` says of a store that fences nobody.
const SINGLE_WRITER_NOTE: &str = "single-writer mode: the store ignores create-if-absent, so that a second \
                                  protect could damage the backups; see to it that there is one";

/// The answer to `status`.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// Where the repository is.
    pub repository: String,
    /// Its clusters.
    pub clusters: Vec<ClusterStatus>,
}

/// A cluster.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Its newest lineage.
    pub lineage: LineageId,
    /// Who protects it, or did so last.
    pub protector: Option<Protector>,
    /// Why it is no longer protected, if somebody said so.
    pub retired: Option<String>,
    /// The latest moment that can be restored to.
    pub latest_restorable_time: Option<Timestamp>,
    /// How far that is behind now.
    pub lag_seconds: Option<f64>,
    /// What can be restored.
    pub windows: Vec<WindowStatus>,
    /// What is promised of the window, and whether it is met; `None` where only the ledger was looked at.
    pub promise: Option<PromiseStatus>,
    /// How many base backups there are.
    pub base_backups: usize,
    /// The newest base backup.
    pub last_base_backup: Option<BaseBackupStatus>,
    /// How many snapshots stand.
    pub snapshots: usize,
    /// The log was read back from the store up to here after it was stored.
    pub log_verified_through: Option<Position>,
    /// Log pieces that are not known to have been read back yet.
    pub log_pieces_unverified: usize,
    /// Log pieces that nothing rests on any more, such as those that the store did not give back.
    pub log_pieces_withdrawn: usize,
    /// Stored bytes of log.
    pub log_bytes: u64,
    /// Stored bytes of base backups.
    pub base_backup_bytes: u64,
    /// Ranges of log over which nothing can be restored.
    pub gaps: Vec<GapStatus>,
    /// Whether the store fences nobody, as the last protect found.
    pub single_writer: bool,
    /// Requests and bytes of the running protect since it started; `None` where none of this machine
    /// tells.
    pub requests: Option<Usage>,
    /// The lineages before this one, the oldest first: histories that ended where the server's was rewritten
    /// or another server took its place.
    pub earlier_lineages: Vec<EarlierLineage>,
    /// How sure each base backup is, the oldest first.
    pub base_backup_states: Vec<BaseBackupState>,
    /// The last drill that was run.
    pub last_drill: Option<DrillSummary>,
    /// When everything live was last read by a scrub, and how far the present one is.
    pub scrub: ScrubStatus,
    /// What a scrub found lost or damaged and not sound since.
    pub damage: Vec<DamageStatus>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// A lineage that another one has followed.
#[derive(Debug, Clone, Serialize)]
pub struct EarlierLineage {
    /// Its identifier, which `restore --lineage` takes.
    pub lineage: LineageId,
    /// Why it ended, if that was said.
    pub ended: Option<String>,
    /// What can be restored of it.
    pub windows: Vec<WindowStatus>,
}

/// Who holds the newest epoch.
#[derive(Debug, Clone, Serialize)]
pub struct Protector {
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// Its epoch.
    pub epoch: u64,
    /// When it last wrote into the ledger.
    pub last_sign_of_life: Timestamp,
    /// Whether it runs; `None` if that can't be seen from here.
    pub running: Option<bool>,
}

/// A window.
#[derive(Debug, Clone, Serialize)]
pub struct WindowStatus {
    /// The branch.
    pub branch: u32,
    /// The first moment.
    pub earliest_time: Option<Timestamp>,
    /// The last moment.
    pub latest_time: Option<Timestamp>,
    /// The first position.
    pub earliest_position: Position,
    /// The last position.
    pub latest_position: Position,
}

/// A base backup.
#[derive(Debug, Clone, Serialize)]
pub struct BaseBackupStatus {
    /// Where replay begins.
    pub start: Position,
    /// Where it can be restored to.
    pub end: Position,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Bytes that it added.
    pub new_bytes: u64,
}

/// A gap.
#[derive(Debug, Clone, Serialize)]
pub struct GapStatus {
    /// The branch.
    pub branch: u32,
    /// First missing position.
    pub from: Position,
    /// Where log goes on.
    pub to: Position,
    /// Why.
    pub reason: String,
}

impl StatusReport {
    /// The report for people.
    pub fn to_text(&self, now: Timestamp) -> String {
        let mut out = format!("repository {}\n", self.repository);
        if self.clusters.is_empty() {
            out += "no cluster yet: run borealis protect\n";
        }
        for cluster in &self.clusters {
            out += &cluster.to_text(now);
        }
        out
    }
}

impl ClusterStatus {
    fn to_text(&self, now: Timestamp) -> String {
        let mut lines = vec![format!("\ncluster {}", self.name)];
        lines.push(format!("  protected     {}", self.protection(now)));
        lines.push(match (self.latest_restorable_time, self.lag_seconds) {
            (Some(time), Some(lag)) => format!(
                "  latest        {time}, {} behind now",
                borealis_base::show_duration(Duration::from_secs_f64(lag.max(0.0)))
            ),
            _ => "  latest        nothing can be restored yet".to_owned(),
        });
        lines.extend(self.windows.iter().flat_map(WindowStatus::lines));
        if let Some(promise) = &self.promise {
            lines.push(format!("  promise       {}", promise.line()));
            if !promise.holds.is_empty() {
                lines.push(format!("  holds         {}", promise.holds.join(", ")));
            }
            lines.extend(objectives_line(promise));
        }
        for gap in &self.gaps {
            lines.push(format!(
                "  gap           {} to {}: {}",
                gap.from, gap.to, gap.reason
            ));
        }
        lines.push(match &self.last_base_backup {
            Some(base) => format!(
                "  base backups  {}, the last ended {} at {} and added {}",
                self.base_backups,
                base.ended_at,
                base.end,
                ByteLen(base.new_bytes)
            ),
            None => "  base backups  none yet".to_owned(),
        });
        for earlier in &self.earlier_lineages {
            let ended = earlier
                .ended
                .as_deref()
                .unwrap_or("another server took its place");
            lines.push(format!(
                "  earlier       --lineage {}, ended: {ended}",
                earlier.lineage
            ));
            lines.extend(earlier.windows.iter().flat_map(WindowStatus::lines));
        }
        lines.extend(self.read_back());
        lines.extend(self.scrub.line(now));
        lines.extend(self.drill_lines(now));
        for damage in &self.damage {
            lines.push(format!(
                "  DAMAGE        {} {}: {}",
                damage.kind, damage.object, damage.what
            ));
            lines.extend(
                damage
                    .affects
                    .iter()
                    .map(|what| format!("                affects {what}")),
            );
        }
        lines.push(format!("  snapshots     {}", self.snapshots));
        lines.push(format!(
            "  stored        {} of base backups, {} of log",
            ByteLen(self.base_backup_bytes),
            ByteLen(self.log_bytes)
        ));
        if let Some(usage) = &self.requests {
            lines.push(format!(
                "  requests      {}, since protect started",
                show_usage(usage)
            ));
        }
        lines.extend(
            self.notes
                .iter()
                .map(|note| format!("  note          {note}")),
        );
        lines.join("\n") + "\n"
    }

    fn read_back(&self) -> Option<String> {
        let through = self.log_verified_through?;
        let counted = |count: usize, what: &str| match count {
            0 => String::new(),
            count => format!(", {count} log pieces {what}"),
        };
        Some(format!(
            "  read back     log through {through}{}{}",
            counted(self.log_pieces_unverified, "to go"),
            counted(self.log_pieces_withdrawn, "withdrawn")
        ))
    }

    fn protection(&self, now: Timestamp) -> String {
        if let Some(reason) = &self.retired {
            return format!("no longer: {reason}");
        }
        let Some(holder) = &self.protector else {
            return "not yet".to_owned();
        };
        let state = match holder.running {
            Some(true) => "running",
            Some(false) => "NOT running",
            None => "elsewhere",
        };
        format!(
            "{state}, process {} on {}, last sign of life {} ago",
            holder.pid,
            holder.host,
            borealis_base::show_duration(now.since(holder.last_sign_of_life))
        )
    }
}

impl WindowStatus {
    fn lines(&self) -> [String; 2] {
        let times = match (self.earliest_time, self.latest_time) {
            (Some(earliest), Some(latest)) => format!("  window        {earliest} to {latest}"),
            _ => "  window        no moment is settled yet".to_owned(),
        };
        let positions = format!(
            "                {} to {} on timeline {}",
            self.earliest_position, self.latest_position, self.branch
        );
        [times, positions]
    }
}

/// What recovery is to achieve, where somebody has said so.
fn objectives_line(promise: &PromiseStatus) -> Option<String> {
    let seconds = |what: &str, seconds: Option<u64>| {
        let shown = borealis_base::show_duration(Duration::from_secs(seconds?));
        Some(format!("{what} {shown}"))
    };
    let wanted = promise.objectives;
    let all: Vec<String> = [
        seconds("recovery point", wanted.recovery_point_seconds),
        seconds("recovery time", wanted.recovery_time_seconds),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!all.is_empty()).then(|| format!("  objectives    {}", all.join(", ")))
}

/// Looks at the cluster named, or at all. Where its `protect` runs on this machine, that is asked first
/// to settle the present, so that the latest restorable time of an idle cluster follows the clock.
pub async fn load(site: &Site, cluster: Option<&str>) -> Result<StatusReport> {
    let clusters = match cluster {
        Some(name) => vec![site.cluster(Some(name)).await?],
        None => site.live_clusters().await?,
    };
    let mut report = StatusReport {
        repository: site.url.clone(),
        clusters: Vec::with_capacity(clusters.len()),
    };
    for cluster in &clusters {
        report.clusters.push(load_cluster(site, cluster).await?);
    }
    Ok(report)
}

async fn load_cluster(site: &Site, cluster: &Cluster) -> Result<ClusterStatus> {
    let lineage = site.lineage(cluster).await?;
    let mut reader = lineage.reader().await?;
    let mut notes = Vec::new();
    let present = reader.presence().await?;
    let asked = settle(present.as_ref(), &mut notes).await;
    if asked.may_have_grown {
        reader.refresh().await?;
    }
    // Read again: what was settled is a sign of life.
    let present = reader.presence().await?;
    let single_writer = present
        .as_ref()
        .is_some_and(|present| present.holder.single_writer);
    if single_writer {
        notes.push(SINGLE_WRITER_NOTE.to_owned());
    }
    let protector = present.as_ref().map(protector);
    let mut stored = reader.state().clone();
    stored.pins = lineage.pins().await?.all().to_vec();
    let scrubs = unless_damaged(told(lineage.scrubs().await, &mut notes))?;
    let mut state = stored.clone();
    let standing = scrubs.as_ref().map_or(&[][..], |scrubs| scrubs.damage());
    state.withdraw(standing);
    let windows = exact_windows(&lineage, &state).await?;
    let now = site.clock().now();
    let drills = unless_damaged(told(lineage.drills().await, &mut notes))?;
    let drills = drills.as_ref().map_or(&[][..], |drills| drills.all());
    let first = stored.base_backups.first().map(|base| base.ended_at);
    if state.retired.is_none() {
        notes.extend(complaints(drills, first, now));
    }
    notes.extend(protection_note(&state, protector.as_ref(), now));
    let newest = newest_base_backup(&state);
    if let Some(base) = newest {
        notes.extend(damage_note(&lineage, base).await?);
    }
    let mut status = summarise(&cluster.name, &state, &windows, protector, notes, now);
    let last_drill = last_run(drills).map(DrillSummary::from);
    if state.retired.is_none() {
        let missed = missed_recovery_point(&cluster.objectives, status.lag_seconds);
        status.notes.extend(missed);
        let took = last_drill.as_ref().map(|drill| drill.recovery_seconds);
        let missed = missed_recovery_time(&cluster.objectives, took);
        status.notes.extend(missed);
    }
    let spans: Vec<_> = (windows.iter())
        .filter_map(|window| Some((window.earliest.time?, window.latest.time?)))
        .collect();
    Ok(ClusterStatus {
        base_backup_states: base_backup_states(&stored, &state, scrubs.as_ref(), drills),
        last_drill,
        scrub: scrubs.as_ref().map(scrub_status).unwrap_or_default(),
        damage: damage_status(&lineage, &stored, standing).await?,
        promise: Some(promise_status(cluster, &spans, now)),
        earlier_lineages: earlier_lineages(site, cluster).await?,
        single_writer,
        requests: asked.usage,
        ..status
    })
}

async fn earlier_lineages(site: &Site, cluster: &Cluster) -> Result<Vec<EarlierLineage>> {
    let mut earlier = Vec::new();
    let before = cluster.lineages.len().saturating_sub(1);
    for record in cluster.lineages.iter().take(before) {
        let lineage = site.repository.lineage(record.lineage).await?;
        let state = lineage.load_state().await?;
        let windows = exact_windows(&lineage, &state).await?;
        earlier.push(EarlierLineage {
            lineage: record.lineage,
            ended: state.retired,
            windows: windows.iter().map(window_status).collect(),
        });
    }
    Ok(earlier)
}

fn window_status(window: &Window) -> WindowStatus {
    WindowStatus {
        branch: window.branch.0,
        earliest_time: window.earliest.time,
        latest_time: window.latest.time,
        earliest_position: window.earliest.position,
        latest_position: window.latest.position,
    }
}

/// What became of asking the running `protect`.
#[derive(Default)]
struct Asked {
    /// Whether the ledger may have grown meanwhile.
    may_have_grown: bool,
    usage: Option<Usage>,
}

/// Has a `protect` of this machine settle the present and tell what it has used.
async fn settle(present: Option<&Presence>, notes: &mut Vec<String>) -> Asked {
    let Some(present) = present.filter(|present| is_running(present) == Some(true)) else {
        return Asked::default();
    };
    if present.holder.control.is_empty() {
        return Asked::default();
    }
    let path = Path::new(&present.holder.control);
    match control::ask(path, control::Request::Settle).await {
        Ok(answer) => Asked {
            may_have_grown: answer.is_some(),
            usage: answer.and_then(|answer| answer.usage),
        },
        Err(error) => {
            notes.push(format!("{error}; the latest moment may be later"));
            Asked {
                may_have_grown: true,
                usage: None,
            }
        }
    }
}

/// Requests by kind and bytes, in one line.
fn show_usage(usage: &Usage) -> String {
    format!(
        "{} puts, {} gets, {} lists, {} deletes, of which {} tried again; {} sent, {} received",
        usage.puts,
        usage.gets,
        usage.lists,
        usage.deletes,
        usage.retries,
        ByteLen(usage.bytes_put),
        ByteLen(usage.bytes_got)
    )
}

/// Whether the holder runs; `None` if that can't be seen from here.
fn is_running(present: &Presence) -> Option<bool> {
    if present.closed {
        return Some(false);
    }
    process_of(&present.holder).is_alive()
}

/// Whether somebody is there who ships log, as far as it can be told: a process elsewhere counts until
/// it has been silent for too long.
pub(crate) fn ships_log(present: Option<&Presence>, now: Timestamp) -> bool {
    present.is_some_and(|present| {
        let recent = now.since(present.last_sign) <= SILENCE_MAX;
        !present.closed && is_running(present).unwrap_or(recent)
    })
}

fn protector(present: &Presence) -> Protector {
    let process = process_of(&present.holder);
    Protector {
        host: process.host,
        pid: process.pid,
        epoch: present.epoch,
        last_sign_of_life: present.last_sign,
        running: is_running(present),
    }
}

/// The windows, their earliest moments exact.
pub(crate) async fn exact_windows(lineage: &Lineage, state: &LineageState) -> Result<Vec<Window>> {
    let wanted = steps_wanted(state);
    let log = LogReader::of(lineage);
    let mut steps = KnownSteps::new();
    for piece in (state.pieces.iter()).filter(|piece| wanted.contains(&piece.entry)) {
        steps.insert(piece.entry, log.piece(piece).await?.time_steps().await?);
    }
    Ok(windows_with(state, &steps))
}

fn newest_base_backup(state: &LineageState) -> Option<&BaseBackupSummary> {
    state.base_backups.iter().max_by_key(|base| base.entry)
}

fn protection_note(
    state: &LineageState,
    protector: Option<&Protector>,
    now: Timestamp,
) -> Option<String> {
    let holder = protector.filter(|_| state.retired.is_none())?;
    let silent_for = now.since(holder.last_sign_of_life);
    match holder.running {
        Some(false) => Some("protect is not running: nothing new is backed up".to_owned()),
        None if silent_for > SILENCE_MAX => Some(format!(
            "protect on {} has shown no sign of life for {}",
            holder.host,
            borealis_base::show_duration(silent_for)
        )),
        _ => None,
    }
}

/// Pages that were damaged on the server when the newest base backup read them.
async fn damage_note(lineage: &Lineage, base: &BaseBackupSummary) -> Result<Option<String>> {
    let manifest = match Manifest::load(&Fetcher::of(lineage), &base.manifest).await {
        Ok(manifest) => manifest,
        // The rest of the report is still true, and says nothing of what is stored in packs either.
        Err(error) if error.kind() == ErrorKind::Damaged => {
            return Ok(Some(format!(
                "the newest base backup can't be read: {error}; run borealis verify"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let server = ServerState::decode(&manifest.name(), &manifest.info().engine)?;
    Ok(damaged_pages(&server.damaged))
}

fn damaged_pages(damaged: &[DamagedPage]) -> Option<String> {
    let named: Vec<String> = (damaged.iter().take(DAMAGED_PAGES_NAMED))
        .map(|page| format!("{} block {} ({})", page.path, page.block, page.fault))
        .collect();
    let more = match damaged.len().saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!damaged.is_empty()).then(|| {
        format!(
            "the server has damaged pages, seen by the newest base backup: {}{more}",
            named.join(", ")
        )
    })
}

/// The end of the log that was read back.
fn verified_through(state: &LineageState) -> Option<Position> {
    let read = state.pieces.len() - state.unread_pieces().len();
    (state.pieces.iter().take(read).rev())
        .find(|piece| !state.is_withdrawn(piece))
        .map(|piece| piece.end)
}

/// The gaps, neighbours with the same reason as one.
fn gaps(state: &LineageState) -> Vec<GapStatus> {
    let mut gaps: Vec<GapStatus> = Vec::new();
    for gap in &state.gaps {
        match gaps.last_mut() {
            Some(last)
                if last.branch == gap.branch.0
                    && last.to == gap.from
                    && last.reason == gap.reason =>
            {
                last.to = gap.to;
            }
            _ => gaps.push(GapStatus {
                branch: gap.branch.0,
                from: gap.from,
                to: gap.to,
                reason: gap.reason.clone(),
            }),
        }
    }
    gaps
}

/// Puts together what a cluster's ledger says.
fn summarise(
    name: &str,
    state: &LineageState,
    windows: &[Window],
    protector: Option<Protector>,
    notes: Vec<String>,
    now: Timestamp,
) -> ClusterStatus {
    let latest = (windows.iter())
        .filter_map(|window| window.latest.time)
        .max();
    ClusterStatus {
        name: name.to_owned(),
        lineage: state.lineage,
        protector,
        retired: state.retired.clone(),
        latest_restorable_time: latest,
        lag_seconds: latest.map(|latest| now.since(latest).as_secs_f64()),
        windows: windows.iter().map(window_status).collect(),
        promise: None,
        base_backups: state.base_backups.len(),
        last_base_backup: newest_base_backup(state).map(|base| BaseBackupStatus {
            start: base.start,
            end: base.end,
            ended_at: base.ended_at,
            new_bytes: base.new_bytes,
        }),
        snapshots: state.pins.len(),
        log_verified_through: verified_through(state),
        log_pieces_unverified: state.unread_pieces().len(),
        log_pieces_withdrawn: (state.pieces.iter())
            .filter(|piece| state.is_withdrawn(piece))
            .count(),
        log_bytes: state.pieces.iter().map(|piece| piece.stored_bytes).sum(),
        base_backup_bytes: state.base_backups.iter().map(|base| base.new_bytes).sum(),
        gaps: gaps(state),
        single_writer: false,
        requests: None,
        earlier_lineages: Vec::new(),
        base_backup_states: Vec::new(),
        last_drill: None,
        scrub: ScrubStatus::default(),
        damage: Vec::new(),
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{Branch, RecordSpan};
    use borealis_repository::ledger::Holder;
    use borealis_repository::plan::Edge;

    fn window(latest: Option<i64>) -> Window {
        let edge = |position, time: Option<i64>| Edge {
            position: Position(position),
            time: time.map(Timestamp),
        };
        Window {
            branch: Branch(1),
            earliest: edge(0x100, latest.map(|_| 0)),
            latest: edge(0x200, latest),
            last_record: RecordSpan {
                start: Position(0x1F0),
                end: Position(0x200),
            },
            last_entry: 2,
            base_backups: vec![1],
        }
    }

    fn status(windows: &[Window], now: i64) -> ClusterStatus {
        let state = LineageState::empty(LineageId([1; 16]));
        summarise("main", &state, windows, None, Vec::new(), Timestamp(now))
    }

    #[test]
    fn the_lag_is_to_the_latest_moment_of_all_windows() {
        let windows = [
            window(Some(9_000_000)),
            window(Some(4_000_000)),
            window(None),
        ];
        let status = status(&windows, 10_500_000);
        assert_eq!(status.latest_restorable_time, Some(Timestamp(9_000_000)));
        assert_eq!(status.lag_seconds, Some(1.5));
    }

    #[test]
    fn a_source_clock_ahead_of_ours_gives_no_negative_lag() {
        assert_eq!(status(&[window(Some(5))], 0).lag_seconds, Some(0.0));
    }

    #[test]
    fn without_a_settled_moment_there_is_no_lag_to_tell() {
        let status = status(&[window(None)], 10);
        assert_eq!(
            (status.latest_restorable_time, status.lag_seconds),
            (None, None)
        );
        assert!(
            status
                .to_text(Timestamp(10))
                .contains("nothing can be restored yet")
        );
    }

    fn presence(closed: bool) -> Presence {
        Presence {
            holder: Holder {
                host: "db another-machine".to_owned(),
                pid: 7,
                ..Holder::default()
            },
            epoch: 1,
            last_sign: Timestamp(0),
            closed,
        }
    }

    #[test]
    fn a_protect_elsewhere_counts_until_it_is_silent_for_too_long() {
        let late = Timestamp(0).plus(SILENCE_MAX).plus_micros(1);
        assert!(ships_log(
            Some(&presence(false)),
            Timestamp(0).plus(SILENCE_MAX)
        ));
        assert!(!ships_log(Some(&presence(false)), late));
        assert!(!ships_log(Some(&presence(true)), Timestamp(0)));
        assert!(!ships_log(None, Timestamp(0)));
    }

    #[test]
    fn a_protect_that_stopped_is_a_note_unless_that_was_wanted() {
        let mut state = LineageState::empty(LineageId([1; 16]));
        let stopped = protector(&presence(true));
        let note = |state: &LineageState| protection_note(state, Some(&stopped), Timestamp(0));
        assert!(note(&state).unwrap().contains("not running"));
        state.retired = Some("unprotected on request".to_owned());
        assert_eq!(note(&state), None);
    }

    #[test]
    fn damaged_pages_are_named_and_the_rest_counted() {
        let page = |block| DamagedPage {
            path: "base/5/16384".to_owned(),
            block,
            fault: "checksum".to_owned(),
        };
        assert_eq!(damaged_pages(&[]), None);
        let note = damaged_pages(&(0..5).map(page).collect::<Vec<_>>()).unwrap();
        assert!(
            note.contains("base/5/16384 block 2 (checksum) and 2 more"),
            "{note}"
        );
    }
}
