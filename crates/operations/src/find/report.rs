//! What `find` answers.

use borealis_base::{LineageId, Position, RecordSpan, Timestamp};
use borealis_pg_format::Relation;
use borealis_pg_server::names::RelationName;
use serde::Serialize;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Relations were dropped.
    Dropped,
    /// Tables were truncated.
    Truncated,
    /// Relations were dropped, truncated or rewritten; nothing tells which.
    #[serde(rename = "dropped_truncated_or_rewritten")]
    Gone,
    /// Relations were rewritten: nothing was lost, unless one was truncated and filled again at once.
    Rewritten,
    /// Rows were deleted.
    RowsDeleted,
    /// Rows were updated.
    RowsUpdated,
    /// Rows were deleted and others updated.
    RowsDeletedAndUpdated,
    /// Databases were dropped.
    DatabaseDropped,
    /// Tablespaces were dropped.
    TablespaceDropped,
}

impl Kind {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Truncated => "truncated",
            Self::Gone => "dropped, truncated or rewritten",
            Self::Rewritten => "rewritten",
            Self::RowsDeleted => "rows deleted",
            Self::RowsUpdated => "rows updated",
            Self::RowsDeletedAndUpdated => "rows deleted and updated",
            Self::DatabaseDropped => "database dropped",
            Self::TablespaceDropped => "tablespace dropped",
        }
    }
}

/// What it happened to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FoundObject {
    /// `table`, `database` and so on.
    pub what: &'static str,
    /// Its database; `null` where that has no name here.
    pub database: Option<String>,
    /// Schema and name, quoted as SQL needs it; `null` where it has no name here.
    pub name: Option<String>,
    /// Its number: of a relation tablespace, database and file.
    pub number: String,
    /// Partitions of it that are concerned, where it is a partitioned table.
    pub partitions: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Set where it may have been called otherwise: when the name was read, after which catalogs
    /// changed.
    pub name_as_of: Option<Timestamp>,
    /// Then also: what it was called when names were read next.
    pub later_name: Option<String>,
}

impl FoundObject {
    fn new(what: &'static str, number: String) -> Self {
        Self {
            what,
            database: None,
            name: None,
            number,
            partitions: 0,
            deleted: 0,
            updated: 0,
            name_as_of: None,
            later_name: None,
        }
    }

    pub(super) fn relation(relation: &RelationName, database: &str, file: Relation) -> Self {
        let what = match relation.kind.as_str() {
            "i" | "I" => "index",
            "S" => "sequence",
            "t" => "TOAST table",
            "m" => "materialized view",
            "p" => "partitioned table",
            _ => "table",
        };
        Self {
            database: Some(database.to_owned()),
            name: Some(Self::name_of(relation)),
            ..Self::new(what, file.to_string())
        }
    }

    /// Schema and name, quoted as SQL needs it.
    pub(super) fn name_of(relation: &RelationName) -> String {
        format!("{}.{}", quoted(&relation.schema), quoted(&relation.name))
    }

    /// A file that no reading of the names shows.
    pub(super) fn nameless(file: Relation, database: Option<&str>) -> Self {
        Self {
            database: database.map(str::to_owned),
            ..Self::new("relation", file.to_string())
        }
    }

    pub(super) fn database(oid: u32, name: Option<&str>) -> Self {
        Self {
            name: name.map(quoted),
            ..Self::new("database", oid.to_string())
        }
    }

    pub(super) fn tablespace(oid: u32, name: Option<&str>) -> Self {
        Self {
            name: name.map(quoted),
            ..Self::new("tablespace", oid.to_string())
        }
    }
}

/// A name as it may stand in SQL and on a terminal: quoted unless it is plain, and with control
/// characters as `U&"\XXXX"` would write them, so that no name can move the cursor.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.chars().all(plain) && name.starts_with(|c: char| !c.is_ascii_digit()) {
        return name.to_owned();
    }
    let text: String = name
        .chars()
        .map(|c| match c {
            '"' => "\"\"".to_owned(),
            c if c.is_control() => format!("\\{:04X}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    if name.chars().any(char::is_control) {
        format!("U&\"{text}\"")
    } else {
        format!("\"{text}\"")
    }
}

/// Something worth restoring to before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What happened.
    pub kind: Kind,
    /// When the transaction committed.
    pub time: Timestamp,
    /// The transaction.
    pub transaction: u32,
    /// Where the record of its commit begins.
    pub commit_start: Position,
    /// Where it ends.
    pub commit_end: Position,
    /// The last position before: a restore to it holds everything that ended before it happened.
    pub position: Position,
    /// What it happened to.
    pub objects: Vec<FoundObject>,
    /// Relations beyond those, of which the log's index keeps only the count.
    pub unlisted: u64,
    /// The command that restores to that position; `null` where it can't be restored to.
    pub restore: Option<String>,
}

impl Found {
    pub(super) fn new(
        kind: Kind,
        time: Timestamp,
        transaction: u32,
        position: Position,
        record: RecordSpan,
        objects: Vec<FoundObject>,
    ) -> Self {
        Self {
            kind,
            time,
            transaction,
            commit_start: record.start,
            commit_end: record.end,
            position,
            objects,
            unlisted: 0,
            restore: None,
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindReport {
    /// The cluster.
    pub cluster: String,
    /// Its lineage.
    pub lineage: LineageId,
    /// Looked at from here,
    pub since: Timestamp,
    /// to here.
    pub until: Timestamp,
    /// Transactions that deleted and updated fewer rows are left out.
    pub min_rows: u64,
    /// What was found, in the order of the log.
    pub events: Vec<Found>,
    /// Rewrites that are not shown.
    pub rewrites_not_shown: u64,
    /// How far the log is stored and settled; what came later is not seen.
    pub log_through: Option<Timestamp>,
    /// Log pieces in the range.
    pub log_pieces: u64,
    /// Of those, whose index had to be read.
    pub indexes_read: u64,
    /// What a person should know.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_sql_needs_it_and_move_no_cursor() {
        assert_eq!(quoted("orders_2"), "orders_2");
        assert_eq!(quoted("Orders"), "\"Orders\"");
        assert_eq!(quoted("2nd"), "\"2nd\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(quoted("größe"), "\"größe\"");
        assert_eq!(quoted("a\u{1b}[2Jb"), "U&\"a\\001B[2Jb\"");
    }
}
