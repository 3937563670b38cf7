//! Which point a random drill restores to. Pure.

use borealis_base::{Position, SeededEntropy, Timestamp};
use borealis_repository::plan::{Target, Window};

/// A point of `windows`, each moment as likely as any other; by position where no moment is settled yet. `None`
/// where nothing can be restored.
pub fn choose(windows: &[Window], seed: u64) -> Option<Target> {
    let random = SeededEntropy::new(seed);
    let spans: Vec<(i64, u64)> = windows
        .iter()
        .filter_map(|window| {
            let (first, last) = (window.earliest.time?, window.latest.time?);
            Some((first.0, (last.0 - first.0).unsigned_abs() + 1))
        })
        .collect();
    if let Some(moment) = pick(&spans, &random) {
        return Some(Target::Time(Timestamp(moment)));
    }
    let spans: Vec<(u64, u64)> = windows
        .iter()
        .map(|window| {
            (
                window.earliest.position.0,
                window.latest.position.since(window.earliest.position) + 1,
            )
        })
        .collect();
    let total: u64 = spans.iter().map(|span| span.1).sum();
    let mut at = random.below(total.max(1));
    windows
        .iter()
        .zip(&spans)
        .find_map(|(window, (first, count))| {
            if at < *count {
                return Some(Target::Position(Position(first + at), Some(window.branch)));
            }
            at -= count;
            None
        })
}

/// A number of the spans (first, count).
fn pick(spans: &[(i64, u64)], random: &SeededEntropy) -> Option<i64> {
    let total = spans.iter().map(|span| span.1).sum::<u64>();
    if total == 0 {
        return None;
    }
    let mut at = random.below(total);
    spans.iter().find_map(|(first, count)| {
        if at < *count {
            return first.checked_add_unsigned(at);
        }
        at -= count;
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{Branch, RecordSpan};
    use borealis_repository::plan::Edge;

    fn window(from: u64, to: u64, times: Option<(i64, i64)>) -> Window {
        let edge = |position, time: Option<i64>| Edge {
            position: Position(position),
            time: time.map(Timestamp),
        };
        Window {
            branch: Branch(1),
            earliest: edge(from, times.map(|times| times.0)),
            latest: edge(to, times.map(|times| times.1)),
            last_record: RecordSpan {
                start: Position(to - 1),
                end: Position(to),
            },
            last_entry: 1,
            base_backups: vec![1],
        }
    }

    #[test]
    fn a_seed_chooses_one_point_and_all_seeds_all_points() {
        let windows = [window(1, 9, Some((10, 12))), window(20, 30, Some((50, 51)))];
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let Some(Target::Time(time)) = choose(&windows, seed) else {
                panic!("there are moments");
            };
            assert_eq!(choose(&windows, seed), Some(Target::Time(time)));
            seen.insert(time.0);
        }
        assert_eq!(Vec::from_iter(seen), [10, 11, 12, 50, 51]);
    }

    #[test]
    fn without_a_settled_moment_a_position_is_chosen_and_without_windows_nothing() {
        let windows = [window(7, 9, None)];
        for seed in 0..20 {
            let Some(Target::Position(at, branch)) = choose(&windows, seed) else {
                panic!("there are positions");
            };
            assert!((7..=9).contains(&at.0) && branch == Some(Branch(1)));
        }
        assert_eq!(choose(&[], 1), None);
    }
}
