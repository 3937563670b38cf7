//! What a ledger's entries add up to.

use borealis_base::{LineageId, Timestamp};
use bytes::Bytes;

use super::body::EntryBody;
use super::holder::{Holder, Presence};
use super::message;
use crate::numbered::{Chain, Item};
use crate::plan::{
    BaseBackupSummary, BranchSummary, GapSummary, LineageState, NamesSummary, PartialSummary,
    PieceSummary, SettledSummary,
};
use crate::{Error, Result, layout};

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

/// A ledger, folded.
#[derive(Debug, Clone)]
pub(super) struct Fold {
    pub(super) state: LineageState,
    pub(super) epochs: Vec<EpochSummary>,
    pub(super) last_recorded_at: Option<Timestamp>,
    pub(super) chain: Chain,
    /// Items since the last multiple of the checkpoint size; what recaps and checkpoints repeat.
    pub(super) block: Vec<Item>,
    entries_per_checkpoint: u64,
}

impl Fold {
    pub(super) fn new(lineage: LineageId, entries_per_checkpoint: u64, chain: Chain) -> Self {
        let mut state = LineageState::empty(lineage);
        state.head = chain.head;
        Self {
            state,
            epochs: Vec::new(),
            last_recorded_at: None,
            chain,
            block: Vec::new(),
            entries_per_checkpoint,
        }
    }

    /// Takes the next item.
    pub(super) fn apply(&mut self, item: Item) -> Result<()> {
        let number = item.head.number;
        let name = layout::entry(self.state.lineage, number);
        let body = decode_body(&name, &item)?;
        let read_back = item.head.read_back;
        self.chain.accept(&name, &item)?;
        self.fold(&item, body);
        self.state.head = number;
        self.state.read_back = self.state.read_back.max(read_back);
        self.last_recorded_at = Some(item.head.recorded_at);
        if (number - 1).is_multiple_of(self.entries_per_checkpoint) {
            self.block.clear();
        }
        self.block.push(item);
        Ok(())
    }

    fn fold(&mut self, item: &Item, body: EntryBody) {
        let (entry, recorded_at) = (item.head.number, item.head.recorded_at);
        let state = &mut self.state;
        match body {
            EntryBody::Opened(opened) => {
                state.log_unit = opened.log_unit.max(1);
                // Whoever opens again means to write again.
                state.retired = None;
                self.epochs.push(EpochSummary {
                    epoch: opened.epoch,
                    entry,
                    opened_at: recorded_at,
                    holder: opened.holder,
                    closed: false,
                });
            }
            EntryBody::Closed(closed) => {
                let last = self.epochs.last_mut();
                if let Some(last) = last.filter(|last| last.epoch == closed.epoch) {
                    last.closed = true;
                }
            }
            EntryBody::LogPiece(piece) => state.pieces.push(PieceSummary {
                entry,
                recorded_at,
                branch: piece.branch,
                start: piece.start,
                end: piece.end,
                settled_before: piece.settled_before,
                settled_after: piece.settled_after,
                last_record: piece.last_record,
                resume_at: piece.resume_at,
                stored_bytes: item.object_len,
                head_digest: item.digest,
                // A slice would keep all that was read with it.
                engine: (piece.engine).map(|engine| Bytes::copy_from_slice(&engine)),
            }),
            EntryBody::BaseBackup(backup) => {
                // What was stored before it is in it, or is older than it.
                state.partial = None;
                state.base_backups.push(BaseBackupSummary {
                    entry,
                    recorded_at,
                    manifest: backup.manifest,
                    branch: backup.branch,
                    start: backup.start,
                    end: backup.end,
                    started_at: backup.started_at,
                    ended_at: backup.ended_at,
                    new_bytes: backup.new_bytes,
                    total_pages: backup.total_pages,
                    rule_set: backup.rule_set,
                });
            }
            EntryBody::PartialBaseBackup(partial) => {
                state.partial = Some(PartialSummary {
                    entry,
                    recorded_at,
                    manifest: partial.manifest,
                    branch: partial.branch,
                    start: partial.start,
                    started_at: partial.started_at,
                    new_bytes: partial.new_bytes,
                    stored_pages: partial.stored_pages,
                    missing_pages: partial.missing_pages,
                    rule_set: partial.rule_set,
                });
            }
            EntryBody::Settled(settled) => state.settled.push(SettledSummary {
                entry,
                recorded_at,
                branch: settled.branch,
                through: settled.through,
                last_record: settled.last_record,
            }),
            EntryBody::Gap(gap) => state.gaps.push(GapSummary {
                entry,
                branch: gap.branch,
                from: gap.from,
                to: gap.to,
                reason: gap.reason,
            }),
            EntryBody::BranchStarted(started) => {
                let summary = BranchSummary {
                    entry,
                    parent: started.parent,
                    at: started.at,
                    history: started.history,
                };
                state.branches.insert(started.branch, summary);
            }
            EntryBody::Retired(retired) => state.retired = Some(retired.reason),
            EntryBody::Names(names) => state.names.push(NamesSummary {
                entry,
                branch: names.branch,
                from: names.from,
                to: names.to,
                taken_at: names.taken_at,
                whole: names.whole,
                stored_bytes: item.object_len,
                head_digest: item.digest,
            }),
            EntryBody::ReadBack => {}
        }
    }

    /// The present holder as far as the ledger tells.
    pub(super) fn presence(&self) -> Option<Presence> {
        self.epochs.last().map(|last| Presence {
            holder: last.holder.clone(),
            epoch: last.epoch,
            last_sign: self.last_recorded_at.unwrap_or(last.opened_at),
            closed: last.closed,
        })
    }
}

/// Reads the body of an entry.
pub(super) fn decode_body(name: &str, item: &Item) -> Result<EntryBody> {
    decode(name, item.body.clone())
}

pub(super) fn decode(name: &str, body: Bytes) -> Result<EntryBody> {
    message::decode(body).map_err(|bad| match bad {
        message::BadBody::Malformed => Error::damaged(name, "its body is malformed"),
        message::BadBody::Unknown => Error::Newer {
            object: name.to_owned(),
            what: "an entry of an unknown kind".to_owned(),
        },
    })
}
