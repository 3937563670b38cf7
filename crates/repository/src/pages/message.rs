//! The stored form of a manifest: protobuf tables in frames, see `docs/formats/pages.md`.

use std::collections::BTreeMap;

use borealis_base::{Branch, LineageId, ObjectId, Position, Timestamp};
use bytes::Bytes;
use prost::Message;

use super::manifest::{
    BaseBackupInfo, Blob, BlobChunk, Body, Directory, FileTable, Link, PackEntry, PageFile,
    PartHandle,
};
use super::map::PageKey;
use super::parts::Part;
use crate::object::FrameKind;
use crate::plan::ObjectRef;
use crate::wire::Malformed;

/// Root: what the base backup is, and the index of map parts.
pub const FRAME_ROOT: FrameKind = 1;
/// Rows of the table of page files.
pub const FRAME_PAGE_FILES: FrameKind = 2;
/// Rows of the table of blobs.
pub const FRAME_BLOBS: FrameKind = 3;
/// Rows of the tables of directories and links.
pub const FRAME_PLACES: FrameKind = 4;
/// Rows of the pack table.
pub const FRAME_PACKS: FrameKind = 5;
/// A map part. All others stand before the first of these.
pub const FRAME_MAP_PART: FrameKind = 6;

/// Bytes of rows at which a table goes on in another frame.
const TABLE_FRAME_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, Message)]
struct Root {
    #[prost(uint32, tag = "1")]
    branch: u32,
    #[prost(uint64, tag = "2")]
    start: u64,
    #[prost(uint64, tag = "3")]
    end: u64,
    #[prost(sint64, tag = "4")]
    started_at: i64,
    #[prost(sint64, tag = "5")]
    ended_at: i64,
    #[prost(uint32, tag = "6")]
    rule_set: u32,
    #[prost(bytes = "bytes", tag = "7")]
    engine: Bytes,
    #[prost(uint32, tag = "8")]
    next_file: u32,
    #[prost(uint32, tag = "9")]
    next_pack: u32,
    /// Manifests whose map parts are shared. Number 0 in a part means this one, 1 the first of these.
    #[prost(message, repeated, tag = "10")]
    homes: Vec<ObjectRow>,
    #[prost(message, repeated, tag = "11")]
    parts: Vec<PartRow>,
    #[prost(uint64, tag = "12")]
    page_files: u64,
    #[prost(uint64, tag = "13")]
    blobs: u64,
    #[prost(uint64, tag = "14")]
    directories: u64,
    #[prost(uint64, tag = "15")]
    links: u64,
    #[prost(uint64, tag = "16")]
    packs: u64,
    /// Present in a partial manifest only.
    #[prost(uint64, optional, tag = "17")]
    missing_pages: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct ObjectRow {
    #[prost(bytes = "bytes", tag = "1")]
    lineage: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    object: Bytes,
    #[prost(uint64, tag = "3")]
    len: u64,
    #[prost(bytes = "bytes", tag = "4")]
    head_digest: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PartRow {
    #[prost(uint32, tag = "1")]
    file: u32,
    #[prost(uint64, tag = "2")]
    page: u64,
    #[prost(uint32, tag = "3")]
    runs: u32,
    #[prost(uint64, tag = "4")]
    pages: u64,
    #[prost(uint32, tag = "5")]
    home: u32,
    /// In this manifest: counted from the first map part. In another: the frame's number.
    #[prost(uint32, tag = "6")]
    frame: u32,
}

/// One table frame; each uses the lists of its kind.
#[derive(Clone, PartialEq, Message)]
struct Table {
    #[prost(message, repeated, tag = "1")]
    page_files: Vec<PageFileRow>,
    #[prost(message, repeated, tag = "2")]
    blobs: Vec<BlobRow>,
    #[prost(message, repeated, tag = "3")]
    directories: Vec<DirectoryRow>,
    #[prost(message, repeated, tag = "4")]
    links: Vec<LinkRow>,
    #[prost(message, repeated, tag = "5")]
    packs: Vec<PackRow>,
}

#[derive(Clone, PartialEq, Message)]
struct PageFileRow {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint32, tag = "3")]
    page_size: u32,
    #[prost(uint32, tag = "4")]
    length: u32,
    #[prost(uint32, tag = "5")]
    mode: u32,
}

#[derive(Clone, PartialEq, Message)]
struct BlobRow {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    mode: u32,
    #[prost(sint64, tag = "3")]
    modified: i64,
    #[prost(uint64, tag = "4")]
    len: u64,
    #[prost(bytes = "bytes", tag = "5")]
    sha256: Bytes,
    #[prost(message, repeated, tag = "6")]
    chunks: Vec<ChunkRow>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ChunkRow {
    #[prost(uint32, tag = "1")]
    pack: u32,
    #[prost(uint32, tag = "2")]
    frame: u32,
    #[prost(uint32, tag = "3")]
    offset: u32,
    #[prost(uint32, tag = "4")]
    len: u32,
}

#[derive(Clone, PartialEq, Message)]
struct DirectoryRow {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    mode: u32,
}

#[derive(Clone, PartialEq, Message)]
struct LinkRow {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    target: String,
}

#[derive(Clone, PartialEq, Message)]
struct PackRow {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(message, optional, tag = "2")]
    object: Option<ObjectRow>,
    #[prost(uint32, tag = "3")]
    frames: u32,
    #[prost(uint64, tag = "4")]
    live_pages: u64,
}

fn object_row(object: &ObjectRef) -> ObjectRow {
    ObjectRow {
        lineage: Bytes::copy_from_slice(&object.lineage.0),
        object: Bytes::copy_from_slice(&object.object.0),
        len: object.len,
        head_digest: Bytes::copy_from_slice(&object.head_digest),
    }
}

fn object_ref(row: &ObjectRow) -> Result<ObjectRef, Malformed> {
    let parts = (
        LineageId::from_slice(&row.lineage),
        ObjectId::from_slice(&row.object),
        <[u8; 32]>::try_from(row.head_digest.as_ref()),
    );
    let (Some(lineage), Some(object), Ok(head_digest)) = parts else {
        return Err(Malformed::new("a reference to an object is malformed"));
    };
    Ok(ObjectRef {
        lineage,
        object,
        len: row.len,
        head_digest,
    })
}

/// Cuts rows into frames of bounded size.
fn frames_of<R: Message>(
    kind: FrameKind,
    rows: Vec<R>,
    table: impl Fn(Vec<R>) -> Table,
) -> Vec<(FrameKind, Vec<u8>)> {
    let mut frames = Vec::new();
    let (mut some, mut bytes) = (Vec::new(), 0);
    for row in rows {
        bytes += row.encoded_len();
        some.push(row);
        if bytes >= TABLE_FRAME_BYTES {
            frames.push((kind, table(std::mem::take(&mut some)).encode_to_vec()));
            bytes = 0;
        }
    }
    if !some.is_empty() {
        frames.push((kind, table(some).encode_to_vec()));
    }
    frames
}

fn root(body: &Body, own: &ObjectRef) -> Root {
    let mut homes: Vec<ObjectRow> = Vec::new();
    let mut home_numbers: BTreeMap<ObjectId, u32> = BTreeMap::new();
    let parts = (body.parts.iter())
        .map(|part| {
            let object = part.handle.object;
            let home = if object == *own {
                0
            } else {
                *home_numbers.entry(object.object).or_insert_with(|| {
                    homes.push(object_row(&object));
                    homes.len() as u32
                })
            };
            PartRow {
                file: part.first.file,
                page: part.first.page,
                runs: part.runs,
                pages: part.pages,
                home,
                frame: part.handle.frame,
            }
        })
        .collect();
    let info = &body.info;
    Root {
        branch: info.branch.0,
        start: info.start.0,
        end: info.end.0,
        started_at: info.started_at.0,
        ended_at: info.ended_at.0,
        rule_set: info.rule_set,
        engine: info.engine.clone(),
        next_file: body.next_file,
        next_pack: body.next_pack,
        homes,
        parts,
        page_files: body.files.page_files.len() as u64,
        blobs: body.files.blobs.len() as u64,
        directories: body.files.directories.len() as u64,
        links: body.files.links.len() as u64,
        packs: body.packs.len() as u64,
        missing_pages: body.missing_pages,
    }
}

/// The frames of a manifest before its map parts. Parts whose handle names `own` are this manifest's.
pub(super) fn encode(body: &Body, own: &ObjectRef) -> Vec<(FrameKind, Vec<u8>)> {
    let files = &body.files;
    let page_files = (files.page_files.values())
        .map(|file| PageFileRow {
            number: file.number,
            name: file.name.clone(),
            page_size: file.page_size,
            length: file.length,
            mode: file.mode,
        })
        .collect();
    let blobs = files.blobs.iter().map(blob_row).collect();
    let directories = (files.directories.iter())
        .map(|directory| DirectoryRow {
            name: directory.name.clone(),
            mode: directory.mode,
        })
        .collect();
    let links = (files.links.iter())
        .map(|link| LinkRow {
            name: link.name.clone(),
            target: link.target.clone(),
        })
        .collect();
    let packs = (body.packs.iter())
        .map(|(number, pack)| PackRow {
            number: *number,
            object: Some(object_row(&pack.object)),
            frames: pack.frames,
            live_pages: pack.live_pages,
        })
        .collect();
    let empty = Table::default;
    let mut frames = vec![(FRAME_ROOT, root(body, own).encode_to_vec())];
    frames.extend(frames_of(FRAME_PAGE_FILES, page_files, |page_files| {
        Table {
            page_files,
            ..empty()
        }
    }));
    frames.extend(frames_of(FRAME_BLOBS, blobs, |blobs| Table {
        blobs,
        ..empty()
    }));
    frames.extend(frames_of(FRAME_PLACES, directories, |directories| Table {
        directories,
        ..empty()
    }));
    frames.extend(frames_of(FRAME_PLACES, links, |links| Table {
        links,
        ..empty()
    }));
    frames.extend(frames_of(FRAME_PACKS, packs, |packs| Table {
        packs,
        ..empty()
    }));
    frames
}

fn blob_row(blob: &Blob) -> BlobRow {
    let chunk = |chunk: &BlobChunk| ChunkRow {
        pack: chunk.pack,
        frame: chunk.frame,
        offset: chunk.offset,
        len: chunk.len,
    };
    BlobRow {
        name: blob.name.clone(),
        mode: blob.mode,
        modified: blob.modified.0,
        len: blob.len,
        sha256: Bytes::copy_from_slice(&blob.sha256),
        chunks: blob.chunks.iter().map(chunk).collect(),
    }
}

fn blob(row: BlobRow) -> Result<Blob, Malformed> {
    let sha256 = <[u8; 32]>::try_from(row.sha256.as_ref())
        .map_err(|_| Malformed(format!("the digest of `{}` is malformed", row.name)))?;
    let chunk = |chunk: ChunkRow| BlobChunk {
        pack: chunk.pack,
        frame: chunk.frame,
        offset: chunk.offset,
        len: chunk.len,
    };
    Ok(Blob {
        name: row.name,
        mode: row.mode,
        modified: Timestamp(row.modified),
        len: row.len,
        sha256,
        chunks: row.chunks.into_iter().map(chunk).collect(),
    })
}

/// Reads the frames before the map parts of the manifest `own`.
pub(super) fn decode(frames: &[(FrameKind, Bytes)], own: ObjectRef) -> Result<Body, Malformed> {
    let Some(((FRAME_ROOT, root), tables)) = frames.split_first() else {
        return Err(Malformed::new("it does not begin with its root frame"));
    };
    let root =
        Root::decode(root.clone()).map_err(|_| Malformed::new("its root frame is malformed"))?;
    let mut body = Body {
        info: BaseBackupInfo {
            branch: Branch(root.branch),
            start: Position(root.start),
            end: Position(root.end),
            started_at: Timestamp(root.started_at),
            ended_at: Timestamp(root.ended_at),
            rule_set: root.rule_set,
            engine: root.engine.clone(),
        },
        files: FileTable::default(),
        packs: BTreeMap::new(),
        parts: parts(&root, own, frames.len())?,
        next_file: root.next_file,
        next_pack: root.next_pack,
        missing_pages: root.missing_pages,
    };
    for (kind, plain) in tables {
        if !matches!(
            *kind,
            FRAME_PAGE_FILES | FRAME_BLOBS | FRAME_PLACES | FRAME_PACKS
        ) {
            return Err(Malformed(format!(
                "a frame of kind {kind} does not belong there"
            )));
        }
        let table = Table::decode(plain.clone())
            .map_err(|_| Malformed::new("one of its tables is malformed"))?;
        add_table(&mut body, table)?;
    }
    let counts = [
        (root.page_files, body.files.page_files.len(), "page files"),
        (root.blobs, body.files.blobs.len(), "blobs"),
        (
            root.directories,
            body.files.directories.len(),
            "directories",
        ),
        (root.links, body.files.links.len(), "links"),
        (root.packs, body.packs.len(), "packs"),
    ];
    for (expected, found, what) in counts {
        if expected != found as u64 {
            return Err(Malformed(format!("it lists {found} of {expected} {what}")));
        }
    }
    Ok(body)
}

fn parts(root: &Root, own: ObjectRef, tables: usize) -> Result<Vec<Part<PartHandle>>, Malformed> {
    let homes: Vec<ObjectRef> = root
        .homes
        .iter()
        .map(object_ref)
        .collect::<Result<_, _>>()?;
    (root.parts.iter())
        .map(|row| {
            let (object, first_part) = match (row.home as usize).checked_sub(1) {
                None => (Some(own), tables as u32),
                Some(index) => (homes.get(index).copied(), 0),
            };
            let object = object.ok_or_else(|| Malformed::new("a map part is in no manifest"))?;
            let frame = row.frame.checked_add(first_part);
            let frame =
                frame.ok_or_else(|| Malformed::new("a map part's frame is out of bounds"))?;
            Ok(Part {
                first: PageKey::new(row.file, row.page),
                runs: row.runs,
                pages: row.pages,
                handle: PartHandle { object, frame },
            })
        })
        .collect()
}

fn add_table(body: &mut Body, table: Table) -> Result<(), Malformed> {
    for row in table.page_files {
        let file = PageFile {
            number: row.number,
            name: row.name,
            page_size: row.page_size,
            length: row.length,
            mode: row.mode,
        };
        body.files.page_files.insert(row.number, file);
    }
    for row in table.blobs {
        body.files.blobs.push(blob(row)?);
    }
    let directories = table.directories.into_iter();
    body.files
        .directories
        .extend(directories.map(|row| Directory {
            name: row.name,
            mode: row.mode,
        }));
    let links = table.links.into_iter();
    body.files.links.extend(links.map(|row| Link {
        name: row.name,
        target: row.target,
    }));
    for row in table.packs {
        let object = row
            .object
            .as_ref()
            .ok_or_else(|| Malformed::new("a pack has no object"))?;
        let entry = PackEntry {
            object: object_ref(object)?,
            frames: row.frames,
            live_pages: row.live_pages,
        };
        body.packs.insert(row.number, entry);
    }
    Ok(())
}
