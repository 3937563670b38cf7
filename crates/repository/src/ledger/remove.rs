//! Removing what lies below a floor and nothing names.
//!
//! What may go follows from a floor and its baseline alone, which never change: the ledger entries below it
//! that its baseline does not name. So nothing has to be decided at the moment of removal, and a remover that
//! slept, or a second one, removes nothing else. It waits until the floor is as old as the grace period *by
//! the store's clock*: whoever read the lineage before the floor rose may still read what it names.

use std::collections::BTreeSet;
use std::time::Duration;

use borealis_base::{ObjectId, Timestamp};
use futures::{StreamExt, TryStreamExt};

use super::floor::Floor;
use super::fold::Fold;
use super::maintainer::Maintainer;
use super::maintenance::{MaintenanceBody, Removed};
use super::{Context, LedgerReader, Rule};
use crate::plan::Selected;
use crate::{Error, Result, layout};

/// Deletions at a time.
const CONCURRENCY: usize = 16;

impl Maintainer {
    /// Removes what lies below the next floor that is at least `grace` old, and says so; returns how many
    /// objects, or `None` where no floor is old enough. Killed at any moment, it can be run again.
    ///
    /// # Errors
    /// Refused where the right to delete is missing: nothing is lost by that but room.
    pub async fn remove_below_next_floor(&mut self, grace: Duration) -> Result<Option<u64>> {
        if !self.reader().removal_is_due(grace).await? {
            return Ok(None);
        }
        let (context, number) = (self.context().clone(), self.removed() + 1);
        let (before, after) = (
            context.numbered_floor(number - 1).await?,
            context.numbered_floor(number).await?,
        );
        let names = match context.removable(&before, &after).await {
            // The baseline of a floor goes with the next one: another maintainer has been here, and this
            // one is fenced.
            Err(error @ Error::Missing { .. }) => {
                self.refresh().await?;
                return Err(error);
            }
            names => names?,
        };
        let count = names.len() as u64;
        context.delete_all(names).await?;
        self.say(&MaintenanceBody::Removed(Removed { floor: number }))
            .await?;
        // It told what the floor after it did not name any more, and nobody asks for that again.
        if let Some(baseline) = before.baseline {
            let name = layout::baseline(baseline.lineage, baseline.object);
            context.delete_all(vec![name]).await?;
        }
        Ok(Some(count))
    }
}

impl LedgerReader {
    /// Whether the next floor below which nothing was removed is at least `grace` old. Asks the store for
    /// the time by creating a small object.
    pub async fn removal_is_due(&self, grace: Duration) -> Result<bool> {
        let (context, number) = (&self.context, self.fold.removed + 1);
        if number > self.floor.number {
            return Ok(false);
        }
        let name = layout::floor(context.lineage, number);
        let Some(floor) = context.store.stat(&name).await? else {
            return Err(Error::Missing {
                object: name,
                needed_by: "the floors after it".to_owned(),
            });
        };
        let now = context.present().await?;
        Ok(now.since(floor.modified) >= grace || !context.keeps(Rule::Grace))
    }
}

/// The ledger entries whose objects are read for more than what the baseline says. What has expired and was not
/// checked may come back.
fn named(fold: &Fold) -> BTreeSet<u64> {
    let marked = fold.marks.0.iter().filter(|mark| !mark.checked);
    let marked: Vec<&Selected> = marked.map(|mark| &mark.selected).collect();
    let pieces = (fold.state.pieces.iter())
        .chain(marked.iter().flat_map(|it| &it.pieces))
        .filter(|piece| piece.merged.is_none());
    let names = (fold.state.names.iter()).chain(marked.iter().flat_map(|it| &it.names));
    (pieces.map(|piece| piece.entry))
        .chain(names.map(|names| names.entry))
        .collect()
}

impl Context {
    /// The names of what can go when the floor has risen from `before` to `after`.
    async fn removable(&self, before: &Floor, after: &Floor) -> Result<Vec<String>> {
        let kept_before = named(&self.fold_at(before).await?);
        let mut kept = named(&self.fold_at(after).await?);
        if !self.keeps(Rule::NamedByBaseline) {
            kept.clear();
        }
        let entries = kept_before
            .into_iter()
            .chain(before.lowest..after.lowest)
            .filter(|entry| !kept.contains(entry))
            .map(|entry| layout::entry(self.lineage, entry));
        let block = |floor: &Floor| (floor.lowest - 1) / self.shape.checkpoint;
        let checkpoints = (block(before) + 1..=block(after))
            .map(|number| layout::checkpoint(self.lineage, number));
        let maintenance = (before.maintenance_lowest..after.maintenance_lowest)
            .map(|number| layout::maintenance_entry(self.lineage, number));
        Ok(entries.chain(checkpoints).chain(maintenance).collect())
    }

    pub(super) async fn delete_all(&self, names: Vec<String>) -> Result<()> {
        futures::stream::iter(names)
            .map(|name| async move { self.store.delete(&name).await.map_err(Error::from) })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await
    }

    /// What time it is by the store's clock: that of an object created just now.
    pub(super) async fn present(&self) -> Result<Timestamp> {
        if !self.keeps(Rule::StoreClock) {
            return Ok(self.clock.now());
        }
        let name = layout::clock(self.lineage, ObjectId::random(self.entropy.as_ref()));
        self.create_patiently(&name, &bytes::Bytes::new()).await?;
        let stat = self.store.stat(&name).await?;
        self.store.delete(&name).await?;
        stat.map(|stat| stat.modified)
            .ok_or(Error::NotFound { what: name })
    }
}
