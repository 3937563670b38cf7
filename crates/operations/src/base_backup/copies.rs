//! Directories that the log copies whole. Pure.
//!
//! `CREATE DATABASE ... STRATEGY = FILE_COPY` and `ALTER DATABASE ... SET TABLESPACE` log one record
//! that says which directory was copied, and replay copies it again (`dbase_redo` in `dbcommands.c`).
//! Replay from a base backup copies what the base backup holds of it, which may be of a later moment than
//! the record: changes that were made meanwhile come twice, and what was dropped meanwhile is missing
//! (`backup.sgml`, caveats). So a base backup during which a directory was copied and changed must not be
//! restored from.

use std::collections::BTreeSet;

use borealis_base::Position;
use borealis_pg_format::DatabaseFiles;
use borealis_pg_format::index::{ChangeMap, EventKind, LogIndex};

/// What the log of a base backup says of copied directories.
#[derive(Debug, Default)]
pub struct Copies {
    copied: BTreeSet<DatabaseFiles>,
    changed: ChangeMap,
    left_out: u64,
}

impl Copies {
    /// Takes the next log index of a base backup over `[from, to)`.
    pub fn add(&mut self, index: &LogIndex, from: Position, to: Position) {
        for event in &index.events {
            let within = from <= event.record.start && event.record.start < to;
            if let EventKind::DatabaseCreated {
                source: Some(source),
                ..
            } = event.kind
                && within
            {
                self.copied.insert(source);
            }
        }
        self.changed.append(&index.change_map);
        self.left_out += index.events_left_out;
    }

    /// The directories that were copied and that changed as well, before or after: which it was, the
    /// change map does not say, and too much is only slow. Where events were left out of an index, every
    /// directory that was created or dropped counts.
    pub fn unsafe_ones(&self) -> Vec<DatabaseFiles> {
        let changed = |files: &DatabaseFiles| {
            self.changed.is_everything()
                || self.changed.resets().contains(files)
                || self.changed.widened_databases().contains(&files.database)
                || (self.changed.forks()).any(|(key, _)| key.relation.database_files() == *files)
        };
        let mut found: BTreeSet<DatabaseFiles> =
            self.copied.iter().copied().filter(changed).collect();
        if self.left_out > 0 {
            found.extend(self.changed.resets());
        }
        found.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::RecordSpan;
    use borealis_pg_format::index::{Event, ForkKey};
    use borealis_pg_format::{Fork, Relation};

    const TEMPLATE: DatabaseFiles = DatabaseFiles {
        tablespace: 1663,
        database: 1,
    };
    const NEW: DatabaseFiles = DatabaseFiles {
        tablespace: 1663,
        database: 7,
    };

    /// A database is made at 150; `source` says by copying which.
    fn created(source: Option<DatabaseFiles>) -> LogIndex {
        let mut index = LogIndex::default();
        index.change_map.reset(NEW);
        index.events.push(Event {
            record: RecordSpan {
                start: Position(150),
                end: Position(160),
            },
            kind: EventKind::DatabaseCreated { files: NEW, source },
        });
        index
    }

    fn change(files: DatabaseFiles) -> LogIndex {
        let mut index = LogIndex::default();
        let relation = Relation {
            tablespace: files.tablespace,
            database: files.database,
            number: 1259,
        };
        let fork = Fork::Main;
        index.change_map.mark(ForkKey { relation, fork }, 0);
        index
    }

    fn found(indexes: &[LogIndex], from: u64, to: u64) -> Vec<DatabaseFiles> {
        let mut copies = Copies::default();
        for index in indexes {
            copies.add(index, Position(from), Position(to));
        }
        copies.unsafe_ones()
    }

    #[test]
    fn a_copied_template_that_changed_is_unsafe() {
        let indexes = [created(Some(TEMPLATE)), change(TEMPLATE)];
        assert_eq!(found(&indexes, 100, 200), [TEMPLATE]);
    }

    #[test]
    fn a_template_that_stood_still_is_safe_whatever_happens_to_the_copy() {
        let indexes = [created(Some(TEMPLATE)), change(NEW)];
        assert_eq!(found(&indexes, 100, 200), []);
    }

    #[test]
    fn a_database_made_by_log_is_safe() {
        assert_eq!(found(&[created(None), change(TEMPLATE)], 100, 200), []);
    }

    #[test]
    fn a_copy_outside_the_base_backup_is_not_replayed_over_its_files() {
        let indexes = [created(Some(TEMPLATE)), change(TEMPLATE)];
        assert_eq!(found(&indexes, 151, 200), []);
        assert_eq!(found(&indexes, 100, 150), []);
    }

    #[test]
    fn a_database_moved_to_another_tablespace_is_unsafe() {
        // Copied, then its former directory is dropped.
        let mut dropped = LogIndex::default();
        dropped.change_map.reset(TEMPLATE);
        assert_eq!(
            found(&[created(Some(TEMPLATE)), dropped], 100, 200),
            [TEMPLATE]
        );
    }

    #[test]
    fn with_events_left_out_every_created_directory_is_unsafe() {
        let mut index = created(None);
        index.events.clear();
        index.events_left_out = 1;
        assert_eq!(found(&[index], 100, 200), [NEW]);
    }
}
