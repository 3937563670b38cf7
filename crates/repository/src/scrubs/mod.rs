//! What scrubs have read and found. Whoever scrubs writes here, so that a scrub goes on where the last one
//! was, and everybody who asks what can be restored hears of damage.

use std::sync::Arc;

use borealis_base::{Clock, Entropy, ObjectId, Timestamp};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use crate::numbered::{Item, Logged, NumberedLog, Track};
use crate::plan::{Damage, Fault, Part};
use crate::{Error, Result};

/// How far a pass has come: everything up to here, in the order of sections and then of names, was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Cursor {
    /// Which section.
    pub section: u32,
    /// The last name in it.
    pub name: String,
}

/// One reading of everything live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// When it began.
    pub began_at: Timestamp,
    /// When its last progress was recorded; for a complete one, when it ended.
    pub at: Timestamp,
    /// The ledger's head when it began: what is named up to there is read by the end.
    pub head: u64,
    /// How far it is.
    pub cursor: Cursor,
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScrubMessage {
    #[prost(oneof = "ScrubKind", tags = "1, 2, 3")]
    kind: Option<ScrubKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ScrubKind {
    #[prost(message, tag = "1")]
    Progress(ProgressMessage),
    #[prost(message, tag = "2")]
    Damage(DamageMessage),
    #[prost(message, tag = "3")]
    Sound(SoundMessage),
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProgressMessage {
    #[prost(sint64, tag = "1")]
    began_at: i64,
    #[prost(sint64, tag = "2")]
    at: i64,
    #[prost(uint64, tag = "3")]
    head: u64,
    #[prost(uint32, tag = "4")]
    section: u32,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(uint64, tag = "6")]
    objects: u64,
    #[prost(uint64, tag = "7")]
    bytes: u64,
    #[prost(bool, tag = "8")]
    complete: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DamageMessage {
    #[prost(sint64, tag = "1")]
    found_at: i64,
    #[prost(string, tag = "2")]
    object: String,
    #[prost(bool, tag = "3")]
    missing: bool,
    #[prost(string, tag = "4")]
    what: String,
    #[prost(uint64, tag = "5")]
    log_piece: u64,
    #[prost(bytes = "bytes", tag = "6")]
    manifest: Bytes,
    #[prost(bytes = "bytes", tag = "7")]
    pack: Bytes,
    #[prost(uint32, repeated, tag = "8")]
    frames: Vec<u32>,
    #[prost(uint64, repeated, tag = "9")]
    base_backups: Vec<u64>,
    #[prost(uint64, tag = "10")]
    looked_through: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SoundMessage {
    #[prost(sint64, tag = "1")]
    at: i64,
    #[prost(string, tag = "2")]
    object: String,
}

fn encode(kind: ScrubKind) -> Bytes {
    ScrubMessage { kind: Some(kind) }.encode_to_vec().into()
}

fn decode(name: &str, body: Bytes) -> Result<ScrubKind> {
    let message =
        ScrubMessage::decode(body).map_err(|_| Error::damaged(name, "its body is malformed"))?;
    message.kind.ok_or_else(|| Error::Newer {
        object: name.to_owned(),
        what: "an entry of an unknown kind".to_owned(),
    })
}

fn encode_damage(damage: &Damage) -> Bytes {
    let mut message = DamageMessage {
        found_at: damage.found_at.0,
        object: damage.object.clone(),
        missing: damage.fault == Fault::Missing,
        what: damage.what.clone(),
        base_backups: damage.base_backups.clone(),
        looked_through: damage.looked_through,
        ..DamageMessage::default()
    };
    match &damage.part {
        Part::LogPiece(entry) => message.log_piece = *entry,
        Part::Manifest(id) => message.manifest = Bytes::copy_from_slice(&id.0),
        Part::Pack(id, frames) => {
            message.pack = Bytes::copy_from_slice(&id.0);
            message.frames.clone_from(frames);
        }
        Part::Other => {}
    }
    encode(ScrubKind::Damage(message))
}

fn damage_of(name: &str, m: DamageMessage) -> Result<Damage> {
    let id = |bytes: &Bytes| {
        ObjectId::from_slice(bytes).ok_or_else(|| Error::damaged(name, "its body is malformed"))
    };
    let part = if m.log_piece > 0 {
        Part::LogPiece(m.log_piece)
    } else if !m.manifest.is_empty() {
        Part::Manifest(id(&m.manifest)?)
    } else if !m.pack.is_empty() {
        Part::Pack(id(&m.pack)?, m.frames)
    } else {
        Part::Other
    };
    Ok(Damage {
        found_at: Timestamp(m.found_at),
        object: m.object,
        fault: if m.missing {
            Fault::Missing
        } else {
            Fault::Damaged
        },
        part,
        what: m.what,
        base_backups: m.base_backups,
        looked_through: m.looked_through,
    })
}

#[derive(Debug, Default)]
struct ScrubState {
    current: Option<Pass>,
    complete: Option<Pass>,
    damage: Vec<Damage>,
}

impl ScrubState {
    fn take(&mut self, name: &str, kind: ScrubKind) -> Result<()> {
        match kind {
            ScrubKind::Progress(m) => {
                let pass = Pass {
                    began_at: Timestamp(m.began_at),
                    at: Timestamp(m.at),
                    head: m.head,
                    cursor: Cursor {
                        section: m.section,
                        name: m.name,
                    },
                    objects: m.objects,
                    bytes: m.bytes,
                };
                if m.complete {
                    self.complete = Some(pass);
                    self.current = None;
                } else {
                    self.current = Some(pass);
                }
            }
            ScrubKind::Damage(m) => {
                let damage = damage_of(name, m)?;
                self.damage.retain(|other| other.object != damage.object);
                self.damage.push(damage);
            }
            ScrubKind::Sound(m) => self.damage.retain(|other| other.object != m.object),
        }
        Ok(())
    }
}

impl Logged for ScrubState {
    fn apply(&mut self, item: &Item) -> Result<()> {
        let name = format!(
            "scrub {} of lineage {}",
            item.head.number,
            borealis_base::LineageId(item.head.owner)
        );
        self.take(&name, decode(&name, item.body.clone())?)
    }
}

/// The body of an entry of the log of scrubs, for people.
pub(crate) fn inspect_body(name: &str, body: Bytes) -> Result<Value> {
    Ok(match decode(name, body)? {
        ScrubKind::Progress(m) => json!({"progress": {
            "began_at": Timestamp(m.began_at),
            "at": Timestamp(m.at),
            "head": m.head,
            "section": m.section,
            "name": m.name,
            "objects": m.objects,
            "bytes": m.bytes,
            "complete": m.complete,
        }}),
        ScrubKind::Damage(m) => json!({"damage": {
            "found_at": Timestamp(m.found_at),
            "object": m.object,
            "missing": m.missing,
            "what": m.what,
            "frames": m.frames,
            "base_backups": m.base_backups,
            "looked_through": m.looked_through,
        }}),
        ScrubKind::Sound(m) => json!({"sound": {"at": Timestamp(m.at), "object": m.object}}),
    })
}

/// The scrubs of a lineage. Two that run at once read everything twice, and harm nothing.
pub struct Scrubs(NumberedLog<ScrubState>);

impl Scrubs {
    /// Reads the log of scrubs.
    pub(crate) async fn load(
        track: Track,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        NumberedLog::load(track, clock, entropy).await.map(Self)
    }

    /// The pass that is under way.
    pub fn current(&self) -> Option<&Pass> {
        self.0.state().current.as_ref()
    }

    /// The last complete pass.
    pub fn complete(&self) -> Option<&Pass> {
        self.0.state().complete.as_ref()
    }

    /// What was found lost or damaged and not found sound since.
    pub fn damage(&self) -> &[Damage] {
        &self.0.state().damage
    }

    /// The number of the last entry; zero if there is none.
    pub fn head(&self) -> u64 {
        self.0.head()
    }

    /// Reads what was recorded since.
    pub async fn refresh(&mut self) -> Result<()> {
        self.0.refresh().await
    }

    /// Records how far a pass has come, or that it is `complete`.
    pub async fn record_progress(&mut self, pass: &Pass, complete: bool) -> Result<()> {
        let body = encode(ScrubKind::Progress(ProgressMessage {
            began_at: pass.began_at.0,
            at: pass.at.0,
            head: pass.head,
            section: pass.cursor.section,
            name: pass.cursor.name.clone(),
            objects: pass.objects,
            bytes: pass.bytes,
            complete,
        }));
        self.0.append(|_| Ok(body.clone())).await.map(|_| ())
    }

    /// Records damage, in place of what was known of the object.
    pub async fn record_damage(&mut self, damage: &Damage) -> Result<()> {
        let body = encode_damage(damage);
        self.0.append(|_| Ok(body.clone())).await.map(|_| ())
    }

    /// Records that an object is sound again.
    pub async fn record_sound(&mut self, object: &str, at: Timestamp) -> Result<()> {
        let body = encode(ScrubKind::Sound(SoundMessage {
            at: at.0,
            object: object.to_owned(),
        }));
        self.0.append(|_| Ok(body.clone())).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(object: &str, part: Part) -> Damage {
        Damage {
            found_at: Timestamp(9),
            object: object.to_owned(),
            fault: Fault::Missing,
            part,
            what: "it is gone".to_owned(),
            base_backups: vec![3, 7],
            looked_through: 11,
        }
    }

    #[test]
    fn damage_of_every_part_is_read_back() {
        let id = ObjectId([5; 16]);
        for part in [
            Part::LogPiece(4),
            Part::Manifest(id),
            Part::Pack(id, vec![1, 9]),
            Part::Pack(id, Vec::new()),
            Part::Other,
        ] {
            let damage = damage("x", part);
            let mut state = ScrubState::default();
            let kind = decode("scrub", encode_damage(&damage)).unwrap();
            state.take("scrub", kind).unwrap();
            assert_eq!(state.damage, [damage]);
        }
    }

    #[test]
    fn damage_stands_until_the_object_is_sound_again() {
        let mut state = ScrubState::default();
        let mut take = |body| {
            state.take("scrub", decode("scrub", body).unwrap()).unwrap();
            state
                .damage
                .iter()
                .map(|d| d.object.clone())
                .collect::<Vec<_>>()
        };
        take(encode_damage(&damage("a", Part::Other)));
        take(encode_damage(&damage("b", Part::Other)));
        assert_eq!(
            take(encode_damage(&damage("a", Part::LogPiece(1)))),
            ["b", "a"]
        );
        let sound = SoundMessage {
            at: 1,
            object: "a".to_owned(),
        };
        assert_eq!(take(encode(ScrubKind::Sound(sound))), ["b"]);
    }
}
