//! Map parts: a page map cut into bounded pieces that later maps share.
//!
//! Parts cover the keys in order: part *i* covers from its first key (the first part: from the
//! beginning) to the first key of the next. A rebuild walks the parts once, keeps by reference
//! those that no change touches, and writes new ones for the others, so that a base backup of few
//! changes writes few parts, and memory is one part and the changes, however large the map.

use std::collections::BTreeMap;

use super::map::{Changes, KEY_MAX, Location, PART_RUNS_MAX, PageKey, Run, check_order, push_run};
use crate::wire::Malformed;

/// Runs a new part is filled with. Below the maximum, so that the changes of a few base backups do
/// not split it.
const PART_RUNS_FILL: usize = PART_RUNS_MAX * 3 / 4;

/// Runs by which a part may exceed the fill; together they stay within the maximum.
const PART_RUNS_SLACK: usize = PART_RUNS_MAX / 8;

/// A part of a map, as its index names it. `H` says where the part is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<H> {
    /// The first page it covered when it was written.
    pub first: PageKey,
    /// Its runs.
    pub runs: u32,
    /// The pages of its runs.
    pub pages: u64,
    /// Where it is stored.
    pub handle: H,
}

/// Live pages gained and lost, by pack.
pub type UseChange = BTreeMap<u32, i64>;

/// The key range `[from, to)` of part `index`.
pub fn part_range<H>(parts: &[Part<H>], index: usize) -> (PageKey, PageKey) {
    let from = match index {
        0 => PageKey::MIN,
        _ => parts.get(index).map_or(KEY_MAX, |part| part.first),
    };
    let to = parts.get(index + 1).map_or(KEY_MAX, |part| part.first);
    (from, to)
}

/// The index of the part that covers `key`; `None` if there is no part at all.
pub fn part_of<H>(parts: &[Part<H>], key: PageKey) -> Option<usize> {
    let after = parts.partition_point(|part| part.first <= key);
    (!parts.is_empty()).then(|| after.saturating_sub(1))
}

/// Checks the order of an index.
pub fn check_index<H>(parts: &[Part<H>]) -> Result<(), Malformed> {
    if parts.windows(2).any(|pair| pair[0].first >= pair[1].first) {
        return Err(Malformed::new(
            "map parts are not in the order of their pages",
        ));
    }
    Ok(())
}

/// Checks decoded `runs` against what the index says of part `index`.
pub fn check_part<H>(parts: &[Part<H>], index: usize, runs: &[Run]) -> Result<(), Malformed> {
    check_order(runs)?;
    let part = parts
        .get(index)
        .ok_or_else(|| Malformed::new("no such map part"))?;
    let (from, to) = part_range(parts, index);
    let inside = runs.first().is_none_or(|run| run.start() >= from)
        && runs.last().is_none_or(|run| run.end() <= to);
    if !inside {
        return Err(Malformed::new("a map part holds pages of another part"));
    }
    if runs.len() != part.runs as usize || pages_of(runs) != part.pages {
        return Err(Malformed::new(
            "a map part differs from what its index says",
        ));
    }
    Ok(())
}

/// Pages of all `runs`.
pub fn pages_of(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

/// What a rebuild says of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebuilt {
    /// The part is kept.
    Shared(usize),
    /// A new part, to be stored. Never empty.
    New(Vec<Run>),
}

/// One walk over the parts of a former map. For each index in order, [`Self::wants`] tells whether
/// its runs are needed; then [`Self::share`] or [`Self::replace`]; at last [`Self::finish`]. Each
/// appends the parts of the new map in order.
#[derive(Debug)]
pub struct Rebuild<'a, H> {
    parts: &'a [Part<H>],
    changes: &'a Changes,
    /// Runs of a full part, and by how many one may exceed it.
    fill: (usize, usize),
    pending: Vec<Run>,
    usage: UseChange,
    out: Vec<Rebuilt>,
}

impl<'a, H> Rebuild<'a, H> {
    /// A walk over `parts`, the former map, none for the first one.
    pub const fn new(parts: &'a [Part<H>], changes: &'a Changes) -> Self {
        Self {
            parts,
            changes,
            fill: (PART_RUNS_FILL, PART_RUNS_SLACK),
            pending: Vec::new(),
            usage: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    /// Whether part `index` must be rewritten.
    pub fn wants(&self, index: usize) -> bool {
        let (from, to) = part_range(self.parts, index);
        self.changes.touches(from, to)
    }

    /// Keeps part `index`, which no change touches.
    pub fn share(&mut self, index: usize) {
        self.flush(0);
        self.out.push(Rebuilt::Shared(index));
    }

    /// Rewrites part `index`, whose runs are `old`.
    pub fn replace(&mut self, index: usize, old: &[Run]) {
        let (from, to) = part_range(self.parts, index);
        self.put(old, from, to);
    }

    fn put(&mut self, old: &[Run], from: PageKey, to: PageKey) {
        count_use(&mut self.usage, old, -1);
        let new = self.changes.apply(old, from, to);
        count_use(&mut self.usage, &new, 1);
        for run in new {
            push_run(&mut self.pending, run);
            if self.pending.len() > self.fill.0 + self.fill.1 {
                self.flush(self.pending.len() - self.fill.0);
            }
        }
    }

    /// Hands out pending runs as parts, but for the last `keep`.
    fn flush(&mut self, keep: usize) {
        while self.pending.len() > keep {
            let ready = self.pending.len() - keep;
            // A remainder that fits goes along: a part of a few runs would cost a look-up for ever.
            let take = if ready > self.fill.0 + self.fill.1 {
                self.fill.0
            } else {
                ready
            };
            let rest = self.pending.split_off(take);
            self.out
                .push(Rebuilt::New(std::mem::replace(&mut self.pending, rest)));
        }
    }

    /// Parts of the new map so far, in order, to be stored before the walk goes on.
    pub fn take(&mut self) -> Vec<Rebuilt> {
        std::mem::take(&mut self.out)
    }

    /// The last parts, and how the use of packs changed.
    pub fn finish(mut self) -> (Vec<Rebuilt>, UseChange) {
        if self.parts.is_empty() {
            self.put(&[], PageKey::MIN, KEY_MAX);
        }
        self.flush(0);
        (self.out, self.usage)
    }
}

fn count_use(usage: &mut UseChange, runs: &[Run], sign: i64) {
    for run in runs {
        if let Location::Frame { pack, .. } = run.at {
            *usage.entry(pack).or_default() += sign * i64::from(run.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::map::{PageMap, decode_runs, encode_runs, locate};
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Parts in memory: a handle is an index into the encoded parts.
    #[derive(Default)]
    struct Parts {
        stored: Vec<Vec<u8>>,
        index: Vec<Part<usize>>,
        lengths: BTreeMap<u32, u32>,
        usage: BTreeMap<u32, i64>,
        fill: Option<(usize, usize)>,
    }

    impl Parts {
        fn load(&self, index: usize) -> Vec<Run> {
            let runs = decode_runs(&self.stored[self.index[index].handle]).unwrap();
            check_part(&self.index, index, &runs).unwrap();
            runs
        }

        fn next(&mut self, changes: &Changes) -> usize {
            let mut walk = Rebuild::new(&self.index, changes);
            if let Some(fill) = self.fill {
                walk.fill = fill;
            }
            for index in 0..self.index.len() {
                if walk.wants(index) {
                    walk.replace(index, &self.load(index));
                } else {
                    walk.share(index);
                }
            }
            let (rebuilt, usage) = walk.finish();
            let mut shared = 0;
            let mut index = Vec::new();
            for part in rebuilt {
                index.push(match part {
                    Rebuilt::Shared(old) => {
                        shared += 1;
                        self.index[old].clone()
                    }
                    Rebuilt::New(runs) => {
                        self.stored.push(encode_runs(&runs));
                        Part {
                            first: runs[0].start(),
                            runs: runs.len() as u32,
                            pages: pages_of(&runs),
                            handle: self.stored.len() - 1,
                        }
                    }
                });
            }
            for (pack, change) in usage {
                *self.usage.entry(pack).or_default() += change;
            }
            check_index(&index).unwrap();
            self.index = index;
            self.lengths = changes.lengths().clone();
            shared
        }

        fn whole(&self) -> PageMap {
            let runs = (0..self.index.len())
                .flat_map(|index| self.load(index))
                .collect();
            PageMap::new(self.lengths.clone(), runs).unwrap()
        }
    }

    #[derive(Debug, Clone)]
    struct Step {
        lengths: BTreeMap<u32, u32>,
        limits: BTreeMap<u32, u32>,
        touched: Vec<(u32, u32)>,
    }

    fn step() -> impl Strategy<Value = Step> {
        let files = proptest::collection::btree_map(0_u32..5, 0_u32..60, 0..5);
        let limits = proptest::collection::btree_map(0_u32..5, 0_u32..60, 0..2);
        let touched = proptest::collection::vec((0_u32..5, 0_u32..60), 0..30);
        (files, limits, touched).prop_map(|(lengths, limits, touched)| Step {
            lengths,
            limits,
            touched,
        })
    }

    proptest! {
        /// The witness is a hash map of page to place that knows nothing of runs.
        #[test]
        fn look_ups_equal_a_map_of_single_pages(steps in proptest::collection::vec(step(), 1..12)) {
            // Small parts, so that every step crosses their boundaries.
            let mut parts = Parts { fill: Some((6, 2)), ..Parts::default() };
            let mut model: HashMap<(u32, u32), Location> = HashMap::new();
            for (pack, step) in steps.iter().enumerate() {
                let pack = pack as u32;
                model.retain(|(file, page), _| {
                    *page < step.lengths.get(file).copied().unwrap_or(0)
                        && step.limits.get(file).is_none_or(|limit| *page < *limit)
                });
                let mut runs = Vec::new();
                for (file, length) in &step.lengths {
                    for page in 0..*length {
                        // Every third page that was touched is zero.
                        let at = if page % 3 == 0 { Location::Zero } else { Location::Frame { pack, frame: page / 7 } };
                        if step.touched.contains(&(*file, page)) || !model.contains_key(&(*file, page)) {
                            runs.push(Run { file: *file, first: page, count: 1, at });
                            model.insert((*file, page), at);
                        }
                    }
                }
                let changes = Changes::new(&parts.lengths, step.lengths.clone(), &step.limits, runs).unwrap();
                parts.next(&changes);
                let whole = parts.whole();
                for file in 0..6 {
                    for page in 0..61 {
                        let expected = model.get(&(file, page)).copied();
                        prop_assert_eq!(whole.locate(file, page), expected);
                        let key = PageKey::new(file, u64::from(page));
                        let found = part_of(&parts.index, key)
                            .and_then(|index| locate(&parts.load(index), file, page));
                        prop_assert_eq!(found, expected);
                    }
                }
                for (pack, pages) in &parts.usage {
                    let live = model.values().filter(|at| matches!(at, Location::Frame { pack: p, .. } if p == pack)).count();
                    prop_assert_eq!(u64::try_from(*pages), Ok(live as u64));
                }
            }
        }
    }

    /// A file of scattered single-page runs, large enough for many parts.
    fn scattered(pages: u32) -> (Parts, BTreeMap<u32, u32>) {
        let lengths = BTreeMap::from([(1, pages)]);
        let runs = (0..pages)
            .map(|page| Run {
                file: 1,
                first: page,
                count: 1,
                at: Location::Frame {
                    pack: 0,
                    frame: page % 2,
                },
            })
            .collect();
        let none = BTreeMap::new();
        let mut parts = Parts::default();
        parts.next(&Changes::new(&none, lengths.clone(), &none, runs).unwrap());
        (parts, lengths)
    }

    #[test]
    fn unchanged_parts_are_shared_by_reference() {
        let (mut parts, lengths) = scattered(100_000);
        let before = parts.index.clone();
        assert!(before.len() >= 8, "{} parts", before.len());
        assert!(
            before
                .iter()
                .all(|part| part.runs as usize <= PART_RUNS_MAX)
        );
        let changed = Run {
            file: 1,
            first: 50_000,
            count: 1,
            at: Location::Frame { pack: 1, frame: 0 },
        };
        let shared = parts.next(
            &Changes::new(&lengths, lengths.clone(), &BTreeMap::new(), vec![changed]).unwrap(),
        );
        assert_eq!(shared, before.len() - 1);
        let kept = parts
            .index
            .iter()
            .filter(|part| before.contains(part))
            .count();
        assert_eq!(kept, before.len() - 1);
        assert_eq!(parts.whole().locate(1, 50_000), Some(changed.at));
        // Nothing changed at all: nothing is written.
        let stored = parts.stored.len();
        parts.next(&Changes::new(&lengths, lengths.clone(), &BTreeMap::new(), Vec::new()).unwrap());
        assert_eq!(parts.stored.len(), stored);
    }

    #[test]
    fn a_change_across_a_part_boundary_reaches_both_parts() {
        let (mut parts, lengths) = scattered(40_000);
        let boundary = parts.index[1].first.page as u32;
        let changed = Run {
            file: 1,
            first: boundary - 5,
            count: 10,
            at: Location::Frame { pack: 1, frame: 0 },
        };
        parts.next(
            &Changes::new(&lengths, lengths.clone(), &BTreeMap::new(), vec![changed]).unwrap(),
        );
        let whole = parts.whole();
        for page in boundary - 5..boundary + 5 {
            assert_eq!(whole.locate(1, page), Some(changed.at));
        }
    }

    #[test]
    fn truncation_reaches_every_part_past_the_new_end() {
        let (mut parts, lengths) = scattered(60_000);
        let shorter = BTreeMap::from([(1, 20_000)]);
        parts.next(&Changes::new(&lengths, shorter, &BTreeMap::new(), Vec::new()).unwrap());
        assert_eq!(pages_of(parts.whole().runs()), 20_000);
    }
}
