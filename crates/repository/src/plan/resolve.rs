//! From what a person asks for to the last record to replay.
//!
//! The rules are pure and in two steps, because the time map of a piece and the boundaries of its
//! records are in the store: [`locate`] says what must be looked up, the search it returns finishes
//! with the answer. [`resolve`] does both through a [`Lookup`].

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{Branch, ErrorKind, Position, RecordSpan, TimeStep, Timestamp};

use super::coverage::{Coverage, Leg};
use super::restore::plan_to;
use super::settlement::{Settlement, settlements};
use super::windows::{Window, windows};
use super::{LineageState, PieceSummary};
use crate::log::time_map::{check_steps, step_for};

/// By how much the writer's clock may run ahead of settled moments before it is reported that the
/// source's clock stood still or was set back.
pub(crate) const STANDSTILL: Duration = Duration::from_mins(1);

/// What a person asks to restore to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The state just before the first transaction end after this moment.
    Time(Timestamp),
    /// Every record whose end is at or before this position, on a branch or on the newest one.
    Position(Position, Option<Branch>),
    /// Everything there is.
    Latest,
    /// The pin of this name.
    Pin(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "{time}"),
            Self::Position(position, None) => write!(f, "position {position}"),
            Self::Position(position, Some(branch)) => {
                write!(f, "position {position} of branch {branch}")
            }
            Self::Latest => f.write_str("the latest position"),
            Self::Pin(name) => write!(f, "snapshot `{name}`"),
        }
    }
}

/// Something a person should know about a resolved target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A transaction ended at exactly the moment asked for; it is included.
    ExactlyATransactionEnd(Timestamp),
    /// The source's clock showed no later moment for long: it stood still or was set back, and
    /// all that was logged meanwhile counts as before the moment asked for.
    ClockStoodStill {
        /// The moment it did not pass.
        at: Timestamp,
        /// For how long, by the writer's clock.
        duration: Duration,
    },
    /// Log newer than this target is stored, which no base backup reaches yet.
    NewerLogNotRestorable {
        /// Its branch.
        branch: Branch,
        /// How far it goes.
        through: Position,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExactlyATransactionEnd(time) => {
                write!(f, "a transaction ended at exactly {time}; it is included")
            }
            Self::ClockStoodStill { at, duration } => write!(
                f,
                "the source's clock did not pass {at} for {}; it may have been set back, and what was logged meanwhile is included",
                borealis_base::show_duration(*duration)
            ),
            Self::NewerLogNotRestorable { branch, through } => write!(
                f,
                "log of branch {branch} is stored through {through}, but no base backup reaches it yet"
            ),
        }
    }
}

/// A target, resolved to the last record a restore replays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedTarget {
    /// The branch to recover along.
    pub branch: Branch,
    /// The last record to replay; it may lie before the fork, on an ancestor.
    pub last_record: RecordSpan,
    /// The moment this stands for, where it is known.
    pub time: Option<Timestamp>,
    /// How the target was resolved, for people.
    pub how: String,
    /// What else to know.
    pub notices: Vec<Notice>,
}

/// Why a target cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It lies outside of all windows.
    #[error("{target} cannot be restored: {why}")]
    OutsideWindow {
        /// What was asked for.
        target: Target,
        /// On which side, or why.
        why: String,
        /// What can be restored.
        windows: Vec<Window>,
    },
    /// There is no pin of this name.
    #[error("snapshot `{0}` does not exist")]
    NoSuchPin(String),
    /// What was looked up contradicts the ledger.
    #[error("ledger entry {entry} contradicts itself: {what}")]
    Contradiction {
        /// The entry.
        entry: u64,
        /// In what.
        what: String,
    },
    /// What had to be looked up could not be.
    #[error(transparent)]
    Repository(#[from] crate::Error),
}

impl PlanError {
    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OutsideWindow { .. } => ErrorKind::Refused,
            Self::NoSuchPin(_) => ErrorKind::NotFound,
            Self::Contradiction { .. } => ErrorKind::Damaged,
            Self::Repository(error) => error.kind(),
        }
    }

    /// A sentence that helps.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::OutsideWindow { windows, .. } if windows.is_empty() => Some(
                "Nothing can be restored yet: no base backup with the log up to its end is stored."
                    .to_owned(),
            ),
            Self::OutsideWindow { windows, .. } => {
                let lines: Vec<String> = windows.iter().map(show_window).collect();
                Some(format!("What can be restored: {}.", lines.join("; ")))
            }
            Self::Repository(error) => error.hint(),
            _ => None,
        }
    }
}

fn show_window(window: &Window) -> String {
    let positions = format!(
        "{} to {} on branch {}",
        window.earliest.position, window.latest.position, window.branch
    );
    match (window.earliest.time, window.latest.time) {
        (Some(earliest), Some(latest)) => format!("{earliest} to {latest} ({positions})"),
        _ => positions,
    }
}

/// What [`locate`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// The answer.
    Resolved(ResolvedTarget),
    /// The time map of a piece is needed.
    Steps(StepSearch),
    /// A record boundary within a piece is needed.
    Records(RecordSearch),
}

/// A moment that the time map of one piece resolves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSearch {
    /// The ledger entry of the piece.
    pub entry: u64,
    time: Timestamp,
    settlement: Settlement,
    notices: Vec<Notice>,
}

/// A position that lies within a piece before its last record ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSearch {
    /// The branch to read along.
    pub branch: Branch,
    /// Where a parser can begin.
    pub from: Position,
    /// The record wanted is the last one whose end is at or before this.
    pub through: Position,
    asked: Target,
    entry: u64,
    before: Option<RecordSpan>,
}

/// Looks up what the ledger's summaries do not hold.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// The time map of the piece of ledger entry `entry`.
    async fn time_steps(&self, entry: u64) -> crate::Result<Vec<TimeStep>>;

    /// The last record that starts at or after `from` and ends at or before `through`, reading the log
    /// along `branch`; `None` if there is none.
    async fn last_record(
        &self,
        branch: Branch,
        from: Position,
        through: Position,
    ) -> crate::Result<Option<RecordSpan>>;
}

/// Resolves `target`, and proves that it can be restored.
pub async fn resolve(
    state: &LineageState,
    target: &Target,
    lookup: &dyn Lookup,
) -> Result<ResolvedTarget, PlanError> {
    match locate(state, target)? {
        Located::Resolved(resolved) => Ok(resolved),
        Located::Steps(search) => {
            let steps = lookup.time_steps(search.entry).await?;
            search.finish(state, &steps)
        }
        Located::Records(search) => {
            let found = lookup
                .last_record(search.branch, search.from, search.through)
                .await?;
            search.finish(state, found)
        }
    }
}

/// Resolves `target` as far as the summaries tell.
pub fn locate(state: &LineageState, target: &Target) -> Result<Located, PlanError> {
    match target {
        Target::Time(time) => locate_time(state, *time),
        Target::Position(position, branch) => locate_position(state, target, *position, *branch),
        Target::Latest => latest(state).map(Located::Resolved),
        Target::Pin(name) => {
            let pin = state.pins.iter().find(|pin| pin.name == *name);
            let pin = pin.ok_or_else(|| PlanError::NoSuchPin(name.clone()))?;
            let resolved = ResolvedTarget {
                branch: pin.branch,
                last_record: pin.last_record,
                time: pin.time,
                how: format!(
                    "snapshot `{name}` stands behind the record {}",
                    show(pin.last_record)
                ),
                notices: Vec::new(),
            };
            admit(state, target, resolved).map(Located::Resolved)
        }
    }
}

fn show(record: RecordSpan) -> String {
    format!("{} to {}", record.start, record.end)
}

fn outside(state: &LineageState, target: &Target, why: impl Into<String>) -> PlanError {
    PlanError::OutsideWindow {
        target: target.clone(),
        why: why.into(),
        windows: windows(state),
    }
}

/// A resolved target is an answer only if a restore reaches it.
fn admit(
    state: &LineageState,
    target: &Target,
    resolved: ResolvedTarget,
) -> Result<ResolvedTarget, PlanError> {
    if plan_to(state, resolved.branch, resolved.last_record).is_some() {
        return Ok(resolved);
    }
    Err(outside(
        state,
        target,
        format!(
            "it stands behind the record {} of branch {}, which no base backup with unbroken log reaches",
            show(resolved.last_record),
            resolved.branch
        ),
    ))
}

fn locate_time(state: &LineageState, time: Timestamp) -> Result<Located, PlanError> {
    let target = Target::Time(time);
    let all = settlements(state);
    let index = all.partition_point(|settlement| settlement.high < time);
    let Some(settlement) = all.get(index) else {
        let why = match all.last() {
            Some(last) => format!("the latest settled moment is {}", last.high),
            None => "no moment is settled yet".to_owned(),
        };
        return Err(outside(state, &target, why));
    };
    let before = index.checked_sub(1).and_then(|before| all.get(before));
    let notices = standstill(before, settlement);
    let search = StepSearch {
        entry: settlement.entry,
        time,
        settlement: settlement.clone(),
        notices,
    };
    match settlement.last_record {
        None => Ok(Located::Steps(search)),
        Some(last_record) => {
            let step = TimeStep {
                settled_through: settlement.high,
                last_record,
            };
            search.finish(state, &[step]).map(Located::Resolved)
        }
    }
}

fn standstill(before: Option<&Settlement>, settlement: &Settlement) -> Vec<Notice> {
    let (Some(before), Some(low)) = (before, settlement.low) else {
        return Vec::new();
    };
    let passed = settlement.recorded_at.since(before.recorded_at);
    let advanced = settlement.high.since(low);
    match passed.checked_sub(advanced) {
        Some(duration) if duration > STANDSTILL => {
            vec![Notice::ClockStoodStill { at: low, duration }]
        }
        _ => Vec::new(),
    }
}

impl StepSearch {
    /// Resolves the moment with the time map of [`Self::entry`].
    pub fn finish(
        self,
        state: &LineageState,
        steps: &[TimeStep],
    ) -> Result<ResolvedTarget, PlanError> {
        let target = Target::Time(self.time);
        let contradiction = |what: String| PlanError::Contradiction {
            entry: self.entry,
            what,
        };
        check_steps(steps).map_err(|error| contradiction(error.to_string()))?;
        if steps.last().map(|step| step.settled_through) != Some(self.settlement.high) {
            return Err(contradiction(
                "its time map does not end where it says".to_owned(),
            ));
        }
        let Some((index, step)) = step_for(steps, self.time) else {
            return Err(contradiction(
                "its time map does not reach the moment".to_owned(),
            ));
        };
        let before = match index.checked_sub(1).and_then(|before| steps.get(before)) {
            Some(before) => before
                .settled_through
                .max(self.settlement.low.unwrap_or(Timestamp::MIN)),
            None => self.settlement.low.ok_or_else(|| {
                let resumes = step.settled_through.plus_micros(1);
                outside(
                    state,
                    &target,
                    format!("the log before it is not stored; moments are known from {resumes} on"),
                )
            })?,
        };
        let mut notices = self.notices;
        if before.plus_micros(1) == self.time {
            notices.push(Notice::ExactlyATransactionEnd(self.time));
        }
        let resolved = ResolvedTarget {
            branch: self.settlement.branch,
            last_record: step.last_record,
            time: Some(self.time),
            how: format!(
                "no transaction that ends later than {} lies at or before the record {}, the last one replayed (ledger entry {})",
                self.time,
                show(step.last_record),
                self.entry
            ),
            notices,
        };
        admit(state, &target, resolved)
    }
}

/// The branch of the newest log.
pub fn newest_branch(state: &LineageState) -> Option<Branch> {
    state
        .pieces
        .iter()
        .max_by_key(|piece| piece.entry)
        .map(|piece| piece.branch)
}

fn by_position(branch: Branch, asked: Position, last_record: RecordSpan) -> ResolvedTarget {
    ResolvedTarget {
        branch,
        last_record,
        time: None,
        how: format!(
            "the last record that ends at or before {asked} is {}",
            show(last_record)
        ),
        notices: Vec::new(),
    }
}

fn locate_position(
    state: &LineageState,
    target: &Target,
    position: Position,
    branch: Option<Branch>,
) -> Result<Located, PlanError> {
    let branch = branch.or_else(|| newest_branch(state));
    let branch = branch.ok_or_else(|| outside(state, target, "no log is stored yet"))?;
    let coverage = Coverage::of(state, branch);
    if coverage.spanning(position, position).is_none() {
        return Err(outside(
            state,
            target,
            format!("no log of branch {branch} is stored there"),
        ));
    }
    let begun = coverage
        .pieces
        .partition_point(|(leg, piece)| piece.start.max(leg.from) < position);
    let mut earlier = coverage
        .pieces
        .get(..begun)
        .unwrap_or_default()
        .iter()
        .rev();
    let ends_before = |piece: &PieceSummary, limit: Position| {
        piece.last_record.filter(|record| record.end <= limit)
    };
    while let Some((leg, piece)) = earlier.next() {
        let limit = position.min(leg.to);
        if let Some(record) = ends_before(piece, limit) {
            let resolved = by_position(branch, position, record);
            return admit(state, target, resolved).map(Located::Resolved);
        }
        if piece.last_record.is_some() {
            let before = earlier
                .clone()
                .find_map(|(leg, piece)| ends_before(piece, limit.min(leg.to)));
            let from = parse_from(&coverage, *leg, piece);
            let asked = target.clone();
            let search = RecordSearch {
                branch,
                from,
                through: limit,
                asked,
                entry: piece.entry,
                before,
            };
            return Ok(Located::Records(search));
        }
    }
    Err(outside(
        state,
        target,
        "no record ends at or before it in the log that is stored",
    ))
}

/// Where a parser can begin to read the records that end in `piece`.
fn parse_from(coverage: &Coverage<'_>, leg: Leg, piece: &PieceSummary) -> Position {
    let start = piece.start.max(leg.from);
    let before = coverage
        .pieces
        .iter()
        .find(|(leg, other)| other.end.min(leg.to) == start && other.end == start);
    before.map_or(start, |(_, other)| other.resume_at)
}

impl RecordSearch {
    /// Resolves the position with the last record found in `[from, through]`.
    pub fn finish(
        self,
        state: &LineageState,
        found: Option<RecordSpan>,
    ) -> Result<ResolvedTarget, PlanError> {
        let Some(record) = found.or(self.before) else {
            return Err(outside(
                state,
                &self.asked,
                "no record ends at or before it in the log that is stored",
            ));
        };
        if record.end > self.through {
            let what = format!("record {} ends behind {}", show(record), self.through);
            return Err(PlanError::Contradiction {
                entry: self.entry,
                what,
            });
        }
        admit(
            state,
            &self.asked,
            by_position(self.branch, self.through, record),
        )
    }
}

fn latest(state: &LineageState) -> Result<ResolvedTarget, PlanError> {
    let newest = windows(state)
        .into_iter()
        .max_by_key(|window| window.last_entry);
    let Some(window) = newest else {
        return Err(outside(
            state,
            &Target::Latest,
            "there is no base backup with the log up to its end",
        ));
    };
    let unreachable = state
        .pieces
        .iter()
        .filter(|piece| piece.entry > window.last_entry)
        .max_by_key(|piece| piece.entry);
    let notices = unreachable
        .map(|piece| Notice::NewerLogNotRestorable {
            branch: piece.branch,
            through: piece.end,
        })
        .into_iter()
        .collect();
    let resolved = ResolvedTarget {
        branch: window.branch,
        last_record: window.last_record,
        time: window.latest.time,
        how: format!(
            "the last whole record stored is {}",
            show(window.last_record)
        ),
        notices,
    };
    admit(state, &Target::Latest, resolved)
}
