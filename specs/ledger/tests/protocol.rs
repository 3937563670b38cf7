//! The protocol keeps its invariants; without any one of its rules it does not.

use borealis_ledger_model::{Config, Mutant, Violation, explore};

const SMALL: Config = Config {
    writers: 2,
    starts: 2,
    slots: 3,
    late: 1,
    lost_replies: true,
    deleter: true,
    readings: 0,
    mutant: None,
};

fn holds(config: &Config, states_at_least: usize) {
    let report = explore(config);
    for (violation, trace) in &report.broken {
        println!("{violation:?}:\n{trace}");
    }
    assert!(report.broken.is_empty(), "{:?}", report.broken.keys());
    // A search that visits few states proves little: a rule that switches itself off shows here.
    assert!(report.states >= states_at_least, "{} states", report.states);
    println!(
        "{config:?}: {} states, depth {}",
        report.states, report.depth
    );
}

#[test]
fn two_writers_and_a_deleter() {
    holds(&SMALL, 50_000);
}

#[test]
fn three_starts_of_two_writers() {
    holds(&Config { starts: 3, ..SMALL }, 1_000_000);
}

#[test]
fn three_writers_with_prompt_creates() {
    holds(
        &Config {
            writers: 3,
            starts: 3,
            late: 0,
            ..SMALL
        },
        100_000,
    );
}

#[test]
fn a_reader_beside_two_writers_and_a_deleter() {
    holds(
        &Config {
            readings: 1,
            ..SMALL
        },
        1_000_000,
    );
}

/// The search must find each of `expected` when the rule is left out.
fn breaks(mutant: Mutant, config: Config, expected: &[Violation]) {
    let report = explore(&Config {
        mutant: Some(mutant),
        ..config
    });
    for (violation, trace) in &report.broken {
        println!("{mutant:?} breaks {violation:?}:\n{trace}");
    }
    for violation in expected {
        assert!(
            report.broken.contains_key(violation),
            "{mutant:?} does not break {violation:?}, only {:?}",
            report.broken.keys()
        );
    }
}

#[test]
fn without_the_probe_a_zombie_commits_into_a_removed_slot() {
    use Violation::{CommittedAfterTakeover, CommittedHidden};
    breaks(
        Mutant::NoProbe,
        SMALL,
        &[CommittedHidden, CommittedAfterTakeover],
    );
}

#[test]
fn a_probe_before_the_create_is_no_probe() {
    use Violation::{CommittedAfterTakeover, CommittedHidden};
    breaks(
        Mutant::ProbeBeforeCreate,
        SMALL,
        &[CommittedHidden, CommittedAfterTakeover],
    );
}

#[test]
fn without_the_fence_an_older_entry_lands_under_an_open_writer() {
    breaks(Mutant::NoFence, SMALL, &[Violation::LedgerMovedUnderWriter]);
}

#[test]
fn entries_removed_before_the_floor_rises_are_lost() {
    breaks(
        Mutant::RemoveBeforeFloor,
        SMALL,
        &[Violation::CommittedEntryLost],
    );
}

#[test]
fn exists_without_a_write_id_shares_an_epoch_and_commits_nothing() {
    breaks(
        Mutant::ExistsIsOwn,
        SMALL,
        &[Violation::EpochShared, Violation::CommittedHidden],
    );
}

#[test]
fn taking_ones_own_lost_reply_for_a_rival_is_only_unavailable() {
    let report = explore(&Config {
        mutant: Some(Mutant::ExistsIsRival),
        ..SMALL
    });
    assert!(report.broken.is_empty(), "{:?}", report.broken.keys());
}

#[test]
fn a_reused_epoch_lets_the_former_incarnation_commit() {
    let report = explore(&Config {
        mutant: Some(Mutant::ReuseEpoch),
        ..SMALL
    });
    assert!(
        report.broken.contains_key(&Violation::CommittedHidden),
        "{:?}",
        report.broken.keys()
    );
}

#[test]
fn without_a_second_look_at_the_floor_a_reader_misses_entries() {
    let config = Config {
        readings: 1,
        ..SMALL
    };
    breaks(
        Mutant::NoFloorRecheck,
        config,
        &[Violation::ReaderMissedCommitted],
    );
}

#[test]
fn a_fence_below_a_floor_that_rose_meanwhile_commits_nothing() {
    let config = Config { starts: 3, ..SMALL };
    breaks(
        Mutant::NoFloorProbeAtFence,
        config,
        &[Violation::CommittedHidden],
    );
}

#[test]
fn going_on_past_an_entry_of_a_newer_epoch_breaks_the_order_of_epochs() {
    breaks(
        Mutant::GoesOnPastNewerEpoch,
        SMALL,
        &[Violation::ChainBroken],
    );
}
