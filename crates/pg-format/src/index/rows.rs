//! How many rows each open transaction has changed, so that a commit that changed many can be
//! found.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::RelationRows;
use super::hash::NumberHash;
use crate::Relation;
use crate::wal::rmgr::heap::RowChange;

/// A commit that deleted and updated at least this many rows is an event.
pub const NOTABLE_ROWS: u64 = 100;
/// Transactions with fewer rows than this are forgotten when the indexer's state is stored.
pub const CARRIED_ROWS: u64 = 16;
/// Open transactions that are counted; beyond, those with the fewest rows are forgotten.
pub const OPEN_TRANSACTIONS_MAX: usize = 16_384;
/// Relations that are told apart in one transaction; beyond, their rows are added up.
pub const RELATIONS_PER_TRANSACTION_MAX: usize = 64;
/// Files with lower numbers are those that `initdb` gave the catalogs (`FirstNormalObjectId` in
/// `access/transam.h`).
const FIRST_NORMAL_FILE: u32 = 16_384;
/// Buffers kept for further transactions.
const SPARE_MAX: usize = 256;

/// Row counts by transaction. Subtransactions are counted apart until their fate is known.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenTransactions {
    counts: HashMap<u32, Vec<RelationRows>, NumberHash>,
    spare: Vec<Vec<RelationRows>>,
    pub(super) left_out: u64,
}

fn total(rows: &[RelationRows]) -> u64 {
    rows.iter().fold(0, |sum, row| {
        sum.saturating_add(row.inserted)
            .saturating_add(row.updated)
            .saturating_add(row.deleted)
    })
}

fn add(rows: &mut Vec<RelationRows>, more: RelationRows) {
    let known = rows.iter().position(|row| row.relation == more.relation);
    let index = known.unwrap_or_else(|| {
        // The last place is for all relations that are not told apart.
        let relation = if rows.len() < RELATIONS_PER_TRANSACTION_MAX {
            more.relation
        } else {
            Relation::default()
        };
        if rows.len() <= RELATIONS_PER_TRANSACTION_MAX {
            rows.push(RelationRows {
                relation,
                ..RelationRows::default()
            });
        }
        rows.len() - 1
    });
    if let Some(row) = rows.get_mut(index) {
        row.inserted = row.inserted.saturating_add(more.inserted);
        row.updated = row.updated.saturating_add(more.updated);
        row.deleted = row.deleted.saturating_add(more.deleted);
    }
}

impl OpenTransactions {
    /// Rows of a relation changed.
    #[inline]
    pub(super) fn count(&mut self, xid: u32, relation: Relation, change: RowChange, rows: u32) {
        // Whoever drops a wide table deletes many rows of catalogs; nobody looks for those.
        if relation.number < FIRST_NORMAL_FILE {
            return;
        }
        if self.counts.len() >= OPEN_TRANSACTIONS_MAX && !self.counts.contains_key(&xid) {
            self.forget_smallest();
        }
        let entry = match self.counts.entry(xid) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.spare.pop().unwrap_or_default()),
        };
        let mut more = RelationRows {
            relation,
            ..RelationRows::default()
        };
        match change {
            RowChange::Inserted => more.inserted = rows.into(),
            RowChange::Updated => more.updated = rows.into(),
            RowChange::Deleted => more.deleted = rows.into(),
        }
        add(entry, more);
    }

    /// Forgets the smaller half, so that the cost of looking for it is shared by many transactions.
    fn forget_smallest(&mut self) {
        let mut sizes: Vec<_> = self
            .counts
            .iter()
            .map(|(xid, rows)| (total(rows), *xid))
            .collect();
        let half = sizes.len() / 2;
        sizes.select_nth_unstable(half);
        for (_, xid) in sizes.iter().take(half) {
            self.counts.remove(xid);
        }
        self.left_out = self.left_out.saturating_add(half as u64);
    }

    fn take(&mut self, xid: u32, into: &mut Vec<RelationRows>) {
        let Some(mut rows) = self.counts.remove(&xid) else {
            return;
        };
        if into.is_empty() {
            std::mem::swap(&mut rows, into);
        } else {
            for row in rows.drain(..) {
                add(into, row);
            }
        }
        self.recycle(rows);
    }

    fn recycle(&mut self, mut rows: Vec<RelationRows>) {
        if self.spare.len() < SPARE_MAX && rows.capacity() > 0 {
            rows.clear();
            self.spare.push(rows);
        }
    }

    /// A transaction committed with these subtransactions. Returns its rows if they are many,
    /// ordered by relation.
    pub(super) fn commit(
        &mut self,
        xid: u32,
        subtransactions: impl Iterator<Item = u32>,
    ) -> Option<Vec<RelationRows>> {
        let mut rows = Vec::new();
        self.take(xid, &mut rows);
        for xid in subtransactions {
            if self.counts.is_empty() {
                break;
            }
            self.take(xid, &mut rows);
        }
        let notable = rows.iter().fold(0_u64, |sum, row| {
            sum.saturating_add(row.updated).saturating_add(row.deleted)
        });
        if notable < NOTABLE_ROWS {
            self.recycle(rows);
            return None;
        }
        rows.sort_unstable();
        Some(rows)
    }

    /// A transaction or subtransaction aborted, with these subtransactions.
    pub(super) fn abort(&mut self, xid: u32, subtransactions: impl Iterator<Item = u32>) {
        for xid in std::iter::once(xid).chain(subtransactions) {
            if let Some(rows) = self.counts.remove(&xid) {
                self.recycle(rows);
            }
        }
    }

    /// No transaction older than `oldest` runs any more. A crash leaves transactions that never end
    /// in the log.
    pub(super) fn forget_before(&mut self, oldest: u32) {
        // Identifiers wrap around: older is what lies in the half circle behind.
        self.counts
            .retain(|xid, _| xid.wrapping_sub(oldest) < 1 << 31);
    }

    /// Those that are worth storing, ordered.
    pub(super) fn carried(&self) -> Vec<(u32, Vec<RelationRows>)> {
        let mut carried: Vec<_> = self
            .counts
            .iter()
            .filter(|(_, rows)| total(rows) >= CARRIED_ROWS)
            .map(|(xid, rows)| (*xid, rows.clone()))
            .collect();
        carried.sort_unstable_by_key(|(xid, _)| *xid);
        carried
    }

    pub(super) fn restore(carried: &[(u32, Vec<RelationRows>)]) -> Self {
        let mut open = Self::default();
        for (xid, rows) in carried.iter().take(OPEN_TRANSACTIONS_MAX) {
            let entry = open.counts.entry(*xid).or_default();
            for row in rows {
                add(entry, *row);
            }
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Relation = Relation {
        tablespace: 1663,
        database: 5,
        number: 16384,
    };

    fn commit(
        open: &mut OpenTransactions,
        xid: u32,
        children: &[u32],
    ) -> Option<Vec<RelationRows>> {
        open.commit(xid, children.iter().copied())
    }

    #[test]
    fn rows_of_committed_subtransactions_count_and_of_aborted_ones_do_not() {
        let mut open = OpenTransactions::default();
        open.count(10, TABLE, RowChange::Deleted, 60);
        open.count(11, TABLE, RowChange::Updated, 40);
        open.count(12, TABLE, RowChange::Deleted, 1000);
        open.abort(12, std::iter::empty());
        let rows = commit(&mut open, 10, &[11]).expect("many rows");
        assert_eq!(
            rows,
            [RelationRows {
                relation: TABLE,
                inserted: 0,
                updated: 40,
                deleted: 60
            }]
        );
        assert!(open.counts.is_empty());
    }

    #[test]
    fn few_rows_and_inserted_rows_are_no_event() {
        let mut open = OpenTransactions::default();
        open.count(10, TABLE, RowChange::Inserted, 100_000);
        open.count(10, TABLE, RowChange::Deleted, 99);
        assert_eq!(commit(&mut open, 10, &[]), None);
    }

    #[test]
    fn open_transactions_and_their_relations_are_bounded() {
        let mut open = OpenTransactions::default();
        open.count(1, TABLE, RowChange::Deleted, 5000);
        for xid in 2..60_000 {
            open.count(xid, TABLE, RowChange::Deleted, 1);
            assert!(open.counts.len() <= OPEN_TRANSACTIONS_MAX);
        }
        assert_eq!(open.counts.len() as u64 + open.left_out, 59_999);
        for number in 0..1000 {
            let number = FIRST_NORMAL_FILE + number;
            let relation = Relation { number, ..TABLE };
            open.count(1, relation, RowChange::Deleted, 1);
        }
        let rows = commit(&mut open, 1, &[]).expect("the largest is kept");
        assert_eq!(rows.len(), RELATIONS_PER_TRANSACTION_MAX + 1);
        assert_eq!(rows.iter().map(|row| row.deleted).sum::<u64>(), 6000);
    }

    #[test]
    fn transactions_lost_in_a_crash_are_forgotten_across_wraparound() {
        let mut open = OpenTransactions::default();
        for xid in [u32::MAX - 5, 3, 9] {
            open.count(xid, TABLE, RowChange::Deleted, 200);
        }
        open.forget_before(5);
        assert_eq!(commit(&mut open, u32::MAX - 5, &[]), None);
        assert_eq!(commit(&mut open, 3, &[]), None);
        assert!(commit(&mut open, 9, &[]).is_some());
    }
}
