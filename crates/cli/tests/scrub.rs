//! Scrubs with the program: what they find, which restore points they name, what they take back, and how what was
//! damaged is healed.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::PathBuf;

use borealis_testkit::oracle;
use borealis_testkit::program::{CLUSTER, DEADLINE, newest_window, position};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, wait_until};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// The largest of the objects whose names hold `words`.
fn largest(site: &Site, words: &str) -> String {
    let named = site
        .objects()
        .into_iter()
        .filter(|name| name.contains(words));
    let len = |name: &String| {
        std::fs::metadata(site.repository().join(name))
            .unwrap()
            .len()
    };
    named.max_by_key(len).unwrap()
}

fn path(site: &Site, object: &str) -> PathBuf {
    site.repository().join(object)
}

/// Changes a bit in the middle; returns what was there.
fn flip(site: &Site, object: &str) -> Vec<u8> {
    let whole = std::fs::read(path(site, object)).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path(site, object), bytes).unwrap();
    whole
}

/// Scrubs; returns the findings, of which there is at least one.
async fn findings(site: &Site) -> Vec<Value> {
    let report = site.run(&["scrub", "--json"]).await.expect(6).json();
    report["lineages"][0]["findings"]
        .as_array()
        .unwrap()
        .clone()
}

fn affects(finding: &Value) -> Vec<String> {
    let affects = finding["affects"].as_array().unwrap();
    affects
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

async fn window(site: &Site) -> (borealis_base::Position, borealis_base::Position) {
    let status = site.status().await.unwrap();
    let window = newest_window(&status).unwrap_or_else(|| panic!("no window: {status:#}"));
    (
        position(window, "earliest_position"),
        position(window, "latest_position"),
    )
}

async fn restorable(site: &Site) -> Vec<(String, bool)> {
    let listed = site.json(&["snapshot", "list"]).await;
    let snapshots = listed["snapshots"].as_array().unwrap();
    snapshots
        .iter()
        .map(|snapshot| {
            (
                snapshot["name"].as_str().unwrap().to_owned(),
                snapshot["restorable"] == true,
            )
        })
        .collect()
}

/// Two base backups, with a snapshot behind each and log between.
async fn written(server: &TestServer) -> Site {
    let site = Site::init(PROGRAM, server).await;
    server
        .sql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 3000) g")
        .await;
    for name in ["one", "two"] {
        site.ok(&["protect", "--cluster", CLUSTER, "--once"]).await;
        server
            .sql("UPDATE t SET v = 'changed' WHERE id % 3 = 0")
            .await;
        let protect = Protect::begin(&site, &["--scrub-every", "off"]).await;
        site.wait_restorable(server.insert_position().await).await;
        site.ok(&["snapshot", "create", name]).await;
        protect.stop().await;
    }
    site
}

#[tokio::test]
async fn a_scrub_names_exactly_the_restore_points_that_damage_affects() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = written(&server).await;
    let clean = site.json(&["scrub"]).await;
    assert!(
        clean["sound"] == true && clean["lineages"][0]["complete"] == true,
        "{clean:#}"
    );
    let status = site.status().await.unwrap();
    let states = status["base_backup_states"].as_array().unwrap();
    assert!(
        states.iter().all(|state| state["scrubbed_at"].is_string()),
        "{status:#}"
    );
    let [first, second] = [0, 1].map(|at| position(&states[at], "end"));
    let (earliest, latest) = window(&site).await;
    assert_eq!(earliest, first);
    // The first base backup: what only it reaches is lost, and the snapshot there.
    let manifests: Vec<String> = site
        .objects()
        .into_iter()
        .filter(|name| name.contains("/manifests/"))
        .collect();
    let lost = |affected: &[String], words: &str| affected.iter().any(|text| text.contains(words));
    let mut seen = 0;
    for manifest in &manifests {
        let whole = std::fs::read(path(&site, manifest)).unwrap();
        std::fs::remove_file(path(&site, manifest)).unwrap();
        let found = findings(&site).await;
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(
            (found[0]["kind"].as_str(), found[0]["object"].as_str()),
            (Some("missing"), Some(&**manifest))
        );
        let affected = affects(&found[0]);
        if lost(
            &affected,
            &format!("positions from {first} before {second} on branch 1"),
        ) {
            seen += 1;
            assert!(
                lost(&affected, "snapshot `one`") && !lost(&affected, "snapshot `two`"),
                "{affected:?}"
            );
            assert_eq!(window(&site).await, (second, latest));
            assert_eq!(
                restorable(&site).await,
                [("one".to_owned(), false), ("two".to_owned(), true)]
            );
            let refused = site
                .run(&[
                    "restore",
                    "--to",
                    "snapshot:one",
                    "--target-dir",
                    &site.target("x"),
                ])
                .await;
            assert_eq!(refused.code, Some(3), "{refused}");
            assert!(!std::path::Path::new(&site.target("x")).exists());
            site.plan("snapshot:two").await;
        }
        std::fs::write(path(&site, manifest), whole).unwrap();
        let mended = site.json(&["scrub"]).await;
        assert_eq!(
            mended["lineages"][0]["sound_again"][0].as_str(),
            Some(&**manifest)
        );
        assert_eq!(window(&site).await, (first, latest));
    }
    assert_eq!(
        seen, 1,
        "one of the manifests is that of the first base backup"
    );
    // A log piece between: the window is split, and both sides stand.
    let piece = largest(&site, "/ledger/");
    let whole = flip(&site, &piece);
    let found = findings(&site).await;
    assert_eq!(
        (found[0]["kind"].as_str(), found[0]["object"].as_str()),
        (Some("damaged"), Some(&*piece))
    );
    assert!(!lost(&affects(&found[0]), "base backup"), "{found:#?}");
    let gaps = site.status().await.unwrap()["gaps"].clone();
    assert!(
        gaps[0]["reason"].as_str().unwrap().contains("scrub"),
        "{gaps:#}"
    );
    std::fs::write(path(&site, &piece), whole).unwrap();
    // What both base backups share: nothing is left.
    let pack = largest(&site, "/packs/");
    let whole = flip(&site, &pack);
    let found = findings(&site).await;
    let affected = affects(&found[0]);
    assert!(
        lost(
            &affected,
            &format!("positions from {first} to {latest} on branch 1")
        ),
        "{affected:?}"
    );
    assert!(lost(&affected, "snapshot `one`") && lost(&affected, "snapshot `two`"));
    std::fs::write(path(&site, &pack), whole).unwrap();
    site.json(&["scrub"]).await;
    assert_eq!(window(&site).await, (first, latest));
    // Of what was read a moment ago nothing is due.
    let none = site.json(&["scrub", "--full-every", "30"]).await;
    assert_eq!(none["lineages"][0]["objects"], 0);
    assert!(none["lineages"][0]["due_at"].is_string(), "{none:#}");
}

/// The one place that a running `protect` can heal from is the source.
#[tokio::test]
async fn damaged_pages_are_read_from_the_source_again_and_restored_exactly() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    server
        .sql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 20000) g")
        .await;
    server.sql("CREATE INDEX ON t (v)").await;
    let mut protect = Protect::begin(&site, &["--scrub-every", "2s", "--drill-every", "off"]).await;
    protect.allow_in_log("a scrub found damage");
    site.ok(&["snapshot", "create", "before"]).await;
    let pack = largest(&site, "/packs/");
    flip(&site, &pack);
    let status = site
        .wait_status("damage to be found and a base backup behind it", |status| {
            let states = status["base_backup_states"].as_array().unwrap();
            let last = states.last().unwrap();
            status["damage"][0]["object"].as_str() == Some(&*pack)
                && states.len() > 1
                && last["damaged"].is_null()
        })
        .await;
    assert_eq!(
        status["base_backup_states"][0]["damaged"].as_str(),
        Some(&*pack)
    );
    assert!(
        protect
            .log()
            .contains("what lies in damaged frames is read again"),
        "{}",
        protect.log()
    );
    assert!(
        protect.log().contains("incremental=true"),
        "everything was read again"
    );
    assert_eq!(restorable(&site).await, [("before".to_owned(), false)]);
    server.sql("DELETE FROM t WHERE id % 7 = 0").await;
    site.wait_restorable(server.insert_position().await).await;
    let expected = oracle::digest(&server).await;
    protect.stop().await;
    let restored = site.restore("latest", "healed", &[]).await;
    assert_eq!(oracle::digest(&restored.server).await, expected);
    assert_eq!(oracle::amcheck_all(&restored.server).await, [""; 0]);
    restored.remove();
}

#[tokio::test]
async fn a_lost_log_piece_splits_the_window_and_a_base_backup_follows() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    server.sql("CREATE TABLE t (id int, v text)").await;
    let mut protect = Protect::begin(&site, &["--scrub-every", "2s", "--drill-every", "off"]).await;
    protect.allow_in_log("a scrub found damage");
    protect.allow_in_log("what the writer knows is repeated");
    let before = site.objects();
    server.sql("INSERT INTO t SELECT g, string_agg(md5(random()::text), '') FROM generate_series(1, 200) g, generate_series(1, 40) GROUP BY g").await;
    site.wait_restorable(server.insert_position().await).await;
    site.ok(&["snapshot", "create", "behind"]).await;
    let (earliest, _) = window(&site).await;
    let len = |name: &String| std::fs::metadata(path(&site, name)).unwrap().len();
    let new = site
        .objects()
        .into_iter()
        .filter(|name| name.contains("/ledger/") && !before.contains(name));
    let piece = new.max_by_key(len).unwrap();
    std::fs::remove_file(path(&site, &piece)).unwrap();
    // Until a later entry repeats what the lost one said, nobody gets past it.
    let status = wait_until("a base backup behind the gap", DEADLINE, async || {
        let answer = site.run(&["status", "--json"]).await;
        let status = (answer.code == Some(0)).then(|| answer.json()["clusters"][0].clone())?;
        let windows = status["windows"].as_array().unwrap();
        let found = status["damage"][0]["object"].as_str() == Some(&*piece) && windows.len() == 2;
        found.then_some(status)
    })
    .await;
    assert_eq!(
        position(&status["windows"][0], "earliest_position"),
        earliest
    );
    assert_eq!(restorable(&site).await, [("behind".to_owned(), false)]);
    let expected = oracle::digest(&server).await;
    site.wait_restorable(server.insert_position().await).await;
    protect.stop().await;
    let restored = site.restore("latest", "behind", &[]).await;
    assert_eq!(oracle::digest(&restored.server).await, expected);
    restored.remove();
}

/// Point 9: the repository and its key are enough.
#[tokio::test]
async fn on_an_empty_machine_the_repository_and_the_key_suffice() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = written(&server).await;
    let binaries = server.binaries().dir.clone();
    let (repository, key) = (site.repository(), site.key_file());
    let empty = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(PROGRAM);
        let output = command
            .env_clear()
            .env("HOME", empty.path())
            .env("PATH", "/usr/bin:/bin")
            .env("BOREALIS_PG_BIN", &binaries)
            .args(arguments)
            .arg("--repository")
            .arg(&repository)
            .arg("--key-file")
            .arg(&key)
            .output()
            .await
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {words}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run(&["status"]).await.contains("cluster main"));
    assert!(run(&["snapshot", "list"]).await.contains("two"));
    assert!(run(&["verify", "--deep"]).await.contains("sound"));
    assert!(run(&["scrub"]).await.contains("sound"));
    assert!(run(&["find"]).await.contains("main"));
    let target = site.target("elsewhere");
    run(&["restore", "--to", "snapshot:one", "--target-dir", &target]).await;
    assert!(std::path::Path::new(&target).join("PG_VERSION").exists());
    let scratch = site.target("scratch");
    assert!(
        run(&["drill", "--scratch", &scratch])
            .await
            .contains("passed")
    );
    let home: Vec<_> = std::fs::read_dir(empty.path()).unwrap().collect();
    assert!(home.is_empty(), "something was left there: {home:?}");
}

/// Run as the server's own user where the tests run as root, whom no right stops.
#[tokio::test]
async fn with_the_right_to_read_alone_everything_that_reads_works() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init_as_server_user(PROGRAM, &server).await;
    server
        .sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS id")
        .await;
    site.ok(&["protect", "--cluster", CLUSTER, "--once"]).await;
    site.ok(&["snapshot", "create", "one", "--at", "latest"])
        .await;
    let set = |mode: &str| {
        let status = std::process::Command::new("chmod")
            .args(["-R", mode])
            .arg(site.repository())
            .status();
        assert!(status.unwrap().success());
    };
    set("a-w");
    let before = site.objects();
    for arguments in [
        &["status"][..],
        &["snapshot", "list"],
        &["verify", "--deep"],
        &["find"],
    ] {
        site.ok(arguments).await;
    }
    let target = site.target("restored");
    site.ok(&["restore", "--to", "snapshot:one", "--target-dir", &target])
        .await;
    let scratch = site.target("scratch");
    let drill = site.run(&["drill", "--scratch", &scratch]).await.expect(0);
    let _ = drill.says("passed").says("not recorded");
    let scrub = site.run(&["scrub"]).await.expect(0);
    let _ = scrub.says("sound").says("not recorded");
    assert_eq!(site.objects(), before);
    set("u+w");
    let pack = largest(&site, "/packs/");
    flip(&site, &pack);
    set("a-w");
    let found = site.run(&["scrub"]).await.expect(6);
    let _ = found.says(&pack).says("not recorded");
    set("u+w");
}
