//! One turn of maintenance, of bounded work.

use std::collections::BTreeSet;
use std::time::Duration;

use borealis_base::{ErrorKind, Progress, Unit};

use super::expire::Expiring;
use super::merge::merge;
use super::plan::{Limits, MergePlan, plan_merges};
use crate::catalog::Lineage;
use crate::ledger::{Holder, LedgerReader, Maintainer, Opening};
use crate::plan::LineageState;
use crate::store::StoreErrorKind;
use crate::{Error, Repository, Result};

/// How old a floor is before what lies below it is removed, by the store's clock. Whoever reads a lineage
/// for longer than that, from what it knew at the beginning, may find log missing and begins again.
pub const GRACE: Duration = Duration::from_hours(24);

/// How long nothing is removed after the store denied it.
const DENIED_PAUSE: Duration = Duration::from_hours(24);

/// How much one turn does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of log objects read; the group that passes it is the last one.
    pub read_bytes: u64,
    /// Objects removed; the floor that passes it is the last one.
    pub removals: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            read_bytes: 1 << 30,
            removals: 100_000,
        }
    }
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// Log pieces that are one object with others now.
    pub pieces: u64,
    /// Objects that they became.
    pub objects: u64,
    /// Bytes of the former objects.
    pub bytes_before: u64,
    /// Bytes of the new ones.
    pub bytes_after: u64,
    /// The lowest ledger entry that readers begin at, if that has risen.
    pub floor: Option<u64>,
    /// Objects removed, of which merged log and baselines say what they said.
    pub removed: u64,
    /// Base backups that have expired and are hidden from here on.
    pub expired_base_backups: u64,
    /// Stored bytes that have expired: log and names, and what the base backups had added.
    pub expired_bytes: u64,
    /// Of what had expired earlier, the bytes that some promise holds after all.
    pub kept_after_all: u64,
    /// Objects deleted of what had expired,
    pub deleted: u64,
    /// and their bytes.
    pub deleted_bytes: u64,
    /// Whether the right to remove or delete is missing.
    pub may_not_remove: bool,
    /// Pieces that can't be merged with their neighbours; `verify` tells why where they are damaged.
    pub skipped: u64,
    /// Whether more could have been done within wider bounds.
    pub more: bool,
}

/// Maintains one lineage, turn by turn.
pub struct Upkeep<'a> {
    lineage: Lineage,
    expiring: Option<Expiring<'a>>,
    holder: Holder,
    limits: Limits,
    grace: Duration,
    maintainer: Option<Maintainer>,
    /// What was read while there was nothing to say.
    reader: Option<LedgerReader>,
    /// First entries of groups that could not be merged.
    skipped: BTreeSet<u64>,
    /// When a removal was denied, by the clock that never steps.
    denied_at: Option<Duration>,
}

impl<'a> Upkeep<'a> {
    /// Upkeep of `lineage` by `holder`.
    pub fn new(lineage: Lineage, holder: Holder) -> Self {
        Self {
            lineage,
            expiring: None,
            holder,
            limits: Limits::default(),
            grace: GRACE,
            maintainer: None,
            reader: None,
            skipped: BTreeSet::new(),
            denied_at: None,
        }
    }

    /// With other limits than the usual ones.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// With expiry of what no promise of `repository` holds.
    #[must_use]
    pub fn with_expiry(mut self, repository: &'a Repository) -> Self {
        self.expiring = Some(Expiring::new(repository, self.lineage.clone()));
        self
    }

    /// With another grace period than [`GRACE`].
    #[cfg(test)]
    pub(crate) fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Does what is to be done, within `bounds`. May be dropped at any moment, and called again.
    ///
    /// # Errors
    /// Fenced where a newer maintainer has opened; the next call opens anew.
    pub async fn turn(&mut self, bounds: Bounds, progress: &dyn Progress) -> Result<Turn> {
        let denied_before = self.denied_at;
        let mut turn = self.work(bounds, progress).await;
        if let Ok(turn) = &mut turn {
            turn.may_not_remove = self.denied_at != denied_before;
        }
        if (turn.as_ref()).is_err_and(|error| error.kind() == ErrorKind::Fenced) {
            self.maintainer = None;
        }
        turn
    }

    /// Says that no more is done.
    pub async fn close(self) -> Result<()> {
        match self.maintainer {
            Some(maintainer) => maintainer.close().await,
            None => Ok(()),
        }
    }

    async fn work(&mut self, bounds: Bounds, progress: &dyn Progress) -> Result<Turn> {
        let mut turn = Turn::default();
        if let Some(maintainer) = &mut self.maintainer {
            maintainer.refresh().await?;
        } else if !self.open().await? {
            return Ok(turn);
        }
        let Some(mut maintainer) = self.maintainer.take() else {
            return Ok(turn);
        };
        let worked = self.work_as(&mut maintainer, bounds, progress, &mut turn);
        let worked = worked.await;
        self.maintainer = Some(maintainer);
        worked.map(|()| turn)
    }

    async fn work_as(
        &mut self,
        maintainer: &mut Maintainer,
        bounds: Bounds,
        progress: &dyn Progress,
        turn: &mut Turn,
    ) -> Result<()> {
        let plan = self.plan(maintainer.state());
        let clear = (self.merge_all(maintainer, &plan, bounds, progress, turn)).await?;
        turn.floor = maintainer.raise_floor(clear).await?;
        self.remove(maintainer, bounds, turn).await?;
        // What can't be deleted is not hidden either.
        if self.may_remove()
            && let Some(expiring) = &mut self.expiring
        {
            let marked = expiring.mark_and_check(maintainer, self.grace, turn).await;
            self.unless_denied(marked)?;
        }
        self.delete(maintainer, bounds, turn).await
    }

    /// Deletes what has expired, mark by mark.
    async fn delete(
        &mut self,
        maintainer: &mut Maintainer,
        bounds: Bounds,
        turn: &mut Turn,
    ) -> Result<()> {
        while self.may_remove()
            && let Some(expiring) = &mut self.expiring
        {
            let deleted = expiring.delete_one(maintainer, turn).await;
            if self.unless_denied(deleted)? != Some(true) {
                return Ok(());
            }
            if turn.removed + turn.deleted >= bounds.removals {
                turn.more = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Removes what was replaced, floor by floor.
    async fn remove(
        &mut self,
        maintainer: &mut Maintainer,
        bounds: Bounds,
        turn: &mut Turn,
    ) -> Result<()> {
        while self.may_remove() {
            let removed = maintainer.remove_below_next_floor(self.grace).await;
            match self.unless_denied(removed)? {
                Some(Some(removed)) => turn.removed += removed,
                Some(None) | None => return Ok(()),
            }
            if turn.removed >= bounds.removals {
                turn.more = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether a removal may be tried: not for a day after the store denied one.
    fn may_remove(&self) -> bool {
        let now = self.lineage.clock().elapsed();
        (self.denied_at).is_none_or(|at| now.saturating_sub(at) >= DENIED_PAUSE)
    }

    /// `None` where the store denies it, which is remembered.
    fn unless_denied<T>(&mut self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Err(Error::Store(error)) if error.kind == StoreErrorKind::Denied => {
                self.denied_at = Some(self.lineage.clock().elapsed());
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Opens the maintenance, unless there is nothing to say: then no epoch is taken for it.
    async fn open(&mut self) -> Result<bool> {
        let reader = match self.reader.take() {
            Some(mut reader) => {
                reader.refresh().await?;
                reader
            }
            None => self.lineage.reader().await?,
        };
        let plan = self.plan(reader.state());
        let idle = plan.groups.is_empty() && !reader.floor_lags(plan.clear_through);
        let removal = self.may_remove() && {
            let due = reader.removal_is_due(self.grace).await;
            self.unless_denied(due)?.unwrap_or(false)
        };
        let may_delete = self.may_remove();
        let expiry = match &mut self.expiring {
            Some(expiring) if may_delete => {
                let due = expiring.is_due(&reader, self.grace).await;
                self.unless_denied(due).map(|due| due == Some(true))
            }
            _ => Ok(false),
        };
        // Where the promises can't be read, all else is done all the same.
        if idle && !removal && !matches!(expiry, Ok(true)) {
            // Nothing to say: no epoch is taken for it.
            self.reader = Some(reader);
            return expiry;
        }
        let opening = Opening {
            holder: self.holder.clone(),
            log_unit: 0,
            expected_epoch: None,
        };
        self.maintainer = Some(self.lineage.open_maintainer(opening).await?);
        Ok(true)
    }

    fn plan(&self, state: &LineageState) -> MergePlan {
        let now = self.lineage.clock().now();
        plan_merges(state, &self.limits, &self.skipped, now)
    }

    /// Merges the groups of `plan`; returns up to which ledger entry nothing is left to merge.
    async fn merge_all(
        &mut self,
        maintainer: &mut Maintainer,
        plan: &MergePlan,
        bounds: Bounds,
        progress: &dyn Progress,
        turn: &mut Turn,
    ) -> Result<u64> {
        let total = plan.groups.iter().map(super::plan::Group::stored_bytes);
        progress.phase("merging log", Unit::Bytes, Some(total.sum()));
        for group in &plan.groups {
            if turn.bytes_before >= bounds.read_bytes {
                turn.more = true;
                return Ok(group.first_entry().saturating_sub(1));
            }
            let merged = match merge(&self.lineage, group).await {
                Ok(merged) => merged,
                // A piece that can't be read is no reason to leave the others as they are.
                Err(
                    error @ (Error::Damaged { .. } | Error::Missing { .. } | Error::Refused { .. }),
                ) => {
                    tracing::warn!(%error, "log pieces are not merged");
                    self.skipped.insert(group.first_entry());
                    turn.skipped += group.pieces.len() as u64;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (parts, len) = (merged.parts, merged.object.len);
            maintainer.merged(merged).await?;
            turn.pieces += parts;
            turn.objects += 1;
            turn.bytes_before += group.stored_bytes();
            turn.bytes_after += len;
            progress.advance(group.stored_bytes());
        }
        Ok(plan.clear_through)
    }
}
