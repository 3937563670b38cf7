//! The ledger's objects, for people.

use std::ops::RangeInclusive;

use borealis_base::{LineageId, RecordSpan, Timestamp, WriteId};
use borealis_keys::DataKeys;
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use super::EntryBody;
use super::fold::decode;
use super::holder::Holder;
use super::maintenance::{self, MaintenanceBody};
use super::message::{
    self, BaselineMessage, CheckpointMessage, EpochMessage, FloorMessage, HolderMessage,
};
use crate::inspect::{hex, opaque};
use crate::object::ObjectView;
use crate::plan::{ObjectRef, Selection};
use crate::{Error, Result};

fn clear<M: Message + Default>(object: &ObjectView) -> Result<M> {
    M::decode(object.head().clear().clone()).map_err(|_| malformed(object))
}

fn malformed(object: &ObjectView) -> Error {
    object.head().damaged("its content is malformed")
}

fn lineage(object: &ObjectView, bytes: &[u8]) -> Result<LineageId> {
    LineageId::from_slice(bytes).ok_or_else(|| malformed(object))
}

fn show_holder(holder: &Holder) -> Value {
    json!({
        "host": holder.host,
        "pid": holder.pid,
        "process_start": holder.process_start,
        "control": holder.control,
        "program": holder.program,
        "single_writer": holder.single_writer,
    })
}

pub(crate) fn inspect_epoch(object: &ObjectView, keys: Option<&DataKeys>) -> Result<Value> {
    let epoch: EpochMessage = clear(object)?;
    let holder = match keys {
        None => Value::Null,
        Some(keys) => {
            let frame = object.frame(keys, 0)?;
            let holder = HolderMessage::decode(frame).map_err(|_| malformed(object))?;
            show_holder(&message::read_holder(holder))
        }
    };
    Ok(json!({
        "lineage": lineage(object, &epoch.lineage)?,
        "number": epoch.number,
        "write_id": WriteId::from_slice(&epoch.write_id),
        "taken_at": Timestamp(epoch.taken_at),
        "holder": holder,
    }))
}

pub(crate) fn inspect_floor(object: &ObjectView) -> Result<Value> {
    let floor: FloorMessage = clear(object)?;
    Ok(json!({
        "lineage": lineage(object, &floor.lineage)?,
        "number": floor.number,
        "lowest_entry_kept": floor.lowest,
        "lowest_maintenance_entry_kept": floor.maintenance_lowest,
        "baseline": floor.baseline.as_ref().and_then(message::read_ref).map(|b| object_ref(&b)),
    }))
}

pub(crate) fn inspect_baseline(object: &ObjectView) -> Result<Value> {
    let baseline: BaselineMessage = clear(object)?;
    Ok(json!({
        "lineage": lineage(object, &baseline.lineage)?,
        "entries_below": baseline.lowest,
        "maintenance_entries_below": baseline.maintenance_lowest,
    }))
}

pub(crate) fn inspect_maintenance(name: &str, body: Bytes) -> Result<Value> {
    Ok(match maintenance::decode(name, body)? {
        MaintenanceBody::Opened(b) => json!({"opened": {
            "epoch": b.epoch,
            "holder": show_holder(&b.holder),
        }}),
        MaintenanceBody::Closed(b) => json!({"closed": {"epoch": b.epoch}}),
        MaintenanceBody::LogMerged(b) => json!({"log_merged": {
            "object": object_ref(&b.object),
            "branch": b.branch,
            "start": b.start,
            "end": b.end,
            "settled_before": b.settled_before,
            "settled_after": b.settled_after,
            "last_record": b.last_record.map(span),
            "resume_at": b.resume_at,
            "first_entry": b.first_entry,
            "last_entry": b.last_entry,
            "last_piece": b.last_piece,
            "recorded_at": b.recorded_at,
            "parts": b.parts,
        }}),
        MaintenanceBody::FloorPlanned(b) => json!({"floor_planned": {
            "number": b.number,
            "lowest_entry_kept": b.lowest,
            "lowest_maintenance_entry_kept": b.maintenance_lowest,
            "baseline": object_ref(&b.baseline),
        }}),
        MaintenanceBody::Removed(b) => json!({"removed": {"floor": b.floor}}),
        MaintenanceBody::Expired(b) => json!({"expired": {
            "selection": selection(&b.selection),
            "forgotten": (b.forgotten.iter())
                .map(|it| json!({"entry": it.entry, "through": it.through}))
                .collect::<Vec<_>>(),
        }}),
        MaintenanceBody::Dated(b) => json!({"dated": {"through": b.through, "at": b.at}}),
        MaintenanceBody::Kept(b) => json!({"kept": {
            "mark": b.mark,
            "kept": selection(&b.kept),
        }}),
        MaintenanceBody::Checked(b) => json!({"checked": {
            "mark": b.mark,
            "kept": selection(&b.kept),
        }}),
        MaintenanceBody::Deleted(b) => json!({"deleted": {"mark": b.mark}}),
    })
}

pub(crate) fn inspect_checkpoint(object: &ObjectView) -> Result<Value> {
    let checkpoint: CheckpointMessage = clear(object)?;
    Ok(json!({
        "lineage": lineage(object, &checkpoint.lineage)?,
        "number": checkpoint.number,
        "last_entry": checkpoint.last,
        "last_digest": hex(&checkpoint.last_digest),
        "last_epoch": checkpoint.last_epoch,
    }))
}

fn selection(selection: &Selection) -> Value {
    let runs = |runs: &[RangeInclusive<u64>]| -> Vec<Value> {
        runs.iter()
            .map(|run| json!([run.start(), run.end()]))
            .collect()
    };
    json!({
        "pieces": runs(&selection.pieces),
        "settled": runs(&selection.settled),
        "names": runs(&selection.names),
        "base_backups": selection.base_backups,
    })
}

fn span(span: RecordSpan) -> Value {
    json!({"start": span.start, "end": span.end})
}

fn object_ref(object: &ObjectRef) -> Value {
    json!({
        "lineage": object.lineage,
        "object": object.object,
        "len": object.len,
        "head_digest": hex(&object.head_digest),
    })
}

pub(crate) fn inspect_body(name: &str, body: Bytes) -> Result<Value> {
    Ok(match decode(name, body)? {
        EntryBody::Opened(b) => json!({"opened": {
            "epoch": b.epoch,
            "log_unit": b.log_unit,
            "holder": show_holder(&b.holder),
        }}),
        EntryBody::Closed(b) => json!({"closed": {"epoch": b.epoch}}),
        EntryBody::LogPiece(b) => json!({"log_piece": {
            "branch": b.branch,
            "start": b.start,
            "end": b.end,
            "settled_before": b.settled_before,
            "settled_after": b.settled_after,
            "last_record": b.last_record.map(span),
            "resume_at": b.resume_at,
            "engine": b.engine.as_ref().map(|engine| opaque(engine)),
        }}),
        EntryBody::BaseBackup(b) => json!({"base_backup": {
            "manifest": object_ref(&b.manifest),
            "branch": b.branch,
            "start": b.start,
            "end": b.end,
            "started_at": b.started_at,
            "ended_at": b.ended_at,
            "new_bytes": b.new_bytes,
            "total_pages": b.total_pages,
            "rule_set": b.rule_set,
            "engine": opaque(&b.engine),
        }}),
        EntryBody::Settled(b) => json!({"settled": {
            "branch": b.branch,
            "through": b.through,
            "last_record": span(b.last_record),
        }}),
        EntryBody::Gap(b) => json!({"gap": {
            "branch": b.branch,
            "from": b.from,
            "to": b.to,
            "reason": b.reason,
        }}),
        EntryBody::BranchStarted(b) => json!({"branch_started": {
            "branch": b.branch,
            "parent": b.parent,
            "at": b.at,
            "history": opaque(&b.history),
        }}),
        EntryBody::ReadBack => json!({"read_back": {}}),
        EntryBody::Names(b) => json!({"names": {
            "branch": b.branch,
            "from": b.from,
            "to": b.to,
            "taken_at": b.taken_at,
            "whole": b.whole,
        }}),
        EntryBody::Retired(b) => json!({"retired": {"reason": b.reason}}),
        EntryBody::PartialBaseBackup(b) => json!({"partial_base_backup": {
            "manifest": object_ref(&b.manifest),
            "branch": b.branch,
            "start": b.start,
            "started_at": b.started_at,
            "new_bytes": b.new_bytes,
            "stored_pages": b.stored_pages,
            "missing_pages": b.missing_pages,
            "rule_set": b.rule_set,
        }}),
    })
}
