//! Histories as a source writes them, with everything that bears on what a moment means: merged, folded
//! into baselines, and compared with what was before.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{
    Branch, ErrorKind, LineageId, ManualClock, NoProgress, ObjectId, Position, RecordSpan,
    SeededEntropy, TimeStep, Timestamp,
};
use borealis_keys::{DataKey, DataKeys};
use bytes::Bytes;
use futures::TryStreamExt;

use super::*;
use crate::Result;
use crate::catalog::Lineage;
use crate::ledger::{
    BaseBackup, BranchStarted, EntryBody, Gap, Holder, LedgerWriter, LogPiece, Names, Opening,
    PartialBaseBackup, Rule, Settled, Shape,
};
use crate::log::{LogReader, PieceIdentity, TimeMaps, pieces_of, prepare_piece};
use crate::object::Compression;
use crate::plan::{
    KnownSteps, LineageState, Lookup, ObjectRef, Target, Window, resolve, windows_with,
};
use crate::store::{Counters, CountingStore, MemoryStore, Store, StoreLayer};

mod beside_scrub;
mod expiry;
mod removal;

const SEEDS: u64 = 60;
const SHAPE: Shape = Shape {
    recap: 4,
    checkpoint: 16,
};
const LIMITS: Limits = Limits {
    bytes: 3_000,
    age: Duration::from_secs(40),
    wait: Duration::from_secs(40),
    block: 16,
};
const LINEAGE: LineageId = LineageId([9; 16]);

fn seeds() -> u64 {
    let asked = std::env::var("BOREALIS_SEEDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(SEEDS)
}

fn lineage(store: Arc<dyn Store>, seed: u64, clock: &Arc<ManualClock>) -> Lineage {
    let keys = DataKeys::new(DataKey::random(&SeededEntropy::new(7)));
    let entropy = Arc::new(SeededEntropy::new(seed));
    Lineage::new(LINEAGE, store, keys, clock.clone(), entropy).with_shape(SHAPE)
}

fn opening() -> Opening {
    Opening {
        holder: Holder::default(),
        log_unit: 8,
        expected_epoch: None,
    }
}

/// A source and its writer.
struct History {
    lineage: Lineage,
    clock: Arc<ManualClock>,
    random: SeededEntropy,
    writer: LedgerWriter,
    branch: Branch,
    at: Position,
    settled: Option<Timestamp>,
    last_record: Option<RecordSpan>,
    /// Ends of records by branch, for whoever looks for a position.
    records: Vec<(Branch, RecordSpan)>,
    branches: u32,
}

impl History {
    async fn new(store: Arc<dyn Store>, seed: u64) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp(1_000_000)));
        let lineage = lineage(store, seed, &clock);
        Self {
            writer: lineage.open_writer(opening()).await.unwrap(),
            lineage,
            clock,
            random: SeededEntropy::new(seed ^ 0x5EED),
            branch: Branch(1),
            at: Position(0),
            settled: None,
            last_record: None,
            records: Vec::new(),
            branches: 1,
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// The log byte at a position.
    fn byte(branch: Branch, position: u64) -> u8 {
        (position * 31 + u64::from(branch.0)) as u8
    }

    async fn append(&mut self, body: EntryBody) {
        self.writer.append(&body, Vec::new()).await.unwrap();
    }

    fn record(&mut self, end: Position) -> RecordSpan {
        let start = Position(end.0.saturating_sub(1 + self.below(9)));
        let record = RecordSpan { start, end };
        self.records.push((self.branch, record));
        record
    }

    /// A piece whose records end where its steps say.
    async fn piece(&mut self) {
        let start = self.at;
        let end = start.plus(20 + self.below(400));
        let mut steps = Vec::new();
        let (before, mut at) = (self.settled, start);
        let mut last = None;
        for _ in 0..self.below(4) {
            at = at.plus(1 + self.below(6));
            let record = self.record(at);
            let through = self
                .settled
                .unwrap_or(Timestamp(500_000))
                .plus_micros(1 + self.below(900_000).cast_signed());
            self.settled = Some(through);
            last = Some(record);
            steps.push(TimeStep {
                settled_through: through,
                last_record: record,
            });
        }
        if self.below(8) > 0 {
            last = Some(self.record(end));
        }
        self.last_record = last.or(self.last_record);
        let bytes: Vec<u8> = (start.0..end.0)
            .map(|at| Self::byte(self.branch, at))
            .collect();
        let identity = PieceIdentity {
            lineage: LINEAGE,
            branch: self.branch,
            start,
        };
        let index = format!("index of {start}");
        let compression = Compression::Zstd(1);
        let frames = prepare_piece(&identity, &bytes, &steps, index.as_bytes(), compression);
        let body = EntryBody::LogPiece(LogPiece {
            branch: self.branch,
            start,
            end,
            settled_before: before,
            settled_after: self.settled,
            last_record: last,
            resume_at: end,
            engine: (self.below(3) > 0).then(|| format!("digest of {start}").into()),
        });
        self.writer.append(&body, frames.unwrap()).await.unwrap();
        self.at = end;
    }

    async fn settle(&mut self) {
        let (Some(last_record), Some(settled)) = (self.last_record, self.settled) else {
            return;
        };
        // Now and then the same again, as a heartbeat says it.
        let through = settled.plus_micros(self.below(3).cast_signed() * 400_000);
        self.settled = Some(through);
        let branch = self.branch;
        self.append(EntryBody::Settled(Settled {
            branch,
            through,
            last_record,
        }))
        .await;
    }

    async fn gap(&mut self) {
        let unread = |piece: &&crate::plan::PieceSummary| {
            piece.branch == self.branch && piece.entry > self.writer.read_back()
        };
        // Log that was never there, or that was stored and could not be read back.
        let lost = self.writer.state().pieces.iter().rev().take_while(unread);
        let lost: Vec<Position> = lost.map(|piece| piece.start).collect();
        let from = match self.below(1 + lost.len() as u64) {
            0 => self.at,
            n => lost[n as usize - 1],
        };
        self.at = self.at.plus(self.below(2) * 100);
        let (branch, to) = (self.branch, self.at);
        let reason = "lost".to_owned();
        self.append(EntryBody::Gap(Gap {
            branch,
            from,
            to,
            reason,
        }))
        .await;
        self.last_record = None;
    }

    async fn fork(&mut self) {
        let (parent, back) = (self.branch, self.below(300));
        self.branches += 1;
        self.branch = Branch(self.branches);
        self.at = Position(self.at.0.saturating_sub(back));
        self.last_record = None;
        let (branch, at) = (self.branch, self.at);
        self.append(EntryBody::BranchStarted(BranchStarted {
            branch,
            parent,
            at,
            history: Bytes::from_static(b"history"),
        }))
        .await;
    }

    fn object(&self) -> ObjectRef {
        ObjectRef {
            lineage: LINEAGE,
            object: ObjectId::random(&self.random),
            len: self.below(1_000),
            head_digest: [3; 32],
        }
    }

    async fn base_backup(&mut self) {
        let start = Position(self.at.0.saturating_sub(self.below(200)));
        let (manifest, branch, end) = (self.object(), self.branch, self.at);
        let body = if self.below(3) == 0 {
            EntryBody::PartialBaseBackup(PartialBaseBackup {
                manifest,
                branch,
                start,
                started_at: Timestamp(1),
                new_bytes: 2,
                stored_pages: 3,
                missing_pages: 4,
                rule_set: 2,
            })
        } else {
            EntryBody::BaseBackup(BaseBackup {
                manifest,
                branch,
                start,
                end,
                started_at: Timestamp(1),
                ended_at: Timestamp(2),
                new_bytes: 3,
                total_pages: 4,
                rule_set: 2,
                engine: Bytes::from_static(b"engine"),
            })
        };
        self.append(body).await;
    }

    async fn other(&mut self) {
        match self.below(5) {
            0 => self.append(EntryBody::ReadBack).await,
            1 => self.writer = self.lineage.open_writer(opening()).await.unwrap(),
            2 => {
                let reason = "because".to_owned();
                let retired = EntryBody::Retired(crate::ledger::Retired { reason });
                self.append(retired).await;
            }
            _ => {
                let (branch, from, to) = (self.branch, self.at, self.at.plus(5));
                self.append(EntryBody::Names(Names {
                    branch,
                    from,
                    to,
                    taken_at: Timestamp(4),
                    whole: true,
                }))
                .await;
            }
        }
    }

    /// The next thing that happens.
    async fn step(&mut self) {
        self.clock.advance(Duration::from_millis(self.below(4_000)));
        if self.below(40) == 0 {
            // Long enough for a restore to tell of it.
            self.clock.advance(Duration::from_mins(3));
        }
        match self.below(100) {
            0..55 => self.piece().await,
            55..75 => self.settle().await,
            75..78 => self.gap().await,
            78..81 => self.fork().await,
            81..90 => self.base_backup().await,
            _ => self.other().await,
        }
        if self.below(3) > 0 {
            self.writer.note_read_back(self.writer.state().head);
        }
    }

    fn upkeep(&self) -> Upkeep<'static> {
        Upkeep::new(self.lineage.clone(), Holder::default()).with_limits(LIMITS)
    }
}

/// Looks into the log of a state.
struct Look<'a> {
    reader: LogReader,
    state: &'a LineageState,
    records: &'a [(Branch, RecordSpan)],
}

#[async_trait]
impl Lookup for Look<'_> {
    async fn time_steps(&self, entry: u64) -> Result<Vec<TimeStep>> {
        let piece = self.state.pieces.iter().find(|piece| piece.entry == entry);
        self.reader.time_steps(piece.unwrap()).await
    }

    async fn last_record(
        &self,
        branch: Branch,
        from: Position,
        through: Position,
    ) -> Result<Option<RecordSpan>> {
        let records = (self.records.iter())
            .filter(|(of, record)| *of == branch && from <= record.start && record.end <= through);
        Ok(records
            .map(|(_, record)| *record)
            .max_by_key(|record| record.end))
    }
}

/// What a moment or position means: where replay stops, or that it can't be restored.
async fn meaning(
    state: &LineageState,
    history: &History,
    target: &Target,
) -> Option<(Branch, RecordSpan, Option<Timestamp>)> {
    let look = Look {
        reader: LogReader::of(&history.lineage),
        state,
        records: &history.records,
    };
    match resolve(state, target, &look).await {
        // Which moment the latest position stands for is told as exactly as summaries can.
        Ok(resolved) => Some((
            resolved.branch,
            resolved.last_record,
            resolved.time.filter(|_| *target != Target::Latest),
        )),
        Err(error) => {
            let kind = error.kind();
            assert_eq!(kind, ErrorKind::Refused, "{target}: {error}");
            None
        }
    }
}

/// All windows, but for which entry is the newest one of each: of merged log that a gap splits, both
/// sides are as new.
async fn all_windows(state: &LineageState, reader: &LogReader) -> Vec<Window> {
    let mut windows = windows_with(state, &all_steps(state, reader).await);
    for window in &mut windows {
        window.last_entry = 0;
    }
    windows
}

async fn all_steps(state: &LineageState, reader: &LogReader) -> KnownSteps {
    let mut steps = KnownSteps::new();
    for piece in &state.pieces {
        steps.insert(piece.entry, reader.time_steps(piece).await.unwrap());
    }
    steps
}

/// Windows, moments, log and indexes of the two states are the same.
async fn same_meaning(before: &LineageState, after: &LineageState, history: &History) {
    let reader = LogReader::of(&history.lineage);
    let windows = all_windows(before, &reader).await;
    assert_eq!(all_windows(after, &reader).await, windows);
    let last = history.settled.map_or(0, |settled| settled.0);
    for _ in 0..25 {
        let time = Timestamp(
            400_000
                + history
                    .below(last.max(400_001).cast_unsigned() - 399_000)
                    .cast_signed(),
        );
        let target = Target::Time(time);
        let meant = meaning(before, history, &target).await;
        assert_eq!(meaning(after, history, &target).await, meant, "{target}");
    }
    for target in [Target::Latest, Target::Time(Timestamp(last))] {
        let meant = meaning(before, history, &target).await;
        assert_eq!(meaning(after, history, &target).await, meant, "{target}");
    }
    for window in &windows {
        same_log(before, after, &reader, window).await;
    }
}

async fn same_log(
    before: &LineageState,
    after: &LineageState,
    reader: &LogReader,
    window: &Window,
) {
    let (branch, from, to) = (
        window.branch,
        window.earliest.position,
        window.latest.position,
    );
    let mut at = from;
    let log = reader.read(after, branch, from, to, 4).unwrap();
    for part in log.try_collect::<Vec<_>>().await.unwrap() {
        assert_eq!(part.position, at);
        for byte in &part.bytes {
            assert_eq!(*byte, History::byte(part.branch, at.0), "log at {at}");
            at = at.plus(1);
        }
    }
    assert_eq!(at, to);
    let indexes = async |state: &LineageState| {
        let mut indexes = Vec::new();
        for part in pieces_of(state, branch, from, to).unwrap() {
            let piece = reader.piece(&part.piece).await.unwrap();
            indexes.extend(piece.indexes(part.from, part.to).await.unwrap());
        }
        indexes
    };
    assert_eq!(indexes(after).await, indexes(before).await);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

fn for_each_seed<F: Future<Output = ()>>(run: impl Fn(u64) -> F) {
    for seed in 0..seeds() {
        let run = || runtime().block_on(run(seed));
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}

/// How much happened over all seeds: a history in which nothing is merged proves nothing.
#[derive(Default)]
struct Seen {
    pieces: std::cell::Cell<u64>,
    floors: std::cell::Cell<u64>,
}

/// Lesson 4: what is merged must mean the same. Law 10: a moment never means anything else later.
#[test]
fn merging_and_baselines_change_nothing_that_a_restore_sees() {
    let seen = Seen::default();
    for_each_seed(|seed| run(seed, &seen, None));
    let (pieces, floors) = (seen.pieces.get(), seen.floors.get());
    eprintln!("{} seeds: {pieces} pieces merged, {floors} floors", seeds());
    assert!(pieces > seeds() * 20 && floors > seeds() * 3);
}

async fn run(seed: u64, seen: &Seen, without: Option<Rule>) {
    let store = Arc::new(MemoryStore::default());
    let mut history = History::new(store.clone(), seed).await;
    history.lineage = history.lineage.without(without);
    let mut upkeep = history.upkeep();
    for _ in 0..12 {
        for _ in 0..history.below(20) {
            history.step().await;
        }
        let old = history.lineage.reader().await.unwrap();
        if history.below(4) == 0 {
            upkeep = history.upkeep();
        }
        let read_bytes = 1 + history.below(3) * 3_000;
        let turn = upkeep
            .turn(
                Bounds {
                    read_bytes,
                    removals: 50,
                },
                &NoProgress,
            )
            .await
            .unwrap();
        assert_eq!(turn.skipped, 0);
        seen.pieces.set(seen.pieces.get() + turn.pieces);
        seen.floors
            .set(seen.floors.get() + u64::from(turn.floor.is_some()));
        let reader = history.lineage.reader().await.unwrap();
        // From the floor on or from the first entry: the same, byte for byte.
        assert_eq!(
            *reader.state(),
            reader.fold_from_the_first_entry(true).await.unwrap()
        );
        // A reader and a writer that were there before come to the same.
        let mut old = old;
        old.refresh().await.unwrap();
        assert_eq!(old.state(), reader.state());
        if history.below(2) == 0 {
            history.writer.refresh().await.unwrap();
        } else {
            // What is appended while the others read is added.
            let mut clone = history.writer.reader().clone();
            clone.refresh().await.unwrap();
            history.append(EntryBody::ReadBack).await;
            let adopted = history.writer.adopt(clone).unwrap();
            let crossed = (history.writer.state().head - 1).is_multiple_of(SHAPE.checkpoint);
            assert!(adopted || crossed);
            history.writer.refresh().await.unwrap();
        }
        let reader = history.lineage.reader().await.unwrap();
        assert_eq!(history.writer.state(), reader.state());
        let plain = reader.fold_from_the_first_entry(false).await.unwrap();
        same_meaning(&plain, reader.state(), &history).await;
    }
    let state = history.lineage.load_state().await.unwrap();
    let keys = history.lineage.keys();
    for piece in &state.pieces {
        let store = store.clone() as Arc<dyn Store>;
        let read = crate::log::read_back(&store, keys, LINEAGE, piece);
        read.await.unwrap();
    }
}

/// A rule left out must show, or these histories are too tame to prove it.
fn shows(rule: Rule) {
    let fails = |seed| {
        let run = || runtime().block_on(run(seed, &Seen::default(), Some(rule)));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    };
    let found = (0..SEEDS).find(|seed| fails(*seed));
    eprintln!("without {rule:?}: seed {found:?}");
    assert!(found.is_some(), "{SEEDS} seeds do not miss {rule:?}");
}

#[test]
fn maintenance_dropped_before_what_it_speaks_of_shows() {
    shows(Rule::KeepReferences);
}

/// A store in which something happens just before the first request for a maintenance entry.
struct Hooked {
    inner: Arc<MemoryStore>,
    hook: std::sync::Mutex<Option<futures::future::BoxFuture<'static, ()>>>,
}

type Answer<T> = Result<T, crate::store::StoreError>;

#[async_trait]
impl StoreLayer for Hooked {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn before_read(&self, name: &str) -> Answer<()> {
        let hook = if name.contains("/maintenance/") {
            self.hook.lock().unwrap().take()
        } else {
            None
        };
        if let Some(hook) = hook {
            hook.await;
        }
        Ok(())
    }
}

/// Log is written and merged while a reader is between the two rows; returns what it makes of that.
async fn read_while_log_is_merged(without: Option<Rule>) -> Result<LineageState> {
    let memory = Arc::new(MemoryStore::default());
    let mut history = History::new(memory.clone(), 3).await;
    let hook = async move {
        for _ in 0..8 {
            history.piece().await;
            history.writer.note_read_back(history.writer.state().head);
        }
        history.clock.advance(Duration::from_mins(3));
        history.settle().await;
        let bounds = Bounds::default();
        let turn = history.upkeep().turn(bounds, &NoProgress).await.unwrap();
        assert!(turn.pieces > 4, "{turn:?}");
    };
    let store = Arc::new(Hooked {
        inner: memory,
        hook: std::sync::Mutex::new(Some(Box::pin(hook))),
    });
    let clock = Arc::new(ManualClock::new(Timestamp(0)));
    let reader = lineage(store, 4, &clock).without(without).reader().await?;
    Ok(reader.state().clone())
}

#[test]
fn what_maintenance_speaks_of_is_in_what_is_read_of_the_ledger() {
    let state = runtime().block_on(read_while_log_is_merged(None)).unwrap();
    assert!(state.pieces.iter().any(|piece| piece.merged.is_some()));
    let rule = Some(Rule::MaintenanceFirst);
    let error = runtime()
        .block_on(read_while_log_is_merged(rule))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

/// A lineage of so many checkpoints of small pieces, maintained as it was written.
async fn aged(store: Arc<dyn Store>, checkpoints: u64) -> (History, Upkeep<'static>) {
    let mut history = History::new(store, 5).await;
    let mut upkeep = history.upkeep();
    while history.writer.state().head < checkpoints * SHAPE.checkpoint + 5 {
        history.piece().await;
        history.writer.note_read_back(history.writer.state().head);
        history.clock.advance(Duration::from_secs(1));
        if history.writer.state().head.is_multiple_of(8) {
            let turn = upkeep.turn(Bounds::default(), &NoProgress).await;
            turn.unwrap();
        }
    }
    (history, upkeep)
}

/// Gets that reading a lineage of so many checkpoints takes.
async fn gets_to_read(checkpoints: u64) -> u64 {
    let memory = Arc::new(MemoryStore::default());
    let (history, _) = aged(memory.clone(), checkpoints).await;
    let counters = Arc::new(Counters::default());
    let counting = Arc::new(CountingStore::new(memory, counters.clone()));
    let reader = lineage(counting, 6, &history.clock).reader().await.unwrap();
    assert!(reader.lowest() > (checkpoints - 2) * SHAPE.checkpoint);
    assert_eq!(reader.state().pieces.last().unwrap().end, history.at);
    let usage = counters.usage();
    assert_eq!((usage.puts, usage.lists), (0, 0));
    usage.gets
}

/// Of the age of a lineage only the search for the newest floor knows, by its logarithm.
#[test]
fn a_lineage_of_any_age_is_read_with_as_many_requests() {
    let few = runtime().block_on(gets_to_read(4));
    let many = runtime().block_on(gets_to_read(64));
    eprintln!("{few} gets of 4 checkpoints, {many} of 64");
    // 16 times as many floors are found with 4 more steps up and 4 more down.
    assert!(many <= few + 8, "{few} gets of 4 checkpoints, {many} of 64");
    // An entry may take two gets: those of two checkpoints that are not full, and of 4 recaps.
    assert!(few <= 2 * (2 * SHAPE.checkpoint + 8), "{few}");
}

async fn entries_left(store: &MemoryStore) -> usize {
    let prefix = format!("lineages/{LINEAGE}/ledger/");
    store.list(&prefix).await.unwrap().len()
}

/// Every kind of object that maintenance writes, and that a reader of the lineage now needs.
async fn needed_objects(history: &History) -> Vec<(String, String)> {
    let reader = history.lineage.reader().await.unwrap();
    let store = history.lineage.store();
    let last = |names: Vec<crate::store::Listed>| names.last().unwrap().name.clone();
    let prefix = |kind: &str| format!("lineages/{LINEAGE}/{kind}/");
    let mut needed = Vec::new();
    for kind in ["floors", "maintenance"] {
        let mut names = store.list(&prefix(kind)).await.unwrap();
        let newest = last(names.clone());
        names.pop();
        needed.push((newest, last(names)));
    }
    let merged = reader.state().pieces.iter().filter(|p| p.merged.is_some());
    let merged: Vec<String> = merged.map(|p| p.object_name(LINEAGE)).collect();
    needed.push((merged[0].clone(), merged[1].clone()));
    let baselines = store.list(&prefix("baselines")).await.unwrap();
    let newest = reader.baseline_name().unwrap();
    let other = baselines.iter().find(|listed| listed.name != newest);
    needed.push((newest, other.unwrap().name.clone()));
    needed
}

#[test]
fn a_changed_truncated_or_swapped_object_of_maintenance_is_damage_that_names_it() {
    runtime().block_on(async {
        let memory = Arc::new(MemoryStore::default());
        let (history, _) = aged(memory.clone(), 5).await;
        let verify = async || {
            crate::verify::verify_lineage(&history.lineage, true, &NoProgress)
                .await
                .unwrap()
        };
        let report = verify().await;
        assert!(report.is_sound(), "{report:?}");
        for (name, other) in needed_objects(&history).await {
            let whole = memory.read(&name).await.unwrap();
            let mut wrong: Vec<Bytes> = [9, 30, whole.len() / 2, whole.len() - 1]
                .map(|at| {
                    let mut bytes = whole.to_vec();
                    bytes[at] ^= 1;
                    bytes.into()
                })
                .into();
            wrong.push(whole.slice(..whole.len() - 9));
            wrong.push(memory.read(&other).await.unwrap());
            for (number, wrong) in wrong.into_iter().enumerate() {
                memory.tamper(&name, wrong);
                let report = verify().await;
                let names = |finding: &crate::verify::Finding| finding.what.contains(&name);
                assert!(
                    report.findings.iter().any(names),
                    "{name}, {number}: {report:?}"
                );
            }
            memory.tamper(&name, whole);
        }
        assert!(verify().await.is_sound());
    });
}
