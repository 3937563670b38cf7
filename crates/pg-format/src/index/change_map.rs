//! The change map: which blocks of which relation forks a stretch of the log may have changed.
//!
//! Too much in it costs time, too little is corruption. Its meaning, for whoever brings an older
//! copy up to date:
//!
//! - a block in a fork's set must be read again;
//! - a block at or above a fork's *limit* must not be taken from the older copy: the fork was
//!   created, dropped or cut there. It is read again if the fork now reaches it, in the set or not;
//! - a block at or beyond the older copy's length must be read, named or not: extension is not
//!   logged;
//! - a *reset* pair of tablespace and database has a limit of 0 for every fork of every relation;
//! - a *widened* database, or everything, must be read in full;
//! - visibility-map blocks follow from heap blocks ([`ForkChanges::derived_vm_blocks`]), since
//!   clearing a bit is not logged against the map; free space maps are hardly logged at all and are
//!   to be read whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use roaring::RoaringBitmap;

use super::hash::NumberHash;
use crate::page::PAGE_HEADER_LEN;
use crate::{DatabaseFiles, Fork, Relation};

/// A relation's fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ForkKey {
    /// The relation.
    pub relation: Relation,
    /// The fork.
    pub fork: Fork,
}

/// Why a map says more than the log's block references do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Widening {
    /// Part of the log could not be read.
    Unparsed,
    /// A record of an unknown kind, or of an extension.
    UnknownRecord,
    /// A record of a known kind whose contents could not be read.
    UnreadableRecord,
    /// A block of a fork with an unknown number.
    UnknownFork,
    /// The log was written at `wal_level=minimal`, where bulk changes leave no trace.
    MinimalLog,
}

impl Widening {
    /// Every reason, in the order of their stored numbers.
    pub const ALL: [Self; 5] = [
        Self::Unparsed,
        Self::UnknownRecord,
        Self::UnreadableRecord,
        Self::UnknownFork,
        Self::MinimalLog,
    ];
}

/// What happened to one fork.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ForkChanges {
    /// The blocks changed since the last limit below or at them.
    pub blocks: RoaringBitmap,
    /// The lowest length that the fork was cut to, if it was.
    pub limit: Option<u32>,
}

/// The block of the visibility map that has the bits of a heap block: two bits for each block,
/// after the page header (`HEAPBLK_TO_MAPBLOCK` in `access/heap/visibilitymap.c`). 32,672 heap
/// blocks to a page of 8 KiB.
pub const fn visibility_map_block(heap_block: u32, page_size: u32) -> u32 {
    heap_block / heap_blocks_per_map_page(page_size)
}

const fn heap_blocks_per_map_page(page_size: u32) -> u32 {
    let blocks = page_size.saturating_sub(PAGE_HEADER_LEN as u32) * 4;
    if blocks == 0 { 1 } else { blocks }
}

impl ForkChanges {
    /// The visibility-map blocks of the heap blocks in the set. A heap record can clear bits of the
    /// map without naming its block, and replay clears them without moving the page's position.
    pub fn derived_vm_blocks(&self, page_size: u32) -> RoaringBitmap {
        let per_page = heap_blocks_per_map_page(page_size);
        let mut derived = RoaringBitmap::new();
        let mut from = 0;
        // From one map page's stretch of heap blocks to the next that has a member.
        while let Some(block) = self.blocks.range(from..).next() {
            let map_block = block / per_page;
            derived.insert(map_block);
            let Some(next) = (map_block + 1).checked_mul(per_page) else {
                break;
            };
            from = next;
        }
        derived
    }

    fn cut(&mut self, limit: u32) {
        self.blocks.remove_range(limit..);
        self.limit = Some(self.limit.map_or(limit, |old| old.min(limit)));
    }
}

/// Blocks marked a moment ago are likely to be marked again; this many are remembered.
const RECENT: usize = 64;

/// The changes of a stretch of the log. See the module for what it means.
#[derive(Debug, Clone)]
pub struct ChangeMap {
    forks: HashMap<ForkKey, ForkChanges, NumberHash>,
    resets: BTreeSet<DatabaseFiles>,
    databases: BTreeSet<u32>,
    everything: bool,
    reasons: BTreeMap<Widening, u64>,
    /// A cache, not part of the value: every entry is in `forks`.
    recent: [Option<(ForkKey, u32)>; RECENT],
}

impl Default for ChangeMap {
    fn default() -> Self {
        Self {
            forks: HashMap::default(),
            resets: BTreeSet::new(),
            databases: BTreeSet::new(),
            everything: false,
            reasons: BTreeMap::new(),
            recent: [None; RECENT],
        }
    }
}

impl PartialEq for ChangeMap {
    fn eq(&self, other: &Self) -> bool {
        self.forks == other.forks
            && self.resets == other.resets
            && self.databases == other.databases
            && self.everything == other.everything
            && self.reasons == other.reasons
    }
}

impl ChangeMap {
    /// A map of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.forks.is_empty()
            && self.resets.is_empty()
            && self.databases.is_empty()
            && !self.everything
    }

    /// Every fork that changed, in no order.
    pub fn forks(&self) -> impl ExactSizeIterator<Item = (&ForkKey, &ForkChanges)> {
        self.forks.iter()
    }

    /// Every fork that changed, ordered by tablespace, database, relation and fork.
    pub fn sorted_forks(&self) -> Vec<(&ForkKey, &ForkChanges)> {
        let mut forks: Vec<_> = self.forks.iter().collect();
        forks.sort_unstable_by_key(|(key, _)| **key);
        forks
    }

    /// What happened to one fork. `None` says nothing about resets and widening.
    pub fn fork(&self, key: &ForkKey) -> Option<&ForkChanges> {
        self.forks.get(key)
    }

    /// The pairs of tablespace and database that were created or dropped.
    pub const fn resets(&self) -> &BTreeSet<DatabaseFiles> {
        &self.resets
    }

    /// The databases, in whatever tablespaces, that must be read in full. 0 stands for what all
    /// databases share.
    pub const fn widened_databases(&self) -> &BTreeSet<u32> {
        &self.databases
    }

    /// Whether everything must be read in full.
    pub const fn is_everything(&self) -> bool {
        self.everything
    }

    /// How often each reason widened the map.
    pub const fn reasons(&self) -> &BTreeMap<Widening, u64> {
        &self.reasons
    }

    /// A block changed.
    #[inline]
    pub fn mark(&mut self, key: ForkKey, block: u32) {
        let slot = (key.relation.number ^ block) as usize % RECENT;
        let entry = Some((key, block));
        if let Some(recent) = self.recent.get_mut(slot) {
            if *recent == entry {
                return;
            }
            *recent = entry;
        }
        if let Some(changes) = self.forks.get_mut(&key) {
            changes.blocks.insert(block);
        } else {
            self.forks.entry(key).or_default().blocks.insert(block);
        }
    }

    /// A fork was cut to `limit` blocks: created or dropped, if 0.
    pub fn limit(&mut self, key: ForkKey, limit: u32) {
        self.recent = [None; RECENT];
        self.forks.entry(key).or_default().cut(limit);
    }

    /// All forks of a relation were created or dropped.
    pub fn limit_relation(&mut self, relation: Relation) {
        for fork in Fork::ALL {
            self.limit(ForkKey { relation, fork }, 0);
        }
    }

    /// A database's directory in a tablespace was created or dropped.
    pub fn reset(&mut self, files: DatabaseFiles) {
        self.recent = [None; RECENT];
        self.forks
            .retain(|key, _| key.relation.database_files() != files);
        self.resets.insert(files);
    }

    /// A database must be read in full.
    pub fn widen_database(&mut self, database: u32, reason: Widening) {
        self.databases.insert(database);
        self.count(reason, 1);
    }

    /// Everything must be read in full.
    pub fn widen(&mut self, reason: Widening) {
        self.everything = true;
        self.count(reason, 1);
    }

    fn count(&mut self, reason: Widening, times: u64) {
        let counter = self.reasons.entry(reason).or_default();
        *counter = counter.saturating_add(times);
    }

    /// Adds the map of the stretch that follows this one. The order matters: a later limit or reset
    /// voids earlier blocks, never the other way round.
    pub fn append(&mut self, later: &Self) {
        self.recent = [None; RECENT];
        if !later.resets.is_empty() {
            self.forks
                .retain(|key, _| !later.resets.contains(&key.relation.database_files()));
            self.resets.extend(&later.resets);
        }
        for (key, changes) in &later.forks {
            let fork = self.forks.entry(*key).or_default();
            if let Some(limit) = changes.limit {
                fork.cut(limit);
            }
            fork.blocks |= &changes.blocks;
        }
        self.databases.extend(&later.databases);
        self.everything |= later.everything;
        for (reason, times) in &later.reasons {
            self.count(*reason, *times);
        }
    }

    /// Puts a stored fork back; `false` if it is there already.
    pub(super) fn restore_fork(&mut self, key: ForkKey, changes: ForkChanges) -> bool {
        self.forks.insert(key, changes).is_none()
    }

    /// Puts stored widening back.
    pub(super) fn restore_widening(
        &mut self,
        everything: bool,
        databases: &[u32],
        reasons: impl Iterator<Item = (Widening, u64)>,
    ) {
        self.everything = everything;
        self.databases.extend(databases);
        for (reason, times) in reasons {
            self.count(reason, times);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Mark(u32, u32),
        Limit(u32, u32),
        Reset(u32),
    }

    fn key(number: u32) -> ForkKey {
        ForkKey {
            relation: Relation {
                tablespace: 1663,
                database: number / 2,
                number,
            },
            fork: Fork::Main,
        }
    }

    fn files(database: u32) -> DatabaseFiles {
        DatabaseFiles {
            tablespace: 1663,
            database,
        }
    }

    fn apply(map: &mut ChangeMap, step: Step) {
        match step {
            Step::Mark(number, block) => map.mark(key(number), block),
            Step::Limit(number, limit) => map.limit(key(number), limit),
            Step::Reset(database) => map.reset(files(database)),
        }
    }

    fn map_of(steps: &[Step]) -> ChangeMap {
        let mut map = ChangeMap::new();
        for step in steps {
            apply(&mut map, *step);
        }
        map
    }

    /// What the definition says of a block: is it marked, and may it be inherited?
    fn naive(steps: &[Step], number: u32, block: u32) -> (bool, bool) {
        let (mut marked, mut inherited) = (false, true);
        for step in steps {
            match *step {
                Step::Mark(n, b) if n == number && b == block => {
                    marked = true;
                    inherited = false;
                }
                Step::Limit(n, limit) if n == number && block >= limit => {
                    marked = false;
                    inherited = false;
                }
                Step::Reset(database) if database == number / 2 => {
                    marked = false;
                    inherited = false;
                }
                _ => {}
            }
        }
        (marked, inherited)
    }

    fn answer(map: &ChangeMap, number: u32, block: u32) -> (bool, bool) {
        let changes = map.fork(&key(number));
        let marked = changes.is_some_and(|changes| changes.blocks.contains(block));
        let limited = changes
            .and_then(|changes| changes.limit)
            .is_some_and(|limit| block >= limit);
        let reset = map.resets().contains(&files(number / 2));
        (marked, !(marked || limited || reset))
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0_u32..4, 0_u32..8).prop_map(|(number, block)| Step::Mark(number, block)),
            3 => (0_u32..4, 0_u32..8).prop_map(|(number, limit)| Step::Limit(number, limit)),
            1 => (0_u32..2).prop_map(Step::Reset),
        ];
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn the_map_says_what_the_definition_says(steps in steps()) {
            let map = map_of(&steps);
            for number in 0..4 {
                for block in 0..9 {
                    prop_assert_eq!(answer(&map, number, block), naive(&steps, number, block));
                }
            }
        }

        #[test]
        fn pieces_appended_say_what_the_whole_says(steps in steps(), cuts in prop::collection::vec(0_usize..40, 0..4)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(steps.len())).collect();
            cuts.extend([0, steps.len()]);
            cuts.sort_unstable();
            let mut union = ChangeMap::new();
            for pair in cuts.windows(2) {
                union.append(&map_of(&steps[pair[0]..pair[1]]));
            }
            let whole = map_of(&steps);
            for number in 0..4 {
                for block in 0..9 {
                    prop_assert_eq!(answer(&union, number, block), answer(&whole, number, block));
                }
            }
        }

        #[test]
        fn derived_blocks_are_those_of_each_heap_block(blocks: Vec<u32>) {
            let changes = ForkChanges { blocks: blocks.iter().copied().collect(), limit: None };
            let expected: RoaringBitmap = blocks.iter().map(|block| block / 32_672).collect();
            prop_assert_eq!(changes.derived_vm_blocks(8192), expected);
        }
    }

    #[test]
    fn re_extension_after_truncation_is_not_inherited() {
        let mut map = ChangeMap::new();
        map.mark(key(1), 9);
        map.limit(key(1), 4);
        map.mark(key(1), 6);
        let changes = map.fork(&key(1)).expect("the fork changed");
        assert_eq!(changes.blocks.iter().collect::<Vec<_>>(), [6]);
        assert_eq!(changes.limit, Some(4));
    }

    #[test]
    fn a_block_marked_again_after_a_cut_is_marked() {
        let mut map = ChangeMap::new();
        map.mark(key(1), 9);
        map.limit(key(1), 0);
        map.mark(key(1), 9);
        assert!(answer(&map, 1, 9).0);
    }

    #[test]
    fn map_blocks_are_those_of_visibilitymap_c() {
        assert_eq!(visibility_map_block(32_671, 8192), 0);
        assert_eq!(visibility_map_block(32_672, 8192), 1);
        assert_eq!(visibility_map_block(u32::MAX, 8192), 131_457);
        assert_eq!(visibility_map_block(5, 0), 5);
    }
}
