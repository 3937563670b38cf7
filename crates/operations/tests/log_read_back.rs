//! Stores that do not keep what they acknowledged, on a real server: what protect says of it, what it
//! still promises, and that it goes on.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod common;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use borealis_base::{ErrorKind, NoProgress, Position};
use borealis_operations::protect;
use borealis_operations::status;
use borealis_repository::layout;
use borealis_repository::plan::{PieceSummary, Target, windows};
use borealis_repository::store::{Created, Store, StoreError, StoreErrorKind, StoreLayer};
use borealis_repository::verify::verify_lineage;
use borealis_testkit::server::{DEADLINE, ServerOptions, TestServer};
use borealis_testkit::wait_until;
use bytes::Bytes;
use common::{Protecting, options, restore_to, site_on, state, wait_shipped};

/// An entry of a ledger at least this long holds log of the statement under test: all else that these
/// tests write into the ledger is shorter.
const PIECE_BYTES_MIN: usize = 64 << 10;
/// Writes log that does not compress below that.
const WRITE: &str = "INSERT INTO t SELECT i, string_agg(md5(random()::text), '') \
                     FROM generate_series(1, 100) i, generate_series(1, 60) GROUP BY i";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Acknowledges the next such entry and does not keep it.
    Lose,
    /// Acknowledges it and keeps other bytes.
    Change,
}

#[derive(Default)]
struct Faults {
    next: Option<Fault>,
    /// Whole ledger entries can't be read, as they are when they are read back.
    silent: bool,
    /// The entries read whole, in order.
    read: Vec<String>,
}

struct Faulty {
    inner: Arc<dyn Store>,
    faults: Arc<Mutex<Faults>>,
}

impl Faulty {
    fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_entry(name: &str) -> bool {
    name.contains("/ledger/")
}

#[async_trait]
impl StoreLayer for Faulty {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let hit = is_entry(name) && bytes.len() >= PIECE_BYTES_MIN;
        let fault = if hit { self.faults().next.take() } else { None };
        match fault {
            None => self.inner.create(name, bytes).await,
            Some(Fault::Lose) => Ok(Created::New),
            Some(Fault::Change) => {
                let mut changed = bytes.to_vec();
                changed[bytes.len() / 2] ^= 1;
                self.inner.create(name, changed.into()).await
            }
        }
    }

    async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        if is_entry(name) {
            let mut faults = self.faults();
            if faults.silent {
                let kind = StoreErrorKind::Unreachable;
                return Err(StoreError::new(kind, "read", name, "faulty:", "no answer"));
            }
            faults.read.push(name.to_owned());
        }
        self.inner.read(name).await
    }
}

struct World {
    site: Arc<borealis_operations::Site>,
    faults: Arc<Mutex<Faults>>,
    server: TestServer,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let faults = Arc::new(Mutex::new(Faults::default()));
        let site = site_on(&directory, |inner| {
            Arc::new(Faulty {
                inner,
                faults: faults.clone(),
            })
        })
        .await;
        let server = TestServer::start(ServerOptions::default()).await;
        server.sql("CREATE TABLE t (id int, payload text)").await;
        Self {
            site: Arc::new(site),
            faults,
            server,
            _directory: directory,
        }
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().unwrap());
    }

    /// Waits for a base backup behind every gap, and that there are as many gaps.
    async fn wait_backed_up(&self, gaps: usize) {
        wait_until("a base backup behind the last gap", DEADLINE, async || {
            let state = state(&self.site).await?;
            let last = state.base_backups.last()?;
            let behind = state.gaps.iter().all(|gap| gap.to <= last.start);
            (state.gaps.len() == gaps && behind).then_some(())
        })
        .await;
    }

    /// Writes one row and waits until it is durable; returns where that is.
    async fn write_row(&self) -> Position {
        self.server.sql("INSERT INTO t VALUES (1, 'row')").await;
        wait_shipped(&self.site, &self.server).await
    }

    async fn rows(&self, target: Target) -> String {
        let restored = restore_to(&self.site, target).await.unwrap();
        restored.value("SELECT count(*)::text FROM t").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_piece_stored_wrong_or_lost_is_withdrawn_and_both_sides_stay_restorable() {
    let world = World::new().await;
    let protecting = Protecting::begin(world.site.clone(), options(&world.server));
    world.wait_backed_up(0).await;
    let before = world.write_row().await;
    for (gaps, fault) in [(1, Fault::Lose), (2, Fault::Change)] {
        world.set(|faults| faults.next = Some(fault));
        world.server.sql(WRITE).await;
        world.wait_backed_up(gaps).await;
    }
    world.write_row().await;
    protecting.end().await;

    let state = state(&world.site).await.unwrap();
    assert_eq!(state.unread_pieces(), []);
    let withdrawn: Vec<&PieceSummary> = (state.pieces.iter())
        .filter(|piece| state.is_withdrawn(piece))
        .collect();
    assert_eq!(withdrawn.len(), 2);
    for (piece, gap) in withdrawn.iter().zip(&state.gaps) {
        assert_eq!((gap.from, gap.to), (piece.start, piece.end));
        let name = layout::entry(state.lineage, piece.entry);
        assert!(gap.reason.contains(&name), "{}", gap.reason);
    }
    assert_eq!(windows(&state).len(), 3);
    assert_eq!(world.rows(Target::Position(before, None)).await, "1");
    assert_eq!(world.rows(Target::Latest).await, "202");

    let report = status::load(&world.site, Some("main")).await.unwrap();
    let cluster = &report.clusters[0];
    assert_eq!(cluster.log_pieces_withdrawn, 2);
    assert_eq!(cluster.log_pieces_unverified, 0);
    assert_eq!(
        cluster.log_verified_through,
        state.pieces.last().map(|piece| piece.end)
    );
    // What is promised is there.
    let lineage = world
        .site
        .lineage(&world.site.cluster(None).await.unwrap())
        .await
        .unwrap();
    let verified = verify_lineage(&lineage, true, &NoProgress).await.unwrap();
    assert_eq!(verified.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_base_backup_whose_log_the_store_lost_is_an_error() {
    let world = World::new().await;
    world.server.sql(WRITE).await;
    world.set(|faults| faults.next = Some(Fault::Lose));
    let once = protect::Options {
        once: true,
        ..options(&world.server)
    };
    let protecting = Protecting::begin(world.site.clone(), once);
    let error = protecting.task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("1 log pieces"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_can_not_be_read_delays_no_shipping_and_is_read_back_in_order_later() {
    let world = World::new().await;
    let protecting = Protecting::begin(world.site.clone(), options(&world.server));
    world.wait_backed_up(0).await;
    world.write_row().await;
    world.set(|faults| faults.silent = true);
    for _ in 0..3 {
        world.write_row().await;
    }
    let silent = state(&world.site).await.unwrap();
    assert!(silent.unread_pieces().len() >= 3);
    assert_eq!(silent.gaps, []);
    // Stopping does not wait for ever for a store that gives no answer.
    protecting.end().await;
    let stopped = state(&world.site).await.unwrap();
    let first = stopped.unread_pieces()[0].entry;
    world.set(|faults| {
        faults.silent = false;
        faults.read.clear();
    });

    let protecting = Protecting::begin(world.site.clone(), options(&world.server));
    wait_until("the log to be read back", DEADLINE, async || {
        // The next entry says how far.
        world.server.sql("INSERT INTO t VALUES (2, 'row')").await;
        let state = state(&world.site).await?;
        (state.read_back > stopped.head).then_some(())
    })
    .await;
    protecting.end().await;
    let state = state(&world.site).await.unwrap();
    assert_eq!(
        (state.gaps.as_slice(), state.unread_pieces()),
        (&[][..], &[][..])
    );
    let lineage = state.lineage;
    let wanted: Vec<String> = (state.pieces.iter())
        .filter(|piece| piece.entry >= first)
        .map(|piece| layout::entry(lineage, piece.entry))
        .collect();
    let read = world.faults.lock().unwrap().read.clone();
    assert_eq!(read, wanted);
}

/// The store changed the last piece while nobody was there: the next protect can't go on at its end.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_log_is_withdrawn_where_it_can_not_be_read_any_more() {
    let world = World::new().await;
    let last = wait_until("log that ends with a long piece", DEADLINE, async || {
        let protecting = Protecting::begin(world.site.clone(), options(&world.server));
        world.wait_backed_up(0).await;
        world.server.sql(WRITE).await;
        wait_shipped(&world.site, &world.server).await;
        protecting.end().await;
        let last = state(&world.site).await?.pieces.pop()?;
        (last.stored_bytes > PIECE_BYTES_MIN as u64).then_some(last)
    })
    .await;
    let lineage = state(&world.site).await.unwrap().lineage;
    let object = PathBuf::from(&world.site.url).join(layout::entry(lineage, last.entry));
    let mut bytes = std::fs::read(&object).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    std::fs::write(&object, bytes).unwrap();

    let protecting = Protecting::begin(world.site.clone(), options(&world.server));
    world.wait_backed_up(1).await;
    world.write_row().await;
    protecting.end().await;
    let state = state(&world.site).await.unwrap();
    assert!(state.is_withdrawn(&last));
    assert!(
        state.gaps[0].reason.contains("is damaged"),
        "{}",
        state.gaps[0].reason
    );
    assert_eq!(windows(&state).len(), 2);
    let all = world.server.value("SELECT count(*)::text FROM t").await;
    assert_eq!(world.rows(Target::Latest).await, all);
}
