//! A data directory on this machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use borealis_base::Timestamp;
use borealis_pg_format::ControlFile;
use borealis_pg_format::files::{FileKind, classify};

use super::config_files::Files;
use super::{
    DataDir, FilePart, LOG_DIRECTORIES, Listing, PART_BYTES_MAX, PartSink, TablespaceLink, Visit,
    below, refuse_depth, visit,
};
use crate::error::{Error, Result};
use crate::link::SqlLink;

/// How often the control file here and the server's are compared: the server may write it in between.
const COMPARISONS_MAX: u32 = 5;

/// A data directory on this machine.
#[derive(Debug, Clone)]
pub struct LocalDataDir {
    path: PathBuf,
}

impl LocalDataDir {
    /// The one at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl DataDir for LocalDataDir {
    fn listing(&self, tablespace_directory: &str) -> Result<Listing> {
        walk(&self.path, tablespace_directory)
    }

    fn read_parts(&self, parts: &[FilePart], sink: &mut PartSink<'_>) -> Result<()> {
        let longest = parts.iter().map(|part| part.bytes).max().unwrap_or(0);
        let mut buffer = vec![0; longest];
        let mut open: Option<(&str, PathBuf, Option<File>)> = None;
        for (number, part) in parts.iter().enumerate() {
            if open.as_ref().is_none_or(|(path, ..)| **path != *part.path) {
                let path = self.path.join(&*part.path);
                let file = match File::open(&path) {
                    Ok(file) => Some(file),
                    Err(error) if has_vanished(&error) => None,
                    Err(error) => return Err(Error::file("open", path, error)),
                };
                open = Some((&part.path, path, file));
            }
            let Some((_, path, Some(file))) = &open else {
                sink(number, None)?;
                continue;
            };
            let buffer = buffer
                .get_mut(..part.bytes)
                .expect("the buffer is as long as the longest part");
            let read = read_full(file, buffer, part.offset)
                .map_err(|error| Error::file("read", path, error))?;
            sink(number, buffer.get(..read))?;
        }
        Ok(())
    }

    fn batch_bytes(&self) -> usize {
        PART_BYTES_MAX
    }
}

impl Files for LocalDataDir {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }
}

/// Reads until `buffer` is full or the file ends; returns how much came.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What of a control file tells a running server's own from a copy of it: the server writes the time with
/// every change, and a standby has a position to recover to that its primary has not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marks {
    system_id: u64,
    written: Timestamp,
    checkpoint: u64,
    redo: u64,
    recovery_end: u64,
}

impl Marks {
    fn of(control: &ControlFile) -> Self {
        Self {
            system_id: control.system_identifier,
            written: control.time,
            checkpoint: control.checkpoint_lsn.0,
            redo: control.checkpoint.redo.0,
            recovery_end: control.min_recovery_point.0,
        }
    }

    /// As the server reads its own file; any role may ask.
    async fn of_server(link: &SqlLink) -> Result<Self> {
        let row = link
            .row(
                "SELECT s.system_identifier AS id, \
                 (extract(epoch FROM s.pg_control_last_modified) * 1000000)::bigint AS written, \
                 c.checkpoint_lsn, c.redo_lsn, r.min_recovery_end_lsn \
                 FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r",
            )
            .await?;
        Ok(Self {
            system_id: row.get::<i64>("id")?.cast_unsigned(),
            written: Timestamp(row.get("written")?),
            checkpoint: row.position("checkpoint_lsn")?.0,
            redo: row.position("redo_lsn")?.0,
            recovery_end: row.position("min_recovery_end_lsn")?.0,
        })
    }
}

/// Why `dir` is not the data directory that the server at `link` runs on, on this machine; `None` where it
/// is. The directory of a standby, of a clone or of a stopped copy has the same system identifier, and may
/// have the same path on another machine.
///
/// # Errors
/// A lost link.
pub async fn why_not_the_servers(dir: &Path, link: &SqlLink) -> Result<Option<String>> {
    let path = dir.join("global/pg_control");
    let mut found = None;
    for _ in 0..COMPARISONS_MAX {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Some(format!("read {}: {error}", path.display()))),
        };
        let here = match ControlFile::parse(&bytes) {
            Ok(control) => Marks::of(&control),
            // The server may be writing it.
            Err(error) => {
                found = Some(error.to_string());
                continue;
            }
        };
        let server = Marks::of_server(link).await?;
        if here == server {
            return Ok(None);
        }
        if here.system_id != server.system_id {
            return Ok(Some(format!(
                "holds cluster {}, not {}",
                here.system_id, server.system_id
            )));
        }
        found = Some(format!(
            "its control file was written {} and the server's {}: a copy, or another server of this cluster",
            here.written, server.written
        ));
    }
    Ok(found)
}

/// Why an entry is left out.
pub(super) const NAME_NOT_UTF8: &str = "its name is not UTF-8";
/// Why an entry is left out. Sockets and pipes: a server's socket may lie in its data directory.
pub(super) const NOT_A_FILE: &str = "not a plain file";

/// Whether a failure only says that something has gone since it was listed.
fn has_vanished(error: &io::Error) -> bool {
    // ENOTDIR: a directory was replaced by a file between two looks.
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn walk(data_dir: &Path, tablespace_directory: &str) -> Result<Listing> {
    let meta = std::fs::metadata(data_dir).map_err(|e| Error::file("read", data_dir, e))?;
    let mut listing = Listing {
        mode: meta.permissions().mode() & 0o7777,
        ..Listing::default()
    };
    let walker = Walker {
        tablespace_directory,
    };
    walker.directory(data_dir, "", 0, &mut listing)?;
    listing.sort();
    Ok(listing)
}

struct Walker<'a> {
    tablespace_directory: &'a str,
}

impl Walker<'_> {
    fn directory(
        &self,
        directory: &Path,
        inside: &str,
        depth: usize,
        listing: &mut Listing,
    ) -> Result<()> {
        let failed = |e| Error::file("list", directory, e);
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if has_vanished(&error) && !inside.is_empty() => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if has_vanished(&error) => continue,
                Err(error) => return Err(failed(error)),
            };
            let Ok(name) = entry.file_name().into_string() else {
                let shown = entry.file_name().to_string_lossy().into_owned();
                listing.skip(below(inside, &shown), NAME_NOT_UTF8);
                continue;
            };
            self.entry(&entry.path(), below(inside, &name), depth, listing)?;
        }
        Ok(())
    }

    fn entry(&self, file: &Path, path: String, depth: usize, listing: &mut Listing) -> Result<()> {
        let meta = match std::fs::symlink_metadata(file) {
            Ok(meta) => meta,
            Err(error) if has_vanished(&error) => return Ok(()),
            Err(error) => return Err(Error::file("read", file, error)),
        };
        if meta.is_symlink() {
            return self.link(file, path, depth, listing);
        }
        if meta.is_dir() {
            return self.subdirectory(file, &path, &meta, depth, listing);
        }
        if meta.is_file() {
            listing.add_file(path, meta.len(), meta.permissions().mode() & 0o7777);
        } else {
            listing.skip(path, NOT_A_FILE);
        }
        Ok(())
    }

    fn subdirectory(
        &self,
        directory: &Path,
        path: &str,
        meta: &std::fs::Metadata,
        depth: usize,
        listing: &mut Listing,
    ) -> Result<()> {
        let visit = visit(path, self.tablespace_directory);
        if visit == Visit::Leave {
            return Ok(());
        }
        listing.add_directory(path, meta.permissions().mode() & 0o7777);
        match visit {
            Visit::Log => log_directories(directory, listing),
            Visit::Enter => {
                refuse_depth(path, depth)?;
                self.directory(directory, path, depth + 1, listing)
            }
            Visit::Empty | Visit::Leave => Ok(()),
        }
    }

    /// Links are followed where PostgreSQL makes them (tablespaces, `pg_wal`) and to plain files.
    fn link(&self, file: &Path, path: String, depth: usize, listing: &mut Listing) -> Result<()> {
        let meta = match std::fs::metadata(file) {
            Ok(meta) => meta,
            Err(error) if has_vanished(&error) => {
                listing.skip(path, "a link that leads nowhere");
                return Ok(());
            }
            Err(error) => return Err(Error::file("read", file, error)),
        };
        if let FileKind::TablespaceLink(oid) = classify(&path) {
            let target = std::fs::read_link(file).map_err(|e| Error::file("read", file, e))?;
            listing.tablespaces.push(TablespaceLink {
                oid,
                target,
                mode: meta.permissions().mode() & 0o7777,
            });
            return self.directory(file, &path, depth + 1, listing);
        }
        if path == "pg_wal" {
            return self.subdirectory(file, &path, &meta, depth, listing);
        }
        if meta.is_file() {
            listing.add_file(path, meta.len(), meta.permissions().mode() & 0o7777);
        } else {
            listing.skip(
                path,
                "a link to a directory outside; only tablespaces are followed",
            );
        }
        Ok(())
    }
}

fn log_directories(directory: &Path, listing: &mut Listing) -> Result<()> {
    for path in LOG_DIRECTORIES {
        let place = directory.join(path.trim_start_matches("pg_wal/"));
        match std::fs::metadata(&place) {
            Ok(meta) if meta.is_dir() => {
                listing.add_directory(path, meta.permissions().mode() & 0o7777);
            }
            Ok(_) => {}
            Err(error) if has_vanished(&error) => {}
            Err(error) => return Err(Error::file("read", place, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str) {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().expect("has a parent")).expect("writable");
        std::fs::write(file, path).expect("writable");
    }

    #[test]
    fn listing_holds_what_a_restore_needs_and_no_more() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, space) = (root.path().join("data"), root.path().join("space"));
        for path in [
            "PG_VERSION",
            "postmaster.pid",
            "global/pg_control",
            "base/5/1259",
            "base/5/t3_16400",
            "base/5/pgsql_tmp/pgsql_tmp7.0",
            "base/pgsql_tmp/pgsql_tmp7.1",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x.ready",
            "pg_replslot/ours/state",
            "pg_stat_tmp/x",
            "pg_tblspc/.keep",
            "own/deep/file",
        ] {
            put(&data, path);
        }
        put(&space, "PG_15_202209061/5/16390");
        put(&space, "PG_14_202107181/5/16390");
        let link = |to: &Path, at: &str| {
            std::os::unix::fs::symlink(to, data.join(at)).expect("writable");
        };
        link(&space, "pg_tblspc/16385");
        link(&space, "elsewhere");
        link(&root.path().join("nothing"), "dangling");
        let listing = walk(&data, "PG_15_202209061").expect("readable");
        let files: Vec<_> = listing.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(
            files,
            [
                "PG_VERSION",
                "base/5/1259",
                "base/5/t3_16400",
                "global/pg_control",
                "own/deep/file",
                "pg_tblspc/.keep",
                "pg_tblspc/16385/PG_15_202209061/5/16390",
            ]
        );
        let directories: Vec<_> = listing.directories.iter().map(|d| &d.path).collect();
        assert_eq!(
            directories,
            [
                "base",
                "base/5",
                "global",
                "own",
                "own/deep",
                "pg_replslot",
                "pg_stat_tmp",
                "pg_tblspc",
                "pg_tblspc/16385/PG_15_202209061",
                "pg_tblspc/16385/PG_15_202209061/5",
                "pg_wal",
                "pg_wal/archive_status",
            ]
        );
        assert_eq!(listing.tablespaces[0].target, space);
        let mut skipped: Vec<_> = listing.skipped.iter().map(|(path, _)| path).collect();
        skipped.sort();
        assert_eq!(skipped, ["dangling", "elsewhere"]);
    }

    #[test]
    fn missing_data_directory_is_not_an_empty_one() {
        let error = walk(Path::new("/nonexistent/data"), "x").expect_err("absent");
        assert_eq!(error.kind(), borealis_base::ErrorKind::NotFound);
    }
}
