//! A store in memory, for tests and simulations.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use borealis_base::{Clock, ManualClock, Timestamp};
use bytes::Bytes;

use super::{Created, Listed, Stat, Store, StoreError, StoreErrorKind, check_name};

const URL: &str = "memory:";

/// A store in memory. Clones of an `Arc` of it share the objects.
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, (Bytes, Timestamp)>>,
    clock: Arc<dyn Clock>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Arc::new(ManualClock::new(Timestamp(0))))
    }
}

impl MemoryStore {
    /// An empty store whose objects bear the time of `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            objects: Mutex::default(),
            clock,
        }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, (Bytes, Timestamp)>> {
        self.objects.lock().expect("no holder panics")
    }

    /// Replaces an object's bytes, as damage or an attacker would. No part of the repository can.
    pub fn tamper(&self, name: &str, bytes: Bytes) {
        self.objects()
            .insert(name.to_owned(), (bytes, self.clock.now()));
    }

    fn find(&self, operation: &'static str, name: &str) -> Result<(Bytes, Timestamp), StoreError> {
        self.objects().get(name).cloned().ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::NotFound,
                operation,
                name,
                URL,
                "no such object",
            )
        })
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        check_name(URL, "create", name)?;
        let mut objects = self.objects();
        if objects.contains_key(name) {
            return Ok(Created::Exists);
        }
        objects.insert(name.to_owned(), (bytes, self.clock.now()));
        Ok(Created::New)
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.find("read", name).map(|(bytes, _)| bytes)
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (bytes, _) = self.find("read", name)?;
        let len = bytes.len() as u64;
        let (start, end) = (range.start.min(len) as usize, range.end.min(len) as usize);
        Ok(bytes.slice(start..end.max(start)))
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        Ok(self.objects().get(name).map(|(bytes, modified)| Stat {
            len: bytes.len() as u64,
            modified: *modified,
        }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let objects = self.objects();
        let from = objects.range(prefix.to_owned()..);
        Ok(from
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, (bytes, modified))| Listed {
                name: name.clone(),
                stat: Stat {
                    len: bytes.len() as u64,
                    modified: *modified,
                },
            })
            .collect())
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.objects().remove(name);
        Ok(())
    }

    fn url(&self) -> String {
        URL.to_owned()
    }
}
