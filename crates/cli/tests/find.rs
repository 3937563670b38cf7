//! `borealis find` on real servers: what is found, what it is called, and that the command it prints
//! restores.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::{Path, PathBuf};
use std::sync::Arc;

use borealis_base::{SystemClock, SystemEntropy};
use borealis_keys::FileKey;
use borealis_pg_server::instance::binaries::BIN_VARIABLE;
use borealis_repository::plan::{LineageState, NamesSummary};
use borealis_repository::store::{Absent, FolderStore};
use borealis_repository::{Environment, Repository};
use borealis_testkit::program::DEADLINE;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, wait_until};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// What there is before anything happens. Wide rows have TOAST tables with something in them.
const SCHEMA: &str = "
    CREATE TABLE orders (id bigserial PRIMARY KEY, note text);
    INSERT INTO orders (note) SELECT 'n' FROM generate_series(1, 2000);
    CREATE TABLE wide (id bigserial PRIMARY KEY, body text);
    ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
    INSERT INTO wide (body) SELECT repeat('x', 9000) FROM generate_series(1, 300);
    CREATE TABLE emptied AS TABLE wide;
    CREATE INDEX ON emptied (id);
    CREATE TABLE rewritten AS TABLE orders;
    ALTER TABLE rewritten ADD PRIMARY KEY (id);
    CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM orders;
    CREATE TABLE parts (id int, at int) PARTITION BY RANGE (at);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
    INSERT INTO parts SELECT i, i % 20 FROM generate_series(1, 4000) i;
    CREATE TABLE whole (id int) PARTITION BY RANGE (id);
    CREATE TABLE whole_1 PARTITION OF whole FOR VALUES FROM (0) TO (10);
    CREATE TABLE whole_2 PARTITION OF whole FOR VALUES FROM (10) TO (20);
    CREATE TABLE before_it (id int);
    INSERT INTO before_it SELECT generate_series(1, 1500);
    CREATE SCHEMA doomed;
    CREATE TABLE doomed.a (id int PRIMARY KEY, t text);
    CREATE TABLE doomed.\"B c\" (id serial);
    CREATE VIEW doomed.v AS SELECT 1 AS one;
    CREATE UNLOGGED TABLE cache AS SELECT 1 AS one;
";

/// What happens, and what `find` says of it: kind, and names with rows deleted and updated.
const EVENTS: [(&[&str], &[&str]); 15] = [
    (
        &["DELETE FROM orders"],
        &["rows_deleted public.orders 2000 0"],
    ),
    (
        &["UPDATE rewritten SET note = 'm' WHERE id <= 1500"],
        &["rows_updated public.rewritten 0 1500"],
    ),
    // Batches below the threshold.
    (
        &[
            "DELETE FROM rewritten WHERE id <= 250",
            "DELETE FROM rewritten WHERE id <= 500",
        ],
        &[],
    ),
    // Rolled back, as a whole and to a savepoint.
    (
        &[
            "BEGIN; DELETE FROM rewritten; DROP TABLE wide; TRUNCATE emptied; ROLLBACK",
            "BEGIN; SAVEPOINT s; DELETE FROM rewritten; DROP TABLE wide; ROLLBACK TO s; \
             DELETE FROM rewritten WHERE id = 501; COMMIT",
        ],
        &[],
    ),
    (
        &[
            "BEGIN; DELETE FROM parts WHERE at = 1; SAVEPOINT s; DELETE FROM parts WHERE at > 10; \
           RELEASE s; COMMIT",
        ],
        &["rows_deleted public.parts 2000 0"],
    ),
    (
        &[
            "BEGIN; DELETE FROM rewritten WHERE id > 600 AND id <= 1700; PREPARE TRANSACTION 'p'",
            "COMMIT PREPARED 'p'",
        ],
        &["rows_deleted public.rewritten 1100 0"],
    ),
    // Rows of the TOAST table are no rows.
    (&["DELETE FROM wide"], &[]),
    (&["DROP TABLE wide"], &["dropped public.wide 0 0"]),
    (&["TRUNCATE emptied"], &["truncated public.emptied 0 0"]),
    // Nothing is lost.
    (
        &[
            "VACUUM FULL rewritten",
            "CLUSTER rewritten USING rewritten_pkey",
            "REINDEX TABLE rewritten",
            "ALTER TABLE rewritten ALTER id TYPE int",
            "REFRESH MATERIALIZED VIEW totals",
            "VACUUM FULL pg_class",
            "DROP TABLE cache",
        ],
        &[],
    ),
    // A partition, and a partitioned table with all of its own.
    (
        &["DROP TABLE parts_2", "DROP TABLE whole"],
        &["dropped public.parts_2 0 0", "dropped public.whole 0 0"],
    ),
    (
        &[
            "CREATE TEMP TABLE own AS SELECT generate_series(1, 3000) AS i; DELETE FROM own; \
           TRUNCATE own; DROP TABLE own",
        ],
        &[],
    ),
    (
        &["DROP SCHEMA doomed CASCADE"],
        &["dropped doomed.\"B c\", doomed.a 0 0"],
    ),
    (&["DROP DATABASE gone"], &["database_dropped gone 0 0"]),
    // Made and dropped between two readings of the names: it has none.
    (
        &["BEGIN; CREATE TABLE brief (id int); COMMIT; DROP TABLE brief"],
        &["dropped - 0 0"],
    ),
];

/// What the ledger says.
async fn state(site: &Site) -> LineageState {
    let store = FolderStore::open(&site.repository(), Absent::Refuse).unwrap();
    let environment = Environment {
        store: Arc::new(store),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
    };
    let key = FileKey::read(&site.key_file()).unwrap();
    let repository = Repository::open(environment, &key).await.unwrap();
    let cluster = repository.cluster("main").await.unwrap();
    let lineage = cluster.newest_lineage().lineage;
    let lineage = repository.lineage(lineage).await.unwrap();
    lineage.load_state().await.unwrap()
}

/// Waits until names as of now, or later, are stored.
async fn wait_names(site: &Site, server: &TestServer) {
    let position = server.insert_position().await;
    wait_until("names to be stored", DEADLINE, async || {
        let of_now = |names: &NamesSummary| names.from >= position;
        state(site).await.names.iter().any(of_now).then_some(())
    })
    .await;
}

/// What was found, in short.
fn short(event: &Value) -> String {
    let objects = event["objects"].as_array().unwrap();
    let names: Vec<_> = (objects.iter())
        .map(|object| object["name"].as_str().unwrap_or("-"))
        .collect();
    let sum = |field: &str| -> u64 {
        let of = |object: &Value| object[field].as_u64().unwrap();
        objects.iter().map(of).sum()
    };
    format!(
        "{} {} {} {}",
        event["kind"].as_str().unwrap(),
        names.join(", "),
        sum("deleted"),
        sum("updated")
    )
}

/// Runs the statements, each by itself.
async fn run(server: &TestServer, statements: &[&str]) {
    for statement in statements {
        server.sql(statement).await;
    }
}

async fn what_happens_is_found(major: u32) {
    let options = ServerOptions {
        major,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options).await;
    server.sql(SCHEMA).await;
    server.sql("CREATE DATABASE gone").await;
    let site = Site::init(PROGRAM, &server).await;
    let mut protect = Protect::begin(&site, &[]).await;
    wait_names(&site, &server).await;

    let mut expected = Vec::new();
    for (number, (statements, found)) in EVENTS.iter().enumerate() {
        if number == 5 {
            // In between, and with names from before.
            protect.stop().await;
            protect = Protect::start(&site, &[]);
        }
        run(&server, statements).await;
        expected.extend_from_slice(found);
    }
    // The name at the event, not the one before or after.
    server.sql("ALTER TABLE before_it RENAME TO at_it").await;
    wait_names(&site, &server).await;
    server.sql("DELETE FROM at_it").await;
    expected.push("rows_deleted public.at_it 1500 0");
    server.sql("ALTER TABLE at_it RENAME TO after_it").await;
    wait_names(&site, &server).await;

    let report = site.json(&["find", "--since", "1 hour ago"]).await;
    let events = report["events"].as_array().unwrap();
    let found: Vec<_> = events.iter().map(short).collect();
    assert_eq!(found, expected, "{report:#}");
    let partitions: Vec<_> = (events.iter())
        .map(|event| event["objects"][0]["partitions"].as_u64().unwrap())
        .filter(|count| *count > 0)
        .collect();
    assert_eq!(
        partitions,
        [2, 2],
        "rows of two partitions, and a drop of two"
    );
    // Table, cluster, one for each index, type, view.
    assert!(
        report["rewrites_not_shown"].as_u64().unwrap() >= 4,
        "{report:#}"
    );

    let few = site.json(&["find", "--min-rows", "100"]).await;
    let batches = (few["events"].as_array().unwrap().iter())
        .filter(|event| short(event) == "rows_deleted public.rewritten 250 0")
        .count();
    assert_eq!(batches, 2, "{few:#}");
    let nothing = site.run(&["find", "--until", "1 hour ago"]).await.expect(0);
    let _ = nothing.says("nothing found in cluster main");
    let _ = site
        .run(&["find", "--min-rows", "99"])
        .await
        .expect(2)
        .says("--min-rows");
    let shown = site.ok(&["find"]).await;
    assert!(shown.contains("postgres: public.orders"), "{shown}");
    protect.stop().await;
    restores_as_printed(&site, server, &shown).await;
}

/// Runs the commands that are printed, as they are printed, for the first event and for the database.
async fn restores_as_printed(site: &Site, mut server: TestServer, shown: &str) {
    let (major, dir) = (server.binaries().major, server.binaries().dir.clone());
    let commands: Vec<_> = (shown.lines())
        .filter_map(|line| line.find("borealis restore").map(|at| &line[at..]))
        .collect();
    let number = |name: &str| {
        let row = shown.lines().find(|line| line.contains(name)).unwrap();
        let number = row.split_whitespace().next().unwrap();
        number.parse::<usize>().unwrap()
    };
    let first = commands[number("public.orders") - 1];
    let database = commands[number("database dropped") - 1];
    server.stop().await;
    for (command, sql, database, rows) in [
        (
            first,
            "SELECT count(*)::text FROM orders",
            "postgres",
            "2000",
        ),
        (
            database,
            "SELECT count(*)::text FROM pg_class WHERE false",
            "gone",
            "0",
        ),
    ] {
        let mut restored = restored_by(site, &dir, major, command).await;
        let session = restored.session(database).await;
        let found: String = session.value(sql).await.unwrap();
        assert_eq!(found, rows, "{command}");
        drop(session);
        // Both listen where the source did.
        restored.stop().await;
    }
}

/// Runs `command` in the site's folder and the command that it prints after it.
async fn restored_by(site: &Site, programs: &Path, major: u32, command: &str) -> TestServer {
    let folder = PathBuf::from(PROGRAM);
    let path = format!(
        "{}:{}",
        folder.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let output = tokio::process::Command::new("sh")
        .args(["-euc", command])
        .env("PATH", path)
        .env(BIN_VARIABLE, programs)
        .env("BOREALIS_CONFIG", site.path().join("config.toml"))
        .current_dir(site.path())
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}\n{printed}{errors}");
    let start = printed
        .lines()
        .find(|line| line.contains("pg_ctl"))
        .unwrap();
    let status = std::process::Command::new("sh")
        .args(["-c", start.trim()])
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    let target = command.split_whitespace().last().unwrap();
    let target = site.path().join(target);
    let log = target.join("borealis_restore.log");
    let shown = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(status.success(), "{start}\n{shown}");
    let mut restored = TestServer::attach(&target, major, &log);
    restored.wait_promoted().await;
    restored
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_found_and_restored_on_15() {
    what_happens_is_found(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_found_and_restored_on_18() {
    what_happens_is_found(18).await;
}

/// A role that may not enter a database: its relations are numbers, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_entered_has_no_names_and_that_is_said() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE DATABASE closed").await;
    let session = server.session("closed").await;
    let rows = "CREATE TABLE t AS SELECT generate_series(1, 1000) AS i";
    session.run(rows).await.unwrap();
    server
        .sql("ALTER DATABASE closed ALLOW_CONNECTIONS false")
        .await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    wait_names(&site, &server).await;
    session.run("DELETE FROM t").await.unwrap();
    site.wait_restorable(server.insert_position().await).await;
    let report = site.json(&["find"]).await;
    let event = &report["events"][0];
    assert_eq!(short(event), "rows_deleted - 1000 0", "{report:#}");
    assert_eq!(event["objects"][0]["database"], "closed");
    let notes = report["notes"].to_string();
    assert!(notes.contains("closed have no names"), "{notes}");
    protect.stop().await;
}
