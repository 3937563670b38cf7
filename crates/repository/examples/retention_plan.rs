//! Plans retention over a simulated busy cluster, and a restore over a large one; prints times and the peak memory.
//!
//! `cargo run --release -p borealis-repository --example retention_plan [DAYS] [SECONDS PER PIECE]`

#[path = "../tests/retention/history.rs"]
mod history;

use borealis_base::{Branch, Clock, SystemClock, Timestamp};
use borealis_repository::plan::plan_to;
use borealis_repository::retention::{
    Days, PackUse, Policy, Terms, forecast, plan, snapshot_bytes,
};
use history::{Busy, DAY, HOUR, LINEAGE, SECOND, object};

/// Packs of a tebibyte, 32 MiB each, and those that each base backup replaces.
const PACKS: u64 = 32_768;
const REPLACED: u64 = 4;

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("VmHWM: unknown")
        .split_whitespace()
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ")
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse::<i64>().ok());
    let days = arguments.next().unwrap_or(35);
    let seconds = arguments.next().unwrap_or(1);
    let clock = SystemClock;
    let mut began = clock.elapsed();
    let mut lap = |what: &str| {
        let now = clock.elapsed();
        println!(
            "{what}: {:.2} s; peak memory {}",
            now.saturating_sub(began).as_secs_f64(),
            peak_memory()
        );
        began = clock.elapsed();
    };
    let busy = Busy {
        piece_every: seconds * SECOND,
        snapshot_every: 12 * HOUR,
        failover_every: 9 * DAY,
        ..Busy::quiet(days)
    };
    let history = busy.simulate();
    let state = &history.state;
    println!(
        "{} pieces, {} base backups, {} snapshots",
        state.pieces.len(),
        state.base_backups.len(),
        state.pins.len()
    );
    lap("simulated");
    let policy = Policy {
        retention: Days::new(7).expect("within bounds"),
        ..Policy::default()
    };
    let terms = Terms::of(policy);
    let now = Timestamp(days * DAY);
    let made = plan(state, &terms, now);
    lap("retention plan");
    println!("{} kept, {} removed", made.kept.len(), made.removed.len());
    let ahead = forecast(state, &terms, now);
    lap("forecast of 30 days");
    println!(
        "{} bytes of log go",
        ahead.iter().map(|day| day.log_bytes).sum::<u64>()
    );
    let last = state
        .pieces
        .last()
        .and_then(|piece| piece.last_record)
        .expect("the last piece has a record");
    let branch = state.pieces.last().map_or(Branch(1), |piece| piece.branch);
    let restore = plan_to(state, branch, last).expect("the latest record can be restored");
    lap("restore plan");
    println!("{} pieces", restore.pieces.len());
    let mut packs = PackUse::default();
    for (number, base) in (0_u64..).zip(&state.base_backups) {
        let first = number * REPLACED;
        packs.add_objects(LINEAGE, base.entry, (first..first + PACKS).map(object));
    }
    lap("packs of a tebibyte, of each base backup");
    let none = std::collections::BTreeSet::new();
    let share = state
        .pins
        .first()
        .map(|pin| snapshot_bytes(&made, &packs, &pin.name, &none));
    lap("bytes of one snapshot");
    println!("{} objects known, {share:?}", packs.objects());
}
