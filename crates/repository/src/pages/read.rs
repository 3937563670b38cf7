//! Reading a base backup: single pages, everything, blobs.
//!
//! Every frame is authenticated before a byte of it is used, and checked to be the frame that the map
//! means: of the page file, holding the page.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use borealis_base::{Progress, Unit};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::digests::{self, FrameDigests, PageDigest, PageDigester};
use super::fetch::Fetcher;
use super::frame::PageFrame;
use super::manifest::{Blob, Manifest, PackEntry, PageFile};
use super::map::{Location, PageKey, PageMap, Run, runs_within};
use super::pack::{FRAME_BLOBS, FRAME_DIGESTS, FRAME_PAGES, blocking};
use super::parts::part_of;
use crate::object::{ObjectHead, ObjectKind};
use crate::wire::Malformed;
use crate::{Error, Result};

/// Map parts kept for single look-ups; a full part has about 400 KiB.
const PARTS_MAX: usize = 64;
/// Bytes of one ranged get of a restore, where a frame is not larger.
const RANGE_BYTES_MAX: u64 = 8 << 20;
/// Unwanted bytes that are fetched along to save a get.
const HOLE_BYTES_MAX: u64 = 256 << 10;
/// Frames whose pages are compared by digest at a time.
const COMPARES: usize = 4;
/// Ranged gets at a time, at most. Memory of a restore: this many times a range and a plain frame.
pub const CONCURRENCY_MAX: usize = 32;

/// Receives the pages of a restore, from several threads at once and in no order. Each page comes
/// once.
pub trait PageSink: Send + Sync + 'static {
    /// What can go wrong with the receiver, or with the repository.
    type Error: From<Error> + Send + 'static;

    /// Places pages of a file, ascending.
    fn pages(&self, file: &PageFile, pages: &[(u32, Bytes)]) -> Result<(), Self::Error>;

    /// Places `count` pages of zeros from `first` on.
    fn zeros(&self, file: &PageFile, first: u32, count: u32) -> Result<(), Self::Error>;

    /// Whether pages may be in place already, so that [`Self::held`] is worth asking.
    fn may_hold(&self) -> bool {
        false
    }

    /// Which pages of a file, ascending, are in place already, by the digests that they must have. Those
    /// that are will not be placed; the others come to [`Self::replace`].
    fn held(
        &self,
        file: &PageFile,
        pages: &[(u32, PageDigest)],
        digester: &PageDigester,
    ) -> Result<Vec<bool>, Self::Error> {
        let _ = (file, digester);
        Ok(vec![false; pages.len()])
    }

    /// Places pages of a file, ascending, of which [`Self::held`] has said that they are not in place.
    fn replace(&self, file: &PageFile, pages: &[(u32, Bytes)]) -> Result<(), Self::Error> {
        self.pages(file, pages)
    }
}

/// What is known of the frames of one pack before any is fetched: of each, which pages the receiver holds.
type HeldPages = BTreeMap<u32, BTreeSet<u32>>;

/// Neighbouring frames of one pack that one ranged get fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameRange {
    /// The frames, unwanted ones between included.
    pub frames: Range<u32>,
    /// Stored bytes.
    pub bytes: u64,
}

/// Joins the sorted `wanted` frames of a pack (with the pages wanted of each) to ranges of bounded size.
pub fn coalesce(head: &ObjectHead, wanted: &[(u32, u32)]) -> Result<Vec<FrameRange>> {
    let mut ranges: Vec<FrameRange> = Vec::new();
    for (frame, _) in wanted {
        let entry = head.frame(*frame)?;
        let len = u64::from(entry.stored_len);
        let next = frame
            .checked_add(1)
            .ok_or_else(|| head.damaged("a frame's number is out of bounds"))?;
        if let Some(last) = ranges.last_mut() {
            let all = head.frame_range(last.frames.start..next)?;
            let joined = all.end.saturating_sub(all.start);
            if joined <= RANGE_BYTES_MAX
                && joined.saturating_sub(last.bytes + len) <= HOLE_BYTES_MAX
            {
                *last = FrameRange {
                    frames: last.frames.start..next,
                    bytes: joined,
                };
                continue;
            }
        }
        ranges.push(FrameRange {
            frames: *frame..next,
            bytes: len,
        });
    }
    Ok(ranges)
}

/// Reads one base backup.
pub struct PageReader {
    fetcher: Arc<Fetcher>,
    manifest: Arc<Manifest>,
    parts: Mutex<BTreeMap<usize, Arc<Vec<Run>>>>,
    /// The frame that a blob was last read from: small blobs share one.
    blob_frame: Mutex<Option<((u32, u32), Bytes)>>,
}

/// The frame `number` of a pack, decoded and checked to be of `file`.
fn decode_pages(
    head: &ObjectHead,
    number: u32,
    plain: &Bytes,
    file: &PageFile,
) -> Result<PageFrame> {
    let frame = decode_any(head, number, plain)?;
    if frame.file() != file.number || frame.page_size() != file.page_size {
        return Err(head.damaged(format!(
            "frame {number} holds page file {} with pages of {} bytes, where page file {} with {} is named",
            frame.file(),
            frame.page_size(),
            file.number,
            file.page_size
        )));
    }
    Ok(frame)
}

/// Decodes the frame of pages `number`.
pub(crate) fn decode_any(head: &ObjectHead, number: u32, plain: &Bytes) -> Result<PageFrame> {
    if head.frame(number)?.kind != FRAME_PAGES {
        return Err(head.damaged(format!(
            "frame {number} holds no pages, where pages are named"
        )));
    }
    PageFrame::decode(plain).map_err(|error| head.damaged(format!("frame {number}: {error}")))
}

fn absent(head: &ObjectHead, frame: u32, file: &PageFile, page: u32) -> Error {
    head.damaged(format!(
        "frame {frame} does not hold page {page} of `{}`, which is named there",
        file.name
    ))
}

impl PageReader {
    /// A reader of `manifest`.
    pub fn new(fetcher: Arc<Fetcher>, manifest: Arc<Manifest>) -> Self {
        Self {
            fetcher,
            manifest,
            parts: Mutex::default(),
            blob_frame: Mutex::default(),
        }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    async fn part(&self, index: usize) -> Result<Arc<Vec<Run>>> {
        if let Some(part) = self.parts.lock().expect("no holder panics").get(&index) {
            return Ok(Arc::clone(part));
        }
        let runs = Arc::new(self.manifest.load_part(&self.fetcher, index).await?);
        let mut parts = self.parts.lock().expect("no holder panics");
        if parts.len() >= PARTS_MAX {
            parts.clear();
        }
        parts.insert(index, Arc::clone(&runs));
        Ok(runs)
    }

    /// The runs of pages `[from, to)`, complete.
    async fn runs(&self, file: &PageFile, pages: Range<u32>) -> Result<Vec<Run>> {
        let (from, to) = (
            PageKey::new(file.number, u64::from(pages.start)),
            PageKey::new(file.number, u64::from(pages.end)),
        );
        let parts = self.manifest.parts();
        let mut runs: Vec<Run> = Vec::new();
        let first = part_of(parts, from).unwrap_or(0);
        for index in first..parts.len() {
            if index > first && parts.get(index).is_some_and(|part| part.first >= to) {
                break;
            }
            runs.extend(runs_within(&self.part(index).await?, from, to));
        }
        let mut next = from;
        for run in &runs {
            if run.start() != next {
                break;
            }
            next = run.end();
        }
        if next != to {
            let what = format!("page {} of `{}` is in no frame", next.page, file.name);
            return Err(Error::damaged(self.manifest.name(), what));
        }
        Ok(runs)
    }

    fn file(&self, number: u32) -> Result<&PageFile> {
        let file = self.manifest.files().page_files.get(&number);
        file.ok_or_else(|| Error::NotFound {
            what: format!("page file {number} of {}", self.manifest.name()),
        })
    }

    fn pack(&self, number: u32) -> Result<&PackEntry> {
        let pack = self.manifest.packs().get(&number);
        pack.ok_or_else(|| {
            Error::damaged(
                self.manifest.name(),
                format!("pack {number} is not in its pack table"),
            )
        })
    }

    async fn pack_head(&self, number: u32) -> Result<Arc<ObjectHead>> {
        let object = self.pack(number)?.object;
        self.fetcher
            .head(ObjectKind::Pack, &object, &self.manifest.name())
            .await
    }

    /// Reads pages `[start, end)` of a file, ascending, each frame once. Pages at or past the file's
    /// length do not exist and are left out. Holds every frame of the range: ask for bounded ones.
    pub async fn read_pages(&self, file: u32, pages: Range<u32>) -> Result<Vec<(u32, Bytes)>> {
        let file = self.file(file)?;
        let pages = pages.start..pages.end.min(file.length);
        if pages.is_empty() {
            return Ok(Vec::new());
        }
        let runs = self.runs(file, pages).await?;
        let mut frames: BTreeMap<(u32, u32), PageFrame> = BTreeMap::new();
        let mut out = Vec::new();
        let zero = Bytes::from(vec![0; file.page_size as usize]);
        for run in runs {
            let Location::Frame { pack, frame } = run.at else {
                out.extend(
                    (run.first..=run.first + (run.count - 1)).map(|page| (page, zero.clone())),
                );
                continue;
            };
            let head = self.pack_head(pack).await?;
            let held = match frames.entry((pack, frame)) {
                Entry::Occupied(held) => held.into_mut(),
                Entry::Vacant(free) => {
                    let plain = self.fetcher.frame(&head, frame).await?;
                    free.insert(decode_pages(&head, frame, &plain, file)?)
                }
            };
            for page in run.first..=run.first + (run.count - 1) {
                out.push((
                    page,
                    held.page(page)
                        .ok_or_else(|| absent(&head, frame, file, page))?,
                ));
            }
        }
        Ok(out)
    }

    /// The whole page map, checked to be complete. 24 bytes a run.
    pub async fn load_map(&self) -> Result<PageMap> {
        let mut runs = Vec::new();
        for index in 0..self.manifest.parts().len() {
            runs.extend_from_slice(&self.manifest.load_part(&self.fetcher, index).await?);
        }
        PageMap::new(self.manifest.files().lengths(), runs)
            .map_err(|error| Error::damaged(self.manifest.name(), error.to_string()))
    }

    /// Hands every page to `sink`: each frame fetched and opened once, its pages that are still
    /// current placed at once. Progress counts pages.
    ///
    /// Where the receiver may hold pages already, it is asked first, by their digests, and frames of which it
    /// holds every current page are not fetched.
    ///
    /// Memory: the page map, and `concurrency` (at most [`CONCURRENCY_MAX`]) ranges of 8 MiB; the digests of two packs.
    pub async fn restore_pages<S: PageSink>(
        self: &Arc<Self>,
        sink: Arc<S>,
        concurrency: usize,
        progress: &dyn Progress,
    ) -> Result<(), S::Error> {
        progress.phase("pages", Unit::Items, Some(self.manifest.total_pages()));
        let map = Arc::new(self.load_map().await?);
        for run in map.zero_runs() {
            sink.zeros(self.file(run.file)?, run.first, run.count)?;
            progress.advance(u64::from(run.count));
        }
        let (map, sink) = (&map, &sink);
        let work = futures::stream::iter(map.frames_by_pack())
            .map(|(pack, frames)| async move {
                let head = self.pack_head(pack).await?;
                let held = self.held_pages(map, sink, (pack, &head), &frames).await?;
                let kept: u64 = held.values().map(|pages| pages.len() as u64).sum();
                progress.advance(kept);
                let wanted: Arc<[(u32, u32)]> = (frames.into_iter())
                    .filter(|(frame, pages)| {
                        held.get(frame)
                            .is_none_or(|held| held.len() < *pages as usize)
                    })
                    .collect();
                let ranges = coalesce(&head, &wanted)?;
                let held = Arc::new(held);
                let tasks = ranges.into_iter().map(move |range| {
                    Ok((
                        pack,
                        Arc::clone(&head),
                        Arc::clone(&wanted),
                        Arc::clone(&held),
                        range,
                    ))
                });
                Ok::<_, S::Error>(futures::stream::iter(tasks))
            })
            .buffered(2)
            .try_flatten();
        work.map_ok(|(pack, head, wanted, held, range)| async move {
            let stored = self
                .fetcher
                .stored_frames(&head, range.frames.clone())
                .await?;
            let job = RangeJob {
                reader: Arc::clone(self),
                map: Arc::clone(map),
                pack,
                head,
                wanted,
                held,
                range,
            };
            let sink = Arc::clone(sink);
            blocking(move || job.place(stored, &*sink)).await?
        })
        .try_buffer_unordered(concurrency.clamp(1, CONCURRENCY_MAX))
        .try_for_each(|placed| async move {
            progress.advance(placed);
            Ok(())
        })
        .await
    }

    /// Which pages of the wanted `frames` of a pack the receiver holds already, as far as the pack has
    /// digests; a frame that is not named is fetched and compared. Fetches the digests only.
    async fn held_pages<S: PageSink>(
        self: &Arc<Self>,
        map: &Arc<PageMap>,
        sink: &Arc<S>,
        (pack, head): (u32, &Arc<ObjectHead>),
        frames: &[(u32, u32)],
    ) -> Result<HeldPages, S::Error> {
        if !sink.may_hold() {
            return Ok(HeldPages::new());
        }
        let keys = self.fetcher.keys();
        let data_key = head.data_key().and_then(|key| keys.get(key));
        let Some(digester) = data_key.map(|key| PageDigester::new(&key.secret)) else {
            return Ok(HeldPages::new());
        };
        let mut known = Vec::new();
        for number in head.frames_of(FRAME_DIGESTS) {
            let plain = self.fetcher.frame(head, number).await?;
            let wrong = |error: Malformed| head.damaged(format!("frame {number}: {error}"));
            known.extend(digests::decode(&plain).map_err(wrong)?);
        }
        known.retain(|frame| {
            frames
                .binary_search_by_key(&frame.frame, |(frame, _)| *frame)
                .is_ok()
        });
        let asked = futures::stream::iter(known).map(|frame| {
            let (reader, map, sink) = (Arc::clone(self), Arc::clone(map), Arc::clone(sink));
            let digester = digester.clone();
            blocking(move || reader.held_of_frame(&map, &*sink, pack, frame, &digester))
        });
        let mut asked = asked.buffer_unordered(COMPARES);
        let mut held = HeldPages::new();
        while let Some(answer) = asked.next().await {
            held.extend(answer??);
        }
        Ok(held)
    }

    fn held_of_frame<S: PageSink>(
        &self,
        map: &PageMap,
        sink: &S,
        pack: u32,
        frame: FrameDigests,
        digester: &PageDigester,
    ) -> Result<Option<(u32, BTreeSet<u32>)>, S::Error> {
        let here = Location::Frame {
            pack,
            frame: frame.frame,
        };
        let file = self.file(frame.file)?;
        let current: Vec<(u32, PageDigest)> = (frame.pages.into_iter())
            .filter(|(page, _)| map.locate(file.number, *page) == Some(here))
            .collect();
        let held = sink.held(file, &current, digester)?;
        let pages = current.iter().zip(held).filter(|(_, held)| *held);
        Ok(Some((
            frame.frame,
            pages.map(|((page, _), _)| *page).collect(),
        )))
    }

    /// Reads a blob piece by piece. Its length and SHA-256 are checked when the last piece has been
    /// handed out: until this returns, what `each` received is authentic content of this repository
    /// but not proven to be the whole blob.
    pub async fn read_blob<E: From<Error>>(
        &self,
        blob: &Blob,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut digest = digest::Context::new(&digest::SHA256);
        let wrong = |what: &str| {
            Error::damaged(
                self.manifest.name(),
                format!("blob `{}`: {what}", blob.name),
            )
        };
        let mut len = 0_u64;
        for chunk in &blob.chunks {
            let plain = self.blob_frame(chunk.pack, chunk.frame).await?;
            let start = chunk.offset as usize;
            let content = start
                .checked_add(chunk.len as usize)
                .and_then(|end| plain.get(start..end));
            let content = content.ok_or_else(|| wrong("a chunk lies past the end of its frame"))?;
            digest.update(content);
            len += content.len() as u64;
            each(content)?;
        }
        if len != blob.len || digest.finish().as_ref() != blob.sha256.as_slice() {
            return Err(wrong("its content does not have the digest that is named").into());
        }
        Ok(())
    }

    async fn blob_frame(&self, pack: u32, frame: u32) -> Result<Bytes> {
        if let Some((place, plain)) = &*self.blob_frame.lock().expect("no holder panics")
            && *place == (pack, frame)
        {
            return Ok(plain.clone());
        }
        let head = self.pack_head(pack).await?;
        if head.frame(frame)?.kind != FRAME_BLOBS {
            return Err(head.damaged(format!(
                "frame {frame} holds no blobs, where a blob is named"
            )));
        }
        let plain = self.fetcher.frame(&head, frame).await?;
        *self.blob_frame.lock().expect("no holder panics") = Some(((pack, frame), plain.clone()));
        Ok(plain)
    }

    /// Reads a whole blob of at most `len_max` bytes.
    pub async fn read_small_blob(&self, blob: &Blob, len_max: u64) -> Result<Vec<u8>> {
        if blob.len > len_max {
            let what = format!(
                "`{}` has {} bytes, more than {len_max}",
                blob.name, blob.len
            );
            return Err(Error::Refused { what, hint: None });
        }
        let mut content = Vec::new();
        self.read_blob(blob, |piece| {
            content.extend_from_slice(piece);
            Ok::<(), Error>(())
        })
        .await?;
        Ok(content)
    }
}

/// One fetched range, to be opened and placed.
struct RangeJob {
    reader: Arc<PageReader>,
    map: Arc<PageMap>,
    pack: u32,
    head: Arc<ObjectHead>,
    wanted: Arc<[(u32, u32)]>,
    held: Arc<HeldPages>,
    range: FrameRange,
}

impl RangeJob {
    /// Opens each wanted frame and places what the map still takes from it. Returns how many pages.
    fn place<S: PageSink>(&self, mut stored: Bytes, sink: &S) -> Result<u64, S::Error> {
        let mut placed = 0;
        for number in self.range.frames.clone() {
            let len = self.head.frame(number)?.stored_len as usize;
            let frame = stored.split_to(len.min(stored.len()));
            let Ok(index) = self
                .wanted
                .binary_search_by_key(&number, |(frame, _)| *frame)
            else {
                continue;
            };
            let expected = self
                .wanted
                .get(index)
                .map_or(0, |(_, pages)| u64::from(*pages));
            let plain = self
                .head
                .open_frame(self.reader.fetcher.keys(), number, &frame)?;
            placed += self.place_frame(number, &plain, expected, sink)?;
        }
        Ok(placed)
    }

    fn place_frame<S: PageSink>(
        &self,
        number: u32,
        plain: &Bytes,
        expected: u64,
        sink: &S,
    ) -> Result<u64, S::Error> {
        let frame = decode_any(&self.head, number, plain)?;
        let file = self.reader.file(frame.file()).map_err(|_| {
            self.head.damaged(format!(
                "frame {number} holds page file {}, which is not named there",
                frame.file()
            ))
        })?;
        let frame = decode_pages(&self.head, number, plain, file)?;
        let here = Location::Frame {
            pack: self.pack,
            frame: number,
        };
        let held = self.held.get(&number);
        let mut current: Vec<(u32, Bytes)> = frame
            .iter()
            .filter(|(page, _)| self.map.locate(file.number, *page) == Some(here))
            .collect();
        if current.len() as u64 != expected {
            let what = format!(
                "frame {number} holds {} of {expected} pages that are named there",
                current.len()
            );
            return Err(self.head.damaged(what).into());
        }
        match held {
            None => sink.pages(file, &current)?,
            Some(held) => {
                current.retain(|(page, _)| !held.contains(page));
                sink.replace(file, &current)?;
            }
        }
        Ok(current.len() as u64)
    }
}
