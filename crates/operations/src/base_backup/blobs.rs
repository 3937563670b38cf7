//! Files that are not made of pages: read whole, and stored only where their content is new.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use borealis_base::{Progress, Timestamp};
use borealis_repository::object::Compression;
use borealis_repository::pages::manifest::Blob;
use borealis_repository::pages::pack::{BlobMeta, BlobPacker, PackWriter, sha256};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::plan::Listed;
use super::read::interrupted;
use crate::error::{FileContext, Result};

/// Files up to this size are held in memory.
const READ_AT_ONCE_MAX: u64 = 64 << 20;
/// Bytes of one read of a larger file.
const READ_BYTES: usize = 1 << 20;
/// The zstd level for blobs.
const BLOB_LEVEL: i32 = 3;

/// Stores blobs.
pub struct BlobStorer {
    packer: BlobPacker,
    known: BTreeMap<String, Blob>,
    kept: Vec<Blob>,
}

impl BlobStorer {
    /// A storer that shares what is in `known`, the blobs of the parent.
    pub fn new(known: Option<&[Blob]>) -> Self {
        let known = known.unwrap_or_default().iter();
        let known = known
            .map(|blob| (blob.name.clone(), blob.clone()))
            .collect();
        Self {
            packer: BlobPacker::new(Compression::Zstd(BLOB_LEVEL)),
            known,
            kept: Vec::new(),
        }
    }

    /// Adds the files of `blobs`, below `data_dir`. One that has vanished is left out: the server
    /// removed it, and replay does the same.
    pub async fn add_files(
        &mut self,
        data_dir: &Path,
        blobs: &[Listed],
        packs: &mut PackWriter,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<()> {
        for listed in blobs {
            if cancel.is_cancelled() {
                return Err(interrupted());
            }
            let path = data_dir.join(&listed.path);
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).at("open", &path),
            };
            if listed.bytes <= READ_AT_ONCE_MAX {
                let mut content = Vec::with_capacity(listed.bytes as usize);
                file.read_to_end(&mut content).at("read", &path)?;
                self.add(&listed.path, listed.mode, content.into(), packs)
                    .await?;
            } else {
                self.add_large(listed, &path, file, packs).await?;
            }
            progress.advance(listed.bytes);
        }
        Ok(())
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
        listed: &Listed,
        path: &Path,
        mut file: File,
        packs: &mut PackWriter,
    ) -> Result<()> {
        self.begin(&listed.path, listed.mode);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let read = file.read(&mut buffer).at("read", path)?;
            let Some(content) = buffer.get(..read).filter(|content| !content.is_empty()) else {
                return Ok(());
            };
            self.packer.write(packs, content).await?;
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
