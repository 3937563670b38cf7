//! A cluster's files on this machine. All functions block: they are for worker threads.
//!
//! Files come and go while they are looked at. That a file has vanished is an answer here, never an
//! error: the log says what became of it.

pub mod config_files;
pub mod page_reader;

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use borealis_pg_format::files::{EMPTIED_DIRECTORIES, FileKind, classify};

use crate::error::{Error, Result};

/// How deep directories may lie; a data directory has five levels, tablespaces included.
const DEPTH_MAX: usize = 16;

/// A file that belongs to a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its path below the data directory, with tablespaces as `pg_tblspc/OID/…`.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Its length when it was looked at.
    pub bytes: u64,
    /// When its content last changed, in nanoseconds since 1970, by the file system.
    pub modified_ns: i128,
    /// Its inode number.
    pub inode: u64,
    /// Its permission bits.
    pub mode: u32,
}

/// A directory that must exist after a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its path below the data directory.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    /// Its number.
    pub oid: u32,
    /// Where its link points to.
    pub target: PathBuf,
    /// The permission bits of that directory.
    pub mode: u32,
}

/// What a data directory holds, without the log and without what a server makes anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Permission bits of the data directory itself.
    pub mode: u32,
    /// Files, sorted by path.
    pub files: Vec<FileEntry>,
    /// Directories, sorted by path, parents first.
    pub directories: Vec<DirectoryEntry>,
    /// Tablespaces outside.
    pub tablespaces: Vec<TablespaceLink>,
    /// Entries that are left out and that nobody would expect to be: path and reason.
    pub skipped: Vec<(String, String)>,
}

/// Whether a failure only says that something has gone since it was listed.
fn has_vanished(error: &io::Error) -> bool {
    // ENOTDIR: a directory was replaced by a file between two looks.
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Lists `data_dir`. Of a tablespace only `tablespace_directory` counts (such as `PG_15_202209061`):
/// the directories of other major versions belong to other clusters.
///
/// # Errors
/// `NotFound` where `data_dir` itself is not there, `Refused` where something may not be read.
pub fn walk(data_dir: &Path, tablespace_directory: &str) -> Result<Listing> {
    let meta = std::fs::metadata(data_dir).map_err(|e| Error::file("read", data_dir, e))?;
    let mut listing = Listing {
        mode: meta.permissions().mode() & 0o7777,
        ..Listing::default()
    };
    let walker = Walker {
        tablespace_directory,
    };
    walker.directory(data_dir, "", 0, &mut listing)?;
    listing.files.sort_by(|a, b| a.path.cmp(&b.path));
    listing.directories.sort_by(|a, b| a.path.cmp(&b.path));
    listing.tablespaces.sort_by_key(|link| link.oid);
    Ok(listing)
}

struct Walker<'a> {
    tablespace_directory: &'a str,
}

impl Walker<'_> {
    fn directory(
        &self,
        directory: &Path,
        below: &str,
        depth: usize,
        listing: &mut Listing,
    ) -> Result<()> {
        let failed = |e| Error::file("list", directory, e);
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if has_vanished(&error) && !below.is_empty() => return Ok(()),
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
                skip(listing, below, &shown, "its name is not UTF-8");
                continue;
            };
            let path = if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            };
            self.entry(&entry.path(), path, depth, listing)?;
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
            add_file(path, &meta, listing);
        } else {
            // Sockets and pipes: a server's socket may lie in its data directory.
            listing.skipped.push((path, "not a plain file".to_owned()));
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
        let name = path.rsplit('/').next().unwrap_or_default();
        if name.starts_with("pgsql_tmp") || path == "lost+found" {
            return Ok(());
        }
        let mode = meta.permissions().mode() & 0o7777;
        let parts: Vec<_> = path.split('/').collect();
        if let ["pg_tblspc", _, inside] = parts[..]
            && inside != self.tablespace_directory
        {
            return Ok(());
        }
        let emptied = EMPTIED_DIRECTORIES.contains(&path);
        listing.directories.push(DirectoryEntry {
            path: path.to_owned(),
            mode,
        });
        if path == "pg_wal" {
            return log_directories(directory, listing);
        }
        if emptied {
            return Ok(());
        }
        if depth >= DEPTH_MAX {
            return Err(Error::Refused(format!(
                "{} lies more than {DEPTH_MAX} directories deep",
                directory.display()
            )));
        }
        self.directory(directory, path, depth + 1, listing)
    }

    /// Links are followed where PostgreSQL makes them (tablespaces, `pg_wal`) and to plain files.
    fn link(&self, file: &Path, path: String, depth: usize, listing: &mut Listing) -> Result<()> {
        let meta = match std::fs::metadata(file) {
            Ok(meta) => meta,
            Err(error) if has_vanished(&error) => {
                listing
                    .skipped
                    .push((path, "a link that leads nowhere".to_owned()));
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
            add_file(path, &meta, listing);
        } else {
            listing.skipped.push((
                path,
                "a link to a directory outside; only tablespaces are followed".to_owned(),
            ));
        }
        Ok(())
    }
}

/// The log is kept as a log; the directories below `pg_wal` must exist for the server to start.
fn log_directories(directory: &Path, listing: &mut Listing) -> Result<()> {
    for name in ["archive_status", "summaries"] {
        match std::fs::metadata(directory.join(name)) {
            Ok(meta) if meta.is_dir() => listing.directories.push(DirectoryEntry {
                path: format!("pg_wal/{name}"),
                mode: meta.permissions().mode() & 0o7777,
            }),
            Ok(_) => {}
            Err(error) if has_vanished(&error) => {}
            Err(error) => return Err(Error::file("read", directory.join(name), error)),
        }
    }
    Ok(())
}

fn add_file(path: String, meta: &std::fs::Metadata, listing: &mut Listing) {
    let kind = classify(&path);
    if matches!(kind, FileKind::Excluded | FileKind::Log) {
        return;
    }
    listing.files.push(FileEntry {
        path,
        kind,
        bytes: meta.len(),
        modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        inode: meta.ino(),
        mode: meta.permissions().mode() & 0o7777,
    });
}

fn skip(listing: &mut Listing, below: &str, name: &str, reason: &str) {
    listing
        .skipped
        .push((format!("{below}/{name}"), reason.to_owned()));
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
