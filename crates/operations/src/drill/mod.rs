//! Drills: a restore into a scratch directory, cut off from the rest of the world, started, checked, measured,
//! recorded and removed.
//!
//! ```text
//! leftovers removed ──▶ point chosen ──▶ plan ──▶ room ──▶ pages ──▶ replay ──▶ it answers   (recovery time)
//!                   ──▶ amcheck, visibility maps, every row ──▶ recorded ──▶ removed
//! ```
//!
//! Nobody reaches the server but through a socket that only its user can open; it archives nothing, has no slots,
//! subscribes to nothing, and loads no library that could do what its configuration was made for.

mod checks;
mod choose;
pub mod scratch;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ByteLen, Clock, ErrorKind, Progress, RecordSpan, Timestamp};
use borealis_repository::Lineage;
use borealis_repository::drills::{Drill, DrillOutcome};
use borealis_repository::plan::Target;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use checks::Checked;
pub use choose::choose;
pub use summary::{DrillSummary, complaints, last_run};

use crate::error::{Error, Result};
use crate::host;
use crate::restore::plan::settle_present;
use crate::restore::{self, Prepared, place, prepare_lineage};
use crate::site::Site;
use crate::status::exact_windows;
use scratch::{Scratch, remove_leftovers};

/// Where drills are run, unless something else is said: large files of a short life (`hier(7)`).
pub const SCRATCH: &str = "/var/tmp";
/// Room that must be left beside the files and the log.
const ROOM_BESIDE: u64 = 256 << 20;
/// Random points that are tried, where the log of some makes the server create a tablespace elsewhere.
const POINTS_MAX: u64 = 8;

/// Which point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// One that is chosen at random, by this seed if one is given.
    Random(Option<u64>),
    /// This one.
    At(Target),
}

/// What a drill is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which point.
    pub point: Point,
    /// The lineage, by the beginning of its identifier; `None` for the newest.
    pub lineage: Option<String>,
    /// Below which directory.
    pub scratch: PathBuf,
    /// Leave the restored directory.
    pub keep: bool,
    /// Load the libraries that the configuration names. The log of some extensions can't be replayed without; but
    /// they do in the drill what they do on the source.
    pub keep_libraries: bool,
    /// The folder of the server's programs; `None` looks in the usual ones.
    pub programs: Option<PathBuf>,
    /// Who runs the server, when run as root.
    pub owner: Option<String>,
    /// How often drills are run, for one that was not asked for by hand.
    pub every: Option<Duration>,
}

/// What a drill came to.
#[derive(Debug, Serialize)]
pub struct DrillReport {
    /// The cluster.
    pub cluster: String,
    /// Whether everything that was looked at is sound.
    pub passed: bool,
    /// What was measured and found.
    #[serde(flatten)]
    pub drill: DrillSummary,
    /// Databases looked at.
    pub databases: u64,
    /// Tables read.
    pub tables: u64,
    /// Indexes compared with their tables.
    pub indexes: u64,
    /// The restored directory, where it was kept.
    pub kept: Option<PathBuf>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Everything that a drill comes to know, for its record.
struct Run<'a> {
    site: &'a Site,
    clock: Arc<dyn Clock>,
    options: &'a Options,
    record: Drill,
    notes: Vec<String>,
    checked: Checked,
}

/// Runs a drill, and records what it came to. When `stop` asks for the end, it is given up and removed.
///
/// # Errors
/// Refused, before anything is written, without room or without programs; interrupted; unreachable where the
/// repository gives no answer. A restore that fails otherwise is a failed drill, and no error.
pub async fn drill(
    site: &Site,
    cluster: Option<&str>,
    options: &Options,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<DrillReport> {
    let clock = site.clock().clone();
    let named = site.cluster(cluster).await?;
    let lineage = site
        .lineage_named(&named, options.lineage.as_deref())
        .await?;
    let mut notes = Vec::new();
    for removed in remove_leftovers(&options.scratch, &*clock).await? {
        notes.push(format!(
            "{} was left by a drill that had been killed, and was removed",
            removed.display()
        ));
    }
    let owner = place::owner(options.owner.as_deref())?;
    let begun_at = clock.now();
    let mut run = Run {
        site,
        clock: clock.clone(),
        options,
        record: begun(begun_at, options),
        notes,
        checked: Checked::default(),
    };
    let began = clock.elapsed();
    let prepared = match run.prepare(&named.name, &lineage).await {
        Ok(prepared) => prepared,
        // Anything else is about the request, or about this machine.
        Err(error) if error.kind() == ErrorKind::Damaged => {
            run.fail(error.to_string());
            return run.end(&named.name, &lineage, None).await;
        }
        Err(error) => return Err(error),
    };
    run.record.times.plan = micros(clock.elapsed().saturating_sub(began));
    borealis_pg_server::instance::Binaries::find(
        prepared.server_major(),
        options.programs.as_deref(),
    )?;
    check_room(&options.scratch, &prepared)?;
    let entropy = site.repository.environment().entropy.clone();
    let scratch = Scratch::make(&options.scratch, &named.name, owner.as_ref(), &*entropy)?;
    let outcome = tokio::select! {
        outcome = run.restore_and_check(&scratch, prepared, progress) => outcome,
        () = stop.cancelled() => Err(Error::new(ErrorKind::Interrupted, "the drill was given up on request")),
    };
    // What failed is what one wants to look at.
    let ended = outcome.as_ref().map_or_else(is_verdict, |()| true);
    let kept = if options.keep && ended {
        Some(scratch.keep(&*clock).await?)
    } else {
        scratch.remove(&*clock).await?;
        None
    };
    match outcome {
        Err(error) if is_verdict(&error) => run.fail(error.to_string()),
        other => other?,
    }
    run.end(&named.name, &lineage, kept).await
}

/// Whether an error says something about the backup, and not about this machine, this moment or this request.
fn is_verdict(error: &Error) -> bool {
    match error {
        // The disk of the drill, not the backup.
        Error::File { .. } => false,
        other => matches!(
            other.kind(),
            ErrorKind::Damaged | ErrorKind::Refused | ErrorKind::Bug
        ),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn micros_of(seconds: f64) -> u64 {
    micros(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}

fn begun(begun_at: Timestamp, options: &Options) -> Drill {
    let target = match &options.point {
        Point::Random(_) => "random".to_owned(),
        Point::At(target) => target.to_string(),
    };
    Drill {
        every_seconds: options.every.map_or(0, |every| every.as_secs()),
        ..Drill::without_plan(begun_at, host::name(), target, DrillOutcome::Passed)
    }
}

/// Refused where the files, the log and what the server writes besides would not fit.
fn check_room(scratch: &Path, prepared: &Prepared) -> Result<()> {
    let existing = scratch.ancestors().find(|path| path.exists());
    let existing = existing.unwrap_or(Path::new("/"));
    let room = rustix::fs::statvfs(existing).map_err(|error| Error::File {
        action: "look at",
        path: existing.to_owned(),
        source: error.into(),
    })?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let files = prepared.report.file_bytes;
    let needed = files + files / 20 + prepared.report.log_bytes + ROOM_BESIDE;
    if free >= needed {
        return Ok(());
    }
    Err(Error::refused(
        format!(
            "{} has {} free, and the drill needs {}",
            existing.display(),
            ByteLen(free),
            ByteLen(needed)
        ),
        "Make room, or name another directory with --scratch.",
    ))
}

impl Run<'_> {
    /// Chooses the point and makes the plan.
    async fn prepare(&mut self, cluster: &str, lineage: &Lineage) -> Result<Prepared> {
        // Asked for only where it is this moment that is restored to; else the repository tells.
        settle_present(lineage).await?;
        let state = lineage.load_state().await?;
        let windows = exact_windows(lineage, &state).await?;
        self.record.latest = windows.iter().filter_map(|window| window.latest.time).max();
        let nothing = || {
            Error::refused(
                format!("nothing of cluster {cluster} can be restored yet"),
                "Wait until borealis protect has taken its first base backup; borealis status shows it.",
            )
        };
        if windows.is_empty() {
            return Err(nothing());
        }
        let (targets, seed) = match &self.options.point {
            Point::At(target) => (vec![target.clone()], None),
            Point::Random(seed) => {
                let seed = seed.unwrap_or_else(|| random_seed(self.site));
                // A seed means one point, however many are tried.
                let points =
                    (0..POINTS_MAX).filter_map(|step| choose(&windows, seed.wrapping_add(step)));
                (points.collect(), Some(seed))
            }
        };
        self.record.seed = seed;
        let (mut last, count) = (None, targets.len());
        for (number, target) in targets.into_iter().enumerate() {
            let at = PathBuf::new();
            let lineage = self.options.lineage.as_deref();
            let prepared = prepare_lineage(self.site, Some(cluster), lineage, &target, at).await?;
            let elsewhere = prepared.created_tablespaces().next().map(Path::to_owned);
            let Some(place) = elsewhere else {
                self.note_plan(&prepared, &target);
                return Ok(prepared);
            };
            last = Some(Error::refused(
                format!(
                    "the log up to {target} makes the server create a tablespace at {}, outside of the drill",
                    place.display()
                ),
                "Name a point behind a later base backup with --to.",
            ));
            tracing::debug!(number, count, %target, "this point can't be drilled");
        }
        Err(last.unwrap_or_else(nothing))
    }

    fn note_plan(&mut self, prepared: &Prepared, target: &Target) {
        let report = &prepared.report;
        let record = &mut self.record;
        if record.seed.is_some() {
            record.target = format!("random: {target}");
        }
        record.branch = report.branch;
        record.last_record = Some(RecordSpan {
            start: report.last_record_start,
            end: report.position,
        });
        record.time = report.time.or(match target {
            Target::Time(time) => Some(*time),
            _ => None,
        });
        record.base_backup = prepared.base_backup();
        record.log_from = prepared.log_from();
        record.file_bytes = report.file_bytes;
        record.log_bytes = report.log_bytes;
    }

    async fn restore_and_check(
        &mut self,
        scratch: &Scratch,
        mut prepared: Prepared,
        progress: &dyn Progress,
    ) -> Result<()> {
        prepared.report.target_dir = scratch.data();
        let sockets = scratch.sockets().display().to_string();
        let superuser = prepared.superuser().to_owned();
        let mapping = (prepared.tablespaces().enumerate())
            .map(|(number, from)| (from, scratch.tablespace(number)))
            .collect();
        let cluster = prepared.report.cluster.clone();
        let options = restore::Options {
            start: true,
            port: Some(PORT),
            owner: self.options.owner.clone(),
            mapping,
            programs: self.options.programs.clone(),
            isolated: Some(isolation(
                &cluster,
                &sockets,
                prepared.server_major(),
                self.options.keep_libraries,
            )),
            ..restore::Options::default()
        };
        let began = self.clock.elapsed();
        let restored = restore::restore(self.site, prepared, &options, progress).await;
        let took = micros(self.clock.elapsed().saturating_sub(began));
        let restored = restored?;
        let times = &mut self.record.times;
        if let Some(server) = &restored.server {
            times.replay = micros_of(server.replay_seconds);
            times.answer = micros_of(server.seconds - server.replay_seconds);
        }
        times.pages = took.saturating_sub(times.replay + times.answer);
        progress.phase("checks", borealis_base::Unit::Items, None);
        let began = self.clock.elapsed();
        let place = checks::Place {
            sockets: &sockets,
            port: PORT,
            superuser: &superuser,
        };
        self.checked = checks::check(&place).await?;
        self.record.times.checks = micros(self.clock.elapsed().saturating_sub(began));
        self.record.rows = self.checked.rows;
        self.record
            .not_checked
            .clone_from(&self.checked.not_checked);
        if let Some(first) = self.checked.findings.first() {
            let count = self.checked.findings.len() as u64 + self.checked.more;
            self.record.outcome = DrillOutcome::Failed {
                reason: match count {
                    1 => first.clone(),
                    count => format!("{count} findings, the first: {first}"),
                },
                findings: self.checked.findings.clone(),
                more: self.checked.more,
            };
        }
        Ok(())
    }

    fn fail(&mut self, reason: String) {
        self.record.outcome = DrillOutcome::Failed {
            reason,
            findings: Vec::new(),
            more: 0,
        };
    }

    async fn end(
        mut self,
        cluster: &str,
        lineage: &Lineage,
        kept: Option<PathBuf>,
    ) -> Result<DrillReport> {
        self.record.ended_at = self.clock.now();
        let recorded = async { lineage.drills().await?.record(&self.record).await };
        match recorded.await {
            Ok(_) => {}
            // With the right to read alone.
            Err(error) if error.kind() == ErrorKind::Refused => {
                self.notes
                    .push(format!("not recorded in the repository: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(DrillReport {
            cluster: cluster.to_owned(),
            passed: self.record.passed(),
            drill: DrillSummary::from(&self.record),
            databases: self.checked.databases,
            tables: self.checked.tables,
            indexes: self.checked.indexes,
            kept,
            notes: self.notes,
        })
    }
}

fn random_seed(site: &Site) -> u64 {
    let mut seed = [0; 8];
    site.repository.environment().entropy.fill(&mut seed);
    // Short enough to be typed.
    u64::from_le_bytes(seed) >> 24
}

/// The socket is in a directory of its own, so that any port will do.
const PORT: u16 = 5432;

/// Settings by which the restored server reaches nobody and nobody reaches it, and by which nothing changes it
/// while it is looked at.
fn isolation(
    cluster: &str,
    sockets: &str,
    major: u32,
    keep_libraries: bool,
) -> Vec<(String, String)> {
    let name = format!("{cluster} drill");
    let mut settings = vec![
        ("listen_addresses", ""),
        ("unix_socket_directories", sockets),
        ("unix_socket_permissions", "0700"),
        ("unix_socket_group", ""),
        ("cluster_name", name.as_str()),
        ("ssl", "off"),
        ("archive_mode", "off"),
        ("synchronous_standby_names", ""),
        ("max_logical_replication_workers", "0"),
        ("autovacuum", "off"),
        // The source's may be most of a machine's memory, and this may be the source's machine.
        ("shared_buffers", "128MB"),
        ("huge_pages", "off"),
        ("maintenance_work_mem", "128MB"),
    ];
    // Login triggers run code of the database (17 and later).
    if major >= 17 {
        settings.push(("event_triggers", "off"));
    }
    if !keep_libraries {
        settings.extend([
            ("shared_preload_libraries", ""),
            ("session_preload_libraries", ""),
            ("local_preload_libraries", ""),
        ]);
    }
    settings
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_reaches_nobody_and_nobody_reaches_it() {
        let of = |major, keep| isolation("main", "/x/s", major, keep);
        let has = |settings: &[(String, String)], name: &str, value: &str| {
            settings.contains(&(name.to_owned(), value.to_owned()))
        };
        let settings = of(15, false);
        for (name, value) in [
            ("listen_addresses", ""),
            ("unix_socket_directories", "/x/s"),
            ("archive_mode", "off"),
            ("max_logical_replication_workers", "0"),
            ("shared_buffers", "128MB"),
            ("shared_preload_libraries", ""),
            ("cluster_name", "main drill"),
        ] {
            assert!(has(&settings, name, value), "{name}");
        }
        assert!(!settings.iter().any(|(name, _)| name == "event_triggers"));
        assert!(has(&of(17, false), "event_triggers", "off"));
        assert!(
            !of(15, true)
                .iter()
                .any(|(name, _)| name == "shared_preload_libraries")
        );
    }

    #[test]
    fn a_full_disk_here_or_no_answer_is_no_verdict_about_the_backup() {
        let full = Error::File {
            action: "write",
            path: "/x".into(),
            source: std::io::Error::from(std::io::ErrorKind::StorageFull),
        };
        assert!(!is_verdict(&full));
        assert!(!is_verdict(&Error::new(
            ErrorKind::Unreachable,
            "no answer"
        )));
        assert!(!is_verdict(&Error::new(ErrorKind::Interrupted, "stopped")));
        assert!(is_verdict(&Error::new(ErrorKind::Damaged, "a pack")));
        assert!(is_verdict(&Error::refused(
            "the restored server ended",
            "Look."
        )));
    }
}
