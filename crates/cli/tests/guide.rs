//! The commands of `docs/guide.md`, in their order, against a real server.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::{Path, PathBuf};

use borealis_pg_server::instance::binaries::BIN_VARIABLE;
use borealis_testkit::program::DEADLINE;
use borealis_testkit::server::{ServerOptions, free_port};
use borealis_testkit::{Protect, Site, TestServer, wait_until};
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide.md");

/// The lines of the `sh` blocks; a line that ends in a backslash goes on in the next.
fn commands(guide: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in guide.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            text if inside && !text.is_empty() && !text.starts_with('#') => {
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
    let guide = "text\n```sh\nborealis a\nborealis b \\\n  --c\n```\n```toml\nx = 1\n```\n";
    assert_eq!(commands(guide), ["borealis a", "borealis b --c"]);
}

/// A folder with nothing but the program, for `PATH`: where the user of a standby can run it.
fn program_folder(site: &Site) -> PathBuf {
    let folder = site.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(PROGRAM, folder.join("borealis")).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_does_what_it_says() {
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    let site = Site::bare(PROGRAM, &server);
    let (work, port) = (site.path().join("work"), free_port().to_string());
    let standby_port = free_port().to_string();
    std::fs::create_dir(&work).unwrap();
    let path = format!(
        "{}:{}",
        program_folder(&site).display(),
        std::env::var("PATH").unwrap()
    );
    let mut protect: Option<Protect> = None;
    let commands = commands(&std::fs::read_to_string(GUIDE).unwrap());
    assert!(commands.len() > 8, "the guide lost its commands");
    for command in &commands {
        if command.starts_with("borealis protect") && !command.contains("--once") {
            let arguments: Vec<_> = command.split_whitespace().skip(4).collect();
            assert!(
                command.starts_with("borealis protect --cluster main"),
                "{command}"
            );
            protect = Some(Protect::begin(&site, &arguments).await);
            continue;
        }
        if let Some(running) = &mut protect {
            running.assert_running();
        }
        if command.starts_with("borealis unprotect")
            && let Some(running) = protect.take()
        {
            running.stop().await;
        }
        let output = Command::new("sh")
            .args(["-euc", command])
            .env("PATH", &path)
            .env(BIN_VARIABLE, &server.binaries().dir)
            .env("WORK", &work)
            .env("RESTORED_PORT", &port)
            .env("STANDBY_PORT", &standby_port)
            .env("BOREALIS_CONFIG", site.path().join("config.toml"))
            .env("BOREALIS_REPOSITORY", site.repository())
            .env("BOREALIS_KEY_FILE", site.key_file())
            .env("BOREALIS_SOURCE", server.dsn())
            .current_dir(&work)
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
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(server.value(slots).await, "0");
    let planned = work.join("planned");
    assert!(!planned.exists(), "--dry-run wrote {}", planned.display());

    let target = work.join("restored");
    let log = Path::new(&target).join("borealis_restore.log");
    let restored = TestServer::attach(&target, server.binaries().major, &log);
    assert_eq!(restored.port().to_string(), port);
    let answer = wait_until("the restored server", DEADLINE, async || {
        Some(restored.value("SELECT count(*)::text FROM t").await)
    })
    .await;
    assert_eq!(answer, "1");
}
