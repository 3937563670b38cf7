//! One numbered entry, without the frames that only its own readers need.

use borealis_base::{Timestamp, WriteId};
use bytes::Bytes;
use prost::Message;

use crate::object::HeadDigest;
use crate::{Error, Result};

/// The public part of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryHead {
    /// The lineage, or for the catalog the repository, that the log belongs to.
    pub owner: [u8; 16],
    /// Its number, from 1.
    pub number: u64,
    /// The epoch of its writer; zero in logs without epochs.
    pub epoch: u64,
    /// Random per attempt to append; tells one's own lost reply from a rival.
    pub write_id: WriteId,
    /// Digest of the head of the entry before; zeros in the first.
    pub previous: HeadDigest,
    /// When it was written, by the writer's clock.
    pub recorded_at: Timestamp,
    /// In a ledger: each log piece in an entry up to this one was read back from the store after it was
    /// stored, or its range was withdrawn. Zero if none was yet, and in other logs.
    pub read_back: u64,
}

/// An entry as the logs are folded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its public part.
    pub head: EntryHead,
    /// The digest of its object's head.
    pub digest: HeadDigest,
    /// The length of its object.
    pub object_len: u64,
    /// Its encoded body.
    pub body: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EntryHeadMessage {
    #[prost(bytes = "bytes", tag = "1")]
    owner: Bytes,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(bytes = "bytes", tag = "4")]
    write_id: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    previous: Bytes,
    #[prost(sint64, tag = "6")]
    recorded_at: i64,
    #[prost(uint64, tag = "7")]
    read_back: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ItemMessage {
    #[prost(message, optional, tag = "1")]
    head: Option<EntryHeadMessage>,
    #[prost(bytes = "bytes", tag = "2")]
    digest: Bytes,
    #[prost(uint64, tag = "3")]
    object_len: u64,
    #[prost(bytes = "bytes", tag = "4")]
    body: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ItemsMessage {
    #[prost(message, repeated, tag = "1")]
    items: Vec<ItemMessage>,
}

impl EntryHead {
    pub(crate) fn to_message(&self) -> EntryHeadMessage {
        EntryHeadMessage {
            owner: Bytes::copy_from_slice(&self.owner),
            number: self.number,
            epoch: self.epoch,
            write_id: Bytes::copy_from_slice(&self.write_id.0),
            previous: Bytes::copy_from_slice(&self.previous),
            recorded_at: self.recorded_at.0,
            read_back: self.read_back,
        }
    }

    fn from_message(message: &EntryHeadMessage) -> Option<Self> {
        Some(Self {
            owner: message.owner.as_ref().try_into().ok()?,
            number: message.number,
            epoch: message.epoch,
            write_id: WriteId::from_slice(&message.write_id)?,
            previous: message.previous.as_ref().try_into().ok()?,
            recorded_at: Timestamp(message.recorded_at),
            read_back: message.read_back,
        })
    }

    /// Reads the clear part of an entry; `None` where it is malformed.
    pub(crate) fn decode(clear: &[u8]) -> Option<Self> {
        Self::from_message(&EntryHeadMessage::decode(clear).ok()?)
    }
}

/// Encodes items for a recap or a checkpoint.
pub(crate) fn encode_items(items: &[Item]) -> Vec<u8> {
    ItemsMessage {
        items: (items.iter())
            .map(|item| ItemMessage {
                head: Some(item.head.to_message()),
                digest: Bytes::copy_from_slice(&item.digest),
                object_len: item.object_len,
                body: item.body.clone(),
            })
            .collect(),
    }
    .encode_to_vec()
}

/// Reads what [`encode_items`] wrote; `None` where it is malformed.
pub(crate) fn decode_items(bytes: Bytes) -> Option<Vec<Item>> {
    let message = ItemsMessage::decode(bytes).ok()?;
    (message.items.into_iter())
        .map(|item| {
            Some(Item {
                head: EntryHead::from_message(&item.head?)?,
                digest: item.digest.as_ref().try_into().ok()?,
                object_len: item.object_len,
                body: item.body,
            })
        })
        .collect()
}

/// Where a log has been read to, and what the next entry must agree with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) owner: [u8; 16],
    pub(crate) head: u64,
    pub(crate) digest: HeadDigest,
    pub(crate) epoch: u64,
}

impl Chain {
    pub(crate) const fn new(owner: [u8; 16]) -> Self {
        Self {
            owner,
            head: 0,
            digest: [0; 32],
            epoch: 0,
        }
    }

    /// Takes the next item, or says why it does not follow. `name` is what errors call it.
    pub(crate) fn accept(&mut self, name: &str, item: &Item) -> Result<()> {
        let damaged = |what: String| Err(Error::damaged(name, what));
        let head = &item.head;
        if head.owner != self.owner {
            return damaged("it belongs to another lineage or repository".to_owned());
        }
        if head.number != self.head + 1 {
            return damaged(format!(
                "it says it is entry {}, where entry {} belongs",
                head.number,
                self.head + 1
            ));
        }
        if head.previous != self.digest {
            return damaged(format!(
                "it does not follow entry {} as it is stored",
                self.head
            ));
        }
        if head.epoch < self.epoch {
            return damaged(format!(
                "it has epoch {}, after an entry of epoch {}",
                head.epoch, self.epoch
            ));
        }
        self.head = head.number;
        self.digest = item.digest;
        self.epoch = head.epoch;
        Ok(())
    }
}
