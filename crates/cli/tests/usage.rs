//! What goes wrong before any server is reached: one clear message each, on standard error, with the
//! documented exit code, and nothing left behind.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use borealis_base::{SystemClock, SystemEntropy};
use borealis_keys::FileKey;
use borealis_repository::store::{Absent, FolderStore};
use borealis_repository::{Environment, Repository};

const DEFECT: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;
const UNREACHABLE: i32 = 5;
const DAMAGED: i32 = 6;
const LAG: i32 = 9;
const LOG_UNKNOWN: i32 = 200;

/// A folder with a place for a repository and one for a key file.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn made() -> Self {
        let place = Self::new();
        place.run(&["init"]).expect_code(0);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn key(&self) -> PathBuf {
        self.path("borealis.key")
    }

    /// Runs the program with this repository and this key file.
    fn run(&self, arguments: &[&str]) -> Ran {
        let (repository, key) = (self.path("repository"), self.key());
        let mut all = vec![
            "--repository",
            repository.to_str().unwrap(),
            "--key-file",
            key.to_str().unwrap(),
        ];
        all.extend(arguments);
        borealis(&all)
    }

    fn repository(&self) -> Environment {
        let url = self.path("repository");
        Environment {
            store: Arc::new(FolderStore::open(&url, Absent::Refuse).unwrap()),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
        }
    }

    async fn with_clusters(names: &[&str]) -> Self {
        let place = Self::made();
        let key = FileKey::read(&place.key()).unwrap();
        let repository = Repository::open(place.repository(), &key).await.unwrap();
        for name in names {
            let engine = r#"{"system_id":1}"#.as_bytes();
            repository
                .create_cluster(name, engine.into())
                .await
                .unwrap();
        }
        place
    }
}

struct Ran {
    line: String,
    output: Output,
}

/// Runs the program in surroundings that name nothing.
fn borealis(arguments: &[&str]) -> Ran {
    borealis_with(arguments, &[])
}

fn borealis_with(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_borealis"))
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    Ran {
        line: arguments.join(" "),
        output,
    }
}

impl Ran {
    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    #[track_caller]
    fn expect_stdout(&self, words: &[&str]) {
        let shown = self.stdout();
        for word in words {
            assert!(shown.contains(word), "`{word}` is not in {shown}");
        }
    }

    #[track_caller]
    fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.output.status.code(),
            Some(code),
            "borealis {}\n{}{}",
            self.line,
            self.stdout(),
            self.stderr()
        );
        self
    }

    /// Failed with `code` and one message that holds all of `words`; nothing on standard output.
    #[track_caller]
    fn expect_failure(&self, code: i32, words: &[&str]) -> &Self {
        self.expect_code(code);
        let (told, answered) = (self.stderr(), self.stdout());
        assert_eq!(answered, "", "borealis {}", self.line);
        let messages = told.lines().filter(|line| line.starts_with("error: "));
        assert_eq!(messages.count(), 1, "borealis {}\n{told}", self.line);
        for word in words {
            assert!(told.contains(word), "{word:?} is not in:\n{told}");
        }
        self
    }
}

#[test]
fn help_teaches_with_an_example_for_each_command() {
    let commands: [&[&str]; 26] = [
        &[],
        &["init"],
        &["check"],
        &["protect"],
        &["unprotect"],
        &["status"],
        &["restore"],
        &["snapshot"],
        &["snapshot", "create"],
        &["snapshot", "list"],
        &["snapshot", "delete"],
        &["retention"],
        &["retention", "set"],
        &["retention", "show"],
        &["retention", "plan"],
        &["hold"],
        &["hold", "create"],
        &["hold", "list"],
        &["hold", "delete"],
        &["objective"],
        &["objective", "set"],
        &["usage"],
        &["verify"],
        &["inspect"],
        &["wal"],
        &["wal", "fetch"],
    ];
    for command in commands {
        let mut line = command.to_vec();
        line.push("--help");
        let ran = borealis(&line);
        let shown = ran.expect_code(0).stdout();
        let example = [&["borealis"], command].concat().join(" ");
        let (_, taught) = shown.split_once("\nExample").unwrap_or(("", ""));
        let taught = if command.is_empty() { &shown } else { taught };
        assert!(
            taught.contains(&example),
            "{command:?} has no example:\n{shown}"
        );
    }
}

#[test]
fn what_is_missing_is_named_with_the_three_ways_to_give_it() {
    for command in [&["status"][..], &["verify"], &["snapshot", "list"]] {
        borealis(command).expect_failure(
            USAGE,
            &[
                "no repository is named",
                "--repository",
                "BOREALIS_REPOSITORY",
                "configuration file",
            ],
        );
    }
    borealis(&["status", "--repository", "/r"]).expect_failure(
        USAGE,
        &[
            "no key file is named",
            "--key-file",
            "BOREALIS_KEY_FILE",
            "key_file",
        ],
    );
    borealis(&["check"]).expect_failure(
        USAGE,
        &[
            "no source is named",
            "--source",
            "BOREALIS_SOURCE",
            "configuration file",
        ],
    );
    borealis(&["protect"]).expect_failure(USAGE, &["no source is named"]);
}

#[test]
fn an_empty_value_names_nothing() {
    borealis(&["status", "--repository", ""]).expect_failure(USAGE, &["no repository"]);
    borealis(&["check", "--source", " "]).expect_failure(USAGE, &["no source"]);
    borealis(&["status", "--repository", "/r", "--key-file", ""]).expect_code(USAGE);
    borealis_with(&["status"], &[("BOREALIS_REPOSITORY", "")])
        .expect_failure(USAGE, &["no repository"]);
}

#[test]
fn malformed_options_are_usage_errors() {
    let lines: [&[&str]; 26] = [
        &["protect", "--retention-days", "0"],
        &["protect", "--rpo-seconds", "0"],
        &["retention", "set"],
        &["retention", "set", "--days", "36"],
        &["retention", "plan", "--days", "week"],
        &["hold", "create", "x"],
        &[
            "hold",
            "create",
            "x",
            "--reason",
            "y",
            "--from",
            "2 hours ago",
        ],
        &["usage", "--price-gb-month", "-1"],
        &["protect", "--flush-interval", "soon"],
        &["protect", "--flush-interval", ""],
        &["protect", "--base-backup-every-log", "much"],
        &["protect", "--base-backup-every", "1"],
        &["protect", "--protect", "nothing"],
        &["protect", "--no-slot"],
        &["status", "--fail-if-lag", "60"],
        &["status", "--unknown"],
        &["snapshot", "create"],
        &["snapshot", "create", "x", "--at", "yesterday"],
        &["snapshot", "create", "x", "--timeout", "-1s"],
        &["restore", "--to", "latest"],
        &["restore", "--target-dir", "/t"],
        &[
            "restore",
            "--to",
            "latest",
            "--target-dir",
            "/t",
            "--port",
            "0",
        ],
        &[
            "restore",
            "--to",
            "latest",
            "--target-dir",
            "/t",
            "--port",
            "65536",
        ],
        &[
            "restore",
            "--to",
            "latest",
            "--target-dir",
            "/t",
            "--tablespace-mapping",
            "a=b",
        ],
        &[
            "restore",
            "--to",
            "latest",
            "--target-dir",
            "/t",
            "--standby",
            "--start",
        ],
        &["frobnicate"],
    ];
    for line in lines {
        borealis(line).expect_failure(USAGE, &[]);
    }
    borealis(&[]).expect_code(USAGE);
}

#[test]
fn a_value_of_zero_is_refused_where_it_would_mean_without_end() {
    for option in ["--flush-interval", "--base-backup-every"] {
        borealis(&["protect", "--source", "host=/nowhere", option, "0s"])
            .expect_failure(USAGE, &[option, "zero"]);
    }
    borealis(&["protect", "--base-backup-every-log", "0"]).expect_failure(USAGE, &["zero"]);
}

#[test]
fn a_target_that_is_none_is_refused_before_anything_is_opened() {
    let line = ["restore", "--target-dir", "/t", "--to", "yesterday"];
    borealis(&line).expect_failure(USAGE, &["`yesterday` is not a target", "10 minutes ago"]);
}

#[test]
fn cluster_names_are_checked_before_anything_is_opened() {
    let commands: [&[&str]; 7] = [
        &["status"],
        &["verify"],
        &["protect"],
        &["unprotect"],
        &["snapshot", "list"],
        &["snapshot", "delete", "x"],
        &["snapshot", "create", "x"],
    ];
    for command in commands {
        for name in ["", "Sales", "9", "a b"] {
            let line = [command, &["--cluster", name]].concat();
            borealis(&line).expect_failure(USAGE, &["is not a cluster name"]);
        }
    }
}

#[test]
fn snapshot_names_are_checked_before_anything_is_opened() {
    for name in ["", " x", "a\nb"] {
        borealis(&["snapshot", "create", name]).expect_failure(USAGE, &["is not a snapshot name"]);
    }
}

#[test]
fn a_password_in_an_argument_is_refused_and_not_repeated() {
    for source in [
        "host=db password=hunter2",
        "postgresql://ann:hunter2@db/shop",
    ] {
        let ran = borealis(&["check", "--source", source]);
        ran.expect_failure(REFUSED, &["PGPASSWORD", "PGPASSFILE", "service file"]);
        assert!(!ran.stderr().contains("hunter2"), "{}", ran.stderr());
    }
}

#[test]
fn a_malformed_source_is_a_usage_error_and_an_absent_server_is_not() {
    borealis(&["check", "--source", "nonsense"]).expect_failure(USAGE, &[]);
    borealis(&["check", "--source", "host=/nonexistent user=x"])
        .expect_failure(UNREACHABLE, &["/nonexistent"]);
}

#[test]
fn the_configuration_file_gives_what_nothing_else_gives() {
    let place = Place::made();
    let config = place.path("config.toml");
    let text = format!(
        "repository = {:?}\nkey_file = {:?}\n",
        place.path("repository"),
        place.key()
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    borealis(&["status", "--config", config]).expect_code(0);
    borealis_with(&["status"], &[("BOREALIS_CONFIG", config)]).expect_code(0);
    borealis(&[
        "status",
        "--config",
        config,
        "--repository",
        "/nonexistent/r",
    ])
    .expect_failure(NOT_FOUND, &["/nonexistent/r"]);
    borealis(&["status", "--config", "/nonexistent/c"]).expect_failure(USAGE, &["/nonexistent/c"]);
}

#[test]
fn init_says_where_things_are_and_what_losing_the_key_means() {
    let place = Place::new();
    let ran = place.run(&["init"]);
    let shown = ran.expect_code(0).stdout();
    for word in [
        "repository",
        "borealis.key",
        "nobody can read the backups",
        "Keep a copy",
    ] {
        assert!(shown.contains(word), "{word:?} is not in:\n{shown}");
    }
    let mode = std::fs::metadata(place.key()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    place.run(&["status"]).expect_code(0);
}

#[test]
fn a_second_init_is_refused_and_makes_no_key() {
    let place = Place::made();
    let before = std::fs::read(place.key()).unwrap();
    place
        .run(&["init"])
        .expect_failure(REFUSED, &["a repository exists"]);
    assert_eq!(std::fs::read(place.key()).unwrap(), before);
    let (repository, other) = (place.path("repository"), place.path("other.key"));
    let (repository, other) = (repository.to_str().unwrap(), other.to_str().unwrap());
    borealis(&["init", "--repository", repository, "--key-file", other])
        .expect_failure(REFUSED, &["a repository exists"]);
    assert!(
        !Path::new(other).exists(),
        "a key that belongs to nothing was left"
    );
}

#[test]
fn init_needs_a_key_file_that_is_named() {
    let place = Place::new();
    let repository = place.path("repository");
    borealis(&["init", "--repository", repository.to_str().unwrap()]).expect_failure(
        USAGE,
        &[
            "no key file is named",
            "--key-file",
            "made if it does not exist",
        ],
    );
    assert!(!repository.exists());
}

#[test]
fn init_makes_no_key_where_the_repository_cannot_be() {
    let place = Place::new();
    std::fs::write(place.path("repository"), "a file").unwrap();
    let ran = place.run(&["init"]);
    assert_ne!(ran.output.status.code(), Some(0));
    assert_ne!(ran.output.status.code(), Some(DEFECT));
    assert!(
        !place.key().exists(),
        "a key that belongs to nothing was left"
    );
}

#[test]
fn an_init_that_was_cut_short_is_finished_with_the_same_keys_only() {
    let place = Place::made();
    std::fs::remove_file(place.path("repository/repository")).unwrap();
    let (repository, other) = (place.path("repository"), place.path("other.key"));
    let (repository, other) = (repository.to_str().unwrap(), other.to_str().unwrap());
    borealis(&["init", "--repository", repository, "--key-file", other])
        .expect_failure(REFUSED, &["was begun with", "other.key"]);
    assert!(!Path::new(other).exists());
    place.run(&["init"]).expect_code(0);
    place.run(&["status"]).expect_code(0);
}

#[test]
fn a_second_recipient_opens_the_repository_too() {
    let place = Place::new();
    let second = place.path("second.key");
    let second = second.to_str().unwrap();
    let key = place.key();
    place
        .run(&["init", "--recipient", key.to_str().unwrap()])
        .expect_failure(USAGE, &["--recipient names the same file"]);
    place.run(&["init", "--recipient", second]).expect_code(0);
    let repository = place.path("repository");
    let repository = repository.to_str().unwrap();
    borealis(&["status", "--repository", repository, "--key-file", second]).expect_code(0);
}

#[test]
fn keys_are_added_listed_rotated_and_removed() {
    let place = Place::made();
    let named = |name: &str| format!("file:{}", place.path(name).display());
    let with = |key: &str, arguments: &[&str]| {
        let repository = place.path("repository");
        let repository = repository.to_str().unwrap();
        borealis(&[&["--repository", repository, "--key", key], arguments].concat())
    };
    let (first, second, third) = (
        named("borealis.key"),
        named("second.key"),
        named("third.key"),
    );
    let id = |name: &str| {
        let key = FileKey::read(&place.path(name)).unwrap();
        borealis_keys::KeyProvider::key_id(&key).to_string()
    };
    with(&first, &["key", "add", "--new-key", &second]).expect_code(0);
    with(&first, &["key", "add", "--new-key", &second])
        .expect_code(0)
        .expect_stdout(&["was a recipient before", &id("second.key"), "this one"]);
    with(&second, &["status"]).expect_code(0);
    // The second one goes, the third one comes, and the first one stays.
    with(&second, &["key", "rotate", "--new-key", &third]).expect_code(0);
    with(&second, &["status"]).expect_failure(REFUSED, &["is sealed for key", &id("third.key")]);
    with(&first, &["status"]).expect_code(0);
    with(&third, &["key", "rotate", "--new-key", &third])
        .expect_failure(USAGE, &["that is to go", "key rewrap"]);
    with(&third, &["key", "remove", &id("third.key")])
        .expect_failure(REFUSED, &["opened with", "stays"]);
    with(&third, &["key", "remove", &id("second.key")])
        .expect_failure(NOT_FOUND, &["a recipient with key"]);
    with(&third, &["key", "remove", "x"]).expect_failure(USAGE, &["no key id", "key list"]);
    with(&third, &["key", "remove", &id("borealis.key"), "--renew"]).expect_code(0);
    with(&first, &["status"]).expect_failure(REFUSED, &["is sealed for key"]);
    with(&third, &["key", "rewrap"]).expect_code(0);
    with(&third, &["key", "list"])
        .expect_code(0)
        .expect_stdout(&[&id("third.key"), "(catalog)", "seals", "opens"]);
}

#[test]
fn a_key_is_named_once_and_in_one_of_the_forms() {
    let place = Place::made();
    place.run(&["status", "--key", "file:/k"]).expect_failure(
        USAGE,
        &["a key and a key file are both named", "BOREALIS_KEY"],
    );
    let status = |key: &str| borealis(&["status", "--repository", "/r", "--key", key]);
    status("").expect_failure(USAGE, &["no key file is named", "--key,"]);
    status("gcp-kms:x").expect_failure(USAGE, &["file:/PATH", "aws-kms:KEY", "vault:https"]);
    status("vault:https://hvs.geheim@host/transit/keys/x")
        .expect_failure(USAGE, &["holds credentials", "VAULT_TOKEN"]);
    status("vault:transit/keys/x").expect_failure(USAGE, &["VAULT_ADDR"]);
    let shown = status("aws-kms:alias/x?secret=geheim").output;
    let shown = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(
        shown.contains("`secret` is no parameter") && !shown.contains("geheim"),
        "{shown}"
    );
    place
        .run(&["key", "add"])
        .expect_failure(USAGE, &["--new-key"]);
    place
        .run(&["key", "add", "--new-key", ""])
        .expect_failure(USAGE, &["--new-key"]);
}

#[test]
fn what_is_no_repository_is_told_from_a_place_that_is_not_there() {
    let place = Place::made();
    let (key, empty) = (place.key(), place.path("empty"));
    std::fs::create_dir(&empty).unwrap();
    let status = |repository: &str| {
        let key = key.to_str().unwrap();
        borealis(&["status", "--repository", repository, "--key-file", key])
    };
    status(empty.to_str().unwrap()).expect_failure(NOT_FOUND, &["a repository at", "empty"]);
    status("/nonexistent/r").expect_failure(NOT_FOUND, &["/nonexistent/r"]);
    status("gs://bucket").expect_failure(USAGE, &["gs"]);
    status("s3://bucket/a?endpoint=x").expect_failure(USAGE, &["https://host"]);
}

#[test]
fn a_wrong_key_is_refused_and_is_not_called_damage() {
    let (place, other) = (Place::made(), Place::made());
    std::fs::remove_file(place.key()).unwrap();
    std::fs::copy(other.key(), place.key()).unwrap();
    place
        .run(&["status"])
        .expect_failure(REFUSED, &["borealis.key", "hint: "]);
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let place = Place::made();
    std::fs::set_permissions(place.key(), std::fs::Permissions::from_mode(0o644)).unwrap();
    place
        .run(&["status"])
        .expect_failure(REFUSED, &["mode 0644", "chmod 600"]);
}

#[test]
fn an_absent_key_file_and_one_that_is_none_are_told_apart() {
    let place = Place::made();
    std::fs::remove_file(place.key()).unwrap();
    place
        .run(&["status"])
        .expect_failure(NOT_FOUND, &["borealis.key"]);
    std::fs::write(place.key(), "secret").unwrap();
    std::fs::set_permissions(place.key(), std::fs::Permissions::from_mode(0o600)).unwrap();
    place
        .run(&["status"])
        .expect_failure(USAGE, &["is not a Borealis key file"]);
}

#[test]
fn a_damaged_descriptor_is_named() {
    let place = Place::made();
    let path = place.path("repository/repository");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, bytes).unwrap();
    place
        .run(&["status"])
        .expect_failure(DAMAGED, &["repository is damaged"]);
}

/// The object's header with another format version, as `docs/formats` lays it out.
fn with_format_version(mut bytes: Vec<u8>, version: u8) -> Vec<u8> {
    bytes[8] = version;
    let head_len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), &bytes[24..24 + head_len]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn what_a_newer_version_wrote_is_refused_and_is_not_called_damage() {
    let place = Place::made();
    let key = std::fs::read_to_string(place.key()).unwrap();
    let newer = key.replace("borealis-key-file 1\n", "borealis-key-file 2\n");
    assert_ne!(newer, key);
    std::fs::write(place.key(), newer).unwrap();
    for command in [&["status"][..], &["verify"], &["init"]] {
        place.run(command).expect_code(REFUSED);
    }
    place.run(&["status"]).expect_failure(
        REFUSED,
        &[
            "borealis.key was written by a newer version",
            "Use the version",
        ],
    );
    std::fs::write(place.key(), key).unwrap();
    place.run(&["status"]).expect_code(0);
    let path = place.path("repository/repository");
    let bytes = with_format_version(std::fs::read(&path).unwrap(), 9);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    for command in [&["status"][..], &["verify"], &["inspect", "repository"]] {
        place.run(command).expect_failure(
            REFUSED,
            &[
                "repository was written by a newer version",
                "format version 9",
                "Use the version",
            ],
        );
    }
}

#[test]
fn an_empty_repository_has_nothing_to_restore() {
    let place = Place::made();
    let shown = place.run(&["status"]).expect_code(0).stdout();
    assert!(shown.contains("no cluster yet"), "{shown}");
    place
        .run(&["status", "--fail-if-lag", "60s"])
        .expect_code(LAG);
    place.run(&["verify"]).expect_code(0);
    place
        .run(&["snapshot", "list"])
        .expect_failure(NOT_FOUND, &["holds no cluster"]);
    place
        .run(&["status", "--cluster", "sales"])
        .expect_failure(NOT_FOUND, &["cluster `sales` does not exist"]);
}

#[tokio::test]
async fn of_two_clusters_one_must_be_named() {
    let place = Place::with_clusters(&["sales", "stock"]).await;
    for command in [&["snapshot", "list"][..], &["snapshot", "delete", "x"]] {
        place
            .run(command)
            .expect_failure(USAGE, &["several clusters: sales, stock", "--cluster"]);
    }
    let shown = place.run(&["status"]).expect_code(0).stdout();
    assert!(
        shown.contains("cluster sales") && shown.contains("cluster stock"),
        "{shown}"
    );
    let shown = place
        .run(&["status", "--cluster", "stock"])
        .expect_code(0)
        .stdout();
    assert!(!shown.contains("cluster sales"), "{shown}");
}

#[tokio::test]
async fn a_cluster_of_which_nothing_is_stored_is_shown_as_that() {
    let place = Place::with_clusters(&["sales"]).await;
    let shown = place.run(&["status"]).expect_code(0).stdout();
    for word in [
        "not yet",
        "nothing can be restored yet",
        "any second of the last 1 day: nothing can be restored yet",
    ] {
        assert!(shown.contains(word), "{word:?} is not in:\n{shown}");
    }
    let answer = place.run(&["status", "--json"]).expect_code(0).stdout();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["clusters"][0]["name"], "sales");
    assert_eq!(
        answer["clusters"][0]["latest_restorable_time"],
        serde_json::Value::Null
    );
    place
        .run(&["status", "--fail-if-lag", "1d"])
        .expect_code(LAG);
    place
        .run(&["snapshot", "create", "x", "--at", "latest"])
        .expect_failure(REFUSED, &["nothing of cluster sales can be restored yet"]);
    place
        .run(&[
            "snapshot",
            "create",
            "x",
            "--source",
            "host=/nonexistent user=x",
        ])
        .expect_failure(
            REFUSED,
            &["no protect of cluster sales runs", "--at latest"],
        );
    place
        .run(&["snapshot", "delete", "x"])
        .expect_failure(NOT_FOUND, &["snapshot `x` does not exist"]);
    let shown = place.run(&["snapshot", "list"]).expect_code(0).stdout();
    assert_eq!(shown.trim(), "no snapshots");
}

#[test]
fn with_json_a_failure_is_one_object() {
    let ran = borealis(&["status", "--json"]);
    ran.expect_code(USAGE);
    let told: serde_json::Value = serde_json::from_str(ran.stderr().trim()).unwrap();
    assert_eq!(told["error"], "usage");
    assert_eq!(told["message"], "no repository is named");
    assert!(told["hint"].as_str().unwrap().contains("--repository"));
    // What clap finds wrong, too.
    let ran = borealis(&["--json", "status", "--unknown"]);
    ran.expect_code(USAGE);
    let told: serde_json::Value = serde_json::from_str(ran.stderr().trim()).unwrap();
    assert_eq!(told["error"], "usage");
    assert!(told["message"].as_str().unwrap().contains("--unknown"));
}

/// PostgreSQL takes a small code of its `restore_command` for "there is no such file" and would end
/// recovery early.
#[test]
fn a_restore_command_that_could_not_look_never_exits_with_a_small_code() {
    borealis(&["wal", "fetch"]).expect_code(LOG_UNKNOWN);
    borealis(&["wal", "fetch", "000000010000000000000001", "/nonexistent/t"])
        .expect_code(LOG_UNKNOWN);
    borealis(&["--config", "/nonexistent/c", "wal", "fetch", "x", "y"]).expect_code(LOG_UNKNOWN);
}

#[test]
fn any_object_is_shown_with_its_key_and_its_public_part_without() {
    let place = Place::made();
    let shown = place
        .run(&["inspect", "repository"])
        .expect_code(0)
        .stdout();
    assert!(shown.contains("kind: descriptor"), "{shown}");
    let ring = place.path("repository/keys/000000000001");
    let ring = ring.to_str().unwrap();
    let shown = borealis(&["inspect", ring, "--json"])
        .expect_code(0)
        .stdout();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["kind"], "key ring");
    assert_eq!(shown["authenticated"], false);
    place
        .run(&["inspect", "no/such/object"])
        .expect_failure(NOT_FOUND, &["no/such/object"]);
    place
        .run(&["inspect", "/dev/null"])
        .expect_failure(NOT_FOUND, &["/dev/null"]);
    let key = place.key();
    place
        .run(&["inspect", key.to_str().unwrap()])
        .expect_failure(DAMAGED, &["borealis.key"]);
}

#[tokio::test]
async fn sealed_content_is_shown_with_the_key_only() {
    let place = Place::with_clusters(&["sales"]).await;
    let entry = place.path("repository/catalog/000000000001");
    let public = borealis(&["inspect", entry.to_str().unwrap()])
        .expect_code(0)
        .stdout();
    assert!(!public.contains("sales"), "{public}");
    let shown = place
        .run(&["inspect", "catalog/000000000001"])
        .expect_code(0)
        .stdout();
    assert!(shown.contains("name: sales"), "{shown}");
    assert!(shown.contains("authenticated: true"), "{shown}");
}

#[test]
fn what_a_lineage_has_sealed_is_shown_with_the_repository_key() {
    let place = Place::new();
    let sample = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../repository/tests/samples/repository-1"
    );
    let copied = Command::new("cp")
        .args(["-r", &format!("{sample}/repository")])
        .arg(place.path("repository"))
        .status()
        .unwrap();
    assert!(copied.success());
    std::fs::copy(format!("{sample}/root.key"), place.key()).unwrap();
    std::fs::set_permissions(place.key(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let pin = "lineages/2d455abe20d6dc735caed56bd518f5dc/pins/000000000001";
    let shown = place
        .run(&["inspect", pin, "--json"])
        .expect_code(0)
        .stdout();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["authenticated"], true);
    assert_eq!(shown["content"]["body"]["created"]["name"], "one");
    // The sample's snapshot stands on log that it does not hold.
    let listed = place
        .run(&["snapshot", "list", "--json"])
        .expect_code(0)
        .stdout();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["snapshots"][0]["restorable"], false);
    place.run(&["verify"]).expect_code(DAMAGED);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let place = Place::made();
    let (repository, key) = (place.path("repository"), place.key());
    let status = Command::new("sh")
        .arg("-c")
        .arg("set -o pipefail 2>/dev/null; \"$0\" status --repository \"$1\" --key-file \"$2\" | true")
        .arg(env!("CARGO_BIN_EXE_borealis"))
        .args([repository, key])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&status.stderr), "");
}
