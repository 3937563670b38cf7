//! Searches the protocol within larger bounds than the tests do, and prints what it finds:
//! `cargo run --release -p borealis-ledger-model --example explore -- WRITERS STARTS SLOTS LATE READINGS`

use borealis_ledger_model::{Config, explore};

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse::<u8>().ok());
    let mut next = |default| numbers.next().unwrap_or(default);
    let config = Config {
        writers: usize::from(next(2)),
        starts: next(3),
        slots: next(4),
        late: usize::from(next(1)),
        readings: next(0),
        lost_replies: true,
        deleter: true,
        mutant: None,
    };
    let report = explore(&config);
    println!(
        "{config:?}: {} states, depth {}",
        report.states, report.depth
    );
    for (violation, trace) in &report.broken {
        println!("{violation:?}:\n{trace}");
    }
}
