//! What a store, a rival, a wrong key or an attacker can do to a repository, seen from outside.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::sync::Arc;

use borealis_base::{
    Branch, ErrorKind, ManualClock, Position, RecordSpan, SeededEntropy, SystemEntropy, Timestamp,
};
use borealis_keys::FileKey;
use borealis_repository::ledger::{EntryBody, Gap, Holder, Opening};
use borealis_repository::pins::NewPin;
use borealis_repository::store::{Absent, FolderStore, MemoryStore, Store};
use borealis_repository::{Environment, Error, Repository, layout};
use bytes::Bytes;

fn environment(store: Arc<dyn Store>, seed: u64) -> Environment {
    Environment {
        store,
        clock: Arc::new(ManualClock::new(Timestamp(0))),
        entropy: Arc::new(SeededEntropy::new(seed)),
    }
}

fn opening() -> Opening {
    Opening {
        holder: Holder::default(),
        log_unit: 1,
        expected_epoch: None,
    }
}

fn gap(from: u64) -> EntryBody {
    EntryBody::Gap(Gap {
        branch: Branch(1),
        from: Position(from),
        to: Position(from + 1),
        reason: String::new(),
    })
}

fn pin(name: &str) -> NewPin {
    NewPin {
        name: name.to_owned(),
        branch: Branch(1),
        last_record: RecordSpan {
            start: Position(1),
            end: Position(2),
        },
        time: Some(Timestamp(3)),
        note: "note".to_owned(),
        tags: [("a".to_owned(), "b".to_owned())].into(),
    }
}

/// A repository with one object of each kind that this crate's own parts write.
async fn furnished() -> (Arc<MemoryStore>, FileKey) {
    let store = Arc::new(MemoryStore::default());
    let key = FileKey::in_memory(&SystemEntropy);
    let repository = Repository::init(environment(store.clone(), 1), &[&key])
        .await
        .unwrap();
    let lineage = repository
        .create_cluster("shop", Bytes::from_static(b"facts"))
        .await
        .unwrap();
    repository
        .create_cluster("other", Bytes::new())
        .await
        .unwrap();
    let mut writer = lineage.open_writer(opening()).await.unwrap();
    for from in 0..70 {
        writer.append(&gap(from), Vec::new()).await.unwrap();
    }
    let mut pins = lineage.pins().await.unwrap();
    pins.create(pin("one")).await.unwrap();
    pins.create(pin("two")).await.unwrap();
    pins.create(pin("three")).await.unwrap();
    pins.delete("two").await.unwrap();
    (store, key)
}

/// Reads everything there is to read.
async fn read_all(store: Arc<MemoryStore>, key: &FileKey) -> Result<Vec<String>, Error> {
    let repository = Repository::open(environment(store, 2), key).await?;
    let mut read = Vec::new();
    for cluster in repository.clusters().await? {
        read.push(format!("{cluster:?}"));
        for record in &cluster.lineages {
            let lineage = repository.lineage(record.lineage).await?;
            let reader = lineage.reader().await?;
            read.push(format!(
                "{:?} {:?}",
                reader.state(),
                reader.presence().await?
            ));
            for number in 1..=reader.state().head {
                read.push(format!("{:?}", reader.body(number).await?));
                reader.object(number).await?;
            }
            read.push(format!("{:?}", lineage.pins().await?.all()));
        }
    }
    Ok(read)
}

#[tokio::test]
async fn a_changed_truncated_or_swapped_object_of_any_kind_is_damage_that_names_it() {
    let (store, key) = furnished().await;
    let objects = store.list("").await.unwrap();
    let whole = read_all(store.clone(), &key).await.unwrap();
    let mut tried = 0;
    for object in &objects {
        // The epoch's object is read only where no entry speaks of it.
        if object.name.contains("/epochs/") {
            continue;
        }
        let original = store.read(&object.name).await.unwrap();
        let mut versions: Vec<Bytes> = vec![
            Bytes::new(),
            original.slice(..original.len() / 2),
            original.slice(..original.len() - 1),
        ];
        for place in 0..8 {
            let mut flipped = original.to_vec();
            let at = place * (flipped.len() - 1) / 7;
            flipped[at] ^= 1;
            versions.push(flipped.into());
        }
        // Another valid object of the same folder, put in its place.
        let folder = object
            .name
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        let sibling = objects.iter().find(|other| {
            other.name != object.name
                && !folder.is_empty()
                && other
                    .name
                    .rsplit_once('/')
                    .is_some_and(|(f, _)| f == folder)
        });
        if let Some(sibling) = sibling {
            versions.push(store.read(&sibling.name).await.unwrap());
        }
        for version in versions {
            store.tamper(&object.name, version);
            let error = read_all(store.clone(), &key).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{}: {error}", object.name);
            assert!(
                error.to_string().contains(&object.name),
                "{}: {error}",
                object.name
            );
            tried += 1;
        }
        store.tamper(&object.name, original);
    }
    assert!(tried > 500, "{tried}");
    assert_eq!(read_all(store, &key).await.unwrap(), whole);
}

#[tokio::test]
async fn a_missing_object_is_named_unless_it_was_the_last_of_its_row() {
    let (store, key) = furnished().await;
    let objects = store.list("").await.unwrap();
    for (n, object) in objects.iter().enumerate() {
        let folder = object
            .name
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        let has_next = objects
            .get(n + 1)
            .is_some_and(|next| next.name.starts_with(folder));
        let numbered = ["catalog", "/ledger/", "/pins"]
            .iter()
            .any(|row| folder.contains(row));
        if numbered && !has_next || object.name.contains("/epochs/") {
            continue; // the end of a row looks like this; `docs/formats/ledger.md` says so
        }
        let original = store.read(&object.name).await.unwrap();
        store.delete(&object.name).await.unwrap();
        let error = read_all(store.clone(), &key).await.unwrap_err();
        if object.name == layout::DESCRIPTOR {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        } else {
            assert_eq!(error.kind(), ErrorKind::Damaged, "{}: {error}", object.name);
            assert!(
                error.to_string().contains(&object.name),
                "{}: {error}",
                object.name
            );
        }
        store.tamper(&object.name, original);
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused_by_name_and_is_not_damage() {
    let (store, key) = furnished().await;
    let wrong = FileKey::in_memory(&SystemEntropy);
    let error = Repository::open(environment(store, 3), &wrong)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = error.to_string();
    for id in [&key, &wrong].map(|key| borealis_keys::KeyProvider::key_id(key).to_string()) {
        assert!(text.contains(&id), "{text}");
    }
}

#[tokio::test]
async fn a_second_recipient_reads_what_the_first_wrote() {
    let store = Arc::new(MemoryStore::default());
    let keys = [
        FileKey::in_memory(&SystemEntropy),
        FileKey::in_memory(&SystemEntropy),
    ];
    let repository = Repository::init(environment(store.clone(), 1), &[&keys[0], &keys[1]])
        .await
        .unwrap();
    repository
        .create_cluster("shop", Bytes::new())
        .await
        .unwrap();
    let first = read_all(store.clone(), &keys[0]).await.unwrap();
    assert_eq!(read_all(store, &keys[1]).await.unwrap(), first);
}

#[tokio::test]
async fn of_two_creators_of_one_cluster_one_is_refused() {
    let store = Arc::new(MemoryStore::default());
    let key = FileKey::in_memory(&SystemEntropy);
    Repository::init(environment(store.clone(), 1), &[&key])
        .await
        .unwrap();
    let one = Repository::open(environment(store.clone(), 2), &key)
        .await
        .unwrap();
    let two = Repository::open(environment(store.clone(), 3), &key)
        .await
        .unwrap();
    let (a, b) = tokio::join!(
        one.create_cluster("shop", Bytes::new()),
        two.create_cluster("shop", Bytes::new())
    );
    let refused: Vec<Error> = [a.err(), b.err()].into_iter().flatten().collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].kind(), ErrorKind::Refused);
    assert!(refused[0].to_string().contains("`shop` exists"));
    assert_eq!(one.clusters().await.unwrap().len(), 1);
    one.retire_cluster("shop").await.unwrap();
    two.create_cluster("shop", Bytes::new()).await.unwrap();
    assert_eq!(one.clusters().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_half_made_repository_is_none_and_can_be_made_again() {
    let store = Arc::new(MemoryStore::default());
    let key = FileKey::in_memory(&SystemEntropy);
    let made = Repository::init(environment(store.clone(), 1), &[&key])
        .await
        .unwrap();
    // Killed before its last step.
    store.delete(layout::DESCRIPTOR).await.unwrap();
    let error = Repository::open(environment(store.clone(), 2), &key)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let other = FileKey::in_memory(&SystemEntropy);
    let error = Repository::init(environment(store.clone(), 3), &[&other])
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let again = Repository::init(environment(store.clone(), 4), &[&key])
        .await
        .unwrap();
    assert_eq!(again.id(), made.id());
    let error = Repository::init(environment(store, 5), &[&key])
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn names_of_clusters_and_pins_are_checked() {
    let (store, key) = furnished().await;
    let repository = Repository::open(environment(store, 2), &key).await.unwrap();
    for name in ["", "Shop", "1a", "-a", "a_b", "a/b", &"a".repeat(64)] {
        let error = repository
            .create_cluster(name, Bytes::new())
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage, "{name:?}");
    }
    let cluster = repository.cluster("shop").await.unwrap();
    let lineage = repository
        .lineage(cluster.newest_lineage().lineage)
        .await
        .unwrap();
    let mut pins = lineage.pins().await.unwrap();
    assert_eq!(
        pins.create(pin("one")).await.unwrap_err().kind(),
        ErrorKind::Refused
    );
    assert_eq!(
        pins.create(pin("")).await.unwrap_err().kind(),
        ErrorKind::Usage
    );
    assert_eq!(
        pins.delete("two").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let names: Vec<&str> = pins.all().iter().map(|pin| pin.name.as_str()).collect();
    assert_eq!(names, ["one", "three"]);
}

#[tokio::test]
async fn a_child_lineage_reads_its_parents_objects() {
    let (store, key) = furnished().await;
    let repository = Repository::open(environment(store, 11), &key)
        .await
        .unwrap();
    let parent = repository
        .cluster("shop")
        .await
        .unwrap()
        .newest_lineage()
        .lineage;
    let at = borealis_repository::Parent {
        lineage: parent,
        branch: Branch(1),
        at: Position(5),
    };
    let child = repository.add_lineage("shop", at).await.unwrap();
    let parent_keys = repository.lineage(parent).await.unwrap();
    let parent_key = parent_keys.keys().current().id;
    assert!(child.keys().get(parent_key).is_some());
    assert_ne!(child.keys().current().id, parent_key);
    let again = repository.lineage(child.id()).await.unwrap();
    assert!(again.keys().get(parent_key).is_some());
    assert_eq!(
        repository
            .cluster("shop")
            .await
            .unwrap()
            .newest_lineage()
            .parent,
        Some(at)
    );
}

#[tokio::test]
async fn a_repository_in_a_folder_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("repo");
    let key = FileKey::in_memory(&SystemEntropy);
    let store = Arc::new(FolderStore::open(&place, Absent::Create).unwrap());
    let repository = Repository::init(environment(store, 1), &[&key])
        .await
        .unwrap();
    let lineage = repository
        .create_cluster("shop", Bytes::new())
        .await
        .unwrap();
    let mut writer = lineage.open_writer(opening()).await.unwrap();
    let entry = writer.append(&gap(1), Vec::new()).await.unwrap();
    drop((writer, lineage, repository));
    let store = Arc::new(FolderStore::open(&place, Absent::Refuse).unwrap());
    let repository = Repository::open(environment(store, 2), &key).await.unwrap();
    let cluster = repository.cluster("shop").await.unwrap();
    let lineage = repository
        .lineage(cluster.newest_lineage().lineage)
        .await
        .unwrap();
    let reader = lineage.reader().await.unwrap();
    assert_eq!(reader.head(), (entry.number, entry.head_digest));
}

#[tokio::test]
async fn every_object_can_be_inspected_with_and_without_keys() {
    use borealis_repository::inspect::{Inspectors, inspect};
    let (store, key) = furnished().await;
    let repository = Repository::open(environment(store.clone(), 2), &key)
        .await
        .unwrap();
    let cluster = repository.cluster("shop").await.unwrap();
    let lineage = repository
        .lineage(cluster.newest_lineage().lineage)
        .await
        .unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for object in store.list("").await.unwrap() {
        let bytes = store.read(&object.name).await.unwrap();
        let shown = inspect(&object.name, bytes.clone(), None, &Inspectors::default()).unwrap();
        kinds.insert(shown["kind"].as_str().unwrap().to_owned());
        let text = shown.to_string();
        assert!(!text.contains("shop") && !text.contains("note"), "{text}");
        let ours = object.name.contains(&lineage.id().to_string());
        if ours && shown["kind"] != "key ring" {
            let keys = Some(lineage.keys().as_ref());
            let shown = inspect(&object.name, bytes, keys, &Inspectors::default()).unwrap();
            assert_eq!(shown["authenticated"], true);
            if shown["kind"] == "pin" && shown["content"]["number"] == 1 {
                let created = &shown["content"]["body"]["created"];
                assert_eq!(created["name"], "one");
                assert_eq!(created["last_record"]["end"], "0/2");
            }
        }
    }
    let expected = [
        "catalog entry",
        "descriptor",
        "epoch",
        "key ring",
        "ledger entry",
        "pin",
    ];
    assert!(kinds.iter().map(String::as_str).eq(expected), "{kinds:?}");
}

#[tokio::test]
async fn the_last_thing_said_of_a_cluster_counts_for_every_reader() {
    use borealis_repository::catalog::{NewHold, Objectives};
    use borealis_repository::retention::{Days, HoldRange};
    let store = Arc::new(MemoryStore::default());
    let key = FileKey::in_memory(&SystemEntropy);
    let one = Repository::init(environment(store.clone(), 1), &[&key])
        .await
        .unwrap();
    let two = Repository::open(environment(store.clone(), 2), &key)
        .await
        .unwrap();
    one.create_cluster("shop", Bytes::new()).await.unwrap();
    assert_eq!(two.cluster("shop").await.unwrap().retention, None);
    one.set_retention("shop", Days::new(7).unwrap())
        .await
        .unwrap();
    two.set_retention("shop", Days::new(3).unwrap())
        .await
        .unwrap();
    let wanted = Objectives {
        recovery_point_seconds: Some(60),
        recovery_time_seconds: None,
    };
    one.set_objectives("shop", wanted).await.unwrap();
    let hold = |name: &str, range| NewHold {
        name: name.to_owned(),
        reason: "lawsuit".to_owned(),
        range,
        until: None,
    };
    let moments = HoldRange::Moments(Timestamp(1), Timestamp(2));
    one.create_hold("shop", hold("a", HoldRange::Everything))
        .await
        .unwrap();
    two.create_hold("shop", hold("b", moments)).await.unwrap();
    let taken = two
        .create_hold("shop", hold("a", moments))
        .await
        .unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Refused);
    one.delete_hold("shop", "a").await.unwrap();
    assert_eq!(
        two.delete_hold("shop", "a").await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let three = Repository::open(environment(store.clone(), 3), &key)
        .await
        .unwrap();
    let shop = three.cluster("shop").await.unwrap();
    assert_eq!(shop.retention, Days::new(3).ok());
    assert_eq!(shop.objectives, wanted);
    let holds: Vec<_> = shop
        .holds
        .iter()
        .map(|hold| (hold.name.as_str(), hold.range))
        .collect();
    assert_eq!(holds, [("b", moments)]);

    let ended = NewHold {
        until: Some(Timestamp(i64::MIN)),
        ..hold("c", HoldRange::Everything)
    };
    let backwards = hold("c", HoldRange::Moments(Timestamp(2), Timestamp(1)));
    let unnamed = hold(" c", HoldRange::Everything);
    let unreasoned = NewHold {
        reason: " ".to_owned(),
        ..hold("c", HoldRange::Everything)
    };
    for bad in [ended, backwards, unnamed, unreasoned] {
        let refused = one.create_hold("shop", bad).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Usage, "{refused}");
    }
    assert!(Days::new(0).is_err() && Days::new(36).is_err());
}
