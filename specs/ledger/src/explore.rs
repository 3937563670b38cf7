//! Breadth-first search of every state.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::state::{Config, State, Violation};
use crate::step::{Sink, Step, steps};

/// What happened, in order, up to a violation.
#[derive(Debug, Clone)]
pub struct Trace(Vec<Step>);

impl Trace {
    /// How many steps.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing had to happen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0.iter().enumerate())
            .try_for_each(|(n, (who, what))| writeln!(f, "{:3} {who} {what}", n + 1))
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Report {
    /// Distinct states visited.
    pub states: usize,
    /// Steps of the longest shortest path.
    pub depth: usize,
    /// Each invariant that some state breaks, with a shortest trace.
    pub broken: BTreeMap<Violation, Trace>,
}

/// Two independent 64-bit hashes stand for a state: with 10^8 states the chance that any two share
/// both is below 10^-21.
fn fingerprint(state: &State) -> u128 {
    let mut first = DefaultHasher::new();
    state.hash(&mut first);
    let mut second = DefaultHasher::new();
    (0x9E37_79B9_u32, state).hash(&mut second);
    u128::from(first.finish()) << 64 | u128::from(second.finish())
}

/// How each state of a level was reached: index in the level before, and the step.
type Level = Vec<(u32, Step)>;

struct Search {
    seen: HashSet<u128>,
    /// Kept for traces; 20 bytes a state.
    levels: Vec<Level>,
    parent: u32,
    frontier: Vec<State>,
    broken: BTreeMap<Violation, Trace>,
}

impl Search {
    fn trace(&self, last: Step) -> Trace {
        let mut steps = vec![last];
        let mut at = self.parent as usize;
        // The level in the making is the last one; the parent is in the one before it.
        for level in self.levels[..self.levels.len() - 1].iter().rev() {
            let (parent, step) = level[at];
            steps.push(step);
            at = parent as usize;
        }
        steps.pop(); // the start is no step
        steps.reverse();
        Trace(steps)
    }
}

impl Sink for Search {
    fn next(&mut self, step: Step, mut state: State, broken: Option<Violation>) {
        state.normalize();
        if let Some(violation) = broken.or_else(|| state.check()) {
            // What follows a violation means nothing, so the search does not go on from it.
            if !self.broken.contains_key(&violation) {
                let trace = self.trace(step);
                self.broken.insert(violation, trace);
            }
            return;
        }
        if self.seen.insert(fingerprint(&state)) {
            self.frontier.push(state);
            let parent = self.parent;
            self.levels
                .last_mut()
                .expect("a level is in the making")
                .push((parent, step));
        }
    }
}

/// Visits every state that `config` allows.
pub fn explore(config: &Config) -> Report {
    let mut search = Search {
        seen: HashSet::from([fingerprint(&State::START)]),
        levels: vec![vec![(0, ("", ""))]],
        parent: 0,
        frontier: Vec::new(),
        broken: BTreeMap::new(),
    };
    let mut level = vec![State::START];
    while !level.is_empty() {
        search.levels.push(Vec::new());
        for (number, state) in (0_u32..).zip(&level) {
            search.parent = number;
            steps(config, state, &mut search);
        }
        level = std::mem::take(&mut search.frontier);
    }
    Report {
        states: search.seen.len(),
        depth: search.levels.len() - 2,
        broken: search.broken,
    }
}
