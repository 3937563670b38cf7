//! From bytes to records: a parser that is pushed, keeps what is incomplete, and never stops.
//!
//! Bytes come in order, in any split. A record is delivered when its last byte, with its padding,
//! has come; where a piece of the log ends in the middle of a record, [`WalReader::resume_at`] says
//! from where the log must be read again by a later reader. Nothing of a half-read record needs to
//! be kept elsewhere.
//!
//! What cannot be read is reported and skipped up to the next page on which a record starts. The
//! consumer must then assume that anything may have changed.

use super::collect::{Collector, LEN_BYTES};
use super::page::{self, LONG_HEADER_LEN, PageHeader, PageStart, SHORT_HEADER_LEN, WAL_PAGE_SIZE};
use super::record::{self, BlockRef, RECORD_HEADER_LEN, Record, RecordHeader, WholeRecord};
use super::rmgr::{Rmgr, xlog};
use crate::segment::SegmentSize;
use crate::{Lsn, Timeline, Version, cursor};

/// The longest record, `XLogRecordMaxSize` (`access/xlogrecord.h` of 16 and later): 1020 MiB. A
/// record is collected only if it crosses a page, and the buffer grows as its bytes come.
pub const RECORD_LEN_MAX: u32 = 1020 << 20;
/// Records start at multiples of this (`MAXALIGN`).
const ALIGNMENT: u64 = 8;

/// What must be known about a log before it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogFormat {
    /// The server's version.
    pub version: Version,
    /// Bytes of a segment; each segment's first page is checked against it.
    pub segment_size: SegmentSize,
    /// Bytes of a page of a relation.
    pub page_size: u32,
}

impl LogFormat {
    /// The log of a cluster with the sizes that `initdb` and every distribution choose.
    pub const fn new(version: Version) -> Self {
        Self {
            version,
            segment_size: SegmentSize::DEFAULT,
            page_size: crate::page::DEFAULT_PAGE_SIZE,
        }
    }
}

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A record begins or a page with a record's beginning starts there.
    Record,
    /// Anywhere: the first record is the first that a page header allows to be found. What ends
    /// before it is not read.
    Anywhere,
}

/// Why a part of the log could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnparsedReason {
    /// A page header is not one, or of another version.
    Page,
    /// A segment's first page names another segment size.
    SegmentSize,
    /// A record does not go on where it should.
    Continuation,
    /// A record's length is impossible.
    Length,
    /// A record does not follow the one before it.
    Previous,
    /// A record's checksum does not match.
    Checksum,
    /// A record's parts contradict each other.
    Layout,
    /// The log goes on after a place where it seemed to end.
    Hole,
    /// Bytes were left out by whoever pushed them.
    Gap,
}

/// What the reader delivers.
#[derive(Debug)]
pub enum LogEvent<'a> {
    /// A whole, checked record.
    Record(Record<'a>),
    /// Nothing from `from` on could be read.
    Unparsed {
        /// The start of the record that was expected or could not be read.
        from: Lsn,
        /// Why.
        reason: UnparsedReason,
    },
    /// Records can be read again.
    Resynchronised {
        /// Where the next record starts.
        at: Lsn,
    },
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To a new record.
    Boundary,
    /// To the record that starts there, kept in the buffer.
    InRecord { start: Lsn },
    /// To the rest of a segment that was left; the switch record is in the buffer.
    Switched { start: Lsn, end: Lsn },
    /// To nothing: the log ended at `at`, or has not come further. `here` while on the page of
    /// `at`, the rest of which must then be zeros.
    Ended { at: Lsn, here: bool },
    /// To nothing that can be read. `lost` is where reading failed, `None` at the very beginning;
    /// `target` is where on this page a record starts.
    Seeking {
        lost: Option<Lsn>,
        target: Option<Lsn>,
    },
}

/// A pushed parser of the log.
#[derive(Debug)]
pub struct WalReader {
    format: LogFormat,
    position: Lsn,
    state: State,
    /// The page header that is being collected.
    page_header: [u8; LONG_HEADER_LEN],
    page_header_len: usize,
    /// The record that is being collected.
    record: Collector,
    blocks: Vec<BlockRef>,
    last: Option<(Lsn, Lsn)>,
    timeline: Option<Timeline>,
    system_identifier: Option<u64>,
}

impl WalReader {
    /// A reader that expects the byte at `at` next. `last` is the (start, end) of the record
    /// before, where known: the first record must then follow it.
    pub fn new(format: LogFormat, at: Lsn, start: Start, last: Option<(Lsn, Lsn)>) -> Self {
        // Within a page header no record begins, whatever the caller says.
        let within_header = (1..SHORT_HEADER_LEN as u64).contains(&(at.0 % WAL_PAGE_SIZE))
            || (1..LONG_HEADER_LEN as u64).contains(&(at.0 % format.segment_size.bytes()));
        let state = if start == Start::Record && !within_header && at.0.is_multiple_of(ALIGNMENT) {
            State::Boundary
        } else {
            State::Seeking {
                lost: None,
                target: None,
            }
        };
        Self {
            format,
            position: at,
            state,
            page_header: [0; LONG_HEADER_LEN],
            page_header_len: 0,
            record: Collector::default(),
            blocks: Vec::new(),
            last,
            timeline: None,
            system_identifier: None,
        }
    }

    /// A reader that goes on where another was unable to read since `lost`.
    pub(crate) fn lost(format: LogFormat, at: Lsn, lost: Lsn) -> Self {
        let mut reader = Self::new(format, at, Start::Anywhere, None);
        reader.state = State::Seeking {
            lost: Some(lost),
            target: None,
        };
        reader
    }

    /// What is known about the log.
    pub const fn format(&self) -> &LogFormat {
        &self.format
    }

    /// The byte that is expected next.
    pub const fn position(&self) -> Lsn {
        self.position
    }

    /// Where a reader must begin that is to deliver what this one has not: the start of the first
    /// record that was not delivered.
    pub const fn resume_at(&self) -> Lsn {
        match self.state {
            State::InRecord { start } | State::Switched { start, .. } => start,
            State::Ended { at, .. } => at,
            State::Seeking {
                target: Some(_), ..
            } => self.position.align_down(WAL_PAGE_SIZE),
            State::Boundary | State::Seeking { target: None, .. } => {
                if self.page_header_len > 0 {
                    self.position.align_down(WAL_PAGE_SIZE)
                } else {
                    self.position
                }
            }
        }
    }

    /// How a reader must begin at [`Self::resume_at`].
    pub const fn resume_start(&self) -> Start {
        match self.state {
            State::Seeking { .. } => Start::Anywhere,
            _ => Start::Record,
        }
    }

    /// Where reading failed, if no record could be read since, or where the log seemed to end, if
    /// bytes came after that.
    pub fn unreadable_since(&self) -> Option<Lsn> {
        match self.state {
            State::Seeking { lost, .. } => lost,
            State::Ended { at, .. } if self.position > at => Some(at),
            _ => None,
        }
    }

    /// Where reading failed, while no record can be read.
    pub(crate) const fn lost_since(&self) -> Option<Lsn> {
        match self.state {
            State::Seeking { lost, .. } => lost,
            _ => None,
        }
    }

    /// The last record: its start and its end, which is the end of the valid log so far.
    pub const fn last_record(&self) -> Option<(Lsn, Lsn)> {
        self.last
    }

    /// The timeline that the newest page was begun on.
    pub const fn timeline(&self) -> Option<Timeline> {
        self.timeline
    }

    /// The system identifier in the newest segment's first page.
    pub const fn system_identifier(&self) -> Option<u64> {
        self.system_identifier
    }

    /// Takes the bytes at `lsn`, and hands what they complete to `deliver`, in log order. Bytes
    /// that were pushed before are ignored; bytes that were left out are reported.
    pub fn push(&mut self, lsn: Lsn, bytes: &[u8], deliver: &mut impl FnMut(LogEvent<'_>)) {
        let known = usize::try_from(self.position.since(lsn)).unwrap_or(usize::MAX);
        let Some(mut bytes) = bytes.get(known..).filter(|rest| !rest.is_empty()) else {
            return;
        };
        if lsn > self.position {
            let from = self.resume_at();
            self.page_header_len = 0;
            self.position = lsn;
            self.lose(from, UnparsedReason::Gap, deliver);
        }
        while !bytes.is_empty() {
            let used = self.step(bytes, deliver);
            self.position = self.position.plus(used as u64);
            bytes = bytes.get(used..).unwrap_or_default();
            self.arrive(deliver);
        }
    }

    /// Handles the first bytes, and says how many. The position still stands before them.
    fn step(&mut self, bytes: &[u8], deliver: &mut impl FnMut(LogEvent<'_>)) -> usize {
        if let State::Switched { end, .. } = self.state {
            // The rest of the segment is zeros, page headers included.
            return clamp(bytes, end.since(self.position));
        }
        let offset = self.position.0 % WAL_PAGE_SIZE;
        if offset == 0 || self.page_header_len > 0 {
            return self.collect_page_header(bytes, deliver);
        }
        let room = WAL_PAGE_SIZE - offset;
        let bytes = bytes.get(..clamp(bytes, room)).unwrap_or_default();
        match self.state {
            State::Boundary => self.begin_record(bytes, deliver),
            State::InRecord { start } => self.go_on(start, bytes, deliver),
            State::Ended { at, here } => {
                if here && bytes.iter().any(|byte| *byte != 0) {
                    self.lose(at, UnparsedReason::Hole, deliver);
                }
                bytes.len()
            }
            State::Seeking {
                target: Some(target),
                ..
            } => clamp(bytes, target.since(self.position)),
            State::Seeking { target: None, .. } | State::Switched { .. } => bytes.len(),
        }
    }

    /// What is due once the position has moved.
    fn arrive(&mut self, deliver: &mut impl FnMut(LogEvent<'_>)) {
        match self.state {
            State::Seeking {
                lost,
                target: Some(target),
            } if target == self.position => {
                self.state = State::Boundary;
                if lost.is_some() {
                    deliver(LogEvent::Resynchronised { at: target });
                }
            }
            State::Switched { start, end } if end == self.position => {
                self.deliver_collected(start, end, deliver);
            }
            _ => {}
        }
    }

    fn collect_page_header(
        &mut self,
        bytes: &[u8],
        deliver: &mut impl FnMut(LogEvent<'_>),
    ) -> usize {
        let wanted = if self.page_header_len < SHORT_HEADER_LEN {
            SHORT_HEADER_LEN
        } else {
            LONG_HEADER_LEN
        };
        let free = self
            .page_header
            .get_mut(self.page_header_len..wanted)
            .unwrap_or_default();
        let used = free.len().min(bytes.len());
        for (place, byte) in free.iter_mut().zip(bytes) {
            *place = *byte;
        }
        self.page_header_len += used;
        let complete = self.page_header_len == LONG_HEADER_LEN
            || (self.page_header_len == SHORT_HEADER_LEN && !page::is_long(&self.page_header));
        if complete {
            let len = self.page_header_len;
            self.page_header_len = 0;
            let start = self.position.align_down(WAL_PAGE_SIZE);
            let header = self.page_header.get(..len).unwrap_or_default();
            let page = page::parse(header, start, &self.format);
            self.begin_page(start, start.plus(len as u64), page, deliver);
        }
        used
    }

    /// A page's header is whole. `body` is where the header ends.
    fn begin_page(
        &mut self,
        start: Lsn,
        body: Lsn,
        page: PageStart,
        deliver: &mut impl FnMut(LogEvent<'_>),
    ) {
        let expected = match self.state {
            State::InRecord { start } => start,
            State::Ended { at, .. } => at,
            _ => start,
        };
        let header = match page {
            PageStart::Page(header) => header,
            PageStart::Unwritten | PageStart::Foreign => {
                match (self.state, page) {
                    (State::Seeking { .. }, _) => {}
                    // Whatever follows the end of the log is not log, until a page says otherwise.
                    (State::Ended { at, .. }, _) => self.state = State::Ended { at, here: false },
                    (_, PageStart::Unwritten) => {
                        self.record.clear();
                        self.state = State::Ended {
                            at: expected,
                            here: false,
                        };
                    }
                    _ => self.lose(expected, UnparsedReason::Page, deliver),
                }
                return;
            }
        };
        self.timeline = Some(header.timeline);
        if let Some(long) = header.long {
            self.system_identifier = Some(long.system_identifier);
            if long.segment_size != self.format.segment_size {
                self.lose(expected, UnparsedReason::SegmentSize, deliver);
                return;
            }
        }
        match self.state {
            State::InRecord { .. } if header.abandons => {
                // The server crashed within the record and began anew; nothing of it was ever
                // applied.
                self.record.clear();
                self.state = State::Boundary;
            }
            State::InRecord { start } if self.continues(header) => {
                self.state = State::InRecord { start };
            }
            State::Boundary if !header.continues => {}
            State::InRecord { .. } | State::Boundary => {
                self.lose(expected, UnparsedReason::Continuation, deliver);
                self.seek_on(header, body);
            }
            State::Ended { at, .. } => {
                self.lose(at, UnparsedReason::Hole, deliver);
                self.seek_on(header, body);
            }
            State::Seeking { .. } => self.seek_on(header, body),
            State::Switched { .. } => {}
        }
    }

    /// Whether a page goes on with the record in the buffer.
    fn continues(&self, header: PageHeader) -> bool {
        let total = u64::from(self.record.total().unwrap_or_default());
        header.continues && u64::from(header.remaining) + self.record.seen() as u64 == total
    }

    /// Looks for a record's start on the page whose header was just read.
    fn seek_on(&mut self, header: PageHeader, body: Lsn) {
        let State::Seeking { lost, .. } = self.state else {
            return;
        };
        let rest = if header.continues {
            u64::from(header.remaining).next_multiple_of(ALIGNMENT)
        } else {
            0
        };
        let target = body.plus(rest);
        let page_end = body.align_down(WAL_PAGE_SIZE).plus(WAL_PAGE_SIZE);
        if target < page_end {
            self.state = State::Seeking {
                lost,
                target: Some(target),
            };
        }
    }

    fn lose(&mut self, from: Lsn, reason: UnparsedReason, deliver: &mut impl FnMut(LogEvent<'_>)) {
        let lost = match self.state {
            State::Seeking {
                lost: Some(lost), ..
            } => lost,
            _ => from,
        };
        self.record.clear();
        self.last = None;
        self.state = State::Seeking {
            lost: Some(lost),
            target: None,
        };
        deliver(LogEvent::Unparsed { from, reason });
    }

    /// The bytes up to the end of the page, or fewer, at a record's start.
    #[inline]
    fn begin_record(&mut self, bytes: &[u8], deliver: &mut impl FnMut(LogEvent<'_>)) -> usize {
        if let Some(total) = cursor::at(bytes, 0).u32() {
            if !self.check_len(self.position, total, deliver) {
                return if total == 0 { 0 } else { bytes.len() };
            }
            let end = self
                .position
                .plus(u64::from(total).next_multiple_of(ALIGNMENT));
            let padded = end.since(self.position) as usize;
            if padded <= bytes.len()
                && let Some(record) = bytes.get(..total as usize)
            {
                return self.complete(
                    self.position,
                    end,
                    &WholeRecord::whole(record),
                    deliver,
                    padded,
                );
            }
        }
        self.record.clear();
        self.state = State::InRecord {
            start: self.position,
        };
        self.go_on(self.position, bytes, deliver)
    }

    /// Whether a record at `start` may have this length. If not, the state says what follows.
    fn check_len(
        &mut self,
        start: Lsn,
        total: u32,
        deliver: &mut impl FnMut(LogEvent<'_>),
    ) -> bool {
        if total == 0 {
            self.record.clear();
            self.state = State::Ended {
                at: start,
                here: true,
            };
            return false;
        }
        let possible = (RECORD_HEADER_LEN as u32..=RECORD_LEN_MAX).contains(&total);
        if !possible {
            self.lose(start, UnparsedReason::Length, deliver);
        }
        possible
    }

    /// Collects bytes of a record that is not whole on one page and in one push.
    fn go_on(&mut self, start: Lsn, bytes: &[u8], deliver: &mut impl FnMut(LogEvent<'_>)) -> usize {
        let seen = self.record.seen();
        if seen < LEN_BYTES {
            // A record starts at a multiple of 8, so that its length lies on one page.
            let used = clamp(bytes, (LEN_BYTES - seen) as u64);
            let part = bytes.get(..used).unwrap_or_default();
            self.record.take(part, &self.format);
            if let Some(total) = self.record.total() {
                self.check_len(start, total, deliver);
            }
            return used;
        }
        let total = self.record.total().unwrap_or_default() as usize;
        let padded = total.next_multiple_of(ALIGNMENT as usize);
        let used = clamp(bytes, padded.saturating_sub(seen) as u64);
        let part = bytes.get(..used).unwrap_or_default();
        self.record.take(part, &self.format);
        if self.record.seen() == padded {
            let end = self.position.plus(used as u64);
            let mut collected = std::mem::take(&mut self.record);
            if let Some(record) = collected.record() {
                self.complete(start, end, &record, deliver, used);
            }
            if !matches!(self.state, State::Switched { .. }) {
                collected.clear();
                self.record = collected;
            }
        }
        used
    }

    /// A record is whole: checks it, and delivers it unless it leaves the segment.
    #[inline]
    fn complete(
        &mut self,
        start: Lsn,
        end: Lsn,
        record: &WholeRecord<'_>,
        deliver: &mut impl FnMut(LogEvent<'_>),
        used: usize,
    ) -> usize {
        let header = match self.check(start, record) {
            Ok(header) => header,
            Err(reason) => {
                self.lose(start, reason, deliver);
                return used;
            }
        };
        if header.rmgr == Rmgr::XLOG && header.operation() == xlog::SWITCH {
            let segment_end = self.format.segment_size.round_up(end);
            self.record.clear();
            self.record.take(record.kept, &self.format);
            self.state = State::Switched {
                start,
                end: segment_end,
            };
            return used;
        }
        self.state = State::Boundary;
        self.deliver(start, end, header, record, deliver);
        used
    }

    #[inline]
    fn check(&self, start: Lsn, record: &WholeRecord<'_>) -> Result<RecordHeader, UnparsedReason> {
        let header = RecordHeader::parse(record.kept).ok_or(UnparsedReason::Length)?;
        let follows = match self.last {
            Some((last_start, _)) => header.prev == last_start,
            None => header.prev < start,
        };
        if !follows {
            return Err(UnparsedReason::Previous);
        }
        if record.checksum() != Some(header.crc) {
            return Err(UnparsedReason::Checksum);
        }
        Ok(header)
    }

    fn deliver_collected(&mut self, start: Lsn, end: Lsn, deliver: &mut impl FnMut(LogEvent<'_>)) {
        let collected = std::mem::take(&mut self.record);
        self.state = State::Boundary;
        if let Some(record) = collected.record()
            && let Some(header) = RecordHeader::parse(record.kept)
        {
            self.deliver(start, end, header, &record, deliver);
        }
    }

    #[inline]
    fn deliver(
        &mut self,
        start: Lsn,
        end: Lsn,
        header: RecordHeader,
        record: &WholeRecord<'_>,
        deliver: &mut impl FnMut(LogEvent<'_>),
    ) {
        let mut blocks = std::mem::take(&mut self.blocks);
        match record::decode(record, &self.format, &mut blocks) {
            Some(decoded) => {
                self.last = Some((start, end));
                let record = decoded.record((start, end), header, &blocks);
                deliver(LogEvent::Record(record));
            }
            None => self.lose(start, UnparsedReason::Layout, deliver),
        }
        self.blocks = blocks;
    }
}

/// As many bytes as there are, and no more than `most`.
fn clamp(bytes: &[u8], most: u64) -> usize {
    bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests;
