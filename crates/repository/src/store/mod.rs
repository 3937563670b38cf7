//! What the repository asks of a store, and the stores there are.
//!
//! The repository needs one thing beyond get and put: *create if absent*, atomic among all writers
//! and durable when it returns. Nothing is ever replaced.

mod counting;
mod error;
mod fault;
mod folder;
mod layer;
mod memory;
pub mod probe;
mod s3;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use borealis_base::{Clock, Entropy, Timestamp};
use bytes::Bytes;

pub use counting::{Counters, CountingStore, Usage};
pub use error::{StoreError, StoreErrorKind};
pub use fault::{FaultStore, Faults};
pub use folder::FolderStore;
pub use layer::StoreLayer;
pub use memory::MemoryStore;
pub use s3::S3Store;

/// The answer to a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object did not exist; now it does, durably.
    New,
    /// An object of that name existed, and is untouched. It may be this caller's own, from a create
    /// whose reply was lost.
    Exists,
}

/// What keeps a writer that has been superseded from publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fencing {
    /// Creates are atomic among all writers, so that the ledger's epochs hold.
    Atomic,
    /// The store ignores create-if-absent. A create looks first and reads back afterwards, which
    /// notices a second writer but cannot stop it: whoever runs the writers must see to it that there
    /// is one. `docs/formats/README.md` says what follows.
    SingleWriter,
}

/// What a store knows about an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Length in bytes.
    pub len: u64,
    /// When it was created, by the store's clock.
    pub modified: Timestamp,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The object's name.
    pub name: String,
    /// What the store knows about it.
    pub stat: Stat,
}

/// Immutable objects by name. Names are segments of `[a-z0-9._-]` separated by `/`.
#[async_trait]
pub trait Store: Send + Sync {
    /// Creates an object if none of that name exists. Durable when it returns.
    ///
    /// # Errors
    /// After any error the object may exist, now or later: the request may still be on its way.
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError>;

    /// All bytes of an object.
    async fn read(&self, name: &str) -> Result<Bytes, StoreError>;

    /// Bytes `range` of an object: fewer where it ends within, none where it ends before.
    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// What is known about an object; `None` where it does not exist.
    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError>;

    /// Every object whose name begins with `prefix`, in the order of names. For restores from a bucket
    /// whose state is lost, and for the sweep; nothing lists in steady state.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError>;

    /// Removes an object. One that does not exist is no error.
    async fn delete(&self, name: &str) -> Result<(), StoreError>;

    /// Whether creates are atomic. May ask the store, once, by creating a small object.
    ///
    /// # Errors
    /// Single-writer where they are not and the repository's URL forbids that.
    async fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(Fencing::Atomic)
    }

    /// Where it is, for messages.
    fn url(&self) -> String;
}

/// What to do where a folder does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// Answer that there is no repository: a mistyped path must not become an empty one.
    Refuse,
    /// Make it.
    Create,
}

/// What a store works with.
#[derive(Clone)]
pub struct Outfit {
    /// What time it is: for credentials that expire.
    pub clock: Arc<dyn Clock>,
    /// Where the jitter of pauses comes from.
    pub entropy: Arc<dyn Entropy>,
    /// Where requests and bytes are counted.
    pub counters: Arc<Counters>,
}

/// The store at `url`: `s3://bucket/prefix`, `file:///path` or a plain path. Its use is counted.
///
/// # Errors
/// Invalid for a URL of another scheme; not found for a folder that is not there. A bucket is not
/// looked for.
pub async fn open(
    url: &str,
    absent: Absent,
    outfit: &Outfit,
) -> Result<Arc<dyn Store>, StoreError> {
    let invalid =
        |what: &str| StoreError::new(StoreErrorKind::Invalid, error::OPEN, url, url, what);
    let path = match url.split_once("://") {
        Some(("s3", _)) => return Ok(Arc::new(S3Store::open(url, outfit).await?)),
        Some(("file", path)) if path.starts_with('/') => path,
        Some(("file", _)) => return Err(invalid("a file URL is written file:///path")),
        Some((scheme, _)) => {
            return Err(invalid(&format!(
                "stores of scheme `{scheme}` are not supported"
            )));
        }
        None if url.is_empty() => return Err(invalid("the repository's URL is empty")),
        None => url,
    };
    let folder = Arc::new(FolderStore::open(&PathBuf::from(path), absent)?);
    Ok(Arc::new(CountingStore::new(
        folder,
        outfit.counters.clone(),
    )))
}

/// Refuses names that could leave the store's folder or clash with its temporary files.
fn check_name(url: &str, operation: &'static str, name: &str) -> Result<(), StoreError> {
    let good = |segment: &str| {
        !segment.is_empty()
            && !segment.starts_with('.')
            && (segment.bytes())
                .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    };
    if name.split('/').all(good) {
        return Ok(());
    }
    Err(StoreError::new(
        StoreErrorKind::Invalid,
        operation,
        name,
        url,
        "not an object name",
    ))
}

#[cfg(test)]
mod tests;
