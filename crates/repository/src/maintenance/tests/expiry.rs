//! Days of a cluster in a moment: base backups, log, snapshots, holds and changed terms, and two maintainers that let
//! go of what no promise holds, interrupted anywhere. What was promised must be restorable, page by page; who reads must
//! be able to finish; and in the end nothing may be left that nobody names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use borealis_base::{SystemEntropy, TimeStep};
use borealis_keys::FileKey;

use super::*;
use crate::catalog::NewHold;
use crate::log::read_back;
use crate::pages::fetch::Fetcher;
use crate::pages::manifest::{BaseBackupInfo, Manifest, ManifestBuilder, PageFile};
use crate::pages::pack::{PackTarget, PackWriter, prepare_pages};
use crate::pages::read::{PageReader, PageSink};
use crate::pins::NewPin;
use crate::plan::{plan_to, what_a_pin_needs};
use crate::retention::{Days, HoldRange};
use crate::store::{Created, StoreError, StoreErrorKind};
use crate::{Environment, Error, Repository, layout};

mod hazards;

const SEEDS: u64 = 5;
const MUTANT_SEEDS: u64 = 40;
const BRANCH: Branch = Branch(1);
const CLUSTER: &str = "shop";
const PAGES: u32 = 12;
const PAGE_BYTES: u32 = 512;
const HOUR: Duration = Duration::from_hours(1);
const STEPS: u64 = 600;
const MERGING: Limits = Limits {
    bytes: 1_000,
    age: HOUR,
    wait: HOUR,
    block: SHAPE.checkpoint,
};

/// The versions of all pages.
type Versions = Vec<u64>;

fn content(page: u32, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES as usize];
    let seed = version << 8 | u64::from(page) | 1 << 63;
    borealis_base::Entropy::fill(&SeededEntropy::new(seed), &mut bytes);
    bytes
}

/// What a base backup gives back.
#[derive(Default)]
struct Pages(Mutex<BTreeMap<u32, Bytes>>);

impl PageSink for Pages {
    type Error = Error;

    fn pages(&self, _: &PageFile, pages: &[(u32, Bytes)]) -> Result<(), Error> {
        self.0.lock().unwrap().extend(pages.iter().cloned());
        Ok(())
    }

    fn zeros(&self, _: &PageFile, first: u32, _: u32) -> Result<(), Error> {
        panic!("page {first} is no zeros")
    }
}

/// A store that refuses deletions after so many, or breaks off.
struct CutOff {
    inner: Arc<MemoryStore>,
    left: AtomicU64,
    kind: StoreErrorKind,
}

#[async_trait]
impl StoreLayer for CutOff {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let less = |left: u64| left.checked_sub(1);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        // The store's clock is asked with an object that is removed again.
        let ours = !name.contains("/clock/") || self.kind == StoreErrorKind::Denied;
        if ours && self.left.fetch_update(set, get, less).is_err() {
            let url = self.inner.url();
            return Err(StoreError::new(self.kind, "delete", name, &url, "injected"));
        }
        self.inner.delete(name).await
    }
}

/// A cluster with everything that it was promised.
struct World {
    _folder: tempfile::TempDir,
    memory: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    key: FileKey,
    repository: Repository,
    /// The same, whose deletions are cut off.
    weak: Repository,
    cut: Arc<CutOff>,
    lineage: Lineage,
    without: Option<Rule>,
    writer: LedgerWriter,
    random: SeededEntropy,
    at: u64,
    settled: Option<Timestamp>,
    versions: Versions,
    newest: Option<Manifest>,
    /// Of each base backup, by its manifest.
    truth: BTreeMap<ObjectId, Versions>,
    /// What each moment means, since the first base backup.
    moments: Vec<(Timestamp, RecordSpan)>,
    days: u32,
    /// The first moment that is promised.
    promised: Timestamp,
    pins: Vec<(String, RecordSpan)>,
    holds: Vec<(String, Vec<(Timestamp, RecordSpan)>)>,
    /// A state that somebody reads from, and since when.
    reading: Option<(Timestamp, LineageState)>,
    named: u64,
}

impl World {
    async fn new(seed: u64, without: Option<Rule>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = FileKey::create(&folder.path().join("key"), &SystemEntropy).unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp(1_000_000)));
        let memory = Arc::new(MemoryStore::new(clock.clone()));
        let cut = Arc::new(CutOff {
            inner: memory.clone(),
            left: AtomicU64::new(0),
            kind: StoreErrorKind::Unreachable,
        });
        let environment = |store: Arc<dyn Store>, salt: u64| Environment {
            store,
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(seed ^ salt)),
        };
        let keys = [&key];
        let repository = Repository::init(environment(memory.clone(), 0xAA00), &keys);
        let repository = repository.await.unwrap();
        let created = repository.create_cluster(CLUSTER, Bytes::new()).await;
        let id = created.unwrap().id();
        let weak = Repository::open(environment(cut.clone(), 0xBB00), &key);
        let weak = weak.await.unwrap();
        let lineage = repository.lineage(id).await.unwrap().with_shape(SHAPE);
        Self {
            _folder: folder,
            writer: lineage.open_writer(opening()).await.unwrap(),
            memory,
            clock,
            key,
            repository,
            weak,
            cut,
            lineage,
            without,
            random: SeededEntropy::new(seed ^ 0x5EED),
            at: 1_000,
            settled: None,
            versions: vec![0; PAGES as usize],
            newest: None,
            truth: BTreeMap::new(),
            moments: Vec::new(),
            days: 1,
            promised: Timestamp::MIN,
            pins: Vec::new(),
            holds: Vec::new(),
            reading: None,
            named: 0,
        }
    }

    /// The same repository, over another store.
    async fn over(&self, store: Arc<dyn Store>) -> Repository {
        let environment = Environment {
            store,
            clock: self.clock.clone(),
            entropy: Arc::new(SeededEntropy::new(0xCC00)),
        };
        Repository::open(environment, &self.key).await.unwrap()
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn now(&self) -> Timestamp {
        use borealis_base::Clock;
        self.clock.now()
    }

    fn name(&mut self) -> String {
        self.named += 1;
        format!("n{}", self.named)
    }

    async fn append(&mut self, body: &EntryBody, frames: Vec<crate::object::PreparedFrame>) {
        self.writer.append(body, frames).await.unwrap();
        self.writer.note_read_back(self.writer.state().head);
    }

    fn settle_moment(&mut self, record: RecordSpan) {
        let now = self.now();
        if self.newest.is_some() {
            self.moments.push((now, record));
        }
        self.settled = Some(now);
    }

    async fn log_piece(&mut self) {
        let (start, end) = (self.at, self.at + 100);
        let last_record = RecordSpan {
            start: Position(end - 8),
            end: Position(end),
        };
        let now = self.now();
        let step = TimeStep {
            settled_through: now,
            last_record,
        };
        let body = EntryBody::LogPiece(LogPiece {
            branch: BRANCH,
            start: Position(start),
            end: Position(end),
            settled_before: self.settled,
            settled_after: Some(now),
            last_record: Some(last_record),
            resume_at: Position(end),
            engine: None,
        });
        let identity = PieceIdentity {
            lineage: self.lineage.id(),
            branch: BRANCH,
            start: Position(start),
        };
        let log = vec![7; 100];
        let frames = prepare_piece(&identity, &log, &[step], b"index", Compression::None);
        self.append(&body, frames.unwrap()).await;
        self.at = end;
        self.settle_moment(last_record);
    }

    fn last_record(&self) -> RecordSpan {
        RecordSpan {
            start: Position(self.at - 8),
            end: Position(self.at),
        }
    }

    /// Time passes, and nothing is written.
    async fn idle(&mut self) {
        let last_record = self.last_record();
        // Where the server does not answer what is settled is said again.
        let again = self.settled.filter(|_| self.below(3) == 0);
        let through = again.unwrap_or_else(|| self.now());
        let body = EntryBody::Settled(Settled {
            branch: BRANCH,
            through,
            last_record,
        });
        self.append(&body, Vec::new()).await;
        if again.is_none() {
            self.settle_moment(last_record);
        }
    }

    async fn base_backup(&mut self) {
        let first = self.newest.is_none();
        let changed: BTreeSet<u32> = if first {
            (0..PAGES).collect()
        } else {
            (0..=self.below(3))
                .map(|_| self.below(u64::from(PAGES)) as u32)
                .collect()
        };
        for page in &changed {
            self.versions[*page as usize] += 1;
        }
        let mut builder = match self.newest.take() {
            Some(parent) => ManifestBuilder::next(Arc::new(parent)),
            None => ManifestBuilder::first(),
        };
        let target = PackTarget::of(&self.lineage);
        let mut packs = PackWriter::new(target.clone(), builder.pack_numbers());
        let number = builder.file_number("base/1");
        builder.add_page_file(PageFile {
            number,
            name: "base/1".to_owned(),
            page_size: PAGE_BYTES,
            length: PAGES,
            mode: 0o600,
        });
        let contents: Vec<(u32, Vec<u8>)> = (changed.iter())
            .map(|page| (*page, content(*page, self.versions[*page as usize])))
            .collect();
        let contents: Vec<(u32, &[u8])> = (contents.iter())
            .map(|(page, bytes)| (*page, &bytes[..]))
            .collect();
        let (size, digester) = (PAGE_BYTES, target.digester());
        let prepared = prepare_pages(number, size, &contents, Compression::None, &digester);
        builder.place(packs.push_pages(prepared.unwrap()).await.unwrap());
        builder.add_packs(packs.finish().await.unwrap());
        let (start, now) = (self.at, self.now());
        self.log_piece().await;
        let info = BaseBackupInfo {
            branch: BRANCH,
            start: Position(start),
            end: Position(self.at),
            started_at: now,
            ended_at: now,
            rule_set: 1,
            engine: Bytes::new(),
        };
        let fetcher = Fetcher::of(&self.lineage);
        let manifest = builder.store(&target, &fetcher, info);
        let manifest = manifest.await.unwrap();
        let body = EntryBody::BaseBackup(BaseBackup {
            manifest: manifest.object(),
            branch: BRANCH,
            start: Position(start),
            end: Position(self.at),
            started_at: now,
            ended_at: now,
            new_bytes: 0,
            total_pages: u64::from(PAGES),
            rule_set: 1,
            engine: Bytes::new(),
        });
        self.append(&body, Vec::new()).await;
        let object = manifest.object().object;
        self.truth.insert(object, self.versions.clone());
        self.newest = Some(manifest);
        if first {
            self.promised = now;
        }
    }

    /// People change their minds about what is kept.
    async fn people(&mut self) {
        match self.below(40) {
            0 | 1 => {
                self.days = 1 + self.below(3) as u32;
                let days = Days::new(self.days).unwrap();
                self.repository.set_retention(CLUSTER, days).await.unwrap();
            }
            2..=4 if !self.moments.is_empty() => {
                let (name, last_record) = (self.name(), self.last_record());
                let mut pins = self.lineage.pins().await.unwrap();
                pins.create(pin(&name, last_record)).await.unwrap();
                self.pins.push((name, last_record));
            }
            5 | 6 if !self.pins.is_empty() => {
                let at = self.below(self.pins.len() as u64) as usize;
                let (name, _) = self.pins.remove(at);
                let mut pins = self.lineage.pins().await.unwrap();
                pins.delete(&name).await.unwrap();
            }
            7 => {
                let held: Vec<_> = (self.moments.iter())
                    .filter(|(at, _)| *at >= self.promised)
                    .copied()
                    .collect();
                if let (Some((from, _)), Some((to, _))) = (held.first(), held.last()) {
                    let name = self.name();
                    let hold = NewHold {
                        name: name.clone(),
                        reason: "asked for".to_owned(),
                        range: HoldRange::Moments(*from, *to),
                        until: None,
                    };
                    self.repository.create_hold(CLUSTER, hold).await.unwrap();
                    self.holds.push((name, held));
                }
            }
            8 | 9 if !self.holds.is_empty() => {
                let at = self.below(self.holds.len() as u64) as usize;
                let (name, _) = self.holds.remove(at);
                self.repository.delete_hold(CLUSTER, &name).await.unwrap();
            }
            _ => {}
        }
    }

    async fn step(&mut self) {
        // Sometimes the server is away for hours.
        let minutes = if self.below(30) == 0 { 400 } else { 45 };
        self.clock
            .advance(Duration::from_mins(1 + self.below(minutes)));
        match self.below(6) {
            0 => self.idle().await,
            1 | 2 => self.base_backup().await,
            _ => self.log_piece().await,
        }
        self.people().await;
        let past = Duration::from_hours(24 * u64::from(self.days));
        if self.newest.is_some() {
            self.promised = self.promised.max(self.now().minus(past));
        }
    }

    fn upkeep<'a>(&self, repository: &'a Repository, lineage: Lineage) -> Upkeep<'a> {
        Upkeep::new(
            lineage.with_shape(SHAPE).without(self.without),
            Holder::default(),
        )
        .with_limits(MERGING)
        .with_expiry(repository)
    }

    /// A lineage as it is promised, page by page and moment by moment.
    async fn check(&mut self) {
        let state = self.lineage.load_state().await.unwrap();
        self.check_state(&state).await;
        let promised: Vec<_> = (self.moments.iter())
            .filter(|(at, _)| *at >= self.promised)
            .chain(self.holds.iter().flat_map(|(_, held)| held))
            .copied()
            .collect();
        for _ in 0..6.min(promised.len()) {
            let at = self.below(promised.len() as u64) as usize;
            let (moment, record) = promised[at];
            let look = LookIn {
                reader: LogReader::of(&self.lineage),
                state: &state,
            };
            let meant = resolve(&state, &Target::Time(moment), &look).await;
            let meant = meant.unwrap_or_else(|error| {
                let (now, from, days) = (self.now(), self.promised, self.days);
                panic!("{moment} is promised at {now}, as all from {from} ({days} days): {error}")
            });
            assert_eq!(meant.last_record, record, "{moment} means something else");
            assert!(plan_to(&state, BRANCH, record).is_some(), "{moment}");
        }
        for pin in &state.pins {
            assert!(what_a_pin_needs(&state, pin).is_some(), "{pin:?}");
        }
        // Somebody reads for up to a day, from what was there at the beginning.
        let now = self.now();
        let reading = self.reading.take();
        let reading = reading.filter(|(since, _)| now.since(*since) < GRACE);
        let (since, old) = reading.unwrap_or((now, state));
        self.check_state(&old).await;
        self.reading = Some((since, old));
    }

    /// Everything that a state names is there.
    async fn check_state(&self, state: &LineageState) {
        for piece in &state.pieces {
            let (store, keys) = (self.lineage.store(), self.lineage.keys());
            let read = read_back(store, keys, self.lineage.id(), piece).await;
            read.unwrap_or_else(|error| panic!("log that is named is not there: {error}"));
        }
        let count = state.base_backups.len() as u64;
        for base in [0, count / 2, count.saturating_sub(1)] {
            if let Some(base) = state.base_backups.get(base as usize) {
                self.check_pages(&base.manifest).await;
            }
        }
    }

    async fn check_pages(&self, object: &ObjectRef) {
        let fetcher = Arc::new(Fetcher::of(&self.lineage));
        let manifest = Manifest::load(&fetcher, object).await;
        let manifest = manifest.unwrap_or_else(|error| panic!("a manifest is gone: {error}"));
        let pages = Arc::new(PageReader::new(fetcher, Arc::new(manifest)));
        let sink = Arc::new(Pages::default());
        let read = pages.restore_pages(sink.clone(), 2, &NoProgress).await;
        read.unwrap_or_else(|error| panic!("pages are gone: {error}"));
        let (found, truth) = (sink.0.lock().unwrap(), &self.truth[&object.object]);
        assert_eq!(found.len(), truth.len());
        for (page, bytes) in &*found {
            let version = truth[*page as usize];
            assert!(
                *bytes == content(*page, version),
                "page {page} of {object:?}"
            );
        }
    }

    /// The objects of pages and of merged log in the store, and those that the state and its manifests name.
    async fn objects(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let id = self.lineage.id();
        let mut stored = BTreeSet::new();
        for kind in ["packs", "manifests", "log"] {
            let prefix = format!("{}{kind}/", layout::lineage(id));
            let found = self.memory.list(&prefix).await.unwrap();
            stored.extend(found.into_iter().map(|it| it.name));
        }
        let state = self.lineage.load_state().await.unwrap();
        let mut named: BTreeSet<String> = (state.pieces.iter())
            .filter(|piece| piece.merged.is_some())
            .map(|piece| piece.object_name(id))
            .collect();
        for base in &state.base_backups {
            let fetcher = Fetcher::of(&self.lineage);
            let manifest = Manifest::load(&fetcher, &base.manifest).await.unwrap();
            named.insert(manifest.name());
            let packs = manifest.packs().values();
            named.extend(packs.map(|pack| layout::pack(id, pack.object.object)));
            let parts = manifest.parts().iter();
            named.extend(parts.map(|part| layout::manifest(id, part.handle.object.object)));
        }
        (stored, named)
    }
}

fn pin(name: &str, last_record: RecordSpan) -> NewPin {
    NewPin {
        name: name.to_owned(),
        branch: BRANCH,
        last_record,
        time: None,
        note: String::new(),
        tags: BTreeMap::new(),
    }
}

/// Looks into the log of a state; each piece has one record at its end.
struct LookIn<'a> {
    reader: LogReader,
    state: &'a LineageState,
}

#[async_trait]
impl Lookup for LookIn<'_> {
    async fn time_steps(&self, entry: u64) -> Result<Vec<TimeStep>> {
        let piece = self.state.pieces.iter().find(|piece| piece.entry == entry);
        self.reader.time_steps(piece.unwrap()).await
    }

    async fn last_record(
        &self,
        _: Branch,
        _: Position,
        through: Position,
    ) -> Result<Option<RecordSpan>> {
        Ok(Some(RecordSpan {
            start: Position(through.0 - 8),
            end: through,
        }))
    }
}

/// What happened over all seeds: a run in which nothing expires proves nothing.
#[derive(Default)]
struct Happened {
    expired: u64,
    merged: u64,
    deleted: u64,
    kept_after_all: u64,
    cut_off: u64,
    floors: u64,
}

async fn days_pass(seed: u64, without: Option<Rule>, happened: &mut Happened) {
    let mut world = World::new(seed, without).await;
    for step in 0..STEPS {
        world.step().await;
        if world.below(3) > 0 {
            turn(&world, happened).await;
        }
        if step % 8 == 0 {
            world.check().await;
        }
    }
    world.check().await;
    // Nobody reads any more, and the writer stops.
    for _ in 0..8 {
        world.clock.advance(GRACE + HOUR);
        let (repository, lineage) = (&world.repository, world.lineage.clone());
        let mut upkeep = world.upkeep(repository, lineage);
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await;
        count(&turn.unwrap(), happened);
    }
    world.reading = None;
    world.check().await;
    let reader = world.lineage.reader().await.unwrap();
    assert!(reader.marks().is_empty(), "{:?}", reader.marks());
    let (stored, named) = world.objects().await;
    assert_eq!(
        stored, named,
        "what is stored is named, and the other way round"
    );
}

fn count(turn: &Turn, happened: &mut Happened) {
    happened.expired += turn.expired_base_backups;
    happened.merged += turn.pieces;
    happened.deleted += turn.deleted;
    happened.kept_after_all += turn.kept_after_all;
    happened.floors += u64::from(turn.floor.is_some());
}

/// One turn of one of two maintainers; of one the deletions are cut off anywhere.
async fn turn(world: &World, happened: &mut Happened) {
    let id = world.lineage.id();
    let is_weak = world.below(3) == 0;
    let repository = if is_weak {
        &world.weak
    } else {
        &world.repository
    };
    (world.cut.left).store(world.below(8), Ordering::Relaxed);
    let lineage = repository.lineage(id).await.unwrap();
    let mut upkeep = world.upkeep(repository, lineage);
    for _ in 0..2 {
        match upkeep.turn(Bounds::default(), &NoProgress).await {
            Ok(turn) => {
                assert_eq!(turn.skipped, 0);
                count(&turn, happened);
            }
            Err(error) if is_weak && error.kind() == ErrorKind::Unreachable => {
                happened.cut_off += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn simulate(seed: u64, without: Option<Rule>, happened: &mut Happened) -> std::thread::Result<()> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(days_pass(seed, without, happened));
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
}

/// Laws 2 and 4. pgBackRest and WAL-G deleted log that a kept backup needed; Barman and Neon leaked what they could
/// not tell to be unused.
#[test]
fn what_is_promised_stays_and_what_is_not_goes_however_expiry_is_interrupted() {
    let asked = std::env::var("BOREALIS_SEEDS").ok();
    let seeds = asked.and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let first = std::env::var("BOREALIS_FIRST_SEED").ok();
    let first: u64 = first.and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut happened = Happened::default();
    for seed in first..first + seeds {
        if let Err(panic) = simulate(seed, None, &mut happened) {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
    let Happened {
        expired,
        merged,
        deleted,
        kept_after_all,
        cut_off,
        floors,
    } = happened;
    eprintln!(
        "{seeds} seeds: {expired} base backups expired, {merged} log pieces merged, {deleted} objects deleted, {kept_after_all} bytes kept after all, \
         {cut_off} turns cut off, {floors} floors"
    );
    assert!(expired > seeds * 20 && merged > seeds * 100 && deleted > seeds * 60);
    assert!(cut_off > seeds && floors > seeds);
}

/// A rule left out must show, or the simulation is too tame to prove it.
fn expiry_shows(rule: Rule) {
    let mut happened = Happened::default();
    let found = (0..MUTANT_SEEDS).find(|seed| simulate(*seed, Some(rule), &mut happened).is_err());
    eprintln!("without {rule:?}: seed {found:?}");
    assert!(found.is_some(), "{MUTANT_SEEDS} seeds do not miss {rule:?}");
}

#[test]
fn deleting_what_expired_without_waiting_shows() {
    expiry_shows(Rule::Grace);
}

#[test]
fn deleting_packs_that_later_base_backups_share_shows() {
    expiry_shows(Rule::SharedPages);
}
