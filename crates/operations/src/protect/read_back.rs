//! Reads log pieces back from the store soon after they were stored (law 7), beside the shipper, so
//! that neither shipping nor the replies to the server wait for it.
//!
//! What is still to be read back follows from the ledger, which says how far that has come, so that
//! nothing is kept in memory and a new `protect` goes on where the last one was, with the oldest piece
//! first. A piece that the store has lost, or gives back as something else, is damage: its range is
//! withdrawn from what is promised by a gap in the ledger, which makes a base backup due.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ErrorKind, LineageId};
use borealis_keys::DataKeys;
use borealis_repository::ledger::{EntryBody, Gap};
use borealis_repository::log::read_back;
use borealis_repository::plan::PieceSummary;
use borealis_repository::store::Store;
use borealis_repository::{Error as RepositoryError, layout};
use tokio::sync::watch;

use super::ledger::Ledger;
use super::ship::Durable;
use crate::error::Result;

/// The first and the longest pause between attempts while the store gives no answer.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The pause before a piece that looks damaged is read once more: a gap is for good, and the fault may
/// be on the way.
const SECOND_LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The task that reads pieces back.
pub struct ReadBack {
    /// The store, read as a restore would read it.
    pub store: Arc<dyn Store>,
    /// The lineage's keys.
    pub keys: Arc<DataKeys>,
    /// The lineage.
    pub lineage: LineageId,
    /// The lineage's ledger.
    pub ledger: Ledger,
}

impl ReadBack {
    /// Reads back whatever is stored, in order, until the shipper has ended and nothing is left.
    /// Returns how many pieces had to be withdrawn.
    ///
    /// # Errors
    /// What appending to the ledger answers. A store that gives no answer is asked again, however long
    /// that takes.
    pub async fn run(self, mut durable: watch::Receiver<Durable>) -> Result<u64> {
        let mut withdrawn = 0;
        let mut shipping = true;
        loop {
            while let Some(piece) = self.ledger.next_unread().await {
                if let Some(damage) = self.look(&piece).await {
                    self.withdraw(&piece, &damage).await?;
                    withdrawn += 1;
                }
                self.ledger.note_read_back(piece.entry).await;
                tracing::trace!(entry = piece.entry, "log piece read back");
            }
            if !shipping {
                return Ok(withdrawn);
            }
            // Once more after the end, for what was shipped last.
            shipping = durable.changed().await.is_ok();
        }
    }

    /// Reads a piece back until it is known what became of it; says what is wrong with it, if anything.
    async fn look(&self, piece: &PieceSummary) -> Option<RepositoryError> {
        let mut pause = RETRY_PAUSE.0;
        let mut second_look = false;
        loop {
            let error = match read_back(&self.store, &self.keys, self.lineage, piece).await {
                Ok(()) => return None,
                Err(error) => error,
            };
            if error.kind() == ErrorKind::Damaged {
                if second_look {
                    return Some(error);
                }
                second_look = true;
                tracing::warn!(%error, "a log piece looks damaged; looking again");
                tokio::time::sleep(SECOND_LOOK_PAUSE).await;
                continue;
            }
            tracing::warn!(%error, entry = piece.entry, "a log piece can't be read back; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE.1);
        }
    }

    /// Takes a piece out of what is promised.
    async fn withdraw(&self, piece: &PieceSummary, damage: &RepositoryError) -> Result<()> {
        let object = layout::entry(self.lineage, piece.entry);
        tracing::error!(
            object, start = %piece.start, end = %piece.end, error = %damage,
            "a log piece is not stored as it was written; its range is withdrawn, and a base backup follows"
        );
        let known = |state: &borealis_repository::plan::LineageState| state.is_withdrawn(piece);
        if !self.ledger.read(known).await {
            let body = Gap {
                branch: piece.branch,
                from: piece.start,
                to: piece.end,
                reason: format!("read back after it was stored: {damage}"),
            };
            self.ledger
                .append(&EntryBody::Gap(body), Vec::new())
                .await?;
        }
        // The piece was an entry of the ledger, too: until another repeats what it said, nobody who
        // reads the ledger from its beginning gets past it.
        while !self.ledger.is_repeated(piece.entry).await {
            self.ledger.append(&EntryBody::ReadBack, Vec::new()).await?;
        }
        Ok(())
    }
}
