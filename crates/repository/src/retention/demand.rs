//! What each promise needs of what is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use borealis_base::{Branch, Position, Timestamp};

use super::age::RECORDED_STEP_MAX;
use super::index::{Index, Span};
use super::terms::{HoldRange, Promise, Standing, Terms};
use crate::plan::BaseBackupSummary;
use crate::plan::coverage::Stretch;

/// What one promise holds.
#[derive(Debug)]
pub(super) struct Demand {
    pub(super) promise: Promise,
    /// Base backups, by entry.
    pub(super) bases: BTreeSet<u64>,
    /// Log.
    pub(super) log: Vec<Span>,
    /// Settled moments without log, by the entries that they lie between.
    pub(super) settled: Vec<RangeInclusive<u64>>,
    /// Names, by the entries that they lie between.
    pub(super) names: Option<RangeInclusive<u64>>,
    /// The unfinished base backup.
    pub(super) partial: bool,
}

/// Records that must stay restorable, on one unbroken stretch of one branch's path.
struct Group {
    stretch: Stretch,
    low: Position,
    high: Position,
}

/// Makes the demands of a lineage's promises.
pub(super) struct Demands<'a> {
    pub(super) index: &'a Index<'a>,
    pub(super) terms: &'a Terms,
    pub(super) now: Timestamp,
}

impl Demands<'_> {
    /// The demands as they are `ahead` of now, if backing up goes on meanwhile.
    pub(super) fn after(&self, ahead: Duration) -> Vec<Demand> {
        let policy = &self.terms.policy;
        let days = policy.retention;
        let mut all = vec![self.recent(Promise::Window { days }, days.duration(), ahead)];
        if !policy.backtrack.is_zero() {
            let seconds = policy.backtrack.as_secs();
            all.push(self.recent(Promise::Backtrack { seconds }, policy.backtrack, ahead));
        }
        let lasting = match self.terms.standing {
            // What comes meanwhile takes its place.
            Standing::Growing => ahead <= days.duration(),
            Standing::Ended { replaced, .. } => !replaced,
        };
        if lasting {
            all.push(self.latest());
        }
        for pin in &self.index.state.pins {
            let name = pin.name.clone();
            all.push(self.to(Promise::Snapshot { name }, pin.branch, pin.last_record.end));
        }
        let present = self.present().plus(ahead);
        for hold in self.terms.holds.iter().filter(|it| it.stands(present)) {
            let name = hold.name.clone();
            let (first, last) = match hold.range {
                HoldRange::Everything => (0, u64::MAX),
                HoldRange::Moments(from, to) => (
                    self.index.entry_of(from).unwrap_or(u64::MAX),
                    self.index.entry_of(to).unwrap_or(u64::MAX),
                ),
            };
            all.push(self.range(Promise::Hold { name }, first, last));
        }
        for child in &self.terms.children {
            let lineage = child.lineage;
            all.push(self.to(Promise::Child { lineage }, child.branch, child.at));
        }
        if lasting {
            all.push(self.young());
        }
        all
    }

    /// What is believed to be the present of holds. While a lineage grows its ledger must show it, too.
    fn present(&self) -> Timestamp {
        match (self.terms.standing, self.index.newest_recorded) {
            (Standing::Growing, Some(shown)) => self.now.min(shown.plus(RECORDED_STEP_MAX)),
            _ => self.now,
        }
    }

    /// Any moment of the last `length`. What is recent is told by both clocks, the source's and the writer's,
    /// and whatever either calls recent is.
    fn recent(&self, promise: Promise, length: Duration, ahead: Duration) -> Demand {
        let past = match self.terms.standing {
            Standing::Growing => length.checked_sub(ahead),
            Standing::Ended { ago, .. } => (ago.saturating_add(ahead) < length).then_some(length),
        };
        let Some(past) = past else {
            return Demand::nothing(promise);
        };
        let newest = self.index.settlements.last().map(|last| last.high);
        let settled = newest
            .and_then(|newest| self.index.entry_of(newest.min(self.now).minus(past)))
            .unwrap_or(u64::MAX);
        let recorded = self.index.ages.first_within(past);
        self.range(promise, settled.min(recorded), u64::MAX)
    }

    /// The latest state that can be restored, and what the next base backup goes on from.
    fn latest(&self) -> Demand {
        let Some(window) = &self.index.newest else {
            return Demand::nothing(Promise::Latest);
        };
        let (branch, end) = (window.branch, window.last_record.end);
        let path = self.index.paths.get(&branch);
        // Log behind the last whole record is what the next piece goes on from.
        let through = path
            .and_then(|path| path.coverage.spanning(end, end))
            .map_or(end, |stretch| stretch.to);
        let mut demand = self.reaching(Promise::Latest, branch, end, through);
        let first = self.first_entry(&demand.log).unwrap_or(u64::MAX);
        demand.settled.push(first..=u64::MAX);
        demand.names = Some(self.names(first, u64::MAX));
        if self.terms.standing == Standing::Growing {
            let newest = self.index.state.base_backups.iter().map(|base| base.entry);
            demand.bases.extend(newest.max());
        }
        demand
    }

    /// What is newer than all that can be restored: a base backup of it may be on its way.
    fn young(&self) -> Demand {
        let state = self.index.state;
        let known = (self.index.newest.as_ref()).map_or(0, |window| window.last_entry);
        let mut demand = Demand::nothing(Promise::Young);
        demand.partial = true;
        demand.settled.push(known + 1..=u64::MAX);
        demand.names = Some(known + 1..=u64::MAX);
        let bases = state.base_backups.iter().map(|base| base.entry);
        demand.bases.extend(bases.filter(|entry| *entry > known));
        let mut ranges: BTreeMap<Branch, (Position, Position)> = BTreeMap::new();
        for piece in state.pieces.iter().filter(|piece| piece.entry > known) {
            let range = (ranges.entry(piece.branch)).or_insert((piece.start, piece.end));
            *range = (range.0.min(piece.start), range.1.max(piece.end));
        }
        for (branch, (from, to)) in ranges {
            demand.log.extend(self.index.spans(branch, from, to));
        }
        demand
    }

    /// One position.
    fn to(&self, promise: Promise, branch: Branch, target: Position) -> Demand {
        self.reaching(promise, branch, target, target)
    }

    fn reaching(
        &self,
        promise: Promise,
        branch: Branch,
        target: Position,
        through: Position,
    ) -> Demand {
        let mut demand = Demand::nothing(promise);
        let unit = self.index.state.log_unit;
        let path = self.index.paths.get(&branch);
        if let Some(base) = path.and_then(|path| path.serving(unit, target)) {
            demand.bases.insert(base.entry);
            let from = self.index.log_from(base);
            demand.log = self.index.spans(branch, from, through);
        }
        demand
    }

    /// Everything that entries `first` to `last` made restorable.
    fn range(&self, promise: Promise, first: u64, last: u64) -> Demand {
        let mut demand = Demand::nothing(promise);
        if first > last {
            return demand;
        }
        demand.settled.push(first..=last);
        for (branch, number) in self.groups(first, last) {
            self.group(&mut demand, branch, &number, first, last);
        }
        let from = (self.first_entry(&demand.log)).map_or(first, |entry| entry.min(first));
        demand.names = Some(self.names(from, last));
        demand
    }

    fn groups(&self, first: u64, last: u64) -> Vec<(Branch, Group)> {
        let mut groups: BTreeMap<(Branch, usize), Group> = BTreeMap::new();
        for (branch, path) in &self.index.paths {
            let mut add = |from: Position, to: Position| {
                for number in path.stretches(from, to) {
                    let Some(stretch) = path.coverage.stretches.get(number).copied() else {
                        continue;
                    };
                    let (low, high) = (from.max(stretch.from), to.min(stretch.to).max(from));
                    let group =
                        (groups.entry((*branch, number))).or_insert(Group { stretch, low, high });
                    (group.low, group.high) = (group.low.min(low), group.high.max(high));
                }
            };
            let begin = path.own.partition_point(|piece| piece.entry < first);
            let end = path.own.partition_point(|piece| piece.entry <= last);
            for piece in path.own.get(begin..end).unwrap_or_default() {
                add(piece.start, piece.end);
            }
            let settled = self.index.state.settled.iter().filter(|settled| {
                settled.branch == *branch && (first..=last).contains(&settled.entry)
            });
            for settled in settled {
                add(settled.last_record.end, settled.last_record.end);
            }
        }
        (groups.into_iter())
            .map(|((branch, _), group)| (branch, group))
            .collect()
    }

    /// Adds what the records of one group need: base backups, their log, and the log before it by which the
    /// first of their moments got its meaning.
    fn group(&self, demand: &mut Demand, branch: Branch, group: &Group, first: u64, last: u64) {
        let Some(path) = self.index.paths.get(&branch) else {
            return;
        };
        let stretch = group.stretch;
        // The first moment of a piece can stand at the record before the piece.
        let record = path.record_before(group.low);
        let lowest = record.map_or(stretch.from, |end| end.max(stretch.from));
        let holds =
            |base: &BaseBackupSummary, to: Position| stretch.spans(self.index.log_from(base), to);
        let ended = path.bases.partition_point(|base| base.end <= lowest);
        let (before, behind) = path.bases.split_at(ended);
        // It can even lie before a break that was declared later.
        if let Some(record) = record.filter(|record| *record <= stretch.from)
            && let Some(base) = path.serving(self.index.state.log_unit, record)
        {
            demand.bases.insert(base.entry);
            let spans = self.index.spans(branch, self.index.log_from(base), record);
            demand.log.extend(spans);
        }
        let older = (before.iter().rev()).find(|base| holds(base, lowest));
        let within = (behind.iter())
            .take_while(|base| base.end <= group.high)
            .filter(|base| holds(base, base.end));
        let bases: Vec<_> = older.into_iter().chain(within).collect();
        let Some(begin) = bases.iter().map(|base| self.index.log_from(base)).min() else {
            return;
        };
        let reachable =
            older.map_or_else(|| bases.iter().map(|base| base.end).min(), |_| Some(lowest));
        demand.bases.extend(bases.iter().map(|base| base.entry));
        let fork = path
            .coverage
            .leg_of(branch)
            .map_or(Position(u64::MAX), |leg| leg.from);
        let straddles = |number: usize| {
            (self.index.settlement(number.saturating_sub(1))).is_some_and(|(start, _)| start < fork)
        };
        let mut from = begin;
        let mut earlier = Vec::new();
        for number in self.index.settled(first, last) {
            let Some((start, settlement)) = self.index.settlement(number) else {
                continue;
            };
            let here = settlement.branch == branch
                && Some(settlement.position) >= reachable
                && start <= stretch.to
                && stretch.from <= settlement.position;
            if !here {
                continue;
            }
            // Its piece can lie below where the branch begins, where the log is another branch's.
            if start < fork {
                demand.log.extend(self.index.piece_of(settlement.entry));
            }
            if let Some((known, before)) = self.index.follows(number) {
                from = from.min(known);
                let surely =
                    before.branch == branch && before.position > begin && !straddles(number);
                if !surely || before.entry < first {
                    earlier.push((before, straddles(number)));
                }
            }
        }
        demand
            .log
            .extend(self.index.spans(branch, from, group.high));
        // The settlement before each must stay as it is; most lie within what was just added.
        for (before, straddling) in earlier {
            let inside = before.branch == branch && before.position > from && !straddling;
            // Only a settlement that is a piece goes with the log.
            if !inside || before.last_record.is_some() {
                demand.settled.push(before.entry..=before.entry);
                demand.log.extend(self.index.piece_of(before.entry));
            }
        }
    }

    /// The first entry of all these pieces.
    fn first_entry(&self, log: &[Span]) -> Option<u64> {
        log.iter()
            .filter_map(|(branch, range)| {
                let line = self.index.lines.get(branch)?;
                let pieces = range.clone().filter_map(|at| self.index.piece(line, at));
                pieces.map(|piece| piece.entry).min()
            })
            .min()
    }

    /// Names that say what the numbers in the log of entries `first` to `last` stood for: those read meanwhile,
    /// the last whole ones before them, and what replaced some of those.
    fn names(&self, first: u64, last: u64) -> RangeInclusive<u64> {
        let before = (self.index.state.names.iter())
            .filter(|names| names.whole && names.entry <= first)
            .map(|names| names.entry)
            .max();
        before.unwrap_or(first)..=last
    }
}

impl Demand {
    fn nothing(promise: Promise) -> Self {
        Self {
            promise,
            bases: BTreeSet::new(),
            log: Vec::new(),
            settled: Vec::new(),
            names: None,
            partial: false,
        }
    }
}
