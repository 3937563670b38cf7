//! Key rings: the keys of one owner, wrapped.
//!
//! An owner is the repository (for its catalog) or a lineage. The owner's key is wrapped once per key
//! that can open it: the repository's by each recipient's root key, a lineage's by the repository's
//! key. Data keys are wrapped by the owner's key. A code over the whole ring under the owner's key
//! keeps anyone with write access to the store from bringing back a retired key as the current one.

use aws_lc_rs::hmac;
use borealis_base::{Entropy, Timestamp};
use borealis_keys::{
    DataKey, DataKeyId, DataKeys, KeyId, KeyProvider, Purpose, SecretKey, WrapContext, WrappedKey,
    derive, unwrap, wrap,
};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use crate::inspect::hex;
use crate::object::{ObjectBuilder, ObjectKind, ObjectView, SealedObject, fetch};
use crate::store::Store;
use crate::{Error, Result};

const RING_CODE_INFO: &[u8] = b"borealis key ring code v1";
/// The scheme of an owner key that the repository's key wraps.
pub(crate) const SCHEME_REPOSITORY: &str = "repository";

#[derive(Clone, PartialEq, prost::Message)]
struct WrapMessage {
    /// An owner key: id of the key that wraps it. A data key: its own id.
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    nonce: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    ciphertext: Bytes,
    #[prost(string, tag = "4")]
    scheme: String,
    #[prost(sint64, tag = "5")]
    created: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyRingMessage {
    #[prost(bytes = "bytes", tag = "1")]
    owner: Bytes,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(message, repeated, tag = "3")]
    owner_keys: Vec<WrapMessage>,
    #[prost(message, repeated, tag = "4")]
    data_keys: Vec<WrapMessage>,
    #[prost(bytes = "bytes", tag = "5")]
    current: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    code: Bytes,
}

/// A key that wraps an owner key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The kind of key provider, such as `file`.
    pub scheme: String,
    /// The public name of the key.
    pub key: KeyId,
}

/// A key ring as it is stored.
pub(crate) struct KeyRing {
    name: String,
    message: KeyRingMessage,
}

/// A key ring with its keys.
pub(crate) struct OpenRing {
    pub(crate) owner_key: SecretKey,
    pub(crate) data_keys: DataKeys,
}

/// An owner key, wrapped by one key.
pub(crate) struct OwnerWrap {
    pub(crate) recipient: Recipient,
    pub(crate) wrapped: WrappedKey,
}

fn owner_context(owner: [u8; 16], wrapping: KeyId) -> WrapContext {
    WrapContext {
        purpose: Purpose::OwnerKey,
        owner,
        subject: wrapping.0,
    }
}

/// Wraps an owner key with a root key.
pub(crate) async fn wrap_for_root(
    owner: [u8; 16],
    key: &SecretKey,
    provider: &dyn KeyProvider,
    entropy: &dyn Entropy,
) -> Result<OwnerWrap> {
    let recipient = Recipient {
        scheme: provider.scheme().to_owned(),
        key: provider.key_id(),
    };
    let context = owner_context(owner, recipient.key);
    let wrapped = provider.wrap(&context, key, entropy).await?;
    Ok(OwnerWrap { recipient, wrapped })
}

/// Wraps a lineage's key with the repository's.
pub(crate) fn wrap_for_repository(
    owner: [u8; 16],
    key: &SecretKey,
    repository_key: &SecretKey,
    entropy: &dyn Entropy,
) -> OwnerWrap {
    let recipient = Recipient {
        scheme: SCHEME_REPOSITORY.to_owned(),
        key: repository_key.id(),
    };
    let context = owner_context(owner, recipient.key);
    OwnerWrap {
        wrapped: wrap(repository_key, &context, key, entropy),
        recipient,
    }
}

fn code(owner_key: &SecretKey, message: &KeyRingMessage) -> Bytes {
    let key = derive(owner_key, &[], RING_CODE_INFO);
    let uncoded = KeyRingMessage {
        code: Bytes::new(),
        ..message.clone()
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
    Bytes::copy_from_slice(hmac::sign(&key, &uncoded.encode_to_vec()).as_ref())
}

/// Makes the object of a key ring.
pub(crate) fn seal_ring(
    owner: [u8; 16],
    number: u64,
    owner_key: &SecretKey,
    wraps: &[OwnerWrap],
    data_keys: &DataKeys,
    created: Timestamp,
    entropy: &dyn Entropy,
) -> SealedObject {
    let message = |id: [u8; 16], wrapped: &WrappedKey, scheme: &str| WrapMessage {
        id: Bytes::copy_from_slice(&id),
        nonce: wrapped.nonce.clone().into(),
        ciphertext: wrapped.ciphertext.clone().into(),
        scheme: scheme.to_owned(),
        created: created.0,
    };
    let mut ring = KeyRingMessage {
        owner: Bytes::copy_from_slice(&owner),
        number,
        owner_keys: (wraps.iter())
            .map(|w| message(w.recipient.key.0, &w.wrapped, &w.recipient.scheme))
            .collect(),
        data_keys: data_keys
            .iter()
            .map(|key| {
                let context = WrapContext {
                    purpose: Purpose::DataKey,
                    owner,
                    subject: key.id.0,
                };
                let wrapped = wrap(owner_key, &context, &key.secret, entropy);
                message(key.id.0, &wrapped, "")
            })
            .collect(),
        current: Bytes::copy_from_slice(&data_keys.current().id.0),
        code: Bytes::new(),
    };
    ring.code = code(owner_key, &ring);
    let id = borealis_base::ObjectId::random(entropy);
    let mut builder = ObjectBuilder::new(ObjectKind::KeyRing, id, None);
    builder.clear(ring.encode_to_vec());
    builder.seal()
}

/// A key ring, for people. No key is in it that is not wrapped.
pub(crate) fn inspect(object: &ObjectView) -> Result<Value> {
    let ring = KeyRingMessage::decode(object.head().clear().clone())
        .map_err(|_| object.head().damaged("its content is malformed"))?;
    let show = |w: &WrapMessage| json!({"id": hex(&w.id), "scheme": w.scheme, "created": Timestamp(w.created)});
    Ok(json!({
        "owner": hex(&ring.owner),
        "number": ring.number,
        "owner_key_wrapped_by": ring.owner_keys.iter().map(show).collect::<Vec<_>>(),
        "data_keys": ring.data_keys.iter().map(show).collect::<Vec<_>>(),
        "current": hex(&ring.current),
    }))
}

impl KeyRing {
    /// Reads the ring `name`, generation `number`.
    pub(crate) async fn read(store: &dyn Store, name: &str, number: u64) -> Result<Self> {
        let view = fetch(store, name, ObjectKind::KeyRing).await?;
        let malformed = || Error::damaged(name, "its content is malformed");
        let message =
            KeyRingMessage::decode(view.head().clear().clone()).map_err(|_| malformed())?;
        if message.number != number {
            return Err(Error::damaged(name, "it belongs under another name"));
        }
        Ok(Self {
            name: name.to_owned(),
            message,
        })
    }

    /// Whose keys these are.
    pub(crate) fn owner(&self) -> Result<[u8; 16]> {
        let owner = self.message.owner.as_ref().try_into();
        owner.map_err(|_| Error::damaged(&self.name, "its owner is malformed"))
    }

    /// The keys that can open it.
    pub(crate) fn recipients(&self) -> Vec<Recipient> {
        (self.message.owner_keys.iter())
            .filter_map(|w| {
                Some(Recipient {
                    scheme: w.scheme.clone(),
                    key: KeyId::from_slice(&w.id)?,
                })
            })
            .collect()
    }

    fn wrapped_for(&self, key: KeyId) -> Option<WrappedKey> {
        let mut wraps = self.message.owner_keys.iter();
        wraps.find(|w| w.id.as_ref() == key.0).map(|w| WrappedKey {
            nonce: w.nonce.to_vec(),
            ciphertext: w.ciphertext.to_vec(),
        })
    }

    /// Opens it with a root key; `None` where that is no recipient.
    pub(crate) async fn open_with_root(
        &self,
        provider: &dyn KeyProvider,
    ) -> Result<Option<OpenRing>> {
        let Some(wrapped) = self.wrapped_for(provider.key_id()) else {
            return Ok(None);
        };
        let context = owner_context(self.owner()?, provider.key_id());
        let key = provider
            .unwrap(&context, &wrapped)
            .await
            .map_err(|e| self.bad_wrap(e))?;
        self.open(key).map(Some)
    }

    /// Opens a lineage's ring with the repository's key.
    pub(crate) fn open_with_repository(&self, repository_key: &SecretKey) -> Result<OpenRing> {
        let id = repository_key.id();
        let wrapped = self
            .wrapped_for(id)
            .ok_or_else(|| Error::damaged(&self.name, "the repository's key does not open it"))?;
        let context = owner_context(self.owner()?, id);
        let key = unwrap(repository_key, &context, &wrapped).map_err(|e| self.bad_wrap(e))?;
        self.open(key)
    }

    /// Names the object where the wrap itself is what is damaged.
    fn bad_wrap(&self, error: borealis_keys::Error) -> Error {
        match error {
            borealis_keys::Error::BadWrap { .. } => Error::damaged(&self.name, error.to_string()),
            other => other.into(),
        }
    }

    fn open(&self, owner_key: SecretKey) -> Result<OpenRing> {
        let damaged = |what: &str| Error::damaged(&self.name, what);
        if code(&owner_key, &self.message) != self.message.code {
            return Err(damaged("it was changed after it was written"));
        }
        let owner = self.owner()?;
        let mut keys = Vec::new();
        for w in &self.message.data_keys {
            let id =
                DataKeyId::from_slice(&w.id).ok_or_else(|| damaged("a key id is malformed"))?;
            let context = WrapContext {
                purpose: Purpose::DataKey,
                owner,
                subject: id.0,
            };
            let wrapped = WrappedKey {
                nonce: w.nonce.to_vec(),
                ciphertext: w.ciphertext.to_vec(),
            };
            let secret = unwrap(&owner_key, &context, &wrapped).map_err(|e| self.bad_wrap(e))?;
            keys.push(DataKey { id, secret });
        }
        let current = keys
            .iter()
            .find(|key| key.id.0 == self.message.current.as_ref())
            .cloned()
            .ok_or_else(|| damaged("it has no current data key"))?;
        let mut data_keys = DataKeys::new(current);
        for key in keys {
            data_keys.add(key);
        }
        Ok(OpenRing {
            owner_key,
            data_keys,
        })
    }
}
