//! A cluster's files, wherever they are read from: on this machine ([`LocalDataDir`]) or through the
//! server's own SQL ([`AgentlessDataDir`]). All functions of a [`DataDir`] block: they are for worker
//! threads.
//!
//! Files come and go while they are looked at. That a file has vanished is an answer here, never an
//! error: the log says what became of it.

mod access;
pub mod agentless;
pub mod config_files;
mod local;
pub mod page_reader;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use borealis_pg_format::files::{EMPTIED_DIRECTORIES, FileKind, classify};

use crate::error::{Error, Result};

pub use access::{Access, Agentless, choose};
pub use agentless::AgentlessDataDir;
pub use local::LocalDataDir;
pub use local::why_not_the_servers;

/// How deep directories may lie; a data directory has five levels, tablespaces included.
const DEPTH_MAX: usize = 16;

/// The most bytes of one [`FilePart`].
pub const PART_BYTES_MAX: usize = 1 << 20;

/// Files of a running cluster. Paths are relative to the data directory, with `/` between their parts;
/// tablespaces are seen through `pg_tblspc`. Configuration files, which may lie elsewhere, have whole paths.
pub trait DataDir: config_files::Files + Debug + Send + Sync {
    /// Lists the files. Of a tablespace only `tablespace_directory` counts (such as `PG_15_202209061`):
    /// the directories of other major versions belong to other clusters.
    ///
    /// # Errors
    /// `NotFound` where the data directory itself is not there, `Refused` where something may not be read.
    fn listing(&self, tablespace_directory: &str) -> Result<Listing>;

    /// Reads parts of files, and hands each answer to `sink` once, in order.
    ///
    /// # Errors
    /// What `sink` returns, and failures to read. That a file is not there or ends early is an answer.
    fn read_parts(&self, parts: &[FilePart], sink: &mut PartSink<'_>) -> Result<()>;

    /// The lengths and hashes of whole files, each given with the length that it is expected to have,
    /// where that costs less than reading them: `None` where it does not. A longer file may be answered
    /// with any greater length, one that has vanished with `None`.
    fn digests(&self, _files: &[(Arc<str>, u64)]) -> Result<Option<Vec<Option<FileDigest>>>> {
        Ok(None)
    }

    /// Ends what is being read, on whatever thread, with `Interrupted`: nobody waits for it any longer.
    fn close(&self) {}

    /// How many bytes of pages are best asked for at a time. Each reader holds so many.
    fn batch_bytes(&self) -> usize;
}

/// A range of bytes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePart {
    /// The file.
    pub path: Arc<str>,
    /// Where it begins.
    pub offset: u64,
    /// How many bytes are wanted, at most [`PART_BYTES_MAX`].
    pub bytes: usize,
}

/// Receives the number of a part and what was read: `None` where there is no such file, and fewer bytes
/// than were asked for where it ends before them.
pub type PartSink<'s> = dyn FnMut(usize, Option<&[u8]>) -> Result<()> + 's;

/// Length and SHA-256 of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest {
    /// Its length in bytes.
    pub bytes: u64,
    /// The hash of its content.
    pub sha256: [u8; 32],
}

/// Reads a whole file from `from` on, in parts, up to `most` bytes; `None` where there is none.
pub fn read_file(dir: &dyn DataDir, path: &str, most: usize) -> Result<Option<Vec<u8>>> {
    let path: Arc<str> = path.into();
    let mut content = Vec::new();
    loop {
        let wanted = PART_BYTES_MAX.min(most - content.len());
        let part = FilePart {
            path: path.clone(),
            offset: content.len() as u64,
            bytes: wanted,
        };
        let mut read = None;
        dir.read_parts(&[part], &mut |_, bytes| {
            read = bytes.map(<[u8]>::len);
            content.extend_from_slice(bytes.unwrap_or_default());
            Ok(())
        })?;
        match read {
            None => return Ok(None),
            Some(read) if read < wanted || content.len() == most => return Ok(Some(content)),
            Some(_) => {}
        }
    }
}

/// A file that belongs to a base backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its path below the data directory, with tablespaces as `pg_tblspc/OID/…`.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Its length when it was looked at.
    pub bytes: u64,
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

/// What a listing does with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visit {
    /// It is no part of a base backup.
    Leave,
    /// It must exist after a restore, without its contents.
    Empty,
    /// `pg_wal`: the log is kept as a log.
    Log,
    /// Its contents belong to a base backup.
    Enter,
}

/// The directories below `pg_wal` that must exist for the server to start.
const LOG_DIRECTORIES: [&str; 2] = ["pg_wal/archive_status", "pg_wal/summaries"];

/// What to do with the directory at `path`.
fn visit(path: &str, tablespace_directory: &str) -> Visit {
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.starts_with("pgsql_tmp") || path == "lost+found" {
        return Visit::Leave;
    }
    let mut parts = path.split('/');
    if let (Some("pg_tblspc"), Some(_), Some(inside), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
        && inside != tablespace_directory
    {
        return Visit::Leave;
    }
    if path == "pg_wal" {
        Visit::Log
    } else if EMPTIED_DIRECTORIES.contains(&path) {
        Visit::Empty
    } else {
        Visit::Enter
    }
}

fn refuse_depth(path: &str, depth: usize) -> Result<()> {
    if depth < DEPTH_MAX {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{path} lies more than {DEPTH_MAX} directories deep"
    )))
}

impl Listing {
    fn add_directory(&mut self, path: &str, mode: u32) {
        self.directories.push(DirectoryEntry {
            path: path.to_owned(),
            mode,
        });
    }

    fn add_file(&mut self, path: String, bytes: u64, mode: u32) {
        let kind = classify(&path);
        if matches!(kind, FileKind::Excluded | FileKind::Log) {
            return;
        }
        self.files.push(FileEntry {
            path,
            kind,
            bytes,
            mode,
        });
    }

    fn skip(&mut self, path: String, reason: &str) {
        self.skipped.push((path, reason.to_owned()));
    }

    fn sort(&mut self) {
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.directories.sort_by(|a, b| a.path.cmp(&b.path));
        self.tablespaces.sort_by_key(|link| link.oid);
    }
}

/// `name` in `directory`, which is empty for the data directory itself.
fn below(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_entered_by_their_whole_path() {
        let ours = "PG_15_202209061";
        for (path, expected) in [
            ("base", Visit::Enter),
            ("base/pgsql_tmp", Visit::Leave),
            ("pg_wal", Visit::Log),
            ("base/pg_wal", Visit::Enter),
            ("pg_replslot", Visit::Empty),
            ("own/pg_replslot", Visit::Enter),
            ("lost+found", Visit::Leave),
            ("own/lost+found", Visit::Enter),
            ("pg_tblspc", Visit::Enter),
            ("pg_tblspc/7", Visit::Enter),
            ("pg_tblspc/7/PG_15_202209061", Visit::Enter),
            ("pg_tblspc/7/PG_14_202107181", Visit::Leave),
            ("pg_tblspc/7/PG_15_202209061/5", Visit::Enter),
        ] {
            assert_eq!(visit(path, ours), expected, "{path}");
        }
    }
}
