//! Looks at the server before anything is written: whether it is there, is what its data directory says,
//! and can be protected.

use std::path::{Path, PathBuf};
use std::time::Duration;

use borealis_base::ErrorKind;
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_server::Error as ServerError;
use borealis_pg_server::check::{CheckFacts, Finding, Severity, findings};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::{SqlLink, quote_identifier};
use borealis_pg_server::source::ServerFacts;
use tokio_util::sync::CancellationToken;

use crate::base_backup::take::read_control_file;
use crate::error::{Error, Result};

/// The pause between attempts to ask a server that does not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Attempts at the start to ask a server that restarts.
const START_ATTEMPTS_MAX: u32 = 60;

/// Seconds between the start that a server writes into its data directory and the one that it tells.
const START_SECONDS_APART_MAX: u64 = 60;

/// SQLSTATEs of a server that stops, has crashed or starts: `admin_shutdown`, `crash_shutdown`,
/// `cannot_connect_now`.
const RESTARTING: [&str; 3] = ["57P01", "57P02", "57P03"];

/// A server as it was seen.
pub(super) struct Looked {
    /// How to reach it, and no other.
    pub(super) info: ConnInfo,
    /// What it says about itself.
    pub(super) facts: ServerFacts,
    /// Its data directory.
    pub(super) data_dir: PathBuf,
    /// The control file in there.
    pub(super) control: ControlFile,
}

/// Looks whether one of the source's hosts can be protected: the first that can. One that restarts at this
/// moment is waited for; where none can be reached at all it is an error at once, since a name may be wrong.
pub(super) async fn look_at_source(
    source: &ConnInfo,
    data_dir: Option<&Path>,
    stop: &CancellationToken,
) -> Result<Looked> {
    let mut attempt = 1;
    loop {
        let (mut waits, mut last) = (None, None);
        for target in source.passes() {
            for host in target.each_host() {
                match look(host, data_dir, Problems::Refused).await {
                    Ok(looked) => return Ok(looked),
                    Err(error) if restarts(&error) => waits = Some(error),
                    Err(error) => last = Some(error),
                }
            }
        }
        match (waits, last) {
            (Some(error), _) if attempt < START_ATTEMPTS_MAX => {
                attempt += 1;
                pause(stop, &error).await?;
            }
            (Some(error), _) | (None, Some(error)) => return Err(error),
            (None, None) => return Err(Error::new(ErrorKind::Usage, "the source names no host")),
        }
    }
}

/// Whether what `check` calls a problem is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problems {
    Refused,
    /// The cluster is protected already: it had none when that began, and log that comes is better than none.
    Ignored,
}

/// Looks at a server of a cluster that is protected, and at its data directory.
pub(super) async fn look_at_server(info: ConnInfo, data_dir: Option<&Path>) -> Result<Looked> {
    look(info, data_dir, Problems::Ignored).await
}

async fn look(info: ConnInfo, data_dir: Option<&Path>, problems: Problems) -> Result<Looked> {
    let sql = SqlLink::connect(&info).await?;
    let facts = ServerFacts::read(&sql).await?;
    let data_dir = local_data_dir(&info, data_dir, &facts)?;
    if problems == Problems::Refused {
        refuse_problems(&info, &data_dir).await?;
    }
    let control = read_control_file(&data_dir).await?.1;
    check_same_cluster(&data_dir, &control, &facts)?;
    check_same_server(&data_dir, &sql).await?;
    Ok(Looked {
        info,
        facts,
        data_dir,
        control,
    })
}

/// Whether an error says that the server is there and stops, starts or has just gone.
fn restarts(error: &Error) -> bool {
    match error {
        Error::Server(ServerError::Lost { .. }) => true,
        Error::Server(error) => error
            .sqlstate()
            .is_some_and(|state| RESTARTING.contains(&state)),
        _ => false,
    }
}

fn local_data_dir(info: &ConnInfo, named: Option<&Path>, facts: &ServerFacts) -> Result<PathBuf> {
    let named = named.map(Path::to_owned);
    let Some(data_dir) = named.or_else(|| facts.data_directory.clone()) else {
        return Err(Error::refused(
            "the server does not say where its data directory is",
            format!(
                "Name it with --data-dir, or, as a superuser: GRANT pg_read_all_settings TO {};",
                quote_identifier(&info.user)
            ),
        ));
    };
    if data_dir.join("global/pg_control").is_file() {
        return Ok(data_dir);
    }
    Err(Error::refused(
        format!(
            "{} is not a data directory that can be read here",
            data_dir.display()
        ),
        "Run borealis on the database's machine, as a user who can read the data directory, and name it with --data-dir.",
    ))
}

fn check_same_cluster(data_dir: &Path, control: &ControlFile, facts: &ServerFacts) -> Result<()> {
    if control.system_identifier == facts.system_id {
        return Ok(());
    }
    Err(Error::refused(
        format!(
            "{} belongs to cluster {}, and the server at the source is {}",
            data_dir.display(),
            control.system_identifier,
            facts.system_id
        ),
        "Name the data directory of this server with --data-dir.",
    ))
}

/// The servers of a cluster share its system identifier: a data directory that is another one's would give
/// pages that no log of this server makes right.
async fn check_same_server(data_dir: &Path, sql: &SqlLink) -> Result<()> {
    let path = data_dir.join("postmaster.pid");
    let lines = std::fs::read_to_string(&path).unwrap_or_default();
    // Third and fourth line: the start in seconds, and the port (`miscadmin.h`).
    let number = |line: usize| -> Option<i64> { lines.lines().nth(line)?.trim().parse().ok() };
    let row = sql
        .row(
            "SELECT extract(epoch FROM pg_postmaster_start_time())::bigint AS started, \
             current_setting('port')::bigint AS port",
        )
        .await?;
    let (started, port): (i64, i64) = (row.get("started")?, row.get("port")?);
    let same_start = number(2).is_some_and(|at| at.abs_diff(started) <= START_SECONDS_APART_MAX);
    if same_start && number(3) == Some(port) {
        return Ok(());
    }
    Err(Error::refused(
        format!(
            "{} is not the data directory of the server at {}: that listens on port {port} and is not the one that {} names",
            data_dir.display(),
            sql.host(),
            path.display()
        ),
        "Name the data directory of this server with --data-dir, or leave that out.",
    ))
}

async fn refuse_problems(info: &ConnInfo, data_dir: &Path) -> Result<()> {
    let facts = CheckFacts::read(info, Some(data_dir)).await?;
    let problems: Vec<Finding> = findings(&facts)
        .into_iter()
        .filter(|finding| finding.severity == Severity::Problem)
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = (problems.iter())
        .map(|problem| format!("{}: {}", problem.subject, problem.found))
        .collect();
    let sql: Vec<&str> = (problems.iter())
        .filter_map(|problem| problem.sql.as_deref())
        .collect();
    let hint = if sql.is_empty() {
        "borealis check says what is wanted.".to_owned()
    } else {
        format!(
            "borealis check says what is wanted. To paste, as a superuser: {}",
            sql.join(" ")
        )
    };
    Err(Error::refused(
        format!("the server can't be protected: {}", told.join("; ")),
        hint,
    ))
}

/// Waits before another attempt; an error where it is asked to stop meanwhile.
pub(super) async fn pause(stop: &CancellationToken, error: &Error) -> Result<()> {
    tracing::warn!(%error, "the server can't be asked; trying again");
    tokio::select! {
        () = stop.cancelled() => Err(Error::new(
            ErrorKind::Interrupted,
            "stopped while the server could not be asked",
        )),
        () = tokio::time::sleep(RETRY_PAUSE) => Ok(()),
    }
}
