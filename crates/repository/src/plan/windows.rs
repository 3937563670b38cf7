//! What can be restored: computed from what is stored and unbroken, never from what was configured
//! or received.

use std::collections::{BTreeMap, BTreeSet};

use borealis_base::{Branch, Position, RecordSpan, TimeStep, Timestamp};

use super::coverage::{Coverage, Leg, Stretch};
use super::settlement::{Settlement, settlements};
use super::{BaseBackupSummary, LineageState};

/// One end of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// The position.
    pub position: Position,
    /// The moment; `None` while none is settled within the window.
    pub time: Option<Timestamp>,
}

/// Everything between two positions of a branch, and between two moments, can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The branch. What it shares with an ancestor stands in the ancestor's window.
    pub branch: Branch,
    /// The first position and the first moment, both included. Without the time maps of the entries
    /// that [`steps_wanted`] names the moment may be up to one piece too late, never too early.
    pub earliest: Edge,
    /// The last position and the last moment, both included.
    pub latest: Edge,
    /// The last record a restore to `latest.position` replays.
    pub last_record: RecordSpan,
    /// The newest ledger entry of its log.
    pub last_entry: u64,
    /// Ledger entries of the base backups that serve it, oldest end first.
    pub base_backups: Vec<u64>,
}

/// Time maps by ledger entry.
pub type KnownSteps = BTreeMap<u64, Vec<TimeStep>>;

/// All windows, by branch and position.
pub fn windows(state: &LineageState) -> Vec<Window> {
    windows_with(state, &KnownSteps::new())
}

/// The pieces whose time maps make the earliest moments of [`windows_with`] exact.
pub fn steps_wanted(state: &LineageState) -> Vec<u64> {
    let holds = |window: &Window| {
        state.pieces.iter().find(move |piece| {
            piece.branch == window.branch
                && piece.settled_after.is_some()
                && piece.start <= window.earliest.position
                && window.earliest.position <= piece.end
        })
    };
    let entries: BTreeSet<u64> = windows(state)
        .iter()
        .filter_map(holds)
        .map(|piece| piece.entry)
        .collect();
    entries.into_iter().collect()
}

/// All windows, their earliest moments exact where `steps` holds the time map that tells.
pub fn windows_with(state: &LineageState, steps: &KnownSteps) -> Vec<Window> {
    let settled = settlements(state);
    let branches: BTreeSet<Branch> = state.pieces.iter().map(|piece| piece.branch).collect();
    let mut out = Vec::new();
    for branch in branches {
        let coverage = Coverage::of(state, branch);
        let own: Vec<&Settlement> = settled
            .iter()
            .filter(|settlement| settlement.branch == branch)
            .collect();
        for stretch in &coverage.stretches {
            out.extend(window(state, branch, &coverage, *stretch, &own, steps));
        }
    }
    out
}

/// The last record that ends within the stretch on the branch's own leg, and the newest entry.
fn last_record(coverage: &Coverage<'_>, own: Leg, stretch: Stretch) -> Option<(RecordSpan, u64)> {
    let pieces = || {
        coverage.pieces.iter().filter(move |(leg, piece)| {
            leg.branch == own.branch
                && piece.end.min(leg.to) > stretch.from
                && piece.start < stretch.to
        })
    };
    let record = pieces()
        .filter_map(|(_, piece)| piece.last_record)
        .filter(|record| {
            record.end <= stretch.to && record.end > own.from && record.start >= stretch.from
        })
        .max_by_key(|record| record.end)?;
    Some((
        record,
        pieces().map(|(_, piece)| piece.entry).max().unwrap_or(0),
    ))
}

fn window(
    state: &LineageState,
    branch: Branch,
    coverage: &Coverage<'_>,
    stretch: Stretch,
    own_settled: &[&Settlement],
    steps: &KnownSteps,
) -> Option<Window> {
    let own = coverage.leg_of(branch)?;
    let (last_record, last_entry) = last_record(coverage, own, stretch)?;
    let mut serving: Vec<&BaseBackupSummary> = state
        .base_backups
        .iter()
        .filter(|base| coverage.serves(base, state.log_unit, last_record.end))
        .filter(|base| stretch.from <= super::coverage::log_from(base, state.log_unit))
        .collect();
    serving.sort_by_key(|base| (base.end, base.entry));
    let first_end = serving.first()?.end;
    let within: Vec<&Settlement> = own_settled
        .iter()
        .copied()
        .filter(|settlement| {
            stretch.from < settlement.position && settlement.position <= stretch.to
        })
        .collect();
    let earliest = earliest_time(coverage, first_end, &within, steps);
    let latest = within.last().map(|settlement| settlement.high);
    // Moments are shown as a pair or not at all.
    let moments = earliest
        .zip(latest)
        .filter(|(earliest, latest)| earliest <= latest);
    Some(Window {
        branch,
        earliest: Edge {
            position: first_end.max(own.from),
            time: moments.map(|(earliest, _)| earliest),
        },
        latest: Edge {
            position: last_record.end,
            time: moments.map(|(_, latest)| latest),
        },
        last_record,
        last_entry,
        base_backups: serving.iter().map(|base| base.entry).collect(),
    })
}

/// The first moment of which it is certain that it stands at or behind `first_end`.
fn earliest_time(
    coverage: &Coverage<'_>,
    first_end: Position,
    settled: &[&Settlement],
    steps: &KnownSteps,
) -> Option<Timestamp> {
    settled.iter().find_map(|settlement| {
        if let Some(steps) = steps.get(&settlement.entry) {
            let index = steps.partition_point(|step| step.last_record.end < first_end);
            let before = match index.checked_sub(1) {
                Some(last) => steps.get(last).map(|step| step.settled_through),
                None if settlement.low.is_some() => settlement.low,
                None => steps.first().map(|step| step.settled_through),
            };
            return before
                .filter(|before| *before < settlement.high)
                .map(|before| before.plus_micros(1));
        }
        let lowest = match settlement.last_record {
            Some(record) => Some(record.end),
            None => first_possible(coverage, settlement),
        };
        let certain = lowest.is_some_and(|end| end >= first_end);
        settlement
            .low
            .filter(|_| certain)
            .map(|low| low.plus_micros(1))
    })
}

/// The end of the first record that a step of the settlement's piece can name: the last one that ends
/// at or before the piece's start.
fn first_possible(coverage: &Coverage<'_>, settlement: &Settlement) -> Option<Position> {
    let start = coverage
        .pieces
        .iter()
        .find(|(_, piece)| piece.entry == settlement.entry)?
        .1
        .start;
    let before = coverage
        .pieces
        .partition_point(|(leg, piece)| piece.start.max(leg.from) < start);
    coverage
        .pieces
        .get(..before)?
        .iter()
        .rev()
        .filter_map(|(_, piece)| piece.last_record)
        .map(|record| record.end)
        .find(|end| *end <= start)
}
