//! Log for tests, put together from the definitions in `access/xlogrecord.h` and
//! `access/xlog_internal.h` and from nothing of the reader.

use borealis_base::RecordSpan;

use super::Rmgr;
use crate::{Lsn, Relation};

const PAGE: usize = 8192;

/// A block to be named by a record: fork, relation, block, data.
pub(crate) type Block<'a> = (u8, Relation, u32, &'a [u8]);

/// Log that grows record by record, from the start of a segment of 1 MiB.
pub(crate) struct LogBuilder {
    pub(crate) start: Lsn,
    pub(crate) bytes: Vec<u8>,
    pub(crate) prev: Lsn,
}

impl LogBuilder {
    pub(crate) const SEGMENT: usize = 1 << 20;

    pub(crate) fn new() -> Self {
        Self {
            start: Lsn(7 << 20),
            bytes: Vec::new(),
            prev: Lsn((7 << 20) - 100),
        }
    }

    /// Where the next byte goes.
    pub(crate) fn end(&self) -> Lsn {
        self.start.plus(self.bytes.len() as u64)
    }

    /// Begins a page with these flags, if one is due.
    pub(crate) fn page(&mut self, flags: u16, remaining: usize) {
        if !self.bytes.len().is_multiple_of(PAGE) {
            return;
        }
        let address = self.end().0;
        let long = self.bytes.len().is_multiple_of(Self::SEGMENT);
        let flags = flags | if long { 2 } else { 0 };
        self.bytes.extend(0xD110_u16.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes.extend((remaining as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(4711_u64.to_le_bytes());
            self.bytes.extend((Self::SEGMENT as u32).to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    /// A record's bytes, with its checksum.
    pub(crate) fn record_bytes(
        &self,
        rmgr: Rmgr,
        info: u8,
        xid: u32,
        blocks: &[Block<'_>],
        main: &[u8],
    ) -> Vec<u8> {
        let mut body = Vec::new();
        for (id, (fork, relation, block, data)) in blocks.iter().enumerate() {
            body.push(id as u8);
            body.push(fork | if data.is_empty() { 0 } else { 0x20 });
            body.extend((data.len() as u16).to_le_bytes());
            for word in [
                relation.tablespace,
                relation.database,
                relation.number,
                *block,
            ] {
                body.extend(word.to_le_bytes());
            }
        }
        if main.len() > 255 {
            body.push(254);
            body.extend((main.len() as u32).to_le_bytes());
        } else if !main.is_empty() {
            body.extend([255, main.len() as u8]);
        }
        for block in blocks {
            body.extend(block.3);
        }
        body.extend(main);
        let mut head = Vec::new();
        head.extend((24 + body.len() as u32).to_le_bytes());
        head.extend(xid.to_le_bytes());
        head.extend(self.prev.0.to_le_bytes());
        head.extend([info, rmgr.0, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &head);
        head.extend(crc.to_le_bytes());
        head.extend(body);
        head
    }

    /// Lays bytes down from here, with page headers where they are due.
    pub(crate) fn lay(&mut self, record: &[u8]) -> RecordSpan {
        self.page(0, 0);
        let start = self.end();
        let mut rest = record;
        while !rest.is_empty() {
            self.page(1, rest.len());
            let room = PAGE - self.bytes.len() % PAGE;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.bytes.extend(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.prev = start;
        let end = self.end();
        RecordSpan { start, end }
    }

    /// Adds a record.
    pub(crate) fn add(
        &mut self,
        rmgr: Rmgr,
        info: u8,
        xid: u32,
        blocks: &[Block<'_>],
        main: &[u8],
    ) -> RecordSpan {
        let record = self.record_bytes(rmgr, info, xid, blocks, main);
        self.lay(&record)
    }

    /// Adds a record that means nothing, with this much data.
    pub(crate) fn filler(&mut self, len: usize) -> RecordSpan {
        self.add(Rmgr(21), 0, 0, &[], &vec![0x5A; len])
    }

    /// Leaves the segment.
    pub(crate) fn switch(&mut self) -> RecordSpan {
        let RecordSpan { start, .. } = self.add(Rmgr::XLOG, 0x40, 0, &[], &[]);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(Self::SEGMENT), 0);
        let end = self.end();
        RecordSpan { start, end }
    }
}
