//! The first complete path, as a person goes it: make a repository, protect, restore to each kind of
//! target.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::Path;
use std::process::Command;

use borealis_testkit::program::{CONTROL_FILE, moment, newest_window, position, text};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, oracle};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

async fn server_with_rows() -> TestServer {
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql("CREATE TABLE t (id int PRIMARY KEY, payload text NOT NULL)")
        .await;
    server
        .sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g")
        .await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_target_gives_back_what_the_source_held_then() {
    let server = server_with_rows().await;
    let site = Site::init(PROGRAM, &server).await;
    site.ok(&["check"]).await;
    let protect = Protect::begin(&site, &[]).await;

    server
        .sql("UPDATE t SET payload = 'second' WHERE id % 7 = 0")
        .await;
    let (at_time, time) = (oracle::digest(&server).await, server.now().await);
    server.sql("DELETE FROM t WHERE id <= 1000").await;
    let (at_lsn, lsn) = (
        oracle::digest(&server).await,
        server.insert_position().await,
    );
    server.sql("CREATE TABLE made AS SELECT * FROM t").await;
    let at_snapshot = oracle::digest(&server).await;
    site.ok(&["snapshot", "create", "before"]).await;
    server.sql("DELETE FROM t; DROP TABLE made").await;
    let at_end = oracle::digest(&server).await;
    assert!(at_time != at_lsn && at_lsn != at_snapshot && at_snapshot != at_end);
    site.wait_restorable(server.insert_position().await).await;

    for (to, expected) in [
        (time.to_string(), at_time),
        (format!("lsn:{lsn}"), at_lsn),
        ("snapshot:before".to_owned(), at_snapshot),
        ("latest".to_owned(), at_end),
    ] {
        let restored = site.restore(&to, "restored", &[]).await;
        assert_eq!(
            oracle::digest(&restored.server).await,
            expected,
            "--to {to}"
        );
        assert_eq!(
            oracle::amcheck_all(&restored.server).await,
            Vec::<String>::new()
        );
        restored.remove();
    }
    protect.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_refused_before_anything_is_written() {
    let server = server_with_rows().await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    let status = site.status().await.unwrap();
    let window = newest_window(&status).unwrap();
    let earliest = moment(window, "earliest_time").unwrap();
    let before = earliest.plus_micros(-60_000_000).to_string();
    let after = server.now().await.plus_micros(3_600_000_000).to_string();
    for to in [before.as_str(), "lsn:FFFF/0"] {
        let target = site.target("refused");
        let answer = site
            .run(&["restore", "--to", to, "--target-dir", &target, "--start"])
            .await
            .expect(3);
        // The window is shown: its first position or moment stands in the message.
        let shown = [
            text(window, "earliest_position"),
            text(window, "earliest_time"),
        ];
        assert!(
            shown.iter().any(|shown| answer.stderr.contains(shown)),
            "the window {shown:?} is not shown: {answer}"
        );
        assert!(!Path::new(&target).exists(), "{to} wrote something");
    }
    // A moment to come is known to be malformed or is refused; it is never restored.
    let target = site.target("refused");
    let answer = site
        .run(&["restore", "--to", &after, "--target-dir", &target])
        .await;
    assert!(matches!(answer.code, Some(2 | 3)), "{answer}");
    assert!(!Path::new(&target).exists());

    // A directory with something in it stays as it is.
    let occupied = site.target("occupied");
    std::fs::create_dir(&occupied).unwrap();
    std::fs::write(Path::new(&occupied).join("mine"), "mine").unwrap();
    let _ = site
        .run(&["restore", "--to", "latest", "--target-dir", &occupied])
        .await
        .expect(3)
        .says(&occupied);
    let left: Vec<_> = std::fs::read_dir(&occupied).unwrap().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(
        std::fs::read_to_string(Path::new(&occupied).join("mine")).unwrap(),
        "mine"
    );
    // The live data directory, above all.
    let own = server.data_dir().display().to_string();
    let _ = site
        .run(&["restore", "--to", "latest", "--target-dir", &own])
        .await
        .expect(3);
    assert_eq!(server.value("SELECT count(*)::text FROM t").await, "5000");
    protect.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_writes_nothing_and_a_restore_without_start_prints_the_command_that_starts() {
    let server = server_with_rows().await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    server.sql("DELETE FROM t WHERE id = 1").await;
    site.wait_restorable(server.insert_position().await).await;
    let expected = oracle::digest(&server).await;
    protect.stop().await;

    let objects = site.objects();
    let plan = site.plan("latest").await;
    assert!(position(&plan, "last_record_start") < position(&plan, "position"));
    assert_eq!(
        site.objects(),
        objects,
        "--dry-run wrote into the repository"
    );

    let target = site.target("restored");
    let port = borealis_testkit::server::free_port().to_string();
    let arguments = ["restore", "--to", "latest", "--target-dir", &target];
    let printed = site
        .ok(&[&arguments[..], &["--port", &port]].concat())
        .await;
    let command = printed
        .lines()
        .find(|line| line.contains("pg_ctl"))
        .unwrap_or_else(|| panic!("no command to start in:\n{printed}"))
        .trim();
    let command = &command[command.find("runuser").or(command.find('/')).unwrap()..];
    assert!(Path::new(&target).join(CONTROL_FILE).exists());
    let status = Command::new("sh")
        .args(["-c", command])
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{command}");
    let log = Path::new(&target).join("borealis_restore.log");
    let mut restored = TestServer::attach(Path::new(&target), server.binaries().major, &log);
    restored.wait_promoted().await;
    assert_eq!(oracle::digest(&restored).await, expected);
    drop(restored);
}
