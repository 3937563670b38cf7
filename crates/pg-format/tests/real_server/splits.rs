//! However the log is split, cut and resumed, and wherever it is damaged.

use borealis_pg_format::Version;
use borealis_pg_format::index::{
    CarryState, ChangeMap, Cut, Event, EventKind, LogIndex, LogIndexer,
};
use borealis_pg_format::wal::{LogFormat, Start};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::fixture::{fixture, whole_index};

/// One way to read the log: pieces of bytes, and whether to cut after each.
type Schedule = Vec<(usize, bool)>;

/// All pieces joined. With `resume` another process goes on after each cut.
fn union_of(version: Version, schedule: &Schedule, resume: bool) -> (LogIndex, ChangeMap) {
    let (start, log) = (fixture(version).from, fixture(version).tested());
    let format = LogFormat::new(version);
    let mut indexer = LogIndexer::new(format, start, Start::Record);
    let mut union: Option<LogIndex> = None;
    let mut map = ChangeMap::new();
    let mut position = start;
    let mut join = |Cut { index, .. }: Cut| {
        map.append(&index.change_map);
        match &mut union {
            None => union = Some(index),
            Some(union) => {
                assert_eq!(union.end, index.start);
                union.end = index.end;
                union.records += index.records;
                union.first_record_start = union.first_record_start.or(index.first_record_start);
                union.last_record = index.last_record.or(union.last_record);
                union.events.extend(index.events);
                union.time_steps.extend(index.time_steps);
                union.redo_points.extend(index.redo_points);
                union.parameter_changes.extend(index.parameter_changes);
                union.full_page_writes.extend(index.full_page_writes);
                union.unparsed.extend(index.unparsed);
            }
        }
    };
    for (len, cut) in schedule.iter().cycle() {
        let from = position.since(start) as usize;
        if from == log.len() {
            break;
        }
        let to = (from + len).min(log.len());
        indexer.push(position, &log[from..to]);
        position = start.plus(to as u64);
        if *cut {
            let cut = indexer.cut();
            if resume {
                let stored = cut.carry.encode();
                let carry = CarryState::decode(&stored).expect("a valid carry state");
                assert_eq!(carry, cut.carry);
                indexer = LogIndexer::resume(format, &carry);
                let again = carry.resume_at.since(start) as usize;
                indexer.push(carry.resume_at, &log[again..to]);
            }
            assert_eq!(
                LogIndex::decode(&cut.index.encode()).as_ref(),
                Ok(&cut.index)
            );
            join(cut);
        }
    }
    join(indexer.cut());
    (union.expect("a piece"), map)
}

/// A transaction with few rows is forgotten when another process goes on, so that its later rows
/// are too few.
fn without_row_counts(index: &LogIndex) -> Vec<&Event> {
    let counts = |event: &&Event| !matches!(event.kind, EventKind::RowsChanged { .. });
    index.events.iter().filter(counts).collect()
}

/// Runs a property few times: each case reads the whole log.
fn check<S: Strategy>(strategy: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig {
        cases: 6,
        max_shrink_iters: 4,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let checked = TestRunner::new(config).run(strategy, property);
    if let Err(error) = checked {
        panic!("{error}");
    }
}

pub fn any_split_and_any_cut_say_the_same(version: Version) {
    let len = prop_oneof![1_usize..100, 100_usize..20_000, 20_000_usize..2_000_000];
    let schedules = prop::collection::vec((len, any::<bool>()), 1..12);
    check(&(schedules, any::<bool>()), |(mut schedule, resume)| {
        schedule.push((500_000, true));
        let (union, map) = union_of(version, &schedule, resume);
        let whole = whole_index(version);
        prop_assert!(map == whole.change_map);
        prop_assert_eq!(union.records, whole.records);
        if resume {
            prop_assert_eq!(without_row_counts(&union), without_row_counts(whole));
        } else {
            prop_assert_eq!(&union.events, &whole.events);
        }
        prop_assert_eq!(&union.time_steps, &whole.time_steps);
        prop_assert_eq!(&union.redo_points, &whole.redo_points);
        prop_assert_eq!(&union.parameter_changes, &whole.parameter_changes);
        prop_assert_eq!(&union.full_page_writes, &whole.full_page_writes);
        prop_assert_eq!(union.last_record, whole.last_record);
        prop_assert_eq!(union.first_record_start, whole.first_record_start);
        prop_assert_eq!(&union.unparsed, &whole.unparsed);
        Ok(())
    });
}

pub fn damaged_log_is_reported_and_read_on(version: Version) {
    let format = LogFormat::new(version);
    let (from, log) = (fixture(version).from, fixture(version).tested());
    let log = &log[..log.len().min(4 << 20)];
    let index_of = |bytes: &[u8]| {
        let mut indexer = LogIndexer::new(format, from, Start::Record);
        for (index, chunk) in bytes.chunks(100_003).enumerate() {
            indexer.push(from.plus(index as u64 * 100_003), chunk);
        }
        indexer.cut().index
    };
    let healthy = index_of(log);
    check(&(any::<u64>(), 1_usize..5), |(seed, flips)| {
        let mut damaged = log.to_vec();
        let mut at = seed;
        for _ in 0..flips {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            damaged[(at >> 20) as usize % (log.len() / 2)] ^= 1 << (at & 7);
        }
        let index = index_of(&damaged);
        // Padding may be flipped without harm; anything else is seen.
        prop_assert!(index.change_map.is_everything() || index.records == healthy.records);
        prop_assert_eq!(
            index.last_record,
            healthy.last_record,
            "reading goes on after the damage"
        );
        Ok(())
    });
}
