//! Pages of the log (`access/xlog_internal.h`).

use super::reader::LogFormat;
use crate::segment::SegmentSize;
use crate::{Lsn, Timeline, cursor};

/// Bytes of a page of the log. Another size needs another build of PostgreSQL, which nobody
/// distributes; the first page of each segment says so, and is then refused.
pub const WAL_PAGE_SIZE: u64 = 8192;
/// Bytes of the header of most pages.
pub const SHORT_HEADER_LEN: usize = 24;
/// Bytes of the header of a segment's first page.
pub const LONG_HEADER_LEN: usize = 40;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// The header of a page of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The timeline on which the page was begun.
    pub timeline: Timeline,
    /// Bytes of a record from an earlier page that go on here; zero unless `continues`.
    pub remaining: u32,
    /// Whether the page begins within a record.
    pub continues: bool,
    /// Whether a record that earlier pages began was abandoned in a crash: it ends nowhere, and a
    /// new record starts on this page.
    pub abandons: bool,
    /// What only a segment's first page has.
    pub long: Option<LongHeader>,
}

/// What a segment's first page says about the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// Bytes of a segment.
    pub segment_size: SegmentSize,
}

/// What stands where a page header should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageStart {
    /// The page that belongs here.
    Page(PageHeader),
    /// Zeros, or a page of an earlier use of the segment's file: the log has not come this far.
    Unwritten,
    /// Nothing that the server writes.
    Foreign,
}

/// Whether the header that these first bytes begin is a long one.
pub(crate) fn is_long(header: &[u8]) -> bool {
    cursor::at(header, 2).u16().unwrap_or_default() & LONG_HEADER != 0
}

/// Reads the header of the page at `lsn`.
pub(crate) fn parse(header: &[u8], lsn: Lsn, format: &LogFormat) -> PageStart {
    parse_fields(header, lsn, format).unwrap_or(PageStart::Foreign)
}

fn parse_fields(header: &[u8], lsn: Lsn, format: &LogFormat) -> Option<PageStart> {
    let mut cursor = cursor::Cursor::new(header);
    let magic = cursor.u16()?;
    let flags = cursor.u16()?;
    let timeline = Timeline(cursor.u32()?);
    let address = Lsn(cursor.u64()?);
    let remaining = cursor.u32()?;
    if header.iter().all(|byte| *byte == 0) {
        return Some(PageStart::Unwritten);
    }
    if magic != format.version.page_magic() || flags & !ALL_FLAGS != 0 {
        return None;
    }
    // A recycled segment file keeps the pages of its former life until they are overwritten; they
    // name an earlier place.
    if address < lsn {
        return Some(PageStart::Unwritten);
    }
    if address > lsn {
        return None;
    }
    let long = if flags & LONG_HEADER != 0 {
        let mut cursor = cursor::at(header, SHORT_HEADER_LEN);
        let system_identifier = cursor.u64()?;
        let segment_size = SegmentSize::new(cursor.u32()?)?;
        if u64::from(cursor.u32()?) != WAL_PAGE_SIZE {
            return None;
        }
        Some(LongHeader {
            system_identifier,
            segment_size,
        })
    } else {
        None
    };
    Some(PageStart::Page(PageHeader {
        timeline,
        remaining,
        continues: flags & FIRST_IS_CONTRECORD != 0,
        abandons: flags & FIRST_IS_OVERWRITE_CONTRECORD != 0,
        long,
    }))
}
