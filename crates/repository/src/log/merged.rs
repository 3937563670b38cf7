//! Merged log: log pieces that follow each other, in one object.
//!
//! The time map is one; the log bytes are cut into frames anew; of the engine's part nothing is understood
//! here, so each former piece keeps its own index and digest, side by side as a *part*.

use borealis_base::{Position, Timestamp};
use bytes::Bytes;
use prost::Message;

use super::piece::PieceIdentity;
use crate::object::{Compression, FrameKind, PreparedFrame};
use crate::wire::Malformed;

/// Frame of the list of parts.
pub const FRAME_PARTS: FrameKind = 20;
/// Frame of the indexes of some parts, one behind the other.
pub const FRAME_PART_INDEXES: FrameKind = 21;
/// Bytes of indexes at which another frame begins.
const INDEX_FRAME_BYTES: usize = 1 << 20;
/// Longest index of a part; a piece with a longer one is not merged.
pub const PART_INDEX_BYTES_MAX: usize = 8 << 20;

/// A former log piece within merged log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The ledger entry that held it.
    pub entry: u64,
    /// First position held.
    pub start: Position,
    /// Position just past the last one held.
    pub end: Position,
    /// When its entry was written, by its writer's clock.
    pub recorded_at: Timestamp,
    /// What the engine said of it in few bytes, opaque.
    pub engine: Option<Bytes>,
    /// Length of its index.
    pub index_len: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartsMessage {
    #[prost(message, repeated, tag = "1")]
    parts: Vec<PartMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartMessage {
    #[prost(uint64, tag = "1")]
    entry: u64,
    #[prost(uint64, tag = "2")]
    end: u64,
    #[prost(sint64, tag = "3")]
    recorded_at: i64,
    #[prost(uint32, tag = "4")]
    index_len: u32,
    #[prost(bytes = "bytes", optional, tag = "5")]
    engine: Option<Bytes>,
}

/// The content of [`FRAME_PARTS`].
pub(crate) fn encode_parts(parts: &[Part]) -> Vec<u8> {
    PartsMessage {
        parts: (parts.iter())
            .map(|part| PartMessage {
                entry: part.entry,
                end: part.end.0,
                recorded_at: part.recorded_at.0,
                index_len: part.index_len,
                engine: part.engine.clone(),
            })
            .collect(),
    }
    .encode_to_vec()
}

/// Reads what [`encode_parts`] wrote, of merged log `[start, end)`.
pub(crate) fn decode_parts(
    bytes: &[u8],
    start: Position,
    end: Position,
) -> Result<Vec<Part>, Malformed> {
    let message = PartsMessage::decode(bytes)
        .map_err(|_| Malformed::new("its list of parts is malformed"))?;
    let mut at = start;
    let mut parts = Vec::with_capacity(message.parts.len());
    for part in message.parts {
        let next = Position(part.end);
        if next <= at {
            return Err(Malformed::new("its parts do not follow each other"));
        }
        parts.push(Part {
            entry: part.entry,
            start: at,
            end: next,
            recorded_at: Timestamp(part.recorded_at),
            // A slice would keep all that was read with it.
            engine: (part.engine).map(|engine| Bytes::copy_from_slice(&engine)),
            index_len: part.index_len,
        });
        at = next;
    }
    if at != end {
        return Err(Malformed::new("its parts do not cover its log"));
    }
    Ok(parts)
}

/// Lays out indexes: each frame holds whole ones, as many as fit about a mebibyte.
pub(crate) fn prepare_indexes(
    identity: &PieceIdentity,
    indexes: &[Bytes],
    compression: Compression,
) -> Vec<PreparedFrame> {
    let mut plain = Vec::new();
    groups(indexes.iter().map(Bytes::len))
        .map(|group| {
            let content = indexes.get(group).unwrap_or_default().concat();
            identity.frame(FRAME_PART_INDEXES, compression, &content, &mut plain)
        })
        .collect()
}

/// Which indexes share a frame, told from their lengths.
pub(crate) fn groups(
    lens: impl Iterator<Item = usize>,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (number, len) in lens.enumerate() {
        match groups.last_mut() {
            Some(group) if bytes + len <= INDEX_FRAME_BYTES => group.end = number + 1,
            _ => {
                groups.push(number..number + 1);
                bytes = 0;
            }
        }
        bytes += len;
    }
    groups.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(start: u64, end: u64, index_len: u32) -> Part {
        Part {
            entry: end,
            start: Position(start),
            end: Position(end),
            recorded_at: Timestamp(-7),
            engine: end.is_multiple_of(2).then(|| Bytes::from_static(b"digest")),
            index_len,
        }
    }

    #[test]
    fn parts_are_read_back_and_must_cover_the_log() {
        let parts = vec![part(10, 20, 3), part(20, 25, 0), part(25, 90, 7)];
        let bytes = encode_parts(&parts);
        let decode = |from, to| decode_parts(&bytes, Position(from), Position(to));
        assert_eq!(decode(10, 90).unwrap(), parts);
        assert!(decode(10, 91).is_err(), "it ends too early");
        assert!(decode(10, 89).is_err(), "it ends too late");
        assert!(decode(20, 90).is_err(), "a part of no length");
        assert!(decode_parts(&bytes[..bytes.len() - 1], Position(10), Position(90)).is_err());
    }

    #[test]
    fn a_frame_of_indexes_holds_whole_ones() {
        let big = INDEX_FRAME_BYTES;
        let groups = |lens: &[usize]| super::groups(lens.iter().copied()).collect::<Vec<_>>();
        assert_eq!(groups(&[]), Vec::<std::ops::Range<usize>>::new());
        assert_eq!(groups(&[1, 2, big, 3]), [0..2, 2..3, 3..4]);
        assert_eq!(groups(&[big, 1, big + 1, 5]), [0..1, 1..2, 2..3, 3..4]);
        assert_eq!(groups(&[0, big, 0, 1]), [0..3, 3..4]);
    }
}
