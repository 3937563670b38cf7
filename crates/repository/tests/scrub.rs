//! Scrubs of a small lineage in a folder: every object of it, damaged in every way.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use borealis_base::{
    Branch, ErrorKind, ManualClock, NoProgress, Position, RecordSpan, SeededEntropy, SystemEntropy,
    TimeStep, Timestamp,
};
use borealis_keys::FileKey;
use borealis_repository::drills::{Drill, DrillOutcome, DrillTimes};
use borealis_repository::ledger::{BaseBackup, EntryBody, Holder, LogPiece, Opening};
use borealis_repository::log::{PieceIdentity, prepare_piece};
use borealis_repository::object::Compression;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{BaseBackupInfo, Manifest, ManifestBuilder, PageFile};
use borealis_repository::pages::pack::{PackTarget, PackWriter, prepare_pages};
use borealis_repository::pins::NewPin;
use borealis_repository::plan::{Damage, Fault, LineageState, Part, windows};
use borealis_repository::scrub::{Host, Outcome, pages_in, scrub};
use borealis_repository::store::{Absent, FolderStore};
use borealis_repository::{Environment, Error, Lineage, Repository};
use bytes::Bytes;

const BRANCH: Branch = Branch(1);
/// Pages of the base backups' only file.
const PAGES: u32 = 40;

/// Ends after so many objects, if told so.
struct Reader {
    left: AtomicU64,
}

impl Reader {
    fn new(left: u64) -> Self {
        Self {
            left: AtomicU64::new(left),
        }
    }
}

#[async_trait]
impl Host for Reader {
    async fn begins(&self, _: u64, _: u64) {}
    async fn has_read(&self, _: u64) -> bool {
        self.left.fetch_sub(1, Ordering::Relaxed) > 1
    }
    async fn before_second_look(&self) {}
    async fn found(&self, _: &Damage, _: &LineageState) {}
    async fn sound(&self, _: &str) {}
}

struct World {
    folder: tempfile::TempDir,
    lineage: Lineage,
}

fn record(end: u64) -> RecordSpan {
    RecordSpan {
        start: Position(end - 8),
        end: Position(end),
    }
}

async fn base_backup(
    lineage: &Lineage,
    parent: Option<Manifest>,
    start: u64,
    pages: std::ops::Range<u32>,
) -> Manifest {
    let mut builder = parent.map_or_else(ManifestBuilder::first, |parent| {
        ManifestBuilder::next(Arc::new(parent))
    });
    let target = PackTarget::of(lineage);
    let mut packs = PackWriter::new(target.clone(), builder.pack_numbers());
    let number = builder.file_number("base/1");
    builder.add_page_file(PageFile {
        number,
        name: "base/1".to_owned(),
        page_size: 8192,
        length: PAGES,
        mode: 0o600,
    });
    // Content that does not compress, so that a pack has frames of some size.
    let random = SeededEntropy::new(start);
    for group in pages.collect::<Vec<_>>().chunks(10) {
        let contents: Vec<(u32, Vec<u8>)> = group
            .iter()
            .map(|page| {
                let mut content = vec![0; 8192];
                borealis_base::Entropy::fill(&random, &mut content);
                (*page, content)
            })
            .collect();
        let contents: Vec<(u32, &[u8])> = contents
            .iter()
            .map(|(page, content)| (*page, &content[..]))
            .collect();
        let prepared = prepare_pages(
            number,
            8192,
            &contents,
            Compression::None,
            &target.digester(),
        )
        .unwrap();
        builder.place(packs.push_pages(prepared).await.unwrap());
    }
    builder.add_packs(packs.finish().await.unwrap());
    let info = BaseBackupInfo {
        branch: BRANCH,
        start: Position(start),
        end: Position(start + 100),
        started_at: Timestamp(1),
        ended_at: Timestamp(2),
        rule_set: 1,
        engine: Bytes::new(),
    };
    builder
        .store(&target, &Fetcher::of(lineage), info)
        .await
        .unwrap()
}

fn entry_of(manifest: &Manifest) -> EntryBody {
    let info = manifest.info();
    EntryBody::BaseBackup(BaseBackup {
        manifest: manifest.object(),
        branch: info.branch,
        start: info.start,
        end: info.end,
        started_at: info.started_at,
        ended_at: info.ended_at,
        new_bytes: 0,
        total_pages: manifest.total_pages(),
        rule_set: info.rule_set,
        engine: Bytes::new(),
    })
}

fn drill(at: i64) -> Drill {
    Drill {
        begun_at: Timestamp(at),
        ended_at: Timestamp(at),
        host: "here".to_owned(),
        target: "random".to_owned(),
        seed: None,
        branch: BRANCH,
        last_record: None,
        time: None,
        base_backup: 0,
        log_from: Position(0),
        latest: None,
        times: DrillTimes::default(),
        file_bytes: 0,
        log_bytes: 0,
        rows: 0,
        not_checked: Vec::new(),
        outcome: DrillOutcome::Passed,
        every_seconds: 0,
    }
}

impl World {
    /// Log [1000, 4000) in three pieces; base backups at 1000 and, with the last ten pages of its own, at 2000;
    /// two pins and two drills.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = FileKey::create(&folder.path().join("key"), &SystemEntropy).unwrap();
        let store = FolderStore::open(&folder.path().join("repository"), Absent::Create).unwrap();
        let environment = Environment {
            store: Arc::new(store),
            clock: Arc::new(ManualClock::new(Timestamp(1_000_000))),
            entropy: Arc::new(SeededEntropy::new(3)),
        };
        let repository = Repository::init(environment, &[&key]).await.unwrap();
        let lineage = repository
            .create_cluster("shop", Bytes::new())
            .await
            .unwrap();
        let opening = Opening {
            holder: Holder::default(),
            log_unit: 1,
            expected_epoch: None,
        };
        let mut writer = lineage.open_writer(opening).await.unwrap();
        for start in [1_000_u64, 2_000, 3_000] {
            let end = start + 1_000;
            let step = TimeStep {
                settled_through: Timestamp(end.cast_signed()),
                last_record: record(end),
            };
            let body = EntryBody::LogPiece(LogPiece {
                branch: BRANCH,
                start: Position(start),
                end: Position(end),
                settled_before: (start > 1_000).then_some(Timestamp(start.cast_signed())),
                settled_after: Some(step.settled_through),
                last_record: Some(record(end)),
                resume_at: Position(end),
                engine: None,
            });
            let identity = PieceIdentity {
                lineage: lineage.id(),
                branch: BRANCH,
                start: Position(start),
            };
            let bytes = vec![7; 1_000];
            let frames =
                prepare_piece(&identity, &bytes, &[step], b"index", Compression::None).unwrap();
            writer.append(&body, frames).await.unwrap();
        }
        let first = base_backup(&lineage, None, 1_000, 0..PAGES).await;
        writer.append(&entry_of(&first), Vec::new()).await.unwrap();
        let second = base_backup(&lineage, Some(first), 2_000, 30..PAGES).await;
        writer.append(&entry_of(&second), Vec::new()).await.unwrap();
        // So that the entry of the second base backup is not the last one.
        writer
            .append(&EntryBody::ReadBack, Vec::new())
            .await
            .unwrap();
        writer.close().await.unwrap();
        let mut pins = lineage.pins().await.unwrap();
        for (name, end) in [("one", 1_500), ("two", 2_500)] {
            let pin = NewPin {
                name: name.to_owned(),
                branch: BRANCH,
                last_record: record(end),
                time: None,
                note: String::new(),
                tags: BTreeMap::new(),
            };
            pins.create(pin).await.unwrap();
        }
        let mut drills = lineage.drills().await.unwrap();
        for at in [5, 6] {
            drills.record(&drill(at)).await.unwrap();
        }
        Self { folder, lineage }
    }

    async fn scrub(&self) -> Result<Outcome, Error> {
        scrub(&self.lineage, &Reader::new(u64::MAX), &NoProgress).await
    }

    fn path(&self, object: &str) -> PathBuf {
        self.folder.path().join("repository").join(object)
    }

    /// The names of the objects of the lineage.
    fn objects(&self) -> Vec<String> {
        fn below(folder: &Path, names: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    below(&path, names);
                } else {
                    names.push(path);
                }
            }
        }
        let (top, mut paths) = (self.path(""), Vec::new());
        below(&self.path("lineages"), &mut paths);
        let mut names: Vec<String> = paths
            .iter()
            .map(|path| path.strip_prefix(&top).unwrap().display().to_string())
            .collect();
        names.sort();
        names
    }

    fn largest(&self, words: &str) -> String {
        let named = self
            .objects()
            .into_iter()
            .filter(|name| name.contains(words));
        named
            .max_by_key(|name| std::fs::metadata(self.path(name)).unwrap().len())
            .unwrap()
    }

    async fn promised(&self) -> Vec<(u64, u64)> {
        let state = self.lineage.load_state().await.unwrap();
        let told = windows(&state);
        told.iter()
            .map(|window| (window.earliest.position.0, window.latest.position.0))
            .collect()
    }
}

type Change = fn(&[u8], &[u8]) -> Option<Vec<u8>>;

/// Ways to damage an object; the second content is that of another valid one.
const CHANGES: [(&str, Change); 6] = [
    ("first byte", |whole, _| {
        let mut bytes = whole.to_vec();
        bytes[0] ^= 1;
        Some(bytes)
    }),
    ("middle", |whole, _| {
        let mut bytes = whole.to_vec();
        bytes[whole.len() / 2] ^= 1;
        Some(bytes)
    }),
    ("last byte", |whole, _| {
        let mut bytes = whole.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        Some(bytes)
    }),
    ("truncated", |whole, _| {
        Some(whole[..whole.len() / 2].to_vec())
    }),
    ("swapped", |_, other| Some(other.to_vec())),
    ("deleted", |_, _| None),
];

/// Rows whose last entry leaves no trace when it is gone (`docs/formats/ledger.md`).
fn is_last_of_its_row(names: &[String], name: &str) -> bool {
    let folder = name.rsplit_once('/').unwrap().0;
    let numbered = name.rsplit('/').next().unwrap().len() == 12;
    numbered
        && names
            .iter()
            .filter(|other| other.starts_with(folder))
            .max()
            .unwrap()
            == name
}

#[tokio::test]
async fn an_object_of_any_kind_damaged_in_any_way_is_named() {
    let world = World::new().await;
    // So that there is a row of scrubs.
    for _ in 0..2 {
        let outcome = world.scrub().await.unwrap();
        assert!(
            outcome.complete && outcome.standing.is_empty(),
            "{outcome:?}"
        );
    }
    let names = world.objects();
    for folder in [
        "/packs/",
        "/manifests/",
        "/pins/",
        "/drills/",
        "/scrubs/",
        "/epochs/",
        "/ledger/",
    ] {
        assert!(
            names.iter().any(|name| name.contains(folder)),
            "there is nothing in {folder}"
        );
    }
    // The ring is read where the lineage is opened.
    for name in names.iter().filter(|name| !name.contains("/keys/")) {
        let whole = std::fs::read(world.path(name)).unwrap();
        let alike = names
            .iter()
            .find(|other| *other != name && other.split('/').nth(2) == name.split('/').nth(2));
        let other = alike.unwrap_or(&names[0]);
        let other = std::fs::read(world.path(other)).unwrap();
        for (how, change) in CHANGES {
            if how == "deleted" && is_last_of_its_row(&names, name) {
                continue;
            }
            // Each from the same beginning: what a scrub records would hide the next one.
            let copy = Copy::of(&world);
            match change(&whole, &other) {
                Some(bytes) => std::fs::write(world.path(name), bytes).unwrap(),
                None => std::fs::remove_file(world.path(name)).unwrap(),
            }
            match world.scrub().await {
                Ok(outcome) => {
                    let found: Vec<&str> =
                        outcome.found.iter().map(|damage| &*damage.object).collect();
                    assert!(
                        found.contains(&&**name),
                        "{how}: {name} is not among {found:?}"
                    );
                    let fault = if how == "deleted" {
                        Fault::Missing
                    } else {
                        Fault::Damaged
                    };
                    let damage = outcome
                        .found
                        .iter()
                        .find(|damage| damage.object == *name)
                        .unwrap();
                    assert_eq!(damage.fault, fault, "{how}: {damage:?}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Damaged, "{how}: {name}: {error}");
                    assert!(error.to_string().contains(name), "{how}: {name}: {error}");
                }
            }
            copy.put_back();
        }
    }
    assert_eq!(world.scrub().await.unwrap().standing, []);
}

/// The repository's folder as it was.
struct Copy {
    folder: PathBuf,
    kept: tempfile::TempDir,
}

impl Copy {
    fn of(world: &World) -> Self {
        let (folder, kept) = (world.path(""), tempfile::tempdir().unwrap());
        cp(&folder, kept.path());
        Self { folder, kept }
    }

    fn put_back(self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
        std::fs::create_dir(&self.folder).unwrap();
        cp(self.kept.path(), &self.folder);
    }
}

fn cp(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg("--no-target-directory")
        .args([from, to])
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn a_damaged_frame_withdraws_the_base_backups_that_need_it_and_no_others() {
    let world = World::new().await;
    assert_eq!(world.promised().await, [(1_100, 4_000)]);
    // The largest pack is the first base backup's; its last frames hold what the second one has of its own.
    let pack = world.largest("/packs/");
    let whole = std::fs::read(world.path(&pack)).unwrap();
    let at = |share: usize| {
        let mut bytes = whole.clone();
        bytes[whole.len() * share / 100] ^= 1;
        std::fs::write(world.path(&pack), bytes).unwrap();
    };
    at(95);
    let outcome = world.scrub().await.unwrap();
    let damage = &outcome.found[0];
    let Part::Pack(id, frames) = &damage.part else {
        panic!("it is a pack: {damage:?}");
    };
    assert_eq!(damage.base_backups.len(), 1, "{damage:?}");
    assert_eq!(world.promised().await, [(2_100, 4_000)]);
    let stored = world.lineage.load_stored_state().await.unwrap();
    let fetcher = Fetcher::of(&world.lineage);
    let first = Manifest::load(&fetcher, &stored.base_backups[0].manifest)
        .await
        .unwrap();
    let lost = pages_in(&fetcher, &first, *id, frames).await.unwrap();
    let pages: u32 = lost.pages.iter().map(|(_, _, count)| count).sum();
    assert!(
        (1..=10).contains(&pages),
        "one frame of four holds so many: {lost:?}"
    );
    // What both share.
    at(5);
    let outcome = world.scrub().await.unwrap();
    assert_eq!(
        outcome.found[0].base_backups.len(),
        2,
        "{:?}",
        outcome.found
    );
    assert_eq!(world.promised().await, []);
    let state = world.lineage.load_state().await.unwrap();
    assert_eq!((state.base_backups.len(), state.damaged.len()), (0, 2));
    // Put back, everything is promised again.
    std::fs::write(world.path(&pack), &whole).unwrap();
    let outcome = world.scrub().await.unwrap();
    assert_eq!(outcome.sound, [pack]);
    assert_eq!(world.promised().await, [(1_100, 4_000)]);
}

#[tokio::test]
async fn a_lost_log_piece_is_a_gap_until_it_is_put_back() {
    let world = World::new().await;
    // Until later entries repeat it, a piece that is lost is an entry that nobody gets past.
    let opening = Opening {
        holder: Holder::default(),
        log_unit: 1,
        expected_epoch: None,
    };
    let mut writer = world.lineage.open_writer(opening).await.unwrap();
    for _ in 0..borealis_repository::numbered::ENTRIES_PER_RECAP {
        writer
            .append(&EntryBody::ReadBack, Vec::new())
            .await
            .unwrap();
    }
    let stored = world.lineage.load_stored_state().await.unwrap();
    let piece = borealis_repository::layout::entry(world.lineage.id(), stored.pieces[1].entry);
    let whole = std::fs::read(world.path(&piece)).unwrap();
    let mut bytes = whole.clone();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    std::fs::write(world.path(&piece), bytes).unwrap();
    let outcome = world.scrub().await.unwrap();
    assert_eq!(
        outcome.found[0].part,
        Part::LogPiece(stored.pieces[1].entry)
    );
    // The second base backup begins in what is lost, and the first one reaches up to it.
    assert_eq!(world.promised().await, [(1_100, 2_000)]);
    let state = world.lineage.load_state().await.unwrap();
    assert!(state.is_withdrawn(&stored.pieces[1]) && !state.is_withdrawn(&stored.pieces[0]));
    std::fs::write(world.path(&piece), whole).unwrap();
    world.scrub().await.unwrap();
    assert_eq!(world.promised().await, [(1_100, 4_000)]);
}

#[tokio::test]
async fn a_scrub_that_is_stopped_goes_on_where_it_was() {
    let world = World::new().await;
    let whole = world.scrub().await.unwrap();
    let rest = World::new().await;
    let (mut objects, mut runs) = (0, 0);
    loop {
        let outcome = scrub(&rest.lineage, &Reader::new(4), &NoProgress)
            .await
            .unwrap();
        objects += outcome.objects;
        runs += 1;
        assert!(runs < 20, "it never ends");
        if outcome.complete {
            break;
        }
        let scrubs = rest.lineage.scrubs().await.unwrap();
        assert_eq!(scrubs.current().unwrap().objects, objects);
    }
    assert!(runs > 2, "{runs} runs");
    // Nothing twice; what the runs themselves have recorded may be read, too.
    let own = whole.objects..=whole.objects + runs;
    assert!(own.contains(&objects), "{objects} objects, not {own:?}");
    let scrubs = rest.lineage.scrubs().await.unwrap();
    assert_eq!(scrubs.complete().unwrap().objects, objects);
    assert!(scrubs.current().is_none());
}

/// Damage that is noted, and a base backup that came to need the same object meanwhile.
#[tokio::test]
async fn a_base_backup_that_inherits_what_is_damaged_is_withdrawn_by_the_next_scrub() {
    let world = World::new().await;
    let pack = world.largest("/packs/");
    let mut bytes = std::fs::read(world.path(&pack)).unwrap();
    let early = bytes.len() / 20;
    bytes[early] ^= 1;
    std::fs::write(world.path(&pack), bytes).unwrap();
    assert_eq!(world.scrub().await.unwrap().found[0].base_backups.len(), 2);
    let stored = world.lineage.load_stored_state().await.unwrap();
    let fetcher = Fetcher::of(&world.lineage);
    let second = Manifest::load(&fetcher, &stored.base_backups[1].manifest)
        .await
        .unwrap();
    let third = base_backup(&world.lineage, Some(second), 3_000, 0..0).await;
    let opening = Opening {
        holder: Holder::default(),
        log_unit: 1,
        expected_epoch: None,
    };
    let mut writer = world.lineage.open_writer(opening).await.unwrap();
    writer.append(&entry_of(&third), Vec::new()).await.unwrap();
    assert_eq!(
        world.promised().await,
        [(3_100, 4_000)],
        "nobody has looked yet"
    );
    let outcome = world.scrub().await.unwrap();
    assert_eq!(outcome.standing[0].base_backups.len(), 3);
    assert_eq!(world.promised().await, []);
}
