//! Starts, watches and ends the parts of a running protection.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ByteLen, ErrorKind, LineageId, Position, Progress};
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_format::history::History;
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::{Access, Agentless};
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::link::replication::{ReplicationLink, SystemIdentity};
use borealis_pg_server::source::ServerFacts;
use borealis_repository::Lineage;
use borealis_repository::ledger::{BranchStarted, EntryBody, Gap};
use borealis_repository::plan::{LineageState, PieceSummary};
use borealis_repository::store::Counters;
use tokio_util::sync::CancellationToken;

use super::base_backups::{BaseBackups, Trigger};
use super::begin::{self, Beginning, Held};
use super::capture::{Capture, Captured, Ended, Links};
use super::captured::Captured as CapturedLog;
use super::cluster::find_cluster;
use super::epoch::open_writer;
use super::ledger::{Ledger, Patience};
use super::names::{CatalogChanges, NamesKeeper};
use super::preflight::{Looked, look_at_server, pause};
use super::pulse::{Pulse, Watcher};
use super::read_back::ReadBack;
use super::receive;
use super::schedule::Schedule;
use super::ship::Destination;
use super::slot_policy::Policy;
use super::slot_watch::{SlotWatch, slot_name};
use crate::error::{Error, Result};
use crate::site::Site;

/// What `protect` was asked for.
#[derive(Debug, Clone)]
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
    /// How long log may wait before it is shipped.
    pub flush_interval: Duration,
    /// When base backups are due.
    pub schedule: Schedule,
    /// How much of a base backup is stored before what there is so far can be resumed from.
    pub resumable_every: ByteLen,
    /// What goes first when slot and disk conflict.
    pub policy: Policy,
    /// Take over from another `protect`.
    pub take_over: bool,
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

/// Everything that stays the same while the protection runs.
struct Protection<'a> {
    options: &'a Options,
    lineage: Lineage,
    facts: ServerFacts,
    control: ControlFile,
    access: Access,
    ledger: Ledger,
    slot: Option<String>,
    usage: Arc<Counters>,
    progress: Arc<dyn Progress>,
    pulse: Pulse,
    stop: CancellationToken,
}

/// Protects until `stop`, or until one base backup is taken if that was asked for. `watcher` sees signs of life.
pub async fn protect(
    site: &Site,
    options: &Options,
    progress: Arc<dyn Progress>,
    watcher: Arc<dyn Watcher>,
    stop: CancellationToken,
) -> Result<Stopped> {
    let pulse = Pulse::new(site.clock().clone(), watcher);
    let Looked {
        facts,
        access,
        control,
        restored,
    } = look_at_server(options, &stop).await?;
    tracing::info!("{access}");
    progress.note(&access.to_string());
    let (cluster, lineage) = find_cluster(site, options, &facts, restored.as_ref()).await?;
    let writer = open_writer(site, &lineage, options, &control).await?;
    let slot = (!options.no_slot).then(|| slot_name(&lineage));
    let protection = Protection {
        options,
        ledger: Ledger::new(writer, stop.clone(), patience(options), pulse.clone()),
        lineage,
        facts,
        control,
        access,
        slot,
        usage: site.usage.clone(),
        progress,
        pulse,
        stop,
    };
    let durable = protection.run().await?;
    let mut notes = Vec::new();
    if let (true, Some(slot)) = (options.once, &protection.slot) {
        notes.push(format!(
            "replication slot {slot} stays and holds log for the next run; borealis unprotect drops it"
        ));
    }
    protection.ledger.close().await?;
    Ok(Stopped {
        cluster,
        durable,
        notes,
    })
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
    async fn run(&self) -> Result<Position> {
        let mut gap = None;
        loop {
            self.pulse.turn();
            let (system, beginning) = match self.begin(gap.clone()).await {
                Ok(begun) => begun,
                // It was reached before, and will be again; nothing was written by this attempt.
                Err(error) if error.kind() == ErrorKind::Unreachable => {
                    if pause(&self.stop, &error).await.is_ok() {
                        continue;
                    }
                    let end =
                        |state: &LineageState| begin::last_piece(state).map(|piece| piece.end);
                    return Ok(self.ledger.read(end).await.unwrap_or_default());
                }
                Err(error) => return Err(error),
            };
            let (ended, captured) = self.capture(system, beginning).await?;
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
                Ended::Gap(reason) => {
                    tracing::error!(%durable, reason, "the log has a gap; a new base backup follows");
                    // One that is lost or gone already needs no dropping.
                    if let Err(error) = self.drop_slot().await {
                        tracing::debug!(%error, "slot not dropped");
                    }
                    gap = Some(reason);
                }
            }
        }
    }

    async fn drop_slot(&self) -> Result<()> {
        if let Some(slot) = &self.slot {
            let mut link = ReplicationLink::connect(&self.options.info).await?;
            link.drop_slot(slot).await?;
        }
        Ok(())
    }

    /// Finds where to go on. With a gap, or for the first time, that is where the server can give log from.
    async fn begin(&self, gap: Option<String>) -> Result<(SystemIdentity, Beginning)> {
        let system = self.identify().await?;
        let state = self.ledger.read(Clone::clone).await;
        begin::check_branch(system.branch, &state)?;
        let format = begin::log_format(&self.control);
        let (hold, reserved) = self.reserve().await?;
        let last = begin::last_piece(&state).cloned();
        // A slot that was let go while the log is all there leaves no gap: the new one holds it.
        let gap = gap.filter(|_| last.as_ref().is_none_or(|piece| reserved > piece.end));
        let beginning = match (last, gap) {
            (Some(piece), None) => {
                let held = Held {
                    store: self.lineage.store().clone(),
                    keys: self.lineage.keys().clone(),
                    state,
                };
                match begin::resume(&held, format, &piece).await {
                    // The log that it is in was lost by the store: go on behind it.
                    Err(error) if error.kind() == ErrorKind::Damaged => {
                        self.withdraw_end(&piece, reserved, &error).await?;
                        begin::anew(format, reserved, Some(&held.state))
                    }
                    resumed => resumed?,
                }
            }
            (Some(piece), Some(reason)) => {
                let body = Gap {
                    branch: system.branch,
                    from: piece.end,
                    to: reserved,
                    reason,
                };
                self.ledger
                    .append(&EntryBody::Gap(body), Vec::new())
                    .await?;
                begin::anew(format, reserved, Some(&state))
            }
            (None, _) => {
                self.record_branch(&system).await?;
                begin::anew(format, reserved, None)
            }
        };
        Ok((system, Beginning { hold, ..beginning }))
    }

    /// Takes the last piece of the log out of what is promised, since its end can't be read any more.
    async fn withdraw_end(
        &self,
        piece: &PieceSummary,
        reserved: Position,
        damage: &Error,
    ) -> Result<()> {
        tracing::error!(
            start = %piece.start, end = %piece.end, error = %damage,
            "the end of the log is not stored as it was written; it is withdrawn, and a base backup follows"
        );
        let known = |state: &LineageState| state.is_withdrawn(piece);
        if self.ledger.read(known).await {
            return Ok(());
        }
        let body = Gap {
            branch: piece.branch,
            from: piece.start,
            to: piece.end.max(reserved),
            reason: format!("read when protect started: {damage}"),
        };
        self.ledger
            .append(&EntryBody::Gap(body), Vec::new())
            .await?;
        Ok(())
    }

    /// Has the server keep its log from here on, by our slot or as long as the connection is kept.
    async fn reserve(&self) -> Result<(Option<ReplicationLink>, Position)> {
        let (info, segment) = (&self.options.info, self.facts.segment_bytes);
        let sql = SqlLink::connect(info).await?;
        if let Some(slot) = &self.slot {
            return Ok((None, begin::reserve(info, &sql, slot, segment).await?));
        }
        // Each has a name of its own: the server may not have noticed yet that the last one is gone.
        let token = LineageId::random(&**self.lineage.entropy()).to_string();
        let token = token.get(..8).unwrap_or_default();
        let slot = format!("{}_{token}", slot_name(&self.lineage));
        let (hold, reserved) = begin::hold(info, &sql, &slot, segment).await?;
        Ok((Some(hold), reserved))
    }

    /// A server that was promoted before it was first protected: its recovery asks for the history of
    /// its timeline, which is stored before the first byte of that timeline.
    async fn record_branch(&self, system: &SystemIdentity) -> Result<()> {
        let known = self
            .ledger
            .read(|state| state.branches.contains_key(&system.branch))
            .await;
        if known || system.branch.0 <= 1 {
            return Ok(());
        }
        let mut link = ReplicationLink::connect(&self.options.info).await?;
        let (_, history) = link.timeline_history(system.branch).await?;
        let parsed = History::parse(system.branch, &history)?;
        let Some(last) = parsed.ancestors.last() else {
            return Ok(());
        };
        let body = BranchStarted {
            branch: system.branch,
            parent: last.timeline,
            at: last.end,
            history,
        };
        self.ledger
            .append(&EntryBody::BranchStarted(body), Vec::new())
            .await?;
        Ok(())
    }

    async fn identify(&self) -> Result<SystemIdentity> {
        Ok(ReplicationLink::connect(&self.options.info)
            .await?
            .identify_system()
            .await?)
    }

    /// Captures log and takes base backups until something ends it; ships what was received first.
    async fn capture(
        &self,
        system: SystemIdentity,
        beginning: Beginning,
    ) -> Result<(Ended, Captured)> {
        let from = receive::From {
            info: self.options.info.clone(),
            slot: self.slot.clone(),
            system_id: self.facts.system_id,
            branch: system.branch,
            position: beginning.durable.position,
            segment_size: self.control.wal_segment_size,
            tail: beginning.tail.clone(),
        };
        let catalogs = Arc::new(CatalogChanges::default());
        let links = Links {
            destination: Destination {
                lineage: self.lineage.id(),
                branch: system.branch,
                ledger: self.ledger.clone(),
                flush_interval: self.options.flush_interval,
                usage: self.usage.clone(),
                catalogs: catalogs.clone(),
            },
            read_back: ReadBack {
                store: self.lineage.store().clone(),
                keys: self.lineage.keys().clone(),
                lineage: self.lineage.id(),
                ledger: self.ledger.clone(),
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
            durable: capture.durable().clone(),
            shipper: capture.requests().clone(),
            branch: system.branch,
            catalogs,
        };
        let outcome = tokio::select! {
            () = self.stop.cancelled() => Ok(Ended::Stopped),
            ended = capture.ended() => ended,
            taken = self.base_backups(&log) => match taken {
                // Whoever asked to stop did not ask for the base backup that this gives up.
                Err(error) if error.kind() == ErrorKind::Interrupted && self.stop.is_cancelled() => {
                    Ok(Ended::Stopped)
                }
                // It waits for log that nobody captures any longer: the shipper has ended.
                Err(error) if error.kind() == ErrorKind::Interrupted => capture.drained().await,
                taken => taken.map(|()| Ended::Stopped),
            },
            reason = self.watch_slot() => Ok(Ended::Gap(reason)),
            error = self.keep_names(&log) => Err(error),
        };
        drop(log);
        capture.end(outcome).await
    }

    /// Keeps names; returns the error that ends it, if that is not what ends all else, too.
    async fn keep_names(&self, captured: &CapturedLog) -> Error {
        if self.options.once {
            return std::future::pending().await;
        }
        match self.names(captured).run().await {
            Err(error) if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Fenced) => {
                error
            }
            _ => std::future::pending().await,
        }
    }

    fn names<'a>(&'a self, captured: &'a CapturedLog) -> NamesKeeper<'a> {
        NamesKeeper {
            info: &self.options.info,
            lineage: &self.lineage,
            captured,
        }
    }

    /// Takes base backups as they become due; returns when the only one that was asked for is taken.
    async fn base_backups(&self, captured: &CapturedLog) -> Result<()> {
        let trigger = if self.options.once {
            Trigger::Once
        } else {
            Trigger::Due(self.options.schedule)
        };
        BaseBackups {
            info: &self.options.info,
            access: &self.access,
            lineage: &self.lineage,
            facts: &self.facts,
            captured,
            resumable_every: self.options.resumable_every,
            progress: &*self.progress,
            cancel: &self.stop,
        }
        .run(trigger)
        .await?;
        // Only one that was asked for alone comes to an end.
        self.names(captured).once().await
    }

    /// Returns the reason when the slot has to be let go.
    async fn watch_slot(&self) -> String {
        let Some(slot) = &self.slot else {
            return std::future::pending().await;
        };
        SlotWatch {
            slot,
            info: &self.options.info,
            facts: &self.facts,
            data_dir: self.access.local(),
            policy: self.options.policy,
        }
        .let_go()
        .await
    }
}
