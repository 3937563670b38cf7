//! What ledger entries say. No entry names anything that is not durable when it is appended.

use borealis_base::{Branch, Position, RecordSpan, Timestamp};
use bytes::Bytes;

use super::Holder;
use crate::plan::ObjectRef;

/// The body of a ledger entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryBody {
    /// A writer has opened: the fence of its epoch, and the first entry it wrote.
    Opened(Opened),
    /// The writer of an epoch has stopped in good order.
    Closed(Closed),
    /// A piece of the log; its bytes are in the entry's other frames.
    LogPiece(LogPiece),
    /// A base backup.
    BaseBackup(BaseBackup),
    /// Moments settled without new log.
    Settled(Settled),
    /// Log that was never stored and never will be, or over which nothing may be replayed.
    Gap(Gap),
    /// A branch began.
    BranchStarted(BranchStarted),
    /// The lineage takes no more entries of the log.
    Retired(Retired),
    /// Nothing but what each entry's head says: how far the log was read back. Brings the next recap
    /// closer, which spares readers an entry that the store has lost.
    ReadBack,
    /// What an attempt at a base backup has stored so far.
    PartialBaseBackup(PartialBaseBackup),
    /// What the numbers in the log stood for by name, in the entry's other frames.
    Names(Names),
}

/// See [`EntryBody::Opened`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The epoch that opens.
    pub epoch: u64,
    /// The log that a replay needs begins at a multiple of this many bytes; 1 where it does not.
    pub log_unit: u64,
    /// Who writes.
    pub holder: Holder,
}

/// See [`EntryBody::Closed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The epoch that closes.
    pub epoch: u64,
}

/// See [`EntryBody::LogPiece`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPiece {
    /// Branch of the bytes.
    pub branch: Branch,
    /// First position held.
    pub start: Position,
    /// Position just past the last one held.
    pub end: Position,
    /// The last moment settled before this piece.
    pub settled_before: Option<Timestamp>,
    /// The last moment settled with this piece.
    pub settled_after: Option<Timestamp>,
    /// The last record that ends within the piece.
    pub last_record: Option<RecordSpan>,
    /// Where a parser must begin to understand what follows.
    pub resume_at: Position,
    /// What the engine wants to know of the piece without reading it, opaque; `None` where the writer
    /// did not say.
    pub engine: Option<Bytes>,
}

/// See [`EntryBody::BaseBackup`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackup {
    /// Its manifest.
    pub manifest: ObjectRef,
    /// Branch of `start` and `end`.
    pub branch: Branch,
    /// Where replay must begin.
    pub start: Position,
    /// The first position it can be restored to.
    pub end: Position,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Bytes stored for it that no base backup before it had stored.
    pub new_bytes: u64,
    /// Pages it resolves.
    pub total_pages: u64,
    /// Number of the rule set that chose which pages to read.
    pub rule_set: u32,
    /// The engine's own record of it, opaque.
    pub engine: Bytes,
}

/// See [`EntryBody::PartialBaseBackup`]. It counts until the next entry of its kind or of a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialBaseBackup {
    /// Its partial manifest.
    pub manifest: ObjectRef,
    /// Branch of `start`.
    pub branch: Branch,
    /// Where the attempt began: every page of the manifest is as of this position.
    pub start: Position,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// Bytes stored so far by this attempt and by those that it goes on from.
    pub new_bytes: u64,
    /// Pages that the manifest has.
    pub stored_pages: u64,
    /// Pages that it lacks.
    pub missing_pages: u64,
    /// Number of the rule set that chose which pages to read.
    pub rule_set: u32,
}

/// See [`EntryBody::Names`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Branch of the positions.
    pub branch: Branch,
    /// The names were read when the log had come at least here,
    pub from: Position,
    /// and at most here.
    pub to: Position,
    /// When they were read, by the writer's clock.
    pub taken_at: Timestamp,
    /// Whether these are all names; else they replace some of those before.
    pub whole: bool,
}

/// See [`EntryBody::Settled`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Branch of `last_record`.
    pub branch: Branch,
    /// Every moment up to and including this one is settled.
    pub through: Timestamp,
    /// The last record a restore to it replays.
    pub last_record: RecordSpan,
}

/// See [`EntryBody::Gap`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Branch of the missing log.
    pub branch: Branch,
    /// First missing position.
    pub from: Position,
    /// Where the log goes on.
    pub to: Position,
    /// Why, for people.
    pub reason: String,
}

/// See [`EntryBody::BranchStarted`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchStarted {
    /// The new branch.
    pub branch: Branch,
    /// The branch it left.
    pub parent: Branch,
    /// The first position at which the two may differ.
    pub at: Position,
    /// The engine's own record of the branch, opaque.
    pub history: Bytes,
}

/// See [`EntryBody::Retired`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// Why, for people.
    pub reason: String,
}
