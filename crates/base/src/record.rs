//! Log records, and the moments that stand behind them.

use crate::{Position, Timestamp};

/// Where one log record lies: `[start, end)`.
///
/// Both ends are kept because a recovery target compares a record's start while a person means its
/// end (PostgreSQL: `recoveryStopsBefore` in `xlogrecovery.c`); one cannot be computed from the
/// other without the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RecordSpan {
    /// Position of the record's first byte.
    pub start: Position,
    /// Position just past its last byte (alignment padding included, as the engine counts it):
    /// where the next record may begin, and to where the log must be kept.
    pub end: Position,
}

/// One step of a time map: every moment after the step before it, up to and including
/// `settled_through`, stands just behind `last_record`.
///
/// Within a log, moments strictly increase and positions do not decrease from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeStep {
    /// The last moment that this step settles.
    pub settled_through: Timestamp,
    /// The last record that a restore to such a moment replays.
    pub last_record: RecordSpan,
}
