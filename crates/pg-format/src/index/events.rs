//! What a log index holds besides its maps.

use borealis_base::{RecordSpan, TimeStep, Timestamp};

use super::ChangeMap;
use super::files::CreatedRelation;
use crate::control_file::Parameters;
use crate::wal::UnparsedReason;
use crate::{DatabaseFiles, Lsn, Relation, Timeline};

/// A checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedoPoint {
    /// The checkpoint record.
    pub record: RecordSpan,
    /// Where replay from it begins.
    pub redo: Lsn,
    /// Whether the server stopped or ended recovery with it.
    pub shutdown: bool,
    /// The timeline.
    pub timeline: Timeline,
    /// The timeline before, if another began here; else the same.
    pub previous_timeline: Timeline,
    /// Whether full-page writes were on.
    pub full_page_writes: bool,
    /// When it was made, in whole seconds.
    pub time: Timestamp,
}

/// The settings of a server that started with others than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterChange {
    /// The record.
    pub record: RecordSpan,
    /// The new settings, all of them.
    pub parameters: Parameters,
}

/// Full-page writes were turned on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullPageWritesChange {
    /// The record.
    pub record: RecordSpan,
    /// Whether they are on now.
    pub on: bool,
}

/// How many rows of a relation changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RelationRows {
    /// The relation. All zeros stands for relations that were not told apart any more.
    pub relation: Relation,
    /// Rows inserted.
    pub inserted: u64,
    /// Rows updated, also those that went to another partition.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
}

/// Something a person may look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The record that tells of it; for what a transaction did, the record of its commit.
    pub record: RecordSpan,
    /// What it is.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A named place in the log.
    RestorePoint {
        /// Its name, in the server's encoding.
        name: Vec<u8>,
        /// When it was made.
        time: Timestamp,
    },
    /// A promotion, or the end of a recovery to an earlier point.
    TimelineSwitch {
        /// The new timeline.
        timeline: Timeline,
        /// The timeline before.
        previous: Timeline,
        /// When it was.
        time: Timestamp,
    },
    /// Relation files went away with a commit: dropped, truncated, or rewritten. What the transaction
    /// created helps to tell which.
    RelationsDropped {
        /// The transaction.
        xid: u32,
        /// When it committed.
        time: Timestamp,
        /// The relations, at most a fixed number of them.
        relations: Vec<Relation>,
        /// How many there were.
        count: u64,
        /// The relations whose files the same transaction created.
        created: Vec<CreatedRelation>,
        /// Whether those are all that it created. Where it created none, what went away was dropped.
        created_complete: bool,
    },
    /// A relation was cut, by vacuum for the most part.
    RelationTruncated {
        /// The transaction, or 0.
        xid: u32,
        /// The relation.
        relation: Relation,
        /// How many blocks of its main fork are left.
        blocks: u32,
    },
    /// A database's directory was created.
    DatabaseCreated {
        /// The directory.
        files: DatabaseFiles,
        /// The directory it was copied from, where its pages are not in the log.
        source: Option<DatabaseFiles>,
    },
    /// A database was dropped, or moved away from these tablespaces.
    DatabaseDropped {
        /// The database.
        database: u32,
        /// The tablespaces it had files in.
        tablespaces: Vec<u32>,
    },
    /// A tablespace was created.
    TablespaceCreated {
        /// Its object identifier.
        tablespace: u32,
        /// Its absolute directory.
        path: Vec<u8>,
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// Its object identifier.
        tablespace: u32,
    },
    /// A transaction that dropped databases or tablespaces committed.
    DropCommitted {
        /// The transaction.
        xid: u32,
        /// When it committed.
        time: Timestamp,
        /// The last position at which all of it was there and could be used. It lies before the
        /// event's record: directories are removed, and databases marked as invalid, before the commit.
        before: Lsn,
        /// The databases. A database that was moved to another tablespace is not dropped.
        databases: Vec<u32>,
        /// The tablespaces.
        tablespaces: Vec<u32>,
    },
    /// A relation map was replaced.
    RelationMapChanged {
        /// The directory it lies in; `global` where the database is 0.
        files: DatabaseFiles,
    },
    /// A transaction deleted or updated many rows.
    RowsChanged {
        /// The transaction.
        xid: u32,
        /// When it committed.
        time: Timestamp,
        /// How many rows of which relations, ordered by relation.
        relations: Vec<RelationRows>,
    },
    /// The server's clock went back: a commit is more than a second earlier than a time already
    /// settled.
    ClockStep {
        /// The last settled time.
        from: Timestamp,
        /// The commit's time.
        to: Timestamp,
    },
}

/// A place where the log could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unparsed {
    /// The start of the record that was expected or could not be read. It can lie in an earlier
    /// piece.
    pub from: Lsn,
    /// Why.
    pub reason: UnparsedReason,
}

/// Everything known about a piece of the log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogIndex {
    /// The rules that made it, [`super::RULE_SET`].
    pub rule_set: u32,
    /// The piece begins here: where the one before it was cut.
    pub start: Lsn,
    /// The piece ends here. It describes the records that end in `(start, end]`.
    pub end: Lsn,
    /// The start of the first of its records; can lie in the piece before. At the very beginning of
    /// a log, what ends before this was never read.
    pub first_record_start: Option<Lsn>,
    /// The last of its records.
    pub last_record: Option<RecordSpan>,
    /// How many records it describes.
    pub records: u64,
    /// Which blocks changed.
    pub change_map: ChangeMap,
    /// Which moments lie where.
    pub time_steps: Vec<TimeStep>,
    /// Its checkpoints.
    pub redo_points: Vec<RedoPoint>,
    /// Its parameter changes.
    pub parameter_changes: Vec<ParameterChange>,
    /// Its changes of full-page writes.
    pub full_page_writes: Vec<FullPageWritesChange>,
    /// What a person may look for.
    pub events: Vec<Event>,
    /// Events beyond the most that one index holds.
    pub events_left_out: u64,
    /// Databases whose catalogs changed with a commit, ordered; 0 for the catalogs that all share, and
    /// [`super::MANY_DATABASES`] alone for more than can be listed.
    pub catalogs_changed: Vec<u32>,
    /// Transactions whose rows were no longer counted, because too many were open.
    pub transactions_left_out: u64,
    /// Clock samples that were thinned out, because the log lagged too far behind them.
    pub samples_left_out: u64,
    /// Where the log could not be read, at most a fixed number of places.
    pub unparsed: Vec<Unparsed>,
    /// Places beyond those.
    pub unparsed_left_out: u64,
}
