//! The one writer of a lineage's ledger, shared by those who append to it, patient with the store.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::ErrorKind;
use borealis_repository::ledger::{Committed, EntryBody, LedgerWriter};
use borealis_repository::object::PreparedFrame;
use borealis_repository::plan::{LineageState, PieceSummary};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::pulse::Pulse;
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
    patience: Patience,
    pulse: Pulse,
}

/// What is waited for without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// An answer; a store without room is an error.
    Answer,
    /// An answer, and room.
    AnswerAndRoom,
}

impl Ledger {
    /// Shares `writer`; `stop` ends the patience with a store that gives no answer or has no room.
    pub fn new(
        writer: LedgerWriter,
        stop: CancellationToken,
        patience: Patience,
        pulse: Pulse,
    ) -> Self {
        Self {
            writer: Arc::new(Mutex::new(writer)),
            stop,
            patience,
            pulse,
        }
    }

    fn is_waited_for(&self, error: &borealis_repository::Error) -> bool {
        match self.patience {
            Patience::Answer => error.kind() == ErrorKind::Unreachable,
            Patience::AnswerAndRoom => error.is_transient(),
        }
    }

    /// Appends an entry, however long the store takes: one that gives no answer is tried
    /// again, and so is one that has no room, where that is waited for. The server's slot keeps what waits behind it.
    ///
    /// # Errors
    /// Fenced; interrupted; whatever trying again does not change.
    pub async fn append(&self, body: &EntryBody, frames: Vec<PreparedFrame>) -> Result<Committed> {
        let mut writer = self.writer.lock().await;
        self.drive(&mut writer, Attempt::Pending).await?;
        let appended = self.drive(&mut writer, Attempt::New(body, frames)).await?;
        appended.ok_or_else(|| Error::new(ErrorKind::Bug, "an entry was appended and is not there"))
    }

    /// Takes in what the maintenance says since; false where so much was appended meanwhile that it was not taken in.
    /// Whoever appends does not wait for that.
    pub async fn refresh(&self) -> Result<bool> {
        let mut reader = self.writer.lock().await.reader().clone();
        reader.refresh().await?;
        Ok(self.writer.lock().await.adopt(reader)?)
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
            // An answer, whichever it is.
            self.pulse.turn();
            let error = match attempt {
                Ok(committed) => return Ok(committed),
                Err(error) => error,
            };
            if !self.is_waited_for(&error) || !writer.is_pending() {
                return Err(error.into());
            }
            tracing::warn!(%error, "the repository takes no entry now; trying again");
            self.pulse
                .say(format!("the repository takes no entry now: {error}"));
            tokio::select! {
                () = self.stop.cancelled() => return Err(Error::new(
                    ErrorKind::Interrupted,
                    "stopped while the repository took no entry",
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use borealis_base::{ManualClock, SeededEntropy, SystemEntropy, Timestamp};
    use borealis_keys::FileKey;
    use borealis_repository::ledger::{Gap, Holder, Opening};
    use borealis_repository::store::{Created, MemoryStore, Store, StoreError, StoreLayer};
    use borealis_repository::{Environment, Repository};
    use bytes::Bytes;

    use super::super::pulse::NoWatcher;
    use super::*;

    type Answer<T> = std::result::Result<T, StoreError>;

    /// Stores what it is given, and then gives no answer while it is told so.
    struct Mute {
        inner: MemoryStore,
        silent: AtomicBool,
        stored: tokio::sync::Notify,
    }

    #[async_trait]
    impl StoreLayer for Mute {
        fn inner(&self) -> &dyn Store {
            &self.inner
        }

        async fn create(&self, name: &str, bytes: Bytes) -> Answer<Created> {
            let created = self.inner.create(name, bytes).await;
            if self.silent.load(Ordering::Relaxed) {
                self.stored.notify_one();
                std::future::pending::<()>().await;
            }
            created
        }
    }

    fn gap(reason: &str) -> EntryBody {
        EntryBody::Gap(Gap {
            branch: borealis_base::Branch(1),
            from: borealis_base::Position(8),
            to: borealis_base::Position(16),
            reason: reason.to_owned(),
        })
    }

    /// A base backup that is given up while its entry is on the way: the entry may stand.
    #[tokio::test]
    async fn an_append_that_was_dropped_is_brought_to_its_end_before_the_next_one() {
        let store = Arc::new(Mute {
            inner: MemoryStore::default(),
            silent: AtomicBool::new(false),
            stored: tokio::sync::Notify::new(),
        });
        let directory = tempfile::tempdir().unwrap();
        let key = FileKey::create(&directory.path().join("key"), &SystemEntropy).unwrap();
        let environment = Environment {
            store: store.clone(),
            clock: Arc::new(ManualClock::new(Timestamp(0))),
            entropy: Arc::new(SeededEntropy::new(1)),
        };
        let repository = Repository::init(environment, &[&key]).await.unwrap();
        let lineage = repository
            .create_cluster("main", Bytes::new())
            .await
            .unwrap();
        let opening = Opening {
            holder: Holder::default(),
            log_unit: 1,
            expected_epoch: None,
        };
        let writer = lineage.open_writer(opening).await.unwrap();
        let pulse = Pulse::new(
            Arc::new(ManualClock::new(Timestamp(0))),
            Arc::new(NoWatcher),
        );
        let ledger = Ledger::new(writer, CancellationToken::new(), Patience::Answer, pulse);

        store.silent.store(true, Ordering::Relaxed);
        let dropped = gap("dropped");
        tokio::select! {
            _ = ledger.append(&dropped, Vec::new()) => panic!("the store gives no answer"),
            () = store.stored.notified() => {}
        }
        store.silent.store(false, Ordering::Relaxed);
        let next = ledger.append(&gap("next"), Vec::new()).await.unwrap();
        assert_eq!(next.number, 3);
        ledger.close().await.unwrap();
        let state = lineage.load_state().await.unwrap();
        let reasons: Vec<&str> = (state.gaps.iter()).map(|gap| gap.reason.as_str()).collect();
        assert_eq!(reasons, ["dropped", "next"]);
    }
}
