//! Drills with the program on a real server: what they restore, check, measure, record and remove.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::{Path, PathBuf};
use std::time::Duration;

use borealis_testkit::program::{CLUSTER, DEADLINE};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, SmallDisk, TestServer, wait_until};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// A table with an index, a sequence, a large value and a materialized view.
const MAKE: &str = "CREATE TABLE t (id serial PRIMARY KEY, v text, big text); \
     INSERT INTO t (v, big) SELECT md5(g::text), repeat(md5(g::text), 400) FROM generate_series(1, 300) g; \
     CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t; CREATE INDEX ON t USING gin (to_tsvector('simple', v)); \
     VACUUM t";

async fn backed_up(site: &Site, server: &TestServer) {
    for statement in MAKE.split("; ") {
        server.sql(statement).await;
    }
    site.ok(&["protect", "--cluster", CLUSTER, "--once"]).await;
}

/// What lies in the scratch directory.
fn left(scratch: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(scratch).map_or_else(|_| Vec::new(), Iterator::collect);
    entries
        .into_iter()
        .map(|entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path())
        .collect()
}

fn number(value: &Value, field: &str) -> f64 {
    value[field]
        .as_f64()
        .unwrap_or_else(|| panic!("no number `{field}` in {value:#}"))
}

/// Run as the server's own user where the tests run as root: the other tests run as root itself.
#[tokio::test]
async fn a_drill_restores_a_random_point_measures_it_and_leaves_nothing() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init_as_server_user(PROGRAM, &server).await;
    // Its place is the source's own; the drill has one of its own.
    let place = server.scratch("space");
    server
        .sql(&format!(
            "CREATE TABLESPACE space LOCATION '{}'",
            place.display()
        ))
        .await;
    server
        .sql("CREATE TABLE far TABLESPACE space AS SELECT generate_series(1, 50) AS id")
        .await;
    backed_up(&site, &server).await;
    site.ok(&["snapshot", "create", "now", "--at", "latest"])
        .await;
    let scratch = site.target("scratch");
    let drill = site.json(&["drill", "--scratch", &scratch]).await;
    assert_eq!(drill["result"], "passed", "{drill:#}");
    assert!(
        number(&drill, "rows") > 300.0 && number(&drill, "indexes") > 50.0,
        "{drill:#}"
    );
    assert!(
        number(&drill, "databases") >= 3.0,
        "template0 was left out: {drill:#}"
    );
    let parts = ["plan", "pages", "replay", "answer"]
        .map(|part| number(&drill, &format!("{part}_seconds")));
    assert!(parts.iter().all(|seconds| *seconds > 0.0), "{drill:#}");
    assert!((parts.iter().sum::<f64>() - number(&drill, "recovery_seconds")).abs() < 1e-3);
    assert!(number(&drill, "loss_window_seconds") >= 0.0);
    assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
    // The same seed is the same point, while the window is the same.
    let seed = drill["seed"].to_string();
    let again = site
        .json(&["drill", "--scratch", &scratch, "--seed", &seed])
        .await;
    assert_eq!(again["time"], drill["time"]);
    // What the checks need was made in the copy only.
    let sql =
        "SELECT count(*)::text FROM pg_extension WHERE extname IN ('amcheck', 'pg_visibility')";
    assert_eq!(server.value(sql).await, "0");
    let pinned = site
        .json(&["drill", "--scratch", &scratch, "--to", "snapshot:now"])
        .await;
    assert_eq!(pinned["seed"], Value::Null);
    let listed = site.json(&["snapshot", "list"]).await;
    assert!(
        listed["snapshots"][0]["drilled_at"].is_string(),
        "{listed:#}"
    );
    let status = site.status().await.unwrap();
    assert_eq!(status["last_drill"]["result"], "passed");
    assert!(
        status["base_backup_states"][0]["drilled_at"].is_string(),
        "{status:#}"
    );
    let text = site.ok(&["status"]).await;
    assert!(
        text.contains("last drill    passed") && text.contains("1 drilled"),
        "{text}"
    );
}

/// The negative control: what a changed collation does to an index, made with a function that says it is immutable.
#[tokio::test]
async fn a_drill_finds_an_index_that_lacks_the_rows_of_its_table() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    server
        .sql("CREATE FUNCTION public.same(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'")
        .await;
    server
        .sql("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) g")
        .await;
    server
        .sql("CREATE INDEX broken ON t (public.same(id))")
        .await;
    server
        .sql("CREATE OR REPLACE FUNCTION public.same(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1000'")
        .await;
    site.ok(&["protect", "--cluster", CLUSTER, "--once"]).await;
    let scratch = site.target("scratch");
    let failed = site
        .run(&["drill", "--scratch", &scratch, "--json"])
        .await
        .expect(6);
    let report = failed.json();
    let findings = report["findings"].to_string();
    assert!(
        findings.contains("index public.broken") && findings.contains("lacks matching index tuple"),
        "{report:#}"
    );
    assert_eq!(
        report["findings"].as_array().unwrap().len(),
        1,
        "{report:#}"
    );
    assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
    let status = site.ok(&["status"]).await;
    assert!(
        status.contains("THE LAST DRILL FAILED") && status.contains("public.broken"),
        "{status}"
    );
    let status = site.status().await.unwrap();
    assert_eq!(status["base_backup_states"][0]["drilled_at"], Value::Null);
}

#[test]
fn a_drill_without_room_is_refused_before_anything_is_written() {
    let name = "a_drill_without_room_is_refused_before_anything_is_written";
    let Some(disk) = SmallDisk::enter(name, "64m") else {
        return;
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let server = TestServer::start(ServerOptions::default()).await;
        let site = Site::init(PROGRAM, &server).await;
        backed_up(&site, &server).await;
        let scratch = disk.path().display().to_string();
        let refused = site.run(&["drill", "--scratch", &scratch]).await.expect(3);
        assert!(
            refused.stderr.contains("free") && refused.stderr.contains("--scratch"),
            "{refused}"
        );
        assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
        assert_eq!(site.status().await.unwrap()["last_drill"], Value::Null);
    });
}

/// The process of the server of a drill below `scratch`, once it runs.
fn server_of(scratch: &str) -> Option<u32> {
    let lock = left(scratch).first()?.join("data/postmaster.pid");
    std::fs::read_to_string(lock)
        .ok()?
        .lines()
        .next()?
        .parse()
        .ok()
}

fn lives(pid: u32) -> bool {
    // One that has ended and that nobody has asked for its end does not live.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

async fn kill_when(site: &Site, scratch: &str, come_to: impl Fn() -> bool) {
    let arguments = ["drill", "--scratch", scratch];
    let mut child = site.command(&arguments).spawn().unwrap();
    wait_until("the drill to be in its midst", DEADLINE, async || {
        come_to().then_some(())
    })
    .await;
    child.kill().await.unwrap();
    assert_eq!(left(scratch).len(), 1, "it had ended before it was killed");
}

#[tokio::test]
async fn what_a_killed_drill_leaves_is_removed_by_the_next_one() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    backed_up(&site, &server).await;
    let scratch = site.target("scratch");
    let theirs = Path::new(&scratch).join("borealis-drill-theirs");
    // While files are restored, and while its server runs.
    kill_when(&site, &scratch, || {
        left(&scratch).iter().any(|path| path.join("data").exists())
    })
    .await;
    let removed = site.run(&["drill", "--scratch", &scratch]).await.expect(0);
    let _ = removed.says("was left by a drill that had been killed");
    kill_when(&site, &scratch, || server_of(&scratch).is_some()).await;
    let pid = server_of(&scratch).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    let _ = site.run(&["drill", "--scratch", &scratch]).await.expect(0);
    assert!(!lives(pid), "the server of the killed drill still runs");
    assert_eq!(
        left(&scratch),
        [theirs],
        "only what is provably ours may go, and all of it"
    );
}

#[tokio::test]
async fn a_drill_that_cannot_be_run_is_refused_and_says_nothing_of_the_backup() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    let none = site.run(&["drill", "--cluster", CLUSTER]).await.expect(4);
    assert!(none.stderr.contains(CLUSTER), "{none}");
    backed_up(&site, &server).await;
    let scratch = site.target("scratch");
    let wrong = [
        (vec!["--to", "lsn:0/1"], "0/1"),
        (vec!["--to", "snapshot:none"], "none"),
    ];
    for (more, named) in wrong {
        let answer = site
            .run(&[&["drill", "--scratch", &scratch][..], &more].concat())
            .await;
        assert!(matches!(answer.code, Some(3 | 4)), "{answer}");
        assert!(answer.stderr.contains(named), "{answer}");
    }
    let both = site
        .run(&["drill", "--to", "latest", "--seed", "1"])
        .await
        .expect(2);
    assert!(both.stderr.contains("--seed"), "{both}");
    assert_eq!(site.status().await.unwrap()["last_drill"], Value::Null);
    // Kept on request, for who asked for it.
    let kept = site.json(&["drill", "--scratch", &scratch, "--keep"]).await;
    let directory = PathBuf::from(kept["kept"].as_str().unwrap());
    assert!(
        directory.join("data/PG_VERSION").exists()
            && server_of(&scratch).is_none_or(|pid| !lives(pid))
    );
    site.json(&["drill", "--scratch", &scratch]).await;
    assert_eq!(left(&scratch), [directory]);
}

#[tokio::test]
async fn a_damaged_backup_fails_its_drill() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    backed_up(&site, &server).await;
    let packs = site
        .objects()
        .into_iter()
        .filter(|name| name.contains("/packs/"));
    let pack = packs.max_by_key(|name| {
        std::fs::metadata(site.repository().join(name))
            .unwrap()
            .len()
    });
    let pack = pack.unwrap();
    let path = site.repository().join(&pack);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let scratch = site.target("scratch");
    let failed = site
        .run(&["drill", "--scratch", &scratch, "--json"])
        .await
        .expect(6)
        .json();
    assert!(
        failed["reason"].as_str().unwrap().contains(&pack),
        "{failed:#}"
    );
    assert!(left(&scratch).is_empty(), "{:?}", left(&scratch));
    let last = &site.status().await.unwrap()["last_drill"];
    assert_eq!(last["result"], "failed");
    assert!(last["base_backup_entry"].as_u64().unwrap() > 0, "{last:#}");
}

#[tokio::test]
async fn protect_drills_and_scrubs_beside_its_work() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    for statement in MAKE.split("; ") {
        server.sql(statement).await;
    }
    let scratch = site.target("scratch");
    let more = [
        "--drill-every",
        "3s",
        "--drill-dir",
        &scratch,
        "--scrub-every",
        "2s",
    ];
    let protect = Protect::begin(&site, &more).await;
    let status = site
        .wait_status("a drill and a scrub", |status| {
            status["last_drill"].is_object() && status["scrub"]["ended_at"].is_string()
        })
        .await;
    assert_eq!(status["last_drill"]["result"], "passed", "{status:#}");
    assert!(
        status["base_backup_states"][0]["scrubbed_at"].is_string(),
        "{status:#}"
    );
    // One that runs when protect ends removes what it made.
    let begun = status["last_drill"]["begun_at"].clone();
    wait_until("the next drill", DEADLINE, async || {
        (!left(&scratch).is_empty()).then_some(())
    })
    .await;
    protect.stop().await;
    wait_until("the drill to be gone", Duration::from_mins(1), async || {
        left(&scratch).is_empty().then_some(())
    })
    .await;
    assert!(begun.is_string());
}
