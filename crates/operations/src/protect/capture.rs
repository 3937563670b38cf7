//! The tasks that capture the log of one stretch: receiver, sampler, shipper, read-back and the socket.
//!
//! They are started together and end together: the receiver is told to stop, the stretches end, the
//! shipper ships what was received and ends, and the read-back after it.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ErrorKind, Position};
use borealis_pg_server::link::replication::ReplicationLink;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::begin::Beginning;
use super::control::{self, Asked};
use super::pulse::Pulse;
use super::read_back::ReadBack;
use super::receive::{End, From, STRETCHES_MAX, receive};
use super::sample::{SAMPLES_MAX, Sampled, sample};
use super::ship::{Destination, Durable, Inputs, Shipper};
use crate::error::{Error, Result};

/// How long the end waits for the last pieces to be read back; what is left then is read first by the
/// next `protect`.
const LAST_READ_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a stretch of capturing ended.
pub(super) enum Ended {
    Stopped,
    /// Log is missing, or the slot was let go: there is a gap.
    Gap(String),
    /// The source is to be looked for again, and the log goes on from where it is.
    LookAgain(String),
}

/// What a stretch of capturing came to.
pub(super) struct Captured {
    /// Log is durable up to here.
    pub(super) position: Position,
    /// Log pieces that were withdrawn because the store did not give them back.
    pub(super) withdrawn: u64,
}

/// What the tasks need that stays the same from stretch to stretch.
pub(super) struct Links {
    pub(super) destination: Destination,
    pub(super) read_back: ReadBack,
    pub(super) sampled: Sampled,
    pub(super) clock: Arc<dyn borealis_base::Clock>,
    pub(super) pulse: Pulse,
}

/// A task that ends with a result, asked for once.
struct Task<T>(Option<JoinHandle<Result<T>>>);

impl<T> Task<T> {
    /// Its result; `None` where that was taken already.
    async fn done(&mut self) -> Result<Option<T>> {
        let Some(handle) = &mut self.0 else {
            return Ok(None);
        };
        let ended = handle.await;
        self.0 = None;
        ended
            .map_err(|error| Error::new(ErrorKind::Bug, format!("a task ended: {error}")))?
            .map(Some)
    }
}

/// The tasks.
pub(super) struct Capture {
    receiver: Task<End>,
    shipper: Task<()>,
    read_back: Task<u64>,
    sampler: JoinHandle<()>,
    listener: AbortHandle,
    durable: watch::Receiver<Durable>,
    requests: mpsc::Sender<Asked>,
    withdrawn: u64,
    /// The receiver, which has a thread of its own, ends with this, however the other tasks end.
    receiving: Option<DropGuard>,
    sampling: CancellationToken,
    hold: Option<ReplicationLink>,
}

impl Capture {
    /// Starts them at `beginning`, from where `from` asks the server.
    pub(super) fn begin(from: From, links: Links, beginning: Beginning) -> Result<Self> {
        let (durable, watched) = watch::channel(beginning.durable);
        let (stretches_in, stretches) = mpsc::channel(STRETCHES_MAX);
        let (samples_in, samples) = mpsc::channel(SAMPLES_MAX);
        let socket = control::socket_path(links.destination.lineage);
        let (requests, asked) = mpsc::channel(control::REQUESTS_MAX);
        let listener = control::listen(&socket, requests.clone())?;
        // Children of no other token: a stop must let what was received be shipped.
        let (receiving, sampling) = (CancellationToken::new(), CancellationToken::new());
        let sampler = tokio::spawn(sample(
            links.sampled,
            samples_in,
            watched.clone(),
            sampling.clone(),
        ));
        let (clock, pulse) = (links.clock, links.pulse.clone());
        let (position, stopped) = (watched.clone(), receiving.clone());
        let receiver = tokio::task::spawn_blocking(move || {
            receive(from, stretches_in, position, clock, &pulse, stopped)
        });
        let shipper = Shipper::new(
            links.destination,
            beginning.cutter,
            beginning.last_record,
            Arc::new(durable),
            links.pulse,
        );
        let shipper = tokio::spawn(shipper.run(Inputs {
            stretches,
            samples,
            asked,
        }));
        let read_back = tokio::spawn(links.read_back.run(watched.clone()));
        Ok(Self {
            receiver: Task(Some(receiver)),
            shipper: Task(Some(shipper)),
            read_back: Task(Some(read_back)),
            sampler,
            listener,
            durable: watched,
            requests,
            withdrawn: 0,
            receiving: Some(receiving.drop_guard()),
            sampling,
            hold: beginning.hold,
        })
    }

    /// How far the log is durable.
    pub(super) fn durable(&self) -> &watch::Receiver<Durable> {
        &self.durable
    }

    /// Where the shipper is asked.
    pub(super) fn requests(&self) -> &mpsc::Sender<Asked> {
        &self.requests
    }

    /// Returns why no more is captured, when that is so.
    pub(super) async fn ended(&mut self) -> Result<Ended> {
        tokio::select! {
            ended = self.receiver.done() => return Ok(as_ended(ended?)),
            done = self.shipper.done() => { done?; }
            // Without a fault it ends only after the shipper.
            withdrawn = self.read_back.done() => self.withdrawn = withdrawn?.unwrap_or(0),
        }
        self.drained().await
    }

    /// Waits until the shipper has ended; without a fault that is after the receiver, which knows why.
    pub(super) async fn drained(&mut self) -> Result<Ended> {
        self.shipper.done().await?;
        Ok(as_ended(self.receiver.done().await?))
    }

    /// Stops whatever still runs; what was received is shipped first, unless `outcome` is a fault.
    pub(super) async fn end(mut self, outcome: Result<Ended>) -> Result<(Ended, Captured)> {
        self.receiving = None;
        self.sampling.cancel();
        self.listener.abort();
        self.hold = None;
        let _ = (&mut self.sampler).await;
        // Its result counts where it is the outcome.
        let _ = self.receiver.done().await;
        let shipped = match outcome {
            // Without a receiver the stretches end, and the shipper after them.
            Ok(ended) => self.shipper.done().await.map(|_| ended),
            // What came before is stored, and nothing is appended after that.
            Err(error @ Error::Rewritten(_)) => {
                let _ = self.shipper.done().await;
                Err(error)
            }
            Err(error) => Err(error),
        };
        let patience = if shipped.is_ok() {
            LAST_READ_BACK_TIMEOUT
        } else {
            Duration::ZERO
        };
        let read_back = self.finish_read_back(patience).await;
        let ended = shipped?;
        read_back?;
        let captured = Captured {
            position: self.durable.borrow().position,
            withdrawn: self.withdrawn,
        };
        Ok((ended, captured))
    }

    async fn finish_read_back(&mut self, patience: Duration) -> Result<()> {
        let Some(abort) = self.read_back.0.as_ref().map(JoinHandle::abort_handle) else {
            return Ok(());
        };
        if let Ok(withdrawn) = tokio::time::timeout(patience, self.read_back.done()).await {
            self.withdrawn += withdrawn?.unwrap_or(0);
            return Ok(());
        }
        tracing::info!(
            "the last log pieces are not read back yet; the next protect begins with them"
        );
        abort.abort();
        // It holds the ledger until it is gone.
        let _ = self.read_back.done().await;
        Ok(())
    }
}

fn as_ended(end: Option<End>) -> Ended {
    match end {
        None | Some(End::Stopped) => Ended::Stopped,
        Some(End::Missing { at, reason }) => Ended::Gap(format!(
            "the server no longer has the log from {at} on: {reason}"
        )),
        Some(End::BranchEnded { at, next }) => Ended::LookAgain(format!(
            "its timeline ended at {at}, and timeline {next} follows"
        )),
        Some(End::LookAgain(reason)) => Ended::LookAgain(reason),
    }
}
