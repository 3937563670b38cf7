//! Takes base backups beside the capturing, when they are due.

use std::time::Duration;

use borealis_base::{Branch, ByteLen, Progress, show_duration};
use borealis_pg_format::DatabaseFiles;
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::Access;
use borealis_pg_server::source::ServerFacts;
use borealis_repository::Lineage;
use borealis_repository::ledger::{BaseBackup, EntryBody};
use borealis_repository::numbered::Patience;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::pack::{PACK_BYTES_MAX, PackTarget};
use borealis_repository::plan::coverage::path;
use borealis_repository::plan::{BaseBackupSummary, Damage, LineageState, Part};
use tokio_util::sync::CancellationToken;

use super::captured::Captured;
use super::schedule::{Schedule, Since, due};
use super::upkeep::damage::KnownDamage;
use super::upkeep::turns::Turns;
use crate::base_backup::parent::{candidates, is_after_gaps, last_on};
use crate::base_backup::take::{Attempted, Job, Taken, take};
use crate::error::{Error, Result};

/// How often it is looked whether one is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after one that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// How long one that is due waits for a drill that runs.
const DRILL_PATIENCE: Duration = Duration::from_hours(1);
/// Attempts in a row at one during which no directory is copied and changed. Each but the first reads
/// only what has changed since the one before it.
const ATTEMPTS_MAX: u32 = 3;

/// When base backups are taken.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trigger {
    /// One, now.
    Once,
    /// As they become due.
    Due(Schedule),
}

/// How one ended, without an error.
enum Done {
    /// It is in the ledger.
    Entered,
    /// It was never safe.
    Unsafe,
}

/// What came of an attempt.
enum Entry {
    /// It is in the ledger.
    Made,
    /// It is not, and why.
    Not(String),
}

/// Why one is not entered: see [`crate::base_backup::copies`].
const UNSAFE: &str = "a database was made or moved by copying files that changed meanwhile";

/// What they need.
pub(super) struct BaseBackups<'a> {
    pub(super) info: &'a ConnInfo,
    pub(super) access: &'a Access,
    pub(super) lineage: &'a Lineage,
    pub(super) facts: &'a ServerFacts,
    pub(super) captured: &'a Captured,
    pub(super) resumable_every: ByteLen,
    pub(super) damage: &'a KnownDamage,
    pub(super) turns: &'a Turns,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a CancellationToken,
}

impl BaseBackups<'_> {
    /// Runs until cancelled by being dropped, or until the one that was asked for is taken.
    pub(super) async fn run(&self, trigger: Trigger) -> Result<()> {
        let schedule = match trigger {
            Trigger::Once => {
                return match self.one(true).await? {
                    Done::Entered => {
                        self.captured.settle_a_moment().await;
                        Ok(())
                    }
                    Done::Unsafe => Err(Error::refused(
                        format!(
                            "no base backup was taken: {UNSAFE}, {ATTEMPTS_MAX} times in a row"
                        ),
                        "Run it again when no database is made from a template that changes; what was stored is not read again.",
                    )),
                };
            }
            Trigger::Due(schedule) => schedule,
        };
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let state = self.captured.ledger.read(Clone::clone).await;
            let since = self.since(&state);
            let Some(reason) = due(&schedule, since.as_ref()) else {
                continue;
            };
            tracing::info!(reason, "base backup begins");
            // Nothing may be restorable yet, or no longer: then the checkpoint is not spread.
            let fast = since.is_none();
            let patience = if fast { Duration::ZERO } else { DRILL_PATIENCE };
            let turn = self.turns.base_backup(patience).await;
            let done = self.one(fast).await;
            drop(turn);
            match done {
                Ok(Done::Entered) => continue,
                Ok(Done::Unsafe) => tracing::error!(
                    "no base backup: {UNSAFE}, {ATTEMPTS_MAX} times in a row; tried again in {}",
                    show_duration(RETRY_PAUSE)
                ),
                Err(error) if error.is_transient() || was_promoted(&error) => {
                    tracing::warn!(%error, "base backup failed; tried again in {}", show_duration(RETRY_PAUSE));
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Takes one, again where it was not safe.
    async fn one(&self, fast: bool) -> Result<Done> {
        for _ in 0..ATTEMPTS_MAX {
            match self.attempt(fast).await? {
                Entry::Made => return Ok(Done::Entered),
                Entry::Not(why) => tracing::warn!("{why}; the base backup is taken again"),
            }
        }
        Ok(Done::Unsafe)
    }

    /// What has happened since the last base backup that the log leads on from.
    fn since(&self, state: &LineageState) -> Option<Since> {
        let damage = self.damage.all();
        let last = usable(state, &damage, self.captured.branch)?;
        let durable = self.captured.durable.borrow().position;
        let segment = self.facts.segment_bytes;
        let own_end = borealis_base::Position(last.end.0.next_multiple_of(segment));
        let timeout = self
            .facts
            .settings
            .number("checkpoint_timeout")
            .unwrap_or(300);
        Some(Since {
            log: durable.since(last.start),
            own_log: own_end.min(durable).since(last.start),
            elapsed: self.lineage.clock().now().since(last.started_at),
            checkpoint_timeout: Duration::from_secs(timeout.unsigned_abs()),
        })
    }

    /// Takes one and enters it, unless it can't be relied on.
    async fn attempt(&self, fast: bool) -> Result<Entry> {
        let branch = self.captured.branch;
        // A scrub elsewhere may have found something since.
        self.damage.refresh().await?;
        let damage = self.damage.all();
        let mut state = self.captured.ledger.read(Clone::clone).await;
        // Of a damaged pack everything else can be taken over.
        let in_packs = |damage: &&Damage| matches!(damage.part, Part::Pack(..));
        state.withdraw(damage.iter().filter(|damage| !in_packs(damage)));
        let damaged = damage.iter().filter_map(|damage| match &damage.part {
            Part::Pack(pack, frames) => Some((*pack, frames.clone())),
            _ => None,
        });
        let fetcher = Fetcher::new(self.lineage.store().clone(), self.lineage.keys().clone());
        let target = PackTarget {
            store: self.lineage.store().clone(),
            lineage: self.lineage.id(),
            key: self.lineage.keys().current(),
            entropy: self.lineage.entropy().clone(),
            pack_bytes_max: PACK_BYTES_MAX,
            patience: Patience::default(),
        };
        let began = self.lineage.clock().elapsed();
        let attempted = take(&Job {
            info: self.info,
            access: self.access,
            system_id: self.facts.system_id,
            branch,
            candidates: candidates(&state, branch),
            damaged: damaged.collect(),
            fast,
            target: &target,
            fetcher: &fetcher,
            partial_every: self.resumable_every.0,
            partials: self.captured,
            log: self.captured,
            clock: &**self.lineage.clock(),
            progress: self.progress,
            cancel: self.cancel,
        })
        .await?;
        let taken = match attempted {
            Attempted::Taken(taken) => taken,
            Attempted::Unsafe(directories) => {
                let show =
                    |files: &DatabaseFiles| format!("{}/{}", files.tablespace, files.database);
                let directories: Vec<String> = directories.iter().map(show).collect();
                return Ok(Entry::Not(format!("{UNSAFE}: {}", directories.join(", "))));
            }
        };
        if self.shares_what_expired(&taken).await? {
            return Ok(Entry::Not(
                "the base backup whose pages it shares has expired".to_owned(),
            ));
        }
        self.enter(&taken).await?;
        let took = self.lineage.clock().elapsed().saturating_sub(began);
        report(&taken, took);
        Ok(Entry::Made)
    }

    /// Whether the base backup whose pages this one shares has expired meanwhile: it may be deleted.
    async fn shares_what_expired(&self, taken: &Taken) -> Result<bool> {
        let Some(shared) = taken.shares else {
            return Ok(false);
        };
        while !self.captured.ledger.refresh().await? {}
        let is_there = |state: &LineageState| {
            let mut bases = state.base_backups.iter();
            bases.any(|base| base.manifest == shared)
        };
        Ok(!self.captured.ledger.read(is_there).await)
    }

    async fn enter(&self, taken: &Taken) -> Result<()> {
        let info = taken.manifest.info();
        let body = EntryBody::BaseBackup(BaseBackup {
            manifest: taken.manifest.object(),
            branch: info.branch,
            start: info.start,
            end: info.end,
            started_at: info.started_at,
            ended_at: info.ended_at,
            new_bytes: taken.new_bytes,
            total_pages: taken.manifest.total_pages(),
            rule_set: info.rule_set,
            engine: bytes::Bytes::new(),
        });
        self.captured.ledger.append(&body, Vec::new()).await?;
        self.captured.catalogs.want_all();
        Ok(())
    }
}

/// The last base backup on the way to `branch`, if no gap came after it and it is not damaged itself.
fn usable(state: &LineageState, damage: &[Damage], branch: Branch) -> Option<BaseBackupSummary> {
    let way = path(state, branch);
    let last = last_on(&way, state)?;
    if (damage.iter()).any(|damage| damage.base_backups.contains(&last.entry)) {
        return None;
    }
    if damage.is_empty() {
        // Looked at each second: no copy for nothing.
        return is_after_gaps(&way, state, last.start).then(|| last.clone());
    }
    let mut relied_on = state.clone();
    relied_on.withdraw(damage);
    is_after_gaps(&way, &relied_on, last.start).then(|| last.clone())
}

/// SQLSTATE of a server that is not in the state for what it is asked: a base backup of a standby ends so
/// when that is promoted (`do_pg_backup_stop` in `xlog.c`).
const NOT_IN_STATE: &str = "55000";

fn was_promoted(error: &Error) -> bool {
    matches!(error, Error::Server(error) if error.sqlstate() == Some(NOT_IN_STATE))
}

fn report(taken: &Taken, took: Duration) {
    let info = taken.manifest.info();
    tracing::info!(
        start = %info.start, end = %info.end, pages_read = taken.pages_read, pages = taken.manifest.total_pages(),
        new_bytes = taken.new_bytes, incremental = taken.incremental, took = show_duration(took),
        "base backup complete"
    );
    for page in &taken.damaged {
        tracing::error!(
            path = page.path,
            block = page.block,
            fault = page.fault,
            "damaged page on the source"
        );
    }
}
