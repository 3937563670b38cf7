//! The ledger's messages, encoded.

use borealis_base::{Branch, LineageId, ObjectId, Position, RecordSpan, Timestamp};
use bytes::Bytes;
use prost::Message;

use super::body::{
    BaseBackup, BranchStarted, Closed, EntryBody, Gap, LogPiece, Names, Opened, PartialBaseBackup,
    Retired, Settled,
};
use super::expiry::{ForgottenMessage, MarkMessage};
use super::holder::Holder;
use crate::plan::ObjectRef;

#[derive(Clone, PartialEq, prost::Message)]
struct BodyMessage {
    #[prost(oneof = "BodyKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12")]
    kind: Option<BodyKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum BodyKind {
    #[prost(message, tag = "1")]
    Opened(OpenedMessage),
    #[prost(message, tag = "2")]
    LogPiece(LogPieceMessage),
    #[prost(message, tag = "3")]
    BaseBackup(BaseBackupMessage),
    #[prost(message, tag = "4")]
    Settled(SettledMessage),
    #[prost(message, tag = "5")]
    Gap(GapMessage),
    #[prost(message, tag = "6")]
    BranchStarted(BranchStartedMessage),
    #[prost(message, tag = "7")]
    Retired(RetiredMessage),
    #[prost(message, tag = "8")]
    Closed(ClosedMessage),
    #[prost(message, tag = "9")]
    PartialBaseBackup(PartialBaseBackupMessage),
    #[prost(message, tag = "10")]
    ReadBack(ReadBackMessage),
    #[prost(message, tag = "12")]
    Names(NamesMessage),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct NamesMessage {
    #[prost(uint32, tag = "1")]
    branch: u32,
    #[prost(uint64, tag = "2")]
    from: u64,
    #[prost(uint64, tag = "3")]
    to: u64,
    #[prost(sint64, tag = "4")]
    taken_at: i64,
    #[prost(bool, tag = "5")]
    whole: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReadBackMessage {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OpenedMessage {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(uint64, tag = "2")]
    log_unit: u64,
    #[prost(message, optional, tag = "3")]
    holder: Option<HolderMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ClosedMessage {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HolderMessage {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(uint32, tag = "2")]
    pid: u32,
    #[prost(uint64, tag = "3")]
    process_start: u64,
    #[prost(string, tag = "4")]
    control: String,
    #[prost(string, tag = "5")]
    program: String,
    #[prost(bool, tag = "6")]
    single_writer: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SpanMessage {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint64, tag = "2")]
    end: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LogPieceMessage {
    #[prost(uint32, tag = "1")]
    branch: u32,
    #[prost(uint64, tag = "2")]
    start: u64,
    #[prost(uint64, tag = "3")]
    end: u64,
    #[prost(sint64, optional, tag = "4")]
    settled_before: Option<i64>,
    #[prost(sint64, optional, tag = "5")]
    settled_after: Option<i64>,
    #[prost(message, optional, tag = "6")]
    last_record: Option<SpanMessage>,
    #[prost(uint64, tag = "7")]
    resume_at: u64,
    #[prost(bytes = "bytes", optional, tag = "8")]
    engine: Option<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ObjectRefMessage {
    #[prost(bytes = "bytes", tag = "1")]
    lineage: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    object: Bytes,
    #[prost(uint64, tag = "3")]
    len: u64,
    #[prost(bytes = "bytes", tag = "4")]
    head_digest: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BaseBackupMessage {
    #[prost(message, optional, tag = "1")]
    manifest: Option<ObjectRefMessage>,
    #[prost(uint32, tag = "2")]
    branch: u32,
    #[prost(uint64, tag = "3")]
    start: u64,
    #[prost(uint64, tag = "4")]
    end: u64,
    #[prost(sint64, tag = "5")]
    started_at: i64,
    #[prost(sint64, tag = "6")]
    ended_at: i64,
    #[prost(uint64, tag = "7")]
    new_bytes: u64,
    #[prost(uint64, tag = "8")]
    total_pages: u64,
    #[prost(uint32, tag = "9")]
    rule_set: u32,
    #[prost(bytes = "bytes", tag = "10")]
    engine: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PartialBaseBackupMessage {
    #[prost(message, optional, tag = "1")]
    manifest: Option<ObjectRefMessage>,
    #[prost(uint32, tag = "2")]
    branch: u32,
    #[prost(uint64, tag = "3")]
    start: u64,
    #[prost(sint64, tag = "4")]
    started_at: i64,
    #[prost(uint64, tag = "5")]
    new_bytes: u64,
    #[prost(uint64, tag = "6")]
    stored_pages: u64,
    #[prost(uint64, tag = "7")]
    missing_pages: u64,
    #[prost(uint32, tag = "8")]
    rule_set: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SettledMessage {
    #[prost(uint32, tag = "1")]
    branch: u32,
    #[prost(sint64, tag = "2")]
    through: i64,
    #[prost(message, optional, tag = "3")]
    last_record: Option<SpanMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GapMessage {
    #[prost(uint32, tag = "1")]
    branch: u32,
    #[prost(uint64, tag = "2")]
    from: u64,
    #[prost(uint64, tag = "3")]
    to: u64,
    #[prost(string, tag = "4")]
    reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BranchStartedMessage {
    #[prost(uint32, tag = "1")]
    branch: u32,
    #[prost(uint32, tag = "2")]
    parent: u32,
    #[prost(uint64, tag = "3")]
    at: u64,
    #[prost(bytes = "bytes", tag = "4")]
    history: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetiredMessage {
    #[prost(string, tag = "1")]
    reason: String,
}

/// The clear part of an epoch; its frame holds a [`HolderMessage`].
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EpochMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) lineage: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) number: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) write_id: Bytes,
    #[prost(sint64, tag = "4")]
    pub(super) taken_at: i64,
}

/// The clear part of a floor; its one frame is empty and authenticates it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FloorMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) lineage: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) number: u64,
    /// The lowest ledger entry that may not be removed.
    #[prost(uint64, tag = "3")]
    pub(super) lowest: u64,
    /// The lowest maintenance entry that may not be removed.
    #[prost(uint64, tag = "4")]
    pub(super) maintenance_lowest: u64,
    /// What the entries below add up to.
    #[prost(message, optional, tag = "5")]
    pub(super) baseline: Option<ObjectRefMessage>,
}

/// The clear part of a baseline.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BaselineMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) lineage: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) lowest: u64,
    #[prost(uint64, tag = "3")]
    pub(super) maintenance_lowest: u64,
}

/// A baseline's first frame.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RootMessage {
    #[prost(message, optional, tag = "1")]
    pub(super) ledger: Option<HalfMessage>,
    #[prost(message, optional, tag = "2")]
    pub(super) maintenance: Option<HalfMessage>,
    #[prost(uint64, tag = "3")]
    pub(super) log_unit: u64,
    #[prost(uint64, tag = "4")]
    pub(super) read_back: u64,
    #[prost(string, optional, tag = "5")]
    pub(super) retired: Option<String>,
    #[prost(message, optional, tag = "6")]
    pub(super) run: Option<RowMessage>,
    #[prost(uint64, tag = "7")]
    pub(super) removed: u64,
    #[prost(message, repeated, tag = "8")]
    pub(super) forgotten: Vec<ForgottenMessage>,
    #[prost(message, repeated, tag = "9")]
    pub(super) marks: Vec<MarkMessage>,
}

/// Where a row of entries stands below a floor.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HalfMessage {
    #[prost(uint64, tag = "1")]
    pub(super) head: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) digest: Bytes,
    #[prost(uint64, tag = "3")]
    pub(super) epoch: u64,
    #[prost(sint64, optional, tag = "4")]
    pub(super) last_recorded_at: Option<i64>,
    #[prost(message, optional, tag = "5")]
    pub(super) last_epoch: Option<EpochRowMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EpochRowMessage {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(uint64, tag = "2")]
    pub(super) entry: u64,
    #[prost(sint64, tag = "3")]
    pub(super) opened_at: i64,
    #[prost(message, optional, tag = "4")]
    pub(super) holder: Option<HolderMessage>,
    #[prost(bool, tag = "5")]
    pub(super) closed: bool,
}

/// A baseline's further frames.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RowsMessage {
    #[prost(message, repeated, tag = "1")]
    pub(super) rows: Vec<RowMessage>,
}

/// What the state keeps of one entry.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RowMessage {
    #[prost(uint64, tag = "1")]
    pub(super) entry: u64,
    #[prost(sint64, tag = "2")]
    pub(super) recorded_at: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) body: Bytes,
    #[prost(uint64, tag = "4")]
    pub(super) stored_len: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) head_digest: Bytes,
    #[prost(message, optional, tag = "6")]
    pub(super) merged: Option<MergedMessage>,
    /// With which maintenance entry it has expired; zero where it has not.
    #[prost(uint64, tag = "7")]
    pub(super) mark: u64,
    /// Of settled moments, when the first of their run was recorded, and the microseconds that are believed to have passed.
    #[prost(sint64, optional, tag = "8")]
    pub(super) run_since: Option<i64>,
    #[prost(uint64, tag = "9")]
    pub(super) run_lasted: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MergedMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) object: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) first_entry: u64,
    #[prost(uint64, tag = "3")]
    pub(super) last_entry: u64,
    #[prost(uint64, tag = "4")]
    pub(super) parts: u64,
}

/// The clear part of a checkpoint; its frames hold items.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckpointMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) lineage: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) number: u64,
    #[prost(uint64, tag = "3")]
    pub(super) last: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) last_digest: Bytes,
    #[prost(uint64, tag = "5")]
    pub(super) last_epoch: u64,
}

pub(super) fn span(span: RecordSpan) -> SpanMessage {
    SpanMessage {
        start: span.start.0,
        end: span.end.0,
    }
}

pub(super) fn read_span(message: &SpanMessage) -> RecordSpan {
    RecordSpan {
        start: Position(message.start),
        end: Position(message.end),
    }
}

pub(super) fn object_ref(object: &ObjectRef) -> ObjectRefMessage {
    ObjectRefMessage {
        lineage: Bytes::copy_from_slice(&object.lineage.0),
        object: Bytes::copy_from_slice(&object.object.0),
        len: object.len,
        head_digest: Bytes::copy_from_slice(&object.head_digest),
    }
}

pub(super) fn read_ref(message: &ObjectRefMessage) -> Option<ObjectRef> {
    Some(ObjectRef {
        lineage: LineageId::from_slice(&message.lineage)?,
        object: ObjectId::from_slice(&message.object)?,
        len: message.len,
        head_digest: message.head_digest.as_ref().try_into().ok()?,
    })
}

pub(super) fn holder(holder: &Holder) -> HolderMessage {
    HolderMessage {
        host: holder.host.clone(),
        pid: holder.pid,
        process_start: holder.process_start,
        control: holder.control.clone(),
        program: holder.program.clone(),
        single_writer: holder.single_writer,
    }
}

pub(super) fn read_holder(message: HolderMessage) -> Holder {
    Holder {
        host: message.host,
        pid: message.pid,
        process_start: message.process_start,
        control: message.control,
        program: message.program,
        single_writer: message.single_writer,
    }
}

impl OpenedMessage {
    pub(super) fn of(opened: &Opened) -> Self {
        Self {
            epoch: opened.epoch,
            log_unit: opened.log_unit,
            holder: Some(holder(&opened.holder)),
        }
    }

    pub(super) fn read(self) -> Option<Opened> {
        Some(Opened {
            epoch: self.epoch,
            log_unit: self.log_unit,
            holder: read_holder(self.holder?),
        })
    }
}

/// The bytes of a body.
pub(super) fn encode(body: &EntryBody) -> Bytes {
    let kind = match body.clone() {
        EntryBody::Opened(b) => BodyKind::Opened(OpenedMessage::of(&b)),
        EntryBody::Closed(b) => BodyKind::Closed(ClosedMessage { epoch: b.epoch }),
        EntryBody::LogPiece(b) => BodyKind::LogPiece(LogPieceMessage {
            branch: b.branch.0,
            start: b.start.0,
            end: b.end.0,
            settled_before: b.settled_before.map(|t| t.0),
            settled_after: b.settled_after.map(|t| t.0),
            last_record: b.last_record.map(span),
            resume_at: b.resume_at.0,
            engine: b.engine,
        }),
        EntryBody::BaseBackup(b) => BodyKind::BaseBackup(BaseBackupMessage {
            manifest: Some(object_ref(&b.manifest)),
            branch: b.branch.0,
            start: b.start.0,
            end: b.end.0,
            started_at: b.started_at.0,
            ended_at: b.ended_at.0,
            new_bytes: b.new_bytes,
            total_pages: b.total_pages,
            rule_set: b.rule_set,
            engine: b.engine,
        }),
        EntryBody::Settled(b) => BodyKind::Settled(SettledMessage {
            branch: b.branch.0,
            through: b.through.0,
            last_record: Some(span(b.last_record)),
        }),
        EntryBody::Gap(b) => BodyKind::Gap(GapMessage {
            branch: b.branch.0,
            from: b.from.0,
            to: b.to.0,
            reason: b.reason,
        }),
        EntryBody::BranchStarted(b) => BodyKind::BranchStarted(BranchStartedMessage {
            branch: b.branch.0,
            parent: b.parent.0,
            at: b.at.0,
            history: b.history,
        }),
        EntryBody::Retired(b) => BodyKind::Retired(RetiredMessage { reason: b.reason }),
        EntryBody::PartialBaseBackup(b) => BodyKind::PartialBaseBackup(PartialBaseBackupMessage {
            manifest: Some(object_ref(&b.manifest)),
            branch: b.branch.0,
            start: b.start.0,
            started_at: b.started_at.0,
            new_bytes: b.new_bytes,
            stored_pages: b.stored_pages,
            missing_pages: b.missing_pages,
            rule_set: b.rule_set,
        }),
        EntryBody::ReadBack => BodyKind::ReadBack(ReadBackMessage {}),
        EntryBody::Names(b) => BodyKind::Names(NamesMessage {
            branch: b.branch.0,
            from: b.from.0,
            to: b.to.0,
            taken_at: b.taken_at.0,
            whole: b.whole,
        }),
    };
    BodyMessage { kind: Some(kind) }.encode_to_vec().into()
}

/// Why a body cannot be read.
pub(super) enum BadBody {
    /// Its bytes are no message.
    Malformed,
    /// It is a message of a kind this program does not know.
    Unknown,
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(bytes: Bytes) -> Result<EntryBody, BadBody> {
    let message = BodyMessage::decode(bytes).map_err(|_| BadBody::Malformed)?;
    let kind = message.kind.ok_or(BadBody::Unknown)?;
    read_kind(kind).ok_or(BadBody::Malformed)
}

fn read_kind(kind: BodyKind) -> Option<EntryBody> {
    Some(match kind {
        BodyKind::Opened(m) => EntryBody::Opened(m.read()?),
        BodyKind::Closed(m) => EntryBody::Closed(Closed { epoch: m.epoch }),
        BodyKind::LogPiece(m) => EntryBody::LogPiece(LogPiece {
            branch: Branch(m.branch),
            start: Position(m.start),
            end: Position(m.end),
            settled_before: m.settled_before.map(Timestamp),
            settled_after: m.settled_after.map(Timestamp),
            last_record: m.last_record.as_ref().map(read_span),
            resume_at: Position(m.resume_at),
            engine: m.engine,
        }),
        BodyKind::BaseBackup(m) => EntryBody::BaseBackup(BaseBackup {
            manifest: read_ref(m.manifest.as_ref()?)?,
            branch: Branch(m.branch),
            start: Position(m.start),
            end: Position(m.end),
            started_at: Timestamp(m.started_at),
            ended_at: Timestamp(m.ended_at),
            new_bytes: m.new_bytes,
            total_pages: m.total_pages,
            rule_set: m.rule_set,
            engine: m.engine,
        }),
        BodyKind::Settled(m) => EntryBody::Settled(Settled {
            branch: Branch(m.branch),
            through: Timestamp(m.through),
            last_record: read_span(m.last_record.as_ref()?),
        }),
        BodyKind::Gap(m) => EntryBody::Gap(Gap {
            branch: Branch(m.branch),
            from: Position(m.from),
            to: Position(m.to),
            reason: m.reason,
        }),
        BodyKind::BranchStarted(m) => EntryBody::BranchStarted(BranchStarted {
            branch: Branch(m.branch),
            parent: Branch(m.parent),
            at: Position(m.at),
            history: m.history,
        }),
        BodyKind::Retired(m) => EntryBody::Retired(Retired { reason: m.reason }),
        BodyKind::PartialBaseBackup(m) => EntryBody::PartialBaseBackup(PartialBaseBackup {
            manifest: read_ref(m.manifest.as_ref()?)?,
            branch: Branch(m.branch),
            start: Position(m.start),
            started_at: Timestamp(m.started_at),
            new_bytes: m.new_bytes,
            stored_pages: m.stored_pages,
            missing_pages: m.missing_pages,
            rule_set: m.rule_set,
        }),
        BodyKind::ReadBack(_) => EntryBody::ReadBack,
        BodyKind::Names(m) => EntryBody::Names(Names {
            branch: Branch(m.branch),
            from: Position(m.from),
            to: Position(m.to),
            taken_at: Timestamp(m.taken_at),
            whole: m.whole,
        }),
    })
}
