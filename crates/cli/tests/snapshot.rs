//! Snapshots: what they hold, and when none is made.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::time::Duration;

use borealis_testkit::program::text;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::workload::ledger_rows;
use borealis_testkit::{Protect, Site, TestServer, Workload, WorkloadOptions, oracle};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_holds_every_commit_acknowledged_before_it_began() {
    let server = TestServer::start(ServerOptions::default()).await;
    let options = WorkloadOptions {
        seed: 7,
        writers: 3,
        tablespace: None,
        databases: false,
        rest: Duration::ZERO,
    };
    let mut workload = Workload::prepare(&server, options).await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    let mut outcome = workload.run(10).await;
    let acknowledged = server.insert_position().await;
    let running = workload.start(u64::MAX);
    site.ok(&["snapshot", "create", "before"]).await;
    let more = running.stop().await;
    outcome.acknowledged.extend(more.acknowledged);
    outcome.rolled_back.extend(more.rolled_back);
    outcome.unknown.extend(more.unknown);
    site.wait_restorable(server.insert_position().await).await;

    let restored = site.restore("snapshot:before", "restored", &[]).await;
    assert!(restored.position() >= acknowledged);
    let rows = ledger_rows(&restored.server).await;
    assert_eq!(
        outcome.violations(&rows, restored.position()),
        Vec::<String>::new()
    );
    oracle::end_prepared(&restored.server).await;
    assert_eq!(
        oracle::amcheck_all(&restored.server).await,
        Vec::<String>::new()
    );
    restored.remove();
    protect.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_one_position_under_one_name_until_it_is_deleted() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    site.ok(&["snapshot", "create", "one"]).await;
    let _ = site
        .run(&["snapshot", "create", "one"])
        .await
        .expect(3)
        .says("one");
    server.sql("INSERT INTO t VALUES (2)").await;
    site.wait_restorable(server.insert_position().await).await;
    let one = text(&site.plan("snapshot:one").await, "position");

    // Without the server there is nothing to write a restore point with.
    let position = server.insert_position().await;
    server.stop().await;
    let _ = site
        .run(&["snapshot", "create", "two"])
        .await
        .expect(3)
        .says("--at latest");
    site.ok(&["snapshot", "create", "two", "--at", "latest"])
        .await;
    let plan = site.plan("snapshot:two").await;
    assert!(borealis_testkit::program::position(&plan, "position") >= position);
    server.start_again().await;

    let list = site.run(&["snapshot", "list"]).await.expect(0);
    let _ = list.says("one").says("two");
    assert_eq!(text(&site.plan("snapshot:one").await, "position"), one);
    let restored = site.restore("snapshot:one", "restored", &[]).await;
    assert_eq!(
        restored.server.value("SELECT count(*)::text FROM t").await,
        "1"
    );
    restored.remove();

    site.ok(&["snapshot", "delete", "one"]).await;
    let _ = site
        .run(&["snapshot", "delete", "one"])
        .await
        .expect(4)
        .says("one");
    let target = site.target("gone");
    let _ = site
        .run(&["restore", "--to", "snapshot:one", "--target-dir", &target])
        .await
        .expect(4)
        .says("one");
    assert!(!std::path::Path::new(&target).exists());
    protect.stop().await;
}
