//! Writes the files of a base backup into a directory. The control file is not among them: it comes
//! last, when everything else is durable.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use borealis_base::{ErrorKind, Progress, Unit};
use borealis_pg_format::label::TablespaceMap;
use borealis_pg_server::instance::SystemUser;
use borealis_repository::pages::manifest::{Blob, Manifest, PageFile};
use borealis_repository::pages::read::{PageReader, PageSink};
use bytes::Bytes;

use crate::error::{Error, FileContext, Result};

/// Ranges of packs fetched at a time.
const FETCHES: usize = 8;
/// Files created at a time: on a busy file system each waits for its journal.
const CREATES: usize = 4;
/// Files synced at a time.
const SYNCS: usize = 16;
/// Bytes of pages after which the file that they went to is synced, so that the disk works while pages
/// are still being opened, and the sync at the end finds little to do.
const SYNC_EVERY_BYTES: u64 = 64 << 20;
/// Pages in one system call; the system takes at most 1,024 (`IOV_MAX`).
const PAGES_PER_WRITE: usize = 256;
/// The control file: written last.
pub const CONTROL_FILE: &str = "global/pg_control";
const TABLESPACE_MAP: &str = "tablespace_map";

/// Where tablespaces go: (path on the source, path here).
pub type Mapping = Vec<(PathBuf, PathBuf)>;

/// The place of a tablespace in the restored cluster.
pub fn mapped<'a>(mapping: &'a [(PathBuf, PathBuf)], source: &'a Path) -> &'a Path {
    let found = mapping.iter().find(|(old, _)| old == source);
    found.map_or(source, |(_, new)| new.as_path())
}

/// A directory that a base backup is written into.
pub struct Tree<'a> {
    /// The data directory.
    pub target: &'a Path,
    /// Where tablespaces go.
    pub mapping: &'a Mapping,
    /// Pages in a segment file of a relation fork.
    pub segment_pages: u32,
    /// Who gets the files, where that is not who runs this.
    pub owner: Option<&'a SystemUser>,
}

impl Tree<'_> {
    /// Writes everything but the control file and the configuration that the caller makes anew.
    pub async fn write(
        &self,
        reader: &Arc<PageReader>,
        skip: &dyn Fn(&str) -> bool,
        progress: &dyn Progress,
    ) -> Result<()> {
        let manifest = reader.manifest().clone();
        self.make_directories(&manifest)?;
        let sink = Arc::new(FileSink {
            target: self.target.to_owned(),
            segment_pages: self.segment_pages,
            unsynced: AtomicU64::new(0),
        });
        let (creating, files) = (sink.clone(), manifest.clone());
        blocking(move || {
            let files: Vec<&PageFile> = files.files().page_files.values().collect();
            side_by_side(CREATES, &files, |file| creating.create(file))
        })
        .await?;
        reader.restore_pages(sink, FETCHES, progress).await?;
        let blobs = &manifest.files().blobs;
        progress.phase("files", Unit::Items, Some(blobs.len() as u64));
        for blob in blobs {
            if blob.name != CONTROL_FILE && !skip(&blob.name) {
                self.write_blob(reader, blob, &blob.name).await?;
            }
            progress.advance(1);
        }
        Ok(())
    }

    /// Puts the control file in place, with everything else durable and owned before it.
    pub async fn finish(&self, reader: &Arc<PageReader>, progress: &dyn Progress) -> Result<()> {
        let manifest = reader.manifest();
        let control = manifest
            .files()
            .blobs
            .iter()
            .find(|blob| blob.name == CONTROL_FILE);
        let control = control.ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!("{} holds no control file", manifest.name()),
            )
        })?;
        let roots = self.roots(manifest);
        progress.phase("syncing", Unit::Items, None);
        let owner = self.owner.map(|user| (user.uid, user.gid));
        blocking(move || roots.iter().try_for_each(|root| settle(root, owner))).await?;
        let staged = format!("{CONTROL_FILE}.borealis");
        self.write_blob(reader, control, &staged).await?;
        let (from, to) = (self.target.join(&staged), self.target.join(CONTROL_FILE));
        if let Some(owner) = self.owner {
            chown(&from, Some(owner.uid), Some(owner.gid)).at("give away", &from)?;
        }
        sync(&from)?;
        std::fs::rename(&from, &to).at("put in place", &to)?;
        sync(&self.target.join("global"))
    }

    fn roots(&self, manifest: &Manifest) -> Vec<PathBuf> {
        let tablespaces = manifest.files().links.iter();
        let mut roots: Vec<PathBuf> = tablespaces
            .map(|link| mapped(self.mapping, Path::new(&link.target)).to_owned())
            .collect();
        roots.push(self.target.to_owned());
        roots
    }

    fn make_directories(&self, manifest: &Manifest) -> Result<()> {
        make_directory(&self.target.join("pg_tblspc"), 0o700)?;
        for link in &manifest.files().links {
            let place = mapped(self.mapping, Path::new(&link.target));
            std::fs::create_dir_all(place).at("create", place)?;
            // Empty, or left by an unfinished restore: the check before has made sure.
            empty(place)?;
            set_mode(place, 0o700)?;
            let at = self.target.join(&link.name);
            match std::fs::remove_file(&at) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).at("replace", &at);
                }
                _ => symlink(place, &at).at("link", &at)?,
            }
        }
        for directory in &manifest.files().directories {
            make_directory(&self.target.join(&directory.name), directory.mode)?;
        }
        make_directory(&self.target.join("pg_wal/archive_status"), 0o700)
    }

    async fn write_blob(&self, reader: &PageReader, blob: &Blob, name: &str) -> Result<()> {
        let path = self.target.join(name);
        let file = new_file(&path, blob.mode)?;
        let mut offset = 0;
        if blob.name == TABLESPACE_MAP {
            let mut content = Vec::new();
            reader
                .read_blob::<Error>(blob, |part| {
                    content.extend_from_slice(part);
                    Ok(())
                })
                .await?;
            let content = self.map_tablespaces(&content)?;
            return file.write_all_at(&content, 0).at("write", &path);
        }
        reader
            .read_blob::<Error>(blob, |part| {
                file.write_all_at(part, offset).at("write", &path)?;
                offset += part.len() as u64;
                Ok(())
            })
            .await
    }

    /// The server makes the links of this file anew at its first start, so that it must name the new
    /// places.
    fn map_tablespaces(&self, content: &[u8]) -> Result<Vec<u8>> {
        use std::os::unix::ffi::{OsStrExt, OsStringExt};
        let mut map = TablespaceMap::parse(content)?;
        for (_, path) in &mut map.entries {
            let source = PathBuf::from(std::ffi::OsString::from_vec(path.clone()));
            *path = mapped(self.mapping, &source)
                .as_os_str()
                .as_bytes()
                .to_vec();
        }
        Ok(map.to_bytes())
    }
}

/// Writes pages where they belong. The files exist with their full length, so that pages of zeros are
/// there already.
struct FileSink {
    target: PathBuf,
    segment_pages: u32,
    /// Bytes written since a file was last synced.
    unsynced: AtomicU64,
}

impl FileSink {
    fn segment(&self, file: &PageFile, segment: u32) -> PathBuf {
        match segment {
            0 => self.target.join(&file.name),
            _ => self.target.join(format!("{}.{segment}", file.name)),
        }
    }

    fn create(&self, file: &PageFile) -> Result<()> {
        let segments = file.length.div_ceil(self.segment_pages).max(1);
        for segment in 0..segments {
            let path = self.segment(file, segment);
            let first = segment * self.segment_pages;
            let pages = (file.length - first).min(self.segment_pages);
            let created = new_file(&path, file.mode)?;
            created
                .set_len(u64::from(pages) * u64::from(file.page_size))
                .at("set the length of", &path)?;
        }
        Ok(())
    }
}

impl PageSink for FileSink {
    type Error = Error;

    fn pages(&self, file: &PageFile, pages: &[(u32, Bytes)]) -> Result<()> {
        let in_one_segment = |a: &(u32, Bytes), b: &(u32, Bytes)| {
            a.0 / self.segment_pages == b.0 / self.segment_pages
        };
        for pages in pages.chunk_by(in_one_segment) {
            let Some((first, _)) = pages.first() else {
                continue;
            };
            let path = self.segment(file, first / self.segment_pages);
            let opened = OpenOptions::new()
                .write(true)
                .open(&path)
                .at("open", &path)?;
            for run in pages.chunk_by(|a, b| a.0.checked_add(1) == Some(b.0)) {
                for part in run.chunks(PAGES_PER_WRITE) {
                    let first = part
                        .first()
                        .map_or(0, |(number, _)| number % self.segment_pages);
                    let offset = u64::from(first) * u64::from(file.page_size);
                    write_pages(&opened, part, offset).at("write", &path)?;
                }
            }
            let bytes = pages.len() as u64 * u64::from(file.page_size);
            if self.unsynced.fetch_add(bytes, Ordering::Relaxed) + bytes >= SYNC_EVERY_BYTES {
                self.unsynced.store(0, Ordering::Relaxed);
                opened.sync_data().at("sync", &path)?;
            }
        }
        Ok(())
    }

    fn zeros(&self, _: &PageFile, _: u32, _: u32) -> Result<()> {
        Ok(())
    }
}

/// Writes neighbouring pages at `offset`.
fn write_pages(file: &File, pages: &[(u32, Bytes)], mut offset: u64) -> std::io::Result<()> {
    let slices: Vec<IoSlice<'_>> = pages.iter().map(|(_, page)| IoSlice::new(page)).collect();
    let mut written = match rustix::io::pwritev(file, &slices, offset) {
        Ok(written) => written,
        Err(rustix::io::Errno::INTR) => 0,
        Err(error) => return Err(error.into()),
    };
    // The system may take less than all of it; the rest goes page by page.
    for (_, page) in pages {
        let rest = page.get(written..).unwrap_or_default();
        let done = page.len() - rest.len();
        file.write_all_at(rest, offset + done as u64)?;
        written -= done;
        offset += page.len() as u64;
    }
    Ok(())
}

/// Does `work` for each item, by as many threads as `workers`, and returns the first error.
fn side_by_side<T: Sync>(
    workers: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let share = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers.min(items.len()))
            .map(|_| scope.spawn(share))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .map_err(|_| Error::new(ErrorKind::Bug, "a thread that writes files ended"))?
        })
    })
}

/// Removes everything below a directory.
fn empty(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).at("list", directory)? {
        let path = entry.at("list", directory)?.path();
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path).at("remove", &path)?;
        } else {
            std::fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Makes a directory, as its owner only may use it by default.
pub fn make_directory(path: &Path, mode: u32) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).at("create", path)
        }
        _ => set_mode(path, mode),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .at("set the mode of", path)
}

/// A new, empty file in place of whatever an unfinished restore left there.
pub fn new_file(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .at("create", path)
}

/// Writes a small file durably.
pub fn write_file(path: &Path, content: &[u8], owner: Option<&SystemUser>) -> Result<()> {
    let file = new_file(path, 0o600)?;
    file.write_all_at(content, 0).at("write", path)?;
    if let Some(owner) = owner {
        chown(path, Some(owner.uid), Some(owner.gid)).at("give away", path)?;
    }
    file.sync_all().at("sync", path)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .at("sync", path)
}

/// Gives everything below `root` to its owner and makes it durable, files before their directories.
fn settle(root: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    let mut next = 0;
    while let Some(directory) = directories.get(next).cloned() {
        next += 1;
        for entry in std::fs::read_dir(&directory).at("list", &directory)? {
            let entry = entry.at("list", &directory)?;
            let kind = entry.file_type().at("look at", &entry.path())?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else {
                if let Some((uid, gid)) = owner {
                    lchown(entry.path(), Some(uid), Some(gid)).at("give away", &entry.path())?;
                }
                if kind.is_file() {
                    files.push(entry.path());
                }
            }
        }
    }
    side_by_side(SYNCS, &files, |file| sync(file))?;
    for directory in directories.iter().rev() {
        if let Some((uid, gid)) = owner {
            chown(directory, Some(uid), Some(gid)).at("give away", directory)?;
        }
        sync(directory)?;
    }
    Ok(())
}

/// Runs file work where it does not hold up the rest.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Bug, format!("a worker ended: {error}")))?
}
