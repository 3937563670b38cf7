//! Starts a restored server and waits until it answers, showing how far its replay is.
//!
//! Nobody's password is known here, so that for the time of the recovery the access file begins with a
//! line that lets the system user who runs this log in through the socket as the bootstrap superuser;
//! the line is taken away again before this returns.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Clock, ErrorKind, Position, Progress, Timestamp, Unit};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::instance::{
    Binaries, Instance, Launch, LogFact, LogTail, SystemUser, log_fact, users,
};
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::recovery::quote_value;
use borealis_repository::plan::PieceRange;

use super::files::write_file;
use crate::error::{Error, FileContext, Result};

/// How often the server is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a login may fail once the server says that it is ready.
const LOGIN_DEADLINE: Duration = Duration::from_secs(30);
/// How long the server may take to show where its socket is.
const SOCKET_DEADLINE: Duration = Duration::from_secs(60);
/// The log of a restored server until its first restart.
pub const LOG_FILE: &str = "borealis_restore.log";
const MAP_NAME: &str = "borealis_restore";
const MARK_BEGIN: &str = "# borealis: for the time of the restore only, begin";
const MARK_END: &str = "# borealis: for the time of the restore only, end";

/// A restored directory to be started.
pub struct Starting<'a> {
    /// The data directory.
    pub data_dir: &'a Path,
    /// The programs.
    pub binaries: Binaries,
    /// Who runs the server.
    pub owner: Option<SystemUser>,
    /// The role `initdb` made.
    pub superuser: &'a str,
    /// The log that is replayed, to tell the time of a position.
    pub pieces: &'a [PieceRange],
    /// The first and the last position of the replay.
    pub replay: (Position, Position),
    /// What `postgresql.auto.conf` holds once recovery has ended.
    pub auto_after_recovery: &'a str,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// A server that answers.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Answering {
    /// Its first process.
    pub pid: u32,
    /// Its port.
    pub port: u16,
    /// Where its socket is.
    pub socket_directory: PathBuf,
    /// Where its output goes until it is restarted.
    pub log_file: PathBuf,
    /// How long from the start until a query succeeded after promotion.
    pub seconds: f64,
    /// Transactions that were prepared and wait for their coordinator.
    pub prepared_transactions: Vec<String>,
}

/// Starts it; returns when a query succeeds after promotion.
pub async fn start(starting: &Starting<'_>, progress: &dyn Progress) -> Result<Answering> {
    let began = starting.clock.elapsed();
    let log_file = starting.data_dir.join(LOG_FILE);
    open_door(starting)?;
    let mut tail = LogTail::from_end(&log_file);
    let launch = Launch {
        binaries: starting.binaries.clone(),
        data_dir: starting.data_dir.to_owned(),
        config_file: None,
        log_file: log_file.clone(),
        user: starting.owner.clone(),
        settings: log_settings(starting.binaries.major),
    };
    let total = starting.replay.1.since(starting.replay.0);
    progress.phase("recovery", Unit::Bytes, Some(total));
    let mut instance = launch.start_detached().await?;
    let (socket_directory, port) = socket_of(starting, &mut instance, &log_file).await?;
    let info = ConnInfo::from_process(&format!(
        "host={} port={port} user={} dbname=template1 sslmode=disable application_name=borealis",
        quote_value(&socket_directory.display().to_string()),
        quote_value(starting.superuser),
    ))?;
    let mut shown = starting.replay.0;
    let mut ready_since = None;
    let link = loop {
        for line in tail.lines().at("read", &log_file)? {
            if log_fact(&line) == Some(LogFact::Ready) {
                ready_since = Some(starting.clock.elapsed());
            }
            shown = show(starting, &line, shown, progress);
        }
        if let Some(link) = answering(&info).await {
            break link;
        }
        if !instance.is_running() {
            return Err(ended(&log_file));
        }
        let waited = ready_since.map(|since| starting.clock.elapsed().saturating_sub(since));
        if waited.is_some_and(|waited| waited > LOGIN_DEADLINE) {
            return Err(Error::with_hint(
                ErrorKind::Refused,
                format!(
                    "the restored server runs, and nobody can log in; {}",
                    last_words(&log_file)
                ),
                format!("The whole log is {}.", log_file.display()),
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    };
    let rows = link
        .rows("SELECT gid FROM pg_prepared_xacts ORDER BY prepared")
        .await?;
    let prepared_transactions = rows
        .iter()
        .filter_map(|row| row.text("gid"))
        .map(str::to_owned)
        .collect();
    close_door(starting, &link).await?;
    Ok(Answering {
        pid: instance.pid(),
        port,
        socket_directory,
        log_file,
        seconds: starting.clock.elapsed().saturating_sub(began).as_secs_f64(),
        prepared_transactions,
    })
}

/// Settings that make the log of a recovery readable; the server refuses one that its version does not
/// know.
fn log_settings(major: u32) -> Vec<(String, String)> {
    let progress = (major >= 15).then_some(("log_startup_progress_interval", "1s"));
    [
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("lc_messages", "C"),
    ]
    .into_iter()
    .chain(progress)
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

async fn answering(info: &ConnInfo) -> Option<SqlLink> {
    let link = SqlLink::connect(info).await.ok()?;
    let recovering: String = link.value("SELECT pg_is_in_recovery()").await.ok()?;
    (recovering == "f").then_some(link)
}

fn last_words(log_file: &Path) -> String {
    let text = std::fs::read_to_string(log_file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines
        .get(lines.len().saturating_sub(8)..)
        .unwrap_or_default()
        .join("\n");
    format!("its log ends:\n{last}")
}

fn ended(log_file: &Path) -> Error {
    Error::with_hint(
        ErrorKind::Refused,
        format!(
            "the restored server ended before it answered; {}",
            last_words(log_file)
        ),
        format!("The whole log is {}.", log_file.display()),
    )
}

/// The socket's place, as the server writes it into its `postmaster.pid` (`miscadmin.h`: the fourth line
/// is the port, the fifth the socket directory).
async fn socket_of(
    starting: &Starting<'_>,
    instance: &mut Instance,
    log_file: &Path,
) -> Result<(PathBuf, u16)> {
    let path = starting.data_dir.join("postmaster.pid");
    let began = starting.clock.elapsed();
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        if let (Some(port), Some(directory)) = (
            lines.get(3).and_then(|port| port.trim().parse().ok()),
            lines.get(4),
        ) && !directory.is_empty()
        {
            return Ok((PathBuf::from(directory), port));
        }
        if !instance.is_running() {
            return Err(ended(log_file));
        }
        if starting.clock.elapsed().saturating_sub(began) > SOCKET_DEADLINE {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the restored server does not say where its socket is",
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn show(starting: &Starting<'_>, line: &str, shown: Position, progress: &dyn Progress) -> Position {
    let at = match log_fact(line) {
        Some(LogFact::RedoAt(at) | LogFact::Consistent(at) | LogFact::RedoDone(at)) => at,
        Some(LogFact::Failure(text))
            if !text.contains("not yet accepting") && !text.contains("starting up") =>
        {
            progress.note(&text);
            return shown;
        }
        _ => return shown,
    };
    let time =
        time_at(starting.pieces, at).map_or_else(String::new, |time| format!(", log of {time}"));
    progress.note(&format!("replayed to {at}{time}"));
    progress.advance(at.since(shown));
    shown.max(at)
}

/// The last moment settled in the piece that holds `at`.
fn time_at(pieces: &[PieceRange], at: Position) -> Option<Timestamp> {
    let holds = |part: &&PieceRange| part.from <= at && at <= part.to;
    pieces
        .iter()
        .find(holds)
        .and_then(|part| part.piece.settled_after)
}

fn access_files(data_dir: &Path) -> [PathBuf; 2] {
    [data_dir.join("pg_hba.conf"), data_dir.join("pg_ident.conf")]
}

fn open_door(starting: &Starting<'_>) -> Result<()> {
    let [access, map] = access_files(starting.data_dir);
    let me = users::by_uid(rustix::process::geteuid().as_raw())?.name;
    let role = format!("\"{}\"", starting.superuser.replace('"', "\"\""));
    let lines = format!("local all {role} peer map={MAP_NAME}\n");
    let mut maps = format!("{MAP_NAME} \"{me}\" {role}\n");
    if let Some(owner) = &starting.owner {
        let _ = writeln!(maps, "{MAP_NAME} \"{}\" {role}", owner.name);
    }
    for (path, lines) in [(access, lines), (map, maps)] {
        let rest = without_mark(&std::fs::read_to_string(&path).unwrap_or_default());
        let text = format!("{MARK_BEGIN}\n{lines}{MARK_END}\n{rest}");
        write_file(&path, text.as_bytes(), starting.owner.as_ref())?;
    }
    Ok(())
}

/// The file without what was added for the restore.
fn without_mark(text: &str) -> String {
    match (text.split_once(MARK_BEGIN), text.split_once(MARK_END)) {
        (Some((before, _)), Some((_, after))) => {
            before.to_owned() + after.strip_prefix('\n').unwrap_or(after)
        }
        _ => text.to_owned(),
    }
}

async fn close_door(starting: &Starting<'_>, link: &SqlLink) -> Result<()> {
    for path in access_files(starting.data_dir) {
        let text = std::fs::read_to_string(&path).at("read", &path)?;
        write_file(
            &path,
            without_mark(&text).as_bytes(),
            starting.owner.as_ref(),
        )?;
    }
    let auto = starting.data_dir.join("postgresql.auto.conf");
    write_file(
        &auto,
        starting.auto_after_recovery.as_bytes(),
        starting.owner.as_ref(),
    )?;
    link.run("SELECT pg_reload_conf()").await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_for_the_restore_is_taken_away_again() {
        let own = "local all all peer\nhost all all 0.0.0.0/0 scram-sha-256\n";
        let opened = format!("{MARK_BEGIN}\nlocal all x peer\n{MARK_END}\n{own}");
        assert_eq!(without_mark(&opened), own);
        assert_eq!(without_mark(own), own);
    }
}
