//! Recipients, renewals and data keys: what changes is one small ring, and nobody is shut out or let in by it
//! who should not be.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{Branch, ErrorKind, ManualClock, Position, SystemEntropy, Timestamp};
use borealis_keys::{FileKey, KeyProvider};
use borealis_repository::ledger::{EntryBody, Gap, Holder, LedgerWriter, Opening};
use borealis_repository::store::{
    Created, MemoryStore, Store, StoreError, StoreErrorKind, StoreLayer,
};
use borealis_repository::{Environment, Error, Lineage, Repository, layout};
use bytes::Bytes;

const NOW: Timestamp = Timestamp(1_700_000_000_000_000);
const DAY: Duration = Duration::from_hours(24);

/// A store, the time, and a root key.
struct World {
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    key: FileKey,
}

impl World {
    /// With a repository that holds one cluster, `shop`.
    async fn new() -> Self {
        let world = Self {
            store: Arc::default(),
            clock: Arc::new(ManualClock::new(NOW)),
            key: new_key(),
        };
        let repository = Repository::init(world.environment(), &[&world.key])
            .await
            .unwrap();
        repository
            .create_cluster("shop", Bytes::new())
            .await
            .unwrap();
        world
    }

    fn environment(&self) -> Environment {
        self.environment_on(self.store.clone())
    }

    fn environment_on(&self, store: Arc<dyn Store>) -> Environment {
        Environment {
            store,
            clock: self.clock.clone(),
            entropy: Arc::new(SystemEntropy),
        }
    }

    async fn open(&self, key: &FileKey) -> Result<Repository, Error> {
        Repository::open(self.environment(), key).await
    }

    async fn rings_of(&self, lineage: &Lineage) -> usize {
        let prefix = format!("{}keys/", layout::lineage(lineage.id()));
        self.names(&prefix).await.len()
    }

    async fn names(&self, prefix: &str) -> Vec<String> {
        let listed = self.store.list(prefix).await.unwrap();
        listed.into_iter().map(|object| object.name).collect()
    }
}

fn new_key() -> FileKey {
    FileKey::in_memory(&SystemEntropy)
}

fn provider(key: &FileKey) -> Arc<dyn KeyProvider> {
    key.into()
}

async fn shop(repository: &Repository) -> Lineage {
    let cluster = repository.cluster("shop").await.unwrap();
    let newest = cluster.newest_lineage().lineage;
    repository.lineage(newest).await.unwrap()
}

async fn writer(lineage: &Lineage) -> LedgerWriter {
    let opening = Opening {
        holder: Holder::default(),
        log_unit: 1,
        expected_epoch: None,
    };
    lineage.open_writer(opening).await.unwrap()
}

fn gap(from: u64) -> EntryBody {
    EntryBody::Gap(Gap {
        branch: Branch(1),
        from: Position(from),
        to: Position(from + 1),
        reason: String::new(),
    })
}

/// How many gaps whoever opens the repository with `key` reads.
async fn gaps(world: &World, key: &FileKey) -> Result<usize, Error> {
    let repository = world.open(key).await?;
    Ok(shop(&repository).await.reader().await?.state().gaps.len())
}

#[tokio::test]
async fn recipients_come_and_go_by_one_small_ring_and_the_last_one_stays() {
    let world = World::new().await;
    let second = new_key();
    let before = world.names("").await.len();
    let repository = world.open(&world.key).await.unwrap();
    assert!(repository.add_recipient(provider(&second)).await.unwrap());
    assert!(!repository.add_recipient(provider(&second)).await.unwrap());
    assert_eq!(
        world.names("").await.len(),
        before + 1,
        "one ring, and no more"
    );
    for key in [&world.key, &second] {
        assert_eq!(gaps(&world, key).await.unwrap(), 0);
    }

    let own = world.key.key_id();
    let error = repository.remove_recipient(own).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let unknown = new_key().key_id();
    let error = repository.remove_recipient(unknown).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");

    let with_second = world.open(&second).await.unwrap();
    with_second.remove_recipient(own).await.unwrap();
    let states = with_second.recipients().await.unwrap();
    assert_eq!(states.len(), 1);
    assert!(states[0].opened_this && states[0].since == NOW);
    let error = world.open(&world.key).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.to_string().contains(&second.key_id().to_string()),
        "{error}"
    );
    assert_eq!(gaps(&world, &second).await.unwrap(), 0);
    // Whoever had it open hears of it when it asks.
    let error = repository.check_key(None).await.unwrap_err();
    assert!(matches!(error, Error::WrongRootKey { .. }), "{error:?}");
}

#[tokio::test]
async fn of_two_who_change_the_ring_at_once_neither_loses_the_others_change() {
    let world = World::new().await;
    let one = world.open(&world.key).await.unwrap();
    let two = world.open(&world.key).await.unwrap();
    let added = [new_key(), new_key()];
    let (a, b) = tokio::join!(
        one.add_recipient(provider(&added[0])),
        two.add_recipient(provider(&added[1])),
    );
    assert!(a.unwrap() && b.unwrap());
    for key in [&world.key, &added[0], &added[1]] {
        gaps(&world, key).await.unwrap();
    }
    assert_eq!(world.names("keys/").await.len(), 3);
}

/// Loses the reply of each create, or refuses creates of names that begin so.
struct Failing {
    inner: Arc<MemoryStore>,
    lose_replies: AtomicBool,
    refused: &'static str,
}

#[async_trait]
impl StoreLayer for Failing {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        if !self.refused.is_empty() && name.starts_with(self.refused) {
            let kind = StoreErrorKind::Full;
            return Err(StoreError::new(kind, "create", name, "memory:", "full"));
        }
        self.inner.create(name, bytes.clone()).await?;
        if self.lose_replies.load(Ordering::SeqCst) {
            // As a store whose client has tried it again.
            return self.inner.create(name, bytes).await;
        }
        Ok(Created::New)
    }
}

#[tokio::test]
async fn a_ring_whose_reply_was_lost_is_not_taken_for_a_rivals() {
    let world = World::new().await;
    let store = Arc::new(Failing {
        inner: world.store.clone(),
        lose_replies: AtomicBool::new(true),
        refused: "",
    });
    let repository = Repository::open(world.environment_on(store), &world.key)
        .await
        .unwrap();
    let second = new_key();
    repository.add_recipient(provider(&second)).await.unwrap();
    assert_eq!(world.names("keys/").await.len(), 2);
    repository
        .create_cluster("next", Bytes::new())
        .await
        .unwrap();
    world.clock.advance(DAY * 31);
    let lineage = shop(&repository).await;
    assert!(repository.follow_data_keys(&lineage, 0).await.unwrap());
    assert_eq!(world.rings_of(&lineage).await, 2);
}

#[tokio::test]
async fn data_keys_are_followed_by_age_and_those_who_opened_before_read_on() {
    let world = World::new().await;
    let reading = world.open(&world.key).await.unwrap();
    let read = shop(&reading).await;
    let writing = world.open(&world.key).await.unwrap();
    let lineage = shop(&writing).await;
    let first = lineage.keys().current().id;

    world.clock.advance(DAY * 29);
    assert!(!writing.follow_data_keys(&lineage, 0).await.unwrap());
    world.clock.advance(DAY);
    assert!(writing.follow_data_keys(&lineage, 0).await.unwrap());
    let second = lineage.keys().current();
    assert_ne!(second.id, first);
    assert_eq!(second.created, world_now(&world));
    // The ring is there before anything is sealed with the key.
    let fresh = shop(&world.open(&world.key).await.unwrap()).await;
    assert_eq!(fresh.keys().current().id, second.id);
    assert!(
        !writing.follow_data_keys(&lineage, 0).await.unwrap(),
        "once"
    );

    let mut ledger = writer(&lineage).await;
    ledger.append(&gap(1), Vec::new()).await.unwrap();
    assert!(read.keys().get(second.id).is_none(), "it was opened before");
    assert_eq!(read.reader().await.unwrap().state().gaps.len(), 1);
    assert!(read.keys().get(second.id).is_some());
    assert!(read.keys().get(first).is_some());
    // The catalog has gone on as well, and whoever opened it before reads it.
    writing.create_cluster("next", Bytes::new()).await.unwrap();
    assert_eq!(reading.clusters().await.unwrap().len(), 2);

    // By volume, too.
    let sealed = borealis_repository::DATA_KEY_BYTES_MAX;
    assert!(writing.follow_data_keys(&lineage, sealed).await.unwrap());
}

fn world_now(world: &World) -> Timestamp {
    borealis_base::Clock::now(&*world.clock)
}

#[tokio::test]
async fn of_two_writers_that_make_a_data_key_at_once_one_does() {
    let world = World::new().await;
    let (one, two) = (
        world.open(&world.key).await.unwrap(),
        world.open(&world.key).await.unwrap(),
    );
    let (a, b) = (shop(&one).await, shop(&two).await);
    world.clock.advance(DAY * 40);
    let (first, second) = tokio::join!(one.follow_data_keys(&a, 0), two.follow_data_keys(&b, 0));
    assert!(first.unwrap() && second.unwrap());
    assert_eq!(a.keys().current().id, b.keys().current().id);
    assert_eq!(world.rings_of(&a).await, 2);
    assert_eq!(world.names("keys/").await.len(), 2);
}

#[tokio::test]
async fn an_object_of_another_lineage_is_looked_for_once_and_then_told() {
    let world = World::new().await;
    let repository = world.open(&world.key).await.unwrap();
    let other = repository
        .create_cluster("other", Bytes::new())
        .await
        .unwrap();
    writer(&other)
        .await
        .append(&gap(1), Vec::new())
        .await
        .unwrap();
    let lineage = shop(&repository).await;
    let foreign = layout::entry(other.id(), 2);
    let bytes = world.store.read(&foreign).await.unwrap();
    let name = layout::entry(lineage.id(), 1);
    world.store.create(&name, bytes).await.unwrap();
    let error = lineage.reader().await.err().unwrap();
    assert!(matches!(error, Error::UnknownDataKey { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_renewal_shuts_out_whoever_has_a_key_from_before() {
    let world = World::new().await;
    let repository = world.open(&world.key).await.unwrap();
    let lineage = shop(&repository).await;
    let mut ledger = writer(&lineage).await;
    ledger.append(&gap(1), Vec::new()).await.unwrap();

    let next = new_key();
    repository.add_recipient(provider(&next)).await.unwrap();
    let reopened = world.open(&next).await.unwrap();
    reopened.remove_recipient(world.key.key_id()).await.unwrap();
    reopened.renew(&[]).await.unwrap();
    let rings: Vec<String> = world.names("").await;
    let rings: Vec<_> = rings.iter().filter(|name| name.contains("keys/")).collect();
    // A writer that is running goes on to the new keys when it asks.
    reopened.check_key(Some(&lineage)).await.unwrap();
    ledger.append(&gap(2), Vec::new()).await.unwrap();
    assert_eq!(gaps(&world, &next).await.unwrap(), 2);

    // A thief has the old root key, and every object but the rings that it can't open.
    let thief = World {
        store: Arc::default(),
        clock: world.clock.clone(),
        key: world.key.clone(),
    };
    for object in world.store.list("").await.unwrap() {
        let is_new = rings.contains(&&object.name) && !object.name.ends_with("/000000000001");
        if !is_new {
            let bytes = world.store.read(&object.name).await.unwrap();
            thief.store.create(&object.name, bytes).await.unwrap();
        }
    }
    let opened = thief.open(&thief.key).await.unwrap();
    let stolen = shop(&opened).await;
    let error = stolen.reader().await.err().unwrap();
    assert!(matches!(error, Error::UnknownDataKey { .. }), "{error:?}");
}

#[tokio::test]
async fn a_renewal_wants_every_recipient_that_stays() {
    let world = World::new().await;
    let second = new_key();
    let repository = world.open(&world.key).await.unwrap();
    repository.add_recipient(provider(&second)).await.unwrap();
    let before = world.names("").await;
    let error = repository.renew(&[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.to_string().contains(&second.key_id().to_string()),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--recipient"));
    assert_eq!(world.names("").await, before, "nothing is written");
    repository.renew(&[provider(&second)]).await.unwrap();
    for key in [&world.key, &second] {
        gaps(&world, key).await.unwrap();
    }
}

#[tokio::test]
async fn a_renewal_that_was_cut_off_leaves_everything_readable_and_is_run_again() {
    let world = World::new().await;
    let repository = world.open(&world.key).await.unwrap();
    let mut ledger = writer(&shop(&repository).await).await;
    ledger.append(&gap(1), Vec::new()).await.unwrap();
    let store = Arc::new(Failing {
        inner: world.store.clone(),
        lose_replies: AtomicBool::new(false),
        refused: "lineages/",
    });
    let failing = Repository::open(world.environment_on(store), &world.key)
        .await
        .unwrap();
    failing.renew(&[]).await.unwrap_err();
    assert_eq!(
        world.names("keys/").await.len(),
        2,
        "the first step was taken"
    );
    assert_eq!(gaps(&world, &world.key).await.unwrap(), 1);
    repository.renew(&[]).await.unwrap();
    assert_eq!(gaps(&world, &world.key).await.unwrap(), 1);
}

#[tokio::test]
async fn a_lineage_that_is_born_during_a_renewal_opens_afterwards() {
    let world = World::new().await;
    let stale = world.open(&world.key).await.unwrap();
    let renewing = world.open(&world.key).await.unwrap();
    renewing.renew(&[]).await.unwrap();
    let born = stale.create_cluster("late", Bytes::new()).await.unwrap();
    writer(&born)
        .await
        .append(&gap(1), Vec::new())
        .await
        .unwrap();
    let fresh = world.open(&world.key).await.unwrap();
    let opened = fresh.lineage(born.id()).await.unwrap();
    assert_eq!(opened.reader().await.unwrap().state().gaps.len(), 1);
    // Whoever had it open before the renewal finds its way, too.
    let read = stale.lineage(shop(&renewing).await.id()).await.unwrap();
    read.reader().await.unwrap();
}
