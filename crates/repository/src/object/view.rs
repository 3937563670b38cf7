//! Reading an object. Total on any bytes: every length is checked before it is used.

use std::ops::Range;
use std::sync::Arc;

use borealis_base::ObjectId;
use borealis_keys::{DataKeyId, DataKeys};
use bytes::Bytes;
use prost::Message;

use super::build::sha256;
use super::seal::ObjectCipher;
use super::{
    Codec, END_MAGIC, FORMAT_VERSION, FRAME_PLAIN_BYTES_MAX, FrameKind, HEAD_BYTES_MAX, HeadDigest,
    HeadMessage, KNOWN_FEATURES, MAGIC, ObjectKind, PREFIX_BYTES, TAG_BYTES, TRAILER_BYTES,
};
use crate::{Error, Result};

/// One line of an object's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// What the frame holds.
    pub kind: FrameKind,
    /// Where it begins in the object.
    pub offset: u64,
    /// Bytes in the object, its tag included.
    pub stored_len: u32,
    /// Bytes it holds when opened.
    pub plain_len: u32,
    codec: Codec,
}

/// The head of an object: checked against its checksum, and authenticated as soon as one of its
/// frames has been opened.
#[derive(Debug, Clone)]
pub struct ObjectHead {
    name: Arc<str>,
    kind: ObjectKind,
    id: ObjectId,
    data_key: Option<DataKeyId>,
    frames: Vec<FrameEntry>,
    clear: Bytes,
    digest: HeadDigest,
    object_len: u64,
}

fn le_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl ObjectHead {
    /// How many bytes from 0 hold the whole head, told from the first [`PREFIX_BYTES`].
    ///
    /// # Errors
    /// Damaged where these bytes do not begin an object.
    pub fn bytes_needed(name: &str, prefix: &[u8]) -> Result<u64> {
        let damaged = |what: &str| Error::damaged(name, what);
        if prefix.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            let begins = prefix.len() < MAGIC.len() && MAGIC.starts_with(prefix);
            return Err(damaged(if begins {
                "truncated within its first bytes"
            } else {
                "it does not begin with the magic of a Borealis object"
            }));
        }
        let head_len =
            le_u32(prefix, 16).ok_or_else(|| damaged("truncated within its first bytes"))?;
        if head_len > HEAD_BYTES_MAX {
            return Err(damaged("the length of its head is out of bounds"));
        }
        Ok((PREFIX_BYTES as u64) + u64::from(head_len))
    }

    /// Reads the head from the first bytes of an object; `prefix` may be longer than the head.
    ///
    /// # Errors
    /// Damaged for truncation and checksum; refused for a newer format.
    pub fn parse(name: &str, prefix: &[u8]) -> Result<Self> {
        let needed = Self::bytes_needed(name, prefix)?;
        let damaged = |what: &str| Error::damaged(name, what);
        let head_end = usize::try_from(needed).map_err(|_| damaged("its head is too long"))?;
        let (Some(start), Some(head), Some(crc)) = (
            prefix.get(..20),
            prefix.get(PREFIX_BYTES..head_end),
            le_u32(prefix, 20),
        ) else {
            return Err(damaged("truncated within its head"));
        };
        // The checksum stands in the same place in every version, so it is judged first: a flipped
        // bit in the version must read as damage and not as a newer program.
        if crc32c::crc32c_append(crc32c::crc32c(start), head) != crc {
            return Err(damaged("the checksum of its head does not agree"));
        }
        let kind = Self::check_version(name, start)?;
        let message =
            HeadMessage::decode(head).map_err(|_| damaged("its head is not well formed"))?;
        let id = ObjectId::from_slice(&message.object_id)
            .ok_or_else(|| damaged("its head has no object id"))?;
        let data_key = match message.data_key.as_ref() {
            [] => None,
            bytes => Some(
                DataKeyId::from_slice(bytes)
                    .ok_or_else(|| damaged("its head has a malformed data key id"))?,
            ),
        };
        if data_key.is_none() && kind.must_be_sealed() {
            return Err(damaged("its seal has been removed"));
        }
        let (frames, object_len) = index(name, &message, data_key.is_some(), needed)?;
        Ok(Self {
            name: name.into(),
            kind,
            id,
            data_key,
            frames,
            clear: message.clear,
            digest: sha256(&prefix[..head_end]),
            object_len,
        })
    }

    fn check_version(name: &str, start: &[u8]) -> Result<ObjectKind> {
        let newer = |what: String| Error::Newer {
            object: name.to_owned(),
            what,
        };
        let (Some(version), Some(kind), Some(features)) =
            (le_u16(start, 8), le_u16(start, 10), le_u32(start, 12))
        else {
            return Err(Error::damaged(name, "truncated within its first bytes"));
        };
        if version != FORMAT_VERSION {
            return Err(newer(format!("format version {version}")));
        }
        if features & !KNOWN_FEATURES != 0 {
            let unknown = features & !KNOWN_FEATURES;
            return Err(newer(format!("required feature bits {unknown:#x}")));
        }
        ObjectKind::from_code(kind).ok_or_else(|| newer(format!("object kind {kind}")))
    }

    /// The name it was read under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> ObjectKind {
        self.kind
    }

    /// Its random id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The data key that seals it; `None` where it is unsealed.
    pub fn data_key(&self) -> Option<DataKeyId> {
        self.data_key
    }

    /// The index of its frames.
    pub fn frames(&self) -> &[FrameEntry] {
        &self.frames
    }

    /// The public part of its head.
    pub fn clear(&self) -> &Bytes {
        &self.clear
    }

    /// The digest of its head.
    pub fn digest(&self) -> HeadDigest {
        self.digest
    }

    /// The length that the object must have.
    pub fn object_len(&self) -> u64 {
        self.object_len
    }

    /// This object is damaged in the way that `what` says.
    pub fn damaged(&self, what: impl Into<String>) -> Error {
        Error::damaged(&*self.name, what)
    }

    /// The line of frame `number`.
    pub fn frame(&self, number: u32) -> Result<&FrameEntry> {
        self.frames
            .get(number as usize)
            .ok_or_else(|| self.damaged(format!("it has no frame {number}")))
    }

    /// The numbers of the frames of `kind`.
    pub fn frames_of(&self, kind: FrameKind) -> impl Iterator<Item = u32> + '_ {
        (0_u32..)
            .zip(&self.frames)
            .filter(move |(_, frame)| frame.kind == kind)
            .map(|(number, _)| number)
    }

    /// Where the frames of `numbers` lie in the object; they are neighbours.
    pub fn frame_range(&self, numbers: Range<u32>) -> Result<Range<u64>> {
        let Some(last) = numbers
            .end
            .checked_sub(1)
            .filter(|last| *last >= numbers.start)
        else {
            return Ok(0..0);
        };
        let (first, last) = (self.frame(numbers.start)?, self.frame(last)?);
        Ok(first.offset..last.offset + u64::from(last.stored_len))
    }

    /// Refuses an object of another kind.
    pub fn expect_kind(&self, kind: ObjectKind) -> Result<()> {
        if self.kind == kind {
            return Ok(());
        }
        Err(self.damaged(format!(
            "it holds a {}, where a {} belongs",
            self.kind.name(),
            kind.name()
        )))
    }

    /// Authenticates and opens frame `number` from its stored bytes.
    ///
    /// # Errors
    /// Refused where the data key is not held; damaged where the bytes are not those that were sealed
    /// under this head and number.
    pub fn open_frame(&self, keys: &DataKeys, number: u32, stored: &[u8]) -> Result<Bytes> {
        self.open_with(self.cipher(keys)?.as_ref(), number, stored)
    }

    /// What opens its frames; `None` where it is unsealed.
    fn cipher(&self, keys: &DataKeys) -> Result<Option<ObjectCipher>> {
        let data_key = match self.data_key {
            None => None,
            Some(id) => Some(keys.get(id).ok_or_else(|| Error::UnknownDataKey {
                object: self.name.to_string(),
                key: id,
            })?),
        };
        Ok(data_key.map(|key| ObjectCipher::new(&key.secret, self.id)))
    }

    /// Opens a frame of an unsealed object.
    pub fn open_plain_frame(&self, number: u32, stored: &[u8]) -> Result<Bytes> {
        if self.data_key.is_some() {
            return Err(self.damaged("it is sealed, where an unsealed object belongs"));
        }
        self.open_with(None, number, stored)
    }

    fn open_with(
        &self,
        cipher: Option<&ObjectCipher>,
        number: u32,
        stored: &[u8],
    ) -> Result<Bytes> {
        let frame = *self.frame(number)?;
        if stored.len() != frame.stored_len as usize {
            return Err(self.damaged(format!(
                "frame {number} has {} of {} bytes",
                stored.len(),
                frame.stored_len
            )));
        }
        let mut content = stored.to_vec();
        if let Some(cipher) = cipher {
            let plain_len = cipher
                .open(&self.digest, number, &mut content)
                .map(|plain| plain.len())
                .ok_or_else(|| self.damaged(format!("frame {number} fails authentication")))?;
            content.truncate(plain_len);
        }
        let plain = match frame.codec {
            Codec::Raw => content,
            Codec::Zstd => zstd::bulk::decompress(&content, frame.plain_len as usize)
                .map_err(|_| self.damaged(format!("frame {number} does not decompress")))?,
        };
        if plain.len() != frame.plain_len as usize {
            return Err(self.damaged(format!(
                "frame {number} opens to {} of {} bytes",
                plain.len(),
                frame.plain_len
            )));
        }
        Ok(plain.into())
    }
}

/// Places the frames, and tells the length that the object must have.
fn index(
    name: &str,
    message: &HeadMessage,
    sealed: bool,
    head_end: u64,
) -> Result<(Vec<FrameEntry>, u64)> {
    let damaged = |what: &str| Error::damaged(name, what);
    if sealed && message.frames.is_empty() {
        return Err(damaged("it is sealed and has no frame"));
    }
    let tag = if sealed { TAG_BYTES as u32 } else { 0 };
    let mut offset = head_end;
    let mut frames = Vec::with_capacity(message.frames.len());
    for line in &message.frames {
        let codec = Codec::from_code(line.codec).ok_or_else(|| Error::Newer {
            object: name.to_owned(),
            what: format!("codec {}", line.codec),
        })?;
        let content = line.stored_len.checked_sub(tag);
        let fits = match (codec, content) {
            (_, None) => false,
            (Codec::Raw, Some(content)) => content == line.plain_len,
            (Codec::Zstd, Some(content)) => content < line.plain_len,
        };
        if !fits || line.plain_len > FRAME_PLAIN_BYTES_MAX {
            return Err(damaged("a frame's length is out of bounds"));
        }
        frames.push(FrameEntry {
            kind: FrameKind::try_from(line.kind)
                .map_err(|_| damaged("a frame's kind is out of bounds"))?,
            offset,
            stored_len: line.stored_len,
            plain_len: line.plain_len,
            codec,
        });
        offset = offset
            .checked_add(u64::from(line.stored_len))
            .ok_or_else(|| damaged("its frames are too long"))?;
    }
    Ok((frames, offset.saturating_add(TRAILER_BYTES as u64)))
}

/// A whole object in memory, its checksum verified.
#[derive(Debug, Clone)]
pub struct ObjectView {
    head: ObjectHead,
    bytes: Bytes,
}

impl ObjectView {
    /// Reads a whole object.
    ///
    /// # Errors
    /// As [`ObjectHead::parse`]; damaged also where the length or the checksum of the whole differ.
    pub fn parse(name: &str, bytes: Bytes) -> Result<Self> {
        let head = ObjectHead::parse(name, &bytes)?;
        let len = bytes.len() as u64;
        if len < head.object_len {
            return Err(head.damaged(format!("truncated: {len} of {} bytes", head.object_len)));
        }
        if len > head.object_len {
            return Err(head.damaged(format!("{len} bytes where {} belong", head.object_len)));
        }
        let end = bytes.len() - TRAILER_BYTES;
        if bytes.get(end + 4..) != Some(END_MAGIC.as_slice()) {
            return Err(head.damaged("it does not end with the end mark"));
        }
        if le_u32(&bytes, end) != Some(crc32c::crc32c(&bytes[..end])) {
            return Err(head.damaged("its checksum does not agree"));
        }
        Ok(Self { head, bytes })
    }

    /// The head.
    pub fn head(&self) -> &ObjectHead {
        &self.head
    }

    /// All bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn stored(&self, number: u32) -> Result<&[u8]> {
        let frame = self.head.frame(number)?;
        // The length of the whole was checked, so every frame lies within.
        let start = frame.offset as usize;
        self.bytes
            .get(start..start + frame.stored_len as usize)
            .ok_or_else(|| self.head.damaged("truncated"))
    }

    /// Authenticates and opens frame `number`.
    pub fn frame(&self, keys: &DataKeys, number: u32) -> Result<Bytes> {
        self.head.open_frame(keys, number, self.stored(number)?)
    }

    /// Authenticates every frame: the object is whole, and what its writer sealed.
    ///
    /// # Errors
    /// As [`ObjectHead::open_frame`].
    pub fn authenticate(&self, keys: &DataKeys) -> Result<()> {
        let cipher = self.head.cipher(keys)?;
        let Some(cipher) = cipher else {
            return Ok(());
        };
        let mut content = Vec::new();
        for number in 0..self.head.frames.len() as u32 {
            content.clear();
            content.extend_from_slice(self.stored(number)?);
            if cipher
                .open(&self.head.digest, number, &mut content)
                .is_none()
            {
                let what = format!("frame {number} fails authentication");
                return Err(self.head.damaged(what));
            }
        }
        Ok(())
    }

    /// Opens frame `number` of an unsealed object.
    pub fn plain_frame(&self, number: u32) -> Result<Bytes> {
        self.head.open_plain_frame(number, self.stored(number)?)
    }
}
