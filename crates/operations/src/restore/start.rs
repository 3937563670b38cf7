//! Starts a restored server and waits until it answers, showing how far its replay is.
//!
//! Nobody's password is known here, so that for the time of the recovery the access file begins with a
//! line that lets the system user who runs this log in through the socket as the bootstrap superuser;
//! the line is taken away again before this returns.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Clock, ErrorKind, Position, Progress, Timestamp};
use borealis_pg_format::segment::SegmentSize;
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::instance::{
    Binaries, Instance, Launch, LogFact, LogTail, SystemUser, log_fact, users,
};
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::recovery::quote_value;
use borealis_repository::plan::PieceRange;

use super::files::write_file;
use super::replay::Replay;
use crate::error::{Error, FileContext, Result};
use crate::wal_fetch::spool::{SPOOL, replayed_to};

/// How often the server is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
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
    /// The size of its log segments.
    pub segment_size: SegmentSize,
    /// How long a login may fail once the server says that it is ready.
    pub login_deadline: Duration,
    /// See [`super::Options::isolated`].
    pub isolated: Option<&'a [(String, String)]>,
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
    /// How much of that the replay took, as the server's log tells.
    pub replay_seconds: f64,
    /// Transactions that were prepared and wait for their coordinator, oldest first.
    pub prepared_transactions: Vec<PreparedTransaction>,
}

/// A transaction that was prepared before the target and not ended: it holds its locks until somebody
/// commits or rolls it back in its database.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PreparedTransaction {
    /// Its global identifier.
    pub gid: String,
    /// The role that prepared it.
    pub owner: String,
    /// Its database.
    pub database: String,
    /// When it was prepared.
    pub prepared_at: Timestamp,
    /// The statement that keeps its work.
    pub commit: String,
    /// The statement that undoes it.
    pub rollback: String,
}

/// Starts it; returns when a query succeeds after promotion.
pub async fn start(starting: &Starting<'_>, progress: &dyn Progress) -> Result<Answering> {
    let began = starting.clock.elapsed();
    let log_file = starting.data_dir.join(LOG_FILE);
    open_door(starting)?;
    let tail = LogTail::from_end(&log_file);
    let launch = Launch {
        binaries: starting.binaries.clone(),
        data_dir: starting.data_dir.to_owned(),
        config_file: None,
        log_file: log_file.clone(),
        user: starting.owner.clone(),
        settings: log_settings(starting.binaries.major)
            .into_iter()
            .chain(starting.isolated.unwrap_or_default().iter().cloned())
            .collect(),
    };
    let mut replay = Replay::begin(starting.pieces, starting.replay, progress);
    let mut instance = launch.start_detached().await?;
    let (socket_directory, port) = socket_of(starting, &mut instance, &log_file).await?;
    let info = ConnInfo::from_process(&format!(
        "host={} port={port} user={} dbname=template1 sslmode=disable application_name=borealis",
        quote_value(&socket_directory.display().to_string()),
        quote_value(starting.superuser),
    ))?;
    let (link, replayed) =
        wait(starting, &mut instance, &info, tail, &mut replay, progress).await?;
    replay.log_fact(LogFact::Ready, progress);
    let prepared_transactions = prepared_transactions(&link).await?;
    if starting.isolated.is_none() {
        close_door(starting, &link).await?;
    }
    let since_begin = |at: Duration| at.saturating_sub(began).as_secs_f64();
    let now = starting.clock.elapsed();
    Ok(Answering {
        pid: instance.pid(),
        port,
        socket_directory,
        log_file,
        seconds: since_begin(now),
        replay_seconds: since_begin(replayed.unwrap_or(now)),
        prepared_transactions,
    })
}

/// Waits until a query succeeds after promotion, and shows how far the replay is meanwhile. Returns when the
/// replay had ended, too, where the log told.
async fn wait(
    starting: &Starting<'_>,
    instance: &mut Instance,
    info: &ConnInfo,
    mut tail: LogTail,
    replay: &mut Replay<'_>,
    progress: &dyn Progress,
) -> Result<(SqlLink, Option<Duration>)> {
    let log_file = starting.data_dir.join(LOG_FILE);
    let (mut ready_since, mut replayed) = (None, None);
    loop {
        for line in tail.lines().at("read", &log_file)? {
            let Some(fact) = log_fact(&line) else {
                continue;
            };
            if matches!(fact, LogFact::RedoDone(_)) {
                replayed = Some(starting.clock.elapsed());
            }
            if fact == LogFact::Ready {
                ready_since = Some(starting.clock.elapsed());
            }
            replay.log_fact(fact, progress);
        }
        if let Some(at) = replayed_to(starting.data_dir, starting.segment_size) {
            replay.reach(at, progress);
        }
        if let Some(link) = answering(info).await {
            return Ok((link, replayed));
        }
        if !instance.is_running() {
            return Err(ended(&log_file));
        }
        let waited = ready_since.map(|since| starting.clock.elapsed().saturating_sub(since));
        if waited.is_some_and(|waited| waited > starting.login_deadline) {
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
    }
}

async fn prepared_transactions(link: &SqlLink) -> Result<Vec<PreparedTransaction>> {
    let sql = "SELECT gid, owner, database, quote_literal(gid) AS literal, \
               (extract(epoch FROM prepared) * 1000000)::bigint AS micros \
               FROM pg_prepared_xacts ORDER BY prepared, gid";
    let rows = link.rows(sql).await?;
    let transactions = rows.iter().map(|row| {
        let literal: String = row.get("literal")?;
        Ok::<_, Error>(PreparedTransaction {
            gid: row.get("gid")?,
            owner: row.get("owner")?,
            database: row.get("database")?,
            prepared_at: Timestamp(row.get("micros")?),
            commit: format!("COMMIT PREPARED {literal};"),
            rollback: format!("ROLLBACK PREPARED {literal};"),
        })
    });
    transactions.collect()
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
    // Where this program could not be run at the end of recovery, nothing was fetched ahead.
    let spool = starting.data_dir.join(SPOOL);
    match std::fs::remove_dir_all(&spool) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).at("remove", &spool)
        }
        _ => Ok(()),
    }
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
