//! A store in a folder.
//!
//! An object is written beside its place, synced, and hard-linked there: the link is atomic and fails
//! where the name exists. The folder is synced before a create returns, on both answers: an object
//! that another process linked just before it was killed may not be durable yet, and a caller that is
//! told "exists" relies on it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use borealis_base::Timestamp;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{Error as InnerError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use super::{Absent, Created, Listed, Stat, Store, StoreError, StoreErrorKind, check_name};

/// Folders whose entries up to the root are known to be durable; beyond this many the memory is
/// cleared and they are synced once more.
const SYNCED_FOLDERS_MAX: usize = 4_096;

/// A store in a folder of this machine.
pub struct FolderStore {
    inner: LocalFileSystem,
    root: PathBuf,
    url: String,
    synced: Arc<Mutex<HashSet<PathBuf>>>,
}

impl FolderStore {
    /// The store in `root`.
    pub fn open(root: &Path, absent: Absent) -> Result<Self, StoreError> {
        let shown = root.display().to_string();
        let failed = |error: io::Error| {
            let kind = io_kind(&error);
            StoreError::new(kind, "open", &shown, &shown, error.to_string())
        };
        if absent == Absent::Create {
            fs::create_dir_all(root).map_err(failed)?;
        }
        let root = fs::canonicalize(root).map_err(failed)?;
        if !root.is_dir() {
            return Err(StoreError::new(
                StoreErrorKind::Invalid,
                "open",
                &shown,
                &shown,
                "it is not a folder",
            ));
        }
        let inner = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| translate("open", &shown, &shown, &error))?
            .with_fsync(true);
        Ok(Self {
            inner,
            url: format!("file://{}", root.display()),
            root,
            synced: Arc::default(),
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn file(&self, operation: &'static str, name: &str) -> Result<PathBuf, StoreError> {
        check_name(&self.url, operation, name)?;
        Ok(self.root.join(name))
    }

    fn translate(&self, operation: &'static str, name: &str, error: &InnerError) -> StoreError {
        translate(operation, name, &self.url, error)
    }

    fn failed(&self, operation: &'static str, name: &str, error: &io::Error) -> StoreError {
        StoreError::new(
            io_kind(error),
            operation,
            name,
            &self.url,
            error.to_string(),
        )
    }

    /// Runs blocking work off the executor's threads.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(|error| self.failed(operation, name, &error)),
            Err(error) => Err(StoreError::new(
                StoreErrorKind::Unreachable,
                operation,
                name,
                &self.url,
                error.to_string(),
            )),
        }
    }

    /// Makes the folder of `file`, and the folders above it up to the root, durable.
    async fn sync_folders(&self, name: &str, file: &Path, again: bool) -> Result<(), StoreError> {
        let Some(folder) = file.parent().map(Path::to_owned) else {
            return Ok(());
        };
        let (synced, root) = (self.synced.clone(), self.root.clone());
        if !again && synced.lock().expect("no holder panics").contains(&folder) {
            return Ok(());
        }
        self.blocking("create", name, move || {
            let within = folder
                .ancestors()
                .take_while(|above| above.starts_with(&root));
            for above in within {
                File::open(above)?.sync_all()?;
            }
            let mut synced = synced.lock().expect("no holder panics");
            if synced.len() >= SYNCED_FOLDERS_MAX {
                synced.clear();
            }
            synced.insert(folder);
            Ok(())
        })
        .await
    }
}

fn io_kind(error: &io::Error) -> StoreErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => StoreErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreErrorKind::Denied
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreErrorKind::Full
        }
        io::ErrorKind::InvalidInput
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory => StoreErrorKind::Invalid,
        _ => StoreErrorKind::Unreachable,
    }
}

/// The operating system's answer is buried in the sources of the library's error.
fn translate(operation: &'static str, name: &str, url: &str, error: &InnerError) -> StoreError {
    let mut what = error.to_string();
    let kind = match error {
        InnerError::NotFound { .. } => StoreErrorKind::NotFound,
        InnerError::PermissionDenied { .. } | InnerError::Unauthenticated { .. } => {
            StoreErrorKind::Denied
        }
        InnerError::InvalidPath { .. } => StoreErrorKind::Invalid,
        other => {
            let mut source: Option<&(dyn std::error::Error + 'static)> = Some(other);
            let mut kind = StoreErrorKind::Unreachable;
            while let Some(error) = source {
                if let Some(error) = error.downcast_ref::<io::Error>() {
                    kind = io_kind(error);
                    what = error.to_string();
                }
                source = error.source();
            }
            kind
        }
    };
    StoreError::new(kind, operation, name, url, what)
}

#[async_trait]
impl Store for FolderStore {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let file = self.file("create", name)?;
        let options = PutOptions::from(PutMode::Create);
        let path = ObjectPath::from(name);
        let created = match self.inner.put_opts(&path, bytes.into(), options).await {
            Ok(_) => Created::New,
            Err(InnerError::AlreadyExists { .. }) => Created::Exists,
            Err(error) => return Err(self.translate("create", name, &error)),
        };
        self.sync_folders(name, &file, created == Created::Exists)
            .await?;
        Ok(created)
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        let file = self.file("read", name)?;
        self.blocking("read", name, move || fs::read(file).map(Bytes::from))
            .await
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.file("read", name)?;
        self.blocking("read", name, move || {
            let mut file = File::open(path)?;
            let len = file.metadata()?.len();
            let end = range.end.min(len);
            let wanted = end.saturating_sub(range.start);
            let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
            if wanted > 0 {
                file.seek(SeekFrom::Start(range.start))?;
                file.take(wanted).read_to_end(&mut bytes)?;
            }
            Ok(bytes.into())
        })
        .await
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        check_name(&self.url, "stat", name)?;
        match self.inner.head(&ObjectPath::from(name)).await {
            Ok(meta) => Ok(Some(Stat {
                len: meta.size,
                modified: Timestamp(meta.last_modified.timestamp_micros()),
            })),
            Err(InnerError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.translate("stat", name, &error)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        // The library lists whole folders: take the one that holds the prefix, then filter.
        let folder = prefix
            .rsplit_once('/')
            .map(|(folder, _)| ObjectPath::from(folder));
        let mut lines: Vec<Listed> = self
            .inner
            .list(folder.as_ref())
            .map_ok(|meta| Listed {
                name: meta.location.to_string(),
                stat: Stat {
                    len: meta.size,
                    modified: Timestamp(meta.last_modified.timestamp_micros()),
                },
            })
            .try_collect()
            .await
            .map_err(|error| self.translate("list", prefix, &error))?;
        lines.retain(|line| line.name.starts_with(prefix));
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(lines)
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let file = self.file("delete", name)?;
        self.blocking("delete", name, move || match fs::remove_file(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }

    fn url(&self) -> String {
        self.url.clone()
    }
}
