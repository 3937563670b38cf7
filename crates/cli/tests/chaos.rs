//! Kills and cuts at seeded moments under a workload: nothing that was acknowledged is missing after.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::time::Duration;

use borealis_base::{Position, SeededEntropy};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::workload::{EXPECTED_IN_LOG, ledger_rows};
use borealis_testkit::{Outcome, Protect, Site, TestServer, Workload, WorkloadOptions, oracle};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// Accidents of a run.
const ROUNDS: u64 = 9;
/// The longest that the workload runs before an accident.
const CALM_MICROS_MAX: u64 = 2_000_000;

const OFTEN: [&str; 4] = [
    "--base-backup-every-log",
    "4MiB",
    "--base-backup-every",
    "5s",
];

fn seed() -> u64 {
    let text = std::env::var("BOREALIS_SEED").unwrap_or_else(|_| "1".to_owned());
    text.parse().expect("BOREALIS_SEED is a number")
}

fn absorb(all: &mut Outcome, more: Outcome) {
    all.acknowledged.extend(more.acknowledged);
    all.rolled_back.extend(more.rolled_back);
    all.unknown.extend(more.unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_cut_connections_lose_nothing_that_was_acknowledged() {
    let options = ServerOptions::default()
        .with("checkpoint_timeout", "30s")
        .with("checkpoint_completion_target", "0");
    let mut server = TestServer::start(options).await;
    for words in EXPECTED_IN_LOG {
        server.allow_in_log(words);
    }
    server.allow_in_log("is active for PID");
    // A killed protect leaves its base backup.
    server.allow_in_log("aborting backup due to backend exiting");
    // A session that we end may have gone between its listing and the signal.
    server.allow_in_log("is not a PostgreSQL backend process");
    let options = WorkloadOptions {
        seed: seed(),
        writers: 3,
        tablespace: None,
        databases: false,
        rest: Duration::ZERO,
    };
    let mut workload = Workload::prepare(&server, options).await;
    let site = Site::init(PROGRAM, &server).await;
    let mut protect = Protect::begin(&site, &OFTEN).await;
    let entropy = SeededEntropy::new(seed());
    let mut outcome = Outcome::default();

    for round in 0..ROUNDS {
        let running = workload.start(u64::MAX);
        let calm = Duration::from_micros(entropy.below(CALM_MICROS_MAX));
        server.let_pass(calm).await;
        // Each accident comes equally often, in an order that the seed shifts.
        match (round + seed()) % 3 {
            0 => {
                protect.kill().await;
                // Log goes on while nobody ships it.
                server
                    .let_pass(Duration::from_micros(entropy.below(1_000_000)))
                    .await;
                protect = Protect::start(&site, &OFTEN);
                absorb(&mut outcome, running.stop().await);
            }
            1 => {
                server.kill();
                absorb(&mut outcome, running.finish().await);
                server.start_again().await;
            }
            _ => {
                server
                    .sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE pid <> pg_backend_pid() \
                         AND (backend_type = 'walsender' OR application_name LIKE 'borealis%')",
                    )
                    .await;
                absorb(&mut outcome, running.stop().await);
            }
        }
        // The locks of what a cut writer left prepared would hold up the next writers.
        oracle::end_prepared(&server).await;
        protect.assert_running();
    }
    assert!(outcome.acknowledged.len() > 50, "the workload did nothing");
    let end = server.insert_position().await;
    site.wait_restorable(end).await;
    protect.stop().await;

    let _ = site.run(&["verify", "--deep"]).await.expect(0);
    let mut restored = site.restore("latest", "restored", &[]).await;
    for words in EXPECTED_IN_LOG {
        restored.server.allow_in_log(words);
    }
    let rows = ledger_rows(&restored.server).await;
    assert_eq!(
        outcome.violations(&rows, Position(u64::MAX)),
        Vec::<String>::new()
    );
    assert_eq!(rows, ledger_rows(&server).await);
    oracle::end_prepared(&restored.server).await;
    assert_eq!(
        oracle::amcheck_all(&restored.server).await,
        Vec::<String>::new()
    );
    assert_eq!(
        oracle::visibility_check(&restored.server).await,
        Vec::<String>::new()
    );
    restored.remove();
}
