//! The log of 14 in the form of 15, so that the `pg_waldump` of 15 can be its witness: there is no
//! `pg_walinspect` for 14, its `pg_waldump` is not installed, and each one reads its own major only.
//!
//! The formats differ in the magic of a page, in the bits about an image's compression, in the number of
//! one operation, and in the body of prepared transactions. Nothing moves, so that positions and lengths
//! stay what they are.

use borealis_pg_format::wal::{LogEvent, LogFormat, Rmgr, Start, WalReader};
use borealis_pg_format::{Lsn, Version};

use std::fs;
use std::path::Path;

use borealis_pg_format::Timeline;
use borealis_pg_format::segment::{LogFile, SegmentSize};

/// Bytes of a page of the log.
const PAGE: usize = 8192;
/// Bytes of the header of a page of the log, and of a segment's first page.
const PAGE_HEADER: (usize, usize) = (24, 40);
const HEADER_LEN: usize = 24;
const INFO: usize = 16;
const CRC: usize = 20;

/// Where the bytes of a record of `len` bytes lie that begins at byte `start` of a log that begins with a
/// segment: page headers lie between them.
pub fn offsets(start: usize, len: usize) -> Vec<usize> {
    let segment = SegmentSize::DEFAULT.bytes() as usize;
    let mut at = start;
    let mut found = Vec::with_capacity(len);
    while found.len() < len {
        if at.is_multiple_of(segment) {
            at += PAGE_HEADER.1;
        } else if at.is_multiple_of(PAGE) {
            at += PAGE_HEADER.0;
        }
        found.push(at);
        at += 1;
    }
    found
}

/// Writes segment files of the log that begins with a segment at `start`, in the form of 15, into `folder`.
pub fn write_as_15(folder: &Path, timeline: Timeline, start: Lsn, log: &[u8]) {
    let size = SegmentSize::DEFAULT;
    fs::create_dir_all(folder).expect("the folder is ours");
    let first = size.number_of(start);
    let translated = to_15(start, log);
    for (index, segment) in translated.chunks(size.bytes() as usize).enumerate() {
        let number = first + index as u64;
        let name = LogFile::Segment { timeline, number }.name(size);
        fs::write(folder.join(name), segment).expect("the folder is ours");
    }
}

/// The log that begins with a segment at `start`, in the form of 15.
fn to_15(start: Lsn, log: &[u8]) -> Vec<u8> {
    let mut translated = log.to_vec();
    let mut reader = WalReader::new(LogFormat::new(Version::V14), start, Start::Anywhere, None);
    reader.push(start, log, &mut |event| {
        if let LogEvent::Record(record) = event {
            let places = offsets(
                record.start.since(start) as usize,
                record.header.total_len as usize,
            );
            let mut bytes: Vec<u8> = places.iter().map(|place| log[*place]).collect();
            translate(&mut bytes, record.header.rmgr, record.main_data.len());
            for (place, byte) in places.iter().zip(bytes) {
                translated[*place] = byte;
            }
        }
    });
    let (old, new) = (Version::V14.page_magic(), Version::V15.page_magic());
    let (pages, _) = translated.as_chunks_mut::<PAGE>();
    for page in pages {
        if page[..2] == old.to_le_bytes() {
            page[..2].copy_from_slice(&new.to_le_bytes());
        }
    }
    translated
}

fn translate(record: &mut [u8], rmgr: Rmgr, main_len: usize) {
    translate_images(record);
    let main = record.len() - main_len;
    match (rmgr, record[INFO] & 0xF0) {
        // DROP DATABASE, which made place for a second way to create one.
        (Rmgr::DBASE, 0x10) => record[INFO] = record[INFO] & 0x0F | 0x20,
        // Counts and positions, among which 15 has two more counts. All are printed only.
        (Rmgr::XACT, 0x10) => record[main + 36..main + 72].fill(0),
        _ => {}
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[HEADER_LEN..]), &record[..CRC]);
    record[CRC..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
}

/// 14 has (hole, compressed, apply) where 15 has (hole, apply, pglz).
fn translate_images(record: &mut [u8]) {
    let word =
        |record: &[u8], at: usize| usize::from(record[at]) | usize::from(record[at + 1]) << 8;
    let mut at = HEADER_LEN;
    // The headers end where what they announce begins, or at the header of the main data.
    let mut announced = 0;
    while record.len() - at > announced {
        match record[at] {
            // The origin, the transaction above.
            253 => at += 3,
            252 => at += 5,
            0..=32 => {
                let flags = record[at + 1];
                announced += word(record, at + 2);
                at += 4;
                if flags & 0x10 != 0 {
                    announced += word(record, at);
                    let info = record[at + 4];
                    record[at + 4] = info & 1 | (info & 2) << 1 | (info & 4) >> 1;
                    at += if info & 3 == 3 { 7 } else { 5 };
                }
                at += if flags & 0x80 == 0 { 16 } else { 4 };
            }
            _ => return,
        }
    }
}
