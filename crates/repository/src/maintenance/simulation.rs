//! The real code over a store that fails, with seeds: a writer that is killed and replaced, maintainers that
//! stall, take over from each other and remove what was replaced, and readers that take their time. What must
//! hold: everything that was committed is seen by whoever reads later, once, merged or not, and is there for as
//! long as a reading may last; and room is given back in the end.
//!
//! `BOREALIS_SEEDS=n` runs `n` seeds instead of the default, `BOREALIS_FIRST_SEED=n` begins at `n`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use borealis_base::{
    Branch, Clock, ErrorKind, LineageId, NoProgress, Position, SeededEntropy, Timestamp,
};
use borealis_keys::{DataKey, DataKeys};

use super::{Bounds, Limits, Upkeep};
use crate::Result;
use crate::catalog::Lineage;
use crate::layout;
use crate::ledger::{EntryBody, Holder, LogPiece, Opening, Rule, Shape};
use crate::log::{PieceIdentity, prepare_piece, read_back};
use crate::numbered::Patience;
use crate::object::Compression;
use crate::plan::{LineageState, PieceSummary};
use crate::store::{FaultStore, Faults, MemoryStore, Store};

const SEEDS: u64 = 60;
/// How long what was replaced stays.
const GRACE: Duration = Duration::from_secs(25);
/// How long a reading lasts at most; with a stall at its end it is within the grace period.
const READ_MS_MAX: u64 = 12_000;
/// Seeds within which a rule that is left out must show.
const MUTANT_SEEDS: u64 = 150;
const RUN: Duration = Duration::from_secs(90);
const LINEAGE: LineageId = LineageId([9; 16]);
const SHAPE: Shape = Shape {
    recap: 4,
    checkpoint: 8,
};
const LIMITS: Limits = Limits {
    bytes: 4,
    age: Duration::from_secs(1),
    wait: Duration::from_secs(1),
    block: 8,
};
const FAULTS: Faults = Faults {
    lost_replies: 30,
    late_creates: 30,
    duplicates: 20,
    full: 5,
    failures: 20,
    stalls: 4,
    delay_max: Duration::from_millis(20),
    stall: Duration::from_secs(5),
};

/// A clock that goes with the simulation's time.
struct Paced(tokio::time::Instant);

impl Clock for Paced {
    fn now(&self) -> Timestamp {
        Timestamp(0).plus_micros(self.0.elapsed().as_micros() as i64)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that jumps between a day early and a day late.
struct Wrong(Arc<dyn Clock>);

impl Clock for Wrong {
    fn now(&self) -> Timestamp {
        let day = 86_400_000_000;
        let now = self.0.now();
        now.plus_micros(if now.0 / 7_000_000 % 2 == 0 {
            day
        } else {
            -day
        })
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What the outside world has been told.
#[derive(Default)]
struct Witness {
    /// Ledger entries of committed log pieces. The piece of entry `n` holds the log byte `n`.
    committed: BTreeSet<u64>,
    merged: u64,
    floors: u64,
    fenced: u64,
    removed: u64,
    readings: u64,
}

type Shared = Arc<Mutex<Witness>>;

/// One actor: its way to the store, and its luck.
#[derive(Clone)]
struct Actor {
    lineage: Lineage,
    /// The store without faults.
    memory: Arc<dyn Store>,
    random: Arc<SeededEntropy>,
    witness: Shared,
}

impl Actor {
    async fn rest(&self, from: u64, more: u64) {
        tokio::time::sleep(Duration::from_millis(from + self.random.below(more))).await;
    }

    /// Runs lives one after the other, each killed at any await.
    async fn live<F>(self, life: impl Fn(Self) -> F, lifetime: u64)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        loop {
            // Whoever drops the set kills what is in it.
            let mut task = tokio::task::JoinSet::new();
            task.spawn(life(self.clone()));
            let time = Duration::from_millis(500 + self.random.below(lifetime));
            match tokio::time::timeout(time, task.join_next()).await {
                Ok(Some(Err(join))) if join.is_panic() => {
                    std::panic::resume_unwind(join.into_panic());
                }
                Ok(Some(Ok(Err(error)))) => {
                    assert_ne!(error.kind(), ErrorKind::Damaged, "{error}");
                    assert_ne!(error.kind(), ErrorKind::Bug, "{error}");
                }
                _ => {}
            }
            drop(task);
            self.rest(0, 2_000).await;
        }
    }
}

fn opening() -> Opening {
    Opening {
        holder: Holder::default(),
        log_unit: 1,
        expected_epoch: None,
    }
}

async fn write(actor: Actor) -> Result<()> {
    let mut writer = actor.lineage.open_writer(opening()).await?;
    loop {
        actor.rest(0, 150).await;
        if writer.is_pending() {
            // Only whoever knows the fate of an entry knows what was committed.
            let entry = writer.resume().await?;
            if let Some(entry) = entry {
                actor.witness.lock().unwrap().committed.insert(entry.number);
            }
            continue;
        }
        if actor.random.below(8) == 0 {
            writer.refresh().await?;
        }
        writer.note_read_back(writer.state().head);
        let number = writer.state().head + 1;
        let start = Position(number);
        let identity = PieceIdentity {
            lineage: LINEAGE,
            branch: Branch(1),
            start,
        };
        let frames = prepare_piece(&identity, &[number as u8], &[], b"", Compression::None);
        let body = EntryBody::LogPiece(LogPiece {
            branch: Branch(1),
            start,
            end: start.plus(1),
            settled_before: None,
            settled_after: None,
            last_record: None,
            resume_at: start.plus(1),
            engine: None,
        });
        match writer.append(&body, frames.unwrap()).await {
            Ok(entry) => {
                actor.witness.lock().unwrap().committed.insert(entry.number);
            }
            Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
            Err(error) => assert_ne!(error.kind(), ErrorKind::Damaged, "{error}"),
        }
    }
}

async fn maintain(actor: Actor) -> Result<()> {
    let mut upkeep = Upkeep::new(actor.lineage.clone(), Holder::default())
        .with_limits(LIMITS)
        .with_grace(GRACE);
    loop {
        actor.rest(0, 1_500).await;
        let bounds = Bounds {
            read_bytes: 2_000,
            removals: 20,
        };
        match upkeep.turn(bounds, &NoProgress).await {
            Ok(turn) => {
                assert_eq!(turn.skipped, 0, "a piece could not be merged");
                let mut witness = actor.witness.lock().unwrap();
                witness.merged += turn.pieces;
                witness.floors += u64::from(turn.floor.is_some());
                witness.removed += turn.removed;
            }
            Err(error) if error.kind() == ErrorKind::Fenced => {
                actor.witness.lock().unwrap().fenced += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a state names is there for as long as a reading may take.
async fn check_objects(actor: &Actor, state: &LineageState) {
    for piece in &state.pieces {
        let read = read_back(&actor.memory, actor.lineage.keys(), LINEAGE, piece).await;
        read.unwrap_or_else(|error| panic!("a piece that is named is not there: {error}"));
    }
}

/// Each committed log byte stands in one piece.
fn check_reading(state: &LineageState, before: &BTreeSet<u64>) {
    let mut held = BTreeSet::new();
    for piece in &state.pieces {
        for at in piece.start.0..piece.end.0 {
            assert!(held.insert(at), "log byte {at} is held twice");
        }
        let entries = (piece.merged).map_or(1, |m| m.last_entry - m.first_entry + 1);
        assert_eq!(entries, piece.end.since(piece.start), "{piece:?}");
    }
    for entry in before {
        assert!(
            held.contains(entry),
            "entry {entry} was committed and is not seen"
        );
    }
}

async fn read(actor: Actor) -> Result<()> {
    let mut reader = None;
    loop {
        actor.rest(0, 1_000).await;
        let before = actor.witness.lock().unwrap().committed.clone();
        match &mut reader {
            None => reader = Some(actor.lineage.reader().await?),
            Some(reader) => reader.refresh().await?,
        }
        let reader = reader.as_ref().expect("it was read");
        check_reading(reader.state(), &before);
        actor.witness.lock().unwrap().readings += 1;
        // A restore that began now and lasts.
        let state = reader.state().clone();
        tokio::time::sleep(Duration::from_millis(actor.random.below(READ_MS_MAX))).await;
        check_objects(&actor, &state).await;
        if actor.random.below(3) == 0 {
            return Ok(());
        }
    }
}

fn lineage(store: Arc<dyn Store>, seed: u64, clock: Arc<dyn Clock>) -> Lineage {
    let keys = DataKeys::new(DataKey::random(&SeededEntropy::new(7)));
    let patience = Patience {
        attempts: 3,
        pause: Duration::from_millis(50),
    };
    let entropy = Arc::new(SeededEntropy::new(seed ^ 0xABCD));
    Lineage::new(LINEAGE, store, keys, clock, entropy)
        .with_patience(patience)
        .with_shape(SHAPE)
}

#[allow(clippy::disallowed_methods)] // the time of the simulation
async fn run(seed: u64, without: Option<Rule>) -> Witness {
    let witness = Shared::default();
    let clock: Arc<dyn Clock> = Arc::new(Paced(tokio::time::Instant::now()));
    let memory = Arc::new(MemoryStore::new(clock.clone()));
    let actor = |n: u64| {
        let seed = seed.wrapping_mul(1_000).wrapping_add(n);
        // Much happens while a slow reader reads.
        let stalls = if n == 2 { 60 } else { FAULTS.stalls };
        let faults = Faults { stalls, ..FAULTS };
        let store = Arc::new(FaultStore::new(memory.clone(), faults, seed));
        // The writers' rules are left out in the simulation of the ledger.
        let without = without.filter(|_| n > 1);
        Actor {
            // The clocks of maintainers are wrong by days, in both directions.
            lineage: lineage(
                store,
                seed,
                if n == 3 {
                    Arc::new(Wrong(clock.clone()))
                } else {
                    clock.clone()
                },
            )
            .without(without),
            memory: memory.clone(),
            random: Arc::new(SeededEntropy::new(seed.wrapping_mul(31))),
            witness: witness.clone(),
        }
    };
    let tasks = [
        tokio::spawn(actor(1).live(write, 60_000)),
        tokio::spawn(actor(2).live(read, 30_000)),
        tokio::spawn(actor(3).live(maintain, 60_000)),
        tokio::spawn(actor(4).live(maintain, 30_000)),
        tokio::spawn(actor(5).live(read, 30_000)),
    ];
    tokio::time::sleep(RUN).await;
    for task in tasks {
        if task.is_finished() {
            task.await.expect("a task of the simulation failed");
        } else {
            task.abort();
        }
    }
    let clean = lineage(memory.clone(), seed, clock.clone());
    let reader = clean.reader().await.expect("the lineage reads");
    let told = std::mem::take(&mut *witness.lock().unwrap());
    check_reading(reader.state(), &told.committed);
    let last = Actor {
        lineage: clean,
        ..actor(6)
    };
    check_objects(&last, reader.state()).await;
    give_back(&last).await;
    told
}

/// In the end room is given back: what is left below the floor its baseline names.
async fn give_back(actor: &Actor) {
    let upkeep = Upkeep::new(actor.lineage.clone(), Holder::default());
    let mut upkeep = upkeep.with_limits(LIMITS).with_grace(GRACE);
    for _ in 0..4 {
        let turn = upkeep.turn(Bounds::default(), &NoProgress).await;
        assert!(!turn.expect("the store has no faults").more);
        tokio::time::sleep(GRACE).await;
    }
    let reader = actor.lineage.reader().await.expect("the lineage reads");
    // What was merged after the floor rose goes with the next one.
    let baseline = reader.baseline().await.expect("the baseline reads");
    let named = |entry: u64| {
        let names = |piece: &PieceSummary| piece.merged.is_none() && piece.entry == entry;
        baseline.pieces.iter().any(names)
    };
    for entry in (1..reader.lowest()).filter(|entry| !named(*entry)) {
        let left = actor.memory.stat(&layout::entry(LINEAGE, entry)).await;
        assert_eq!(
            left.expect("the store has no faults"),
            None,
            "entry {entry}"
        );
    }
    check_reading(reader.state(), &BTreeSet::new());
}

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
fn committed_log_is_seen_once_whoever_merges_and_whatever_lies_below_the_floor() {
    let asked = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let seeds = asked("BOREALIS_SEEDS").unwrap_or(SEEDS);
    let first = asked("BOREALIS_FIRST_SEED").unwrap_or(0);
    let mut total = Witness::default();
    for seed in first..first + seeds {
        match simulate(seed, None) {
            Ok(witness) => {
                total.merged += witness.merged;
                total.floors += witness.floors;
                total.fenced += witness.fenced;
                total.removed += witness.removed;
                total.readings += witness.readings;
            }
            Err(panic) => {
                eprintln!("seed {seed} failed");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!(
        "{seeds} seeds: {} pieces merged, {} floors, {} maintainers fenced, {} entries removed, {} readings",
        total.merged, total.floors, total.fenced, total.removed, total.readings
    );
    if seeds < SEEDS {
        return; // a few seeds that somebody asked for may be quiet ones
    }
    // A simulation in which nothing happens proves nothing.
    assert!(total.merged > seeds * 10 && total.floors > seeds && total.fenced > seeds / 4);
    assert!(total.removed > seeds * 2 && total.readings > seeds * 8);
}

/// A rule left out must show within this many seeds, or the simulation is too tame to prove it.
fn shows(rule: Rule) {
    let found = (0..MUTANT_SEEDS).find(|seed| simulate(*seed, Some(rule)).is_err());
    eprintln!("without {rule:?}: seed {found:?}");
    assert!(found.is_some(), "{MUTANT_SEEDS} seeds do not miss {rule:?}");
}

#[test]
fn a_floor_without_its_baseline_shows() {
    shows(Rule::Baseline);
}

#[test]
fn a_maintainer_that_publishes_under_an_old_epoch_shows() {
    shows(Rule::Fence);
}

#[test]
fn removing_without_waiting_shows() {
    shows(Rule::Grace);
}

#[test]
fn removing_by_the_local_clock_shows() {
    shows(Rule::StoreClock);
}

#[test]
fn removing_what_the_baseline_names_shows() {
    shows(Rule::NamedByBaseline);
}
