//! A promotion under a workload: what the surviving timeline holds is restored exactly, on both sides.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::time::Duration;

use borealis_base::Position;
use borealis_testkit::program::position;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::workload::{EXPECTED_IN_LOG, ledger_rows};
use borealis_testkit::{Outcome, Protect, Site, TestServer, Workload, WorkloadOptions, oracle};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// How long the workload runs on each server.
const CALM: Duration = Duration::from_secs(3);

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

fn none() -> Vec<String> {
    Vec::new()
}

/// One source with both servers.
fn both(first: &TestServer, second: &TestServer) -> String {
    let field = |server: &TestServer, name: &str| {
        let dsn = server.dsn();
        let value = dsn.split(' ').find_map(|part| part.strip_prefix(name));
        value.expect("it is in the string").to_owned()
    };
    format!(
        "host={},{} port={},{} user=postgres dbname=postgres",
        field(first, "host="),
        field(second, "host="),
        first.port(),
        second.port()
    )
}

async fn check(site: &Site, to: &str, outcome: &Outcome) {
    let mut restored = site.restore(to, "restored", &[]).await;
    for words in EXPECTED_IN_LOG {
        restored.server.allow_in_log(words);
    }
    let rows = ledger_rows(&restored.server).await;
    assert_eq!(
        outcome.violations(&rows, restored.position()),
        none(),
        "{to}"
    );
    oracle::end_prepared(&restored.server).await;
    assert_eq!(oracle::amcheck_all(&restored.server).await, none(), "{to}");
    let visible = oracle::visibility_check(&restored.server).await;
    assert_eq!(visible, none(), "{to}");
    restored.remove();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_under_a_workload_loses_nothing_that_the_surviving_timeline_acknowledged() {
    let options = ServerOptions::default()
        .with("wal_keep_size", "2GB")
        .with("checkpoint_timeout", "30s")
        .with("checkpoint_completion_target", "0");
    let mut primary = TestServer::start(options).await;
    let options = WorkloadOptions {
        seed: seed(),
        writers: 3,
        tablespace: None,
        databases: false,
        rest: Duration::ZERO,
    };
    let mut workload = Workload::prepare(&primary, options).await;
    let mut standby = primary.make_standby().await;
    for server in [&mut primary, &mut standby] {
        for words in EXPECTED_IN_LOG {
            server.allow_in_log(words);
        }
        // A base backup is given up with the server, or with protect.
        server.allow_in_log("aborting backup due to backend exiting");
    }
    let site = Site::init(PROGRAM, &primary).await;
    site.configure(&both(&primary, &standby));
    let mut protect = Protect::begin(&site, &OFTEN).await;

    let running = workload.start(u64::MAX);
    primary.let_pass(CALM).await;
    primary.kill();
    let before = running.finish().await;
    standby.promote().await;
    oracle::end_prepared(&standby).await;
    workload.move_to(&standby);
    let running = workload.start(u64::MAX);
    // The old primary returns under the workload and takes writes of its own.
    primary.start_again().await;
    primary.sql("CREATE TABLE of_the_old_primary ()").await;
    standby.let_pass(CALM).await;
    let after = running.stop().await;
    assert!(before.acknowledged.len() > 20 && after.acknowledged.len() > 20);
    let end = standby.insert_position().await;
    site.wait_status("the new timeline to be restorable", |status| {
        let windows = status["windows"].as_array().into_iter().flatten();
        windows
            .filter(|window| window["branch"] == 2)
            .any(|window| position(window, "latest_position") >= end)
    })
    .await;
    protect.assert_running();
    protect.stop().await;
    let _ = site.run(&["verify", "--deep"]).await.expect(0);
    let status = site.status().await.unwrap();
    assert_eq!(
        status["gaps"].as_array().map(Vec::len),
        Some(0),
        "{status:#}"
    );

    let switched = standby.switched_at(2);
    let earlier = before.acknowledged.values().map(|commit| commit.after);
    let earlier: Position = earlier.filter(|after| *after <= switched).max().unwrap();
    check(&site, &format!("lsn:{earlier}"), &before).await;
    let mut survived = before.left_at(switched);
    survived.acknowledged.extend(after.acknowledged);
    survived.rolled_back.extend(after.rolled_back);
    survived.unknown.extend(after.unknown);
    check(&site, "latest", &survived).await;
}
