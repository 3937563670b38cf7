//! Which records the workloads emit: all that `data/coverage.txt` lists for a major, and no others.
//!
//! A workload that stops emitting a kind of record stops testing it, silently. What the first server
//! cannot show (crashes, promotion, logical log, old transactions) a second one does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::OnceLock;

use borealis_pg_format::control_file::CHECKPOINT_LEN;
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};
use borealis_pg_format::{Lsn, Timeline, Version};

use borealis_testkit::waldump::translate::offsets;

use crate::fixture::{control_file, fixture};
use crate::server::Server;
use crate::witness::{Witness, witness};

/// A stretch of log of one timeline.
pub struct Stretch {
    start: Lsn,
    bytes: Vec<u8>,
    /// What PostgreSQL's own reader says of it.
    theirs: Witness,
}

/// The log of a second server: crashes, a promotion, logical log, transactions of another age.
fn second_server(version: Version) -> Vec<Stretch> {
    let mut server = Server::create(
        version,
        "wal_keep_size = 4GB\nwal_level = logical\ntrack_commit_timestamp = on\nwal_recycle = off\n\
         max_prepared_transactions = 10\nautovacuum = off\nhot_standby = on\n",
    );
    server.start();
    server.script("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) AS i;");
    age(&mut server);
    let first = control(&server).checkpoint.redo;
    server.start();
    server.script(include_str!("../data/logical.sql"));
    multixacts(&server);
    server.script("VACUUM (FREEZE);");
    for database in ["template0", "template1"] {
        server.sql(&[&format!(
            "UPDATE pg_database SET datallowconn = true WHERE datname = '{database}'"
        )]);
        server.run(
            "psql",
            &["-X", "-q", "-d", database, "-c", "VACUUM (FREEZE)"],
        );
    }
    server.script("VACUUM (FREEZE);");
    crash_within_a_record(&mut server);
    server.script("INSERT INTO t SELECT i, 1 FROM generate_series(1000, 2000) AS i;");
    server.stop();
    let before = stretch(&mut server, Timeline(1), first);
    fs::write(server.data().join("standby.signal"), "").expect("the signal file is written");
    server.start();
    server.script("SELECT pg_promote();");
    server.script("INSERT INTO t SELECT i, 2 FROM generate_series(3000, 3100) AS i;");
    server.stop();
    let fork =
        fs::read_to_string(server.data().join("pg_wal/00000002.history")).expect("a history");
    let fork: Lsn = fork
        .split_whitespace()
        .nth(1)
        .and_then(|position| position.parse().ok())
        .expect("a position");
    vec![before, stretch(&mut server, Timeline(2), fork)]
}

fn control(server: &Server) -> borealis_pg_format::ControlFile {
    control_file(&server.data())
}

/// Stops the server and sets its counters so that new pages and old segments of the transaction status
/// files come about without a million transactions. `pg_resetwal` would do it where it is installed; this
/// writes the counters into both copies of the checkpoint that the next start reads.
fn age(server: &mut Server) {
    server.stop();
    let control = control(server);
    let path = server.data().join("global/pg_control");
    let mut file = fs::read(&path).expect("the control file is read");
    set_counters(&mut file[40..40 + CHECKPOINT_LEN]);
    let crc = if control.version < Version::V18 {
        288
    } else {
        292
    };
    let sum = crc32c::crc32c(&file[..crc]);
    file[crc..crc + 4].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, file).expect("the control file is written");

    let size = SegmentSize::DEFAULT;
    let number = size.number_of(control.checkpoint_lsn);
    let timeline = Timeline(1);
    let name = LogFile::Segment { timeline, number }.name(size);
    let path = server.data().join("pg_wal").join(name);
    let mut segment = fs::read(&path).expect("the segment is read");
    let start = control.checkpoint_lsn.since(size.start_of(number)) as usize;
    // A record header and a short header of its data, then the checkpoint.
    let places = offsets(start, 26 + CHECKPOINT_LEN);
    let mut record: Vec<u8> = places.iter().map(|place| segment[*place]).collect();
    set_counters(&mut record[26..]);
    let sum = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
    record[20..24].copy_from_slice(&sum.to_le_bytes());
    for (place, byte) in places.iter().zip(record) {
        segment[*place] = byte;
    }
    fs::write(&path, segment).expect("the segment is written");
}

/// 64 pages of `pg_xact`, 64 pages of multixact offsets, 32 of multixact members: each the first of its
/// page, so that no file has to be there.
fn set_counters(checkpoint: &mut [u8]) {
    checkpoint[24..32].copy_from_slice(&2_097_152_u64.to_le_bytes());
    checkpoint[36..40].copy_from_slice(&131_072_u32.to_le_bytes());
    checkpoint[40..44].copy_from_slice(&52_352_u32.to_le_bytes());
}

/// Rows locked by a prepared transaction and by others.
fn multixacts(server: &Server) {
    server.script(
        "BEGIN; SELECT count(*) FROM (SELECT * FROM t FOR KEY SHARE) AS l; PREPARE TRANSACTION 'a';
         BEGIN; SELECT count(*) FROM (SELECT * FROM t FOR KEY SHARE) AS l; PREPARE TRANSACTION 'b';
         COMMIT PREPARED 'a'; COMMIT PREPARED 'b';",
    );
    // A new set of lockers each time, past the end of a page of offsets (2048).
    server.script(
        "BEGIN; SELECT FROM t WHERE id = 1 FOR KEY SHARE; PREPARE TRANSACTION 'holder';
         DO $$ BEGIN FOR i IN 1..2100 LOOP PERFORM FROM t WHERE id = 1 FOR KEY SHARE; COMMIT; END LOOP; END $$;
         COMMIT PREPARED 'holder';",
    );
}

/// Kills the server and takes away the end of its log within a record, as a crash does that comes between
/// two writes.
fn crash_within_a_record(server: &mut Server) {
    server.script("CHECKPOINT; SELECT pg_switch_wal();");
    for _ in 0..4 {
        server.script("SELECT pg_logical_emit_message(true, 'test', repeat('n', 9000000));");
    }
    let last = server.sql(&["SELECT pg_walfile_name(pg_current_wal_lsn())"]);
    server.kill();
    fs::remove_file(server.data().join("pg_wal").join(last)).expect("the last segment is removed");
    server.start();
}

fn stretch(server: &mut Server, timeline: Timeline, from: Lsn) -> Stretch {
    let size = SegmentSize::DEFAULT;
    let first = size.number_of(from);
    let mut log = Vec::new();
    let mut number = first;
    let directory = server.data().join("pg_wal");
    while let Ok(segment) =
        fs::read(directory.join(LogFile::Segment { timeline, number }.name(size)))
    {
        log.extend(segment);
        number += 1;
    }
    assert!(number > first, "the log of timeline {timeline} is there");
    let start = size.start_of(first);
    let mut reader = WalReader::new(
        LogFormat::new(server.version()),
        start,
        Start::Anywhere,
        None,
    );
    reader.push(start, &log, &mut |_| {});
    let (_, end) = reader.last_record().expect("a record");
    let theirs = witness(server, timeline, (start, &log), (from, end));
    Stretch {
        start: from,
        bytes: log.split_off(from.since(start) as usize),
        theirs,
    }
}

/// Every pair of resource manager and operation.
fn pairs(witness: &Witness) -> impl Iterator<Item = String> {
    let kinds = witness.kinds.keys();
    kinds.map(|(rmgr, name)| format!("{rmgr} {name}"))
}

/// Whether a range such as `14-16`, `17-` or `18` holds a major.
fn holds(range: &str, major: u32) -> bool {
    let number = |text: &str| -> u32 { text.parse().expect("a major") };
    match range.split_once('-') {
        Some((from, "")) => number(from) <= major,
        Some((from, to)) => (number(from)..=number(to)).contains(&major),
        None => number(range) == major,
    }
}

/// What `data/coverage.txt` lists for a version: pairs to be emitted, and pairs out of reach with the
/// reason.
fn listed(version: Version) -> (BTreeSet<String>, BTreeMap<String, String>) {
    let (mut emitted, mut out_of_reach) = (BTreeSet::new(), BTreeMap::new());
    for line in include_str!("../data/coverage.txt").lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (kind, reason) = match line.split_once(" - ") {
            Some((kind, reason)) => (kind, Some(reason)),
            None => (line, None),
        };
        let mut words = kind.split_whitespace();
        let mut word = || words.next();
        let pair = format!(
            "{} {}",
            word().expect("a resource manager"),
            word().expect("an operation")
        );
        if word().is_some_and(|range| !holds(range, version.major())) {
            continue;
        }
        match reason {
            Some(reason) => {
                out_of_reach.insert(pair, reason.to_owned());
            }
            None => assert!(emitted.insert(pair), "{line} is listed twice"),
        }
    }
    (emitted, out_of_reach)
}

pub fn every_listed_kind_of_record_is_emitted(version: Version) {
    let mut seen: BTreeSet<_> = pairs(&fixture(version).theirs).collect();
    for stretch in second_server_once(version) {
        seen.extend(pairs(&stretch.theirs));
    }
    let (emitted, out_of_reach) = listed(version);
    let gone: Vec<_> = emitted.difference(&seen).collect();
    let new: Vec<_> = seen.difference(&emitted).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "{version:?}: no longer emitted: {gone:#?}\nemitted and not listed: {new:#?}"
    );
    for (pair, reason) in &out_of_reach {
        assert!(!seen.contains(pair), "{pair} is within reach");
        assert!(reason.len() > 10, "{pair}: say why it is out of reach");
    }
}

fn second_server_once(version: Version) -> &'static [Stretch] {
    static LOG: [OnceLock<Vec<Stretch>>; 5] = [const { OnceLock::new() }; 5];
    LOG[version as usize].get_or_init(|| second_server(version))
}

pub fn log_of_crashes_and_promotions_agrees(version: Version) {
    for stretch in second_server_once(version) {
        let theirs = stretch.theirs.records.iter().map(|(seen, _)| seen.start);
        let mut ours = Vec::new();
        let format = LogFormat::new(version);
        let mut reader = WalReader::new(format, stretch.start, Start::Record, None);
        reader.push(stretch.start, &stretch.bytes, &mut |event| match event {
            LogEvent::Record(record) => ours.push(record.start),
            other => panic!("{other:?}"),
        });
        assert!(ours.len() > 100);
        assert_eq!(ours, theirs.collect::<Vec<_>>());
    }
}
