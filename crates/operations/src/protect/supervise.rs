//! Starts, watches and ends the parts of a running protection.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ByteLen, ErrorKind, Position, Progress};
use borealis_pg_server::conninfo::{ConnInfo, TargetSession};
use borealis_pg_server::data_dir::Agentless;
use borealis_pg_server::link::replication::ReplicationLink;
use borealis_repository::Lineage;
use borealis_repository::catalog::Cluster;
use borealis_repository::ledger::{EntryBody, Retired};
use borealis_repository::plan::LineageState;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::base_backups::{BaseBackups, Trigger};
use super::begin;
use super::capture::{Capture, Captured, Ended, Links};
use super::captured::Captured as CapturedLog;
use super::cluster::{begin_lineage, find_cluster, refuse_restored};
use super::epoch::open_writer;
use super::follow::Begun;
use super::key_watch::{KeyPatience, KeyWatch};
use super::ledger::{Ledger, Patience};
use super::names::{CatalogChanges, NamesKeeper};
use super::preflight::{Looked, look_at_source, pause};
use super::pulse::{Pulse, Watcher};
use super::read_back::ReadBack;
use super::receive;
use super::sample::Sampled;
use super::schedule::Schedule;
use super::ship::Destination;
use super::slot_policy::Policy;
use super::slot_watch::{SlotWatch, slot_name};
use super::source::{self, Source, Wanted};
use super::upkeep::damage::KnownDamage;
use super::upkeep::turns::Turns;
use super::upkeep::{Upkeep, UpkeepOptions};
use crate::error::{Error, Result};
use crate::maintain::maintain_beside;
use crate::retention::NewTerms;
use crate::site::Site;

/// What `protect` was asked for.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // switches that people turn on one by one
pub struct Options {
    /// The server.
    pub info: ConnInfo,
    /// The cluster's name in the repository.
    pub cluster: Option<String>,
    /// The data directory, where it is not what the server says.
    pub data_dir: Option<PathBuf>,
    /// When files are read through SQL.
    pub agentless: Agentless,
    /// Take one base backup with the log it needs, then stop.
    pub once: bool,
    /// Use no slot.
    pub no_slot: bool,
    /// How the root key is watched.
    pub key_patience: KeyPatience,
    /// How long log may wait before it is shipped.
    pub flush_interval: Duration,
    /// When base backups are due.
    pub schedule: Schedule,
    /// How often the lineage is maintained; `None` leaves that to others.
    pub maintain_every: Option<Duration>,
    /// How much of a base backup is stored before what there is so far can be resumed from.
    pub resumable_every: ByteLen,
    /// What goes first when slot and disk conflict.
    pub policy: Policy,
    /// Take over from another `protect`.
    pub take_over: bool,
    /// Begin a new lineage for a server with another system identifier than the one protected.
    pub new_lineage: bool,
    /// What is done besides, in the background.
    pub upkeep: UpkeepOptions,
    /// What is said of the cluster from now on.
    pub terms: NewTerms,
}

/// How protection ended, without an error.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Stopped {
    /// The cluster.
    pub cluster: String,
    /// Log is durable up to here.
    pub durable: Position,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// The pause before the source is looked for again.
const LOOK_AGAIN_PAUSE: Duration = Duration::from_millis(200);

/// How often the other hosts are asked whether one of them was promoted.
const OTHERS_INTERVAL: Duration = Duration::from_secs(10);

/// Everything that stays the same while the protection runs.
pub(super) struct Protection<'a> {
    pub(super) options: &'a Options,
    pub(super) cluster: Cluster,
    pub(super) lineage: Lineage,
    pub(super) system_id: u64,
    pub(super) ledger: Ledger,
    pub(super) slot: Option<String>,
    site: &'a Site,
    progress: Arc<dyn Progress>,
    pulse: Pulse,
    damage: KnownDamage,
    turns: Turns,
    pub(super) stop: CancellationToken,
}

/// Protects until `stop`, or until one base backup is taken if that was asked for. `watcher` sees signs of life.
///
/// A server whose history was rewritten under the same numbers gets a lineage of its own, once: what was
/// stored stays as it is.
pub async fn protect(
    site: &Site,
    options: &Options,
    progress: Arc<dyn Progress>,
    watcher: Arc<dyn Watcher>,
    stop: CancellationToken,
) -> Result<Stopped> {
    let pulse = Pulse::new(site.clock().clone(), watcher);
    let mut looked = look_at_source(options, &stop).await?;
    let (mut cluster, mut lineage) =
        find_cluster(site, options, &looked.facts, looked.restored.as_ref()).await?;
    options.terms.record(site, &cluster).await?;
    let mut notes = Vec::new();
    loop {
        let log_unit = looked.control.wal_segment_size.bytes();
        let writer = open_writer(site, &lineage, options, log_unit).await?;
        let protection = Protection {
            options,
            cluster: cluster.clone(),
            ledger: Ledger::new(writer, stop.clone(), patience(options), pulse.clone()),
            system_id: looked.facts.system_id,
            slot: (!options.no_slot).then(|| slot_name(&lineage)),
            damage: KnownDamage::load(&lineage).await?,
            turns: Turns::default(),
            lineage,
            site,
            progress: progress.clone(),
            pulse: pulse.clone(),
            stop: stop.clone(),
        };
        let ended = tokio::select! {
            ended = protection.run_maintained(looked) => ended,
            never = protection.upkeep(site) => match never {},
        };
        let durable = match ended {
            Ok(durable) => durable,
            // Of several hosts another one may be the right one.
            Err(Error::Rewritten(why)) if notes.is_empty() && options.info.hosts.len() == 1 => {
                let (system_id, before) = (protection.system_id, protection.lineage.id());
                protection.leave(&why).await?;
                looked = look_at_source(options, &stop).await?;
                (cluster, lineage) = begin_lineage(site, &cluster, system_id, &why).await?;
                notes.push(format!(
                    "{why}; a new lineage was begun, and what was stored before stays restorable with --lineage {before}"
                ));
                continue;
            }
            Err(error) => return Err(error),
        };
        if let (true, Some(slot)) = (options.once, &protection.slot) {
            notes.push(format!(
                "replication slot {slot} stays and holds log for the next run; borealis unprotect drops it"
            ));
        }
        protection.ledger.close().await?;
        return Ok(Stopped {
            cluster: cluster.name,
            durable,
            notes,
        });
    }
}

/// Whoever asked for one base backup is told that it has no room; a protection that stays waits for it.
const fn patience(options: &Options) -> Patience {
    if options.once {
        Patience::Answer
    } else {
        Patience::AnswerAndRoom
    }
}

impl Protection<'_> {
    /// Captures, and maintains the lineage beside that.
    async fn run_maintained(&self, looked: Looked) -> Result<Position> {
        let interval = self.options.maintain_every.filter(|_| !self.options.once);
        let maintained = async {
            match interval {
                Some(interval) => {
                    let (lineage, ledger) = (self.lineage.clone(), self.ledger.clone());
                    let (site, cluster) = (self.site, &self.cluster);
                    let error = maintain_beside(site, cluster, lineage, ledger, interval).await;
                    tracing::warn!(%error, "this cluster is not maintained");
                    std::future::pending().await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            captured = self.run(looked) => captured,
            never = maintained => never,
        }
    }

    /// Captures from one server after the other, each where the one before it has ended.
    async fn run(&self, looked: Looked) -> Result<Position> {
        let mut looked = Some(looked);
        let (mut gap, mut said) = (None, None);
        loop {
            self.pulse.turn();
            let begun = async {
                let source = self.find_source(looked.take()).await?;
                let begun = self.begin(&source, gap.clone()).await?;
                Ok((source, begun))
            };
            let (source, begun) = match begun.await {
                Ok(begun) => begun,
                // It was reached before, and will be again; nothing was written by this attempt.
                Err(error) if Error::kind(&error) == ErrorKind::Unreachable => {
                    if pause(&self.stop, &error).await.is_ok() {
                        continue;
                    }
                    let end =
                        |state: &LineageState| begin::last_piece(state).map(|piece| piece.end);
                    return Ok(self.ledger.read(end).await.unwrap_or_default());
                }
                Err(error) => return Err(error),
            };
            gap = None;
            let access = source.server.access.to_string();
            if said.as_ref() != Some(&access) {
                tracing::info!("{access}");
                self.progress.note(&access);
                said = Some(access);
            }
            let (ended, captured) = self.capture(&source, begun).await?;
            let durable = captured.position;
            match ended {
                Ended::Stopped if self.options.once && captured.withdrawn > 0 => {
                    return Err(Error::with_hint(
                        ErrorKind::Damaged,
                        format!(
                            "{} log pieces are not stored as they were written",
                            captured.withdrawn
                        ),
                        "See what happened to the repository's store, and run it again: the base backup may lack its log.",
                    ));
                }
                Ended::Stopped => return Ok(durable),
                Ended::LookAgain(reason) => {
                    tracing::warn!(%durable, reason, "the source is looked for again");
                    // Behind an address that leads to one server and then to another this would spin.
                    tokio::select! {
                        () = self.stop.cancelled() => return Ok(durable),
                        () = tokio::time::sleep(LOOK_AGAIN_PAUSE) => {}
                    }
                }
                Ended::Gap(reason) => {
                    tracing::error!(%durable, reason, "the log has a gap; a new base backup follows");
                    // One that is lost or gone already needs no dropping.
                    if let Err(error) = self.drop_slot(&source).await {
                        tracing::debug!(%error, "slot not dropped");
                    }
                    gap = Some(reason);
                }
            }
        }
    }

    /// Scrubs and drills, until it is dropped.
    async fn upkeep(&self, site: &Site) -> Infallible {
        if self.options.once {
            return std::future::pending().await;
        }
        Upkeep {
            site,
            options: &self.options.upkeep,
            cluster: &self.cluster,
            lineage: &self.lineage,
            ledger: &self.ledger,
            damage: &self.damage,
            turns: &self.turns,
            stop: &self.stop,
        }
        .run()
        .await
    }

    /// The server to go on with: the one that was looked at already, if there are no others.
    async fn find_source(&self, looked: Option<Looked>) -> Result<Source> {
        let state = self.ledger.read(Clone::clone).await;
        let wanted = Wanted {
            options: self.options,
            system_id: self.system_id,
            state: &state,
            refuse: &|restored| refuse_restored(restored, &self.cluster),
        };
        match looked.filter(|_| !self.has_others()) {
            Some(looked) => wanted.judge_looked(looked).await,
            None => wanted.find().await,
        }
    }

    /// Who can be asked for clock and insert position: the source or, if that is a standby, its primary.
    fn primary(&self, source: &Source) -> Option<ConnInfo> {
        if !source.standing.in_recovery {
            return Some(source.info().clone());
        }
        let hosts = &self.options.info;
        self.has_others()
            .then(|| hosts.with_target(TargetSession::Primary))
    }

    fn has_others(&self) -> bool {
        self.options.info.hosts.len() > 1
    }

    /// Ends the lineage: it takes no more log, and its slot is of no more use.
    async fn leave(self, why: &str) -> Result<()> {
        let body = EntryBody::Retired(Retired {
            reason: why.to_owned(),
        });
        self.ledger.append(&body, Vec::new()).await?;
        if let Some(slot) = &self.slot {
            let dropped = async {
                let mut link = ReplicationLink::connect(&self.options.info).await?;
                link.drop_slot(slot).await
            };
            if let Err(error) = dropped.await {
                tracing::debug!(%error, "slot not dropped");
            }
        }
        self.ledger.close().await
    }

    async fn drop_slot(&self, source: &Source) -> Result<()> {
        if let Some(slot) = &self.slot {
            let mut link = ReplicationLink::connect(source.info()).await?;
            link.drop_slot(slot).await?;
        }
        Ok(())
    }

    /// Captures log and takes base backups until something ends it; ships what was received first.
    async fn capture(&self, source: &Source, begun: Begun) -> Result<(Ended, Captured)> {
        let Begun { branch, beginning } = begun;
        let server_branch = source.standing.branch();
        let from = receive::From {
            info: source.info().clone(),
            slot: self.slot.clone(),
            system_id: self.system_id,
            branch,
            server_branch,
            has_others: self.has_others(),
            position: beginning.durable.position,
            segment_size: source.server.control.wal_segment_size,
            tail: beginning.tail.clone(),
        };
        let catalogs = Arc::new(CatalogChanges::default());
        let links = Links {
            destination: Destination {
                lineage: self.lineage.id(),
                branch,
                ledger: self.ledger.clone(),
                flush_interval: self.options.flush_interval,
                usage: self.site.usage.clone(),
                catalogs: catalogs.clone(),
            },
            read_back: ReadBack {
                store: self.lineage.store().clone(),
                keys: self.lineage.keys().clone(),
                lineage: self.lineage.id(),
                ledger: self.ledger.clone(),
            },
            sampled: Sampled {
                primary: self.primary(source),
                may_write: !source.standing.in_recovery,
                system_id: self.system_id,
                branch,
            },
            clock: self.lineage.clock().clone(),
            pulse: self.pulse.clone(),
        };
        let mut capture = Capture::begin(from, links, beginning)?;
        let log = CapturedLog {
            ledger: self.ledger.clone(),
            store: self.lineage.store().clone(),
            keys: self.lineage.keys().clone(),
            lineage: self.lineage.id(),
            branch,
            durable: capture.durable().clone(),
            shipper: capture.requests().clone(),
            catalogs,
        };
        let outcome = tokio::select! {
            () = self.stop.cancelled() => Ok(Ended::Stopped),
            ended = capture.ended() => ended,
            // A base backup begins on the server's own branch, and its log is captured once that is reached.
            taken = self.base_backups(source, &log), if branch == server_branch => match taken {
                // Whoever asked to stop did not ask for the base backup that this gives up.
                Err(error) if error.kind() == ErrorKind::Interrupted && self.stop.is_cancelled() => {
                    Ok(Ended::Stopped)
                }
                // It waits for log that nobody captures any longer: the shipper has ended.
                Err(error) if error.kind() == ErrorKind::Interrupted => capture.drained().await,
                taken => taken.map(|()| Ended::Stopped),
            },
            reason = self.watch_slot(source) => Ok(Ended::Gap(reason)),
            reason = self.watch_others(source) => Ok(Ended::LookAgain(reason)),
            error = self.watch_key() => Err(error),
            error = self.keep_names(source, &log), if branch == server_branch => Err(error),
        };
        drop(log);
        capture.end(outcome).await
    }

    /// Returns the error by which nothing more may be published.
    async fn watch_key(&self) -> Error {
        KeyWatch {
            repository: &self.site.repository,
            lineage: &self.lineage,
            ledger: &self.ledger,
            pulse: &self.pulse,
            patience: self.options.key_patience,
        }
        .until_unusable()
        .await
    }

    /// Keeps names; returns the error that ends it, if that is not what ends all else, too.
    async fn keep_names(&self, source: &Source, captured: &CapturedLog) -> Error {
        if self.options.once {
            return std::future::pending().await;
        }
        match self.names(source, captured).run().await {
            Err(error) if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Fenced) => {
                error
            }
            _ => std::future::pending().await,
        }
    }

    fn names<'a>(&'a self, source: &'a Source, captured: &'a CapturedLog) -> NamesKeeper<'a> {
        NamesKeeper {
            info: source.info(),
            lineage: &self.lineage,
            captured,
        }
    }

    /// Takes base backups as they become due; returns when the only one that was asked for is taken.
    async fn base_backups(&self, source: &Source, captured: &CapturedLog) -> Result<()> {
        let trigger = if self.options.once {
            Trigger::Once
        } else {
            Trigger::Due(self.options.schedule)
        };
        BaseBackups {
            info: source.info(),
            access: &source.server.access,
            lineage: &self.lineage,
            facts: &source.server.facts,
            captured,
            resumable_every: self.options.resumable_every,
            damage: &self.damage,
            turns: &self.turns,
            progress: &*self.progress,
            cancel: &self.stop,
        }
        .run(trigger)
        .await?;
        // Only one that was asked for alone comes to an end.
        self.names(source, captured).once().await
    }

    /// Returns the reason when another host is to be gone on with, since it was promoted while this one
    /// still answers.
    async fn watch_others(&self, source: &Source) -> String {
        if !self.has_others() {
            return std::future::pending().await;
        }
        let mut tick = tokio::time::interval(OTHERS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let newer = source::newer(&self.options.info, source).await;
            if newer
                && let Ok(found) = self.find_source(None).await
                && found.standing.branch() > source.standing.branch()
            {
                return format!("timeline {} has begun", found.standing.branch());
            }
        }
    }

    /// Returns the reason when the slot has to be let go.
    async fn watch_slot(&self, source: &Source) -> String {
        let Some(slot) = &self.slot else {
            return std::future::pending().await;
        };
        SlotWatch {
            slot,
            info: source.info(),
            facts: &source.server.facts,
            data_dir: source.server.access.local(),
            policy: self.options.policy,
        }
        .let_go()
        .await
    }
}
