//! The catalog's messages, encoded.

use borealis_base::{Branch, LineageId, Position};
use bytes::Bytes;
use prost::Message;

use super::Parent;
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
}

#[derive(Clone, PartialEq, prost::Message)]
struct CatalogMessage {
    #[prost(oneof = "CatalogKind", tags = "1, 2, 3")]
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
            None => {
                return Err(Error::Newer {
                    object: name.to_owned(),
                    what: "an entry of an unknown kind".to_owned(),
                });
            }
        })
    }
}
