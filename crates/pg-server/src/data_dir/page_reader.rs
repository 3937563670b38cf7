//! Pages of relations, read from a running server between the start and the end of a backup.
//!
//! A read can meet a page half written. Whether that matters is decided by its position: a page that
//! was changed after the backup's start is made whole by replay, any other has no business being
//! torn, is read again a few times, and is damaged if it stays so. Rule: `sendFile` in
//! `src/backend/backup/basebackup.c`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use borealis_pg_format::files::RelationFile;
use borealis_pg_format::page::{PageFault, PageHeader, PageState, verify};
use borealis_pg_format::{Fork, Lsn, Relation};

use super::{DataDir, FilePart, PART_BYTES_MAX};
use crate::error::Result;

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
    /// Where the files are read from.
    pub dir: &'a dyn DataDir,
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

/// Blocks of one fork.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The relation.
    pub relation: Relation,
    /// Its fork.
    pub fork: Fork,
    /// The blocks.
    pub ranges: &'a [Range<u32>],
}

/// Receives the number of a block among all that are wanted, what was found, and its bytes: a whole page,
/// or nothing where there is none. Blocks that are read again come after the others.
pub type PageSink<'s> = dyn FnMut(usize, PageRead, &[u8]) -> Result<()> + 's;

/// Blocks that lie beside each other in one file.
struct Chunk {
    /// The number of the first among all that are wanted.
    first: usize,
    /// The first.
    block: u32,
    /// How many.
    pages: usize,
    part: FilePart,
}

impl PageReader<'_> {
    /// Reads what is wanted, and hands each block to `sink` once.
    ///
    /// # Errors
    /// What `sink` returns, and failures to read. Damage and absence are answers.
    pub fn read(&self, wanted: &[Wanted<'_>], sink: &mut PageSink<'_>) -> Result<()> {
        let mut chunks = self.chunks(wanted);
        for retries in 0..=RETRIES_MAX {
            if retries > 0 {
                (self.pause)(RETRY_DELAY);
            }
            chunks = self.look(&chunks, retries == RETRIES_MAX, sink)?;
            if chunks.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn chunks(&self, wanted: &[Wanted<'_>]) -> Vec<Chunk> {
        let pages_max = u32::try_from(PART_BYTES_MAX / self.page_bytes).unwrap_or(1);
        let mut chunks = Vec::new();
        let mut first = 0;
        for of in wanted {
            let mut open: Option<(u32, Arc<str>)> = None;
            for range in of.ranges {
                let mut block = range.start;
                while block < range.end {
                    let segment = block / self.segment_pages;
                    let segment_end = segment.saturating_add(1).saturating_mul(self.segment_pages);
                    let end =
                        (range.end.min(segment_end)).min(block.saturating_add(pages_max.max(1)));
                    let path = match &open {
                        Some((at, path)) if *at == segment => path.clone(),
                        _ => self.path(of, segment),
                    };
                    open = Some((segment, path.clone()));
                    let pages = (end - block) as usize;
                    chunks.push(Chunk {
                        first,
                        block,
                        pages,
                        part: self.part(path, block, pages),
                    });
                    first += pages;
                    block = end;
                }
            }
        }
        chunks
    }

    fn path(&self, of: &Wanted<'_>, segment: u32) -> Arc<str> {
        let file = RelationFile {
            relation: of.relation,
            fork: of.fork,
            segment,
        };
        file.path(&self.tablespace_directory).into()
    }

    fn part(&self, path: Arc<str>, block: u32, pages: usize) -> FilePart {
        FilePart {
            path,
            offset: u64::from(block % self.segment_pages) * self.page_bytes as u64,
            bytes: pages * self.page_bytes,
        }
    }

    /// Reads `chunks`; returns what needs another look, unless this is the last.
    fn look(&self, chunks: &[Chunk], is_last: bool, sink: &mut PageSink<'_>) -> Result<Vec<Chunk>> {
        let parts: Vec<FilePart> = chunks.iter().map(|chunk| chunk.part.clone()).collect();
        let mut again = Vec::new();
        self.dir.read_parts(&parts, &mut |at, bytes| {
            let chunk = chunks.get(at).expect("one answer for each part");
            let mut pages = bytes.map(|bytes: &[u8]| bytes.chunks(self.page_bytes));
            for (number, block) in (0..chunk.pages).zip(chunk.block..) {
                let Some(pages) = &mut pages else {
                    sink(chunk.first + number, PageRead::Missing, &[])?;
                    continue;
                };
                let found = pages.next().unwrap_or_default();
                let is_whole = found.len() == self.page_bytes;
                let state = is_whole.then(|| verify(found, block, self.page_bytes, self.checksums));
                if needs_another_look(state, found.len()) && !is_last {
                    again.push(Chunk {
                        first: chunk.first + number,
                        block,
                        pages: 1,
                        part: self.part(chunk.part.path.clone(), block, 1),
                    });
                    continue;
                }
                let read = self.judge(state, found);
                sink(
                    chunk.first + number,
                    read,
                    if is_whole { found } else { &[] },
                )?;
            }
            Ok(())
        })?;
        Ok(again)
    }

    fn judge(&self, state: Option<PageState>, page: &[u8]) -> PageRead {
        match state {
            None => PageRead::PastEnd,
            Some(PageState::New) => PageRead::New,
            Some(PageState::Valid(lsn)) => PageRead::Good(lsn),
            Some(PageState::Invalid(fault)) => match PageHeader::parse(page) {
                Some(header) if header.lsn >= self.start => PageRead::Newer(header.lsn),
                _ => PageRead::Damaged(fault),
            },
        }
    }
}

/// Invalid pages get another look, and so does the page in whose middle the file ended: it is being added
/// right now.
fn needs_another_look(state: Option<PageState>, read: usize) -> bool {
    match state {
        Some(PageState::Invalid(_)) => true,
        None => read > 0,
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use borealis_pg_format::page::checksum;

    use super::super::LocalDataDir;
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
        let dir = LocalDataDir::new(data_dir);
        let reader = PageReader {
            dir: &dir,
            tablespace_directory: "PG_15_202209061".to_owned(),
            page_bytes: PAGE,
            segment_pages: 4,
            checksums: true,
            start: Lsn(1000),
            pause,
        };
        let wanted = Wanted {
            relation: RELATION,
            fork: Fork::Main,
            ranges: std::slice::from_ref(&range),
        };
        let mut found = vec![None; range.len()];
        reader
            .read(&[wanted], &mut |at, state, bytes| {
                let has_bytes = !matches!(state, PageRead::PastEnd | PageRead::Missing);
                assert_eq!(bytes.len(), if has_bytes { PAGE } else { 0 });
                assert_eq!(found[at].replace(state), None, "block {at} came twice");
                Ok(())
            })
            .expect("readable");
        found
            .into_iter()
            .map(|state| state.expect("every block comes"))
            .collect()
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
