//! Reading a ledger, cold or on from where it was read to.

use bytes::Bytes;

use super::floor::Floor;
use super::fold::{EpochSummary, Fold, decode_body};
use super::holder::Presence;
use super::message::CheckpointMessage;
use super::protocol::reading_holds;
use super::{Context, EntryBody, RESTARTS_MAX, Rule};
use crate::numbered::{Chain, Collected, Item, decode_items};
use crate::object::{ObjectKind, ObjectView, fetch_with};
use crate::plan::LineageState;
use crate::{Error, Result, layout};

/// A lineage's ledger, folded.
pub struct LedgerReader {
    pub(super) context: Context,
    pub(super) floor: Floor,
    pub(super) fold: Fold,
}

impl LedgerReader {
    /// Reads the ledger from its floor to its head.
    pub(crate) async fn load(context: Context) -> Result<Self> {
        let floor = context.floor(Floor::NONE).await?;
        let mut reader = Self {
            fold: Fold::new(
                context.lineage,
                context.shape.checkpoint,
                Chain::new(context.lineage.0),
            ),
            context,
            floor,
        };
        reader.begin_again().await?;
        loop {
            reader.refresh().await?;
            let head = reader.fold.chain.head;
            let Err(error) = reader.context.track().check_end(head).await else {
                return Ok(reader);
            };
            // An entry that was removed in good order is not missing.
            if reader.context.floor(reader.floor).await?.lowest <= head + 1 {
                return Err(error);
            }
        }
    }

    /// What the entries add up to.
    pub fn state(&self) -> &LineageState {
        &self.fold.state
    }

    /// The lowest entry that is kept.
    pub fn lowest(&self) -> u64 {
        self.floor.lowest.max(1)
    }

    /// The epochs whose writers have opened, in order.
    pub fn epochs(&self) -> &[EpochSummary] {
        &self.fold.epochs
    }

    /// Reads the object of an epoch and checks it.
    pub async fn check_epoch(&self, epoch: u64) -> Result<()> {
        let object = layout::epoch(self.context.lineage, epoch);
        if self.context.store.stat(&object).await?.is_none() {
            return Err(Error::Missing {
                object,
                needed_by: "the ledger".to_owned(),
            });
        }
        self.context.read_epoch(epoch).await.map(|_| ())
    }

    /// Number and head digest of the last entry; zero and zeros in an empty ledger.
    pub fn head(&self) -> (u64, [u8; 32]) {
        (self.fold.chain.head, self.fold.chain.digest)
    }

    /// Who writes, and its last sign of life.
    pub async fn presence(&self) -> Result<Option<Presence>> {
        self.context.presence(self.fold.presence()).await
    }

    /// Reads what was appended since. What was read before stays as it is if this fails.
    pub async fn refresh(&mut self) -> Result<()> {
        let mut restarts = 0;
        loop {
            let first = self.fold.chain.head + 1;
            let mut chain = self.fold.chain.clone();
            let got = self.collect_block(&mut chain).await;
            // Only now is it known whether what was read may be believed.
            self.floor = self.context.floor(self.floor).await?;
            let holds = reading_holds(first, self.floor.lowest);
            if !holds && self.context.keeps(Rule::FloorAfterReading) {
                restarts += 1;
                if restarts > RESTARTS_MAX {
                    return Err(Error::refused(
                        format!(
                            "the floor of lineage {} rises too fast to read",
                            self.context.lineage
                        ),
                        "Stop what removes its entries, and try again.",
                    ));
                }
                self.begin_again().await?;
                continue;
            }
            let got = got?;
            if let Some(error) = got.misfit {
                return Err(error);
            }
            for item in got.items {
                self.fold.apply(item)?;
            }
            if got.at_end {
                return Ok(());
            }
        }
    }

    async fn begin_again(&mut self) -> Result<()> {
        let mut tries = 0;
        let chain = loop {
            match self.context.chain_at(self.floor).await {
                Ok(chain) => break chain,
                // The checkpoint was removed because the floor has risen again.
                Err(error) => {
                    let floor = self.context.floor(self.floor).await?;
                    tries += 1;
                    if floor == self.floor || tries > RESTARTS_MAX {
                        return Err(error);
                    }
                    self.floor = floor;
                }
            }
        };
        self.fold = Fold::new(self.context.lineage, self.context.shape.checkpoint, chain);
        Ok(())
    }

    /// Reads on to the next checkpoint boundary, or to the end.
    async fn collect_block(&self, chain: &mut Chain) -> Result<Collected> {
        let size = self.context.shape.checkpoint;
        let block = chain.head / size + 1;
        let track = self.context.track();
        if chain.head.is_multiple_of(size)
            && let Some(items) = self.context.read_checkpoint(block).await?
        {
            let mut got = Collected {
                items: Vec::new(),
                at_end: false,
                misfit: None,
            };
            track.take(chain, items, &mut got);
            return Ok(got);
        }
        track.collect(chain, block * size).await
    }

    /// The body of entry `number`, read from the store.
    pub async fn body(&self, number: u64) -> Result<EntryBody> {
        let entry = self.context.track().read(number).await?;
        let name = layout::entry(self.context.lineage, number);
        let entry = entry.ok_or_else(|| Error::Missing {
            object: name.clone(),
            needed_by: format!("the ledger of lineage {}", self.context.lineage),
        })?;
        decode_body(&name, &entry.item)
    }

    /// The whole object of entry `number`, for its other frames.
    pub async fn object(&self, number: u64) -> Result<ObjectView> {
        let name = layout::entry(self.context.lineage, number);
        let ledger = format!("the ledger of lineage {}", self.context.lineage);
        let Context { store, keys, .. } = &self.context;
        fetch_with(store.as_ref(), keys, &name, ObjectKind::LedgerEntry)
            .await
            .map_err(|error| error.named_by(ledger))
    }
}

impl Context {
    /// The items of checkpoint `number`; `None` where it does not exist.
    pub(super) async fn read_checkpoint(&self, number: u64) -> Result<Option<Vec<Item>>> {
        let name = layout::checkpoint(self.lineage, number);
        let (store, kind) = (self.store.as_ref(), ObjectKind::Checkpoint);
        let view = match fetch_with(store, &self.keys, &name, kind).await {
            Err(error) if error.is_absent() => return Ok(None),
            other => other?,
        };
        let damaged = |what: &str| Error::damaged(&name, what);
        let mut items = Vec::new();
        // The first frame is empty; it lets the clear part be authenticated cheaply.
        for frame in 0..view.head().frames().len() as u32 {
            let plain: Bytes = view.frame(&self.keys, frame)?;
            items.extend(decode_items(plain).ok_or_else(|| damaged("its items are malformed"))?);
        }
        let clear: CheckpointMessage = prost::Message::decode(view.head().clear().clone())
            .map_err(|_| damaged("its clear part is malformed"))?;
        self.check_place(&name, &clear.lineage, clear.number, number)?;
        let size = self.shape.checkpoint;
        if items.len() as u64 != size || clear.last != number.saturating_mul(size) {
            return Err(damaged("it does not hold the entries that its number says"));
        }
        Ok(Some(items))
    }
}
