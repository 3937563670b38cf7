//! Which relation.

use std::fmt;

/// The tablespace `pg_default` (`catalog/pg_tablespace.dat`), in the data directory as `base`.
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// The tablespace `pg_global`, in the data directory as `global`. Its database is 0.
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// A relation's storage: PostgreSQL's `RelFileNode` (14, 15) or `RelFileLocator` (16 and later).
/// The numbers name files, not catalog rows: `number` changes when the relation is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Relation {
    /// The tablespace's object identifier.
    pub tablespace: u32,
    /// The database's object identifier; 0 for what all databases share.
    pub database: u32,
    /// The file's number, a `relfilenode`.
    pub number: u32,
}

impl Relation {
    /// The files of this relation's database in its tablespace.
    pub const fn database_files(self) -> DatabaseFiles {
        DatabaseFiles {
            tablespace: self.tablespace,
            database: self.database,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.number)
    }
}

/// One database's files in one tablespace: a directory that is created, copied and dropped whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DatabaseFiles {
    /// The tablespace's object identifier.
    pub tablespace: u32,
    /// The database's object identifier.
    pub database: u32,
}

/// A part of a relation that has its own files (`common/relpath.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Fork {
    /// The contents.
    #[default]
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// What an unlogged relation is reset to after a crash.
    Init,
}

impl Fork {
    /// Every fork, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Main,
        Self::FreeSpaceMap,
        Self::VisibilityMap,
        Self::Init,
    ];

    /// PostgreSQL's number of the fork, as in the log.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The fork of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// What a file name has between the relation's number and the segment's; empty for the main
    /// fork.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::FreeSpaceMap => "_fsm",
            Self::VisibilityMap => "_vm",
            Self::Init => "_init",
        }
    }
}
