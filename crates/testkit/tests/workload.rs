//! The workload and the oracles agree about a server that nobody restored, and see one that is broken.

use std::time::Duration;

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};

use borealis_base::Position;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::workload::{EXPECTED_IN_LOG, ledger_rows};
use borealis_testkit::{TestServer, Workload, WorkloadOptions, oracle};

async fn workload(server: &TestServer, seed: u64) -> Workload {
    let options = WorkloadOptions {
        seed,
        writers: 4,
        tablespace: Some(server.scratch("space")),
        databases: true,
        rest: Duration::ZERO,
    };
    Workload::prepare(server, options).await
}

#[tokio::test]
async fn everything_acknowledged_is_there_and_sound() {
    let server = TestServer::start(ServerOptions::default()).await;
    let mut workload = workload(&server, 1).await;
    let mut outcome = workload.run(60).await;
    assert!(outcome.acknowledged.len() > 50 && !outcome.rolled_back.is_empty());
    let rows = ledger_rows(&server).await;
    assert_eq!(
        outcome.violations(&rows, Position(u64::MAX)),
        Vec::<String>::new()
    );
    for commit in outcome.acknowledged.values() {
        assert!(commit.before < commit.after && commit.time.0 > 0);
    }
    let before = oracle::digest(&server).await;
    assert_eq!(oracle::amcheck_all(&server).await, Vec::<String>::new());
    assert_eq!(
        oracle::visibility_check(&server).await,
        Vec::<String>::new()
    );
    assert_eq!(oracle::digest(&server).await, before);
    server
        .sql("UPDATE ledger SET payload = 'x' WHERE id = (SELECT min(id) FROM ledger)")
        .await;
    assert_ne!(oracle::digest(&server).await, before);
    assert_eq!(
        outcome
            .violations(&ledger_rows(&server).await, Position(u64::MAX))
            .len(),
        1
    );
    // A second run does not reuse row numbers.
    let more = workload.run(5).await;
    let first: BTreeMap<_, _> = std::mem::take(&mut outcome.acknowledged);
    assert!(more.acknowledged.keys().all(|id| !first.contains_key(id)));
}

#[tokio::test]
async fn killed_server_loses_nothing_that_it_acknowledged() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    for words in EXPECTED_IN_LOG {
        server.allow_in_log(words);
    }
    let mut workload = workload(&server, 2).await;
    let running = workload.start(u64::MAX);
    borealis_testkit::wait_until(
        "a hundred commits",
        borealis_testkit::server::DEADLINE,
        async || {
            let count: i64 = server
                .value("SELECT count(*) FROM ledger")
                .await
                .parse()
                .expect("a number");
            (count > 100).then_some(())
        },
    )
    .await;
    server.kill();
    let outcome = running.finish().await;
    server.start_again().await;
    let rows = ledger_rows(&server).await;
    assert_eq!(
        outcome.violations(&rows, Position(u64::MAX)),
        Vec::<String>::new()
    );
    assert_eq!(oracle::amcheck_all(&server).await, Vec::<String>::new());
}

#[tokio::test]
async fn oracles_see_a_page_that_was_put_back() {
    let mut server = TestServer::start(ServerOptions {
        checksums: false,
        ..ServerOptions::default()
    })
    .await;
    server.allow_in_log("heap tuple");
    server.allow_in_log("index");
    server
        .sql(
            "CREATE TABLE t (x int) WITH (autovacuum_enabled = off); CREATE INDEX by_x ON t (x); \
             INSERT INTO t SELECT generate_series(1, 200)",
        )
        .await;
    let path = server.value("SELECT pg_relation_filepath('t')").await;
    let path = server.data_dir().join(path);
    server.sql("CHECKPOINT").await;
    let old = std::fs::read(&path).expect("exists");
    server.sql("DELETE FROM t WHERE x <= 100").await;
    // Takes the deleted rows out of the index; the page that is put back still has them.
    server.sql("VACUUM (INDEX_CLEANUP on) t").await;
    server.stop().await;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("exists");
    file.seek(SeekFrom::Start(0)).expect("seeks");
    file.write_all(&old).expect("writable");
    drop(file);
    server.start_again().await;
    let found = oracle::amcheck_all(&server).await;
    assert!(found.iter().any(|text| text.contains("by_x")), "{found:?}");
}
