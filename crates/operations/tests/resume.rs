//! Base backups that are killed, and what the next attempt makes of them, on a real server.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod common;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

use borealis_base::{ByteLen, ErrorKind, NoProgress, Progress, Unit};
use borealis_operations::protect::{self, Stopped};
use borealis_operations::restore::prepare;
use borealis_operations::restore::start::LOG_FILE;
use borealis_operations::{Result, Site};
use borealis_repository::layout;
use borealis_repository::plan::{LineageState, Target};
use borealis_repository::verify::{Report, verify_lineage};
use borealis_testkit::installed::DEBIAN_MAJOR;
use borealis_testkit::server::{DEADLINE, ServerOptions, TestServer};
use borealis_testkit::{oracle, wait_until};
use tokio_util::sync::CancellationToken;

use common::{Protecting, options, restore_to, site};

const MIB: u64 = 1 << 20;

/// What a watched base backup has said.
#[derive(Debug, Default, Clone)]
struct Said {
    /// Bytes of pages that each attempt was to read.
    planned: Vec<u64>,
    /// Bytes of pages that were read.
    read: u64,
    reading: bool,
    notes: Vec<String>,
}

impl Said {
    /// Of the last resumption: pages already stored, and all pages.
    fn resumed(&self) -> Option<(u64, u64)> {
        let note = self
            .notes
            .iter()
            .rfind(|note| note.starts_with("resuming"))?;
        let mut words = note.split(' ').rev();
        let words: Vec<&str> = words.by_ref().take(6).collect();
        match words[..] {
            // Backwards: "N of M pages already stored".
            ["stored", "already", "pages", all, "of", stored] => {
                Some((stored.parse().unwrap(), all.parse().unwrap()))
            }
            _ => panic!("{note}"),
        }
    }
}

/// Watches a base backup; ends it when so many bytes of pages have been read, or lets a test act each
/// time that its pages are all read.
struct Watch {
    said: Mutex<Said>,
    stop: CancellationToken,
    kill_after: Option<u64>,
    pages_read: Option<Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

impl Watch {
    fn new(kill_after: Option<u64>) -> Self {
        Self {
            said: Mutex::default(),
            stop: CancellationToken::new(),
            kill_after,
            pages_read: None,
        }
    }
}

impl Progress for Watch {
    fn phase(&self, name: &str, _: Unit, total: Option<u64>) {
        let mut said = self.said.lock().unwrap();
        said.reading = name == "pages";
        if said.reading {
            said.planned.extend(total);
        }
        drop(said);
        if let (Some(both), "files") = (&self.pages_read, name) {
            let (reached, go_on) = &*both.lock().unwrap();
            reached.send(()).unwrap();
            go_on.recv_timeout(DEADLINE).unwrap();
        }
    }

    fn advance(&self, amount: u64) {
        let mut said = self.said.lock().unwrap();
        if said.reading {
            said.read += amount;
            if self.kill_after.is_some_and(|bytes| said.read >= bytes) {
                self.stop.cancel();
            }
        }
    }

    fn note(&self, text: &str) {
        self.said.lock().unwrap().notes.push(text.to_owned());
    }
}

fn once(server: &TestServer) -> protect::Options {
    protect::Options {
        once: true,
        // One that failed, unlike one that was ended, does not say that it has stopped.
        take_over: true,
        maintain_every: None,
        resumable_every: ByteLen(64 << 10),
        ..options(server)
    }
}

async fn run(site: &Arc<Site>, server: &TestServer, watch: &Arc<Watch>) -> Result<Stopped> {
    let stop = watch.stop.clone();
    Protecting::watched(site.clone(), once(server), watch.clone(), stop)
        .task
        .await
        .unwrap()
}

/// An attempt that is ended when it has read so many bytes of pages.
async fn killed(site: &Arc<Site>, server: &TestServer, bytes: u64) -> Said {
    let watch = Arc::new(Watch::new(Some(bytes)));
    run(site, server, &watch).await.unwrap();
    let said = watch.said.lock().unwrap().clone();
    assert!(
        said.read >= bytes && said.read < said.planned[0],
        "{said:?}"
    );
    said
}

async fn finished(site: &Arc<Site>, server: &TestServer) -> Said {
    let watch = Arc::new(Watch::new(None));
    run(site, server, &watch).await.unwrap();
    watch.said.lock().unwrap().clone()
}

async fn state(site: &Site) -> LineageState {
    let cluster = site.cluster(Some("main")).await.unwrap();
    let lineage = site.lineage(&cluster).await.unwrap();
    lineage.load_state().await.unwrap()
}

async fn verified(site: &Site) -> Report {
    let cluster = site.cluster(Some("main")).await.unwrap();
    let lineage = site.lineage(&cluster).await.unwrap();
    verify_lineage(&lineage, true, &NoProgress).await.unwrap()
}

/// Nothing half-done looks done: there is a partial base backup and nothing can be restored from it.
async fn assert_not_restorable(site: &Site) {
    let state = state(site).await;
    assert!(state.partial.is_some() && state.base_backups.is_empty());
    let target = PathBuf::from("/nonexistent/target");
    let Err(error) = prepare(site, Some("main"), &Target::Latest, target).await else {
        panic!("a restore was planned");
    };
    assert!(
        matches!(error.kind(), ErrorKind::Refused | ErrorKind::NotFound),
        "{error}"
    );
    let report = verified(site).await;
    assert!(report.is_sound(), "{:?}", report.findings);
}

/// Restores to the end, and compares with the server in every way there is.
async fn assert_restores_the_same(site: &Site, server: &TestServer) {
    let report = verified(site).await;
    assert!(report.is_sound(), "{:?}", report.findings);
    let restored = restore_to(site, Target::Latest).await.unwrap();
    let log = restored.target.join(LOG_FILE);
    let view = TestServer::attach(&restored.target, server.binaries().major, &log);
    assert_eq!(oracle::digest(&view).await, oracle::digest(server).await);
    assert_eq!(oracle::amcheck_all(&view).await, Vec::<String>::new());
    assert_eq!(oracle::visibility_check(&view).await, Vec::<String>::new());
}

async fn server() -> TestServer {
    let mut server = TestServer::start(ServerOptions::default().with("autovacuum", "off")).await;
    server.allow_in_log("aborting backup due to backend exiting");
    server
}

/// Close to a kilobyte that no compression makes small: attempts are stored by what they write.
const PAYLOAD: &str =
    "(SELECT string_agg(md5(i::text || j::text), '') FROM generate_series(1, 30) j)";

/// A table that is read early, one in the middle of which an attempt is killed, and one after it.
async fn fill(server: &TestServer) {
    for (table, rows) in [
        ("early", 1_500),
        ("gone", 500),
        ("big", 12_000),
        ("late", 1_500),
    ] {
        server
            .sql(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, payload text); \
                 INSERT INTO {table} SELECT i, {PAYLOAD} FROM generate_series(1, {rows}) i"
            ))
            .await;
        server.sql(&format!("VACUUM (FREEZE) {table}")).await;
    }
}

/// Everything that makes a page of then not a page of now.
async fn change(server: &TestServer, round: u32) {
    // Scattered rows, which clears bits of the visibility map.
    server
        .sql(&format!(
            "UPDATE big SET payload = 'round {round}' WHERE id % 500 = {round}"
        ))
        .await;
    // Truncated, then grown again over the same blocks.
    for table in ["early", "late"] {
        server
            .sql(&format!("DELETE FROM {table} WHERE id > 1000"))
            .await;
        server.sql(&format!("VACUUM {table}")).await;
        server
            .sql(&format!(
                "INSERT INTO {table} SELECT i, repeat('{round}', 700) FROM generate_series(1001, 2000) i"
            ))
            .await;
    }
    server.sql("DROP TABLE gone").await;
    server
        .sql("CREATE TABLE gone AS SELECT i AS id FROM generate_series(1, 5000) i")
        .await;
    // Both ways to make a database.
    server.sql("DROP DATABASE IF EXISTS copied").await;
    server
        .sql(&format!(
            "CREATE DATABASE copied {}",
            server.strategy("FILE_COPY")
        ))
        .await;
    let session = server.session("copied").await;
    session
        .run("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i")
        .await
        .unwrap();
    drop(session);
    if round == 1 {
        let how = server.strategy("WAL_LOG");
        server.sql(&format!("CREATE DATABASE logged {how}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_killed_three_times_is_the_same_as_one_that_was_not() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = server().await;
    fill(&server).await;

    // The databases that `initdb` makes come first; this is in the middle of `big`.
    let first = killed(&site, &server, 30 * MIB).await;
    assert_eq!(first.resumed(), None);
    assert_not_restorable(&site).await;
    let mut stored = 0;
    for round in 1..3 {
        change(&server, round).await;
        let again = killed(&site, &server, 3 * MIB).await;
        let (pages, _) = again.resumed().expect("it resumes");
        assert!(
            pages * 8192 > first.read * 3 / 4,
            "round {round}: {pages} pages taken over of {first:?}"
        );
        assert_not_restorable(&site).await;
        stored = state(&site).await.partial.unwrap().stored_pages;
    }
    change(&server, 3).await;
    let last = finished(&site, &server).await;
    let (pages, _) = last.resumed().expect("it resumes");
    assert!(pages <= stored);
    assert!(
        pages * 8192 > first.read * 3 / 4,
        "{pages} pages taken over"
    );
    let known = state(&site).await;
    assert_eq!(known.base_backups.len(), 1);
    assert_eq!(known.partial, None, "it counts for nothing any more");
    assert_restores_the_same(&site, &server).await;

    // The same for one that reads only what has changed since that one.
    server
        .sql("UPDATE big SET payload = (SELECT string_agg(md5(id::text || '-' || j::text), '') FROM generate_series(1, 30) j) WHERE id < 4000")
        .await;
    // Else whoever reads a page next prunes it, which changes it.
    server.sql("VACUUM big").await;
    let again = killed(&site, &server, 4 * MIB).await;
    assert_eq!(
        again.resumed(),
        None,
        "there is a base backup after the attempts"
    );
    let since: u64 = again.planned.iter().sum();
    server
        .sql("UPDATE big SET payload = 'last' WHERE id % 4000 = 7")
        .await;
    let last = finished(&site, &server).await;
    // How many are spared depends on the log piece that holds the attempt's start: it counts whole, with
    // what it says of the time before.
    assert!(last.resumed().is_some(), "{last:?}");
    assert!(last.planned[0] < since, "{last:?} after {again:?}");
    assert_eq!(state(&site).await.base_backups.len(), 2);
    assert_restores_the_same(&site, &server).await;
}

/// `pg_checksums` writes into every page of a stopped server and logs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_over_from_an_attempt_before_pg_checksums() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    // Only Debian's servers come with the program.
    let mut server = TestServer::start(ServerOptions {
        major: DEBIAN_MAJOR,
        checksums: false,
        ..ServerOptions::default()
    })
    .await;
    server.allow_in_log("aborting backup due to backend exiting");
    server
        .sql("CREATE TABLE t AS SELECT i AS id, repeat('x', 100) AS payload FROM generate_series(1, 5000) i")
        .await;
    let first = killed(&site, &server, 10 * MIB).await;
    assert!(state(&site).await.partial.is_some());
    server.stop().await;
    let data_dir = server.data_dir().display().to_string();
    server.run_program("pg_checksums", &["--enable", "-D", &data_dir]);
    server.start_again().await;
    let second = finished(&site, &server).await;
    assert_eq!(second.resumed(), None);
    assert!(second.planned[0] >= first.planned[0], "{second:?}");
    let restored = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(restored.value("SHOW data_checksums").await, "on");
    assert_eq!(restored.value("SELECT count(*)::text FROM t").await, "5000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_attempt_is_passed_over_and_its_pages_are_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = server().await;
    server.sql("CREATE TABLE t AS SELECT 7 AS id").await;
    let first = killed(&site, &server, 10 * MIB).await;
    let manifest = state(&site).await.partial.unwrap().manifest;
    let name = layout::manifest(manifest.lineage, manifest.object);
    let path = directory.path().join("repository").join(&name);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let report = verified(&site).await;
    assert!(
        report.findings.iter().any(|found| found.object == name),
        "{report:?}"
    );
    let second = finished(&site, &server).await;
    assert_eq!(second.resumed(), None);
    assert!(second.planned[0] >= first.planned[0], "{second:?}");
    let restored = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(restored.value("SELECT id::text FROM t").await, "7");
}

/// While a base backup runs, a database is made by copying a template, and the template changes.
/// Returns how often that was done, with what came of it.
async fn with_copies(
    site: &Arc<Site>,
    server: &TestServer,
    times: u32,
) -> (u32, Said, Result<Stopped>) {
    let (reached, reached_here) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel();
    let watch = Arc::new(Watch {
        pages_read: Some(Mutex::new((reached, gone_on))),
        ..Watch::new(None)
    });
    let stop = watch.stop.clone();
    let mut protecting = Protecting::watched(site.clone(), once(server), watch.clone(), stop);
    let mut count = 0;
    let ended = loop {
        let next = wait_until("the pages to be read", DEADLINE, async || {
            if protecting.task.is_finished() {
                return Some(false);
            }
            reached_here.try_recv().ok().map(|()| true)
        });
        if !next.await {
            break (&mut protecting.task).await.unwrap();
        }
        count += 1;
        if count <= times {
            server
                .sql(&format!(
                    "CREATE DATABASE copy{count} TEMPLATE template {}",
                    server.strategy("FILE_COPY")
                ))
                .await;
            let session = server.session("template").await;
            session
                .run(&format!(
                    "INSERT INTO t SELECT {count} FROM generate_series(1, 1000)"
                ))
                .await
                .unwrap();
            // As the checkpointer does at any time: the copy that replay makes would have the rows.
            server.sql("CHECKPOINT").await;
        }
        go_on.send(()).unwrap();
    };
    let said = watch.said.lock().unwrap().clone();
    (count, said, ended)
}

async fn with_template(server: &TestServer) {
    server.sql("CREATE DATABASE template").await;
    let session = server.session("template").await;
    session.run("CREATE TABLE t (id int)").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_around_a_copied_template_that_changed_is_taken_again() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = server().await;
    with_template(&server).await;
    let (attempts, said, ended) = with_copies(&site, &server, 1).await;
    ended.unwrap();
    assert_eq!(attempts, 2, "{said:?}");
    let (stored, all) = said.resumed().expect("what was read is not read again");
    assert!(stored > all / 2, "{stored} of {all}");
    assert_eq!(state(&site).await.base_backups.len(), 1);
    assert_restores_the_same(&site, &server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_that_is_never_safe_is_never_entered() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = server().await;
    with_template(&server).await;
    let (attempts, _, ended) = with_copies(&site, &server, 10).await;
    let error = ended.unwrap_err();
    assert_eq!((attempts, error.kind()), (3, ErrorKind::Refused), "{error}");
    assert!(error.to_string().contains("3 times in a row"), "{error}");
    assert_not_restorable(&site).await;
    // Once there is quiet, little is left to do.
    let said = finished(&site, &server).await;
    assert!(said.planned[0] < 10 * MIB, "{said:?}");
    assert_restores_the_same(&site, &server).await;
}

/// Log waits for the flush interval so that few pieces are made; a base backup does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_does_not_wait_for_the_flush_interval() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let server = server().await;
    let slow = protect::Options {
        flush_interval: DEADLINE * 60,
        ..once(&server)
    };
    let protecting = Protecting::begin(site.clone(), slow);
    let stopped = tokio::time::timeout(DEADLINE, protecting.task).await;
    stopped.expect("it does not wait").unwrap().unwrap();
    assert_eq!(state(&site).await.base_backups.len(), 1);
}

/// A person, or a tool that ends what runs long, cancels the statement that waits for the checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_backup_that_is_cancelled_on_the_server_is_an_error_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let site = Arc::new(site(&directory).await);
    let mut server = server().await;
    server.allow_in_log("canceling statement due to user request");
    let checkpointer = server
        .value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        .await;
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill")
            .args([name, &checkpointer])
            .status();
        assert!(sent.unwrap().success());
    };
    // Else the start of a backup is over before it can be cancelled.
    signal("-STOP");
    let protecting = Protecting::begin(site.clone(), once(&server));
    let cancel = "SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity \
         WHERE query ~ 'pg_(backup_start|start_backup)\\(' AND state = 'active' AND pid <> pg_backend_pid()";
    wait_until("the start of the backup", DEADLINE, async || {
        (server.value(cancel).await == "1").then_some(())
    })
    .await;
    signal("-CONT");
    let ended = tokio::time::timeout(DEADLINE, protecting.task).await;
    let error = ended.expect("it ends").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("canceling statement"), "{error}");
    // Nothing is in the way of the next one.
    let said = finished(&site, &server).await;
    assert!(said.read > 0, "{said:?}");
}
