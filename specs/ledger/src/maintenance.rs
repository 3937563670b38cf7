//! The two rows of a lineage together: a writer that appends, maintainers that merge, raise the floor and
//! remove, a reader that reads row by row, and a deleter's grace period.
//!
//! Appending to one row is what the rest of this crate models, so here it is one step. Each ledger entry holds
//! one piece of log; a merge covers neighbours.

use std::collections::{BTreeMap, HashSet};

/// Ledger entries of a search.
const LEDGER_MAX: u8 = 4;
/// Maintenance entries of a search.
const MAINTENANCE_MAX: usize = 4;
/// Floors stand only behind so many entries.
const CHECKPOINT: u8 = 2;

/// A rule left out, to see that the search would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The ledger is read to its end before the maintenance.
    LedgerFirst,
    /// A floor drops maintenance entries that speak of ledger entries at or above it.
    DropsReferences,
    /// A floor comes without what the entries below it add up to.
    NoBaseline,
    /// A reader does not look at the floor again.
    NoSecondLook,
    /// What lies below a floor is removed at once.
    NoGrace,
    /// Everything below a floor is removed, named or not.
    IgnoresNames,
    /// A maintainer that was superseded appends all the same.
    NoFence,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Violation {
    /// A reader does not see a ledger entry that was there before it began.
    Missed,
    /// A reader sees log twice, or a merge of what it does not hold.
    Inconsistent,
    /// What a reader names was removed while it was used.
    RemovedWhileUsed,
    /// What the newest state names was removed.
    RemovedWhileNamed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Floor {
    lowest: u8,
    maintenance: u8,
    aged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Maintainer {
    /// Zero: none. The higher one has fenced the lower one.
    epoch: u8,
    /// What it knew when it last read: so many entries of each row.
    ledger: u8,
    maintenance: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Idle,
    First,
    Second,
    Look,
    Using,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    stage: Stage,
    readings: u8,
    floor: u8,
    began: u8,
    ledger: u8,
    maintenance: u8,
    /// Whether an entry that it wanted was gone when it read.
    misfit: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    ledger: u8,
    /// Ledger entries whose objects are gone, by bit.
    gone: u8,
    maintenance: Vec<(u8, u8)>,
    maintenance_gone: u8,
    floors: Vec<Floor>,
    /// Floors below which was removed.
    removed: u8,
    maintainers: [Maintainer; 2],
    reader: Reader,
}

/// The pieces that a reader knows, as ranges of entries; `None` where the rows contradict each other.
type Pieces = Vec<(u8, u8)>;

const NONE: Floor = Floor {
    lowest: 1,
    maintenance: 1,
    aged: true,
};

fn merge(pieces: &mut Pieces, (first, last): (u8, u8)) -> Option<()> {
    let from = pieces.iter().position(|piece| piece.0 == first)?;
    let covered: Vec<u8> = pieces[from..].iter().map(|piece| piece.0).collect();
    let len = (last - first + 1) as usize;
    let fits = covered.len() >= len
        && (0..len).all(|at| pieces[from + at] == (first + at as u8, first + at as u8));
    if !fits {
        return None;
    }
    pieces.splice(from..from + len, [(first, last)]);
    Some(())
}

impl State {
    fn floor(&self, number: u8) -> Floor {
        match number {
            0 => NONE,
            n => self.floors[n as usize - 1],
        }
    }

    /// What entries below a floor add up to.
    fn baseline(&self, floor: Floor, mutant: Option<Mutant>) -> Option<Pieces> {
        if mutant == Some(Mutant::NoBaseline) {
            return Some(Vec::new());
        }
        let mut pieces: Pieces = (1..floor.lowest).map(|entry| (entry, entry)).collect();
        for entry in &self.maintenance[..floor.maintenance as usize - 1] {
            merge(&mut pieces, *entry)?;
        }
        Some(pieces)
    }

    /// What a reader makes of a floor and so many entries of each row.
    fn fold(&self, floor: Floor, to: (u8, u8), mutant: Option<Mutant>) -> Option<Pieces> {
        let mut pieces = self.baseline(floor, mutant)?;
        pieces.extend((floor.lowest..=to.0).map(|entry| (entry, entry)));
        for number in floor.maintenance..=to.1 {
            merge(&mut pieces, self.maintenance[number as usize - 1])?;
        }
        Some(pieces)
    }

    fn newest(&self) -> (u8, u8) {
        (self.ledger, self.maintenance.len() as u8)
    }

    fn is_gone(&self, entry: u8) -> bool {
        self.gone >> entry & 1 == 1
    }
}

type Found = Vec<(State, Option<Violation>)>;

fn appended(state: &State, out: &mut Found) {
    if state.ledger < LEDGER_MAX {
        let mut next = state.clone();
        next.ledger += 1;
        out.push((next, None));
    }
}

fn maintain(state: &State, who: usize, mutant: Option<Mutant>, out: &mut Found) {
    let me = state.maintainers[who];
    let highest = state.maintainers[0].epoch.max(state.maintainers[1].epoch);
    let (ledger, maintenance) = state.newest();
    if highest < 3 {
        let mut next = state.clone();
        next.maintainers[who] = Maintainer {
            epoch: highest + 1,
            ledger,
            maintenance,
        };
        out.push((next, None));
    }
    if me.epoch == 0 {
        return;
    }
    if me.epoch == highest && (me.ledger, me.maintenance) != (ledger, maintenance) {
        let mut next = state.clone();
        next.maintainers[who].ledger = ledger;
        next.maintainers[who].maintenance = maintenance;
        out.push((next, None));
    }
    let fenced = me.epoch < highest && mutant != Some(Mutant::NoFence);
    if !fenced && state.maintenance.len() < MAINTENANCE_MAX {
        let known = state.fold(NONE, (me.ledger, me.maintenance), None);
        for (first, last) in [(1, 2), (3, 4), (2, 3)] {
            let single = |entry: u8| known.as_ref().is_some_and(|k| k.contains(&(entry, entry)));
            if (first..=last).all(single) {
                let mut next = state.clone();
                next.maintenance.push((first, last));
                next.maintainers[who].maintenance = next.maintenance.len() as u8;
                out.push((next, None));
            }
        }
    }
    // What a floor says follows from its numbers, so a maintainer that slept does no harm.
    raise(state, me, mutant, out);
    remove(state, mutant, out);
}

fn raise(state: &State, me: Maintainer, mutant: Option<Mutant>, out: &mut Found) {
    let newest = state.floor(state.floors.len() as u8);
    for lowest in (1..=me.ledger).filter(|lowest| (lowest - 1) % CHECKPOINT == 0) {
        let speaks = |number: &u8| state.maintenance[*number as usize - 1].1 >= lowest;
        let mut kept = me.maintenance.max(1);
        if mutant != Some(Mutant::DropsReferences) {
            kept = (1..=me.maintenance).find(speaks).unwrap_or(kept);
        }
        if lowest > newest.lowest && kept >= newest.maintenance {
            let mut next = state.clone();
            next.floors.push(Floor {
                lowest,
                maintenance: kept,
                aged: mutant == Some(Mutant::NoGrace),
            });
            out.push((next, None));
        }
    }
    // A floor is old once nobody uses what was read before it; reading may take longer than that.
    let number = state.removed + 1;
    if let Some(floor) = state.floors.get(number as usize - 1)
        && !floor.aged
        && (state.reader.stage != Stage::Using || state.reader.floor >= number)
    {
        let mut next = state.clone();
        next.floors[number as usize - 1].aged = true;
        out.push((next, None));
    }
}

fn remove(state: &State, mutant: Option<Mutant>, out: &mut Found) {
    let number = state.removed + 1;
    let Some(floor) = state
        .floors
        .get(number as usize - 1)
        .filter(|floor| floor.aged)
    else {
        return;
    };
    let named = state.baseline(*floor, None).unwrap_or_default();
    let mut next = state.clone();
    for entry in 1..floor.lowest {
        if mutant == Some(Mutant::IgnoresNames) || !named.contains(&(entry, entry)) {
            next.gone |= 1 << entry;
        }
    }
    next.maintenance_gone = floor.maintenance - 1;
    next.removed = number;
    // Merged log is an object of its own; a single entry is its own object.
    let seen = state.fold(state.floor(state.floors.len() as u8), state.newest(), None);
    let lost = seen.is_some_and(|seen| {
        (seen.iter()).any(|(first, last)| first == last && next.is_gone(*first))
    });
    let used = state.reader.stage == Stage::Using && {
        let reader = state.reader;
        let to = (reader.ledger, reader.maintenance);
        let pieces = state.fold(state.floor(reader.floor), to, mutant);
        (pieces.unwrap_or_default().iter())
            .any(|(first, last)| first == last && next.is_gone(*first))
    };
    let violation = match (lost, used) {
        (true, _) => Some(Violation::RemovedWhileNamed),
        (_, true) => Some(Violation::RemovedWhileUsed),
        _ => None,
    };
    out.push((next, violation));
}

fn read(state: &State, mutant: Option<Mutant>, out: &mut Found) {
    let mut next = state.clone();
    let reader = &mut next.reader;
    let ledger_first = mutant == Some(Mutant::LedgerFirst);
    match reader.stage {
        Stage::Idle if reader.readings == 0 => return,
        Stage::Idle => {
            *reader = Reader {
                stage: Stage::First,
                readings: reader.readings - 1,
                floor: state.floors.len() as u8,
                began: state.ledger,
                ledger: 0,
                maintenance: 0,
                misfit: false,
            };
        }
        Stage::First | Stage::Second => {
            let floor = state.floor(reader.floor);
            if (reader.stage == Stage::First) == ledger_first {
                reader.ledger = state.ledger;
                reader.misfit |= (floor.lowest..=state.ledger).any(|entry| state.is_gone(entry));
            } else {
                reader.maintenance = state.maintenance.len() as u8;
                reader.misfit |= state.maintenance_gone >= floor.maintenance;
            }
            reader.stage = if reader.stage == Stage::First {
                Stage::Second
            } else {
                Stage::Look
            };
        }
        Stage::Look => {
            let (began, now) = (
                state.floor(reader.floor),
                state.floor(state.floors.len() as u8),
            );
            let risen = now.lowest > began.lowest || now.maintenance > began.maintenance;
            if risen && mutant != Some(Mutant::NoSecondLook) {
                reader.stage = Stage::First;
                reader.floor = state.floors.len() as u8;
                reader.misfit = false;
                out.push((next, None));
                return;
            }
            let to = (reader.ledger, reader.maintenance);
            let violation = match state.fold(began, to, mutant) {
                _ if reader.misfit => Some(Violation::Missed),
                None => Some(Violation::Inconsistent),
                Some(pieces) => {
                    let seen = |entry| pieces.iter().any(|(a, b)| (*a..=*b).contains(&entry));
                    (!(1..=reader.began).all(seen)).then_some(Violation::Missed)
                }
            };
            reader.stage = Stage::Using;
            out.push((next, violation));
            return;
        }
        Stage::Using => reader.stage = Stage::Idle,
    }
    out.push((next, None));
}

/// Visits every state; returns how many there are, and what goes wrong in some.
pub fn explore(mutant: Option<Mutant>, readings: u8) -> (usize, BTreeMap<Violation, usize>) {
    let start = State {
        ledger: 0,
        gone: 0,
        maintenance: Vec::new(),
        maintenance_gone: 0,
        floors: Vec::new(),
        removed: 0,
        maintainers: [Maintainer::default(); 2],
        reader: Reader {
            stage: Stage::Idle,
            readings,
            floor: 0,
            began: 0,
            ledger: 0,
            maintenance: 0,
            misfit: false,
        },
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut frontier = vec![start];
    let mut broken = BTreeMap::new();
    while let Some(state) = frontier.pop() {
        let mut found = Vec::new();
        appended(&state, &mut found);
        for who in 0..2 {
            maintain(&state, who, mutant, &mut found);
        }
        read(&state, mutant, &mut found);
        for (next, violation) in found {
            if let Some(violation) = violation {
                *broken.entry(violation).or_insert(0) += 1;
            } else if seen.insert(next.clone()) {
                frontier.push(next);
            }
        }
    }
    (seen.len(), broken)
}
