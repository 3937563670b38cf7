//! Cuts the received log into pieces and indexes it while it passes by. No IO: bytes and clock
//! samples go in, drafts of log pieces come out.

use borealis_base::{Position, Timestamp};
use borealis_pg_format::index::{Cut, LogIndexer};
use bytes::{Bytes, BytesMut};

/// A log piece before it is sealed.
#[derive(Debug)]
pub struct Draft {
    /// Position of the first byte.
    pub start: Position,
    /// The bytes.
    pub bytes: Bytes,
    /// What they say, and what the indexer must know to go on after them.
    pub cut: Cut,
}

impl Draft {
    /// Position just past the last byte.
    pub fn end(&self) -> Position {
        self.start.plus(self.bytes.len() as u64)
    }
}

/// Collects log until it is cut.
pub struct Cutter {
    indexer: LogIndexer,
    start: Position,
    bytes: BytesMut,
    /// Memory of an earlier piece, empty, for the next one.
    spare: BytesMut,
    piece_bytes_max: usize,
}

impl Cutter {
    /// A cutter whose next piece begins at `start`, where `indexer` stands.
    pub fn new(indexer: LogIndexer, start: Position, piece_bytes_max: usize) -> Self {
        Self {
            indexer,
            start,
            bytes: BytesMut::new(),
            spare: BytesMut::new(),
            piece_bytes_max,
        }
    }

    /// Takes a stretch of log, which must follow what was taken before. Returns the pieces that are
    /// full.
    pub fn take(&mut self, mut stretch: Bytes) -> Vec<Draft> {
        let mut full = Vec::new();
        while !stretch.is_empty() {
            let room = self.piece_bytes_max - self.bytes.len();
            let part = stretch.split_to(room.min(stretch.len()));
            if self.bytes.is_empty() {
                // A whole piece at once: memory that is not written to costs nothing, growing step by
                // step would copy what is there each time, and fresh memory costs as much as reading it.
                self.bytes = std::mem::take(&mut self.spare);
                self.bytes.reserve(self.piece_bytes_max);
            }
            self.indexer.push(self.end(), &part);
            self.bytes.extend_from_slice(&part);
            if self.bytes.len() == self.piece_bytes_max {
                full.extend(self.cut());
            }
        }
        full
    }

    /// Takes back the bytes of a draft that is no longer needed: their memory serves the next piece.
    pub fn reuse(&mut self, bytes: Bytes) {
        // Where somebody else still holds them, they stay theirs.
        if let Ok(mut bytes) = bytes.try_into_mut() {
            bytes.clear();
            self.spare = bytes;
        }
    }

    /// Notes that at `position`, or before it, the server's clock showed `time`.
    pub fn sample(&mut self, time: Timestamp, position: Position) {
        self.indexer.push_sample(time, position);
    }

    /// Ends the piece here. `None` if it would be empty.
    pub fn cut(&mut self) -> Option<Draft> {
        if self.bytes.is_empty() {
            return None;
        }
        let start = self.start;
        let bytes = std::mem::take(&mut self.bytes).freeze();
        self.start = start.plus(bytes.len() as u64);
        Some(Draft {
            start,
            bytes,
            cut: self.indexer.cut(),
        })
    }

    /// Position just past the last byte taken.
    pub fn end(&self) -> Position {
        self.start.plus(self.bytes.len() as u64)
    }

    /// The start of the first record that has not ended.
    pub fn resume_at(&self) -> Position {
        self.indexer.resume_at()
    }

    /// Whether bytes wait to be cut.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_pg_format::Version;
    use borealis_pg_format::wal::{LogFormat, Start};

    fn cutter() -> Cutter {
        let start = Position(16 << 20);
        let format = LogFormat::new(Version::V15);
        Cutter::new(LogIndexer::new(format, start, Start::Record), start, 1000)
    }

    fn piece(cutter: &mut Cutter, stretch: Bytes) -> Bytes {
        let mut full = cutter.take(stretch);
        assert_eq!(full.len(), 1);
        full.remove(0).bytes
    }

    #[test]
    fn memory_of_a_piece_serves_the_next_one_unless_somebody_holds_it() {
        let mut cutter = cutter();
        let log: Bytes = (0..3000_u32).map(|n| n as u8).collect();
        let first = piece(&mut cutter, log.slice(..1000));
        assert_eq!(first, log[..1000]);
        let place = first.as_ptr();
        cutter.reuse(first);
        let second = piece(&mut cutter, log.slice(1000..2000));
        assert_eq!(second, log[1000..2000]);
        assert_eq!(second.as_ptr(), place);
        cutter.reuse(second.clone());
        let third = piece(&mut cutter, log.slice(2000..));
        assert_eq!((second, third), (log.slice(1000..2000), log.slice(2000..)));
    }
}
