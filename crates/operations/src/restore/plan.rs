//! What a restore will do, worked out before anything is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Branch, ByteLen, ErrorKind, LineageId, Position, Timestamp, show_duration};
use borealis_pg_server::recovery::{HostFacts, compare};
use borealis_repository::Lineage;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::Manifest;
use borealis_repository::plan::{
    LineageState, PlanError, RestorePlan, Target, plan_restore, resolve,
};
use serde::Serialize;

use super::delta::Estimate;
use super::lookup::{LogLookup, log_format};
use super::replayed::{Replayed, replayed};
use crate::base_backup::facts::ServerState;
use crate::error::{Error, Result};
use crate::protect::control::{Request, ask};
use crate::protect::process_of;
use crate::site::Site;

/// Rates that the expected time is computed with: files written, log replayed. Rough on purpose; a
/// drill measures.
const FILE_BYTES_PER_SECOND: u64 = 150 << 20;
const REPLAY_BYTES_PER_SECOND: u64 = 50 << 20;

/// The plan, as `--dry-run` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The cluster.
    pub cluster: String,
    /// Its lineage.
    pub lineage: LineageId,
    /// What was asked for.
    pub target: String,
    /// How that was resolved.
    pub resolved: String,
    /// The moment that it stands for, where it is known.
    pub time: Option<Timestamp>,
    /// The branch.
    pub branch: Branch,
    /// Start of the last record that is replayed: the recovery target.
    pub last_record_start: Position,
    /// Its end: where the log is cut. Exactly the transactions that end at or before it are restored.
    pub position: Position,
    /// Where the base backup begins.
    pub base_backup_start: Position,
    /// Where it ends.
    pub base_backup_end: Position,
    /// When it ended.
    pub base_backup_ended_at: Timestamp,
    /// Bytes of files to write.
    pub file_bytes: u64,
    /// Bytes to fetch from the repository, at most.
    pub fetch_bytes: u64,
    /// Bytes of log to replay.
    pub log_bytes: u64,
    /// How long it may take.
    pub expected_seconds: u64,
    /// The server's version.
    pub server_version: String,
    /// Where it goes.
    pub target_dir: PathBuf,
    /// What a delta will do there, by names and sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Estimate>,
    /// What a person should know before.
    pub notices: Vec<String>,
}

impl PlanReport {
    /// The plan for people.
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            format!("restore of cluster {} to {}", self.cluster, self.target),
            format!("  resolved      {}", self.resolved),
            format!(
                "  position      behind the record {} to {} on timeline {}{}",
                self.last_record_start,
                self.position,
                self.branch,
                self.time
                    .map_or_else(String::new, |time| format!(", {time}"))
            ),
            format!(
                "  base backup   {} to {}, ended {}",
                self.base_backup_start, self.base_backup_end, self.base_backup_ended_at
            ),
            format!(
                "  files         {}, at most {} to fetch",
                ByteLen(self.file_bytes),
                ByteLen(self.fetch_bytes)
            ),
            format!("  log           {} to replay", ByteLen(self.log_bytes)),
            format!(
                "  expected      about {} (at {} of files and {} of log a second)",
                show_duration(Duration::from_secs(self.expected_seconds)),
                ByteLen(FILE_BYTES_PER_SECOND),
                ByteLen(REPLAY_BYTES_PER_SECOND)
            ),
            format!("  server        {}", self.server_version),
            format!("  directory     {}", self.target_dir.display()),
        ];
        lines.extend(self.delta.map(|delta| format!("  delta         {delta}")));
        lines.extend(
            self.notices
                .iter()
                .map(|notice| format!("  note          {notice}")),
        );
        lines.join("\n")
    }
}

/// A plan with everything that carrying it out needs.
pub struct Prepared {
    /// What people see of it.
    pub report: PlanReport,
    pub(super) plan: RestorePlan,
    pub(super) lineage: Lineage,
    pub(super) state: LineageState,
    pub(super) manifest: Arc<Manifest>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) server: ServerState,
    pub(super) replayed: Replayed,
    pub(super) key_file: Option<PathBuf>,
}

impl Prepared {
    /// The role that `initdb` made.
    pub fn superuser(&self) -> &str {
        &self.server.superuser
    }

    /// The ledger entry of the base backup.
    pub fn base_backup(&self) -> u64 {
        self.plan.base_backup.entry
    }

    /// Where the log that is replayed begins.
    pub fn log_from(&self) -> Position {
        let first = self.plan.log.first();
        first.map_or(self.plan.base_backup.start, |log| log.from)
    }

    /// The original directories of the tablespaces in the base backup.
    pub fn tablespaces(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let links = self.manifest.files().links.iter();
        links.map(|link| PathBuf::from(&link.target))
    }

    /// Where the log makes the server create tablespaces, which nobody can change.
    pub fn created_tablespaces(&self) -> impl Iterator<Item = &Path> {
        self.replayed.tablespaces.iter().map(|made| &*made.path)
    }

    /// The major version under which the restored directory runs.
    pub fn server_major(&self) -> u32 {
        self.server.major()
    }
}

/// Works out how to restore the newest lineage of the cluster named, or of the only one, to `target`.
pub async fn prepare(
    site: &Site,
    cluster: Option<&str>,
    target: &Target,
    target_dir: PathBuf,
) -> Result<Prepared> {
    prepare_lineage(site, cluster, None, target, target_dir).await
}

/// Works out how to restore the cluster named, or the only one, to `target`, in the lineage whose identifier
/// begins with `lineage`.
pub async fn prepare_lineage(
    site: &Site,
    cluster: Option<&str>,
    lineage: Option<&str>,
    target: &Target,
    target_dir: PathBuf,
) -> Result<Prepared> {
    let cluster = site.cluster(cluster).await?;
    let lineage = site.lineage_named(&cluster, lineage).await?;
    if matches!(target, Target::Time(_) | Target::Latest) {
        settle_present(&lineage).await?;
    }
    let state = lineage.load_state().await?;
    let fetcher = Arc::new(Fetcher::of(&lineage));
    let server = newest_server(&fetcher, &state, &cluster.name).await?;
    let format = log_format(&server).ok_or_else(|| {
        Error::refused(
            format!(
                "the log of PostgreSQL {} can't be read",
                server.version_text
            ),
            "Use a newer version of Borealis.",
        )
    })?;
    let lookup = LogLookup::new(&lineage, &state, format);
    let resolved = resolve(&state, target, &lookup).await.map_err(told)?;
    let plan = plan_restore(&state, &resolved).ok_or_else(|| {
        Error::new(
            ErrorKind::Bug,
            format!("{target} was resolved and can't be restored"),
        )
    })?;
    let manifest = Arc::new(Manifest::load(&fetcher, &plan.base_backup.manifest).await?);
    let server = ServerState::decode(&manifest.name(), &manifest.info().engine)?;
    let replayed = replayed(&lineage, &plan).await?;
    let file_bytes = file_bytes(&manifest);
    let mut notices: Vec<String> = resolved.notices.iter().map(ToString::to_string).collect();
    notices.extend(host_notices(&server)?);
    notices.extend(damage_notice(&server));
    notices.extend(tablespace_notices(&replayed));
    let report = PlanReport {
        cluster: cluster.name,
        lineage: lineage.id(),
        target: target.to_string(),
        resolved: resolved.how,
        time: resolved.time,
        branch: plan.branch,
        last_record_start: plan.stop.start,
        position: plan.stop.end,
        base_backup_start: plan.base_backup.start,
        base_backup_end: plan.base_backup.end,
        base_backup_ended_at: plan.base_backup.ended_at,
        file_bytes,
        fetch_bytes: manifest.stored_bytes() + plan.stored_log_bytes,
        log_bytes: plan.log_bytes,
        expected_seconds: file_bytes / FILE_BYTES_PER_SECOND
            + plan.log_bytes / REPLAY_BYTES_PER_SECOND
            + 1,
        server_version: server.version_text.clone(),
        target_dir,
        delta: None,
        notices,
    };
    Ok(Prepared {
        report,
        plan,
        lineage,
        state,
        manifest,
        fetcher,
        server,
        replayed,
        key_file: site.key.key_file().map(Path::to_owned),
    })
}

/// A running `protect` on this machine stores the present moment when it is asked to; without one, the
/// repository tells what it holds.
pub(crate) async fn settle_present(lineage: &Lineage) -> Result<()> {
    let Some(present) = lineage.reader().await?.presence().await? else {
        return Ok(());
    };
    let holder = &present.holder;
    if present.closed || holder.control.is_empty() || process_of(holder).is_alive() != Some(true) {
        return Ok(());
    }
    ask(std::path::Path::new(&holder.control), Request::Settle).await?;
    Ok(())
}

async fn newest_server(
    fetcher: &Fetcher,
    state: &LineageState,
    cluster: &str,
) -> Result<ServerState> {
    let newest = state.base_backups.last().ok_or_else(|| {
        Error::refused(
            format!("cluster {cluster} has no base backup yet"),
            "Let borealis protect complete its first base backup.",
        )
    })?;
    let manifest = Manifest::load(fetcher, &newest.manifest).await?;
    ServerState::decode(&manifest.name(), &manifest.info().engine)
}

fn told(error: PlanError) -> Error {
    match error {
        PlanError::Repository(error) => error.into(),
        other => Error::Told {
            kind: other.kind(),
            message: other.to_string(),
            hint: other.hint(),
        },
    }
}

fn host_notices(server: &ServerState) -> Result<Vec<String>> {
    let mut notices = Vec::new();
    for warning in compare(&server.host, &HostFacts::of_this_machine(), &server.catalog) {
        if warning.fatal {
            return Err(Error::refused(
                warning.text,
                "Restore on a machine of the same architecture.",
            ));
        }
        notices.push(warning.text);
        let statements = warning.reindex.into_iter();
        notices.extend(statements.map(|(database, sql)| format!("in database {database}: {sql}")));
    }
    Ok(notices)
}

fn file_bytes(manifest: &Manifest) -> u64 {
    let files = manifest.files();
    let pages = files.page_files.values();
    pages
        .map(|file| u64::from(file.length) * u64::from(file.page_size))
        .chain(files.blobs.iter().map(|blob| blob.len))
        .sum()
}

fn tablespace_notices(replayed: &Replayed) -> impl Iterator<Item = String> {
    replayed.tablespaces.iter().map(|made| {
        format!(
            "the log creates a tablespace in {} (at {}); the server makes it there while it replays",
            made.path.display(),
            made.at
        )
    })
}

fn damage_notice(server: &ServerState) -> Option<String> {
    let first = server.damaged.first()?;
    Some(format!(
        "{} pages were damaged on the source already, the first in {} block {}",
        server.damaged.len(),
        first.path,
        first.block
    ))
}
