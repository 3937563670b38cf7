//! A data directory that is read through the server's own SQL, from anywhere.
//!
//! The server reads its files with `pg_read_binary_file` and the like (`genfile.c`) and sends them as
//! `COPY ... TO STDOUT (FORMAT binary)`, many ranges a statement. What it costs the server is bounded: at
//! most [`CONNECTIONS_MAX`] sessions, each with one statement of at most [`STATEMENT_BYTES_MAX`] bytes and
//! [`STATEMENT_PARTS_MAX`] ranges, and in its memory a few copies of one part, [`PART_BYTES_MAX`].
//!
//! Three answers are told apart: no such file (NULL), the end of the file (fewer bytes, or none), and a
//! failure. A session that is cut is opened again, to the same run of the same server only: pages of
//! another server must never come into a base backup.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use borealis_base::ErrorKind;
use borealis_pg_format::files::{FileKind, classify};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_postgres::binary_copy::{BinaryCopyOutRow, BinaryCopyOutStream};
use tokio_postgres::types::Type;

use super::config_files::Files;
use super::local::{NAME_NOT_UTF8, NOT_A_FILE};
use super::{
    DataDir, FileDigest, FilePart, LOG_DIRECTORIES, Listing, PART_BYTES_MAX, PartSink,
    TablespaceLink, Visit, below, refuse_depth, visit,
};
use crate::conninfo::ConnInfo;
use crate::error::{Error, Result};
use crate::link::{SqlLink, quote_literal};

/// Sessions that read at a time.
pub const CONNECTIONS_MAX: usize = 4;

/// Bytes that one statement asks for.
pub const STATEMENT_BYTES_MAX: usize = 4 << 20;

/// Ranges that one statement asks for, and directories that one lists; each is some fifty bytes of text.
const STATEMENT_PARTS_MAX: usize = 1024;

/// The largest file whose hash the server is asked for: it holds the whole file in memory meanwhile.
const DIGEST_BYTES_MAX: u64 = PART_BYTES_MAX as u64;

/// The largest configuration file.
const CONFIG_BYTES_MAX: usize = PART_BYTES_MAX;

/// How often one question is asked again after its session was lost.
const RECONNECTS_MAX: u32 = 3;

/// The pause before that.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// How long one row may take: the server reads at most [`PART_BYTES_MAX`] for it.
const ROW_TIMEOUT: Duration = Duration::from_mins(2);

/// For sessions that read files. Names and paths are bytes to the server: with `SQL_ASCII` nothing
/// converts them (`pg_server_to_any` in `mbutils.c`). The planner has nothing to gain from these statements.
const SESSION: &str = "SET client_encoding = 'SQL_ASCII'; SET jit = off; \
     SET max_parallel_workers_per_gather = 0; SET statement_timeout = '10min'";

/// Which run of which server a session is with. A proxy may lead two sessions to two servers, and a
/// server that was restarted has given up the backup.
const INSTANCE: &str = "SELECT system_identifier || ' started ' || pg_postmaster_start_time() \
     FROM pg_control_system()";

/// SQLSTATE `character_not_in_repertoire`.
const NOT_IN_ENCODING: &str = "22021";

/// A data directory that is read through SQL.
#[derive(Debug)]
pub struct AgentlessDataDir {
    info: ConnInfo,
    instance: String,
    /// Permission bits of the data directory.
    mode: u32,
    runtime: Handle,
    places: Semaphore,
    idle: Mutex<Vec<SqlLink>>,
    closed: watch::Sender<bool>,
}

impl AgentlessDataDir {
    /// That of the server at `session`, which is asked over sessions of its own. Its functions block, so
    /// that they are for other threads than those of this runtime.
    pub async fn open(session: &SqlLink) -> Result<Self> {
        let mode: String = session.value("SHOW data_directory_mode").await?;
        let mode = u32::from_str_radix(&mode, 8).map_err(|_| Error::Value {
            name: "data_directory_mode".to_owned(),
            detail: format!("`{mode}` is not an octal number"),
        })?;
        Ok(Self {
            info: session.info(),
            instance: session.value(INSTANCE).await?,
            mode,
            runtime: Handle::current(),
            places: Semaphore::new(CONNECTIONS_MAX),
            idle: Mutex::default(),
            closed: watch::Sender::new(false),
        })
    }

    /// The permission bits of directories. SQL tells none; the server gives all that it makes those of the
    /// data directory (`SetDataDirectoryCreatePerm` in `file_perm.c`).
    fn directory_mode(&self) -> u32 {
        if self.mode & 0o050 == 0o050 {
            0o750
        } else {
            0o700
        }
    }

    /// The permission bits of files, likewise.
    fn file_mode(&self) -> u32 {
        self.directory_mode() & 0o640
    }

    /// Asks on a session that is free, again on a new one where it is lost. `question` goes on from where
    /// it was.
    fn ask<T>(&self, question: impl AsyncFnMut(&SqlLink) -> Result<T>) -> Result<T> {
        let mut closed = self.closed.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                // First: once it is closed, the runtime may be shutting down, timers and sockets with it.
                biased;
                _ = closed.wait_for(|closed| *closed) => {
                    Err(Error::Cancelled("reading files through SQL"))
                }
                answer = self.ask_until_closed(question) => answer,
            }
        })
    }

    async fn ask_until_closed<T>(
        &self,
        mut question: impl AsyncFnMut(&SqlLink) -> Result<T>,
    ) -> Result<T> {
        let _place = (self.places.acquire().await).expect("the semaphore is never closed");
        let mut failures = 0;
        loop {
            let answer: Result<T> = async {
                let link = self.session().await?;
                let answer = question(&link).await.map_err(explain)?;
                self.idle_sessions().push(link);
                Ok(answer)
            }
            .await;
            match answer {
                Err(error)
                    if error.kind() == ErrorKind::Unreachable && failures < RECONNECTS_MAX =>
                {
                    failures += 1;
                    tracing::warn!(%error, "a session that reads files was lost; it is opened again");
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    fn idle_sessions(&self) -> std::sync::MutexGuard<'_, Vec<SqlLink>> {
        (self.idle.lock()).expect("nothing panics while it holds the sessions")
    }

    async fn session(&self) -> Result<SqlLink> {
        let idle = self.idle_sessions().pop();
        if let Some(link) = idle.filter(|link| !link.is_closed()) {
            return Ok(link);
        }
        let link = SqlLink::connect(&self.info).await?;
        let instance: String = link.value(INSTANCE).await?;
        if instance != self.instance {
            // Transient: the next base backup begins on the server that is there now.
            return Err(Error::Connect {
                to: link.host().to_string(),
                detail: format!(
                    "it leads to cluster {instance} now, and the base backup was begun on {}",
                    self.instance
                ),
            });
        }
        link.run(SESSION).await?;
        Ok(link)
    }

    /// Lists directories, all of one depth.
    fn entries(&self, directories: &[Directory]) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for (batch, first) in directories
            .chunks(STATEMENT_PARTS_MAX)
            .zip((0..).step_by(STATEMENT_PARTS_MAX))
        {
            let values = values(batch.iter().map(|directory| {
                let path = if directory.path.is_empty() {
                    "."
                } else {
                    &directory.path
                };
                quote_literal(path)
            }));
            // A file that has gone since its directory was read has neither size nor kind.
            let sql = format!(
                "SELECT d.i, textsend(f.name), s.size, s.isdir FROM {values} AS d(i, path) \
                 CROSS JOIN LATERAL pg_ls_dir(d.path, true, false) AS f(name) \
                 CROSS JOIN LATERAL pg_stat_file(d.path || '/' || f.name, true) AS s"
            );
            let types = [Type::INT4, Type::BYTEA, Type::INT8, Type::BOOL];
            let rows = self.ask(async |link| {
                // Asked again from the beginning where the session is lost.
                let mut rows = Vec::new();
                copy_out(link, &sql, &types, &mut |row| {
                    rows.push(Entry {
                        directory: first + number(link, row)?,
                        name: column::<&[u8]>(link, row, 1)?.to_vec(),
                        bytes: column(link, row, 2)?,
                        is_directory: column(link, row, 3)?,
                    });
                    Ok(())
                })
                .await?;
                Ok(rows)
            })?;
            found.extend(rows);
        }
        Ok(found)
    }

    /// Where the link of a tablespace points to; `None` where it has gone, or is a directory in place.
    fn tablespace_target(&self, oid: u32) -> Result<Option<PathBuf>> {
        let sql = format!("SELECT pg_tablespace_location({oid}) AS path");
        let answer = self.ask(async |link| match link.row(&sql).await {
            Ok(row) => Ok(row.text("path").map(PathBuf::from)),
            // Dropped since the directory was listed: readlink finds nothing (`misc.c`).
            Err(error) if error.sqlstate() == Some("58P01") => Ok(None),
            Err(error) => Err(error),
        })?;
        Ok(answer.filter(|path| path.is_absolute()))
    }

    /// The directories below `pg_wal` that are there.
    fn log_directories(&self, listing: &mut Listing) -> Result<()> {
        for path in LOG_DIRECTORIES {
            let sql = format!(
                "SELECT coalesce((pg_stat_file({}, true)).isdir, false) AS found",
                quote_literal(path)
            );
            if self.ask(async |link| link.row(&sql).await?.flag("found"))? {
                listing.add_directory(path, self.directory_mode());
            }
        }
        Ok(())
    }

    /// Takes one entry into the listing; what is to be listed next goes to `next`.
    fn entry(
        &self,
        path: String,
        entry: &Entry,
        rule: (&str, usize),
        listing: &mut Listing,
        next: &mut Vec<Directory>,
    ) -> Result<()> {
        let (tablespace_directory, depth) = rule;
        let (Some(bytes), Some(is_directory)) = (entry.bytes, entry.is_directory) else {
            return Ok(());
        };
        if !is_directory {
            if is_socket(&path) {
                listing.skip(path, NOT_A_FILE);
            } else {
                listing.add_file(path, bytes.max(0).unsigned_abs(), self.file_mode());
            }
            return Ok(());
        }
        if let FileKind::TablespaceLink(oid) = classify(&path)
            && let Some(target) = self.tablespace_target(oid)?
        {
            listing.tablespaces.push(TablespaceLink {
                oid,
                target,
                mode: self.directory_mode(),
            });
            next.push(Directory { path });
            return Ok(());
        }
        let visit = visit(&path, tablespace_directory);
        if visit == Visit::Leave {
            return Ok(());
        }
        listing.add_directory(&path, self.directory_mode());
        match visit {
            Visit::Log => self.log_directories(listing)?,
            Visit::Enter => {
                refuse_depth(&path, depth)?;
                next.push(Directory { path });
            }
            Visit::Empty | Visit::Leave => {}
        }
        Ok(())
    }
}

/// A directory to be listed.
struct Directory {
    /// Empty for the data directory itself.
    path: String,
}

/// A row of a listing.
struct Entry {
    directory: usize,
    name: Vec<u8>,
    bytes: Option<i64>,
    is_directory: Option<bool>,
}

/// Sockets can't be told from files by `pg_stat_file`, and can't be opened either.
fn is_socket(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .and_then(|name| name.strip_prefix(".s.PGSQL."))
        .is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

impl DataDir for AgentlessDataDir {
    fn listing(&self, tablespace_directory: &str) -> Result<Listing> {
        let mut listing = Listing {
            mode: self.mode,
            ..Listing::default()
        };
        let mut level = vec![Directory {
            path: String::new(),
        }];
        let mut depth = 0;
        while !level.is_empty() {
            let mut next = Vec::new();
            for entry in self.entries(&level)? {
                let Some(directory) = level.get(entry.directory) else {
                    return Err(unexpected(&self.info, "a directory that was not asked for"));
                };
                if let Ok(name) = std::str::from_utf8(&entry.name) {
                    let path = below(&directory.path, name);
                    let rule = (tablespace_directory, depth);
                    self.entry(path, &entry, rule, &mut listing, &mut next)?;
                } else {
                    let shown = String::from_utf8_lossy(&entry.name);
                    listing.skip(below(&directory.path, &shown), NAME_NOT_UTF8);
                }
            }
            level = next;
            depth += 1;
        }
        listing.sort();
        Ok(listing)
    }

    fn read_parts(&self, parts: &[FilePart], sink: &mut PartSink<'_>) -> Result<()> {
        let mut done = 0;
        // What `sink` refuses is no failure to read, and is not tried again.
        let mut refused = None;
        while done < parts.len() && refused.is_none() {
            self.ask(async |link| {
                let rest = parts.get(done..).unwrap_or_default();
                let first = done;
                let sql = read_statement(rest.get(..statement_len(rest)).unwrap_or_default());
                copy_out(link, &sql, &[Type::INT4, Type::BYTEA], &mut |row| {
                    if refused.is_some() {
                        return Ok(());
                    }
                    if first + number(link, row)? != done {
                        return Err(unexpected(&self.info, "parts of files out of order"));
                    }
                    refused = sink(done, column(link, row, 1)?).err();
                    done += 1;
                    Ok(())
                })
                .await?;
                let asked = statement_len(rest);
                if done != first + asked && refused.is_none() {
                    return Err(unexpected(
                        &self.info,
                        "fewer parts of files than asked for",
                    ));
                }
                Ok(())
            })?;
        }
        refused.map_or(Ok(()), Err)
    }

    fn digests(&self, files: &[(Arc<str>, u64)]) -> Result<Option<Vec<Option<FileDigest>>>> {
        let mut found = vec![None; files.len()];
        let small: Vec<usize> = (0..files.len())
            .filter(|at| {
                files
                    .get(*at)
                    .is_some_and(|(_, len)| *len <= DIGEST_BYTES_MAX)
            })
            .collect();
        for batch in small.chunks(STATEMENT_PARTS_MAX) {
            let named = batch.iter().filter_map(|at| files.get(*at));
            // One byte more, so that a longer file is not taken for one of this length.
            let values =
                values(named.map(|(path, len)| format!("{}, {}", quote_literal(path), len + 1)));
            // OFFSET 0: the file is read once for both columns.
            let sql = format!(
                "SELECT i, length(c)::bigint, sha256(c) FROM \
                 (SELECT i, pg_read_binary_file(p, 0, n, true) AS c FROM {values} AS v(i, p, n) OFFSET 0) AS r"
            );
            self.ask(async |link| {
                let types = [Type::INT4, Type::INT8, Type::BYTEA];
                copy_out(link, &sql, &types, &mut |row| {
                    let at = batch.get(number(link, row)?).copied();
                    let bytes: Option<i64> = column(link, row, 1)?;
                    let sha256: Option<&[u8]> = column(link, row, 2)?;
                    let place = at.and_then(|at| found.get_mut(at));
                    let Some(place) = place else {
                        return Err(unexpected(&self.info, "a file that was not asked for"));
                    };
                    *place = bytes.zip(sha256).and_then(|(bytes, sha256)| {
                        Some(FileDigest {
                            bytes: u64::try_from(bytes).ok()?,
                            sha256: sha256.try_into().ok()?,
                        })
                    });
                    Ok(())
                })
                .await
            })?;
        }
        Ok(Some(found))
    }

    fn close(&self) {
        self.closed.send_replace(true);
    }

    fn batch_bytes(&self) -> usize {
        STATEMENT_BYTES_MAX
    }
}

impl Files for AgentlessDataDir {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let sql = read_statement(&[FilePart {
            path: as_text(path)?.into(),
            offset: 0,
            bytes: CONFIG_BYTES_MAX,
        }]);
        let content = self.ask(async |link| {
            let mut content = None;
            copy_out(link, &sql, &[Type::INT4, Type::BYTEA], &mut |row| {
                content = column::<Option<&[u8]>>(link, row, 1)?.map(<[u8]>::to_vec);
                Ok(())
            })
            .await?;
            Ok(content)
        });
        match content.map_err(as_io)? {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(content) if content.len() == CONFIG_BYTES_MAX => {
                Err(io::Error::other("it is too long for a configuration file"))
            }
            Some(content) => Ok(content),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let path = quote_literal(as_text(path)?);
        let sql =
            format!("SELECT textsend(f.name) FROM pg_ls_dir({path}, false, false) AS f(name)");
        let names = self.ask(async |link| {
            let mut names = Vec::new();
            copy_out(link, &sql, &[Type::BYTEA], &mut |row| {
                let name: &[u8] = column(link, row, 0)?;
                names.push(String::from_utf8_lossy(name).into_owned());
                Ok(())
            })
            .await?;
            Ok(names)
        });
        names.map_err(as_io)
    }
}

fn as_text(path: &Path) -> io::Result<&str> {
    path.to_str()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, NAME_NOT_UTF8))
}

fn as_io(error: Error) -> io::Error {
    let kind = match error.sqlstate() {
        // insufficient_privilege, undefined_file
        Some("42501") => io::ErrorKind::PermissionDenied,
        Some("58P01") => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// How many of `parts` one statement asks for.
fn statement_len(parts: &[FilePart]) -> usize {
    let mut bytes = 0;
    let fits = parts.iter().take(STATEMENT_PARTS_MAX).take_while(|part| {
        bytes += part.bytes;
        bytes <= STATEMENT_BYTES_MAX
    });
    fits.count().max(1).min(parts.len())
}

fn read_statement(parts: &[FilePart]) -> String {
    let values = values(parts.iter().map(|part| {
        format!(
            "{}, {}, {}",
            quote_literal(&part.path),
            part.offset,
            part.bytes
        )
    }));
    format!(
        "SELECT i, pg_read_binary_file(p, o::bigint, n::bigint, true) FROM {values} AS v(i, p, o, n)"
    )
}

/// Numbered rows, to be named by the statement. Their order is that of the answer.
fn values(rows: impl Iterator<Item = String>) -> String {
    let mut text = String::from("(VALUES ");
    for (number, row) in rows.enumerate() {
        if number > 0 {
            text.push(',');
        }
        text.push('(');
        text.push_str(&number.to_string());
        text.push(',');
        text.push_str(&row);
        text.push(')');
    }
    text.push(')');
    text
}

/// Runs a query and hands its rows to `each`.
async fn copy_out(
    link: &SqlLink,
    sql: &str,
    types: &[Type],
    each: &mut dyn FnMut(&BinaryCopyOutRow) -> Result<()>,
) -> Result<()> {
    let sql = format!("COPY ({sql}) TO STDOUT (FORMAT binary)");
    let silent = || Error::Silent {
        to: link.host().to_string(),
        after: ROW_TIMEOUT,
    };
    let stream = tokio::time::timeout(ROW_TIMEOUT, link.client().copy_out(&sql))
        .await
        .map_err(|_| silent())?
        .map_err(|error| link.error(&error))?;
    let mut rows = pin!(BinaryCopyOutStream::new(stream, types));
    while let Some(row) = tokio::time::timeout(ROW_TIMEOUT, rows.next())
        .await
        .map_err(|_| silent())?
    {
        each(&row.map_err(|error| link.error(&error))?)?;
    }
    Ok(())
}

fn column<'r, T: tokio_postgres::types::FromSql<'r>>(
    link: &SqlLink,
    row: &'r BinaryCopyOutRow,
    at: usize,
) -> Result<T> {
    row.try_get(at).map_err(|error| link.error(&error))
}

/// The number of what a row answers.
fn number(link: &SqlLink, row: &BinaryCopyOutRow) -> Result<usize> {
    usize::try_from(column::<i32>(link, row, 0)?)
        .map_err(|_| unexpected(&link.info(), "a row below 0"))
}

fn unexpected(info: &ConnInfo, detail: &str) -> Error {
    Error::Protocol {
        to: info
            .hosts
            .first()
            .map(ToString::to_string)
            .unwrap_or_default(),
        detail: detail.to_owned(),
    }
}

/// Says what can be done about a server's answer.
fn explain(error: Error) -> Error {
    match error.sqlstate() {
        Some(NOT_IN_ENCODING) => Error::Refused(format!(
            "the name of a file can't be written in the encoding of the database that --source names; name one in UTF8 ({error})"
        )),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(path: &str, offset: u64, bytes: usize) -> FilePart {
        FilePart {
            path: path.into(),
            offset,
            bytes,
        }
    }

    #[test]
    fn one_statement_is_bounded_by_bytes_and_by_ranges() {
        let mib = 1 << 20;
        let large: Vec<_> = (0..10)
            .map(|at| part("f", at * mib, mib as usize))
            .collect();
        assert_eq!(statement_len(&large), 4);
        assert_eq!(statement_len(large.get(8..).expect("ten")), 2);
        let small = vec![part("f", 0, 512); 5000];
        assert_eq!(statement_len(&small), STATEMENT_PARTS_MAX);
        assert_eq!(statement_len(&[]), 0);
    }

    #[test]
    fn paths_are_quoted() {
        assert_eq!(
            read_statement(&[part("it's", 7, 8), part("b", 0, 1)]),
            "SELECT i, pg_read_binary_file(p, o::bigint, n::bigint, true) FROM \
             (VALUES (0,'it''s', 7, 8),(1,'b', 0, 1)) AS v(i, p, o, n)"
        );
    }

    #[test]
    fn a_socket_in_the_data_directory_is_told_by_its_name() {
        assert!(is_socket(".s.PGSQL.5432"));
        assert!(is_socket("own/.s.PGSQL.5432"));
        assert!(!is_socket(".s.PGSQL.5432.lock"));
        assert!(!is_socket(".s.PGSQL."));
    }
}
