//! Which log pieces are to become one. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use borealis_base::{Branch, Position, Timestamp};

use crate::layout;
use crate::plan::resolve::STANDSTILL;
use crate::plan::{LineageState, PieceSummary, SettledSummary};

/// When a group of pieces is large enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of log in one object at most. 64 MiB: it is created with one request, held in memory with
    /// room to spare, and as large as anything that a restore gains from, which reads 16 MiB at a time.
    pub bytes: u64,
    /// Between the writing of the first piece and of the last one at most; so that log expires about as
    /// finely as people count.
    pub age: Duration,
    /// How old the first piece of the newest group is at least, to which more could come.
    pub wait: Duration,
    /// Ledger entries that a checkpoint repeats. No group crosses one, so that everything below it can
    /// be done.
    pub block: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            age: Duration::from_hours(1),
            wait: Duration::from_hours(1),
            block: layout::ENTRIES_PER_CHECKPOINT,
        }
    }
}

/// Pieces that follow each other, with the moments that were settled between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The pieces, in the order of the log and of the ledger.
    pub pieces: Vec<PieceSummary>,
    /// Moments settled behind one of them and before the next, in the order of the ledger.
    pub settled: Vec<SettledSummary>,
    branch: Branch,
    start: Position,
    end: Position,
    settled_after: Option<Timestamp>,
    recorded_first: Timestamp,
    recorded_last: Timestamp,
    /// No more is added.
    alone: bool,
}

impl Group {
    fn new(piece: &PieceSummary, alone: bool) -> Self {
        Self {
            pieces: vec![piece.clone()],
            settled: Vec::new(),
            branch: piece.branch,
            start: piece.start,
            end: piece.end,
            settled_after: piece.settled_after,
            recorded_first: piece.recorded_at,
            recorded_last: piece.recorded_at,
            alone,
        }
    }

    /// The first ledger entry.
    pub fn first_entry(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| piece.entry)
    }

    /// The last ledger entry.
    pub fn last_entry(&self) -> u64 {
        let piece = self.pieces.last().map_or(0, |piece| piece.entry);
        piece.max(self.settled.last().map_or(0, |settled| settled.entry))
    }

    /// The last moment that is settled with it.
    pub fn settled_after(&self) -> Option<Timestamp> {
        self.settled_after
    }

    /// Bytes of its objects.
    pub fn stored_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.stored_bytes).sum()
    }

    /// Whether an entry written at `recorded_at` as number `entry` is near enough.
    fn reaches(&self, entry: u64, recorded_at: Timestamp, limits: &Limits) -> bool {
        let block = |entry: u64| entry.saturating_sub(1) / limits.block;
        let apart =
            (recorded_at.since(self.recorded_first)).max(self.recorded_first.since(recorded_at));
        !self.alone && block(entry) == block(self.first_entry()) && apart < limits.age
    }

    fn takes(&self, piece: &PieceSummary, limits: &Limits) -> bool {
        self.branch == piece.branch
            && self.end == piece.start
            && self.settled_after == piece.settled_before
            && piece.end.since(self.start) <= limits.bytes
            && self.reaches(piece.entry, piece.recorded_at, limits)
    }

    fn takes_moment(&self, settled: &SettledSummary, limits: &Limits) -> bool {
        let end = settled.last_record.end;
        self.branch == settled.branch
            && self.start < end
            && end <= self.end
            && (self.settled_after).is_some_and(|after| after <= settled.through)
            && self.reaches(settled.entry, settled.recorded_at, limits)
    }

    /// Whether the source's clock stood still before a moment: of that a restore tells, so it must stay
    /// visible.
    fn stood_still(&self, recorded_at: Timestamp, through: Option<Timestamp>) -> bool {
        let (Some(before), Some(through)) = (self.settled_after, through) else {
            return false;
        };
        let passed = recorded_at.since(self.recorded_last);
        through > before && passed.saturating_sub(through.since(before)) > STANDSTILL
    }

    fn push(&mut self, piece: &PieceSummary) {
        self.end = piece.end;
        if piece.settled_after != self.settled_after {
            self.recorded_last = piece.recorded_at;
        }
        self.settled_after = piece.settled_after;
        self.pieces.push(piece.clone());
    }

    fn push_moment(&mut self, settled: &SettledSummary) {
        self.settled_after = Some(settled.through);
        self.recorded_last = settled.recorded_at;
        self.settled.push(settled.clone());
    }

    fn is_worth_it(&self) -> bool {
        self.pieces.len() > 1 || !self.settled.is_empty()
    }
}

/// What is to be merged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MergePlan {
    /// In the order of the ledger.
    pub groups: Vec<Group>,
    /// Up to this ledger entry there is nothing to merge but `groups`.
    pub clear_through: u64,
}

enum Event<'a> {
    Piece(&'a PieceSummary),
    Settled(&'a SettledSummary),
    /// A gap or the beginning of a branch.
    Break,
}

/// Plans merges. `now` is a clock's, and decides only how long the newest log waits for more; `skipped`
/// are the first entries of groups that can't be merged.
///
/// A group is a run of pieces and settled moments of one branch without anything between them in the ledger
/// that bears on what a moment means: then one time map says of each moment what the entries said.
pub fn plan_merges(
    state: &LineageState,
    limits: &Limits,
    skipped: &BTreeSet<u64>,
    now: Timestamp,
) -> MergePlan {
    let mut plan = MergePlan {
        groups: Vec::new(),
        clear_through: state.head,
    };
    let mut open: Option<Group> = None;
    let wanted = |group: &Group| group.is_worth_it() && !skipped.contains(&group.first_entry());
    let mut close = |open: &mut Option<Group>| plan.groups.extend(open.take().filter(wanted));
    let mut unread = None;
    for (entry, event) in events(state) {
        match event {
            // What comes behind is judged when it was read back.
            Event::Piece(piece) if entry > state.read_back && !state.is_withdrawn(piece) => {
                unread = Some(entry);
                break;
            }
            Event::Piece(piece) if !is_mergeable(state, piece) => close(&mut open),
            Event::Piece(piece) => {
                let still = (open.as_ref())
                    .is_some_and(|g| g.stood_still(piece.recorded_at, piece.settled_after));
                match &mut open {
                    Some(group) if !still && group.takes(piece, limits) => group.push(piece),
                    open => {
                        close(open);
                        *open = Some(Group::new(piece, still));
                    }
                }
            }
            Event::Settled(settled) => match &mut open {
                Some(group)
                    if group.takes_moment(settled, limits)
                        && !group.stood_still(settled.recorded_at, Some(settled.through)) =>
                {
                    group.push_moment(settled);
                }
                open => close(open),
            },
            Event::Break => close(&mut open),
        }
    }
    let reach = unread.unwrap_or(state.head + 1);
    match open {
        Some(group) if !is_complete(&group, limits, reach, now) => {
            plan.clear_through = group.first_entry().saturating_sub(1);
        }
        open => {
            plan.groups.extend(open.filter(wanted));
            plan.clear_through = reach.saturating_sub(1);
        }
    }
    plan
}

/// Whether nothing can be added to the last group: entries up to `reach` are known.
fn is_complete(group: &Group, limits: &Limits, reach: u64, now: Timestamp) -> bool {
    !group.reaches(reach, group.recorded_first, limits)
        || now.since(group.recorded_first) >= limits.wait
}

/// What is settled is merged unless a gap touches it.
fn is_mergeable(state: &LineageState, piece: &PieceSummary) -> bool {
    let touches = |gap: &crate::plan::GapSummary| {
        gap.branch == piece.branch && gap.from < piece.end && piece.start < gap.to
    };
    piece.merged.is_none() && !state.gaps.iter().any(touches)
}

/// Everything that bears on what a moment means, in the order of the ledger.
fn events(state: &LineageState) -> Vec<(u64, Event<'_>)> {
    let mut events: Vec<(u64, Event<'_>)> = Vec::new();
    events.extend((state.pieces.iter()).map(|piece| (piece.entry, Event::Piece(piece))));
    events.extend((state.settled.iter()).map(|settled| (settled.entry, Event::Settled(settled))));
    events.extend(state.gaps.iter().map(|gap| (gap.entry, Event::Break)));
    events.extend((state.branches.values()).map(|branch| (branch.entry, Event::Break)));
    events.sort_by_key(|(entry, _)| *entry);
    events
}
