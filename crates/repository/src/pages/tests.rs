//! Base backups written to and read from a store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use borealis_base::{
    Branch, Entropy, ErrorKind, LineageId, NoProgress, Position, SeededEntropy, Timestamp,
};
use borealis_keys::{DataKey, DataKeys};
use bytes::Bytes;

use super::digests::{PageDigest, PageDigester};
use super::fetch::{Fetcher, object_name};
use super::manifest::{
    BaseBackupInfo, Directory, Link, Manifest, ManifestBuilder, PackEntry, PageFile,
};
use super::map::{Location, Run};
use super::pack::{BlobMeta, BlobPacker, PackTarget, PackWriter, prepare_pages};
use super::partial::PartialManifest;
use super::read::{PageReader, PageSink, coalesce};
use crate::numbered::Patience;
use crate::object::{Compression, ObjectHead, ObjectKind};
use crate::store::{Counters, CountingStore, MemoryStore, Store, StoreErrorKind};
use crate::{Error, Result};

mod damage;

const PAGE: u32 = 512;
const BLOB: &str = "global/settings";

pub(crate) type Files = BTreeMap<String, Vec<Vec<u8>>>;

pub(crate) struct World {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) target: PackTarget,
    pub(crate) keys: Arc<DataKeys>,
    pub(crate) entropy: Arc<SeededEntropy>,
    /// Makes the digests of pages.
    pub(crate) digester: PageDigester,
}

/// A page of random bytes, which no compression shrinks.
pub(crate) fn page(entropy: &SeededEntropy) -> Vec<u8> {
    let mut bytes = vec![0; PAGE as usize];
    entropy.fill(&mut bytes);
    bytes
}

impl World {
    pub(crate) fn new() -> Self {
        let entropy = Arc::new(SeededEntropy::new(7));
        let store = Arc::new(MemoryStore::default());
        let key = DataKey::random(&*entropy);
        let target = PackTarget {
            store: Arc::clone(&store) as Arc<dyn Store>,
            lineage: LineageId([9; 16]),
            key: key.clone(),
            entropy: Arc::clone(&entropy) as Arc<dyn Entropy>,
            pack_bytes_max: 20_000,
            patience: Patience {
                attempts: 3,
                pause: Duration::ZERO,
            },
        };
        Self {
            store,
            digester: target.digester(),
            target,
            keys: Arc::new(DataKeys::new(key)),
            entropy,
        }
    }

    /// A reader that has nothing cached.
    pub(crate) fn fetcher(&self) -> Arc<Fetcher> {
        Arc::new(Fetcher::new(
            Arc::clone(&self.target.store),
            Arc::clone(&self.keys),
        ))
    }

    pub(crate) fn info() -> BaseBackupInfo {
        BaseBackupInfo {
            branch: Branch(1),
            start: Position(100),
            end: Position(200),
            started_at: Timestamp(1),
            ended_at: Timestamp(2),
            rule_set: 3,
            engine: Bytes::from_static(b"opaque"),
        }
    }

    /// Takes a base backup of `files`, of which only `changed` pages are read if there is a parent.
    pub(crate) async fn back_up(
        &self,
        parent: Option<&Arc<Manifest>>,
        files: &Files,
        changed: &[(&str, u32)],
    ) -> Result<Arc<Manifest>> {
        let mut builder = parent.map_or_else(ManifestBuilder::first, |parent| {
            ManifestBuilder::next(Arc::clone(parent))
        });
        let mut packs = PackWriter::new(self.target.clone(), builder.pack_numbers());
        for (name, pages) in files {
            let number = builder.file_number(name);
            builder.add_page_file(PageFile {
                number,
                name: name.clone(),
                page_size: PAGE,
                length: pages.len() as u32,
                mode: 0o600,
            });
            let wanted: Vec<(u32, &[u8])> = (0_u32..)
                .zip(pages)
                .filter(|(at, _)| parent.is_none() || changed.contains(&(name.as_str(), *at)))
                .map(|(at, page)| (at, page.as_slice()))
                .collect();
            for some in wanted.chunks(10) {
                let digester = self.digester.clone();
                let prepared =
                    prepare_pages(number, PAGE, some, Compression::Zstd(1), &digester).unwrap();
                builder.place(packs.push_pages(prepared).await?);
            }
        }
        let long = vec![5; 3_000_000];
        let mut blobs = BlobPacker::new(Compression::Zstd(1));
        for (name, content) in [(BLOB, &b"a = 1\n"[..]), ("empty", b""), ("long", &long)] {
            blobs.begin(BlobMeta {
                name: name.to_owned(),
                mode: 0o640,
                modified: Timestamp(5),
            });
            for piece in content.chunks(700_000) {
                blobs.write(&mut packs, piece).await?;
            }
        }
        builder.add_blobs(blobs.finish(&mut packs).await?);
        builder.add_directory(Directory {
            name: "global".to_owned(),
            mode: 0o700,
        });
        builder.add_link(Link {
            name: "space".to_owned(),
            target: "/elsewhere".to_owned(),
        });
        builder.add_packs(packs.finish().await?);
        Ok(Arc::new(
            builder
                .store(&self.target, &self.fetcher(), Self::info())
                .await?,
        ))
    }

    /// Begins a base backup of `files` that takes over from `builder` what is not in `read`, and goes on
    /// to page `until` of those. What there is so far is stored after each `every` pages.
    pub(crate) async fn attempt(
        &self,
        mut builder: ManifestBuilder,
        files: &Files,
        read: &BTreeSet<(String, u32)>,
        until: usize,
        every: usize,
    ) -> Result<(ManifestBuilder, Option<PartialManifest>)> {
        let mut packs = PackWriter::new(self.target.clone(), builder.pack_numbers());
        for (name, pages) in files {
            let number = builder.file_number(name);
            builder.add_page_file(PageFile {
                number,
                name: name.clone(),
                page_size: PAGE,
                length: pages.len() as u32,
                mode: 0o600,
            });
            let of_file = read.iter().filter(|(of, _)| of == name);
            builder.forget(number, of_file.map(|(_, at)| *at..at + 1));
        }
        let mut last = None;
        for (count, (name, at)) in (1..=until).zip(read) {
            let (number, content) = (builder.file_number(name), &files[name][*at as usize]);
            let pages = [(*at, content.as_slice())];
            let digester = self.digester.clone();
            let prepared = prepare_pages(number, PAGE, &pages, Compression::None, &digester)?;
            builder.place(packs.push_pages(prepared).await?);
            if count % every == 0 {
                builder.add_packs(packs.flush().await?);
                let fetcher = self.fetcher();
                let stored = builder.store_partial(&self.target, &fetcher, Self::info());
                last = Some(stored.await?);
            }
        }
        builder.add_packs(packs.finish().await?);
        Ok((builder, last))
    }

    fn reader(&self, manifest: &Arc<Manifest>) -> Arc<PageReader> {
        Arc::new(PageReader::new(self.fetcher(), Arc::clone(manifest)))
    }

    /// Loads the manifest anew and restores everything.
    pub(crate) async fn restore(&self, manifest: &Manifest) -> Result<Files> {
        let loaded = Arc::new(Manifest::load(&self.fetcher(), &manifest.object()).await?);
        assert_eq!(*loaded, *manifest);
        let reader = self.reader(&loaded);
        let sink = Arc::new(Disk::default());
        reader
            .restore_pages(Arc::clone(&sink), 3, &NoProgress)
            .await?;
        for blob in &loaded.files().blobs {
            reader.read_small_blob(blob, 1 << 30).await?;
        }
        let written = sink.0.lock().unwrap();
        let mut files = Files::new();
        for file in loaded.files().page_files.values() {
            let pages = (0..file.length)
                .map(|at| written[&(file.name.clone(), at)].clone())
                .collect();
            files.insert(file.name.clone(), pages);
        }
        assert_eq!(written.len(), files.values().map(Vec::len).sum::<usize>());
        Ok(files)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let listed = futures::executor::block_on(self.store.list("lineages/")).unwrap();
        listed.into_iter().map(|line| line.name).collect()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        futures::executor::block_on(self.store.read(name))
            .unwrap()
            .to_vec()
    }
}

#[derive(Default)]
struct Disk(Mutex<BTreeMap<(String, u32), Vec<u8>>>);

impl PageSink for Disk {
    type Error = Error;

    fn pages(&self, file: &PageFile, pages: &[(u32, Bytes)]) -> Result<()> {
        for (number, page) in pages {
            let before = self
                .0
                .lock()
                .unwrap()
                .insert((file.name.clone(), *number), page.to_vec());
            assert!(
                before.is_none(),
                "page {number} of {} came twice",
                file.name
            );
        }
        Ok(())
    }

    fn zeros(&self, file: &PageFile, first: u32, count: u32) -> Result<()> {
        for page in first..first + count {
            self.0
                .lock()
                .unwrap()
                .insert((file.name.clone(), page), vec![0; PAGE as usize]);
        }
        Ok(())
    }
}

/// Holds some pages already, and notes which others it gets.
struct Holding {
    held: Mutex<BTreeMap<(String, u32), Vec<u8>>>,
    got: Mutex<BTreeSet<(String, u32)>>,
}

impl Holding {
    fn new(files: &Files) -> Arc<Self> {
        let pages = files.iter().flat_map(|(name, pages)| {
            let numbered = (0..).zip(pages);
            numbered.map(move |(number, page)| ((name.clone(), number), page.clone()))
        });
        Arc::new(Self {
            held: Mutex::new(pages.collect()),
            got: Mutex::default(),
        })
    }
}

impl PageSink for Holding {
    type Error = Error;

    fn pages(&self, file: &PageFile, pages: &[(u32, Bytes)]) -> Result<()> {
        for (number, page) in pages {
            let key = (file.name.clone(), *number);
            assert!(
                self.got.lock().unwrap().insert(key.clone()),
                "{key:?} came twice"
            );
            self.held.lock().unwrap().insert(key, page.to_vec());
        }
        Ok(())
    }

    fn zeros(&self, file: &PageFile, first: u32, count: u32) -> Result<()> {
        let mut held = self.held.lock().unwrap();
        held.extend(
            (first..first + count).map(|page| ((file.name.clone(), page), vec![0; PAGE as usize])),
        );
        Ok(())
    }

    fn may_hold(&self) -> bool {
        true
    }

    fn held(
        &self,
        file: &PageFile,
        pages: &[(u32, PageDigest)],
        digester: &PageDigester,
    ) -> Result<Vec<bool>> {
        let held = self.held.lock().unwrap();
        let same = |(number, digest): &(u32, PageDigest)| {
            let page = held.get(&(file.name.clone(), *number));
            page.is_some_and(|page| digester.digest(page) == *digest)
        };
        Ok(pages.iter().map(same).collect())
    }
}

#[tokio::test]
async fn only_frames_with_pages_that_differ_are_fetched() {
    let world = World::new();
    let mut files = some_files(&world);
    let first = world.back_up(None, &files, &[]).await.unwrap();
    files.get_mut("base/1").unwrap()[20] = page(&world.entropy);
    let manifest = world
        .back_up(Some(&first), &files, &[("base/1", 20)])
        .await
        .unwrap();
    let reader = world.reader(&manifest);
    // Two pages that differ, in two frames; one frame has another current page that does not.
    let mut there = files.clone();
    for at in [3, 20] {
        there.get_mut("base/1").unwrap()[at][100] ^= 1;
    }
    let sink = Holding::new(&there);
    reader
        .restore_pages(Arc::clone(&sink), 3, &NoProgress)
        .await
        .unwrap();
    let expected = [3, 20].map(|at| ("base/1".to_owned(), at));
    assert_eq!(*sink.got.lock().unwrap(), expected.into());
    assert_eq!(
        *sink.held.lock().unwrap(),
        *Holding::new(&files).held.lock().unwrap()
    );

    // What is held is not fetched: damage there is not met. What is not held is.
    let pack = manifest.packs().values().next().unwrap();
    let name = object_name(ObjectKind::Pack, &pack.object);
    let mut bytes = world.bytes(&name);
    let head = ObjectHead::parse(&name, &bytes).unwrap();
    let place = head.frame(0).unwrap().offset as usize;
    bytes[place] ^= 1;
    // The reader has the heads already, by which small objects are checked as a whole.
    world.store.tamper(&name, bytes.into());
    let sink = Holding::new(&files);
    reader
        .restore_pages(Arc::clone(&sink), 3, &NoProgress)
        .await
        .unwrap();
    assert!(sink.got.lock().unwrap().is_empty());
    let sink = Holding::new(&Files::new());
    let error = reader
        .restore_pages(sink, 3, &NoProgress)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

pub(crate) fn some_files(world: &World) -> Files {
    let mut files = Files::new();
    for (name, pages) in [("base/1", 60), ("base/2", 25), ("base/empty", 0)] {
        files.insert(
            name.to_owned(),
            (0..pages).map(|_| page(&world.entropy)).collect(),
        );
    }
    files.get_mut("base/1").unwrap()[7] = vec![0; PAGE as usize];
    files
}

#[tokio::test]
async fn every_base_backup_resolves_alone() {
    let world = World::new();
    let mut files = some_files(&world);
    let mut parent = world.back_up(None, &files, &[]).await.unwrap();
    assert_eq!(world.restore(&parent).await.unwrap(), files);
    let mut history = vec![(Arc::clone(&parent), files.clone())];
    for round in 0..12_u32 {
        let mut changed = Vec::new();
        for step in 0..6 {
            let at = (round * 7 + step * 11) % 60;
            files.get_mut("base/1").unwrap()[at as usize] = if step == 0 {
                vec![0; PAGE as usize]
            } else {
                page(&world.entropy)
            };
            changed.push(("base/1", at));
        }
        let shrinking = files.get_mut("base/2").unwrap();
        shrinking.pop();
        parent = world
            .back_up(Some(&parent), &files, &changed)
            .await
            .unwrap();
        history.push((Arc::clone(&parent), files.clone()));
    }
    // The older ones still say what they said.
    for (manifest, files) in &history {
        assert_eq!(world.restore(manifest).await.unwrap(), *files);
        let reader = world.reader(manifest);
        for (name, pages) in files {
            let file = manifest
                .files()
                .page_files
                .values()
                .find(|file| file.name == *name)
                .unwrap();
            let read = reader.read_pages(file.number, 0..u32::MAX).await.unwrap();
            let read: Vec<Vec<u8>> = read.into_iter().map(|(_, page)| page.to_vec()).collect();
            assert_eq!(read, *pages);
        }
    }
}

#[tokio::test]
async fn blobs_are_read_back_whole() {
    let world = World::new();
    let manifest = world.back_up(None, &some_files(&world), &[]).await.unwrap();
    let reader = world.reader(&manifest);
    let find = |name: &str| {
        manifest
            .files()
            .blobs
            .iter()
            .find(|blob| blob.name == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        reader.read_small_blob(&find(BLOB), 100).await.unwrap(),
        b"a = 1\n"
    );
    assert_eq!(
        reader.read_small_blob(&find("empty"), 100).await.unwrap(),
        b""
    );
    assert_eq!(
        reader
            .read_small_blob(&find("long"), 3_000_000)
            .await
            .unwrap(),
        vec![5; 3_000_000]
    );
    let error = reader
        .read_small_blob(&find("long"), 100)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let mut wrong = find(BLOB);
    wrong.sha256[0] ^= 1;
    assert_eq!(
        reader
            .read_small_blob(&wrong, 100)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Damaged
    );
}

#[tokio::test]
async fn an_unread_page_of_a_longer_file_is_refused() {
    let world = World::new();
    let mut files = some_files(&world);
    let parent = world.back_up(None, &files, &[]).await.unwrap();
    files.get_mut("base/2").unwrap().push(page(&world.entropy));
    let error = world.back_up(Some(&parent), &files, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bug);
    assert!(
        error.to_string().contains("names 85 of 86 pages"),
        "{error}"
    );
}

#[tokio::test]
async fn unchanged_parts_and_packs_are_shared_and_dead_packs_forgotten() {
    let world = World::new();
    let mut files = some_files(&world);
    let first = world.back_up(None, &files, &[]).await.unwrap();
    let same = world.back_up(Some(&first), &files, &[]).await.unwrap();
    assert_eq!(same.parts(), first.parts());
    let live = |manifest: &Manifest| {
        manifest
            .packs()
            .values()
            .map(|pack| pack.live_pages)
            .sum::<u64>()
    };
    assert_eq!(live(&same), 84, "85 pages, one of zeros");
    // Every page is written anew: of the first packs only those with its blobs could stay.
    for pages in files.values_mut() {
        for bytes in pages {
            *bytes = page(&world.entropy);
        }
    }
    let all: Vec<(&str, u32)> = (0..60)
        .map(|at| ("base/1", at))
        .chain((0..25).map(|at| ("base/2", at)))
        .collect();
    let anew = world.back_up(Some(&same), &files, &all).await.unwrap();
    let old: Vec<&PackEntry> = anew
        .packs()
        .values()
        .filter(|pack| same.packs().values().any(|p| p.object == pack.object))
        .collect();
    assert!(old.is_empty(), "{old:?}");
    assert_eq!(live(&anew), 85);
    let oldest_number = anew.packs().keys().next().unwrap();
    assert!(
        oldest_number > same.packs().keys().last().unwrap(),
        "a pack number was used again"
    );
    assert_eq!(world.restore(&anew).await.unwrap(), files);
}

#[tokio::test]
async fn neighbouring_frames_are_fetched_with_one_get() {
    let mut world = World::new();
    let counters = Arc::new(Counters::default());
    world.target.pack_bytes_max = 1 << 20;
    let store: Arc<dyn Store> = world.target.store.clone();
    world.target.store = Arc::new(CountingStore::new(store, Arc::clone(&counters)));
    let files = some_files(&world);
    let manifest = world.back_up(None, &files, &[]).await.unwrap();
    let reader = world.reader(&manifest);
    let before = counters.usage().gets;
    reader
        .restore_pages(Arc::new(Disk::default()), 1, &NoProgress)
        .await
        .unwrap();
    // Map part: head and frame. Pack: head and one range.
    assert_eq!(counters.usage().gets - before, 4);
    let fetcher = world.fetcher();
    let head = fetcher
        .head(ObjectKind::Pack, &manifest.packs()[&0].object, "test")
        .await
        .unwrap();
    let last = head.frames().len() as u32 - 1;
    assert_eq!(
        coalesce(&head, &[(0, 1), (2, 1), (last, 1)]).unwrap().len(),
        1
    );
    assert!(coalesce(&head, &[(last + 1, 1)]).is_err());
}

#[tokio::test]
async fn paths_that_leave_the_target_are_refused() {
    let world = World::new();
    for name in ["/etc/passwd", "../up", "a//b", "a/./b", "", "a\0b"] {
        let mut builder = ManifestBuilder::first();
        builder.add_directory(Directory {
            name: name.to_owned(),
            mode: 0,
        });
        let stored = builder
            .store(&world.target, &world.fetcher(), World::info())
            .await;
        assert!(stored.is_err(), "{name:?} was accepted");
    }
}

fn every_page(files: &Files) -> BTreeSet<(String, u32)> {
    let pages = |(name, pages): (&String, &Vec<Vec<u8>>)| {
        let name = name.clone();
        (0..pages.len() as u32).map(move |at| (name.clone(), at))
    };
    files.iter().flat_map(pages).collect()
}

#[tokio::test]
async fn a_partial_manifest_is_no_base_backup_and_the_other_way_round() {
    let world = World::new();
    let files = some_files(&world);
    let first = ManifestBuilder::first();
    let read = every_page(&files);
    let (_, partial) = world.attempt(first, &files, &read, 30, 10).await.unwrap();
    let partial = partial.unwrap();
    let error = Manifest::load(&world.fetcher(), &partial.object())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("partial"), "{error}");
    let loaded = PartialManifest::load(&world.fetcher(), &partial.object()).await;
    assert_eq!(loaded.unwrap(), partial);
    let whole = world.back_up(None, &files, &[]).await.unwrap();
    let error = PartialManifest::load(&world.fetcher(), &whole.object())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[tokio::test]
async fn a_page_that_a_partial_lacks_must_be_placed() {
    let world = World::new();
    let files = some_files(&world);
    let mut read = every_page(&files);
    let first = ManifestBuilder::first();
    let (_, partial) = world.attempt(first, &files, &read, 50, 25).await.unwrap();
    let partial = partial.unwrap();
    assert_eq!((partial.stored_pages(), partial.missing_pages()), (50, 35));
    let missing = partial.missing(&world.fetcher()).await.unwrap();
    assert_eq!(missing, [(0, 50..60), (1, 0..25)]);
    // All but one of the missing pages are read.
    read.retain(|(name, at)| (name.as_str(), *at) >= ("base/1", 51));
    let resumed = ManifestBuilder::resume(&partial);
    let (builder, _) = world
        .attempt(resumed, &files, &read, read.len(), 1_000)
        .await
        .unwrap();
    let error = builder
        .store(&world.target, &world.fetcher(), World::info())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bug, "{error}");
}

/// Attempts are killed at seeded pages, and pages change in between and while they run. The rule: what is
/// read is what changed since the start of the attempt that is gone on from, and what that lacks.
#[tokio::test]
async fn attempts_killed_at_any_page_leave_every_page_as_of_their_start() {
    for seed in 0..12 {
        let world = World::new();
        let chance = SeededEntropy::new(seed);
        let mut files = some_files(&world);
        let mut whole = None;
        let mut partial: Option<PartialManifest> = None;
        let mut changed = every_page(&files);
        for round in 0..8 {
            // Changes since the start of what is gone on from.
            for _ in 0..chance.below(12) {
                let at = chance.below(60) as u32;
                files.get_mut("base/1").unwrap()[at as usize] = page(&world.entropy);
                changed.insert(("base/1".to_owned(), at));
            }
            files.get_mut("base/2").unwrap().push(page(&world.entropy));
            let grown = files["base/2"].len() as u32 - 1;
            changed.insert(("base/2".to_owned(), grown));
            let mut read = std::mem::take(&mut changed);
            let builder = match (&partial, &whole) {
                (Some(partial), _) => {
                    let names: BTreeMap<u32, String> = (partial.files().page_files.values())
                        .map(|file| (file.number, file.name.clone()))
                        .collect();
                    for (file, pages) in partial.missing(&world.fetcher()).await.unwrap() {
                        read.extend(pages.map(|at| (names[&file].clone(), at)));
                    }
                    ManifestBuilder::resume(partial)
                }
                (None, Some(whole)) => ManifestBuilder::next(Arc::clone(whole)),
                (None, None) => ManifestBuilder::first(),
            };
            let finishes = round % 4 == 3;
            let until = if finishes {
                read.len()
            } else {
                chance.below(read.len() as u64) as usize
            };
            let every = 1 + chance.below(9) as usize;
            let (builder, last) = world
                .attempt(builder, &files, &read, until, every)
                .await
                .unwrap();
            if finishes {
                let manifest = builder
                    .store(&world.target, &world.fetcher(), World::info())
                    .await
                    .unwrap();
                assert_eq!(world.restore(&manifest).await.unwrap(), files, "{seed}");
                (whole, partial) = (Some(Arc::new(manifest)), None);
            } else if last.is_some() {
                partial = last;
            } else {
                // Nothing was stored of it: the next attempt reads what this one would have read.
                changed = read;
            }
        }
    }
}
