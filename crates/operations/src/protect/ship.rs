//! Ships the log: stretches in, log pieces into the ledger, the durable position out.
//!
//! One task owns the cutter and is the only one that appends log, so that pieces follow each other.
//! What it holds is at most one piece, plain and sealed, besides the receiver's queue. Killed at any
//! instant it loses what is not in the ledger yet, and that the server still has (law 1).

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Branch, LineageId, Position, RecordSpan, Timestamp};
use borealis_pg_format::control_file::WalLevel;
use borealis_pg_format::index::time_map::SAMPLE_MARGIN;
use borealis_pg_format::index::{LogIndex, Widening};
use borealis_pg_format::wal::page::LONG_HEADER_LEN;
use borealis_pg_server::source::ClockSample;
use borealis_repository::ledger::{Committed, EntryBody, Gap, LogPiece, Settled};
use borealis_repository::log::{PieceIdentity, prepare_piece};
use borealis_repository::object::{Compression, PreparedFrame};
use borealis_repository::plan::GapSummary;
use borealis_repository::store::Counters;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::control::{Answer, Asked, Request};
use super::cutter::{Cutter, Draft};
use super::ledger::Ledger;
use super::log_frame;
use super::names::CatalogChanges;
use super::pulse::Pulse;
use super::receive::{Stretch, rewritten};
use super::sample::covers;
use crate::error::{Error, Result};

/// Bytes of a log piece.
pub const PIECE_BYTES_MAX: usize = 16 << 20;
/// How often an idle writer says that it lives, by settling the present.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Why a window ends before such log.
const MINIMAL_LOG: &str =
    "the log was written at wal_level=minimal, and nothing can be replayed over it";
/// How log pieces are compressed, while the log comes.
const LOG_COMPRESSION: Compression = Compression::ZstdLowCpu;

/// What the repository durably holds of the log being shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// Log up to here.
    pub position: Position,
    /// Moments up to here are settled.
    pub settled: Option<Timestamp>,
}

/// Where log is shipped to.
#[derive(Clone)]
pub struct Destination {
    /// The lineage.
    pub lineage: LineageId,
    /// The branch of the log.
    pub branch: Branch,
    /// The lineage's ledger.
    pub ledger: Ledger,
    /// How long a byte may wait.
    pub flush_interval: Duration,
    /// What the use of the store costs, for whoever asks.
    pub usage: Arc<Counters>,
    /// Who keeps names is told of changed catalogs.
    pub catalogs: Arc<CatalogChanges>,
}

/// What comes in.
pub struct Inputs {
    /// Log, in order.
    pub stretches: mpsc::Receiver<Stretch>,
    /// Clock samples.
    pub samples: mpsc::Receiver<ClockSample>,
    /// Requests from other commands on this machine.
    pub asked: mpsc::Receiver<Asked>,
}

/// The shipping task's state.
pub struct Shipper {
    to: Destination,
    cutter: Cutter,
    last_sample: Option<ClockSample>,
    last_record: Option<RecordSpan>,
    durable: Arc<watch::Sender<Durable>>,
    pulse: Pulse,
    join: Option<Join>,
    /// Log up to here does not wait once it has come.
    wanted: Option<Position>,
}

impl Shipper {
    /// A shipper that goes on at `durable`.
    pub fn new(
        to: Destination,
        cutter: Cutter,
        last_record: Option<RecordSpan>,
        durable: Arc<watch::Sender<Durable>>,
        pulse: Pulse,
    ) -> Self {
        Self {
            to,
            cutter,
            last_sample: None,
            last_record,
            durable,
            pulse,
            join: None,
            wanted: None,
        }
    }

    /// Ships until the stretches end; what was received is shipped first.
    pub async fn run(mut self, inputs: Inputs) -> Result<()> {
        let shipped = self.ship_all(inputs).await;
        self.pulse.waits();
        shipped
    }

    async fn ship_all(&mut self, mut inputs: Inputs) -> Result<()> {
        let mut due: Option<Instant> = None;
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.reset();
        loop {
            self.pulse.waits();
            self.pulse.turn();
            let flush = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                stretch = inputs.stretches.recv() => match stretch {
                    Some(stretch) => due = self.take(stretch, due).await?,
                    None => break,
                },
                Some(sample) = inputs.samples.recv() => {
                    self.cutter.sample(sample.time, sample.position);
                    self.last_sample = Some(sample);
                }
                () = flush => {
                    self.flush().await?;
                    due = None;
                    heartbeat.reset();
                }
                _ = heartbeat.tick() => self.heartbeat().await?,
                Some(asked) = inputs.asked.recv() => self.answer(asked).await?,
            }
        }
        self.flush().await?;
        self.settle().await
    }

    async fn take(&mut self, stretch: Stretch, due: Option<Instant>) -> Result<Option<Instant>> {
        self.pulse.works();
        if stretch.start != self.cutter.end() {
            return Err(Error::new(
                borealis_base::ErrorKind::Bug,
                format!(
                    "log at {} came where {} was next",
                    stretch.start,
                    self.cutter.end()
                ),
            ));
        }
        if stretch.uncompared {
            self.join = Some(Join {
                at: stretch.start,
                record: self.cutter.resume_at(),
            });
        }
        let mut cut = false;
        for portion in stretch.portions {
            for draft in self.cutter.take(portion) {
                cut = true;
                self.ship(draft).await?;
            }
        }
        if self.cutter.is_empty() {
            return Ok(None);
        }
        if self
            .wanted
            .is_some_and(|wanted| self.cutter.end() >= wanted)
        {
            self.wanted = None;
            self.flush().await?;
            return Ok(None);
        }
        let waiting = due.filter(|_| !cut);
        Ok(Some(
            waiting.unwrap_or_else(|| deadline(self.to.flush_interval)),
        ))
    }

    async fn flush(&mut self) -> Result<()> {
        match self.cutter.cut() {
            Some(draft) => self.ship(draft).await,
            None => Ok(()),
        }
    }

    async fn ship(&mut self, draft: Draft) -> Result<()> {
        self.pulse.works();
        let (start, end) = (draft.start, draft.end());
        if let Some(join) = self.join {
            self.join = join.check(&draft.cut.index)?;
        }
        if let Some((from, to)) = log_without_changes(&draft.cut.index) {
            self.close_window(from, to).await?;
        }
        let carry = &draft.cut.carry;
        let (before, after) = (self.durable.borrow().settled, carry.settled);
        let settled = before.max(after);
        let last_record = draft.cut.index.last_record;
        let body = EntryBody::LogPiece(LogPiece {
            branch: self.to.branch,
            start,
            end,
            settled_before: before,
            settled_after: settled,
            last_record,
            resume_at: carry.resume_at,
            engine: Some(draft.cut.index.digest().encode().into()),
        });
        let catalogs_changed = draft.cut.index.catalogs_changed.clone();
        let identity = PieceIdentity {
            lineage: self.to.lineage,
            branch: self.to.branch,
            start,
        };
        let prepared = tokio::task::spawn_blocking(move || {
            let index = log_frame::encode(&draft.cut)?;
            let frames = prepare_piece(
                &identity,
                &draft.bytes,
                &draft.cut.index.time_steps,
                &index,
                LOG_COMPRESSION,
            )
            .map_err(|error| Error::new(borealis_base::ErrorKind::Bug, error.to_string()))?;
            Ok::<_, Error>((frames, draft.bytes))
        });
        let (frames, bytes) = prepared
            .await
            .map_err(|error| Error::new(borealis_base::ErrorKind::Bug, error.to_string()))??;
        self.cutter.reuse(bytes);
        let committed = self.append(&body, frames).await?;
        tracing::debug!(%start, %end, entry = committed.number, "log piece");
        self.last_record = last_record.or(self.last_record);
        self.durable.send_replace(Durable {
            position: end,
            settled,
        });
        self.pulse.say(format!("log stored up to {end}"));
        self.to.catalogs.add(&catalogs_changed, end);
        Ok(())
    }

    /// Says that nothing can be replayed over `[from, to)`, before the log behind it is there.
    async fn close_window(&self, from: Position, to: Position) -> Result<()> {
        let branch = self.to.branch;
        self.pulse.waits();
        let known = |gap: &GapSummary| gap.branch == branch && gap.from <= from && to <= gap.to;
        if self
            .to
            .ledger
            .read(|state| state.gaps.iter().any(known))
            .await
        {
            return Ok(());
        }
        tracing::error!(%from, %to, "the server has run at wal_level=minimal; the window ends there, and a base backup follows");
        let body = Gap {
            branch,
            from,
            to,
            reason: MINIMAL_LOG.to_owned(),
        };
        self.append(&EntryBody::Gap(body), Vec::new()).await?;
        Ok(())
    }

    /// Appends an entry, which may take as long as the repository does.
    async fn append(&self, body: &EntryBody, frames: Vec<PreparedFrame>) -> Result<Committed> {
        self.pulse.waits();
        let committed = self.to.ledger.append(body, frames).await;
        self.pulse.works();
        committed
    }

    /// Settles the present, if all log that it speaks of is shipped.
    async fn settle(&mut self) -> Result<()> {
        let (Some(sample), Some(last_record)) = (self.last_sample, self.last_record) else {
            return Ok(());
        };
        let durable = *self.durable.borrow();
        let through = sample.time.minus(SAMPLE_MARGIN);
        if !self.cutter.is_empty()
            || !covers(durable.position, sample.position)
            || durable.settled.is_some_and(|settled| settled >= through)
        {
            return Ok(());
        }
        let body = EntryBody::Settled(Settled {
            branch: self.to.branch,
            through,
            last_record,
        });
        self.append(&body, Vec::new()).await?;
        self.durable.send_replace(Durable {
            settled: Some(through),
            ..durable
        });
        Ok(())
    }

    /// Settles the present or, if that can't be, says again what is settled: whoever waits for a sign
    /// of life must find one while the server is away, too.
    async fn heartbeat(&mut self) -> Result<()> {
        let before = *self.durable.borrow();
        self.settle().await?;
        let durable = *self.durable.borrow();
        if let (true, Some(through), Some(last_record)) =
            (durable == before, durable.settled, self.last_record)
        {
            let body = EntryBody::Settled(Settled {
                branch: self.to.branch,
                through,
                last_record,
            });
            self.append(&body, Vec::new()).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, asked: Asked) -> Result<()> {
        match asked.request {
            Request::Settle => {
                self.flush().await?;
                self.settle().await?;
            }
            Request::Flush { through } if self.cutter.end() >= through => self.flush().await?,
            Request::Flush { through } => self.wanted = self.wanted.max(Some(through)),
        }
        // Whoever asked may have gone.
        let _ = asked.answer.send(Answer {
            settled_through: self.durable.borrow().settled,
            usage: Some(self.to.usage.usage()),
        });
        Ok(())
    }
}

/// A place where a connection began without an overlap: at the very beginning of a segment, since the
/// server may have no log before it. Whether the log goes on there tells the first record: its back
/// pointer (`xl_prev`) and, where a record crosses the place, what is left of it and its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Join {
    /// The place.
    at: Position,
    /// Where the record begins that ends first behind it.
    record: Position,
}

impl Join {
    /// Refuses log that does not go on here; `None` once it is known to.
    fn check(self, index: &LogIndex) -> Result<Option<Self>> {
        // A record begins behind the header of the segment's first page.
        let first = self.at.plus(LONG_HEADER_LEN as u64);
        let broken =
            (index.unparsed.iter()).any(|place| self.record <= place.from && place.from <= first);
        if broken {
            return Err(rewritten(self.record, first));
        }
        let ended = (index.last_record).is_some_and(|record| record.end > self.at);
        Ok((!ended).then_some(self))
    }
}

/// The log in a piece that was written at `wal_level=minimal`, where bulk changes leave no trace, so that
/// PostgreSQL refuses to replay over it (`CheckRequiredParameterValues` in `xlogrecovery.c`). It is taken
/// from the beginning of the piece on: only the last record of a piece is known to those who compute windows.
fn log_without_changes(index: &LogIndex) -> Option<(Position, Position)> {
    if !index
        .change_map
        .reasons()
        .contains_key(&Widening::MinimalLog)
    {
        return None;
    }
    let changes = &index.parameter_changes;
    let from = changes
        .first()
        .map_or(index.start, |change| change.record.start.min(index.start));
    let to = match changes.last() {
        Some(raised) if raised.parameters.wal_level != WalLevel::Minimal => raised.record.end,
        _ => index.end,
    };
    Some((from, to))
}

#[allow(clippy::disallowed_methods)] // a timer of the runtime, not a moment that is recorded
fn deadline(after: Duration) -> Instant {
    Instant::now() + after
}
