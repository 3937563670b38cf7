//! Servers that outlive whoever started them, and ones that do not start.

use std::time::Duration;

use borealis_base::{ErrorKind, SystemClock};
use borealis_pg_server::instance::running_pid;
use borealis_pg_server::instance::{Instance, Launch, LogFact, LogTail, StopMode, log_fact};
use borealis_testkit::TestServer;
use borealis_testkit::server::{DEADLINE, ServerOptions, system_user};

fn launch(server: &TestServer) -> Launch {
    Launch {
        binaries: server.binaries().clone(),
        data_dir: server.data_dir().to_owned(),
        config_file: None,
        log_file: server.log_file(),
        user: system_user(),
        settings: vec![
            ("port".to_owned(), server.port().to_string()),
            (
                "unix_socket_directories".to_owned(),
                server.info().hosts[0].name.clone(),
            ),
            ("cluster_name".to_owned(), "it's ours".to_owned()),
        ],
    }
}

#[tokio::test]
async fn detached_server_is_started_attached_and_stopped() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.stop().await;
    assert_eq!(running_pid(server.data_dir()).expect("readable"), None);
    let mut tail = LogTail::from_end(&server.log_file());
    let mut started = launch(&server).start_detached().await.expect("starts");
    let link = started
        .wait_ready(&server.info(), true, DEADLINE, &SystemClock)
        .await
        .expect("answers");
    let name: String = link
        .value("SELECT current_setting('cluster_name')")
        .await
        .expect("readable");
    assert_eq!(name, "it's ours");
    let facts: Vec<_> = tail
        .lines()
        .expect("readable")
        .iter()
        .filter_map(|line| log_fact(line))
        // What a login is told that comes early on a slow machine.
        .filter(|fact| !matches!(fact, LogFact::Failure(text) if text.contains("starting up")))
        .collect();
    assert_eq!(facts, [LogFact::Ready]);
    assert_eq!(
        running_pid(server.data_dir()).expect("readable"),
        Some(started.pid())
    );
    drop((started, link));
    // A handle is nothing that the server needs.
    let mut attached = Instance::attach(server.data_dir(), &server.log_file()).expect("runs");
    assert!(attached.is_running());
    attached
        .stop(StopMode::Fast, DEADLINE, &SystemClock)
        .await
        .expect("stops");
    let none = Instance::attach(server.data_dir(), &server.log_file()).expect_err("has ended");
    assert_eq!(none.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn pid_file_of_a_crash_is_no_running_server() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.kill();
    assert!(server.data_dir().join("postmaster.pid").exists());
    assert_eq!(running_pid(server.data_dir()).expect("readable"), None);
}

#[tokio::test]
async fn server_that_does_not_start_says_why() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    server.allow_in_log("unrecognized configuration parameter");
    server.stop().await;
    let mut launch = launch(&server);
    launch
        .settings
        .push(("colour".to_owned(), "blue".to_owned()));
    let error = launch
        .start()
        .expect("is spawned")
        .wait_ready(&server.info(), true, Duration::from_secs(30), &SystemClock)
        .await
        .expect_err("does not start");
    assert!(error.to_string().contains("colour"), "{error}");
}
