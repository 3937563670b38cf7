//! A standby as the source: its log, base backups of it, its promotion.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod common;

use std::sync::{Arc, Mutex, mpsc};

use borealis_base::{Branch, ErrorKind, Progress, Unit};
use borealis_operations::{protect, snapshot};
use borealis_repository::plan::Target;
use borealis_testkit::installed;
use borealis_testkit::server::{DEADLINE, TestServer};
use tokio_util::sync::CancellationToken;

use common::{
    Protecting, hosts, options, pair, restored_ids, site, state, wait_base_backups, wait_branch,
    wait_settled, wait_shipped,
};

/// What Borealis has on a server: sessions and slots.
async fn traces(server: &TestServer) -> String {
    server
        .value(
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'borealis' \
             AND pid <> pg_backend_pid()) || '/' || \
             (SELECT count(*) FROM pg_replication_slots)",
        )
        .await
}

async fn standby_is_the_source(major: u32) {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (primary, mut standby) = pair(major).await;
    standby.allow_in_log("aborting backup due to backend exiting");
    let protecting = Protecting::begin(site.clone(), options(&standby));
    wait_base_backups(&site, 1).await;
    primary.sql("INSERT INTO t VALUES (2)").await;
    primary
        .sql("CREATE TABLE filler AS SELECT md5(i::text) FROM generate_series(1, 1000) i")
        .await;
    wait_shipped(&site, &primary).await;
    assert_eq!(traces(&primary).await, "0/0");
    protecting.end().await;

    // A base backup of a standby begins at its last restartpoint.
    primary.sql("CHECKPOINT").await;
    standby.wait_replayed(&primary).await;
    let once = protect::Options {
        once: true,
        ..options(&standby)
    };
    let taken = Protecting::begin(site.clone(), once).task.await.unwrap();
    taken.unwrap();
    let known = state(&site).await.unwrap();
    let [first, second] = &known.base_backups[..] else {
        panic!("{:?}", known.base_backups);
    };
    assert!(first.start < second.start && second.start <= second.end);
    assert!(
        second.new_bytes < first.new_bytes / 4,
        "{first:?} {second:?}"
    );
    assert_eq!(restored_ids(&site, Target::Latest).await, "1,2");

    // Promoted while it is protected, it is followed.
    let protecting = Protecting::begin(site.clone(), options(&standby));
    primary.sql("INSERT INTO t VALUES (3)").await;
    wait_shipped(&site, &primary).await;
    assert_eq!(traces(&primary).await, "0/0");
    standby.wait_replayed(&primary).await;
    standby.promote().await;
    standby.sql("INSERT INTO t VALUES (4)").await;
    wait_branch(&site, &standby, 2).await;
    let now = standby.now().await;
    wait_settled(&site, now).await;
    protecting.end().await;
    let state = state(&site).await.unwrap();
    assert!(state.gaps.is_empty(), "{:?}", state.gaps);
    assert_eq!(state.branches[&Branch(2)].at, standby.switched_at(2));
    assert_eq!(restored_ids(&site, Target::Latest).await, "1,2,3,4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_the_source_and_the_primary_is_left_alone() {
    standby_is_the_source(installed::default_major()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_the_source_on_18() {
    standby_is_the_source(18).await;
}

/// A standby does not know where its primary inserts; where the source names both, the primary tells.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_an_idle_standby_is_told_by_its_primary() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (primary, standby) = pair(installed::default_major()).await;
    let both = protect::Options {
        info: hosts(&[&standby, &primary]),
        data_dir: None,
        ..options(&standby)
    };
    let protecting = Protecting::begin(site.clone(), both);
    wait_base_backups(&site, 1).await;
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(standby.value(slots).await, "1");
    assert_eq!(primary.value(slots).await, "0");
    // The first moment that is settled is not restored to: what came before it is not stored.
    wait_settled(&site, primary.now().await).await;
    let now = primary.now().await;
    wait_settled(&site, now).await;
    // A restore point is written where that can be.
    let timeout = std::time::Duration::from_mins(1);
    let alone = snapshot::create(&site, Some("main"), "s", &standby.info(), timeout).await;
    let error = alone.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.hint().unwrap().contains("--at latest"), "{error}");
    let both = hosts(&[&standby, &primary]);
    let kept = snapshot::create(&site, Some("main"), "s", &both, timeout).await;
    kept.unwrap();
    primary.sql("INSERT INTO t VALUES (2)").await;
    protecting.end().await;
    assert_eq!(restored_ids(&site, Target::Time(now)).await, "1");
    assert_eq!(restored_ids(&site, Target::Pin("s".to_owned())).await, "1");
}

/// Holds the first base backup when its pages are read, until it is let go on.
struct HeldOnce(Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>);

impl Progress for HeldOnce {
    fn phase(&self, name: &str, _: Unit, _: Option<u64>) {
        if name == "files"
            && let Some((reached, go_on)) = self.0.lock().unwrap().take()
        {
            reached.send(()).unwrap();
            go_on.recv_timeout(DEADLINE).unwrap();
        }
    }

    fn advance(&self, _: u64) {}

    fn note(&self, _: &str) {}
}

/// The server would refuse to end such a base backup (`do_pg_backup_stop` in `xlog.c`); it is given up before.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_during_a_base_backup_is_followed_by_another_one() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (primary, mut standby) = pair(installed::default_major()).await;
    standby.allow_in_log("the standby was promoted during online backup");
    standby.allow_in_log("aborting backup due to backend exiting");
    let (reached, at_files) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let held = Arc::new(HeldOnce(Mutex::new(Some((reached, may_go_on)))));
    let stop = CancellationToken::new();
    let protecting = Protecting::watched(site.clone(), options(&standby), held, stop);
    let reached = tokio::task::spawn_blocking(move || at_files.recv_timeout(DEADLINE));
    reached.await.unwrap().unwrap();
    primary.sql("INSERT INTO t VALUES (2)").await;
    standby.wait_replayed(&primary).await;
    standby.promote().await;
    go_on.send(()).unwrap();
    standby.sql("INSERT INTO t VALUES (3)").await;
    wait_branch(&site, &standby, 2).await;
    wait_base_backups(&site, 1).await;
    wait_shipped(&site, &standby).await;
    protecting.end().await;
    let known = state(&site).await.unwrap();
    assert_eq!(known.base_backups[0].branch, Branch(2));
    assert_eq!(restored_ids(&site, Target::Latest).await, "1,2,3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_of_a_standby_without_full_page_images_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let (primary, mut standby) = pair(installed::default_major()).await;
    standby.allow_in_log("full_page_writes=off");
    primary.sql("ALTER SYSTEM SET full_page_writes = off").await;
    primary.sql("SELECT pg_reload_conf()").await;
    primary.sql("INSERT INTO t VALUES (2); CHECKPOINT").await;
    standby.wait_replayed(&primary).await;
    let once = protect::Options {
        once: true,
        ..options(&standby)
    };
    let taken = Protecting::begin(site.clone(), once).task.await.unwrap();
    let error = taken.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains("full_page_writes=off"),
        "{error}"
    );
    assert_eq!(state(&site).await.unwrap().base_backups.len(), 0);
}
