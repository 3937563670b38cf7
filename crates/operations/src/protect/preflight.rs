//! Looks at the server before anything is written: whether it is there, is what its data directory says,
//! and can be protected.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::ErrorKind;
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_server::Error as ServerError;
use borealis_pg_server::check::{CheckFacts, Finding, Severity, findings};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::{
    Access, DataDir, PART_BYTES_MAX, choose, read_file, why_not_the_servers,
};
use borealis_pg_server::link::{SqlLink, quote_identifier};
use borealis_pg_server::source::ServerFacts;
use tokio_util::sync::CancellationToken;

use super::supervise::Options;
use crate::base_backup::read::blocking;
use crate::base_backup::take::read_control_file;
use crate::error::{Error, Result};
use crate::restore::recovery_file::{RECOVERY_FILE, RecoveryFile};

/// The pause between attempts to ask a server that does not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Attempts at the start to ask a server that restarts.
const START_ATTEMPTS_MAX: u32 = 60;

/// SQLSTATEs of a server that stops, has crashed or starts: `admin_shutdown`, `crash_shutdown`,
/// `cannot_connect_now`.
const RESTARTING: [&str; 3] = ["57P01", "57P02", "57P03"];

/// A server as it was seen.
pub(super) struct Looked {
    /// How to reach it, and no other.
    pub(super) info: ConnInfo,
    /// What it says about itself.
    pub(super) facts: ServerFacts,
    /// How its files are read.
    pub(super) access: Access,
    /// Its control file.
    pub(super) control: ControlFile,
    /// What a restore by Borealis left in its data directory.
    pub(super) restored: Option<RecoveryFile>,
}

/// Looks whether one of the source's hosts can be protected: the first that can. One that restarts at this
/// moment is waited for; where none can be reached at all it is an error at once, since a name may be wrong.
pub(super) async fn look_at_source(options: &Options, stop: &CancellationToken) -> Result<Looked> {
    let source = &options.info;
    let mut attempt = 1;
    loop {
        let (mut waits, mut last) = (None, None);
        for target in source.passes() {
            for host in target.each_host() {
                match look(options, host, Problems::Refused).await {
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
pub(super) async fn look_at_server(options: &Options, info: ConnInfo) -> Result<Looked> {
    look(options, info, Problems::Ignored).await
}

async fn look(options: &Options, info: ConnInfo, problems: Problems) -> Result<Looked> {
    let sql = SqlLink::connect(&info).await?;
    let facts = ServerFacts::read(&sql).await?;
    let access = access(options, &info, &sql, &facts).await?;
    if problems == Problems::Refused {
        refuse_problems(&info, &access).await?;
    }
    let dir = access.open(&sql).await?;
    let control = read_control_file(&dir).await?.1;
    check_same_cluster(&control, &facts)?;
    check_same_server(&access, &sql).await?;
    Ok(Looked {
        restored: read_mark(dir).await?,
        info,
        facts,
        access,
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

/// How the server's files are to be read.
async fn access(
    options: &Options,
    info: &ConnInfo,
    sql: &SqlLink,
    facts: &ServerFacts,
) -> Result<Access> {
    let said = facts.data_directory.as_deref();
    let access = choose(sql, options.data_dir.as_deref(), said, options.agentless).await?;
    let Some(access) = access else {
        return Err(Error::refused(
            "the server does not say where its data directory is",
            format!(
                "Name it with --data-dir, or, as a superuser: GRANT pg_read_all_settings TO {};",
                quote_identifier(&info.user)
            ),
        ));
    };
    match access.local() {
        Some(dir) if !dir.join("global/pg_control").is_file() => Err(Error::refused(
            format!(
                "{} is not a data directory that can be read here",
                dir.display()
            ),
            "Run borealis on the database's machine, as a user who can read the data directory, and name it with --data-dir; or read the files through SQL, with --agentless.",
        )),
        _ => Ok(access),
    }
}

/// What a restore by Borealis left in the data directory. One that can't be read is not one that is not
/// there.
async fn read_mark(dir: Arc<dyn DataDir>) -> Result<Option<RecoveryFile>> {
    blocking(move || {
        let bytes = read_file(&*dir, RECOVERY_FILE, PART_BYTES_MAX)?;
        let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes);
        bytes.map(parse).transpose().map_err(|error| {
            Error::new(
                ErrorKind::Damaged,
                format!("{RECOVERY_FILE} in the data directory, the mark of a restore: {error}"),
            )
        })
    })
    .await
}

fn check_same_cluster(control: &ControlFile, facts: &ServerFacts) -> Result<()> {
    if control.system_identifier == facts.system_id {
        return Ok(());
    }
    Err(Error::refused(
        format!(
            "the data directory belongs to cluster {}, and the server at the source is {}",
            control.system_identifier, facts.system_id
        ),
        "Name the data directory of this server with --data-dir.",
    ))
}

/// The servers of a cluster share its system identifier: a data directory that is another one's would give
/// pages that no log of this server makes right.
async fn check_same_server(access: &Access, sql: &SqlLink) -> Result<()> {
    let Some(dir) = access.local() else {
        return Ok(());
    };
    let Some(reason) = why_not_the_servers(dir, sql).await? else {
        return Ok(());
    };
    Err(Error::refused(
        format!(
            "{} is not the data directory of the server at {}: {reason}",
            dir.display(),
            sql.host()
        ),
        "Name the data directory of this server with --data-dir, or leave that out.",
    ))
}

async fn refuse_problems(info: &ConnInfo, access: &Access) -> Result<()> {
    let facts = CheckFacts::read(info, access).await?;
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
