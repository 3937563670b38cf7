//! The path through this crate on a real server, without the command line: protect, work, restore to
//! a moment, a position and the end, compare.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ByteLen, NoProgress, SystemClock, SystemEntropy, Timestamp};
use borealis_keys::FileKey;
use borealis_operations::protect::schedule::Schedule;
use borealis_operations::protect::slot_policy::Policy;
use borealis_operations::protect::{self, Stopped};
use borealis_operations::restore::{self, Answering, Options, prepare};
use borealis_operations::{Result, Site};
use borealis_repository::plan::Target;
use borealis_repository::store::{Absent, open};
use borealis_repository::{Environment, Repository};
use borealis_testkit::server::{DEADLINE, ServerOptions, TestServer, server_dir, system_user};
use borealis_testkit::{installed, wait_until};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

async fn site(directory: &TempDir) -> Site {
    let url = directory.path().join("repository").display().to_string();
    let key_file = directory.path().join("key");
    let key = FileKey::create(&key_file, &SystemEntropy).unwrap();
    let environment = Environment {
        store: open(&url, Absent::Create).unwrap(),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
    };
    Repository::init(environment, &[&key]).await.unwrap();
    Site::open(
        &url,
        key_file,
        Arc::new(SystemClock),
        Arc::new(SystemEntropy),
    )
    .await
    .unwrap()
}

fn options(server: &TestServer) -> protect::Options {
    protect::Options {
        info: server.info(),
        cluster: Some("main".to_owned()),
        data_dir: Some(server.data_dir().to_owned()),
        once: false,
        no_slot: false,
        flush_interval: Duration::from_millis(200),
        schedule: Schedule {
            every_log: ByteLen(4 << 20),
            every: Duration::from_secs(3600),
        },
        policy: Policy::Primary,
        take_over: false,
    }
}

struct Protecting {
    stop: CancellationToken,
    task: JoinHandle<Result<Stopped>>,
}

impl Protecting {
    fn begin(site: Arc<Site>, options: protect::Options) -> Self {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let runtime = tokio::runtime::Handle::current();
        let task = tokio::task::spawn_blocking(move || {
            runtime.block_on(protect::protect(
                &site,
                &options,
                Arc::new(NoProgress),
                token,
            ))
        });
        Self { stop, task }
    }

    async fn end(self) -> Stopped {
        self.stop.cancel();
        self.task.await.unwrap().unwrap()
    }
}

async fn base_backups(site: &Site) -> usize {
    let Ok(cluster) = site.cluster(Some("main")).await else {
        return 0;
    };
    site.lineage(&cluster)
        .await
        .unwrap()
        .load_state()
        .await
        .unwrap()
        .base_backups
        .len()
}

async fn now(server: &TestServer) -> Timestamp {
    let micros = server
        .value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text")
        .await;
    Timestamp(micros.parse().unwrap())
}

struct Restored {
    server: Answering,
    target: PathBuf,
    _directory: TempDir,
}

impl Restored {
    async fn value(&self, sql: &str) -> String {
        let superuser = borealis_testkit::server::SUPERUSER;
        let info = borealis_pg_server::conninfo::ConnInfo::from_process(&format!(
            "host={} port={} user={superuser} dbname=postgres",
            self.server.socket_directory.display(),
            self.server.port
        ))
        .unwrap();
        let link = borealis_pg_server::link::SqlLink::connect(&info)
            .await
            .unwrap();
        // Links look up nothing but the catalog by default.
        link.run("SET search_path = public").await.unwrap();
        link.value(sql).await.unwrap()
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let log = self.target.join(restore::start::LOG_FILE);
        if let Ok(mut instance) = borealis_pg_server::instance::Instance::attach(&self.target, &log)
        {
            let _ = instance.kill();
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

async fn restore_to(site: &Site, target: Target) -> Result<Restored> {
    let directory = server_dir();
    let target_dir = directory.path().join("restored");
    let prepared = prepare(site, Some("main"), &target, target_dir.clone()).await?;
    let options = Options {
        start: true,
        port: Some(free_port()),
        owner: system_user().map(|user| user.name),
        programs: Some(installed::binaries(prepared.server_major()).dir),
        ..Options::default()
    };
    let restored = restore::restore(site, prepared, &options, &NoProgress).await?;
    let server = restored.server.expect("it was to be started");
    Ok(Restored {
        server,
        target: target_dir,
        _directory: directory,
    })
}

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
async fn history_that_was_rewritten_on_the_server_is_refused() {
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
    let error = run(&server).await.unwrap_err();
    assert_eq!(error.kind(), borealis_base::ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("older state"), "{error}");
    let restored = restore_to(&site, Target::Latest).await.unwrap();
    assert_eq!(
        restored
            .value("SELECT count(*)::text FROM t WHERE id = 1")
            .await,
        "1000"
    );
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg("--no-target-directory")
        .args([from, to])
        .status();
    assert!(status.unwrap().success());
}
