//! Tablespaces in every command. Those that the log to be replayed creates are made by the server at their
//! original path, which beside the source is the source's own directory.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::Path;

use borealis_base::Position;
use borealis_pg_server::instance::command_as;
use borealis_testkit::program::{DEADLINE, files_below, text};
use borealis_testkit::server::{ServerOptions, free_port, system_user};
use borealis_testkit::{Protect, Site, TestServer, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
/// What recovery says of tablespaces in place.
const IN_PLACE: &str = "unexpected directory entry";
const ROWS: &str = "SELECT count(*)::text FROM t";

/// The statements one after the other, each by itself.
async fn run(server: &TestServer, database: &str, statements: &[String]) {
    let session = server.session(database).await;
    session
        .run("SET allow_in_place_tablespaces = on")
        .await
        .unwrap();
    for statement in statements {
        if let Err(error) = session.run(statement).await {
            panic!("{statement}: {error}");
        }
    }
}

/// What the restored server must have: rows of each place, places that are its own, and an empty tablespace
/// that can be used.
async fn check_places(server: &TestServer, rows: &str, own: &Path) {
    assert_eq!(server.value(ROWS).await, rows, "in pg_default");
    assert_eq!(
        server.value(&ROWS.replace(" t", " t_inside")).await,
        rows,
        "in place"
    );
    let session = server.session("shop").await;
    assert_eq!(
        session.value::<String>(ROWS).await.unwrap(),
        rows,
        "in its database's default"
    );
    let places = "SELECT string_agg(pg_tablespace_location(oid), ' ' ORDER BY spcname) FROM pg_tablespace \
                  WHERE spcname IN ('shop', 'empty')";
    let (empty, shop) = (own.join("empty"), own.join("shop"));
    assert_eq!(
        server.value(places).await,
        format!("{} {}", empty.display(), shop.display())
    );
    if server.value("SELECT pg_is_in_recovery()::text").await == "false" {
        run(
            server,
            "postgres",
            &["CREATE TABLE e TABLESPACE empty AS SELECT 1 AS id".to_owned()],
        )
        .await;
        assert!(!files_below(&empty).is_empty(), "it lies elsewhere");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_holds_with_tablespaces_used_empty_and_in_place() {
    let server = TestServer::start(ServerOptions::default()).await;
    let [shop, empty] = ["shop", "empty"].map(|name| server.scratch(name));
    run(
        &server,
        "postgres",
        &[
            format!("CREATE TABLESPACE shop LOCATION '{}'", shop.display()),
            format!("CREATE TABLESPACE empty LOCATION '{}'", empty.display()),
            "CREATE TABLESPACE inside LOCATION ''".to_owned(),
            "CREATE DATABASE shop TABLESPACE shop".to_owned(),
            "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id".to_owned(),
            "CREATE TABLE t_inside TABLESPACE inside AS SELECT * FROM t".to_owned(),
        ],
    )
    .await;
    let fill = "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id".to_owned();
    run(&server, "shop", &[fill]).await;

    let site = Site::init_as_server_user(PROGRAM, &server).await;
    site.ok(&["check"]).await;
    let protect = Protect::begin(&site, &[]).await;
    site.ok(&["snapshot", "create", "first"]).await;
    // A later base backup, of the changed pages only.
    let more = "INSERT INTO t SELECT generate_series(1001, 1500)".to_owned();
    run(&server, "shop", std::slice::from_ref(&more)).await;
    run(
        &server,
        "postgres",
        &[more.clone(), more.replace(" t ", " t_inside ")],
    )
    .await;
    protect.stop().await;
    site.ok(&["protect", "--cluster", "main", "--once"]).await;
    let status = site.status().await.unwrap();
    assert_eq!(status["base_backups"], 2, "{status:#}");
    site.ok(&["verify", "--deep"]).await;

    // Beside the source its directories are taken: each must be placed.
    let target = site.target("refused");
    let to = |name: &str| {
        [("shop", &shop), ("empty", &empty)]
            .map(|(last, old)| format!("{}={}/{last}", old.display(), site.target(name)))
    };
    let arguments = ["restore", "--to", "latest", "--target-dir", &target];
    let one = to("places")[0].clone();
    let shared = one.replace("/places/shop", "/places/empty");
    let both = [shared.as_str(), &to("places")[1]];
    for (mappings, words) in [
        (&[][..], "is not empty"),
        (&[one.as_str()], "is not empty"),
        (&both, "shares"),
    ] {
        let mappings = mappings
            .iter()
            .flat_map(|mapping| ["--tablespace-mapping", *mapping]);
        let all: Vec<&str> = arguments.into_iter().chain(mappings).collect();
        for all in [all.clone(), [&all[..], &["--dry-run"]].concat()] {
            let _ = site.run(&all).await.expect(3).says(words);
            assert!(!Path::new(&target).exists(), "something was written");
        }
    }
    let mapped = |name: &str| -> Vec<String> {
        let mappings = to(name).into_iter();
        mappings
            .flat_map(|mapping| ["--tablespace-mapping".to_owned(), mapping])
            .collect()
    };
    let files = [files_below(&shop), files_below(&empty)];
    for (moment, name, rows) in [
        ("snapshot:first", "first", "1000"),
        ("latest", "last", "1500"),
    ] {
        let places = mapped(&format!("{name}_places"));
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        let all = [
            &[
                "restore",
                "--to",
                moment,
                "--target-dir",
                &target,
                "--dry-run",
            ],
            &places[..],
        ];
        site.ok(&all.concat()).await;
        let mut restored = site.restore(moment, name, &places).await;
        restored.server.allow_in_log(IN_PLACE);
        check_places(
            &restored.server,
            rows,
            Path::new(&site.target(&format!("{name}_places"))),
        )
        .await;
        restored.remove();
    }
    assert_eq!(
        [files_below(&shop), files_below(&empty)],
        files,
        "the source's own were touched"
    );

    // A standby, and the log that it fetches.
    let protect = Protect::begin(&site, &[]).await;
    let places = mapped("standby_places");
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let (standby, port) = (site.target("standby"), free_port().to_string());
    let arguments = [
        "restore",
        "--standby",
        "--to",
        "latest",
        "--target-dir",
        &standby,
        "--port",
        &port,
    ];
    let answer = site.json(&[&arguments[..], &places].concat()).await;
    let more = more.replace("1001, 1500", "1501, 1600");
    run(&server, "shop", std::slice::from_ref(&more)).await;
    run(
        &server,
        "postgres",
        &[more.clone(), more.replace(" t ", " t_inside ")],
    )
    .await;
    let last = server.insert_position().await;
    site.wait_restorable(last).await;
    let status = command_as(Path::new("/bin/sh"), system_user().as_ref())
        .args(["-c", &text(&answer, "start_command")])
        .current_dir("/")
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let log = Path::new(&standby).join("borealis_restore.log");
    let mut follower = TestServer::attach(Path::new(&standby), server.binaries().major, &log);
    follower.allow_in_log(IN_PLACE);
    wait_until("the standby to follow", DEADLINE, async || {
        let replayed = follower
            .value("SELECT pg_last_wal_replay_lsn()::text")
            .await;
        (replayed.parse::<Position>().unwrap() >= last).then_some(())
    })
    .await;
    let own = site.target("standby_places");
    check_places(&follower, "1600", Path::new(&own)).await;
    follower.promote().await;
    check_places(&follower, "1600", Path::new(&own)).await;
    protect.stop().await;

    // The manifest says where they were.
    let manifest = site
        .objects()
        .into_iter()
        .rfind(|name| name.contains("/manifests/"));
    let shown = site.ok(&["inspect", &manifest.unwrap()]).await;
    for space in [&shop, &empty] {
        assert!(
            shown.contains(&*space.to_string_lossy()),
            "{} is not in\n{shown}",
            space.display()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_that_the_log_creates_never_touches_the_sources_directory() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &[]).await;
    let space = server.scratch("late");
    let place = space.display().to_string();
    server
        .sql(&format!("CREATE TABLESPACE late LOCATION '{place}'"))
        .await;
    server
        .sql("CREATE TABLE t TABLESPACE late AS SELECT generate_series(1, 100) AS id; CHECKPOINT")
        .await;
    let with_space = server.insert_position().await;
    site.wait_restorable(with_space).await;
    let files = files_below(&space);
    assert!(!files.is_empty());

    // In use: refused before anything is written, with a way that works.
    let target = site.target("refused");
    let mapping = format!("{place}={}", site.target("mapped"));
    let arguments = ["restore", "--to", "latest", "--target-dir", &target];
    for more in [
        &["--dry-run"][..],
        &["--start"],
        &["--tablespace-mapping", &mapping],
    ] {
        let answer = site.run(&[&arguments[..], more].concat()).await.expect(3);
        assert!(answer.stderr.contains(&place), "{answer}");
        assert!(answer.stderr.contains("--to lsn:"), "{answer}");
        assert!(!Path::new(&target).exists(), "{more:?} wrote something");
    }
    let answer = site.run(&arguments).await.expect(3);
    let before = answer
        .stderr
        .split("--to ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .expect("the target before it");
    let restored = site.restore(before, "before", &[]).await;
    let spaces = "SELECT count(*)::text FROM pg_tablespace WHERE spcname = 'late'";
    assert_eq!(restored.server.value(spaces).await, "0");
    restored.remove();
    assert_eq!(files_below(&space), files);

    // A later base backup holds it, so that it can be placed.
    protect.stop().await;
    site.ok(&["protect", "--cluster", "main", "--once"]).await;
    let restored = site
        .restore("latest", "placed", &["--tablespace-mapping", &mapping])
        .await;
    assert_eq!(restored.server.value(ROWS).await, "100");
    restored.server.sql("INSERT INTO t VALUES (0)").await;
    restored.remove();
    assert_eq!(server.value(ROWS).await, "100");
    assert_eq!(files_below(&space), files);

    // A free place is used: here after the source has let go of it.
    server.sql("DROP TABLE t").await;
    server.sql("DROP TABLESPACE late").await;
    let restored = site
        .restore(&format!("lsn:{with_space}"), "free", &[])
        .await;
    assert_eq!(restored.server.value(ROWS).await, "100");
    assert!(
        !files_below(&space).is_empty(),
        "it is not where the log says"
    );
    restored.remove();
}
