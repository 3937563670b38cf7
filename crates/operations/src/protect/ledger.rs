//! The one writer of a lineage's ledger, shared by those who append to it, patient with the store.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::ErrorKind;
use borealis_repository::ledger::{Committed, EntryBody, LedgerWriter};
use borealis_repository::object::PreparedFrame;
use borealis_repository::plan::{LineageState, PieceSummary};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// The first and the longest pause between attempts while the store gives no answer.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What to bring to its end.
enum Attempt<'a> {
    /// The entry that is pending, if one is.
    Pending,
    /// A new one.
    New(&'a EntryBody, Vec<PreparedFrame>),
}

/// A shared ledger writer.
#[derive(Clone)]
pub struct Ledger {
    writer: Arc<Mutex<LedgerWriter>>,
    stop: CancellationToken,
}

impl Ledger {
    /// Shares `writer`; `stop` ends the patience with a store that gives no answer.
    pub fn new(writer: LedgerWriter, stop: CancellationToken) -> Self {
        Self {
            writer: Arc::new(Mutex::new(writer)),
            stop,
        }
    }

    /// Appends an entry, however long the store takes. The server's slot keeps what waits behind it.
    ///
    /// # Errors
    /// Fenced; interrupted; whatever trying again does not change.
    pub async fn append(&self, body: &EntryBody, frames: Vec<PreparedFrame>) -> Result<Committed> {
        let mut writer = self.writer.lock().await;
        self.drive(&mut writer, Attempt::Pending).await?;
        let appended = self.drive(&mut writer, Attempt::New(body, frames)).await?;
        appended.ok_or_else(|| Error::new(ErrorKind::Bug, "an entry was appended and is not there"))
    }

    /// Brings an entry to its end: a new one, or one whose appender was dropped half-way, such as a base
    /// backup that was given up while its entry was on the way. That one comes first, since it may stand
    /// in the ledger already.
    async fn drive(
        &self,
        writer: &mut LedgerWriter,
        attempt: Attempt<'_>,
    ) -> Result<Option<Committed>> {
        let mut pause = RETRY_PAUSE.0;
        let mut attempt = match attempt {
            Attempt::Pending => writer.resume().await,
            Attempt::New(body, frames) => writer.append(body, frames).await.map(Some),
        };
        loop {
            let error = match attempt {
                Ok(committed) => return Ok(committed),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Unreachable || !writer.is_pending() {
                return Err(error.into());
            }
            tracing::warn!(%error, "the repository gives no answer; trying again");
            tokio::select! {
                () = self.stop.cancelled() => return Err(Error::new(
                    ErrorKind::Interrupted,
                    "stopped while the repository gave no answer",
                )),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_PAUSE.1),
            }
            // The entry is pending, so that there is one to resume.
            attempt = writer.resume().await;
        }
    }

    /// The oldest log piece that is not known to have been read back.
    pub async fn next_unread(&self) -> Option<PieceSummary> {
        let writer = self.writer.lock().await;
        let (pieces, read_back) = (&writer.state().pieces, writer.read_back());
        let read = pieces.partition_point(|piece| piece.entry <= read_back);
        pieces.get(read).cloned()
    }

    /// Notes that the log was read back up to `entry`, for the entries to come to say so.
    pub async fn note_read_back(&self, entry: u64) {
        self.writer.lock().await.note_read_back(entry);
    }

    /// Whether a later entry repeats what `entry` said.
    pub async fn is_repeated(&self, entry: u64) -> bool {
        self.writer.lock().await.is_repeated(entry)
    }

    /// Looks at what the ledger adds up to.
    pub async fn read<T>(&self, look: impl FnOnce(&LineageState) -> T) -> T {
        look(self.writer.lock().await.state())
    }

    /// Says that this writer stops. Nothing else may use it any more.
    pub async fn close(self) -> Result<()> {
        match Arc::try_unwrap(self.writer) {
            Ok(writer) => Ok(writer.into_inner().close().await?),
            Err(_) => Err(Error::new(
                ErrorKind::Bug,
                "the ledger is closed while it is used",
            )),
        }
    }
}
