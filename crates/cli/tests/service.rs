//! `protect` as a service: a test that plays systemd's part with a socket of its own, and what the unit says.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use borealis_cli::args::Cli;
use borealis_operations::protect::pulse::SIGN_PAUSE_MAX;
use borealis_testkit::program::DEADLINE;
use borealis_testkit::{Protect, ServerOptions, Site, TestServer, wait_until};
use clap::CommandFactory;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging");

/// The service manager's end of the socket: every line that it was sent, in order.
struct Manager {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let received = lines.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                received
                    .lock()
                    .unwrap()
                    .extend(text.lines().map(str::to_owned));
            }
        });
        Self { lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|seen| *seen == line).count()
    }

    async fn wait(&self, what: &str, mut seen: impl FnMut(&[String]) -> bool) {
        wait_until(what, DEADLINE, async || seen(&self.lines()).then_some(())).await;
    }
}

fn is_status(line: &str, words: &str) -> bool {
    line.starts_with("STATUS=") && line.contains(words)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_is_told_when_log_streams_that_it_goes_on_and_that_it_stops() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    let mut site = Site::init(PROGRAM, &server).await;
    let socket = site.path().join("notify");
    let manager = Manager::listen(&socket);
    site.set_variable("NOTIFY_SOCKET", &socket.display().to_string());
    site.set_variable("WATCHDOG_USEC", "900000000");
    let protect = Protect::start(&site, &[]);

    let ready = |lines: &[String]| lines.iter().any(|line| line == "READY=1");
    manager.wait("protect to be ready", ready).await;
    // Ready means that the server sends its log over our slot, and it says so before.
    let active = "SELECT count(*)::text FROM pg_replication_slots WHERE active";
    assert_eq!(server.value(active).await, "1");
    let lines = manager.lines();
    let at = lines.iter().position(|line| line == "READY=1").unwrap();
    assert!(
        lines[..at]
            .iter()
            .any(|line| is_status(line, "streaming log from")),
        "{lines:?}"
    );

    // An idle server: signs go on, since the loops turn.
    let signs = manager.count("WATCHDOG=1");
    manager
        .wait("signs of life", |lines| {
            lines.iter().filter(|line| *line == "WATCHDOG=1").count() >= signs + 3
        })
        .await;
    server.sql("CREATE TABLE t AS SELECT 1 AS id").await;
    manager
        .wait("a status with the position", |lines| {
            lines
                .iter()
                .any(|line| is_status(line, "log stored up to "))
        })
        .await;

    // A server that is away is told, and a stream that is back makes nothing ready once more.
    server.stop().await;
    manager
        .wait("a status of the broken stream", |lines| {
            lines.iter().any(|line| is_status(line, "connecting again"))
        })
        .await;
    server.start_again().await;
    let streams = |lines: &[String]| {
        lines
            .iter()
            .filter(|line| is_status(line, "streaming log from"))
            .count()
            >= 2
    };
    manager.wait("the stream to be back", streams).await;

    assert_eq!(manager.count("STOPPING=1"), 0);
    protect.stop().await;
    manager
        .wait("the end to be told", |lines| {
            lines.iter().any(|line| line == "STOPPING=1")
        })
        .await;
    assert_eq!(manager.count("READY=1"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ready_before_log_streams_and_no_sign_is_given_that_nobody_asked_for() {
    let server = TestServer::start(ServerOptions::default()).await;
    let mut site = Site::init(PROGRAM, &server).await;
    let socket = site.path().join("notify");
    let manager = Manager::listen(&socket);
    site.set_variable("NOTIFY_SOCKET", &socket.display().to_string());
    let first = Protect::begin(&site, &[]).await;
    assert_eq!(manager.count("READY=1"), 1);
    assert_eq!(manager.count("WATCHDOG=1"), 0, "WATCHDOG_USEC is not set");
    // A second one is refused, and was never ready.
    let second = site.run(&["protect", "--cluster", "main"]).await;
    let _refused = second.expect(3).says("protects this cluster");
    assert_eq!(manager.count("READY=1"), 1);
    first.stop().await;
}

/// The settings of the unit; one that stands twice keeps both values.
fn unit() -> BTreeMap<String, Vec<String>> {
    let path = format!("{PACKAGING}/systemd/borealis-protect@.service");
    let mut settings = BTreeMap::<_, Vec<String>>::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if line.starts_with('#') {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            settings
                .entry(name.to_owned())
                .or_default()
                .push(value.to_owned());
        }
    }
    settings
}

#[test]
fn the_unit_spares_the_servers_memory_and_sees_other_writers() {
    let unit = unit();
    // `RemoveIPC=` removes what belongs to the unit's user when it stops: the shared memory and semaphores of a
    // server that runs as the same one (`runtime.sgml`, systemd RemoveIPC). The others hide processes of
    // other users and the boot's identity, by which a living writer is told from a dead one.
    for name in [
        "RemoveIPC",
        "DynamicUser",
        "PrivateIPC",
        "ProtectProc",
        "ProcSubset",
        "PrivatePIDs",
        "ProtectKernelTunables",
        "ProtectControlGroups",
    ] {
        assert!(!unit.contains_key(name), "{name} is set");
    }
    assert_eq!(unit["LimitCORE"], ["0"], "a core holds the key");
}

#[test]
fn the_unit_starts_the_program_and_leaves_one_that_was_fenced_alone() {
    let unit = unit();
    let command = &unit["ExecStart"][0];
    let words = command
        .replace("%i", "main")
        .replace("$BOREALIS_PROTECT_OPTIONS", "");
    let words: Vec<&str> = words.split_whitespace().collect();
    assert_eq!(words[0], "/usr/bin/borealis");
    Cli::command().try_get_matches_from(words).unwrap();
    // Usage and fenced, by docs/exit-codes.md.
    assert_eq!(unit["RestartPreventExitStatus"], ["2 7"]);
    assert_eq!(
        (&*unit["Type"][0], &*unit["Restart"][0]),
        ("notify", "on-failure")
    );
    let minutes: u64 = unit["WatchdogSec"][0]
        .strip_suffix("min")
        .unwrap()
        .parse()
        .unwrap();
    assert!(Duration::from_mins(minutes) > SIGN_PAUSE_MAX);
}

#[test]
fn the_samples_name_what_the_program_reads() {
    let mut known: Vec<String> = vec!["BOREALIS_PROTECT_OPTIONS".to_owned()];
    let command = Cli::command();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    }
    let text = std::fs::read_to_string(format!("{PACKAGING}/borealis.env")).unwrap();
    let named: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("BOREALIS_"))
        .collect();
    assert!(named.len() >= 4, "{named:?}");
    for name in named {
        assert!(
            known.iter().any(|variable| variable == name),
            "{name} means nothing"
        );
    }
    let sample = std::process::Command::new(PROGRAM)
        .env_clear()
        .args(["--config", &format!("{PACKAGING}/config.toml"), "status"])
        .output()
        .unwrap();
    // It is read; what it names is not there.
    let told = String::from_utf8_lossy(&sample.stderr);
    assert!(
        told.contains("/var/lib/borealis") || told.contains("/etc/borealis/keys"),
        "{told}"
    );
    assert!(!told.contains("configuration file"), "{told}");
}
