//! What one piece of the log leaves to the next.

use borealis_base::{RecordSpan, Timestamp};

use super::RelationRows;
use super::files::CarriedFiles;
use crate::Lsn;
use crate::wal::Start;

/// The state of an indexer at a cut. Stored beside the index of the piece that the cut ends, it
/// lets another process go on: it reads the kept log from `resume_at` and pushes it, then what
/// follows the cut.
#[derive(Debug, Clone, PartialEq)]
pub struct CarryState {
    /// The rules of the indexer that left it.
    pub rule_set: u32,
    /// Where the cut was.
    pub cut: Lsn,
    /// From where the log must be read again: the start of the first record that had not ended.
    pub resume_at: Lsn,
    /// What is to be found there.
    pub start: Start,
    /// The last record that had ended.
    pub last_record: Option<RecordSpan>,
    /// Where reading failed, if it was failing at the cut.
    pub lost_since: Option<Lsn>,
    /// Everything through this moment is settled.
    pub settled: Option<Timestamp>,
    /// Whether the server's clock went back and has not caught up.
    pub stepped_back: bool,
    /// Whether the log is being written at `wal_level=minimal`.
    pub minimal_log: bool,
    /// Clock samples that the log had not reached: clock and insert position.
    pub samples: Vec<(Timestamp, Lsn)>,
    /// Open transactions that changed rows, but for the smallest, ordered.
    pub transactions: Vec<(u32, Vec<RelationRows>)>,
    /// What open transactions created and dropped.
    pub files: CarriedFiles,
}
