//! `restore --delta`: over a data directory that is there, damaged, used or half-written, it makes what a
//! restore into an empty one makes, writes only what differs, and takes no directory that it must not.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use borealis_base::SeededEntropy;
use borealis_testkit::program::{CONTROL_FILE, files_below};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Answer, Site, SmallDisk, TestServer, oracle};
use tokio::io::{AsyncBufReadExt, BufReader};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const REFUSED: i32 = 3;
/// What recovery says of tablespaces in place.
const IN_PLACE: &str = "unexpected directory entry";
const MARK: &str = "borealis_restore.json";
const ONCE: [&str; 5] = ["protect", "--cluster", "main", "--once", "--no-slot"];

/// Every file below a data directory and in its tablespaces, by path; what differs from one place to another
/// by nature is left out.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut roots = vec![(directory.to_owned(), PathBuf::new())];
    for entry in std::fs::read_dir(directory.join("pg_tblspc")).unwrap() {
        let name = PathBuf::from("pg_tblspc").join(entry.unwrap().file_name());
        if let Ok(place) = std::fs::read_link(directory.join(&name)) {
            roots.push((place, name));
        }
    }
    let mut found = BTreeMap::new();
    for (root, name) in roots {
        for file in files_below(&root) {
            let path = name.join(file.strip_prefix(&root).unwrap());
            let place = [MARK, "tablespace_map"]
                .iter()
                .any(|own| path == Path::new(own));
            if !place && !file.is_symlink() {
                found.insert(path, std::fs::read(&file).unwrap());
            }
        }
    }
    found
}

#[track_caller]
fn assert_same(over: &Path, fresh: &Path) {
    let (over, fresh) = (content(over), content(fresh));
    let names = |content: &BTreeMap<PathBuf, Vec<u8>>| content.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&over), names(&fresh));
    for (path, bytes) in &fresh {
        assert!(over[path] == *bytes, "{} differs", path.display());
    }
}

/// A source with two tablespaces, one of them empty, one in its own directory, and some MB of data; protected
/// once.
struct Source {
    server: TestServer,
    site: Site,
    spaces: [PathBuf; 2],
}

impl Source {
    async fn new() -> Self {
        let server = TestServer::start(ServerOptions::default()).await;
        let spaces = ["used", "empty"].map(|name| server.scratch(name));
        for (name, space) in ["used", "empty"].iter().zip(&spaces) {
            let place = space.display();
            server
                .sql(&format!("CREATE TABLESPACE {name} LOCATION '{place}'"))
                .await;
        }
        for statement in [
            "SET allow_in_place_tablespaces = on; CREATE TABLESPACE inside LOCATION ''",
            "CREATE TABLE t AS SELECT i, md5(i::text) AS m FROM generate_series(1, 120000) i; CREATE INDEX ON t (i)",
            "CREATE TABLE used_t TABLESPACE used AS SELECT * FROM t LIMIT 20000",
            "CREATE TABLE inside_t TABLESPACE inside AS SELECT * FROM t LIMIT 5000",
        ] {
            for statement in statement.split("; ") {
                let session = server.session("postgres").await;
                session
                    .run("SET allow_in_place_tablespaces = on")
                    .await
                    .unwrap();
                session.run(statement).await.unwrap();
            }
        }
        let site = Site::init(PROGRAM, &server).await;
        site.ok(&ONCE).await;
        Self {
            server,
            site,
            spaces,
        }
    }

    /// The mappings that place the tablespaces beside the directory `name`.
    fn mappings(&self, name: &str) -> Vec<String> {
        let place = |space: &PathBuf| {
            let last = space.file_name().unwrap().to_string_lossy().into_owned();
            let new = self.site.target(&format!("{name}_{last}"));
            [
                "--tablespace-mapping".to_owned(),
                format!("{}={new}", space.display()),
            ]
        };
        self.spaces.iter().flat_map(place).collect()
    }

    async fn run(&self, name: &str, more: &[&str]) -> Answer {
        let target = self.site.target(name);
        let arguments = [
            "restore",
            "--to",
            "latest",
            "--target-dir",
            &target,
            "--json",
        ];
        self.site.run(&[&arguments[..], more].concat()).await
    }

    /// Restores into a new directory.
    async fn fresh(&self, name: &str) -> PathBuf {
        let mappings = self.mappings(name);
        let _ = self.run(name, &with_mappings(&mappings)).await.expect(0);
        self.site.target(name).into()
    }
}

/// Flips bytes in the middle of files, shortens, lengthens, removes and adds some.
fn damage(directory: &Path, space: &Path, entropy: &SeededEntropy) {
    let mut files: Vec<PathBuf> = [
        directory.join("base"),
        directory.join("global"),
        space.to_owned(),
    ]
    .iter()
    .flat_map(|folder| files_below(folder))
    .filter(|file| !file.ends_with(CONTROL_FILE) && std::fs::metadata(file).unwrap().len() > 0)
    .collect();
    files.sort();
    let mut any = || files.swap_remove(usize::try_from(entropy.below(files.len() as u64)).unwrap());
    let write = |path: &Path| {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    };
    for _ in 0..40 {
        let file = write(&any());
        let at = entropy.below(file.metadata().unwrap().len());
        file.write_all_at(&[entropy.next() as u8, 0xA5], at)
            .unwrap();
    }
    for change in [-8192_i64, -1, 1, 8192, 100_000] {
        let file = write(&any());
        let len = i64::try_from(file.metadata().unwrap().len()).unwrap() + change;
        file.set_len(u64::try_from(len).unwrap()).unwrap();
    }
    // Gone; behind a link; the same file under another name.
    std::fs::remove_file(any()).unwrap();
    let (moved, kept) = (any(), directory.join("../moved"));
    std::fs::rename(&moved, &kept).unwrap();
    symlink(&kept, &moved).unwrap();
    let shared = any();
    std::fs::hard_link(&shared, directory.join("../shared")).unwrap();
    // A directory where a file belongs, a file where a directory belongs.
    let file = any();
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    std::fs::write(file.join("inside"), "x").unwrap();
    std::fs::remove_dir_all(directory.join("pg_notify")).unwrap();
    std::fs::write(directory.join("pg_notify"), "x").unwrap();
    for stray in [
        "stray",
        "base/1/99999",
        "pg_wal/000000010000000000000099",
        "pg_wal/archive_status/x.ready",
        "pg_replslot/of_somebody",
        "base/pgsql_tmp1.0",
        "standby.signal",
    ] {
        std::fs::write(directory.join(stray), "stray").unwrap();
    }
    std::fs::write(directory.join("pg_xact/0000"), "not the truth").unwrap();
}

fn with_mappings(mappings: &[String]) -> Vec<&str> {
    mappings.iter().map(String::as_str).collect()
}

/// Bytes that a restore received from the repository.
fn fetched(answer: &serde_json::Value) -> u64 {
    answer["fetched_bytes"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_over_a_damaged_directory_equals_a_fresh_restore_and_writes_what_differs() {
    let source = Source::new().await;
    let fresh = source.fresh("fresh").await;
    let over = source.fresh("over").await;
    let space = PathBuf::from(source.site.target("over_used"));
    for seed in 0..3 {
        damage(&over, &space, &SeededEntropy::new(seed));
        let shared = std::fs::read(over.join("../shared")).unwrap();
        let before = content(&over);
        let planned = source
            .run("over", &["--delta", "--dry-run"])
            .await
            .expect(0)
            .json();
        assert!(
            planned["delta"]["delete_entries"].as_u64().unwrap() >= 8,
            "{planned:#}"
        );
        assert!(content(&over) == before, "--dry-run wrote something");

        let done = source.run("over", &["--delta"]).await.expect(0).json()["delta"].clone();
        assert_same(&over, &fresh);
        let bytes = |field: &str| done[field].as_u64().unwrap();
        // 40 pages, five ends, and five files at most a few MB long each.
        assert!(bytes("kept_bytes") > bytes("written_bytes"), "{done}");
        assert!(
            bytes("written_bytes") > 0 && bytes("deleted_bytes") > 100_000,
            "{done}"
        );
        assert!(
            bytes("kept_bytes") <= planned["delta"]["compare_bytes"].as_u64().unwrap(),
            "{done}"
        );
        let after = std::fs::read(over.join("../shared")).unwrap();
        assert!(
            shared == after,
            "seed {seed}: the file's other name was written through"
        );
        for name in ["moved", "shared"] {
            std::fs::remove_file(over.join("..").join(name)).unwrap();
        }
    }
    // Nothing differs: nothing is written but the control file, which is moved away first and written last,
    // and configuration; and next to nothing is fetched.
    let mappings = source.mappings("whole");
    let whole = source
        .run("whole", &with_mappings(&mappings))
        .await
        .expect(0)
        .json();
    let answer = source.run("over", &["--delta"]).await.expect(0);
    let answer = answer.says("\"note\":\"kept ").json();
    let done = &answer["delta"];
    assert_eq!(done["written_bytes"], 8192, "{done}");
    assert!(done["deleted_bytes"].as_u64().unwrap() < 2 * 8192, "{done}");
    let (all, some) = (fetched(&whole), fetched(&answer));
    assert!(
        some < all / 4,
        "{some} bytes were fetched where nothing differs, {all} where all does"
    );
    assert_same(&over, &fresh);
}

const ROWS: &str = "SELECT count(*) || ' ' || sum(i) FROM t";
const USED_ROWS: &str = "SELECT count(*) || ' ' || sum(i) FROM used_t";

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_over_a_directory_that_a_server_used_restores_the_moment_again() {
    let source = Source::new().await;
    let (rows, used) = (
        source.server.value(ROWS).await,
        source.server.value(USED_ROWS).await,
    );
    let mappings = source.mappings("again");
    let mut more: Vec<&str> = mappings.iter().map(String::as_str).collect();
    let late = source.server.scratch("late");
    for round in 0..3 {
        let mut restored = source.site.restore("latest", "again", &more).await;
        restored.server.allow_in_log(IN_PLACE);
        assert_eq!(restored.server.value(ROWS).await, rows, "round {round}");
        assert_eq!(restored.server.value(USED_ROWS).await, used);
        assert_eq!(
            oracle::amcheck_all(&restored.server).await,
            Vec::<String>::new()
        );
        for statement in [
            "DELETE FROM t WHERE i % 3 = 0".to_owned(),
            "VACUUM t".to_owned(),
            "UPDATE used_t SET m = 'other'".to_owned(),
            format!("CREATE TABLESPACE late LOCATION '{}'", late.display()),
            "CREATE TABLE late_t TABLESPACE late AS SELECT * FROM t".to_owned(),
            "DROP TABLE inside_t".to_owned(),
            "VACUUM FULL used_t".to_owned(),
        ] {
            restored.server.sql(&statement).await;
        }
        if round == 0 {
            restored.server.stop().await;
        } else {
            restored.server.stop_immediately().await;
        }
        drop(restored);
        // From here on the places of the tablespaces stay as they are.
        more = vec!["--delta"];
    }
    let done = source.run("again", &["--delta"]).await.expect(0).json()["delta"].clone();
    assert!(
        done["kept_bytes"].as_u64() > done["written_bytes"].as_u64(),
        "{done}"
    );
    assert_same(
        &source.fresh("fresh").await,
        Path::new(&source.site.target("again")),
    );
    assert!(
        files_below(&late).is_empty(),
        "the tablespace that is not in the backup is not empty"
    );
    // The source's own tablespaces were never touched.
    assert_eq!(source.server.value(USED_ROWS).await, used);
}

/// A restore that is refused in words, and leaves the directory as it was.
async fn refused(source: &Source, name: &str, more: &[&str], words: &[&str]) {
    let target = PathBuf::from(source.site.target(name));
    let before = content(&target);
    for more in [
        [more, &["--delta"]].concat(),
        [more, &["--delta", "--dry-run"]].concat(),
    ] {
        let answer = source.run(name, &more).await.expect(REFUSED);
        for word in words {
            assert!(answer.stderr.contains(word), "{word}: {answer}");
        }
        let after = content(&target);
        assert!(
            before.keys().eq(after.keys()) && before == after,
            "{name} was touched: {words:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_may_be_another_servers_is_refused_and_left_as_it_was() {
    let mut source = Source::new().await;
    let site = &source.site;
    source.fresh("ours").await;
    let ours = PathBuf::from(site.target("ours"));
    let set = |file: &str, text: &[u8]| std::fs::write(ours.join(file), text).unwrap();
    let get = |file: &str| std::fs::read(ours.join(file)).unwrap();

    // No data directory, although it is not empty.
    let folder = PathBuf::from(site.target("folder"));
    std::fs::create_dir_all(folder.join("pg_tblspc")).unwrap();
    std::fs::write(folder.join("letter"), "dear").unwrap();
    refused(&source, "folder", &[], &["no data directory", "PG_VERSION"]).await;
    // Another major; a control file that is missing, damaged, another server's.
    let (version, control) = (get("PG_VERSION"), get(CONTROL_FILE));
    set("PG_VERSION", b"13\n");
    refused(&source, "ours", &[], &["is of PostgreSQL 13"]).await;
    set("PG_VERSION", &version);
    std::fs::remove_file(ours.join(CONTROL_FILE)).unwrap();
    refused(&source, "ours", &[], &["has no control file"]).await;
    let mut flipped = control.clone();
    flipped[17] ^= 1;
    set(CONTROL_FILE, &flipped);
    refused(&source, "ours", &[], &["checksum", "nobody can tell"]).await;
    // `system_identifier` stands first, the checksum behind all fields.
    let mut other = control.clone();
    other[0] ^= 1;
    let covered = if source.server.binaries().major >= 18 {
        292
    } else {
        288
    };
    let crc = crc32c::crc32c(&other[..covered]).to_le_bytes();
    other[covered..covered + 4].copy_from_slice(&crc);
    set(CONTROL_FILE, &other);
    refused(
        &source,
        "ours",
        &[],
        &["belongs to another server", "system identifier"],
    )
    .await;
    set(CONTROL_FILE, &control);

    // Without --delta it is refused as ever.
    let _ = source
        .run("ours", &[])
        .await
        .expect(REFUSED)
        .says("finished restore");

    // A copy: its links lead to the tablespaces of the original.
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(&ours)
        .arg(site.target("copy"))
        .status();
    assert!(copied.unwrap().success());
    let used = site.target("ours_used");
    let files = files_below(Path::new(&used)).len();
    refused(
        &source,
        "copy",
        &[],
        &[&used, "as a copy does", "--tablespace-mapping"],
    )
    .await;
    let mappings = source.mappings("copy");
    let more: Vec<&str> = mappings
        .iter()
        .map(String::as_str)
        .chain(["--delta"])
        .collect();
    let _ = source.run("copy", &more).await.expect(0);
    assert_same(Path::new(&site.target("copy")), &ours);
    assert_eq!(files_below(Path::new(&used)).len(), files);

    // One that holds the repository: everything that is not in the backup would go.
    let inside = ours.join("repository");
    std::fs::rename(site.repository(), &inside).unwrap();
    symlink(&inside, site.repository()).unwrap();
    refused(&source, "ours", &[], &["lies inside", "would delete it"]).await;
    std::fs::remove_file(site.repository()).unwrap();
    std::fs::rename(&inside, site.repository()).unwrap();

    // A server that runs, and one that was killed while its children live on, is tested last.
    let data = source.server.data_dir().display().to_string();
    let arguments = [
        "restore",
        "--to",
        "latest",
        "--delta",
        "--target-dir",
        &data,
    ];
    let answer = source.site.run(&arguments).await.expect(REFUSED);
    let _ = answer
        .says("is in use by process")
        .says("Stop the server first");
    assert_eq!(source.server.value("SELECT 1::text").await, "1");
    source.server.stop().await;

    // Stopped, the source's own directory is put back in place, tablespaces and all.
    let used = files_below(&source.spaces[0]);
    let answer = source.site.run(&arguments).await.expect(0);
    let _ = answer.says("delta         kept");
    assert_eq!(files_below(&source.spaces[0]), used);
    assert_same(source.server.data_dir(), &ours);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_is_killed_anywhere_cannot_be_started_and_is_run_again() {
    let source = Source::new().await;
    let fresh = source.fresh("fresh").await;
    let over = source.fresh("over").await;
    let space = PathBuf::from(source.site.target("over_used"));
    for (seed, phase) in (0..).zip(["deleting", "pages", "files", "log", "syncing"]) {
        damage(&over, &space, &SeededEntropy::new(seed));
        let target = over.display().to_string();
        let arguments = [
            "restore",
            "--to",
            "latest",
            "--target-dir",
            &target,
            "--delta",
        ];
        let mut child = source
            .site
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let begun = format!("\"phase\":\"{phase}\"");
        let mut reached = false;
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(&begun) {
                reached = true;
                child.start_kill().unwrap();
                break;
            }
        }
        assert!(reached, "there is no phase {phase}");
        child.wait().await.unwrap();
        let text = std::fs::read_to_string(over.join(MARK)).unwrap();
        let complete = text.contains("\"complete\"");
        assert_eq!(
            over.join(CONTROL_FILE).exists(),
            complete,
            "{phase}: a server could start"
        );
        for name in ["moved", "shared"] {
            std::fs::remove_file(over.join("..").join(name)).unwrap();
        }
        let answer = source.run("over", &["--delta"]).await.expect(0);
        assert!(
            answer.json()["delta"]["kept_bytes"].as_u64() > Some(1 << 20),
            "{answer}"
        );
        assert_same(&over, &fresh);
    }
}

#[tokio::test]
async fn a_delta_without_room_is_told_as_unfinished_and_run_again() {
    let name = "a_delta_without_room_is_told_as_unfinished_and_run_again";
    let Some(disk) = SmallDisk::enter(name, "160m") else {
        return;
    };
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql("CREATE TABLE t AS SELECT i, md5(i::text) AS m FROM generate_series(1, 120000) i")
        .await;
    let site = Site::init(PROGRAM, &server).await;
    site.ok(&ONCE).await;
    let target = disk.path().join("target");
    let shown = target.display().to_string();
    let restore = ["restore", "--to", "latest", "--target-dir", &shown];
    let delta = [&restore[..], &["--delta"]].concat();
    site.ok(&restore).await;
    let fresh = site.target("fresh");
    site.ok(&["restore", "--to", "latest", "--target-dir", &fresh])
        .await;
    let largest = files_below(&target.join("base"))
        .into_iter()
        .max_by_key(|file| std::fs::metadata(file).unwrap().len());
    std::fs::remove_file(largest.unwrap()).unwrap();
    for left in [64 << 10, 4 << 20] {
        disk.fill(left);
        let answer = site.run(&delta).await.expect(REFUSED);
        let answer = answer
            .says("No space left on device")
            .says("Free space there");
        assert_eq!(answer.stderr.matches("error: ").count(), 1, "{answer}");
        assert!(!target.join(CONTROL_FILE).exists(), "it could be started");
        disk.make_room();
    }
    site.ok(&delta).await;
    assert_same(&target, Path::new(&fresh));
}
