//! Two `protect` of one cluster: the second is refused while the first lives, replaces it when it is
//! dead, and fences it when told to take over.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, oracle, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

#[tokio::test(flavor = "multi_thread")]
async fn a_second_protect_is_refused_and_told_who_lives() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    let first = Protect::begin(&site, &[]).await;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let entries = site.objects();
    let _ = site
        .run(&["protect", "--cluster", "main"])
        .await
        .expect(3)
        .says(host.trim())
        .says(&first.pid().to_string())
        .says("last sign of life")
        .says("--take-over");
    let epochs = |objects: &[String]| objects.iter().filter(|o| o.contains("/epochs/")).count();
    assert_eq!(epochs(&site.objects()), epochs(&entries));
    let _ = site.run(&["unprotect"]).await.expect(3);
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_killed_is_replaced_at_once_and_nothing_is_lost() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t (id int)").await;
    let site = Site::init(PROGRAM, &server).await;
    Protect::begin(&site, &[]).await.kill().await;
    server.sql("INSERT INTO t VALUES (1)").await;
    let second = Protect::start(&site, &[]);
    site.wait_restorable(server.insert_position().await).await;
    let status = site.status().await.unwrap();
    assert_eq!(status["protector"]["pid"], second.pid());
    assert_eq!(status["protector"]["running"], true);
    assert_eq!(status["gaps"].as_array().map(Vec::len), Some(0));
    second.stop().await;
    let restored = site.restore("latest", "restored", &[]).await;
    assert_eq!(
        oracle::digest(&restored.server).await,
        oracle::digest(&server).await
    );
    restored.remove();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_protect_stops_with_its_own_exit_code_and_publishes_nothing() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    // The one that is held keeps the slot until it goes on.
    server.allow_in_log("is active for PID");
    server.sql("CREATE TABLE t (id int)").await;
    let site = Site::init(PROGRAM, &server).await;
    let mut first = Protect::begin(&site, &[]).await;
    first.allow_in_log("epoch");
    // Held, it cannot know that it was replaced until it goes on.
    first.freeze();
    let second = Protect::start(&site, &["--take-over"]);
    wait_until(
        "the second to hold the epoch",
        borealis_testkit::program::DEADLINE,
        async || {
            let status = site.status().await?;
            (status["protector"]["pid"] == second.pid()).then_some(())
        },
    )
    .await;
    server.sql("INSERT INTO t VALUES (1)").await;
    first.thaw();
    assert_eq!(first.wait_end().await, Some(7), "{}", first.log());
    server.sql("INSERT INTO t VALUES (2)").await;
    site.wait_restorable(server.insert_position().await).await;
    second.stop().await;
    let _ = site.run(&["verify", "--deep"]).await.expect(0);
    let restored = site.restore("latest", "restored", &[]).await;
    assert_eq!(
        restored.server.value("SELECT count(*)::text FROM t").await,
        "2"
    );
    restored.remove();
}
