//! Where a server's log goes on from what is stored. Pure.
//!
//! A server's timelines form a path from the first one to its own. The repository holds log of some of
//! them; the newest of these that lies on the path says where to go on, which is at the end of that
//! timeline's stored log or, if more of it was stored than the path has, where the path leaves it.

use borealis_base::{Branch, Position};
use borealis_pg_format::history::History;
use borealis_repository::ledger::BranchStarted;
use borealis_repository::plan::coverage::{Leg, path};
use borealis_repository::plan::{BranchSummary, LineageState, newest_branch};

/// What a server says of its place in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its timelines.
    pub history: History,
    /// How far its log is flushed.
    pub flushed: Position,
    /// Whether it is in recovery: a standby may still receive what it lacks.
    pub in_recovery: bool,
}

impl Standing {
    /// The server's timeline.
    pub fn branch(&self) -> Branch {
        self.history.timeline
    }

    /// The timelines from the first to the server's own, with the positions that lie on each.
    fn legs(&self) -> Vec<Leg> {
        let mut from = Position::ZERO;
        let ended = self.history.ancestors.iter().map(|ancestor| {
            let leg = Leg {
                branch: ancestor.timeline,
                from,
                to: ancestor.end,
            };
            from = ancestor.end;
            leg
        });
        let mut legs: Vec<Leg> = ended.collect();
        legs.push(Leg {
            branch: self.branch(),
            from,
            to: Position(u64::MAX),
        });
        legs
    }

    /// The history of `branch`, which is the server's own or an ancestor.
    pub fn history_of(&self, branch: Branch) -> Option<History> {
        if branch == self.branch() {
            return Some(self.history.clone());
        }
        let at = (self.history.ancestors.iter()).position(|known| known.timeline == branch)?;
        Some(History {
            timeline: branch,
            ancestors: self.history.ancestors.get(..at)?.to_vec(),
        })
    }
}

/// A place to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The branch of the log that comes next.
    pub branch: Branch,
    /// Where it begins.
    pub at: Position,
    /// The branch of the stored log that leads there: the same, or the one that `branch` left at `at`.
    pub stored: Branch,
}

/// What a server is to the history that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standpoint {
    /// Nothing is stored yet.
    First,
    /// Its log goes on from what is stored.
    GoesOn(Place),
    /// It follows the same history and has not come as far yet.
    Behind(String),
    /// It was left behind by a promotion that the stored log follows: what it writes is no continuation.
    LeftBehind(String),
    /// It has another history under the same numbers.
    Rewritten(String),
}

/// Where the log of a server goes on from `state`.
pub fn standpoint(server: &Standing, state: &LineageState) -> Standpoint {
    let Some(newest) = newest_branch(state) else {
        return Standpoint::First;
    };
    let legs = server.legs();
    if let Some(branch) = (legs.iter().map(|leg| leg.branch)).find(|branch| {
        (state.branches.get(branch))
            .is_some_and(|known| !same_history(known, *branch, server.history_of(*branch)))
    }) {
        return Standpoint::Rewritten(format!(
            "its timeline {branch} is another one than timeline {branch} of the stored log"
        ));
    }
    let ours = server.branch();
    if ours < newest && legs.iter().all(|leg| leg.branch != newest) {
        let left = path(state, newest)
            .into_iter()
            .find(|leg| leg.branch == ours);
        let left = left.map_or_else(String::new, |leg| format!(" at {}", leg.to));
        let text = format!(
            "it is on timeline {ours}, which the stored log left{left} for timeline {newest}"
        );
        return if server.in_recovery {
            Standpoint::Behind(text)
        } else {
            Standpoint::LeftBehind(text)
        };
    }
    for (at, leg) in legs.iter().enumerate().rev() {
        let Some(end) = stored_end(state, leg.branch) else {
            continue;
        };
        if end < leg.to {
            return on_leg(server, leg, end);
        }
        if let Some(next) = legs.get(at + 1) {
            return Standpoint::GoesOn(Place {
                branch: next.branch,
                at: leg.to,
                stored: leg.branch,
            });
        }
    }
    Standpoint::Rewritten(format!(
        "its timeline {ours} has nothing in common with the stored log"
    ))
}

fn on_leg(server: &Standing, leg: &Leg, end: Position) -> Standpoint {
    if leg.branch == server.branch() && server.flushed < end {
        let text = format!("its log ends at {}, before {end}", server.flushed);
        return if server.in_recovery {
            Standpoint::Behind(text)
        } else {
            Standpoint::Rewritten(format!(
                "{text} that it had sent already: it was put back to an older state"
            ))
        };
    }
    Standpoint::GoesOn(Place {
        branch: leg.branch,
        at: end,
        stored: leg.branch,
    })
}

/// The end of the log that was stored last of `branch`.
fn stored_end(state: &LineageState, branch: Branch) -> Option<Position> {
    let mut pieces = state.pieces.iter().rev();
    pieces
        .find(|piece| piece.branch == branch)
        .map(|piece| piece.end)
}

/// Whether both left the same timelines at the same positions. The reasons are words only.
fn same_history(known: &BranchSummary, branch: Branch, server: Option<History>) -> bool {
    let Some(server) = server else {
        return false;
    };
    let Ok(known) = History::parse(branch, &known.history) else {
        return false;
    };
    let steps = |history: &History| {
        let ancestors = history.ancestors.iter();
        ancestors
            .map(|ancestor| (ancestor.timeline, ancestor.end))
            .collect::<Vec<_>>()
    };
    steps(&known) == steps(&server)
}

/// The branches on the server's way to `branch` whose beginning is not stored yet, oldest first, each with
/// its history as the server's own tells it: a history file repeats those of the timelines before it.
pub fn branches_to_record(
    server: &Standing,
    branch: Branch,
    state: &LineageState,
) -> Vec<BranchStarted> {
    let to = server.history_of(branch);
    let ancestors = to.iter().flat_map(|to| &to.ancestors);
    let on_the_way = ancestors.map(|ancestor| ancestor.timeline).chain([branch]);
    let unknown = on_the_way.filter(|branch| !state.branches.contains_key(branch));
    unknown
        .filter_map(|branch| {
            let history = server.history_of(branch)?;
            let left = history.ancestors.last()?;
            Some(BranchStarted {
                branch,
                parent: left.timeline,
                at: left.end,
                history: history.to_text().into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use borealis_base::{LineageId, Timestamp};
    use borealis_repository::plan::PieceSummary;

    use super::*;

    fn server(history: &History, flushed: u64) -> Standing {
        Standing {
            history: history.clone(),
            flushed: Position(flushed),
            in_recovery: false,
        }
    }

    fn standby(history: &History, flushed: u64) -> Standing {
        Standing {
            in_recovery: true,
            ..server(history, flushed)
        }
    }

    fn one() -> History {
        History::first()
    }

    fn forked(from: &History, branch: u32, at: u64) -> History {
        from.fork(Branch(branch), Position(at), "no recovery target specified")
    }

    /// What is stored: pieces as (branch, start, end), in the order of their entries.
    fn stored(pieces: &[(u32, u64, u64)], histories: &[&History]) -> LineageState {
        let mut state = LineageState::empty(LineageId([7; 16]));
        state.pieces = (pieces.iter().enumerate())
            .map(|(entry, (branch, start, end))| PieceSummary {
                entry: entry as u64 + 1,
                recorded_at: Timestamp(0),
                branch: Branch(*branch),
                start: Position(*start),
                end: Position(*end),
                settled_before: None,
                settled_after: None,
                last_record: None,
                resume_at: Position(*end),
                stored_bytes: 1,
                head_digest: [0; 32],
                engine: None,
                merged: None,
            })
            .collect();
        for history in histories {
            let left = history.ancestors.last().unwrap();
            let summary = BranchSummary {
                entry: 1,
                parent: left.timeline,
                at: left.end,
                history: history.to_text().into(),
            };
            state.branches.insert(history.timeline, summary);
        }
        state
    }

    fn goes_on(branch: u32, at: u64, stored: u32) -> Standpoint {
        Standpoint::GoesOn(Place {
            branch: Branch(branch),
            at: Position(at),
            stored: Branch(stored),
        })
    }

    #[test]
    fn the_same_timeline_goes_on_at_the_end_of_the_stored_log() {
        let state = stored(&[(1, 0, 100)], &[]);
        assert_eq!(standpoint(&server(&one(), 150), &state), goes_on(1, 100, 1));
        assert_eq!(
            standpoint(&server(&one(), 150), &stored(&[], &[])),
            Standpoint::First
        );
    }

    #[test]
    fn a_promotion_ahead_of_the_stored_log_is_reached_on_the_old_timeline() {
        let state = stored(&[(1, 0, 100)], &[]);
        let promoted = server(&forked(&one(), 2, 120), 200);
        assert_eq!(standpoint(&promoted, &state), goes_on(1, 100, 1));
    }

    #[test]
    fn a_promotion_at_or_before_the_end_of_the_stored_log_begins_where_it_left() {
        for at in [100, 80] {
            let state = stored(&[(1, 0, 100)], &[]);
            let promoted = server(&forked(&one(), 2, at), 200);
            assert_eq!(standpoint(&promoted, &state), goes_on(2, at, 1));
        }
    }

    #[test]
    fn several_promotions_are_followed_one_after_the_other() {
        let two = forked(&one(), 2, 120);
        let three = forked(&two, 3, 160);
        let state = stored(&[(1, 0, 100)], &[]);
        let last = server(&three, 200);
        assert_eq!(standpoint(&last, &state), goes_on(1, 100, 1));
        let started: Vec<_> = branches_to_record(&last, Branch(3), &state)
            .into_iter()
            .map(|started| (started.branch.0, started.parent.0, started.at.0))
            .collect();
        assert_eq!(started, [(2, 1, 120), (3, 2, 160)]);
        assert_eq!(branches_to_record(&last, Branch(1), &state), []);
        let state = stored(&[(1, 0, 120)], &[&two]);
        assert_eq!(standpoint(&last, &state), goes_on(2, 120, 1));
        let state = stored(&[(1, 0, 120), (2, 120, 170)], &[&two]);
        assert_eq!(standpoint(&last, &state), goes_on(3, 160, 2));
        assert_eq!(branches_to_record(&last, Branch(3), &state).len(), 1);
    }

    #[test]
    fn an_old_primary_that_returns_is_no_continuation_however_much_it_has_written() {
        let state = stored(&[(1, 0, 100), (2, 80, 90)], &[&forked(&one(), 2, 80)]);
        let Standpoint::LeftBehind(why) = standpoint(&server(&one(), 1000), &state) else {
            panic!("it is shipped");
        };
        assert!(why.contains("timeline 1") && why.contains("0/50"), "{why}");
        // As a standby it may follow yet.
        assert!(matches!(
            standpoint(&standby(&one(), 1000), &state),
            Standpoint::Behind(_)
        ));
    }

    #[test]
    fn a_standby_that_lags_is_waited_for_and_a_primary_with_less_log_was_put_back() {
        let state = stored(&[(1, 0, 100)], &[]);
        assert!(matches!(
            standpoint(&standby(&one(), 99), &state),
            Standpoint::Behind(_)
        ));
        assert!(matches!(
            standpoint(&server(&one(), 99), &state),
            Standpoint::Rewritten(_)
        ));
    }

    #[test]
    fn a_timeline_of_the_same_number_that_began_elsewhere_is_another_history() {
        let state = stored(&[(1, 0, 100), (2, 80, 90)], &[&forked(&one(), 2, 80)]);
        let other = server(&forked(&one(), 2, 81), 200);
        assert!(matches!(
            standpoint(&other, &state),
            Standpoint::Rewritten(_)
        ));
        let child = server(&forked(&other.history, 3, 90), 200);
        assert!(matches!(
            standpoint(&child, &state),
            Standpoint::Rewritten(_)
        ));
        // The words at the end of a line say nothing.
        let named = one().fork(Branch(2), Position(80), "before 2000-01-01");
        assert_eq!(standpoint(&server(&named, 200), &state), goes_on(2, 90, 2));
    }

    #[test]
    fn a_later_promotion_of_an_ancestor_is_followed_from_where_it_left() {
        let state = stored(&[(1, 0, 100), (2, 80, 90)], &[&forked(&one(), 2, 80)]);
        let sibling = |at| server(&forked(&one(), 3, at), 200);
        assert_eq!(standpoint(&sibling(70), &state), goes_on(3, 70, 1));
        assert_eq!(standpoint(&sibling(110), &state), goes_on(1, 100, 1));
    }

    #[test]
    fn nothing_in_common_is_told() {
        let two = forked(&one(), 2, 80);
        let state = stored(&[(2, 80, 90)], &[&two]);
        let sibling = server(&forked(&one(), 3, 70), 200);
        assert!(matches!(
            standpoint(&sibling, &state),
            Standpoint::Rewritten(_)
        ));
    }
}
