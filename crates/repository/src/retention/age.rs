//! How old an entry is, told in a way that one wrong clock can't bend.
//!
//! A plan must not remove a window because a clock stepped. So age is counted along the ledger, from the
//! newest entry back, by the times at which entries were recorded; between two neighbours at most
//! [`RECORDED_STEP_MAX`] counts. A clock that jumps ten years ahead
//! makes what came before an hour older; one that steps back makes nothing younger. Outages count for less
//! than they lasted, so that a window is kept too long rather than too short. What stands for entries that are not kept
//! brings their steps with it: an idle cluster's history ages like any other.

use std::time::Duration;

use borealis_base::Timestamp;

use crate::plan::LineageState;

/// The most that may lie between two neighbouring entries and still be believed. A running writer
/// records one at least every 30 seconds.
pub const RECORDED_STEP_MAX: Duration = Duration::from_secs(3_600);

/// The most that lies between the first and the last part of merged log: [`Limits::age`](crate::maintenance::Limits).
const MERGED_AGE_MAX: Duration = Duration::from_secs(3_600);

/// Recorded entries in order, each with its age in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Ages(Vec<(u64, u64)>);

/// An entry that stands for some that are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Recorded {
    entry: u64,
    at: Timestamp,
    /// When the first of them was recorded.
    since: Timestamp,
    /// The time that is believed to have passed since the first,
    lasted: Duration,
    /// and, where `since` is not known, might have.
    might_last: Duration,
}

impl Recorded {
    fn alone(entry: u64, at: Timestamp) -> Self {
        Self {
            entry,
            at,
            since: at,
            lasted: Duration::ZERO,
            might_last: Duration::ZERO,
        }
    }

    /// The time that is believed to have passed from `older` to this one.
    fn passed_since(&self, older: Timestamp) -> Duration {
        let step = (self.since.since(older)).min(RECORDED_STEP_MAX + self.might_last);
        step.saturating_add(self.lasted)
    }
}

fn recorded(state: &LineageState) -> Vec<Recorded> {
    let pieces = state.pieces.iter().map(|piece| Recorded {
        might_last: piece.merged.map_or(Duration::ZERO, |_| MERGED_AGE_MAX),
        ..Recorded::alone(piece.entry, piece.recorded_at)
    });
    let settled = state.settled.iter().map(|settled| Recorded {
        since: settled.run.since,
        lasted: settled.run.lasted,
        ..Recorded::alone(settled.entry, settled.recorded_at)
    });
    let bases = (state.base_backups.iter()).map(|it| Recorded::alone(it.entry, it.recorded_at));
    let mut all: Vec<Recorded> = pieces.chain(settled).chain(bases).collect();
    all.sort_unstable();
    all
}

/// When the newest entry was recorded.
pub(super) fn newest_recorded(state: &LineageState) -> Option<Timestamp> {
    let pieces = state.pieces.last().map(|it| (it.entry, it.recorded_at));
    let settled = state.settled.last().map(|it| (it.entry, it.recorded_at));
    let bases = (state.base_backups.last()).map(|it| (it.entry, it.recorded_at));
    [pieces, settled, bases]
        .into_iter()
        .flatten()
        .max()
        .map(|(_, at)| at)
}

/// The time that the ledger of a lineage shows to have passed since its first entry.
pub fn recorded_span(state: &LineageState) -> Duration {
    let oldest = Ages::of(state).0.first().map_or(0, |(_, age)| *age);
    Duration::from_micros(oldest)
}

impl Ages {
    pub(super) fn of(state: &LineageState) -> Self {
        let mut all: Vec<(u64, u64)> = Vec::new();
        let mut newer: Option<(Recorded, u64)> = None;
        for recorded in recorded(state).into_iter().rev() {
            let age = newer.map_or(0, |(later, age)| {
                let passed = later.passed_since(recorded.at);
                let passed = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
                age.saturating_add(passed)
            });
            all.push((recorded.entry, age));
            newer = Some((recorded, age));
        }
        all.reverse();
        Self(all)
    }

    /// The first entry that is no older than `age`; past the newest one where none is.
    pub(super) fn first_within(&self, age: Duration) -> u64 {
        let age = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        let index = self.0.partition_point(|(_, older)| *older > age);
        match self.0.get(index) {
            Some((entry, _)) => *entry,
            None => self.0.last().map_or(0, |(entry, _)| entry + 1),
        }
    }
}
