//! What is lost, changed, swapped or sealed for somebody else is named and never restored.

use super::*;
use crate::store::{Created, StoreError, StoreLayer};

#[tokio::test]
async fn a_reference_to_a_pack_that_was_not_stored_is_refused() {
    let world = World::new();
    let file = |length| PageFile {
        number: 0,
        name: "f".to_owned(),
        page_size: PAGE,
        length,
        mode: 0,
    };
    for (pack, frame) in [(0, 0), (5, 0), (0, 99)] {
        let mut builder = ManifestBuilder::first();
        let mut packs = PackWriter::new(world.target.clone(), builder.pack_numbers());
        builder.file_number("f");
        builder.add_page_file(file(2));
        let bytes = page(&world.entropy);
        let digester = world.target.digester();
        let prepared =
            prepare_pages(0, PAGE, &[(0, &bytes)], Compression::None, &digester).unwrap();
        builder.place(packs.push_pages(prepared).await.unwrap());
        builder.place([Run {
            file: 0,
            first: 1,
            count: 1,
            at: Location::Frame { pack, frame },
        }]);
        let packs = packs.finish().await.unwrap();
        if pack != 0 || frame != 0 {
            builder.add_packs(packs);
        }
        let error = builder
            .store(&world.target, &world.fetcher(), World::info())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug, "{error}");
    }
}

#[tokio::test]
async fn a_page_that_its_frame_does_not_hold_is_damage() {
    let world = World::new();
    let mut builder = ManifestBuilder::first();
    let mut packs = PackWriter::new(world.target.clone(), builder.pack_numbers());
    builder.file_number("f");
    builder.add_page_file(PageFile {
        number: 0,
        name: "f".to_owned(),
        page_size: PAGE,
        length: 2,
        mode: 0,
    });
    let bytes = page(&world.entropy);
    let digester = world.target.digester();
    let prepared = prepare_pages(0, PAGE, &[(0, &bytes)], Compression::None, &digester).unwrap();
    let mut runs = packs.push_pages(prepared).await.unwrap();
    runs[0].count = 2;
    builder.place(runs);
    builder.add_packs(packs.finish().await.unwrap());
    let manifest = Arc::new(
        builder
            .store(&world.target, &world.fetcher(), World::info())
            .await
            .unwrap(),
    );
    let pack = object_name(ObjectKind::Pack, &manifest.packs()[&0].object);
    let error = world
        .reader(&manifest)
        .read_pages(0, 0..2)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().starts_with(&pack), "{error}");
    let error = world.restore(&manifest).await.unwrap_err();
    assert!(
        error.to_string().contains("frame 0 holds 1 of 2 pages"),
        "{error}"
    );
}

/// Each byte of each object, or a sample where there are many, has one bit flipped.
#[tokio::test]
async fn a_flipped_bit_anywhere_is_never_restored() {
    let world = World::new();
    let files = some_files(&world);
    let first = world.back_up(None, &files, &[]).await.unwrap();
    let manifest = world
        .back_up(Some(&first), &files, &[("base/1", 3)])
        .await
        .unwrap();
    for name in world.names() {
        let good = world.bytes(&name);
        let step = (good.len() / 40).max(1);
        // The last eight bytes guard the object as a whole; whoever reads frames alone has their tags.
        for at in (0..good.len() - 8)
            .step_by(step)
            .chain(0..24)
            .chain([good.len() - 9])
        {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            world.store.tamper(&name, bad.into());
            match world.restore(&manifest).await {
                Ok(restored) => assert_eq!(restored, files, "byte {at} of {name}"),
                Err(error) => {
                    assert_eq!(
                        error.kind(),
                        ErrorKind::Damaged,
                        "byte {at} of {name}: {error}"
                    );
                    assert!(
                        error.to_string().contains(&name),
                        "byte {at} of {name}: {error}"
                    );
                }
            }
        }
        world.store.tamper(&name, good.into());
    }
    assert_eq!(world.restore(&manifest).await.unwrap(), files);
}

#[tokio::test]
async fn a_truncated_or_missing_object_is_named() {
    let world = World::new();
    let files = some_files(&world);
    let manifest = world.back_up(None, &files, &[]).await.unwrap();
    for name in world.names() {
        let good = world.bytes(&name);
        for len in [0, 10, 24, 60, good.len() / 2, good.len() - 9] {
            world.store.tamper(&name, good[..len].to_vec().into());
            let error = world.restore(&manifest).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Damaged,
                "{len} bytes of {name}: {error}"
            );
            assert!(
                error.to_string().contains(&name),
                "{len} bytes of {name}: {error}"
            );
        }
        world.store.delete(&name).await.unwrap();
        let error = world.restore(&manifest).await.unwrap_err();
        assert!(
            matches!(&error, Error::Missing { object, .. } if *object == name),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Damaged);
        world.store.tamper(&name, good.into());
    }
}

#[tokio::test]
async fn an_object_swapped_with_another_valid_one_is_refused() {
    let world = World::new();
    let mut files = some_files(&world);
    let first = world.back_up(None, &files, &[]).await.unwrap();
    files.get_mut("base/1").unwrap()[3] = page(&world.entropy);
    let second = world
        .back_up(Some(&first), &files, &[("base/1", 3)])
        .await
        .unwrap();
    let packs: Vec<String> = second
        .packs()
        .values()
        .map(|pack| object_name(ObjectKind::Pack, &pack.object))
        .collect();
    let pairs = [
        (first.name(), second.name()),
        (packs[0].clone(), packs[1].clone()),
        (packs[0].clone(), first.name()),
    ];
    for (left, right) in pairs {
        let good = world.bytes(&left);
        world.store.tamper(&left, world.bytes(&right).into());
        for manifest in [&first, &second] {
            if let Err(error) = world.restore(manifest).await {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                assert!(error.to_string().contains(&left), "{error}");
            } else {
                assert!(
                    left == first.name() && manifest.name() == second.name(),
                    "{left} was not missed"
                );
            }
        }
        world.store.tamper(&left, good.into());
    }
}

#[tokio::test]
async fn a_foreign_data_key_is_refused_and_not_damage() {
    let world = World::new();
    let manifest = world.back_up(None, &some_files(&world), &[]).await.unwrap();
    let other = Arc::new(DataKeys::new(DataKey::random(&*world.entropy)));
    let fetcher = Fetcher::new(Arc::clone(&world.target.store), other);
    let error = Manifest::load(&fetcher, &manifest.object())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

/// What a store does to a create.
#[derive(Clone, Copy)]
enum Fault {
    /// It keeps one byte less than it was given.
    Truncates,
    /// It keeps the object, and the reply is lost; the second try is answered.
    LosesReply,
    /// It never answers.
    Silent,
}

struct Faulty(Arc<MemoryStore>, Fault, AtomicU32);

#[async_trait::async_trait]
impl StoreLayer for Faulty {
    fn inner(&self) -> &dyn Store {
        &*self.0
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let silent = || {
            StoreError::new(
                StoreErrorKind::Unreachable,
                "create",
                name,
                "test",
                "no answer",
            )
        };
        let first = self.2.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        match self.1 {
            Fault::Truncates => self.0.create(name, bytes.slice(..bytes.len() - 1)).await,
            Fault::Silent => Err(silent()),
            Fault::LosesReply => {
                let created = self.0.create(name, bytes).await?;
                if first { Err(silent()) } else { Ok(created) }
            }
        }
    }
}

#[tokio::test]
async fn a_pack_stored_truncated_is_noticed_before_anything_names_it() {
    let mut world = World::new();
    world.target.store = Arc::new(Faulty(
        Arc::clone(&world.store),
        Fault::Truncates,
        AtomicU32::new(0),
    ));
    let error = world
        .back_up(None, &some_files(&world), &[])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("/packs/"), "{error}");
}

#[tokio::test]
async fn a_lost_reply_is_no_failure_and_silence_is_not_damage() {
    let mut world = World::new();
    let files = some_files(&world);
    world.target.store = Arc::new(Faulty(
        Arc::clone(&world.store),
        Fault::LosesReply,
        AtomicU32::new(0),
    ));
    let manifest = world.back_up(None, &files, &[]).await.unwrap();
    assert_eq!(world.restore(&manifest).await.unwrap(), files);
    let silent = Faulty(Arc::clone(&world.store), Fault::Silent, AtomicU32::new(0));
    world.target.store = Arc::new(silent);
    let error = world.back_up(None, &files, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}
