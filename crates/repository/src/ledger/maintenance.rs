//! What maintenance entries say. They stand in a row of their own, `maintenance/<n>` with epochs of its own,
//! so that whoever maintains a lineage need not stop whoever writes it; `docs/formats/ledger.md` tells why.

use borealis_base::{Branch, Position, RecordSpan, Timestamp};
use bytes::Bytes;
use prost::Message;

use super::body::{Closed, Opened};
use super::expiry::{
    Dated, DatedMessage, Deleted, DeletedMessage, Expired, ExpiredMessage, Kept, KeptMessage,
};
use super::message::{
    BadBody, ClosedMessage, ObjectRefMessage, OpenedMessage, SpanMessage, object_ref, read_ref,
    read_span, span,
};
use crate::plan::{Merged, ObjectRef, PieceSummary};
use crate::{Error, Result};

/// The body of a maintenance entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaintenanceBody {
    /// A maintainer has opened: the fence of its epoch.
    Opened(Opened),
    /// The maintainer of an epoch has stopped in good order.
    Closed(Closed),
    /// Log pieces are one object from here on.
    LogMerged(LogMerged),
    /// The floor is to rise, onto this baseline.
    FloorPlanned(FloorPlanned),
    /// What lies below a floor was removed, as far as nothing names it.
    Removed(Removed),
    /// What no promise holds is hidden from here on; the entry's number is its mark.
    Expired(Expired),
    /// Marks were there at a time of the store's clock.
    Dated(Dated),
    /// Some of what had expired is promised after all: it is there again from here on.
    Kept(Kept),
    /// After the grace period the promises were looked at again: so is this, and the rest may be deleted.
    Checked(Kept),
    /// It is deleted.
    Deleted(Deleted),
}

/// See [`MaintenanceBody::LogMerged`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogMerged {
    /// The merged log.
    pub object: ObjectRef,
    /// Branch of the log.
    pub branch: Branch,
    /// First position held.
    pub start: Position,
    /// Position just past the last one held.
    pub end: Position,
    /// The last moment settled before it.
    pub settled_before: Option<Timestamp>,
    /// The last moment settled with it.
    pub settled_after: Option<Timestamp>,
    /// The last record that ends within it.
    pub last_record: Option<RecordSpan>,
    /// Where a parser must begin to understand what follows.
    pub resume_at: Position,
    /// The first ledger entry that it replaces,
    pub first_entry: u64,
    /// and the last one.
    pub last_entry: u64,
    /// The last of these that is a log piece.
    pub last_piece: u64,
    /// When that was written, by its writer's clock.
    pub recorded_at: Timestamp,
    /// How many log pieces it replaces.
    pub parts: u64,
}

/// See [`MaintenanceBody::FloorPlanned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloorPlanned {
    /// The number of the floor.
    pub number: u64,
    /// The lowest ledger entry that it keeps.
    pub lowest: u64,
    /// The lowest maintenance entry that it keeps.
    pub maintenance_lowest: u64,
    /// What the entries below add up to.
    pub baseline: ObjectRef,
}

/// See [`MaintenanceBody::Removed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// The number of the floor.
    pub floor: u64,
}

impl MaintenanceBody {
    /// The highest ledger entry that it speaks of; zero if it speaks of none.
    pub(super) fn speaks_of(&self) -> u64 {
        match self {
            Self::LogMerged(merged) => merged.last_entry,
            Self::Expired(expired) => {
                let forgotten = expired.forgotten.iter().map(|it| it.entry).max();
                expired.selection.highest().max(forgotten.unwrap_or(0))
            }
            Self::Opened(_)
            | Self::Closed(_)
            | Self::FloorPlanned(_)
            | Self::Removed(_)
            | Self::Dated(_)
            | Self::Kept(_)
            | Self::Checked(_)
            | Self::Deleted(_) => 0,
        }
    }
}

impl LogMerged {
    /// The piece that it makes of those that it replaces.
    pub(crate) fn summary(&self) -> PieceSummary {
        PieceSummary {
            entry: self.last_piece,
            recorded_at: self.recorded_at,
            branch: self.branch,
            start: self.start,
            end: self.end,
            settled_before: self.settled_before,
            settled_after: self.settled_after,
            last_record: self.last_record,
            resume_at: self.resume_at,
            stored_bytes: self.object.len,
            head_digest: self.object.head_digest,
            engine: None,
            merged: Some(Merged {
                object: self.object.object,
                first_entry: self.first_entry,
                last_entry: self.last_entry,
                parts: self.parts,
            }),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct MaintenanceMessage {
    #[prost(oneof = "MaintenanceKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    kind: Option<MaintenanceKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum MaintenanceKind {
    #[prost(message, tag = "1")]
    Opened(OpenedMessage),
    #[prost(message, tag = "2")]
    Closed(ClosedMessage),
    #[prost(message, tag = "3")]
    LogMerged(LogMergedMessage),
    #[prost(message, tag = "4")]
    FloorPlanned(FloorPlannedMessage),
    #[prost(message, tag = "5")]
    Removed(RemovedMessage),
    #[prost(message, tag = "6")]
    Expired(ExpiredMessage),
    #[prost(message, tag = "7")]
    Dated(DatedMessage),
    #[prost(message, tag = "8")]
    Kept(KeptMessage),
    #[prost(message, tag = "9")]
    Checked(KeptMessage),
    #[prost(message, tag = "10")]
    Deleted(DeletedMessage),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct RemovedMessage {
    #[prost(uint64, tag = "1")]
    floor: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LogMergedMessage {
    #[prost(message, optional, tag = "1")]
    object: Option<ObjectRefMessage>,
    #[prost(uint32, tag = "2")]
    branch: u32,
    #[prost(uint64, tag = "3")]
    start: u64,
    #[prost(uint64, tag = "4")]
    end: u64,
    #[prost(sint64, optional, tag = "5")]
    settled_before: Option<i64>,
    #[prost(sint64, optional, tag = "6")]
    settled_after: Option<i64>,
    #[prost(message, optional, tag = "7")]
    last_record: Option<SpanMessage>,
    #[prost(uint64, tag = "8")]
    resume_at: u64,
    #[prost(uint64, tag = "9")]
    first_entry: u64,
    #[prost(uint64, tag = "10")]
    last_entry: u64,
    #[prost(uint64, tag = "11")]
    last_piece: u64,
    #[prost(sint64, tag = "12")]
    recorded_at: i64,
    #[prost(uint64, tag = "13")]
    parts: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FloorPlannedMessage {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(uint64, tag = "2")]
    lowest: u64,
    #[prost(uint64, tag = "3")]
    maintenance_lowest: u64,
    #[prost(message, optional, tag = "4")]
    baseline: Option<ObjectRefMessage>,
}

/// The bytes of a body.
pub(super) fn encode(body: &MaintenanceBody) -> Bytes {
    let kind = match body {
        MaintenanceBody::Opened(b) => MaintenanceKind::Opened(OpenedMessage::of(b)),
        MaintenanceBody::Closed(b) => MaintenanceKind::Closed(ClosedMessage { epoch: b.epoch }),
        MaintenanceBody::LogMerged(b) => MaintenanceKind::LogMerged(LogMergedMessage {
            object: Some(object_ref(&b.object)),
            branch: b.branch.0,
            start: b.start.0,
            end: b.end.0,
            settled_before: b.settled_before.map(|t| t.0),
            settled_after: b.settled_after.map(|t| t.0),
            last_record: b.last_record.map(span),
            resume_at: b.resume_at.0,
            first_entry: b.first_entry,
            last_entry: b.last_entry,
            last_piece: b.last_piece,
            recorded_at: b.recorded_at.0,
            parts: b.parts,
        }),
        MaintenanceBody::FloorPlanned(b) => MaintenanceKind::FloorPlanned(FloorPlannedMessage {
            number: b.number,
            lowest: b.lowest,
            maintenance_lowest: b.maintenance_lowest,
            baseline: Some(object_ref(&b.baseline)),
        }),
        MaintenanceBody::Removed(b) => MaintenanceKind::Removed(RemovedMessage { floor: b.floor }),
        MaintenanceBody::Expired(b) => MaintenanceKind::Expired(ExpiredMessage::of(b)),
        MaintenanceBody::Dated(b) => MaintenanceKind::Dated(DatedMessage::of(b)),
        MaintenanceBody::Kept(b) => MaintenanceKind::Kept(KeptMessage::of(b)),
        MaintenanceBody::Checked(b) => MaintenanceKind::Checked(KeptMessage::of(b)),
        MaintenanceBody::Deleted(b) => MaintenanceKind::Deleted(DeletedMessage::of(*b)),
    };
    MaintenanceMessage { kind: Some(kind) }
        .encode_to_vec()
        .into()
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(name: &str, bytes: Bytes) -> Result<MaintenanceBody> {
    read(bytes).map_err(|bad| bad.error(name))
}

fn read(bytes: Bytes) -> Result<MaintenanceBody, BadBody> {
    let message = MaintenanceMessage::decode(bytes).map_err(|_| BadBody::Malformed)?;
    let kind = message.kind.ok_or(BadBody::Unknown)?;
    read_kind(kind).ok_or(BadBody::Malformed)
}

fn read_kind(kind: MaintenanceKind) -> Option<MaintenanceBody> {
    Some(match kind {
        MaintenanceKind::Opened(m) => MaintenanceBody::Opened(m.read()?),
        MaintenanceKind::Closed(m) => MaintenanceBody::Closed(Closed { epoch: m.epoch }),
        MaintenanceKind::LogMerged(m) => MaintenanceBody::LogMerged(LogMerged {
            object: read_ref(m.object.as_ref()?)?,
            branch: Branch(m.branch),
            start: Position(m.start),
            end: Position(m.end),
            settled_before: m.settled_before.map(Timestamp),
            settled_after: m.settled_after.map(Timestamp),
            last_record: m.last_record.as_ref().map(read_span),
            resume_at: Position(m.resume_at),
            first_entry: m.first_entry,
            last_entry: m.last_entry,
            last_piece: m.last_piece,
            recorded_at: Timestamp(m.recorded_at),
            parts: m.parts,
        }),
        MaintenanceKind::FloorPlanned(m) => MaintenanceBody::FloorPlanned(FloorPlanned {
            number: m.number,
            lowest: m.lowest,
            maintenance_lowest: m.maintenance_lowest,
            baseline: read_ref(m.baseline.as_ref()?)?,
        }),
        MaintenanceKind::Removed(m) => MaintenanceBody::Removed(Removed { floor: m.floor }),
        MaintenanceKind::Expired(m) => MaintenanceBody::Expired(m.read()?),
        MaintenanceKind::Dated(m) => MaintenanceBody::Dated(m.read()),
        MaintenanceKind::Kept(m) => MaintenanceBody::Kept(m.read()?),
        MaintenanceKind::Checked(m) => MaintenanceBody::Checked(m.read()?),
        MaintenanceKind::Deleted(m) => MaintenanceBody::Deleted(m.read()),
    })
}

impl BadBody {
    /// The error that says so of the entry `name`.
    pub(super) fn error(self, name: &str) -> Error {
        match self {
            Self::Malformed => Error::damaged(name, "its body is malformed"),
            Self::Unknown => Error::Newer {
                object: name.to_owned(),
                what: "an entry of an unknown kind".to_owned(),
            },
        }
    }
}
