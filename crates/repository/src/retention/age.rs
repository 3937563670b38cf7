//! How old an entry is, told in a way that one wrong clock can't bend.
//!
//! A plan must not remove a window because a clock stepped. So age is counted along the ledger, from the
//! newest entry back, by the times at which entries were recorded; between two neighbours at most
//! [`RECORDED_STEP_MAX`] counts. A clock that jumps ten years ahead
//! makes what came before an hour older; one that steps back makes nothing younger. Outages count for less
//! than they lasted, so that a window is kept too long rather than too short.

use std::time::Duration;

use borealis_base::Timestamp;

use crate::plan::LineageState;

/// The most that may lie between two neighbouring entries and still be believed. A running writer
/// records one at least every 30 seconds.
pub const RECORDED_STEP_MAX: Duration = Duration::from_secs(3_600);

/// Recorded entries in order, each with its age in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Ages(Vec<(u64, u64)>);

fn recorded(state: &LineageState) -> Vec<(u64, Timestamp)> {
    let mut all: Vec<(u64, Timestamp)> = (state.pieces.iter())
        .map(|piece| (piece.entry, piece.recorded_at))
        .chain((state.settled.iter()).map(|settled| (settled.entry, settled.recorded_at)))
        .chain((state.base_backups.iter()).map(|base| (base.entry, base.recorded_at)))
        .collect();
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
        let mut newer: Option<(Timestamp, u64)> = None;
        for (entry, at) in recorded(state).into_iter().rev() {
            let age = newer.map_or(0, |(later, age)| {
                let passed = later.since(at).min(RECORDED_STEP_MAX);
                let passed = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
                age.saturating_add(passed)
            });
            all.push((entry, age));
            newer = Some((at, age));
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
