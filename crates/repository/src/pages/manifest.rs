//! The manifest of a base backup: everything it consists of, resolvable without any other manifest
//! but for the map parts that it names in earlier ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use aws_lc_rs::digest;
use borealis_base::{Branch, LineageId, Position, Timestamp};
use bytes::Bytes;

use super::fetch::{Fetcher, open_each};
use super::map::{Changes, Location, Run, decode_runs};
use super::message;
use super::pack::{PackNumbers, PackTarget, StoredPack, blocking, put_and_read_back};
use super::partial::PartialManifest;
use super::parts::{Part, Rebuild, Rebuilt, UseChange, check_index, check_part, pages_of};
use crate::object::{Compression, ObjectBuilder, ObjectKind};
use crate::plan::ObjectRef;
use crate::wire::Malformed;
use crate::{Error, Result, layout};

/// Longest path in a manifest.
pub const NAME_BYTES_MAX: usize = 4_096;
/// Bytes read at a time to compare a file with a blob.
const COMPARE_BYTES: usize = 256 << 10;

/// A file made of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageFile {
    /// Its number, the same in all manifests of the lineage, and never given to another file.
    pub number: u32,
    /// Its path.
    pub name: String,
    /// Bytes of a page.
    pub page_size: u32,
    /// Its length in pages. The length is part of the backup: nothing past it is restored.
    pub length: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A file not made of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its path.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// When it was last changed.
    pub modified: Timestamp,
    /// Its length in bytes.
    pub len: u64,
    /// SHA-256 of its content.
    pub sha256: [u8; 32],
    /// Where its content lies, in order.
    pub chunks: Vec<BlobChunk>,
}

impl Blob {
    /// Whether `content`, to its end, is that of this blob. Reads no more than one byte past its length.
    pub fn is_content_of(&self, content: impl Read) -> std::io::Result<bool> {
        let mut content = content.take(self.len.saturating_add(1));
        let mut digest = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; COMPARE_BYTES];
        let mut len = 0;
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            len += count as u64;
            digest.update(buffer.get(..count).unwrap_or_default());
        }
        Ok(len == self.len && digest.finish().as_ref() == self.sha256.as_slice())
    }
}

/// Some of a blob's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobChunk {
    /// The pack.
    pub pack: u32,
    /// The frame.
    pub frame: u32,
    /// Where in the frame it begins.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its path.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its path.
    pub name: String,
    /// What it points to; may be absolute.
    pub target: String,
}

/// A pack that a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// The object.
    pub object: ObjectRef,
    /// How many frames it has.
    pub frames: u32,
    /// How many of its pages the map still names. Repacking chooses by this.
    pub live_pages: u64,
}

/// Where a map part is stored: a frame of this or an earlier manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartHandle {
    /// The manifest object.
    pub object: ObjectRef,
    /// The frame.
    pub frame: u32,
}

/// What a base backup is, apart from its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupInfo {
    /// Branch of `start` and `end`.
    pub branch: Branch,
    /// Where replay must begin.
    pub start: Position,
    /// Where the pages become consistent.
    pub end: Position,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Number of the rule set that chose which pages to read.
    pub rule_set: u32,
    /// The engine's own facts, opaque.
    pub engine: Bytes,
}

/// All files of a base backup. Paths are relative, of plain segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileTable {
    /// Page files by number.
    pub page_files: BTreeMap<u32, PageFile>,
    /// Blobs.
    pub blobs: Vec<Blob>,
    /// Directories.
    pub directories: Vec<Directory>,
    /// Links.
    pub links: Vec<Link>,
}

impl FileTable {
    /// Lengths of the page files.
    pub fn lengths(&self) -> BTreeMap<u32, u32> {
        self.page_files
            .values()
            .map(|file| (file.number, file.length))
            .collect()
    }
}

/// A stored manifest, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub(super) object: ObjectRef,
    pub(super) body: Body,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    pub info: BaseBackupInfo,
    pub files: FileTable,
    pub packs: BTreeMap<u32, PackEntry>,
    pub parts: Vec<Part<PartHandle>>,
    pub next_file: u32,
    pub next_pack: u32,
    /// Pages of a partial manifest that are in no run; `None` for a base backup.
    pub missing_pages: Option<u64>,
}

/// Pages below the lengths of all page files.
fn pages_in(files: &FileTable) -> u64 {
    let lengths = files.page_files.values().map(|file| u64::from(file.length));
    lengths.sum()
}

fn check_path(name: &str) -> Result<(), Malformed> {
    let plain = |segment: &str| !matches!(segment, "" | "." | "..");
    if name.len() > NAME_BYTES_MAX || name.contains('\0') || !name.split('/').all(plain) {
        return Err(Malformed(format!(
            "`{}` is not a path of a base backup",
            name.escape_debug()
        )));
    }
    Ok(())
}

impl Body {
    /// Checks that everything named exists: every page below its file's length is in the map, but for
    /// those that a partial manifest says it lacks; every pack used is in the table, every blob's chunks add up. Holes within a part are found when the
    /// part is read; their number shows here.
    pub(super) fn check_closure(&self) -> Result<(), Malformed> {
        let mut paths = BTreeSet::new();
        let files = &self.files;
        let names = (files.page_files.values().map(|file| &file.name))
            .chain(files.blobs.iter().map(|blob| &blob.name))
            .chain(files.directories.iter().map(|directory| &directory.name))
            .chain(files.links.iter().map(|link| &link.name));
        for name in names {
            check_path(name)?;
            if !paths.insert(name.as_str()) {
                return Err(Malformed(format!("`{name}` is there twice")));
            }
        }
        for file in files.page_files.values() {
            if !(super::frame::PAGE_BYTES_MIN..=super::frame::PAGE_BYTES_MAX)
                .contains(&file.page_size)
            {
                return Err(Malformed(format!(
                    "the page size of `{}` is out of bounds",
                    file.name
                )));
            }
        }
        if files
            .page_files
            .keys()
            .next_back()
            .is_some_and(|last| *last >= self.next_file)
        {
            return Err(Malformed::new("a page file's number is out of bounds"));
        }
        if self
            .packs
            .keys()
            .next_back()
            .is_some_and(|last| *last >= self.next_pack)
        {
            return Err(Malformed::new("a pack's number is out of bounds"));
        }
        files
            .blobs
            .iter()
            .try_for_each(|blob| self.check_blob(blob))?;
        check_index(&self.parts)?;
        let mapped = self
            .parts
            .iter()
            .try_fold(0_u64, |sum, part| sum.checked_add(part.pages));
        let wanted = pages_in(files);
        let known = mapped.and_then(|mapped| mapped.checked_add(self.missing_pages.unwrap_or(0)));
        if known != Some(wanted) {
            return Err(Malformed(format!(
                "the page map names {} of {wanted} pages",
                mapped.unwrap_or(u64::MAX)
            )));
        }
        Ok(())
    }

    fn check_blob(&self, blob: &Blob) -> Result<(), Malformed> {
        let mut len = 0_u64;
        for chunk in &blob.chunks {
            self.check_place(chunk.pack, chunk.frame)
                .map_err(|error| Malformed(format!("`{}`: {error}", blob.name)))?;
            len = len.saturating_add(u64::from(chunk.len));
        }
        if len != blob.len {
            return Err(Malformed(format!(
                "the chunks of `{}` have {len} of {} bytes",
                blob.name, blob.len
            )));
        }
        Ok(())
    }

    fn check_place(&self, pack: u32, frame: u32) -> Result<(), Malformed> {
        match self.packs.get(&pack) {
            None => Err(Malformed(format!("pack {pack} is not in the pack table"))),
            Some(entry) if frame >= entry.frames => {
                Err(Malformed(format!("pack {pack} has no frame {frame}")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Checks that every place in `runs` exists.
    pub(super) fn check_places(&self, runs: &[Run]) -> Result<(), Malformed> {
        runs.iter().try_for_each(|run| match run.at {
            Location::Zero => Ok(()),
            Location::Frame { pack, frame } => self.check_place(pack, frame),
        })
    }
}

impl Manifest {
    /// The object that it is stored in.
    pub const fn object(&self) -> ObjectRef {
        self.object
    }

    /// Its name in the store.
    pub fn name(&self) -> String {
        layout::manifest(self.object.lineage, self.object.object)
    }

    /// What the base backup is.
    pub const fn info(&self) -> &BaseBackupInfo {
        &self.body.info
    }

    /// Its files.
    pub const fn files(&self) -> &FileTable {
        &self.body.files
    }

    /// Its packs by number.
    pub const fn packs(&self) -> &BTreeMap<u32, PackEntry> {
        &self.body.packs
    }

    /// Its map parts in order.
    pub fn parts(&self) -> &[Part<PartHandle>] {
        &self.body.parts
    }

    /// Pages it resolves.
    pub fn total_pages(&self) -> u64 {
        self.body.parts.iter().map(|part| part.pages).sum()
    }

    /// Bytes of all packs it uses: the most that a restore fetches.
    pub fn stored_bytes(&self) -> u64 {
        self.body.packs.values().map(|pack| pack.object.len).sum()
    }

    /// Loads and checks the manifest that `object` names.
    ///
    /// # Errors
    /// Damaged where it is a partial one: nothing can be restored from it.
    pub async fn load(fetcher: &Fetcher, object: &ObjectRef) -> Result<Self> {
        let manifest = Self::load_any(fetcher, object).await?;
        if manifest.body.missing_pages.is_some() {
            return Err(Error::damaged(
                manifest.name(),
                "it is a partial manifest, where that of a whole base backup is named",
            ));
        }
        Ok(manifest)
    }

    /// Loads a whole or a partial one.
    pub(crate) async fn load_any(fetcher: &Fetcher, object: &ObjectRef) -> Result<Self> {
        let head = fetcher
            .head(ObjectKind::Manifest, object, "the ledger")
            .await?;
        let tables = head
            .frames()
            .iter()
            .take_while(|frame| frame.kind != message::FRAME_MAP_PART)
            .count() as u32;
        let stored = fetcher.stored_frames(&head, 0..tables).await?;
        let (keys, object) = (Arc::clone(fetcher.keys()), *object);
        blocking(move || {
            let mut frames = Vec::new();
            open_each(&head, &keys, 0..tables, stored, |number, plain| {
                frames.push((head.frame(number)?.kind, plain));
                Ok(())
            })?;
            let body = message::decode(&frames, object)
                .and_then(|body| body.check_closure().map(|()| body))
                .map_err(|error| head.damaged(error.to_string()))?;
            Ok(Self { object, body })
        })
        .await?
    }

    /// Loads the runs of part `index`.
    pub async fn load_part(&self, fetcher: &Fetcher, index: usize) -> Result<Vec<Run>> {
        load_part(fetcher, &self.body, index, &self.name()).await
    }
}

async fn load_part(fetcher: &Fetcher, body: &Body, index: usize, by: &str) -> Result<Vec<Run>> {
    let part = body.parts.get(index).ok_or_else(|| Error::Bug {
        what: format!("no map part {index}"),
    })?;
    let head = fetcher
        .head(ObjectKind::Manifest, &part.handle.object, by)
        .await?;
    let number = part.handle.frame;
    if head.frame(number)?.kind != message::FRAME_MAP_PART {
        return Err(head.damaged(format!(
            "frame {number} is no map part, and {by} names it as one"
        )));
    }
    let plain = fetcher.frame(&head, number).await?;
    decode_runs(&plain)
        .and_then(|runs| check_part(&body.parts, index, &runs).map(|()| runs))
        .and_then(|runs| body.check_places(&runs).map(|()| runs))
        .map_err(|error| head.damaged(format!("map part in frame {number}: {error}")))
}

/// What a manifest is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// A base backup: no page may be missing.
    Whole,
    /// What there is so far.
    Partial,
}

/// Collects what a new manifest consists of.
///
/// Nothing is stored before [`Self::store`] or [`Self::store_partial`]; a builder that is dropped leaves
/// only packs that nothing names.
pub struct ManifestBuilder {
    parent: Option<Arc<Manifest>>,
    by_name: BTreeMap<String, u32>,
    numbers: Arc<PackNumbers>,
    files: FileTable,
    next_file: u32,
    limits: BTreeMap<u32, u32>,
    forgotten: Vec<(u32, Range<u32>)>,
    runs: Vec<Run>,
    packs: Vec<StoredPack>,
}

impl ManifestBuilder {
    /// A base backup that shares nothing.
    pub fn first() -> Self {
        Self {
            parent: None,
            by_name: BTreeMap::new(),
            numbers: Arc::new(PackNumbers::new(0)),
            files: FileTable::default(),
            next_file: 0,
            limits: BTreeMap::new(),
            forgotten: Vec::new(),
            runs: Vec::new(),
            packs: Vec::new(),
        }
    }

    /// A base backup that takes over from `parent` every page that is not placed anew.
    pub fn next(parent: Arc<Manifest>) -> Self {
        let by_name = parent
            .files()
            .page_files
            .values()
            .map(|file| (file.name.clone(), file.number))
            .collect();
        Self {
            by_name,
            numbers: Arc::new(PackNumbers::new(parent.body.next_pack)),
            next_file: parent.body.next_file,
            parent: Some(parent),
            ..Self::first()
        }
    }

    /// A base backup that takes over from what an attempt had stored. What that lacks must be placed.
    pub fn resume(partial: &PartialManifest) -> Self {
        Self::next(Arc::new(partial.manifest().clone()))
    }

    /// The numbers that the pack writers of this base backup must share.
    pub fn pack_numbers(&self) -> Arc<PackNumbers> {
        Arc::clone(&self.numbers)
    }

    /// The number of the page file of this path: the parent's, or a new one.
    pub fn file_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        let number = self.next_file;
        self.next_file += 1;
        self.by_name.insert(name.to_owned(), number);
        number
    }

    /// Adds a page file, whose number came from [`Self::file_number`].
    pub fn add_page_file(&mut self, file: PageFile) {
        self.files.page_files.insert(file.number, file);
    }

    /// Takes over no page at or above `limit` of a file: it was shorter, or another file of the same
    /// path, since the parent. The lowest limit given counts.
    pub fn limit(&mut self, file: u32, limit: u32) {
        let known = self.limits.entry(file).or_insert(limit);
        *known = (*known).min(limit);
    }

    /// Takes over none of these pages: they are to be placed anew, or they are missing from what is
    /// stored before they are. Said at once of all pages to be read.
    pub fn forget(&mut self, file: u32, pages: impl IntoIterator<Item = Range<u32>>) {
        let pages = pages.into_iter().map(|pages| (file, pages));
        self.forgotten.extend(pages);
    }

    /// Places pages anew.
    pub fn place(&mut self, runs: impl IntoIterator<Item = Run>) {
        self.runs.extend(runs);
    }

    /// Adds blobs: new ones, or the parent's where their content is known to be the same.
    pub fn add_blobs(&mut self, blobs: impl IntoIterator<Item = Blob>) {
        self.files.blobs.extend(blobs);
    }

    /// Adds a directory.
    pub fn add_directory(&mut self, directory: Directory) {
        self.files.directories.push(directory);
    }

    /// Adds a link.
    pub fn add_link(&mut self, link: Link) {
        self.files.links.push(link);
    }

    /// Adds the packs that a writer has stored.
    pub fn add_packs(&mut self, packs: impl IntoIterator<Item = StoredPack>) {
        self.packs.extend(packs);
    }

    /// Rebuilds the map, checks the reference closure, stores the manifest and reads it back.
    ///
    /// Memory: the new runs (24 bytes each), one map part of the parent, and the encoded new parts.
    ///
    /// # Errors
    /// Bug where a page below its file's length has no place, or a place is in no pack: such a base
    /// backup must not be named by anything.
    pub async fn store(
        mut self,
        target: &PackTarget,
        fetcher: &Fetcher,
        info: BaseBackupInfo,
    ) -> Result<Manifest> {
        let files = std::mem::take(&mut self.files);
        self.store_as(target, fetcher, info, files, Extent::Whole)
            .await
    }

    /// Stores what there is so far as a partial manifest, reads it back, and goes on from it: its map
    /// parts are shared by what is stored next, and the runs in it need no memory any more. All packs of
    /// the runs placed so far must have been added. It has the blobs that the parent has. After an error
    /// nothing more can be stored with this builder.
    pub async fn store_partial(
        &mut self,
        target: &PackTarget,
        fetcher: &Fetcher,
        info: BaseBackupInfo,
    ) -> Result<PartialManifest> {
        let page_files = self.files.page_files.clone();
        let taken: BTreeSet<&str> = page_files.values().map(|file| file.name.as_str()).collect();
        let blobs = self.parent.iter().flat_map(|parent| &parent.files().blobs);
        let files = FileTable {
            blobs: blobs
                .filter(|blob| !taken.contains(blob.name.as_str()))
                .cloned()
                .collect(),
            page_files,
            ..FileTable::default()
        };
        let manifest = self
            .store_as(target, fetcher, info, files, Extent::Partial)
            .await?;
        self.parent = Some(Arc::new(manifest.clone()));
        Ok(PartialManifest::of(manifest))
    }

    /// Leaves runs, packs and what must not be taken over empty: they are in what is stored.
    async fn store_as(
        &mut self,
        target: &PackTarget,
        fetcher: &Fetcher,
        info: BaseBackupInfo,
        files: FileTable,
        extent: Extent,
    ) -> Result<Manifest> {
        let incomplete = |error: Malformed| Error::Bug {
            what: format!("the base backup is not whole: {error}"),
        };
        let id = borealis_base::ObjectId::random(&*target.entropy);
        let old = self.parent.as_deref();
        let old_lengths = old
            .map(|parent| parent.files().lengths())
            .unwrap_or_default();
        let (limits, runs) = (
            std::mem::take(&mut self.limits),
            std::mem::take(&mut self.runs),
        );
        let changes = Changes::new(&old_lengths, files.lengths(), &limits, runs)
            .map_err(incomplete)?
            .forgetting(&old_lengths, std::mem::take(&mut self.forgotten));
        let (parts, encoded, usage) = rebuild(old, &changes, fetcher).await?;
        let own_packs = std::mem::take(&mut self.packs);
        let own_packs = own_packs.iter().map(|pack| {
            (
                pack.number(),
                PackEntry {
                    object: pack.object(),
                    frames: pack.frames(),
                    live_pages: 0,
                },
            )
        });
        let mut packs = old.map(|parent| parent.packs().clone()).unwrap_or_default();
        packs.extend(own_packs);
        count_use(&mut packs, &usage).map_err(incomplete)?;
        let blob_packs: BTreeSet<u32> = files
            .blobs
            .iter()
            .flat_map(|blob| blob.chunks.iter().map(|chunk| chunk.pack))
            .collect();
        packs.retain(|number, pack| pack.live_pages > 0 || blob_packs.contains(number));
        let missing_pages = match extent {
            Extent::Whole => None,
            Extent::Partial => Some(
                pages_in(&files)
                    .checked_sub(parts.iter().map(|part| part.pages).sum())
                    .ok_or_else(|| incomplete(Malformed::new("it has pages of no file")))?,
            ),
        };
        let body = Body {
            info,
            files,
            packs,
            parts,
            next_file: self.next_file,
            next_pack: self.numbers.next(),
            missing_pages,
        };
        body.check_closure()
            .and_then(|()| body.check_places(changes.runs()))
            .map_err(incomplete)?;
        seal_and_store(target, id, body, encoded).await
    }
}

fn count_use(packs: &mut BTreeMap<u32, PackEntry>, usage: &UseChange) -> Result<(), Malformed> {
    for (number, change) in usage {
        let pack = packs
            .get_mut(number)
            .ok_or_else(|| Malformed(format!("pack {number} is not in the pack table")))?;
        pack.live_pages = pack.live_pages.checked_add_signed(*change).ok_or_else(|| {
            Malformed(format!(
                "pack {number} would have fewer live pages than none"
            ))
        })?;
    }
    Ok(())
}

/// New parts have no object yet; their handles are filled in once it is sealed.
const UNSEALED: ObjectRef = ObjectRef {
    lineage: LineageId([0; 16]),
    object: borealis_base::ObjectId([0; 16]),
    len: 0,
    head_digest: [0; 32],
};

type Rebuilding = (Vec<Part<PartHandle>>, Vec<Vec<u8>>, UseChange);

async fn rebuild(
    parent: Option<&Manifest>,
    changes: &Changes,
    fetcher: &Fetcher,
) -> Result<Rebuilding> {
    let old_parts = parent.map(Manifest::parts).unwrap_or_default();
    let mut walk = Rebuild::new(old_parts, changes);
    let (mut parts, mut encoded) = (Vec::new(), Vec::new());
    let mut collect = |rebuilt: Vec<Rebuilt>| {
        for part in rebuilt {
            match part {
                Rebuilt::Shared(index) => parts.extend(old_parts.get(index).cloned()),
                Rebuilt::New(runs) => {
                    let Some(first) = runs.first().map(Run::start) else {
                        continue;
                    };
                    let handle = PartHandle {
                        object: UNSEALED,
                        frame: encoded.len() as u32,
                    };
                    parts.push(Part {
                        first,
                        runs: runs.len() as u32,
                        pages: pages_of(&runs),
                        handle,
                    });
                    encoded.push(super::map::encode_runs(&runs));
                }
            }
        }
    };
    if let Some(parent) = parent {
        for index in 0..old_parts.len() {
            if walk.wants(index) {
                let runs = parent.load_part(fetcher, index).await?;
                walk.replace(index, &runs);
            } else {
                walk.share(index);
            }
            collect(walk.take());
        }
    }
    let (last, usage) = walk.finish();
    collect(last);
    Ok((parts, encoded, usage))
}

async fn seal_and_store(
    target: &PackTarget,
    id: borealis_base::ObjectId,
    mut body: Body,
    encoded: Vec<Vec<u8>>,
) -> Result<Manifest> {
    let mut builder = ObjectBuilder::new(ObjectKind::Manifest, id, Some(&target.key));
    let tables = message::encode(&body, &UNSEALED);
    let first_part = tables.len() as u32;
    let (sealed, manifest) = blocking(move || {
        for (kind, plain) in tables {
            builder.push_frame(kind, Compression::Zstd(3), &plain);
        }
        for plain in &encoded {
            builder.push_frame(message::FRAME_MAP_PART, Compression::Zstd(3), plain);
        }
        builder.seal()
    })
    .await
    .map(|sealed| {
        let object = ObjectRef {
            lineage: target.lineage,
            object: sealed.id,
            len: sealed.bytes.len() as u64,
            head_digest: sealed.head_digest,
        };
        for part in body
            .parts
            .iter_mut()
            .filter(|part| part.handle.object == UNSEALED)
        {
            part.handle.object = object;
            part.handle.frame += first_part;
        }
        (sealed, Manifest { object, body })
    })?;
    put_and_read_back(target, &manifest.name(), &sealed).await?;
    Ok(manifest)
}
