//! The first path on each major version but 15, on which the other tests run: check, protect, a workload with full and incremental base
//! backups, a snapshot, a disaster, and restores to before it.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::time::Duration;

use borealis_testkit::program::text;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::workload::EXPECTED_IN_LOG;
use borealis_testkit::{Protect, Site, TestServer, Workload, WorkloadOptions, oracle};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// The first base backup reads everything, those after it what the change map names.
const BASE_BACKUPS: u64 = 3;

const OFTEN: [&str; 4] = [
    "--base-backup-every-log",
    "1MiB",
    "--base-backup-every",
    "1s",
];

async fn server(major: u32) -> TestServer {
    let options = ServerOptions {
        major,
        ..ServerOptions::default()
    };
    // The checkpoints of base backups are spread over this share of 30 s.
    let options = options
        .with("checkpoint_timeout", "30s")
        .with("checkpoint_completion_target", "0");
    let mut server = TestServer::start(options).await;
    for words in EXPECTED_IN_LOG {
        server.allow_in_log(words);
    }
    // The catalogs of a database that a writer drops meanwhile are not read.
    server.allow_in_log("does not exist");
    // `protect` is stopped while it takes a base backup, or between two.
    server.allow_in_log("aborting backup due to backend exiting");
    server
}

async fn first_path(major: u32) {
    let server = server(major).await;
    let space = server.scratch("space");
    let options = WorkloadOptions {
        seed: u64::from(major),
        writers: 3,
        tablespace: Some(space.clone()),
        databases: true,
        rest: Duration::ZERO,
    };
    let mut workload = Workload::prepare(&server, options).await;
    let site = Site::init(PROGRAM, &server).await;
    let checked = site.json(&["check"]).await;
    assert!(
        checked
            .to_string()
            .contains(&format!("PostgreSQL {major}."))
    );
    // On two majors the first base backup is read through SQL, on the others those after it.
    let (first, later) = match major {
        14 | 17 => ("--agentless", "--agentless=never"),
        _ => ("--agentless=never", "--agentless"),
    };
    let arguments = |how| [&[how][..], &OFTEN].concat();
    let protect = Protect::begin(&site, &arguments(first)).await;
    protect.stop().await;
    let protect = Protect::begin(&site, &arguments(later)).await;

    let running = workload.start(u64::MAX);
    site.wait_status("incremental base backups", |status| {
        status["base_backups"].as_u64() >= Some(BASE_BACKUPS)
    })
    .await;
    let _ = running.stop().await;
    let (at_snapshot, moment) = (oracle::digest(&server).await, server.now().await);
    site.ok(&["snapshot", "create", "before"]).await;
    server
        .sql("DELETE FROM ledger; DROP TABLE churn_0; TRUNCATE churn_1")
        .await;
    assert_ne!(oracle::digest(&server).await, at_snapshot);
    site.wait_restorable(server.insert_position().await).await;
    protect.stop().await;

    let status = site.status().await.unwrap();
    assert_eq!(text(&status, "name"), "main");
    let mapping = format!("{}={}", space.display(), site.target("space"));
    for to in [moment.to_string(), "snapshot:before".to_owned()] {
        let mut restored = site
            .restore(&to, "restored", &["--tablespace-mapping", &mapping])
            .await;
        for words in EXPECTED_IN_LOG {
            restored.server.allow_in_log(words);
        }
        let server = &restored.server;
        assert_eq!(oracle::digest(server).await, at_snapshot, "--to {to}");
        assert_eq!(oracle::amcheck_all(server).await, Vec::<String>::new());
        assert_eq!(oracle::visibility_check(server).await, Vec::<String>::new());
        restored.remove();
        std::fs::remove_dir_all(site.target("space")).unwrap();
    }
    let _ = site.run(&["verify", "--deep"]).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_path_holds_on_14() {
    first_path(14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_path_holds_on_16() {
    first_path(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_path_holds_on_17() {
    first_path(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_path_holds_on_18() {
    first_path(18).await;
}
