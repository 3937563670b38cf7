//! Resource managers: who wrote a record, and what it means (`access/rmgrlist.h`).
//!
//! Only records whose effect on files or on time goes beyond the blocks they name are taken apart.

pub mod dbase;
pub mod heap;
pub mod relmap;
pub mod smgr;
pub mod standby;
pub mod tblspc;
pub mod xact;
pub mod xlog;

use std::fmt;

use crate::Version;

/// A resource manager's number, the same in 14 to 18. From 128 on they belong to extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rmgr(pub u8);

impl Rmgr {
    /// Checkpoints and the log itself.
    pub const XLOG: Self = Self(0);
    /// Ends of transactions.
    pub const XACT: Self = Self(1);
    /// Creation and truncation of relation files.
    pub const SMGR: Self = Self(2);
    /// Databases.
    pub const DBASE: Self = Self(4);
    /// Tablespaces.
    pub const TBLSPC: Self = Self(5);
    /// Maps from catalogs to files.
    pub const RELMAP: Self = Self(7);
    /// What standbys need.
    pub const STANDBY: Self = Self(8);
    /// Heaps, second part.
    pub const HEAP2: Self = Self(9);
    /// Heaps.
    pub const HEAP: Self = Self(10);

    /// The name that `pg_waldump` prints; `None` for those of extensions.
    pub fn name(self) -> Option<&'static str> {
        BUILT_IN.get(usize::from(self.0)).map(|row| row.0)
    }

    /// Whether `version` writes such records: `operation` is the upper half of a record's `info`.
    ///
    /// A record that is not known may do anything; its blocks are not the whole story.
    pub fn knows(self, operation: u8, version: Version) -> bool {
        let known = match (self, version) {
            // CREATE DATABASE had one record before 15.
            (Self::DBASE, Version::V14) => 0b11,
            // 17 brought `XLOG_CHECKPOINT_REDO`.
            (Self::XLOG, Version::V17 | Version::V18) => 0x6FFF,
            _ => BUILT_IN.get(usize::from(self.0)).map_or(0, |row| row.1),
        };
        known >> (operation >> 4) & 1 != 0
    }
}

impl fmt::Display for Rmgr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "custom{:03}", self.0),
        }
    }
}

/// Name and known operations of each, as bits numbered by the upper half of `info`. From the
/// `XLOG_*` definitions of 15; flags that share the half (`XLOG_XACT_HAS_INFO`,
/// `XLOG_HEAP_INIT_PAGE`, `XLOG_BRIN_INIT_PAGE`) are counted in.
const BUILT_IN: [(&str, u16); 22] = [
    ("XLOG", 0x2FFF),
    ("Transaction", 0x7F7F),
    ("Storage", 0b110),
    ("CLOG", 0b11),
    ("Database", 0b111),
    ("Tablespace", 0b11),
    ("MultiXact", 0b1111),
    ("RelMap", 0b1),
    ("Standby", 0b111),
    ("Heap2", 0xFFFF),
    ("Heap", 0xFFFF),
    ("Btree", 0x7FFF),
    ("Hash", 0x1FFF),
    ("Gin", 0x03FE),
    ("Gist", 0x00CF),
    ("Sequence", 0b1),
    ("SPGist", 0x01FE),
    ("BRIN", 0x3F3F),
    ("CommitTs", 0b11),
    ("ReplicationOrigin", 0b11),
    ("Generic", 0b1),
    ("LogicalMessage", 0b1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_does_not_write_is_unknown() {
        assert!(Rmgr::DBASE.knows(0x20, Version::V15));
        assert!(!Rmgr::DBASE.knows(0x20, Version::V14));
        assert!(!Rmgr::XLOG.knows(0xE0, Version::V16));
        assert!(Rmgr::XLOG.knows(0xE0, Version::V17));
        assert!(!Rmgr::XLOG.knows(0xC0, Version::V15));
        assert!(!Rmgr(22).knows(0, Version::V15));
        assert!(!Rmgr(200).knows(0, Version::V15));
        assert_eq!(Rmgr(200).to_string(), "custom200");
    }
}
