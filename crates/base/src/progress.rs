//! How far long work has come. The library reports, the program draws.

use crate::{Position, Timestamp};

/// What a progress counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things: objects, files, checks.
    Items,
}

/// Receives the progress of one long operation. All methods may be called from any thread, often.
pub trait Progress: Send + Sync {
    /// A phase begins; the one before it has ended. `total` is `None` where it cannot be known.
    fn phase(&self, name: &str, unit: Unit, total: Option<u64>);

    /// `amount` more of the current phase is done.
    fn advance(&self, amount: u64);

    /// A fact worth showing beside the bar.
    fn note(&self, text: &str);

    /// A replay has come to `position`; `time` is the last moment that is settled there, if it is known.
    fn replayed(&self, position: Position, time: Option<Timestamp>) {
        let _ = (position, time);
    }
}

/// Shows nothing, costs nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn phase(&self, _: &str, _: Unit, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
}
