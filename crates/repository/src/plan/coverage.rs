//! Which positions a branch can be replayed through without a break.
//!
//! This one function decides for windows, restore plans, pins and verification alike.

use std::collections::BTreeSet;

use borealis_base::{Branch, Position};

use super::{BaseBackupSummary, LineageState, PieceSummary};

/// Positions `[from, to)` of a branch's path that lie on `branch`: itself, or an ancestor before the fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// Whose log holds them.
    pub branch: Branch,
    /// First position.
    pub from: Position,
    /// Position just past the last one.
    pub to: Position,
}

/// Positions `[from, to)` that are there without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// First position.
    pub from: Position,
    /// Position just past the last one.
    pub to: Position,
}

impl Stretch {
    /// Whether replay can go from `from` through `to` within it.
    pub fn spans(&self, from: Position, to: Position) -> bool {
        self.from <= from && from <= to && to <= self.to
    }
}

/// Position past every log.
const LAST: Position = Position(u64::MAX);

/// The path of a branch from the beginning, oldest leg first; the last leg has no end.
pub fn path(state: &LineageState, branch: Branch) -> Vec<Leg> {
    let mut legs = Vec::new();
    let (mut branch, mut to) = (branch, LAST);
    let mut seen = BTreeSet::new();
    // A ledger that makes a branch its own ancestor is refused where it is folded; here it must
    // merely not run for ever.
    while seen.insert(branch) {
        let from = state
            .branches
            .get(&branch)
            .map_or(Position::ZERO, |start| start.at);
        if from < to {
            legs.push(Leg { branch, from, to });
        }
        let Some(start) = state.branches.get(&branch) else {
            break;
        };
        to = to.min(from);
        branch = start.parent;
    }
    legs.reverse();
    legs
}

/// The path of a branch with the log that is stored of it.
#[derive(Debug, Clone)]
pub struct Coverage<'a> {
    /// The legs, oldest first.
    pub legs: Vec<Leg>,
    /// Unbroken stretches, in order.
    pub stretches: Vec<Stretch>,
    /// Pieces that hold some of it with the leg each serves, by start.
    pub pieces: Vec<(Leg, &'a PieceSummary)>,
}

impl<'a> Coverage<'a> {
    /// The coverage of `branch`.
    pub fn of(state: &'a LineageState, branch: Branch) -> Self {
        let legs = path(state, branch);
        let leg_of = |branch: Branch| legs.iter().copied().find(|leg| leg.branch == branch);
        let mut pieces: Vec<(Leg, &PieceSummary)> = state
            .pieces
            .iter()
            .filter_map(|piece| leg_of(piece.branch).map(|leg| (leg, piece)))
            .filter(|(leg, piece)| piece.start.max(leg.from) < piece.end.min(leg.to))
            .collect();
        pieces.sort_by_key(|(leg, piece)| (piece.start.max(leg.from), piece.end));
        let mut whole: Vec<Stretch> = Vec::new();
        for (leg, piece) in &pieces {
            let (from, to) = (piece.start.max(leg.from), piece.end.min(leg.to));
            match whole.last_mut() {
                Some(last) if from <= last.to => last.to = last.to.max(to),
                _ => whole.push(Stretch { from, to }),
            }
        }
        let mut gaps: Vec<Stretch> = state
            .gaps
            .iter()
            .filter_map(|gap| leg_of(gap.branch).map(|leg| (leg, gap)))
            .filter(|(leg, gap)| gap.from < leg.to && (gap.to > leg.from || gap.from >= leg.from))
            .map(|(leg, gap)| Stretch {
                from: gap.from.max(leg.from),
                to: gap.to.min(leg.to),
            })
            .collect();
        gaps.sort_by_key(|gap| (gap.from, gap.to));
        let stretches = split(&whole, &gaps);
        Self {
            legs,
            stretches,
            pieces,
        }
    }

    /// The leg that `branch` serves on this path.
    pub fn leg_of(&self, branch: Branch) -> Option<Leg> {
        self.legs.iter().copied().find(|leg| leg.branch == branch)
    }

    /// The stretch through which replay can go from `from` to `to`.
    pub fn spanning(&self, from: Position, to: Position) -> Option<Stretch> {
        let after = self
            .stretches
            .partition_point(|stretch| stretch.from <= from);
        // Two stretches can share a boundary, at a break of no length: the earlier one may span it.
        let candidates = after.saturating_sub(2)..after;
        self.stretches
            .get(candidates)?
            .iter()
            .rev()
            .copied()
            .find(|stretch| stretch.spans(from, to))
    }

    /// Whether `base_backup` can be restored to `through` on this path: its pages are those of the
    /// path, they are consistent by then, and the log from its start to there is unbroken.
    pub fn serves(
        &self,
        base_backup: &BaseBackupSummary,
        log_unit: u64,
        through: Position,
    ) -> bool {
        let on_path = self
            .leg_of(base_backup.branch)
            .is_some_and(|leg| base_backup.end <= leg.to);
        on_path
            && base_backup.end <= through
            && self
                .spanning(log_from(base_backup, log_unit), through)
                .is_some()
    }
}

/// Where the log that a restore of `base_backup` needs begins.
pub fn log_from(base_backup: &BaseBackupSummary, log_unit: u64) -> Position {
    base_backup.start.align_down(log_unit.max(1))
}

fn split(whole: &[Stretch], gaps: &[Stretch]) -> Vec<Stretch> {
    let mut out = Vec::new();
    for stretch in whole {
        let mut from = stretch.from;
        for gap in gaps {
            if gap.to < from || gap.from > stretch.to {
                continue;
            }
            if from < gap.from {
                out.push(Stretch { from, to: gap.from });
            }
            from = from.max(gap.to);
        }
        if from < stretch.to {
            out.push(Stretch {
                from,
                to: stretch.to,
            });
        }
    }
    out
}
