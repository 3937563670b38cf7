//! The table of `check`, judged purely and against a real server.

use borealis_pg_server::catalog;
use borealis_pg_server::check::{CheckFacts, Finding, Severity, findings};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::data_dir::Access;
use borealis_pg_server::source::{ServerFacts, Setting};
use borealis_testkit::TestServer;
use borealis_testkit::server::ServerOptions;

fn problems(found: &[Finding]) -> Vec<&str> {
    found
        .iter()
        .filter(|finding| finding.severity == Severity::Problem)
        .map(|finding| finding.subject.as_str())
        .collect()
}

async fn look(info: &ConnInfo, server: Option<&TestServer>) -> (CheckFacts, Vec<Finding>) {
    let access = match server {
        Some(server) => Access::Local(server.data_dir().to_owned()),
        None => Access::Agentless {
            because: "asked for".to_owned(),
        },
    };
    let facts = CheckFacts::read(info, &access).await.expect("readable");
    let found = findings(&facts);
    (facts, found)
}

#[tokio::test]
async fn bare_role_lacks_everything_and_the_printed_sql_gives_it() {
    let mut server = TestServer::start(ServerOptions::default()).await;
    // In the words of 14 and 15, and of 16 and later.
    server.allow_in_log("must be superuser or replication role to start walsender");
    server.allow_in_log("permission denied to start WAL sender");
    server.sql("CREATE ROLE \"Ann's\" LOGIN PASSWORD 'x'").await;
    let mut info = server.info();
    info.user = "Ann's".to_owned();
    let (_, found) = look(&info, None).await;
    let missing = problems(&found);
    let (start, stop) = match server.binaries().major {
        14 => (
            "EXECUTE pg_start_backup(text,boolean,boolean)",
            "EXECUTE pg_stop_backup(boolean,boolean)",
        ),
        _ => (
            "EXECUTE pg_backup_start(text,boolean)",
            "EXECUTE pg_backup_stop(boolean)",
        ),
    };
    for subject in [
        "role Ann's",
        start,
        stop,
        "EXECUTE pg_create_restore_point(text)",
        "EXECUTE pg_read_binary_file(text,bigint,bigint,boolean)",
        "EXECUTE pg_ls_dir(text,boolean,boolean)",
        "EXECUTE pg_stat_file(text,boolean)",
        "pg_read_all_settings",
        "replication connection",
    ] {
        assert!(missing.contains(&subject), "{subject}: {missing:?}");
    }
    assert_eq!(missing.len(), 9, "{missing:?}");
    for finding in &found {
        if finding.severity == Severity::Problem {
            server
                .sql(finding.sql.as_deref().expect("can be pasted"))
                .await;
        }
    }
    let (_, found) = look(&info, None).await;
    assert_eq!(problems(&found), Vec::<&str>::new());
    // With the data directory at hand, less is asked for.
    let (_, found) = look(&info, Some(&server)).await;
    assert_eq!(problems(&found), Vec::<&str>::new());
    assert!(
        !found
            .iter()
            .any(|f| f.subject.contains("pg_read_binary_file"))
    );
}

#[tokio::test]
async fn unfit_settings_are_problems_with_sql_that_mends_them() {
    let mut server = TestServer::start(
        ServerOptions::default()
            .with("wal_level", "minimal")
            .with("max_wal_senders", "0")
            .with("max_replication_slots", "0")
            .with("full_page_writes", "off"),
    )
    .await;
    server.allow_in_log("number of requested standby connections exceeds max_wal_senders");
    server.allow_in_log("WAL level is \"minimal\"");
    server.allow_in_log("remaining connection slots are reserved");
    let (_, found) = look(&server.info(), Some(&server)).await;
    assert_eq!(
        problems(&found),
        [
            "wal_level",
            "full_page_writes",
            "max_wal_senders",
            "max_replication_slots",
            "replication connection"
        ]
    );
    for finding in found.iter().filter(|f| f.severity == Severity::Problem) {
        let sql = finding.sql.as_deref().expect("can be pasted");
        for statement in sql
            .split(';')
            .filter(|s| !s.trim().is_empty() && !s.contains("--"))
        {
            server.sql(statement).await;
        }
    }
    server.restart().await;
    let (_, found) = look(&server.info(), Some(&server)).await;
    assert_eq!(problems(&found), Vec::<&str>::new());
}

#[tokio::test]
async fn data_directory_of_another_cluster_is_a_problem() {
    let server = TestServer::start(ServerOptions::default()).await;
    let other = TestServer::start(ServerOptions::default()).await;
    let (_, found) = look(&server.info(), Some(&other)).await;
    assert_eq!(problems(&found), ["data directory"]);
}

#[tokio::test]
async fn facts_decide_what_is_said() {
    let server = TestServer::start(ServerOptions::default()).await;
    let (facts, _) = look(&server.info(), Some(&server)).await;
    let with = |change: &dyn Fn(&mut CheckFacts)| {
        let mut changed = facts.clone();
        change(&mut changed);
        findings(&changed)
    };
    let severity = |found: Vec<Finding>, subject: &str| {
        found
            .into_iter()
            .find(|f| f.subject == subject)
            .unwrap_or_else(|| panic!("{subject} is absent"))
            .severity
    };
    let set = |facts: &mut ServerFacts, name: &str, value: &str| {
        facts.settings.0.insert(
            name.to_owned(),
            Setting {
                value: value.to_owned(),
                unit: None,
                source: "test".to_owned(),
                pending_restart: false,
            },
        );
    };
    for version in [130_000, 190_000] {
        let found = with(&|f| f.server.version = version);
        assert_eq!(severity(found, "version"), Severity::Problem);
    }
    for version in [140_000, 189_999] {
        let found = with(&|f| f.server.version = version);
        assert_eq!(severity(found, "version"), Severity::Ok);
    }
    let found = with(&|f| set(&mut f.server, "wal_block_size", "16384"));
    assert_eq!(severity(found, "wal_block_size"), Severity::Problem);
    let found = with(&|f| f.not_entered = vec!["shop".to_owned()]);
    let connect = (found.iter()).find(|finding| finding.subject == "CONNECT");
    let grant = connect.and_then(|finding| finding.sql.as_deref());
    assert!(grant.is_some_and(|sql| sql.starts_with("GRANT CONNECT ON DATABASE \"shop\" TO ")));
    assert_eq!(severity(found, "CONNECT"), Severity::Advice);
    let found = with(&|f| f.pooled = true);
    assert_eq!(severity(found, "pooler"), Severity::Problem);
    let found = with(&|f| {
        set(&mut f.server, "data_checksums", "off");
        set(&mut f.server, "wal_log_hints", "off");
    });
    assert_eq!(severity(found.clone(), "data_checksums"), Severity::Advice);
    assert_eq!(severity(found, "wal_log_hints"), Severity::Advice);
    let found = with(&|f| set(&mut f.server, "max_slot_wal_keep_size", "-1"));
    assert_eq!(severity(found, "max_slot_wal_keep_size"), Severity::Advice);
    let found = with(&|f| set(&mut f.server, "max_slot_wal_keep_size", "1024"));
    assert_eq!(severity(found, "max_slot_wal_keep_size"), Severity::Ok);
    for (names, expected) in [
        ("", Severity::Ok),
        ("ANY 1 (a, b)", Severity::Ok),
        ("*", Severity::Advice),
        ("FIRST 1 (borealis)", Severity::Advice),
    ] {
        let found = with(&|f| set(&mut f.server, "synchronous_standby_names", names));
        assert_eq!(
            severity(found, "synchronous_standby_names"),
            expected,
            "{names}"
        );
    }
    let found = with(&|f| set(&mut f.server, "idle_replication_slot_timeout", "60"));
    assert_eq!(
        severity(found, "idle_replication_slot_timeout"),
        Severity::Advice
    );
}

#[tokio::test]
async fn indexes_that_depend_on_a_machines_collation_are_listed() {
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql(
            "CREATE TABLE t (a text, b text COLLATE \"C\", c text COLLATE \"und-x-icu\", d int); \
             CREATE INDEX by_a ON t (a); CREATE INDEX by_b ON t (b); \
             CREATE INDEX \"By C\" ON t (d, c); CREATE INDEX by_d ON t (d); \
             CREATE EXTENSION amcheck",
        )
        .await;
    let sql = server.session("postgres").await;
    let facts = ServerFacts::read(&sql).await.expect("readable");
    let catalog = catalog::read(&sql, &facts.databases, &facts.settings)
        .await
        .expect("readable");
    // The database itself sorts by bytes (C.UTF-8).
    let ours: Vec<_> = catalog
        .indexes
        .iter()
        .filter(|index| index.database == "postgres")
        .map(|index| {
            (
                index.index.as_str(),
                index.table.as_str(),
                index.providers.concat(),
            )
        })
        .collect();
    assert_eq!(ours, [("public.\"By C\"", "public.t", "i".to_owned())]);
    assert!(
        catalog
            .collations
            .iter()
            .any(|c| c.collation.contains("und-x-icu"))
    );
    assert!(
        catalog
            .extensions
            .iter()
            .any(|e| e.name == "amcheck" && e.database == "postgres")
    );
    assert!(catalog.unread.is_empty());
}
