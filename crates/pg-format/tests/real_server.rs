//! Agreement with a real PostgreSQL 15: its own `pg_waldump` and `pg_controldata`, and the pages it
//! writes.

mod coverage;
mod server;
mod waldump;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use borealis_pg_format::files::{self, FileKind, RelationFile};
use borealis_pg_format::index::{
    ChangeMap, Cut, Event, EventKind, ForkKey, LogIndex, LogIndexer, visibility_map_block,
};
use borealis_pg_format::page::{self, PageState};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};
use borealis_pg_format::{ControlFile, Fork, Lsn, Version};
use proptest::prelude::*;
use server::Server;
use waldump::{Seen, field};

const PAGE: usize = 8192;
const FORMAT: LogFormat = LogFormat::new(Version::V15);

/// Every page of every relation's fork.
type Pages = HashMap<ForkKey, Vec<[u8; PAGE]>>;

/// A server that ran a workload and was stopped, seen before and after.
struct Fixture {
    server: Server,
    before: Pages,
    after: Pages,
    /// The log from its first kept segment to its end.
    log: (Lsn, Vec<u8>),
    /// The shutdown checkpoint that `before` was seen at.
    from: Lsn,
    label: String,
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let mut server = Server::create(
            "wal_keep_size = 4GB\nmax_wal_size = 8GB\nmax_prepared_transactions = 10\n\
             track_commit_timestamp = on\ncheckpoint_timeout = 1h\nwal_recycle = off\n",
        );
        server.start();
        server.script(include_str!("data/before.sql"));
        server.run("pgbench", &["-i", "-q", "-s", "2"]);
        server.stop();
        let before = pages(&server.data());
        let from = control_file(&server.data()).checkpoint_lsn;
        server.start();
        let label = run_workload(&server);
        server.stop();
        let after = pages(&server.data());
        let log = read_log(&server.data());
        Fixture {
            server,
            before,
            after,
            log,
            from,
            label,
        }
    })
}

fn run_workload(server: &Server) -> String {
    let mut script = String::new();
    for name in ["elsewhere", "short_lived"] {
        let directory = server.home().join(name);
        server.run(
            "psql",
            &[
                "-X",
                "-q",
                "-c",
                &format!("COPY (SELECT 1) TO PROGRAM 'mkdir {}'", directory.display()),
            ],
        );
        writeln!(script, "\\set {name} '{}'", directory.display()).expect("a string grows");
    }
    server.script(&(script + include_str!("data/during.sql")));
    server.script(include_str!("data/rare.sql"));
    let mut bench = server
        .command("pgbench")
        .args(["-n", "-c", "4", "-t", "300"])
        .spawn()
        .expect("pgbench starts");
    // Locks shared by several transactions need several sessions.
    let mut lockers: Vec<_> = (0..3)
        .map(|_| {
            server
                .command("psql")
                .args(["-X", "-q", "-c"])
                .arg("BEGIN; SELECT count(*) FROM (SELECT * FROM parent FOR KEY SHARE) AS p; SELECT pg_sleep(0.5); COMMIT")
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("psql starts")
        })
        .collect();
    for locker in &mut lockers {
        assert!(locker.wait().expect("psql ends").success());
    }
    assert!(bench.wait().expect("pgbench ends").success());
    server.script("VACUUM; UPDATE visible SET v = 0 WHERE id % 500 = 0; ALTER SYSTEM SET full_page_writes = off; SELECT pg_reload_conf();");
    server.script("ALTER SYSTEM RESET full_page_writes; SELECT pg_reload_conf();");
    server.sql(&[
        "SELECT FROM pg_backup_start('a label', true)",
        "SELECT labelfile FROM pg_backup_stop(false)",
    ])
}

fn control_file(data: &Path) -> ControlFile {
    let bytes = fs::read(data.join("global/pg_control")).expect("the control file is read");
    ControlFile::parse(&bytes).expect("a valid control file")
}

fn each_file(directory: &Path, prefix: &str, visit: &mut impl FnMut(&str, &Path)) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        let path = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        if entry.path().is_dir() {
            each_file(&entry.path(), &path, visit);
        } else {
            visit(&path, &entry.path());
        }
    }
}

fn pages(data: &Path) -> Pages {
    let mut segments: BTreeMap<(ForkKey, u32), Vec<u8>> = BTreeMap::new();
    each_file(data, "", &mut |path, file| {
        if let FileKind::Relation(RelationFile {
            relation,
            fork,
            segment,
        }) = files::classify(path)
        {
            let bytes = fs::read(file).expect("a relation is read");
            segments.insert((ForkKey { relation, fork }, segment), bytes);
        }
    });
    let mut pages = Pages::new();
    for ((key, segment), bytes) in segments {
        assert_eq!(segment, 0, "this workload needs no second segment");
        let (whole, rest) = bytes.as_chunks::<PAGE>();
        assert!(rest.is_empty(), "a stopped server leaves whole pages");
        pages.entry(key).or_default().extend_from_slice(whole);
    }
    pages
}

fn read_log(data: &Path) -> (Lsn, Vec<u8>) {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(data.join("pg_wal")).expect("pg_wal") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        if let Some(LogFile::Segment { number, .. }) = LogFile::parse(&name, SegmentSize::DEFAULT) {
            segments.insert(number, fs::read(entry.path()).expect("a segment"));
        }
    }
    let first = *segments.keys().next().expect("a segment");
    let mut bytes = Vec::new();
    for (index, (number, segment)) in segments.into_iter().enumerate() {
        assert_eq!(number, first + index as u64, "no segment is missing");
        bytes.extend(segment);
    }
    (SegmentSize::DEFAULT.start_of(first), bytes)
}

fn ours() -> Vec<(Seen, u8)> {
    let (start, log) = &fixture().log;
    let mut records = Vec::new();
    let mut reader = WalReader::new(FORMAT, *start, Start::Anywhere, None);
    reader.push(*start, log, &mut |event| match event {
        LogEvent::Record(record) => {
            let blocks = record.blocks.iter();
            let blocks = blocks.map(|block| {
                (
                    block.id,
                    block.relation,
                    block.fork,
                    block.block,
                    block.image.is_some(),
                )
            });
            let seen = Seen {
                start: record.start,
                prev: record.header.prev,
                rmgr: record.header.rmgr.to_string(),
                xid: record.header.xid,
                total_len: record.header.total_len,
                blocks: blocks.collect(),
            };
            records.push((seen, record.header.operation()));
        }
        other => panic!("{other:?}"),
    });
    records
}

fn theirs() -> Vec<(Seen, String)> {
    let fixture = fixture();
    let (start, log) = &fixture.log;
    let name = |lsn: Lsn| {
        let number = SegmentSize::DEFAULT.number_of(lsn);
        LogFile::Segment {
            timeline: borealis_pg_format::Timeline(1),
            number,
        }
        .name(SegmentSize::DEFAULT)
    };
    let end = start.plus(log.len() as u64 - 1);
    let output = fixture
        .server
        .command("pg_waldump")
        .arg("-p")
        .arg(fixture.server.data().join("pg_wal"))
        .args([name(*start), name(end)])
        .output()
        .expect("pg_waldump runs");
    waldump::parse(&String::from_utf8_lossy(&output.stdout))
}

#[test]
fn every_record_agrees_with_pg_waldump() {
    let (ours, theirs) = (ours(), theirs());
    assert!(theirs.len() > 50_000, "{} records", theirs.len());
    let mut names: BTreeMap<(String, u8), BTreeSet<String>> = BTreeMap::new();
    let mut numbers: BTreeMap<(String, String), BTreeSet<u8>> = BTreeMap::new();
    for ((ours, number), (theirs, name)) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
        let rmgr = &ours.rmgr;
        names
            .entry((rmgr.clone(), *number))
            .or_default()
            .insert(name.clone());
        numbers
            .entry((rmgr.clone(), name.clone()))
            .or_default()
            .insert(*number);
    }
    assert_eq!(ours.len(), theirs.len());
    // Each operation number stands for one name. The other way a flag can share a name (HAS_INFO of
    // transactions).
    for (number, names) in &names {
        assert_eq!(names.len(), 1, "{number:?}: {names:?}");
    }
    for ((rmgr, name), numbers) in &numbers {
        assert!(
            numbers.len() == 1 || rmgr == "Transaction" || rmgr == "Heap2",
            "{rmgr} {name}: {numbers:?}"
        );
    }
}

fn whole_index() -> &'static LogIndex {
    static INDEX: OnceLock<LogIndex> = OnceLock::new();
    INDEX.get_or_init(|| {
        let fixture = fixture();
        let (start, log) = &fixture.log;
        let mut indexer = LogIndexer::new(FORMAT, fixture.from, Start::Record);
        let skip = fixture.from.since(*start) as usize;
        indexer.push(fixture.from, &log[skip..skip + log_len() - skip]);
        indexer.cut().index
    })
}

/// Bytes of the log up to the end of its last record.
fn log_len() -> usize {
    let (start, log) = &fixture().log;
    let mut reader = WalReader::new(FORMAT, *start, Start::Anywhere, None);
    reader.push(*start, log, &mut |_| {});
    let (_, end) = reader.last_record().expect("a record");
    end.since(*start) as usize
}

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

#[test]
fn every_page_that_changed_is_in_the_change_map() {
    let fixture = fixture();
    let map = &whole_index().change_map;
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

#[test]
fn a_shrunken_fork_has_a_limit_at_or_below_its_new_length() {
    let fixture = fixture();
    let map = &whole_index().change_map;
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

#[test]
fn untouched_relations_are_not_in_the_change_map() {
    let map = &whole_index().change_map;
    let blocks: u64 = map.forks().map(|(_, changes)| changes.blocks.len()).sum();
    let pages: usize = fixture().after.values().map(Vec::len).sum();
    assert!(blocks < pages as u64, "{blocks} of {pages}");
}

#[test]
fn notable_events_are_found() {
    let index = whole_index();
    assert_eq!(index.unparsed, []);
    let restore_points: Vec<_> = index
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::RestorePoint { name, .. } => {
                Some(String::from_utf8_lossy(name).into_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(restore_points, ["before everything", "after everything"]);
    // DELETE of 1000 and 3000 rows in a subtransaction, one update; 1000 more were rolled back.
    let disaster = index.events.iter().any(|event| matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.deleted == 4000 && rows.updated == 1)));
    assert!(disaster);
    let prepared = index.events.iter().any(|event| matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.deleted == 200)));
    assert!(prepared, "rows deleted by a prepared transaction");
    let moved = index.events.iter().any(|event| matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.updated == 200 && rows.deleted == 0)));
    assert!(moved, "rows moved to another partition count as updated");
    // The 1000 rows left of `doomed` were deleted by a transaction that was rolled back.
    let rolled_back = index.events.iter().any(|event| {
        matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.deleted == 1000))
    });
    assert!(
        !rolled_back,
        "a transaction that was rolled back is no event"
    );
    let count = |wanted: fn(&EventKind) -> bool| {
        index
            .events
            .iter()
            .filter(|event| wanted(&event.kind))
            .count()
    };
    assert!(count(|kind| matches!(kind, EventKind::RelationsDropped { .. })) > 5);
    assert!(count(|kind| matches!(kind, EventKind::RelationTruncated { .. })) >= 1);
    assert_eq!(
        count(|kind| matches!(
            kind,
            EventKind::DatabaseCreated {
                source: Some(_),
                ..
            }
        )),
        2
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::DatabaseCreated { source: None, .. })),
        2
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::DatabaseDropped { .. })),
        2
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::TablespaceCreated { .. })),
        2
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::TablespaceDropped { .. })),
        1
    );
    assert_eq!(count(|kind| matches!(kind, EventKind::ClockStep { .. })), 0);
    assert!(index.full_page_writes.iter().any(|change| !change.on));
    assert!(index.redo_points.iter().any(|point| point.shutdown));
    assert!(index.time_steps.len() > 100);
}

/// One way to read the log: pieces of bytes, and whether to cut after each.
type Schedule = Vec<(usize, bool)>;

/// All pieces joined. With `resume` another process goes on after each cut.
fn union_of(schedule: &Schedule, resume: bool) -> (LogIndex, ChangeMap) {
    let fixture = fixture();
    let (start, log) = &fixture.log;
    let log = &log[..log_len()];
    let mut indexer = LogIndexer::new(FORMAT, fixture.from, Start::Record);
    let mut union: Option<LogIndex> = None;
    let mut map = ChangeMap::new();
    let mut position = fixture.from;
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
        let from = position.since(*start) as usize;
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
                let carry = borealis_pg_format::index::CarryState::decode(&stored)
                    .expect("a valid carry state");
                assert_eq!(carry, cut.carry);
                indexer = LogIndexer::resume(FORMAT, &carry);
                let again = carry.resume_at.since(*start) as usize;
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 4, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_split_and_any_cut_say_the_same(
        schedule in prop::collection::vec((prop_oneof![1_usize..100, 100_usize..20_000, 20_000_usize..2_000_000], any::<bool>()), 1..12),
        resume: bool,
    ) {
        let mut schedule = schedule;
        schedule.push((500_000, true));
        let (union, map) = union_of(&schedule, resume);
        let whole = whole_index();
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
    }

    #[test]
    fn damaged_log_is_reported_and_read_on(seed: u64, flips in 1_usize..5) {
        let fixture = fixture();
        let (start, log) = &fixture.log;
        let skip = fixture.from.since(*start) as usize;
        let len = (4 << 20).min(log_len() - skip);
        let mut damaged = log[skip..skip + len].to_vec();
        let mut at = seed;
        for _ in 0..flips {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            damaged[(at >> 20) as usize % (len / 2)] ^= 1 << (at & 7);
        }
        let mut indexer = LogIndexer::new(FORMAT, fixture.from, Start::Record);
        for (index, chunk) in damaged.chunks(100_003).enumerate() {
            indexer.push(fixture.from.plus(index as u64 * 100_003), chunk);
        }
        let index = indexer.cut().index;
        let mut healthy = LogIndexer::new(FORMAT, fixture.from, Start::Record);
        healthy.push(fixture.from, &log[skip..skip + len]);
        let healthy = healthy.cut().index;
        // Padding may be flipped without harm; anything else is seen.
        prop_assert!(index.change_map.is_everything() || index.records == healthy.records);
        prop_assert_eq!(index.last_record, healthy.last_record, "reading goes on after the damage");
    }
}

#[test]
fn the_control_file_agrees_with_pg_controldata() {
    let fixture = fixture();
    let data = fixture.server.data();
    let text = fixture
        .server
        .run("pg_controldata", &[data.to_str().expect("UTF-8")]);
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        field(
            line.unwrap_or_else(|| panic!("{name} in {text}")),
            ":",
            "\n",
        )
        .to_owned()
    };
    let file = control_file(&data);
    assert_eq!(
        value("Database system identifier"),
        file.system_identifier.to_string()
    );
    assert_eq!(
        value("Catalog version number"),
        file.catalog_version.to_string()
    );
    assert_eq!(
        value("Latest checkpoint location"),
        file.checkpoint_lsn.to_string()
    );
    assert_eq!(
        value("Latest checkpoint's REDO location"),
        file.checkpoint.redo.to_string()
    );
    assert_eq!(
        value("Latest checkpoint's TimeLineID"),
        file.checkpoint.timeline.to_string()
    );
    assert_eq!(
        value("Latest checkpoint's NextXID"),
        format!("0:{}", file.checkpoint.next_xid)
    );
    assert_eq!(
        value("Latest checkpoint's NextOID"),
        file.checkpoint.next_oid.to_string()
    );
    assert_eq!(
        value("Latest checkpoint's NextMultiXactId"),
        file.checkpoint.next_multi.to_string()
    );
    assert_eq!(
        value("Latest checkpoint's oldestXID:"),
        file.checkpoint.oldest_xid.to_string()
    );
    assert_eq!(
        value("max_prepared_xacts setting"),
        file.parameters.max_prepared_transactions.to_string()
    );
    assert_eq!(
        value("max_connections setting"),
        file.parameters.max_connections.to_string()
    );
    assert_eq!(
        value("max_wal_senders setting"),
        file.parameters.max_wal_senders.to_string()
    );
    assert_eq!(
        value("max_worker_processes setting"),
        file.parameters.max_worker_processes.to_string()
    );
    assert_eq!(
        value("max_locks_per_xact setting"),
        file.parameters.max_locks_per_transaction.to_string()
    );
    assert_eq!(value("track_commit_timestamp setting"), "on");
    assert!(file.parameters.track_commit_timestamp);
    assert_eq!(value("Database block size"), file.page_size.to_string());
    assert_eq!(
        value("Blocks per segment of large relation"),
        file.relation_segment_pages.to_string()
    );
    assert_eq!(
        value("Bytes per WAL segment"),
        file.wal_segment_size.bytes().to_string()
    );
    assert_eq!(
        value("Data page checksum version"),
        file.data_checksum_version.to_string()
    );
    assert_eq!(value("Database cluster state"), "shut down");
    assert_eq!(
        file.state,
        borealis_pg_format::control_file::ServerState::ShutDown
    );
}

#[test]
fn every_page_of_a_stopped_server_is_valid() {
    let fixture = fixture();
    let mut valid = 0;
    for (key, pages) in &fixture.after {
        for (block, page) in pages.iter().enumerate() {
            match page::verify(page, block as u32, PAGE, true) {
                PageState::Valid(_) => valid += 1,
                PageState::New => {}
                PageState::Invalid(fault) => panic!("{key:?} block {block}: {fault}"),
            }
        }
    }
    assert!(valid > 3000, "{valid}");
    assert_eq!(visibility_map_block(0, 8192), 0);
}

#[test]
fn every_file_of_a_data_directory_is_known() {
    let fixture = fixture();
    let mut blobs = BTreeSet::new();
    each_file(&fixture.server.data(), "", &mut |path, _| {
        if files::classify(path) == FileKind::Blob {
            blobs.insert(path.to_owned());
        }
    });
    let expected = ["pg_stat/pgstat.stat", "pg_logical/replorigin_checkpoint"];
    assert_eq!(blobs, expected.into_iter().map(str::to_owned).collect());
}

#[test]
fn a_label_of_the_server_is_read() {
    let fixture = fixture();
    let label =
        borealis_pg_format::label::BackupLabel::parse(&fixture.label).expect("a valid label");
    assert_eq!(label.label, "a label");
    let checkpoint = whole_index()
        .redo_points
        .iter()
        .find(|point| point.record.start == label.checkpoint);
    assert_eq!(checkpoint.map(|point| point.redo), Some(label.start));
    assert_eq!(label.to_text().trim_end(), fixture.label);
}
