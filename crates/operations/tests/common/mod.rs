//! What the tests of this crate share: a repository, a running protect, restores.

#![allow(dead_code)] // each test uses what it needs
#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{
    Branch, ByteLen, NoProgress, Position, Progress, SystemClock, SystemEntropy, Timestamp,
};
use borealis_keys::FileKey;
use borealis_operations::protect::pulse::{NoWatcher, Watcher};
use borealis_operations::protect::schedule::Schedule;
use borealis_operations::protect::slot_policy::Policy;
use borealis_operations::protect::{self, Stopped};
use borealis_operations::restore::{self, Answering, Options, prepare_lineage};
use borealis_operations::{Result, Site};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::Agentless;
use borealis_repository::plan::{LineageState, Target};
use borealis_repository::store::{Absent, FolderStore, Store};
use borealis_repository::{Environment, Repository};
use borealis_testkit::server::{
    DEADLINE, ServerOptions, TestServer, free_port, server_dir, system_user,
};
use borealis_testkit::{installed, wait_until};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub async fn site(directory: &TempDir) -> Site {
    site_on(directory, |store| store).await
}

/// A site whose operations meet the store as `wrap` makes it.
pub async fn site_on(
    directory: &TempDir,
    wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
) -> Site {
    let url = directory.path().join("repository").display().to_string();
    let key_file = directory.path().join("key");
    let key = FileKey::create(&key_file, &SystemEntropy).unwrap();
    let environment = Environment {
        store: wrap(Arc::new(
            FolderStore::open(url.as_ref(), Absent::Create).unwrap(),
        )),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
    };
    let repository = Repository::init(environment, &[&key]).await.unwrap();
    Site {
        repository,
        url,
        key: key_file.into(),
        usage: Arc::default(),
    }
}

/// What the ledger of the cluster adds up to; `None` while it can't be read.
pub async fn state(site: &Site) -> Option<LineageState> {
    let cluster = site.cluster(Some("main")).await.ok()?;
    let lineage = site.lineage(&cluster).await.ok()?;
    lineage.load_state().await.ok()
}

pub fn options(server: &TestServer) -> protect::Options {
    protect::Options {
        info: server.info(),
        cluster: Some("main".to_owned()),
        data_dir: Some(server.data_dir().to_owned()),
        agentless: Agentless::Auto,
        once: false,
        no_slot: false,
        key_patience: protect::KeyPatience::default(),
        flush_interval: Duration::from_millis(200),
        schedule: Schedule {
            every_log: ByteLen(4 << 20),
            every: Duration::from_secs(3600),
        },
        maintain_every: None,
        resumable_every: ByteLen(1 << 30),
        terms: borealis_operations::retention::NewTerms::default(),
        policy: Policy::Primary,
        take_over: false,
        new_lineage: false,
        upkeep: protect::upkeep::UpkeepOptions::default(),
    }
}

pub struct Protecting {
    pub stop: CancellationToken,
    pub task: JoinHandle<Result<Stopped>>,
}

impl Protecting {
    pub fn begin(site: Arc<Site>, options: protect::Options) -> Self {
        Self::watched(
            site,
            options,
            Arc::new(NoProgress),
            CancellationToken::new(),
        )
    }

    /// With a progress that may itself end it by `stop`.
    pub fn watched(
        site: Arc<Site>,
        options: protect::Options,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Self {
        Self::seen(site, options, progress, Arc::new(NoWatcher), stop)
    }

    /// With a watcher, too.
    pub fn seen(
        site: Arc<Site>,
        options: protect::Options,
        progress: Arc<dyn Progress>,
        watcher: Arc<dyn Watcher>,
        stop: CancellationToken,
    ) -> Self {
        let token = stop.clone();
        let task = tokio::spawn(async move {
            protect::protect(&site, &options, progress, watcher, token).await
        });
        Self { stop, task }
    }

    pub async fn end(self) -> Stopped {
        self.stop.cancel();
        self.task.await.unwrap().unwrap()
    }
}

pub async fn base_backups(site: &Site) -> usize {
    state(site)
        .await
        .map_or(0, |state| state.base_backups.len())
}

pub async fn now(server: &TestServer) -> Timestamp {
    let micros = server
        .value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text")
        .await;
    Timestamp(micros.parse().unwrap())
}

/// How far the server's log is durable there.
pub async fn flushed(server: &TestServer) -> Position {
    let text = server
        .value("SELECT pg_current_wal_flush_lsn()::text")
        .await;
    text.parse().unwrap()
}

/// Waits until the log that the server has flushed is in the ledger; returns where it ends.
pub async fn wait_shipped(site: &Site, server: &TestServer) -> Position {
    let at = flushed(server).await;
    wait_until("the log to be shipped", DEADLINE, async || {
        let end = state(site).await?.pieces.last()?.end;
        (end >= at).then_some(())
    })
    .await;
    at
}

pub struct Restored {
    pub server: Answering,
    pub target: PathBuf,
    _directory: TempDir,
}

impl Restored {
    pub async fn value(&self, sql: &str) -> String {
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

pub async fn restore_to(site: &Site, target: Target) -> Result<Restored> {
    restore_lineage(site, None, target).await
}

/// The newest lineage of the cluster.
pub async fn lineage_of(site: &Site) -> String {
    let cluster = site.cluster(Some("main")).await.unwrap();
    cluster.newest_lineage().lineage.to_string()
}

/// Restores in a lineage other than the newest.
pub async fn restore_lineage(
    site: &Site,
    lineage: Option<&str>,
    target: Target,
) -> Result<Restored> {
    let directory = server_dir();
    let target_dir = directory.path().join("restored");
    let prepared =
        prepare_lineage(site, Some("main"), lineage, &target, target_dir.clone()).await?;
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

pub fn copy(from: &std::path::Path, to: &std::path::Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg("--no-target-directory")
        .args([from, to])
        .status();
    assert!(status.unwrap().success());
}

/// A primary with a table and the row 1, and its standby.
pub async fn pair(major: u32) -> (TestServer, TestServer) {
    let mut primary = TestServer::start(ServerOptions {
        major,
        ..ServerOptions::default().with("wal_keep_size", "512MB")
    })
    .await;
    primary.allow_in_log("aborting backup due to backend exiting");
    primary.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    // The log of initdb, which changes every page, is in another segment than what is captured.
    primary.sql("SELECT pg_switch_wal()").await;
    let standby = primary.make_standby().await;
    (primary, standby)
}

/// Both as hosts of one source.
pub fn hosts(servers: &[&TestServer]) -> ConnInfo {
    let mut info = servers[0].info();
    info.hosts = (servers.iter())
        .flat_map(|server| server.info().hosts)
        .collect();
    info
}

pub async fn wait_base_backups(site: &Site, count: usize) {
    wait_until("a base backup", DEADLINE, async || {
        (base_backups(site).await >= count).then_some(())
    })
    .await;
}

/// Waits until the log of `branch` is stored as far as the server has flushed it.
pub async fn wait_branch(site: &Site, server: &TestServer, branch: u32) -> Position {
    let at = flushed(server).await;
    wait_until("the log of the timeline", DEADLINE, async || {
        let state = state(site).await?;
        let pieces = state.pieces.iter();
        let end = pieces
            .filter(|piece| piece.branch == Branch(branch))
            .map(|piece| piece.end);
        (end.max()? >= at).then_some(())
    })
    .await;
    at
}

/// Waits until `moment` is settled.
pub async fn wait_settled(site: &Site, moment: Timestamp) {
    wait_until("the moment to be settled", DEADLINE, async || {
        let state = state(site).await?;
        let pieces = state.pieces.iter().filter_map(|piece| piece.settled_after);
        let settled = state.settled.iter().map(|settled| settled.through);
        (pieces.chain(settled).max()? >= moment).then_some(())
    })
    .await;
}

pub async fn restored_ids(site: &Site, target: Target) -> String {
    ids(&restore_to(site, target).await.unwrap()).await
}

pub async fn ids(restored: &Restored) -> String {
    restored
        .value("SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') FROM t")
        .await
}
