//! A server that nobody writes to: its latest restorable time follows the clock, and the repository
//! does not grow meanwhile.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::time::Duration;

use borealis_testkit::program::moment;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// How far the latest restorable time may be behind now.
const LAG_MAX: Duration = Duration::from_secs(3);
/// How long the repository is watched. A heartbeat comes each 30 s.
const WATCHED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn the_restorable_time_of_an_idle_server_follows_the_clock_without_writing() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    site.wait_restorable(server.insert_position().await).await;
    let at = server.let_pass(LAG_MAX).await;

    let status = site.status().await.unwrap();
    let now = server.now().await;
    let latest = moment(&status, "latest_restorable_time").unwrap();
    assert!(
        latest.plus(LAG_MAX) >= now,
        "the latest restorable time is {latest}, now is {now}"
    );
    assert!(status["lag_seconds"].as_f64().unwrap() < LAG_MAX.as_secs_f64());
    let _ = site
        .run(&["status", "--fail-if-lag", "10s"])
        .await
        .expect(0);

    let before = site.objects();
    server.let_pass(WATCHED).await;
    let written: Vec<_> = site
        .objects()
        .into_iter()
        .filter(|object| !before.contains(object))
        .collect();
    assert!(written.len() <= 1, "written while idle: {written:?}");

    server.sql("INSERT INTO t VALUES (2)").await;
    site.wait_restorable(server.insert_position().await).await;
    let restored = site.restore(&at.to_string(), "restored", &[]).await;
    assert_eq!(
        restored.server.value("SELECT count(*)::text FROM t").await,
        "1"
    );
    restored.remove();
    protect.stop().await;
    // Nobody follows the clock any longer.
    server.let_pass(LAG_MAX).await;
    let _ = site.run(&["status", "--fail-if-lag", "2s"]).await.expect(9);
}
