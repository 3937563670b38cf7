//! Rows of tables (`access/heapam_xlog.h`): only how many, not which.

use super::Rmgr;
use crate::wal::Record;
use crate::{Relation, cursor};

/// The operation without the flag for a new page.
const OPERATION_MASK: u8 = 0x70;
const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
const MULTI_INSERT: u8 = 0x50;
const IN_PLACE: u8 = 0x70;

/// The row was a speculative insertion that is taken back (`XLH_DELETE_IS_SUPER`).
const DELETE_IS_SUPER: u8 = 1 << 3;
/// The row goes to another partition: an update, by another name (`XLH_DELETE_IS_PARTITION_MOVE`).
const DELETE_IS_PARTITION_MOVE: u8 = 1 << 4;

/// What happens to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowChange {
    /// They are new.
    Inserted,
    /// They have new values.
    Updated,
    /// They are gone.
    Deleted,
}

/// Which rows a record changes: relation, how, how many. `None` for a record that changes none, of
/// whatever resource manager.
#[inline]
pub fn rows(record: &Record<'_>) -> Option<(Relation, RowChange, u32)> {
    let operation = record.header.info & OPERATION_MASK;
    let (change, count) = match (record.header.rmgr, operation) {
        (Rmgr::HEAP, INSERT) => (RowChange::Inserted, 1),
        (Rmgr::HEAP, UPDATE | HOT_UPDATE) => (RowChange::Updated, 1),
        (Rmgr::HEAP, DELETE) => {
            // xmax, offset, infobits, then flags.
            let flags = *record.main_data.get(7)?;
            if flags & DELETE_IS_SUPER != 0 {
                return None;
            }
            let moved = flags & DELETE_IS_PARTITION_MOVE != 0;
            (
                if moved {
                    RowChange::Updated
                } else {
                    RowChange::Deleted
                },
                1,
            )
        }
        // Flags and a byte of padding, then the count.
        (Rmgr::HEAP2, MULTI_INSERT) => (
            RowChange::Inserted,
            u32::from(cursor::at(record.main_data, 2).u16()?),
        ),
        _ => return None,
    };
    Some((record.blocks.first()?.relation, change, count))
}

/// A row of a catalog that all databases share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRow {
    /// The catalog.
    pub relation: Relation,
    /// The row's block.
    pub block: u32,
    /// Its line pointer there.
    pub offset: u16,
}

/// What happens to a row of a shared catalog that tells of a database being dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedRowChange {
    /// It is changed where it is, for everyone at once (`heap_inplace_update`).
    InPlace,
    /// It is deleted.
    Deleted,
}

/// Which row of a shared catalog a record of [`Rmgr::HEAP`] changes in place or deletes.
#[inline]
pub fn shared_row(record: &Record<'_>) -> Option<(SharedRow, SharedRowChange)> {
    let block = record.blocks.first()?;
    if block.relation.database != 0 || record.header.rmgr != Rmgr::HEAP {
        return None;
    }
    // The line pointer comes first, or behind the deleting transaction.
    let (change, at) = match record.header.info & OPERATION_MASK {
        IN_PLACE => (SharedRowChange::InPlace, 0),
        DELETE => (SharedRowChange::Deleted, 4),
        _ => return None,
    };
    let row = SharedRow {
        relation: block.relation,
        block: block.block,
        offset: cursor::at(record.main_data, at).u16()?,
    };
    Some((row, change))
}
