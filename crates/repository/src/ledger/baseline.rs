//! The baseline of a floor: what the entries below it add up to.
//!
//! It is a function of these entries alone, so it does not matter who writes it. A row of it says of one
//! entry what the state keeps, in the words of the entry's own body.

use std::time::Duration;

use borealis_base::{ObjectId, Timestamp};
use bytes::Bytes;
use prost::Message;

use super::expiry::{ForgottenMessage, MarkMessage, Marks};
use super::fold::{EpochSummary, Fold, Half};
use super::message::{
    self, BaselineMessage, EpochRowMessage, HalfMessage, MergedMessage, RootMessage, RowMessage,
    RowsMessage,
};
use super::summary::{self, Stored};
use super::{Context, EntryBody, Role};
use crate::numbered::Chain;
use crate::object::{
    Compression, ObjectBuilder, ObjectKind, ObjectView, PreparedFrame, SealedObject, fetch_with,
};
use crate::pages::fetch::check_identity;
use crate::plan::{Merged, ObjectRef, PieceSummary, Run, Selected, SettledSummary};
use crate::{Error, Result, layout};

/// Bytes of rows at which another frame begins.
const ROWS_FRAME_BYTES: usize = 1 << 20;
const FRAME_ROOT: u16 = 1;
const FRAME_ROWS: u16 = 2;
const COMPRESSION: Compression = Compression::Zstd(3);

impl Context {
    /// Lays out and seals what `fold` says.
    pub(super) fn seal_baseline(&self, fold: &Fold) -> SealedObject {
        let id = ObjectId::random(self.entropy.as_ref());
        let mut builder = ObjectBuilder::new(ObjectKind::Baseline, id, Some(self.keys.current()));
        let clear = BaselineMessage {
            lineage: Bytes::copy_from_slice(&self.lineage.0),
            lowest: fold.ledger.chain.head + 1,
            maintenance_lowest: fold.maintenance.chain.head + 1,
        };
        builder.clear(clear.encode_to_vec());
        for frame in frames(fold) {
            builder.push(frame);
        }
        builder.seal()
    }

    /// Reads a baseline.
    pub(super) async fn read_baseline(&self, object: &ObjectRef) -> Result<Fold> {
        let name = layout::baseline(object.lineage, object.object);
        let view = fetch_with(self.store.as_ref(), &self.keys, &name, ObjectKind::Baseline)
            .await
            .map_err(|error| error.named_by("the floor"))?;
        check_identity(view.head(), object)?;
        self.open_baseline(&view)
    }

    pub(super) fn open_baseline(&self, view: &ObjectView) -> Result<Fold> {
        let damaged = |what: &str| view.head().damaged(what);
        let malformed = || damaged("its content is malformed");
        let clear =
            BaselineMessage::decode(view.head().clear().clone()).map_err(|_| malformed())?;
        let root = RootMessage::decode(view.frame(&self.keys, 0)?).map_err(|_| malformed())?;
        let mut fold = Fold::new(self.lineage, self.shape);
        read_root(&mut fold, &root).ok_or_else(malformed)?;
        let place = (fold.ledger.chain.head + 1, fold.maintenance.chain.head + 1);
        if clear.lineage != self.lineage.0.as_slice()
            || (clear.lowest, clear.maintenance_lowest) != place
        {
            return Err(damaged("it belongs under another name"));
        }
        for number in view.head().frames_of(FRAME_ROWS) {
            let rows = view.frame(&self.keys, number)?;
            let rows = RowsMessage::decode(rows).map_err(|_| malformed())?;
            for row in rows.rows {
                read_row(view.head().name(), &mut fold, row)?;
            }
        }
        Ok(fold)
    }
}

fn frames(fold: &Fold) -> Vec<PreparedFrame> {
    let root = RootMessage {
        ledger: Some(half(&fold.ledger)),
        maintenance: Some(half(&fold.maintenance)),
        log_unit: fold.state.log_unit,
        read_back: fold.state.read_back,
        retired: fold.state.retired.clone(),
        run: fold.run.as_ref().map(row_of_settled),
        removed: fold.removed,
        forgotten: (fold.state.forgotten.iter())
            .map(ForgottenMessage::of)
            .collect(),
        marks: fold.marks.0.iter().map(MarkMessage::of).collect(),
    };
    let prepare = |kind, plain: Vec<u8>| PreparedFrame::new(kind, COMPRESSION, &plain);
    let mut frames = vec![prepare(FRAME_ROOT, root.encode_to_vec())];
    let mut rows = RowsMessage { rows: Vec::new() };
    let mut bytes = 0;
    for row in all_rows(fold) {
        bytes += row.encoded_len();
        rows.rows.push(row);
        if bytes >= ROWS_FRAME_BYTES {
            frames.push(prepare(FRAME_ROWS, rows.encode_to_vec()));
            rows.rows.clear();
            bytes = 0;
        }
    }
    if !rows.rows.is_empty() {
        frames.push(prepare(FRAME_ROWS, rows.encode_to_vec()));
    }
    frames
}

fn all_rows(fold: &Fold) -> impl Iterator<Item = RowMessage> {
    let state = &fold.state;
    let bases = (state.base_backups.iter().map(summary::of_base_backup))
        .chain(state.partial.iter().map(summary::of_partial));
    let others = (state.gaps.iter().map(summary::of_gap))
        .chain(state.names.iter().map(summary::of_names))
        .chain((state.branches.iter()).map(|(branch, s)| summary::of_branch(*branch, s)));
    let marked = fold.marks.0.iter().flat_map(|mark| {
        selected_rows(&mark.selected).map(|row| RowMessage {
            mark: mark.number,
            ..row
        })
    });
    (state.pieces.iter().map(row_of_piece))
        .chain(bases.map(row))
        .chain(state.settled.iter().map(row_of_settled))
        .chain(others.map(row))
        .chain(marked)
}

fn selected_rows(selected: &Selected) -> impl Iterator<Item = RowMessage> {
    let names = selected.names.iter().map(summary::of_names);
    (selected.pieces.iter().map(row_of_piece))
        .chain((selected.base_backups.iter()).map(|it| row(summary::of_base_backup(it))))
        .chain(selected.settled.iter().map(row_of_settled))
        .chain(names.map(row))
}

fn row_of_piece(piece: &PieceSummary) -> RowMessage {
    RowMessage {
        merged: piece.merged.as_ref().map(|merged| MergedMessage {
            object: Bytes::copy_from_slice(&merged.object.0),
            first_entry: merged.first_entry,
            last_entry: merged.last_entry,
            parts: merged.parts,
        }),
        ..row(summary::of_piece(piece))
    }
}

fn row((stored, body): (Stored, EntryBody)) -> RowMessage {
    RowMessage {
        entry: stored.entry,
        recorded_at: stored.recorded_at.0,
        body: message::encode(&body),
        stored_len: stored.len,
        head_digest: if stored.digest == [0; 32] {
            Bytes::new()
        } else {
            Bytes::copy_from_slice(&stored.digest)
        },
        merged: None,
        mark: 0,
        run_since: None,
        run_lasted: 0,
    }
}

fn row_of_settled(settled: &SettledSummary) -> RowMessage {
    let run = Some(settled.run).filter(|run| *run != Run::at(settled.recorded_at));
    let micros = |lasted: Duration| u64::try_from(lasted.as_micros()).unwrap_or(u64::MAX);
    RowMessage {
        run_since: run.map(|run| run.since.0),
        run_lasted: run.map_or(0, |run| micros(run.lasted)),
        ..row(summary::of_settled(settled))
    }
}

fn half(half: &Half) -> HalfMessage {
    HalfMessage {
        head: half.chain.head,
        digest: Bytes::copy_from_slice(&half.chain.digest),
        epoch: half.chain.epoch,
        last_recorded_at: half.last_recorded_at.map(|time| time.0),
        // Whoever wrote before the last one is history.
        last_epoch: half.epochs.last().map(|last| EpochRowMessage {
            epoch: last.epoch,
            entry: last.entry,
            opened_at: last.opened_at.0,
            holder: Some(message::holder(&last.holder)),
            closed: last.closed,
        }),
    }
}

fn read_root(fold: &mut Fold, root: &RootMessage) -> Option<()> {
    fold.ledger = read_half(&fold.ledger, root.ledger.as_ref()?)?;
    fold.maintenance = read_half(&fold.maintenance, root.maintenance.as_ref()?)?;
    let state = &mut fold.state;
    state.head = fold.ledger.chain.head;
    state.log_unit = root.log_unit;
    state.read_back = root.read_back;
    state.retired.clone_from(&root.retired);
    fold.removed = root.removed;
    state.forgotten = root.forgotten.iter().map(ForgottenMessage::read).collect();
    fold.marks = Marks(root.marks.iter().map(MarkMessage::read).collect());
    fold.run = match &root.run {
        None => None,
        Some(row) => Some(read_run(row)?),
    };
    Some(())
}

fn read_run(row: &RowMessage) -> Option<SettledSummary> {
    match message::decode(row.body.clone()) {
        Ok(EntryBody::Settled(settled)) => Some(SettledSummary {
            run: read_settled_run(row),
            ..summary::settled(read_stored(row)?, &settled)
        }),
        _ => None,
    }
}

/// How long a record had been settled again and again.
fn read_settled_run(row: &RowMessage) -> Run {
    Run {
        since: Timestamp(row.run_since.unwrap_or(row.recorded_at)),
        lasted: Duration::from_micros(row.run_lasted),
    }
}

fn read_half(empty: &Half, message: &HalfMessage) -> Option<Half> {
    let chain = Chain {
        owner: empty.chain.owner,
        head: message.head,
        digest: message.digest.as_ref().try_into().ok()?,
        epoch: message.epoch,
    };
    let epochs = match &message.last_epoch {
        None => Vec::new(),
        Some(last) => vec![EpochSummary {
            epoch: last.epoch,
            entry: last.entry,
            opened_at: Timestamp(last.opened_at),
            holder: message::read_holder(last.holder.clone()?),
            closed: last.closed,
        }],
    };
    Some(Half {
        chain,
        epochs,
        last_recorded_at: message.last_recorded_at.map(Timestamp),
        ..empty.clone()
    })
}

fn read_stored(row: &RowMessage) -> Option<Stored> {
    Some(Stored {
        entry: row.entry,
        recorded_at: Timestamp(row.recorded_at),
        len: row.stored_len,
        digest: match row.head_digest.as_ref() {
            [] => [0; 32],
            digest => digest.try_into().ok()?,
        },
    })
}

fn read_merged(message: &MergedMessage) -> Option<Merged> {
    Some(Merged {
        object: ObjectId::from_slice(&message.object)?,
        first_entry: message.first_entry,
        last_entry: message.last_entry,
        parts: message.parts,
    })
}

fn read_row(name: &str, fold: &mut Fold, row: RowMessage) -> Result<()> {
    let malformed = || Error::damaged(name, "a row of it is malformed");
    let stored = read_stored(&row).ok_or_else(malformed)?;
    let merged = row
        .merged
        .as_ref()
        .map(|m| read_merged(m).ok_or_else(malformed));
    let merged = merged.transpose()?;
    let run = read_settled_run(&row);
    let body = message::decode(row.body).map_err(|bad| bad.error(name))?;
    let settled = |settled| SettledSummary {
        run,
        ..summary::settled(stored, &settled)
    };
    if row.mark > 0 {
        let mut marks = fold.marks.0.iter_mut();
        let mark = marks.find(|mark| mark.number == row.mark);
        let selected = &mut mark.ok_or_else(malformed)?.selected;
        match body {
            EntryBody::LogPiece(piece) => {
                (selected.pieces).push(summary::piece(stored, piece, merged));
            }
            EntryBody::BaseBackup(it) => {
                (selected.base_backups).push(summary::base_backup(stored, &it));
            }
            EntryBody::Settled(it) => selected.settled.push(settled(it)),
            EntryBody::Names(names) => selected.names.push(summary::names(stored, &names)),
            _ => return Err(malformed()),
        }
        return Ok(());
    }
    let state = &mut fold.state;
    match body {
        EntryBody::LogPiece(piece) => state.pieces.push(summary::piece(stored, piece, merged)),
        EntryBody::BaseBackup(b) => state.base_backups.push(summary::base_backup(stored, &b)),
        EntryBody::PartialBaseBackup(b) => state.partial = Some(summary::partial(stored, &b)),
        EntryBody::Settled(it) => state.settled.push(settled(it)),
        EntryBody::Gap(gap) => state.gaps.push(summary::gap(stored, gap)),
        EntryBody::Names(names) => state.names.push(summary::names(stored, &names)),
        EntryBody::BranchStarted(started) => {
            let branch = started.branch;
            state
                .branches
                .insert(branch, summary::branch(stored, started));
        }
        EntryBody::Opened(_)
        | EntryBody::Closed(_)
        | EntryBody::Retired(_)
        | EntryBody::ReadBack => return Err(malformed()),
    }
    Ok(())
}

impl Role {
    /// The name of entry `n`.
    pub(super) fn entry(self, lineage: borealis_base::LineageId, n: u64) -> String {
        match self {
            Self::Ledger => layout::entry(lineage, n),
            Self::Maintenance => layout::maintenance_entry(lineage, n),
        }
    }

    /// The name of epoch `n`.
    pub(super) fn epoch(self, lineage: borealis_base::LineageId, n: u64) -> String {
        match self {
            Self::Ledger => layout::epoch(lineage, n),
            Self::Maintenance => layout::maintenance_epoch(lineage, n),
        }
    }
}
