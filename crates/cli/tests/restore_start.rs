//! What `restore --start` says: progress while it replays, and transactions that wait afterwards.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::Path;

use borealis_base::{Position, Timestamp};
use borealis_testkit::program::{moment, position, text};
use borealis_testkit::server::{ServerOptions, free_port};
use borealis_testkit::{Protect, Site, TestServer};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_shows_its_progress_and_a_prepared_transaction_is_listed() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t (id int)").await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    let before = server.now().await;
    server
        .sql("INSERT INTO t SELECT generate_series(1, 300000)")
        .await;
    let session = server.session("postgres").await;
    for statement in [
        "BEGIN",
        "INSERT INTO t VALUES (-1)",
        "PREPARE TRANSACTION 'it''s 7'",
    ] {
        session.run(statement).await.unwrap();
    }
    site.wait_restorable(server.insert_position().await).await;
    protect.stop().await;

    let (target, port) = (site.target("restored"), free_port().to_string());
    let arguments = ["restore", "--to", "latest", "--target-dir", &target];
    let start = ["--start", "--port", &port, "--json"];
    let answer = site
        .run(&[&arguments[..], &start[..]].concat())
        .await
        .expect(0);
    let log = Path::new(&target).join("borealis_restore.log");
    let restored = TestServer::attach(Path::new(&target), server.binaries().major, &log);

    let lines: Vec<Value> = answer
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["phase"] == "recovery")
        .collect();
    let last = lines.last().expect("the replay shows its progress");
    let done: Vec<u64> = lines
        .iter()
        .map(|line| line["done"].as_u64().unwrap())
        .collect();
    assert!(done.is_sorted(), "{done:?}");
    assert_eq!(last["done"], last["total"], "{last}");
    assert!(last["per_second"].as_f64().unwrap() > 0.0, "{last}");
    assert_eq!(last["seconds_left"], 0.0, "{last}");
    let plan = answer.json()["plan"].clone();
    let end: Position = position(&plan, "position");
    assert_eq!(position(last, "position"), end);
    let log_time: Timestamp = moment(last, "log_time").expect("a log time");
    assert!(log_time >= before, "{log_time} is before {before}");

    let waiting = answer.json()["server"]["prepared_transactions"].clone();
    assert_eq!(waiting.as_array().unwrap().len(), 1, "{waiting}");
    let transaction = &waiting[0];
    assert_eq!(text(transaction, "gid"), "it's 7");
    assert_eq!(text(transaction, "owner"), "postgres");
    assert_eq!(text(transaction, "database"), "postgres");
    let prepared_at = moment(transaction, "prepared_at").unwrap();
    assert!(prepared_at >= before && prepared_at <= server.now().await);
    let sum = "SELECT coalesce(sum(id), 0)::text FROM t WHERE id < 0";
    assert_eq!(restored.value(sum).await, "0");
    restored.sql(&text(transaction, "commit")).await;
    assert_eq!(restored.value(sum).await, "-1");
    server.sql(&text(transaction, "rollback")).await;
}
