//! What the catalogs call the files that the log speaks of: relations, databases and tablespaces by
//! name, as they are at a moment.
//!
//! The log names files by number only. Whoever looks for a table that was dropped needs what its file
//! was called *then*, which no catalog tells any more.

use std::collections::BTreeSet;

use borealis_base::{ErrorKind, Position};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::link::{SqlLink, TextRow};

/// Objects with lower numbers are the catalogs' own (`FirstNormalObjectId` in `access/transam.h`).
pub const FIRST_NORMAL_OID: u32 = 16_384;

/// The names of a cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// All databases.
    pub databases: Vec<DatabaseNames>,
    /// All tablespaces.
    pub tablespaces: Vec<TablespaceName>,
}

/// A database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseNames {
    /// Its object identifier.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its default tablespace.
    pub tablespace: u32,
    /// Its relations; absent where they were not read, because they had not changed or for the reason
    /// in `unread`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relations: Option<Vec<RelationName>>,
    /// Why its relations could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// A relation that is not temporary and not one of the catalogs in a file of their own number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationName {
    /// Its object identifier, which stays the same when its file is replaced.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `relkind`: `r` table, `i` index, `S` sequence, `t` TOAST table, `m` materialized view, `p`
    /// partitioned table, `I` partitioned index.
    pub kind: String,
    /// Its tablespace; 0 for the database's default one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tablespace: u32,
    /// The number of its file; 0 where it has none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub file: u32,
    /// What it is a part of: the table of an index, of a TOAST table or of the column that owns a
    /// sequence, and the partitioned table of a partition; 0 where it stands alone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub owner: u32,
    /// Whether it is a partition of `owner`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub partition: bool,
    /// Whether its contents are not logged, so that no restore brings them back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unlogged: bool,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceName {
    /// Its object identifier.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // `serde` wants references
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // `serde` wants references
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Names, and between which positions of the log they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesRead {
    /// The names.
    pub names: Names,
    /// Everything that was committed at or before this position is in them.
    pub from: Position,
    /// Nothing that was committed behind this position is in them.
    pub to: Position,
}

/// On a standby the catalogs are as of what was replayed.
const POSITION: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
     ELSE pg_current_wal_insert_lsn() END";

/// Reads the names of all databases and tablespaces, and the relations of the databases in `which`, or
/// of all. Takes one connection to each of those.
///
/// # Errors
/// A server that does not answer. A database that may not be entered is listed as unread.
pub async fn read(link: &SqlLink, which: Option<&BTreeSet<u32>>) -> Result<NamesRead> {
    let from = link.value(POSITION).await?;
    let rows = link
        .rows("SELECT oid, datname, dattablespace, datallowconn FROM pg_database ORDER BY oid")
        .await?;
    let mut names = Names::default();
    for row in &rows {
        let mut database = DatabaseNames {
            oid: row.get("oid")?,
            name: row.get("datname")?,
            tablespace: row.get("dattablespace")?,
            ..DatabaseNames::default()
        };
        if which.is_none_or(|which| which.contains(&database.oid)) {
            if row.flag("datallowconn")? {
                read_database(link, &mut database).await?;
            } else {
                database.unread = Some("it allows no connections".to_owned());
            }
        }
        names.databases.push(database);
    }
    let rows = link
        .rows("SELECT oid, spcname FROM pg_tablespace ORDER BY oid")
        .await?;
    for row in &rows {
        names.tablespaces.push(TablespaceName {
            oid: row.get("oid")?,
            name: row.get("spcname")?,
        });
    }
    let to = link.value(POSITION).await?;
    Ok(NamesRead { names, from, to })
}

async fn read_database(link: &SqlLink, database: &mut DatabaseNames) -> Result<()> {
    let info = link.info().with_database(&database.name);
    let relations = async {
        let session = SqlLink::connect(&info).await?;
        let rows = session.rows(RELATIONS).await?;
        rows.iter().map(relation).collect::<Result<Vec<_>>>()
    };
    match relations.await {
        Ok(relations) => database.relations = Some(relations),
        Err(error) if error.kind() == ErrorKind::Unreachable => return Err(error),
        // Dropped since it was listed, not for this role, or with names in no known encoding.
        Err(error) => database.unread = Some(error.to_string()),
    }
    Ok(())
}

/// The file's number comes from the row, as of the statement's snapshot; only of catalogs in the
/// relation map, whose rows hold none, it is what it is now.
const RELATIONS: &str = "SELECT c.oid, n.nspname, c.relname, c.relkind, c.reltablespace, \
     coalesce(nullif(c.relfilenode, 0), pg_relation_filenode(c.oid), 0) AS file, \
     coalesce(i.indrelid, t.oid, h.inhparent, d.refobjid, 0) AS owner, \
     c.relispartition AND c.relkind IN ('r', 'p') AS part, c.relpersistence = 'u' AS unlogged \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     LEFT JOIN pg_index i ON c.relkind IN ('i', 'I') AND i.indexrelid = c.oid \
     LEFT JOIN pg_class t ON c.relkind = 't' AND t.reltoastrelid = c.oid \
     LEFT JOIN pg_inherits h ON c.relispartition AND c.relkind IN ('r', 'p') \
     AND h.inhrelid = c.oid AND h.inhseqno = 1 \
     LEFT JOIN pg_depend d ON c.relkind = 'S' AND d.classid = 'pg_class'::regclass \
     AND d.objid = c.oid AND d.objsubid = 0 AND d.refclassid = 'pg_class'::regclass \
     AND d.deptype IN ('a', 'i') \
     WHERE c.relkind IN ('r', 'i', 'S', 't', 'm', 'p', 'I') AND c.relpersistence <> 't' \
     AND (c.oid >= 16384 OR coalesce(nullif(c.relfilenode, 0), pg_relation_filenode(c.oid), 0) >= 16384) \
     ORDER BY c.oid";

fn relation(row: &TextRow) -> Result<RelationName> {
    Ok(RelationName {
        oid: row.get("oid")?,
        schema: row.get("nspname")?,
        name: row.get("relname")?,
        kind: row.get("relkind")?,
        tablespace: row.get("reltablespace")?,
        file: row.get("file")?,
        owner: row.get("owner")?,
        partition: row.flag("part")?,
        unlogged: row.flag("unlogged")?,
    })
}
