//! The program with root keys in key services, and changes of keys from one to the other.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use borealis_keys::{FileKey, KeyProvider};
use borealis_testkit::kms::KeyState;
use borealis_testkit::program::{Answer, CLUSTER, files_below, text};
use borealis_testkit::s3::{self, SECRET_KEY};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::vault::TOKEN;
use borealis_testkit::{KmsServer, Protect, Site, TestServer, VaultServer, oracle, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const REFUSED: i32 = 3;
const UNREACHABLE: i32 = 5;
const KEY_UNUSABLE: i32 = 10;
const LOG_UNKNOWN: i32 = 200;
const ONCE: [&str; 5] = ["protect", "--cluster", CLUSTER, "--once", "--no-slot"];

async fn server_with_rows() -> TestServer {
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql("CREATE TABLE t (id int PRIMARY KEY, payload text NOT NULL)")
        .await;
    server
        .sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 2000) g")
        .await;
    server
}

/// A site whose program can ask key services.
fn site(server: &TestServer) -> Site {
    let mut site = Site::bare(PROGRAM, server);
    for (name, value) in s3::environment() {
        site.set_variable(name, value);
    }
    site.set_variable("VAULT_TOKEN", TOKEN);
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_path_holds_with_a_key_of_kms_and_a_key_that_may_not_be_used_ends_it_at_once() {
    let (server, kms) = (server_with_rows().await, KmsServer::start().await);
    let arn = kms.create_key("backup").await;
    let mut site = site(&server);
    site.use_key(&kms.url("alias/backup"), &server.dsn());
    let _ = site.run(&["init"]).await.expect(0).says(&arn);
    assert!(!site.key_file().exists(), "a key file was made");
    site.ok(&["check"]).await;
    site.ok(&ONCE).await;
    let before = oracle::digest(&server).await;
    site.ok(&["snapshot", "create", "kept", "--at", "latest"])
        .await;
    let target = site.target("planned");
    let restore = ["restore", "--to", "latest", "--target-dir", &target];

    // A no, from now on: whatever is run says so, with the key and what to do.
    for (state, words) in [
        (KeyState::Disabled, "is disabled"),
        (KeyState::PendingDeletion, "pending deletion"),
    ] {
        kms.set_state(&arn, state).await;
        for arguments in [&["status"][..], &["verify"], &ONCE, &restore] {
            let answer = site.run(arguments).await.expect(KEY_UNUSABLE);
            let answer = answer.says(words).says(&arn).says("hint: Nothing can be");
            assert!(!answer.stderr.contains("damaged"), "{answer}");
        }
    }
    let answer = site.run(&["status", "--json"]).await.expect(KEY_UNUSABLE);
    assert!(
        answer.stderr.contains("\"error\":\"key unusable\""),
        "{answer}"
    );
    kms.set_state(&arn, KeyState::Enabled).await;
    kms.set_forbidden(true);
    let answer = site.run(&["status"]).await.expect(KEY_UNUSABLE);
    let _ = answer.says("AccessDeniedException").says("kms:Decrypt");
    kms.set_forbidden(false);
    kms.set_down(true);
    let answer = site.run(&["status"]).await.expect(UNREACHABLE);
    let _ = answer.says(kms.endpoint());
    kms.set_down(false);

    let restored = site.restore("snapshot:kept", "restored", &[]).await;
    assert_eq!(oracle::digest(&restored.server).await, before);
    restored.remove();
    site.ok(&["verify", "--deep"]).await;
    assert_standby_asks_kms(&site, &kms, &arn).await;
}

/// A standby finds the key by the file of its own restore, and "could not look" is not "there is none".
async fn assert_standby_asks_kms(site: &Site, kms: &KmsServer, arn: &str) {
    let target = site.target("standby");
    let restore = ["restore", "--to", "latest", "--target-dir", &target];
    site.ok(&[&restore[..], &["--standby"]].concat()).await;
    let fetch = async || {
        let mut command = site.command(&["wal", "fetch", "000000010000000000000001", "fetched"]);
        let empty = site.path().join("empty.toml");
        std::fs::write(&empty, "").unwrap();
        command.current_dir(&target).env("BOREALIS_CONFIG", empty);
        command.output().await.unwrap().status.code()
    };
    assert_ne!(fetch().await, Some(LOG_UNKNOWN));
    kms.set_state(arn, KeyState::Disabled).await;
    assert_eq!(fetch().await, Some(LOG_UNKNOWN));
}

/// Waits until the log of a running protection holds `words`.
async fn wait_log(protect: &mut Protect, words: &str) {
    wait_until(words, borealis_testkit::program::DEADLINE, async || {
        protect.log().contains(words).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_protect_bears_silence_and_stops_publishing_at_a_no() {
    let (server, kms) = (server_with_rows().await, KmsServer::start().await);
    let arn = kms.create_key("backup").await;
    let mut site = site(&server);
    site.use_key(&kms.url(&arn), &server.dsn());
    site.ok(&["init"]).await;
    let often = ["--key-check-interval", "300ms"];
    let mut protect = Protect::begin(&site, &often).await;

    kms.set_down(true);
    wait_log(&mut protect, "gives no answer since").await;
    server.sql("INSERT INTO t VALUES (-1, 'in silence')").await;
    let until = server.insert_position().await;
    kms.set_down(false);
    wait_log(&mut protect, "answers again").await;
    site.wait_restorable(until).await;
    protect.assert_running();

    kms.set_state(&arn, KeyState::Disabled).await;
    assert_eq!(protect.wait_end().await, Some(KEY_UNUSABLE));
    assert!(
        protect.log().contains(&format!("{arn} is disabled")),
        "{}",
        protect.log()
    );
    drop(protect);
    let objects = site.objects();
    server
        .sql("INSERT INTO t VALUES (-2, 'while disabled')")
        .await;
    let mut refused = Protect::start(&site, &often);
    assert_eq!(refused.wait_end().await, Some(KEY_UNUSABLE));
    drop(refused);
    assert_eq!(site.objects(), objects, "something was published");

    // The slot has kept what was written meanwhile.
    kms.set_state(&arn, KeyState::Enabled).await;
    let digest = oracle::digest(&server).await;
    let until = server.insert_position().await;
    let patience = ["--key-check-interval", "300ms", "--key-outage-max", "1s"];
    let mut protect = Protect::start(&site, &patience);
    site.wait_restorable(until).await;
    kms.set_down(true);
    assert_eq!(protect.wait_end().await, Some(UNREACHABLE));
    assert!(protect.log().contains("for too long"), "{}", protect.log());
    kms.set_down(false);
    let restored = site.restore("latest", "restored", &[]).await;
    assert_eq!(oracle::digest(&restored.server).await, digest);
    restored.remove();
}

/// Everything that the program has said, to be looked through for secrets.
#[derive(Default)]
struct Said(String);

impl Said {
    async fn run(&mut self, site: &Site, arguments: &[&str]) -> Answer {
        let answer = site.run(&[arguments, &["-vv"]].concat()).await;
        let _ = write!(self.0, "{answer}");
        answer
    }
}

/// The forms in which a secret could show.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex = secret.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let base64 = STANDARD.encode(secret);
    vec![
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        base64.trim_end_matches('=').as_bytes().to_vec(),
        format!("{secret:?}").into_bytes(),
    ]
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_goes_from_a_file_to_kms_to_vault_and_each_old_backup_restores() {
    let (server, kms, vault) = (
        server_with_rows().await,
        KmsServer::start().await,
        VaultServer::start().await,
    );
    let arn = kms.create_key("backup").await;
    vault.create_key("backup");
    let mut site = site(&server);
    let mut said = Said::default();
    let _ = said.run(&site, &["init"]).await.expect(0);
    let _ = said.run(&site, &ONCE).await.expect(0);
    let first = oracle::digest(&server).await;
    site.ok(&["snapshot", "create", "first", "--at", "latest"])
        .await;
    let packs = |site: &Site| -> Vec<String> {
        let names = site.objects().into_iter();
        names.filter(|name| name.contains("/packs/")).collect()
    };
    let before = packs(&site);

    let in_kms = kms.url("alias/backup");
    let rotate = ["key", "rotate", "--new-key", &in_kms];
    let _ = said
        .run(&site, &rotate)
        .await
        .expect(0)
        .says(&arn)
        .says("key renew");
    let answer = said.run(&site, &["status"]).await.expect(REFUSED);
    let _ = answer.says("is sealed for key").says(&arn);
    site.use_key(&in_kms, &server.dsn());
    assert_eq!(packs(&site), before, "a rotation rewrote backups");
    server.sql("UPDATE t SET payload = 'second'").await;
    let _ = said.run(&site, &ONCE).await.expect(0);
    let second = oracle::digest(&server).await;
    for (to, expected) in [("snapshot:first", &first), ("latest", &second)] {
        let restored = site.restore(to, "restored", &[]).await;
        assert_eq!(&oracle::digest(&restored.server).await, expected, "{to}");
        restored.remove();
    }

    let in_vault = vault.url("backup");
    let rotate = ["key", "rotate", "--new-key", &in_vault, "--renew"];
    let _ = said
        .run(&site, &rotate)
        .await
        .expect(0)
        .says("transit/keys/backup");
    let answer = said.run(&site, &["status"]).await.expect(REFUSED);
    let _ = answer.says("transit/keys/backup").says("Name with --key");
    site.use_key(&in_vault, &server.dsn());
    server.sql("DELETE FROM t WHERE id > 10").await;
    let _ = said.run(&site, &ONCE).await.expect(0);
    let third = oracle::digest(&server).await;

    // A new version of the key, the old one retired once the ring is wrapped anew.
    vault.rotate_key("backup");
    let _ = said.run(&site, &["key", "rewrap"]).await.expect(0);
    vault.set_min_decryption_version("backup", 2);
    let listed = site.json(&["key", "list"]).await;
    assert_eq!(
        listed["recipients"].as_array().unwrap().len(),
        1,
        "{listed:#}"
    );
    assert_eq!(text(&listed["recipients"][0], "scheme"), "vault");
    assert_eq!(text(&listed["recipients"][0], "version"), "2");
    let keys = listed["data_keys"].as_array().unwrap();
    let sealing = keys.iter().filter(|key| key["current"] == true).count();
    assert_eq!((keys.len(), sealing), (4, 2), "{listed:#}");
    let restored = site.restore("latest", "restored", &[]).await;
    assert_eq!(oracle::digest(&restored.server).await, third);
    restored.remove();
    site.ok(&["verify", "--deep"]).await;

    // The other commands, for what they say.
    let beside = site.target("beside.key");
    let beside_key = format!("file:{beside}");
    for arguments in [
        &["key", "add", "--new-key", &beside_key][..],
        &["key", "renew", "--recipient", &beside_key],
        &["key", "list", "--json"],
    ] {
        let _ = said.run(&site, arguments).await.expect(0);
    }
    let beside_id = FileKey::read(beside.as_ref()).unwrap().key_id();
    let remove = ["key", "remove", &beside_id.to_string()];
    let _ = said.run(&site, &remove).await.expect(0);

    for (change, words) in [
        (&(|| vault.set_sealed(true)) as &dyn Fn(), "is sealed"),
        (
            &|| vault.set_forbidden("decrypt", true),
            "permission denied",
        ),
        (&|| vault.set_token(TOKEN, false), "not valid"),
        (&|| vault.delete_key("backup"), "does not exist"),
    ] {
        change();
        let code = if words == "is sealed" {
            UNREACHABLE
        } else {
            KEY_UNUSABLE
        };
        let answer = said.run(&site, &["status"]).await.expect(code);
        let _ = answer.says(words).says("hint: ");
        vault.set_sealed(false);
        vault.set_forbidden("decrypt", false);
        vault.set_token(TOKEN, true);
    }

    let mut secrets = Vec::new();
    for file in [site.key_file(), beside.into()] {
        let text = std::fs::read_to_string(file).unwrap();
        let root = text.lines().find_map(|line| line.strip_prefix("key: "));
        secrets.extend(forms(&STANDARD.decode(root.unwrap()).unwrap()));
    }
    secrets.extend([TOKEN.as_bytes().to_vec(), SECRET_KEY.as_bytes().to_vec()]);
    for secret in &secrets {
        assert!(!holds(said.0.as_bytes(), secret), "a secret is shown");
    }
    for file in files_below(&site.repository()) {
        let bytes = std::fs::read(&file).unwrap();
        for secret in &secrets {
            assert!(!holds(&bytes, secret), "a secret is in {}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_protect_follows_a_renewal_and_stops_when_its_key_is_removed() {
    let server = server_with_rows().await;
    let site = site(&server);
    site.ok(&["init"]).await;
    let mut protect = Protect::begin(&site, &["--key-check-interval", "300ms"]).await;
    let second = site.target("second.key");
    let second_key = format!("file:{second}");
    site.ok(&["key", "add", "--new-key", &second_key]).await;
    let answer = site.run(&["key", "renew"]).await.expect(REFUSED);
    let _ = answer.says("is a recipient too").says("--recipient");
    site.ok(&["key", "renew", "--recipient", &second_key]).await;
    let listed = site.json(&["key", "list"]).await;
    let mut current = listed["data_keys"].as_array().unwrap().iter();
    let current = current.rfind(|key| key["current"] == true && key["cluster"] == CLUSTER);
    let current = text(current.unwrap(), "key");
    assert_eq!(listed["recipients"].as_array().unwrap().len(), 2);

    // What it stores is sealed with the new data key before long.
    wait_until(
        "the new data key",
        borealis_testkit::program::DEADLINE,
        async || {
            server
                .sql("INSERT INTO t SELECT max(id) + 1, 'after' FROM t")
                .await;
            let objects = site.objects();
            let entry = objects.iter().rfind(|name| {
                // Not one that is still being written.
                name.contains("/ledger/") && !name.contains('#')
            })?;
            let shown = site.json(&["inspect", entry]).await;
            (shown["data_key"] == current.as_str()).then_some(())
        },
    )
    .await;
    protect.assert_running();
    site.wait_restorable(server.insert_position().await).await;
    let digest = oracle::digest(&server).await;

    let first = text(&listed["recipients"][0], "key");
    let remove = ["key", "remove", &first];
    let _ = site.run(&remove).await.expect(REFUSED).says("opened with");
    let with_second = ["key", "remove", &first, "--key-file", &second];
    site.ok(&with_second).await;
    assert_eq!(protect.wait_end().await, Some(REFUSED));
    assert!(
        protect.log().contains("is sealed for key"),
        "{}",
        protect.log()
    );
    let _ = site.run(&["status"]).await.expect(REFUSED);
    let more = ["--key-file", second.as_str()];
    let restored = site.restore("latest", "restored", &more).await;
    assert_eq!(oracle::digest(&restored.server).await, digest);
    restored.remove();
}

/// Of a process that is not dumpable the kernel writes no core and gives its files in `/proc` to root
/// (`proc(5)`), so this one is run by somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn no_core_is_written_of_any_command() {
    use std::os::unix::fs::MetadataExt;

    let server = server_with_rows().await;
    let site = Site::init_as_server_user(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    let process = format!("/proc/{}", protect.pid());
    let owner = |file: &str| {
        std::fs::metadata(format!("{process}/{file}"))
            .unwrap()
            .uid()
    };
    assert_ne!(
        owner(""),
        0,
        "it is run as root, and this test shows nothing"
    );
    assert_eq!(owner("mem"), 0, "its memory belongs to its user");
    protect.stop().await;
}
