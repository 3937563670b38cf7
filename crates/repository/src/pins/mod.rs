//! Pins: positions of a lineage that are kept restorable under a name. People call them snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use borealis_base::{Branch, Clock, Entropy, Position, RecordSpan, Timestamp};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use crate::numbered::{Item, Logged, NumberedLog, Track};
use crate::plan::PinSummary;
use crate::{Error, Result};

/// Longest name of a pin.
pub const PIN_NAME_BYTES_MAX: usize = 255;
/// Longest note.
pub const PIN_NOTE_BYTES_MAX: usize = 4_096;
/// Most tags of one pin.
pub const PIN_TAGS_MAX: usize = 50;

/// A pin to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPin {
    /// Its name, unique among the pins that stand.
    pub name: String,
    /// Branch of `last_record`.
    pub branch: Branch,
    /// The last record a restore to it replays.
    pub last_record: RecordSpan,
    /// The moment it stands for, by the source's clock.
    pub time: Option<Timestamp>,
    /// Free text.
    pub note: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PinMessage {
    #[prost(oneof = "PinKind", tags = "1, 2")]
    kind: Option<PinKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum PinKind {
    #[prost(message, tag = "1")]
    Created(CreatedMessage),
    #[prost(message, tag = "2")]
    Deleted(DeletedMessage),
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreatedMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    branch: u32,
    #[prost(uint64, tag = "3")]
    record_start: u64,
    #[prost(uint64, tag = "4")]
    record_end: u64,
    #[prost(sint64, optional, tag = "5")]
    time: Option<i64>,
    #[prost(string, tag = "6")]
    note: String,
    #[prost(btree_map = "string, string", tag = "7")]
    tags: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeletedMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    number: u64,
}

fn encode(kind: PinKind) -> Bytes {
    PinMessage { kind: Some(kind) }.encode_to_vec().into()
}

#[derive(Debug, Default)]
struct PinState {
    standing: Vec<PinSummary>,
}

impl Logged for PinState {
    fn apply(&mut self, item: &Item) -> Result<()> {
        let number = item.head.number;
        let name = format!(
            "pin {number} of lineage {}",
            borealis_base::LineageId(item.head.owner)
        );
        let message = PinMessage::decode(item.body.clone())
            .map_err(|_| Error::damaged(&name, "its body is malformed"))?;
        match message.kind {
            Some(PinKind::Created(m)) => self.standing.push(PinSummary {
                number,
                name: m.name,
                branch: Branch(m.branch),
                last_record: RecordSpan {
                    start: Position(m.record_start),
                    end: Position(m.record_end),
                },
                time: m.time.map(Timestamp),
                note: m.note,
                tags: m.tags,
            }),
            Some(PinKind::Deleted(m)) => self.standing.retain(|pin| pin.number != m.number),
            None => {
                return Err(Error::Newer {
                    object: name,
                    what: "an entry of an unknown kind".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// The body of an entry of the log of pins, for people.
pub(crate) fn inspect_body(name: &str, body: Bytes) -> Result<Value> {
    let message =
        PinMessage::decode(body).map_err(|_| Error::damaged(name, "its body is malformed"))?;
    Ok(match message.kind {
        Some(PinKind::Created(m)) => json!({"created": {
            "name": m.name,
            "branch": m.branch,
            "last_record": {"start": Position(m.record_start), "end": Position(m.record_end)},
            "time": m.time.map(Timestamp),
            "note": m.note,
            "tags": m.tags,
        }}),
        Some(PinKind::Deleted(m)) => json!({"deleted": {"name": m.name, "number": m.number}}),
        None => Value::Null,
    })
}

/// The pins of a lineage. Many processes may make and delete pins at the same time.
pub struct Pins(NumberedLog<PinState>);

impl Pins {
    /// Reads the log of pins.
    pub(crate) async fn load(
        track: Track,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        NumberedLog::load(track, clock, entropy).await.map(Self)
    }

    /// The pins that stand, oldest first.
    pub fn all(&self) -> &[PinSummary] {
        &self.0.state().standing
    }

    /// The number of the last entry; zero if there is none.
    pub fn head(&self) -> u64 {
        self.0.head()
    }

    /// The pin of this name.
    pub fn find(&self, name: &str) -> Result<&PinSummary> {
        (self.all().iter())
            .find(|pin| pin.name == name)
            .ok_or_else(|| not_found(name))
    }

    /// Reads what was made and deleted since.
    pub async fn refresh(&mut self) -> Result<()> {
        self.0.refresh().await
    }

    /// Makes a pin; durable when this returns. Returns its number.
    ///
    /// # Errors
    /// Refused where a pin of this name stands.
    pub async fn create(&mut self, pin: NewPin) -> Result<u64> {
        check(&pin)?;
        let body = encode(PinKind::Created(CreatedMessage {
            name: pin.name.clone(),
            branch: pin.branch.0,
            record_start: pin.last_record.start.0,
            record_end: pin.last_record.end.0,
            time: pin.time.map(|time| time.0),
            note: pin.note,
            tags: pin.tags,
        }));
        self.0
            .append(|state| {
                if state.standing.iter().any(|other| other.name == pin.name) {
                    return Err(Error::refused(
                        format!("a snapshot `{}` exists", pin.name),
                        "Choose another name, or delete that one first.",
                    ));
                }
                Ok(body.clone())
            })
            .await
    }

    /// Deletes the pin of this name. What it kept is removed by the next sweep, not here.
    pub async fn delete(&mut self, name: &str) -> Result<()> {
        self.0
            .append(|state| {
                let pin = state.standing.iter().find(|pin| pin.name == name);
                let pin = pin.ok_or_else(|| not_found(name))?;
                Ok(encode(PinKind::Deleted(DeletedMessage {
                    name: name.to_owned(),
                    number: pin.number,
                })))
            })
            .await
            .map(|_| ())
    }
}

fn not_found(name: &str) -> Error {
    Error::NotFound {
        what: format!("snapshot `{name}`"),
    }
}

fn check(pin: &NewPin) -> Result<()> {
    let usage = |what: String| Err(Error::Usage { what });
    let name = &pin.name;
    if name.is_empty() || name.len() > PIN_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return usage(format!(
            "{name:?} is not a snapshot name: 1 to {PIN_NAME_BYTES_MAX} bytes without control characters"
        ));
    }
    if pin.note.len() > PIN_NOTE_BYTES_MAX {
        return usage(format!("a note has at most {PIN_NOTE_BYTES_MAX} bytes"));
    }
    if pin.tags.len() > PIN_TAGS_MAX {
        return usage(format!("a snapshot has at most {PIN_TAGS_MAX} tags"));
    }
    Ok(())
}
