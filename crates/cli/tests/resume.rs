//! `kill -9` of `borealis protect`, and cut connections, during its first base backup.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use borealis_testkit::program::DEADLINE;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, oracle, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

const OFTEN: [&str; 2] = ["--base-backup-resumable-every", "256KiB"];

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_base_backup_is_resumed_and_says_so() {
    let mut server = TestServer::start(ServerOptions::default().with("autovacuum", "off")).await;
    server.allow_in_log("aborting backup due to backend exiting");
    server.allow_in_log("is active for PID");
    server
        .sql(
            "CREATE TABLE t AS SELECT i AS id, md5(i::text) AS payload FROM generate_series(1, 50000) i",
        )
        .await;
    server.sql("VACUUM t").await;
    let site = Site::init(PROGRAM, &server).await;

    // A base backup lists the extensions after the pages are read, and waits here until it is killed.
    let session = server.session("postgres").await;
    session
        .run("BEGIN; LOCK TABLE pg_catalog.pg_extension IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let mut protect = Protect::start(&site, &OFTEN);
    wait_until("the pages to be read", DEADLINE, async || {
        protect.assert_running();
        let waits = "SELECT count(*)::text FROM pg_locks WHERE NOT granted \
                     AND relation = 'pg_catalog.pg_extension'::regclass";
        (session.value::<String>(waits).await.unwrap() != "0").then_some(())
    })
    .await;
    protect.kill().await;
    session.run("ROLLBACK").await.unwrap();
    drop(session);
    let status = site.status().await.unwrap();
    assert_eq!(
        status["windows"].as_array().map(Vec::len),
        Some(0),
        "{status:#}"
    );
    server
        .sql("UPDATE t SET payload = 'after the kill' WHERE id % 5000 = 0")
        .await;

    let mut protect = Protect::start(&site, &OFTEN);
    protect.wait_window(&site).await;
    let log = protect.log();
    let line = log
        .lines()
        .find(|line| line.contains("resuming the base backup begun at"))
        .unwrap_or_else(|| panic!("it does not say so:\n{log}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    let of = words.iter().position(|word| *word == "of").unwrap();
    let (stored, all): (u64, u64) = (
        words[of - 1].parse().unwrap(),
        words[of + 1].parse().unwrap(),
    );
    assert!(stored > all * 3 / 4, "{line}");
    site.wait_restorable(server.insert_position().await).await;
    protect.stop().await;

    let _ = site.run(&["verify", "--deep"]).await.expect(0);
    let restored = site.restore("latest", "restored", &[]).await;
    assert_eq!(
        oracle::digest(&restored.server).await,
        oracle::digest(&server).await
    );
    assert_eq!(
        oracle::amcheck_all(&restored.server).await,
        Vec::<String>::new()
    );
    restored.remove();
}

/// Every connection is cut when the pages have been read: the one that holds the backup, those that read,
/// and the stream of the log.
#[tokio::test(flavor = "multi_thread")]
async fn an_agentless_base_backup_whose_connections_are_cut_is_resumed() {
    let mut server = TestServer::start(ServerOptions::default().with("autovacuum", "off")).await;
    server.allow_in_log("aborting backup due to backend exiting");
    server
        .sql(
            "CREATE TABLE t AS SELECT i AS id, md5(i::text) AS payload FROM generate_series(1, 50000) i",
        )
        .await;
    // Through SQL a pipe looks like an empty file, and a server that opens it waits for ever.
    let pipe = server.data_dir().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let site = Site::init(PROGRAM, &server).await;
    let session = server.session("postgres").await;
    session
        .run("BEGIN; LOCK TABLE pg_catalog.pg_extension IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let arguments = [&["--once", "--agentless"][..], &OFTEN].concat();
    let mut protect = Protect::start(&site, &arguments);
    let waits = "SELECT count(*)::text FROM pg_locks WHERE NOT granted \
                 AND relation = 'pg_catalog.pg_extension'::regclass";
    wait_until("the pages to be read", DEADLINE, async || {
        protect.assert_running();
        (session.value::<String>(waits).await.unwrap() != "0").then_some(())
    })
    .await;
    session
        .rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE application_name LIKE 'borealis%' AND pid <> pg_backend_pid()",
        )
        .await
        .unwrap();
    session.run("ROLLBACK").await.unwrap();
    protect.allow_in_log("terminating connection due to administrator command");
    assert_eq!(protect.wait_end().await, Some(5), "{}", protect.log());
    drop(protect);

    let arguments = [&["protect", "--cluster", "main"][..], &arguments].concat();
    let answer = site.run(&arguments).await.expect(0);
    let answer = answer.says("resuming the base backup begun at");
    let _ = answer.says("agentless, files are read through SQL: asked for");
    let _ = site.run(&["verify", "--deep"]).await.expect(0);
    let restored = site.restore("latest", "restored", &[]).await;
    assert_eq!(
        oracle::digest(&restored.server).await,
        oracle::digest(&server).await
    );
    restored.remove();
}
