//! A record whose bytes come in parts, because it crosses a page or a push.
//!
//! All of it is checksummed as it comes, and only what is read of a record is kept: its headers and its
//! main data. What lies between, the pages and rows of blocks, is most of the log after a checkpoint.

use std::ops::Range;

use super::reader::LogFormat;
use super::record::{self, RECORD_HEADER_LEN, WholeRecord};
use crate::cursor;

/// Bytes at the start of a record that are kept in any case. The headers of 33 blocks, the most that
/// there can be, have at most 27 bytes each; with the rest, at most 928.
const HEADERS_LEN_MAX: usize = 1024;
/// The buffer that is kept for the next record; a larger one is given back.
const KEPT_BUFFER_BYTES: usize = 1 << 20;
/// Bytes of a record that say how long it is.
pub(super) const LEN_BYTES: usize = 4;

/// A record that is being collected.
#[derive(Debug, Default)]
pub(super) struct Collector {
    /// The bytes so far, without those in `skip`.
    kept: Vec<u8>,
    /// How many bytes there were so far, padding included.
    seen: usize,
    /// CRC-32C of what follows the fixed part.
    body_crc: u32,
    /// The bytes of the record that are not kept.
    skip: Range<usize>,
}

impl Collector {
    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        if self.kept.capacity() > KEPT_BUFFER_BYTES {
            self.kept = Vec::new();
        }
        (self.seen, self.body_crc, self.skip) = (0, 0, 0..0);
    }

    /// How many bytes there were so far, padding included.
    pub(super) const fn seen(&self) -> usize {
        self.seen
    }

    /// The length that the record says it has, once that is known.
    pub(super) fn total(&self) -> Option<u32> {
        cursor::at(&self.kept, 0).u32()
    }

    /// Takes bytes that belong to the record. Padding counts and is not kept.
    pub(super) fn take(&mut self, bytes: &[u8], format: &LogFormat) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let seen = self.seen;
            // To the end of the headers, of which the rest is planned, and of the part left out.
            let goal = [LEN_BYTES, HEADERS_LEN_MAX, self.skip.start, self.skip.end]
                .into_iter()
                .filter(|goal| *goal > seen)
                .min();
            let len = goal.map_or(bytes.len(), |goal| bytes.len().min(goal - seen));
            let (now, rest) = bytes.split_at(len);
            self.take_part(now);
            if self.seen == HEADERS_LEN_MAX {
                self.plan(format);
            }
            bytes = rest;
        }
    }

    fn take_part(&mut self, part: &[u8]) {
        let total = self.total().map_or(usize::MAX, |total| total as usize);
        let content = total.saturating_sub(self.seen).min(part.len());
        let content = part.get(..content).unwrap_or_default();
        let fixed = RECORD_HEADER_LEN.saturating_sub(self.seen);
        let body = content.get(fixed..).unwrap_or_default();
        self.body_crc = crc32c::crc32c_append(self.body_crc, body);
        if !self.skip.contains(&self.seen) {
            self.kept.extend_from_slice(content);
        }
        self.seen += part.len();
    }

    /// The headers are there: decides what is not kept. Headers that can't be read are left to whoever
    /// judges the whole record.
    fn plan(&mut self, format: &LogFormat) {
        let total = self.total().unwrap_or_default() as usize;
        if let Some(main_len) = record::main_data_len(&self.kept, total, format) {
            let main = total.saturating_sub(main_len);
            if main > HEADERS_LEN_MAX {
                self.skip = HEADERS_LEN_MAX..main;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.kept.capacity()
    }

    /// The record, once all of it has come.
    pub(super) fn record(&self) -> Option<WholeRecord<'_>> {
        let total = self.total()? as usize;
        (self.seen >= total).then_some(WholeRecord {
            kept: &self.kept,
            total,
            body_crc: self.body_crc,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Rmgr;
    use crate::wal::builder::LogBuilder;
    use crate::{Relation, Version};
    use proptest::prelude::*;

    const FORMAT: LogFormat = LogFormat::new(Version::V15);

    fn record_of(blocks: &[usize], main: usize) -> Vec<u8> {
        let data: Vec<Vec<u8>> = blocks.iter().map(|len| vec![7; *len]).collect();
        let blocks: Vec<_> = (0_u32..)
            .zip(&data)
            .map(|(number, data)| (0, Relation::default(), number, data.as_slice()))
            .collect();
        let main: Vec<u8> = (0..main).map(|n| n as u8).collect();
        LogBuilder::new().record_bytes(Rmgr(10), 0, 5, &blocks, &main)
    }

    fn collect(record: &[u8], splits: &[usize]) -> Collector {
        let mut collector = Collector::default();
        let mut rest = record;
        for split in splits {
            let (now, later) = rest.split_at((*split).min(rest.len()));
            collector.take(now, &FORMAT);
            rest = later;
        }
        collector.take(rest, &FORMAT);
        collector
    }

    proptest! {
        #[test]
        fn a_record_in_parts_says_what_the_whole_says(
            blocks in prop::collection::vec(prop_oneof![0..40_usize, 0..9000_usize], 0..33),
            main in prop_oneof![0..300_usize, 0..5000_usize],
            splits in prop::collection::vec(0..3000_usize, 0..12),
            damage in prop::option::of((0..2000_usize, 1..=255_u8)),
        ) {
            let mut record = record_of(&blocks, main);
            if let Some((at, bits)) = damage
                && let Some(byte) = record.get_mut(LEN_BYTES + at)
            {
                *byte ^= bits;
            }
            let whole = WholeRecord::whole(&record);
            let collector = collect(&record, &splits);
            let parts = collector.record().expect("all of it has come");
            prop_assert_eq!(parts.checksum(), whole.checksum());
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let decoded = record::decode(&parts, &FORMAT, &mut a);
            let expected = record::decode(&whole, &FORMAT, &mut b);
            prop_assert_eq!(format!("{decoded:?}"), format!("{expected:?}"));
            prop_assert_eq!(decoded.is_none() || a == b, true);
        }
    }

    #[test]
    fn pages_and_rows_are_not_kept() {
        let record = record_of(&[8000, 8000], 300);
        let collector = collect(&record, &[100, 5000]);
        assert_eq!(collector.kept.len(), HEADERS_LEN_MAX + 300);
        assert_eq!(collector.seen(), record.len());
    }

    /// `XLR_MAX_BLOCK_ID` blocks, each of a relation of its own and with a compressed image.
    #[test]
    fn the_longest_headers_are_kept() {
        let block = 1 + 1 + 2 + (2 + 2 + 1 + 2) + 12 + 4;
        let others = RECORD_HEADER_LEN + 3 + 5 + 5;
        assert!(33 * block + others <= HEADERS_LEN_MAX);
    }
}
