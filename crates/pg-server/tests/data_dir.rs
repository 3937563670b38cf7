//! Reading a data directory below a running server.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use borealis_base::NoProgress;
use borealis_pg_format::Version;
use borealis_pg_format::files::FileKind;
use borealis_pg_server::backup::BackupSession;
use borealis_pg_server::data_dir::page_reader::{PageRead, PageReader, Wanted};
use borealis_pg_server::data_dir::{DataDir, Listing, LocalDataDir};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{TestServer, Workload, WorkloadOptions};

const SEGMENT_PAGES: u32 = 131_072;

/// What became of every page that the listing names, by state.
fn read_everything(listing: &Listing, reader: &PageReader<'_>) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for file in &listing.files {
        let FileKind::Relation(of) = file.kind else {
            continue;
        };
        let first = of.segment * SEGMENT_PAGES;
        let count = u32::try_from(file.bytes / reader.page_bytes as u64).expect("a segment");
        let blocks = first..first + count;
        let wanted = Wanted {
            relation: of.relation,
            fork: of.fork,
            ranges: std::slice::from_ref(&blocks),
        };
        reader
            .read(&[wanted], &mut |at, state, _| {
                let state = match state {
                    PageRead::Good(_) => "good",
                    PageRead::New => "new",
                    PageRead::Newer(_) => "newer",
                    PageRead::PastEnd | PageRead::Missing => "gone",
                    PageRead::Damaged(fault) => panic!("{} block {at}: {fault}", file.path),
                };
                *counts.entry(state).or_default() += 1;
                Ok(())
            })
            .expect("readable");
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_server_yields_no_damaged_page_and_no_failed_listing() {
    let mut server =
        TestServer::start(ServerOptions::default().with("shared_buffers", "2MB")).await;
    server.allow_in_log("some useless files may be left behind");
    let options = WorkloadOptions {
        seed: 7,
        writers: 3,
        tablespace: Some(server.scratch("space")),
        databases: true,
        rest: Duration::ZERO,
    };
    let mut workload = Workload::prepare(&server, options).await;
    let running = workload.start(u64::MAX);
    let backup = BackupSession::start(&server.info(), "read", true, &NoProgress, pending())
        .await
        .expect("starts");
    let version = Version::from_major(server.binaries().major).expect("is known");
    let dir = LocalDataDir::new(server.data_dir());
    let reader = PageReader {
        dir: &dir,
        tablespace_directory: version.tablespace_directory(),
        page_bytes: 8192,
        segment_pages: SEGMENT_PAGES,
        checksums: true,
        start: backup.started().position,
        pause: &|delay: Duration| std::thread::sleep(delay),
    };
    for _ in 0..5 {
        let listing = dir.listing(&reader.tablespace_directory).expect("readable");
        assert_eq!(listing.tablespaces.len(), 1);
        assert!(listing.skipped.is_empty(), "{:?}", listing.skipped);
        let counts = read_everything(&listing, &reader);
        assert!(counts["good"] > 1_000, "{counts:?}");
    }
    backup.stop().await.expect("stops");
    running.stop().await;
}
