//! Restore: plan → files → log, cut exactly → configuration → control file last → recovery.
//!
//! Until the control file is in place nobody can start the directory, and a file in it says that it is
//! an unfinished restore of ours, which may be restored into again.

pub mod delta;
pub mod files;
pub mod log;
pub mod lookup;
mod page_files;
pub(crate) mod place;
pub mod plan;
pub mod recovery_file;
mod replay;
mod replayed;
pub mod start;
pub mod tablespaces;
pub mod target_dir;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ErrorKind, Progress};
use borealis_pg_format::segment::SegmentSize;
use borealis_pg_server::instance::{Binaries, SystemUser};
use borealis_pg_server::recovery::RestoredConfig;
use borealis_repository::pages::read::PageReader;
use serde::Serialize;

pub use plan::{PlanReport, Prepared, prepare, prepare_lineage};
pub use start::Answering;

use crate::error::{Error, FileContext, Result};
use crate::site::Site;
use delta::Tally;
use delta::existing::{is_at_home, log_beyond, refuse_containing, refuse_in_use, with_own_places};
use delta::sweep::Contents;
use files::{Mapping, Tree, make_directory, write_file};
use place::{Wanted, configuration, restore_command};
use recovery_file::{RECOVERY_FILE, RecoveryFile, State};
use target_dir::{Found, clear, inspect, inspect_delta, refuse_inside, staged_mark, take_over};

/// What a restore is asked for, besides what the plan holds.
#[derive(Debug, Clone)]
pub struct Options {
    /// Start the server and wait until it answers.
    pub start: bool,
    /// Its port.
    pub port: Option<u16>,
    /// Who gets the files, when run as root.
    pub owner: Option<String>,
    /// Where tablespaces go.
    pub mapping: Mapping,
    /// Prepare a standby that goes on replaying.
    pub standby: bool,
    /// Write over a data directory of the same server that is there already, only what differs.
    pub delta: bool,
    /// The folder of the server's programs; `None` looks in the usual ones.
    pub programs: Option<PathBuf>,
    /// How long a login may fail once the started server says that it is ready.
    pub login_deadline: Duration,
    /// Settings of the started server that go before all others, for this run only, with which it is cut off
    /// from the rest of the world; whoever starts it stays logged in as its superuser. For drills.
    pub isolated: Option<Vec<(String, String)>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            start: false,
            port: None,
            owner: None,
            mapping: Mapping::new(),
            standby: false,
            delta: false,
            programs: None,
            login_deadline: Duration::from_secs(30),
            isolated: None,
        }
    }
}

/// A finished restore.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// What was done.
    pub plan: PlanReport,
    /// The command that starts the server, where it was not started.
    pub start_command: Option<String>,
    /// The server, where it was started.
    pub server: Option<Answering>,
    /// What a person should know.
    pub notices: Vec<String>,
    /// How long it took to put the files in place.
    pub files_seconds: f64,
    /// Bytes received from the repository.
    pub fetched_bytes: u64,
    /// What of them was there already, for a delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<delta::Done>,
}

/// Everything that is refused before a byte is written.
struct Checked {
    owner: Option<SystemUser>,
    binaries: Option<Binaries>,
    command: place::RestoreCommand,
    segment_size: SegmentSize,
    found: Found,
    /// Whether what the directory's links lead to is its own.
    at_home: bool,
    /// Where tablespaces go: where they were asked to, or where this directory has them.
    mapping: Mapping,
}

impl Checked {
    /// What belongs into the directory, where files that are there already are kept.
    fn contents(&self, prepared: &Prepared, options: &Options) -> Option<Contents> {
        let (manifest, server) = (&prepared.manifest, &prepared.server);
        let contents = || Contents::new(manifest, server, &self.mapping, self.at_home);
        options.delta.then(contents)
    }
}

/// Refuses, before anything is written, what could not be carried out; returns the plan with what only the
/// directory tells. `--dry-run`.
pub fn check(prepared: &Prepared, options: &Options) -> Result<PlanReport> {
    let checked = checked(prepared, options)?;
    let mut report = prepared.report.clone();
    if let Some(contents) = checked.contents(prepared, options) {
        report.delta = Some(contents.estimate(&report.target_dir)?);
    }
    report.notices.extend(notices_of(&checked.found, prepared));
    Ok(report)
}

fn notices_of(found: &Found, prepared: &Prepared) -> Option<String> {
    match found {
        Found::Existing(control) => log_beyond(control, &prepared.state),
        Found::Nothing | Found::Unfinished => None,
    }
}

fn checked(prepared: &Prepared, options: &Options) -> Result<Checked> {
    let owner = place::owner(options.owner.as_deref())?;
    let target = &prepared.report.target_dir;
    let (lineage, server) = (prepared.lineage.id(), &prepared.server);
    let found = if options.delta {
        inspect_delta(target, lineage, server)?
    } else {
        inspect(target, lineage)?
    };
    refuse_in_use(target)?;
    let url = prepared.lineage.store().url();
    let repository = url.strip_prefix("file://").map(Path::new);
    refuse_inside(target, repository)?;
    let needed: Vec<&Path> = repository
        .into_iter()
        .chain(prepared.key_file.as_deref())
        .collect();
    if found != Found::Nothing {
        refuse_containing(target, &needed)?;
    }
    let at_home = found == Found::Nothing || is_at_home(target, server);
    let links = &prepared.manifest.files().links;
    let mapping = with_own_places(&options.mapping, links, target, at_home && options.delta);
    tablespaces::check(
        &prepared.manifest,
        &prepared.replayed.tablespaces,
        &tablespaces::Places {
            target,
            asked: &options.mapping,
            mapping: &mapping,
            own_links: at_home,
        },
    )?;
    let binaries = match Binaries::find(prepared.server.major(), options.programs.as_deref()) {
        Ok(binaries) => Some(binaries),
        Err(error) if options.start => return Err(error.into()),
        Err(_) => None,
    };
    let command = restore_command(owner.as_ref(), options.standby)?;
    let segment_size = u32::try_from(prepared.server.wal_segment_bytes)
        .ok()
        .and_then(SegmentSize::new)
        .ok_or_else(|| Error::new(ErrorKind::Damaged, "the log's segment size is impossible"))?;
    Ok(Checked {
        owner,
        binaries,
        command,
        segment_size,
        found,
        at_home,
        mapping,
    })
}

/// Carries out a plan.
pub async fn restore(
    site: &Site,
    prepared: Prepared,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Restored> {
    let checked = checked(&prepared, options)?;
    let clock = site.clock().clone();
    let (began, received) = (clock.elapsed(), site.usage.usage().bytes_got);
    let target = absolute(&prepared.report.target_dir)?;
    let mut notices = Vec::from_iter(checked.command.notice.clone());
    notices.extend(notices_of(&checked.found, &prepared));
    let complete = RecoveryFile {
        state: State::Complete,
        directory: Some(target.clone()),
        ..recovery_file(site, &prepared, options, checked.segment_size)?
    };
    let unfinished = RecoveryFile {
        state: State::Unfinished,
        // Until the links of a copy are replaced, they lead to what is not its own.
        directory: checked.at_home.then(|| target.clone()),
        ..complete.clone()
    };
    begin(&target, &prepared, &unfinished, options.delta)?;
    tablespaces::make_places(&prepared.replayed.tablespaces, checked.owner.as_ref())?;
    let delta = checked
        .contents(&prepared, options)
        .map(|contents| (contents, Arc::<Tally>::default()));
    let tree = Tree {
        target: &target,
        mapping: &checked.mapping,
        segment_pages: prepared.server.relation_segment_pages,
        owner: checked.owner.as_ref(),
        delta: delta.as_ref(),
    };
    let config = write_everything(&prepared, &checked, options, &tree, progress).await?;
    notices.extend(config.warnings.iter().cloned());
    write_mark(&target, &complete, checked.owner.as_ref())?;
    let files_seconds = clock.elapsed().saturating_sub(began).as_secs_f64();
    let mut report = prepared.report.clone();
    report.target_dir.clone_from(&target);
    let mut restored = Restored {
        plan: report,
        start_command: None,
        server: None,
        notices,
        files_seconds,
        fetched_bytes: site.usage.usage().bytes_got - received,
        delta: delta.as_ref().map(|(_, tally)| tally.report()),
    };
    match (&checked.binaries, options.start) {
        (Some(binaries), true) => {
            let starting = start::Starting {
                data_dir: &target,
                binaries: binaries.clone(),
                owner: checked.owner.clone(),
                superuser: &prepared.server.superuser,
                pieces: &prepared.plan.pieces,
                replay: (prepared.plan.base_backup.start, prepared.plan.stop.end),
                auto_after_recovery: &config.auto_after_recovery,
                segment_size: checked.segment_size,
                login_deadline: options.login_deadline,
                isolated: options.isolated.as_deref(),
                clock,
            };
            restored.server = Some(start::start(&starting, progress).await?);
        }
        _ => {
            restored.start_command = Some(start_command(
                checked.binaries.as_ref(),
                checked.owner.as_ref(),
                &target,
            ));
        }
    }
    Ok(restored)
}

async fn write_everything(
    prepared: &Prepared,
    checked: &Checked,
    options: &Options,
    tree: &Tree<'_>,
    progress: &dyn Progress,
) -> Result<RestoredConfig> {
    let target = tree.target;
    let config = configuration(
        prepared,
        &Wanted {
            data_dir: target,
            port: options.port,
            owner: checked.owner.as_ref(),
            binaries: checked.binaries.as_ref(),
            standby: options.standby,
            command: &checked.command,
        },
    );
    let reader = Arc::new(PageReader::new(
        prepared.fetcher.clone(),
        prepared.manifest.clone(),
    ));
    let made_anew = |name: &str| config.files.iter().any(|file| file.path == name);
    tree.write(&reader, &made_anew, progress).await?;
    let wal = target.join("pg_wal");
    log::lay_out(
        &prepared.lineage,
        &prepared.plan,
        checked.segment_size,
        &wal,
        progress,
    )
    .await?;
    log::lay_histories(&prepared.state.branches, checked.segment_size, &wal)?;
    for file in &config.files {
        let path = target.join(&file.path);
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above).at("create", above)?;
        }
        write_file(&path, file.text.as_bytes(), None)?;
    }
    tree.finish(&reader, progress).await?;
    Ok(config)
}

fn recovery_file(
    site: &Site,
    prepared: &Prepared,
    options: &Options,
    segment_size: SegmentSize,
) -> Result<RecoveryFile> {
    let log_start = prepared
        .plan
        .log
        .first()
        .map_or(prepared.plan.base_backup.start, |log| log.from);
    Ok(RecoveryFile {
        state: State::Unfinished,
        cluster: prepared.report.cluster.clone(),
        lineage: prepared.lineage.id(),
        repository: absolute_url(&site.url)?,
        key_file: (site.key.key_file())
            .filter(|_| options.standby)
            .map(absolute)
            .transpose()?,
        key: (options.standby && site.key.key_file().is_none()).then(|| site.key.to_string()),
        branch: prepared.plan.branch,
        log_start,
        log_in_place: Some(prepared.plan.stop.end),
        log_end: (!options.standby).then_some(prepared.plan.stop.end),
        segment_size: segment_size.bytes(),
        directory: None,
    })
}

/// Makes the directory ours, and empties it unless what it holds is to be kept.
fn begin(target: &Path, prepared: &Prepared, mark: &RecoveryFile, delta: bool) -> Result<()> {
    if let Some(above) = target.parent() {
        std::fs::create_dir_all(above).at("create", above)?;
    }
    make_directory(target, prepared.server.data_directory_mode)?;
    if delta {
        return take_over(target, &text_of(mark)?);
    }
    write_mark(target, mark, None)?;
    clear(target)
}

fn text_of(mark: &RecoveryFile) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(mark).map_err(|error| Error::new(ErrorKind::Bug, error.to_string()))
}

fn write_mark(target: &Path, mark: &RecoveryFile, owner: Option<&SystemUser>) -> Result<()> {
    // Replaced whole: a torn mark would make the directory nobody's.
    let staged = target.join(staged_mark());
    write_file(&staged, &text_of(mark)?, owner)?;
    let path = target.join(RECOVERY_FILE);
    std::fs::rename(&staged, &path).at("put in place", &path)
}

/// The server runs elsewhere: a folder is named by its absolute path.
fn absolute_url(url: &str) -> Result<String> {
    if url.contains("://") {
        return Ok(url.to_owned());
    }
    Ok(absolute(Path::new(url))?.display().to_string())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).at("find", path)
}

fn start_command(binaries: Option<&Binaries>, owner: Option<&SystemUser>, target: &Path) -> String {
    let program = binaries.map_or_else(
        || "pg_ctl".to_owned(),
        |binaries| binaries.program("pg_ctl").display().to_string(),
    );
    let run_as = owner.map_or_else(String::new, |owner| {
        format!("runuser -u {} -- ", owner.name)
    });
    format!(
        "{run_as}{program} -D {target} -l {target}/{log} start",
        target = target.display(),
        log = start::LOG_FILE
    )
}
