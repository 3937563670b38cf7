use super::*;
use borealis_base::{ErrorKind, SeededEntropy, SystemClock};

async fn folder() -> (tempfile::TempDir, Arc<dyn Store>) {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("new/repo");
    let store = open(place.to_str().unwrap(), Absent::Create, &outfit()).await;
    let store = store.unwrap();
    (dir, store)
}

fn outfit() -> Outfit {
    Outfit {
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SeededEntropy::new(1)),
        counters: Arc::default(),
    }
}

/// What every store must do.
async fn contract(store: &dyn Store) {
    let name = "lineages/aa/ledger/000000000000/000000000001";
    assert_eq!(store.stat(name).await.unwrap(), None);
    assert_eq!(
        store.read(name).await.unwrap_err().kind,
        StoreErrorKind::NotFound
    );
    assert_eq!(
        store.read_range(name, 0..1).await.unwrap_err().kind,
        StoreErrorKind::NotFound
    );
    let first = Bytes::from_static(b"0123456789");
    assert_eq!(
        store.create(name, first.clone()).await.unwrap(),
        Created::New
    );
    let again = store
        .create(name, Bytes::from_static(b"other"))
        .await
        .unwrap();
    assert_eq!(again, Created::Exists);
    assert_eq!(store.read(name).await.unwrap(), first, "never replaced");
    assert_eq!(store.stat(name).await.unwrap().unwrap().len, 10);
    assert_eq!(store.read_range(name, 2..5).await.unwrap().as_ref(), b"234");
    assert_eq!(store.read_range(name, 8..99).await.unwrap().as_ref(), b"89");
    assert!(store.read_range(name, 10..20).await.unwrap().is_empty());
    assert!(store.read_range(name, 50..60).await.unwrap().is_empty());

    store
        .create("lineages/aa/keys/1", Bytes::new())
        .await
        .unwrap();
    store
        .create("lineages/ab/keys/1", Bytes::new())
        .await
        .unwrap();
    let names = |lines: Vec<Listed>| lines.into_iter().map(|line| line.name).collect::<Vec<_>>();
    assert_eq!(
        names(store.list("lineages/aa/").await.unwrap()),
        ["lineages/aa/keys/1", name]
    );
    assert_eq!(store.list("lineages/a").await.unwrap().len(), 3);
    assert_eq!(store.list("nothing/").await.unwrap(), []);

    store.delete(name).await.unwrap();
    store.delete(name).await.unwrap();
    assert_eq!(store.stat(name).await.unwrap(), None);
    for bad in [
        "",
        "/etc/passwd",
        "a//b",
        "../x",
        "a/../b",
        "A",
        "a#1",
        "a/",
    ] {
        let error = store.create(bad, Bytes::new()).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{bad:?}");
    }
}

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let (_dir, store) = folder().await;
    contract(store.as_ref()).await;
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(&MemoryStore::default()).await;
}

#[tokio::test]
async fn counting_keeps_the_contract_and_counts() {
    let counters = Arc::new(Counters::default());
    let store = CountingStore::new(Arc::new(MemoryStore::default()), counters.clone());
    store.create("a", Bytes::from_static(b"abc")).await.unwrap();
    store.read_range("a", 0..2).await.unwrap();
    let expected = Usage {
        puts: 1,
        gets: 1,
        bytes_put: 3,
        bytes_got: 2,
        ..Usage::default()
    };
    assert_eq!(counters.usage(), expected);
    contract(&CountingStore::new(
        Arc::new(MemoryStore::default()),
        counters,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_creators_of_one_name_exactly_one_wins() {
    let (_dir, store) = folder().await;
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

#[tokio::test]
async fn a_mistyped_folder_is_not_created() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("typo");
    let error = open(path.to_str().unwrap(), Absent::Refuse, &outfit()).await;
    let error = error.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(!path.exists());
}

#[tokio::test]
async fn other_urls_are_refused_by_name() {
    for (url, word) in [
        ("gs://bucket", "gs"),
        ("file://host/x", "file:///path"),
        ("", "empty"),
    ] {
        let error = open(url, Absent::Create, &outfit()).await.err().unwrap();
        assert_eq!(error.kind, StoreErrorKind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
}
