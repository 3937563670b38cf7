//! The change map against a full scan of the pages before and after.

use borealis_pg_format::index::{ChangeMap, ForkKey};
use borealis_pg_format::{Fork, Version, page};

use crate::fixture::{fixture, whole_index};

fn is_named(map: &ChangeMap, key: ForkKey, block: u32) -> bool {
    let named = map.fork(&key).is_some_and(|changes| {
        changes.blocks.contains(block) || changes.limit.is_some_and(|limit| block >= limit)
    });
    let heap = ForkKey {
        fork: Fork::Main,
        ..key
    };
    let derived = key.fork == Fork::VisibilityMap
        && map
            .fork(&heap)
            .is_some_and(|changes| changes.derived_vm_blocks(8192).contains(block));
    named
        || derived
        || map.resets().contains(&key.relation.database_files())
        || map.widened_databases().contains(&key.relation.database)
        || map.is_everything()
}

pub fn every_page_that_changed_is_in_the_change_map(version: Version) {
    let fixture = fixture(version);
    let map = &whole_index(version).change_map;
    assert!(!map.is_everything(), "{:?}", map.reasons());
    assert!(map.widened_databases().is_empty(), "{:?}", map.reasons());
    let (mut changed, mut derived_only) = (0, 0);
    for (key, after) in &fixture.after {
        let init = ForkKey {
            fork: Fork::Init,
            ..*key
        };
        let unlogged = fixture.after.contains_key(&init);
        if key.fork == Fork::FreeSpaceMap || (unlogged && key.fork != Fork::Init) {
            continue;
        }
        let before = fixture.before.get(key);
        for (block, page) in after.iter().enumerate() {
            let old = before.and_then(|before| before.get(block));
            if old == Some(page) {
                continue;
            }
            changed += 1;
            let block = block as u32;
            if old.is_none() && !is_named(map, *key, block) {
                // Several sessions that extend a table at once add empty pages and log nothing:
                // whatever lies beyond the older copy's length has to be read anyway.
                let header = page::PageHeader::parse(page).expect("a page");
                let empty = usize::from(header.lower) <= page::PAGE_HEADER_LEN;
                assert!(
                    empty,
                    "{key:?} block {block} is new, holds something and is not in the map"
                );
                continue;
            }
            assert!(
                is_named(map, *key, block),
                "{key:?} block {block} changed and is not in the map"
            );
            let direct = map
                .fork(key)
                .is_some_and(|changes| changes.blocks.contains(block));
            if key.fork == Fork::VisibilityMap && !direct {
                derived_only += 1;
            }
        }
    }
    assert!(changed > 2000, "{changed} pages changed");
    // The hazard is there: without the derived blocks the map would be wrong.
    assert!(derived_only > 0);
}

pub fn a_shrunken_fork_has_a_limit_at_or_below_its_new_length(version: Version) {
    let fixture = fixture(version);
    let map = &whole_index(version).change_map;
    let mut shrunken = 0;
    for (key, before) in &fixture.before {
        let after = fixture.after.get(key).map_or(0, Vec::len);
        if after >= before.len() || key.fork == Fork::FreeSpaceMap {
            continue;
        }
        let init = ForkKey {
            fork: Fork::Init,
            ..*key
        };
        if fixture.before.contains_key(&init) {
            continue;
        }
        shrunken += 1;
        for block in after..before.len() {
            let reset = map.resets().contains(&key.relation.database_files());
            let limit = map.fork(key).and_then(|changes| changes.limit);
            assert!(
                reset || limit.is_some_and(|limit| limit as usize <= block),
                "{key:?} {block}"
            );
        }
    }
    assert!(shrunken > 5, "{shrunken}");
}

pub fn untouched_relations_are_not_in_the_change_map(version: Version) {
    let map = &whole_index(version).change_map;
    let blocks: u64 = map.forks().map(|(_, changes)| changes.blocks.len()).sum();
    let pages: usize = fixture(version).after.values().map(Vec::len).sum();
    assert!(blocks < pages as u64, "{blocks} of {pages}");
}
