//! One record of the log: its header, the blocks it names, its data (`access/xlogrecord.h`,
//! `DecodeXLogRecord` in `access/transam/xlogreader.c`).

use super::reader::LogFormat;
use super::rmgr::Rmgr;
use crate::cursor::Cursor;
use crate::{Lsn, Relation, Version, cursor};

/// Bytes of a record's header.
pub const RECORD_HEADER_LEN: usize = 24;
/// Where the checksum lies within the header; it covers the header up to there, and everything
/// after it.
const CRC_OFFSET: usize = 20;

const MAX_BLOCK_ID: u8 = 32;
const ID_TOPLEVEL_XID: u8 = 252;
const ID_ORIGIN: u8 = 253;
const ID_DATA_LONG: u8 = 254;
const ID_DATA_SHORT: u8 = 255;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;

/// The record changes relation files in a way that its block references do not tell
/// (`XLR_SPECIAL_REL_UPDATE`).
const SPECIAL_REL_UPDATE: u8 = 0x01;

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the whole record, without padding.
    pub total_len: u32,
    /// The transaction, or 0. Subtransactions have their own.
    pub xid: u32,
    /// The start of the record before.
    pub prev: Lsn,
    /// Flags in the lower half, the resource manager's own in the upper.
    pub info: u8,
    /// The resource manager.
    pub rmgr: Rmgr,
    /// The checksum as stored.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads a header; `None` if there are too few bytes.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes.get(..RECORD_HEADER_LEN)?);
        let header = Self {
            total_len: cursor.u32()?,
            xid: cursor.u32()?,
            prev: Lsn(cursor.u64()?),
            info: cursor.u8()?,
            rmgr: Rmgr(cursor.u8()?),
            crc: 0,
        };
        cursor.u16()?;
        Some(Self {
            crc: cursor.u32()?,
            ..header
        })
    }

    /// The upper half of `info`, which the resource manager gives a meaning.
    pub const fn operation(&self) -> u8 {
        self.info & 0xF0
    }

    /// Whether the record changes relation files in a way that its block references do not tell.
    pub const fn is_special(&self) -> bool {
        self.info & SPECIAL_REL_UPDATE != 0
    }
}

/// A full-page image in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockImage {
    /// Bytes of it that the record holds.
    pub len: u16,
    /// Bytes before the hole.
    pub hole_offset: u16,
    /// Bytes of zeros left out of the page.
    pub hole_length: u16,
    /// How it is stored; the bits differ between versions.
    pub info: u8,
    /// Whether it is compressed.
    pub compressed: bool,
}

/// A block that a record names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRef {
    /// Its number within the record, at most 32.
    pub id: u8,
    /// The fork's number; see [`crate::Fork::from_number`].
    pub fork: u8,
    /// Whether replay makes the page anew.
    pub will_init: bool,
    /// The relation.
    pub relation: Relation,
    /// The block's number within the fork.
    pub block: u32,
    /// The page as it was after the change, if the record holds it.
    pub image: Option<BlockImage>,
    /// Bytes that the record holds about this block besides.
    pub data_len: u16,
}

/// A record with everything in it. Borrowed: it lives as long as the call that delivers it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where the next may begin: after padding, and for a segment switch at the segment's end.
    pub end: Lsn,
    /// Its fixed part.
    pub header: RecordHeader,
    /// The blocks it names, by ascending number.
    pub blocks: &'a [BlockRef],
    /// The replication origin, if named.
    pub origin: Option<u16>,
    /// The top-level transaction, if the first record of a subtransaction names it.
    pub toplevel_xid: Option<u32>,
    /// What the resource manager says apart from blocks.
    pub main_data: &'a [u8],
}

/// A whole record that is yet to be judged, without what nobody reads of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WholeRecord<'a> {
    /// The record from its start, at least to the end of all headers, and its main data at the end.
    pub(crate) kept: &'a [u8],
    /// Bytes of the record.
    pub(crate) total: usize,
    /// CRC-32C of all that follows the fixed part.
    pub(crate) body_crc: u32,
}

impl<'a> WholeRecord<'a> {
    /// A record all of whose bytes are here.
    #[inline]
    pub(crate) fn whole(bytes: &'a [u8]) -> Self {
        Self {
            kept: bytes,
            total: bytes.len(),
            body_crc: crc32c::crc32c(bytes.get(RECORD_HEADER_LEN..).unwrap_or_default()),
        }
    }

    /// The checksum that it should have.
    #[inline]
    pub(crate) fn checksum(&self) -> Option<u32> {
        let head = self.kept.get(..CRC_OFFSET)?;
        Some(crc32c::crc32c_append(self.body_crc, head))
    }
}

/// What was found besides the blocks.
#[derive(Debug, Default)]
pub(crate) struct Decoded<'a> {
    origin: Option<u16>,
    toplevel_xid: Option<u32>,
    main_data: &'a [u8],
}

impl<'a> Decoded<'a> {
    /// The record as it is delivered.
    pub(crate) fn record(
        self,
        (start, end): (Lsn, Lsn),
        header: RecordHeader,
        blocks: &'a [BlockRef],
    ) -> Record<'a> {
        Record {
            start,
            end,
            header,
            blocks,
            origin: self.origin,
            toplevel_xid: self.toplevel_xid,
            main_data: self.main_data,
        }
    }
}

/// Takes a whole record apart; `None` if its parts contradict each other. `blocks` is overwritten.
#[inline]
pub(crate) fn decode<'a>(
    record: &WholeRecord<'a>,
    format: &LogFormat,
    blocks: &mut Vec<BlockRef>,
) -> Option<Decoded<'a>> {
    blocks.clear();
    let headers = read_headers(record.kept, record.total, format, |block| {
        let ascending = blocks.last().is_none_or(|last| last.id < block.id);
        blocks.push(block);
        ascending
    })?;
    let main_data = record.kept.len().checked_sub(headers.main_len)?;
    Some(Decoded {
        origin: headers.origin,
        toplevel_xid: headers.toplevel_xid,
        main_data: record.kept.get(main_data..)?,
    })
}

/// How long the main data of a record of `total` bytes are, which are its last ones. `head` is its
/// beginning; `None` if that does not hold all headers, or if they contradict each other.
pub(super) fn main_data_len(head: &[u8], total: usize, format: &LogFormat) -> Option<usize> {
    Some(read_headers(head, total, format, |_| true)?.main_len)
}

/// What the headers say.
#[derive(Default)]
struct Headers {
    origin: Option<u16>,
    toplevel_xid: Option<u32>,
    main_len: usize,
}

/// Reads all headers of a record of `total` bytes, which begins with `head`. `each` is given the blocks
/// in order and says whether one may stand there.
#[inline]
fn read_headers(
    head: &[u8],
    total: usize,
    format: &LogFormat,
    mut each: impl FnMut(BlockRef) -> bool,
) -> Option<Headers> {
    let mut cursor = cursor::at(head, RECORD_HEADER_LEN);
    // Bytes of the record behind the cursor.
    let missing = total.checked_sub(head.len())?;
    let rest = |cursor: &Cursor<'_>| cursor.rest().len() + missing;
    let mut headers = Headers::default();
    // Bytes that the headers announce; what the headers leave over must be exactly these.
    let mut announced = 0;
    let mut relation = None;
    while rest(&cursor) > announced {
        match cursor.u8()? {
            ID_DATA_SHORT => {
                headers.main_len = usize::from(cursor.u8()?);
                announced += headers.main_len;
                break;
            }
            ID_DATA_LONG => {
                headers.main_len = cursor.u32()? as usize;
                announced += headers.main_len;
                break;
            }
            ID_ORIGIN => headers.origin = Some(cursor.u16()?),
            ID_TOPLEVEL_XID => headers.toplevel_xid = Some(cursor.u32()?),
            id if id <= MAX_BLOCK_ID => {
                let block = decode_block(&mut cursor, id, format, &mut relation)?;
                announced += usize::from(block.data_len);
                announced += block
                    .image
                    .as_ref()
                    .map_or(0, |image| usize::from(image.len));
                if !each(block) {
                    return None;
                }
            }
            _ => return None,
        }
    }
    (rest(&cursor) == announced).then_some(headers)
}

/// The header of one block.
#[inline]
fn decode_block(
    cursor: &mut Cursor<'_>,
    id: u8,
    format: &LogFormat,
    relation: &mut Option<Relation>,
) -> Option<BlockRef> {
    let flags = cursor.u8()?;
    let data_len = cursor.u16()?;
    if (flags & HAS_DATA != 0) != (data_len > 0) {
        return None;
    }
    let image = if flags & HAS_IMAGE == 0 {
        None
    } else {
        Some(decode_image(cursor, format)?)
    };
    if flags & SAME_REL == 0 {
        *relation = Some(relation_of(cursor)?);
    }
    Some(BlockRef {
        id,
        fork: flags & FORK_MASK,
        will_init: flags & WILL_INIT != 0,
        relation: (*relation)?,
        block: cursor.u32()?,
        image,
        data_len,
    })
}

/// A `RelFileNode` or `RelFileLocator`.
#[inline]
pub(crate) fn relation_of(cursor: &mut Cursor<'_>) -> Option<Relation> {
    Some(Relation {
        tablespace: cursor.u32()?,
        database: cursor.u32()?,
        number: cursor.u32()?,
    })
}

fn decode_image(cursor: &mut Cursor<'_>, format: &LogFormat) -> Option<BlockImage> {
    let len = cursor.u16()?;
    let hole_offset = cursor.u16()?;
    let info = cursor.u8()?;
    // 14 knew one compression and put its bit where 15 has `BKPIMAGE_APPLY`.
    let compressed = match format.version {
        Version::V14 => info & 0x02 != 0,
        _ => info & 0x1C != 0,
    };
    let has_hole = info & IMAGE_HAS_HOLE != 0;
    let page_size = format.page_size;
    let hole_length = match (compressed, has_hole) {
        (true, true) => cursor.u16()?,
        (true, false) => 0,
        (false, _) => u16::try_from(page_size.checked_sub(u32::from(len))?).ok()?,
    };
    let hole_end = u32::from(hole_offset) + u32::from(hole_length);
    let plausible = if has_hole {
        hole_offset != 0 && hole_length != 0 && hole_end <= page_size
    } else {
        hole_offset == 0 && hole_length == 0
    };
    // A compressed image that is no smaller than a page would not have been compressed.
    if !plausible || (compressed && u32::from(len) >= page_size) {
        return None;
    }
    Some(BlockImage {
        len,
        hole_offset,
        hole_length,
        info,
        compressed,
    })
}
