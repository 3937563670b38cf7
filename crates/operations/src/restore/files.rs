//! Writes the files of a base backup into a directory. The control file is not among them: it comes
//! last, when everything else is durable.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use borealis_base::{ErrorKind, Progress, Unit};
use borealis_pg_format::label::TablespaceMap;
use borealis_pg_server::instance::SystemUser;
use borealis_repository::pages::manifest::{Blob, Manifest, PageFile};
use borealis_repository::pages::read::PageReader;

use super::delta::sweep::Contents;
use super::delta::{Shown, Tally};
use super::page_files::PageFiles;
use crate::error::{Error, FileContext, Result};

/// Ranges of packs fetched at a time.
const FETCHES: usize = 8;
/// Files created at a time: on a busy file system each waits for its journal.
const CREATES: usize = 4;
/// Files synced at a time.
const SYNCS: usize = 16;
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
    /// Where files may be there already, of which only what differs is written: what belongs there, and
    /// where that is counted.
    pub delta: Option<&'a (Contents, Arc<Tally>)>,
}

/// The segment files of a page file, by path, with the pages of each.
pub fn segments(file: &PageFile, segment_pages: u32) -> impl Iterator<Item = (String, u32)> + '_ {
    let count = file.length.div_ceil(segment_pages).max(1);
    (0..count).map(move |segment| {
        let pages = (file.length - segment * segment_pages).min(segment_pages);
        (segment_name(file, segment), pages)
    })
}

/// The path of one segment file.
pub fn segment_name(file: &PageFile, segment: u32) -> String {
    match segment {
        0 => file.name.clone(),
        _ => format!("{}.{segment}", file.name),
    }
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
        if let Some((contents, tally)) = self.delta {
            progress.phase("deleting", Unit::Items, None);
            contents.sweep(self.target, tally)?;
        }
        self.make_directories(&manifest)?;
        let tally = self.delta.map(|(_, tally)| tally.clone());
        let shown = tally.clone().map(|tally| Shown { progress, tally });
        let progress = shown.as_ref().map_or(progress, |shown| shown);
        let sink = Arc::new(PageFiles::new(self.target, self.segment_pages, tally));
        let (creating, files) = (sink.clone(), manifest.clone());
        blocking(move || {
            let files: Vec<&PageFile> = files.files().page_files.values().collect();
            side_by_side(CREATES, &files, |file| creating.make(file))
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
        for link in &manifest.files().links {
            let place = mapped(self.mapping, Path::new(&link.target));
            give(place, owner)?;
            sync(place)?;
        }
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

    /// Everything that is given to the owner and synced: the data directory, what is ours in the places of
    /// tablespaces, and the log where it lies elsewhere.
    fn roots(&self, manifest: &Manifest) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = Vec::new();
        for link in &manifest.files().links {
            let place = mapped(self.mapping, Path::new(&link.target));
            roots.extend(inside_of(manifest, &link.name).map(|name| place.join(name)));
        }
        let log = self.target.join("pg_wal");
        if log.is_symlink() {
            roots.extend(std::fs::canonicalize(log));
        }
        roots.push(self.target.to_owned());
        roots
    }

    fn make_directories(&self, manifest: &Manifest) -> Result<()> {
        make_directory(&self.target.join("pg_tblspc"), 0o700)?;
        for link in &manifest.files().links {
            let place = mapped(self.mapping, Path::new(&link.target));
            std::fs::create_dir_all(place).at("create", place)?;
            if self.delta.is_none() {
                // Left by an unfinished restore, if anything is there: the check before has made sure. What
                // another server has beside it stays.
                for name in inside_of(manifest, &link.name) {
                    remove_tree(&place.join(name))?;
                }
            }
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
        if let Some((_, tally)) = self.delta.filter(|_| blob.name != TABLESPACE_MAP) {
            if holds(&path, blob)? {
                tally.keep(blob.len);
                return set_mode(&path, blob.mode);
            }
            tally.write(blob.len);
        }
        let file = new_file(&path, blob.mode)?;
        if self.delta.is_some() {
            set_mode(&path, blob.mode)?;
        }
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

/// Whether the file at `path` has the content of `blob`.
fn holds(path: &Path, blob: &Blob) -> Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.at("open", path)?,
    };
    if file.metadata().at("look at", path)?.len() != blob.len {
        return Ok(false);
    }
    blob.is_content_of(file).at("read", path)
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

/// The directories of a tablespace, seen through `link`, that are this server's; other majors have their own
/// beside them.
fn inside_of<'a>(manifest: &'a Manifest, link: &'a str) -> impl Iterator<Item = &'a str> {
    let directories = manifest.files().directories.iter();
    directories.filter_map(move |directory| {
        let rest = directory.name.strip_prefix(link)?.strip_prefix('/')?;
        (!rest.contains('/')).then_some(rest)
    })
}

fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
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

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
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

/// Makes a file, or the names in a directory, durable.
pub fn sync(path: &Path) -> Result<()> {
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
        give(directory, owner)?;
        sync(directory)?;
    }
    Ok(())
}

fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    match owner {
        Some((uid, gid)) => chown(path, Some(uid), Some(gid)).at("give away", path),
        None => Ok(()),
    }
}

/// Runs file work where it does not hold up the rest.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(ErrorKind::Bug, format!("a worker ended: {error}")))?
}
