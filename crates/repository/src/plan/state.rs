//! What a lineage's ledger says, as plain values.
//!
//! The fold over the ledger fills these, and every rule of this module reads nothing else, so that
//! windows, restore plans, pin retention and verification rest on the same facts.

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_base::{Branch, LineageId, ObjectId, Position, RecordSpan, Timestamp};
use bytes::Bytes;

use super::DamagedBaseBackup;
use crate::layout;
use crate::object::ObjectKind;

/// A log piece: log bytes `[start, end)` of one branch, stored in one ledger entry or, merged with its
/// neighbours, in an object of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceSummary {
    /// Number of the ledger entry that holds the piece; where it was merged, of the last one that did.
    pub entry: u64,
    /// When the entry was written, by the writer's clock.
    pub recorded_at: Timestamp,
    /// Branch of the bytes.
    pub branch: Branch,
    /// First position held.
    pub start: Position,
    /// Position just past the last one held.
    pub end: Position,
    /// The last moment settled before this piece, `None` if there was none.
    pub settled_before: Option<Timestamp>,
    /// The last moment settled with this piece; not below `settled_before`.
    pub settled_after: Option<Timestamp>,
    /// The last record that ends within `(start, end]`, `None` if none does.
    pub last_record: Option<RecordSpan>,
    /// Where a parser must begin to understand what follows this piece: `end`, or the start of the
    /// record that crosses it.
    pub resume_at: Position,
    /// Size of the stored object.
    pub stored_bytes: u64,
    /// SHA-256 of the stored object's head, which binds every frame.
    pub head_digest: [u8; 32],
    /// What the engine said of the piece in few bytes, opaque; `None` where it did not. Of merged log the
    /// object says it of each part.
    pub engine: Option<Bytes>,
    /// The object that replaces the ledger entries, where the piece was merged.
    pub merged: Option<Merged>,
}

/// Which ledger entries a merged log piece replaces, and where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// The object.
    pub object: ObjectId,
    /// The first ledger entry that it replaces.
    pub first_entry: u64,
    /// The last one: of the entries between, all log pieces and settled moments.
    pub last_entry: u64,
    /// How many log pieces it is made of.
    pub parts: u64,
}

impl PieceSummary {
    /// The name of the object that holds it.
    pub fn object_name(&self, lineage: LineageId) -> String {
        match &self.merged {
            Some(merged) => layout::merged_log(lineage, merged.object),
            None => layout::entry(lineage, self.entry),
        }
    }

    /// The kind of the object that holds it.
    pub fn object_kind(&self) -> ObjectKind {
        if self.merged.is_some() {
            ObjectKind::Log
        } else {
            ObjectKind::LedgerEntry
        }
    }

    /// How many log pieces the source's writer stored it as.
    pub fn parts(&self) -> u64 {
        self.merged.map_or(1, |merged| merged.parts)
    }
}

/// What the numbers in the log stood for by name, stored in one ledger entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesSummary {
    /// Number of the ledger entry that holds them.
    pub entry: u64,
    /// Branch of the positions.
    pub branch: Branch,
    /// They were read when the log had come at least here,
    pub from: Position,
    /// and at most here.
    pub to: Position,
    /// When they were read, by the writer's clock.
    pub taken_at: Timestamp,
    /// Whether these are all names; else they replace some of those before.
    pub whole: bool,
    /// Size of the stored entry.
    pub stored_bytes: u64,
    /// SHA-256 of the stored entry's head, which binds every frame.
    pub head_digest: [u8; 32],
}

/// A base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupSummary {
    /// Number of the ledger entry that names it.
    pub entry: u64,
    /// When the entry was written, by the writer's clock.
    pub recorded_at: Timestamp,
    /// Its manifest.
    pub manifest: ObjectRef,
    /// Branch of `start` and `end`.
    pub branch: Branch,
    /// Where replay must begin.
    pub start: Position,
    /// Where its pages become consistent: the first position it can be restored to.
    pub end: Position,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Bytes stored for it that no base backup before it had stored.
    pub new_bytes: u64,
    /// Pages it resolves, its own and shared ones.
    pub total_pages: u64,
    /// Number of the rule set that chose which pages to read.
    pub rule_set: u32,
}

/// What an attempt at a base backup has stored so far. Nothing can be restored from it; the next attempt
/// goes on from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialSummary {
    /// Number of the ledger entry that names it.
    pub entry: u64,
    /// When the entry was written, by the writer's clock.
    pub recorded_at: Timestamp,
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

/// A stored object, by a name that nothing else can take and the digest of its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// Lineage under whose name it is stored: an ancestor's, where pages are shared.
    pub lineage: LineageId,
    /// Which object.
    pub object: ObjectId,
    /// Its stored length in bytes.
    pub len: u64,
    /// SHA-256 of its head, which binds every frame.
    pub head_digest: [u8; 32],
}

/// Moments settled without new log: the heartbeat of an idle cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledSummary {
    /// Number of the ledger entry.
    pub entry: u64,
    /// When the entry was written, by the writer's clock.
    pub recorded_at: Timestamp,
    /// Branch of `last_record`.
    pub branch: Branch,
    /// Every moment not settled before, up to and including this one, is settled here.
    pub through: Timestamp,
    /// The last record a restore to such a moment replays.
    pub last_record: RecordSpan,
    /// How long the same record had been settled again and again before, of which only this entry is kept.
    pub run: Run,
}

/// Entries that follow each other and of which only the last one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// When the first was written, by the writer's clock.
    pub since: Timestamp,
    /// The time between them as far as each step is believed, see
    /// [`RECORDED_STEP_MAX`](crate::retention::RECORDED_STEP_MAX).
    pub lasted: Duration,
}

impl Run {
    /// A single entry.
    pub const fn at(recorded_at: Timestamp) -> Self {
        Self {
            since: recorded_at,
            lasted: Duration::ZERO,
        }
    }
}

/// Moments that entries had settled of which nothing is kept any more: they expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// The last of these entries. What comes behind it in the ledger settles none of the moments
    pub entry: u64,
    /// up to this one: it would give them another meaning than they had.
    pub through: Timestamp,
}

/// Log that was never stored and never will be, or over which nothing may be replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapSummary {
    /// Number of the ledger entry.
    pub entry: u64,
    /// Branch of the missing log.
    pub branch: Branch,
    /// First missing position.
    pub from: Position,
    /// Where the log goes on. May equal `from`: the log on both sides is there, and replay must
    /// not cross.
    pub to: Position,
    /// Why, for people.
    pub reason: String,
}

/// How a branch began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchSummary {
    /// Number of the ledger entry.
    pub entry: u64,
    /// The branch it left.
    pub parent: Branch,
    /// The first position at which the two may differ.
    pub at: Position,
    /// The engine's own record of the branch, opaque.
    pub history: Bytes,
}

/// A snapshot: a position kept restorable under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinSummary {
    /// Its number in the log of pins.
    pub number: u64,
    /// Its name, unique among the pins that stand.
    pub name: String,
    /// Branch of `last_record`.
    pub branch: Branch,
    /// The last record a restore to it replays.
    pub last_record: RecordSpan,
    /// The moment it stands for, by the source's clock.
    pub time: Option<Timestamp>,
    /// Free text.
    pub note: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// Everything a lineage's ledger and pins say, each list in ledger order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineageState {
    /// Which lineage.
    pub lineage: LineageId,
    /// The log a replay needs begins at a multiple of this many bytes at or before a base backup's
    /// start, because the engine reads its log in such units. 1 where it does not.
    pub log_unit: u64,
    /// The last entry folded in; zero if none.
    pub head: u64,
    /// Each log piece in an entry up to this one was read back from the store, or its range withdrawn.
    pub read_back: u64,
    /// Log pieces.
    pub pieces: Vec<PieceSummary>,
    /// Base backups.
    pub base_backups: Vec<BaseBackupSummary>,
    /// Base backups that a scrub found lost or damaged in part; they are not among the others.
    pub damaged: Vec<DamagedBaseBackup>,
    /// The newest partial base backup, if no base backup came after it.
    pub partial: Option<PartialSummary>,
    /// Settled moments without log.
    pub settled: Vec<SettledSummary>,
    /// Moments whose meaning has expired.
    pub forgotten: Vec<Forgotten>,
    /// Missing log.
    pub gaps: Vec<GapSummary>,
    /// Names, in the order of their entries.
    pub names: Vec<NamesSummary>,
    /// How branches began; one that is not here has no parent.
    pub branches: BTreeMap<Branch, BranchSummary>,
    /// Pins that stand.
    pub pins: Vec<PinSummary>,
    /// Why the lineage takes no more log, if it does not.
    pub retired: Option<String>,
}

impl LineageState {
    /// A lineage of which nothing is stored.
    pub fn empty(lineage: LineageId) -> Self {
        Self {
            lineage,
            log_unit: 1,
            head: 0,
            read_back: 0,
            pieces: Vec::new(),
            base_backups: Vec::new(),
            damaged: Vec::new(),
            partial: None,
            settled: Vec::new(),
            forgotten: Vec::new(),
            gaps: Vec::new(),
            names: Vec::new(),
            branches: BTreeMap::new(),
            pins: Vec::new(),
            retired: None,
        }
    }

    /// The log pieces that are not known to have been read back, in the order of their entries.
    pub fn unread_pieces(&self) -> &[PieceSummary] {
        let read = (self.pieces).partition_point(|piece| piece.entry <= self.read_back);
        self.pieces.get(read..).unwrap_or_default()
    }

    /// Whether a gap was declared over all of `piece`: it is stored, and nothing may rest on it.
    pub fn is_withdrawn(&self, piece: &PieceSummary) -> bool {
        (self.gaps.iter())
            .any(|gap| gap.branch == piece.branch && gap.from <= piece.start && piece.end <= gap.to)
    }
}
