//! A lineage's state, laid out so that many promises can be asked what they need of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use borealis_base::{Branch, Position, Timestamp};

use super::age::{Ages, newest_recorded};
use crate::plan::coverage::{Coverage, log_from};
use crate::plan::settlement::meeting;
use crate::plan::{BaseBackupSummary, LineageState, PieceSummary, Settlement, Window};
use crate::plan::{settlements, windows};

/// Pieces of one branch by position.
#[derive(Debug)]
pub(super) struct Line {
    /// Indexes into the state's pieces, by start and end.
    pub(super) order: Vec<usize>,
    starts: Vec<Position>,
    /// The furthest end up to here.
    reach: Vec<Position>,
    /// Stored bytes before here.
    bytes: Vec<u64>,
}

/// Pieces of one branch, as a range of its [`Line`].
pub(super) type Span = (Branch, Range<usize>);

/// What replay along one branch can use.
#[derive(Debug)]
pub(super) struct Path<'a> {
    pub(super) coverage: Coverage<'a>,
    /// Base backups whose pages are those of the path, by end and entry.
    pub(super) bases: Vec<&'a BaseBackupSummary>,
    /// The branch's own pieces, in the order of their entries.
    pub(super) own: Vec<&'a PieceSummary>,
}

/// The log that a settlement speaks of.
#[derive(Debug, Clone, Copy)]
struct SettledLog {
    /// Where it begins.
    start: Position,
    /// Where it must go on from what the settlement before it knew.
    known: Option<Position>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Index<'a> {
    pub(super) state: &'a LineageState,
    pub(super) lines: BTreeMap<Branch, Line>,
    pub(super) paths: BTreeMap<Branch, Path<'a>>,
    pub(super) settlements: Vec<Settlement>,
    pub(super) ages: Ages,
    /// The window of the newest log.
    pub(super) newest: Option<Window>,
    pub(super) newest_recorded: Option<Timestamp>,
    /// Of each settlement, by its number.
    log: Vec<SettledLog>,
}

impl Line {
    fn of(pieces: &[PieceSummary], mut order: Vec<usize>) -> Self {
        let piece = |index: &usize| pieces.get(*index);
        order.sort_by_key(|index| piece(index).map(|it| (it.start, it.end, it.entry)));
        let (mut far, mut sum) = (Position::ZERO, 0_u64);
        let mut line = Self {
            starts: Vec::with_capacity(order.len()),
            reach: Vec::with_capacity(order.len()),
            bytes: Vec::with_capacity(order.len() + 1),
            order: Vec::new(),
        };
        line.bytes.push(0);
        for piece in order.iter().filter_map(piece) {
            far = far.max(piece.end);
            sum = sum.saturating_add(piece.stored_bytes);
            line.starts.push(piece.start);
            line.reach.push(far);
            line.bytes.push(sum);
        }
        line.order = order;
        line
    }

    /// The pieces that reach into `[from, to)`.
    fn within(&self, from: Position, to: Position) -> Range<usize> {
        let begin = self.reach.partition_point(|reach| *reach <= from);
        let end = self.starts.partition_point(|start| *start < to);
        begin..end.max(begin)
    }

    /// Stored bytes of a range.
    pub(super) fn bytes_of(&self, range: &Range<usize>) -> u64 {
        let at = |index: usize| self.bytes.get(index).copied().unwrap_or(0);
        at(range.end).saturating_sub(at(range.start))
    }
}

impl<'a> Path<'a> {
    fn of(state: &'a LineageState, branch: Branch) -> Self {
        let coverage = Coverage::of(state, branch);
        let on_path = |base: &&BaseBackupSummary| {
            (coverage.leg_of(base.branch)).is_some_and(|leg| base.end <= leg.to)
        };
        let mut bases: Vec<_> = state.base_backups.iter().filter(on_path).collect();
        bases.sort_by_key(|base| (base.end, base.entry));
        let mut own: Vec<_> = (state.pieces.iter())
            .filter(|piece| piece.branch == branch)
            .collect();
        own.sort_by_key(|piece| piece.entry);
        Self {
            coverage,
            bases,
            own,
        }
    }

    /// The newest base backup that can be restored to `target`.
    pub(super) fn serving(&self, log_unit: u64, target: Position) -> Option<&'a BaseBackupSummary> {
        let ended = self.bases.partition_point(|base| base.end <= target);
        let ended = self.bases.get(..ended).unwrap_or_default();
        (ended.iter().rev().copied()).find(|base| self.coverage.serves(base, log_unit, target))
    }

    /// The stretches that hold some of `[from, to)`, or `from` itself where that is empty.
    pub(super) fn stretches(&self, from: Position, to: Position) -> Range<usize> {
        let all = &self.coverage.stretches;
        if from >= to {
            let begin = all.partition_point(|stretch| stretch.to < from);
            let end = all.partition_point(|stretch| stretch.from <= from);
            return begin..end.max(begin);
        }
        let begin = all.partition_point(|stretch| stretch.to <= from);
        let end = all.partition_point(|stretch| stretch.from < to);
        begin..end.max(begin)
    }

    /// The end of the last record that is known to end at or before `position`.
    pub(super) fn record_before(&self, position: Position) -> Option<Position> {
        let pieces = &self.coverage.pieces;
        let begun = pieces.partition_point(|(leg, piece)| piece.start.max(leg.from) < position);
        (pieces.get(..begun).unwrap_or_default().iter().rev())
            .filter_map(|(leg, piece)| Some((leg, piece.last_record?.end)))
            .find(|(leg, end)| *end <= position && *end <= leg.to)
            .map(|(_, end)| end)
    }
}

impl<'a> Index<'a> {
    /// The index of `state`, of the branches that it knows and of `more`.
    pub(super) fn of(state: &'a LineageState, more: impl IntoIterator<Item = Branch>) -> Self {
        let mut by_branch: BTreeMap<Branch, Vec<usize>> = BTreeMap::new();
        for (index, piece) in state.pieces.iter().enumerate() {
            by_branch.entry(piece.branch).or_default().push(index);
        }
        let branches: BTreeSet<Branch> = (by_branch.keys().copied())
            .chain(state.settled.iter().map(|settled| settled.branch))
            .chain(state.pins.iter().map(|pin| pin.branch))
            .chain(more)
            .collect();
        let all = settlements(state);
        Self {
            state,
            lines: (by_branch.into_iter())
                .map(|(branch, order)| (branch, Line::of(&state.pieces, order)))
                .collect(),
            paths: (branches.into_iter())
                .map(|branch| (branch, Path::of(state, branch)))
                .collect(),
            log: settled_log(state, &all),
            settlements: all,
            ages: Ages::of(state),
            newest: (windows(state).into_iter()).max_by_key(|window| window.last_entry),
            newest_recorded: newest_recorded(state),
        }
    }

    /// Where replay from `base` begins.
    pub(super) fn log_from(&self, base: &BaseBackupSummary) -> Position {
        log_from(base, self.state.log_unit)
    }

    /// The pieces of the path of `branch` that reach into `[from, to)`.
    pub(super) fn spans(&self, branch: Branch, from: Position, to: Position) -> Vec<Span> {
        let Some(path) = self.paths.get(&branch) else {
            return Vec::new();
        };
        let legs = path.coverage.legs.iter();
        legs.filter_map(|leg| {
            let (from, to) = (from.max(leg.from), to.min(leg.to));
            let line = self.lines.get(&leg.branch).filter(|_| from < to)?;
            let range = line.within(from, to);
            (!range.is_empty()).then_some((leg.branch, range))
        })
        .collect()
    }

    /// The piece at `index` of a branch's line.
    pub(super) fn piece(&self, line: &Line, index: usize) -> Option<&'a PieceSummary> {
        self.state.pieces.get(*line.order.get(index)?)
    }

    /// The piece of `entry`, if it is one, with those that overlap it.
    pub(super) fn piece_of(&self, entry: u64) -> Option<Span> {
        let pieces = &self.state.pieces;
        let at = pieces.partition_point(|piece| piece.entry < entry);
        let piece = pieces.get(at).filter(|piece| piece.entry == entry)?;
        let range = (self.lines.get(&piece.branch)?).within(piece.start, piece.end);
        Some((piece.branch, range))
    }

    /// Settlements of entries `first` to `last`, by number.
    pub(super) fn settled(&self, first: u64, last: u64) -> Range<usize> {
        let begin = self.settlements.partition_point(|it| it.entry < first);
        let end = self.settlements.partition_point(|it| it.entry <= last);
        begin..end.max(begin)
    }

    /// The entry that settles `moment`; `None` where it is not settled.
    pub(super) fn entry_of(&self, moment: Timestamp) -> Option<u64> {
        let index = self.settlements.partition_point(|it| it.high < moment);
        self.settlements.get(index).map(|it| it.entry)
    }

    /// Settlement `number` with where its log begins.
    pub(super) fn settlement(&self, number: usize) -> Option<(Position, &Settlement)> {
        Some((self.log.get(number)?.start, self.settlements.get(number)?))
    }

    /// The log that settlement `number` must follow on for its first moments to have a meaning, from where
    /// on; with the settlement before it.
    pub(super) fn follows(&self, number: usize) -> Option<(Position, &Settlement)> {
        let before = self.settlements.get(number.checked_sub(1)?)?;
        Some((self.log.get(number)?.known?, before))
    }
}

fn settled_log(state: &LineageState, all: &[Settlement]) -> Vec<SettledLog> {
    let mut shared: BTreeMap<(Branch, Branch), Option<Position>> = BTreeMap::new();
    let mut before: Option<&Settlement> = None;
    let start = |it: &Settlement| {
        let at = state.pieces.partition_point(|piece| piece.entry < it.entry);
        let own = (state.pieces.get(at)).filter(|piece| piece.entry == it.entry);
        own.map_or(it.position, |piece| piece.start)
    };
    let mut limit = |it: &Settlement, last: &Settlement| {
        if last.branch == it.branch {
            return Some(last.position);
        }
        let meet = || meeting(state, it.branch, last.branch, Position(u64::MAX));
        let meets = *shared.entry((it.branch, last.branch)).or_insert_with(meet);
        Some(meets?.min(last.position))
    };
    (all.iter())
        .map(|it| {
            let start = start(it);
            let last = before.replace(it).filter(|_| it.low.is_some());
            SettledLog {
                start,
                known: last
                    .and_then(|last| limit(it, last))
                    .map(|known| known.min(start)),
            }
        })
        .collect()
}
