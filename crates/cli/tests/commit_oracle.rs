//! The commit oracle: writers of every kind, restores to moments of every kind, and each holds exactly
//! the transactions that end before the resolved position. Which those are is said by three witnesses:
//! the writers, who know what was acknowledged, `pg_waldump` on the source's own log, and the checks
//! of `amcheck` and `pg_visibility`.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::time::Duration;

use borealis_base::{Position, SeededEntropy, Timestamp};
use borealis_testkit::program::Restored;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::waldump::{Record, ends_around, records};
use borealis_testkit::workload::{EXPECTED_IN_LOG, ledger_rows};
use borealis_testkit::{Outcome, Protect, Site, TestServer, Workload, WorkloadOptions, oracle};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// Base backups that are taken at least under the workload.
const BASE_BACKUPS: u64 = 3;
/// The idle stretch; its middle is restored to.
const IDLE: Duration = Duration::from_secs(3);
/// Log kept on the source for the witness.
const KEPT: &str = "4GB";

fn seed() -> u64 {
    let text = std::env::var("BOREALIS_SEED").unwrap_or_else(|_| "1".to_owned());
    text.parse().expect("BOREALIS_SEED is a number")
}

fn none() -> Vec<String> {
    Vec::new()
}

/// What was restored to.
enum To {
    Time(Timestamp),
    Position(Position),
    Latest,
}

struct Source {
    server: TestServer,
    site: Site,
    outcome: Outcome,
    log: Vec<Record>,
    /// Log up to here was known to be restorable.
    restorable: Position,
    mapping: String,
}

impl Source {
    async fn check(&self, to: &To, what: &str) {
        let named = match to {
            To::Time(time) => time.to_string(),
            To::Position(position) => format!("lsn:{position}"),
            To::Latest => "latest".to_owned(),
        };
        let more = ["--tablespace-mapping", self.mapping.as_str()];
        let mut restored = self.site.restore(&named, "restored", &more).await;
        for words in EXPECTED_IN_LOG {
            restored.server.allow_in_log(words);
        }
        self.check_position(to, &restored, what);
        let rows = ledger_rows(&restored.server).await;
        assert_eq!(
            self.outcome.violations(&rows, restored.position()),
            none(),
            "{what}, {named}"
        );
        self.check_times(to, &rows.keys().copied().collect(), what);
        oracle::end_prepared(&restored.server).await;
        assert_eq!(
            oracle::amcheck_all(&restored.server).await,
            none(),
            "{what}"
        );
        assert_eq!(
            oracle::visibility_check(&restored.server).await,
            none(),
            "{what}"
        );
        restored.remove();
        let (_, new) = self.mapping.split_once('=').unwrap();
        std::fs::remove_dir_all(new).unwrap();
    }

    /// The plan stops where the rules say, by the source's own log.
    fn check_position(&self, to: &To, restored: &Restored, what: &str) {
        let stop = restored.last_record_start();
        match to {
            To::Time(time) => {
                let (last, next) = ends_around(&self.log, *time);
                assert!(
                    last.is_none_or(|last| last <= stop),
                    "{what}: {time} stops at {stop}, before the transaction end at {last:?}"
                );
                assert!(
                    next.is_none_or(|next| stop < next),
                    "{what}: {time} stops at {stop}, with the later transaction end at {next:?}"
                );
            }
            To::Position(position) => {
                let last = self
                    .log
                    .iter()
                    .rev()
                    .find(|record| record.start < *position);
                assert_eq!(Some(stop), last.map(|record| record.start), "{what}");
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

    /// What the source says had committed by then, wherever commit times are ordered: a commit is left
    /// out of the comparison if one of the transaction ends before it has a later time.
    fn check_times(&self, to: &To, rows: &std::collections::BTreeSet<i64>, what: &str) {
        let To::Time(moment) = to else { return };
        let disordered = self
            .log
            .iter()
            .filter_map(|record| record.end.map(|end| end.time))
            .scan(Timestamp::MIN, |latest, time| {
                *latest = (*latest).max(time);
                Some((time < *latest, time))
            })
            .filter_map(|(late, time)| late.then_some(time))
            .collect::<std::collections::BTreeSet<_>>();
        for commit in self.outcome.acknowledged.values() {
            if !disordered.contains(&commit.time) {
                assert_eq!(
                    rows.contains(&commit.id),
                    commit.time <= *moment,
                    "{what}: row {} committed at {}, restored to {moment}",
                    commit.id,
                    commit.time
                );
            }
        }
    }
}

/// How `protect` reads the server's files.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Local,
    Agentless,
}

async fn run(seed: u64, reading: Reading) {
    let options = ServerOptions::default()
        .with("track_commit_timestamp", "on")
        .with("wal_keep_size", KEPT)
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
        rest: Duration::ZERO,
    };
    let mut workload = Workload::prepare(&server, options).await;
    let site = Site::init(PROGRAM, &server).await;
    let often = [
        "--base-backup-every-log",
        "8MiB",
        "--base-backup-every",
        "5s",
        match reading {
            Reading::Local => "--agentless=never",
            Reading::Agentless => "--agentless",
        },
    ];
    let protect = Protect::begin(&site, &often).await;
    let (first, begin) = (server.insert_position().await, server.now().await);

    let running = workload.start(u64::MAX);
    site.wait_status("several base backups", |status| {
        status["base_backups"].as_u64() >= Some(BASE_BACKUPS)
    })
    .await;
    if reading == Reading::Local {
        // Beside the writer, whose base backups read merged log from here on.
        assert!(site.merge_log().await > 0, "no log was merged");
    }
    let mut outcome = running.stop().await;
    server.let_pass(IDLE / 2).await;
    let idle = server.now().await;
    server.let_pass(IDLE / 2).await;
    let more = workload.run(15).await;
    outcome.acknowledged.extend(more.acknowledged);
    outcome.rolled_back.extend(more.rolled_back);
    outcome.unknown.extend(more.unknown);
    let (last, end) = (server.insert_position().await, server.now().await);
    site.wait_settled(end).await;
    site.wait_restorable(last).await;
    protect.stop().await;

    let entropy = SeededEntropy::new(seed);
    let commits: Vec<_> = outcome.acknowledged.values().cloned().collect();
    let any = || &commits[usize::try_from(entropy.below(commits.len() as u64)).unwrap()];
    let span = u64::try_from(end.0 - begin.0).unwrap();
    let random = || begin.plus_micros(i64::try_from(entropy.below(span)).unwrap());
    let targets = [
        (To::Time(random()), "a random moment"),
        (To::Time(random()), "another random moment"),
        (To::Time(idle), "an idle stretch"),
        (To::Time(any().time), "exactly at a commit"),
        (To::Position(any().after), "a position"),
        (To::Latest, "the latest"),
    ];
    let through = server.insert_position().await;
    let source = Source {
        log: records(&server, first, through).await,
        restorable: last,
        mapping: format!("{}={}", space.display(), site.target("space")),
        outcome,
        site,
        server,
    };
    if reading == Reading::Local {
        let merged = source.site.merge_log().await;
        assert!(merged > 0, "no log was merged at the end");
    }
    // Where files come from makes no difference to the log, of which most of the targets are about.
    let wanted = match reading {
        Reading::Local => &targets[..],
        Reading::Agentless => &targets[4..],
    };
    for (to, what) in wanted {
        source.check(to, &format!("seed {seed}, {what}")).await;
    }
    let _ = source.site.run(&["verify", "--deep"]).await.expect(0);
    drop(source.server);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_restore_holds_exactly_the_transactions_that_end_before_its_position() {
    run(seed(), Reading::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_from_agentless_base_backups_are_as_exact() {
    run(seed(), Reading::Agentless).await;
}
