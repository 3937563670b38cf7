//! What an attempt at a base backup has stored so far.
//!
//! A partial manifest is built and stored like any other, but its page map may have holes: pages that
//! the attempt has not read yet and that could not be taken over either. All pages that it does name are
//! as of the attempt's start, so that a later attempt takes them over by the rule for every other base
//! backup. It is a type of its own, which nothing that restores accepts.

use std::ops::Range;

use super::fetch::Fetcher;
use super::manifest::{BaseBackupInfo, FileTable, Manifest};
use super::map::Holes;
use crate::plan::ObjectRef;
use crate::wire::Malformed;
use crate::{Error, Result};

/// A stored partial manifest, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialManifest(Manifest);

impl PartialManifest {
    /// Takes a manifest that is known to be partial.
    pub(super) const fn of(manifest: Manifest) -> Self {
        Self(manifest)
    }

    /// Loads and checks the partial manifest that `object` names.
    ///
    /// # Errors
    /// Damaged where it is the manifest of a whole base backup.
    pub async fn load(fetcher: &Fetcher, object: &ObjectRef) -> Result<Self> {
        let manifest = Manifest::load_any(fetcher, object).await?;
        if manifest.body.missing_pages.is_none() {
            return Err(Error::damaged(
                manifest.name(),
                "it is the manifest of a whole base backup, where a partial one is named",
            ));
        }
        Ok(Self(manifest))
    }

    /// The object that it is stored in.
    pub const fn object(&self) -> ObjectRef {
        self.0.object()
    }

    /// Its name in the store.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// What the attempt was. `end` is its start and `ended_at` when this was stored.
    pub const fn info(&self) -> &BaseBackupInfo {
        self.0.info()
    }

    /// Its page files at the lengths of the attempt, and the blobs of the base backup before it.
    pub const fn files(&self) -> &FileTable {
        self.0.files()
    }

    /// Pages that it has.
    pub fn stored_pages(&self) -> u64 {
        self.0.total_pages()
    }

    /// Pages that it lacks.
    pub fn missing_pages(&self) -> u64 {
        self.0.body.missing_pages.unwrap_or_default()
    }

    /// The tables and the page map.
    pub(crate) const fn manifest(&self) -> &Manifest {
        &self.0
    }

    /// The pages that it lacks, by page file, in order. Memory: 24 bytes for each range, and one map part.
    pub async fn missing(&self, fetcher: &Fetcher) -> Result<Vec<(u32, Range<u32>)>> {
        let lengths = self.files().lengths();
        let mut holes = Holes::new(&lengths);
        let damaged = |error: Malformed| Error::damaged(self.name(), error.to_string());
        for index in 0..self.0.parts().len() {
            for run in self.0.load_part(fetcher, index).await? {
                holes.pass(&run).map_err(damaged)?;
            }
        }
        let missing = holes.finish();
        let pages = |(_, pages): &(u32, Range<u32>)| u64::from(pages.end - pages.start);
        if missing.iter().map(pages).sum::<u64>() != self.missing_pages() {
            return Err(Error::damaged(
                self.name(),
                "its page map lacks other pages than it says",
            ));
        }
        Ok(missing)
    }
}
