//! Disks that are full, real ones: one clear message that names the place and what to do, the documented
//! exit code, nothing half-written, and once there is room it goes on where it was.

use std::path::Path;
use std::process::{Command, Output};

use borealis_testkit::program::{CONTROL_FILE, DEADLINE};
use borealis_testkit::{Protect, Site, SmallDisk, TestServer, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const REFUSED: i32 = 3;
const NO_ROOM: &str = "No space left on device";

fn init(repository: &Path, key_file: &Path) -> Output {
    Command::new(PROGRAM)
        .env_clear()
        .env("HOME", "/nonexistent")
        .arg("init")
        .arg("--repository")
        .arg(repository)
        .arg("--key-file")
        .arg(key_file)
        .output()
        .expect("it is built")
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(REFUSED), "{told}");
    for word in words {
        assert!(told.contains(word), "{word:?} is not in:\n{told}");
    }
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("it is there");
    entries
        .map(|entry| entry.expect("it can be listed").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn init_on_a_full_disk_leaves_no_half_key_and_is_run_again() {
    let name = "init_on_a_full_disk_leaves_no_half_key_and_is_run_again";
    let Some(disk) = SmallDisk::enter(name, "1m") else {
        return;
    };
    let other = tempfile::tempdir().expect("there is room elsewhere");
    let (full, roomy) = (disk.path(), other.path());
    disk.fill(0);
    // No room for the key: neither a key nor a place for a repository stays.
    let (repository, key) = (roomy.join("repository"), full.join("borealis.key"));
    let place = key.display().to_string();
    refused(
        &init(&repository, &key),
        &["write key file", &place, NO_ROOM, "Make room"],
    );
    assert_eq!(names(full), ["filler"]);
    assert!(!repository.exists());
    // No room for the repository: the key is whole, and serves the next attempt.
    let (repository, key) = (full.join("repository"), roomy.join("borealis.key"));
    let place = key.display().to_string();
    let output = init(&repository, &key);
    refused(
        &output,
        &[
            "create keys/",
            NO_ROOM,
            "Make room in",
            &place,
            "goes on with it",
        ],
    );
    let made = std::fs::read(&key).expect("the key is there");
    disk.make_room();
    let output = init(&repository, &key);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(std::fs::read(&key).expect("it is there"), made);
}

/// Where the repository of `site` goes.
fn put_repository(site: &Site, disk: &SmallDisk) {
    let place = disk.path().join("repository");
    std::fs::create_dir(&place).expect("it is writable");
    std::os::unix::fs::symlink(place, site.repository()).expect("the folder is ours");
}

async fn wait_log(protect: &mut Protect, what: &str, words: &[&str]) {
    wait_until(what, DEADLINE, async || {
        protect.assert_running();
        let log = protect.log();
        let found = |line: &str| words.iter().all(|word| line.contains(word));
        log.lines().any(found).then_some(())
    })
    .await;
}

/// More log than one MiB, however it is compressed.
const MUCH: &str =
    "INSERT INTO t SELECT md5(i::text) || md5((-i)::text) FROM generate_series(1, 60000) i";

#[tokio::test]
async fn protect_waits_for_room_and_loses_nothing_that_was_acknowledged() {
    let name = "protect_waits_for_room_and_loses_nothing_that_was_acknowledged";
    let Some(disk) = SmallDisk::enter(name, "96m") else {
        return;
    };
    let mut server = TestServer::start(borealis_testkit::ServerOptions::default()).await;
    // What the server says of a base backup that is given up.
    server.allow_in_log("aborting backup due to backend exiting");
    server.sql("CREATE TABLE t (x text)").await;
    let site = Site::bare(PROGRAM, &server);
    put_repository(&site, &disk);
    site.ok(&["init"]).await;

    // Room for the ledger, and not for a base backup. Whoever asked for one only is told.
    disk.fill(1 << 20);
    let answer = site.run(&["protect", "--once", "--no-slot"]).await;
    let answer = answer.expect(REFUSED).says(NO_ROOM).says("Make room in");
    assert_eq!(answer.stderr.matches("error: ").count(), 1, "{answer}");
    disk.make_room();
    disk.fill(1 << 20);

    // One that stays waits, first with its base backup, then with the log too.
    let mut protect = Protect::start(&site, &[]);
    let words = ["base backup failed", NO_ROOM, "packs/"];
    wait_log(&mut protect, "the base backup to find no room", &words).await;
    server.sql(MUCH).await;
    let words = ["takes no entry now", NO_ROOM];
    wait_log(&mut protect, "the log to find no room", &words).await;
    server.sql("INSERT INTO t VALUES ('the last one')").await;
    let acknowledged = server.insert_position().await;
    let rows = server.value("SELECT count(*) FROM t").await;
    let status = site.status().await.expect("there is a cluster");
    assert!(
        status["windows"].as_array().is_none_or(Vec::is_empty),
        "{status:#}"
    );

    disk.make_room();
    protect.wait_window(&site).await;
    site.wait_restorable(acknowledged).await;
    protect.stop().await;
    site.ok(&["verify", "--deep"]).await;
    let restored = site.restore("latest", "restored", &[]).await;
    assert_eq!(restored.server.value("SELECT count(*) FROM t").await, rows);
    restored.remove();
}

#[tokio::test]
async fn a_restore_without_room_is_told_as_unfinished_and_run_again() {
    let name = "a_restore_without_room_is_told_as_unfinished_and_run_again";
    let Some(disk) = SmallDisk::enter(name, "160m") else {
        return;
    };
    let server = TestServer::start(borealis_testkit::ServerOptions::default()).await;
    server.sql("CREATE TABLE t (x text)").await;
    let site = Site::init(PROGRAM, &server).await;
    let once = ["protect", "--once", "--no-slot", "--cluster"];
    site.ok(&[&once[..], &["main"]].concat()).await;

    let target = disk.path().join("target");
    let shown = target.display().to_string();
    let line = [
        "restore",
        "--cluster",
        "main",
        "--to",
        "latest",
        "--target-dir",
    ];
    let restore = [&line[..], &[shown.as_str()]].concat();
    // No room for the first file; for some of the files; for the files and not for the log.
    for (left, place) in [(0, ""), (8 << 20, "base/"), (28 << 20, "pg_wal/")] {
        disk.fill(left);
        let answer = site.run(&restore).await.expect(REFUSED);
        let place = format!("{shown}/{place}");
        let answer = answer.says(&place).says(NO_ROOM).says("Free space there");
        assert_eq!(answer.stderr.matches("error: ").count(), 1, "{answer}");
        assert!(
            !target.join(CONTROL_FILE).exists(),
            "{place}: it could be started"
        );
        // It is known as ours.
        site.ok(&[&restore[..], &["--dry-run"]].concat()).await;
        disk.make_room();
    }
    // Known as ours, and not as another cluster's.
    let other = TestServer::start(borealis_testkit::ServerOptions::default()).await;
    site.configure(&other.dsn());
    site.ok(&[&once[..], &["other"]].concat()).await;
    let line = [
        "restore",
        "--cluster",
        "other",
        "--to",
        "latest",
        "--target-dir",
    ];
    let answer = site.run(&[&line[..], &[shown.as_str()]].concat()).await;
    let answer = answer.expect(REFUSED);
    let _ = answer.says("holds an unfinished restore of cluster main");

    std::os::unix::fs::symlink(disk.path(), site.path().join("disk")).expect("it is ours");
    let restored = site
        .restore("latest", "disk/target", &["--cluster", "main"])
        .await;
    assert_eq!(restored.server.value("SELECT count(*) FROM t").await, "0");
    restored.remove();
}
