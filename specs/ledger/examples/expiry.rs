//! Searches expiry and deletion within larger bounds than the tests do, and prints what it finds:
//! `cargo run --release -p borealis-ledger-model --example expiry`

use borealis_ledger_model::expiry::{Bounds, Order, Target, explore};

const ALL: Bounds = Bounds {
    backups: 2,
    logs: false,
    targets: &[Target::Early(0), Target::Early(3)],
    standing: 0,
    creators: 1,
    opens: 2,
    marks: 2,
    readings: 1,
    writer: true,
    partial: false,
    late: false,
    window_grows: false,
    order: Order::GraceThenCheck,
    mutant: None,
};

fn main() {
    let log = Bounds {
        logs: true,
        targets: &[Target::Early(0), Target::Late(0), Target::Late(1)],
        standing: 1,
        readings: 0,
        writer: false,
        ..ALL
    };
    let late = Bounds {
        partial: true,
        late: true,
        creators: 0,
        ..ALL
    };
    let child = Bounds {
        targets: &[Target::Birth(0), Target::Birth(1)],
        creators: 1,
        readings: 0,
        ..ALL
    };
    let searches = [
        ("writer, restore, snapshot", ALL),
        ("log, snapshots", log),
        ("late writer, partial, restore", late),
        ("child, writer", child),
    ];
    for (name, bounds) in searches {
        for order in [Order::GraceThenCheck, Order::CheckThenGrace] {
            let report = explore(&Bounds { order, ..bounds });
            println!("{name}, {order:?}: {} states", report.states);
            for (violation, trace) in &report.broken {
                println!("{violation:?}:\n{trace}");
            }
        }
    }
}
