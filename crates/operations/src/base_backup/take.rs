//! Takes one base backup: start → what changed since the last one's start → read → pack → stop →
//! log durable past the stop → manifest. The caller enters it into the ledger.
//!
//! Each time that enough has been stored, what there is so far is entered as a partial base backup, and
//! the next attempt goes on from it ([`super::parent`]). Killed at any instant, an attempt leaves packs
//! that nothing names besides. Nothing is written on the server, which gives the backup up by itself when
//! the session ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{Branch, Clock, ErrorKind, Position, Progress, Timestamp, Unit};
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_format::index::{ChangeMap, RULE_SET};
use borealis_pg_format::label::BackupLabel;
use borealis_pg_format::{DatabaseFiles, Version};
use borealis_pg_server::backup::{BackupSession, BackupStart};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::config_files::gather;
use borealis_pg_server::data_dir::{Access, DataDir, Listing, PART_BYTES_MAX, read_file};
use borealis_pg_server::recovery::HostFacts;
use borealis_pg_server::source::ServerFacts;
use borealis_repository::ledger::PartialBaseBackup;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{BaseBackupInfo, Manifest};
use borealis_repository::pages::pack::PackTarget;
use borealis_repository::plan::ObjectRef;
use tokio_util::sync::CancellationToken;

use super::facts::{DamagedPage, PageFacts, ServerState};
use super::gathering::{Attempt, Gathering};
use super::parent::{Candidate, DamagedFrames, Parent, inherit};
use super::plan::{Listed, Plan, Sizes, plan};
use super::read::{PagePlace, blocking};
use super::witness;
use crate::error::{Error, Result};
use crate::restore::recovery_file::RECOVERY_FILE;
use crate::restore::start::LOG_FILE;

/// Read last, so that it is never older than what it leads to.
const CONTROL_FILE: &str = "global/pg_control";
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

    /// The directories that the log `[start, to)` copies whole and changes as well; see [`Copies`].
    ///
    /// [`Copies`]: super::copies::Copies
    async fn unsafe_copies(&self, start: BackupStart, to: Position) -> Result<Vec<DatabaseFiles>>;
}

/// Where what an attempt has stored so far is entered.
#[async_trait]
pub trait Partials: Send + Sync {
    /// Enters it: from now on the next attempt goes on from it.
    async fn enter(&self, partial: PartialBaseBackup) -> Result<()>;
}

/// One base backup to be taken.
pub struct Job<'a> {
    /// The server.
    pub info: &'a ConnInfo,
    /// How its files are read.
    pub access: &'a Access,
    /// The cluster that it must be.
    pub system_id: u64,
    /// The branch that it must begin on, whose log is captured.
    pub branch: Branch,
    /// What pages may be taken over from, the best first.
    pub candidates: Vec<Candidate>,
    /// What of them is known to be damaged in the repository, and is read from the server again.
    pub damaged: Vec<DamagedFrames>,
    /// Whether the checkpoint at the start is made at once.
    pub fast: bool,
    /// Where packs and manifest go.
    pub target: &'a PackTarget,
    /// Reads what the parent shares.
    pub fetcher: &'a Fetcher,
    /// Bytes of packs after which what there is so far is stored.
    pub partial_every: u64,
    /// Where that is entered.
    pub partials: &'a dyn Partials,
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
    /// Whether it shares the pages of another one, or of an attempt.
    pub incremental: bool,
    /// The base backup whose pages it shares, if it is a whole one.
    pub shares: Option<ObjectRef>,
    /// Pages that were damaged on the source.
    pub damaged: Vec<DamagedPage>,
    /// Forks that were read whole because a sample showed a change that the log did not.
    pub suspect: Vec<String>,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Attempted {
    /// With a base backup.
    Taken(Box<Taken>),
    /// With pages that nothing may be restored from, because these directories were copied and changed
    /// meanwhile. They are stored, and the next attempt goes on from them.
    Unsafe(Vec<DatabaseFiles>),
}

/// Takes it.
pub async fn take(job: &Job<'_>) -> Result<Attempted> {
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
) -> Result<Attempted> {
    check_branch(job, start.branch)?;
    job.log.durable_past(start.position).await?;
    check_log_begins_before(job, start).await?;
    let facts = ServerFacts::read(session.link()).await?;
    // The host that answered, where the source names several.
    let dir = job.access.open(session.link()).await?;
    let _closing = Closing(dir.clone());
    let control = read_control_file(&dir).await?.1;
    check_identity(job, &facts, &control)?;
    let (listing, mut listed) = list(&dir, control.version).await?;
    listed.retain(|file| !is_left_out(&file.path, facts.settings.get("log_directory")));
    let inherited = inherit(
        &job.candidates,
        &job.damaged,
        job.fetcher,
        job.log,
        start,
        &control,
    )
    .await?;
    let sizes = Sizes {
        page_bytes: control.page_size,
        segment_pages: control.relation_segment_pages,
    };
    let known = inherited.as_ref();
    let mut plan = plan(
        &listed,
        sizes,
        known.map(|inherited| (&inherited.before, &inherited.changes)),
    );
    let place = PagePlace {
        dir: dir.clone(),
        tablespace_directory: control.version.tablespace_directory(),
        sizes,
        digester: job.target.digester(),
        checksums: control.data_checksum_version != 0,
        start: start.position,
    };
    let (parent, lost_blobs) = inherited
        .map(|inherited| (inherited.parent, inherited.lost_blobs))
        .unzip();
    let lost_blobs = lost_blobs.unwrap_or_default();
    let suspect = match &parent {
        Some(parent) => {
            let since = parent.info().start;
            witness::widen_suspects(&place, since, &mut plan, &*job.target.entropy).await?
        }
        None => Vec::new(),
    };
    if let Some(parent) = parent.as_ref().filter(|parent| parent.is_partial()) {
        say_resumed(job, parent.info().started_at, &plan);
    }
    let attempt = Attempt { start, started_at };
    let facts_of_pages = PageFacts::new(&control);
    let mut gathering = Gathering::new(job, attempt, facts_of_pages, parent.as_ref(), &lost_blobs);
    gathering.add_pages(&session, &place, &plan).await?;
    gathering.add_files(&dir, &plan).await?;
    let (control_bytes, _) = read_control_file(&dir).await?;
    gathering
        .add_blob(CONTROL_FILE, control_bytes.into())
        .await?;
    let catalog =
        borealis_pg_server::catalog::read(session.link(), &facts.databases, &facts.settings)
            .await?;
    // BOOTSTRAP_SUPERUSERID in pg_authid.h.
    let superuser = session
        .link()
        .value("SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10")
        .await?;
    let host = match job.access {
        Access::Local(_) => None,
        Access::Agentless { .. } => Some(HostFacts::of_server(session.link()).await?),
    };
    refuse_lost(&session)?;
    let stop = session.stop().await?;
    // Between the start and the question for its timeline a standby may have followed a promotion.
    check_branch(job, BackupLabel::parse(&stop.label)?.timeline)?;
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
    let copied = job.log.unsafe_copies(start, stop.position).await?;
    if !copied.is_empty() {
        gathering.keep().await?;
        return Ok(Attempted::Unsafe(copied));
    }
    let data_directory = data_directory(job.access, &facts);
    let config = {
        let (at, files) = (data_directory.clone(), facts.config_files.clone());
        let named = move || [0, 1, 2].map(|file| files.get(file).and_then(Option::clone));
        blocking(move || {
            let named = named();
            let named = named.each_ref().map(Option::as_deref);
            Ok(gather(&at, named, &*dir)?)
        })
        .await?
    };
    let mut state = ServerState::new(
        &facts,
        &control,
        catalog,
        config,
        superuser,
        (data_directory, listing.mode),
        host,
    );
    state.damaged = gathering.damaged().to_vec();
    let damaged = state.damaged.clone();
    let info = BaseBackupInfo {
        branch: start.branch,
        start: start.position,
        end: stop.position,
        started_at,
        ended_at: job.clock.now(),
        rule_set: RULE_SET,
        engine: state.encode()?,
    };
    let (manifest, new_bytes) = gathering.store(&listing, info).await?;
    Ok(Attempted::Taken(Box::new(Taken {
        manifest,
        new_bytes,
        pages_read: plan.pages_to_read(),
        incremental: parent.is_some(),
        shares: parent
            .as_ref()
            .and_then(Parent::whole)
            .map(Manifest::object),
        damaged,
        suspect,
    })))
}

/// Ends what threads are still reading when the base backup is given up.
struct Closing(Arc<dyn DataDir>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Where the server's data directory is, on its machine.
fn data_directory(access: &Access, facts: &ServerFacts) -> PathBuf {
    let said = || facts.data_directory.clone().unwrap_or_default();
    access.local().map_or_else(said, PathBuf::from)
}

/// What was read after the session was lost is of no use.
pub(super) fn refuse_lost(session: &BackupSession) -> Result<()> {
    if session.is_lost() {
        return Err(Error::new(
            ErrorKind::Unreachable,
            "the session of the base backup was lost; what was read since can't be used",
        ));
    }
    Ok(())
}

fn say_resumed(job: &Job<'_>, begun: Timestamp, plan: &Plan) {
    let pages: u64 = plan.forks.iter().map(|fork| u64::from(fork.pages)).sum();
    let stored = pages - plan.pages_to_read();
    let text = format!(
        "resuming the base backup begun at {begun}: {stored} of {pages} pages already stored"
    );
    tracing::info!("{text}");
    job.progress.note(&text);
}

/// The server may have been promoted while it was not looked at; it is looked for again.
fn check_branch(job: &Job<'_>, branch: Branch) -> Result<()> {
    if branch == job.branch {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unreachable,
        format!(
            "the base backup began on timeline {branch}, and timeline {} is captured",
            job.branch
        ),
    ))
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
            data_directory(job.access, facts).display(),
            control.system_identifier,
            facts.system_id,
            job.system_id
        ),
        "Name the data directory of this server with --data-dir.",
    ))
}

async fn list(dir: &Arc<dyn DataDir>, version: Version) -> Result<(Listing, Vec<Listed>)> {
    let dir = dir.clone();
    let listing = blocking(move || Ok(dir.listing(&version.tablespace_directory())?)).await?;
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
pub(crate) async fn read_control_file(dir: &Arc<dyn DataDir>) -> Result<(Vec<u8>, ControlFile)> {
    let dir = dir.clone();
    blocking(move || {
        let mut attempt = 1;
        loop {
            let Some(bytes) = read_file(&*dir, CONTROL_FILE, PART_BYTES_MAX)? else {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("the data directory has no {CONTROL_FILE}"),
                ));
            };
            match ControlFile::parse(&bytes) {
                Ok(control) => return Ok((bytes, control)),
                Err(error) if attempt == CONTROL_FILE_READS_MAX => return Err(error.into()),
                Err(_) => {
                    attempt += 1;
                    std::thread::sleep(CONTROL_FILE_PAUSE);
                }
            }
        }
    })
    .await
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
