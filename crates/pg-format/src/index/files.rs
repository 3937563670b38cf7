//! What each open transaction does to whole relations, databases and tablespaces: which relation files
//! it creates and whether anything is written into them, and what it drops besides relations.
//!
//! Two questions are answered with it when the transaction commits. Files that go away were dropped,
//! truncated or rewritten: without a new file nothing was rewritten, and a new file of the same relation
//! tells by being empty or not. And a dropped database must be restored to *before* its row was marked
//! as invalid, which PostgreSQL does in place and before the drop (`dropdb` in `dbcommands.c`).

use std::collections::{HashMap, HashSet, VecDeque};

use super::hash::NumberHash;
use crate::wal::rmgr::heap::SharedRow;
use crate::{Lsn, Relation};

/// Created relations that one transaction's event names; of one that creates more it is said that not
/// all are known.
pub const CREATED_MAX: usize = 4096;
/// Open transactions whose files are followed; of further ones it is not known what they create.
pub const FOLLOWED_TRANSACTIONS_MAX: usize = 4096;
/// Rows of shared catalogs changed in place that are remembered.
const IN_PLACE_MAX: usize = 16;
/// How far in front of the deletion of a database's row its mark is looked for. Both come from one
/// function, microseconds and one flush apart; a change in place from long before is vacuum's.
const MARK_DISTANCE_MAX: u64 = 4 << 20;

/// A relation whose files a transaction created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CreatedRelation {
    /// The relation.
    pub relation: Relation,
    /// Whether any page of its main fork was written before the transaction ended.
    pub filled: bool,
}

/// What one open transaction or subtransaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransactionFiles {
    /// Relations whose files it created.
    pub created: Vec<CreatedRelation>,
    /// Whether it created more.
    pub created_more: bool,
    /// Databases whose directories it dropped.
    pub databases: Vec<u32>,
    /// Tablespaces that it dropped.
    pub tablespaces: Vec<u32>,
    /// Up to where all of that was there and could be used.
    pub before: Option<Lsn>,
}

impl TransactionFiles {
    fn add(&mut self, more: Self) {
        self.created.extend(more.created);
        self.created_more |= more.created_more || self.created.len() > CREATED_MAX;
        self.created.truncate(CREATED_MAX);
        self.databases.extend(more.databases);
        self.tablespaces.extend(more.tablespaces);
        if let Some(at) = more.before {
            self.before(at);
        }
    }

    /// What it drops is no longer all there from `at` on.
    fn before(&mut self, at: Lsn) {
        self.before = Some(self.before.map_or(at, |other| other.min(at)));
    }
}

/// A row of a shared catalog that was changed in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InPlaceChange {
    /// Which row.
    pub row: SharedRow,
    /// The start of the record.
    pub at: Lsn,
}

/// The open transactions that create or drop anything whole.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenFiles {
    by_xid: HashMap<u32, TransactionFiles, NumberHash>,
    /// New files without a page, by the transaction that created them.
    unfilled: HashMap<Relation, u32, NumberHash>,
    in_place: VecDeque<InPlaceChange>,
    /// All that transactions from this one on did is known; `None` until that is so of any.
    known_from: Option<u32>,
}

impl OpenFiles {
    /// Files of a relation were created.
    pub(super) fn created(&mut self, xid: u32, relation: Relation) {
        let Some(files) = self.of(xid) else { return };
        if files.created.iter().any(|made| made.relation == relation) {
            return;
        }
        if files.created.len() >= CREATED_MAX {
            files.created_more = true;
            return;
        }
        let filled = false;
        files.created.push(CreatedRelation { relation, filled });
        self.unfilled.insert(relation, xid);
    }

    /// A page of a relation's main fork was written.
    #[inline]
    pub(super) fn written(&mut self, relation: Relation) {
        if self.unfilled.is_empty() {
            return;
        }
        let Some(xid) = self.unfilled.remove(&relation) else {
            return;
        };
        let made = self.by_xid.get_mut(&xid).into_iter();
        for made in made.flat_map(|files| &mut files.created) {
            made.filled |= made.relation == relation;
        }
    }

    /// The directories of a database were dropped.
    pub(super) fn dropped_database(&mut self, xid: u32, database: u32, at: Lsn) {
        if let Some(files) = self.of(xid) {
            files.before(at);
            if !files.databases.contains(&database) {
                files.databases.push(database);
            }
        }
    }

    /// A tablespace was dropped.
    pub(super) fn dropped_tablespace(&mut self, xid: u32, tablespace: u32, at: Lsn) {
        if let Some(files) = self.of(xid) {
            files.before(at);
            files.tablespaces.push(tablespace);
        }
    }

    /// A row of a shared catalog was changed in place.
    pub(super) fn changed_in_place(&mut self, row: SharedRow, at: Lsn) {
        self.in_place.retain(|change| change.row != row);
        if self.in_place.len() >= IN_PLACE_MAX {
            self.in_place.pop_front();
        }
        self.in_place.push_back(InPlaceChange { row, at });
    }

    /// A row of a shared catalog was deleted. Where it had been changed in place just before, that was
    /// the mark of a database that is being dropped.
    pub(super) fn deleted(&mut self, xid: u32, row: SharedRow, at: Lsn) {
        let mark = self.in_place.iter().find(|change| change.row == row);
        let Some(mark) = mark.filter(|mark| at.since(mark.at) <= MARK_DISTANCE_MAX) else {
            return;
        };
        let before = mark.at;
        if let Some(files) = self.of(xid) {
            files.before(before);
        }
    }

    fn of(&mut self, xid: u32) -> Option<&mut TransactionFiles> {
        if xid == 0 {
            // What has no transaction has no commit to be told with.
            return None;
        }
        if self.by_xid.len() >= FOLLOWED_TRANSACTIONS_MAX && !self.by_xid.contains_key(&xid) {
            self.known_from = None;
            return None;
        }
        Some(self.by_xid.entry(xid).or_default())
    }

    /// A transaction committed with these subtransactions. Returns what they did, and whether that is
    /// all that they created.
    pub(super) fn commit(
        &mut self,
        xid: u32,
        subtransactions: impl Iterator<Item = u32>,
    ) -> (TransactionFiles, bool) {
        let mut all = TransactionFiles::default();
        self.take(xid, subtransactions, |files| all.add(files));
        let known = (self.known_from).is_some_and(|from| xid.wrapping_sub(from) < 1 << 31);
        let complete = known && !all.created_more;
        (all, complete)
    }

    /// A transaction or subtransaction aborted, with these subtransactions.
    pub(super) fn abort(&mut self, xid: u32, subtransactions: impl Iterator<Item = u32>) {
        self.take(xid, subtransactions, drop);
    }

    fn take(
        &mut self,
        xid: u32,
        subtransactions: impl Iterator<Item = u32>,
        mut each: impl FnMut(TransactionFiles),
    ) {
        for xid in std::iter::once(xid).chain(subtransactions) {
            if self.by_xid.is_empty() {
                return;
            }
            if let Some(files) = self.by_xid.remove(&xid) {
                for made in files.created.iter().filter(|made| !made.filled) {
                    self.unfilled.remove(&made.relation);
                }
                each(files);
            }
        }
    }

    /// The server told the oldest transaction that runs and the next one that will.
    pub(super) fn running(&mut self, oldest: u32, next: u32) {
        let known = self.known_from.unwrap_or(next);
        let later = |one: u32, other: u32| one.wrapping_sub(other) < 1 << 31;
        // Kept near the present, since numbers wrap around.
        self.known_from = Some(if later(oldest, known) { oldest } else { known });
        let gone = |xid: &u32| !later(*xid, oldest);
        let old: HashSet<u32> = self.by_xid.keys().copied().filter(gone).collect();
        for xid in old {
            self.abort(xid, std::iter::empty());
        }
    }

    /// Log is missing: what open transactions did is no longer known.
    pub(super) fn lose(&mut self) {
        *self = Self::default();
    }

    /// What has to be stored for another indexer to go on.
    pub(super) fn carried(&self) -> CarriedFiles {
        let mut transactions: Vec<_> = (self.by_xid.iter())
            .map(|(xid, files)| (*xid, files.clone()))
            .collect();
        transactions.sort_unstable_by_key(|(xid, _)| *xid);
        CarriedFiles {
            transactions,
            in_place: self.in_place.iter().copied().collect(),
            known_from: self.known_from,
        }
    }

    pub(super) fn restore(carried: &CarriedFiles) -> Self {
        let transactions = carried.transactions.iter().take(FOLLOWED_TRANSACTIONS_MAX);
        let by_xid: HashMap<_, _, _> = transactions.cloned().collect();
        let unfilled = (by_xid.iter())
            .flat_map(|(xid, files)| files.created.iter().map(move |made| (*xid, made)))
            .filter(|(_, made)| !made.filled)
            .map(|(xid, made)| (made.relation, xid))
            .collect();
        Self {
            by_xid,
            unfilled,
            in_place: carried
                .in_place
                .iter()
                .take(IN_PLACE_MAX)
                .copied()
                .collect(),
            known_from: carried.known_from,
        }
    }
}

/// What an indexer leaves of this to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CarriedFiles {
    /// Open transactions and what they did, ordered.
    pub transactions: Vec<(u32, TransactionFiles)>,
    /// Rows of shared catalogs that were changed in place lately, in log order.
    pub in_place: Vec<InPlaceChange>,
    /// All that transactions from this one on did is known.
    pub known_from: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(number: u32) -> Relation {
        Relation {
            tablespace: 1663,
            database: 5,
            number,
        }
    }

    fn committed(files: &mut OpenFiles, xid: u32, children: &[u32]) -> (TransactionFiles, bool) {
        files.commit(xid, children.iter().copied())
    }

    #[test]
    fn files_of_committed_subtransactions_count_and_of_aborted_ones_do_not() {
        let mut files = OpenFiles::default();
        files.running(9, 10);
        files.created(10, table(1));
        files.created(11, table(2));
        files.created(12, table(3));
        files.abort(12, std::iter::empty());
        files.written(table(2));
        files.written(table(3));
        let (all, complete) = committed(&mut files, 10, &[11]);
        let made = |number, filled| CreatedRelation {
            relation: table(number),
            filled,
        };
        assert_eq!(all.created, [made(1, false), made(2, true)]);
        assert!(complete && files.unfilled.is_empty() && files.by_xid.is_empty());
    }

    #[test]
    fn what_began_before_the_log_was_read_is_not_taken_as_known() {
        let mut files = OpenFiles::default();
        assert!(!committed(&mut files, 10, &[]).1, "nothing is known yet");
        files.running(8, 20);
        assert!(!committed(&mut files, 19, &[]).1, "it ran already");
        assert!(committed(&mut files, 20, &[]).1);
        files.running(25, 30);
        assert!(committed(&mut files, 25, &[]).1);
        files.lose();
        assert!(!committed(&mut files, 26, &[]).1, "log is missing");
    }

    #[test]
    fn transactions_beyond_the_bound_make_nothing_known() {
        let mut files = OpenFiles::default();
        files.running(1, 1);
        for xid in 1..=FOLLOWED_TRANSACTIONS_MAX as u32 + 1 {
            files.created(xid, table(xid));
        }
        assert!(!committed(&mut files, 1, &[]).1);
        files.created(7, table(70_000));
        for number in 0..=CREATED_MAX as u32 {
            files.created(7, table(100_000 + number));
        }
        files.running(7, 8000);
        let (all, complete) = committed(&mut files, 7, &[]);
        assert_eq!((all.created.len(), complete), (CREATED_MAX, false));
        // Crashed transactions never end; the server says that they are gone.
        files.running(9000, 9000);
        assert!(files.by_xid.is_empty() && files.unfilled.is_empty());
    }

    #[test]
    fn a_dropped_database_was_valid_before_its_row_was_marked() {
        let row = SharedRow {
            relation: Relation {
                tablespace: 1664,
                database: 0,
                number: 1262,
            },
            block: 0,
            offset: 7,
        };
        let other = SharedRow { offset: 8, ..row };
        let mut files = OpenFiles::default();
        files.changed_in_place(row, Lsn(100));
        // Vacuum of another database.
        files.changed_in_place(other, Lsn(200));
        let mut files = OpenFiles::restore(&files.carried());
        files.deleted(9, row, Lsn(300));
        files.dropped_database(9, 5, Lsn(400));
        let (all, _) = committed(&mut files, 9, &[]);
        assert_eq!((all.databases, all.before), (vec![5], Some(Lsn(100))));
        // A mark that is far away is no mark of this deletion.
        files.deleted(10, other, Lsn(200 + MARK_DISTANCE_MAX + 1));
        files.dropped_database(10, 6, Lsn(6 << 20));
        assert_eq!(committed(&mut files, 10, &[]).0.before, Some(Lsn(6 << 20)));
    }
}
