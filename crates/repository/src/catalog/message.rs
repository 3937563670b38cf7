//! The catalog's messages, encoded.

use borealis_base::{Branch, LineageId, Position, Timestamp};
use bytes::Bytes;
use prost::Message;

use super::{Objectives, Parent};
use crate::retention::{Days, HoldRange};
use crate::{Error, Result};

/// What a catalog entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CatalogBody {
    ClusterCreated {
        name: String,
        lineage: LineageId,
        engine: Bytes,
    },
    LineageAdded {
        cluster: String,
        lineage: LineageId,
        parent: Option<Parent>,
        /// What the engine wants to remember from now on; empty where that stays as it was.
        engine: Bytes,
    },
    ClusterRetired {
        cluster: String,
    },
    RetentionSet {
        cluster: String,
        days: Days,
    },
    HoldCreated {
        cluster: String,
        name: String,
        reason: String,
        range: HoldRange,
        until: Option<Timestamp>,
    },
    HoldDeleted {
        cluster: String,
        name: String,
        number: u64,
    },
    ObjectivesSet {
        cluster: String,
        objectives: Objectives,
    },
}

#[derive(Clone, PartialEq, prost::Message)]
struct CatalogMessage {
    #[prost(oneof = "CatalogKind", tags = "1, 2, 3, 4, 5, 6, 7")]
    kind: Option<CatalogKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum CatalogKind {
    #[prost(message, tag = "1")]
    ClusterCreated(ClusterCreatedMessage),
    #[prost(message, tag = "2")]
    LineageAdded(LineageAddedMessage),
    #[prost(message, tag = "3")]
    ClusterRetired(ClusterRetiredMessage),
    #[prost(message, tag = "4")]
    RetentionSet(RetentionSetMessage),
    #[prost(message, tag = "5")]
    HoldCreated(HoldCreatedMessage),
    #[prost(message, tag = "6")]
    HoldDeleted(HoldDeletedMessage),
    #[prost(message, tag = "7")]
    ObjectivesSet(ObjectivesSetMessage),
}

#[derive(Clone, PartialEq, prost::Message)]
struct ClusterCreatedMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    lineage: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    engine: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LineageAddedMessage {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(bytes = "bytes", tag = "2")]
    lineage: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    parent: Bytes,
    #[prost(uint32, tag = "4")]
    branch: u32,
    #[prost(uint64, tag = "5")]
    at: u64,
    #[prost(bytes = "bytes", tag = "6")]
    engine: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ClusterRetiredMessage {
    #[prost(string, tag = "1")]
    cluster: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetentionSetMessage {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(uint32, tag = "2")]
    days: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HoldCreatedMessage {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    reason: String,
    #[prost(sint64, optional, tag = "4")]
    from: Option<i64>,
    #[prost(sint64, optional, tag = "5")]
    to: Option<i64>,
    #[prost(sint64, optional, tag = "6")]
    until: Option<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HoldDeletedMessage {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, tag = "3")]
    number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ObjectivesSetMessage {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(uint64, optional, tag = "2")]
    recovery_point_seconds: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    recovery_time_seconds: Option<u64>,
}

impl HoldCreatedMessage {
    fn new(
        cluster: String,
        name: String,
        reason: String,
        range: HoldRange,
        until: Option<Timestamp>,
    ) -> Self {
        let (from, to) = match range {
            HoldRange::Everything => (None, None),
            HoldRange::Moments(from, to) => (Some(from.0), Some(to.0)),
        };
        Self {
            cluster,
            name,
            reason,
            from,
            to,
            until: until.map(|until| until.0),
        }
    }
}

impl CatalogBody {
    pub(crate) fn encode(&self) -> Bytes {
        let kind = match self.clone() {
            Self::ClusterCreated {
                name,
                lineage,
                engine,
            } => CatalogKind::ClusterCreated(ClusterCreatedMessage {
                name,
                lineage: Bytes::copy_from_slice(&lineage.0),
                engine,
            }),
            Self::LineageAdded {
                cluster,
                lineage,
                parent,
                engine,
            } => CatalogKind::LineageAdded(LineageAddedMessage {
                cluster,
                lineage: Bytes::copy_from_slice(&lineage.0),
                parent: parent.map_or_else(Bytes::new, |parent| {
                    Bytes::copy_from_slice(&parent.lineage.0)
                }),
                branch: parent.map_or(0, |parent| parent.branch.0),
                at: parent.map_or(0, |parent| parent.at.0),
                engine,
            }),
            Self::ClusterRetired { cluster } => {
                CatalogKind::ClusterRetired(ClusterRetiredMessage { cluster })
            }
            Self::RetentionSet { cluster, days } => {
                let days = days.get();
                CatalogKind::RetentionSet(RetentionSetMessage { cluster, days })
            }
            Self::HoldCreated {
                cluster,
                name,
                reason,
                range,
                until,
            } => CatalogKind::HoldCreated(HoldCreatedMessage::new(
                cluster, name, reason, range, until,
            )),
            Self::HoldDeleted {
                cluster,
                name,
                number,
            } => CatalogKind::HoldDeleted(HoldDeletedMessage {
                cluster,
                name,
                number,
            }),
            Self::ObjectivesSet {
                cluster,
                objectives,
            } => CatalogKind::ObjectivesSet(ObjectivesSetMessage {
                cluster,
                recovery_point_seconds: objectives.recovery_point_seconds,
                recovery_time_seconds: objectives.recovery_time_seconds,
            }),
        };
        CatalogMessage { kind: Some(kind) }.encode_to_vec().into()
    }

    pub(crate) fn decode(name: &str, bytes: Bytes) -> Result<Self> {
        let malformed = || Error::damaged(name, "its body is malformed");
        let id = |bytes: &Bytes| LineageId::from_slice(bytes).ok_or_else(malformed);
        let message = CatalogMessage::decode(bytes).map_err(|_| malformed())?;
        Ok(match message.kind {
            Some(CatalogKind::ClusterCreated(m)) => Self::ClusterCreated {
                lineage: id(&m.lineage)?,
                name: m.name,
                engine: m.engine,
            },
            Some(CatalogKind::LineageAdded(m)) => Self::LineageAdded {
                lineage: id(&m.lineage)?,
                parent: match &m.parent {
                    none if none.is_empty() => None,
                    parent => Some(Parent {
                        lineage: id(parent)?,
                        branch: Branch(m.branch),
                        at: Position(m.at),
                    }),
                },
                engine: m.engine,
                cluster: m.cluster,
            },
            Some(CatalogKind::ClusterRetired(m)) => Self::ClusterRetired { cluster: m.cluster },
            Some(CatalogKind::RetentionSet(m)) => Self::RetentionSet {
                days: Days::new(m.days).map_err(|_| malformed())?,
                cluster: m.cluster,
            },
            Some(CatalogKind::HoldCreated(m)) => Self::HoldCreated {
                range: match (m.from, m.to) {
                    (None, None) => HoldRange::Everything,
                    (Some(from), Some(to)) => HoldRange::Moments(Timestamp(from), Timestamp(to)),
                    _ => return Err(malformed()),
                },
                until: m.until.map(Timestamp),
                cluster: m.cluster,
                name: m.name,
                reason: m.reason,
            },
            Some(CatalogKind::HoldDeleted(m)) => Self::HoldDeleted {
                cluster: m.cluster,
                name: m.name,
                number: m.number,
            },
            Some(CatalogKind::ObjectivesSet(m)) => Self::ObjectivesSet {
                cluster: m.cluster,
                objectives: Objectives {
                    recovery_point_seconds: m.recovery_point_seconds,
                    recovery_time_seconds: m.recovery_time_seconds,
                },
            },
            None => {
                return Err(Error::Newer {
                    object: name.to_owned(),
                    what: "an entry of an unknown kind".to_owned(),
                });
            }
        })
    }
}
