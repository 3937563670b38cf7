//! A role that lacks one right: `check` names it with the SQL that gives it, `protect` refuses with the
//! same words before it writes anything, and the SQL mends it.

use borealis_testkit::{Answer, ServerOptions, Site, TestServer};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const REFUSED: i32 = 3;
const ROLE: &str = "backup";

/// How a right is taken away, and what `check` calls it.
const RIGHTS: [(&str, &str); 5] = [
    ("ALTER ROLE backup NOREPLICATION", "role backup"),
    (
        "REVOKE EXECUTE ON FUNCTION pg_backup_start(text,boolean) FROM backup",
        "EXECUTE pg_backup_start(text,boolean)",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION pg_backup_stop(boolean) FROM backup",
        "EXECUTE pg_backup_stop(boolean)",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION pg_create_restore_point(text) FROM backup",
        "EXECUTE pg_create_restore_point(text)",
    ),
    (
        "REVOKE pg_read_all_settings FROM backup",
        "pg_read_all_settings",
    ),
];

/// A right or its name, as the server's major calls the two functions that 15 renamed.
fn named(text: &str, server: &TestServer) -> String {
    match server.binaries().major {
        14 => text
            .replace(
                "pg_backup_start(text,boolean)",
                "pg_start_backup(text,boolean,boolean)",
            )
            .replace("pg_backup_stop(boolean)", "pg_stop_backup(boolean,boolean)"),
        _ => text.to_owned(),
    }
}

/// Rights that are needed to read the files through SQL, besides.
const AGENTLESS_RIGHTS: [(&str, &str); 3] = [
    (
        "REVOKE EXECUTE ON FUNCTION pg_read_binary_file(text,bigint,bigint,boolean) FROM backup",
        "EXECUTE pg_read_binary_file(text,bigint,bigint,boolean)",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION pg_ls_dir(text,boolean,boolean) FROM backup",
        "EXECUTE pg_ls_dir(text,boolean,boolean)",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION pg_stat_file(text,boolean) FROM backup",
        "EXECUTE pg_stat_file(text,boolean)",
    ),
];

struct World {
    server: TestServer,
    site: Site,
    /// The options that say how the files are read.
    reading: Vec<String>,
}

impl World {
    /// A role that may log in, with the rights that `check` asks for.
    async fn new(hba: &str) -> Self {
        let options = ServerOptions::default().with_hba(hba);
        let mut server = TestServer::start(options).await;
        for expected in [
            // In the words of 14 and 15, and of 16 and later.
            "must be superuser or replication role to start walsender",
            "permission denied to start WAL sender",
            "pg_hba.conf rejects replication connection",
        ] {
            server.allow_in_log(expected);
        }
        server.sql("CREATE ROLE backup LOGIN").await;
        let site = Site::init(PROGRAM, &server).await;
        site.configure(&server.dsn().replace("user=postgres", "user=backup"));
        let data_dir = server.data_dir().display().to_string();
        Self {
            server,
            site,
            reading: vec!["--data-dir".to_owned(), data_dir],
        }
    }

    async fn agentless() -> Self {
        Self {
            reading: vec!["--agentless".to_owned()],
            ..Self::new("").await
        }
    }

    async fn run(&self, arguments: &[&str]) -> Answer {
        let reading: Vec<&str> = self.reading.iter().map(String::as_str).collect();
        self.site.run(&[arguments, &reading].concat()).await
    }

    /// The problems that `check` finds.
    async fn problems(&self) -> Vec<Value> {
        let answer = self.run(&["check", "--json"]).await;
        let report = answer.json();
        let findings = report["findings"].as_array().expect("a list").clone();
        let problems: Vec<Value> = findings
            .into_iter()
            .filter(|finding| finding["severity"] == "problem")
            .collect();
        assert_eq!(report["problems"], problems.len(), "{answer}");
        let code = if problems.is_empty() { 0 } else { REFUSED };
        let _ = answer.expect(code);
        problems
    }

    /// `protect` refuses for `problems`, and writes neither into the repository nor to the server.
    async fn expect_refusal(&self, problems: &[Value]) {
        let before = self.site.objects();
        let answer = self.run(&["protect", "--once"]).await.expect(REFUSED);
        for problem in problems {
            let words = |field: &str| problem[field].as_str().expect("a text").to_owned();
            let told = format!("{}: {}", words("subject"), words("found"));
            assert!(answer.stderr.contains(&told), "{told} is not in {answer}");
            assert!(answer.stderr.contains(&words("sql")), "{answer}");
        }
        assert_eq!(answer.stderr.matches("error: ").count(), 1, "{answer}");
        assert_eq!(self.site.objects(), before, "{answer}");
        let slots = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(self.server.value(slots).await, "0", "{answer}");
    }

    async fn paste(&self, problems: &[Value]) {
        for problem in problems {
            let sql = problem["sql"].as_str().expect("it can be pasted");
            self.server.sql(sql).await;
        }
    }
}

fn subjects(problems: &[Value]) -> Vec<&str> {
    problems
        .iter()
        .map(|problem| problem["subject"].as_str().expect("a text"))
        .collect()
}

async fn each_right_is_asked_for(world: &World, rights: &[(&str, &str)]) {
    // A role that may nothing but log in needs what is printed, and nothing else.
    let problems = world.problems().await;
    assert_eq!(problems.len(), rights.len() + 1, "{problems:#?}");
    world.expect_refusal(&problems).await;
    world.paste(&problems).await;
    assert_eq!(world.problems().await, Vec::<Value>::new());
    for (revoke, subject) in rights {
        let revoke = named(revoke, &world.server);
        let subject = named(subject, &world.server);
        world.server.sql(&revoke).await;
        let problems = world.problems().await;
        let mut expected = vec![subject.as_str()];
        if subject == "role backup" {
            expected.push("replication connection");
        }
        assert_eq!(subjects(&problems), expected, "after {revoke}");
        world.expect_refusal(&problems).await;
        world.paste(&problems).await;
        assert_eq!(world.problems().await, Vec::<Value>::new(), "{revoke}");
    }
    let _ = world
        .run(&["protect", "--once", "--no-slot"])
        .await
        .expect(0);
}

#[tokio::test]
async fn each_missing_grant_is_named_with_the_sql_that_gives_it() {
    each_right_is_asked_for(&World::new("").await, &RIGHTS).await;
}

#[tokio::test]
async fn each_grant_that_is_missing_to_read_through_sql_is_named_with_the_sql_that_gives_it() {
    let world = World::agentless().await;
    let rights = [&RIGHTS[..], &AGENTLESS_RIGHTS].concat();
    each_right_is_asked_for(&world, &rights).await;
    let answer = world.run(&["check"]).await.expect(0);
    let _ = answer.says("read through SQL: asked for");
}

#[tokio::test]
async fn a_missing_line_of_pg_hba_is_named_with_the_line_to_add() {
    let world = World::new("local replication backup reject").await;
    let problems = world.problems().await;
    world.paste(&problems).await;
    let problems = world.problems().await;
    assert_eq!(subjects(&problems), ["replication connection"]);
    world.expect_refusal(&problems).await;
    let wanted = problems[0]["wanted"].as_str().expect("a text");
    let line = wanted.split('`').nth(1).expect("a line to add");
    assert!(line.starts_with("local replication backup "), "{line}");
    // The role of this test has no password.
    let line = line.replace("scram-sha-256", "trust");
    let path = world.server.data_dir().join("pg_hba.conf");
    let before = std::fs::read_to_string(&path).expect("it is there");
    std::fs::write(&path, format!("{line}\n{before}")).expect("it is writable");
    world.paste(&problems).await;
    borealis_testkit::wait_until(
        "the reload to be seen",
        borealis_testkit::program::DEADLINE,
        async || world.problems().await.is_empty().then_some(()),
    )
    .await;
}

/// Without it the role does not see where the files are, either.
#[tokio::test]
async fn a_role_that_sees_no_settings_is_told_which_role_to_be_granted() {
    let world = World::new("").await;
    let problems = world.problems().await;
    world.paste(&problems).await;
    world
        .server
        .sql("REVOKE pg_read_all_settings FROM backup")
        .await;
    let before = world.site.objects();
    let answer = world.site.run(&["protect", "--once"]).await.expect(REFUSED);
    let answer = answer.says("does not say where its data directory is");
    let _ = answer.says(&format!("GRANT pg_read_all_settings TO \"{ROLE}\";"));
    assert_eq!(world.site.objects(), before);
}
