//! The program on a repository in a bucket: the whole first path through a proxy that fails, and what is
//! particular to buckets.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use borealis_testkit::program::{Answer, CLUSTER};
use borealis_testkit::s3::{
    self, ACCESS_KEY, FaultProxy, HttpFaults, MotoServer, SECRET_KEY, StrictServer,
};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer, oracle, wait_until};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

async fn server_with_rows() -> TestServer {
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql("CREATE TABLE t (id int PRIMARY KEY, payload text NOT NULL)")
        .await;
    server
        .sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
        .await;
    server
}

fn seed() -> u64 {
    let named = std::env::var("BOREALIS_SEED").ok();
    named.and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_path_holds_in_a_bucket_behind_a_failing_network() {
    let server = server_with_rows().await;
    let bucket = StrictServer::start().await;
    let proxy = FaultProxy::start(bucket.endpoint(), HttpFaults::MILD, seed()).await;
    let url = s3::url(proxy.endpoint(), "team/sales");
    let site = Site::in_bucket(PROGRAM, &server, &url);
    site.ok(&["init"]).await;
    site.ok(&["check"]).await;
    let _ = site
        .run(&["init"])
        .await
        .expect(3)
        .says("exists at s3://backups/team/sales");
    // The store's probe lists; nothing else does until verify.
    proxy.take_seen();

    // A full base backup, and one that reads only what changed since.
    let once = ["protect", "--cluster", CLUSTER, "--once"];
    site.ok(&once).await;
    server
        .sql("UPDATE t SET payload = 'second' WHERE id % 3 = 0")
        .await;
    site.ok(&once).await;
    let mut protect = Protect::begin(&site, &[]).await;
    server.sql("DELETE FROM t WHERE id % 5 = 0").await;
    site.wait_restorable(server.insert_position().await).await;
    let status = site.status().await.unwrap();
    assert_eq!(status["base_backups"], 2);
    let added = status["last_base_backup"]["new_bytes"].as_u64().unwrap();
    let all = status["base_backup_bytes"].as_u64().unwrap();
    assert!(added < all / 3, "{status:#}");
    assert!(
        status["requests"]["puts"].as_u64().unwrap() > 2,
        "{status:#}"
    );
    assert_eq!(status["requests"]["lists"], 0);
    assert_eq!(status["single_writer"], false);
    site.ok(&["snapshot", "create", "before"]).await;
    let before = oracle::digest(&server).await;
    server.sql("DELETE FROM t WHERE id > 10").await;

    // An outage in which commits go on: nothing is lost, and nothing is claimed.
    proxy.set_down(true);
    let _ = site
        .run(&["snapshot", "list"])
        .await
        .expect(5)
        .says("s3://backups/team/sales");
    server
        .sql("INSERT INTO t VALUES (-1, 'during the outage')")
        .await;
    let after = oracle::digest(&server).await;
    proxy.set_down(false);
    site.wait_restorable(server.insert_position().await).await;
    protect.assert_running();

    for (to, expected) in [("snapshot:before", before), ("latest", after)] {
        let restored = site.restore(to, "restored", &[]).await;
        assert_eq!(oracle::digest(&restored.server).await, expected, "{to}");
        let found = oracle::amcheck_all(&restored.server).await;
        assert_eq!(found, Vec::<String>::new());
        restored.remove();
    }
    protect.stop().await;
    let shown = site.ok(&["inspect", "catalog/000000000001"]).await;
    assert!(shown.contains("cluster"), "{shown}");
    let seen = proxy.take_seen();
    assert!(!seen.iter().any(s3::Seen::is_list), "something listed");
    let faults = seen.iter().filter(|seen| seen.injected.is_some()).count();
    assert!(faults > 5, "{faults} faults in {} requests", seen.len());
    site.ok(&["verify"]).await;
    site.ok(&["verify", "--deep"]).await;
    site.ok(&["unprotect", "--cluster", CLUSTER]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_object_of_a_bucket_is_named() {
    let server = server_with_rows().await;
    let bucket = StrictServer::start().await;
    let site = Site::in_bucket(PROGRAM, &server, &s3::url(bucket.endpoint(), "r"));
    site.ok(&["init"]).await;
    site.ok(&["protect", "--cluster", CLUSTER, "--once", "--no-slot"])
        .await;
    let files = borealis_testkit::program::files_below(&bucket.bucket());
    let pack = files
        .iter()
        .find(|file| file.display().to_string().contains("/packs/"))
        .unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
    let mut bytes = std::fs::read(pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(pack, &bytes).unwrap();
    let _ = site.run(&["verify", "--deep"]).await.expect(6).says(&name);
    std::fs::remove_file(pack).unwrap();
    let _ = site.run(&["verify"]).await.expect(6).says(&name);
    let target = site.target("restored");
    let _ = site
        .run(&["restore", "--to", "latest", "--target-dir", &target])
        .await
        .expect(6)
        .says(&name);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_writer_mode_is_named_and_can_be_forbidden() {
    let server = server_with_rows().await;
    let bucket = MotoServer::start().await;
    let proxy = FaultProxy::start(&bucket.endpoint(), HttpFaults::default(), 1).await;
    proxy.ignore_conditions();
    let url = s3::url(proxy.endpoint(), "r");
    let forbidden = format!("{url}&single-writer=forbid");
    let site = Site::in_bucket(PROGRAM, &server, &url);

    let probe = site.run(&["repository", "probe"]).await.expect(0);
    let _ = probe.says("WEAKER").says("single-writer mode");
    let _ = site
        .run(&["repository", "probe", "--repository", &forbidden])
        .await
        .expect(3)
        .says("PROBLEM");
    let _ = site
        .run(&["init", "--repository", &forbidden])
        .await
        .expect(3)
        .says("single-writer=forbid");
    assert!(!site.key_file().exists(), "a key was made for nothing");

    let _ = site
        .run(&["init"])
        .await
        .expect(0)
        .says("single-writer mode");
    let mut protect = Protect::start(&site, &[]);
    protect.wait_window(&site).await;
    let status = site.status().await.unwrap();
    assert_eq!(status["single_writer"], true, "{status:#}");
    assert!(status["requests"]["unfenced_creates"].as_u64().unwrap() > 0);
    let _ = site
        .run(&["status"])
        .await
        .expect(0)
        .says("single-writer mode");
    // The living one is told, and nothing else may write.
    let _ = site.run(&["protect", "--cluster", CLUSTER]).await.expect(3);
    protect.stop().await;
    let _ = site
        .run(&[
            "protect",
            "--cluster",
            CLUSTER,
            "--once",
            "--repository",
            &forbidden,
        ])
        .await
        .expect(3)
        .says("single-writer=forbid");
    site.ok(&["verify", "--deep"]).await;
}

/// The program with an environment of its own and nothing else of AWS's.
fn run(arguments: &[&str], environment: &BTreeMap<&str, String>, dir: &TempDir) -> Answer {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("AWS_") || name.starts_with("BOREALIS_") {
            command.env_remove(&*name);
        }
    }
    let output = command
        .args(arguments)
        .env("HOME", dir.path())
        .envs(environment)
        .output()
        .unwrap();
    Answer {
        arguments: arguments.join(" "),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn probe(url: &str, environment: &[(&'static str, String)], dir: &TempDir) -> Answer {
    let arguments = ["repository", "probe", "--repository", url, "-vv"];
    let environment: BTreeMap<_, _> = environment.iter().cloned().collect();
    let answer = tokio::task::block_in_place(|| run(&arguments, &environment, dir));
    assert!(
        !answer.to_string().contains(SECRET_KEY),
        "a secret is shown"
    );
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_the_environment_and_from_profiles_and_are_never_shown() {
    let bucket = StrictServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let url = s3::url(bucket.endpoint(), "r");
    let no_machine = ("AWS_EC2_METADATA_DISABLED", "true".to_owned());

    let none = probe(&url, std::slice::from_ref(&no_machine), &dir);
    let _ = none
        .expect(3)
        .says("no AWS credentials were found")
        .says("AWS_PROFILE");

    let keys = |secret: &str| {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
        ]
    };
    let _ = probe(&url, &keys(SECRET_KEY), &dir)
        .expect(0)
        .says("can hold a repository");
    let wrong = probe(&url, &keys("wrong-secret"), &dir);
    let wrong = wrong.expect(3).says("SignatureDoesNotMatch");
    assert!(!wrong.to_string().contains("wrong-secret"));

    let folder = dir.path().join(".aws");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(
        folder.join("credentials"),
        format!(
            "[backup]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        ),
    )
    .unwrap();
    let profile = ("AWS_PROFILE", "backup".to_owned());
    let _ = probe(&url, &[profile, no_machine.clone()], &dir).expect(0);
    let in_url = format!("{url}&profile=backup");
    let _ = probe(&in_url, &[no_machine], &dir).expect(0);

    let in_place = url.replace("s3://", &format!("s3://{ACCESS_KEY}:{SECRET_KEY}@"));
    let answer = run(
        &["status", "--repository", &in_place, "--key-file", "/k"],
        &BTreeMap::new(),
        &dir,
    );
    assert!(!answer.stderr.contains(SECRET_KEY), "{}", answer.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_the_machine_and_a_private_authority_is_trusted_only_where_named() {
    let bucket = StrictServer::start_tls().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = s3::MachineMetadata::start().await;
    let url = s3::url(bucket.endpoint(), "r");
    let asks = [(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        machine.endpoint().to_owned(),
    )];
    let trusting = format!("{url}&ca-file={}", bucket.ca_file().unwrap().display());
    let _ = probe(&trusting, &asks, &dir).expect(0);
    let _ = probe(&url, &asks, &dir).expect(5).says("certificate");
    let missing = format!("{url}&ca-file=/nonexistent/ca.pem");
    let _ = probe(&missing, &asks, &dir)
        .expect(2)
        .says("/nonexistent/ca.pem");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_served_log_from_the_bucket() {
    let server = server_with_rows().await;
    let bucket = StrictServer::start().await;
    let site = Site::in_bucket(PROGRAM, &server, &s3::url(bucket.endpoint(), "r"));
    site.ok(&["init"]).await;
    let protect = Protect::begin(&site, &[]).await;
    let target = site.target("standby");
    let arguments = [
        "restore",
        "--to",
        "latest",
        "--target-dir",
        &target,
        "--standby",
    ];
    site.ok(&arguments).await;
    let segment = server
        .value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        .await;
    server.sql("INSERT INTO t VALUES (-5, 'later')").await;
    server.sql("SELECT pg_switch_wal()").await;
    // A position just past a switch is not reached before the next record.
    server.sql("INSERT INTO t VALUES (-6, 'last')").await;
    site.wait_restorable(server.insert_position().await).await;
    let fetched = Path::new(&target).join("fetched");
    wait_until(
        "the segment",
        borealis_testkit::program::DEADLINE,
        async || {
            let _ = std::fs::remove_file(Path::new(&target).join("pg_wal").join(&segment));
            let output = site
                .command(&["wal", "fetch", &segment, "fetched"])
                .current_dir(&target)
                .output()
                .await
                .unwrap();
            output.status.success().then_some(())
        },
    )
    .await;
    let served = std::fs::metadata(&fetched).unwrap().len();
    assert_eq!(served, 16 << 20);
    protect.stop().await;
    drop(bucket);
    // "Could not look" is not "there is none".
    let output = site
        .command(&["wal", "fetch", &segment, "again"])
        .current_dir(&target)
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(200));
}
