//! Reads the pages of a base backup from the data directory and turns them into frames, on several
//! threads, in order and with bounded memory: [`READERS`] frames of at most 1 MiB, plain and
//! compressed, besides the pack writer's own.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use borealis_base::Position;
use borealis_pg_format::index::ForkKey;
use borealis_pg_server::data_dir::page_reader::{PageRead, PageReader};
use borealis_repository::object::Compression;
use borealis_repository::pages::digests::PageDigester;
use borealis_repository::pages::frame::frame_pages_max;
use borealis_repository::pages::pack::{PreparedPages, prepare_pages};
use futures::{Stream, StreamExt};

use super::facts::DamagedPage;
use super::plan::{ForkPlan, Sizes};
use crate::error::{Error, Result};

/// Frames that are read and compressed at a time.
pub const READERS: usize = 4;

/// Where the pages are.
#[derive(Debug, Clone)]
pub struct PagePlace {
    /// The data directory.
    pub data_dir: PathBuf,
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

/// The pages of one frame.
struct FrameJob {
    number: u32,
    key: ForkKey,
    path: Arc<str>,
    blocks: Vec<u32>,
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
    futures::stream::iter(jobs)
        .map(move |job| {
            let place = place.clone();
            tokio::task::spawn_blocking(move || read_frame(&place, &job))
        })
        .buffered(READERS)
        .map(|done| {
            done.map_err(|error| {
                Error::new(
                    borealis_base::ErrorKind::Bug,
                    format!("a reader ended: {error}"),
                )
            })?
        })
}

pub(super) fn interrupted() -> Error {
    Error::with_hint(
        borealis_base::ErrorKind::Interrupted,
        "the base backup was interrupted",
        "Run it again; it goes on from what it has stored.",
    )
}

fn read_frame(place: &PagePlace, job: &FrameJob) -> Result<FrameDone> {
    let page_bytes = place.sizes.page_bytes as usize;
    let mut content = Vec::with_capacity(job.blocks.len() * page_bytes);
    let mut damaged = Vec::new();
    let reader = PageReader {
        data_dir: place.data_dir.clone(),
        tablespace_directory: place.tablespace_directory.clone(),
        page_bytes,
        segment_pages: place.sizes.segment_pages,
        checksums: place.checksums,
        start: place.start,
        pause: &|duration| std::thread::sleep(duration),
    };
    let mut sink = |block: u32, found: PageRead, page: &[u8]| {
        match found {
            PageRead::Good(_) | PageRead::New | PageRead::Newer(_) => {
                content.extend_from_slice(page);
            }
            PageRead::Damaged(fault) => {
                // Kept as it is, so that the restored server meets the same error as this one: an
                // older content would look sound and be wrong. Older base backups keep theirs.
                damaged.push(DamagedPage {
                    path: job.path.to_string(),
                    block,
                    fault: fault.to_string(),
                });
                content.extend_from_slice(page);
            }
            // Truncated or dropped since the listing; the log from the start on says so, and replay
            // does it again.
            PageRead::PastEnd | PageRead::Missing => {
                content.resize(content.len() + page_bytes, 0);
            }
        }
        Ok(())
    };
    reader.read(
        job.key.relation,
        job.key.fork,
        &ranges(job.blocks.iter().copied()),
        &mut sink,
    )?;
    if content.len() != job.blocks.len() * page_bytes {
        return Err(Error::new(
            borealis_base::ErrorKind::Bug,
            format!(
                "{} pages of {} were read as {} bytes",
                job.blocks.len(),
                job.path,
                content.len()
            ),
        ));
    }
    let pages: Vec<(u32, &[u8])> = job
        .blocks
        .iter()
        .copied()
        .zip(content.chunks_exact(page_bytes))
        .collect();
    let prepared = prepare_pages(
        job.number,
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

    #[test]
    fn neighbouring_blocks_are_read_at_once() {
        assert_eq!(ranges([]), []);
        assert_eq!(ranges([1, 2, 3, 7, 9, 10]), [1..4, 7..8, 9..11]);
    }
}
