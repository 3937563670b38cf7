//! The second witness (law 6): pages that the log says are unchanged are sampled, and their own
//! positions are compared with what the log says. A page that was changed since the base backup
//! before, and that the change map does not name, shows a defect of the change map or writing past
//! the server; its whole fork is then read again.

use std::collections::BTreeSet;
use std::ops::Range;

use borealis_base::{Entropy, Position};
use borealis_pg_format::Fork;
use borealis_pg_format::index::ForkKey;
use borealis_pg_server::data_dir::page_reader::{PageRead, Wanted};

use super::plan::{ForkPlan, Plan};
use super::read::{PagePlace, blocking};
use crate::error::Result;

/// One page in this many is sampled.
const SAMPLED_ONE_IN: u64 = 1_000;
/// Pages sampled at most in one base backup, to bound the reading.
const SAMPLES_MAX: u32 = 4_096;

/// Samples, and plans the whole of every fork that is suspect. Returns their paths.
pub(super) async fn widen_suspects(
    place: &PagePlace,
    since: Position,
    plan: &mut Plan,
    entropy: &dyn Entropy,
) -> Result<Vec<String>> {
    let samples = samples(plan, entropy);
    let place_of_samples = place.clone();
    let suspects = blocking(move || suspects(&place_of_samples, since, &samples)).await?;
    let mut paths = Vec::new();
    for fork in &mut plan.forks {
        if !suspects.contains(&fork.key) {
            continue;
        }
        tracing::error!(
            path = fork.path,
            "a page changed without the log saying so; the whole file is read again"
        );
        let unread = u64::from(fork.pages) - fork.read.len();
        plan.page_bytes += unread * u64::from(place.sizes.page_bytes);
        fork.read.insert_range(0..fork.pages);
        paths.push(fork.path.clone());
    }
    Ok(paths)
}

/// Which blocks are looked at, by fork.
fn samples(plan: &Plan, entropy: &dyn Entropy) -> Vec<(ForkKey, Vec<Range<u32>>)> {
    let mut left = SAMPLES_MAX;
    let mut samples = Vec::new();
    for fork in &plan.forks {
        if fork.key.fork != Fork::Main || left == 0 {
            continue;
        }
        let blocks = sample(fork, entropy, left);
        left -= blocks.len() as u32;
        let ranges = blocks.iter().map(|block| *block..block + 1);
        samples.push((fork.key, ranges.collect()));
    }
    samples
}

/// The forks of which a sampled page says another thing than the log.
fn suspects(
    place: &PagePlace,
    since: Position,
    samples: &[(ForkKey, Vec<Range<u32>>)],
) -> Result<BTreeSet<ForkKey>> {
    let owners: Vec<ForkKey> = samples
        .iter()
        .flat_map(|(key, ranges)| ranges.iter().map(|_| *key))
        .collect();
    let wanted: Vec<Wanted<'_>> = samples
        .iter()
        .map(|(key, ranges)| Wanted {
            relation: key.relation,
            fork: key.fork,
            ranges,
        })
        .collect();
    let mut suspects = BTreeSet::new();
    place.reader().read(&wanted, &mut |at, found, _| {
        if contradicts(found, since, place.start) {
            suspects.extend(owners.get(at));
        }
        Ok(())
    })?;
    Ok(suspects)
}

/// A page that is not to be read must not have changed between the base backup before and this one.
/// One that changed after this one's start is replayed. A page carries the end of the record that
/// changed it last, so that a record just before a position leaves that position on the page.
fn contradicts(found: PageRead, since: Position, start: Position) -> bool {
    matches!(found, PageRead::Good(lsn) if since < lsn && lsn <= start)
}

fn sample(fork: &ForkPlan, entropy: &dyn Entropy, most: u32) -> Vec<u32> {
    let unread = u64::from(fork.pages) - fork.read.len();
    let mut count = unread / SAMPLED_ONE_IN;
    // The remainder by chance, so that small relations are looked at too, now and then.
    if draw(entropy) % SAMPLED_ONE_IN < unread % SAMPLED_ONE_IN {
        count += 1;
    }
    let mut blocks: Vec<u32> = (0..count.min(u64::from(most)))
        .map(|_| (draw(entropy) % u64::from(fork.pages)) as u32)
        .filter(|block| !fork.read.contains(*block))
        .collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

fn draw(entropy: &dyn Entropy) -> u64 {
    let mut bytes = [0; 8];
    entropy.fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::SeededEntropy;
    use borealis_pg_format::Relation;
    use borealis_pg_format::index::ForkKey;
    use roaring::RoaringBitmap;

    #[test]
    fn a_change_that_the_log_does_not_name_is_noticed() {
        let (since, start) = (Position(100), Position(200));
        assert!(contradicts(PageRead::Good(Position(150)), since, start));
        assert!(contradicts(PageRead::Good(Position(200)), since, start));
        assert!(!contradicts(PageRead::Good(Position(100)), since, start));
        assert!(!contradicts(PageRead::Good(Position(201)), since, start));
        assert!(!contradicts(PageRead::New, since, start));
    }

    #[test]
    fn only_pages_that_are_not_read_anyway_are_sampled() {
        let relation = Relation {
            tablespace: 1663,
            database: 5,
            number: 1,
        };
        let mut read = RoaringBitmap::new();
        read.insert_range(0..5_000);
        let fork = ForkPlan {
            path: "base/5/1".into(),
            key: ForkKey {
                relation,
                fork: Fork::Main,
            },
            mode: 0o600,
            pages: 10_000,
            read,
            limit: None,
        };
        let blocks = sample(&fork, &SeededEntropy::new(7), 100);
        assert!(!blocks.is_empty());
        assert!(blocks.iter().all(|block| (5_000..10_000).contains(block)));
    }
}
