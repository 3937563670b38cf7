//! What a store's use costs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Created, Listed, Stat, Store, StoreError};

/// Requests and bytes, shared by everything that uses one store. Failed requests count: they are
/// billed too.
#[derive(Debug, Default)]
pub struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    bytes_put: AtomicU64,
    bytes_got: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Creates.
    pub puts: u64,
    /// Reads and stats.
    pub gets: u64,
    /// Listings.
    pub lists: u64,
    /// Removals.
    pub deletes: u64,
    /// Bytes sent in creates.
    pub bytes_put: u64,
    /// Bytes received in reads.
    pub bytes_got: u64,
}

impl Counters {
    /// The counters now.
    pub fn usage(&self) -> Usage {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Usage {
            puts: load(&self.puts),
            gets: load(&self.gets),
            lists: load(&self.lists),
            deletes: load(&self.deletes),
            bytes_put: load(&self.bytes_put),
            bytes_got: load(&self.bytes_got),
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Counts what passes to the store inside.
pub struct CountingStore {
    inner: Arc<dyn Store>,
    counters: Arc<Counters>,
}

impl CountingStore {
    /// Counts what passes to `inner`.
    pub fn new(inner: Arc<dyn Store>, counters: Arc<Counters>) -> Self {
        Self { inner, counters }
    }
}

#[async_trait]
impl Store for CountingStore {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        add(&self.counters.puts, 1);
        add(&self.counters.bytes_put, bytes.len() as u64);
        self.inner.create(name, bytes).await
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        add(&self.counters.gets, 1);
        let bytes = self.inner.read(name).await?;
        add(&self.counters.bytes_got, bytes.len() as u64);
        Ok(bytes)
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        add(&self.counters.gets, 1);
        let bytes = self.inner.read_range(name, range).await?;
        add(&self.counters.bytes_got, bytes.len() as u64);
        Ok(bytes)
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        add(&self.counters.gets, 1);
        self.inner.stat(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        add(&self.counters.lists, 1);
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        add(&self.counters.deletes, 1);
        self.inner.delete(name).await
    }

    fn url(&self) -> String {
        self.inner.url()
    }
}
