//! Keeps what the log's numbers stand for by name, while the log is captured.
//!
//! Names are read when the capture begins, after each base backup, and when shipped log says that
//! catalogs have changed: then of the databases concerned. What is stored is bounded by
//! [`STORED_BYTES_PER_SECOND`], and what the server is asked by [`SHARE_OF_TIME`]: a table that was made
//! and dropped between two readings has no name. Names are stored when the log they speak of is durable.
//!
//! One task owns this. Killed at any instant it loses a reading, which the next `protect` begins with.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use borealis_base::{ErrorKind, Position, Timestamp};
use borealis_pg_format::index::MANY_DATABASES;
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::names::{DatabaseNames, Names, read};
use borealis_repository::Lineage;
use borealis_repository::ledger::{EntryBody, Names as NamesEntry};
use borealis_repository::log::{PieceIdentity, prepare_names};
use borealis_repository::object::{Compression, PreparedFrame};
use tokio::sync::Notify;

use super::captured::Captured;
use crate::error::{Error, Result};

/// The pause after names were read, at least.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The pause after an attempt that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// One part in so many of the time is spent on reading.
const SHARE_OF_TIME: u32 = 50;
/// Bytes stored for names, over time.
const STORED_BYTES_PER_SECOND: u64 = 16 << 10;
/// How often it is stored that catalogs changed and no name did.
const CONFIRM_INTERVAL: Duration = Duration::from_mins(1);
/// How names are compressed: they are many, and alike.
const COMPRESSION: Compression = Compression::Zstd(3);

/// Which databases' names have to be read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    databases: BTreeSet<u32>,
    /// All of them, since a base backup was entered or too many have changed.
    all: bool,
    /// The names must be of this position or a later one.
    through: Position,
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.databases.is_empty() && !self.all
    }
}

/// Tells the keeper of names that catalogs have changed.
#[derive(Debug, Default)]
pub struct CatalogChanges {
    wanted: Mutex<Wanted>,
    wake: Notify,
}

impl CatalogChanges {
    /// The catalogs of these databases changed in log up to `through`, which is durable.
    pub fn add(&self, databases: &[u32], through: Position) {
        if databases.is_empty() {
            return;
        }
        self.change(|wanted| {
            wanted.all |= databases.contains(&MANY_DATABASES);
            wanted.databases.extend(databases);
            wanted.through = wanted.through.max(through);
        });
    }

    /// All names are to be stored, whatever has changed.
    pub fn want_all(&self) {
        self.change(|wanted| wanted.all = true);
    }

    fn put_back(&self, again: Wanted) {
        self.change(|wanted| {
            wanted.databases.extend(again.databases);
            wanted.all |= again.all;
            wanted.through = wanted.through.max(again.through);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        // A panic while it was held can't have left it half-changed.
        change(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    async fn take(&self) -> Wanted {
        loop {
            let wanted = {
                let mut held = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *held)
            };
            if !wanted.is_empty() {
                return wanted;
            }
            self.wake.notified().await;
        }
    }
}

/// What the task needs.
pub(super) struct NamesKeeper<'a> {
    pub(super) info: &'a ConnInfo,
    pub(super) lineage: &'a Lineage,
    pub(super) captured: &'a Captured,
}

/// What was stored last, as far as it decides what to store next.
#[derive(Debug, Default)]
struct Stored {
    /// Digests of databases' relations, by database.
    relations: HashMap<u32, u64>,
    /// Digest of all else.
    others: u64,
    at: Option<Timestamp>,
}

impl NamesKeeper<'_> {
    /// Keeps names until dropped.
    ///
    /// # Errors
    /// Those of the ledger that trying again does not change.
    pub(super) async fn run(&self) -> Result<()> {
        let changes = &self.captured.catalogs;
        let mut stored = Stored::default();
        changes.want_all();
        loop {
            let wanted = changes.take().await;
            let pause = match self.refresh(&wanted, &mut stored).await {
                Ok(pause) => pause,
                Err(error) if is_of_the_ledger(&error) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "names were not read; tried again in {} s", RETRY_PAUSE.as_secs());
                    changes.put_back(wanted);
                    RETRY_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Stores all names once; a failure to read them is told and fails nothing else.
    pub(super) async fn once(&self) -> Result<()> {
        let wanted = Wanted {
            all: true,
            ..Wanted::default()
        };
        match self.refresh(&wanted, &mut Stored::default()).await {
            Err(error) if is_of_the_ledger(&error) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "names were not read; find shows numbers in their place");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Reads and stores what is wanted; returns how long to wait before the next time.
    async fn refresh(&self, wanted: &Wanted, stored: &mut Stored) -> Result<Duration> {
        let clock = &**self.lineage.clock();
        let began = clock.elapsed();
        let link = SqlLink::connect(self.info).await?;
        let read = read(&link, (!wanted.all).then_some(&wanted.databases)).await?;
        drop(link);
        let took = clock.elapsed().saturating_sub(began);
        if read.from < wanted.through {
            // A standby that has not replayed what changed.
            self.captured.catalogs.put_back(wanted.clone());
        }
        let names = read.names;
        for database in &names.databases {
            if let Some(reason) = &database.unread {
                tracing::debug!(database = database.name, reason, "names not read");
            }
        }
        let now = clock.now();
        let changed = stored.take(&names);
        let recent = stored.at.is_some_and(|at| now.since(at) < CONFIRM_INTERVAL);
        if !wanted.all && !changed && recent {
            return Ok(pause(took, 0));
        }
        // No entry speaks of log that could still be lost.
        self.captured.durable_with(read.to).await?;
        let body = NamesEntry {
            branch: self.captured.branch,
            from: read.from,
            to: read.to,
            taken_at: now,
            whole: wanted.all,
        };
        let identity = PieceIdentity {
            lineage: self.lineage.id(),
            branch: body.branch,
            start: body.from,
        };
        let frames = tokio::task::spawn_blocking(move || encode(&identity, &names))
            .await
            .map_err(|error| Error::new(ErrorKind::Bug, error.to_string()))??;
        let entry = EntryBody::Names(body);
        let committed = self.captured.ledger.append(&entry, frames).await?;
        tracing::debug!(entry = committed.number, whole = wanted.all, "names");
        stored.at = Some(now);
        Ok(pause(took, committed.stored_bytes))
    }
}

fn encode(identity: &PieceIdentity, names: &Names) -> Result<Vec<PreparedFrame>> {
    let bug = |error: String| Error::new(ErrorKind::Bug, error);
    let bytes = serde_json::to_vec(names).map_err(|error| bug(error.to_string()))?;
    prepare_names(identity, &bytes, COMPRESSION).map_err(|error| bug(error.to_string()))
}

fn pause(took: Duration, stored_bytes: u64) -> Duration {
    let for_store = Duration::from_secs(stored_bytes / STORED_BYTES_PER_SECOND);
    PAUSE_MIN.max(took * SHARE_OF_TIME).max(for_store)
}

/// Whether an error comes from the ledger, or from the capture, and ends the task. The server is asked
/// again, whatever it answered.
fn is_of_the_ledger(error: &Error) -> bool {
    !matches!(error, Error::Server(_))
}

fn digest(value: &impl serde::Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    // What can't be written down differs from everything.
    serde_json::to_vec(value).ok().hash(&mut hasher);
    hasher.finish()
}

impl Stored {
    /// Notes what was read. Returns whether anything of it is new.
    fn take(&mut self, names: &Names) -> bool {
        let others: Vec<_> = (names.databases.iter())
            .map(|database| (database.oid, &database.name, database.tablespace))
            .collect();
        let others = digest(&(others, &names.tablespaces));
        let mut changed = others != self.others;
        self.others = others;
        for database in &names.databases {
            changed |= self.note(database);
        }
        changed
    }

    fn note(&mut self, database: &DatabaseNames) -> bool {
        let Some(relations) = &database.relations else {
            // Not read this time, or not readable: what was known is no longer what holds.
            return database.unread.is_some() && self.relations.remove(&database.oid).is_some();
        };
        let digest = digest(relations);
        self.relations.insert(database.oid, digest) != Some(digest)
    }
}

#[cfg(test)]
mod tests {
    use borealis_pg_server::names::RelationName;

    use super::*;

    fn names(table: &str) -> Names {
        Names {
            databases: vec![DatabaseNames {
                oid: 5,
                name: "shop".to_owned(),
                tablespace: 1663,
                relations: Some(vec![RelationName {
                    oid: 16_384,
                    name: table.to_owned(),
                    ..RelationName::default()
                }]),
                unread: None,
            }],
            tablespaces: Vec::new(),
        }
    }

    #[test]
    fn names_that_are_stored_already_are_known_again() {
        let mut stored = Stored::default();
        assert!(stored.take(&names("a")));
        assert!(!stored.take(&names("a")));
        assert!(stored.take(&names("b")));
        let mut unread = names("b");
        unread.databases[0].relations = None;
        assert!(!stored.take(&unread), "it was not looked at");
        unread.databases[0].unread = Some("refused".to_owned());
        assert!(stored.take(&unread));
        assert!(stored.take(&names("b")));
        let mut renamed = names("b");
        renamed.databases[0].name = "store".to_owned();
        assert!(stored.take(&renamed));
    }

    #[test]
    fn reading_and_storing_are_paused_by_what_they_cost() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(5), 100), PAUSE_MIN);
        assert_eq!(pause(ms(100), 100), ms(5000));
        assert_eq!(pause(ms(5), 160 << 10), ms(10_000));
    }

    #[tokio::test]
    async fn changes_add_up_until_they_are_taken() {
        let changes = CatalogChanges::default();
        changes.add(&[], Position(7));
        changes.add(&[5], Position(9));
        changes.add(&[0, 6], Position(8));
        let wanted = changes.take().await;
        assert_eq!(wanted.databases, [0, 5, 6].into());
        assert_eq!((wanted.all, wanted.through), (false, Position(9)));
        changes.add(&[MANY_DATABASES], Position(10));
        assert!(changes.take().await.all);
    }
}
