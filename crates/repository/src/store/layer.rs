//! A store in front of another one.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Created, Fencing, Listed, Stat, Store, StoreError};

/// Does something before or after another store does; what it does not define passes through.
#[async_trait]
pub trait StoreLayer: Send + Sync {
    /// The other store.
    fn inner(&self) -> &dyn Store;

    /// As [`Store::create`].
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        self.inner().create(name, bytes).await
    }

    /// Before [`Store::read`] and [`Store::read_range`], which end with its error.
    async fn before_read(&self, _name: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// As [`Store::read`], after [`StoreLayer::before_read`].
    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.inner().read(name).await
    }

    /// As [`Store::delete`].
    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        self.inner().delete(name).await
    }
}

#[async_trait]
impl<T: StoreLayer> Store for T {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        StoreLayer::create(self, name, bytes).await
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.before_read(name).await?;
        StoreLayer::read(self, name).await
    }

    async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.before_read(name).await?;
        self.inner().read_range(name, range).await
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
        self.inner().stat(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.inner().list(prefix).await
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        StoreLayer::delete(self, name).await
    }

    async fn fencing(&self) -> Result<Fencing, StoreError> {
        self.inner().fencing().await
    }

    fn url(&self) -> String {
        self.inner().url()
    }
}
