//! The real code over a store that fails, with seeds: writers that stall, crash and are replaced, a
//! deleter, readers. What must hold is what `specs/ledger` proves of the protocol.
//!
//! Once over a store in memory, on a clock in which waiting takes no time; and once, with fewer seeds,
//! over S3's protocol: a strict server behind a proxy that cuts, delays, duplicates, throttles, garbles
//! and loses.
//!
//! `BOREALIS_SEEDS=n` runs `n` seeds instead of the default, `BOREALIS_S3_SEEDS=n` over S3.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use borealis_base::{Branch, LineageId, ManualClock, Position, SeededEntropy, Timestamp};
use borealis_keys::{DataKey, DataKeys};
use tokio::task::JoinHandle;

use super::floor::Floor;
use super::*;
use crate::store::{Counters, FaultStore, Faults, MemoryStore, Outfit, S3Store};
use borealis_testkit::s3::{ACCESS_KEY, FaultProxy, HttpFaults, SECRET_KEY, StrictServer, url};

const SEEDS: u64 = 300;
const S3_SEEDS: u64 = 3;
/// Over S3, where opening takes long, more would do little but take over from each other.
const S3_WRITERS: u64 = 2;
/// What must have happened in each seed over S3.
const S3_COMMITS: u64 = 12;
const S3_EPOCHS: u64 = 4;
const S3_DEADLINE: Duration = Duration::from_mins(3);
/// Over S3 time is real: everything goes this many times faster.
const S3_PACE: u32 = 15;
const WRITERS: u64 = 3;
const RUN: Duration = Duration::from_mins(2);

/// What the outside world has been told.
#[derive(Default)]
struct Witness {
    /// Committed entries by number, with the digest and the epoch of each.
    committed: BTreeMap<u64, ([u8; 32], u64)>,
    /// The highest epoch whose writer has opened.
    opened: u64,
    commits: u64,
    fences: u64,
    floors: u64,
    readings: u64,
}

type Shared = Arc<Mutex<Witness>>;

/// One actor's luck, and how fast its world goes.
struct Chance {
    random: SeededEntropy,
    pace: u32,
}

impl Chance {
    fn below(&self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// A time of at least `from` and less than `from + more` milliseconds, at this world's pace.
    fn time(&self, from: u64, more: u64) -> Duration {
        Duration::from_millis(from + self.random.below(more)) / self.pace
    }

    /// How long a writer lives. Over S3, opening takes a while at any pace.
    fn lifetime(&self) -> Duration {
        let lifetime = Duration::from_millis(500 + self.random.below(20_000));
        lifetime / (self.pace / 4).max(1)
    }

    async fn rest(&self, from: u64, more: u64) {
        tokio::time::sleep(self.time(from, more)).await;
    }
}

const FAULTS: Faults = Faults {
    lost_replies: 30,
    late_creates: 30,
    duplicates: 20,
    full: 5,
    failures: 20,
    stalls: 10,
    delay_max: Duration::from_millis(20),
    stall: Duration::from_secs(15),
};

fn context(store: Arc<dyn Store>, seed: u64) -> Context {
    let keys = DataKeys::new(DataKey::random(&SeededEntropy::new(7)));
    Context {
        store,
        keys: Arc::new(keys),
        lineage: LineageId([9; 16]),
        clock: Arc::new(ManualClock::new(Timestamp(0))),
        entropy: Arc::new(SeededEntropy::new(seed ^ 0xABCD)),
        shape: Shape {
            recap: 4,
            checkpoint: 8,
        },
        patience: Patience {
            attempts: 3,
            pause: Duration::from_millis(50),
        },
        without: None,
    }
}

fn opening() -> Opening {
    Opening {
        holder: Holder::default(),
        log_unit: 1,
        expected_epoch: None,
    }
}

/// An entry that says what its writer believed the ledger to be.
fn piece(state: &crate::plan::LineageState) -> EntryBody {
    let start = Position(state.head);
    EntryBody::LogPiece(LogPiece {
        branch: Branch(1),
        start,
        end: start.plus(1),
        settled_before: None,
        settled_after: None,
        last_record: None,
        resume_at: start.plus(1),
        engine: None,
    })
}

fn committed(witness: &Shared, writer: &LedgerWriter, entry: &Committed) {
    let mut witness = witness.lock().unwrap();
    let last = witness
        .committed
        .last_key_value()
        .map(|(number, _)| *number);
    let known = witness
        .committed
        .insert(entry.number, (entry.head_digest, writer.epoch()));
    assert!(
        known.is_none(),
        "entry {} was committed twice",
        entry.number
    );
    // A writer that stalled between its last probe and its answer may report late, but only what a
    // newer writer has read.
    if last.is_some_and(|last| last > entry.number) {
        assert!(writer.epoch() < witness.opened, "order within an epoch");
    }
    witness.commits += 1;
}

/// One writer's life: opens, appends, and is gone when it is fenced or gives up.
async fn live(context: Context, witness: Shared, random: Arc<Chance>) -> Result<()> {
    let mut writer = LedgerWriter::open(context, opening()).await?;
    {
        let mut witness = witness.lock().unwrap();
        assert!(writer.epoch() > 0);
        // Everything committed before this moment is in what the writer has read, unless an older
        // writer's answer is still on its way.
        let fence = writer.state().head;
        for (number, (digest, epoch)) in witness.committed.range(..=fence) {
            assert!(*epoch <= writer.epoch());
            let read = writer
                .reader()
                .fold
                .ledger
                .block
                .iter()
                .find(|item| item.head.number == *number);
            assert!(
                read.is_none_or(|item| item.digest == *digest),
                "entry {number} is another"
            );
        }
        let fence_digest = writer.reader().head().1;
        witness
            .committed
            .insert(fence, (fence_digest, writer.epoch()));
        witness.opened = witness.opened.max(writer.epoch());
    }
    loop {
        random.rest(0, 500).await;
        let body = piece(writer.state());
        match writer.append(&body, Vec::new()).await {
            Ok(entry) => committed(&witness, &writer, &entry),
            Err(error) if error.kind() == borealis_base::ErrorKind::Fenced => {
                witness.lock().unwrap().fences += 1;
                return Err(error);
            }
            Err(error) if writer.is_pending() => {
                assert_ne!(error.kind(), borealis_base::ErrorKind::Damaged, "{error}");
                loop {
                    match writer.resume().await {
                        Ok(Some(entry)) => break committed(&witness, &writer, &entry),
                        Ok(None) => break,
                        Err(error) if error.kind() == borealis_base::ErrorKind::Fenced => {
                            return Err(error);
                        }
                        Err(_) => random.rest(1_000, 1).await,
                    }
                }
            }
            Err(error) => assert_ne!(error.kind(), borealis_base::ErrorKind::Damaged, "{error}"),
        }
    }
}

/// Keeps a writer going: starts it anew when it ends, and kills it now and then at any await.
async fn supervise(context: Context, witness: Shared, random: Arc<Chance>) {
    loop {
        let life: JoinHandle<Result<()>> =
            tokio::spawn(live(context.clone(), witness.clone(), random.clone()));
        let killer = life.abort_handle();
        let lifetime = random.lifetime();
        match tokio::time::timeout(lifetime, life).await {
            Err(_) => killer.abort(),
            Ok(Err(join)) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Ok(Ok(Err(error))) => {
                assert_ne!(error.kind(), borealis_base::ErrorKind::Damaged, "{error}");
                assert_ne!(error.kind(), borealis_base::ErrorKind::Bug, "{error}");
            }
            Ok(_) => {}
        }
        random.rest(0, 3_000).await;
    }
}

/// Raises the floor to a random boundary below the head, then removes below it, slowly.
async fn delete(context: Context, witness: Shared, random: Arc<Chance>) {
    let size = context.shape.checkpoint;
    loop {
        random.rest(2_000, 15_000).await;
        let Ok(reader) = LedgerReader::load(context.clone()).await else {
            continue;
        };
        let (head, _) = reader.head();
        if head == 0 {
            continue;
        }
        let lowest = random.below((head - 1) / size + 1) * size + 1;
        let Ok(lowest) = context.raise_floor(lowest).await else {
            continue;
        };
        witness.lock().unwrap().floors += 1;
        for number in 1..lowest {
            let _ = context
                .store
                .delete(&layout::entry(context.lineage, number))
                .await;
        }
        for number in 1..(lowest - 1) / size {
            let _ = context
                .store
                .delete(&layout::checkpoint(context.lineage, number))
                .await;
        }
    }
}

/// What a reader has read must hold everything that was committed before it began.
fn check_reading(reader: &LedgerReader, before: &BTreeMap<u64, ([u8; 32], u64)>) {
    let (head, head_digest) = reader.head();
    let lowest = reader.floor.lowest;
    for (number, (digest, _)) in before.range(lowest..) {
        assert!(
            *number <= head,
            "entry {number} is hidden: the head is {head}"
        );
        if *number == head {
            assert_eq!(*digest, head_digest, "entry {number} is another");
        }
        let kept = reader
            .fold
            .ledger
            .block
            .iter()
            .find(|item| item.head.number == *number);
        if let Some(item) = kept {
            assert_eq!(item.digest, *digest, "entry {number} is another");
        }
    }
    // Each entry was written by someone who knew every entry before it.
    for piece in &reader.state().pieces {
        assert_eq!(
            piece.start.0 + 1,
            piece.entry,
            "its writer knew another ledger"
        );
    }
}

async fn read(context: Context, witness: Shared, random: Arc<Chance>) {
    let mut reader: Option<LedgerReader> = None;
    loop {
        random.rest(0, 4_000).await;
        let before = witness.lock().unwrap().committed.clone();
        let result = match &mut reader {
            Some(reader) if random.below(4) > 0 => reader.refresh().await,
            _ => LedgerReader::load(context.clone())
                .await
                .map(|new| reader = Some(new)),
        };
        match result {
            Ok(()) => {
                check_reading(reader.as_ref().expect("it was read"), &before);
                witness.lock().unwrap().readings += 1;
            }
            Err(error) => {
                assert_ne!(error.kind(), borealis_base::ErrorKind::Damaged, "{error}");
            }
        }
    }
}

/// Lets writers, deleters and readers loose, each on the store that `store` gives to its number.
async fn act(
    seed: u64,
    (writers, pace): (u64, u32),
    without: Option<Rule>,
    store: impl Fn(u64) -> Arc<dyn Store>,
    witness: &Shared,
    until: impl Future<Output = ()>,
) {
    let random = |n: u64| {
        let random = SeededEntropy::new(seed.wrapping_mul(31).wrapping_add(n));
        Arc::new(Chance { random, pace })
    };
    let with = |n: u64| Context {
        without,
        ..context(store(n), seed.wrapping_mul(1_000).wrapping_add(n))
    };
    let mut tasks = Vec::new();
    for n in 0..writers {
        tasks.push(tokio::spawn(supervise(with(n), witness.clone(), random(n))));
    }
    tasks.push(tokio::spawn(delete(with(10), witness.clone(), random(10))));
    tasks.push(tokio::spawn(delete(with(11), witness.clone(), random(11))));
    tasks.push(tokio::spawn(read(with(20), witness.clone(), random(20))));
    until.await;
    for task in tasks {
        if task.is_finished() {
            task.await.expect("a task of the simulation failed");
        } else {
            task.abort();
        }
    }
}

/// What stands at the end, read from a store without faults, must be what was committed.
async fn check(clean: Context, witness: &Shared) -> Witness {
    let reader = LedgerReader::load(clean.clone())
        .await
        .expect("the ledger reads");
    {
        let witness = witness.lock().unwrap();
        check_reading(&reader, &witness.committed);
    }
    let floor = clean.floor(Floor::NONE).await.expect("the floor reads");
    let committed = witness.lock().unwrap().committed.clone();
    let track = clean.track(Role::Ledger);
    for (number, (digest, _)) in committed.range(floor.lowest..) {
        let entry = track.read(*number).await.expect("an entry reads");
        let entry = entry.unwrap_or_else(|| panic!("entry {number} was committed and is lost"));
        assert_eq!(entry.item.digest, *digest, "entry {number} is another");
    }
    std::mem::take(&mut *witness.lock().unwrap())
}

async fn run(seed: u64, without: Option<Rule>) -> Witness {
    let (memory, witness) = (Arc::new(MemoryStore::default()), Shared::default());
    let store = |n: u64| -> Arc<dyn Store> {
        let seed = seed.wrapping_mul(1_000).wrapping_add(n);
        Arc::new(FaultStore::new(memory.clone(), FAULTS, seed))
    };
    act(
        seed,
        (WRITERS, 1),
        without,
        store,
        &witness,
        tokio::time::sleep(RUN),
    )
    .await;
    check(context(memory.clone(), seed), &witness).await
}

/// A bucket as one process sees it.
async fn bucket(endpoint: &str, seed: u64) -> Arc<dyn Store> {
    let outfit = Outfit {
        clock: Arc::new(ManualClock::new(Timestamp(0))),
        entropy: Arc::new(SeededEntropy::new(seed)),
        counters: Arc::<Counters>::default(),
    };
    let url = url(endpoint, "r");
    let store = S3Store::open_with_keys(&url, &outfit, ACCESS_KEY, SECRET_KEY);
    Arc::new(store.await.expect("the URL is good"))
}

async fn run_over_s3(seed: u64) -> (Witness, usize) {
    let server = StrictServer::start().await;
    let proxy = FaultProxy::start(server.endpoint(), HttpFaults::MIXED, seed).await;
    let mut stores = BTreeMap::new();
    for n in [0, 1, 10, 11, 20] {
        stores.insert(n, bucket(proxy.endpoint(), seed ^ n).await);
    }
    let witness = Shared::default();
    // How fast it goes is the machine's affair: it ends when enough has happened.
    let enough = borealis_testkit::wait_until("enough to happen", S3_DEADLINE, async || {
        let witness = witness.lock().unwrap();
        (witness.commits >= S3_COMMITS && witness.opened >= S3_EPOCHS && witness.readings >= 5)
            .then_some(())
    });
    act(
        seed,
        (S3_WRITERS, S3_PACE),
        None,
        |n| stores[&n].clone(),
        &witness,
        enough,
    )
    .await;
    borealis_testkit::wait_until("late requests", Duration::from_secs(10), async || {
        proxy.is_settled().then_some(())
    })
    .await;
    let clean = context(bucket(server.endpoint(), seed).await, seed);
    let injected = proxy.take_seen();
    let injected = injected.iter().filter(|seen| seen.injected.is_some());
    (check(clean, &witness).await, injected.count())
}

/// Runs one seed on a clock of its own, in which all waiting takes no time.
fn simulate(seed: u64, without: Option<Rule>) -> std::thread::Result<Witness> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let run = || runtime.block_on(run(seed, without));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
}

#[test]
fn committed_entries_survive_stalls_crashes_lost_replies_and_deletion() {
    let seeds = std::env::var("BOREALIS_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(SEEDS);
    let mut total = Witness::default();
    for seed in 0..seeds {
        match simulate(seed, None) {
            Ok(witness) => {
                total.commits += witness.commits;
                total.fences += witness.fences;
                total.floors += witness.floors;
                total.readings += witness.readings;
            }
            Err(panic) => {
                eprintln!("seed {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!(
        "{seeds} seeds: {} commits, {} fenced, {} floors, {} readings",
        total.commits, total.fences, total.floors, total.readings
    );
    // A simulation in which nothing happens proves nothing.
    assert!(total.commits > seeds * 10 && total.fences > seeds / 10);
    assert!(total.floors > seeds / 2 && total.readings > seeds * 5);
}

#[test]
fn committed_entries_survive_everything_that_happens_on_the_way_to_a_bucket() {
    let seeds = std::env::var("BOREALIS_S3_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(S3_SEEDS);
    let (mut total, mut injected) = (Witness::default(), 0);
    for seed in 0..seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let run = || runtime.block_on(run_over_s3(seed));
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok((witness, faults)) => {
                total.commits += witness.commits;
                total.fences += witness.fences;
                total.readings += witness.readings;
                injected += faults;
            }
            Err(panic) => {
                eprintln!("seed {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!(
        "{seeds} seeds over S3: {} commits, {} fenced, {} readings, {injected} faults",
        total.commits, total.fences, total.readings
    );
    assert!(
        injected as u64 > seeds * 10,
        "a quiet network proves nothing"
    );
}

/// A rule left out must show within this many seeds, or the simulation is too tame to prove it.
fn shows(rule: Rule) {
    let found = (0..SEEDS).find(|seed| simulate(*seed, Some(rule)).is_err());
    eprintln!("without {rule:?}: seed {found:?}");
    assert!(found.is_some(), "{SEEDS} seeds do not miss {rule:?}");
}

#[test]
fn a_missing_probe_shows() {
    shows(Rule::Probe);
}

#[test]
fn a_missing_second_look_at_the_floor_shows() {
    shows(Rule::FloorAfterReading);
}

#[test]
fn a_missing_write_id_shows() {
    shows(Rule::WriteId);
}

#[test]
fn a_missing_fence_shows() {
    shows(Rule::Fence);
}
