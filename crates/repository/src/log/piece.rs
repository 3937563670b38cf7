//! A log piece within its ledger entry, or merged with its neighbours: the time map, the engine's index,
//! and the bytes.
//!
//! Each frame begins with the same header, so that no frame of another piece can pass for it:
//!
//! ```text
//! 0   16  lineage
//! 16  4   branch, u32 LE
//! 20  8   position of the piece's first byte, u64 LE
//! 28  ..  content
//! ```

use std::ops::Range;
use std::sync::Arc;

use borealis_base::{Branch, LineageId, Position, TimeStep};
use borealis_keys::DataKeys;
use bytes::Bytes;

use super::merged::{FRAME_PART_INDEXES, FRAME_PARTS, Part, decode_parts, groups};
use super::time_map::{decode_steps, encode_steps};
use crate::object::{
    Compression, FrameKind, ObjectHead, ObjectView, PreparedFrame, fetch_frames, fetch_head_with,
};
use crate::plan::PieceSummary;
use crate::store::Store;
use crate::wire::Malformed;
use crate::{Error, Result};

/// Frame of the time map.
pub const FRAME_TIME_MAP: FrameKind = 16;
/// Frame of the engine's log index.
pub const FRAME_LOG_INDEX: FrameKind = 17;
/// Frame of log bytes; they stand in the order of the log.
pub const FRAME_LOG_BYTES: FrameKind = 18;

/// Log bytes in one frame; only a piece's last one may hold fewer.
pub const LOG_FRAME_BYTES: usize = 1 << 20;
/// Bytes of a log piece at most; bounds what a reader holds.
pub const PIECE_BYTES_MAX: u64 = 1 << 30;

const HEADER_BYTES: usize = 28;

/// Which piece a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceIdentity {
    /// The lineage.
    pub lineage: LineageId,
    /// The branch.
    pub branch: Branch,
    /// The first position.
    pub start: Position,
}

impl PieceIdentity {
    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..16].copy_from_slice(&self.lineage.0);
        header[16..20].copy_from_slice(&self.branch.0.to_le_bytes());
        header[20..].copy_from_slice(&self.start.0.to_le_bytes());
        header
    }

    /// A frame of `content`, laid out in `plain`, which serves one frame after the other.
    pub(crate) fn frame(
        &self,
        kind: FrameKind,
        compression: Compression,
        content: &[u8],
        plain: &mut Vec<u8>,
    ) -> PreparedFrame {
        plain.clear();
        plain.extend_from_slice(&self.header());
        plain.extend_from_slice(content);
        PreparedFrame::new(kind, compression, plain)
    }
}

/// Lays out and compresses a piece's frames, to follow the body of its ledger entry. Pure; takes the
/// processor for as long as the compression needs.
pub fn prepare_piece(
    identity: &PieceIdentity,
    bytes: &[u8],
    steps: &[TimeStep],
    index: &[u8],
    compression: Compression,
) -> Result<Vec<PreparedFrame>, Malformed> {
    if bytes.is_empty() || bytes.len() as u64 > PIECE_BYTES_MAX {
        return Err(Malformed(format!(
            "a log piece of {} bytes is out of bounds",
            bytes.len()
        )));
    }
    let mut plain = Vec::new();
    let mut frame = |kind, content: &[u8]| identity.frame(kind, compression, content, &mut plain);
    let mut frames = vec![
        frame(FRAME_TIME_MAP, &encode_steps(steps)?),
        frame(FRAME_LOG_INDEX, index),
    ];
    let chunks = bytes.chunks(LOG_FRAME_BYTES);
    frames.extend(chunks.map(|chunk| frame(FRAME_LOG_BYTES, chunk)));
    Ok(frames)
}

/// Bytes `[position, position + bytes.len())` of a branch's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBytes {
    /// The branch.
    pub branch: Branch,
    /// Position of the first byte.
    pub position: Position,
    /// The bytes.
    pub bytes: Bytes,
}

/// A stored log piece, its head read and its shape checked against what the ledger says.
pub struct StoredPiece {
    store: Arc<dyn Store>,
    keys: Arc<DataKeys>,
    identity: PieceIdentity,
    piece: PieceSummary,
    head: Arc<ObjectHead>,
    known: Bytes,
    log_frames: Range<u32>,
}

impl StoredPiece {
    /// Reads the head of the object that holds `piece`.
    pub async fn open(
        store: &Arc<dyn Store>,
        keys: &Arc<DataKeys>,
        lineage: LineageId,
        piece: &PieceSummary,
    ) -> Result<Self> {
        let name = piece.object_name(lineage);
        let (head, known) = fetch_head_with(&**store, keys, &name, piece.object_kind())
            .await
            .map_err(|error| error.named_by("the ledger"))?;
        check_entry(&head, piece)?;
        let identity = PieceIdentity {
            lineage,
            branch: piece.branch,
            start: piece.start,
        };
        let log_frames = log_frames(&head, piece)?;
        Ok(Self {
            store: Arc::clone(store),
            keys: Arc::clone(keys),
            identity,
            piece: piece.clone(),
            head: Arc::new(head),
            known,
            log_frames,
        })
    }

    /// The object's head.
    pub fn head(&self) -> &Arc<ObjectHead> {
        &self.head
    }

    /// The time map.
    pub async fn time_steps(&self) -> Result<Vec<TimeStep>> {
        let content = self.single(FRAME_TIME_MAP, "time map").await?;
        decode_steps(&content).map_err(|error| self.head.damaged(error.to_string()))
    }

    /// What it is made of: itself, or the pieces that were merged.
    pub async fn parts(&self) -> Result<Vec<Part>> {
        if self.piece.merged.is_some() {
            let content = self.single(FRAME_PARTS, "list of parts").await?;
            return decode_parts(&content, self.piece.start, self.piece.end)
                .map_err(|error| self.head.damaged(error.to_string()));
        }
        let mut frames = self.head.frames_of(FRAME_LOG_INDEX);
        let frame = frames.next().map(|number| self.head.frame(number));
        let plain_len = frame.transpose()?.map_or(0, |frame| frame.plain_len);
        Ok(vec![Part {
            entry: self.piece.entry,
            start: self.piece.start,
            end: self.piece.end,
            recorded_at: self.piece.recorded_at,
            engine: self.piece.engine.clone(),
            index_len: plain_len.saturating_sub(HEADER_BYTES as u32),
        }])
    }

    /// The engine's indexes of the parts that hold some of `[from, to)`, in order.
    pub async fn indexes(&self, from: Position, to: Position) -> Result<Vec<Bytes>> {
        if self.piece.merged.is_none() {
            return Ok(vec![self.single(FRAME_LOG_INDEX, "log index").await?]);
        }
        let parts = self.parts().await?;
        let wanted = |part: &Part| part.start < to && from < part.end;
        self.part_indexes(&parts, wanted).await
    }

    /// The engine's index of the last part.
    pub async fn last_index(&self) -> Result<Bytes> {
        let end = self.piece.end;
        let mut indexes = self.indexes(Position(end.0.saturating_sub(1)), end).await?;
        let last = indexes.pop();
        last.ok_or_else(|| {
            self.head
                .damaged("it does not hold the index of its last part")
        })
    }

    /// The indexes of those of `parts`, which are all there are, that are `wanted`.
    pub async fn part_indexes(
        &self,
        parts: &[Part],
        wanted: impl Fn(&Part) -> bool,
    ) -> Result<Vec<Bytes>> {
        if self.piece.merged.is_none() {
            if !parts.iter().any(wanted) {
                return Ok(Vec::new());
            }
            return Ok(vec![self.single(FRAME_LOG_INDEX, "log index").await?]);
        }
        let numbers: Vec<u32> = self.head.frames_of(FRAME_PART_INDEXES).collect();
        let lens = parts.iter().map(|part| part.index_len as usize);
        let groups: Vec<Range<usize>> = groups(lens).collect();
        if numbers.len() != groups.len() {
            return Err(self.head.damaged("its indexes are not those of its parts"));
        }
        let mut out = Vec::new();
        for (number, group) in numbers.into_iter().zip(groups) {
            let parts = parts.get(group).unwrap_or_default();
            if !parts.iter().any(&wanted) {
                continue;
            }
            let range = number..number + 1;
            let stored = fetch_frames(&*self.store, &self.head, &self.known, range).await?;
            let plain = self.head.open_frame(&self.keys, number, &stored)?;
            let mut content = self.content(number, &plain)?;
            let total: usize = parts.iter().map(|part| part.index_len as usize).sum();
            if content.len() != total {
                return Err(self.head.damaged(format!(
                    "frame {number} holds {} bytes of indexes, and its parts say {total}",
                    content.len()
                )));
            }
            for part in parts {
                let index = content.split_to(part.index_len as usize);
                if wanted(part) {
                    out.push(index);
                }
            }
        }
        Ok(out)
    }

    async fn single(&self, kind: FrameKind, what: &str) -> Result<Bytes> {
        let mut numbers = self.head.frames_of(kind);
        let (Some(number), None) = (numbers.next(), numbers.next()) else {
            return Err(self.head.damaged(format!("it does not hold one {what}")));
        };
        let stored =
            fetch_frames(&*self.store, &self.head, &self.known, number..number + 1).await?;
        let plain = self.head.open_frame(&self.keys, number, &stored)?;
        self.content(number, &plain)
    }

    fn content(&self, number: u32, plain: &Bytes) -> Result<Bytes> {
        content(&self.head, &self.identity, number, plain)
    }

    /// The bytes `[from, to)`, frame by frame. Fetches the frames that hold them with one get.
    pub async fn log(&self, from: Position, to: Position) -> Result<Vec<LogBytes>> {
        if from < self.identity.start || to > self.piece.end || from > to {
            let what = format!(
                "log {from} to {to} asked of a piece {} to {}",
                self.identity.start, self.piece.end
            );
            return Err(Error::Bug { what });
        }
        let frame_of = |position: Position| {
            (position.since(self.identity.start) / LOG_FRAME_BYTES as u64) as u32
        };
        if from == to {
            return Ok(Vec::new());
        }
        let first = frame_of(from);
        let last = frame_of(Position(to.0 - 1));
        let numbers = self.log_frames.start + first..self.log_frames.start + last + 1;
        let stored = fetch_frames(&*self.store, &self.head, &self.known, numbers.clone()).await?;
        let (head, keys, identity) = (
            Arc::clone(&self.head),
            Arc::clone(&self.keys),
            self.identity,
        );
        let opened = crate::pages::pack::blocking(move || {
            let mut out = Vec::new();
            crate::pages::fetch::open_each(&head, &keys, numbers, stored, |number, plain| {
                out.push(content(&head, &identity, number, &plain)?);
                Ok(())
            })?;
            Ok::<_, Error>(out)
        })
        .await??;
        let mut position = self
            .identity
            .start
            .plus(u64::from(first) * LOG_FRAME_BYTES as u64);
        let mut out = Vec::new();
        for bytes in opened {
            let end = position.plus(bytes.len() as u64);
            let (cut_from, cut_to) = (from.max(position), to.min(end));
            let bytes =
                bytes.slice(cut_from.since(position) as usize..cut_to.since(position) as usize);
            out.push(LogBytes {
                branch: self.identity.branch,
                position: cut_from,
                bytes,
            });
            position = end;
        }
        Ok(out)
    }
}

/// Reads a piece back from the store as a whole, and checks that it is the one that the ledger's chain
/// holds and that each of its frames is what was sealed.
///
/// # Errors
/// Damaged where it is another one, or missing; any other kind where the store could not be asked.
pub async fn read_back(
    store: &Arc<dyn Store>,
    keys: &Arc<DataKeys>,
    lineage: LineageId,
    piece: &PieceSummary,
) -> Result<()> {
    let name = piece.object_name(lineage);
    let bytes =
        (store.read(&name).await).map_err(|error| Error::from(error).named_by("the ledger"))?;
    let (keys, piece) = (Arc::clone(keys), piece.clone());
    crate::pages::pack::blocking(move || {
        let view = ObjectView::parse(&name, bytes)?;
        view.head().expect_kind(piece.object_kind())?;
        check_entry(view.head(), &piece)?;
        view.authenticate(&keys)
    })
    .await?
}

/// Checks a frame's header; returns what follows it.
pub(crate) fn content(
    head: &ObjectHead,
    identity: &PieceIdentity,
    number: u32,
    plain: &Bytes,
) -> Result<Bytes> {
    match plain.get(..HEADER_BYTES) {
        Some(header) if header == identity.header() => Ok(plain.slice(HEADER_BYTES..)),
        _ => Err(head.damaged(format!(
            "frame {number} is not of the log piece of branch {} from {}",
            identity.branch, identity.start
        ))),
    }
}

/// Checks that the object is the one that the ledger names.
pub(crate) fn check_entry(head: &ObjectHead, piece: &PieceSummary) -> Result<()> {
    if head.digest() == piece.head_digest && head.object_len() == piece.stored_bytes {
        return Ok(());
    }
    Err(head.damaged("it is another object than the one in the ledger's chain"))
}

/// The frames of log bytes, whose lengths must be those of the piece.
pub(crate) fn log_frames(head: &ObjectHead, piece: &PieceSummary) -> Result<Range<u32>> {
    let numbers: Vec<u32> = head.frames_of(FRAME_LOG_BYTES).collect();
    let wrong = |what: &str| Err(head.damaged(format!("its log frames {what}")));
    let (Some(first), Some(last)) = (numbers.first().copied(), numbers.last().copied()) else {
        return wrong("are missing");
    };
    if last - first + 1 != numbers.len() as u32 {
        return wrong("are not neighbours");
    }
    let mut rest = piece.end.since(piece.start);
    for number in numbers {
        let expected = rest.min(LOG_FRAME_BYTES as u64);
        if u64::from(head.frame(number)?.plain_len) != HEADER_BYTES as u64 + expected
            || expected == 0
        {
            return wrong(&format!(
                "do not have the length of the log {} to {}",
                piece.start, piece.end
            ));
        }
        rest -= expected;
    }
    if rest > 0 {
        return wrong(&format!("end {rest} bytes before {}", piece.end));
    }
    Ok(first..last + 1)
}
