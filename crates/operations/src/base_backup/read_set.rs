//! Which blocks of a relation fork a base backup must read. Pure.
//!
//! Too much is slow, too little is corruption (law 5): every rule here widens in doubt. The rules
//! follow `backup/basebackup_incremental.c` where that is right, and differ where it was wrong: heap
//! changes clear bits of the visibility map without naming its block in the log, so the map's blocks
//! are derived from the heap's.

use borealis_pg_format::Fork;
use roaring::RoaringBitmap;

/// What the change map says of one fork.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// Blocks that changed.
    pub blocks: Option<&'a RoaringBitmap>,
    /// The fork was created, dropped or truncated to this many blocks at some time: blocks from here
    /// on must not be inherited, named or not.
    pub limit: Option<u32>,
}

impl Change<'_> {
    fn is_nothing(&self) -> bool {
        self.limit.is_none() && self.blocks.is_none_or(RoaringBitmap::is_empty)
    }
}

/// What is known of one fork.
#[derive(Debug, Clone, Copy)]
pub struct ForkFacts<'a> {
    /// Which fork.
    pub fork: Fork,
    /// Its length in the base backup before; `None` if it was not there.
    pub pages_before: Option<u32>,
    /// Its length now, as seen when the files were listed.
    pub pages_now: u32,
    /// Nothing may be inherited: the database was created or widened, or the change map is incomplete.
    pub widened: bool,
    /// The change map's entry for this fork.
    pub own: Change<'a>,
    /// The change map's entry for the main fork of the same relation.
    pub main: Change<'a>,
    /// Heap pages that one visibility-map page covers.
    pub heap_pages_per_vm_page: u32,
}

/// The blocks to read, below the fork's present length.
pub fn read_set(facts: &ForkFacts<'_>) -> RoaringBitmap {
    let mut blocks = RoaringBitmap::new();
    let end = facts.pages_now;
    let Some(before) = facts.pages_before.filter(|_| !facts.widened) else {
        blocks.insert_range(0..end);
        return blocks;
    };
    // New blocks: extension is not logged.
    blocks.insert_range(before.min(end)..end);
    take(&mut blocks, &facts.own, end);
    match facts.fork {
        Fork::Main | Fork::Init => {}
        Fork::FreeSpaceMap => {
            // Hardly logged: whole, if there was any log for the relation. A map that is stale beyond
            // that only makes the server look for space in the wrong place.
            if !facts.own.is_nothing() || !facts.main.is_nothing() {
                blocks.insert_range(0..end);
            }
        }
        Fork::VisibilityMap => derive_visibility_map(&mut blocks, facts),
    }
    blocks
}

fn take(blocks: &mut RoaringBitmap, change: &Change<'_>, end: u32) {
    if let Some(changed) = change.blocks {
        *blocks |= changed;
    }
    if let Some(limit) = change.limit {
        blocks.insert_range(limit.min(end)..end);
    }
    blocks.remove_range(end..);
}

fn derive_visibility_map(blocks: &mut RoaringBitmap, facts: &ForkFacts<'_>) {
    let end = facts.pages_now;
    let cover = |heap_block: u32| heap_block / facts.heap_pages_per_vm_page;
    if let Some(changed) = facts.main.blocks {
        let mut last = None;
        for page in changed.iter().map(cover) {
            if last.replace(page) != Some(page) && page < end {
                blocks.insert(page);
            }
        }
    }
    if let Some(limit) = facts.main.limit {
        // Truncating the heap clears the tail of the map's last remaining page, which is logged only
        // with checksums or wal_log_hints; and what follows must not be inherited.
        let first =
            cover(limit).saturating_sub(u32::from(limit % facts.heap_pages_per_vm_page == 0));
        blocks.insert_range(first.min(end)..end);
    }
    if let Some(limit) = facts.own.limit {
        blocks.insert_range(limit.saturating_sub(1).min(end)..end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COVER: u32 = 32672;

    fn facts(fork: Fork, before: Option<u32>, now: u32) -> ForkFacts<'static> {
        ForkFacts {
            fork,
            pages_before: before,
            pages_now: now,
            widened: false,
            own: Change::default(),
            main: Change::default(),
            heap_pages_per_vm_page: COVER,
        }
    }

    fn list(facts: &ForkFacts<'_>) -> Vec<u32> {
        read_set(facts).iter().collect()
    }

    fn bitmap(blocks: &[u32]) -> RoaringBitmap {
        blocks.iter().copied().collect()
    }

    #[test]
    fn an_unchanged_fork_is_not_read() {
        for fork in Fork::ALL {
            assert_eq!(list(&facts(fork, Some(10), 10)), [0_u32; 0]);
        }
    }

    #[test]
    fn a_new_fork_and_a_widened_one_are_read_whole() {
        assert_eq!(list(&facts(Fork::Main, None, 3)), [0, 1, 2]);
        let widened = ForkFacts {
            widened: true,
            ..facts(Fork::Main, Some(3), 3)
        };
        assert_eq!(list(&widened), [0, 1, 2]);
    }

    #[test]
    fn unlogged_extension_is_read() {
        assert_eq!(list(&facts(Fork::Main, Some(2), 5)), [2, 3, 4]);
    }

    #[test]
    fn truncated_then_extended_again_inherits_nothing_past_the_truncation() {
        let changed = bitmap(&[1]);
        let own = Change {
            blocks: Some(&changed),
            limit: Some(4),
        };
        let facts = ForkFacts {
            own,
            ..facts(Fork::Main, Some(8), 8)
        };
        assert_eq!(list(&facts), [1, 4, 5, 6, 7]);
    }

    #[test]
    fn blocks_past_the_present_end_are_not_read() {
        let changed = bitmap(&[1, 7, 9]);
        let own = Change {
            blocks: Some(&changed),
            limit: Some(7),
        };
        let facts = ForkFacts {
            own,
            ..facts(Fork::Main, Some(10), 3)
        };
        assert_eq!(list(&facts), [1]);
    }

    #[test]
    fn heap_change_reads_its_visibility_map_block() {
        let changed = bitmap(&[5, COVER - 1, 3 * COVER]);
        let main = Change {
            blocks: Some(&changed),
            limit: None,
        };
        let facts = ForkFacts {
            main,
            ..facts(Fork::VisibilityMap, Some(5), 5)
        };
        assert_eq!(list(&facts), [0, 3]);
    }

    #[test]
    fn heap_truncation_reads_the_last_remaining_visibility_map_page() {
        let main = Change {
            blocks: None,
            limit: Some(COVER + 1),
        };
        let inside = ForkFacts {
            main,
            ..facts(Fork::VisibilityMap, Some(3), 3)
        };
        assert_eq!(list(&inside), [1, 2]);
        let main = Change {
            blocks: None,
            limit: Some(COVER),
        };
        let edge = ForkFacts {
            main,
            ..facts(Fork::VisibilityMap, Some(3), 3)
        };
        assert_eq!(list(&edge), [0, 1, 2]);
    }

    #[test]
    fn free_space_map_is_read_whole_if_its_relation_changed() {
        let changed = bitmap(&[5]);
        let main = Change {
            blocks: Some(&changed),
            limit: None,
        };
        let facts = ForkFacts {
            main,
            ..facts(Fork::FreeSpaceMap, Some(3), 3)
        };
        assert_eq!(list(&facts), [0, 1, 2]);
    }
}
