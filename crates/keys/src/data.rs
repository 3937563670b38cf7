//! Data keys: what objects are sealed with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use borealis_base::{Entropy, Timestamp};

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
    /// When it was made; the beginning of time where that is not known.
    pub created: Timestamp,
}

impl DataKey {
    /// A new data key, made nobody knows when.
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self::made(Timestamp(0), entropy)
    }

    /// A new data key, made at `created`.
    pub fn made(created: Timestamp, entropy: &dyn Entropy) -> Self {
        let mut id = [0; 16];
        entropy.fill(&mut id);
        Self {
            id: DataKeyId(id),
            secret: SecretKey::random(entropy),
            created,
        }
    }
}

/// The data keys of one owner: one seals, all open.
///
/// Shared by everyone who reads and writes what is the owner's. Keys are added, and another one may
/// come to seal; none is taken away, since objects sealed with it are still there.
#[derive(Debug)]
pub struct DataKeys {
    held: RwLock<Held>,
    source: OnceLock<Arc<dyn KeySource>>,
}

/// Where newer data keys are looked for. Its errors are those of whoever keeps the keys.
#[async_trait]
pub trait KeySource: Send + Sync {
    /// Adds to `keys` what has come since.
    async fn refresh(
        &self,
        keys: &DataKeys,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

impl fmt::Debug for dyn KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySource")
    }
}

#[derive(Debug, Clone)]
struct Held {
    current: DataKeyId,
    all: BTreeMap<DataKeyId, DataKey>,
}

impl DataKeys {
    /// Keys of which `current` seals new objects.
    pub fn new(current: DataKey) -> Self {
        Self {
            held: RwLock::new(Held {
                current: current.id,
                all: BTreeMap::from([(current.id, current)]),
            }),
            source: OnceLock::new(),
        }
    }

    /// Names the place where newer keys are looked for; a second one is of no effect.
    #[must_use]
    pub fn with_source(self, source: Arc<dyn KeySource>) -> Self {
        let _ = self.source.set(source);
        self
    }

    /// Looks for newer keys where there is a place for that: whoever writes may have gone on to a new one
    /// since these were read.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn refresh(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match self.source.get() {
            Some(source) => source.refresh(self).await,
            None => Ok(()),
        }
    }

    // Each change is one insertion or one assignment: a holder that panicked left nothing half-done.
    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_mut(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key that only opens, such as one retired by a rotation or a parent lineage's.
    pub fn add(&self, key: DataKey) {
        self.held_mut().all.insert(key.id, key);
    }

    /// Takes over the keys of `newer`, and which of them seals.
    pub fn renew(&self, newer: &Self) {
        let newer = newer.held().clone();
        let mut held = self.held_mut();
        held.all.extend(newer.all);
        held.current = newer.current;
    }

    /// The key that seals new objects.
    ///
    /// # Panics
    /// Never: the current key is one of all.
    pub fn current(&self) -> DataKey {
        let held = self.held();
        let current = held.all.get(&held.current);
        current.expect("the current key is one of all").clone()
    }

    /// The key of this name.
    pub fn get(&self, id: DataKeyId) -> Option<DataKey> {
        self.held().all.get(&id).cloned()
    }

    /// All keys, in the order of their names.
    pub fn all(&self) -> Vec<DataKey> {
        self.held().all.values().cloned().collect()
    }
}

impl Clone for DataKeys {
    fn clone(&self) -> Self {
        Self {
            held: RwLock::new(self.held().clone()),
            source: self.source.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::SeededEntropy;

    #[test]
    fn a_newer_set_of_keys_seals_and_the_older_ones_still_open() {
        let entropy = SeededEntropy::new(1);
        let (old, new) = (DataKey::random(&entropy), DataKey::random(&entropy));
        let keys = DataKeys::new(old.clone());
        let newer = DataKeys::new(new.clone());
        keys.renew(&newer);
        assert_eq!(keys.current().id, new.id);
        let opened = keys.get(old.id).unwrap();
        assert_eq!(opened.secret.expose(), old.secret.expose());
        assert_eq!(keys.all().len(), 2);
    }
}
