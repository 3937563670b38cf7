//! Takes one base backup: start → what changed since the last one's start → read → pack → stop →
//! log durable past the stop → manifest. The caller enters it into the ledger.
//!
//! Killed at any instant it leaves packs that nothing names. Nothing is written on the server, which
//! gives the backup up by itself when the session ends.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{Clock, ErrorKind, Position, Progress, Timestamp, Unit};
use borealis_pg_format::Version;
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_format::index::{ChangeMap, RULE_SET};
use borealis_pg_server::backup::{BackupSession, BackupStart};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::config_files::{LocalFiles, gather};
use borealis_pg_server::data_dir::{Listing, walk};
use borealis_pg_server::source::ServerFacts;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{
    BaseBackupInfo, Directory, Link, Manifest, ManifestBuilder, PageFile,
};
use borealis_repository::pages::pack::{PackTarget, PackWriter};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::blobs::BlobStorer;
use super::facts::{DamagedPage, ServerState};
use super::plan::{Before, ForkPlan, Listed, Plan, Sizes, plan};
use super::read::{PagePlace, PagesRead, read_pages};
use super::witness;
use crate::error::{Error, FileContext, Result};
use crate::restore::recovery_file::RECOVERY_FILE;
use crate::restore::start::LOG_FILE;

/// Attempts at a control file whose checksum fails because the server is writing it.
const CONTROL_FILE_READS_MAX: u32 = 20;
/// The pause between them.
const CONTROL_FILE_PAUSE: Duration = Duration::from_millis(50);

/// What a base backup needs of the log that is captured beside it.
#[async_trait]
pub trait CapturedLog: Send + Sync {
    /// Waits until the log before `position` is durable in the repository, and indexed.
    async fn durable_past(&self, position: Position) -> Result<()>;

    /// The changes of all log that overlaps `[from, to)`; `None` where a part of it is not stored.
    async fn changes(&self, start: BackupStart, from: Position) -> Result<Option<ChangeMap>>;

    /// Where the stored log that reaches `position` without a break begins.
    async fn begins_at(&self, start: BackupStart) -> Result<Option<Position>>;
}

/// One base backup to be taken.
pub struct Job<'a> {
    /// The server.
    pub info: &'a ConnInfo,
    /// Its data directory.
    pub data_dir: &'a Path,
    /// The cluster that it must be.
    pub system_id: u64,
    /// The base backup before, if there is one.
    pub parent: Option<Arc<Manifest>>,
    /// Whether the checkpoint at the start is made at once.
    pub fast: bool,
    /// Where packs and manifest go.
    pub target: &'a PackTarget,
    /// Reads what the parent shares.
    pub fetcher: &'a Fetcher,
    /// The log.
    pub log: &'a dyn CapturedLog,
    /// The clock.
    pub clock: &'a dyn Clock,
    /// Shows progress.
    pub progress: &'a dyn Progress,
    /// Stops it.
    pub cancel: &'a CancellationToken,
}

/// A base backup whose manifest is stored.
#[derive(Debug)]
pub struct Taken {
    /// Its manifest.
    pub manifest: Manifest,
    /// Bytes that it added.
    pub new_bytes: u64,
    /// Pages that were read, and pages there are.
    pub pages_read: u64,
    /// Whether it shares the pages of the one before.
    pub incremental: bool,
    /// Pages that were damaged on the source.
    pub damaged: Vec<DamagedPage>,
    /// Forks that were read whole because a sample showed a change that the log did not.
    pub suspect: Vec<String>,
}

/// Takes it.
pub async fn take(job: &Job<'_>) -> Result<Taken> {
    let started_at = job.clock.now();
    let session = BackupSession::start(
        job.info,
        "borealis base backup",
        job.fast,
        job.progress,
        job.cancel.cancelled(),
    )
    .await?;
    let start = session.started();
    let taken = take_between(job, session, start, started_at).await;
    if matches!(&taken, Err(error) if error.kind() != ErrorKind::Interrupted) {
        tracing::warn!(start = %start.position, "base backup given up");
    }
    taken
}

async fn take_between(
    job: &Job<'_>,
    session: BackupSession,
    start: BackupStart,
    started_at: Timestamp,
) -> Result<Taken> {
    job.log.durable_past(start.position).await?;
    check_log_begins_before(job, start).await?;
    let facts = ServerFacts::read(session.link()).await?;
    let control = read_control_file(job.data_dir).await?.1;
    check_identity(job, &facts, &control)?;
    let (listing, mut listed) = list(job.data_dir, control.version).await?;
    listed.retain(|file| !is_left_out(&file.path, facts.settings.get("log_directory")));
    let (parent, changes) = inherit(job, start, &control).await?;
    let sizes = Sizes {
        page_bytes: control.page_size,
        segment_pages: control.relation_segment_pages,
    };
    let before = parent.as_deref().map(lengths_before).unwrap_or_default();
    let mut plan = plan(
        &listed,
        sizes,
        changes.as_ref().map(|changes| (&before, changes)),
    );
    let place = PagePlace {
        data_dir: job.data_dir.to_owned(),
        tablespace_directory: control.version.tablespace_directory(),
        sizes,
        checksums: control.data_checksum_version != 0,
        start: start.position,
    };
    let suspect = match &parent {
        Some(parent) => {
            witness::widen_suspects(&place, parent.info().start, &mut plan, &*job.target.entropy)?
        }
        None => Vec::new(),
    };
    let mut gathering = Gathering::new(job, parent.clone());
    let read = gathering.add_pages(job, &place, &plan).await?;
    gathering.add_files(job, &plan).await?;
    let (control_bytes, _) = read_control_file(job.data_dir).await?;
    gathering
        .add_blob("global/pg_control", control_bytes.into())
        .await?;
    let catalog =
        borealis_pg_server::catalog::read(session.link(), &facts.databases, &facts.settings)
            .await?;
    // BOOTSTRAP_SUPERUSERID in pg_authid.h.
    let superuser = session
        .link()
        .value("SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10")
        .await?;
    if session.is_lost() {
        return Err(Error::new(
            ErrorKind::Unreachable,
            "the session of the base backup was lost; what was read since can't be used",
        ));
    }
    let stop = session.stop().await?;
    gathering
        .add_blob("backup_label", stop.label.into())
        .await?;
    if !stop.tablespace_map.is_empty() {
        gathering
            .add_blob("tablespace_map", stop.tablespace_map.into())
            .await?;
    }
    job.progress.phase("waiting for log", Unit::Items, None);
    job.log.durable_past(stop.position).await?;
    let config = gather(
        job.data_dir,
        [0, 1, 2].map(|file| facts.config_files.get(file).and_then(Option::as_deref)),
        &LocalFiles,
    )?;
    let mut state = ServerState::new(
        &facts,
        &control,
        catalog,
        config,
        superuser,
        (job.data_dir.to_owned(), listing.mode),
    );
    state.damaged.clone_from(&read.damaged);
    let info = BaseBackupInfo {
        branch: start.branch,
        start: start.position,
        end: stop.position,
        started_at,
        ended_at: job.clock.now(),
        rule_set: RULE_SET,
        engine: state.encode()?,
    };
    let (manifest, new_bytes) = gathering.store(job, &listing, info).await?;
    Ok(Taken {
        manifest,
        new_bytes,
        pages_read: plan.forks.iter().map(|fork| fork.read.len()).sum(),
        incremental: parent.is_some(),
        damaged: read.damaged,
        suspect,
    })
}

/// What is collected while a base backup is taken.
struct Gathering {
    builder: ManifestBuilder,
    packs: PackWriter,
    blobs: BlobStorer,
}

impl Gathering {
    fn new(job: &Job<'_>, parent: Option<Arc<Manifest>>) -> Self {
        let blobs = BlobStorer::new(parent.as_deref());
        let builder = parent.map_or_else(ManifestBuilder::first, ManifestBuilder::next);
        let packs = PackWriter::new(job.target.clone(), builder.pack_numbers());
        Self {
            builder,
            packs,
            blobs,
        }
    }

    async fn add_pages(
        &mut self,
        job: &Job<'_>,
        place: &PagePlace,
        plan: &Plan,
    ) -> Result<PagesRead> {
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
            if let Some(limit) = fork.limit {
                self.builder.limit(number, limit);
            }
            forks.push((number, fork.clone()));
        }
        job.progress
            .phase("pages", Unit::Bytes, Some(plan.page_bytes));
        let mut read = read_pages(place, &forks, &mut self.packs, job.progress, job.cancel).await?;
        self.builder.place(std::mem::take(&mut read.runs));
        Ok(read)
    }

    async fn add_files(&mut self, job: &Job<'_>, plan: &Plan) -> Result<()> {
        let total = plan.blobs.iter().map(|blob| blob.bytes).sum();
        job.progress.phase("files", Unit::Bytes, Some(total));
        self.blobs
            .add_files(
                job.data_dir,
                &plan.blobs,
                &mut self.packs,
                job.progress,
                job.cancel,
            )
            .await
    }

    async fn add_blob(&mut self, name: &str, content: Bytes) -> Result<()> {
        self.blobs.add(name, 0o600, content, &mut self.packs).await
    }

    async fn store(
        mut self,
        job: &Job<'_>,
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
        let packs = self.packs.finish().await?;
        let packed: u64 = packs.iter().map(|pack| pack.object().len).sum();
        self.builder.add_packs(packs);
        let manifest = self.builder.store(job.target, job.fetcher, info).await?;
        let new_bytes = packed + manifest.object().len;
        Ok((manifest, new_bytes))
    }
}

/// Fact 8: a base backup whose log begins after its start could never be restored.
async fn check_log_begins_before(job: &Job<'_>, start: BackupStart) -> Result<()> {
    match job.log.begins_at(start).await? {
        Some(begin) if begin <= start.position => Ok(()),
        found => Err(Error::new(
            ErrorKind::Bug,
            format!(
                "the stored log begins at {}, after the base backup's start at {}",
                found.map_or_else(|| "no position".to_owned(), |at| at.to_string()),
                start.position
            ),
        )),
    }
}

fn check_identity(job: &Job<'_>, facts: &ServerFacts, control: &ControlFile) -> Result<()> {
    if facts.system_id == job.system_id && control.system_identifier == job.system_id {
        return Ok(());
    }
    Err(Error::refused(
        format!(
            "{} belongs to cluster {}, the server at the source is {}, and {} is protected",
            job.data_dir.display(),
            control.system_identifier,
            facts.system_id,
            job.system_id
        ),
        "Name the data directory of this server with --data-dir.",
    ))
}

/// The parent and what changed since its start, where both can be relied on; else nothing, and the
/// base backup reads everything.
async fn inherit(
    job: &Job<'_>,
    start: BackupStart,
    control: &ControlFile,
) -> Result<(Option<Arc<Manifest>>, Option<ChangeMap>)> {
    let Some(parent) = job.parent.clone() else {
        return Ok((None, None));
    };
    let info = parent.info();
    let server = ServerState::decode(&parent.name(), &info.engine)?;
    if info.branch != start.branch
        || info.rule_set != RULE_SET
        || info.start > start.position
        || !same_layout(&server, control)
    {
        return Ok((None, None));
    }
    match job.log.changes(start, parent.info().start).await? {
        Some(changes) => Ok((Some(parent), Some(changes))),
        None => Ok((None, None)),
    }
}

/// Whether pages of then are pages of now. `pg_checksums` writes into every page of a stopped server,
/// without log: an inherited page would fail its checksum on a restored one.
fn same_layout(then: &ServerState, now: &ControlFile) -> bool {
    then.data_checksums == (now.data_checksum_version != 0)
        && then.page_bytes == now.page_size
        && then.relation_segment_pages == now.relation_segment_pages
}

fn lengths_before(parent: &Manifest) -> Before {
    let files = parent.files().page_files.values();
    Before {
        lengths: files.map(|file| (file.name.clone(), file.length)).collect(),
    }
}

async fn list(data_dir: &Path, version: Version) -> Result<(Listing, Vec<Listed>)> {
    let data_dir = data_dir.to_owned();
    let listing =
        tokio::task::spawn_blocking(move || walk(&data_dir, &version.tablespace_directory()))
            .await
            .map_err(|error| Error::new(ErrorKind::Bug, format!("the listing ended: {error}")))??;
    for (path, reason) in &listing.skipped {
        tracing::warn!(path, reason, "not part of the base backup");
    }
    let listed = listing
        .files
        .iter()
        .map(|file| Listed {
            path: file.path.clone(),
            kind: file.kind,
            bytes: file.bytes,
            mode: file.mode,
        })
        .collect();
    Ok((listing, listed))
}

/// Files that belong to the place and not to the cluster: what a restore by Borealis left, and the
/// server's own log, which grows for ever and is no part of the database.
fn is_left_out(path: &str, log_directory: Option<&str>) -> bool {
    if [RECOVERY_FILE, LOG_FILE].contains(&path) {
        return true;
    }
    let inside = log_directory.filter(|directory| {
        !directory.is_empty() && !directory.starts_with('/') && !directory.contains("..")
    });
    inside.is_some_and(|directory| {
        path.strip_prefix(directory.trim_end_matches('/'))
            .is_some_and(|rest| rest.starts_with('/'))
    })
}

/// Reads the control file until its checksum is right: the server may be writing it.
pub(crate) async fn read_control_file(data_dir: &Path) -> Result<(Vec<u8>, ControlFile)> {
    let path = data_dir.join("global/pg_control");
    let mut attempt = 1;
    loop {
        let bytes = std::fs::read(&path).at("read", &path)?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(error) if attempt == CONTROL_FILE_READS_MAX => return Err(error.into()),
            Err(_) => {
                attempt += 1;
                tokio::time::sleep(CONTROL_FILE_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_of_an_earlier_restore_is_not_restored_again() {
        assert!(is_left_out(RECOVERY_FILE, None));
        assert!(is_left_out(LOG_FILE, Some("log")));
        assert!(!is_left_out("base/5/borealis_restore.json", None));
    }

    #[test]
    fn the_servers_own_log_is_left_out_and_nothing_else() {
        assert!(is_left_out("log/postgresql.log", Some("log")));
        assert!(is_left_out("log/postgresql.log", Some("log/")));
        assert!(!is_left_out("logical/x", Some("log")));
        assert!(!is_left_out("base/5/1", Some("/var/log")));
        assert!(!is_left_out("base/5/1", Some("")));
        assert!(!is_left_out("base/5/1", None));
    }
}
