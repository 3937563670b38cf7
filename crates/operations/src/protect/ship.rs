//! Ships the log: stretches in, log pieces into the ledger, the durable position out.
//!
//! One task owns the cutter and is the only one that appends log, so that pieces follow each other.
//! What it holds is at most one piece, plain and sealed, besides the receiver's queue. Killed at any
//! instant it loses what is not in the ledger yet, and that the server still has (law 1).

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{Branch, LineageId, Position, Timestamp};
use borealis_pg_format::index::time_map::SAMPLE_MARGIN;
use borealis_pg_server::source::ClockSample;
use borealis_repository::ledger::{EntryBody, LogPiece, Settled};
use borealis_repository::log::{PieceIdentity, TimeStep, prepare_piece};
use borealis_repository::object::Compression;
use borealis_repository::plan::RecordSpan;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::control::{Answer, Asked, Request};
use super::cutter::{Cutter, Draft};
use super::ledger::Ledger;
use super::log_frame;
use super::receive::Stretch;
use super::sample::covers;
use crate::error::{Error, Result};

/// Bytes of a log piece.
pub const PIECE_BYTES_MAX: usize = 16 << 20;
/// How often an idle writer says that it lives, by settling the present.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// The zstd level of log pieces, which are compressed while the log comes.
const LOG_LEVEL: i32 = 1;

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
    ) -> Self {
        Self {
            to,
            cutter,
            last_sample: None,
            last_record,
            durable,
            wanted: None,
        }
    }

    /// Ships until the stretches end; what was received is shipped first.
    pub async fn run(mut self, mut inputs: Inputs) -> Result<()> {
        let mut due: Option<Instant> = None;
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.reset();
        loop {
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
        let full = self.cutter.take(stretch.bytes);
        let cut = !full.is_empty();
        for draft in full {
            self.ship(draft).await?;
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
        let (start, end) = (draft.start, draft.end());
        let carry = &draft.cut.carry;
        let (before, after) = (self.durable.borrow().settled, carry.settled);
        let settled = before.max(after);
        let last_record = draft.cut.index.last_record.map(record_span);
        let body = EntryBody::LogPiece(LogPiece {
            branch: self.to.branch,
            start,
            end,
            settled_before: before,
            settled_after: settled,
            last_record,
            resume_at: carry.resume_at,
        });
        let identity = PieceIdentity {
            lineage: self.to.lineage,
            branch: self.to.branch,
            start,
        };
        let frames = tokio::task::spawn_blocking(move || {
            let steps: Vec<TimeStep> = draft.cut.index.time_steps.iter().map(time_step).collect();
            let index = log_frame::encode(&draft.cut)?;
            prepare_piece(
                &identity,
                &draft.bytes,
                &steps,
                &index,
                Compression::Zstd(LOG_LEVEL),
            )
            .map_err(|error| Error::new(borealis_base::ErrorKind::Bug, error.to_string()))
        })
        .await
        .map_err(|error| Error::new(borealis_base::ErrorKind::Bug, error.to_string()))??;
        let committed = self.to.ledger.append(&body, frames).await?;
        tracing::debug!(%start, %end, entry = committed.number, "log piece");
        self.last_record = last_record.or(self.last_record);
        self.durable.send_replace(Durable {
            position: end,
            settled,
        });
        Ok(())
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
        self.to.ledger.append(&body, Vec::new()).await?;
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
            self.to.ledger.append(&body, Vec::new()).await?;
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
        });
        Ok(())
    }
}

#[allow(clippy::disallowed_methods)] // a timer of the runtime, not a moment that is recorded
fn deadline(after: Duration) -> Instant {
    Instant::now() + after
}

fn record_span(span: borealis_pg_format::index::RecordSpan) -> RecordSpan {
    RecordSpan {
        start: span.start,
        end: span.end,
    }
}

fn time_step(step: &borealis_pg_format::index::TimeStep) -> TimeStep {
    TimeStep {
        settled_through: step.settled_through,
        last_record: RecordSpan {
            start: step.last_start,
            end: step.last_end,
        },
    }
}
