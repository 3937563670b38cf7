//! Creation and truncation of relation files (`catalog/storage_xlog.h`). Deletion is part of a
//! transaction's end.

use crate::cursor::Cursor;
use crate::wal::Record;
use crate::wal::record::relation_of;
use crate::{Fork, Relation};

const CREATE: u8 = 0x10;
const TRUNCATE: u8 = 0x20;

const TRUNCATE_HEAP: i32 = 1;
const TRUNCATE_VISIBILITY_MAP: i32 = 2;
const TRUNCATE_FREE_SPACE_MAP: i32 = 4;

/// A record about relation files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmgrRecord {
    /// A fork was created, empty.
    Create {
        /// The relation.
        relation: Relation,
        /// The fork.
        fork: Fork,
    },
    /// Forks were cut off.
    Truncate {
        /// The relation.
        relation: Relation,
        /// How many blocks of the main fork stay.
        blocks: u32,
        /// Whether the main fork is cut.
        main: bool,
        /// Whether the visibility map is cut to match.
        visibility_map: bool,
        /// Whether the free space map is cut to match.
        free_space_map: bool,
    },
}

/// Reads a record of [`crate::wal::Rmgr::SMGR`]; `None` if it is too short or not known.
pub fn parse(record: &Record<'_>) -> Option<SmgrRecord> {
    let mut data = Cursor::new(record.main_data);
    match record.header.operation() {
        CREATE => Some(SmgrRecord::Create {
            relation: relation_of(&mut data)?,
            fork: Fork::from_number(u8::try_from(data.i32()?).ok()?)?,
        }),
        TRUNCATE => {
            let blocks = data.u32()?;
            let relation = relation_of(&mut data)?;
            let flags = data.i32()?;
            Some(SmgrRecord::Truncate {
                relation,
                blocks,
                main: flags & TRUNCATE_HEAP != 0,
                visibility_map: flags & TRUNCATE_VISIBILITY_MAP != 0,
                free_space_map: flags & TRUNCATE_FREE_SPACE_MAP != 0,
            })
        }
        _ => None,
    }
}
