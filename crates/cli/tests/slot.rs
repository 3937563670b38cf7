//! The replication slot: when there is one, what happens without it, and what a gap leaves usable.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use borealis_base::Position;
use borealis_testkit::program::{DEADLINE, position};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

async fn slots(server: &TestServer) -> String {
    server
        .value("SELECT count(*)::text FROM pg_replication_slots WHERE NOT temporary")
        .await
}

async fn server_with_row() -> TestServer {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    server
}

async fn rows(site: &Site, to: &str) -> String {
    let restored = site.restore(to, "restored", &[]).await;
    let count = restored.server.value("SELECT count(*)::text FROM t").await;
    restored.remove();
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn one_base_backup_without_a_slot_leaves_none() {
    let mut server = server_with_row().await;
    // The second one may find that the log after the first is gone: a gap, nothing worse.
    server.allow_in_log("has already been removed");
    let site = Site::init(PROGRAM, &server).await;
    let once = ["protect", "--cluster", "main", "--once", "--no-slot"];
    site.ok(&once).await;
    assert_eq!(slots(&server).await, "0");
    assert_eq!(rows(&site, "latest").await, "1");
    server.sql("INSERT INTO t VALUES (2)").await;
    site.ok(&once).await;
    assert_eq!(slots(&server).await, "0");
    assert_eq!(site.status().await.unwrap()["base_backups"], 2);
    assert_eq!(rows(&site, "latest").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_base_backup_keeps_its_slot_until_unprotect_drops_it() {
    let server = server_with_row().await;
    let site = Site::init(PROGRAM, &server).await;
    site.ok(&["protect", "--cluster", "main", "--once"]).await;
    assert_eq!(slots(&server).await, "1");
    server.sql("INSERT INTO t VALUES (2)").await;
    site.ok(&["protect", "--cluster", "main", "--once"]).await;
    let status = site.status().await.unwrap();
    assert_eq!(status["gaps"].as_array().map(Vec::len), Some(0));
    assert_eq!(status["base_backups"], 2);
    site.ok(&["unprotect", "--cluster", "main"]).await;
    assert_eq!(slots(&server).await, "0");
    let status = site.status().await.unwrap();
    assert!(status["retired"].is_string(), "{status:#}");
    assert_eq!(rows(&site, "latest").await, "2");
}

/// Writes log and checkpoints until the segment that holds `position` is gone.
async fn recycle(server: &TestServer, position: Position) {
    let segment = format!(
        "{:08X}{:08X}{:08X}",
        1,
        position.0 >> 32,
        (position.0 & 0xFFFF_FFFF) >> 24
    );
    let path = server.data_dir().join("pg_wal").join(segment);
    wait_until("the log to be recycled", DEADLINE, async || {
        server
            .sql("INSERT INTO filler VALUES (1); SELECT pg_switch_wal(); CHECKPOINT")
            .await;
        (!path.exists()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_the_server_removed_leaves_a_gap_with_both_sides_restorable() {
    let mut server = server_with_row().await;
    server.allow_in_log("has already been removed");
    server.sql("CREATE TABLE filler (id int)").await;
    let site = Site::init(PROGRAM, &server).await;
    let first = Protect::begin(&site, &[]).await;
    server.sql("INSERT INTO t VALUES (2)").await;
    let before = server.insert_position().await;
    site.wait_restorable(before).await;
    first.stop().await;

    server
        .sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        .await;
    server.sql("INSERT INTO t VALUES (3)").await;
    recycle(&server, before).await;

    let mut second = Protect::start(&site, &[]);
    second.allow_in_log("gap");
    let status = site
        .wait_status("a base backup after the gap", |status| {
            status["windows"].as_array().map(Vec::len) == Some(2)
        })
        .await;
    let gaps = status["gaps"].as_array().unwrap();
    assert_eq!(gaps.len(), 1, "{status:#}");
    assert!(position(&gaps[0], "from") >= before);
    assert!(position(&gaps[0], "from") < position(&gaps[0], "to"));
    server.sql("INSERT INTO t VALUES (4)").await;
    site.wait_restorable(server.insert_position().await).await;
    second.stop().await;

    assert_eq!(rows(&site, &format!("lsn:{before}")).await, "2");
    assert_eq!(rows(&site, "latest").await, "4");
    // In between there is nothing to restore to.
    let target = site.target("between");
    let between = format!("lsn:{}", Position(position(&gaps[0], "to").0 - 8));
    let arguments = ["restore", "--to", &between, "--target-dir", &target];
    let _ = site.run(&arguments).await.expect(3);
    assert!(!std::path::Path::new(&target).exists());
    let _ = site.run(&["verify", "--deep"]).await.expect(0);
}
