//! Key rings: the keys of one owner, wrapped.
//!
//! An owner is the repository (for its catalog) or a lineage. The owner's key is wrapped once per key
//! that can open it: the repository's by each recipient's root key, a lineage's by the repository's
//! key. Data keys are wrapped by the owner's key. A code over the whole ring under the owner's key
//! keeps anyone with write access to the store from bringing back a retired key as the current one.
//!
//! A ring is never changed. Whoever changes what it says makes the next one from a [`Draft`]; of two who
//! do so at once the second finds the first one's and begins again from that (`keychain`).

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
use crate::object::{ObjectBuilder, ObjectKind, ObjectView, fetch};
use crate::store::Store;
use crate::{Error, Result};

const RING_CODE_INFO: &[u8] = b"borealis key ring code v1";
/// The scheme of an owner key that the repository's key wraps.
const SCHEME_REPOSITORY: &str = "repository";

#[derive(Clone, PartialEq, prost::Message)]
struct WrapMessage {
    /// An owner key: id of the key that wraps it. A data key or a former key: its own id.
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
    #[prost(string, tag = "6")]
    label: String,
    #[prost(string, tag = "7")]
    version: String,
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
    #[prost(message, repeated, tag = "7")]
    former_keys: Vec<WrapMessage>,
}

/// A key that wraps an owner key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The kind of key provider, such as `file`.
    pub scheme: String,
    /// The public name of the key.
    pub key: KeyId,
    /// What its key service calls it; empty for a key file.
    pub label: String,
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.label.as_str() {
            "" => write!(f, "key {}", self.key),
            label => write!(f, "key {} ({} {label})", self.key, self.scheme),
        }
    }
}

/// An owner key, wrapped by one key.
#[derive(Clone)]
pub(crate) struct OwnerWrap {
    pub(crate) recipient: Recipient,
    pub(crate) wrapped: WrappedKey,
    pub(crate) created: Timestamp,
}

/// A key ring as it is stored.
pub(crate) struct KeyRing {
    name: String,
    message: KeyRingMessage,
}

/// A key ring with its keys.
pub(crate) struct OpenRing {
    pub(crate) owner_key: SecretKey,
    /// Keys of the owner that came before, newest first.
    pub(crate) former_keys: Vec<SecretKey>,
    pub(crate) data_keys: DataKeys,
}

/// What a ring is made of.
pub(crate) struct Draft {
    pub(crate) owner: [u8; 16],
    pub(crate) number: u64,
    pub(crate) owner_key: SecretKey,
    pub(crate) former_keys: Vec<SecretKey>,
    pub(crate) wraps: Vec<OwnerWrap>,
    pub(crate) data_keys: DataKeys,
}

fn owner_context(owner: [u8; 16], wrapping: KeyId) -> WrapContext {
    WrapContext {
        purpose: Purpose::OwnerKey,
        owner,
        subject: wrapping.0,
    }
}

/// Wraps an owner key with a root key, and sees that this unwraps it again.
pub(crate) async fn wrap_for_root(
    owner: [u8; 16],
    key: &SecretKey,
    provider: &dyn KeyProvider,
    created: Timestamp,
    entropy: &dyn Entropy,
) -> Result<OwnerWrap> {
    let recipient = Recipient {
        scheme: provider.scheme().to_owned(),
        key: provider.key_id(),
        label: provider.label(),
    };
    let context = owner_context(owner, recipient.key);
    let wrapped = provider.wrap(&context, key, entropy).await?;
    // The ring is written before anything can be opened with it: what does not open must not get there.
    let opened = provider.unwrap(&context, &wrapped).await?;
    if opened.expose() != key.expose() {
        return Err(Error::refused(
            format!("{} does not unwrap what it has wrapped", provider.place()),
            "See what is wrong with it, or name another key.",
        ));
    }
    Ok(OwnerWrap {
        recipient,
        wrapped,
        created,
    })
}

/// Wraps a lineage's key with the repository's.
pub(crate) fn wrap_for_repository(
    owner: [u8; 16],
    key: &SecretKey,
    repository_key: &SecretKey,
    created: Timestamp,
    entropy: &dyn Entropy,
) -> OwnerWrap {
    let recipient = Recipient {
        scheme: SCHEME_REPOSITORY.to_owned(),
        key: repository_key.id(),
        label: String::new(),
    };
    let context = owner_context(owner, recipient.key);
    OwnerWrap {
        wrapped: wrap(repository_key, &context, key, entropy),
        recipient,
        created,
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

fn message_of(id: [u8; 16], wrapped: &WrappedKey, created: Timestamp) -> WrapMessage {
    WrapMessage {
        id: Bytes::copy_from_slice(&id),
        nonce: wrapped.nonce.clone().into(),
        ciphertext: wrapped.ciphertext.clone().into(),
        scheme: String::new(),
        created: created.0,
        label: String::new(),
        version: wrapped.version.clone(),
    }
}

fn wrapped_of(message: &WrapMessage) -> WrappedKey {
    WrappedKey {
        nonce: message.nonce.to_vec(),
        ciphertext: message.ciphertext.to_vec(),
        version: message.version.clone(),
    }
}

impl Draft {
    fn context(&self, purpose: Purpose, subject: [u8; 16]) -> WrapContext {
        WrapContext {
            purpose,
            owner: self.owner,
            subject,
        }
    }

    /// Makes the object of the ring.
    pub(crate) fn seal(&self, entropy: &dyn Entropy) -> Bytes {
        let inner = |purpose, id, secret: &SecretKey, created| {
            let wrapped = wrap(&self.owner_key, &self.context(purpose, id), secret, entropy);
            message_of(id, &wrapped, created)
        };
        let mut ring = KeyRingMessage {
            owner: Bytes::copy_from_slice(&self.owner),
            number: self.number,
            owner_keys: (self.wraps.iter())
                .map(|w| WrapMessage {
                    scheme: w.recipient.scheme.clone(),
                    label: w.recipient.label.clone(),
                    ..message_of(w.recipient.key.0, &w.wrapped, w.created)
                })
                .collect(),
            data_keys: (self.data_keys.all().iter())
                .map(|key| inner(Purpose::DataKey, key.id.0, &key.secret, key.created))
                .collect(),
            current: Bytes::copy_from_slice(&self.data_keys.current().id.0),
            code: Bytes::new(),
            former_keys: (self.former_keys.iter())
                .map(|key| inner(Purpose::FormerKey, key.id().0, key, Timestamp(0)))
                .collect(),
        };
        ring.code = code(&self.owner_key, &ring);
        let id = borealis_base::ObjectId::random(entropy);
        let mut builder = ObjectBuilder::new(ObjectKind::KeyRing, id, None::<DataKey>);
        builder.clear(ring.encode_to_vec());
        builder.seal().bytes
    }
}

/// A key ring, for people. No key is in it that is not wrapped.
pub(crate) fn inspect(object: &ObjectView) -> Result<Value> {
    let ring = KeyRingMessage::decode(object.head().clear().clone())
        .map_err(|_| object.head().damaged("its content is malformed"))?;
    let show = |w: &WrapMessage| {
        json!({
            "id": hex(&w.id), "scheme": w.scheme, "label": w.label, "version": w.version,
            "created": Timestamp(w.created),
        })
    };
    let inner = |w: &WrapMessage| json!({"id": hex(&w.id), "created": Timestamp(w.created)});
    Ok(json!({
        "owner": hex(&ring.owner),
        "number": ring.number,
        "owner_key_wrapped_by": ring.owner_keys.iter().map(show).collect::<Vec<_>>(),
        "data_keys": ring.data_keys.iter().map(inner).collect::<Vec<_>>(),
        "current": hex(&ring.current),
        "former_keys": ring.former_keys.iter().map(|w| hex(&w.id)).collect::<Vec<_>>(),
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

    /// Its number.
    pub(crate) fn number(&self) -> u64 {
        self.message.number
    }

    /// Whose keys these are.
    pub(crate) fn owner(&self) -> Result<[u8; 16]> {
        let owner = self.message.owner.as_ref().try_into();
        owner.map_err(|_| Error::damaged(&self.name, "its owner is malformed"))
    }

    /// The owner's key, as it is wrapped for each recipient.
    pub(crate) fn wraps(&self) -> Vec<OwnerWrap> {
        (self.message.owner_keys.iter())
            .filter_map(|w| {
                Some(OwnerWrap {
                    recipient: Recipient {
                        scheme: w.scheme.clone(),
                        key: KeyId::from_slice(&w.id)?,
                        label: w.label.clone(),
                    },
                    wrapped: wrapped_of(w),
                    created: Timestamp(w.created),
                })
            })
            .collect()
    }

    /// The keys that can open it.
    pub(crate) fn recipients(&self) -> Vec<Recipient> {
        self.wraps().into_iter().map(|w| w.recipient).collect()
    }

    fn wrapped_for(&self, key: KeyId) -> Option<WrappedKey> {
        let mut wraps = self.message.owner_keys.iter();
        wraps.find(|w| w.id.as_ref() == key.0).map(wrapped_of)
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

    /// Opens a lineage's ring with a key of the repository; `None` where that did not wrap it.
    pub(crate) fn open_with_repository(
        &self,
        repository_key: &SecretKey,
    ) -> Result<Option<OpenRing>> {
        let id = repository_key.id();
        let Some(wrapped) = self.wrapped_for(id) else {
            return Ok(None);
        };
        let context = owner_context(self.owner()?, id);
        let key = unwrap(repository_key, &context, &wrapped).map_err(|e| self.bad_wrap(e))?;
        self.open(key).map(Some)
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
        let inner = |w: &WrapMessage, purpose| {
            let id =
                KeyId::from_slice(&w.id).ok_or_else(|| damaged("the id of a key is malformed"))?;
            let context = WrapContext {
                purpose,
                owner,
                subject: id.0,
            };
            let secret = unwrap(&owner_key, &context, &wrapped_of(w));
            Ok::<_, Error>((id, secret.map_err(|e| self.bad_wrap(e))?))
        };
        let mut keys = Vec::new();
        for w in &self.message.data_keys {
            let (id, secret) = inner(w, Purpose::DataKey)?;
            keys.push(DataKey {
                id: DataKeyId(id.0),
                secret,
                created: Timestamp(w.created),
            });
        }
        let mut former_keys = Vec::new();
        for w in &self.message.former_keys {
            former_keys.push(inner(w, Purpose::FormerKey)?.1);
        }
        let current = keys
            .iter()
            .find(|key| key.id.0 == self.message.current.as_ref())
            .cloned()
            .ok_or_else(|| damaged("it has no current data key"))?;
        let data_keys = DataKeys::new(current);
        for key in keys {
            data_keys.add(key);
        }
        Ok(OpenRing {
            owner_key,
            former_keys,
            data_keys,
        })
    }

    /// What the next ring is made of where nothing changes.
    pub(crate) fn next(&self, open: OpenRing) -> Result<Draft> {
        Ok(Draft {
            owner: self.owner()?,
            number: self.number() + 1,
            owner_key: open.owner_key,
            former_keys: open.former_keys,
            wraps: self.wraps(),
            data_keys: open.data_keys,
        })
    }
}
