//! A scrub goes on for weeks, and maintenance beside it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::plan::Damage;
use crate::scrub::{Host, scrub};

/// After the first object has been read, what was listed is merged, and what that replaced is removed.
struct Meanwhile {
    history: tokio::sync::Mutex<History>,
    store_clock: Arc<ManualClock>,
    removed: AtomicBool,
}

#[async_trait]
impl Host for Meanwhile {
    async fn begins(&self, _: u64, _: u64) {}

    async fn has_read(&self, _: u64) -> bool {
        if self.removed.swap(true, Ordering::Relaxed) {
            return true;
        }
        let mut history = self.history.lock().await;
        let mut upkeep = history.upkeep();
        for _ in 0..4 * SHAPE.checkpoint {
            history.piece().await;
            let head = history.writer.state().head;
            history.writer.note_read_back(head);
            history.clock.advance(Duration::from_secs(1));
        }
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        assert!(turn.pieces > 0 && turn.floor.is_some(), "{turn:?}");
        self.store_clock.advance(GRACE);
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        assert!(turn.removed > 0, "{turn:?}");
        true
    }

    async fn before_second_look(&self) {}

    async fn found(&self, damage: &Damage, _: &LineageState) {
        panic!("{damage:?}");
    }

    async fn sound(&self, _: &str) {}
}

#[test]
fn what_was_merged_and_removed_while_a_scrub_went_on_is_no_damage() {
    runtime().block_on(async {
        let store_clock = Arc::new(ManualClock::new(Timestamp(0)));
        let memory = Arc::new(MemoryStore::new(store_clock.clone()));
        let mut history = History::new(memory.clone(), 11).await;
        for _ in 0..3 * SHAPE.checkpoint {
            history.piece().await;
        }
        let (lineage, before) = (history.lineage.clone(), entries_left(&memory).await);
        let host = Meanwhile {
            history: tokio::sync::Mutex::new(history),
            store_clock,
            removed: AtomicBool::new(false),
        };
        let outcome = scrub(&lineage, &host, &NoProgress).await.unwrap();
        assert!(outcome.complete && outcome.standing.is_empty());
        assert!(outcome.objects as usize >= before);
        // It reads merged log, too.
        let outcome = scrub(&lineage, &host, &NoProgress).await.unwrap();
        assert!(outcome.complete && outcome.bytes > 0, "{outcome:?}");
    });
}
