//! Reading a ledger, cold or on from where it was read to.

use bytes::Bytes;

use super::floor::Floor;
use super::fold::{EpochSummary, Fold, Half, decode_body};
use super::holder::Presence;
use super::message::CheckpointMessage;
use super::protocol::reading_holds;
use super::{Context, EntryBody, RESTARTS_MAX, Role, Rule};
use crate::numbered::{Chain, Collected, Item, decode_items};
use crate::object::{ObjectKind, ObjectView, fetch_with};
use crate::plan::LineageState;
use crate::{Error, Result, layout};

const ROLES: [Role; 2] = [Role::Ledger, Role::Maintenance];

/// A lineage's ledger and its maintenance, folded.
#[derive(Clone)]
pub struct LedgerReader {
    pub(super) context: Context,
    pub(super) floor: Floor,
    pub(super) fold: Fold,
}

impl LedgerReader {
    /// Reads everything from the floor to the head.
    pub(crate) async fn load(context: Context) -> Result<Self> {
        let floor = context.floor(Floor::NONE).await?;
        let mut reader = Self {
            fold: Fold::new(context.lineage, context.shape),
            context,
            floor,
        };
        reader.begin_again().await?;
        loop {
            reader.refresh().await?;
            let Err((role, head, error)) = reader.check_ends().await else {
                return Ok(reader);
            };
            // An entry that was removed in good order is not missing.
            let floor = reader.context.floor(reader.floor).await?;
            if floor.lowest_of(role) <= head + 1 {
                return Err(error);
            }
        }
    }

    async fn check_ends(&self) -> Result<(), (Role, u64, Error)> {
        for role in ROLES {
            let head = self.fold.half(role).chain.head;
            let checked = self.context.track(role).check_end(head).await;
            checked.map_err(|error| (role, head, error))?;
        }
        Ok(())
    }

    /// What the entries add up to.
    pub fn state(&self) -> &LineageState {
        &self.fold.state
    }

    /// The lowest entry that is kept.
    pub fn lowest(&self) -> u64 {
        self.floor.lowest.max(1)
    }

    /// The lowest maintenance entry that is kept.
    pub fn lowest_maintenance(&self) -> u64 {
        self.floor.maintenance_lowest.max(1)
    }

    /// The epochs whose writers have opened, in order; of those before the floor only the last one.
    pub fn epochs(&self) -> &[EpochSummary] {
        &self.fold.ledger.epochs
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
        let read = self.context.read_epoch(Role::Ledger, epoch).await;
        read.map(|_| ())
    }

    /// Number and head digest of the last entry; zero and zeros in an empty ledger.
    pub fn head(&self) -> (u64, [u8; 32]) {
        (self.fold.ledger.chain.head, self.fold.ledger.chain.digest)
    }

    /// Who writes, and its last sign of life.
    pub async fn presence(&self) -> Result<Option<Presence>> {
        self.context.presence(self.fold.ledger.presence()).await
    }

    /// Reads what was appended since. What was read before stays as it is if this fails.
    pub async fn refresh(&mut self) -> Result<()> {
        let mut restarts = 0;
        let mut maintenance = None;
        loop {
            let heads = ROLES.map(|role| self.fold.half(role).chain.head);
            // Before the end of the ledger: what these entries speak of is in the ledger already.
            if maintenance.is_none() && self.context.keeps(Rule::MaintenanceFirst) {
                maintenance = Some(self.collect_maintenance().await);
            }
            let mut chain = self.fold.ledger.chain.clone();
            let got = self.context.collect_ledger_block(&mut chain).await;
            let upkeep = match maintenance.take() {
                Some(read) => read,
                None => self.collect_maintenance().await,
            };
            // Only now is it known whether what was read may be believed.
            self.floor = self.context.floor(self.floor).await?;
            let holds = (ROLES.iter().zip(heads))
                .all(|(role, head)| reading_holds(head + 1, self.floor.lowest_of(*role)));
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
            let (got, upkeep) = (got?, upkeep?);
            if let Some(error) = got.misfit {
                return Err(error);
            }
            for item in got.items {
                self.fold.apply(Role::Ledger, item)?;
            }
            if !got.at_end {
                maintenance = Some(Ok(upkeep));
                continue;
            }
            if let Some(error) = upkeep.misfit {
                return Err(error);
            }
            for item in upkeep.items {
                self.fold.apply(Role::Maintenance, item)?;
            }
            return Ok(());
        }
    }

    async fn collect_maintenance(&self) -> Result<Collected> {
        let mut chain: Chain = self.fold.maintenance.chain.clone();
        let track = self.context.track(Role::Maintenance);
        track.collect(&mut chain, u64::MAX).await
    }

    async fn begin_again(&mut self) -> Result<()> {
        let mut tries = 0;
        self.fold = loop {
            match self.context.fold_at(&self.floor).await {
                Ok(fold) => break fold,
                // The baseline was removed because the floor has risen again.
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
        Ok(())
    }

    /// The name of the baseline of the newest floor.
    #[cfg(test)]
    pub(crate) fn baseline_name(&self) -> Option<String> {
        let baseline = self.floor.baseline?;
        Some(layout::baseline(baseline.lineage, baseline.object))
    }

    /// What the baseline of the newest floor says.
    #[cfg(test)]
    pub(crate) async fn baseline(&self) -> Result<LineageState> {
        Ok(self.context.fold_at(&self.floor).await?.state)
    }

    /// What the entries from the first one on add up to, those of the ledger alone or of both rows.
    #[cfg(test)]
    pub(crate) async fn fold_from_the_first_entry(
        &self,
        with_maintenance: bool,
    ) -> Result<LineageState> {
        let lowest = |role| self.fold.half(role).chain.head + 1;
        let maintenance = if with_maintenance {
            lowest(Role::Maintenance)
        } else {
            1
        };
        let fold = (self.context)
            .fold_below(&Floor::NONE, lowest(Role::Ledger), maintenance)
            .await?;
        Ok(fold.state)
    }

    /// Where a row of entries was read to.
    pub(super) fn half(&self, role: Role) -> &Half {
        self.fold.half(role)
    }

    /// The body of entry `number`, read from the store.
    pub async fn body(&self, number: u64) -> Result<EntryBody> {
        let entry = self.context.track(Role::Ledger).read(number).await?;
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
    /// Reads the ledger on to the next checkpoint boundary, or to the end.
    pub(super) async fn collect_ledger_block(&self, chain: &mut Chain) -> Result<Collected> {
        let size = self.shape.checkpoint;
        let block = chain.head / size + 1;
        let track = self.track(Role::Ledger);
        if chain.head.is_multiple_of(size)
            && let Some(items) = self.read_checkpoint(block).await?
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
