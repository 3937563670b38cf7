//! Any object as text: what is public without a key, and what is sealed with one.

use borealis_keys::DataKeys;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::catalog::CatalogBody;
use crate::numbered::EntryHead;
use crate::object::{FORMAT_VERSION, ObjectKind, ObjectView};
use crate::{Result, drills, keyring, ledger, open, pins, scrubs};

/// Bytes of an opaque field that are shown.
const SHOWN_BYTES_MAX: usize = 32;

/// Shows the content of one kind of object. `keys` are absent where only what is public can be shown.
pub trait Inspector: Send + Sync {
    /// The kind it shows.
    fn kind(&self) -> ObjectKind;

    /// The content, for people and programs.
    fn content(&self, object: &ObjectView, keys: Option<&DataKeys>) -> Result<Value>;
}

/// The inspectors there are. Packs and manifests bring their own.
#[derive(Default)]
pub struct Inspectors(Vec<Box<dyn Inspector>>);

impl Inspectors {
    /// Adds one; it goes before those that were added earlier.
    #[must_use]
    pub fn with(mut self, inspector: Box<dyn Inspector>) -> Self {
        self.0.insert(0, inspector);
        self
    }

    fn find(&self, kind: ObjectKind) -> Option<&dyn Inspector> {
        self.0
            .iter()
            .find(|inspector| inspector.kind() == kind)
            .map(AsRef::as_ref)
    }
}

/// Shows an object. With keys every frame is authenticated, and a wrong one is an error; without,
/// only what is public is shown.
pub fn inspect(
    name: &str,
    bytes: Bytes,
    keys: Option<&DataKeys>,
    inspectors: &Inspectors,
) -> Result<Value> {
    let object = ObjectView::parse(name, bytes)?;
    let head = object.head();
    let mut frames = Vec::new();
    for (number, frame) in (0_u32..).zip(head.frames()) {
        if let Some(keys) = keys.filter(|_| head.data_key().is_some()) {
            object.frame(keys, number)?;
        }
        frames.push(json!({
            "number": number,
            "kind": frame.kind,
            "offset": frame.offset,
            "stored_len": frame.stored_len,
            "plain_len": frame.plain_len,
        }));
    }
    let content = match inspectors.find(head.kind()) {
        Some(inspector) => inspector.content(&object, keys)?,
        None => own_content(&object, keys)?,
    };
    Ok(json!({
        "name": name,
        "kind": head.kind().name(),
        "format_version": FORMAT_VERSION,
        "object_id": head.id().to_string(),
        "length": object.bytes().len(),
        "head_digest": hex(&head.digest()),
        "data_key": head.data_key().map(|key| key.to_string()),
        "authenticated": keys.is_some() && head.data_key().is_some(),
        "frames": frames,
        "content": content,
    }))
}

fn own_content(object: &ObjectView, keys: Option<&DataKeys>) -> Result<Value> {
    match object.head().kind() {
        ObjectKind::Descriptor => open::inspect_descriptor(object),
        ObjectKind::KeyRing => keyring::inspect(object),
        ObjectKind::Epoch => ledger::inspect_epoch(object, keys),
        ObjectKind::Floor => ledger::inspect_floor(object),
        ObjectKind::Checkpoint => ledger::inspect_checkpoint(object),
        ObjectKind::Baseline => ledger::inspect_baseline(object),
        ObjectKind::LedgerEntry
        | ObjectKind::MaintenanceEntry
        | ObjectKind::CatalogEntry
        | ObjectKind::Pin
        | ObjectKind::Drill
        | ObjectKind::Scrub => entry_content(object, keys),
        ObjectKind::Pack | ObjectKind::Manifest | ObjectKind::Log => Ok(Value::Null),
    }
}

/// An entry's head and, with keys, what it says. What other frames it has is not shown.
pub fn entry_content(object: &ObjectView, keys: Option<&DataKeys>) -> Result<Value> {
    let head = EntryHead::decode(object.head().clear())
        .ok_or_else(|| object.head().damaged("its entry head is malformed"))?;
    let mut content = Map::from_iter([
        (
            "owner".to_owned(),
            json!(borealis_base::ObjectId(head.owner)),
        ),
        ("number".to_owned(), json!(head.number)),
        ("epoch".to_owned(), json!(head.epoch)),
        ("write_id".to_owned(), json!(head.write_id)),
        ("previous".to_owned(), json!(hex(&head.previous))),
        ("recorded_at".to_owned(), json!(head.recorded_at)),
    ]);
    if let Some(keys) = keys {
        let body = object.frame(keys, 0)?;
        let name = object.head().name();
        let body = match object.head().kind() {
            ObjectKind::CatalogEntry => show_catalog(&CatalogBody::decode(name, body)?),
            ObjectKind::Pin => pins::inspect_body(name, body)?,
            ObjectKind::Drill => drills::inspect_body(name, body)?,
            ObjectKind::Scrub => scrubs::inspect_body(name, body)?,
            ObjectKind::MaintenanceEntry => ledger::inspect_maintenance(name, body)?,
            _ => ledger::inspect_body(name, body)?,
        };
        content.insert("body".to_owned(), body);
    }
    Ok(Value::Object(content))
}

fn show_catalog(body: &CatalogBody) -> Value {
    match body {
        CatalogBody::ClusterCreated {
            name,
            lineage,
            engine,
        } => {
            json!({"cluster_created": {"name": name, "lineage": lineage, "engine": opaque(engine)}})
        }
        CatalogBody::LineageAdded {
            cluster,
            lineage,
            parent,
            engine,
        } => json!({"lineage_added": {
            "cluster": cluster,
            "lineage": lineage,
            "parent": parent.map(|parent| {
                json!({"lineage": parent.lineage, "branch": parent.branch, "at": parent.at})
            }),
            "engine": opaque(engine),
        }}),
        CatalogBody::ClusterRetired { cluster } => json!({"cluster_retired": {"cluster": cluster}}),
        CatalogBody::RetentionSet { cluster, days } => {
            json!({"retention_set": {"cluster": cluster, "days": days}})
        }
        CatalogBody::HoldCreated {
            cluster,
            name,
            reason,
            range,
            until,
        } => json!({"hold_created": {
            "cluster": cluster, "name": name, "reason": reason, "range": range, "until": until,
        }}),
        CatalogBody::HoldDeleted {
            cluster,
            name,
            number,
        } => json!({"hold_deleted": {"cluster": cluster, "name": name, "number": number}}),
        CatalogBody::ObjectivesSet {
            cluster,
            objectives,
        } => json!({"objectives_set": {"cluster": cluster, "objectives": objectives}}),
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}

/// Opaque bytes: how many, and the first of them.
pub(crate) fn opaque(bytes: &[u8]) -> Value {
    json!({"len": bytes.len(), "begins": hex(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)])})
}
