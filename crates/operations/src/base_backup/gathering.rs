//! What is collected while a base backup is taken, and stored from time to time, so that an attempt that
//! is killed has not worked for nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use borealis_base::{Timestamp, Unit};
use borealis_pg_format::index::RULE_SET;
use borealis_pg_server::backup::{BackupSession, BackupStart};
use borealis_pg_server::data_dir::{DataDir, Listing};
use borealis_repository::ledger::PartialBaseBackup;
use borealis_repository::pages::manifest::{
    BaseBackupInfo, Directory, Link, Manifest, ManifestBuilder, PageFile,
};
use borealis_repository::pages::pack::PackWriter;
use bytes::Bytes;
use futures::StreamExt;

use super::blobs::BlobStorer;
use super::facts::{DamagedPage, PageFacts};
use super::parent::Parent;
use super::plan::{ForkPlan, Plan};
use super::read::{PagePlace, interrupted, ranges, read_frames};
use super::take::{Job, refuse_lost};
use crate::error::Result;

/// What has been read so far is stored again at the earliest when this many times the size of its last
/// manifest has been written: with very many files the tables of a manifest are no trifle.
const WRITTEN_PER_MANIFEST: u64 = 16;

/// What tells one attempt from another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    /// Where it began.
    pub(super) start: BackupStart,
    /// When it began.
    pub(super) started_at: Timestamp,
}

/// The base backup that is being taken.
pub(super) struct Gathering<'a> {
    job: &'a Job<'a>,
    attempt: Attempt,
    facts: PageFacts,
    builder: ManifestBuilder,
    packs: PackWriter,
    blobs: BlobStorer,
    /// Bytes stored for it by attempts before, and manifests of this one.
    other_bytes: u64,
    /// Bytes of packs that were written when it was last stored, and its manifest then.
    kept: (u64, u64),
}

impl<'a> Gathering<'a> {
    /// Nothing yet, but for what `parent` gives, `lost_blobs` of it excepted. `facts` without damage.
    pub(super) fn new(
        job: &'a Job<'a>,
        attempt: Attempt,
        facts: PageFacts,
        parent: Option<&Parent>,
        lost_blobs: &BTreeSet<String>,
    ) -> Self {
        let builder = parent.map_or_else(ManifestBuilder::first, Parent::builder);
        let packs = PackWriter::new(job.target.clone(), builder.pack_numbers());
        Self {
            job,
            attempt,
            facts,
            builder,
            packs,
            blobs: BlobStorer::new(parent.map(|parent| &parent.files().blobs[..]), lost_blobs),
            other_bytes: parent.map_or(0, Parent::stored_bytes),
            kept: (0, 0),
        }
    }

    /// Reads what is planned, and stores it each time that enough has been written.
    pub(super) async fn add_pages(
        &mut self,
        session: &BackupSession,
        place: &PagePlace,
        plan: &Plan,
    ) -> Result<()> {
        let mut forks: Vec<(u32, ForkPlan)> = Vec::with_capacity(plan.forks.len());
        for fork in &plan.forks {
            let number = self.builder.file_number(&fork.path);
            self.builder.add_page_file(PageFile {
                number,
                name: fork.path.clone(),
                page_size: place.sizes.page_bytes,
                length: fork.pages,
                mode: fork.mode,
            });
            // Until it is read, the page is missing: what the parent has of it is too old.
            self.builder.forget(number, ranges(fork.read.iter()));
            if let Some(limit) = fork.limit {
                self.builder.limit(number, limit);
            }
            forks.push((number, fork.clone()));
        }
        let job = self.job;
        job.progress
            .phase("pages", Unit::Bytes, Some(plan.page_bytes));
        let mut frames = read_frames(place, &forks);
        while let Some(done) = frames.next().await {
            if job.cancel.is_cancelled() {
                return Err(interrupted());
            }
            refuse_lost(session)?;
            let done = done?;
            self.builder.place(self.packs.push_pages(done.pages).await?);
            self.facts.damaged.extend(done.damaged);
            job.progress
                .advance(done.count * u64::from(place.sizes.page_bytes));
            let (written, manifest) = self.kept;
            let enough = job.partial_every.max(manifest * WRITTEN_PER_MANIFEST);
            if self.packs.written_bytes() - written >= enough {
                self.keep().await?;
            }
        }
        Ok(())
    }

    /// Stores what there is so far, for the next attempt if this one comes to nothing.
    pub(super) async fn keep(&mut self) -> Result<()> {
        let job = self.job;
        self.builder.add_packs(self.packs.flush().await?);
        let Attempt { start, started_at } = self.attempt;
        let info = BaseBackupInfo {
            branch: start.branch,
            start: start.position,
            end: start.position,
            started_at,
            ended_at: job.clock.now(),
            rule_set: RULE_SET,
            engine: self.facts.encode()?,
        };
        let partial = self
            .builder
            .store_partial(job.target, job.fetcher, info)
            .await?;
        let manifest = partial.object();
        self.other_bytes += manifest.len;
        self.kept = (self.packs.written_bytes(), manifest.len);
        job.partials
            .enter(PartialBaseBackup {
                manifest,
                branch: start.branch,
                start: start.position,
                started_at,
                new_bytes: self.other_bytes + self.packs.written_bytes(),
                stored_pages: partial.stored_pages(),
                missing_pages: partial.missing_pages(),
                rule_set: RULE_SET,
            })
            .await?;
        tracing::debug!(pages = partial.stored_pages(), "stored so far");
        Ok(())
    }

    /// Stores the files that are not made of pages.
    pub(super) async fn add_files(&mut self, dir: &Arc<dyn DataDir>, plan: &Plan) -> Result<()> {
        let job = self.job;
        let total = plan.blobs.iter().map(|blob| blob.bytes).sum();
        job.progress.phase("files", Unit::Bytes, Some(total));
        self.blobs
            .add_files(dir, &plan.blobs, &mut self.packs, job.progress, job.cancel)
            .await
    }

    /// Stores a file whose content is at hand.
    pub(super) async fn add_blob(&mut self, name: &str, content: Bytes) -> Result<()> {
        self.blobs.add(name, 0o600, content, &mut self.packs).await
    }

    /// Pages that the source itself could not read.
    pub(super) fn damaged(&self) -> &[DamagedPage] {
        &self.facts.damaged
    }

    /// Stores the manifest; returns it and the bytes stored for this base backup.
    pub(super) async fn store(
        mut self,
        listing: &Listing,
        info: BaseBackupInfo,
    ) -> Result<(Manifest, u64)> {
        self.builder
            .add_blobs(self.blobs.finish(&mut self.packs).await?);
        for directory in &listing.directories {
            self.builder.add_directory(Directory {
                name: directory.path.clone(),
                mode: directory.mode,
            });
        }
        for link in &listing.tablespaces {
            self.builder.add_link(Link {
                name: format!("pg_tblspc/{}", link.oid),
                target: link.target.to_string_lossy().into_owned(),
            });
        }
        self.builder.add_packs(self.packs.flush().await?);
        let packed = self.packs.written_bytes();
        let manifest = self
            .builder
            .store(self.job.target, self.job.fetcher, info)
            .await?;
        let new_bytes = self.other_bytes + packed + manifest.object().len;
        Ok((manifest, new_bytes))
    }
}
