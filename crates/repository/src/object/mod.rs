//! The container of every stored object: magic, head with the index of frames, frames, checksum.
//!
//! The index stands at the front, so that one ranged get from 0 reads it whatever the store can do.
//! Everything in the head is public but authenticated: its SHA-256 is associated data of every
//! sealed frame. See `docs/formats/object.md`.

mod build;
mod compress;
mod seal;
mod transfer;
mod view;

pub use build::{ObjectBuilder, PreparedFrame, SealedObject};
pub use transfer::{
    HEAD_PROBE_BYTES, fetch, fetch_frames, fetch_head, fetch_head_with, fetch_with, look_for_key,
};
pub use view::{FrameEntry, ObjectHead, ObjectView};

use bytes::Bytes;

/// First bytes of every object.
pub const MAGIC: [u8; 8] = *b"BOREALIS";
/// Last bytes of every object.
pub const END_MAGIC: [u8; 4] = *b"BEND";
/// The version this program writes and reads.
pub const FORMAT_VERSION: u16 = 1;
/// Required-feature bits this program knows.
pub const KNOWN_FEATURES: u32 = 0;
/// Bytes before the head.
pub const PREFIX_BYTES: usize = 24;
/// Bytes after the frames.
pub const TRAILER_BYTES: usize = 8;
/// Longest head; bounds what a reader allocates for an object it has not authenticated.
pub const HEAD_BYTES_MAX: u32 = 16 << 20;
/// Longest plain frame; bounds what a reader allocates for decompression.
pub const FRAME_PLAIN_BYTES_MAX: u32 = 16 << 20;
/// Bytes a sealed frame is longer than its compressed content.
pub const TAG_BYTES: usize = 16;

/// SHA-256 of an object's first bytes, up to and including the head. Chains the ledger and names
/// the exact object that a reference means.
pub type HeadDigest = [u8; 32];

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// The repository's descriptor.
    Descriptor,
    /// A key ring of the catalog or of a lineage.
    KeyRing,
    /// An entry of the catalog.
    CatalogEntry,
    /// An epoch of a lineage.
    Epoch,
    /// An entry of a lineage's ledger.
    LedgerEntry,
    /// A ledger checkpoint.
    Checkpoint,
    /// A ledger floor.
    Floor,
    /// An entry of a lineage's log of pins.
    Pin,
    /// Frames of pages and blobs.
    Pack,
    /// The manifest of a base backup.
    Manifest,
    /// An entry of a lineage's log of drills.
    Drill,
    /// An entry of a lineage's log of scrubs.
    Scrub,
    /// An entry of a lineage's maintenance.
    MaintenanceEntry,
    /// Log pieces, merged.
    Log,
    /// What the entries below a floor add up to.
    Baseline,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Descriptor,
        Self::KeyRing,
        Self::CatalogEntry,
        Self::Epoch,
        Self::LedgerEntry,
        Self::Checkpoint,
        Self::Floor,
        Self::Pin,
        Self::Pack,
        Self::Manifest,
        Self::Drill,
        Self::Scrub,
        Self::MaintenanceEntry,
        Self::Log,
        Self::Baseline,
    ];

    /// Its number in the format.
    pub const fn code(self) -> u16 {
        match self {
            Self::Descriptor => 1,
            Self::KeyRing => 2,
            Self::CatalogEntry => 3,
            Self::Epoch => 4,
            Self::LedgerEntry => 5,
            Self::Checkpoint => 6,
            Self::Floor => 7,
            Self::Pin => 8,
            Self::Pack => 9,
            Self::Manifest => 10,
            Self::Drill => 21,
            Self::Scrub => 22,
            Self::MaintenanceEntry => 11,
            Self::Log => 12,
            Self::Baseline => 13,
        }
    }

    /// The kind of this number.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Descriptor => "descriptor",
            Self::KeyRing => "key ring",
            Self::CatalogEntry => "catalog entry",
            Self::Epoch => "epoch",
            Self::LedgerEntry => "ledger entry",
            Self::Checkpoint => "checkpoint",
            Self::Floor => "floor",
            Self::Pin => "pin",
            Self::Pack => "pack",
            Self::Manifest => "manifest",
            Self::Drill => "drill",
            Self::Scrub => "scrub",
            Self::MaintenanceEntry => "maintenance entry",
            Self::Log => "merged log",
            Self::Baseline => "baseline",
        }
    }

    /// Whether an object of this kind is never stored unsealed. A reader refuses one that is, or
    /// whoever can write to the store could replace content by removing its seal.
    pub const fn must_be_sealed(self) -> bool {
        !matches!(self, Self::Descriptor | Self::KeyRing)
    }
}

/// How a frame's content is stored before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    const fn code(self) -> u32 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    const fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// How hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// zstd at this level; negative levels are faster.
    Zstd(i32),
    /// zstd with tables that stay in a core's own caches: a sixth less CPU than level 1, for log as
    /// small. For what is compressed while it comes.
    ZstdLowCpu,
}

/// What a frame holds, a number that each object kind gives its own meaning.
pub type FrameKind = u16;

#[derive(Clone, PartialEq, prost::Message)]
struct HeadMessage {
    #[prost(bytes = "bytes", tag = "1")]
    object_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    data_key: Bytes,
    #[prost(message, repeated, tag = "3")]
    frames: Vec<FrameMessage>,
    #[prost(bytes = "bytes", tag = "4")]
    clear: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FrameMessage {
    #[prost(uint32, tag = "1")]
    stored_len: u32,
    #[prost(uint32, tag = "2")]
    plain_len: u32,
    #[prost(uint32, tag = "3")]
    codec: u32,
    #[prost(uint32, tag = "4")]
    kind: u32,
}

#[cfg(test)]
mod tests;
