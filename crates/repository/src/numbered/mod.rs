//! Numbered, chained objects: what the ledger, the catalog and the log of pins have in common.
//!
//! Entry `n` exists only if `n - 1` did when it was created, and carries the digest of its head.
//! Every 64th entry repeats the 63 before it (a *recap*), so that a cold reader needs few gets.

mod item;
mod log;
mod track;

pub use item::{EntryHead, Item};
pub use log::{Logged, NumberedLog};

pub(crate) use item::{Chain, decode_items, encode_items};
pub(crate) use track::{Collected, FRAME_BODY, FRAME_RECAP, NewEntry, Track, TrackName};

use crate::Result;
use crate::store::Store;

/// Entries per recap.
pub const ENTRIES_PER_RECAP: u64 = 64;

/// The highest number that exists, of objects numbered without holes from 1, none of which is ever
/// removed. `known` exists, or is zero. Asks about the logarithm of the distance.
pub(crate) async fn highest(
    store: &dyn Store,
    name: impl Fn(u64) -> String,
    known: u64,
) -> Result<u64> {
    let mut low = known;
    let mut step = 1;
    let mut high = loop {
        let next = low.saturating_add(step);
        if store.stat(&name(next)).await?.is_none() {
            break next;
        }
        low = next;
        step = step.saturating_mul(2);
    };
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if store.stat(&name(middle)).await?.is_some() {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// How often and how long an unanswered request is tried before its caller hears of it.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Tries, the first included.
    pub attempts: u32,
    /// Pause after the first try; it doubles from try to try, up to 16 times.
    pub pause: std::time::Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            pause: std::time::Duration::from_millis(100),
        }
    }
}

impl Patience {
    /// Waits after try `attempt` (from 1); false where there is none left.
    pub(crate) async fn wait(&self, attempt: u32) -> bool {
        if attempt >= self.attempts {
            return false;
        }
        tokio::time::sleep(self.pause * (1 << attempt.saturating_sub(1).min(4))).await;
        true
    }
}
