//! Ledger and maintenance together keep their invariants; without any one of the rules they do not.

use borealis_ledger_model::maintenance::{Mutant, Violation, explore};

#[test]
fn two_maintainers_a_reader_and_a_remover() {
    let (states, broken) = explore(None, 2);
    assert!(broken.is_empty(), "{broken:?}");
    println!("{states} states");
    assert!(states > 100_000, "{states} states");
}

fn breaks(mutant: Mutant, violation: Violation) {
    let (states, broken) = explore(Some(mutant), 1);
    println!("{mutant:?}: {states} states, {broken:?}");
    assert!(broken.contains_key(&violation), "{broken:?}");
}

#[test]
fn reading_the_ledger_first_contradicts_the_maintenance() {
    breaks(Mutant::LedgerFirst, Violation::Inconsistent);
}

#[test]
fn dropping_what_speaks_of_entries_above_the_floor_loses_a_merge() {
    breaks(Mutant::DropsReferences, Violation::Inconsistent);
}

#[test]
fn a_floor_without_baseline_hides_what_lies_below() {
    breaks(Mutant::NoBaseline, Violation::Missed);
}

#[test]
fn a_reader_that_does_not_look_again_misses_what_was_removed() {
    breaks(Mutant::NoSecondLook, Violation::Missed);
}

#[test]
fn removing_at_once_removes_what_is_used() {
    breaks(Mutant::NoGrace, Violation::RemovedWhileUsed);
}

#[test]
fn removing_what_is_named_loses_it() {
    breaks(Mutant::IgnoresNames, Violation::RemovedWhileNamed);
}

#[test]
fn a_superseded_maintainer_that_appends_contradicts_its_successor() {
    breaks(Mutant::NoFence, Violation::Inconsistent);
}
