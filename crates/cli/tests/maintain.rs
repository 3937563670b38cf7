//! Log is merged beside a running `protect` and by hand, and every command goes on with merged log.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::time::Duration;

use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const DEADLINE: Duration = Duration::from_mins(2);
/// About 70 MiB of log, more than one object of merged log holds.
const MUCH_LOG: &str =
    "INSERT INTO t SELECT repeat(md5(g::text), 20) FROM generate_series(1, 90000) g";

fn merged_log(site: &Site) -> Vec<String> {
    let mut objects = site.objects();
    objects.retain(|name| name.contains("/log/"));
    objects
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_goes_on_with_merged_log() {
    let options = ServerOptions::default()
        // The checkpoints of base backups are spread over this share of 30 s.
        .with("checkpoint_timeout", "30s")
        .with("checkpoint_completion_target", "0");
    let mut server = TestServer::start(options).await;
    server.allow_in_log("aborting backup due to backend exiting");
    server.sql("CREATE TABLE t (x text)").await;
    server.sql("CREATE TABLE lost AS SELECT 1 AS id").await;
    let site = Site::init(PROGRAM, &server).await;
    let often = [
        "--maintain-every",
        "300ms",
        "--base-backup-every-log",
        "8MiB",
        "--base-backup-every",
        "4s",
    ];
    let protect = Protect::begin(&site, &often).await;
    server.sql(MUCH_LOG).await;
    server.sql("DROP TABLE lost").await;
    server.sql(MUCH_LOG).await;
    // In the background: what the next piece does not fit into is complete.
    wait_until("merged log", DEADLINE, async || {
        (!merged_log(&site).is_empty()).then_some(())
    })
    .await;
    // Base backups read the changes from it.
    let taken = site.status().await.unwrap()["base_backups"].as_u64();
    server.sql(MUCH_LOG).await;
    site.wait_status("another base backup", |status| {
        status["base_backups"].as_u64() > taken
    })
    .await;
    let _ = site.ok(&["snapshot", "create", "kept"]).await;
    protect.stop().await;

    assert!(site.merge_log().await > 0);
    let again = site
        .run(&["maintain", "--once", "--merge-after", "0s"])
        .await;
    let _ = again.expect(0).says("no log to merge");
    let found = site.json(&["find"]).await;
    let dropped = found["events"].as_array().unwrap().iter();
    let dropped: Vec<_> = dropped.map(ToString::to_string).collect();
    assert!(
        dropped.iter().any(|event| event.contains("lost")),
        "{dropped:?}"
    );
    let _ = site.run(&["verify", "--deep"]).await.expect(0);
    let _ = site
        .run(&["inspect", &merged_log(&site)[0]])
        .await
        .expect(0)
        .says("merged log");

    // Capturing goes on where merged log ends.
    let protect = Protect::begin(&site, &["--no-maintenance"]).await;
    server.sql("INSERT INTO t VALUES ('the last one')").await;
    site.wait_restorable(server.insert_position().await).await;
    protect.stop().await;
    for (to, rows) in [("snapshot:kept", "270000"), ("latest", "270001")] {
        let restored = site.restore(to, "restored", &[]).await;
        let count = restored.server.value("SELECT count(*)::text FROM t").await;
        assert_eq!(count, rows, "{to}");
        restored.remove();
    }
}
