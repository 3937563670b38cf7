//! The store in a bucket, against two servers and through a proxy that fails.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::sync::Arc;
use std::time::Duration;

use borealis_base::{ErrorKind, SeededEntropy, SystemClock};
use borealis_repository::store::probe::{Report, State, probe};
use borealis_repository::store::{
    Counters, Created, Fencing, Outfit, S3Store, Store, StoreError, StoreErrorKind,
};
use borealis_testkit::s3::{
    ACCESS_KEY, FaultProxy, HttpFaults, Injected, MotoServer, SECRET_KEY, StrictServer, url,
};
use borealis_testkit::wait_until;
use bytes::Bytes;
use hyper::Method;

const DEADLINE: Duration = Duration::from_secs(30);

fn outfit() -> Outfit {
    Outfit {
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SeededEntropy::new(1)),
        counters: Arc::default(),
    }
}

async fn open(url: &str, outfit: &Outfit) -> Arc<dyn Store> {
    let store = S3Store::open_with_keys(url, outfit, ACCESS_KEY, SECRET_KEY).await;
    Arc::new(store.unwrap())
}

async fn store_at(endpoint: &str) -> (Arc<dyn Store>, Arc<Counters>) {
    let outfit = outfit();
    let store = open(&url(endpoint, "some/prefix"), &outfit).await;
    (store, outfit.counters)
}

/// What every store must do; the same as the store's own tests ask of a folder.
async fn contract(store: &dyn Store) {
    let name = "lineages/aa/ledger/000000000000/000000000001";
    assert_eq!(store.stat(name).await.unwrap(), None);
    for missing in [store.read(name).await, store.read_range(name, 0..1).await] {
        assert_eq!(missing.unwrap_err().kind, StoreErrorKind::NotFound);
    }
    let first = Bytes::from_static(b"0123456789");
    assert_eq!(
        store.create(name, first.clone()).await.unwrap(),
        Created::New
    );
    let again = store.create(name, Bytes::from_static(b"other")).await;
    assert_eq!(again.unwrap(), Created::Exists);
    assert_eq!(store.read(name).await.unwrap(), first, "never replaced");
    let stat = store.stat(name).await.unwrap().unwrap();
    assert_eq!(stat.len, 10);
    for (range, expected) in [
        (2..5, "234"),
        (8..99, "89"),
        (10..20, ""),
        (50..60, ""),
        (3..3, ""),
    ] {
        let read = store.read_range(name, range.clone()).await.unwrap();
        assert_eq!(read, expected, "{range:?}");
    }
    for other in ["lineages/aa/keys/1", "lineages/ab/keys/1"] {
        store.create(other, Bytes::from_static(b"k")).await.unwrap();
    }
    let names = async |prefix: &str| -> Vec<String> {
        let lines = store.list(prefix).await.unwrap();
        lines.into_iter().map(|line| line.name).collect()
    };
    assert_eq!(names("lineages/aa/").await, ["lineages/aa/keys/1", name]);
    assert_eq!(names("lineages/a").await.len(), 3);
    assert_eq!(names("nothing/").await, Vec::<String>::new());
    store.delete(name).await.unwrap();
    store.delete(name).await.unwrap();
    assert_eq!(store.stat(name).await.unwrap(), None);
    let error = store.create("../x", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_server_keeps_the_contract() {
    let server = StrictServer::start().await;
    let (store, counters) = store_at(server.endpoint()).await;
    assert_eq!(store.fencing().await.unwrap(), Fencing::Atomic);
    contract(&*store).await;
    assert!(server.file("some/prefix/lineages/aa/keys/1").exists());
    let usage = counters.usage();
    assert_eq!(usage.lists, 3);
    // A prefix that ends in the middle of a name is asked for as its folder.
    assert!(
        usage.puts >= 4 && usage.gets >= 9 && usage.deletes == 2,
        "{usage:?}"
    );
    assert_eq!((usage.retries, usage.unfenced_creates), (0, 0));
    assert!(usage.bytes_put > 15 && usage.bytes_got > 15, "{usage:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_keeps_the_contract() {
    let server = MotoServer::start().await;
    let (store, _) = store_at(&server.endpoint()).await;
    assert_eq!(store.fencing().await.unwrap(), Fencing::Atomic);
    contract(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creators_of_one_name_exactly_one_wins() {
    let server = StrictServer::start().await;
    let proxy = FaultProxy::start(server.endpoint(), HttpFaults::default(), 1).await;
    let (store, _) = store_at(proxy.endpoint()).await;
    for round in 0..5 {
        let name = format!("race/{round}");
        let tries = (0..8).map(|writer: u8| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move { store.create(&name, vec![writer; 64].into()).await.unwrap() })
        });
        let answers = futures::future::join_all(tries).await;
        let winners: Vec<usize> = (answers.into_iter().map(Result::unwrap).enumerate())
            .filter_map(|(writer, created)| (created == Created::New).then_some(writer))
            .collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(store.read(&name).await.unwrap(), vec![winners[0] as u8; 64]);
    }
}

/// A store behind a proxy that does only what it is told.
struct Scripted {
    _server: StrictServer,
    proxy: FaultProxy,
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
}

async fn scripted() -> Scripted {
    let server = StrictServer::start().await;
    let proxy = FaultProxy::start(server.endpoint(), HttpFaults::default(), 1).await;
    let (store, counters) = store_at(proxy.endpoint()).await;
    store.fencing().await.unwrap();
    Scripted {
        _server: server,
        proxy,
        store,
        counters,
    }
}

const CONTENT: Bytes = Bytes::from_static(b"what was written");

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_tried_again_and_is_not_taken_for_existence() {
    let s = scripted().await;
    s.proxy.inject_next(&Method::PUT, Injected::Conflict);
    assert_eq!(s.store.create("a", CONTENT).await.unwrap(), Created::New);
    assert_eq!(s.counters.usage().retries, 1);
    assert_eq!(s.store.create("a", CONTENT).await.unwrap(), Created::Exists);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_holds_an_error_is_tried_again() {
    let s = scripted().await;
    s.proxy.inject_next(&Method::PUT, Injected::ErrorInSuccess);
    assert_eq!(s.store.create("a", CONTENT).await.unwrap(), Created::New);
    assert_eq!(s.store.read("a").await.unwrap(), CONTENT);
    assert_eq!(s.counters.usage().retries, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_is_answered_as_exists_and_the_bytes_tell_whose_it_is() {
    let s = scripted().await;
    for fault in [Injected::LostReply, Injected::Failed] {
        let name = format!("{fault:?}").to_lowercase();
        s.proxy.inject_next(&Method::PUT, fault);
        assert_eq!(
            s.store.create(&name, CONTENT).await.unwrap(),
            Created::Exists
        );
        assert_eq!(s.store.read(&name).await.unwrap(), CONTENT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_and_cut_requests_are_tried_again_a_bounded_number_of_times() {
    let s = scripted().await;
    for method in [Method::PUT, Method::GET] {
        for fault in [Injected::Throttled, Injected::Cut] {
            s.proxy.inject_next(&method, fault);
        }
    }
    assert_eq!(s.store.create("a", CONTENT).await.unwrap(), Created::New);
    assert_eq!(s.store.read("a").await.unwrap(), CONTENT);
    assert_eq!(s.counters.usage().retries, 4);
    s.proxy.set(HttpFaults {
        throttled: 1_000,
        ..HttpFaults::default()
    });
    let error = s.store.read("a").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unreachable);
    assert!(error.to_string().contains("503 SlowDown"), "{error}");
    assert_eq!(s.counters.usage().retries, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_change_on_the_way_are_refused_by_the_store_and_sent_again() {
    let s = scripted().await;
    s.proxy.inject_next(&Method::PUT, Injected::Garbled);
    assert_eq!(s.store.create("a", CONTENT).await.unwrap(), Created::New);
    assert_eq!(s.store.read("a").await.unwrap(), CONTENT);
    assert_eq!(
        s.counters.usage().retries,
        1,
        "the store took garbled bytes"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let s = scripted().await;
    let long: Bytes = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    s.store.create("long", long.clone()).await.unwrap();
    for _ in 0..3 {
        s.proxy.inject_next(&Method::GET, Injected::CutBody);
    }
    let before = s.counters.usage();
    assert_eq!(s.store.read("long").await.unwrap(), long);
    let after = s.counters.usage();
    assert_eq!(after.gets - before.gets, 4);
    assert!(
        after.bytes_got - before.bytes_got < 2 * long.len() as u64,
        "read from the start"
    );
    s.proxy.inject_next(&Method::GET, Injected::CutBody);
    let part = s.store.read_range("long", 10..900_000).await.unwrap();
    assert_eq!(part, long[10..900_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_a_wrong_key_and_no_answer_are_not_absence() {
    let server = StrictServer::start().await;
    let stat = async |url: String, secret: &str| -> StoreError {
        let outfit = outfit();
        let store = S3Store::open_with_keys(&url, &outfit, ACCESS_KEY, secret)
            .await
            .unwrap();
        store.stat("repository").await.unwrap_err()
    };
    let moto = MotoServer::start().await;
    let elsewhere = url(&moto.endpoint(), "x").replace("s3://backups", "s3://other");
    let other = stat(elsewhere, SECRET_KEY).await;
    assert_eq!(other.kind, StoreErrorKind::Invalid);
    assert!(other.to_string().contains("NoSuchBucket"), "{other}");
    let here = url(server.endpoint(), "x");
    let wrong = stat(here.clone(), "another-secret").await;
    assert_eq!(wrong.kind, StoreErrorKind::Denied);
    assert!(!format!("{wrong} {wrong:?}").contains("another-secret"));
    drop(server);
    let gone = stat(here, SECRET_KEY).await;
    assert_eq!(gone.kind, StoreErrorKind::Unreachable);
    assert_eq!(gone.kind(), ErrorKind::Unreachable);
}

/// Longer than one request may be.
fn very_long() -> Bytes {
    (0..70_u32 << 20).map(|n| (n >> 12) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_for_one_request_is_uploaded_in_parts_on_the_same_condition() {
    let server = StrictServer::start().await;
    let proxy = FaultProxy::start(server.endpoint(), HttpFaults::default(), 1).await;
    let (store, counters) = store_at(proxy.endpoint()).await;
    store.fencing().await.unwrap();
    let long = very_long();
    proxy.take_seen();
    // The second part is lost and sent again.
    proxy.inject_next(&Method::PUT, Injected::Cut);
    assert_eq!(
        store.create("long", long.clone()).await.unwrap(),
        Created::New
    );
    let seen = proxy.take_seen();
    let parts = seen
        .iter()
        .filter(|seen| seen.target.contains("partNumber="))
        .count();
    assert_eq!(parts, 4, "{seen:?}");
    assert_eq!(counters.usage().retries, 1);
    assert_eq!(store.read("long").await.unwrap(), long);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_does_not_replace_what_exists() {
    let server = MotoServer::start().await;
    let (store, _) = store_at(&server.endpoint()).await;
    store.create("long", CONTENT).await.unwrap();
    assert_eq!(
        store.create("long", very_long()).await.unwrap(),
        Created::Exists
    );
    assert_eq!(store.read("long").await.unwrap(), CONTENT);
}

fn finding<'a>(report: &'a Report, subject: &str) -> &'a str {
    let found = report
        .findings
        .iter()
        .find(|finding| finding.subject == subject);
    &found.unwrap().found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_finds_a_good_store_good_and_leaves_nothing_but_its_constant_object() {
    let server = StrictServer::start().await;
    let (store, _) = store_at(server.endpoint()).await;
    let report = probe(&store, &SystemClock, &SeededEntropy::new(2))
        .await
        .unwrap();
    assert_eq!(report.state(), State::Ok, "{report:?}");
    assert_eq!(report.findings.len(), 7);
    let left: Vec<String> = (store.list("probe").await.unwrap().into_iter())
        .map(|line| line.name)
        .collect();
    assert_eq!(left, ["probe"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_create_if_absent_is_served_in_single_writer_mode_or_refused() {
    let server = MotoServer::start().await;
    let proxy = FaultProxy::start(&server.endpoint(), HttpFaults::default(), 1).await;
    proxy.ignore_conditions();
    let (store, counters) = store_at(proxy.endpoint()).await;
    let report = probe(&store, &SystemClock, &SeededEntropy::new(2))
        .await
        .unwrap();
    assert_eq!(report.state(), State::Weaker, "{report:?}");
    assert!(report.single_writer);
    assert!(finding(&report, "create if absent").contains("single-writer mode"));
    // What exists is left alone all the same.
    contract(&*store).await;
    assert!(counters.usage().unfenced_creates >= 4);

    let forbidden = url(proxy.endpoint(), "x") + "&single-writer=forbid";
    let store = open(&forbidden, &outfit()).await;
    let error = store.create("a", CONTENT).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::SingleWriter);
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.hint().unwrap().contains("single-writer=forbid"));
    assert_eq!(
        store.stat("a").await.unwrap(),
        None,
        "it wrote all the same"
    );
    let report = probe(&store, &SystemClock, &SeededEntropy::new(2))
        .await
        .unwrap();
    assert_eq!(report.state(), State::Problem);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_in_single_writer_mode_is_noticed_by_reading_back() {
    let server = MotoServer::start().await;
    let proxy = FaultProxy::start(&server.endpoint(), HttpFaults::default(), 1).await;
    proxy.ignore_conditions();
    let (ours, _) = store_at(proxy.endpoint()).await;
    let (rival, _) = store_at(proxy.endpoint()).await;
    for store in [&ours, &rival] {
        assert_eq!(store.fencing().await.unwrap(), Fencing::SingleWriter);
    }
    // Both look before either puts; whoever's bytes do not stand is told that something exists.
    proxy.set(HttpFaults {
        delay_max: Duration::from_millis(30),
        ..HttpFaults::default()
    });
    for round in 0..100 {
        let name = format!("race/{round}");
        let both = (
            ours.create(&name, Bytes::from_static(b"ours")),
            rival.create(&name, Bytes::from_static(b"rival")),
        );
        let (ours_won, rival_won) = futures::future::join(both.0, both.1).await;
        let (ours_won, rival_won) = (ours_won.unwrap(), rival_won.unwrap());
        let stands = ours.read(&name).await.unwrap();
        let (standing, other) = if stands == "ours" {
            (ours_won, rival_won)
        } else {
            (rival_won, ours_won)
        };
        assert_eq!(standing, Created::New, "nobody owns what stands");
        if other == Created::Exists {
            return;
        }
    }
    panic!("no rival was noticed in a hundred races");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_as_one_and_ends() {
    let s = scripted().await;
    s.store.create("a", CONTENT).await.unwrap();
    s.proxy.set_down(true);
    assert_eq!(
        s.store.stat("a").await.unwrap_err().kind,
        StoreErrorKind::Unreachable
    );
    s.proxy.set_down(false);
    let back = wait_until("the store", DEADLINE, async || s.store.read("a").await.ok()).await;
    assert_eq!(back, CONTENT);
}
