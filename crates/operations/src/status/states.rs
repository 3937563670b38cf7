//! How sure base backups are: read back, scrubbed, drilled, damaged.

use borealis_base::{ByteLen, ErrorKind, Position, Timestamp};
use borealis_repository::Lineage;
use borealis_repository::drills::Drill;
use borealis_repository::plan::{BaseBackupSummary, Damage, LineageState};
use borealis_repository::scrubs::Scrubs;
use serde::Serialize;

use super::ClusterStatus;
use crate::error::Result;
use crate::scrub::affected;

/// How sure a base backup is.
#[derive(Debug, Clone, Serialize)]
pub struct BaseBackupState {
    /// Its ledger entry.
    pub entry: u64,
    /// Where it can be restored to.
    pub end: Position,
    /// When it was entered. Everything of it was read back from the store before that.
    pub committed_at: Timestamp,
    /// Always true: law 7 of the design.
    pub read_back: bool,
    /// When a scrub that read all of it ended.
    pub scrubbed_at: Option<Timestamp>,
    /// When a drill from it last passed.
    pub drilled_at: Option<Timestamp>,
    /// The first object of it that was found lost or damaged; nothing is restored from it then.
    pub damaged: Option<String>,
}

/// How far scrubs are.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ScrubStatus {
    /// When the last complete pass began.
    pub began_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it read.
    pub bytes: u64,
    /// When the pass that is under way began.
    pub current_began_at: Option<Timestamp>,
    /// What that has read so far.
    pub current_bytes: u64,
}

/// Something lost or damaged.
#[derive(Debug, Clone, Serialize)]
pub struct DamageStatus {
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

impl ScrubStatus {
    pub(super) fn line(&self, now: Timestamp) -> Option<String> {
        let current = self.current_began_at.map(|began| {
            format!(
                "one under way since {began}, {} read",
                ByteLen(self.current_bytes)
            )
        });
        let complete = self.ended_at.map(|ended| {
            format!(
                "complete {} ago, {} read",
                borealis_base::show_duration(now.since(ended)),
                ByteLen(self.bytes)
            )
        });
        let told: Vec<String> = complete.into_iter().chain(current).collect();
        (!told.is_empty()).then(|| format!("  scrub         {}", told.join("; ")))
    }
}

impl ClusterStatus {
    /// The last drill in two lines, and how many base backups were drilled and scrubbed.
    pub(super) fn drill_lines(&self, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(drill) = &self.last_drill {
            let point = drill
                .time
                .map_or_else(|| drill.target.clone(), |time| time.to_string());
            lines.push(format!(
                "  last drill    {}, {} ago, to {point}",
                if drill.result == "passed" {
                    "passed"
                } else {
                    "FAILED"
                },
                borealis_base::show_duration(now.since(drill.begun_at))
            ));
            let loss = (drill.loss_window_seconds)
                .map_or_else(String::new, |loss| format!("; loss window {loss:.1} s"));
            lines.push(format!(
                "                recovery took {:.1} s ({:.1} plan, {:.1} pages, {:.1} replay, {:.1} until it answered){loss}",
                drill.recovery_seconds,
                drill.plan_seconds,
                drill.pages_seconds,
                drill.replay_seconds,
                drill.answer_seconds
            ));
        }
        let count = |is: fn(&BaseBackupState) -> bool| {
            self.base_backup_states
                .iter()
                .filter(|state| is(state))
                .count()
        };
        if !self.base_backup_states.is_empty() {
            let damaged = match count(|state| state.damaged.is_some()) {
                0 => String::new(),
                damaged => format!(", {damaged} DAMAGED"),
            };
            lines.push(format!(
                "  states        of {} base backups {} read back, {} scrubbed, {} drilled{damaged}",
                self.base_backup_states.len(),
                count(|state| state.read_back),
                count(|state| state.scrubbed_at.is_some()),
                count(|state| state.drilled_at.is_some()),
            ));
        }
        lines
    }
}

/// Notes what can't be read because it is damaged.
pub(super) fn told<T>(
    read: borealis_repository::Result<T>,
    notes: &mut Vec<String>,
) -> borealis_repository::Result<T> {
    if let Err(error) = &read
        && error.kind() == ErrorKind::Damaged
    {
        notes.push(format!("{error}; run borealis scrub"));
    }
    read
}

/// What was read; nothing where it is damaged: the rest is still true.
pub(crate) fn unless_damaged<T>(read: borealis_repository::Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn base_backup_states(
    stored: &LineageState,
    relied_on: &LineageState,
    scrubs: Option<&Scrubs>,
    drills: &[Drill],
) -> Vec<BaseBackupState> {
    let state = |base: &BaseBackupSummary| BaseBackupState {
        entry: base.entry,
        end: base.end,
        committed_at: base.recorded_at,
        read_back: true,
        scrubbed_at: scrubs.and_then(|scrubs| scrubbed_at(scrubs, base.entry)),
        drilled_at: (drills.iter().rev())
            .find(|drill| drill.passed() && drill.base_backup == base.entry)
            .map(|drill| drill.ended_at),
        damaged: (relied_on.damaged.iter())
            .find(|damaged| damaged.base_backup.entry == base.entry)
            .map(|damaged| damaged.object.clone()),
    };
    stored.base_backups.iter().map(state).collect()
}

/// When a scrub ended that has read everything the ledger named up to `entry`.
pub(crate) fn scrubbed_at(scrubs: &Scrubs, entry: u64) -> Option<Timestamp> {
    let pass = scrubs.complete()?;
    (entry <= pass.head).then_some(pass.at)
}

pub(super) fn scrub_status(scrubs: &Scrubs) -> ScrubStatus {
    let (complete, current) = (scrubs.complete(), scrubs.current());
    ScrubStatus {
        began_at: complete.map(|pass| pass.began_at),
        ended_at: complete.map(|pass| pass.at),
        bytes: complete.map_or(0, |pass| pass.bytes),
        current_began_at: current.map(|pass| pass.began_at),
        current_bytes: current.map_or(0, |pass| pass.bytes),
    }
}

pub(super) async fn damage_status(
    lineage: &Lineage,
    stored: &LineageState,
    standing: &[Damage],
) -> Result<Vec<DamageStatus>> {
    let mut told = Vec::with_capacity(standing.len());
    for damage in standing {
        told.push(DamageStatus {
            kind: damage.fault.word(),
            object: damage.object.clone(),
            what: damage.what.clone(),
            found_at: damage.found_at,
            affects: affected(lineage, stored, damage).await?,
        });
    }
    Ok(told)
}
