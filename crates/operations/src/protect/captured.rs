//! The captured log as a base backup sees it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{Branch, ErrorKind, Position};
use borealis_keys::DataKeys;
use borealis_pg_format::DatabaseFiles;
use borealis_pg_format::index::{ChangeMap, LogIndex};
use borealis_pg_server::backup::BackupStart;
use borealis_repository::ledger::{EntryBody, PartialBaseBackup};
use borealis_repository::log::{LogReader, pieces_of};
use borealis_repository::plan::{Coverage, PieceRange};
use borealis_repository::store::Store;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, oneshot, watch};

use super::control::{Asked, Request};
use super::ledger::Ledger;
use super::log_frame;
use super::names::CatalogChanges;
use super::sample::covers;
use super::ship::Durable;
use crate::base_backup::copies::Copies;
use crate::base_backup::take::{CapturedLog, Partials};
use crate::error::{Error, Result};

/// Log indexes read at a time.
const INDEXES_AT_ONCE: usize = 8;

/// How long a moment behind the captured log is waited for: a sample a second, and its margin.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between looks.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// Log that a shipper captures.
pub struct Captured {
    /// Where it is recorded.
    pub ledger: Ledger,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The lineage's keys.
    pub keys: Arc<DataKeys>,
    /// The lineage.
    pub lineage: borealis_base::LineageId,
    /// How far it is durable.
    pub durable: watch::Receiver<Durable>,
    /// Takes requests to the shipper.
    pub shipper: mpsc::Sender<Asked>,
    /// The branch of the log.
    pub branch: Branch,
    /// Takes what is known of changed catalogs to the keeper of names.
    pub catalogs: Arc<CatalogChanges>,
}

impl Captured {
    /// Waits until a moment behind the log that is durable now is settled: before that, what was captured
    /// has a position and no time to restore to. Gives up, and says so, if the server tells no time.
    pub async fn settle_a_moment(&self) {
        let before = self.durable.borrow().settled;
        let settled = async {
            loop {
                let (answer, answered) = oneshot::channel();
                let request = Request::Settle;
                if self.shipper.send(Asked { request, answer }).await.is_err() {
                    return;
                }
                match answered.await {
                    Ok(answer) if answer.settled_through > before => return,
                    Ok(_) => tokio::time::sleep(SETTLE_PAUSE).await,
                    // It has ended; the end of the capture says why.
                    Err(_) => return,
                }
            }
        };
        if tokio::time::timeout(SETTLE_TIMEOUT, settled).await.is_err() {
            tracing::warn!(
                "the server told no time; the base backup can be restored by position until it does"
            );
        }
    }

    /// Waits until all log that an insert position speaks of is durable.
    pub(super) async fn durable_with(&self, inserted: Position) -> Result<()> {
        let mut durable = self.durable.clone();
        if !covers(durable.borrow().position, inserted) {
            let (answer, _) = oneshot::channel();
            let request = Request::Flush { through: inserted };
            // A shipper that has ended is told from its position, below.
            let _ = self.shipper.send(Asked { request, answer }).await;
        }
        durable
            .wait_for(|durable| covers(durable.position, inserted))
            .await
            .map(|_| ())
            .map_err(|_| no_longer_captured())
    }

    /// Takes in which log was merged since, whoever did it: what that replaced may be gone a day later. A
    /// store that gives no answer now is no reason to give up: what was known is still there for a while.
    async fn learn_of_merges(&self) {
        if let Err(error) = self.ledger.refresh().await {
            tracing::debug!(%error, "the maintenance could not be read");
        }
    }

    /// The log indexes of `pieces`, in order.
    fn indexes(&self, pieces: Vec<PieceRange>) -> impl Stream<Item = Result<LogIndex>> {
        let reader = LogReader::new(self.store.clone(), self.keys.clone(), self.lineage);
        let reader = Arc::new(reader);
        futures::stream::iter(pieces)
            .map(move |part| {
                let reader = reader.clone();
                async move {
                    let stored = reader.piece(&part.piece).await?;
                    let indexes = stored.indexes(part.from, part.to).await?;
                    let name = stored.head().name().to_owned();
                    let decoded = move |bytes: Bytes| log_frame::index(&name, &bytes);
                    Ok::<_, Error>(futures::stream::iter(indexes.into_iter().map(decoded)))
                }
            })
            .buffered(INDEXES_AT_ONCE)
            .try_flatten()
    }
}

fn no_longer_captured() -> Error {
    Error::new(ErrorKind::Interrupted, "the log is no longer captured")
}

#[async_trait]
impl CapturedLog for Captured {
    async fn durable_past(&self, position: Position) -> Result<()> {
        let mut durable = self.durable.clone();
        if durable.borrow().position < position {
            let (answer, _) = oneshot::channel();
            let request = Request::Flush { through: position };
            // A shipper that has ended is told from its position, below.
            let _ = self.shipper.send(Asked { request, answer }).await;
        }
        durable
            .wait_for(|durable| durable.position >= position)
            .await
            .map(|_| ())
            .map_err(|_| no_longer_captured())
    }

    async fn changes(&self, start: BackupStart, from: Position) -> Result<Option<ChangeMap>> {
        self.learn_of_merges().await;
        let state = self.ledger.read(Clone::clone).await;
        let pieces = match pieces_of(&state, start.branch, from, start.position) {
            Ok(pieces) => pieces,
            // A gap: what happened in it is not known, and everything is read again.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.indexes(pieces)
            .try_fold(ChangeMap::new(), |mut all, index| async move {
                all.append(&index.change_map);
                Ok(all)
            })
            .await
            .map(Some)
    }

    async fn unsafe_copies(&self, start: BackupStart, to: Position) -> Result<Vec<DatabaseFiles>> {
        self.learn_of_merges().await;
        let state = self.ledger.read(Clone::clone).await;
        let pieces = pieces_of(&state, start.branch, start.position, to)?;
        let copies = self
            .indexes(pieces)
            .try_fold(Copies::default(), |mut copies, index| async move {
                copies.add(&index, start.position, to);
                Ok(copies)
            })
            .await?;
        Ok(copies.unsafe_ones())
    }

    async fn begins_at(&self, start: BackupStart) -> Result<Option<Position>> {
        let begin = |state: &borealis_repository::plan::LineageState| {
            let coverage = Coverage::of(state, start.branch);
            let holds = |stretch: &&borealis_repository::plan::Stretch| {
                stretch.from <= start.position && start.position <= stretch.to
            };
            coverage
                .stretches
                .iter()
                .find(holds)
                .map(|stretch| stretch.from)
        };
        Ok(self.ledger.read(begin).await)
    }
}

#[async_trait]
impl Partials for Captured {
    async fn enter(&self, partial: PartialBaseBackup) -> Result<()> {
        let body = EntryBody::PartialBaseBackup(partial);
        self.ledger.append(&body, Vec::new()).await?;
        Ok(())
    }
}
