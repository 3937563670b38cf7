//! The commands of `docs/guide.md` and of `docs/runbooks/`, in their order, against real servers.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use borealis_pg_server::instance::binaries::BIN_VARIABLE;
use borealis_testkit::installed::DEBIAN_MAJOR;
use borealis_testkit::program::DEADLINE;
use borealis_testkit::server::{ServerOptions, free_port};
use borealis_testkit::{Protect, Site, TestServer, wait_until};
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

/// The lines of the `sh` blocks, without comments; a line that ends in a backslash goes on in the next.
fn commands(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in page.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            text if inside && !text.is_empty() && !text.starts_with('#') => {
                let text = text
                    .split_once("  # ")
                    .map_or(text, |(text, _)| text.trim());
                open += text.trim_end_matches('\\');
                if !text.ends_with('\\') {
                    commands.push(std::mem::take(&mut open));
                }
            }
            _ => {}
        }
    }
    commands
}

#[test]
fn blocks_are_read_and_others_are_not() {
    let page = "text\n```sh\nborealis a  # first\nborealis b \\\n  --c\n```\n```toml\nx = 1\n```\n";
    assert_eq!(commands(page), ["borealis a", "borealis b --c"]);
}

/// A page of the documents that is being followed.
struct Page {
    commands: Vec<String>,
    environment: BTreeMap<&'static str, String>,
    work: PathBuf,
}

impl Page {
    /// The page `name`, with the variables that every page uses.
    fn open(name: &str, site: &Site, server: &TestServer) -> Self {
        let commands = commands(&std::fs::read_to_string(Path::new(DOCS).join(name)).unwrap());
        assert!(commands.len() >= 5, "{name} lost its commands");
        let work = site.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let path = format!(
            "{}:{}:{}",
            program_folder(site).display(),
            server.binaries().dir.display(),
            std::env::var("PATH").unwrap()
        );
        let environment = BTreeMap::from([
            ("PATH", path),
            (BIN_VARIABLE, server.binaries().dir.display().to_string()),
            ("WORK", work.display().to_string()),
            (
                "BOREALIS_CONFIG",
                site.path().join("config.toml").display().to_string(),
            ),
            (
                "BOREALIS_REPOSITORY",
                site.repository().display().to_string(),
            ),
            ("BOREALIS_KEY_FILE", site.key_file().display().to_string()),
            ("BOREALIS_SOURCE", server.dsn()),
            ("PSQLRC", "/nonexistent".to_owned()),
        ]);
        Self {
            commands,
            environment,
            work,
        }
    }

    fn set(&mut self, name: &'static str, value: &dyn Display) {
        self.environment.insert(name, value.to_string());
    }

    /// Follows the page; `before` sees each command first, and keeps those for itself that it returns true for.
    async fn follow(mut self, mut before: impl AsyncFnMut(&mut Self, &str) -> bool) {
        for command in self.commands.clone() {
            if !before(&mut self, &command).await {
                self.run(&command).await;
            }
        }
    }

    async fn run(&self, command: &str) {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .envs(&self.environment)
            .current_dir(&self.work)
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .unwrap();
        assert!(
            output.status.success(),
            "{command}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The server that the page restored into `name` of the work folder.
    fn restored(&self, name: &str, server: &TestServer) -> TestServer {
        let target = self.work.join(name);
        let log = target.join("borealis_restore.log");
        TestServer::attach(&target, server.binaries().major, &log)
    }
}

/// A folder with nothing but the program, for `PATH`: where the user of a standby can run it.
fn program_folder(site: &Site) -> PathBuf {
    let folder = site.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(PROGRAM, folder.join("borealis")).unwrap();
    folder
}

async fn rows(server: &TestServer, table: &str) -> String {
    let count = format!("SELECT count(*)::text FROM {table}");
    wait_until("the server's answer", DEADLINE, async || {
        Some(server.value(&count).await)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_does_what_it_says() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let site = Site::bare(PROGRAM, &server);
    let mut page = Page::open("guide.md", &site, &server);
    let (port, work) = (free_port(), page.work.clone());
    page.set("RESTORED_PORT", &port);
    page.set("STANDBY_PORT", &free_port());
    let mut protect: Option<Protect> = None;
    page.follow(async |_, command| {
        if command.starts_with("borealis protect") && !command.contains("--once") {
            let arguments: Vec<_> = command.split_whitespace().skip(4).collect();
            assert!(
                command.starts_with("borealis protect --cluster main"),
                "{command}"
            );
            protect = Some(Protect::begin(&site, &arguments).await);
            return true;
        }
        if let Some(running) = &mut protect {
            running.assert_running();
        }
        if command.starts_with("borealis unprotect")
            && let Some(running) = protect.take()
        {
            running.stop().await;
        }
        false
    })
    .await;
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(server.value(slots).await, "0");
    let planned = work.join("planned");
    assert!(!planned.exists(), "--dry-run wrote {}", planned.display());

    let target = work.join("restored");
    let log = target.join("borealis_restore.log");
    let restored = TestServer::attach(&target, server.binaries().major, &log);
    assert_eq!(restored.port(), port);
    assert_eq!(rows(&restored, "t").await, "1");
}

/// What the runbooks' server holds.
const SHOP: &str = "CREATE TABLE customers (id int PRIMARY KEY, name text); \
                    CREATE TABLE orders (id int PRIMARY KEY, customer int, item text); \
                    INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, 100) i; \
                    INSERT INTO orders SELECT i, i % 100 + 1, 'item ' || i FROM generate_series(1, 1000) i; \
                    CREATE INDEX ON orders (customer)";

/// A server with `psql` and `pg_dump`, which only Debian's major comes with.
async fn shop_server() -> TestServer {
    let options = ServerOptions {
        major: DEBIAN_MAJOR,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options).await;
    server.sql(SHOP).await;
    server
}

/// A shop with its repository.
async fn shop() -> (TestServer, Site) {
    let server = shop_server().await;
    let site = Site::init(PROGRAM, &server).await;
    (server, site)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_of_a_disaster_brings_back_what_was_deleted() {
    let (server, site) = shop().await;
    let mut protect = Protect::begin(&site, &[]).await;
    let mut page = Page::open("runbooks/disaster.md", &site, &server);
    page.set("RESTORED_PORT", &free_port());
    page.set("MOMENT", &server.now().await);
    server.sql("DELETE FROM customers WHERE id > 10").await;
    server.sql("DROP TABLE orders").await;
    server
        .sql("INSERT INTO customers VALUES (101, 'a new one')")
        .await;
    site.wait_settled(server.now().await).await;
    let mut restored = None;
    page.follow(async |page, command| {
        protect.assert_running();
        if command.contains("\"$RESTORED\"") && restored.is_none() {
            let before = page.restored("before", &server);
            page.set("RESTORED", &before.dsn());
            restored = Some(before);
        }
        false
    })
    .await;
    assert_eq!(rows(&server, "orders").await, "1000");
    assert_eq!(rows(&server, "customers").await, "101");
    let index = "SELECT count(*)::text FROM pg_indexes WHERE tablename = 'orders'";
    assert_eq!(server.value(index).await, "2");
    drop(restored);
    protect.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_of_a_lost_machine_needs_the_repository_and_the_key_alone() {
    let (mut server, site) = shop().await;
    let protect = Protect::begin(&site, &[]).await;
    server.sql("DELETE FROM orders WHERE id > 900").await;
    site.wait_restorable(server.insert_position().await).await;
    protect.kill().await;
    server.kill();
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    let mut page = Page::open("runbooks/lost-machine.md", &site, &server);
    // The repository and the key are somewhere else now, and nothing is known of the source.
    let moved = site.path().join("elsewhere");
    std::fs::rename(site.repository(), &moved).unwrap();
    page.set("BOREALIS_REPOSITORY", &moved.display());
    page.set("BOREALIS_CONFIG", &"/dev/null");
    page.set("BOREALIS_SOURCE", &"");
    page.set("RECOVERED_PORT", &free_port());
    let mut recovered = None;
    page.follow(async |page, command| {
        if command.contains("\"$RECOVERED\"") && recovered.is_none() {
            let running = page.restored("recovered", &server);
            page.set("RECOVERED", &running.dsn());
            recovered = Some(running);
        }
        false
    })
    .await;
    let recovered = recovered.unwrap();
    assert_eq!(rows(&recovered, "orders").await, "900");
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(recovered.value(slots).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_of_a_full_disk_loses_nothing() {
    let (server, site) = shop().await;
    Protect::begin(&site, &[]).await.stop().await;
    // Nobody ships this, and the slot holds it.
    server.sql("DELETE FROM orders WHERE id > 900").await;
    let page = Page::open("runbooks/full-disk.md", &site, &server);
    let larger = page.work.join("larger");
    page.follow(async |_, _| false).await;
    let status = site
        .json(&["status", "--repository", &larger.display().to_string()])
        .await;
    let windows = status["clusters"][0]["windows"].as_array().unwrap();
    assert_eq!(windows.len(), 1, "the server had all the log: {status:#}");
    assert!(
        status["clusters"][0]["base_backups"].as_u64() >= Some(3),
        "{status:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_of_a_lost_key_goes_on_with_the_second_one_or_a_new_repository() {
    let server = shop_server().await;
    let site = Site::bare(PROGRAM, &server);
    let second = site.path().join("elsewhere.key");
    let second = second.display().to_string();
    site.ok(&["init", "--recipient", &second]).await;
    let keys = site.json(&["key", "list"]).await;
    let lost = keys["recipients"].as_array().unwrap().iter();
    let mut lost = lost.filter(|recipient| recipient["opened_this"] == true);
    let lost = lost.next().unwrap()["key"].as_str().unwrap().to_owned();
    Protect::begin(&site, &[]).await.stop().await;
    std::fs::remove_file(site.key_file()).unwrap();
    let mut page = Page::open("runbooks/lost-key.md", &site, &server);
    page.set("SECOND", &second);
    page.set("LOST", &lost);
    let work = page.work.clone();
    page.follow(async |_, _| false).await;
    for key in ["new.key", "second.key"] {
        let (repository, key) = (work.join("new"), work.join(key));
        let arguments = [
            "--repository",
            repository.to_str().unwrap(),
            "--key-file",
            key.to_str().unwrap(),
        ];
        let status = site.json(&[&["status"], &arguments[..]].concat()).await;
        assert_eq!(
            status["clusters"][0]["windows"].as_array().unwrap().len(),
            1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_of_damage_holds_where_there_is_none() {
    let (server, site) = shop().await;
    Protect::begin(&site, &[]).await.stop().await;
    let page = Page::open("runbooks/damage.md", &site, &server);
    let scratch = page.work.join("scratch");
    page.follow(async |_, _| false).await;
    let kept: Vec<_> = std::fs::read_dir(scratch).unwrap().collect();
    assert_eq!(kept.len(), 1, "what was to be kept: {kept:?}");
    let status = site.status().await.unwrap();
    assert_eq!(status["last_drill"]["result"], "passed", "{status:#}");
}
