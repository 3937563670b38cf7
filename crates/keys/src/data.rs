//! Data keys: what objects are sealed with.

use std::collections::BTreeMap;
use std::fmt;

use borealis_base::Entropy;

use crate::SecretKey;

/// Names one data key; random, public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataKeyId(pub [u8; 16]);

impl DataKeyId {
    /// Reads the 16 bytes of a name; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DataKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One data key with its name.
#[derive(Debug, Clone)]
pub struct DataKey {
    /// Its name, which every object sealed with it carries.
    pub id: DataKeyId,
    /// The secret.
    pub secret: SecretKey,
}

impl DataKey {
    /// A new data key.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut id = [0; 16];
        entropy.fill(&mut id);
        Self {
            id: DataKeyId(id),
            secret: SecretKey::random(entropy),
        }
    }
}

/// The data keys of one owner: one seals, all open.
#[derive(Debug, Clone)]
pub struct DataKeys {
    current: DataKey,
    all: BTreeMap<DataKeyId, SecretKey>,
}

impl DataKeys {
    /// Keys of which `current` seals new objects.
    pub fn new(current: DataKey) -> Self {
        let all = BTreeMap::from([(current.id, current.secret.clone())]);
        Self { current, all }
    }

    /// Adds a key that only opens, such as one retired by a rotation or a parent lineage's.
    pub fn add(&mut self, key: DataKey) {
        self.all.insert(key.id, key.secret);
    }

    /// The key that seals new objects.
    pub fn current(&self) -> &DataKey {
        &self.current
    }

    /// The key of this name.
    pub fn get(&self, id: DataKeyId) -> Option<DataKey> {
        self.all.get(&id).map(|secret| DataKey {
            id,
            secret: secret.clone(),
        })
    }

    /// All keys, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = DataKey> + '_ {
        self.all.iter().map(|(id, secret)| DataKey {
            id: *id,
            secret: secret.clone(),
        })
    }
}
