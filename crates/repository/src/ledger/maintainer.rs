//! The one maintainer of a lineage, as long as no newer one opens.

use borealis_base::Timestamp;

use super::expiry::{Dated, Deleted, Expired, Kept, Mark};
use super::floor::Floor;
use super::maintenance::{LogMerged, MaintenanceBody};
use super::write::{Committed, LedgerWriter, Opening};
use super::{Context, LedgerReader, Role, Rule};
use crate::Result;
use crate::plan::{LineageState, Selection};

/// Says in a lineage's maintenance what was made of what its ledger says. The ledger's writer goes on
/// beside it.
pub struct Maintainer {
    writer: LedgerWriter,
}

impl Maintainer {
    /// Takes the next maintenance epoch, reads ledger and maintenance, and fences: what an older
    /// maintainer has not committed yet it never will.
    pub(crate) async fn open(context: Context, opening: Opening) -> Result<Self> {
        let writer = LedgerWriter::open_as(Role::Maintenance, context, opening).await?;
        Ok(Self { writer })
    }

    /// What ledger and maintenance add up to.
    pub fn state(&self) -> &LineageState {
        self.writer.state()
    }

    /// Ledger and maintenance as they were read.
    pub fn reader(&self) -> &LedgerReader {
        self.writer.reader()
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.writer.epoch()
    }

    /// Settles the fate of an entry that was on its way, and reads what was appended since.
    pub async fn refresh(&mut self) -> Result<()> {
        self.writer.resume().await?;
        self.writer.refresh().await
    }

    /// Says that log pieces are one object from here on; readers read that when this returns.
    ///
    /// # Errors
    /// Fenced where a newer maintainer has opened: nothing names the object then.
    pub async fn merged(&mut self, merged: LogMerged) -> Result<Committed> {
        let body = MaintenanceBody::LogMerged(merged);
        self.writer.maintain(&body).await
    }

    /// Raises the floor as far as ledger entries up to `clear_through` allow; returns the new one, or
    /// `None` where it is there already.
    ///
    /// First the maintenance says which baseline the floor is to have, then the floor is created. So a
    /// maintainer that slept in between can create only a floor that its successor has seen planned, and
    /// has created before doing anything else.
    pub async fn raise_floor(&mut self, clear_through: u64) -> Result<Option<u64>> {
        let context = self.writer.context().clone();
        let mut floor = context.floor(self.writer.reader().floor).await?;
        if let Some(planned) = self.writer.reader().fold.planned
            && planned.number > floor.number
        {
            context.create_floor(&planned).await?;
            floor = context.floor(floor).await?;
        }
        let Some((lowest, maintenance_lowest)) = self.next_floor(&floor, clear_through) else {
            return Ok(None);
        };
        let Some(planned) = context.plan_floor(lowest, maintenance_lowest).await? else {
            return Ok(None);
        };
        let body = MaintenanceBody::FloorPlanned(planned);
        self.writer.maintain(&body).await?;
        context.create_floor(&planned).await?;
        // Its own view is above the floor already; this spares the next reading the way there.
        let reader = self.writer.reader_mut();
        reader.floor = context.floor(reader.floor).await?;
        Ok(Some(lowest))
    }

    /// The highest floor below which everything is done, if it is above `floor`. The entry at a floor
    /// exists.
    fn next_floor(&self, floor: &Floor, clear_through: u64) -> Option<(u64, u64)> {
        let (shape, fold) = (self.writer.context().shape, &self.writer.reader().fold);
        let reach = fold.ledger.chain.head.min(clear_through.saturating_add(1));
        let lowest = aligned(reach, shape.checkpoint);
        // Maintenance that speaks of what stays is read after it.
        let keeps = self.writer.context().keeps(Rule::KeepReferences);
        let first_kept = (fold.references.iter()).find(|(_, entry)| keeps && *entry >= lowest);
        let kept = first_kept.map_or(fold.maintenance.chain.head, |(number, _)| *number);
        let maintenance = aligned(kept, shape.recap).max(floor.maintenance_lowest);
        (lowest > floor.lowest).then_some((lowest, maintenance))
    }

    /// Hides what has expired from every reader; returns its mark.
    pub async fn expire(&mut self, expired: Expired) -> Result<u64> {
        let committed = self.say(&MaintenanceBody::Expired(expired)).await?;
        Ok(committed.number)
    }

    /// Gives the marks that have no date the store's time: they were there by then.
    pub async fn date_marks(&mut self) -> Result<()> {
        let undated = self.reader().marks().iter().rev();
        let Some(through) = undated
            .filter(|it| it.dated.is_none())
            .map(|it| it.number)
            .next()
        else {
            return Ok(());
        };
        let at = self.context().present().await?;
        let body = MaintenanceBody::Dated(Dated { through, at });
        self.say(&body).await.map(|_| ())
    }

    /// Brings back what of a mark some promise holds after all.
    pub async fn keep(&mut self, mark: u64, kept: Selection) -> Result<()> {
        let body = MaintenanceBody::Kept(Kept { mark, kept });
        self.say(&body).await.map(|_| ())
    }

    /// Brings back what of a mark some promise holds after all; the rest may be deleted from here on.
    ///
    /// # Errors
    /// Fenced where a newer maintainer has opened: nothing may be deleted then.
    pub async fn checked(&mut self, mark: u64, kept: Selection) -> Result<()> {
        let body = MaintenanceBody::Checked(Kept { mark, kept });
        self.say(&body).await.map(|_| ())
    }

    /// Deletes objects that a checked mark alone names, in this order: those of one list only after those of the list
    /// before it.
    pub(crate) async fn delete(&self, lists: [Vec<String>; 2]) -> Result<()> {
        for list in lists {
            self.context().delete_all(list).await?;
        }
        Ok(())
    }

    /// Says that all that is left in a checked mark is deleted.
    pub async fn deleted(&mut self, mark: u64) -> Result<()> {
        let body = MaintenanceBody::Deleted(Deleted { mark });
        self.say(&body).await.map(|_| ())
    }

    /// The lowest ledger entry that may stand by itself: all those below that nothing named were removed.
    pub(crate) async fn removed_below(&self) -> Result<u64> {
        let floor = self.context().numbered_floor(self.removed()).await?;
        Ok(floor.lowest)
    }

    pub(super) fn context(&self) -> &Context {
        self.writer.context()
    }

    pub(super) async fn say(&mut self, body: &MaintenanceBody) -> Result<Committed> {
        self.writer.maintain(body).await
    }

    /// The last floor below which everything is removed that can be.
    pub(super) fn removed(&self) -> u64 {
        self.reader().fold.removed
    }

    /// Says that this maintainer stops.
    pub async fn close(self) -> Result<()> {
        self.writer.close().await
    }
}

/// The highest entry at or below `entry` with which a group of `size` begins.
const fn aligned(entry: u64, size: u64) -> u64 {
    entry.saturating_sub(1) / size * size + 1
}

impl LedgerReader {
    /// What has expired and is not deleted yet.
    pub fn marks(&self) -> &[Mark] {
        &self.fold.marks.0
    }

    /// What time it is by the store's clock. Asks by creating a small object.
    pub(crate) async fn present(&self) -> Result<Timestamp> {
        self.context.present().await
    }

    /// Whether the floor could rise, if everything up to entry `clear_through` is done.
    pub fn floor_lags(&self, clear_through: u64) -> bool {
        let reach = self
            .fold
            .ledger
            .chain
            .head
            .min(clear_through.saturating_add(1));
        aligned(reach, self.context.shape.checkpoint) > self.floor.lowest
    }
}
