//! What a store's use costs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Created, Fencing, Listed, Stat, Store, StoreError};

/// Requests and bytes, shared by everything that uses one store. Failed requests count: they are
/// billed too.
#[derive(Debug, Default)]
pub struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    retries: AtomicU64,
    unfenced_creates: AtomicU64,
    bytes_put: AtomicU64,
    bytes_got: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Creates, and the requests of an upload in parts.
    pub puts: u64,
    /// Reads and stats.
    pub gets: u64,
    /// Listings.
    pub lists: u64,
    /// Removals.
    pub deletes: u64,
    /// How many of all these were made because the one before gave no answer that counts.
    pub retries: u64,
    /// Creates in single-writer mode, which no store made atomic.
    pub unfenced_creates: u64,
    /// Bytes sent in creates.
    pub bytes_put: u64,
    /// Bytes received in reads.
    pub bytes_got: u64,
}

/// What a request is billed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Put,
    Get,
    List,
    Delete,
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
            retries: load(&self.retries),
            unfenced_creates: load(&self.unfenced_creates),
            bytes_put: load(&self.bytes_put),
            bytes_got: load(&self.bytes_got),
        }
    }

    pub(super) fn request(&self, verb: Verb) {
        let counter = match verb {
            Verb::Put => &self.puts,
            Verb::Get => &self.gets,
            Verb::List => &self.lists,
            Verb::Delete => &self.deletes,
        };
        add(counter, 1);
    }

    pub(super) fn sent(&self, bytes: u64) {
        add(&self.bytes_put, bytes);
    }

    pub(super) fn received(&self, bytes: u64) {
        add(&self.bytes_got, bytes);
    }

    pub(super) fn retry(&self) {
        add(&self.retries, 1);
    }

    pub(super) fn unfenced_create(&self) {
        add(&self.unfenced_creates, 1);
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
        self.counters.request(Verb::Put);
        self.counters.sent(bytes.len() as u64);
        self.inner.create(name, bytes).await
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.counters.request(Verb::Get);
        let bytes = self.inner.read(name).await?;
        self.counters.received(bytes.len() as u64);
        Ok(bytes)
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.counters.request(Verb::Get);
        let bytes = self.inner.read_range(name, range).await?;
        self.counters.received(bytes.len() as u64);
        Ok(bytes)
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        self.counters.request(Verb::Get);
        self.inner.stat(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.counters.request(Verb::List);
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.counters.request(Verb::Delete);
        self.inner.delete(name).await
    }

    async fn fencing(&self) -> Result<Fencing, StoreError> {
        self.inner.fencing().await
    }

    fn url(&self) -> String {
        self.inner.url()
    }
}
