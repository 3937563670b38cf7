//! Some of what a lineage's state names, by the entries that say it: what expires, and comes back.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{
    BaseBackupSummary, Forgotten, LineageState, NamesSummary, PieceSummary, SettledSummary,
};

/// Runs of ledger entries, in order and apart from each other.
pub type Runs = Vec<RangeInclusive<u64>>;

/// A choice among what a state names, by ledger entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Base backups.
    pub base_backups: BTreeSet<u64>,
    /// Log pieces; merged ones by the last entry that is a piece.
    pub pieces: Runs,
    /// Settled moments without log.
    pub settled: Runs,
    /// Names.
    pub names: Runs,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selected {
    /// Base backups.
    pub base_backups: Vec<BaseBackupSummary>,
    /// Log pieces.
    pub pieces: Vec<PieceSummary>,
    /// Settled moments without log.
    pub settled: Vec<SettledSummary>,
    /// Names.
    pub names: Vec<NamesSummary>,
}

/// One of the lists that a choice is made among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// Base backups.
    BaseBackups,
    /// Log pieces.
    Pieces,
    /// Settled moments without log.
    Settled,
    /// Names.
    Names,
}

/// What a choice is made among, each list in the order of its entries.
#[derive(Debug, Clone, Copy)]
pub struct Lists<'a> {
    base_backups: &'a [BaseBackupSummary],
    pieces: &'a [PieceSummary],
    settled: &'a [SettledSummary],
    names: &'a [NamesSummary],
}

impl<'a> From<&'a LineageState> for Lists<'a> {
    fn from(state: &'a LineageState) -> Self {
        Self {
            base_backups: &state.base_backups,
            pieces: &state.pieces,
            settled: &state.settled,
            names: &state.names,
        }
    }
}

impl<'a> From<&'a Selected> for Lists<'a> {
    fn from(selected: &'a Selected) -> Self {
        Self {
            base_backups: &selected.base_backups,
            pieces: &selected.pieces,
            settled: &selected.settled,
            names: &selected.names,
        }
    }
}

impl Selection {
    /// What of `lists` is `chosen`, by the list and the entry.
    pub fn of<'a>(lists: impl Into<Lists<'a>>, chosen: impl Fn(List, u64) -> bool) -> Self {
        let lists = lists.into();
        let pieces = lists.pieces.iter().map(|it| it.entry);
        let settled = lists.settled.iter().map(|it| it.entry);
        let names = lists.names.iter().map(|it| it.entry);
        let bases = lists.base_backups.iter().map(|it| it.entry);
        Self {
            base_backups: bases.filter(|it| chosen(List::BaseBackups, *it)).collect(),
            pieces: runs_of(pieces, |entry| chosen(List::Pieces, entry)),
            settled: runs_of(settled, |entry| chosen(List::Settled, entry)),
            names: runs_of(names, |entry| chosen(List::Names, entry)),
        }
    }

    /// Whether an entry is chosen.
    pub fn holds(&self, list: List, entry: u64) -> bool {
        match list {
            List::BaseBackups => self.base_backups.contains(&entry),
            List::Pieces => within(&self.pieces, entry),
            List::Settled => within(&self.settled, entry),
            List::Names => within(&self.names, entry),
        }
    }

    /// Whether nothing is chosen.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The highest entry chosen; zero where there is none.
    pub fn highest(&self) -> u64 {
        let runs = [&self.pieces, &self.settled, &self.names];
        let last = runs.into_iter().filter_map(|runs| runs.last());
        let last = last.map(|run| *run.end()).max().unwrap_or(0);
        last.max(self.base_backups.last().copied().unwrap_or(0))
    }
}

impl Selected {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes out what `selection` chooses.
    #[must_use]
    pub fn take(&mut self, selection: &Selection) -> Self {
        Self {
            base_backups: take(&mut self.base_backups, |it| {
                selection.holds(List::BaseBackups, it.entry)
            }),
            pieces: take(&mut self.pieces, |it| {
                selection.holds(List::Pieces, it.entry)
            }),
            settled: take(&mut self.settled, |it| {
                selection.holds(List::Settled, it.entry)
            }),
            names: take(&mut self.names, |it| selection.holds(List::Names, it.entry)),
        }
    }

    /// Stored bytes of log and names, and what the base backups had added when they were taken.
    pub fn bytes(&self) -> u64 {
        let pieces = self.pieces.iter().map(|it| it.stored_bytes);
        let names = self.names.iter().map(|it| it.stored_bytes);
        let bases = self.base_backups.iter().map(|it| it.new_bytes);
        pieces.chain(names).chain(bases).sum()
    }
}

impl LineageState {
    /// Takes out what `selection` chooses; what it chooses and is not there is not missed.
    #[must_use]
    pub fn take(&mut self, selection: &Selection) -> Selected {
        let mut all = Selected {
            base_backups: std::mem::take(&mut self.base_backups),
            pieces: std::mem::take(&mut self.pieces),
            settled: std::mem::take(&mut self.settled),
            names: std::mem::take(&mut self.names),
        };
        let taken = all.take(selection);
        self.base_backups = all.base_backups;
        self.pieces = all.pieces;
        self.settled = all.settled;
        self.names = all.names;
        taken
    }

    /// Puts back what [`Self::take`] has taken.
    pub fn put_back(&mut self, selected: Selected) {
        self.base_backups.extend(selected.base_backups);
        self.base_backups.sort_by_key(|it| it.entry);
        self.pieces.extend(selected.pieces);
        self.pieces.sort_by_key(|it| it.entry);
        self.settled.extend(selected.settled);
        self.settled.sort_by_key(|it| it.entry);
        self.names.extend(selected.names);
        self.names.sort_by_key(|it| it.entry);
    }

    /// Remembers which moments had been settled by what has gone. What is remembered already and says no more is
    /// dropped, unless something stands between that settles moments: in this state or, by its entry, in `hidden`.
    pub fn forget(&mut self, forgotten: &[Forgotten], hidden: impl IntoIterator<Item = u64>) {
        self.forgotten.extend_from_slice(forgotten);
        self.forgotten.sort_by_key(|it| (it.entry, it.through));
        let settling = (self.pieces.iter().map(|it| it.entry))
            .chain(self.settled.iter().map(|it| it.entry))
            .chain(hidden)
            .collect::<BTreeSet<u64>>();
        let mut all: Vec<Forgotten> = Vec::new();
        for next in std::mem::take(&mut self.forgotten) {
            if all.last().is_some_and(|last| last.through >= next.through) {
                continue;
            }
            while let Some(last) = all.last()
                && (settling.range(last.entry + 1..=next.entry).next()).is_none()
            {
                all.pop();
            }
            all.push(next);
        }
        self.forgotten = all;
    }
}

fn take<T>(all: &mut Vec<T>, chosen: impl Fn(&T) -> bool) -> Vec<T> {
    let (taken, left) = std::mem::take(all).into_iter().partition(chosen);
    *all = left;
    taken
}

/// Whether `runs` hold `entry`.
pub fn within(runs: &[RangeInclusive<u64>], entry: u64) -> bool {
    let after = runs.partition_point(|run| *run.start() <= entry);
    let run = after.checked_sub(1).and_then(|at| runs.get(at));
    run.is_some_and(|run| run.contains(&entry))
}

/// The entries of `all` that are `chosen`, as runs between which one lies that is not.
pub fn runs_of(all: impl IntoIterator<Item = u64>, chosen: impl Fn(u64) -> bool) -> Runs {
    let mut runs = Runs::new();
    let mut open = false;
    for entry in all {
        let take = chosen(entry);
        match runs.last_mut() {
            Some(last) if open && take => *last = *last.start()..=entry,
            _ if take => runs.push(entry..=entry),
            _ => {}
        }
        open = take;
    }
    runs
}
