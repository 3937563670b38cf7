//! The ledger of a lineage: which objects count, in one order, from one writer at a time. And beside it its
//! maintenance, in one order, from one maintainer at a time.
//!
//! Who owns it: the writer of the highest epoch. What survives a crash: every entry that was reported
//! as committed. The order of writes: epoch, then the fence, then entries, each only after the one
//! before it; a checkpoint before the first entry after it. How it stops: a superseded writer finds a
//! newer epoch after its next create, and reports nothing any more. The protocol is modelled in
//! `specs/ledger` and told in `docs/formats/ledger.md`.

mod baseline;
mod body;
mod epoch;
mod expiry;
mod floor;
mod fold;
mod holder;
mod inspect;
mod maintainer;
mod maintenance;
mod message;
mod protocol;
mod read;
mod remove;
mod summary;
mod write;

use std::sync::Arc;

use borealis_base::{Clock, Entropy, LineageId, ObjectId};
use borealis_keys::DataKeys;
use bytes::Bytes;
use prost::Message;

pub use body::{
    BaseBackup, BranchStarted, Closed, EntryBody, Gap, LogPiece, Names, Opened, PartialBaseBackup,
    Retired, Settled,
};
pub use expiry::{Dated, Deleted, Expired, Kept, Mark};
pub use fold::EpochSummary;
pub use holder::{Decision, Holder, Presence, SILENCE_MAX, decide};
pub(crate) use inspect::{
    inspect_baseline, inspect_body, inspect_checkpoint, inspect_epoch, inspect_floor,
    inspect_maintenance,
};
pub use maintainer::Maintainer;
pub use maintenance::{FloorPlanned, LogMerged, MaintenanceBody, Removed};
pub use read::LedgerReader;
pub use write::{Committed, LedgerWriter, Opening};

use crate::numbered::{ENTRIES_PER_RECAP, Patience, Track, TrackName};
use crate::object::{Compression, ObjectBuilder, ObjectHead, ObjectKind, SealedObject, fetch_with};
use crate::store::Store;
use crate::{Error, Result, layout};

/// Reading that begins anew because the floor rose meanwhile; more often than this in a row and the
/// deleter is not one of ours.
const RESTARTS_MAX: u32 = 16;

/// How often recaps and checkpoints come. Fixed by the format; smaller in simulations, where
/// thousands of entries would prove nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) recap: u64,
    pub(crate) checkpoint: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            recap: ENTRIES_PER_RECAP,
            checkpoint: layout::ENTRIES_PER_CHECKPOINT,
        }
    }
}

/// What reading and writing one lineage's ledger take.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: Arc<DataKeys>,
    pub(crate) lineage: LineageId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) shape: Shape,
    pub(crate) patience: Patience,
    /// A rule that a simulation leaves out, to see that it would notice.
    #[cfg(test)]
    pub(crate) without: Option<Rule>,
}

/// One of the two rows of numbered, chained entries of a lineage. Each has epochs of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// What the source's writer says.
    Ledger,
    /// What the maintainer says.
    Maintenance,
}

/// The rules of the protocol that a simulation can leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Look for a newer epoch after each create.
    Probe,
    /// Look at the floor again after reading.
    FloorAfterReading,
    /// Tell one's own lost reply from a rival by the write id.
    WriteId,
    /// Append an entry of one's own before anything else.
    Fence,
    /// Read the maintenance before the end of the ledger.
    MaintenanceFirst,
    /// A floor comes with what the entries below it add up to.
    Baseline,
    /// Keep maintenance entries that speak of ledger entries at or above the floor.
    KeepReferences,
    /// Wait until a floor is as old as the grace period before anything below it is removed.
    Grace,
    /// Tell how old it is by the store's clock.
    StoreClock,
    /// Keep what the baseline of the floor names.
    NamedByBaseline,
    /// Look at the promises again before anything that has expired is deleted.
    SecondCheck,
    /// Keep what base backups that stay share with those that go.
    SharedPages,
}

impl Context {
    #[cfg(test)]
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)] // simulations give it a meaning
    pub(crate) const fn keeps(&self, _: Rule) -> bool {
        true
    }

    fn track(&self, role: Role) -> Track {
        Track {
            store: self.store.clone(),
            keys: self.keys.clone(),
            owner: self.lineage.0,
            name: match role {
                Role::Ledger => TrackName::Ledger(self.lineage),
                Role::Maintenance => TrackName::Maintenance(self.lineage),
            },
            entries_per_recap: self.shape.recap,
        }
    }

    /// Seals an object of which `clear` is public; a reader authenticates it with its first frame.
    fn seal_small(&self, kind: ObjectKind, clear: Vec<u8>, frame: &[u8]) -> SealedObject {
        let id = ObjectId::random(self.entropy.as_ref());
        let mut builder = ObjectBuilder::new(kind, id, Some(self.keys.current()));
        builder.clear(clear);
        builder.push_frame(1, Compression::Zstd(1), frame);
        builder.seal()
    }

    /// Reads an object of [`Context::seal_small`]: its authenticated clear part and its first frame.
    async fn read_small<M: Message + Default>(
        &self,
        name: &str,
        kind: ObjectKind,
    ) -> Result<(M, Bytes, ObjectHead)> {
        let view = fetch_with(self.store.as_ref(), &self.keys, name, kind).await?;
        let frame = view.frame(&self.keys, 0)?;
        let message = M::decode(view.head().clear().clone())
            .map_err(|_| Error::damaged(name, "its clear part is malformed"))?;
        Ok((message, frame, view.head().clone()))
    }

    /// Refuses an object that belongs under another name.
    fn check_place(&self, name: &str, lineage: &[u8], found: u64, wanted: u64) -> Result<()> {
        if lineage == self.lineage.0 && found == wanted {
            return Ok(());
        }
        Err(Error::damaged(name, "it belongs under another name"))
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
