//! What a file of the data directory is, by its place and name.
//!
//! The path is taken apart and each part is compared with the catalogue of known names, never with
//! a part of a name: a data directory below `/srv/database/base` must not make its transaction
//! status files look like relations. What no rule knows is a [`FileKind::Blob`]: taken whole, every
//! time.

use crate::relation::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use crate::{DatabaseFiles, Fork, Relation};

/// One file of a relation's fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// Which relation.
    pub relation: Relation,
    /// Which of its forks.
    pub fork: Fork,
    /// Which segment of the fork, from 0; each but the last holds `relation_segment_pages` pages.
    pub segment: u32,
}

/// A log of fixed-size records that the server keeps in pages of its own (`access/slru.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slru {
    /// `pg_xact`: which transactions committed.
    TransactionStatus,
    /// `pg_commit_ts`: when they did.
    CommitTimestamps,
    /// `pg_multixact/members`.
    MultixactMembers,
    /// `pg_multixact/offsets`.
    MultixactOffsets,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Pages of a relation.
    Relation(RelationFile),
    /// Pages of another session's temporary relation: worthless after a restart.
    TemporaryRelation,
    /// Transaction status and the like.
    Slru(Slru),
    /// `pg_filenode.map`: which files the mapped catalogs have.
    RelationMap(DatabaseFiles),
    /// `global/pg_control`: read last, written last.
    ControlFile,
    /// `PG_VERSION`, of the cluster or of a database.
    Version,
    /// Configuration that lives in the data directory.
    Configuration,
    /// The state of a prepared transaction that a checkpoint wrote out.
    TwoPhase,
    /// The link to a tablespace, by its object identifier.
    TablespaceLink(u32),
    /// The log itself, which is kept as a log and not as files.
    Log,
    /// What the server makes anew at start, and what `pg_basebackup` leaves out.
    Excluded,
    /// Everything else: taken whole, every time.
    Blob,
}

/// Directories whose contents are left out, though the directories themselves must exist after a
/// restore (`excludeDirContents` in `backup/basebackup.c`).
pub const EMPTIED_DIRECTORIES: [&str; 7] = [
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];

/// Files left out wherever they lie (`excludeFiles` in `backup/basebackup.c`).
const EXCLUDED_FILES: [&str; 7] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];

/// Names that are left out, with whatever follows them: the relation cache and its temporary files,
/// and temporary files of queries (`PG_TEMP_FILE_PREFIX`).
const EXCLUDED_PREFIXES: [&str; 2] = ["pg_internal.init", "pgsql_tmp"];

const CONFIGURATION: [&str; 4] = [
    "postgresql.conf",
    "postgresql.auto.conf",
    "pg_hba.conf",
    "pg_ident.conf",
];

/// What the file at `path` is. The path is relative to the data directory, with `/` between its
/// parts; tablespaces are seen through `pg_tblspc`, whatever their links point to.
pub fn classify(path: &str) -> FileKind {
    let mut parts = path.split('/');
    let name = parts.next_back().unwrap_or_default();
    if is_excluded_name(name) || parts.clone().any(|part| part.starts_with("pgsql_tmp")) {
        return FileKind::Excluded;
    }
    let mut directory = [""; 4];
    let mut depth = 0;
    for part in parts {
        let Some(slot) = directory.get_mut(depth) else {
            return deep(path);
        };
        *slot = part;
        depth += 1;
    }
    match directory.get(..depth).unwrap_or_default() {
        [] => top(name),
        ["global"] => in_global(name),
        ["base", database] => in_database(DEFAULT_TABLESPACE, database, name),
        ["pg_tblspc"] => number(name).map_or(FileKind::Blob, FileKind::TablespaceLink),
        ["pg_tblspc", tablespace, version, database] if is_tablespace_directory(version) => {
            number(tablespace).map_or(FileKind::Blob, |tablespace| {
                in_database(tablespace, database, name)
            })
        }
        ["pg_xact"] => slru(Slru::TransactionStatus, name),
        ["pg_commit_ts"] => slru(Slru::CommitTimestamps, name),
        ["pg_multixact", "members"] => slru(Slru::MultixactMembers, name),
        ["pg_multixact", "offsets"] => slru(Slru::MultixactOffsets, name),
        ["pg_twophase"] if is_hex(name) => FileKind::TwoPhase,
        _ => deep(path),
    }
}

/// A rule that names a whole directory, at whatever depth the file lies below it.
fn deep(path: &str) -> FileKind {
    let first = path.split('/').next().unwrap_or_default();
    if first == "pg_wal" {
        FileKind::Log
    } else if EMPTIED_DIRECTORIES.contains(&first) && path.len() > first.len() {
        FileKind::Excluded
    } else {
        FileKind::Blob
    }
}

fn is_excluded_name(name: &str) -> bool {
    EXCLUDED_FILES.contains(&name)
        || EXCLUDED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

fn top(name: &str) -> FileKind {
    match name {
        "PG_VERSION" => FileKind::Version,
        name if CONFIGURATION.contains(&name) => FileKind::Configuration,
        _ => FileKind::Blob,
    }
}

fn in_global(name: &str) -> FileKind {
    match name {
        "pg_control" => FileKind::ControlFile,
        "pg_filenode.map" => FileKind::RelationMap(DatabaseFiles {
            tablespace: GLOBAL_TABLESPACE,
            database: 0,
        }),
        name => relation(GLOBAL_TABLESPACE, 0, name),
    }
}

fn in_database(tablespace: u32, database: &str, name: &str) -> FileKind {
    let Some(database) = number(database) else {
        return FileKind::Blob;
    };
    match name {
        "PG_VERSION" => FileKind::Version,
        "pg_filenode.map" => FileKind::RelationMap(DatabaseFiles {
            tablespace,
            database,
        }),
        name => relation(tablespace, database, name),
    }
}

/// `123`, `123_fsm`, `123.4`, `123_vm.1`; with `t<backend>_` before it, a temporary one
/// (`parse_filename_for_nontemp_relation` and `looks_like_temp_rel_name`).
fn relation(tablespace: u32, database: u32, name: &str) -> FileKind {
    if let Some((backend, rest)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) {
        let temporary = number(backend).is_some() && relation_name(rest).is_some();
        return if temporary {
            FileKind::TemporaryRelation
        } else {
            FileKind::Blob
        };
    }
    let Some((file_number, fork, segment)) = relation_name(name) else {
        return FileKind::Blob;
    };
    FileKind::Relation(RelationFile {
        relation: Relation {
            tablespace,
            database,
            number: file_number,
        },
        fork,
        segment,
    })
}

fn relation_name(name: &str) -> Option<(u32, Fork, u32)> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, number(segment)?),
        None => (name, 0),
    };
    let (digits, fork) = match stem.split_once('_') {
        Some((digits, "fsm")) => (digits, Fork::FreeSpaceMap),
        Some((digits, "vm")) => (digits, Fork::VisibilityMap),
        Some((digits, "init")) => (digits, Fork::Init),
        Some(_) => return None,
        None => (stem, Fork::Main),
    };
    Some((number(digits)?, fork, segment))
}

impl RelationFile {
    /// The file's path, relative to the data directory. `tablespace_directory` is what the server's
    /// version makes inside a tablespace ([`crate::Version::tablespace_directory`]).
    pub fn path(&self, tablespace_directory: &str) -> String {
        let Relation {
            tablespace,
            database,
            number,
        } = self.relation;
        let directory = match tablespace {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{database}"),
            other => format!("pg_tblspc/{other}/{tablespace_directory}/{database}"),
        };
        let suffix = self.fork.suffix();
        match self.segment {
            0 => format!("{directory}/{number}{suffix}"),
            segment => format!("{directory}/{number}{suffix}.{segment}"),
        }
    }
}

/// A positive number as PostgreSQL writes it: no sign, no leading zero.
fn number(text: &str) -> Option<u32> {
    let valid = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| text.parse().ok()).flatten()
}

/// `PG_15_202209061`. The version is not compared with the server's: a tablespace can also hold
/// what an upgrade left behind, and only [`RelationFile::path`] decides what belongs to the running
/// one.
fn is_tablespace_directory(name: &str) -> bool {
    name.strip_prefix("PG_")
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(major, catalog)| number(major).is_some() && number(catalog).is_some())
}

fn is_hex(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}

/// SLRU segments have hexadecimal names of four digits or more (`SlruFileName`).
fn slru(which: Slru, name: &str) -> FileKind {
    if is_hex(name) && name.len() >= 4 {
        FileKind::Slru(which)
    } else {
        FileKind::Blob
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;
    use proptest::prelude::*;

    fn fork_file(spc: u32, db: u32, rel: u32, fork: Fork, segment: u32) -> FileKind {
        FileKind::Relation(RelationFile {
            relation: Relation {
                tablespace: spc,
                database: db,
                number: rel,
            },
            fork,
            segment,
        })
    }

    #[test]
    fn every_known_file_is_recognised() {
        let map = |tablespace, database| {
            FileKind::RelationMap(DatabaseFiles {
                tablespace,
                database,
            })
        };
        for (path, kind) in [
            ("base/5/1259", fork_file(1663, 5, 1259, Fork::Main, 0)),
            ("base/5/1259.12", fork_file(1663, 5, 1259, Fork::Main, 12)),
            (
                "base/5/1259_fsm",
                fork_file(1663, 5, 1259, Fork::FreeSpaceMap, 0),
            ),
            (
                "base/5/1259_vm.1",
                fork_file(1663, 5, 1259, Fork::VisibilityMap, 1),
            ),
            (
                "base/5/16400_init",
                fork_file(1663, 5, 16400, Fork::Init, 0),
            ),
            (
                "base/5/4294967295",
                fork_file(1663, 5, u32::MAX, Fork::Main, 0),
            ),
            ("global/1262", fork_file(1664, 0, 1262, Fork::Main, 0)),
            (
                "pg_tblspc/16385/PG_15_202209061/5/16390",
                fork_file(16385, 5, 16390, Fork::Main, 0),
            ),
            ("pg_tblspc/16385", FileKind::TablespaceLink(16385)),
            ("base/5/t3_16400", FileKind::TemporaryRelation),
            ("base/5/t3_16400_fsm.1", FileKind::TemporaryRelation),
            ("base/5/pg_filenode.map", map(1663, 5)),
            ("global/pg_filenode.map", map(1664, 0)),
            (
                "pg_tblspc/16385/PG_15_202209061/5/pg_filenode.map",
                map(16385, 5),
            ),
            ("global/pg_control", FileKind::ControlFile),
            ("PG_VERSION", FileKind::Version),
            ("base/5/PG_VERSION", FileKind::Version),
            ("postgresql.auto.conf", FileKind::Configuration),
            ("pg_hba.conf", FileKind::Configuration),
            ("pg_xact/0000", FileKind::Slru(Slru::TransactionStatus)),
            (
                "pg_multixact/members/14078",
                FileKind::Slru(Slru::MultixactMembers),
            ),
            (
                "pg_multixact/offsets/00A1",
                FileKind::Slru(Slru::MultixactOffsets),
            ),
            ("pg_commit_ts/0000", FileKind::Slru(Slru::CommitTimestamps)),
            ("pg_twophase/000002F1", FileKind::TwoPhase),
            ("pg_wal/000000010000000000000001", FileKind::Log),
            (
                "pg_wal/archive_status/000000010000000000000001.done",
                FileKind::Log,
            ),
        ] {
            assert_eq!(classify(path), kind, "{path}");
        }
    }

    #[test]
    fn what_pg_basebackup_leaves_out_is_excluded() {
        for path in [
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "global/pg_internal.init",
            "base/5/pg_internal.init.4711",
            "base/pgsql_tmp/pgsql_tmp4711.0",
            "pg_tblspc/16385/PG_15_202209061/pgsql_tmp/pgsql_tmp4711.0",
            "base/pgsql_tmp/pgsql_tmp4711.0.fileset/0.0",
            "pg_replslot/borealis/state",
            "pg_subtrans/0000",
            "pg_stat_tmp/global.stat",
            "pg_dynshmem/mmap.1",
            "pg_notify/0000",
            "pg_serial/0000",
            "pg_snapshots/00000003-00000001-1",
        ] {
            assert_eq!(classify(path), FileKind::Excluded, "{path}");
        }
    }

    #[test]
    fn a_path_that_only_looks_like_a_relation_is_a_blob() {
        for path in [
            "",
            "base",
            "database/5/1259",
            "srv/base/5/1259",
            "pg_xact/base/5/1259",
            "base/5/sub/1259",
            "base/1259",
            "base/05/1259",
            "base/5/01259",
            "base/5/1259.0",
            "base/5/1259.01",
            "base/5/1259_foo",
            "base/5/_fsm",
            "base/5/4294967296",
            "base/5/1259.1_fsm",
            "base/5/t_16400",
            "base/5/t3_",
            "base/x/1259",
            "base/5/",
            "pg_tblspc/16385/PG_15/5/16390",
            "pg_tblspc/16385/5/16390",
            "pg_tblspc/x",
            "pg_xact/000",
            "pg_xact/00g0",
            "pg_xact/backup/0000",
            "pg_multixact/0000",
            "pg_logical/replorigin_checkpoint",
            "pg_stat/pgstat.stat",
            "pg_replslot",
            "global/pg_control.old",
            "conf.d/postgresql.conf",
            "current_logfiles",
            "a/b/c/d/e/f",
        ] {
            assert_eq!(classify(path), FileKind::Blob, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_relation_files_path_is_recognised(
            spc in prop_oneof![Just(1663), Just(1664), 16384_u32..],
            database in 1_u32..,
            number in 1_u32..,
            fork in 0_usize..4,
            segment: u32,
        ) {
            let database = if spc == 1664 { 0 } else { database };
            let file = RelationFile {
                relation: Relation { tablespace: spc, database, number },
                fork: Fork::ALL[fork],
                segment,
            };
            let path = file.path(&Version::V15.tablespace_directory());
            prop_assert_eq!(classify(&path), FileKind::Relation(file));
        }

        #[test]
        fn no_path_panics(path: String) {
            classify(&path);
        }
    }
}
