//! The path through this crate on a real server, without the command line: protect, work, restore to
//! a moment, a position and the end, compare.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod common;

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{NoProgress, Position};
use borealis_operations::protect;
use borealis_operations::restore::{self, Options, prepare};
use borealis_repository::plan::Target;
use borealis_testkit::server::{
    DEADLINE, ServerOptions, TestServer, free_port, server_dir, system_user,
};
use borealis_testkit::{installed, wait_until};
use common::{
    Protecting, base_backups, copy, lineage_of, now, options, restore_lineage, restore_to, site,
    wait_shipped,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_restored_to_what_it_was_at_each_moment() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = TestServer::start(ServerOptions::default().with("fsync", "on")).await;
    server
        .sql("CREATE TABLE t (id int PRIMARY KEY, payload text)")
        .await;
    server
        .sql("INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 20000) i")
        .await;

    let protecting = Protecting::begin(site.clone(), options(&server));
    wait_until("a base backup", DEADLINE, async || {
        (base_backups(&site).await >= 1).then_some(())
    })
    .await;
    server
        .sql("INSERT INTO t SELECT i, 'second' FROM generate_series(20001, 20500) i")
        .await;
    let before_disaster = now(&server).await;
    server.sql("DELETE FROM t").await;
    let position: String = server
        .value("SELECT pg_current_wal_flush_lsn()::text")
        .await;
    server.sql("INSERT INTO t VALUES (1, 'after')").await;
    let at_rest = now(&server).await;

    // An idle stretch: restorable as soon as it is settled, with no further log.
    let idle = wait_until("the idle moment to be settled", DEADLINE, async || {
        restore_to(&site, Target::Time(at_rest)).await.ok()
    })
    .await;
    assert_eq!(
        idle.value("SELECT string_agg(payload, ',') FROM t").await,
        "after"
    );
    drop(idle);

    let moment = restore_to(&site, Target::Time(before_disaster))
        .await
        .unwrap();
    assert_eq!(moment.value("SELECT count(*)::text FROM t").await, "20500");
    assert_eq!(
        moment.value("SELECT pg_is_in_recovery()::text").await,
        "false"
    );
    drop(moment);

    let at_position = restore_to(&site, Target::Position(position.parse().unwrap(), None))
        .await
        .unwrap();
    assert_eq!(at_position.value("SELECT count(*)::text FROM t").await, "0");
    drop(at_position);

    let stopped = protecting.end().await;
    assert!(stopped.durable >= position.parse().unwrap());
    let latest = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(
        latest.value("SELECT string_agg(payload, ',') FROM t").await,
        "after"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_base_backup_reads_only_what_changed_and_restores_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql("CREATE TABLE big (id int PRIMARY KEY, payload text)")
        .await;
    server
        .sql("INSERT INTO big SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 20000) i")
        .await;
    let once = || protect::Options {
        once: true,
        ..options(&server)
    };
    Protecting::begin(site.clone(), once())
        .task
        .await
        .unwrap()
        .unwrap();
    server
        .sql("UPDATE big SET payload = 'changed' WHERE id = 77")
        .await;
    server.sql("VACUUM big").await;
    Protecting::begin(site.clone(), once())
        .task
        .await
        .unwrap()
        .unwrap();
    let cluster = site.cluster(Some("main")).await.unwrap();
    let state = site
        .lineage(&cluster)
        .await
        .unwrap()
        .load_state()
        .await
        .unwrap();
    let [first, second] = &state.base_backups[..] else {
        panic!("two base backups were taken")
    };
    assert!(
        second.new_bytes * 4 < first.new_bytes,
        "the second added {} bytes, the first {}",
        second.new_bytes,
        first.new_bytes
    );
    let restored = restore_to(&site, Target::Latest).await.unwrap();
    let sql = "SELECT md5(string_agg(b::text, ',' ORDER BY id)) FROM big b";
    assert_eq!(restored.value(sql).await, server.value(sql).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_promoted_before_is_protected_and_restored_on_its_timeline() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    server.stop().await;
    server.start_standby().await;
    server.promote().await;
    server.sql("INSERT INTO t VALUES (2)").await;
    let once = protect::Options {
        once: true,
        ..options(&server)
    };
    Protecting::begin(site.clone(), once)
        .task
        .await
        .unwrap()
        .unwrap();
    let restored = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(restored.value("SELECT sum(id)::text FROM t").await, "3");
    assert_eq!(
        restored
            .value("SELECT timeline_id::text FROM pg_control_checkpoint()")
            .await,
        "3"
    );
}

/// `pg_checksums` writes a checksum into every page of a stopped server and logs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn pages_changed_by_pg_checksums_are_not_inherited() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    // Only Debian's servers come with the program.
    let mut server = TestServer::start(ServerOptions {
        major: installed::DEBIAN_MAJOR,
        checksums: false,
        ..ServerOptions::default()
    })
    .await;
    server
        .sql("CREATE TABLE t AS SELECT i AS id, repeat('x', 100) AS payload FROM generate_series(1, 5000) i")
        .await;
    for enable in [false, true] {
        if enable {
            server.stop().await;
            let data_dir = server.data_dir().display().to_string();
            server.run_program("pg_checksums", &["--enable", "-D", &data_dir]);
            server.start_again().await;
        }
        let once = protect::Options {
            once: true,
            ..options(&server)
        };
        Protecting::begin(site.clone(), once)
            .task
            .await
            .unwrap()
            .unwrap();
    }
    // Where a page of a shared catalog lacks its checksum, nobody can log in at all.
    let restored = tokio::time::timeout(DEADLINE, restore_to(&site, Target::Latest));
    let restored = restored
        .await
        .expect("the restored server answers")
        .unwrap();
    assert_eq!(restored.value("SHOW data_checksums").await, "on");
    // A page without its checksum is an error to whoever reads it.
    let sql = "SELECT count(*)::text FROM t";
    assert_eq!(restored.value(sql).await, "5000");
}

/// A server whose storage was put back to an older state, and that has written on: its log has the
/// same positions, and other bytes.
#[tokio::test(flavor = "multi_thread")]
async fn history_that_was_rewritten_on_the_server_begins_a_new_lineage() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let mut server = TestServer::start(ServerOptions::default()).await;
    // Whichever notices first, the base backup that had begun is given up.
    server.allow_in_log("aborting backup due to backend exiting");
    server.sql("CREATE TABLE t (id int)").await;
    let once = |server: &TestServer| protect::Options {
        once: true,
        ..options(server)
    };
    let run = async |server: &TestServer| {
        Protecting::begin(site.clone(), once(server))
            .task
            .await
            .unwrap()
    };
    run(&server).await.unwrap();
    server.stop().await;
    let kept = server.scratch("kept");
    copy(server.data_dir(), &kept);
    server.start_again().await;
    server
        .sql("INSERT INTO t SELECT 1 FROM generate_series(1, 1000)")
        .await;
    run(&server).await.unwrap();
    server.stop().await;
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    copy(&kept, server.data_dir());
    server.start_again().await;
    server
        .sql("INSERT INTO t SELECT 2 FROM generate_series(1, 400000)")
        .await;
    let before = lineage_of(&site).await;
    let stopped = run(&server).await.unwrap();
    assert!(
        stopped.notes[0].contains("older state"),
        "{:?}",
        stopped.notes
    );
    assert_ne!(lineage_of(&site).await, before);
    let counts =
        "SELECT count(*) FILTER (WHERE id = 1) || ' ' || count(*) FILTER (WHERE id = 2) FROM t";
    let restored = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(restored.value(counts).await, "0 400000");
    // What was stored before can be restored as before, and nothing of the new history is in it.
    let restored = restore_lineage(&site, Some(&before), Target::Latest)
        .await
        .unwrap();
    assert_eq!(restored.value(counts).await, "1000 0");
    // The slot of before holds nothing back.
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(server.value(slots).await, "1");
}

/// The log ends at the very beginning of a segment: the server may have nothing before it to compare.
#[tokio::test(flavor = "multi_thread")]
async fn history_that_was_rewritten_before_the_beginning_of_a_segment_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("aborting backup due to backend exiting");
    server.sql("CREATE TABLE t (id int)").await;
    let once = protect::Options {
        once: true,
        ..options(&server)
    };
    let run = async || {
        Protecting::begin(site.clone(), once.clone())
            .task
            .await
            .unwrap()
    };
    run().await.unwrap();
    server.stop().await;
    let kept = server.scratch("kept");
    copy(server.data_dir(), &kept);
    server.start_again().await;
    server.sql("INSERT INTO t VALUES (1)").await;
    // A base backup ends with a switch of segments. Something may be logged behind it.
    let stopped = wait_until("log that ends with its segment", DEADLINE, async || {
        let stopped = run().await.unwrap();
        stopped
            .durable
            .0
            .is_multiple_of(16 << 20)
            .then_some(stopped)
    })
    .await;
    server.stop().await;
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    copy(&kept, server.data_dir());
    server.start_again().await;
    wait_until(
        "log behind the end of the stored log",
        DEADLINE,
        async || {
            server
                .sql("INSERT INTO t SELECT 2 FROM generate_series(1, 200000)")
                .await;
            (server.insert_position().await > stopped.durable.plus(1 << 20)).then_some(())
        },
    )
    .await;
    let before = lineage_of(&site).await;
    let noticed = run().await.unwrap();
    assert!(
        noticed.notes[0].contains("older state"),
        "{:?}",
        noticed.notes
    );
    let cluster = site.cluster(Some("main")).await.unwrap();
    let before = site.lineage_named(&cluster, Some(&before)).await.unwrap();
    let pieces = before.load_state().await.unwrap().pieces;
    assert_eq!(pieces.last().unwrap().end, stopped.durable);
}

/// Bulk changes at `wal_level=minimal` are not in the log.
#[tokio::test(flavor = "multi_thread")]
async fn log_of_the_minimal_level_ends_the_window_and_a_new_one_begins_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let mut server = TestServer::start(
        // No checkpoint shall remove log while nobody holds it: a slot forbids this level.
        ServerOptions::default().with("wal_keep_size", "512MB"),
    )
    .await;
    server.allow_in_log("max_wal_senders");
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let without_slot = protect::Options {
        no_slot: true,
        ..options(&server)
    };
    let protecting = Protecting::begin(site.clone(), without_slot.clone());
    wait_until("a base backup", DEADLINE, async || {
        (base_backups(&site).await >= 1).then_some(())
    })
    .await;
    server.sql("INSERT INTO t VALUES (2)").await;
    let before = wait_shipped(&site, &server).await;
    server.sql("ALTER SYSTEM SET wal_level = minimal").await;
    server.sql("ALTER SYSTEM SET max_wal_senders = 0").await;
    server.restart().await;
    server
        .sql("BEGIN; CREATE TABLE bulk (id int); COPY bulk FROM PROGRAM 'seq 1 1000'; COMMIT")
        .await;
    // Who begins now is told why it can't be.
    let another = protect::Options {
        cluster: Some("another".to_owned()),
        ..without_slot
    };
    let refused = Protecting::begin(site.clone(), another).task.await.unwrap();
    let refused = refused.unwrap_err();
    assert_eq!(
        refused.kind(),
        borealis_base::ErrorKind::Refused,
        "{refused}"
    );
    assert!(
        refused.to_string().contains("wal_level: minimal"),
        "{refused}"
    );
    server.sql("ALTER SYSTEM RESET wal_level").await;
    server.sql("ALTER SYSTEM RESET max_wal_senders").await;
    server.restart().await;
    server.sql("INSERT INTO t VALUES (3)").await;
    let state = wait_until("a base backup behind the gap", DEADLINE, async || {
        let state = common::state(&site).await?;
        let gap = state.gaps.last()?;
        (state.base_backups.last()?.start >= gap.to).then_some(state)
    })
    .await;
    let after = server.insert_position().await;
    protecting.end().await;
    let [gap] = &state.gaps[..] else {
        panic!("one gap: {:?}", state.gaps)
    };
    assert!(gap.reason.contains("wal_level=minimal"), "{}", gap.reason);
    assert!(before <= gap.from && gap.to <= after);
    assert_eq!(borealis_repository::plan::windows(&state).len(), 2);
    let first = restore_to(&site, Target::Position(before, None)).await;
    assert_eq!(
        first.unwrap().value("SELECT sum(id)::text FROM t").await,
        "3"
    );
    let latest = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(latest.value("SELECT sum(id)::text FROM t").await, "6");
    assert_eq!(
        latest.value("SELECT count(*)::text FROM bulk").await,
        "1000"
    );
    // Between the two there is nothing to restore to.
    let between = Position(gap.to.0 - 8);
    let refused = restore_to(&site, Target::Position(between, None)).await;
    let error = refused.err().unwrap();
    assert_eq!(error.kind(), borealis_base::ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains(&between.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_that_nobody_can_log_in_to_ends_the_wait() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE ROLE another SUPERUSER LOGIN").await;
    let session = server.session("postgres").await;
    let once = protect::Options {
        once: true,
        ..options(&server)
    };
    // The base backup's superuser exists and may not log in, whatever the access file says.
    session.run("ALTER ROLE postgres NOLOGIN").await.unwrap();
    let as_another = borealis_pg_server::conninfo::ConnInfo::from_process(
        &server.dsn().replace("user=postgres", "user=another"),
    )
    .unwrap();
    Protecting::begin(
        site.clone(),
        protect::Options {
            info: as_another,
            ..once
        },
    )
    .task
    .await
    .unwrap()
    .unwrap();

    let place = server_dir();
    let target = place.path().join("restored");
    let prepared = prepare(&site, Some("main"), &Target::Latest, target.clone())
        .await
        .unwrap();
    let options = Options {
        start: true,
        port: Some(free_port()),
        owner: system_user().map(|user| user.name),
        programs: Some(installed::binaries(prepared.server_major()).dir),
        login_deadline: Duration::from_secs(1),
        ..Options::default()
    };
    let error = restore::restore(&site, prepared, &options, &NoProgress)
        .await
        .unwrap_err();
    let log = target.join(restore::start::LOG_FILE);
    let mut left = borealis_pg_server::instance::Instance::attach(&target, &log).unwrap();
    assert!(left.is_running(), "the server is left to look at");
    left.kill().unwrap();
    assert_eq!(error.kind(), borealis_base::ErrorKind::Refused);
    let message = error.to_string();
    assert!(message.contains("nobody can log in"), "{message}");
    assert!(message.contains("not permitted to log in"), "{message}");
    assert!(error.hint().unwrap().contains(&*log.to_string_lossy()));
}

/// What `pg_upgrade` leaves: a server with another system identifier, under the same name.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_system_identifier_gets_a_new_lineage_only_if_that_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let old = TestServer::start(ServerOptions::default()).await;
    let new = TestServer::start(ServerOptions::default()).await;
    let run = async |server: &TestServer, new_lineage: bool| {
        let once = protect::Options {
            once: true,
            new_lineage,
            ..options(server)
        };
        Protecting::begin(site.clone(), once).task.await.unwrap()
    };
    for (server, name) in [(&old, "old"), (&new, "new")] {
        server
            .sql(&format!("CREATE TABLE t AS SELECT '{name}' AS name"))
            .await;
    }
    run(&old, false).await.unwrap();
    let before = lineage_of(&site).await;
    let error = run(&new, false).await.unwrap_err();
    assert_eq!(error.kind(), borealis_base::ErrorKind::Refused, "{error}");
    assert!(error.hint().unwrap().contains("--new-lineage"), "{error}");
    assert_eq!(lineage_of(&site).await, before);
    // For the server that is protected already it says nothing.
    run(&old, true).await.unwrap();
    assert_eq!(lineage_of(&site).await, before);

    run(&new, true).await.unwrap();
    assert_ne!(lineage_of(&site).await, before);
    run(&new, false).await.unwrap();
    let error = run(&old, false).await.unwrap_err();
    assert_eq!(error.kind(), borealis_base::ErrorKind::Refused, "{error}");
    let latest = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(latest.value("SELECT name FROM t").await, "new");
    let earlier = restore_lineage(&site, Some(&before[..8]), Target::Latest)
        .await
        .unwrap();
    assert_eq!(earlier.value("SELECT name FROM t").await, "old");
    let report = borealis_operations::status::load(&site, Some("main"))
        .await
        .unwrap();
    let [ended] = &report.clusters[0].earlier_lineages[..] else {
        panic!("{report:?}");
    };
    assert_eq!(ended.lineage.to_string(), before);
    assert!(
        ended.ended.as_ref().unwrap().contains("system identifier"),
        "{ended:?}"
    );
    assert_eq!(ended.windows.len(), 1);
}
