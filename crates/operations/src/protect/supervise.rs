//! Starts, watches and ends the parts of a running protection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ErrorKind, LineageId, Position, Progress};
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_format::history::History;
use borealis_pg_server::Error as ServerError;
use borealis_pg_server::check::{CheckFacts, Severity, findings};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::link::replication::{ReplicationLink, SystemIdentity};
use borealis_pg_server::source::{ServerFacts, slot_state};
use borealis_repository::Lineage;
use borealis_repository::ledger::{
    BranchStarted, Decision, EntryBody, Gap, Holder, LedgerWriter, Opening, Presence, Retired,
    decide,
};
use borealis_repository::plan::LineageState;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::base_backups::{BaseBackups, Trigger};
use super::begin::{self, Beginning, Held};
use super::captured::Captured;
use super::control;
use super::ledger::Ledger;
use super::receive::{self, End, MESSAGES_MAX, receive};
use super::sample::{SAMPLES_MAX, sample};
use super::schedule::Schedule;
use super::ship::{Destination, Inputs, Shipper};
use super::slot_policy::{Policy, Slot, Verdict, judge};
use crate::base_backup::take::read_control_file;
use crate::error::{Error, FileContext, Result};
use crate::host::ProcessIdentity;
use crate::restore::recovery_file::RecoveryFile;
use crate::site::{ClusterIdentity, Site};

/// How often the slot and the disk are looked at.
const SLOT_INTERVAL: Duration = Duration::from_secs(10);
/// The pause between attempts to ask a server that does not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Attempts at the start to ask a server that restarts.
const START_ATTEMPTS_MAX: u32 = 60;
/// SQLSTATEs of a server that stops, has crashed or starts: `admin_shutdown`, `crash_shutdown`,
/// `cannot_connect_now`.
const RESTARTING: [&str; 3] = ["57P01", "57P02", "57P03"];
/// The name of a cluster for which none is given.
const DEFAULT_CLUSTER: &str = "main";

/// What `protect` was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub info: ConnInfo,
    /// The cluster's name in the repository.
    pub cluster: Option<String>,
    /// The data directory, where it is not what the server says.
    pub data_dir: Option<PathBuf>,
    /// Take one base backup with the log it needs, then stop.
    pub once: bool,
    /// Use no slot.
    pub no_slot: bool,
    /// How long log may wait before it is shipped.
    pub flush_interval: Duration,
    /// When base backups are due.
    pub schedule: Schedule,
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
    data_dir: PathBuf,
    ledger: Ledger,
    slot: Option<String>,
    progress: Arc<dyn Progress>,
    stop: CancellationToken,
}

/// Why a stretch of capturing ended.
enum Ended {
    Stopped,
    /// Log is missing, or the slot was let go: there is a gap.
    Gap(String),
    /// All that was received is shipped; why no more comes, the receiver knows.
    Drained,
}

/// Protects until `stop`, or until one base backup is taken if that was asked for.
pub async fn protect(
    site: &Site,
    options: &Options,
    progress: Arc<dyn Progress>,
    stop: CancellationToken,
) -> Result<Stopped> {
    let (facts, data_dir, control) = look_at_server(options, &stop).await?;
    let (cluster, lineage) = find_cluster(site, options, &facts, &data_dir).await?;
    let writer = open_writer(site, &lineage, options, &control).await?;
    let slot = (!options.no_slot).then(|| slot_name(&lineage));
    let protection = Protection {
        options,
        ledger: Ledger::new(writer, stop.clone()),
        lineage,
        facts,
        control,
        data_dir,
        slot,
        progress,
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

/// Looks whether the server can be protected. One that restarts at this moment is waited for; one that
/// can't be reached at all is an error at once, since its name may be wrong.
async fn look_at_server(
    options: &Options,
    stop: &CancellationToken,
) -> Result<(ServerFacts, PathBuf, ControlFile)> {
    let look = async || {
        let sql = SqlLink::connect(&options.info).await?;
        let facts = ServerFacts::read(&sql).await?;
        let data_dir = local_data_dir(options, &facts)?;
        refuse_problems(options, &data_dir).await?;
        let control = read_control_file(&data_dir).await?.1;
        check_same_cluster(&data_dir, &control, &facts)?;
        Ok((facts, data_dir, control))
    };
    let mut attempt = 1;
    loop {
        match look().await {
            Err(error) if restarts(&error) && attempt < START_ATTEMPTS_MAX => {
                attempt += 1;
                pause(stop, &error).await?;
            }
            looked => return looked,
        }
    }
}

/// Whether an error says that the server is there and stops, starts or has just gone.
fn restarts(error: &Error) -> bool {
    match error {
        Error::Server(ServerError::Lost { .. }) => true,
        Error::Server(error) => error
            .sqlstate()
            .is_some_and(|state| RESTARTING.contains(&state)),
        _ => false,
    }
}

/// Waits before another attempt; an error where it is asked to stop meanwhile.
async fn pause(stop: &CancellationToken, error: &Error) -> Result<()> {
    tracing::warn!(%error, "the server can't be asked; trying again");
    tokio::select! {
        () = stop.cancelled() => Err(Error::new(
            ErrorKind::Interrupted,
            "stopped while the server could not be asked",
        )),
        () = tokio::time::sleep(RETRY_PAUSE) => Ok(()),
    }
}

impl Protection<'_> {
    async fn run(&self) -> Result<Position> {
        let mut gap = None;
        loop {
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
            let (ended, durable) = self.capture(system, beginning).await?;
            match ended {
                Ended::Stopped | Ended::Drained => return Ok(durable),
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
                begin::resume(&held, format, &piece).await?
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
    ) -> Result<(Ended, Position)> {
        let (durable, watched) = watch::channel(beginning.durable);
        let (stretches_in, stretches) = mpsc::channel(MESSAGES_MAX);
        let (samples_in, samples) = mpsc::channel(SAMPLES_MAX);
        let (asked, listener) = control::listen(&control::socket_path(self.lineage.id()))?;
        // Children of no other token: a stop must let what was received be shipped.
        let (receiving, sampling) = (CancellationToken::new(), CancellationToken::new());
        let from = receive::From {
            info: self.options.info.clone(),
            slot: self.slot.clone(),
            system_id: self.facts.system_id,
            branch: system.branch,
            position: beginning.durable.position,
            segment_size: self.control.wal_segment_size,
            tail: beginning.tail.clone(),
        };
        let clock = self.lineage.clock().clone();
        let mut receiver = tokio::spawn(receive(
            from,
            stretches_in,
            watched.clone(),
            clock,
            receiving.clone(),
        ));
        let sampler = tokio::spawn(sample(
            self.options.info.clone(),
            samples_in,
            watched.clone(),
            sampling.clone(),
        ));
        let to = Destination {
            lineage: self.lineage.id(),
            branch: system.branch,
            ledger: self.ledger.clone(),
            flush_interval: self.options.flush_interval,
        };
        let shipper = Shipper::new(
            to,
            beginning.cutter,
            beginning.last_record,
            Arc::new(durable),
        );
        let mut shipping = tokio::spawn(shipper.run(Inputs {
            stretches,
            samples,
            asked,
        }));
        let captured = Captured {
            ledger: self.ledger.clone(),
            store: self.lineage.store().clone(),
            keys: self.lineage.keys().clone(),
            lineage: self.lineage.id(),
            durable: watched.clone(),
        };
        let outcome = tokio::select! {
            () = self.stop.cancelled() => Ok(Ended::Stopped),
            ended = &mut receiver => as_ended(ended),
            // Without a fault it ends only after the receiver, which knows why.
            done = &mut shipping => joined(done).and_then(|done| done).map(|()| Ended::Drained),
            taken = self.base_backups(&captured) => match taken {
                // Whoever asked to stop did not ask for the base backup that this gives up.
                Err(error) if error.kind() == ErrorKind::Interrupted && self.stop.is_cancelled() => {
                    Ok(Ended::Stopped)
                }
                // It waits for log that nobody captures any longer: the shipper has ended.
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    joined((&mut shipping).await).and_then(|done| done).map(|()| Ended::Drained)
                }
                taken => taken.map(|()| Ended::Stopped),
            },
            reason = self.watch_slot() => Ok(Ended::Gap(reason)),
        };
        let drained = matches!(outcome, Ok(Ended::Drained));
        let outcome = match outcome {
            Ok(Ended::Drained) => as_ended((&mut receiver).await),
            outcome => outcome,
        };
        receiving.cancel();
        sampling.cancel();
        listener.abort();
        drop((captured, beginning.hold));
        let _ = sampler.await;
        if !receiver.is_finished() {
            let _ = receiver.await;
        }
        let outcome = outcome?;
        if !drained {
            // Without a receiver the stretches end, and the shipper after them.
            joined(shipping.await)??;
        }
        let position = watched.borrow().position;
        Ok((outcome, position))
    }

    /// Takes base backups as they become due; returns when the only one that was asked for is taken.
    async fn base_backups(&self, captured: &Captured) -> Result<()> {
        let trigger = if self.options.once {
            Trigger::Once
        } else {
            Trigger::Due(self.options.schedule)
        };
        BaseBackups {
            info: &self.options.info,
            data_dir: &self.data_dir,
            lineage: &self.lineage,
            facts: &self.facts,
            captured,
            progress: &*self.progress,
            cancel: &self.stop,
        }
        .run(trigger)
        .await
    }

    /// Returns the reason when the slot has to be let go.
    async fn watch_slot(&self) -> String {
        let Some(slot) = &self.slot else {
            return std::future::pending().await;
        };
        let mut tick = tokio::time::interval(SLOT_INTERVAL);
        let mut link: Option<SqlLink> = None;
        loop {
            tick.tick().await;
            match self.look_at_slot(&mut link, slot).await {
                Ok(Verdict::Keep) => {}
                Ok(Verdict::Warn(what)) => tracing::warn!("{what}"),
                Ok(Verdict::LetGo(reason)) => return reason,
                Err(error) => tracing::debug!(%error, "the slot could not be looked at"),
            }
        }
    }

    async fn look_at_slot(&self, link: &mut Option<SqlLink>, slot: &str) -> Result<Verdict> {
        let open = match link.take().filter(|link| !link.is_closed()) {
            Some(open) => open,
            None => SqlLink::connect(&self.options.info).await?,
        };
        let state = slot_state(&open, slot).await?;
        *link = Some(open);
        let retained = state.and_then(|state| state.held_bytes).unwrap_or(0);
        let bound = self
            .facts
            .settings
            .number("max_slot_wal_keep_size")
            .filter(|mib| *mib >= 0);
        Ok(judge(
            self.options.policy,
            &Slot {
                retained: retained.max(0).unsigned_abs(),
                server_bound: bound.map(|mib| mib.unsigned_abs() << 20),
                disk: disk_space(&self.data_dir.join("pg_wal")),
            },
        ))
    }
}

/// Free and total bytes of the file system of `path`.
fn disk_space(path: &Path) -> Option<(u64, u64)> {
    let space = rustix::fs::statvfs(path).ok()?;
    Some((
        space.f_bavail * space.f_frsize,
        space.f_blocks * space.f_frsize,
    ))
}

fn joined<T>(result: std::result::Result<T, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|error| Error::new(ErrorKind::Bug, format!("a task ended: {error}")))
}

fn as_ended(ended: std::result::Result<Result<End>, tokio::task::JoinError>) -> Result<Ended> {
    match joined(ended)?? {
        End::Stopped => Ok(Ended::Stopped),
        End::Missing { at, reason } => Ok(Ended::Gap(format!(
            "the server no longer has the log from {at} on: {reason}"
        ))),
        End::BranchEnded { at, next } => Err(Error::refused(
            format!(
                "the server's timeline ended at {at} and timeline {next} follows: it was promoted"
            ),
            "Protect it under another name with --cluster; the old window stays restorable. Following a promotion is not supported yet.",
        )),
    }
}

fn slot_name(lineage: &Lineage) -> String {
    let id = lineage.id().to_string();
    format!("borealis_{}", id.get(..12).unwrap_or(&id))
}

fn local_data_dir(options: &Options, facts: &ServerFacts) -> Result<PathBuf> {
    let named = options
        .data_dir
        .clone()
        .or_else(|| facts.data_directory.clone());
    let Some(data_dir) = named else {
        return Err(Error::refused(
            "the server does not say where its data directory is",
            "Name it with --data-dir, or grant the role pg_read_all_settings.",
        ));
    };
    if data_dir.join("global/pg_control").is_file() {
        return Ok(data_dir);
    }
    Err(Error::refused(
        format!(
            "{} is not a data directory that can be read here",
            data_dir.display()
        ),
        "Run borealis on the database's machine, as a user who can read the data directory, and name it with --data-dir.",
    ))
}

fn check_same_cluster(data_dir: &Path, control: &ControlFile, facts: &ServerFacts) -> Result<()> {
    if control.system_identifier == facts.system_id {
        return Ok(());
    }
    Err(Error::refused(
        format!(
            "{} belongs to cluster {}, and the server at the source is {}",
            data_dir.display(),
            control.system_identifier,
            facts.system_id
        ),
        "Name the data directory of this server with --data-dir.",
    ))
}

async fn refuse_problems(options: &Options, data_dir: &Path) -> Result<()> {
    let facts = CheckFacts::read(&options.info, Some(data_dir)).await?;
    let problems: Vec<String> = findings(&facts)
        .into_iter()
        .filter(|finding| finding.severity == Severity::Problem)
        .map(|finding| format!("{} is {}", finding.subject, finding.found))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::refused(
        format!("the server can't be protected: {}", problems.join("; ")),
        "Run borealis check, which prints the SQL for what is missing.",
    ))
}

/// The cluster's lineage, made if the name is new.
async fn find_cluster(
    site: &Site,
    options: &Options,
    facts: &ServerFacts,
    data_dir: &Path,
) -> Result<(String, Lineage)> {
    let clusters = site.live_clusters().await?;
    let same_server = clusters.iter().find(|cluster| {
        ClusterIdentity::of(cluster).is_ok_and(|identity| identity.system_id == facts.system_id)
    });
    let name = match (&options.cluster, same_server) {
        (Some(name), _) => name.clone(),
        (None, Some(cluster)) => cluster.name.clone(),
        (None, None) => DEFAULT_CLUSTER.to_owned(),
    };
    let Some(cluster) = clusters.iter().find(|cluster| cluster.name == name) else {
        let identity = ClusterIdentity {
            system_id: facts.system_id,
        };
        let engine = serde_json::to_vec(&identity)
            .map_err(|error| Error::new(ErrorKind::Bug, error.to_string()))?;
        return Ok((
            name.clone(),
            site.repository.create_cluster(&name, engine.into()).await?,
        ));
    };
    let identity = ClusterIdentity::of(cluster)?;
    if identity.system_id != facts.system_id {
        return Err(Error::refused(
            format!(
                "cluster {name} is another server: its system identifier is {}, this one's is {}",
                identity.system_id, facts.system_id
            ),
            "Choose another name with --cluster.",
        ));
    }
    refuse_restored(data_dir, cluster)?;
    Ok((name, site.lineage(cluster).await?))
}

/// A restored server shares its parent's system identifier, and perhaps its timeline number; what it
/// writes belongs into a history of its own.
fn refuse_restored(data_dir: &Path, cluster: &borealis_repository::catalog::Cluster) -> Result<()> {
    // One that can't be read is not one that is not there.
    let found = RecoveryFile::load(data_dir).at("read the mark of a restore in", data_dir)?;
    let born_here = |lineage| {
        cluster
            .lineages
            .iter()
            .any(|record| record.lineage == lineage)
    };
    match found {
        Some(file) if born_here(file.lineage) => Err(Error::refused(
            format!(
                "this server was restored from cluster {}, and is not it",
                cluster.name
            ),
            "Protect it under a name of its own with --cluster.",
        )),
        _ => Ok(()),
    }
}

async fn open_writer(
    site: &Site,
    lineage: &Lineage,
    options: &Options,
    control: &ControlFile,
) -> Result<LedgerWriter> {
    let me = ProcessIdentity::current()?;
    let present = lineage.reader().await?.presence().await?;
    let alive = present
        .as_ref()
        .and_then(|present| process_of(&present.holder).is_alive());
    let now = site.clock().now();
    if let Decision::Refuse {
        silent_for,
        dead_after,
    } = decide(present.as_ref(), alive, now, options.take_over)
    {
        return Err(refused_while_alive(
            present.as_ref(),
            silent_for,
            dead_after,
        ));
    }
    let opening = Opening {
        holder: Holder {
            host: format!("{} {}", me.host, me.process_space),
            pid: me.pid,
            process_start: me.started_ticks,
            control: control::socket_path(lineage.id()).display().to_string(),
            program: format!("borealis {}", env!("CARGO_PKG_VERSION")),
        },
        log_unit: control.wal_segment_size.bytes(),
        expected_epoch: (!options.take_over).then(|| present.map_or(0, |present| present.epoch)),
    };
    Ok(lineage.open_writer(opening).await?)
}

/// The process that a ledger's holder names.
pub(crate) fn process_of(holder: &Holder) -> ProcessIdentity {
    let (host, space) = holder.host.split_once(' ').unwrap_or((&holder.host, ""));
    ProcessIdentity {
        host: host.to_owned(),
        process_space: space.to_owned(),
        pid: holder.pid,
        started_ticks: holder.process_start,
    }
}

fn refused_while_alive(
    present: Option<&Presence>,
    silent_for: Duration,
    dead_after: Option<Duration>,
) -> Error {
    let who = present.map_or_else(String::new, |present| {
        let process = process_of(&present.holder);
        format!(
            "process {} on {} protects this cluster; its last sign of life was at {}, {} ago",
            process.pid,
            process.host,
            present.last_sign,
            borealis_base::show_duration(silent_for)
        )
    });
    let wait = dead_after.map_or_else(String::new, |after| {
        format!(
            " If it is dead, it is replaced after {}.",
            borealis_base::show_duration(after)
        )
    });
    Error::refused(
        who,
        format!("Stop it first, or take over from it with --take-over.{wait}"),
    )
}

/// Stops protecting: drops the slot and says so in the ledger. The backups stay.
pub async fn unprotect(site: &Site, cluster: Option<&str>, info: &ConnInfo) -> Result<Vec<String>> {
    let cluster = site.cluster(cluster).await?;
    let lineage = site.lineage(&cluster).await?;
    let present = lineage.reader().await?.presence().await?;
    let alive = present
        .as_ref()
        .and_then(|present| process_of(&present.holder).is_alive());
    if let Decision::Refuse {
        silent_for,
        dead_after,
    } = decide(present.as_ref(), alive, site.clock().now(), false)
    {
        return Err(refused_while_alive(
            present.as_ref(),
            silent_for,
            dead_after,
        ));
    }
    let sql = SqlLink::connect(info).await?;
    let facts = ServerFacts::read(&sql).await?;
    let identity = ClusterIdentity::of(&cluster)?;
    if facts.system_id != identity.system_id {
        return Err(Error::refused(
            format!("the server at the source is not cluster {}", cluster.name),
            "Name the cluster's own server with --source.",
        ));
    }
    let mut done = Vec::new();
    let slot = slot_name(&lineage);
    if slot_state(&sql, &slot).await?.is_some() {
        ReplicationLink::connect(info)
            .await?
            .drop_slot(&slot)
            .await?;
        done.push(format!("slot {slot} dropped"));
    }
    let me = ProcessIdentity::current()?;
    let opening = Opening {
        holder: Holder {
            host: format!("{} {}", me.host, me.process_space),
            pid: me.pid,
            process_start: me.started_ticks,
            ..Holder::default()
        },
        log_unit: facts.segment_bytes,
        expected_epoch: Some(present.map_or(0, |present| present.epoch)),
    };
    let mut writer = lineage.open_writer(opening).await?;
    let retired = Retired {
        reason: "unprotected on request".to_owned(),
    };
    writer
        .append(&EntryBody::Retired(retired), Vec::new())
        .await?;
    writer.close().await?;
    done.push(format!(
        "cluster {} is no longer protected; its backups stay",
        cluster.name
    ));
    Ok(done)
}
