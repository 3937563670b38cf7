//! Tablespaces that the log to be replayed creates: the server makes them at their original path, which
//! beside the source is the source's own directory.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::Path;

use borealis_testkit::program::files_below;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const ROWS: &str = "SELECT count(*)::text FROM t";

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
