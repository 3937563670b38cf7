//! Promotions, old primaries that return, and servers without the slot, with a running protect.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod common;

use std::sync::Arc;

use borealis_base::{Branch, ErrorKind, Position};
use borealis_operations::{Site, protect};
use borealis_repository::plan::{Target, windows};
use borealis_testkit::server::{DEADLINE, ServerOptions, TestServer};
use borealis_testkit::{installed, wait_until};
use common::{
    Protecting, hosts, ids, options, pair, restore_to, restored_ids, site, state,
    wait_base_backups, wait_branch, wait_settled, wait_shipped,
};

fn protect_all(site: &Arc<Site>, servers: &[&TestServer]) -> Protecting {
    let options = protect::Options {
        info: hosts(servers),
        data_dir: None,
        ..options(servers[0])
    };
    Protecting::begin(site.clone(), options)
}

async fn follows_a_promotion(major: u32) {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (mut primary, mut standby) = pair(major).await;
    let protecting = protect_all(&site, &[&primary, &standby]);
    wait_base_backups(&site, 1).await;
    let before = primary.now().await;
    wait_settled(&site, before).await;
    primary.sql("INSERT INTO t VALUES (2)").await;
    wait_shipped(&site, &primary).await;
    standby.wait_replayed(&primary).await;
    primary.kill();
    standby.promote().await;
    standby.sql("INSERT INTO t VALUES (3)").await;
    wait_branch(&site, &standby, 2).await;
    let between = standby.now().await;
    wait_settled(&site, between).await;
    // The next base backup takes over pages of the one that was taken of the old primary.
    standby
        .sql("CREATE TABLE filler AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 8000)")
        .await;
    standby.sql("INSERT INTO t VALUES (4)").await;
    wait_shipped(&site, &standby).await;
    protecting.end().await;
    let once = protect::Options {
        info: hosts(&[&primary, &standby]),
        data_dir: None,
        once: true,
        ..options(&primary)
    };
    let taken = Protecting::begin(site.clone(), once).task.await.unwrap();
    taken.unwrap();

    let state = state(&site).await.unwrap();
    assert!(state.gaps.is_empty(), "{:?}", state.gaps);
    let began = standby.switched_at(2);
    let branch = &state.branches[&Branch(2)];
    assert_eq!((branch.parent, branch.at), (Branch(1), began));
    let first = state
        .pieces
        .iter()
        .find(|piece| piece.branch == Branch(2))
        .unwrap();
    assert_eq!(first.start, began);
    assert!(branch.entry < first.entry, "the history comes first");
    let [first, last] = &state.base_backups[..] else {
        panic!("{:?}", state.base_backups);
    };
    assert_eq!((first.branch, last.branch), (Branch(1), Branch(2)));
    assert!(last.new_bytes < first.new_bytes / 2, "{first:?} {last:?}");
    assert_eq!(restored_ids(&site, Target::Time(before)).await, "1");
    assert_eq!(restored_ids(&site, Target::Time(between)).await, "1,2,3");
    let latest = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(ids(&latest).await, "1,2,3,4");
    let filler = "SELECT count(*)::text FROM filler WHERE length(x) = 1000";
    assert_eq!(latest.value(filler).await, "8000");
    let timeline = "SELECT timeline_id::text FROM pg_control_checkpoint()";
    assert_eq!(latest.value(timeline).await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_followed_and_moments_on_both_sides_can_be_restored() {
    follows_a_promotion(installed::default_major()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_followed_on_18() {
    follows_a_promotion(18).await;
}

/// Twice within one segment, without another host to go to.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_promoted_twice_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("aborting backup due to backend exiting");
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let protecting = Protecting::begin(site.clone(), options(&server));
    wait_base_backups(&site, 1).await;
    for id in [2, 3] {
        server.stop().await;
        server.start_standby().await;
        server.promote().await;
        server.sql(&format!("INSERT INTO t VALUES ({id})")).await;
    }
    wait_branch(&site, &server, 3).await;
    protecting.end().await;
    let state = state(&site).await.unwrap();
    assert!(state.gaps.is_empty(), "{:?}", state.gaps);
    assert_eq!(state.base_backups.len(), 1);
    assert_eq!(restored_ids(&site, Target::Latest).await, "1,2,3");
    let second = state.branches[&Branch(3)].at;
    let target = Target::Position(second, Some(Branch(2)));
    assert_eq!(restored_ids(&site, target).await, "1,2");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_only_the_old_primary_had_stays_on_its_timeline_and_its_return_is_not_shipped() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (mut primary, mut standby) = pair(installed::default_major()).await;
    let protecting = protect_all(&site, &[&primary, &standby]);
    wait_base_backups(&site, 1).await;
    standby.wait_replayed(&primary).await;
    standby.stop().await;
    primary.sql("INSERT INTO t VALUES (2)").await;
    let tail = wait_shipped(&site, &primary).await;
    let lost = primary.now().await;
    wait_settled(&site, lost).await;
    primary.kill();
    standby.start_standby().await;
    standby.promote().await;
    standby.sql("INSERT INTO t VALUES (3)").await;
    wait_branch(&site, &standby, 2).await;
    assert!(standby.switched_at(2) < tail);

    // The old primary returns and takes writes. The connection to the new one is lost for a while.
    primary.start_again().await;
    primary.sql("ALTER SYSTEM SET log_connections = on").await;
    primary.sql("SELECT pg_reload_conf()").await;
    primary.sql("INSERT INTO t VALUES (4)").await;
    let looks = || {
        primary
            .log()
            .matches("replication connection authorized")
            .count()
    };
    let before = looks();
    standby.stop().await;
    let missed = primary.now().await;
    wait_until("the old primary to be looked at", DEADLINE, async || {
        (looks() > before).then_some(())
    })
    .await;
    standby.start_again().await;
    standby.sql("INSERT INTO t VALUES (5)").await;
    wait_branch(&site, &standby, 2).await;
    wait_settled(&site, missed).await;
    protecting.end().await;
    let error = Protecting::begin(site.clone(), options(&primary))
        .task
        .await
        .unwrap();
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("timeline 1"), "{error}");

    let state = state(&site).await.unwrap();
    assert!(state.gaps.is_empty(), "{:?}", state.gaps);
    assert_eq!(restored_ids(&site, Target::Latest).await, "1,3,5");
    // What was settled before the promotion means what it meant then.
    assert_eq!(restored_ids(&site, Target::Time(lost)).await, "1,2");
    let target = Target::Position(tail, Some(Branch(1)));
    assert_eq!(restored_ids(&site, target).await, "1,2");
}

/// Writes log and checkpoints until the server has removed the segment that holds `position`.
async fn recycle(server: &TestServer, timeline: u32, position: Position) {
    let number = position.0 >> 24;
    let name = format!(
        "pg_wal/{timeline:08X}{:08X}{:08X}",
        number >> 8,
        number & 0xFF
    );
    let path = server.data_dir().join(name);
    wait_until("the log to be recycled", DEADLINE, async || {
        server
            .sql("INSERT INTO filler VALUES (1); SELECT pg_switch_wal(); CHECKPOINT")
            .await;
        (!path.exists()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_without_slot_and_log_leaves_a_gap_with_both_sides_restorable() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (mut primary, mut standby) = pair(installed::default_major()).await;
    standby.allow_in_log("has already been removed");
    primary.sql("CREATE TABLE filler (id int)").await;
    let protecting = protect_all(&site, &[&primary, &standby]);
    wait_base_backups(&site, 1).await;
    let before = wait_shipped(&site, &primary).await;
    standby.wait_replayed(&primary).await;
    protecting.end().await;
    primary.kill();
    standby.promote().await;
    standby.sql("ALTER SYSTEM SET wal_keep_size = 0").await;
    standby.sql("SELECT pg_reload_conf()").await;
    standby.sql("INSERT INTO t VALUES (2)").await;
    recycle(&standby, 2, standby.switched_at(2)).await;
    let protecting = protect_all(&site, &[&primary, &standby]);
    wait_base_backups(&site, 2).await;
    standby.sql("INSERT INTO t VALUES (3)").await;
    wait_branch(&site, &standby, 2).await;
    protecting.end().await;
    let state = state(&site).await.unwrap();
    let [gap] = &state.gaps[..] else {
        panic!("{:?}", state.gaps);
    };
    assert!(gap.from >= before && gap.from < gap.to, "{gap:?}");
    let branches: Vec<u32> = windows(&state)
        .iter()
        .map(|window| window.branch.0)
        .collect();
    assert_eq!(branches, [1, 2]);
    let target = Target::Position(before, Some(Branch(1)));
    assert_eq!(restored_ids(&site, target).await, "1");
    assert_eq!(restored_ids(&site, Target::Latest).await, "1,2,3");
}

/// Whoever promoted it meant it, whatever the old primary still says.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_followed_though_the_old_primary_still_answers() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (primary, mut standby) = pair(installed::default_major()).await;
    let protecting = protect_all(&site, &[&primary, &standby]);
    wait_base_backups(&site, 1).await;
    standby.wait_replayed(&primary).await;
    standby.promote().await;
    primary.sql("INSERT INTO t VALUES (2)").await;
    standby.sql("INSERT INTO t VALUES (3)").await;
    wait_branch(&site, &standby, 2).await;
    protecting.end().await;
    assert_eq!(restored_ids(&site, Target::Latest).await, "1,3");
}

/// Both are of one cluster, and only one is the server that is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_server_of_the_cluster_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (primary, standby) = pair(installed::default_major()).await;
    let options = protect::Options {
        data_dir: Some(standby.data_dir().to_owned()),
        ..options(&primary)
    };
    let error = Protecting::begin(site.clone(), options).task.await.unwrap();
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains("another server of this cluster"),
        "{error}"
    );
}
