//! Many restores from one window, to random moments of every kind, each exact: it holds the transactions whose
//! end record the source's own log has before the position, and no other. Most are made over what the one
//! before left, with `--delta`. `BOREALIS_RANDOM_RESTORES` and `BOREALIS_SEED` say how many, and which;
//! `scripts/acceptance` runs a thousand.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use borealis_base::{Position, SeededEntropy, Timestamp};
use borealis_pg_server::instance::command_as;
use borealis_testkit::program::{DEADLINE, Restored, files_below, text};
use borealis_testkit::server::{ServerOptions, free_port, system_user};
use borealis_testkit::waldump::{Record, TransactionEnd, ends_around, records};
use borealis_testkit::workload::{EXPECTED_IN_LOG, ledger_rows};
use borealis_testkit::{
    Acknowledged, Protect, Site, TestServer, Workload, WorkloadOptions, oracle, wait_until,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// Restores in `make test`: one to a moment of each kind.
const FEW: u64 = 9;
/// Base backups that are taken at least under the workload.
const BASE_BACKUPS: u64 = 3;
const SNAPSHOTS: usize = 3;
const IDLE: Duration = Duration::from_secs(2);
/// Each writer rests so long after a step, so that what there is to be checked does not depend on the machine.
const REST: Duration = Duration::from_millis(20);
/// Log kept on the source for the witness.
const KEPT: &str = "4GB";
/// Every so many restores the whole cluster is checked, too.
const DEEP_EVERY: u64 = 10;
/// Every so many restores one goes into a new directory, and one becomes a standby that is promoted.
const FRESH_EVERY: u64 = 4;
const STANDBY_EVERY: u64 = 50;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("it is a number"))
}

/// What is restored to, and what the source's log says of it.
#[derive(Debug)]
enum To {
    Time(Timestamp),
    /// Every record that begins before the second position.
    Position(Position, Position),
    Snapshot(String, Position),
    Latest,
}

impl To {
    fn named(&self) -> String {
        match self {
            Self::Time(time) => time.to_string(),
            Self::Position(position, _) => format!("lsn:{position}"),
            Self::Snapshot(name, _) => format!("snapshot:{name}"),
            Self::Latest => "latest".to_owned(),
        }
    }
}

/// A source that has come to its end, and all that is known of what it did.
struct Source {
    server: TestServer,
    site: Site,
    space: PathBuf,
    log: Vec<Record>,
    /// Where the end of each acknowledged transaction begins in the log.
    commits: BTreeMap<i64, (Position, String)>,
    times: Vec<Timestamp>,
    snapshots: Vec<(String, Position)>,
    idle: Timestamp,
    span: (Timestamp, Timestamp),
    /// Log up to here was known to be restorable.
    restorable: Position,
    /// Restores that held prepared transactions.
    prepared: AtomicU64,
}

/// The record that ends a transaction: within the bounds that its writer knows, at the time that the server
/// tells. Another one may have ended in the same microsecond.
fn end_of(log: &[Record], commit: &Acknowledged) -> Position {
    let end = TransactionEnd {
        xid: commit.xid,
        time: commit.time,
    };
    // There are hundreds of thousands of records, and thousands of transactions are asked for.
    let from = log.partition_point(|record| record.start < commit.before);
    let within = (log[from..].iter()).take_while(|record| record.start < commit.after);
    let mut ends = within.filter(|record| record.end == Some(end));
    let (Some(end), None) = (ends.next(), ends.next()) else {
        panic!("the log has not one end of {commit:?}");
    };
    end.start
}

async fn source(seed: u64) -> Source {
    let options = ServerOptions::default()
        .with("track_commit_timestamp", "on")
        .with("wal_keep_size", KEPT)
        .with("autovacuum_naptime", "1s")
        // The checkpoints of base backups are spread over this share of 30 s.
        .with("checkpoint_timeout", "30s")
        .with("checkpoint_completion_target", "0");
    let mut server = TestServer::start(options).await;
    for words in EXPECTED_IN_LOG {
        server.allow_in_log(words);
    }
    // The catalogs of a database that a writer drops meanwhile are not read.
    server.allow_in_log("does not exist");
    // Protect may be stopped in the middle of a base backup.
    server.allow_in_log("aborting backup due to backend exiting");
    let space = server.scratch("space");
    let options = WorkloadOptions {
        seed,
        writers: 4,
        tablespace: Some(space.clone()),
        databases: true,
        rest: REST,
    };
    let mut workload = Workload::prepare(&server, options).await;
    let site = Site::init_as_server_user(PROGRAM, &server).await;
    let often = [
        "--base-backup-every-log",
        "8MiB",
        "--base-backup-every",
        "4s",
    ];
    let protect = Protect::begin(&site, &often).await;
    let (first, begin) = (server.insert_position().await, server.now().await);

    let running = workload.start(u64::MAX);
    let (mut snapshots, mut merged) = (Vec::new(), 0);
    for number in 0..SNAPSHOTS {
        server.let_pass(IDLE).await;
        let acknowledged = server.insert_position().await;
        let name = format!("s{number}");
        site.ok(&["snapshot", "create", &name]).await;
        snapshots.push((name, acknowledged));
        // Beside the writer, whose base backups read merged log from here on.
        merged += site.merge_log().await;
    }
    site.wait_status("several base backups", |status| {
        status["base_backups"].as_u64() >= Some(BASE_BACKUPS)
    })
    .await;
    let mut outcome = running.stop().await;
    server.let_pass(IDLE / 2).await;
    let idle = server.now().await;
    server.let_pass(IDLE / 2).await;
    let more = workload.run(15).await;
    outcome.acknowledged.extend(more.acknowledged);
    let (last, end) = (server.insert_position().await, server.now().await);
    site.wait_settled(end).await;
    site.wait_restorable(last).await;
    protect.stop().await;

    let log = records(&server, first, server.insert_position().await).await;
    assert!(log.is_sorted_by_key(|record| record.start));
    merged += site.merge_log().await;
    assert!(merged > 0, "no log was merged");
    let known = outcome.acknowledged.values();
    let commits = known
        .clone()
        .filter(|commit| commit.before >= first)
        .map(|commit| (commit.id, (end_of(&log, commit), commit.payload.clone())));
    Source {
        commits: commits.collect(),
        times: known
            .map(|commit| commit.time)
            .filter(|time| *time > begin)
            .collect(),
        snapshots,
        idle,
        span: (begin, end),
        restorable: last,
        log,
        server,
        site,
        space,
        prepared: AtomicU64::new(0),
    }
}

impl Source {
    /// The target of a kind; each kind comes equally often.
    fn target(&self, kind: u64, entropy: &SeededEntropy) -> To {
        let any = |len: usize| usize::try_from(entropy.below(len as u64)).unwrap();
        // A base backup that serves it has ended before.
        let (from, to) = self.span;
        let span = u64::try_from(to.0 - from.0).unwrap();
        let time = || from.plus_micros(i64::try_from(entropy.below(span)).unwrap());
        let record = 1 + any(self.log.len() - 1);
        let start = self.log[record].start;
        match kind {
            0 | 1 => To::Time(time()),
            2 => To::Time(self.times[any(self.times.len())]),
            3 => To::Time(self.idle),
            4 => To::Position(start, start),
            // In the middle of a record: without it. A record has 24 bytes at least (`SizeOfXLogRecord`).
            5 => To::Position(start.plus(1 + entropy.below(23)), start),
            6 => {
                let (name, acknowledged) = &self.snapshots[any(self.snapshots.len())];
                To::Snapshot(name.clone(), *acknowledged)
            }
            // Just behind a record with which a transaction was prepared, committed or rolled back.
            7 => {
                let ends: Vec<usize> = (1..self.log.len())
                    .filter(|record| self.log[record - 1].end.is_some())
                    .collect();
                let next = self.log[ends[any(ends.len())]].start;
                To::Position(next, next)
            }
            _ => To::Latest,
        }
    }

    /// The plan stops where the rules say, by the source's own log.
    fn check_position(&self, to: &To, stop: Position, what: &str) {
        match to {
            To::Time(time) => {
                let (last, next) = ends_around(&self.log, *time);
                assert!(
                    last.is_none_or(|last| last <= stop),
                    "{what}: {stop}, after {last:?}"
                );
                assert!(
                    next.is_none_or(|next| stop < next),
                    "{what}: {stop}, before {next:?}"
                );
            }
            To::Position(_, before) => {
                let last = self.log.iter().rev().find(|record| record.start < *before);
                assert_eq!(Some(stop), last.map(|record| record.start), "{what}");
            }
            To::Snapshot(_, acknowledged) => {
                let next = self.log.iter().find(|record| record.start > stop);
                let end = next.map_or(stop, |next| next.start);
                assert!(
                    end >= *acknowledged,
                    "{what}: {end} is before {acknowledged}"
                );
            }
            To::Latest => {
                // After the protection has stopped, the server cleans up and commits that.
                let ends = self.log.iter().filter(|record| record.end.is_some());
                let last = ends
                    .map(|record| record.start)
                    .filter(|start| *start < self.restorable)
                    .max();
                assert!(last <= Some(stop), "{what}: {last:?} is lost");
            }
        }
    }

    /// Exactly the transactions that end at or before the last record that was replayed.
    async fn check_rows(&self, restored: &TestServer, stop: Position, what: &str) {
        let rows = ledger_rows(restored).await;
        let expected: BTreeMap<i64, String> = (self.commits.iter())
            .filter(|(_, (end, _))| *end <= stop)
            .map(|(id, (_, payload))| (*id, payload.clone()))
            .collect();
        let missing: Vec<_> = expected
            .iter()
            .filter(|(id, _)| !rows.contains_key(id))
            .collect();
        let extra: Vec<_> = rows
            .keys()
            .filter(|id| !expected.contains_key(id))
            .collect();
        assert!(
            missing.is_empty() && extra.is_empty() && rows == expected,
            "{what}: missing {missing:?}, too many {extra:?}"
        );
    }

    /// One restore, into what the one before left.
    async fn restore(&self, seed: u64, number: u64, lane: u64) {
        let entropy = SeededEntropy::new((seed << 32) + number);
        let to = self.target(number % 9, &entropy);
        let (name, space) = (
            format!("lane{lane}"),
            self.site.target(&format!("space{lane}")),
        );
        let mapping = format!("{}={space}", self.space.display());
        let mut more = vec!["--tablespace-mapping", &mapping];
        let target = PathBuf::from(self.site.target(&name));
        let fresh = number % FRESH_EVERY == lane % FRESH_EVERY || !target.exists();
        let what = format!("BOREALIS_SEED={seed}, restore {number}, {to:?}, fresh: {fresh}");
        if fresh {
            for place in [&target, Path::new(&space)] {
                let _ = std::fs::remove_dir_all(place);
            }
        } else {
            more.push("--delta");
            spoil(&target, &entropy);
        }
        if number % STANDBY_EVERY == STANDBY_EVERY / 2 {
            return self.standby(&name, &more, &what).await;
        }
        let mut restored = self.site.restore(&to.named(), &name, &more).await;
        for words in EXPECTED_IN_LOG {
            restored.server.allow_in_log(words);
        }
        let stop = restored.last_record_start();
        self.check_position(&to, stop, &what);
        self.check_rows(&restored.server, stop, &what).await;
        self.check_prepared(&restored, &what).await;
        if number.is_multiple_of(DEEP_EVERY) {
            check_all(&restored.server, &what).await;
        }
    }

    /// Transactions that are prepared are none that ended.
    async fn check_prepared(&self, restored: &Restored, what: &str) {
        let session = restored.server.session("postgres").await;
        let rows = session
            .rows("SELECT gid FROM pg_prepared_xacts")
            .await
            .unwrap();
        for row in &rows {
            let gid: String = row.get("gid").unwrap();
            let id: i64 = gid.strip_prefix("two_phase_").unwrap().parse().unwrap();
            let ended = self.commits.get(&id).map(|(end, _)| *end);
            let stop = restored.last_record_start();
            assert!(
                ended.is_none_or(|end| end > stop),
                "{what}: {gid} ended at {ended:?}"
            );
        }
        if !rows.is_empty() {
            self.prepared.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A standby follows to the end of what is stored, whatever it is restored to, and is promoted there.
    async fn standby(&self, name: &str, more: &[&str], what: &str) {
        let (target, port) = (self.site.target(name), free_port().to_string());
        let arguments = [
            "restore",
            "--standby",
            "--to",
            "latest",
            "--target-dir",
            &target,
        ];
        let answer = self
            .site
            .json(&[&arguments[..], &["--port", &port], more].concat())
            .await;
        let status = command_as(Path::new("/bin/sh"), system_user().as_ref())
            .args(["-c", &text(&answer, "start_command")])
            .current_dir("/")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{what}");
        let log = Path::new(&target).join("borealis_restore.log");
        let major = self.server.binaries().major;
        let mut standby = TestServer::attach(Path::new(&target), major, &log);
        for words in EXPECTED_IN_LOG {
            standby.allow_in_log(words);
        }
        let last = (self.log.iter())
            .rfind(|record| record.end.is_some() && record.start < self.restorable);
        let last = last.unwrap().start;
        wait_until("the standby to come to the end", DEADLINE, async || {
            let replayed = standby.value("SELECT pg_last_wal_replay_lsn()::text").await;
            (replayed.parse::<Position>().unwrap() > last).then_some(())
        })
        .await;
        standby.promote().await;
        self.check_rows(&standby, last, what).await;
        check_all(&standby, what).await;
    }
}

/// Damages a few files of a directory that is to be restored over.
fn spoil(target: &Path, entropy: &SeededEntropy) {
    use std::os::unix::fs::FileExt;
    let mut files = files_below(&target.join("base"));
    files.sort();
    for _ in 0..5 {
        let file = &files[usize::try_from(entropy.below(files.len() as u64)).unwrap()];
        let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        let len = file.metadata().unwrap().len();
        file.write_all_at(&entropy.next().to_le_bytes(), entropy.below(len + 1))
            .unwrap();
    }
}

async fn check_all(server: &TestServer, what: &str) {
    oracle::end_prepared(server).await;
    for found in [
        oracle::amcheck_all(server).await,
        oracle::visibility_check(server).await,
    ] {
        assert_eq!(found, Vec::<String>::new(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_restores_are_exact() {
    let (seed, count) = (
        number("BOREALIS_SEED", 1),
        number("BOREALIS_RANDOM_RESTORES", FEW),
    );
    let source = source(seed).await;
    let next = AtomicU64::new(0);
    let lane = async |lane: u64| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            source.restore(seed, number, lane).await;
        }
    };
    // Two restores at a time.
    tokio::join!(lane(0), lane(1));
    let prepared = source.prepared.load(Ordering::Relaxed);
    assert!(
        prepared > 0 || count < 50,
        "of {count} restores none was to a moment between the phases of a transaction"
    );
    source.site.ok(&["verify", "--deep"]).await;
}
