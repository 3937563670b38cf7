//! What goes wrong once a server and a repository with backups are there: each option wrong, empty,
//! contradictory or of another cluster. `usage.rs` has what is refused before either is reached.
//!
//! Every row of the table is run: one message that names the object, the documented exit code, and
//! nothing written anywhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use borealis_testkit::program::CLUSTER;
use borealis_testkit::{Answer, Protect, ServerOptions, Site, TestServer};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;
const UNREACHABLE: i32 = 5;
const LOG_UNKNOWN: i32 = 200;

/// Arguments, the exit code, and words of the message: the object, and what to do where that is not plain
/// from it. The tables below are laid out by row, for reading. Of the arguments, `{…}` stands for what the test has made; see [`Scene::filled_in`].
type Row = (&'static [&'static str], i32, &'static [&'static str]);

#[rustfmt::skip]
const INIT: &[Row] = &[
    (&["init"], REFUSED, &["a repository exists at", "name another place"]),
    (&["init", "--repository", "{key}"], USAGE, &["it is not a folder", "Name a folder"]),
    (&["init", "--repository", "ftp://x"], USAGE, &["scheme `ftp`", "Name a folder"]),
    (&["init", "--repository", "file://host/x"], USAGE, &["file:///path"]),
    (&["init", "--repository", "{new}", "--key-file", ""], USAGE, &["--key-file"]),
    (&["init", "--repository", "{new}", "--key-file", "{site}"], USAGE, &["is not a Borealis key file", "--key-file"]),
    (&["init", "--repository", "{new}", "--key-file", "{new}/x/k"], NOT_FOUND, &["write key file", "Make its folder first"]),
    (&["init", "--repository", "{new}", "--key-file", "{key}/k"], REFUSED, &["borealis.key/k", "folder"]),
    (&["init", "--repository", "{new}", "--recipient", ""], USAGE, &["--recipient"]),
    (&["init", "--repository", "{new}", "--recipient", "{key}"], USAGE, &["--recipient names the same file"]),
    (&["init", "--repository", "{new}", "--recipient", "{site}"], USAGE, &["is not a Borealis key file"]),
];

#[rustfmt::skip]
const REPOSITORY_AND_KEY: &[Row] = &[
    (&["status", "--repository", "{new}"], NOT_FOUND, &["open repository", "borealis init"]),
    (&["status", "--repository", "{data}"], NOT_FOUND, &["a repository at", "does not exist"]),
    (&["status", "--key-file", "{new}"], NOT_FOUND, &["read key file", "bring it back from the copy"]),
    (&["status", "--key-file", "{site}"], USAGE, &["is not a Borealis key file"]),
    (&["status", "--key-file", "{other key}"], REFUSED, &["is sealed for key", "Name the key file that holds"]),
    (&["protect", "--key-file", "{other key}"], REFUSED, &["is sealed for key", "Name the key file that holds"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--key-file", "{other key}"], REFUSED, &["is sealed for key"]),
    (&["status", "--config", ""], USAGE, &["--config"]),
    (&["status", "--config", "{new}"], USAGE, &["configuration file", "does not exist"]),
    (&["status", "--config", "{site}"], USAGE, &["read configuration file"]),
    (&["status", "--config", "{key}"], USAGE, &["configuration file", "It takes repository, key_file and source"]),
    (&["status", "--cluster", "none"], NOT_FOUND, &["cluster `none` does not exist"]),
    (&["status", "--cluster", ""], USAGE, &["is not a cluster name"]),
    (&["status", "--fail-if-lag", ""], USAGE, &["--fail-if-lag", "for example"]),
    (&["verify", "--cluster", "none"], NOT_FOUND, &["cluster `none` does not exist"]),
    (&["verify", "--deep=yes"], USAGE, &["--deep"]),
    (&["inspect", ""], NOT_FOUND, &["object `` does not exist", "Name it as it lies"]),
    (&["inspect", "{site}"], NOT_FOUND, &["does not exist"]),
    (&["inspect", "../borealis.key"], NOT_FOUND, &["does not exist"]),
];

#[rustfmt::skip]
const SOURCE: &[Row] = &[
    (&["check", "--source", "{nobody}"], REFUSED, &["role \"nobody\" does not exist"]),
    (&["check", "--source", "{no database}"], NOT_FOUND, &["database \"none\" does not exist"]),
    (&["check", "--source", "host=/x port=y"], USAGE, &["`port` must be a number"]),
    (&["check", "--source", "service=none"], USAGE, &["service `none` not found"]),
    (&["check", "--source", "host=nonexistent.invalid user=x"], UNREACHABLE, &["connect to nonexistent.invalid"]),
    (&["check", "--data-dir", ""], USAGE, &["--data-dir"]),
    (&["check", "extra"], USAGE, &["extra"]),
    (&["protect", "--source", "{other}"], REFUSED, &["cluster main is another server", "--cluster"]),
    (&["protect", "--source", "{other}", "--cluster", "new", "--data-dir", "{data}"], REFUSED, &["data directory: holds cluster"]),
    (&["protect", "--data-dir", "{other data}"], REFUSED, &["data directory: holds cluster", "borealis check"]),
    (&["protect", "--data-dir", "{new}"], REFUSED, &["is not a data directory that can be read here", "--data-dir"]),
    (&["protect", "--data-dir", ""], USAGE, &["--data-dir"]),
    (&["protect", "--cluster", ""], USAGE, &["is not a cluster name"]),
    (&["protect", "--flush-interval", "2h"], USAGE, &["--flush-interval", "name a shorter one"]),
    (&["protect", "--flush-interval", "9999999999d"], USAGE, &["--flush-interval"]),
    (&["protect", "--protect", ""], USAGE, &["primary, continuity"]),
    (&["protect", "--once=1"], USAGE, &["--once"]),
    (&["protect", "--no-slot"], USAGE, &["--once"]),
    (&["unprotect", "--cluster", "none"], NOT_FOUND, &["cluster `none` does not exist"]),
    (&["unprotect", "--source", "{other}"], REFUSED, &["is not cluster main", "--source"]),
    (&["unprotect", "--source", "host=/nonexistent user=x"], UNREACHABLE, &["/nonexistent"]),
    (&["unprotect", "--data-dir", "{data}"], USAGE, &["--data-dir"]),
];

#[rustfmt::skip]
const RESTORE: &[Row] = &[
    (&["restore", "--to", "latest", "--target-dir", ""], USAGE, &["--target-dir"]),
    (&["restore", "--to", "latest", "--target-dir", "{key}"], REFUSED, &["is not a directory", "Name a directory"]),
    (&["restore", "--to", "latest", "--target-dir", "{key}/x"], REFUSED, &["borealis.key/x", "name another one"]),
    (&["restore", "--to", "latest", "--target-dir", "{repository}"], REFUSED, &["is not empty", "nothing was written"]),
    (&["restore", "--to", "latest", "--target-dir", "{repository}/x"], REFUSED, &["lies inside the repository", "nothing was written"]),
    (&["restore", "--to", "latest", "--target-dir", "{data}"], REFUSED, &["is not empty", "nothing was written"]),
    (&["restore", "--to", "latest", "--target-dir", "{data}/x"], REFUSED, &["lies inside the data directory", "nothing was written"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--cluster", "none"], NOT_FOUND, &["cluster `none` does not exist"]),
    (&["restore", "--to", "", "--target-dir", "{new}"], USAGE, &["is not a target", "10 minutes ago"]),
    (&["restore", "--to", "lsn:", "--target-dir", "{new}"], USAGE, &["is not a target"]),
    (&["restore", "--to", "snapshot:", "--target-dir", "{new}"], USAGE, &["is not a target"]),
    (&["restore", "--to", "10 minutes", "--target-dir", "{new}"], USAGE, &["is not a target"]),
    (&["restore", "--to", "lsn:0/1", "--target-dir", "{new}"], REFUSED, &["position 0/1 cannot be restored", "What can be restored: "]),
    (&["restore", "--to", "lsn:FF/1", "--target-dir", "{new}"], REFUSED, &["position FF/1 cannot be restored", "What can be restored: "]),
    (&["restore", "--to", "snapshot:none", "--target-dir", "{new}"], NOT_FOUND, &["snapshot `none` does not exist"]),
    (&["restore", "--to", "2001-01-01T00:00:00Z", "--target-dir", "{new}"], REFUSED, &["cannot be restored", "What can be restored: "]),
    (&["restore", "--to", "2101-01-01T00:00:00Z", "--target-dir", "{new}"], USAGE, &["is in the future"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--port", ""], USAGE, &["--port"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--port", "high"], USAGE, &["--port"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--owner", ""], USAGE, &["--owner is empty"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--owner", "nobodyhere"], REFUSED, &["nobodyhere", "--owner"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--owner", "root"], REFUSED, &["root", "--owner"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--tablespace-mapping", ""], USAGE, &["is not OLD=NEW"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--tablespace-mapping", "/a=/b"], USAGE, &["no tablespace of the backup lies at /a"]),
    (&["restore", "--to", "latest", "--target-dir", "{new}", "--standby", "--start"], USAGE, &["--standby", "--start"]),
];

#[rustfmt::skip]
const SNAPSHOT: &[Row] = &[
    (&["snapshot"], USAGE, &["create, list, delete"]),
    (&["snapshot", "create", ""], USAGE, &["is not a snapshot name"]),
    (&["snapshot", "create", "x", "--at", ""], USAGE, &["latest"]),
    (&["snapshot", "create", "x", "--timeout", "0s"], USAGE, &["--timeout is zero"]),
    (&["snapshot", "create", "x", "--timeout", ""], USAGE, &["--timeout", "for example"]),
    (&["snapshot", "create", "x", "--data-dir", "{data}"], USAGE, &["--data-dir"]),
    (&["snapshot", "create", "x"], REFUSED, &["no protect of cluster main runs", "--at latest"]),
    (&["snapshot", "create", "x", "--cluster", "none"], NOT_FOUND, &["cluster `none` does not exist"]),
    (&["snapshot", "create", "kept", "--at", "latest"], REFUSED, &["a snapshot `kept` exists", "Choose another name"]),
    (&["snapshot", "create", "x", "--at", "latest", "--cluster", "none"], NOT_FOUND, &["cluster `none` does not exist"]),
    (&["snapshot", "delete", ""], USAGE, &["is not a snapshot name"]),
    (&["snapshot", "delete", "none"], NOT_FOUND, &["snapshot `none` does not exist"]),
    (&["snapshot", "list", "--cluster", "none"], NOT_FOUND, &["cluster `none` does not exist"]),
    (&["snapshot", "list", "extra"], USAGE, &["extra"]),
];

#[rustfmt::skip]
const WAL: &[Row] = &[
    (&["wal"], USAGE, &["fetch"]),
    (&["wal", "fetch", "000000010000000000000001"], LOG_UNKNOWN, &["<TARGET>"]),
    (&["wal", "fetch", "", "{new}"], LOG_UNKNOWN, &["was not restored by borealis", "in its data directory"]),
    (&["wal", "fetch", "000000010000000000000001", "{new}"], LOG_UNKNOWN, &["was not restored by borealis"]),
];

/// Two servers; the first was backed up once as `main`, with a snapshot `kept`.
struct Scene {
    server: TestServer,
    other: TestServer,
    site: Site,
    other_site: Site,
}

impl Scene {
    async fn new() -> Self {
        let mut server = TestServer::start(ServerOptions::default()).await;
        server.allow_in_log("role \"nobody\" does not exist");
        server.allow_in_log("database \"none\" does not exist");
        let other = TestServer::start(ServerOptions::default()).await;
        let site = Site::init(PROGRAM, &server).await;
        let other_site = Site::init(PROGRAM, &other).await;
        let once = ["protect", "--once", "--no-slot", "--cluster", CLUSTER];
        site.ok(&once).await;
        site.ok(&["snapshot", "create", "kept", "--at", "latest"])
            .await;
        Self {
            server,
            other,
            site,
            other_site,
        }
    }

    fn filled_in(&self, argument: &str) -> String {
        let shown = |path: &Path| path.display().to_string();
        let places = [
            ("{site}", shown(self.site.path())),
            ("{repository}", shown(&self.site.repository())),
            ("{key}", shown(&self.site.key_file())),
            ("{other key}", shown(&self.other_site.key_file())),
            ("{data}", shown(self.server.data_dir())),
            ("{other data}", shown(self.other.data_dir())),
            ("{new}", self.site.target("new")),
            ("{other}", self.other.dsn()),
            (
                "{nobody}",
                self.server.dsn().replace("user=postgres", "user=nobody"),
            ),
            (
                "{no database}",
                self.server.dsn().replace("dbname=postgres", "dbname=none"),
            ),
        ];
        let mut text = argument.to_owned();
        for (name, value) in places {
            text = text.replace(name, &value);
        }
        text
    }

    /// Every file of both sites, and what the server keeps for us.
    async fn everything(&self) -> (BTreeMap<String, (u64, SystemTime)>, String) {
        let mut files = BTreeMap::new();
        for site in [&self.site, &self.other_site] {
            note_files(site.path(), &mut files);
        }
        let sql = "SELECT count(*) FROM pg_replication_slots";
        let slots = self.server.value(sql).await + " and " + &self.other.value(sql).await;
        (files, slots)
    }

    async fn run(&self, arguments: &[&str]) -> Answer {
        let filled: Vec<String> = arguments.iter().map(|text| self.filled_in(text)).collect();
        let filled: Vec<&str> = filled.iter().map(String::as_str).collect();
        self.site.run(&filled).await
    }
}

fn note_files(folder: &Path, into: &mut BTreeMap<String, (u64, SystemTime)>) {
    for entry in std::fs::read_dir(folder).expect("it is a folder") {
        let entry = entry.expect("it can be listed");
        let seen = entry.metadata().expect("it stays");
        // A folder counts by its name: its length and time may change with what comes and goes in it.
        let noted = if seen.is_dir() {
            note_files(&entry.path(), into);
            (0, SystemTime::UNIX_EPOCH)
        } else {
            (seen.len(), seen.modified().expect("it has a time"))
        };
        into.insert(entry.path().display().to_string(), noted);
    }
}

#[tokio::test]
async fn every_wrong_option_is_told_once_with_its_exit_code_and_writes_nothing() {
    let scene = Scene::new().await;
    let before = scene.everything().await;
    let mut wrong = Vec::new();
    for (arguments, code, words) in
        [INIT, REPOSITORY_AND_KEY, SOURCE, RESTORE, SNAPSHOT, WAL].concat()
    {
        let answer = scene.run(arguments).await;
        let messages = answer.stderr.matches("error: ").count();
        let told = answer.code == Some(code)
            && messages == 1
            && answer.stdout.is_empty()
            && words.iter().all(|word| answer.stderr.contains(word));
        if !told {
            wrong.push(format!(
                "expected {code} and one message with {words:?}: {answer}"
            ));
        }
        let after = scene.everything().await;
        assert_eq!(after, before, "something was written: {answer}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Its answer is a table: what is wrong stands in it.
#[tokio::test]
async fn check_shows_a_data_directory_that_is_not_the_servers() {
    let scene = Scene::new().await;
    for (place, words) in [("{other data}", "holds cluster "), ("{new}", "read ")] {
        let answer = scene
            .run(&["check", "--json", "--data-dir", place])
            .await
            .expect(REFUSED);
        let report = answer.json();
        let found = report["findings"].as_array().expect("a list");
        let finding = found
            .iter()
            .find(|finding| finding["subject"] == "data directory");
        let finding = finding.expect("it was looked at");
        assert_eq!(finding["severity"], "problem");
        assert!(
            finding["found"]
                .as_str()
                .expect("a text")
                .starts_with(words),
            "{finding}"
        );
    }
}

#[tokio::test]
async fn a_snapshot_through_the_server_of_another_cluster_is_refused() {
    let scene = Scene::new().await;
    let protect = Protect::start(&scene.site, &[]);
    let ours = |status: &Value| status["protector"]["pid"] == protect.pid();
    scene.site.wait_status("protect to have begun", ours).await;
    let row = ["snapshot", "create", "x", "--source", "{other}"];
    let answer = scene.run(&row).await.expect(REFUSED);
    let answer = answer.says("is not cluster main").says("--source");
    assert_eq!(answer.stderr.matches("error: ").count(), 1, "{answer}");
    let listed = scene.site.json(&["snapshot", "list"]).await;
    assert_eq!(
        listed["snapshots"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    protect.stop().await;
}
