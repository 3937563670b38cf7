//! A store that fails as stores do, for tests and simulations: replies are lost, creates land late or
//! twice, requests take long or find the store full. What happens follows from a seed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::SeededEntropy;
use bytes::Bytes;

use super::{Created, Fencing, Listed, Stat, Store, StoreError, StoreErrorKind};

/// How often each fault happens, in thousandths of all requests it can happen to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A create takes place and its reply is lost.
    pub lost_replies: u64,
    /// A create is answered with an error and takes place later.
    pub late_creates: u64,
    /// A create takes place, and again later.
    pub duplicates: u64,
    /// A create is answered with "full" and does not take place.
    pub full: u64,
    /// Any request is answered with an error and does nothing.
    pub failures: u64,
    /// Any request takes [`Faults::stall`] instead of [`Faults::delay_max`].
    pub stalls: u64,
    /// Longest ordinary delay, before and again after the request takes place.
    pub delay_max: Duration,
    /// How long a stall is, and how late a late create may land.
    pub stall: Duration,
}

/// Passes requests to the store inside, with [`Faults`].
pub struct FaultStore {
    inner: Arc<dyn Store>,
    faults: Faults,
    random: SeededEntropy,
}

impl FaultStore {
    /// Faults before `inner`, of which `seed` determines which come when.
    pub fn new(inner: Arc<dyn Store>, faults: Faults, seed: u64) -> Self {
        Self {
            inner,
            faults,
            random: SeededEntropy::new(seed),
        }
    }

    fn happens(&self, per_thousand: u64) -> bool {
        self.random.below(1_000) < per_thousand
    }

    fn up_to(&self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.below(micros.max(1)))
    }

    async fn pause(&self) {
        let pause = if self.happens(self.faults.stalls) {
            self.faults.stall
        } else {
            self.up_to(self.faults.delay_max)
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn error(&self, kind: StoreErrorKind, operation: &'static str, name: &str) -> StoreError {
        StoreError::new(kind, operation, name, &self.inner.url(), "injected fault")
    }

    async fn before(&self, operation: &'static str, name: &str) -> Result<(), StoreError> {
        self.pause().await;
        if self.happens(self.faults.failures) {
            return Err(self.error(StoreErrorKind::Unreachable, operation, name));
        }
        Ok(())
    }

    fn land_later(&self, name: &str, bytes: Bytes) {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        let pause = self.up_to(self.faults.stall);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            // Nobody waits for this answer.
            let _ = inner.create(&name, bytes).await;
        });
    }
}

#[async_trait]
impl Store for FaultStore {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        self.before("create", name).await?;
        if self.happens(self.faults.full) {
            return Err(self.error(StoreErrorKind::Full, "create", name));
        }
        if self.happens(self.faults.late_creates) {
            self.land_later(name, bytes);
            return Err(self.error(StoreErrorKind::Unreachable, "create", name));
        }
        if self.happens(self.faults.duplicates) {
            self.land_later(name, bytes.clone());
        }
        let created = self.inner.create(name, bytes).await?;
        if self.happens(self.faults.lost_replies) {
            return Err(self.error(StoreErrorKind::Unreachable, "create", name));
        }
        self.pause().await;
        Ok(created)
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.before("read", name).await?;
        let bytes = self.inner.read(name).await;
        self.pause().await;
        bytes
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.before("read", name).await?;
        let bytes = self.inner.read_range(name, range).await;
        self.pause().await;
        bytes
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        self.before("stat", name).await?;
        let stat = self.inner.stat(name).await;
        self.pause().await;
        stat
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.before("list", prefix).await?;
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.before("delete", name).await?;
        self.inner.delete(name).await
    }

    async fn fencing(&self) -> Result<Fencing, StoreError> {
        self.inner.fencing().await
    }

    fn url(&self) -> String {
        self.inner.url()
    }
}
