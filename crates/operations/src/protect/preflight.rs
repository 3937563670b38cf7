//! Looks at the server before anything is written: whether it is there, is what its data directory says,
//! and can be protected.

use std::path::{Path, PathBuf};
use std::time::Duration;

use borealis_base::ErrorKind;
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_server::Error as ServerError;
use borealis_pg_server::check::{CheckFacts, Finding, Severity, findings};
use borealis_pg_server::link::{SqlLink, quote_identifier};
use borealis_pg_server::source::ServerFacts;
use tokio_util::sync::CancellationToken;

use super::supervise::Options;
use crate::base_backup::take::read_control_file;
use crate::error::{Error, Result};

/// The pause between attempts to ask a server that does not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Attempts at the start to ask a server that restarts.
const START_ATTEMPTS_MAX: u32 = 60;

/// SQLSTATEs of a server that stops, has crashed or starts: `admin_shutdown`, `crash_shutdown`,
/// `cannot_connect_now`.
const RESTARTING: [&str; 3] = ["57P01", "57P02", "57P03"];

/// Looks whether the server can be protected. One that restarts at this moment is waited for; one that
/// can't be reached at all is an error at once, since its name may be wrong.
pub(super) async fn look_at_server(
    options: &Options,
    stop: &CancellationToken,
) -> Result<(ServerFacts, PathBuf, ControlFile)> {
    let look = async || {
        let sql = SqlLink::connect(&options.info).await?;
        let facts = ServerFacts::read(&sql).await?;
        let data_dir = local_data_dir(options, &facts)?;
        refuse_problems(options, &data_dir).await?;
        let control = read_control_file(&data_dir).await?.1;
        check_same_cluster(&data_dir, &control, &facts)?;
        Ok((facts, data_dir, control))
    };
    let mut attempt = 1;
    loop {
        match look().await {
            Err(error) if restarts(&error) && attempt < START_ATTEMPTS_MAX => {
                attempt += 1;
                pause(stop, &error).await?;
            }
            looked => return looked,
        }
    }
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

fn local_data_dir(options: &Options, facts: &ServerFacts) -> Result<PathBuf> {
    let named = options
        .data_dir
        .clone()
        .or_else(|| facts.data_directory.clone());
    let Some(data_dir) = named else {
        return Err(Error::refused(
            "the server does not say where its data directory is",
            format!(
                "Name it with --data-dir, or, as a superuser: GRANT pg_read_all_settings TO {};",
                quote_identifier(&options.info.user)
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

async fn refuse_problems(options: &Options, data_dir: &Path) -> Result<()> {
    let facts = CheckFacts::read(&options.info, Some(data_dir)).await?;
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
