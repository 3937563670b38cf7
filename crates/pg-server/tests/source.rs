//! Facts, backups and restore points of a real server.

use std::future::pending;
use std::time::Duration;

use borealis_base::{Clock, ErrorKind, NoProgress, Position, SystemClock};
use borealis_pg_format::index::{EventKind, LogIndexer};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::wal::{LogFormat, Start};
use borealis_pg_format::{Lsn, Timeline, Version};
use borealis_pg_server::backup::BackupSession;
use borealis_pg_server::source::{self, ServerFacts};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{TestServer, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn facts_are_those_of_the_server() {
    let server = TestServer::start(ServerOptions {
        segment_mib: 4,
        ..ServerOptions::default()
    })
    .await;
    let space = server.scratch("space");
    server
        .sql(&format!(
            "CREATE TABLESPACE extra LOCATION '{}'",
            space.display()
        ))
        .await;
    let sql = server.session("postgres").await;
    let facts = ServerFacts::read(&sql).await.expect("readable");
    assert_eq!(facts.major(), server.binaries().major);
    assert_eq!((facts.segment_bytes, facts.page_bytes), (4 << 20, 8192));
    assert_eq!(facts.data_directory.as_deref(), Some(server.data_dir()));
    assert!(!facts.in_recovery);
    assert_eq!(facts.settings.flag("data_checksums"), Some(true));
    assert_eq!(facts.settings.get("wal_level"), Some("replica"));
    let [space_found] = &facts.tablespaces[..] else {
        panic!("one tablespace: {:?}", facts.tablespaces)
    };
    assert_eq!(
        (space_found.name.as_str(), &space_found.path),
        ("extra", &space)
    );
    let names: Vec<_> = facts.databases.iter().map(|d| d.name.as_str()).collect();
    for name in ["postgres", "template0", "template1"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(
        facts.config_files[1].as_deref(),
        Some(&*server.data_dir().join("pg_hba.conf"))
    );
}

#[tokio::test]
async fn backup_starts_and_stops_in_one_session() {
    let server = TestServer::start(ServerOptions::default()).await;
    let session = BackupSession::start(&server.info(), "it's ours", true, &NoProgress, pending())
        .await
        .expect("starts");
    let start = session.started();
    assert_eq!(start.branch.0, 1);
    server.sql("CREATE TABLE t (x int)").await;
    let stop = session.stop().await.expect("stops");
    assert!(stop.position > start.position);
    assert!(
        stop.label
            .contains(&format!("START WAL LOCATION: {} ", start.position))
    );
    assert!(stop.label.contains("LABEL: it's ours\n"), "{}", stop.label);
    assert_eq!(stop.tablespace_map, "");
}

#[tokio::test]
async fn dropped_backup_session_leaves_nothing_behind() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("aborting backup due to backend exiting");
    let session = BackupSession::start(&server.info(), "dropped", true, &NoProgress, pending())
        .await
        .expect("starts");
    drop(session);
    wait_until("the end of the session", DEADLINE, async || {
        let count = server
            .value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'borealis' AND pid <> pg_backend_pid()")
            .await;
        (count == "0").then_some(())
    })
    .await;
    assert!(!server.data_dir().join("backup_label").exists());
}

#[tokio::test]
async fn waiting_for_a_spread_checkpoint_can_be_cancelled() {
    let mut server =
        TestServer::start(ServerOptions::default().with("shared_buffers", "128MB")).await;
    server.allow_in_log("canceling statement due to user request");
    server.allow_in_log("aborting backup due to backend exiting");
    server
        .sql("CREATE TABLE t AS SELECT g, repeat('x', 500) AS x FROM generate_series(1, 60000) g")
        .await;
    let waiting = async {
        loop {
            let count = server
            .value("SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('CheckpointStart', 'CheckpointDone')")
            .await;
            if count == "1" {
                return;
            }
        }
    };
    let begin = SystemClock.elapsed();
    let started = BackupSession::start(&server.info(), "spread", false, &NoProgress, waiting).await;
    assert_eq!(
        started.expect_err("cancelled").kind(),
        ErrorKind::Interrupted
    );
    assert!(SystemClock.elapsed().saturating_sub(begin) < DEADLINE);
    // The server reports the error before it has tidied up after the statement.
    wait_until("the end of the statement", DEADLINE, async || {
        let still = server
            .value(
                "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_(backup_start|start_backup)\\(' \
                 AND state = 'active' AND pid <> pg_backend_pid()",
            )
            .await;
        (still == "0").then_some(())
    })
    .await;
}

/// Whether the log on disk of a server that is down holds a restore point at or after `start`.
fn has_restore_point(server: &TestServer, name: &str, start: Position) -> bool {
    let version = Version::from_major(server.binaries().major).expect("is known");
    let (size, timeline) = (SegmentSize::DEFAULT, Timeline(1));
    let mut at = size.start_of(size.number_of(Lsn(start.0)));
    let mut indexer = LogIndexer::new(LogFormat::new(version), at, Start::Anywhere);
    let segments = (size.number_of(at)..).map(|number| LogFile::Segment { timeline, number });
    for segment in segments {
        let path = server.data_dir().join("pg_wal").join(segment.name(size));
        let Ok(bytes) = std::fs::read(path) else {
            break;
        };
        indexer.push(at, &bytes);
        at = at.plus(size.bytes());
    }
    indexer.cut().index.events.iter().any(|event| {
        matches!(&event.kind, EventKind::RestorePoint { name: found, .. } if found == name.as_bytes())
    })
}

#[tokio::test]
async fn restore_point_is_durable_at_return() {
    // No background flush may make up for a missing one.
    let mut server = TestServer::start(
        ServerOptions::default()
            .with("wal_writer_delay", "10s")
            // Every bit of log wakes the log writer of 17 and later where this is 0.
            .with("wal_writer_flush_after", "1GB")
            .with("autovacuum", "off"),
    )
    .await;
    server.allow_in_log("database system was not properly shut down");
    for (durable, name) in [(true, "flushed"), (false, "unflushed")] {
        let start: Position = server
            .value("SELECT pg_current_wal_insert_lsn()")
            .await
            .parse()
            .expect("a position");
        let sql = server.session("postgres").await;
        if durable {
            // Even where the session or the database says otherwise.
            sql.run("SET synchronous_commit = off")
                .await
                .expect("settable");
            let end = source::create_restore_point(&sql, name)
                .await
                .expect("made");
            assert!(end > start);
        } else {
            sql.run(&format!("SELECT pg_create_restore_point('{name}')"))
                .await
                .expect("made");
        }
        server.kill();
        assert_eq!(has_restore_point(&server, name, start), durable, "{name}");
        drop(sql);
        server.start_again().await;
    }
}

#[tokio::test]
async fn failed_restore_point_leaves_the_session_usable() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("permission denied for function pg_create_restore_point");
    server.sql("CREATE ROLE ann").await;
    let sql = server.session("postgres").await;
    sql.run("SET ROLE ann").await.expect("settable");
    let error = source::create_restore_point(&sql, "x")
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(sql.value::<i32>("SELECT 1").await.expect("usable"), 1);
    let long = "x".repeat(64);
    let error = source::create_restore_point(&sql, &long)
        .await
        .expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn clock_sample_is_between_commits_around_it() {
    let server = TestServer::start(ServerOptions::default()).await;
    let sql = server.session("postgres").await;
    sql.run("CREATE TABLE t (x int)").await.expect("made");
    let commit = async || {
        sql.run("INSERT INTO t VALUES (1)").await.expect("inserted");
        let row = sql
            .row(
                "SELECT (extract(epoch FROM timestamp) * 1000000)::bigint AS micros, \
                  pg_current_wal_insert_lsn() AS position FROM pg_last_committed_xact()",
            )
            .await
            .expect("readable");
        let micros: i64 = row.get("micros").expect("a time");
        (micros, row.position("position").expect("a position"))
    };
    for _ in 0..20 {
        let before = commit().await;
        let sample = source::clock_sample(&sql).await.expect("answers");
        let after = commit().await;
        assert!(before.0 <= sample.time.0 && sample.time.0 <= after.0);
        assert!(before.1 <= sample.position && sample.position <= after.1);
    }
}
