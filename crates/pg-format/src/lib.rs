//! PostgreSQL's bytes, and nothing but bytes: no file is opened here, no clock is read, nothing waits.
//!
//! The path through the crate, from what a replication link delivers to what a base backup needs:
//!
//! ```text
//! bytes of the log, pushed in any split
//!    │  wal::WalReader      pages → whole records, checked; what cannot be read is reported
//!    ▼
//! wal::Record + wal::rmgr   what a record says beyond its block references
//!    │  index::LogIndexer   folds records into what has to be known about a piece of the log
//!    ▼
//! index::LogIndex           change map, time map, redo points, parameter changes, events
//! ```
//!
//! Beside it stand the files of a data directory: what a path is ([`files`]), pages and their
//! checksums ([`page`]), the control file ([`control_file`]), `backup_label` and `tablespace_map`
//! ([`label`]), timeline history files ([`history`]) and the names of log segments ([`segment`]).
//!
//! ```
//! use borealis_pg_format::segment::{LogFile, SegmentSize};
//! use borealis_pg_format::{Lsn, Timeline};
//!
//! let size = SegmentSize::DEFAULT;
//! let file = LogFile::Segment { timeline: Timeline(1), number: size.number_of(Lsn(0x1_2345_6789)) };
//! assert_eq!(file.name(size), "000000010000000100000023");
//! assert_eq!(LogFile::parse("000000010000000100000023", size), Some(file));
//! ```

pub mod control_file;
mod cursor;
pub mod error;
pub mod files;
pub mod history;
pub mod index;
pub mod label;
pub mod page;
pub mod relation;
pub mod segment;
pub mod time;
pub mod version;
pub mod wal;

pub use borealis_base::{Branch as Timeline, Position as Lsn};
pub use control_file::ControlFile;
pub use error::Error;
pub use relation::{DatabaseFiles, Fork, Relation};
pub use version::Version;
