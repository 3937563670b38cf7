//! Removing what was replaced.

use super::*;

/// A store that refuses deletions, or breaks off after so many.
struct Deleting {
    inner: Arc<MemoryStore>,
    left: std::sync::atomic::AtomicU64,
    kind: crate::store::StoreErrorKind,
}

#[async_trait]
impl StoreLayer for Deleting {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn delete(&self, name: &str) -> Answer<()> {
        use std::sync::atomic::Ordering;
        let allowed = |left: u64| left.checked_sub(1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        if self.left.fetch_update(set, get, allowed).is_err() {
            let url = self.inner.url();
            let what = "injected";
            return Err(crate::store::StoreError::new(
                self.kind, "delete", name, &url, what,
            ));
        }
        self.inner.delete(name).await
    }
}

/// A maintained lineage in a store whose clock goes, and a day later.
async fn a_day_later() -> (Arc<MemoryStore>, History) {
    let clock = Arc::new(ManualClock::new(Timestamp(0)));
    let memory = Arc::new(MemoryStore::new(clock.clone()));
    let (history, _) = aged(memory.clone(), 5).await;
    clock.advance(GRACE);
    (memory, history)
}

#[test]
fn without_the_right_to_delete_everything_else_is_done() {
    use crate::store::StoreErrorKind::Denied;
    runtime().block_on(async {
        let (memory, mut history) = a_day_later().await;
        let store = Arc::new(Deleting {
            inner: memory.clone(),
            left: std::sync::atomic::AtomicU64::new(0),
            kind: Denied,
        });
        for _ in 0..40 {
            history.piece().await;
            history.writer.note_read_back(history.writer.state().head);
        }
        let before = entries_left(&memory).await;
        let unable = lineage(store, 9, &history.clock);
        let mut upkeep = Upkeep::new(unable, Holder::default()).with_limits(LIMITS);
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        assert!(turn.may_not_remove && turn.removed == 0, "{turn:?}");
        assert!(turn.pieces > 0 && turn.floor.is_some(), "{turn:?}");
        assert_eq!(entries_left(&memory).await, before);
        // With the right, it goes on from there.
        let turn = history.upkeep().turn(Bounds::default(), &NoProgress).await;
        let turn = turn.unwrap();
        assert!(turn.removed > 0 && !turn.may_not_remove, "{turn:?}");
        assert!(entries_left(&memory).await < before);
    });
}

/// Litestream and Neon leaked what a deletion that was cut off had not come to.
#[test]
fn a_removal_that_is_cut_off_anywhere_goes_on_to_its_end() {
    use crate::store::StoreErrorKind::Unreachable;
    runtime().block_on(async {
        let whole = {
            let (memory, history) = a_day_later().await;
            let turn = history.upkeep().turn(Bounds::default(), &NoProgress).await;
            assert!(turn.unwrap().removed > 0);
            entries_left(&memory).await
        };
        for cut in [0, 1, 7, 30] {
            let (memory, history) = a_day_later().await;
            let store = Arc::new(Deleting {
                inner: memory.clone(),
                left: std::sync::atomic::AtomicU64::new(cut),
                kind: Unreachable,
            });
            let cut_off = lineage(store, 9, &history.clock);
            let mut upkeep = Upkeep::new(cut_off, Holder::default()).with_limits(LIMITS);
            let turn = upkeep.turn(Bounds::default(), &NoProgress).await;
            assert_eq!(turn.unwrap_err().kind(), ErrorKind::Unreachable);
            let turn = history.upkeep().turn(Bounds::default(), &NoProgress).await;
            turn.unwrap();
            assert_eq!(entries_left(&memory).await, whole, "cut off after {cut}");
            let reader = history.lineage.reader().await.unwrap();
            assert_eq!(reader.state().pieces.last().unwrap().end, history.at);
        }
    });
}

/// Two maintainers found the same floor old enough. The one that comes second finds the baseline that it needs
/// removed, since that goes with the next floor: it is fenced, and nothing is damaged.
#[test]
fn whoever_comes_second_to_a_floor_is_fenced_and_calls_nothing_damaged() {
    runtime().block_on(async {
        let (_, history) = a_day_later().await;
        let mut slow = history.lineage.open_maintainer(opening()).await.unwrap();
        let mut quick = history.lineage.open_maintainer(opening()).await.unwrap();
        let mut floors = 0;
        while let Some(removed) = quick.remove_below_next_floor(GRACE).await.unwrap() {
            assert!(removed > 0);
            floors += 1;
        }
        assert!(floors > 1);
        let error = slow.remove_below_next_floor(GRACE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    });
}
