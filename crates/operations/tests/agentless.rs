//! Base backups through SQL and from the disk of the same server, compared.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use borealis_operations::base_backup::facts::ServerState;
use borealis_operations::protect::{self, Stopped};
use borealis_operations::{Result, Site};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::Agentless;
use borealis_repository::Error as RepositoryError;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{Manifest, PageFile};
use borealis_repository::pages::pack::sha256;
use borealis_repository::pages::read::{PageReader, PageSink};
use borealis_testkit::TestServer;
use borealis_testkit::server::ServerOptions;
use bytes::Bytes;

use common::{Protecting, options, site};

/// The rights that `check` asks for, and no others.
const GRANTS: &str = "CREATE ROLE backup LOGIN REPLICATION; GRANT pg_read_all_settings TO backup; \
     GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), \
     pg_read_binary_file(text,bigint,bigint,boolean), pg_ls_dir(text,boolean,boolean), \
     pg_stat_file(text,boolean) TO backup;";

fn backup_functions(server: &TestServer) -> &'static str {
    match server.binaries().major {
        14 => {
            "GRANT EXECUTE ON FUNCTION pg_start_backup(text,boolean,boolean), pg_stop_backup(boolean,boolean) TO backup"
        }
        _ => {
            "GRANT EXECUTE ON FUNCTION pg_backup_start(text,boolean), pg_backup_stop(boolean) TO backup"
        }
    }
}

/// As the role of the backup, through SQL or from the disk.
fn once(server: &TestServer, agentless: Agentless) -> protect::Options {
    let info = ConnInfo {
        user: "backup".to_owned(),
        ..server.info()
    };
    protect::Options {
        info,
        once: true,
        data_dir: None,
        agentless,
        ..options(server)
    }
}

async fn take(site: &Arc<Site>, options: protect::Options) -> Result<Stopped> {
    Protecting::begin(site.clone(), options).task.await.unwrap()
}

/// A digest of each page, by file and number.
#[derive(Default)]
struct Pages(Mutex<BTreeMap<(String, u32), [u8; 32]>>);

impl PageSink for Pages {
    type Error = RepositoryError;

    fn pages(
        &self,
        file: &PageFile,
        pages: &[(u32, Bytes)],
    ) -> std::result::Result<(), Self::Error> {
        let mut all = self.0.lock().unwrap();
        for (page, bytes) in pages {
            all.insert((file.name.clone(), *page), sha256(bytes));
        }
        Ok(())
    }

    fn zeros(
        &self,
        file: &PageFile,
        first: u32,
        count: u32,
    ) -> std::result::Result<(), Self::Error> {
        let zeros = sha256(&Bytes::from(vec![0; file.page_size as usize]));
        let mut all = self.0.lock().unwrap();
        for page in first..first + count {
            all.insert((file.name.clone(), page), zeros);
        }
        Ok(())
    }
}

/// Everything that a base backup says, but for what belongs to its moment.
#[derive(Debug, PartialEq)]
struct Said {
    files: BTreeMap<String, (u32, u32, u32)>,
    pages: BTreeMap<(String, u32), [u8; 32]>,
    blobs: BTreeMap<String, (u32, u64, [u8; 32])>,
    directories: BTreeMap<String, u32>,
    links: BTreeMap<String, String>,
    state: serde_json::Value,
}

impl Said {
    /// Of the last base backup.
    async fn of(site: &Site) -> (Self, u64) {
        let cluster = site.cluster(Some("main")).await.unwrap();
        let lineage = site.lineage(&cluster).await.unwrap();
        let state = lineage.load_state().await.unwrap();
        let last = state.base_backups.last().unwrap();
        let fetcher = Arc::new(Fetcher::of(&lineage));
        let manifest = Arc::new(Manifest::load(&fetcher, &last.manifest).await.unwrap());
        let pages = Arc::new(Pages::default());
        let reader = Arc::new(PageReader::new(fetcher, manifest.clone()));
        reader
            .restore_pages(pages.clone(), 2, &borealis_base::NoProgress)
            .await
            .unwrap();
        let table = manifest.files();
        let engine = ServerState::decode("test", &manifest.info().engine).unwrap();
        let mut state: serde_json::Value = serde_json::to_value(&engine).unwrap();
        // Of the machine, SQL tells less; the sessions are others.
        let fields = state.as_object_mut().unwrap();
        assert_eq!(
            fields.remove("host").unwrap()["architecture"],
            std::env::consts::ARCH
        );
        fields.remove("agentless");
        let settings = fields["settings"].as_object_mut().unwrap();
        settings.retain(|_, setting| {
            let source = setting["source"].as_str().unwrap();
            !["session", "client"].contains(&source)
        });
        let pages = std::mem::take(&mut *pages.0.lock().unwrap());
        let said = Self {
            files: (table.page_files.values())
                .map(|file| (file.name.clone(), (file.page_size, file.length, file.mode)))
                .collect(),
            pages,
            blobs: (table.blobs.iter())
                // Each has its own start, stop and checkpoint.
                .filter(|blob| !["backup_label", "global/pg_control"].contains(&blob.name.as_str()))
                .map(|blob| (blob.name.clone(), (blob.mode, blob.len, blob.sha256)))
                .collect(),
            directories: (table.directories.iter())
                .map(|directory| (directory.name.clone(), directory.mode))
                .collect(),
            links: (table.links.iter())
                .map(|link| (link.name.clone(), link.target.clone()))
                .collect(),
            state,
        };
        (said, last.new_bytes)
    }
}

/// What differs, without a page of hashes.
fn assert_same(local: &Said, agentless: &Said, what: &str) {
    assert_eq!(local.files, agentless.files, "{what}");
    assert_eq!(local.directories, agentless.directories, "{what}");
    assert_eq!(local.links, agentless.links, "{what}");
    assert_eq!(local.state, agentless.state, "{what}");
    let names = |said: &Said| said.blobs.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(local), names(agentless), "{what}");
    for (name, blob) in &local.blobs {
        assert!(agentless.blobs[name] == *blob, "{what}: {name}");
    }
    assert_eq!(local.pages.len(), agentless.pages.len(), "{what}");
    for (page, digest) in &local.pages {
        assert!(agentless.pages[page] == *digest, "{what}: {page:?}");
    }
}

/// Whatever a later look at rows or catalogs would note on their pages is noted now.
async fn quiesce(server: &TestServer) {
    for database in ["postgres", "template1"] {
        let session = server.session(database).await;
        session.run("VACUUM (FREEZE)").await.unwrap();
    }
    server.sql("CHECKPOINT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_and_agentless_base_backups_of_a_quiet_server_are_the_same() {
    let options = ServerOptions::default()
        .with("autovacuum", "off")
        .with("max_wal_senders", "20");
    let server = TestServer::start(options).await;
    let space = server.scratch("space");
    server.sql(GRANTS).await;
    server.sql(backup_functions(&server)).await;
    server
        .sql(&format!(
            "CREATE TABLESPACE extra LOCATION '{}'",
            space.display()
        ))
        .await;
    // Configuration outside the data directory, which the role may read for the comparison.
    let conf = server.scratch("conf").join("more.conf");
    std::fs::write(&conf, "work_mem = '5MB'\n").unwrap();
    let main = server.data_dir().join("postgresql.conf");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, format!("{text}include '{}'\n", conf.display())).unwrap();
    server
        .sql(
            "GRANT pg_read_server_files TO backup; \
             CREATE TABLE kept AS SELECT i AS id, md5(i::text) AS payload FROM generate_series(1, 60000) i; \
             CREATE INDEX ON kept (payload); \
             CREATE TABLE placed (id int, payload text) TABLESPACE extra; \
             INSERT INTO placed SELECT i, md5(i::text) FROM generate_series(1, 20000) i; \
             CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 10000) AS id; \
             CREATE TABLE gone AS SELECT generate_series(1, 10000) AS id; \
             CREATE TABLE cut AS SELECT generate_series(1, 50000) AS id",
        )
        .await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let local = Arc::new(site(&folders[0]).await);
    let agentless = Arc::new(site(&folders[1]).await);
    let both = async |what: &str| {
        quiesce(&server).await;
        take(&local, once(&server, Agentless::Never)).await.unwrap();
        take(&agentless, once(&server, Agentless::Always))
            .await
            .unwrap();
        let (here, new_here) = Said::of(&local).await;
        let (there, new_there) = Said::of(&agentless).await;
        assert_same(&here, &there, what);
        (here, new_here, new_there)
    };
    let (full, ..) = both("full").await;
    assert!(full.links.len() == 1 && !full.pages.is_empty());
    assert!(full.state["config"]["files"].as_array().unwrap().len() == 5);

    server
        .sql(
            "UPDATE kept SET payload = 'changed' WHERE id % 20000 = 0; \
             INSERT INTO placed VALUES (0, 'new'); DROP TABLE gone; DELETE FROM cut WHERE id > 10; \
             CREATE TABLE fresh TABLESPACE extra AS SELECT generate_series(1, 1000) AS id; \
             INSERT INTO scratch VALUES (0)",
        )
        .await;
    server.sql("VACUUM (TRUNCATE, FREEZE) cut").await;
    let (incremental, new_local, new_agentless) = both("incremental").await;
    assert!(incremental.pages != full.pages);
    let pages = incremental.pages.len() as u64;
    for new in [new_local, new_agentless] {
        assert!(new < pages * 8192 / 20, "{new} new bytes for {pages} pages");
    }
}
