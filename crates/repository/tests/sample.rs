//! A repository that an earlier release wrote (`examples/write_samples.rs`), read for ever by later
//! ones.
//!
//! `expected.json` was not written by this code: `read.py` beside it, a reader made from
//! `docs/formats` alone, wrote it from the sample.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use borealis_base::{Branch, ManualClock, RecordSpan, SystemEntropy, Timestamp};
use borealis_keys::FileKey;
use borealis_repository::store::{Absent, FolderStore};
use borealis_repository::{Environment, Repository};
use serde_json::{Value, json};

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/repository-1")
}

fn environment(absent: Absent) -> Environment {
    let folder = sample().join("repository");
    Environment {
        store: Arc::new(FolderStore::open(&folder, absent).unwrap()),
        clock: Arc::new(ManualClock::new(Timestamp(1_700_000_000_000_000))),
        entropy: Arc::new(SystemEntropy),
    }
}

struct ObjectDigest([u8; 32]);

impl std::fmt::Display for ObjectDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn span(span: RecordSpan) -> Value {
    json!([span.start.0, span.end.0])
}

#[tokio::test]
async fn a_repository_of_format_1_is_still_read_as_the_format_pages_say() {
    // A checkout keeps no file modes.
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("root.key");
    fs::copy(sample().join("root.key"), &key_file).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    let key = FileKey::read(&key_file).unwrap();
    let repository = Repository::open(environment(Absent::Refuse), &key)
        .await
        .unwrap();
    let cluster = repository.cluster("shop").await.unwrap();
    let lineage = repository
        .lineage(cluster.newest_lineage().lineage)
        .await
        .unwrap();
    let state = lineage.load_state().await.unwrap();
    let reader = lineage.reader().await.unwrap();
    let holder = reader.presence().await.unwrap().unwrap().holder;
    let piece = state.pieces.last().unwrap();
    let backup = state.base_backups.last().unwrap();
    let settled = state.settled.last().unwrap();
    let gap = state.gaps.last().unwrap();
    let branch = &state.branches[&Branch(2)];
    let pin = state.pins.last().unwrap();
    let log = reader
        .object(piece.entry)
        .await
        .unwrap()
        .frame(lineage.keys(), 1)
        .unwrap();
    let head_digest = ObjectDigest(reader.head().1).to_string();
    let read = json!({
        "repository": repository.id(),
        "cluster": {"name": cluster.name, "engine": String::from_utf8_lossy(&cluster.engine)},
        "head": state.head,
        "head_digest": head_digest,
        "log_unit": state.log_unit,
        "holder": [holder.host, holder.pid, holder.process_start, holder.control, holder.program],
        "counts": [state.pieces.len(), state.base_backups.len(), state.settled.len(), state.gaps.len()],
        "piece": [piece.entry, piece.recorded_at.0, piece.start.0, piece.end.0,
            piece.settled_before.map(|t| t.0), piece.settled_after.map(|t| t.0),
            piece.last_record.map(span), piece.resume_at.0, piece.stored_bytes],
        "log": [log.len(), log[0]],
        "base_backup": [backup.manifest.lineage.to_string(), backup.manifest.object.to_string(),
            backup.manifest.len, backup.start.0, backup.end.0, backup.started_at.0,
            backup.ended_at.0, backup.new_bytes, backup.total_pages, backup.rule_set],
        "settled": [settled.through.0, span(settled.last_record)],
        "gap": [gap.from.0, gap.to.0, gap.reason],
        "branch": [branch.parent.0, branch.at.0, String::from_utf8_lossy(&branch.history)],
        "retired": state.retired,
        "pins": state.pins.len(),
        "pin": [pin.number, pin.name, span(pin.last_record), pin.time.map(|t| t.0), pin.note, pin.tags],
    });
    let expected = fs::read(sample().join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    assert_eq!(read, expected);
}
