//! What a scrub has found lost or damaged, and what can be relied on without it. Pure.

use std::fmt;

use borealis_base::{Branch, ObjectId, Timestamp};

use super::{BaseBackupSummary, Edge, GapSummary, LineageState, Window, what_a_pin_needs};

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is named and does not exist.
    Missing,
    /// It is not what was written.
    Damaged,
}

impl Fault {
    /// The word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged => "damaged",
        }
    }
}

/// Which part of a repository is hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A log piece, by its ledger entry.
    LogPiece(u64),
    /// A manifest.
    Manifest(ObjectId),
    /// Frames of a pack; none means all of it.
    Pack(ObjectId, Vec<u32>),
    /// What no restore reads: an entry of the ledger that later ones repeat, an epoch, a digest.
    Other,
}

/// An object that a scrub found lost or damaged. It stands until a later scrub finds the object sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// When it was found, by the scrubber's clock.
    pub found_at: Timestamp,
    /// The object's name in the store.
    pub object: String,
    /// What is wrong.
    pub fault: Fault,
    /// What is hit.
    pub part: Part,
    /// In words, with the object's name.
    pub what: String,
    /// The ledger entries of base backups, partial ones included, that need what is hit.
    pub base_backups: Vec<u64>,
    /// The last ledger entry that was looked at for these.
    pub looked_through: u64,
}

/// A base backup that nothing can be restored from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBaseBackup {
    /// The base backup.
    pub base_backup: BaseBackupSummary,
    /// The first object that was found lost or damaged.
    pub object: String,
}

/// Moments and positions that were restorable and are not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostRange {
    /// The branch.
    pub branch: Branch,
    /// The first one lost; where `after` is set, the last one before it that can be restored.
    pub from: Edge,
    /// Whether `from` itself can be restored.
    pub after: bool,
    /// The last one lost; where `before` is set, the first one behind it that can be restored.
    pub to: Edge,
    /// Whether `to` itself can be restored.
    pub before: bool,
}

impl fmt::Display for LostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (
            if self.after { "after" } else { "from" },
            if self.before { "before" } else { "to" },
        );
        if let (Some(first), Some(last)) = (self.from.time, self.to.time) {
            write!(f, "moments {from} {first} {to} {last}, ")?;
        }
        write!(
            f,
            "positions {from} {} {to} {} on branch {}",
            self.from.position, self.to.position, self.branch
        )
    }
}

/// What can be restored by `before` and can't by `after`.
pub fn lost(before: &[Window], after: &[Window]) -> Vec<LostRange> {
    let mut lost = Vec::new();
    for window in before {
        let branch = window.branch;
        let inside = |other: &&Window| {
            other.branch == branch
                && window.earliest.position <= other.earliest.position
                && other.latest.position <= window.latest.position
        };
        let mut left: Vec<&Window> = after.iter().filter(inside).collect();
        left.sort_by_key(|other| other.earliest.position);
        let (mut from, mut open) = (window.earliest, false);
        for other in left {
            if from.position < other.earliest.position {
                lost.push(LostRange {
                    branch,
                    from,
                    after: open,
                    to: other.earliest,
                    before: true,
                });
            }
            (from, open) = (other.latest, true);
        }
        if !open || from.position < window.latest.position {
            lost.push(LostRange {
                branch,
                from,
                after: open,
                to: window.latest,
                before: false,
            });
        }
    }
    lost
}

/// The names of the pins that `before` can be restored to and `after` can't.
pub fn lost_pins(before: &LineageState, after: &LineageState) -> Vec<String> {
    let stands = |state: &LineageState, pin| what_a_pin_needs(state, pin).is_some();
    (before.pins.iter())
        .filter(|pin| stands(before, pin) && !stands(after, pin))
        .map(|pin| pin.name.clone())
        .collect()
}

impl LineageState {
    /// Takes out of what is promised whatever rests on `damage`: base backups go to
    /// [`LineageState::damaged`], and the range of a log piece becomes a gap.
    pub fn withdraw<'d>(&mut self, damage: impl IntoIterator<Item = &'d Damage>) {
        for damage in damage {
            let is_hit = |entry: &u64| damage.base_backups.contains(entry);
            if (self.partial.as_ref()).is_some_and(|partial| is_hit(&partial.entry)) {
                self.partial = None;
            }
            let (hit, sound) = std::mem::take(&mut self.base_backups)
                .into_iter()
                .partition(|base| is_hit(&base.entry));
            self.base_backups = sound;
            let hit: Vec<BaseBackupSummary> = hit;
            self.damaged
                .extend(hit.into_iter().map(|base_backup| DamagedBaseBackup {
                    base_backup,
                    object: damage.object.clone(),
                }));
            let Part::LogPiece(entry) = damage.part else {
                continue;
            };
            if let Some(piece) = self.pieces.iter().find(|piece| piece.entry == entry)
                && !self.is_withdrawn(piece)
            {
                let gap = GapSummary {
                    entry,
                    branch: piece.branch,
                    from: piece.start,
                    to: piece.end,
                    reason: format!("found by a scrub: {}", damage.what),
                };
                self.gaps.push(gap);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{Position, RecordSpan};

    fn edge(at: u64) -> Edge {
        Edge {
            position: Position(at),
            time: Some(Timestamp(at.cast_signed())),
        }
    }

    fn window(branch: u32, from: u64, to: u64) -> Window {
        Window {
            branch: Branch(branch),
            earliest: edge(from),
            latest: edge(to),
            last_record: RecordSpan {
                start: Position(to - 1),
                end: Position(to),
            },
            last_entry: 1,
            base_backups: vec![1],
        }
    }

    fn told(before: &[Window], after: &[Window]) -> Vec<(u64, bool, u64, bool)> {
        lost(before, after)
            .iter()
            .map(|range| {
                let (from, to) = (range.from.position.0, range.to.position.0);
                (from, range.after, to, range.before)
            })
            .collect()
    }

    #[test]
    fn exactly_what_no_window_covers_any_more_is_lost() {
        let before = [window(1, 100, 900)];
        assert_eq!(told(&before, &before), []);
        assert_eq!(told(&before, &[]), [(100, false, 900, false)]);
        // A log piece in the middle, with a base backup behind it.
        let after = [window(1, 100, 300), window(1, 500, 900)];
        assert_eq!(told(&before, &after), [(300, true, 500, true)]);
        // The first base backup.
        assert_eq!(
            told(&before, &[window(1, 400, 900)]),
            [(100, false, 400, true)]
        );
        // The last log piece.
        assert_eq!(
            told(&before, &[window(1, 100, 800)]),
            [(800, true, 900, false)]
        );
        // A window of another branch covers nothing.
        assert_eq!(
            told(&before, &[window(2, 100, 900)]),
            [(100, false, 900, false)]
        );
    }

    #[test]
    fn a_lost_range_is_told_in_moments_and_positions() {
        let before = [window(1, 100, 900)];
        let text = lost(&before, &[window(1, 400, 900)])[0].to_string();
        assert!(text.starts_with("moments from 1970-"), "{text}");
        assert!(
            text.contains("positions from 0/64 before 0/190 on branch 1"),
            "{text}"
        );
    }
}
