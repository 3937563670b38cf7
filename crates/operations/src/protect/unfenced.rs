//! Opening a writer where the store fences nobody (single-writer mode).
//!
//! The ledger's epochs hold only where creates are atomic. Where they are not, a writer that is still
//! alive, or a request of one that is dead, can replace what its successor has written. What is left is to
//! succeed nobody who may be alive, and to let the requests of the dead end first.

use std::time::Duration;

use borealis_repository::ledger::Decision;
use borealis_repository::store::{Fencing, Store};

use crate::error::{Error, Result};

/// How long the successor of a dead writer waits. Its connections were closed when it died; this is for
/// what the store had received by then.
const REQUESTS_END: Duration = Duration::from_secs(10);

/// Sees to it that a writer that opens upon `decision`, which is not to refuse, follows nobody who may
/// still write. `insists`: a person says that the other one has stopped. Returns whether the writer is in
/// single-writer mode.
///
/// # Errors
/// Refused where the other one is only silent, and where the URL forbids single-writer mode.
pub async fn follow(store: &dyn Store, decision: &Decision, insists: bool) -> Result<bool> {
    let fencing = store.fencing().await;
    if fencing.map_err(borealis_repository::Error::from)? == Fencing::Atomic {
        return Ok(false);
    }
    match decision {
        Decision::TakeOver if !insists => Err(Error::refused(
            "the protect of this cluster is silent, and the store can't keep it from writing: it ignores \
             create-if-absent (single-writer mode)",
            "Make sure that it has stopped, then run borealis protect with --take-over.",
        )),
        Decision::Replace | Decision::TakeOver => {
            tracing::info!(
                "single-writer mode: waiting until requests of the last protect have ended"
            );
            tokio::time::sleep(REQUESTS_END).await;
            Ok(true)
        }
        Decision::Free | Decision::Refuse { .. } => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;
    use std::sync::Arc;

    use async_trait::async_trait;
    use borealis_base::{ErrorKind, SeededEntropy, SystemClock};
    use borealis_repository::store::{Absent, Created, Listed, Outfit, Stat, StoreError, open};
    use bytes::Bytes;

    /// A store that fences nobody; nothing else of it is used.
    struct Unfenced(Arc<dyn Store>);

    #[async_trait]
    impl Store for Unfenced {
        async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
            self.0.create(name, bytes).await
        }
        async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
            self.0.read(name).await
        }
        async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
            self.0.read_range(name, range).await
        }
        async fn stat(&self, name: &str) -> Result<Option<Stat>, StoreError> {
            self.0.stat(name).await
        }
        async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
            self.0.list(prefix).await
        }
        async fn delete(&self, name: &str) -> Result<(), StoreError> {
            self.0.delete(name).await
        }
        async fn fencing(&self) -> Result<Fencing, StoreError> {
            Ok(Fencing::SingleWriter)
        }
        fn url(&self) -> String {
            self.0.url()
        }
    }

    async fn folder() -> (tempfile::TempDir, Arc<dyn Store>) {
        let dir = tempfile::tempdir().unwrap();
        let outfit = Outfit {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SeededEntropy::new(1)),
            counters: Arc::default(),
        };
        let store = open(dir.path().to_str().unwrap(), Absent::Refuse, &outfit).await;
        (dir, store.unwrap())
    }

    #[tokio::test]
    async fn a_silent_writer_is_never_replaced_where_nothing_fences() {
        let (_dir, fenced) = folder().await;
        let unfenced = Unfenced(fenced.clone());
        let refused = follow(&unfenced, &Decision::TakeOver, false)
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(refused.hint().unwrap().contains("--take-over"));
        assert!(!follow(&*fenced, &Decision::TakeOver, false).await.unwrap());
        assert!(follow(&unfenced, &Decision::Free, false).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_the_dead_are_waited_for_where_nothing_fences() {
        let (_dir, fenced) = folder().await;
        let unfenced = Unfenced(fenced);
        for (decision, insists) in [(Decision::Replace, false), (Decision::TakeOver, true)] {
            let before = tokio::time::Instant::now();
            assert!(follow(&unfenced, &decision, insists).await.unwrap());
            assert!(before.elapsed() >= REQUESTS_END, "{decision:?}");
        }
    }
}
