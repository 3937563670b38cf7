//! A cluster copied by hand, configured by this crate, and recovered by a real server.

use std::future::pending;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use borealis_base::{Branch, NoProgress, Position};
use borealis_pg_format::Version;
use borealis_pg_server::backup::BackupSession;
use borealis_pg_server::data_dir::config_files::gather;
use borealis_pg_server::data_dir::{DataDir, LocalDataDir};
use borealis_pg_server::recovery::{Goal, Origin, Place, Recovery, configure};
use borealis_pg_server::source::ServerFacts;
use borealis_testkit::TestServer;
use borealis_testkit::server::{ServerOptions, give_to, server_dir, system_user};
use borealis_testkit::waldump::records;

fn write(data_dir: &Path, path: &str, bytes: &[u8]) {
    let file = data_dir.join(path);
    std::fs::write(&file, bytes).expect("writable");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("ours");
    give_to(&file, system_user().as_ref());
}

fn copy(source: &Path, target: &Path, tablespace_directory: &str) {
    let listing = (LocalDataDir::new(source).listing(tablespace_directory)).expect("readable");
    std::fs::create_dir(target).expect("writable");
    for directory in
        std::iter::once(String::new()).chain(listing.directories.into_iter().map(|d| d.path))
    {
        let path = target.join(directory);
        std::fs::create_dir_all(&path).expect("writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("ours");
        give_to(&path, system_user().as_ref());
    }
    for file in listing.files {
        if let Ok(bytes) = std::fs::read(source.join(&file.path)) {
            write(target, &file.path, &bytes);
        }
    }
}

/// The start of the last commit record before `end`, by PostgreSQL's own reader.
async fn commit_before(server: &TestServer, from: Position, end: Position) -> Position {
    let records = records(server, from, end).await;
    let ends = records.iter().filter(|record| record.end.is_some());
    ends.map(|record| record.start).max().expect("a commit")
}

#[tokio::test]
async fn recovered_cluster_holds_what_came_before_the_target_and_nothing_of_its_parents() {
    let server = TestServer::start(
        ServerOptions::default()
            .with("archive_mode", "on")
            .with("archive_command", "true")
            .with("synchronous_standby_names", "")
            .with("wal_keep_size", "1GB")
            .with("max_connections", "37"),
    )
    .await;
    server.sql("CREATE TABLE t (x int)").await;
    let backup = BackupSession::start(&server.info(), "test", true, &NoProgress, pending())
        .await
        .expect("starts");
    let start = backup.started().position;
    let sql = server.session("postgres").await;
    let facts = ServerFacts::read(&sql).await.expect("readable");
    let version = Version::from_major(facts.major()).expect("is known");
    let dir = server_dir();
    let target = dir.path().join("restored");
    copy(server.data_dir(), &target, &version.tablespace_directory());
    let known = facts.config_files.each_ref().map(|path| path.as_deref());
    let config = gather(
        server.data_dir(),
        known,
        &LocalDataDir::new(server.data_dir()),
    )
    .expect("ends");
    let stop = backup.stop().await.expect("stops");
    write(&target, "backup_label", stop.label.as_bytes());

    sql.run("INSERT INTO t VALUES (1)").await.expect("inserted");
    let end: Position = sql
        .value("SELECT pg_current_wal_insert_lsn()")
        .await
        .expect("readable");
    let last = commit_before(&server, start, end).await;
    assert!(last > stop.position);
    sql.run("INSERT INTO t VALUES (2); SELECT pg_switch_wal()")
        .await
        .expect("inserted");

    let command = format!("cp {}/pg_wal/%f %p", server.data_dir().display());
    let made = configure(
        &Origin {
            config: &config,
            settings: &facts.settings,
            log_parameters: [0; 5],
        },
        &Place {
            data_dir: &target,
            port: 1,
            socket_directory: dir.path(),
            listen_addresses: None,
            cluster_name: "restored",
            exists: &|_| false,
            is_writable: &|_| true,
            has_library: &|_| true,
        },
        &Recovery {
            restore_command: &command,
            end_command: None,
            branch: Branch(1),
            goal: Goal::Promote(last),
        },
    );
    for file in &made.files {
        write(&target, &file.path, file.text.as_bytes());
    }
    let mut restored = TestServer::adopt(&target, facts.major(), &[]).await;
    assert_eq!(
        restored
            .value("SELECT string_agg(x::text, ',') FROM t")
            .await,
        "1"
    );
    assert_eq!(
        restored
            .value("SELECT timeline_id FROM pg_control_checkpoint()")
            .await,
        "2"
    );
    for (name, value) in [
        ("archive_mode", "off"),
        ("archive_command", "(disabled)"),
        ("max_connections", "37"),
        ("cluster_name", "restored"),
    ] {
        let shown = restored
            .value(&format!("SELECT current_setting('{name}')"))
            .await;
        assert_eq!(shown, value, "{name}");
    }
    // What recovery needed can go, and the cluster starts without it.
    write(
        &target,
        "postgresql.auto.conf",
        made.auto_after_recovery.as_bytes(),
    );
    restored.restart().await;
    assert_eq!(
        restored
            .value("SELECT current_setting('restore_command')")
            .await,
        ""
    );
    restored.sql("INSERT INTO t VALUES (3)").await;
    restored.kill();
}
