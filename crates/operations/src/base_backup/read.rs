//! Reads the pages of a base backup and turns them into frames, on several threads, in order and with
//! bounded memory: [`READERS`] batches, each of at most what [`DataDir::batch_bytes`] says, plain and
//! compressed, besides the pack writer's own.

use std::ops::Range;
use std::sync::Arc;

use borealis_base::Position;
use borealis_pg_format::index::ForkKey;
use borealis_pg_server::data_dir::DataDir;
use borealis_pg_server::data_dir::page_reader::{PageRead, PageReader, Wanted};
use borealis_repository::object::Compression;
use borealis_repository::pages::digests::PageDigester;
use borealis_repository::pages::frame::frame_pages_max;
use borealis_repository::pages::pack::{PreparedPages, prepare_pages};
use futures::{Stream, StreamExt};

use super::facts::DamagedPage;
use super::plan::{ForkPlan, Sizes};
use crate::error::{Error, Result};

/// Batches of frames that are read and compressed at a time.
pub const READERS: usize = 4;

/// Where the pages are.
#[derive(Debug, Clone)]
pub struct PagePlace {
    /// Where the files are read from.
    pub dir: Arc<dyn DataDir>,
    /// The directory of this version in a tablespace.
    pub tablespace_directory: String,
    /// Page and segment size.
    pub sizes: Sizes,
    /// What makes the digests of pages.
    pub digester: PageDigester,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// Where the base backup began: invalid pages at or past it are made right by replay.
    pub start: Position,
}

impl PagePlace {
    /// Reads these pages.
    pub(super) fn reader(&self) -> PageReader<'_> {
        PageReader {
            dir: &*self.dir,
            tablespace_directory: self.tablespace_directory.clone(),
            page_bytes: self.sizes.page_bytes as usize,
            segment_pages: self.sizes.segment_pages,
            checksums: self.checksums,
            start: self.start,
            pause: &|duration| std::thread::sleep(duration),
        }
    }
}

/// The pages of one frame.
struct FrameJob {
    number: u32,
    key: ForkKey,
    path: Arc<str>,
    blocks: Vec<u32>,
}

/// Frames that are read at once: a fork of which little has changed is not worth a question of its own.
struct Batches<I: Iterator<Item = FrameJob>> {
    frames: std::iter::Peekable<I>,
    pages_max: usize,
}

impl<I: Iterator<Item = FrameJob>> Iterator for Batches<I> {
    type Item = Vec<FrameJob>;

    fn next(&mut self) -> Option<Vec<FrameJob>> {
        let mut batch = vec![self.frames.next()?];
        let mut pages = batch.iter().map(|frame| frame.blocks.len()).sum::<usize>();
        while let Some(frame) =
            (self.frames).next_if(|frame| pages + frame.blocks.len() <= self.pages_max)
        {
            pages += frame.blocks.len();
            batch.push(frame);
        }
        Some(batch)
    }
}

/// The pages of one frame, read and compressed.
pub(super) struct FrameDone {
    /// They.
    pub(super) pages: PreparedPages,
    /// How many.
    pub(super) count: u64,
    /// Those that the source itself could not read.
    pub(super) damaged: Vec<DamagedPage>,
}

/// Reads what `forks` plan, each with its page file's number: the frames in order.
pub(super) fn read_frames(
    place: &PagePlace,
    forks: &[(u32, ForkPlan)],
) -> impl Stream<Item = Result<FrameDone>> + Unpin + Send {
    let per_frame = frame_pages_max(place.sizes.page_bytes);
    // Its type is named, or the future that holds it could not move between threads.
    let jobs: Box<dyn Iterator<Item = FrameJob> + Send + '_> =
        Box::new(forks.iter().flat_map(move |(number, fork)| {
            let path: Arc<str> = fork.path.as_str().into();
            let blocks: Vec<u32> = fork.read.iter().collect();
            let chunks: Vec<Vec<u32>> = blocks.chunks(per_frame).map(<[u32]>::to_vec).collect();
            chunks.into_iter().map(move |blocks| FrameJob {
                number: *number,
                key: fork.key,
                path: path.clone(),
                blocks,
            })
        }));
    let place = Arc::new(place.clone());
    let batches = Batches {
        frames: jobs.peekable(),
        pages_max: place.dir.batch_bytes() / place.sizes.page_bytes as usize,
    };
    futures::stream::iter(batches)
        .map(move |batch| {
            let place = place.clone();
            tokio::task::spawn_blocking(move || read_batch(&place, &batch))
        })
        .buffered(READERS)
        .flat_map(|done| {
            let frames = match done {
                Ok(Ok(frames)) => frames.into_iter().map(Ok).collect(),
                Ok(Err(error)) => vec![Err(error)],
                Err(error) => vec![Err(Error::new(
                    borealis_base::ErrorKind::Bug,
                    format!("a reader ended: {error}"),
                ))],
            };
            futures::stream::iter(frames)
        })
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(
            borealis_base::ErrorKind::Bug,
            format!("a thread ended: {error}"),
        )
    })?
}

pub(super) fn interrupted() -> Error {
    Error::with_hint(
        borealis_base::ErrorKind::Interrupted,
        "the base backup was interrupted",
        "Run it again; it goes on from what it has stored.",
    )
}

fn read_batch(place: &PagePlace, frames: &[FrameJob]) -> Result<Vec<FrameDone>> {
    let page_bytes = place.sizes.page_bytes as usize;
    // Which frame and which of its pages each page of the batch is.
    let owners: Vec<(usize, usize)> = (frames.iter().enumerate())
        .flat_map(|(frame, of)| (0..of.blocks.len()).map(move |page| (frame, page)))
        .collect();
    let mut content = vec![0; owners.len() * page_bytes];
    let mut damaged: Vec<Vec<DamagedPage>> = frames.iter().map(|_| Vec::new()).collect();
    let mut sink = |at: usize, found: PageRead, page: &[u8]| {
        let (frame, index) = *owners.get(at).expect("a page that was wanted");
        match found {
            PageRead::Good(_) | PageRead::New | PageRead::Newer(_) => {}
            PageRead::Damaged(fault) => {
                // Kept as it is, so that the restored server meets the same error as this one: an
                // older content would look sound and be wrong. Older base backups keep theirs.
                let of = frames.get(frame).expect("each page is of a frame");
                let block = *of.blocks.get(index).expect("each page is of a block");
                damaged
                    .get_mut(frame)
                    .expect("one list for each frame")
                    .push(DamagedPage {
                        path: of.path.to_string(),
                        block,
                        fault: fault.to_string(),
                    });
            }
            // Truncated or dropped since the listing; the log from the start on says so, and replay
            // does it again.
            PageRead::PastEnd | PageRead::Missing => return Ok(()),
        }
        content
            .get_mut(at * page_bytes..(at + 1) * page_bytes)
            .expect("there is room for each page")
            .copy_from_slice(page);
        Ok(())
    };
    let wanted: Vec<(ForkKey, Vec<Range<u32>>)> = frames
        .iter()
        .map(|frame| (frame.key, ranges(frame.blocks.iter().copied())))
        .collect();
    let wanted: Vec<Wanted<'_>> = wanted
        .iter()
        .map(|(key, ranges)| Wanted {
            relation: key.relation,
            fork: key.fork,
            ranges,
        })
        .collect();
    place.reader().read(&wanted, &mut sink)?;
    let mut pages = content.chunks_exact(page_bytes);
    frames
        .iter()
        .zip(damaged)
        .map(|(frame, mut damaged)| {
            // Those that were read again come last.
            damaged.sort_by_key(|page| page.block);
            let pages: Vec<(u32, &[u8])> =
                frame.blocks.iter().copied().zip(pages.by_ref()).collect();
            let prepared = prepare_pages(
                frame.number,
                place.sizes.page_bytes,
                &pages,
                Compression::Zstd(PAGE_LEVEL),
                &place.digester,
            )?;
            Ok(FrameDone {
                pages: prepared,
                count: pages.len() as u64,
                damaged,
            })
        })
        .collect()
}

/// The zstd level for pages.
const PAGE_LEVEL: i32 = 3;

/// Ascending blocks as ranges.
pub(super) fn ranges(blocks: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for block in blocks {
        match ranges.last_mut() {
            Some(last) if last.end == block => last.end = block + 1,
            _ => ranges.push(block..block + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_pg_format::{Fork, Relation};

    #[test]
    fn small_frames_are_read_together_and_large_ones_alone() {
        let frame = |pages: u32| FrameJob {
            number: 0,
            key: ForkKey {
                relation: Relation {
                    tablespace: 1663,
                    database: 5,
                    number: 1,
                },
                fork: Fork::Main,
            },
            path: "base/5/1".into(),
            blocks: (0..pages).collect(),
        };
        let batches = Batches {
            frames: [1, 2, 3, 128, 200, 4, 60, 64]
                .map(frame)
                .into_iter()
                .peekable(),
            pages_max: 128,
        };
        let pages = |batch: Vec<FrameJob>| -> Vec<usize> {
            batch.iter().map(|frame| frame.blocks.len()).collect()
        };
        let batches: Vec<_> = batches.map(pages).collect();
        assert_eq!(
            batches,
            [vec![1, 2, 3], vec![128], vec![200], vec![4, 60, 64]]
        );
    }

    #[test]
    fn neighbouring_blocks_are_read_at_once() {
        assert_eq!(ranges([]), []);
        assert_eq!(ranges([1, 2, 3, 7, 9, 10]), [1..4, 7..8, 9..11]);
    }
}
