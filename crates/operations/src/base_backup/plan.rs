//! From a listing of the data directory to what a base backup does with each file. Pure.

use std::collections::{BTreeMap, BTreeSet};

use borealis_pg_format::files::{EMPTIED_DIRECTORIES, FileKind, RelationFile};
use borealis_pg_format::index::{ChangeMap, ForkKey, visibility_map_block};
use borealis_pg_format::{Fork, Relation};
use roaring::RoaringBitmap;

use super::read_set::{Change, ForkFacts, read_set};

/// A file as the listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the data directory.
    pub path: String,
    /// By its place and name.
    pub kind: FileKind,
    /// Length in bytes.
    pub bytes: u64,
    /// Permission bits.
    pub mode: u32,
}

/// A relation fork to be kept as a page file.
#[derive(Debug, Clone, PartialEq)]
pub struct ForkPlan {
    /// Path of its first segment, the page file's name.
    pub path: String,
    /// Which fork of which relation.
    pub key: ForkKey,
    /// Permission bits.
    pub mode: u32,
    /// Length in pages.
    pub pages: u32,
    /// Pages to read; the others are inherited.
    pub read: RoaringBitmap,
    /// Nothing may be inherited from this page on: the fork was created or cut there meanwhile. Said
    /// beside `read`, so that a page that is neither read nor inherited is found out.
    pub limit: Option<u32>,
}

/// What a base backup does.
#[derive(Debug, Default)]
pub struct Plan {
    /// Relation forks.
    pub forks: Vec<ForkPlan>,
    /// Files taken whole.
    pub blobs: Vec<Listed>,
    /// Bytes of pages to read.
    pub page_bytes: u64,
    /// Forks that are left out because an unlogged relation is empty after a restore.
    pub unlogged: usize,
}

impl Plan {
    /// Pages to read, of all forks.
    pub fn pages_to_read(&self) -> u64 {
        self.forks.iter().map(|fork| fork.read.len()).sum()
    }
}

/// Sizes that the control file gives.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes in a page.
    pub page_bytes: u32,
    /// Pages in a segment file.
    pub segment_pages: u32,
}

/// The base backup before, as far as planning needs it.
#[derive(Debug, Default)]
pub struct Before {
    /// Length in pages of each page file, by name.
    pub lengths: BTreeMap<String, u32>,
    /// Pages below those lengths that can't be taken over, whatever the log says.
    pub unusable: BTreeMap<String, RoaringBitmap>,
}

/// Plans a base backup. `changes` is `None` for the first one; `before` is then not looked at.
pub fn plan(listing: &[Listed], sizes: Sizes, changes: Option<(&Before, &ChangeMap)>) -> Plan {
    let mut plan = Plan::default();
    let mut forks: BTreeMap<ForkKey, Vec<(RelationFile, &Listed)>> = BTreeMap::new();
    for file in listing {
        match file.kind {
            FileKind::Relation(relation) => {
                let key = ForkKey {
                    relation: relation.relation,
                    fork: relation.fork,
                };
                forks.entry(key).or_default().push((relation, file));
            }
            FileKind::Excluded
            | FileKind::Log
            | FileKind::TemporaryRelation
            | FileKind::TablespaceLink(_)
            | FileKind::ControlFile => {}
            FileKind::Slru(_)
            | FileKind::RelationMap(_)
            | FileKind::Version
            | FileKind::Configuration
            | FileKind::TwoPhase
            | FileKind::Blob => plan.blobs.push(file.clone()),
        }
    }
    let unlogged: BTreeSet<Relation> = forks
        .keys()
        .filter(|key| key.fork == Fork::Init)
        .map(|key| key.relation)
        .collect();
    for (key, mut segments) in forks {
        if key.fork != Fork::Init && unlogged.contains(&key.relation) {
            plan.unlogged += 1;
            continue;
        }
        segments.sort_by_key(|(file, _)| file.segment);
        let Some(pages) = length(&segments, sizes) else {
            // A first segment that is missing, or one in the middle that is short: a relation that is
            // being dropped or truncated at this moment. Its files are taken as they are; replay of
            // the drop or truncation puts them right.
            plan.blobs
                .extend(segments.into_iter().map(|(_, file)| file.clone()));
            continue;
        };
        let Some((_, first)) = segments.first() else {
            continue;
        };
        let facts = facts(key, pages, &first.path, sizes, changes);
        let mut read = facts
            .as_ref()
            .map_or_else(|| (0..pages).collect(), read_set);
        if let Some(unusable) = changes.and_then(|(before, _)| before.unusable.get(&first.path)) {
            read |= unusable;
            read.remove_range(pages..);
        }
        let limit = facts.and_then(|facts| {
            if facts.widened {
                Some(0)
            } else {
                facts.own.limit
            }
        });
        plan.page_bytes += read.len() * u64::from(sizes.page_bytes);
        plan.forks.push(ForkPlan {
            path: first.path.clone(),
            key,
            mode: first.mode,
            pages,
            read,
            limit,
        });
    }
    plan
}

/// The fork's length in whole pages; `None` if its segments do not follow each other. A part of a page
/// at the end is an extension in progress: it was never logged as part of the relation.
fn length(segments: &[(RelationFile, &Listed)], sizes: Sizes) -> Option<u32> {
    let full = u64::from(sizes.segment_pages) * u64::from(sizes.page_bytes);
    let mut pages = 0_u64;
    let mut ended = false;
    for (number, (file, listed)) in segments.iter().enumerate() {
        if file.segment as usize != number || (ended && listed.bytes > 0) {
            return None;
        }
        // Truncation leaves empty segments behind (md.c): they end the fork but are no hole.
        ended = listed.bytes < full;
        pages += listed.bytes.min(full) / u64::from(sizes.page_bytes);
    }
    u32::try_from(pages).ok()
}

/// What is known of a fork; `None` where nothing can be inherited because nothing came before.
fn facts<'a>(
    key: ForkKey,
    pages: u32,
    path: &str,
    sizes: Sizes,
    changes: Option<(&Before, &'a ChangeMap)>,
) -> Option<ForkFacts<'a>> {
    let (before, changes) = changes?;
    let change = |fork: Fork| {
        changes
            .fork(&ForkKey {
                relation: key.relation,
                fork,
            })
            .map_or_else(Change::default, |of| Change {
                blocks: Some(&of.blocks),
                limit: of.limit,
            })
    };
    let widened = changes.is_everything()
        || changes.resets().contains(&key.relation.database_files())
        || changes.widened_databases().contains(&key.relation.database);
    Some(ForkFacts {
        fork: key.fork,
        pages_before: before.lengths.get(path).copied(),
        pages_now: pages,
        widened,
        own: change(key.fork),
        main: change(Fork::Main),
        heap_pages_per_vm_page: heap_pages_per_vm_page(sizes.page_bytes),
    })
}

/// How many heap pages one page of the visibility map covers (`HEAPBLOCKS_PER_PAGE` in
/// `visibilitymap.c`): two bits each, in what the page header leaves.
fn heap_pages_per_vm_page(page_bytes: u32) -> u32 {
    const PAGE_HEADER_BYTES: u32 = 24;
    let covered = (page_bytes - PAGE_HEADER_BYTES) * 4;
    debug_assert_eq!(visibility_map_block(covered, page_bytes), 1);
    debug_assert_eq!(visibility_map_block(covered - 1, page_bytes), 0);
    covered
}

/// Whether a directory is restored without its contents.
pub fn is_emptied(path: &str) -> bool {
    EMPTIED_DIRECTORIES.contains(&path) || path == "pg_wal"
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_pg_format::files::classify;

    const SIZES: Sizes = Sizes {
        page_bytes: 8192,
        segment_pages: 4,
    };

    fn listed(path: &str, pages: u64) -> Listed {
        Listed {
            path: path.into(),
            kind: classify(path),
            bytes: pages * 8192,
            mode: 0o600,
        }
    }

    fn forks(
        listing: &[Listed],
        changes: Option<(&Before, &ChangeMap)>,
    ) -> Vec<(String, u32, Vec<u32>)> {
        plan(listing, SIZES, changes)
            .forks
            .into_iter()
            .map(|fork| (fork.path, fork.pages, fork.read.iter().collect()))
            .collect()
    }

    #[test]
    fn segments_are_one_page_file() {
        let listing = [
            listed("base/5/16384.1", 1),
            listed("base/5/16384", 4),
            listed("base/5/16384.2", 0),
        ];
        assert_eq!(
            forks(&listing, None),
            [("base/5/16384".to_owned(), 5, vec![0, 1, 2, 3, 4])]
        );
    }

    #[test]
    fn segments_with_a_hole_are_taken_as_they_are() {
        let listing = [listed("base/5/16384", 3), listed("base/5/16384.1", 1)];
        let plan = plan(&listing, SIZES, None);
        assert!(plan.forks.is_empty());
        assert_eq!(plan.blobs.len(), 2);
    }

    #[test]
    fn unlogged_relations_keep_their_init_fork_only() {
        let listing = [
            listed("base/5/16384", 3),
            listed("base/5/16384_vm", 1),
            listed("base/5/16384_init", 1),
            listed("base/5/16385", 1),
        ];
        let paths: Vec<_> = forks(&listing, None)
            .into_iter()
            .map(|fork| fork.0)
            .collect();
        assert_eq!(paths, ["base/5/16384_init", "base/5/16385"]);
    }

    #[test]
    fn worthless_files_are_left_out_and_unknown_ones_are_taken() {
        let listing = [
            listed("postmaster.pid", 0),
            listed("pg_wal/000000010000000000000001", 0),
            listed("base/5/t3_16390", 1),
            listed("pg_replslot/x/state", 0),
            listed("pg_xact/0000", 1),
            listed("some_extension/file", 1),
        ];
        let plan = plan(&listing, SIZES, None);
        let blobs: Vec<_> = plan.blobs.iter().map(|blob| blob.path.as_str()).collect();
        assert_eq!(blobs, ["pg_xact/0000", "some_extension/file"]);
        assert!(plan.forks.is_empty());
    }

    #[test]
    fn only_changed_blocks_are_read() {
        let relation = Relation {
            tablespace: 1663,
            database: 5,
            number: 16384,
        };
        let mut changes = ChangeMap::new();
        changes.mark(
            ForkKey {
                relation,
                fork: Fork::Main,
            },
            1,
        );
        let before = Before {
            lengths: [
                ("base/5/16384", 3),
                ("base/5/16384_vm", 1),
                ("base/5/16385", 2),
            ]
            .map(|(path, pages)| (path.to_owned(), pages))
            .into(),
            ..Before::default()
        };
        let listing = [
            listed("base/5/16384", 3),
            listed("base/5/16384_vm", 1),
            listed("base/5/16385", 2),
        ];
        assert_eq!(
            forks(&listing, Some((&before, &changes))),
            [
                ("base/5/16384".to_owned(), 3, vec![1]),
                ("base/5/16384_vm".to_owned(), 1, vec![0]),
                ("base/5/16385".to_owned(), 2, vec![]),
            ]
        );
    }

    #[test]
    fn recreated_database_inherits_nothing() {
        let relation = Relation {
            tablespace: 1663,
            database: 5,
            number: 16384,
        };
        let mut changes = ChangeMap::new();
        changes.reset(relation.database_files());
        let before = Before {
            lengths: [("base/5/16384".to_owned(), 2)].into(),
            ..Before::default()
        };
        let listing = [listed("base/5/16384", 2)];
        let read = &forks(&listing, Some((&before, &changes)))[0].2;
        assert_eq!(read, &[0, 1]);
    }

    #[test]
    fn pages_that_an_unfinished_base_backup_lacks_are_read() {
        let path = "base/5/16384".to_owned();
        let before = Before {
            lengths: [(path.clone(), 6)].into(),
            unusable: [(path, [1, 3, 5].into_iter().collect())].into(),
        };
        let changes = ChangeMap::new();
        let listing = [listed("base/5/16384", 4), listed("base/5/16384.1", 1)];
        let read = &forks(&listing, Some((&before, &changes)))[0].2;
        assert_eq!(read, &[1, 3], "and none past the present end");
    }
}
