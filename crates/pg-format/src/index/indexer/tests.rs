use borealis_base::TimeStep;
use proptest::prelude::*;

use super::*;
use crate::DatabaseFiles;
use crate::index::{CreatedRelation, EventDigest, RelationRows};
use crate::segment::SegmentSize;
use crate::time::from_timestamptz;
use crate::wal::UnparsedReason;
use crate::wal::builder::LogBuilder;
use crate::{Timeline, Version};

const TABLE: Relation = Relation {
    tablespace: 1663,
    database: 5,
    number: 16384,
};
const SHARED: Relation = Relation {
    tablespace: 1664,
    database: 0,
    number: 1262,
};
const SECOND: i64 = 1_000_000;

fn format() -> LogFormat {
    LogFormat {
        segment_size: SegmentSize::new(LogBuilder::SEGMENT as u32).expect("a valid size"),
        ..LogFormat::new(Version::V15)
    }
}

fn index_of(log: &LogBuilder) -> LogIndex {
    let mut indexer = LogIndexer::new(format(), log.start, Start::Record);
    indexer.push(log.start, &log.bytes);
    indexer.cut().index
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn key(fork: Fork) -> ForkKey {
    ForkKey {
        relation: TABLE,
        fork,
    }
}

fn blocks(index: &LogIndex, fork: Fork) -> Vec<u32> {
    let changes = index.change_map.fork(&key(fork));
    changes.map_or_else(Vec::new, |changes| changes.blocks.iter().collect())
}

fn limit(index: &LogIndex, fork: Fork) -> Option<u32> {
    index
        .change_map
        .fork(&key(fork))
        .and_then(|changes| changes.limit)
}

/// A heap record that deletes `rows` rows one by one.
fn delete(log: &mut LogBuilder, xid: u32, rows: u32) {
    for row in 0..rows {
        let main = [0, 0, 0, 0, 1, 0, 0, 0];
        log.add(Rmgr::HEAP, 0x10, xid, &[(0, TABLE, row / 50, &[])], &main);
    }
}

fn end(log: &mut LogBuilder, operation: u8, xid: u32, time: i64) -> RecordSpan {
    log.add(Rmgr::XACT, operation, xid, &[], &time.to_le_bytes())
}

/// A transaction's end with subtransactions, dropped relations and, where given, the transaction it
/// ends.
fn full_end(
    log: &mut LogBuilder,
    operation: u8,
    xid: u32,
    children: &[u32],
    dropped: &[Relation],
    two_phase: Option<u32>,
) -> RecordSpan {
    let mut main = 7_i64.to_le_bytes().to_vec();
    let mut info = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8;
    if two_phase.is_some() {
        info |= 1 << 4 | 1 << 7;
    }
    main.extend(words(&[info, 5, 1663, children.len() as u32]));
    main.extend(words(children));
    main.extend(words(&[dropped.len() as u32]));
    for relation in dropped {
        main.extend(words(&[
            relation.tablespace,
            relation.database,
            relation.number,
        ]));
    }
    // One dropped statistics entry, one invalidation message.
    main.extend(words(&[1, 1, 5, 16384, 1, 0, 0, 0, 0]));
    if let Some(xid) = two_phase {
        main.extend(words(&[xid]));
        main.extend(b"name\0");
    }
    log.add(Rmgr::XACT, operation | 0x80 | 0x01, xid, &[], &main)
}

#[test]
fn heap_change_marks_its_visibility_map_block() {
    let mut log = LogBuilder::new();
    log.add(Rmgr::HEAP, 0x10, 9, &[(0, TABLE, 40_000, &[])], &[0; 8]);
    let index = index_of(&log);
    let main = index.change_map.fork(&key(Fork::Main)).expect("changed");
    assert_eq!(main.derived_vm_blocks(8192).iter().collect::<Vec<_>>(), [1]);
    assert_eq!(index.records, 1);
}

#[test]
fn dropped_relations_are_cut_in_all_four_kinds_of_end() {
    for (operation, two_phase) in [(0x00, None), (0x20, None), (0x30, Some(9)), (0x40, Some(9))] {
        let mut log = LogBuilder::new();
        delete(&mut log, 9, 60);
        full_end(
            &mut log,
            operation,
            if two_phase.is_some() { 0 } else { 9 },
            &[],
            &[TABLE],
            two_phase,
        );
        let index = index_of(&log);
        for fork in Fork::ALL {
            assert_eq!(limit(&index, fork), Some(0), "{operation:#x} {fork:?}");
            assert_eq!(blocks(&index, fork), []);
        }
        assert!(!index.change_map.is_everything());
        let dropped = EventKind::RelationsDropped {
            xid: 9,
            time: from_timestamptz(7),
            relations: vec![TABLE],
            count: 1,
            created: vec![],
            created_complete: false,
        };
        let committed = operation == 0x00 || operation == 0x30;
        let events: Vec<_> = index.events.into_iter().map(|event| event.kind).collect();
        assert_eq!(events, if committed { vec![dropped] } else { vec![] });
    }
}

#[test]
fn truncation_marks_the_last_visibility_map_page_that_stays() {
    // (blocks that stay, limit of the map, map pages marked), by `visibilitymap_prepare_truncate`.
    for (stay, map_limit, marked) in [
        (0, 0, vec![]),
        (1, 1, vec![0]),
        (32_671, 1, vec![0]),
        (32_672, 1, vec![]),
        (32_673, 2, vec![1]),
    ] {
        let mut log = LogBuilder::new();
        log.add(
            Rmgr(9),
            0x40,
            0,
            &[(2, TABLE, 7, &[]), (0, TABLE, 70_000, &[])],
            &[0; 8],
        );
        let mut main = words(&[stay, 1663, 5, 16384]);
        main.extend(words(&[7]));
        log.add(Rmgr::SMGR, 0x21, 3, &[], &main);
        let index = index_of(&log);
        assert_eq!(limit(&index, Fork::Main), Some(stay));
        assert_eq!(
            limit(&index, Fork::VisibilityMap),
            Some(map_limit),
            "{stay}"
        );
        assert_eq!(blocks(&index, Fork::VisibilityMap), marked, "{stay}");
        assert_eq!(blocks(&index, Fork::Main), []);
        assert_eq!(limit(&index, Fork::FreeSpaceMap), Some(0));
    }
}

#[test]
fn a_created_relation_inherits_nothing() {
    let mut log = LogBuilder::new();
    log.add(Rmgr::SMGR, 0x11, 3, &[], &words(&[1663, 5, 16384, 0]));
    let index = index_of(&log);
    for fork in [Fork::Main, Fork::FreeSpaceMap, Fork::VisibilityMap] {
        assert_eq!(limit(&index, fork), Some(0));
    }
    assert_eq!(limit(&index, Fork::Init), None);
}

#[test]
fn databases_that_come_and_go_are_reset() {
    let files = |tablespace, database| DatabaseFiles {
        tablespace,
        database,
    };
    let mut log = LogBuilder::new();
    log.add(Rmgr::HEAP, 0x10, 9, &[(0, TABLE, 1, &[])], &[0; 8]);
    log.add(Rmgr::DBASE, 0x21, 3, &[], &words(&[5, 2, 1663, 16_500]));
    log.add(Rmgr::DBASE, 0x01, 3, &[], &words(&[6, 1663, 1, 1663]));
    log.add(Rmgr::DBASE, 0x11, 3, &[], &words(&[7, 16_500]));
    let index = index_of(&log);
    let resets: Vec<_> = index.change_map.resets().iter().copied().collect();
    assert_eq!(
        resets,
        [
            files(1663, 5),
            files(1663, 6),
            files(16_500, 5),
            files(16_500, 7)
        ]
    );
    assert_eq!(index.change_map.forks().len(), 0);
    assert!(!index.change_map.is_everything());
}

#[test]
fn a_created_tablespace_is_told_however_many_events_there_are() {
    let mut log = LogBuilder::new();
    for tablespace in 0..EVENTS_MAX as u32 {
        log.add(Rmgr::TBLSPC, 0x10, 0, &[], &words(&[tablespace]));
    }
    let main = [words(&[77]).as_slice(), b"/srv/fast\0"].concat();
    let record = log.add(Rmgr::TBLSPC, 0x00, 0, &[], &main);
    log.add(Rmgr::TBLSPC, 0x10, 0, &[], &words(&[78]));
    let index = index_of(&log);
    assert_eq!(index.events_left_out, 1);
    let kind = EventKind::TablespaceCreated {
        tablespace: 77,
        path: b"/srv/fast".to_vec(),
    };
    assert_eq!(index.events.last(), Some(&Event { record, kind }));
}

#[test]
fn records_of_extensions_and_unknown_kinds_widen_the_map() {
    // An extension's record with a block: the block's database. Without, or of a kind that no
    // version writes: everything.
    let mut log = LogBuilder::new();
    log.add(Rmgr(130), 0x00, 3, &[(0, TABLE, 1, &[])], b"x");
    let index = index_of(&log);
    assert_eq!(
        index
            .change_map
            .widened_databases()
            .iter()
            .collect::<Vec<_>>(),
        [&5]
    );
    assert!(!index.change_map.is_everything());
    for (rmgr, info) in [
        (Rmgr(130), 0x00),
        (Rmgr(22), 0x00),
        (Rmgr::SMGR, 0x31),
        (Rmgr(15), 0x01),
    ] {
        let mut log = LogBuilder::new();
        log.add(rmgr, info, 3, &[], b"x");
        let map = index_of(&log).change_map;
        assert!(map.is_everything(), "{rmgr} {info:#x}");
        assert_eq!(map.reasons()[&Widening::UnknownRecord], 1);
    }
}

#[test]
fn special_records_that_are_cut_short_widen_the_map() {
    for (rmgr, info) in [
        (Rmgr::SMGR, 0x11),
        (Rmgr::SMGR, 0x21),
        (Rmgr::DBASE, 0x01),
        (Rmgr::DBASE, 0x21),
        (Rmgr::XACT, 0x80),
        (Rmgr::XACT, 0x30),
        (Rmgr::XLOG, 0x00),
        (Rmgr::XLOG, 0x60),
    ] {
        let mut log = LogBuilder::new();
        log.add(rmgr, info, 3, &[], &[0xFF; 5]);
        let map = index_of(&log).change_map;
        assert_eq!(
            map.reasons().get(&Widening::UnreadableRecord),
            Some(&1),
            "{rmgr} {info:#x}"
        );
        assert!(map.is_everything());
    }
}

#[test]
fn a_block_of_an_unknown_fork_widens_its_database() {
    let mut log = LogBuilder::new();
    log.add(Rmgr::XLOG, 0xB0, 3, &[(9, TABLE, 1, &[])], &[]);
    let map = index_of(&log).change_map;
    assert_eq!(map.widened_databases().iter().collect::<Vec<_>>(), [&5]);
}

#[test]
fn log_at_the_minimal_level_widens_every_piece_until_it_ends() {
    let parameters = |level| words(&[100, 8, 10, 0, 64, level, 0]);
    let mut log = LogBuilder::new();
    let mut indexer = LogIndexer::new(format(), log.start, Start::Record);
    let mut widened = Vec::new();
    let mut carry = None;
    for level in [None, Some(0), None, Some(1), None] {
        match level {
            Some(level) => log.add(Rmgr::XLOG, 0x60, 0, &[], &parameters(level)),
            None => log.filler(10),
        };
        if let Some(carry) = &carry {
            indexer = LogIndexer::resume(format(), carry);
        }
        indexer.push(log.start, &log.bytes);
        let cut = indexer.cut();
        widened.push(cut.index.change_map.is_everything());
        carry = Some(cut.carry);
    }
    // The fourth piece may hold log from before the record that raises the level.
    assert_eq!(widened, [false, true, true, true, false]);
}

#[test]
fn rows_are_counted_for_prepared_transactions_and_their_children() {
    let mut log = LogBuilder::new();
    delete(&mut log, 9, 60);
    delete(&mut log, 10, 60);
    delete(&mut log, 11, 500);
    log.add(Rmgr::XACT, 0x20, 11, &[], &5_i64.to_le_bytes());
    let commit = full_end(&mut log, 0x30, 0, &[10], &[], Some(9));
    let index = index_of(&log);
    let rows = RelationRows {
        relation: TABLE,
        inserted: 0,
        updated: 0,
        deleted: 120,
    };
    let kind = EventKind::RowsChanged {
        xid: 9,
        time: from_timestamptz(7),
        relations: vec![rows],
    };
    assert_eq!(
        index.events,
        [Event {
            record: commit,
            kind
        }]
    );
}

#[test]
fn a_prepare_after_the_last_commit_belongs_to_the_moment_before_the_next() {
    let mut log = LogBuilder::new();
    let first = log.filler(10);
    end(&mut log, 0x00, 3, 10 * SECOND);
    let prepare = log.add(Rmgr::XACT, 0x10, 4, &[], &[0; 80]);
    end(&mut log, 0x20, 5, 20 * SECOND);
    let index = index_of(&log);
    let step = |micros, span: RecordSpan| TimeStep {
        settled_through: from_timestamptz(micros),
        last_record: span,
    };
    assert_eq!(
        index.time_steps,
        [step(10 * SECOND - 1, first), step(20 * SECOND - 1, prepare)]
    );
}

#[test]
fn a_clock_sample_is_settled_when_the_log_has_reached_it() {
    let mut log = LogBuilder::new();
    let first = log.filler(10);
    let second = log.filler(10);
    let third = log.filler(10);
    for chunk in [1, 16, 1000] {
        let mut indexer = LogIndexer::new(format(), log.start, Start::Record);
        indexer.push_sample(from_timestamptz(10 * SECOND), second.end);
        indexer.push_sample(from_timestamptz(20 * SECOND), third.end.plus(500));
        let mut steps = Vec::new();
        for (index, bytes) in log.bytes.chunks(chunk).enumerate() {
            indexer.push(log.start.plus((index * chunk) as u64), bytes);
            steps.extend(indexer.cut().index.time_steps);
        }
        let expected = TimeStep {
            settled_through: from_timestamptz(9 * SECOND),
            last_record: second,
        };
        assert_eq!(steps, [expected], "in chunks of {chunk}");
        assert_eq!(indexer.cut().carry.samples.len(), 1);
    }
    assert!(first.end < second.end);
}

#[test]
fn an_idle_server_settles_time_without_log() {
    let mut log = LogBuilder::new();
    let last = log.filler(10);
    let mut indexer = LogIndexer::new(format(), log.start, Start::Record);
    indexer.push(log.start, &log.bytes);
    indexer.cut();
    indexer.push_sample(from_timestamptz(10 * SECOND), log.end());
    let index = indexer.cut().index;
    assert_eq!((index.start, index.end), (log.end(), log.end()));
    assert_eq!(index.time_steps[0].last_record.start, last.start);
    assert!(index.change_map.is_empty());
}

#[test]
fn every_piece_that_overlaps_unreadable_log_is_widened() {
    let mut log = LogBuilder::new();
    log.filler(100);
    let bad = log.filler(100);
    let mut lens = Vec::new();
    for _ in 0..30 {
        log.filler(1000);
        lens.push(log.bytes.len());
    }
    let place = bad.start.since(log.start) as usize + 40;
    log.bytes[place] ^= 1;
    let mut indexer = LogIndexer::new(format(), log.start, Start::Record);
    let mut widened = Vec::new();
    let mut reasons = Vec::new();
    let mut from = 0;
    for (index, len) in lens.iter().enumerate() {
        if index % 2 == 1 {
            // Another process goes on: the unreadable stretch must not be forgotten.
            let carry = indexer.cut().carry;
            indexer = LogIndexer::resume(format(), &carry);
            from = carry.resume_at.since(log.start) as usize;
        }
        indexer.push(log.start.plus(from as u64), &log.bytes[from..*len]);
        from = *len;
        let cut = indexer.cut();
        widened.push(cut.index.change_map.is_everything());
        reasons.extend(cut.index.unparsed);
    }
    // The damaged page is the first; the first record of the second page is found again.
    let until = lens
        .iter()
        .position(|len| *len > 8192)
        .expect("a second page");
    let expected: Vec<bool> = (0..lens.len()).map(|index| index <= until).collect();
    assert_eq!(widened, expected);
    let unparsed = Unparsed {
        from: bad.start,
        reason: UnparsedReason::Checksum,
    };
    assert_eq!(reasons, [unparsed]);
}

/// The server tells which transactions run.
fn running(log: &mut LogBuilder, next: u32, oldest: u32) {
    let main = words(&[0, 0, 0, next, oldest, next - 1]);
    log.add(Rmgr::STANDBY, 0x10, 0, &[], &main);
}

fn create(log: &mut LogBuilder, xid: u32, number: u32) -> Relation {
    log.add(Rmgr::SMGR, 0x11, xid, &[], &words(&[1663, 5, number, 0]));
    Relation { number, ..TABLE }
}

#[test]
fn what_a_transaction_creates_tells_drops_truncations_and_rewrites_apart() {
    let mut log = LogBuilder::new();
    full_end(&mut log, 0x00, 2, &[], &[TABLE], None);
    running(&mut log, 3, 3);
    full_end(&mut log, 0x00, 3, &[], &[TABLE], None);
    let empty = create(&mut log, 4, 20_000);
    full_end(&mut log, 0x00, 4, &[], &[TABLE], None);
    // In a subtransaction, and one that is rolled back.
    let rewritten = create(&mut log, 6, 20_001);
    create(&mut log, 7, 20_002);
    end(&mut log, 0x20, 7, 1);
    log.add(Rmgr::XLOG, 0xB0, 5, &[(0, rewritten, 0, &[])], &[]);
    full_end(&mut log, 0x00, 5, &[6], &[TABLE], None);
    // Prepared, and committed by nobody in particular.
    let prepared = create(&mut log, 8, 20_003);
    full_end(&mut log, 0x30, 0, &[], &[TABLE], Some(8));
    let index = index_of(&log);
    let dropped: Vec<_> = (index.events.iter())
        .filter_map(|event| match &event.kind {
            EventKind::RelationsDropped {
                xid,
                created,
                created_complete,
                ..
            } => Some((*xid, created.clone(), *created_complete)),
            _ => None,
        })
        .collect();
    let made = |relation, filled| vec![CreatedRelation { relation, filled }];
    let expected = [
        (2, vec![], false),
        (3, vec![], true),
        (4, made(empty, false), true),
        (5, made(rewritten, true), true),
        (8, made(prepared, false), true),
    ];
    assert_eq!(dropped, expected);
    // The invalidation message of `full_end` is of catalogs that all share.
    assert_eq!(index.catalogs_changed, [0]);
}

#[test]
fn many_rows_of_catalogs_are_no_event() {
    let mut log = LogBuilder::new();
    let catalog = Relation {
        number: 1249,
        ..TABLE
    };
    for row in 0..500 {
        let main = [0, 0, 0, 0, 1, 0, 0, 0];
        log.add(Rmgr::HEAP, 0x10, 9, &[(0, catalog, row / 50, &[])], &main);
    }
    end(&mut log, 0x00, 9, 1);
    assert_eq!(index_of(&log).events, []);
}

#[test]
fn a_dropped_database_is_restored_to_before_it_was_marked_as_invalid() {
    let row = SHARED;
    let mut log = LogBuilder::new();
    let offset = [7, 0, 0, 0, 0, 0, 0, 0];
    let mark = log.add(Rmgr::HEAP, 0x70, 0, &[(0, row, 3, &[])], &offset);
    log.filler(9000);
    let deletion = [9, 0, 0, 0, 7, 0, 0, 0];
    log.add(Rmgr::HEAP, 0x10, 9, &[(0, row, 3, &[])], &deletion);
    let gone = log.add(Rmgr::DBASE, 0x21, 9, &[], &words(&[6, 1, 1663]));
    let commit = end(&mut log, 0x00, 9, 5);
    // A database that was moved goes away without a transaction.
    log.add(Rmgr::DBASE, 0x21, 0, &[], &words(&[7, 1, 1663]));
    // And one whose creation failed with a transaction that aborts.
    log.add(Rmgr::DBASE, 0x21, 10, &[], &words(&[8, 1, 1663]));
    end(&mut log, 0x20, 10, 6);
    let index = index_of(&log);
    let committed: Vec<_> = (index.events.iter())
        .filter(|event| matches!(event.kind, EventKind::DropCommitted { .. }))
        .collect();
    let expected = Event {
        record: commit,
        kind: EventKind::DropCommitted {
            xid: 9,
            time: from_timestamptz(5),
            before: mark.start,
            databases: vec![6],
            tablespaces: vec![],
        },
    };
    assert!(mark.end < gone.start);
    assert_eq!(committed, [&expected]);
}

fn sample_log() -> LogBuilder {
    let mut log = LogBuilder::new();
    running(&mut log, 3, 3);
    log.add(Rmgr::SMGR, 0x11, 3, &[], &words(&[1663, 5, 16384, 0]));
    delete(&mut log, 3, 120);
    let mut restore_point = 3_i64.to_le_bytes().to_vec();
    restore_point.extend(b"before the release\0");
    restore_point.resize(72, 0);
    log.add(Rmgr::XLOG, 0x70, 0, &[], &restore_point);
    full_end(
        &mut log,
        0x00,
        3,
        &[4],
        &[Relation {
            number: 16390,
            ..TABLE
        }],
        None,
    );
    log.add(
        Rmgr::XLOG,
        0x60,
        0,
        &[],
        &words(&[100, 8, 10, 2, 64, 1, 0x0101]),
    );
    log.add(Rmgr::XLOG, 0x80, 0, &[], &[1]);
    let mut checkpoint = vec![0; 88];
    checkpoint[..8].copy_from_slice(&log.start.0.to_le_bytes());
    checkpoint[8] = 2;
    checkpoint[12] = 1;
    checkpoint[16] = 1;
    log.add(Rmgr::XLOG, 0x00, 0, &[], &checkpoint);
    let mut tablespace = words(&[16_500]);
    tablespace.extend(b"/srv/fast\0");
    log.add(Rmgr::TBLSPC, 0x00, 5, &[], &tablespace);
    log.add(Rmgr::TBLSPC, 0x10, 5, &[], &words(&[16_500]));
    log.add(Rmgr::RELMAP, 0x00, 5, &[], &words(&[5, 1663, 0]));
    log.add(Rmgr::DBASE, 0x01, 5, &[], &words(&[6, 1663, 1, 1663]));
    log.add(Rmgr::DBASE, 0x21, 5, &[], &words(&[6, 1, 1663]));
    let mut truncate = words(&[1, 1663, 5, 16384]);
    truncate.extend(words(&[7]));
    log.add(Rmgr::SMGR, 0x21, 0, &[], &truncate);
    end(&mut log, 0x00, 5, 90 * SECOND);
    create(&mut log, 9, 20_000);
    log.add(Rmgr::HEAP, 0x70, 0, &[(0, SHARED, 3, &[])], &[7, 0]);
    log.add(Rmgr::DBASE, 0x21, 9, &[], &words(&[7, 1, 1663]));
    end(&mut log, 0x00, 6, 100 * SECOND);
    end(&mut log, 0x00, 7, 10 * SECOND);
    log.add(Rmgr(130), 0, 0, &[(0, TABLE, 0, &[])], b"x");
    delete(&mut log, 8, 20);
    log.filler(20_000);
    log
}

/// A piece with something of everything, and the state after it.
fn sample_cut() -> Cut {
    let log = sample_log();
    let mut indexer = LogIndexer::new(format(), log.start, Start::Record);
    indexer.push(log.start, &log.bytes[..log.bytes.len() - 10_000]);
    indexer.push_sample(Timestamp(5), log.end());
    indexer.cut()
}

#[test]
fn stored_indexes_and_states_are_read_back() {
    let Cut { index, carry } = sample_cut();
    assert!(index.events.len() >= 10, "{:?}", index.events);
    assert_eq!(index.redo_points[0].timeline, Timeline(2));
    assert_eq!(LogIndex::decode(&index.encode()).as_ref(), Ok(&index));
    assert_eq!(carry.transactions.len(), 1);
    assert_eq!(carry.files.transactions.len(), 1);
    assert_eq!(carry.files.in_place.len(), 1);
    assert_eq!(carry.files.known_from, Some(3));
    let digest = index.digest();
    assert_eq!(EventDigest::decode(&digest.encode()), Ok(digest));
    assert_eq!(CarryState::decode(&carry.encode()), Ok(carry));
}

#[test]
fn an_index_of_rule_set_1_is_still_read() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let read = |name: &str| std::fs::read(directory.join(name)).expect("the sample is read");
    let index = LogIndex::decode(&read("log-index-1.bin")).expect("an index");
    assert_eq!((index.rule_set, index.catalogs_changed), (1, vec![]));
    let (created, complete) = (index.events.iter())
        .find_map(|event| match &event.kind {
            EventKind::RelationsDropped {
                created,
                created_complete,
                ..
            } => Some((created.len(), *created_complete)),
            _ => None,
        })
        .expect("something was dropped");
    // What was created was not told then: it must not read as "nothing".
    assert_eq!((created, complete), (0, false));
    let carry = CarryState::decode(&read("carry-state-1.bin")).expect("a state");
    assert_eq!((carry.rule_set, carry.files.known_from), (1, None));
}

/// Samples of released formats, which every later version must read. Regenerated only together with
/// a new format: `BOREALIS_WRITE_SAMPLES=1 cargo test -p borealis-pg-format`.
#[test]
fn the_stored_form_is_that_of_the_sample() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let Cut { index, carry } = sample_cut();
    for (name, bytes) in [
        ("event-digest-2.bin", index.digest().encode()),
        ("log-index-2.bin", index.encode()),
        ("carry-state-2.bin", carry.encode()),
    ] {
        let file = directory.join(name);
        if std::env::var_os("BOREALIS_WRITE_SAMPLES").is_some() {
            std::fs::write(&file, &bytes).expect("the sample is written");
        }
        let sample = std::fs::read(&file).expect("the sample is read");
        assert_eq!(sample, bytes, "{name}");
    }
}

proptest! {
    #[test]
    fn hostile_encodings_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        len in any::<prop::sample::Index>(),
        noise: Vec<u8>,
    ) {
        let Cut { index, carry } = sample_cut();
        for mut bytes in [index.encode(), carry.encode(), noise] {
            if bytes.is_empty() {
                continue;
            }
            let _ = LogIndex::decode(&bytes[..len.index(bytes.len())]);
            for (place, byte) in &changes {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            let _ = LogIndex::decode(&bytes);
            let _ = CarryState::decode(&bytes);
        }
    }

    #[test]
    fn any_split_any_cut_and_any_resume_say_the_same(
        schedule in prop::collection::vec((1_usize..3000, any::<bool>(), any::<bool>()), 1..40)
    ) {
        let log = sample_log();
        let whole = index_of(&log);
        let mut indexer = LogIndexer::new(format(), log.start, Start::Record);
        let mut union: Option<LogIndex> = None;
        let mut join = |piece: LogIndex| match &mut union {
            None => union = Some(piece),
            Some(union) => {
                union.end = piece.end;
                union.change_map.append(&piece.change_map);
                union.first_record_start = union.first_record_start.or(piece.first_record_start);
                union.last_record = piece.last_record.or(union.last_record);
                union.records += piece.records;
                union.events.extend(piece.events);
                union.time_steps.extend(piece.time_steps);
                union.redo_points.extend(piece.redo_points);
                union.parameter_changes.extend(piece.parameter_changes);
                union.full_page_writes.extend(piece.full_page_writes);
                union.catalogs_changed.extend(piece.catalogs_changed);
                union.catalogs_changed.sort_unstable();
                union.catalogs_changed.dedup();
            }
        };
        let mut from = 0;
        let mut resumed = false;
        for (len, cut, resume) in schedule.iter().cycle() {
            if from == log.bytes.len() {
                break;
            }
            let to = (from + len).min(log.bytes.len());
            indexer.push(log.start.plus(from as u64), &log.bytes[from..to]);
            from = to;
            if *cut {
                let Cut { index, carry } = indexer.cut();
                join(index);
                if *resume {
                    resumed = true;
                    indexer = LogIndexer::resume(format(), &carry);
                    from = carry.resume_at.since(log.start) as usize;
                    indexer.push(carry.resume_at, &log.bytes[from..to]);
                    from = to;
                }
            }
        }
        join(indexer.cut().index);
        let mut union = union.expect("a piece");
        let mut whole = whole;
        if resumed {
            // Small transactions are forgotten when another process goes on.
            for index in [&mut union, &mut whole] {
                index.events.retain(|event| !matches!(event.kind, EventKind::RowsChanged { .. }));
            }
        }
        prop_assert_eq!(union, whole);
    }
}
