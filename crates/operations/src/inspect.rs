//! Any object of a repository as text, the log index of a log piece included.

use std::path::Path;

use borealis_base::ErrorKind;
use borealis_keys::DataKeys;
use borealis_pg_format::Fork;
use borealis_pg_format::index::{ChangeMap, Event, EventKind, LogIndex};
use borealis_repository::Repository;
use borealis_repository::inspect::{Inspector, Inspectors, entry_content, inspect};
use borealis_repository::log::names::FRAME_NAMES;
use borealis_repository::log::piece::{FRAME_LOG_INDEX, FRAME_TIME_MAP};
use borealis_repository::log::time_map::decode_steps;
use borealis_repository::object::{FrameKind, ObjectHead, ObjectKind, ObjectView};
use borealis_repository::pages::inspect::{ManifestInspector, PackInspector};
use borealis_repository::store::Store;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::error::{Error, FileContext, Result};
use crate::protect::log_frame;

/// Bytes before the content of each frame of a log piece: which piece it belongs to.
const PIECE_HEADER_BYTES: usize = 28;

/// Reads the object that is stored as `name`, or else the local file of that name.
pub async fn read(store: Option<&dyn Store>, name: &str) -> Result<Bytes> {
    // What is no object's name, such as an absolute path, is not asked for.
    let is_object_name = !name
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.'))
        && name
            .bytes()
            .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/'));
    if let Some(store) = store.filter(|_| is_object_name)
        && let Some(stat) = store
            .stat(name)
            .await
            .map_err(borealis_repository::Error::from)?
        && stat.len > 0
    {
        return Ok(store
            .read(name)
            .await
            .map_err(borealis_repository::Error::from)?);
    }
    let path = Path::new(name);
    if path.is_file() {
        return Ok(std::fs::read(path).at("read", path)?.into());
    }
    let place = store.map_or_else(String::new, |store| format!(" in {}, nor", store.url()));
    Err(Error::with_hint(
        ErrorKind::NotFound,
        format!("object `{name}` does not exist{place} as a file"),
        "Name it as it lies below the repository's folder, for example catalog/000000000001.",
    ))
}

/// Shows an object: what is public and, with the repository that holds its key, what is sealed.
pub async fn show(repository: Option<&Repository>, name: &str, bytes: Bytes) -> Result<Value> {
    let head = ObjectHead::parse(name, &bytes)?;
    let keys = match (repository, head.data_key()) {
        (Some(repository), Some(key)) => repository.keys_with(key).await?,
        _ => None,
    };
    let inspectors = Inspectors::default()
        .with(Box::new(PackInspector))
        .with(Box::new(ManifestInspector))
        .with(Box::new(LedgerEntryInspector));
    Ok(inspect(name, bytes, keys.as_deref(), &inspectors)?)
}

/// Shows ledger entries, with the time map and the log index of log pieces.
struct LedgerEntryInspector;

impl Inspector for LedgerEntryInspector {
    fn kind(&self) -> ObjectKind {
        ObjectKind::LedgerEntry
    }

    fn content(
        &self,
        object: &ObjectView,
        keys: Option<&DataKeys>,
    ) -> borealis_repository::Result<Value> {
        let mut content = entry_content(object, keys)?;
        let (Some(keys), Some(fields)) = (keys, content.as_object_mut()) else {
            return Ok(content);
        };
        if let Some(plain) = piece_frame(object, keys, FRAME_TIME_MAP)? {
            fields.insert("time_map".to_owned(), show_time_map(&plain));
        }
        if let Some(plain) = piece_frame(object, keys, FRAME_LOG_INDEX)? {
            let index = log_frame::index(object.head().name(), &plain);
            let shown = index.map_or_else(|error| unreadable(&error), |index| show_index(&index));
            fields.insert("log_index".to_owned(), shown);
        }
        if object.head().frames_of(FRAME_NAMES).next().is_some() {
            let names = names_of(object, keys)?;
            fields.insert("names_read".to_owned(), names);
        }
        Ok(content)
    }
}

/// The content of the first frame of `kind`, without the header that says of which piece it is.
fn piece_frame(
    object: &ObjectView,
    keys: &DataKeys,
    kind: FrameKind,
) -> borealis_repository::Result<Option<Bytes>> {
    let Some(number) = object.head().frames_of(kind).next() else {
        return Ok(None);
    };
    let plain = object.frame(keys, number)?;
    if plain.len() < PIECE_HEADER_BYTES {
        return Err(object
            .head()
            .damaged(format!("frame {number} is cut short")));
    }
    Ok(Some(plain.slice(PIECE_HEADER_BYTES..)))
}

/// The names in an entry, as they are stored.
fn names_of(object: &ObjectView, keys: &DataKeys) -> borealis_repository::Result<Value> {
    let mut all = Vec::new();
    for number in object.head().frames_of(FRAME_NAMES) {
        let plain = object.frame(keys, number)?;
        all.extend_from_slice(plain.get(PIECE_HEADER_BYTES..).unwrap_or_default());
    }
    Ok(serde_json::from_slice(&all).unwrap_or_else(|error| unreadable(&error)))
}

/// What was authenticated and makes no sense is shown as that: whoever inspects an object wants to see
/// the rest of it, too.
fn unreadable(error: &dyn std::fmt::Display) -> Value {
    json!(format!("can't be read: {error}"))
}

fn show_time_map(plain: &[u8]) -> Value {
    let steps = match decode_steps(plain) {
        Ok(steps) => steps,
        Err(error) => return unreadable(&error),
    };
    (steps.iter())
        .map(|step| {
            json!({
                "settled_through": step.settled_through,
                "record_start": step.last_record.start,
                "record_end": step.last_record.end,
            })
        })
        .collect()
}

fn show_index(index: &LogIndex) -> Value {
    json!({
        "rule_set": index.rule_set,
        "start": index.start,
        "end": index.end,
        "records": index.records,
        "change_map": show_changes(&index.change_map),
        "redo_points": index.redo_points.iter().map(|point| json!({
            "record": point.record.start,
            "redo": point.redo,
            "shutdown": point.shutdown,
            "time": point.time,
        })).collect::<Vec<_>>(),
        "parameter_changes": index.parameter_changes.len(),
        "full_page_writes_changes": index.full_page_writes.iter()
            .map(|change| json!({"record": change.record.start, "on": change.on}))
            .collect::<Vec<_>>(),
        "events": index.events.iter().map(show_event).collect::<Vec<_>>(),
        "events_left_out": index.events_left_out,
        "catalogs_changed": index.catalogs_changed,
        "transactions_left_out": index.transactions_left_out,
        "samples_left_out": index.samples_left_out,
        "unparsed": index.unparsed.iter()
            .map(|place| json!({"from": place.from, "reason": format!("{:?}", place.reason)}))
            .collect::<Vec<_>>(),
        "unparsed_left_out": index.unparsed_left_out,
    })
}

const fn fork_name(fork: Fork) -> &'static str {
    match fork {
        Fork::Main => "main",
        Fork::FreeSpaceMap => "fsm",
        Fork::VisibilityMap => "vm",
        Fork::Init => "init",
    }
}

fn show_changes(map: &ChangeMap) -> Value {
    let forks: Vec<Value> = (map.sorted_forks().into_iter())
        .map(|(key, changes)| {
            json!({
                "relation": key.relation.to_string(),
                "fork": fork_name(key.fork),
                "blocks": changes.blocks.len(),
                "first": changes.blocks.min(),
                "last": changes.blocks.max(),
                "limit": changes.limit,
            })
        })
        .collect();
    json!({
        "everything": map.is_everything(),
        "widened_databases": map.widened_databases(),
        "widened_because": map.reasons().iter()
            .map(|(reason, count)| json!({"reason": format!("{reason:?}"), "times": count}))
            .collect::<Vec<_>>(),
        "resets": map.resets().iter()
            .map(|files| format!("{}/{}", files.tablespace, files.database))
            .collect::<Vec<_>>(),
        "forks": forks,
    })
}

fn show_event(event: &Event) -> Value {
    let what = match &event.kind {
        EventKind::RestorePoint { name, time } => {
            json!({"restore_point": {"name": String::from_utf8_lossy(name), "time": time}})
        }
        EventKind::TimelineSwitch {
            timeline,
            previous,
            time,
        } => json!({"timeline_switch": {"timeline": timeline, "previous": previous, "time": time}}),
        EventKind::RelationsDropped {
            xid,
            time,
            relations,
            count,
            created,
            created_complete,
        } => json!({"relations_dropped": {
            "xid": xid, "time": time, "count": count,
            "relations": relations.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "created": created.iter().map(|made| json!({
                "relation": made.relation.to_string(), "filled": made.filled,
            })).collect::<Vec<_>>(),
            "created_complete": created_complete,
        }}),
        EventKind::DropCommitted {
            xid,
            time,
            before,
            databases,
            tablespaces,
        } => json!({"drop_committed": {
            "xid": xid, "time": time, "before": before,
            "databases": databases, "tablespaces": tablespaces,
        }}),
        EventKind::RelationTruncated {
            xid,
            relation,
            blocks,
        } => json!({"relation_truncated": {
            "xid": xid, "relation": relation.to_string(), "blocks": blocks,
        }}),
        EventKind::DatabaseCreated { files, source } => json!({"database_created": {
            "tablespace": files.tablespace, "database": files.database,
            "copied_from": source.map(|source| format!("{}/{}", source.tablespace, source.database)),
        }}),
        EventKind::DatabaseDropped {
            database,
            tablespaces,
        } => json!({"database_dropped": {"database": database, "tablespaces": tablespaces}}),
        EventKind::TablespaceCreated { tablespace, path } => json!({"tablespace_created": {
            "tablespace": tablespace, "path": String::from_utf8_lossy(path),
        }}),
        EventKind::TablespaceDropped { tablespace } => {
            json!({"tablespace_dropped": {"tablespace": tablespace}})
        }
        EventKind::RelationMapChanged { files } => json!({"relation_map_changed": {
            "tablespace": files.tablespace, "database": files.database,
        }}),
        EventKind::RowsChanged {
            xid,
            time,
            relations,
        } => json!({"rows_changed": {
            "xid": xid, "time": time,
            "relations": relations.iter().map(|rows| json!({
                "relation": rows.relation.to_string(), "inserted": rows.inserted,
                "updated": rows.updated, "deleted": rows.deleted,
            })).collect::<Vec<_>>(),
        }}),
        EventKind::ClockStep { from, to } => json!({"clock_step": {"from": from, "to": to}}),
    };
    json!({"record_start": event.record.start, "record_end": event.record.end, "what": what})
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{Position, RecordSpan, Timestamp};
    use borealis_pg_format::Relation;
    use borealis_pg_format::index::ForkKey;

    #[test]
    fn a_log_index_tells_its_blocks_and_events() {
        let mut index = LogIndex::default();
        let relation = Relation {
            tablespace: 1663,
            database: 5,
            number: 16_384,
        };
        let key = ForkKey {
            relation,
            fork: Fork::Main,
        };
        for block in [3, 9, 4] {
            index.change_map.mark(key, block);
        }
        index.events.push(Event {
            record: RecordSpan {
                start: Position(0x100),
                end: Position(0x168),
            },
            kind: EventKind::RestorePoint {
                name: b"before-upgrade".to_vec(),
                time: Timestamp(1_000_000),
            },
        });
        let shown = show_index(&index);
        assert_eq!(
            shown["change_map"]["forks"],
            json!([{
                "relation": "1663/5/16384", "fork": "main", "blocks": 3, "first": 3, "last": 9,
                "limit": null,
            }])
        );
        let event = &shown["events"][0];
        assert_eq!(event["record_end"], "0/168");
        assert_eq!(
            event["what"]["restore_point"],
            json!({"name": "before-upgrade", "time": "1970-01-01T00:00:01.000000Z"})
        );
    }

    #[tokio::test]
    async fn what_is_neither_an_object_nor_a_file_is_not_found() {
        for name in ["", "no/such/object", "/no/such/file", "../up", "Upper"] {
            let error = read(None, name).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{name:?}");
        }
    }
}
