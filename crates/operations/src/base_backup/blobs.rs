//! Files that are not made of pages: read whole, and stored only where their content is new.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use borealis_base::{Progress, Timestamp};
use borealis_pg_format::files::FileKind;
use borealis_pg_server::data_dir::{DataDir, FileDigest, FilePart, PART_BYTES_MAX};
use borealis_repository::object::Compression;
use borealis_repository::pages::manifest::Blob;
use borealis_repository::pages::pack::{BlobMeta, BlobPacker, PackWriter, sha256};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::plan::Listed;
use super::read::{blocking, interrupted};
use crate::error::Result;

/// Files up to this size are held in memory.
const READ_AT_ONCE_MAX: u64 = 64 << 20;
/// Bytes of files that are read at once, unless one file is longer.
const BATCH_BYTES_MAX: u64 = 4 << 20;
/// A file is asked for by its listed length and this much more, so that its growth is noticed.
const MARGIN_BYTES: u64 = 8 << 10;
/// The zstd level for blobs.
const BLOB_LEVEL: i32 = 3;

/// Stores blobs.
pub struct BlobStorer {
    packer: BlobPacker,
    known: BTreeMap<String, Blob>,
    kept: Vec<Blob>,
}

impl BlobStorer {
    /// A storer that shares what is in `known`, the blobs of the parent, except those that are `lost`.
    pub fn new(known: Option<&[Blob]>, lost: &BTreeSet<String>) -> Self {
        let known = known.unwrap_or_default().iter();
        let known = known
            .filter(|blob| !lost.contains(&blob.name))
            .map(|blob| (blob.name.clone(), blob.clone()))
            .collect();
        Self {
            packer: BlobPacker::new(Compression::Zstd(BLOB_LEVEL)),
            known,
            kept: Vec::new(),
        }
    }

    /// Adds the files of `blobs`, read from `dir`. One that has vanished is left out: the server
    /// removed it, and replay does the same.
    pub async fn add_files(
        &mut self,
        dir: &Arc<dyn DataDir>,
        blobs: &[Listed],
        packs: &mut PackWriter,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let (unread, blobs): (Vec<_>, Vec<_>) = blobs.iter().cloned().partition(is_taken_as_listed);
        for listed in unread {
            self.add(&listed.path, listed.mode, Bytes::new(), packs)
                .await?;
        }
        let changed = self.keep_unchanged(dir, &blobs, progress).await?;
        for batch in batches(&changed) {
            if cancel.is_cancelled() {
                return Err(interrupted());
            }
            match batch {
                [large] if large.bytes > READ_AT_ONCE_MAX => {
                    self.add_large(dir, large, packs).await?;
                    progress.advance(large.bytes);
                }
                small => {
                    for (listed, content) in small.iter().zip(read_files(dir, small).await?) {
                        if let Some(content) = content {
                            self.add(&listed.path, listed.mode, content.into(), packs)
                                .await?;
                        }
                        progress.advance(listed.bytes);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes over what `dir` can tell to be unchanged without sending it; returns the rest.
    async fn keep_unchanged(
        &mut self,
        dir: &Arc<dyn DataDir>,
        blobs: &[Listed],
        progress: &dyn Progress,
    ) -> Result<Vec<Listed>> {
        let (maybe, mut rest): (Vec<_>, Vec<_>) = blobs.iter().cloned().partition(|listed| {
            (self.known.get(&listed.path))
                .is_some_and(|old| old.len == listed.bytes && old.mode == listed.mode)
        });
        let named: Vec<(Arc<str>, u64)> = maybe
            .iter()
            .map(|listed| (listed.path.as_str().into(), listed.bytes))
            .collect();
        let asked = dir.clone();
        let digests = blocking(move || Ok(asked.digests(&named)?)).await?;
        let Some(digests) = digests else {
            return Ok(blobs.to_vec());
        };
        for (listed, digest) in maybe.into_iter().zip(digests) {
            let same = |old: &&Blob| {
                digest
                    == Some(FileDigest {
                        bytes: old.len,
                        sha256: old.sha256,
                    })
            };
            match self.known.get(&listed.path).filter(same) {
                Some(old) => {
                    self.kept.push(old.clone());
                    progress.advance(listed.bytes);
                }
                None => rest.push(listed),
            }
        }
        Ok(rest)
    }

    /// Adds a blob whose content is at hand.
    pub async fn add(
        &mut self,
        name: &str,
        mode: u32,
        content: Bytes,
        packs: &mut PackWriter,
    ) -> Result<()> {
        let same = self.known.get(name).filter(|old| {
            old.len == content.len() as u64 && old.mode == mode && old.sha256 == sha256(&content)
        });
        if let Some(old) = same {
            self.kept.push(old.clone());
            return Ok(());
        }
        self.begin(name, mode);
        self.packer.write(packs, &content).await?;
        Ok(())
    }

    /// A file that may not fit into memory. It is always stored anew: files of this size are not made
    /// of pages only where an extension keeps its own, and those change.
    async fn add_large(
        &mut self,
        dir: &Arc<dyn DataDir>,
        listed: &Listed,
        packs: &mut PackWriter,
    ) -> Result<()> {
        self.begin(&listed.path, listed.mode);
        let path: Arc<str> = listed.path.as_str().into();
        let mut offset = 0;
        loop {
            let parts = parts(&path, offset, BATCH_BYTES_MAX);
            let dir = dir.clone();
            let content = blocking(move || {
                let mut content = Vec::new();
                dir.read_parts(&parts, &mut |at, bytes| {
                    // Behind a part that was short lies what was added since.
                    if content.len() == at * PART_BYTES_MAX {
                        content.extend_from_slice(bytes.unwrap_or_default());
                    }
                    Ok(())
                })?;
                Ok(content)
            })
            .await?;
            self.packer.write(packs, &content).await?;
            if (content.len() as u64) < BATCH_BYTES_MAX {
                return Ok(());
            }
            offset += BATCH_BYTES_MAX;
        }
    }

    fn begin(&mut self, name: &str, mode: u32) {
        // A restore gives files the time of the restore; the server looks at no file's time.
        let modified = Timestamp(0);
        self.packer.begin(BlobMeta {
            name: name.to_owned(),
            mode,
            modified,
        });
    }

    /// Every blob, once the packs they lie in are full or finished.
    pub async fn finish(self, packs: &mut PackWriter) -> Result<Vec<Blob>> {
        let mut blobs = self.packer.finish(packs).await?;
        blobs.extend(self.kept);
        blobs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(blobs)
    }
}

/// Whether a file is not opened but taken to be what the listing says: a file of nobody knows whom that was
/// empty then. Through SQL a pipe looks like one, and a server that opens it waits for ever.
fn is_taken_as_listed(listed: &Listed) -> bool {
    listed.kind == FileKind::Blob && listed.bytes == 0
}

/// Groups of files that are read at once, in order; one that is longer than a batch is alone.
fn batches(files: &[Listed]) -> impl Iterator<Item = &[Listed]> {
    let mut rest = files;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|file| {
            bytes += file.bytes + MARGIN_BYTES;
            bytes <= BATCH_BYTES_MAX
        });
        let (batch, others) = rest.split_at_checked(fits.count().max(1))?;
        rest = others;
        Some(batch)
    })
}

/// `bytes` of a file from `offset` on, in parts.
fn parts(path: &Arc<str>, offset: u64, bytes: u64) -> Vec<FilePart> {
    (offset..offset + bytes)
        .step_by(PART_BYTES_MAX)
        .map(|at| FilePart {
            path: path.clone(),
            offset: at,
            bytes: (offset + bytes - at).min(PART_BYTES_MAX as u64) as usize,
        })
        .collect()
}

/// Reads files whole; `None` for one that has vanished.
async fn read_files(dir: &Arc<dyn DataDir>, files: &[Listed]) -> Result<Vec<Option<Vec<u8>>>> {
    let dir = dir.clone();
    let files: Vec<(Arc<str>, u64)> = files
        .iter()
        .map(|file| (file.path.as_str().into(), file.bytes))
        .collect();
    blocking(move || {
        let mut contents: Vec<Option<Vec<u8>>> = files.iter().map(|_| Some(Vec::new())).collect();
        // Where each file is read from next, and how far it was asked for.
        let mut unfinished: Vec<(usize, u64, u64)> = files
            .iter()
            .enumerate()
            .map(|(file, (_, bytes))| (file, 0, bytes + MARGIN_BYTES))
            .collect();
        while !unfinished.is_empty() {
            let mut asked = Vec::new();
            let mut owners = Vec::new();
            for (file, from, bytes) in &unfinished {
                let (path, _) = files.get(*file).expect("each is one of the files");
                let parts = parts(path, *from, *bytes);
                owners.extend(parts.iter().map(|_| *file));
                asked.extend(parts);
            }
            dir.read_parts(&asked, &mut |at, bytes| {
                let owner = owners.get(at).and_then(|file| contents.get_mut(*file));
                let content = owner.expect("each part is of a file");
                match (content.as_mut(), bytes) {
                    (Some(content), Some(bytes)) => {
                        // Behind a part that was short lies what was added since.
                        let follows = |part: &FilePart| part.offset == content.len() as u64;
                        if asked.get(at).is_some_and(follows) {
                            content.extend_from_slice(bytes);
                        }
                    }
                    _ => *content = None,
                }
                Ok(())
            })?;
            // One that gave all that was asked for has grown, and goes on.
            unfinished = unfinished
                .into_iter()
                .filter_map(|(file, from, bytes)| {
                    let read = contents.get(file)?.as_ref()?.len() as u64;
                    (read == from + bytes).then_some((file, read, PART_BYTES_MAX as u64))
                })
                .collect();
        }
        Ok(contents)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_pg_server::data_dir::LocalDataDir;

    fn listed(path: &str, bytes: u64) -> Listed {
        Listed {
            path: path.to_owned(),
            kind: FileKind::Blob,
            bytes,
            mode: 0o600,
        }
    }

    #[test]
    fn small_files_are_read_together_and_large_ones_alone() {
        let files = [1, 1 << 20, 1, 100 << 20, 3 << 20, 3 << 20, 5].map(|bytes| listed("f", bytes));
        let sizes: Vec<usize> = batches(&files).map(<[Listed]>::len).collect();
        assert_eq!(sizes, [3, 1, 1, 2]);
        assert_eq!(batches(&[]).count(), 0);
    }

    #[tokio::test]
    async fn files_that_grew_shrank_or_vanished_since_the_listing_are_read_as_they_are() {
        let place = tempfile::tempdir().unwrap();
        let content = |bytes: u64| -> Vec<u8> { (0..bytes).map(|at| (at % 251) as u8).collect() };
        let dir: Arc<dyn DataDir> = Arc::new(LocalDataDir::new(place.path()));
        let mut files = Vec::new();
        for (name, then, now) in [
            ("same", 10, Some(10)),
            ("empty", 0, Some(0)),
            ("shrunk", 3 << 20, Some(5)),
            ("gone", 7, None),
            ("grown to the margin", 100, Some(100 + MARGIN_BYTES)),
            ("grown past it", 100, Some(4 << 20)),
            ("longer than a part", 3 << 20, Some(3 << 20)),
        ] {
            files.push(listed(name, then));
            if let Some(bytes) = now {
                std::fs::write(place.path().join(name), content(bytes)).unwrap();
            }
        }
        let read = read_files(&dir, &files).await.unwrap();
        for (file, found) in files.iter().zip(read) {
            let there = std::fs::read(place.path().join(&file.path)).ok();
            assert!(found == there, "{}", file.path);
        }
    }
}
