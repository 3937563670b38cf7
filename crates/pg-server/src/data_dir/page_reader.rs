//! Pages of relations, read below a running server between the start and the end of a backup.
//!
//! A read can meet a page half written. Whether that matters is decided by its position: a page that
//! was changed after the backup's start is made whole by replay, any other has no business being
//! torn, is read again a few times, and is damaged if it stays so. Rule: `sendFile` in
//! `src/backend/backup/basebackup.c`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use borealis_pg_format::files::RelationFile;
use borealis_pg_format::page::{PageFault, PageHeader, PageState, verify};
use borealis_pg_format::{Fork, Lsn, Relation};

use super::has_vanished;
use crate::error::{Error, Result};

/// The most bytes read at once, and so the buffer of one reader.
pub const READ_BYTES_MAX: usize = 1 << 20;

/// How often an invalid page is read again before it counts as damaged.
pub const RETRIES_MAX: u32 = 5;

/// The wait before each of these; a server writes a page in far less.
pub const RETRY_DELAY: Duration = Duration::from_millis(100);

/// What was found where a page was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageRead {
    /// A valid page, last changed at this position.
    Good(Lsn),
    /// All zeros: allocated, and nothing was written yet.
    New,
    /// An invalid page whose position is at or after the backup's start: replay rewrites it.
    Newer(Lsn),
    /// An invalid page that replay will not repair.
    Damaged(PageFault),
    /// The file ends before it.
    PastEnd,
    /// The file of its segment does not exist.
    Missing,
}

/// How the pages of a cluster are laid out, and how to wait.
pub struct PageReader<'a> {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The directory of this version in a tablespace, such as `PG_15_202209061`.
    pub tablespace_directory: String,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Pages of a segment file (131,072 in every distribution).
    pub segment_pages: u32,
    /// Whether the cluster has checksums.
    pub checksums: bool,
    /// Where the backup started.
    pub start: Lsn,
    /// Waits; passed in, so that tests need not.
    pub pause: &'a (dyn Fn(Duration) + Sync),
}

/// Receives a block's number, what was found, and its bytes: a whole page, or nothing where there is
/// none.
pub type PageSink<'s> = dyn FnMut(u32, PageRead, &[u8]) -> Result<()> + 's;

impl PageReader<'_> {
    /// Reads `ranges` of blocks of a fork, in the order given, and hands each block to `sink` once.
    ///
    /// # Errors
    /// What `sink` returns, and failures of the disk. Damage and absence are answers.
    pub fn read(
        &self,
        relation: Relation,
        fork: Fork,
        ranges: &[Range<u32>],
        sink: &mut PageSink<'_>,
    ) -> Result<()> {
        let mut buffer = vec![0; self.chunk_pages() as usize * self.page_bytes];
        let mut open: Option<(u32, Option<File>, PathBuf)> = None;
        for range in ranges {
            let mut block = range.start;
            while block < range.end {
                let segment = block / self.segment_pages;
                let segment_end = segment.saturating_add(1).saturating_mul(self.segment_pages);
                let end = range
                    .end
                    .min(segment_end)
                    .min(block.saturating_add(self.chunk_pages()));
                if open.as_ref().is_none_or(|(at, ..)| *at != segment) {
                    let path = self.path(relation, fork, segment);
                    open = Some((segment, Self::open(&path)?, path));
                }
                match &open {
                    Some((_, Some(file), path)) => {
                        self.chunk(file, path, block..end, &mut buffer, sink)?;
                    }
                    _ => {
                        for block in block..end {
                            sink(block, PageRead::Missing, &[])?;
                        }
                    }
                }
                block = end;
            }
        }
        Ok(())
    }

    fn chunk_pages(&self) -> u32 {
        u32::try_from(READ_BYTES_MAX / self.page_bytes)
            .unwrap_or(1)
            .max(1)
    }

    fn path(&self, relation: Relation, fork: Fork, segment: u32) -> PathBuf {
        let file = RelationFile {
            relation,
            fork,
            segment,
        };
        self.data_dir.join(file.path(&self.tablespace_directory))
    }

    fn open(path: &Path) -> Result<Option<File>> {
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if has_vanished(&error) => Ok(None),
            Err(error) => Err(Error::file("open", path, error)),
        }
    }

    fn chunk(
        &self,
        file: &File,
        path: &Path,
        blocks: Range<u32>,
        buffer: &mut [u8],
        sink: &mut PageSink<'_>,
    ) -> Result<()> {
        let failed = |e| Error::file("read", path, e);
        let wanted = (blocks.end - blocks.start) as usize * self.page_bytes;
        let buffer = buffer
            .get_mut(..wanted)
            .expect("a chunk is never longer than the buffer");
        let read = read_full(file, buffer, self.offset(blocks.start)).map_err(failed)?;
        let whole = read / self.page_bytes;
        for (at, (block, page)) in blocks
            .zip(buffer.chunks_exact_mut(self.page_bytes))
            .enumerate()
        {
            // A page that is only partly there is being added right now: one more look tells.
            let mut complete = at < whole;
            let mut state = complete.then(|| self.judge(page, block));
            let mut retries = 0;
            while retries < RETRIES_MAX && needs_another_look(state, at == whole, read, page.len())
            {
                retries += 1;
                (self.pause)(RETRY_DELAY);
                let again = read_full(file, page, self.offset(block)).map_err(failed)?;
                complete = again == page.len();
                state = complete.then(|| self.judge(page, block));
            }
            let found = match state {
                None => PageRead::PastEnd,
                Some(PageState::New) => PageRead::New,
                Some(PageState::Valid(lsn)) => PageRead::Good(lsn),
                Some(PageState::Invalid(fault)) => match PageHeader::parse(page) {
                    Some(header) if header.lsn >= self.start => PageRead::Newer(header.lsn),
                    _ => PageRead::Damaged(fault),
                },
            };
            sink(block, found, if complete { page } else { &[] })?;
        }
        Ok(())
    }

    fn judge(&self, page: &[u8], block: u32) -> PageState {
        verify(page, block, self.page_bytes, self.checksums)
    }

    fn offset(&self, block: u32) -> u64 {
        u64::from(block % self.segment_pages) * self.page_bytes as u64
    }
}

/// Invalid pages get another look, and so does the page in whose middle the file ended.
fn needs_another_look(
    state: Option<PageState>,
    is_first_missing: bool,
    read: usize,
    page_bytes: usize,
) -> bool {
    match state {
        Some(PageState::Invalid(_)) => true,
        None => is_first_missing && !read.is_multiple_of(page_bytes),
        Some(_) => false,
    }
}

/// Reads until `buffer` is full or the file ends; returns how much came.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Mutex;

    use borealis_pg_format::page::checksum;

    use super::*;

    const PAGE: usize = 8192;
    const RELATION: Relation = Relation {
        tablespace: 1663,
        database: 5,
        number: 7,
    };

    /// A page as `PageInit` makes it, with a position, a filling and its checksum.
    fn page(block: u32, lsn: u64, filling: u8) -> Vec<u8> {
        let mut page = vec![filling; PAGE];
        page[..24].fill(0);
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[12..14].copy_from_slice(&24_u16.to_le_bytes());
        page[14..16].copy_from_slice(&8192_u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
        page[18..20].copy_from_slice(&(8192_u16 | 4).to_le_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn read(
        data_dir: &Path,
        range: Range<u32>,
        pause: &(dyn Fn(Duration) + Sync),
    ) -> Vec<PageRead> {
        let reader = PageReader {
            data_dir: data_dir.to_owned(),
            tablespace_directory: "PG_15_202209061".to_owned(),
            page_bytes: PAGE,
            segment_pages: 4,
            checksums: true,
            start: Lsn(1000),
            pause,
        };
        let found = RefCell::new(Vec::new());
        reader
            .read(RELATION, Fork::Main, &[range], &mut |_, state, bytes| {
                let has_bytes = !matches!(state, PageRead::PastEnd | PageRead::Missing);
                assert_eq!(bytes.len(), if has_bytes { PAGE } else { 0 });
                found.borrow_mut().push(state);
                Ok(())
            })
            .expect("readable");
        found.into_inner()
    }

    fn data_dir(segments: &[Vec<u8>]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("base/5")).expect("writable");
        for (at, bytes) in segments.iter().enumerate() {
            let name = if at == 0 {
                "7".to_owned()
            } else {
                format!("7.{at}")
            };
            std::fs::write(dir.path().join("base/5").join(name), bytes).expect("writable");
        }
        dir
    }

    #[test]
    fn pages_are_found_across_segments() {
        let first = (0..4).flat_map(|block| page(block, 10 + u64::from(block), 1));
        let second = page(4, 14, 1).into_iter().chain(vec![0; PAGE]);
        let dir = data_dir(&[first.collect(), second.collect()]);
        let good = |lsn| PageRead::Good(Lsn(lsn));
        assert_eq!(
            read(dir.path(), 2..9, &|_| panic!("no page is invalid")),
            [
                good(12),
                good(13),
                good(14),
                PageRead::New,
                PageRead::PastEnd,
                PageRead::PastEnd,
                PageRead::Missing,
            ]
        );
    }

    #[test]
    fn page_torn_by_a_write_is_read_again() {
        let torn = [&page(0, 900, 1)[..PAGE / 2], &page(0, 950, 2)[PAGE / 2..]].concat();
        let dir = data_dir(&[torn]);
        let file = dir.path().join("base/5/7");
        let waits = Mutex::new(0);
        let found = read(dir.path(), 0..1, &|_| {
            let mut waits = waits.lock().expect("no panic");
            *waits += 1;
            if *waits == 2 {
                std::fs::write(&file, page(0, 950, 2)).expect("writable");
            }
        });
        assert_eq!(found, [PageRead::Good(Lsn(950))]);
        assert_eq!(*waits.lock().expect("no panic"), 2);
    }

    #[test]
    fn torn_page_is_repaired_by_replay_only_if_newer_than_the_start() {
        for (lsn, newer) in [(999, false), (1000, true), (5000, true)] {
            let mut bytes = page(0, lsn, 1);
            bytes[5000] ^= 1;
            let dir = data_dir(&[bytes]);
            let waits = Mutex::new(0);
            let found = read(dir.path(), 0..1, &|_| *waits.lock().expect("no panic") += 1);
            assert_eq!(*waits.lock().expect("no panic"), RETRIES_MAX);
            match found[..] {
                [PageRead::Newer(at)] => assert!(newer && at == Lsn(lsn)),
                [PageRead::Damaged(PageFault::Checksum { .. })] => assert!(!newer),
                ref other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn page_of_another_block_is_damaged() {
        let dir = data_dir(&[page(1, 10, 1)]);
        let found = read(dir.path(), 0..1, &|_| {});
        assert!(matches!(found[..], [PageRead::Damaged(_)]), "{found:?}");
    }

    #[test]
    fn half_a_page_at_the_end_is_waited_for() {
        let bytes = [page(0, 10, 1), page(1, 11, 1)[..100].to_vec()].concat();
        let dir = data_dir(&[bytes]);
        let file = dir.path().join("base/5/7");
        let found = read(dir.path(), 0..3, &|_| {
            std::fs::write(&file, [page(0, 10, 1), page(1, 11, 1)].concat()).expect("writable");
        });
        assert_eq!(
            found,
            [
                PageRead::Good(Lsn(10)),
                PageRead::Good(Lsn(11)),
                PageRead::PastEnd
            ]
        );
    }
}
