//! Packs: many frames of pages and blobs in one stored object.
//!
//! A [`PackWriter`] collects frames up to a size, seals them, creates the object, reads it back and
//! compares. Only then does a [`StoredPack`] exist, and only a manifest built from such packs can be
//! stored; so nothing names a pack that was not seen to be there.
//!
//! Memory of one writer: the frames of the open pack, while it is sealed twice that, and while it is
//! read back the same again; at most three times `pack_bytes_max`. Several writers may share
//! [`PackNumbers`] and work side by side. What a killed writer leaves is named by nothing and is swept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::digest;
use borealis_base::{Entropy, LineageId, ObjectId, Timestamp};
use borealis_keys::DataKey;
use bytes::Bytes;

use super::digests::{DigestFrames, PageDigest, PageDigester};
use super::frame::{PageFrame, is_zero};
use super::manifest::{Blob, BlobChunk};
use super::map::{Location, Run, runs_of};
use crate::catalog::Lineage;
use crate::numbered::Patience;
use crate::object::{
    Compression, FrameKind, ObjectBuilder, ObjectKind, PreparedFrame, SealedObject,
};
use crate::plan::ObjectRef;
use crate::store::Store;
use crate::{Error, Result, layout};

/// Frame of pages.
pub const FRAME_PAGES: FrameKind = 1;
/// Frame of blob contents, one behind the other.
pub const FRAME_BLOBS: FrameKind = 2;
/// Frame of digests of the pages of other frames of the pack, behind all of them.
pub const FRAME_DIGESTS: FrameKind = 3;

/// Stored bytes of a pack at which it is closed.
pub const PACK_BYTES_MAX: u64 = 32 << 20;
/// Plain bytes of a frame of blobs.
pub const BLOB_FRAME_BYTES: usize = 1 << 20;
/// Frames in one pack at most; bounds its head.
pub const PACK_FRAMES_MAX: u32 = 65_536;

/// Gives each pack of a base backup its number, never used before in the lineage's manifests.
#[derive(Debug)]
pub struct PackNumbers(AtomicU32);

impl PackNumbers {
    /// Numbers from `next` on.
    pub const fn new(next: u32) -> Self {
        Self(AtomicU32::new(next))
    }

    fn take(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The first number not given yet.
    pub fn next(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A pack that was read back from the store after it was written.
#[derive(Debug, Clone)]
pub struct StoredPack {
    number: u32,
    object: ObjectRef,
    frames: u32,
}

impl StoredPack {
    /// Its number in the pack table.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The object.
    pub const fn object(&self) -> ObjectRef {
        self.object
    }

    /// How many frames it has.
    pub const fn frames(&self) -> u32 {
        self.frames
    }
}

/// Pages ready to be packed.
#[derive(Debug, Clone)]
pub struct PreparedPages {
    file: u32,
    frame: Option<FullPages>,
    zero_runs: Vec<Run>,
}

/// Those that are not all zeros.
#[derive(Debug, Clone)]
struct FullPages {
    frame: PreparedFrame,
    numbers: Vec<u32>,
    digests: Vec<PageDigest>,
}

/// Lays out and compresses pages of one page file: ascending, as many as a frame holds at most. Pages
/// of zeros become runs without content. A pure function, to be called on as many threads as there
/// are; its result is pushed into any writer with the key that `digester` was made for.
pub fn prepare_pages(
    file: u32,
    page_size: u32,
    pages: &[(u32, &[u8])],
    compression: Compression,
    digester: &PageDigester,
) -> Result<PreparedPages> {
    let (zero, full): (Vec<_>, Vec<_>) = pages.iter().copied().partition(|(_, page)| is_zero(page));
    let wrong = zero
        .iter()
        .find(|(_, page)| page.len() != page_size as usize);
    if let Some((number, page)) = wrong {
        let what = format!(
            "page {number} of page file {file} has {} bytes instead of {page_size}",
            page.len()
        );
        return Err(Error::Bug { what });
    }
    let numbers =
        |pages: &[(u32, &[u8])]| pages.iter().map(|(number, _)| *number).collect::<Vec<_>>();
    let frame = if full.is_empty() {
        None
    } else {
        let plain = PageFrame::encode(file, page_size, &full).map_err(|error| Error::Bug {
            what: error.to_string(),
        })?;
        Some(FullPages {
            frame: PreparedFrame::new(FRAME_PAGES, compression, &plain),
            numbers: numbers(&full),
            digests: full.iter().map(|(_, page)| digester.digest(page)).collect(),
        })
    };
    let zero_runs = runs_of(file, &numbers(&zero), Location::Zero);
    Ok(PreparedPages {
        file,
        frame,
        zero_runs,
    })
}

/// Creates a sealed object and reads it back. A store that gives no answer is asked again, with the
/// same bytes under the same name, so that a request that was late changes nothing.
///
/// # Errors
/// Damaged where the store gives back other bytes than it was given.
pub(crate) async fn put_and_read_back(
    target: &PackTarget,
    name: &str,
    sealed: &SealedObject,
) -> Result<()> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        // The id is random, so an object of this name is our own from a create whose reply was lost;
        // the comparison below tells.
        match target.store.create(name, sealed.bytes.clone()).await {
            Ok(_) => break,
            Err(error) if error.is_transient() && target.patience.wait(attempt).await => {}
            Err(error) => return Err(error.into()),
        }
    }
    attempt = 0;
    let back = loop {
        attempt += 1;
        match target.store.read(name).await {
            Ok(back) => break back,
            Err(error) if error.is_transient() && target.patience.wait(attempt).await => {}
            Err(error) => return Err(Error::from(error).named_by("its own writer")),
        }
    };
    if back != sealed.bytes {
        return Err(Error::damaged(
            name,
            "the store gives back other bytes than were written",
        ));
    }
    Ok(())
}

/// Where packs go and what seals them.
#[derive(Clone)]
pub struct PackTarget {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The lineage the packs belong to.
    pub lineage: LineageId,
    /// The data key that seals them.
    pub key: DataKey,
    /// Where object ids come from.
    pub entropy: Arc<dyn Entropy>,
    /// Stored bytes at which a pack is closed, [`PACK_BYTES_MAX`] if in doubt.
    pub pack_bytes_max: u64,
    /// How long a store that does not answer is asked again.
    pub patience: Patience,
}

impl PackTarget {
    /// Packs of `lineage`, sealed with its current data key, of the usual size.
    pub fn of(lineage: &Lineage) -> Self {
        Self {
            store: Arc::clone(lineage.store()),
            lineage: lineage.id(),
            key: lineage.keys().current(),
            entropy: Arc::clone(lineage.entropy()),
            pack_bytes_max: PACK_BYTES_MAX,
            patience: Patience::default(),
        }
    }

    /// What makes the digests of pages that go into these packs.
    pub fn digester(&self) -> PageDigester {
        PageDigester::new(&self.key.secret)
    }
}

/// A pack that frames are still added to.
struct OpenPack {
    number: u32,
    object: ObjectBuilder,
    digests: DigestFrames,
}

/// Collects frames into packs. See the module for what it guarantees and costs.
pub struct PackWriter {
    target: PackTarget,
    numbers: Arc<PackNumbers>,
    open: Option<OpenPack>,
    stored: Vec<StoredPack>,
    stored_bytes: u64,
}

impl PackWriter {
    /// A writer that takes its pack numbers from `numbers`.
    pub fn new(target: PackTarget, numbers: Arc<PackNumbers>) -> Self {
        Self {
            target,
            numbers,
            open: None,
            stored: Vec::new(),
            stored_bytes: 0,
        }
    }

    /// Adds pages; returns their runs, which may be named once [`Self::flush`] or [`Self::finish`]
    /// has returned.
    pub async fn push_pages(&mut self, pages: PreparedPages) -> Result<Vec<Run>> {
        let PreparedPages {
            file,
            frame,
            zero_runs: mut runs,
        } = pages;
        if let Some(full) = frame {
            let at = self.push(full.frame).await?;
            if let (Location::Frame { frame, .. }, Some(open)) = (at, &mut self.open) {
                open.digests.add(frame, file, &full.numbers, &full.digests);
            }
            runs.extend(runs_of(file, &full.numbers, at));
            runs.sort_unstable_by_key(Run::start);
        }
        Ok(runs)
    }

    async fn push(&mut self, frame: PreparedFrame) -> Result<Location> {
        let full = self.open.as_ref().is_some_and(|OpenPack { object, .. }| {
            object.frame_bytes() + frame.stored_len() > self.target.pack_bytes_max
                || object.frame_count() >= PACK_FRAMES_MAX
        });
        if full {
            self.close().await?;
        }
        let open = self.open.get_or_insert_with(|| {
            let id = ObjectId::random(&*self.target.entropy);
            OpenPack {
                number: self.numbers.take(),
                object: ObjectBuilder::new(ObjectKind::Pack, id, Some(&self.target.key)),
                digests: DigestFrames::default(),
            }
        });
        Ok(Location::Frame {
            pack: open.number,
            frame: open.object.push(frame),
        })
    }

    /// Seals, stores and reads back the open pack.
    async fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let OpenPack {
            number,
            mut object,
            digests,
        } = open;
        for plain in digests.finish() {
            object.push_frame(FRAME_DIGESTS, Compression::None, &plain);
        }
        let frames = object.frame_count();
        let sealed = blocking(move || object.seal()).await?;
        let name = layout::pack(self.target.lineage, sealed.id);
        put_and_read_back(&self.target, &name, &sealed).await?;
        let object = ObjectRef {
            lineage: self.target.lineage,
            object: sealed.id,
            len: sealed.bytes.len() as u64,
            head_digest: sealed.head_digest,
        };
        self.stored_bytes += object.len;
        self.stored.push(StoredPack {
            number,
            object,
            frames,
        });
        Ok(())
    }

    /// Bytes written so far, those of the open pack included.
    pub fn written_bytes(&self) -> u64 {
        let open = (self.open.as_ref()).map_or(0, |open| open.object.frame_bytes());
        self.stored_bytes + open
    }

    /// Stores what is left; returns every pack written since the last flush. The runs of all pages
    /// pushed so far may be named from here on.
    pub async fn flush(&mut self) -> Result<Vec<StoredPack>> {
        self.close().await?;
        Ok(std::mem::take(&mut self.stored))
    }

    /// Stores what is left; returns every pack written since the last flush.
    pub async fn finish(mut self) -> Result<Vec<StoredPack>> {
        self.flush().await
    }
}

/// Runs work that occupies a processor where it does not hold up others.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Bug {
            what: format!("a worker thread ended: {error}"),
        })
}

/// A blob's description, before its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobMeta {
    /// Its path.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// When it was last changed.
    pub modified: Timestamp,
}

/// Packs blobs: contents one behind the other in frames, small ones together.
///
/// Holds one frame of content. A blob is added whole or in any pieces: [`Self::begin`],
/// [`Self::write`]..., and the next `begin` or [`Self::finish`] ends it.
pub struct BlobPacker {
    compression: Compression,
    buffer: Vec<u8>,
    blobs: Vec<Blob>,
    digest: Option<digest::Context>,
    /// The first blob and chunk whose frame is not placed yet: (blob, chunk).
    unplaced: Vec<(usize, usize)>,
}

/// Stands for the frame that is still open.
const OPEN: u32 = u32::MAX;

impl BlobPacker {
    /// A packer that compresses its frames with `compression`.
    pub const fn new(compression: Compression) -> Self {
        Self {
            compression,
            buffer: Vec::new(),
            blobs: Vec::new(),
            digest: None,
            unplaced: Vec::new(),
        }
    }

    /// Begins a blob.
    pub fn begin(&mut self, meta: BlobMeta) {
        self.end();
        self.digest = Some(digest::Context::new(&digest::SHA256));
        let BlobMeta {
            name,
            mode,
            modified,
        } = meta;
        self.blobs.push(Blob {
            name,
            mode,
            modified,
            len: 0,
            sha256: [0; 32],
            chunks: Vec::new(),
        });
    }

    fn end(&mut self) {
        if let (Some(digest), Some(blob)) = (self.digest.take(), self.blobs.last_mut()) {
            blob.sha256.copy_from_slice(digest.finish().as_ref());
        }
    }

    /// Adds content to the blob begun last.
    pub async fn write(&mut self, packs: &mut PackWriter, mut content: &[u8]) -> Result<()> {
        while !content.is_empty() {
            let room = BLOB_FRAME_BYTES - self.buffer.len();
            let (now, rest) = content.split_at(room.min(content.len()));
            content = rest;
            let index = self.blobs.len().checked_sub(1);
            let (Some(index), Some(digest)) = (index, self.digest.as_mut()) else {
                return Err(Error::Bug {
                    what: "blob content without a blob".to_owned(),
                });
            };
            digest.update(now);
            let blob = &mut self.blobs[index];
            blob.len += now.len() as u64;
            match blob.chunks.last_mut() {
                Some(last) if last.pack == OPEN => last.len += now.len() as u32,
                _ => {
                    let offset = self.buffer.len() as u32;
                    blob.chunks.push(BlobChunk {
                        pack: OPEN,
                        frame: OPEN,
                        offset,
                        len: now.len() as u32,
                    });
                    self.unplaced.push((index, blob.chunks.len() - 1));
                }
            }
            self.buffer.extend_from_slice(now);
            if self.buffer.len() == BLOB_FRAME_BYTES {
                self.flush(packs).await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self, packs: &mut PackWriter) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let (plain, compression) = (std::mem::take(&mut self.buffer), self.compression);
        let frame = blocking(move || PreparedFrame::new(FRAME_BLOBS, compression, &plain)).await?;
        let at = packs.push(frame).await?;
        for (blob, chunk) in self.unplaced.drain(..) {
            if let (Location::Frame { pack, frame }, Some(chunk)) =
                (at, self.blobs[blob].chunks.get_mut(chunk))
            {
                (chunk.pack, chunk.frame) = (pack, frame);
            }
        }
        Ok(())
    }

    /// Packs what is left; returns the blobs in the order they were begun.
    pub async fn finish(mut self, packs: &mut PackWriter) -> Result<Vec<Blob>> {
        self.end();
        self.flush(packs).await?;
        Ok(self.blobs)
    }
}

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &Bytes) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}
