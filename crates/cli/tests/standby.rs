//! A standby that follows the repository through `borealis wal fetch`.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use borealis_pg_server::instance::command_as;
use borealis_testkit::program::DEADLINE;
use borealis_testkit::server::{ServerOptions, free_port, system_user};
use borealis_testkit::{Answer, Protect, Site, TestServer, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const SPOOL: &str = "pg_wal/borealis_prefetch";
const COULD_NOT_LOOK: i32 = 200;
/// The most that is fetched ahead.
const AHEAD: u64 = 8;

async fn source() -> TestServer {
    // Small segments make many of them, and a standby that looks often makes a short test.
    let mut options = ServerOptions::default().with("wal_retrieve_retry_interval", "200ms");
    options.segment_mib = 1;
    let server = TestServer::start(options).await;
    server
        .sql("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text)")
        .await;
    server
}

/// About as many MiB of log.
async fn write_log(server: &TestServer, mib: u64) {
    let rows = mib * 700;
    let sql =
        format!("INSERT INTO t (payload) SELECT repeat('x', 1400) FROM generate_series(1, {rows})");
    server.sql(&sql).await;
}

/// Restores a standby without starting it; returns its directory and the command that starts it.
async fn restore_standby(site: &Site, name: &str) -> (PathBuf, String) {
    let (target, port) = (site.target(name), free_port().to_string());
    let arguments = [
        "restore",
        "--standby",
        "--to",
        "latest",
        "--target-dir",
        &target,
    ];
    let answer = site
        .json(&[&arguments[..], &["--port", &port]].concat())
        .await;
    let command = answer["start_command"].as_str().unwrap().to_owned();
    (PathBuf::from(target), command)
}

fn start(server: &TestServer, target: &Path, command: &str) -> TestServer {
    let status = command_as(Path::new("/bin/sh"), system_user().as_ref())
        .args(["-c", command])
        .current_dir("/")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    let log = target.join("borealis_restore.log");
    let shown = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(status.success(), "{command}\n{shown}");
    TestServer::attach(target, server.binaries().major, &log)
}

async fn wal_fetch(site: &Site, data_dir: &Path, file: &str, target: &str) -> Answer {
    let mut command = site.command(&["wal", "fetch", file, target]);
    let output = command.current_dir(data_dir).output().await.unwrap();
    Answer {
        arguments: format!("wal fetch {file} {target}"),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

async fn rows(server: &TestServer) -> String {
    server.value("SELECT count(*)::text FROM t").await
}

async fn wait_same(standby: &TestServer, source: &TestServer, what: &str) {
    let expected = rows(source).await;
    wait_until(what, DEADLINE, async || {
        (rows(standby).await == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_its_source_and_can_be_promoted() {
    let server = source().await;
    let site = Site::init_as_server_user(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    server.sql("INSERT INTO t (payload) VALUES ('one')").await;
    site.wait_restorable(server.insert_position().await).await;
    let (target, command) = restore_standby(&site, "standby").await;
    // It has to catch up with what it was not restored with.
    write_log(&server, 24).await;
    site.wait_restorable(server.insert_position().await).await;
    let mut standby = start(&server, &target, &command);
    assert_eq!(
        standby.value("SELECT pg_is_in_recovery()::text").await,
        "true"
    );
    wait_same(&standby, &server, "the standby to catch up").await;

    // Then it follows, a few rows or many segments at a time.
    for mib in [0, 6, 0, 12] {
        write_log(&server, mib).await;
        server.sql("INSERT INTO t (payload) VALUES ('more')").await;
        wait_same(&standby, &server, "the standby to follow").await;
    }
    let log = standby.log();
    let served: BTreeSet<_> = log
        .lines()
        .filter_map(|line| line.split_once("restored log file \"")?.1.split('"').next())
        .filter(|name| !name.contains('.'))
        .collect();
    assert!(
        served.len() > 30,
        "only {served:?} came from the repository"
    );

    let refused = standby.session("postgres").await;
    let error = refused
        .run("INSERT INTO t (payload) VALUES ('mine')")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    standby.allow_in_log("in a read-only transaction");

    // From its promotion on it is a server of its own.
    standby.promote().await;
    standby.sql("INSERT INTO t (payload) VALUES ('mine')").await;
    let gone = || (!target.join(SPOOL).exists()).then_some(());
    wait_until(
        "what was fetched ahead to be removed",
        DEADLINE,
        async || gone(),
    )
    .await;
    let archive = "SELECT current_setting('archive_mode') || archived_count FROM pg_stat_archiver";
    assert_eq!(standby.value(archive).await, "off0");
    let _ = wal_fetch(&site, &target, &segment(0x400), "x")
        .await
        .expect(COULD_NOT_LOOK)
        .says("has ended");
    let dsn = standby.dsn();
    let _ = site
        .run(&["protect", "--once", "--cluster", "main", "--source", &dsn])
        .await
        .expect(3)
        .says("was restored from cluster main");
    protect.stop().await;
}

/// The name of a segment of the first timeline, of 1 MiB.
fn segment(number: u64) -> String {
    format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF)
}

#[tokio::test(flavor = "multi_thread")]
async fn log_fetched_ahead_needs_neither_repository_nor_key() {
    let server = source().await;
    let site = Site::init_as_server_user(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    site.wait_restorable(server.insert_position().await).await;
    let (target, _) = restore_standby(&site, "standby").await;
    let first = (server.insert_position().await.0 >> 20) + 2;
    write_log(&server, 24).await;
    site.wait_restorable(server.insert_position().await).await;
    protect.stop().await;

    let to = "pg_wal/RECOVERYXLOG";
    let same = |number: u64| {
        let ours = std::fs::read(target.join(to)).unwrap();
        let theirs = std::fs::read(server.data_dir().join("pg_wal").join(segment(number)));
        // The source may have recycled it already.
        theirs.is_err() || theirs.unwrap() == ours
    };
    let _ = wal_fetch(&site, &target, &segment(first), to)
        .await
        .expect(0);
    assert!(same(first));
    let last = target.join(SPOOL).join(segment(first + AHEAD));
    wait_until("segments fetched ahead", DEADLINE, async || {
        last.exists().then_some(())
    })
    .await;
    let held = std::fs::read_dir(target.join(SPOOL)).unwrap();
    let segments = held
        .filter(|entry| entry.as_ref().unwrap().file_name().len() == 24)
        .count();
    assert_eq!(segments as u64, AHEAD, "the bound was not kept");

    let hidden = site.target("hidden");
    std::fs::rename(site.repository(), &hidden).unwrap();
    std::fs::rename(site.key_file(), site.target("hidden.key")).unwrap();
    for number in first + 1..=first + AHEAD {
        let _ = wal_fetch(&site, &target, &segment(number), to)
            .await
            .expect(0);
        assert!(same(number), "{} was served otherwise", segment(number));
    }
    let _ = wal_fetch(&site, &target, &segment(first + AHEAD + 4), to)
        .await
        .expect(COULD_NOT_LOOK);
    // Whoever fetched ahead ends with recovery.
    let mut finish = site.command(&["wal", "finish"]);
    let finished = finish.current_dir(&target).status().await.unwrap();
    assert!(finished.success() && !target.join(SPOOL).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_the_promotion_of_its_source() {
    let mut server = source().await;
    server.allow_in_log("aborting backup due to backend exiting");
    let site = Site::init_as_server_user(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    server.sql("INSERT INTO t (payload) VALUES ('one')").await;
    site.wait_restorable(server.insert_position().await).await;
    let (target, command) = restore_standby(&site, "standby").await;
    let standby = start(&server, &target, &command);
    wait_same(&standby, &server, "the standby to catch up").await;

    server.stop().await;
    server.start_standby().await;
    server.promote().await;
    write_log(&server, 3).await;
    wait_same(&standby, &server, "the standby to follow").await;
    let recovers = standby.value("SELECT pg_is_in_recovery()::text").await;
    assert_eq!(recovers, "true");
    assert!(standby.log().contains("new target timeline is 2"));
    protect.stop().await;
}
