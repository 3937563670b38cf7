//! Writers that change a cluster in every way that matters to a backup, and remember what the server
//! acknowledged: the oracle of every restore.
//!
//! Each committed transaction adds one row to `ledger` and remembers its number, its transaction and
//! the positions between which it ended. What a writer does is determined by the seed; how writers
//! interleave is not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use borealis_base::{ErrorKind, Position, SeededEntropy, Timestamp};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::{Error, Result};
use tokio::task::JoinSet;

use crate::TestServer;

/// Ids of one writer lie this far from those of the next.
const IDS_PER_WRITER: i64 = 1_000_000_000_000;
/// More of these than a writer makes on any machine until it is stopped.
const IDS_PER_ROUND: i64 = 1_000_000_000;

/// Rows of each writer's own table at first.
const ROWS: u64 = 500;

/// A commit that the server acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The number of its row in `ledger`.
    pub id: i64,
    /// Its transaction, without the epoch.
    pub xid: u32,
    /// When it committed, by `pg_xact_commit_timestamp`.
    pub time: Timestamp,
    /// The insert position before its end was asked for: its end record starts here or later.
    pub before: Position,
    /// The insert position after the acknowledgement: its end record ends here or earlier.
    pub after: Position,
    /// What its row holds.
    pub payload: String,
}

/// Everything that writers know at their end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Commits that were acknowledged, by the number of their row.
    pub acknowledged: BTreeMap<i64, Acknowledged>,
    /// Rows of transactions that ended in a rollback.
    pub rolled_back: Vec<i64>,
    /// Rows whose transaction was cut off: each may be there or not.
    pub unknown: Vec<i64>,
}

impl Outcome {
    fn absorb(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.rolled_back.extend(other.rolled_back);
        self.unknown.extend(other.unknown);
    }

    /// What is known of a history that left this one at `at`: nothing that ended later is part of it.
    #[must_use]
    pub fn left_at(mut self, at: Position) -> Self {
        for (id, commit) in std::mem::take(&mut self.acknowledged) {
            if commit.after <= at {
                self.acknowledged.insert(id, commit);
            } else if commit.before >= at {
                self.rolled_back.push(id);
            } else {
                self.unknown.push(id);
            }
        }
        self
    }

    /// What is wrong with the rows of a cluster that was restored to hold every record that ends at
    /// or before `target`.
    pub fn violations(&self, rows: &BTreeMap<i64, String>, target: Position) -> Vec<String> {
        let mut wrong = Vec::new();
        for commit in self.acknowledged.values() {
            match rows.get(&commit.id) {
                None if commit.after <= target => wrong.push(format!(
                    "row {} is lost: it was acknowledged by {}",
                    commit.id, commit.after
                )),
                Some(_) if commit.before >= target => wrong.push(format!(
                    "row {} is there: it did not commit before {}",
                    commit.id, commit.before
                )),
                Some(payload) if *payload != commit.payload => {
                    wrong.push(format!("row {} holds something else", commit.id));
                }
                _ => {}
            }
        }
        for id in rows.keys() {
            if self.rolled_back.contains(id) {
                wrong.push(format!("row {id} is there: it was rolled back"));
            } else if !self.acknowledged.contains_key(id) && !self.unknown.contains(id) {
                wrong.push(format!("row {id} was never written"));
            }
        }
        wrong
    }
}

/// The rows of `ledger`.
pub async fn ledger_rows(server: &TestServer) -> BTreeMap<i64, String> {
    let session = server.session("postgres").await;
    let rows = session
        .rows("SELECT id, payload FROM ledger")
        .await
        .expect("the ledger is readable");
    rows.iter()
        .map(|row| {
            (
                row.get("id").expect("a number"),
                row.get("payload").expect("text"),
            )
        })
        .collect()
}

/// What a server logs when it recovers from a `DROP DATABASE` that was cut off or is replayed over
/// files that are gone already. Tests that kill or restore under this workload allow it.
pub const EXPECTED_IN_LOG: [&str; 2] = [
    "some useless files may be left behind",
    "could not open directory \"",
];

/// What a workload is to be.
#[derive(Debug, Clone)]
pub struct WorkloadOptions {
    /// Determines what each writer does.
    pub seed: u64,
    /// How many write at once.
    pub writers: u32,
    /// The directory of a tablespace to make and use.
    pub tablespace: Option<PathBuf>,
    /// Whether databases are created and dropped, in both strategies where there are two.
    pub databases: bool,
    /// How long each writer rests after a step. Without a rest writers write as much as the machine allows, which can be
    /// more log than whoever reads it all afterwards has time for.
    pub rest: Duration,
}

/// A prepared workload.
#[derive(Debug)]
pub struct Workload {
    options: WorkloadOptions,
    info: ConnInfo,
    rounds: u64,
}

/// Writers at work.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    writers: JoinSet<Result<Outcome>>,
}

impl Workload {
    /// Makes the tables.
    pub async fn prepare(server: &TestServer, options: WorkloadOptions) -> Self {
        server
            .sql("CREATE TABLE ledger (id bigint PRIMARY KEY, writer int, payload text NOT NULL)")
            .await;
        if let Some(dir) = &options.tablespace {
            server
                .sql(&format!(
                    "CREATE TABLESPACE extra LOCATION '{}'",
                    dir.display()
                ))
                .await;
        }
        for writer in 0..options.writers {
            server
                .sql(&format!(
                    "CREATE TABLE churn_{writer} (k int, v text) WITH (fillfactor = 80); \
                     CREATE INDEX ON churn_{writer} (k); \
                     INSERT INTO churn_{writer} SELECT g, md5(g::text) FROM generate_series(1, {ROWS}) g"
                ))
                .await;
        }
        Self {
            options,
            info: server.info(),
            rounds: 0,
        }
    }

    /// Lets the writers begin; each goes on until it is stopped, has done `steps`, or its link is
    /// lost.
    pub fn start(&mut self, steps: u64) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for number in 0..self.options.writers {
            let seed = self.options.seed ^ (u64::from(number) << 32) ^ (self.rounds << 48);
            let writer = Writer {
                number,
                entropy: SeededEntropy::new(seed),
                options: self.options.clone(),
                next: i64::from(number) * IDS_PER_WRITER
                    + i64::try_from(self.rounds).unwrap_or(0) * IDS_PER_ROUND,
                outcome: Outcome::default(),
            };
            writers.spawn(writer.run(self.info.clone(), steps, stop.clone()));
        }
        self.rounds += 1;
        Running { stop, writers }
    }

    /// Writes to another server of the same cluster from the next start on.
    pub fn move_to(&mut self, server: &TestServer) {
        self.info = server.info();
    }

    /// Runs `steps` of every writer to the end.
    pub async fn run(&mut self, steps: u64) -> Outcome {
        self.start(steps).finish().await
    }
}

impl Running {
    /// Waits until the writers have ended by themselves.
    pub async fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(ended) = self.writers.join_next().await {
            match ended.expect("a writer does not panic") {
                Ok(part) => outcome.absorb(part),
                Err(error) => panic!("a writer failed: {error}"),
            }
        }
        outcome
    }

    /// Asks the writers to stop and waits until they have.
    pub async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }
}

struct Writer {
    number: u32,
    entropy: SeededEntropy,
    options: WorkloadOptions,
    next: i64,
    outcome: Outcome,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    Rollback,
    Prepare,
    PrepareAndRollback,
}

impl Writer {
    async fn run(mut self, info: ConnInfo, steps: u64, stop: Arc<AtomicBool>) -> Result<Outcome> {
        let link = match SqlLink::connect(&info).await {
            Ok(link) => link,
            Err(error) if error.kind() == ErrorKind::Unreachable => return Ok(self.outcome),
            Err(error) => return Err(error),
        };
        link.run("RESET search_path; SET statement_timeout = 0; SET lock_timeout = 0")
            .await?;
        for _ in 0..steps {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match self.step(&link).await {
                Ok(()) => {}
                // The server was killed or the connection cut: what was acknowledged stays so.
                Err(error) if link.is_closed() || error.kind() == ErrorKind::Unreachable => break,
                Err(error) => return Err(error),
            }
            if !self.options.rest.is_zero() {
                tokio::time::sleep(self.options.rest).await;
            }
        }
        Ok(self.outcome)
    }

    async fn step(&mut self, link: &SqlLink) -> Result<()> {
        let table = format!("churn_{}", self.number);
        let key = self.entropy.below(ROWS) + 1;
        let kind = self.entropy.below(20);
        let end = match self.entropy.below(10) {
            0 => End::Rollback,
            1 => End::Prepare,
            2 => End::PrepareAndRollback,
            _ => End::Commit,
        };
        match kind {
            0..=6 => {
                let sql = format!("UPDATE {table} SET v = md5(v) WHERE k % 17 = {key} % 17");
                self.transaction(link, &sql, end).await
            }
            7 | 8 => {
                let sql = format!(
                    "DELETE FROM {table} WHERE k = {key}; INSERT INTO {table} VALUES ({key}, 'again')"
                );
                self.transaction(link, &sql, end).await
            }
            9 | 10 => {
                let sql = format!(
                    "SAVEPOINT a; INSERT INTO {table} VALUES ({key}, 'kept'); SAVEPOINT b; \
                     DELETE FROM {table} WHERE k > {key}; ROLLBACK TO b; RELEASE a"
                );
                self.transaction(link, &sql, end).await
            }
            11 => {
                let sql = format!(
                    "CREATE TABLE made_{0} AS SELECT * FROM {table}; CREATE INDEX ON made_{0} (v); \
                     ALTER TABLE made_{0} ALTER COLUMN k TYPE bigint; DROP TABLE made_{0}",
                    self.number
                );
                self.transaction(link, &sql, end).await
            }
            12 => {
                let sql = format!(
                    "TRUNCATE {table}; INSERT INTO {table} SELECT g, md5(g::text) FROM generate_series(1, {ROWS}) g"
                );
                self.transaction(link, &sql, end).await
            }
            13 => link.run(&format!("VACUUM FULL {table}")).await,
            14 => link.run(&format!("VACUUM (FREEZE) {table}")).await,
            15 => {
                let sql = format!("INSERT INTO {table} SELECT {key}, repeat('long', 5000)");
                self.transaction(link, &sql, end).await
            }
            16 if self.options.tablespace.is_some() => {
                let to = if self.entropy.below(2) == 0 {
                    "extra"
                } else {
                    "pg_default"
                };
                let sql = format!("ALTER TABLE {table} SET TABLESPACE {to}");
                self.transaction(link, &sql, End::Commit).await
            }
            17 if self.options.databases => self.database(link).await,
            _ => self.transaction(link, "SELECT 1", end).await,
        }
    }

    /// Copies of `template0`, which nobody is connected to.
    async fn database(&mut self, link: &SqlLink) -> Result<()> {
        let name = format!("made_{}", self.number);
        let strategy = match (link.major() >= 15, self.entropy.below(2)) {
            (false, _) => "",
            (true, 0) => " STRATEGY file_copy",
            (true, _) => " STRATEGY wal_log",
        };
        link.run(&format!("DROP DATABASE IF EXISTS {name}")).await?;
        link.run(&format!(
            "CREATE DATABASE {name} TEMPLATE template0{strategy}"
        ))
        .await
    }

    async fn transaction(&mut self, link: &SqlLink, sql: &str, end: End) -> Result<()> {
        let id = self.next;
        self.next += 1;
        let payload = format!("{:016x}", self.entropy.next());
        link.run("BEGIN").await?;
        let row = link
            .row(&format!(
                "INSERT INTO ledger VALUES ({id}, {}, '{payload}') \
                 RETURNING pg_current_xact_id()::xid AS xid",
                self.number
            ))
            .await?;
        let xid: u32 = row.get("xid")?;
        link.run(sql).await?;
        let before: Position = link.value("SELECT pg_current_wal_insert_lsn()").await?;
        let name = format!("two_phase_{id}");
        let ends: &[String] = &match end {
            End::Commit => vec!["COMMIT".to_owned()],
            End::Rollback => vec!["ROLLBACK".to_owned()],
            End::Prepare => vec![
                format!("PREPARE TRANSACTION '{name}'"),
                format!("COMMIT PREPARED '{name}'"),
            ],
            End::PrepareAndRollback => vec![
                format!("PREPARE TRANSACTION '{name}'"),
                format!("ROLLBACK PREPARED '{name}'"),
            ],
        };
        if matches!(end, End::Rollback | End::PrepareAndRollback) {
            self.outcome.rolled_back.push(id);
        } else {
            // Until the acknowledgement is here, nobody can know.
            self.outcome.unknown.push(id);
        }
        for sql in ends {
            link.run(sql).await?;
        }
        if matches!(end, End::Rollback | End::PrepareAndRollback) {
            return Ok(());
        }
        let row = link
            .row(&format!(
                "SELECT pg_current_wal_insert_lsn() AS after, \
                 (extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint AS micros"
            ))
            .await?;
        let commit = Acknowledged {
            id,
            xid,
            time: Timestamp(row.optional("micros")?.ok_or_else(no_commit_time)?),
            before,
            after: row.position("after")?,
            payload,
        };
        self.outcome.unknown.retain(|unknown| *unknown != id);
        self.outcome.acknowledged.insert(id, commit);
        Ok(())
    }
}

fn no_commit_time() -> Error {
    Error::Refused("the workload needs track_commit_timestamp = on".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_seen() {
        let commit = |id: i64, before: u64, after: u64| Acknowledged {
            id,
            xid: 1,
            time: Timestamp(0),
            before: Position(before),
            after: Position(after),
            payload: "p".to_owned(),
        };
        let outcome = Outcome {
            acknowledged: [commit(1, 10, 20), commit(2, 20, 30), commit(3, 40, 50)]
                .into_iter()
                .map(|commit| (commit.id, commit))
                .collect(),
            rolled_back: vec![4],
            unknown: vec![5],
        };
        let rows = |ids: &[i64]| ids.iter().map(|id| (*id, "p".to_owned())).collect();
        let target = Position(25);
        for good in [&[1][..], &[1, 2], &[1, 5]] {
            assert!(
                outcome.violations(&rows(good), target).is_empty(),
                "{good:?}"
            );
        }
        for bad in [&[][..], &[2], &[1, 3], &[1, 4], &[1, 6]] {
            assert_eq!(outcome.violations(&rows(bad), target).len(), 1, "{bad:?}");
        }
        let other = BTreeMap::from([(1, "q".to_owned())]);
        assert_eq!(outcome.violations(&other, target).len(), 1);
    }
}
