//! Single things that go wrong while something expires.

use super::*;
use crate::plan::{Damage, Fault, Part};
use crate::scrub::{Host, scrub};

/// A lineage of ten base backups over three days.
async fn three_days(seed: u64) -> World {
    let mut world = World::new(seed, None).await;
    for number in 0..216 {
        world.clock.advance(HOUR / 3);
        if number % 21 == 0 {
            world.base_backup().await;
        } else {
            world.log_piece().await;
        }
    }
    world
}

/// Neon stopped deleting for ever at an object that it could not read. What is damaged and expired is deleted, and so is
/// all that other base backups tell.
#[test]
fn a_damaged_manifest_that_has_expired_keeps_nothing_else_from_being_deleted() {
    runtime().block_on(async {
        let world = three_days(3).await;
        let (repository, lineage) = (&world.repository, world.lineage.clone());
        let mut upkeep = world.upkeep(repository, lineage);
        let expired = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        assert!(expired.expired_base_backups > 3, "{expired:?}");
        let reader = world.lineage.reader().await.unwrap();
        let damaged = reader.marks()[0].selected.base_backups[1].manifest;
        let name = layout::manifest(damaged.lineage, damaged.object);
        world.memory.tamper(&name, Bytes::from_static(b"rotten"));
        world.clock.advance(GRACE);
        // Another process, which has read none of the manifests.
        let (repository, lineage) = (&world.repository, world.lineage.clone());
        let mut upkeep = world.upkeep(repository, lineage);
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        assert!(turn.deleted > 3, "{turn:?}");
        let reader = world.lineage.reader().await.unwrap();
        assert!(reader.marks().is_empty(), "{:?}", reader.marks());
        assert_eq!(world.memory.stat(&name).await.unwrap(), None);
        let (stored, named) = world.objects().await;
        let missing: Vec<&String> = named.difference(&stored).collect();
        assert!(missing.is_empty(), "{missing:?}");
        // Packs that only the damaged manifest named can't be told.
        let left = stored
            .difference(&named)
            .filter(|name| !name.contains("/packs/"));
        assert_eq!(left.count(), 0);
    });
}

#[test]
fn promises_that_cant_be_read_keep_everything_and_stop_no_merging() {
    runtime().block_on(async {
        let world = three_days(4).await;
        let mut pins = world.lineage.pins().await.unwrap();
        pins.create(pin("one", world.last_record())).await.unwrap();
        let name = layout::pin(world.lineage.id(), 1);
        world.memory.tamper(&name, Bytes::from_static(b"rotten"));
        let (repository, lineage) = (&world.repository, world.lineage.clone());
        let mut upkeep = world.upkeep(repository, lineage);
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await;
        assert_eq!(turn.unwrap_err().kind(), ErrorKind::Damaged);
        let reader = world.lineage.reader().await.unwrap();
        assert!(reader.marks().is_empty(), "{:?}", reader.marks());
        assert!(reader.lowest() > 1, "the floor has risen");
        let merged = reader
            .state()
            .pieces
            .iter()
            .filter(|it| it.merged.is_some());
        assert!(merged.count() > 10);
    });
}

/// Law 4: a writer has no need of the right to delete. What can't be deleted is not hidden either.
#[test]
fn without_the_right_to_delete_nothing_expires_and_all_else_is_done() {
    runtime().block_on(async {
        let mut world = World::new(2, None).await;
        world.base_backup().await;
        for number in 0..200 {
            world.clock.advance(HOUR / 3);
            world.log_piece().await;
            if number == 60 {
                world.base_backup().await;
            }
        }
        let unable = world
            .over(Arc::new(CutOff {
                inner: world.memory.clone(),
                left: AtomicU64::new(0),
                kind: StoreErrorKind::Denied,
            }))
            .await;
        let lineage = unable.lineage(world.lineage.id()).await.unwrap();
        let mut upkeep = world.upkeep(&unable, lineage);
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        assert!(turn.may_not_remove, "{turn:?}");
        assert!(turn.pieces > 0 && turn.floor.is_some(), "{turn:?}");
        assert_eq!((turn.expired_bytes, turn.deleted), (0, 0));
        // With the right, it goes on from there.
        let mut upkeep = world.upkeep(&world.repository, world.lineage.clone());
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        assert!(turn.expired_bytes > 0 && !turn.may_not_remove, "{turn:?}");
    });
}

/// Once the promises were read, and before it is said what has expired, somebody makes a snapshot.
struct MadeMeanwhile {
    inner: Arc<MemoryStore>,
    looked: std::sync::atomic::AtomicBool,
    pin: Mutex<Option<(Lineage, NewPin)>>,
}

#[async_trait]
impl StoreLayer for MadeMeanwhile {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn before_read(&self, name: &str) -> Result<(), StoreError> {
        if name.contains("catalog/") {
            self.looked.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        if name.contains("/maintenance/") && self.looked.load(Ordering::Relaxed) {
            let made = self.pin.lock().unwrap().take();
            if let Some((lineage, pin)) = made {
                let mut pins = lineage.pins().await.unwrap();
                pins.create(pin).await.unwrap();
            }
        }
        self.inner.create(name, bytes).await
    }
}

async fn a_snapshot_is_made_meanwhile(without: Option<Rule>) {
    let mut world = World::new(1, without).await;
    let store = Arc::new(MadeMeanwhile {
        inner: world.memory.clone(),
        looked: false.into(),
        pin: Mutex::default(),
    });
    let repository = world.over(store.clone()).await;
    world.base_backup().await;
    let (early, early_pages) = (world.last_record(), world.versions.clone());
    for _ in 0..3 {
        world.clock.advance(HOUR * 3);
        world.base_backup().await;
    }
    for _ in 0..10 {
        world.clock.advance(HOUR / 4);
        world.log_piece().await;
    }
    let lineage = repository.lineage(world.lineage.id()).await.unwrap();
    let mut upkeep = world.upkeep(&repository, lineage);
    let mut turn = async || upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
    let first = turn().await;
    assert!(
        first.pieces > 0 && first.expired_base_backups == 0,
        "{first:?}"
    );
    for _ in 0..40 {
        world.clock.advance(HOUR);
        world.log_piece().await;
    }
    world.base_backup().await;
    store.looked.store(false, Ordering::Relaxed);
    *store.pin.lock().unwrap() = Some((world.lineage.clone(), pin("late", early)));
    let second = turn().await;
    assert!(second.expired_base_backups > 0, "{second:?}");
    assert!(store.pin.lock().unwrap().is_none(), "it was made meanwhile");
    assert!(second.kept_after_all > 0, "it is not missed for a day");
    for _ in 0..3 {
        let state = world.lineage.load_state().await.unwrap();
        let plan = what_a_pin_needs(&state, &state.pins[0]).expect("it can be restored");
        let manifest = plan.base_backup.manifest;
        assert_eq!(world.truth[&manifest.object], early_pages);
        world.check_pages(&manifest).await;
        world.clock.advance(GRACE);
        turn().await;
    }
    world.promised = world.now();
    world.check().await;
}

/// A snapshot can come to be between the look at the promises and the mark; so they are looked at again.
#[test]
fn a_snapshot_that_is_made_while_its_base_backup_expires_keeps_it() {
    runtime().block_on(a_snapshot_is_made_meanwhile(None));
}

#[test]
fn deleting_without_a_second_look_at_the_promises_shows() {
    let run = || runtime().block_on(a_snapshot_is_made_meanwhile(Some(Rule::SecondCheck)));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}

/// After the first object has been read, a day passes, and what had expired is deleted.
struct DaysPass {
    world: tokio::sync::Mutex<World>,
    passed: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl Host for DaysPass {
    async fn begins(&self, _: u64, _: u64) {}

    async fn has_read(&self, _: u64) -> bool {
        if !self.passed.swap(true, Ordering::Relaxed) {
            let world = self.world.lock().await;
            let (repository, lineage) = (&world.repository, world.lineage.clone());
            let mut upkeep = world.upkeep(repository, lineage);
            upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
            world.clock.advance(GRACE);
            let turn = upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
            assert!(turn.deleted > 10, "{turn:?}");
        }
        true
    }

    async fn before_second_look(&self) {}
    async fn found(&self, _: &Damage, _: &LineageState) {}
    async fn sound(&self, _: &str) {}
}

/// A scrub of a large lineage takes weeks.
#[test]
fn what_expired_and_was_deleted_while_a_scrub_went_on_is_no_damage() {
    runtime().block_on(async {
        let world = three_days(5).await;
        let lineage = world.lineage.clone();
        let host = DaysPass {
            world: tokio::sync::Mutex::new(world),
            passed: false.into(),
        };
        let outcome = scrub(&lineage, &host, &NoProgress).await.unwrap();
        assert!(outcome.complete && host.passed.load(Ordering::Relaxed));
        assert!(outcome.found.is_empty(), "{:?}", outcome.found);
    });
}

/// pgBackRest expires the good copy behind a damaged newer one. What serves in the place of what a scrub found damaged
/// is kept, and so is that, since it may be healed.
#[test]
fn the_good_base_backup_before_a_damaged_one_does_not_expire() {
    runtime().block_on(async {
        let world = three_days(6).await;
        let all = world.lineage.load_state().await.unwrap().base_backups;
        let (repository, lineage) = (&world.repository, world.lineage.clone());
        let mut upkeep = world.upkeep(repository, lineage.clone());
        // The window begins a day ago.
        let first = world.now().minus(Duration::from_hours(24));
        let at = all.iter().rposition(|base| base.ended_at <= first).unwrap();
        assert!(at > 1);
        let damage = Damage {
            found_at: world.now(),
            object: layout::manifest(all[at].manifest.lineage, all[at].manifest.object),
            fault: Fault::Damaged,
            part: Part::Manifest(all[at].manifest.object),
            what: "injected".to_owned(),
            base_backups: vec![all[at].entry],
            looked_through: world.writer.state().head,
        };
        let mut scrubs = lineage.scrubs().await.unwrap();
        scrubs.record_damage(&damage).await.unwrap();
        upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        let kept = lineage.load_stored_state().await.unwrap().base_backups;
        let oldest = kept.first().map(|base| base.entry);
        assert_eq!(oldest, Some(all[at - 1].entry), "it serves in its place");
        assert_eq!(kept[1].entry, all[at].entry, "it may be healed");
        // Healed, it serves the window by itself.
        let now = world.now();
        scrubs.record_sound(&damage.object, now).await.unwrap();
        world.clock.advance(HOUR);
        upkeep.turn(Bounds::default(), &NoProgress).await.unwrap();
        let kept = lineage.load_stored_state().await.unwrap().base_backups;
        assert_eq!(kept.first().map(|base| base.entry), Some(all[at].entry));
    });
}
