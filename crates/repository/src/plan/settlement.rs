//! Which ledger entry settles which moments.

use std::collections::BTreeMap;

use borealis_base::{Branch, Position, RecordSpan, Timestamp};

use super::coverage::{Leg, Stretch, path};
use super::{LineageState, PieceSummary};

/// An entry that settles the moments after `low` up to `high`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The ledger entry.
    pub entry: u64,
    /// When it was written, by the writer's clock.
    pub recorded_at: Timestamp,
    /// Its branch.
    pub branch: Branch,
    /// The last moment settled before. `None` where what lies between is not known: at the beginning
    /// and behind missing log. The first step then says only from when on moments are known again.
    pub low: Option<Timestamp>,
    /// The last moment settled.
    pub high: Timestamp,
    /// How far the log it speaks of goes.
    pub position: Position,
    /// The record of all these moments; `None` where the piece's time map tells.
    pub last_record: Option<RecordSpan>,
}

/// An entry that may settle something.
struct Candidate {
    settlement: Settlement,
    /// Where the log that it speaks of begins.
    from: Position,
    /// What its maker had settled before.
    before: Option<Timestamp>,
}

fn candidates(state: &LineageState) -> Vec<Candidate> {
    let of_piece = |piece: &PieceSummary| {
        Some(Candidate {
            settlement: Settlement {
                entry: piece.entry,
                recorded_at: piece.recorded_at,
                branch: piece.branch,
                low: None,
                high: piece
                    .settled_after
                    .filter(|after| piece.settled_before < Some(*after))?,
                position: piece.end,
                last_record: None,
            },
            from: piece.start,
            before: piece.settled_before,
        })
    };
    let mut all: Vec<Candidate> = state.pieces.iter().filter_map(of_piece).collect();
    all.extend(state.settled.iter().map(|settled| Candidate {
        settlement: Settlement {
            entry: settled.entry,
            recorded_at: settled.recorded_at,
            branch: settled.branch,
            low: None,
            high: settled.through,
            position: settled.last_record.end,
            last_record: Some(settled.last_record),
        },
        from: settled.last_record.end,
        before: None,
    }));
    all.sort_by_key(|candidate| candidate.settlement.entry);
    all
}

/// The position on the path of `branch` up to which it shares the log with `position` of `other`.
pub(crate) fn meeting(
    state: &LineageState,
    branch: Branch,
    other: Branch,
    position: Position,
) -> Option<Position> {
    let ours = path(state, branch);
    path(state, other)
        .iter()
        .rev()
        .find_map(|leg| {
            ours.iter()
                .find(|mine| mine.branch == leg.branch)
                .map(|mine| mine.to.min(leg.to))
        })
        .map(|shared| shared.min(position))
}

/// The log of each branch as far as the ledger has been walked, merged into stretches.
#[derive(Default)]
struct Walked(BTreeMap<Branch, Vec<Stretch>>);

impl Walked {
    fn add(&mut self, piece: &PieceSummary) {
        let stretches = self.0.entry(piece.branch).or_default();
        let mut from = piece.start;
        let mut to = piece.end;
        // Pieces come nearly always at the end, so the search from there is short.
        let after = stretches
            .iter()
            .rev()
            .take_while(|stretch| stretch.from > to)
            .count();
        let mut at = stretches.len() - after;
        while let Some(last) = at
            .checked_sub(1)
            .and_then(|index| stretches.get(index))
            .copied()
        {
            if last.to < from {
                break;
            }
            (from, to) = (from.min(last.from), to.max(last.to));
            at -= 1;
            stretches.remove(at);
        }
        stretches.insert(at, Stretch { from, to });
    }

    /// Whether `[from, to)` of the path of `legs` is there without a break.
    fn spans(&self, legs: &[Leg], from: Position, to: Position) -> bool {
        legs.iter().all(|leg| {
            let (from, to) = (from.max(leg.from), to.min(leg.to));
            let holds = |stretches: &Vec<Stretch>| {
                stretches
                    .iter()
                    .rev()
                    .any(|stretch| stretch.spans(from, to))
            };
            from >= to || self.0.get(&leg.branch).is_some_and(holds)
        })
    }
}

/// Every entry that settles a moment not settled before, in ledger order and so in the order of
/// `high`.
///
/// Each is judged by the entries before it alone. A piece that fills a hole later says nothing about
/// the moments of the hole, since the steps behind the hole were made without having seen it; so
/// appending entries never changes what a moment means. Nor does expiring them: what had settled a moment
/// is remembered in [`LineageState::forgotten`].
pub fn settlements(state: &LineageState) -> Vec<Settlement> {
    let mut walked = Walked::default();
    let mut pieces = state.pieces.iter().peekable();
    let mut forgotten = state.forgotten.iter().peekable();
    let mut expired: Option<Timestamp> = None;
    let mut shared: BTreeMap<(Branch, Branch), (Vec<Leg>, Option<Position>)> = BTreeMap::new();
    let mut out: Vec<Settlement> = Vec::new();
    for Candidate {
        mut settlement,
        from,
        before,
    } in candidates(state)
    {
        while let Some(piece) = pieces.next_if(|piece| piece.entry < settlement.entry) {
            walked.add(piece);
        }
        while let Some(it) = forgotten.next_if(|it| it.entry < settlement.entry) {
            expired = expired.max(Some(it.through));
        }
        if Some(settlement.high) <= expired {
            continue;
        }
        if let Some(last) = out.last() {
            if settlement.high <= last.high {
                continue;
            }
            let (legs, limit) = shared
                .entry((settlement.branch, last.branch))
                .or_insert_with(|| {
                    let limit = meeting(state, settlement.branch, last.branch, Position(u64::MAX));
                    (path(state, settlement.branch), limit)
                });
            let seen = limit.is_some_and(|limit| {
                let known = limit.min(last.position);
                walked.spans(legs, known.min(from), known.max(from))
            });
            let gap = state
                .gaps
                .iter()
                .any(|gap| (last.entry..settlement.entry).contains(&gap.entry));
            // A piece made by one who had settled more than the ledger holds skipped those moments.
            let skipped = before.is_some_and(|before| before > last.high);
            let unbroken = seen && !gap && !skipped && expired <= Some(last.high);
            settlement.low = unbroken.then_some(last.high);
        }
        out.push(settlement);
    }
    out
}
