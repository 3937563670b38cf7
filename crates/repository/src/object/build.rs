//! Making an object.

use std::borrow::Borrow;

use aws_lc_rs::digest::{SHA256, digest};
use borealis_base::ObjectId;
use borealis_keys::DataKey;
use bytes::Bytes;
use prost::Message;

use super::compress::compress;
use super::seal::ObjectCipher;
use super::{
    Codec, Compression, END_MAGIC, FORMAT_VERSION, FRAME_PLAIN_BYTES_MAX, FrameKind, FrameMessage,
    HEAD_BYTES_MAX, HeadDigest, HeadMessage, KNOWN_FEATURES, MAGIC, ObjectKind, PREFIX_BYTES,
    TAG_BYTES, TRAILER_BYTES,
};

/// A frame compressed and not yet sealed. Making one is a pure function of its content, so many
/// threads can prepare the frames of one object.
#[derive(Debug, Clone)]
pub struct PreparedFrame {
    kind: FrameKind,
    codec: Codec,
    plain_len: u32,
    content: Vec<u8>,
}

impl PreparedFrame {
    /// Compresses `plain`. A frame that would not shrink is stored as it is.
    ///
    /// # Panics
    /// Where `plain` is longer than [`FRAME_PLAIN_BYTES_MAX`], which no reader would accept.
    pub fn new(kind: FrameKind, compression: Compression, plain: &[u8]) -> Self {
        assert!(
            plain.len() <= FRAME_PLAIN_BYTES_MAX as usize,
            "a frame holds at most {FRAME_PLAIN_BYTES_MAX} bytes"
        );
        let compressed = match compression {
            Compression::None => None,
            Compression::Zstd(_) | Compression::ZstdLowCpu => Some(compress(compression, plain)),
        };
        let (codec, content) = match compressed {
            Some(content) if content.len() < plain.len() => (Codec::Zstd, content),
            _ => (Codec::Raw, plain.to_vec()),
        };
        Self {
            kind,
            codec,
            plain_len: plain.len() as u32,
            content,
        }
    }

    /// Bytes it takes in an object, without its line in the index.
    pub fn stored_len(&self) -> u64 {
        (self.content.len() + TAG_BYTES) as u64
    }

    /// Bytes it holds when opened.
    pub fn plain_len(&self) -> u32 {
        self.plain_len
    }

    /// What it holds.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }
}

/// An object ready to be created in the store.
#[derive(Debug, Clone)]
pub struct SealedObject {
    /// Its random id.
    pub id: ObjectId,
    /// All its bytes.
    pub bytes: Bytes,
    /// The digest of its head.
    pub head_digest: HeadDigest,
}

/// Collects the parts of one object.
pub struct ObjectBuilder {
    kind: ObjectKind,
    id: ObjectId,
    key: Option<DataKey>,
    clear: Vec<u8>,
    frames: Vec<PreparedFrame>,
}

impl ObjectBuilder {
    /// An object that `key` seals; `None` leaves it unsealed, which only descriptors and key rings
    /// may be.
    ///
    /// `id` must be random and used for this one object only: the object's key is derived from it.
    pub fn new(kind: ObjectKind, id: ObjectId, key: Option<impl Borrow<DataKey>>) -> Self {
        assert!(
            key.is_some() || !kind.must_be_sealed(),
            "a {} is always sealed",
            kind.name()
        );
        Self {
            kind,
            id,
            key: key.map(|key| key.borrow().clone()),
            clear: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Sets the public part of the head, whose meaning the object's kind defines.
    pub fn clear(&mut self, clear: Vec<u8>) -> &mut Self {
        self.clear = clear;
        self
    }

    /// Compresses and adds a frame; returns its number.
    pub fn push_frame(&mut self, kind: FrameKind, compression: Compression, plain: &[u8]) -> u32 {
        self.push(PreparedFrame::new(kind, compression, plain))
    }

    /// Adds a frame; returns its number.
    pub fn push(&mut self, frame: PreparedFrame) -> u32 {
        self.frames.push(frame);
        self.frames.len() as u32 - 1
    }

    /// How many frames it has.
    pub fn frame_count(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Bytes its frames take.
    pub fn frame_bytes(&self) -> u64 {
        self.frames.iter().map(PreparedFrame::stored_len).sum()
    }

    /// Seals the frames and assembles the object. A sealed object without frames gets an empty one,
    /// since only frames authenticate the head.
    ///
    /// # Panics
    /// Where the head would be longer than [`HEAD_BYTES_MAX`]; some million frames.
    pub fn seal(mut self) -> SealedObject {
        if self.frames.is_empty() && self.key.is_some() {
            self.push_frame(0, Compression::None, &[]);
        }
        let tag = if self.key.is_some() { TAG_BYTES } else { 0 };
        let head = HeadMessage {
            object_id: Bytes::copy_from_slice(&self.id.0),
            data_key: match &self.key {
                Some(key) => Bytes::copy_from_slice(&key.id.0),
                None => Bytes::new(),
            },
            frames: (self.frames.iter())
                .map(|frame| FrameMessage {
                    stored_len: (frame.content.len() + tag) as u32,
                    plain_len: frame.plain_len,
                    codec: frame.codec.code(),
                    kind: u32::from(frame.kind),
                })
                .collect(),
            clear: std::mem::take(&mut self.clear).into(),
        }
        .encode_to_vec();
        assert!(head.len() <= HEAD_BYTES_MAX as usize, "the head is bounded");

        let frame_bytes: usize = self.frames.iter().map(|f| f.content.len() + tag).sum();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + head.len() + frame_bytes + TRAILER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.kind.code().to_le_bytes());
        bytes.extend_from_slice(&KNOWN_FEATURES.to_le_bytes());
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &head);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&head);
        let head_digest = sha256(&bytes);

        let cipher = (self.key.as_ref()).map(|key| ObjectCipher::new(&key.secret, self.id));
        for (number, frame) in (0_u32..).zip(self.frames) {
            let mut content = frame.content;
            if let Some(cipher) = &cipher {
                cipher.seal(&head_digest, number, &mut content);
            }
            bytes.extend_from_slice(&content);
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&END_MAGIC);
        SealedObject {
            id: self.id,
            bytes: bytes.into(),
            head_digest,
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> HeadDigest {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}
