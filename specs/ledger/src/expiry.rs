//! Expiry and deletion: a maintainer marks what no promise holds, waits, looks again, and deletes.
//!
//! A lineage has base backups whose neighbours share packs, and log. References (snapshots, the birth of a
//! child lineage) are made by others, who know nothing of the maintainer; a writer's base backup is on its
//! way and takes packs over from an older one; a restore reads slowly. Appending to any log is one step here:
//! the rest of this crate models that. [`explore`] visits every state within [`Bounds`].

mod state;
mod step;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use state::State;

/// What a reference is to. Base backups are counted from 0; 3 is the one that the writer makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A snapshot right at the end of a base backup: needs that, or an older one and the log between.
    Early(u8),
    /// A snapshot in the log after a base backup: needs that log besides.
    Late(u8),
    /// A child lineage that takes over pages of a base backup.
    Birth(u8),
}

/// When the second look at the references is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Mark, wait, look again, delete. What is marked is hidden from everybody.
    GraceThenCheck,
    /// Mark, look again, wait, delete. What is marked is closed to new references and to writers at once, and is
    /// hidden from readers once it was looked at again.
    CheckThenGrace,
}

/// The bounds of a search.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each one adds somebody who acts, independent of the others"
)]
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Base backups at the start, up to 3.
    pub backups: u8,
    /// Whether there is log, which expires by itself: one stretch after each base backup.
    pub logs: bool,
    /// What references can be to.
    pub targets: &'static [Target],
    /// So many of `targets`, from the first on, have an acknowledged reference at the start. With `creators` up to 3.
    pub standing: usize,
    /// References that may be created.
    pub creators: usize,
    /// How often one of two maintainers may take over.
    pub opens: u8,
    /// Marks that may be made, up to 3.
    pub marks: u8,
    /// Restores.
    pub readings: u8,
    /// Whether there is a writer with a base backup on its way.
    pub writer: bool,
    /// Whether the writer may store a partial base backup, be killed and go on from that.
    pub partial: bool,
    /// Whether the base backup on its way may be committed at any later time, even after the grace period.
    pub late: bool,
    /// Whether the window may grow back once.
    pub window_grows: bool,
    /// When the references are looked at again.
    pub order: Order,
    /// What is left out.
    pub mutant: Option<Mutant>,
}

/// A rule left out, to see that the search would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// What was marked is deleted after the grace period without a second look.
    NoSecondCheck,
    /// The second look is at the window only; the references are those read before the mark.
    OldReferences,
    /// Whoever creates a reference does not look at the maintenance again.
    NoSecondLook,
    /// Whoever creates a reference asks whether the item is hidden, and not whether it is visible: what was
    /// deleted is neither.
    AsksWhetherHidden,
    /// A maintainer that was superseded appends all the same.
    NoFence,
    /// A mark is old at once.
    NoGrace,
    /// A base backup takes over pages of one that is marked.
    InheritsFromMarked,
    /// Packs are deleted without reading the manifests that are left.
    IgnoresManifests,
    /// What is kept becomes visible by an entry of its own, after the rest may be deleted.
    KeptLater,
    /// A plan takes for gone what another mark hides and nobody has looked at again.
    OtherMarksAreGone,
    /// Half of [`Mutant::OtherMarksAreGone`]: only what is to be marked is planned so. Safe.
    PlanForgetsMarks,
    /// The other half: only the second look is so. Safe.
    CheckForgetsMarks,
    /// A manifest that is missing is taken for one that names no pack.
    MissingManifestIsEmpty,
    /// What is left of child lineages is read before what is left of the lineage itself.
    ChildrenFirst,
    /// What is left is taken from a ledger that was read before the maintenance.
    LedgerFirst,
    /// A partial base backup does not count as left.
    IgnoresPartial,
    /// A manifest is deleted before its packs are.
    ManifestFirst,
    /// A manifest is deleted though a child lineage still needs a pack of it.
    ManifestDespiteChild,
    /// A child lineage deletes the packs that it took over from its parent and needs no longer.
    ChildDeletesTaken,
    /// The newest base backup is marked while a writer may still commit one that takes over from it. Only with
    /// [`Bounds::late`].
    MarksNewestOfOpen,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Violation {
    /// What an acknowledged reference needs was deleted while the reference stood.
    ReferenceLost,
    /// An object was deleted of an item that is visible or may become so again, or of a child lineage.
    ItemLost,
    /// A reader misses an object of what it was told.
    ReaderMissed,
    /// Something expired is never deleted, whatever happens from here on.
    NeverGone,
}

/// What a step is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    Nothing,
    Items(u8),
    Pack(u8),
    Reference(Target),
}

/// Who, what, and what it is about.
pub(crate) type Step = (&'static str, &'static str, About);

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
        for (n, (who, what, about)) in self.0.iter().enumerate() {
            write!(f, "{:3} {who} {what}", n + 1)?;
            match about {
                About::Nothing => {}
                About::Items(items) => {
                    let of = |n: &u8| items >> n & 1 == 1;
                    for n in (0..8).filter(of) {
                        write!(f, " {}", state::ITEM_NAMES[n as usize])?;
                    }
                }
                About::Pack(pack) => write!(f, " {pack}")?,
                About::Reference(target) => write!(f, " {target:?}")?,
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Report {
    /// Distinct states visited.
    pub states: usize,
    /// Each kind of step and how many states it led from.
    pub steps: BTreeMap<(&'static str, &'static str), usize>,
    /// Each invariant that some state breaks, with a shortest trace.
    pub broken: BTreeMap<Violation, Trace>,
    /// States in which everything expired is gone, and something was.
    pub all_gone: usize,
    /// States in which a restore by an acknowledged reference is refused, for what it needs is marked.
    pub refused: usize,
    /// A shortest way to such a state.
    pub refused_trace: Option<Trace>,
}

struct Search {
    numbers: HashMap<State, u32>,
    states: Vec<State>,
    /// How each state was reached first.
    from: Vec<(u32, Step)>,
    edges: Vec<(u32, u32)>,
}

impl Search {
    fn trace(&self, mut at: u32, last: Option<Step>) -> Trace {
        let mut steps: Vec<Step> = last.into_iter().collect();
        while at != 0 {
            let (parent, step) = self.from[at as usize];
            steps.push(step);
            at = parent;
        }
        steps.reverse();
        Trace(steps)
    }

    /// The first state from which no state can be reached in which everything expired is gone.
    fn stuck(&self) -> Option<u32> {
        let count = self.states.len();
        let mut starts = vec![0_u32; count + 1];
        for (_, to) in &self.edges {
            starts[*to as usize + 1] += 1;
        }
        for at in 0..count {
            starts[at + 1] += starts[at];
        }
        let mut sources = vec![0_u32; self.edges.len()];
        let mut free = starts.clone();
        for (from, to) in &self.edges {
            sources[free[*to as usize] as usize] = *from;
            free[*to as usize] += 1;
        }
        let mut good: Vec<bool> = (self.states.iter()).map(State::all_gone).collect();
        let mut todo: Vec<u32> = (0..count as u32).filter(|at| good[*at as usize]).collect();
        while let Some(at) = todo.pop() {
            let range = starts[at as usize] as usize..starts[at as usize + 1] as usize;
            for source in &sources[range] {
                if !std::mem::replace(&mut good[*source as usize], true) {
                    todo.push(*source);
                }
            }
        }
        good.iter().position(|good| !good).map(|at| at as u32)
    }
}

/// Visits every state that `bounds` allow, and asks of each whether everything expired can still be deleted from there.
pub fn explore(bounds: &Bounds) -> Report {
    search(bounds, None)
}

/// A shortest way to a violation, if there is one within `bounds`. Takes less time than [`explore`].
pub fn find(bounds: &Bounds, violation: Violation) -> Option<Trace> {
    search(bounds, Some(violation)).broken.remove(&violation)
}

/// Stops at `until`.
fn search(bounds: &Bounds, until: Option<Violation>) -> Report {
    let start = State::start(bounds);
    let mut search = Search {
        numbers: HashMap::from([(start, 0)]),
        states: vec![start],
        from: vec![(0, ("", "", About::Nothing))],
        edges: Vec::new(),
    };
    let mut steps = BTreeMap::new();
    let mut broken: BTreeMap<Violation, Trace> = BTreeMap::new();
    let mut at = 0;
    let mut found = Vec::new();
    let found_it = |broken: &BTreeMap<_, _>| until.is_some_and(|until| broken.contains_key(&until));
    while at < search.states.len() && !found_it(&broken) {
        let number = at as u32;
        step::steps(bounds, &search.states[at], &mut found);
        for (step, mut next) in found.drain(..) {
            *steps.entry((step.0, step.1)).or_insert(0) += 1;
            next.normalize(bounds);
            let known = search.states.len() as u32;
            if let Some(violation) = next.check(bounds) {
                // What follows a violation means nothing, so the search does not go on from it.
                let trace = || search.trace(number, Some(step));
                broken.entry(violation).or_insert_with(trace);
                continue;
            }
            let to = match search.numbers.entry(next) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    entry.insert(known);
                    search.states.push(next);
                    search.from.push((number, step));
                    known
                }
            };
            search.edges.push((number, to));
        }
        at += 1;
    }
    // Behind a violation nothing was searched, so nothing can be said of what is reached from before it.
    if broken.is_empty()
        && let Some(stuck) = search.stuck()
    {
        broken.insert(Violation::NeverGone, search.trace(stuck, None));
    }
    let refused = |state: &State| state.refuses_a_reference(bounds);
    let first = search.states.iter().position(refused);
    Report {
        states: search.states.len(),
        steps,
        broken,
        all_gone: (search.states.iter())
            .filter(|state| state.something_was_deleted() && state.all_gone())
            .count(),
        refused: search.states.iter().filter(|state| refused(state)).count(),
        refused_trace: first.map(|at| search.trace(at as u32, None)),
    }
}
