//! Which records the workloads emit: all that `data/coverage-15.txt` lists, and no others.
//!
//! A workload that stops emitting a kind of record stops testing it, silently. What the first server
//! cannot show (crashes, promotion, logical log, old transactions) a second one does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use borealis_pg_format::Version;
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};
use borealis_pg_format::{Lsn, Timeline};

use crate::server::Server;
use crate::waldump::{self, Seen};

/// A stretch of log of one timeline.
struct Stretch {
    start: Lsn,
    bytes: Vec<u8>,
    /// What `pg_waldump` prints of it.
    printed: String,
}

/// The log of a second server: crashes, a promotion, logical log, transactions of another age.
fn second_server() -> Vec<Stretch> {
    let mut server = Server::create(
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
    let before = stretch(&server, Timeline(1), first);
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
    vec![before, stretch(&server, Timeline(2), fork)]
}

fn control(server: &Server) -> borealis_pg_format::ControlFile {
    crate::control_file(&server.data())
}

/// Stops the server and sets its counters so that new pages and old segments of the transaction status
/// files come about without a million transactions.
fn age(server: &mut Server) {
    server.stop();
    let data = server.data();
    let data = data.to_str().expect("UTF-8");
    // 64 pages of pg_xact, 64 pages of multixact offsets, 32 of multixact members: each the first
    // of its page, so that no file has to be there.
    server.run(
        "pg_resetwal",
        &["-x", "2097152", "-m", "131072,1", "-O", "52352", data],
    );
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

fn stretch(server: &Server, timeline: Timeline, from: Lsn) -> Stretch {
    let size = SegmentSize::DEFAULT;
    let mut bytes = Vec::new();
    let first = size.number_of(from);
    let name = |number| LogFile::Segment { timeline, number }.name(size);
    let directory = server.data().join("pg_wal");
    let mut number = first;
    while let Ok(segment) = fs::read(directory.join(name(number))) {
        bytes.extend(segment);
        number += 1;
    }
    assert!(number > first, "{} is there", name(first));
    Stretch {
        start: from,
        bytes: bytes.split_off(from.since(size.start_of(first)) as usize),
        printed: print(server, &directory, timeline, from, &name(number - 1)),
    }
}

fn print(server: &Server, directory: &Path, timeline: Timeline, from: Lsn, last: &str) -> String {
    let size = SegmentSize::DEFAULT;
    let number = size.number_of(from);
    let first = LogFile::Segment { timeline, number }.name(size);
    let output = server
        .command("pg_waldump")
        .arg("-p")
        .arg(directory)
        .args(["-s", &from.to_string(), &first, last])
        .output()
        .expect("pg_waldump runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every pair of resource manager and operation that `pg_waldump` names.
fn pairs(records: &[(Seen, String)]) -> BTreeSet<String> {
    let names = records.iter();
    names
        .map(|(seen, name)| format!("{} {name}", seen.rmgr))
        .collect()
}

/// What `data/coverage-15.txt` lists: pairs to be emitted, and pairs out of reach with the reason.
fn listed() -> (BTreeSet<String>, BTreeMap<String, String>) {
    let (mut emitted, mut out_of_reach) = (BTreeSet::new(), BTreeMap::new());
    for line in include_str!("../data/coverage-15.txt").lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some((pair, reason)) = line.split_once(" - ") {
            out_of_reach.insert(pair.trim().to_owned(), reason.trim().to_owned());
        } else {
            assert!(emitted.insert(line.to_owned()), "{line} is listed twice");
        }
    }
    (emitted, out_of_reach)
}

#[test]
fn every_listed_kind_of_record_is_emitted() {
    let mut seen = pairs(&crate::theirs());
    for stretch in second_server_once() {
        seen.extend(pairs(&waldump::parse(&stretch.printed)));
    }
    let (emitted, out_of_reach) = listed();
    let gone: Vec<_> = emitted.difference(&seen).collect();
    let new: Vec<_> = seen.difference(&emitted).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "no longer emitted: {gone:#?}\nemitted and not listed: {new:#?}"
    );
    for (pair, reason) in &out_of_reach {
        assert!(!seen.contains(pair), "{pair} is within reach");
        assert!(reason.len() > 10, "{pair}: say why it is out of reach");
    }
}

fn second_server_once() -> &'static [Stretch] {
    static LOG: std::sync::OnceLock<Vec<Stretch>> = std::sync::OnceLock::new();
    LOG.get_or_init(second_server)
}

#[test]
fn log_of_crashes_and_promotions_agrees_with_pg_waldump() {
    for stretch in second_server_once() {
        let theirs = waldump::parse(&stretch.printed);
        let theirs: Vec<_> = theirs.into_iter().map(|(seen, _)| seen.start).collect();
        let mut ours = Vec::new();
        let format = LogFormat::new(Version::V15);
        let mut reader = WalReader::new(format, stretch.start, Start::Record, None);
        reader.push(stretch.start, &stretch.bytes, &mut |event| match event {
            LogEvent::Record(record) => ours.push(record.start),
            other => panic!("{other:?}"),
        });
        assert!(ours.len() > 100);
        assert_eq!(ours, theirs);
    }
}
