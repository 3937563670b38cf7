//! The plan: each object that is kept with the promises that hold it, and each that none does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use borealis_base::{Branch, ByteLen, LineageId, Position, Timestamp};
use serde::Serialize;

use super::demand::{Demand, Demands};
use super::index::Index;
use super::terms::{Promise, Terms};
use crate::plan::selection::{List, runs_of, within};
use crate::plan::{Forgotten, LineageState, Selection, Settlement, settlements};

/// Something stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "object", rename_all = "snake_case")]
pub enum Object {
    /// A base backup: its manifest, and of its pages what no other one shares.
    BaseBackup {
        /// Its ledger entry.
        entry: u64,
        /// Where replay begins.
        start: Position,
        /// Where it can be restored to.
        end: Position,
        /// When it ended.
        ended_at: Timestamp,
    },
    /// Log pieces that lie next to each other.
    Log {
        /// Their branch.
        branch: Branch,
        /// The first position.
        from: Position,
        /// The position past the last one.
        to: Position,
        /// When the first was recorded.
        since: Timestamp,
        /// When the last was recorded.
        until: Timestamp,
        /// How many they are.
        pieces: usize,
    },
    /// Names that lie next to each other.
    Names {
        /// The first entry.
        first: u64,
        /// The last entry.
        last: u64,
        /// How many they are.
        count: usize,
    },
    /// What an unfinished base backup has stored so far.
    PartialBaseBackup {
        /// Its ledger entry.
        entry: u64,
    },
    /// A snapshot's name and position; what it needs is listed on its own.
    Snapshot {
        /// Its name.
        name: String,
        /// The position behind its last record.
        position: Position,
        /// The moment it stands for.
        time: Option<Timestamp>,
    },
}

/// An object that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Which.
    #[serde(flatten)]
    pub object: Object,
    /// Its stored bytes; of a base backup those that it added when it was taken.
    pub bytes: u64,
    /// Why. Never empty.
    pub promises: Vec<Promise>,
}

/// An object that no promise holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Which.
    #[serde(flatten)]
    pub object: Object,
    /// Its stored bytes; of a base backup those that it added when it was taken, of which later ones may
    /// still use some.
    pub bytes: u64,
}

/// What to keep and what to remove of one lineage. Prints itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// The lineage.
    pub lineage: LineageId,
    /// The present that it was made for.
    pub now: Timestamp,
    /// What is kept.
    pub kept: Vec<Kept>,
    /// What is removed.
    pub removed: Vec<Removed>,
    /// Entries of pieces that are removed, as runs in the order of the ledger.
    #[serde(skip)]
    pieces: Vec<RangeInclusive<u64>>,
    /// Base backups that are kept, by entry.
    #[serde(skip)]
    bases: BTreeSet<u64>,
    /// Settled moments that are kept, by the entries that they lie between.
    #[serde(skip)]
    settled: Vec<RangeInclusive<u64>>,
    /// Names that are kept, by the entries that they lie between.
    #[serde(skip)]
    names: Vec<RangeInclusive<u64>>,
    #[serde(skip)]
    partial: bool,
}

/// Plans for a lineage. The same arguments give the same plan.
///
/// `state` holds the ledger and the snapshots; `now` is the store's clock, or where that can't be told the
/// machine's. See [`standing`](super::standing) for how far it is believed.
pub fn plan(state: &LineageState, terms: &Terms, now: Timestamp) -> RetentionPlan {
    let index = Index::of(state, terms.children.iter().map(|child| child.branch));
    let demands = Demands {
        index: &index,
        terms,
        now,
    };
    Held::of(&index, demands.after(Duration::ZERO)).into_plan(&index, now)
}

/// Numbers of promises, of a run of pieces of one branch's line.
type Segments = BTreeMap<Branch, Vec<(Range<usize>, Vec<usize>)>>;

/// Everything that is held, each with the numbers of the promises that hold it.
pub(super) struct Held {
    demands: Vec<Demand>,
    /// All pieces, in runs that the same promises hold; none for some.
    segments: Segments,
}

impl Held {
    pub(super) fn of(index: &Index<'_>, demands: Vec<Demand>) -> Self {
        let mut edges: BTreeMap<Branch, BTreeMap<usize, Vec<(usize, bool)>>> = BTreeMap::new();
        for (number, demand) in demands.iter().enumerate() {
            for (branch, range) in merged(&demand.log) {
                let of_branch = edges.entry(branch).or_default();
                of_branch
                    .entry(range.start)
                    .or_default()
                    .push((number, true));
                of_branch
                    .entry(range.end)
                    .or_default()
                    .push((number, false));
            }
        }
        let mut segments = Segments::new();
        for (branch, line) in &index.lines {
            let runs = segments.entry(*branch).or_default();
            let (mut at, mut holding) = (0, BTreeSet::new());
            let mut close = |to: usize, holding: &BTreeSet<usize>| {
                if at < to {
                    runs.push((at..to, holding.iter().copied().collect()));
                    at = to;
                }
            };
            for (position, changes) in edges.get(branch).into_iter().flatten() {
                close(*position, &holding);
                for (number, begins) in changes {
                    if *begins {
                        holding.insert(*number);
                    } else {
                        holding.remove(number);
                    }
                }
            }
            close(line.order.len(), &holding);
        }
        Self { demands, segments }
    }

    /// Base backups that are held, by entry.
    pub(super) fn bases(&self) -> BTreeSet<u64> {
        (self.demands.iter())
            .flat_map(|demand| demand.bases.iter().copied())
            .collect()
    }

    /// Stored bytes of log that is held.
    pub(super) fn log_bytes(&self, index: &Index<'_>) -> u64 {
        let held = (self.segments.iter()).flat_map(|(branch, runs)| {
            let line = index.lines.get(branch);
            (runs.iter())
                .filter(|(_, by)| !by.is_empty())
                .map(move |(range, _)| line.map_or(0, |line| line.bytes_of(range)))
        });
        held.sum()
    }

    /// Stored bytes of names that are held.
    pub(super) fn names_bytes(&self, index: &Index<'_>) -> u64 {
        let names = index.state.names.iter();
        let held =
            names.filter(|names| (self.demands.iter()).any(|it| holds_names(it, names.entry)));
        held.map(|names| names.stored_bytes).sum()
    }

    fn promises(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<Promise> {
        let demands = numbers.into_iter().filter_map(|at| self.demands.get(at));
        demands.map(|demand| demand.promise.clone()).collect()
    }

    fn holders(&self, holds: impl Fn(&Demand) -> bool) -> Vec<Promise> {
        let holding = self.demands.iter().filter(|demand| holds(demand));
        holding.map(|demand| demand.promise.clone()).collect()
    }

    fn into_plan(self, index: &Index<'_>, now: Timestamp) -> RetentionPlan {
        let mut plan = RetentionPlan {
            lineage: index.state.lineage,
            now,
            kept: Vec::new(),
            removed: Vec::new(),
            pieces: self.pieces_removed(index),
            bases: self.bases(),
            settled: (self.demands.iter())
                .flat_map(|demand| demand.settled.iter().cloned())
                .collect(),
            names: (self.demands.iter())
                .filter_map(|demand| demand.names.clone())
                .collect(),
            partial: self.demands.iter().any(|demand| demand.partial),
        };
        plan.settled = joined(plan.settled);
        plan.names = joined(plan.names);
        self.list_small(index, &mut plan);
        self.list_names(index, &mut plan);
        self.list_log(index, &mut plan);
        plan
    }

    fn list_small(&self, index: &Index<'_>, plan: &mut RetentionPlan) {
        for pin in &index.state.pins {
            let name = pin.name.clone();
            plan.kept.push(Kept {
                object: Object::Snapshot {
                    name: name.clone(),
                    position: pin.last_record.end,
                    time: pin.time,
                },
                bytes: 0,
                promises: vec![Promise::Snapshot { name }],
            });
        }
        for base in &index.state.base_backups {
            let object = Object::BaseBackup {
                entry: base.entry,
                start: base.start,
                end: base.end,
                ended_at: base.ended_at,
            };
            let promises = self.holders(|demand| demand.bases.contains(&base.entry));
            plan.list(object, base.new_bytes, promises);
        }
        if let Some(partial) = &index.state.partial {
            let object = Object::PartialBaseBackup {
                entry: partial.entry,
            };
            plan.list(
                object,
                partial.new_bytes,
                self.holders(|demand| demand.partial),
            );
        }
    }

    fn list_names(&self, index: &Index<'_>, plan: &mut RetentionPlan) {
        let mut run: Option<(u64, u64, usize, u64, Vec<Promise>)> = None;
        for names in &index.state.names {
            let promises = self.holders(|demand| holds_names(demand, names.entry));
            match &mut run {
                Some((_, last, count, bytes, held)) if *held == promises => {
                    (*last, *count, *bytes) =
                        (names.entry, *count + 1, *bytes + names.stored_bytes);
                }
                _ => {
                    let begun = (names.entry, names.entry, 1, names.stored_bytes, promises);
                    plan.list_run_of_names(run.replace(begun));
                }
            }
        }
        plan.list_run_of_names(run);
    }

    fn list_log(&self, index: &Index<'_>, plan: &mut RetentionPlan) {
        for (branch, runs) in &self.segments {
            let Some(line) = index.lines.get(branch) else {
                continue;
            };
            for (range, by) in runs {
                let pieces = || range.clone().filter_map(|at| index.piece(line, at));
                let Some(from) = pieces().map(|piece| piece.start).min() else {
                    continue;
                };
                let recorded = || pieces().map(|piece| piece.recorded_at);
                let object = Object::Log {
                    branch: *branch,
                    from,
                    to: pieces().map(|piece| piece.end).max().unwrap_or(from),
                    since: recorded().min().unwrap_or(Timestamp::MIN),
                    until: recorded().max().unwrap_or(Timestamp::MIN),
                    pieces: range.len(),
                };
                plan.list(
                    object,
                    line.bytes_of(range),
                    self.promises(by.iter().copied()),
                );
            }
        }
    }

    fn pieces_removed(&self, index: &Index<'_>) -> Vec<RangeInclusive<u64>> {
        let mut keeps = vec![false; index.state.pieces.len()];
        for (branch, runs) in &self.segments {
            let order = index.lines.get(branch).map(|line| line.order.as_slice());
            for (range, _) in runs.iter().filter(|(_, by)| !by.is_empty()) {
                let held = order.and_then(|order| order.get(range.clone()));
                for piece in held.unwrap_or_default() {
                    if let Some(keep) = keeps.get_mut(*piece) {
                        *keep = true;
                    }
                }
            }
        }
        let pieces = index.state.pieces.iter().zip(keeps);
        let gone: BTreeSet<u64> = pieces
            .filter(|(_, keep)| !keep)
            .map(|(piece, _)| piece.entry)
            .collect();
        let all = index.state.pieces.iter().map(|piece| piece.entry);
        runs_of(all, |entry| gone.contains(&entry))
    }
}

fn holds_names(demand: &Demand, entry: u64) -> bool {
    demand
        .names
        .as_ref()
        .is_some_and(|range| range.contains(&entry))
}

/// What goes of a lineage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expiry {
    /// What no promise holds.
    pub selection: Selection,
    /// The moments that it had settled. A moment that can be restored to means the same as before: an entry that
    /// settled nothing, since another one had settled its moments, must not come to settle them when that one goes.
    pub forgotten: Vec<Forgotten>,
}

/// What none of `plans` keeps of `state`, of which they were made.
pub fn expiry(state: &LineageState, plans: &[RetentionPlan]) -> Expiry {
    let keeps = |plan: &RetentionPlan, list, entry| match list {
        List::BaseBackups => plan.keeps_base_backup(entry),
        List::Pieces => plan.keeps_piece(entry),
        List::Settled => plan.keeps_settled(entry),
        List::Names => plan.keeps_names(entry),
    };
    let selection = Selection::of(state, |list, entry| {
        !plans.iter().any(|plan| keeps(plan, list, entry))
    });
    let settling = settlements(state);
    let goes = |it: &Settlement| {
        // Those of a piece are told by its time map.
        let list = it.last_record.map_or(List::Pieces, |_| List::Settled);
        selection.holds(list, it.entry)
    };
    // Of those that follow each other the last one says all.
    let next = settling.iter().skip(1).map(Some).chain([None]);
    let forgotten = (settling.iter().zip(next))
        .filter(|(it, next)| goes(it) && !next.is_some_and(goes))
        .map(|(it, _)| Forgotten {
            entry: it.entry,
            through: it.high,
        })
        .collect();
    Expiry {
        selection,
        forgotten,
    }
}

/// The spans of a demand without overlap.
fn merged(spans: &[super::index::Span]) -> Vec<super::index::Span> {
    let mut all: Vec<_> = spans
        .iter()
        .filter(|(_, it)| !it.is_empty())
        .cloned()
        .collect();
    all.sort_by_key(|(branch, range)| (*branch, range.start));
    let mut out: Vec<super::index::Span> = Vec::new();
    for (branch, range) in all {
        match out.last_mut() {
            Some((last, held)) if *last == branch && range.start <= held.end => {
                held.end = held.end.max(range.end);
            }
            _ => out.push((branch, range)),
        }
    }
    out
}

fn joined(mut ranges: Vec<RangeInclusive<u64>>) -> Vec<RangeInclusive<u64>> {
    ranges.sort_by_key(|range| *range.start());
    let mut out: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => out.push(range),
        }
    }
    out
}

impl RetentionPlan {
    fn list(&mut self, object: Object, bytes: u64, promises: Vec<Promise>) {
        if promises.is_empty() {
            self.removed.push(Removed { object, bytes });
        } else {
            self.kept.push(Kept {
                object,
                bytes,
                promises,
            });
        }
    }

    fn list_run_of_names(&mut self, run: Option<(u64, u64, usize, u64, Vec<Promise>)>) {
        if let Some((first, last, count, bytes, promises)) = run {
            let object = Object::Names { first, last, count };
            self.list(object, bytes, promises);
        }
    }

    /// Whether the log piece of this entry is kept.
    pub fn keeps_piece(&self, entry: u64) -> bool {
        !within(&self.pieces, entry)
    }

    /// Whether the base backup of this entry is kept.
    pub fn keeps_base_backup(&self, entry: u64) -> bool {
        self.bases.contains(&entry)
    }

    /// Whether the settled moments of this entry still count. Those of a log piece go with the piece.
    pub fn keeps_settled(&self, entry: u64) -> bool {
        within(&self.settled, entry)
    }

    /// Whether the names of this entry are kept.
    pub fn keeps_names(&self, entry: u64) -> bool {
        within(&self.names, entry)
    }

    /// Whether the unfinished base backup is kept.
    pub fn keeps_partial(&self) -> bool {
        self.partial
    }

    /// Base backups that are kept, by entry.
    pub fn base_backups(&self) -> &BTreeSet<u64> {
        &self.bases
    }

    /// What is left of `state`, of which this plan was made, once it is carried out. Branches and gaps stay.
    pub fn remaining(&self, state: &LineageState) -> LineageState {
        let mut left = state.clone();
        let Expiry {
            selection,
            forgotten,
        } = expiry(state, std::slice::from_ref(self));
        drop(left.take(&selection));
        left.forget(&forgotten, []);
        left.partial = left.partial.filter(|_| self.partial);
        left
    }

    /// Stored bytes of the log that is kept.
    pub fn log_bytes(&self) -> u64 {
        let log = self
            .kept
            .iter()
            .filter(|kept| matches!(kept.object, Object::Log { .. }));
        log.map(|kept| kept.bytes).sum()
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BaseBackup {
                entry,
                end,
                ended_at,
                ..
            } => write!(f, "base backup {entry}, ended {ended_at} at {end}"),
            Self::Log {
                branch,
                from,
                to,
                since,
                until,
                pieces,
            } => write!(
                f,
                "log {from} to {to} of branch {branch}, recorded {since} to {until}, in {pieces} piece{}",
                if *pieces == 1 { "" } else { "s" }
            ),
            Self::Names { first, last, count } => {
                write!(f, "names of entries {first} to {last}, {count} of them")
            }
            Self::PartialBaseBackup { entry } => write!(f, "unfinished base backup {entry}"),
            Self::Snapshot { name, position, .. } => {
                write!(f, "snapshot `{name}` at {position}")
            }
        }
    }
}

impl fmt::Display for RetentionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kept:")?;
        for kept in &self.kept {
            let why: Vec<String> = kept.promises.iter().map(ToString::to_string).collect();
            writeln!(
                f,
                "  {} ({}): {}",
                kept.object,
                ByteLen(kept.bytes),
                why.join("; ")
            )?;
        }
        if self.kept.is_empty() {
            writeln!(f, "  nothing")?;
        }
        writeln!(f, "removed, since no promise holds it:")?;
        for removed in &self.removed {
            writeln!(f, "  {} ({})", removed.object, ByteLen(removed.bytes))?;
        }
        if self.removed.is_empty() {
            writeln!(f, "  nothing")?;
        }
        Ok(())
    }
}
