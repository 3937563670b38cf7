//! What a ledger's entries, and the maintenance entries beside them, add up to.

use borealis_base::{LineageId, Timestamp};
use bytes::Bytes;

use super::body::EntryBody;
use super::expiry::Marks;
use super::holder::{Holder, Presence};
use super::maintenance::{self, FloorPlanned, LogMerged, MaintenanceBody};
use super::summary::{self, Stored};
use super::{Opened, Role, Shape, message};
use crate::numbered::{Chain, Item};
use crate::plan::{LineageState, Run, SettledSummary};
use crate::retention::RECORDED_STEP_MAX;
use crate::{Error, Result};

/// An epoch as its writer's first entry tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochSummary {
    /// The epoch.
    pub epoch: u64,
    /// Its first entry, the fence.
    pub entry: u64,
    /// When that was written, by its writer's clock.
    pub opened_at: Timestamp,
    /// The writer.
    pub holder: Holder,
    /// Whether the writer stopped in good order.
    pub closed: bool,
}

/// How far one row of entries was read, and by whom it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Half {
    pub(super) chain: Chain,
    pub(super) epochs: Vec<EpochSummary>,
    pub(super) last_recorded_at: Option<Timestamp>,
    /// Items since the last multiple of `block_len`; what recaps and checkpoints repeat.
    pub(super) block: Vec<Item>,
    pub(super) block_len: u64,
}

impl Half {
    pub(super) fn new(chain: Chain, block_len: u64) -> Self {
        Self {
            chain,
            epochs: Vec::new(),
            last_recorded_at: None,
            block: Vec::new(),
            block_len,
        }
    }

    fn take(&mut self, item: Item) {
        self.last_recorded_at = Some(item.head.recorded_at);
        if (item.head.number - 1).is_multiple_of(self.block_len) {
            self.block.clear();
        }
        self.block.push(item);
    }

    fn opened(&mut self, item: &Item, opened: Opened) {
        self.epochs.push(EpochSummary {
            epoch: opened.epoch,
            entry: item.head.number,
            opened_at: item.head.recorded_at,
            holder: opened.holder,
            closed: false,
        });
    }

    fn closed(&mut self, epoch: u64) {
        let last = self.epochs.last_mut();
        if let Some(last) = last.filter(|last| last.epoch == epoch) {
            last.closed = true;
        }
    }

    /// The present holder as far as the entries tell.
    pub(super) fn presence(&self) -> Option<Presence> {
        self.epochs.last().map(|last| Presence {
            holder: last.holder.clone(),
            epoch: last.epoch,
            last_sign: self.last_recorded_at.unwrap_or(last.opened_at),
            closed: last.closed,
        })
    }
}

/// A ledger and its maintenance, folded.
///
/// What it comes to does not depend on the order in which the two rows are taken, but for this: a
/// maintenance entry comes after the ledger entries that it speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fold {
    pub(super) state: LineageState,
    pub(super) ledger: Half,
    pub(super) maintenance: Half,
    /// The last `Settled` of the ledger, while nothing but its like has followed: of a run of them that
    /// speak of one record the state keeps the last. Follows from the ledger alone.
    pub(super) run: Option<SettledSummary>,
    /// The maintenance entries that speak of ledger entries, with the highest that each speaks of.
    pub(super) references: Vec<(u64, u64)>,
    /// The newest floor that was planned.
    pub(super) planned: Option<FloorPlanned>,
    /// The last floor below which everything was removed that nothing names.
    pub(super) removed: u64,
    /// What has expired and is not deleted yet.
    pub(super) marks: Marks,
}

impl Fold {
    pub(super) fn new(lineage: LineageId, shape: Shape) -> Self {
        Self {
            state: LineageState::empty(lineage),
            ledger: Half::new(Chain::new(lineage.0), shape.checkpoint),
            maintenance: Half::new(Chain::new(lineage.0), shape.recap),
            run: None,
            references: Vec::new(),
            planned: None,
            removed: 0,
            marks: Marks::default(),
        }
    }

    pub(super) fn half(&self, role: Role) -> &Half {
        match role {
            Role::Ledger => &self.ledger,
            Role::Maintenance => &self.maintenance,
        }
    }

    /// Takes the next item of one of the rows.
    pub(super) fn apply(&mut self, role: Role, item: Item) -> Result<()> {
        let name = role.entry(self.state.lineage, item.head.number);
        match role {
            Role::Ledger => {
                let body = decode_body(&name, &item)?;
                self.ledger.chain.accept(&name, &item)?;
                self.fold(&item, body);
                self.state.head = item.head.number;
                self.state.read_back = self.state.read_back.max(item.head.read_back);
                self.ledger.take(item);
            }
            Role::Maintenance => {
                let body = maintenance::decode(&name, item.body.clone())?;
                self.maintenance.chain.accept(&name, &item)?;
                self.fold_maintenance(&name, &item, body)?;
                self.maintenance.take(item);
            }
        }
        Ok(())
    }

    fn fold(&mut self, item: &Item, body: EntryBody) {
        let stored = Stored {
            entry: item.head.number,
            recorded_at: item.head.recorded_at,
            len: item.object_len,
            digest: item.digest,
        };
        let state = &mut self.state;
        if matches!(
            body,
            EntryBody::LogPiece(_) | EntryBody::Gap(_) | EntryBody::BranchStarted(_)
        ) {
            self.run = None;
        }
        match body {
            EntryBody::Opened(opened) => {
                state.log_unit = opened.log_unit.max(1);
                // Whoever opens again means to write again.
                state.retired = None;
                self.ledger.opened(item, opened);
            }
            EntryBody::Closed(closed) => self.ledger.closed(closed.epoch),
            EntryBody::LogPiece(piece) => state.pieces.push(summary::piece(stored, piece, None)),
            EntryBody::BaseBackup(backup) => {
                // What was stored before it is in it, or is older than it.
                state.partial = None;
                let summary = summary::base_backup(stored, &backup);
                state.base_backups.push(summary);
            }
            EntryBody::PartialBaseBackup(partial) => {
                state.partial = Some(summary::partial(stored, &partial));
            }
            EntryBody::Settled(settled) => self.settle(summary::settled(stored, &settled)),
            EntryBody::Gap(gap) => state.gaps.push(summary::gap(stored, gap)),
            EntryBody::BranchStarted(started) => {
                let branch = started.branch;
                state
                    .branches
                    .insert(branch, summary::branch(stored, started));
            }
            EntryBody::Retired(retired) => state.retired = Some(retired.reason),
            EntryBody::Names(names) => state.names.push(summary::names(stored, &names)),
            EntryBody::ReadBack => {}
        }
    }

    /// Takes a `Settled`. An idle source settles the same record again and again: of such a run the last
    /// one says all that the others say.
    fn settle(&mut self, settled: SettledSummary) {
        let list = &mut self.state.settled;
        let run = self
            .run
            .take()
            .filter(|run| (run.branch, run.last_record) == (settled.branch, settled.last_record));
        match run {
            // It settles nothing.
            Some(run) if settled.through <= run.through => self.run = Some(run),
            Some(run) => {
                let passed = settled.recorded_at.since(run.recorded_at);
                let settled = SettledSummary {
                    run: Run {
                        since: run.run.since,
                        lasted: run.run.lasted + passed.min(RECORDED_STEP_MAX),
                    },
                    ..settled
                };
                // Merged log may have taken the run in as far as it had come.
                if list.last().is_some_and(|last| last.entry == run.entry) {
                    list.pop();
                }
                list.push(settled.clone());
                self.run = Some(settled);
            }
            None => {
                list.push(settled.clone());
                self.run = Some(settled);
            }
        }
    }

    fn fold_maintenance(&mut self, name: &str, item: &Item, body: MaintenanceBody) -> Result<()> {
        let highest = body.speaks_of();
        if highest > self.state.head {
            let head = self.state.head;
            return Err(Error::damaged(
                name,
                format!("it speaks of ledger entry {highest}, and the last one is {head}"),
            ));
        }
        if highest > 0 {
            self.references.push((item.head.number, highest));
        }
        match body {
            MaintenanceBody::Opened(opened) => self.maintenance.opened(item, opened),
            MaintenanceBody::Closed(closed) => self.maintenance.closed(closed.epoch),
            MaintenanceBody::LogMerged(merged) => self.merge(name, &merged)?,
            MaintenanceBody::FloorPlanned(planned) => self.planned = Some(planned),
            MaintenanceBody::Removed(removed) => self.removed = self.removed.max(removed.floor),
            MaintenanceBody::Expired(expired) => {
                let number = item.head.number;
                self.marks.expire(number, &expired, &mut self.state);
            }
            MaintenanceBody::Dated(dated) => self.marks.date(&dated),
            MaintenanceBody::Kept(it) => self.marks.keep(name, &it, false, &mut self.state)?,
            MaintenanceBody::Checked(it) => self.marks.keep(name, &it, true, &mut self.state)?,
            MaintenanceBody::Deleted(it) => self.marks.delete(name, it, &mut self.state)?,
        }
        Ok(())
    }

    /// Puts merged log in the place of the pieces that it was made of.
    fn merge(&mut self, name: &str, merged: &LogMerged) -> Result<()> {
        let entries = merged.first_entry..=merged.last_entry;
        let pieces = &mut self.state.pieces;
        let from = pieces.partition_point(|piece| piece.entry < merged.first_entry);
        let to = pieces.partition_point(|piece| piece.entry <= merged.last_entry);
        let replaced = pieces.get(from..to).unwrap_or_default();
        let mut at = merged.start;
        let follows = replaced.iter().all(|piece| {
            let fits = piece.branch == merged.branch && piece.start == at && piece.merged.is_none();
            at = piece.end;
            fits
        });
        let ends = replaced.first().map(|first| first.settled_before)
            == Some(merged.settled_before)
            && replaced.last().map(|last| (last.entry, last.resume_at))
                == Some((merged.last_piece, merged.resume_at));
        if !follows || !ends || at != merged.end || replaced.len() as u64 != merged.parts {
            return Err(Error::damaged(
                name,
                format!(
                    "it replaces log of branch {} from {} to {}, which the ledger does not hold so in its entries {} to {}",
                    merged.branch, merged.start, merged.end, merged.first_entry, merged.last_entry
                ),
            ));
        }
        pieces.splice(from..to, [merged.summary()]);
        (self.state.settled).retain(|settled| !entries.contains(&settled.entry));
        // Nor may one come back that is hidden.
        for mark in &mut self.marks.0 {
            (mark.selected.settled).retain(|settled| !entries.contains(&settled.entry));
        }
        Ok(())
    }
}

/// Reads the body of an entry.
pub(super) fn decode_body(name: &str, item: &Item) -> Result<EntryBody> {
    decode(name, item.body.clone())
}

pub(super) fn decode(name: &str, body: Bytes) -> Result<EntryBody> {
    message::decode(body).map_err(|bad| bad.error(name))
}
