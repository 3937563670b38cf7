//! Signs of life of a protection on a real server: they end when the work hangs, and only then.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::NoProgress;
use borealis_operations::protect::pulse::Watcher;
use borealis_repository::store::{Created, Store, StoreError, StoreErrorKind, StoreLayer};
use borealis_testkit::server::{DEADLINE, ServerOptions, TestServer};
use borealis_testkit::wait_until;
use bytes::Bytes;
use common::{Protecting, base_backups, options, site_on, state};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How the store answers to the creation of a ledger entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// It says that it has no room.
    Full,
    /// It says nothing, as a network file system does whose server is gone.
    Hangs,
}

struct Moody {
    inner: Arc<dyn Store>,
    mood: watch::Receiver<Mood>,
    /// Creations of ledger entries that were begun while it was not well.
    tried: Arc<AtomicUsize>,
}

#[async_trait]
impl StoreLayer for Moody {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let mut mood = self.mood.clone();
        let now = *mood.borrow_and_update();
        if now != Mood::Well && name.contains("/ledger/") {
            self.tried.fetch_add(1, Ordering::SeqCst);
            if now == Mood::Full {
                let kind = StoreErrorKind::Full;
                return Err(StoreError::new(kind, "create", name, "moody:", "no room"));
            }
            let _ = mood.wait_for(|mood| *mood != Mood::Hangs).await;
        }
        self.inner.create(name, bytes).await
    }
}

#[derive(Default)]
struct Signs(AtomicU64);

impl Signs {
    fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    async fn wait_more(&self, what: &str, more: u64) {
        let before = self.count();
        let enough = async || (self.count() >= before + more).then_some(());
        wait_until(what, DEADLINE, enough).await;
    }
}

impl Watcher for Signs {
    fn ready(&self) {}
    fn status(&self, _line: &str) {}
    fn alive(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_hangs_gives_no_sign_of_life_and_one_that_is_refused_does() {
    let directory = tempfile::tempdir().unwrap();
    let (set, mood) = watch::channel(Mood::Well);
    let tried = Arc::new(AtomicUsize::new(0));
    let site = site_on(&directory, |inner| {
        Arc::new(Moody {
            inner,
            mood,
            tried: tried.clone(),
        })
    })
    .await;
    let site = Arc::new(site);
    let server = TestServer::start(ServerOptions::default()).await;
    server.sql("CREATE TABLE t (id int)").await;
    let signs = Arc::new(Signs::default());
    let stop = CancellationToken::new();
    let protecting = Protecting::seen(
        site.clone(),
        options(&server),
        Arc::new(NoProgress),
        signs.clone(),
        stop,
    );
    wait_until("a base backup", DEADLINE, async || {
        (base_backups(&site).await > 0).then_some(())
    })
    .await;
    signs.wait_more("signs of an idle protection", 2).await;

    let until_tried = async |what: &str| {
        tried.store(0, Ordering::SeqCst);
        server.sql("INSERT INTO t VALUES (1)").await;
        let begun = async || (tried.load(Ordering::SeqCst) > 0).then_some(());
        wait_until(what, DEADLINE, begun).await;
    };
    // The answer is no, again and again.
    set.send_replace(Mood::Full);
    until_tried("an entry that is refused").await;
    signs.wait_more("signs while there is no room", 2).await;

    // No answer at all, while the server's clock is sampled each second and the receiver hears of it.
    set.send_replace(Mood::Hangs);
    until_tried("an entry that is not answered").await;
    let before = signs.count();
    server.let_pass(Duration::from_secs(4)).await;
    assert_eq!(signs.count(), before, "it hangs, and looks alive");

    // It was only slow.
    set.send_replace(Mood::Well);
    signs.wait_more("signs after the answer", 2).await;
    let shipped = common::wait_shipped(&site, &server).await;
    protecting.end().await;
    let state = state(&site).await.unwrap();
    assert!(state.gaps.is_empty() && state.pieces.last().unwrap().end >= shipped);
}
