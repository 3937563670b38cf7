//! Expiry and deletion keep their invariants; without any one of the rules they do not.

use std::collections::BTreeSet;

use borealis_ledger_model::expiry::{
    Bounds, Mutant, Order, Report, Target, Violation, explore, find,
};

const ORDERS: [Order; 2] = [Order::GraceThenCheck, Order::CheckThenGrace];

/// Two maintainers, two base backups that share a pack, one snapshot that somebody creates.
const SNAPSHOT: Bounds = Bounds {
    backups: 2,
    logs: false,
    targets: &[Target::Early(0), Target::Early(1)],
    standing: 0,
    creators: 1,
    opens: 2,
    marks: 2,
    readings: 0,
    writer: false,
    partial: false,
    late: false,
    window_grows: false,
    order: Order::GraceThenCheck,
    mutant: None,
};
const RESTORE: Bounds = Bounds {
    readings: 1,
    creators: 0,
    marks: 1,
    ..SNAPSHOT
};
const WRITER: Bounds = Bounds {
    writer: true,
    creators: 0,
    ..SNAPSHOT
};
const PARTIAL: Bounds = Bounds {
    backups: 1,
    partial: true,
    ..WRITER
};
const LATE: Bounds = Bounds {
    late: true,
    ..WRITER
};
/// A snapshot stands that needs a base backup alone; one is created that needs the log behind it, too.
const LOG: Bounds = Bounds {
    backups: 1,
    logs: true,
    targets: &[Target::Early(0), Target::Late(0)],
    standing: 1,
    opens: 1,
    ..SNAPSHOT
};
const CHILD: Bounds = Bounds {
    targets: &[Target::Birth(1)],
    ..SNAPSHOT
};
const WINDOW: Bounds = Bounds {
    window_grows: true,
    creators: 0,
    ..SNAPSHOT
};

fn holds(bounds: &Bounds, states_at_least: usize) {
    for order in ORDERS {
        let report = explore(&Bounds { order, ..*bounds });
        for (violation, trace) in &report.broken {
            println!("{violation:?}:\n{trace}");
        }
        assert!(report.broken.is_empty(), "{:?}", report.broken.keys());
        println!("{order:?}: {} states", report.states);
        assert!(report.states >= states_at_least, "{} states", report.states);
        // Nothing expires where a rule has switched itself off.
        assert!(report.all_gone > 0, "nothing was ever deleted");
    }
}

#[test]
fn a_restore_beside_a_snapshot_that_is_created() {
    holds(
        &Bounds {
            readings: 1,
            ..SNAPSHOT
        },
        100_000,
    );
}

#[test]
fn a_snapshot_of_what_a_writer_commits() {
    holds(
        &Bounds {
            targets: &[Target::Early(3)],
            creators: 1,
            ..WRITER
        },
        200_000,
    );
}

#[test]
fn three_base_backups_and_one_on_its_way() {
    holds(
        &Bounds {
            backups: 3,
            ..WRITER
        },
        150_000,
    );
}

#[test]
fn three_marks_and_a_restore() {
    holds(
        &Bounds {
            backups: 3,
            marks: 3,
            ..RESTORE
        },
        100_000,
    );
}

#[test]
fn a_base_backup_that_goes_on_from_a_partial_one() {
    holds(&PARTIAL, 50_000);
}

#[test]
fn a_base_backup_that_is_committed_at_any_later_time() {
    holds(
        &Bounds {
            backups: 1,
            partial: true,
            ..LATE
        },
        50_000,
    );
    holds(&LATE, 30_000);
}

#[test]
fn snapshots_that_share_a_base_backup_and_differ_in_log() {
    holds(&Bounds { creators: 2, ..LOG }, 25_000);
    holds(&Bounds { opens: 2, ..LOG }, 10_000);
    holds(
        &Bounds {
            backups: 2,
            targets: &[Target::Early(0), Target::Late(0), Target::Late(1)],
            ..LOG
        },
        20_000,
    );
}

#[test]
fn a_child_lineage() {
    holds(&CHILD, 50_000);
}

#[test]
fn a_window_that_is_made_longer() {
    holds(
        &Bounds {
            creators: 1,
            ..WINDOW
        },
        150_000,
    );
}

#[test]
fn every_kind_of_step_occurs() {
    let mut found = BTreeSet::new();
    for bounds in [SNAPSHOT, RESTORE, PARTIAL, LATE, LOG, CHILD, WINDOW] {
        let Report { steps, .. } = explore(&bounds);
        found.extend(steps.into_keys().map(|(who, what)| {
            let who = who.trim_end_matches(|c: char| c == ' ' || c.is_ascii_digit());
            format!("{who} {what}")
        }));
    }
    let expected = [
        "child begins its first base backup",
        "child begins its second base backup",
        "child commits its first base backup",
        "child commits its second base backup",
        "child drops all that it has",
        "child drops its first base backup",
        "child is killed before its first base backup",
        "creator appends",
        "creator deletes what it gave up",
        "creator is killed after it appended",
        "creator is killed before it appended",
        "creator is killed before it deleted",
        "creator looks again and acknowledges",
        "creator looks again and gives up",
        "creator sees what it needs for",
        "maintainer checks and keeps none of",
        "maintainer checks and keeps some of",
        "maintainer deletes",
        "maintainer deletes pack",
        "maintainer has deleted what it could",
        "maintainer marks",
        "maintainer misses a manifest and begins again",
        "maintainer reads and plans",
        "maintainer reads anew what is marked",
        "maintainer reads the child's ledger",
        "maintainer reads the child's maintenance",
        "maintainer reads the ledger",
        "maintainer reads the maintenance",
        "maintainer reads the manifests that are left",
        "maintainer says that it deleted",
        "maintainer takes over",
        "reader has read all it needs",
        "reader is told of",
        "time ends a grace period",
        "time takes from the window",
        "user deletes",
        "user makes the window longer",
        "user retires the lineage",
        "writer begins, taking over from",
        "writer commits",
        "writer gives up",
        "writer is killed and will begin again",
    ];
    assert_eq!(found, expected.map(String::from).into());
}

#[test]
fn an_acknowledged_snapshot_is_refused_unless_the_second_look_comes_first() {
    let creators = 1;
    let [waits_first, looks_first] = ORDERS.map(|order| {
        explore(&Bounds {
            order,
            creators,
            ..SNAPSHOT
        })
    });
    assert!(waits_first.refused > 0);
    assert_eq!(looks_first.refused, 0);
}

/// The search must find `expected` when the rule is left out, whenever the second look is taken.
fn breaks(mutant: Mutant, bounds: Bounds, expected: Violation) {
    for order in ORDERS {
        let trace = find(
            &Bounds {
                mutant: Some(mutant),
                order,
                ..bounds
            },
            expected,
        );
        let trace = trace.expect("the search notices that the rule is missing");
        println!("{mutant:?}, {order:?}, {expected:?}:\n{trace}");
        assert!(!trace.is_empty());
    }
}

#[test]
fn deleting_without_a_second_check_loses_what_was_referred_to_meanwhile() {
    breaks(Mutant::NoSecondCheck, SNAPSHOT, Violation::ReferenceLost);
}

#[test]
fn a_second_check_with_old_references_is_none() {
    breaks(Mutant::OldReferences, SNAPSHOT, Violation::ReferenceLost);
}

#[test]
fn a_creator_that_does_not_look_again_acknowledges_what_was_marked() {
    breaks(Mutant::NoSecondLook, SNAPSHOT, Violation::ReferenceLost);
}

#[test]
fn a_creator_that_asks_whether_it_is_hidden_acknowledges_what_was_deleted() {
    breaks(
        Mutant::AsksWhetherHidden,
        SNAPSHOT,
        Violation::ReferenceLost,
    );
}

#[test]
fn a_superseded_maintainer_that_checks_drops_what_its_successor_kept() {
    breaks(Mutant::NoFence, SNAPSHOT, Violation::ReferenceLost);
}

#[test]
fn without_grace_a_reader_misses_what_it_was_told_of() {
    breaks(Mutant::NoGrace, RESTORE, Violation::ReaderMissed);
}

#[test]
fn without_grace_a_base_backup_on_its_way_takes_over_what_is_deleted() {
    breaks(Mutant::NoGrace, WRITER, Violation::ItemLost);
}

#[test]
fn taking_over_from_what_is_marked_takes_over_what_is_deleted() {
    breaks(Mutant::InheritsFromMarked, WRITER, Violation::ItemLost);
}

#[test]
fn packs_deleted_without_reading_the_manifests_left_are_missed() {
    breaks(Mutant::IgnoresManifests, SNAPSHOT, Violation::ItemLost);
}

#[test]
fn keeping_by_an_entry_of_its_own_comes_too_late() {
    breaks(Mutant::KeptLater, SNAPSHOT, Violation::ItemLost);
    breaks(Mutant::KeptLater, SNAPSHOT, Violation::ReferenceLost);
}

#[test]
fn two_marks_that_take_each_other_for_gone_lose_a_snapshot_that_needs_both() {
    breaks(Mutant::OtherMarksAreGone, LOG, Violation::ReferenceLost);
}

#[test]
fn it_is_enough_that_either_plan_counts_on_what_other_marks_hide() {
    for mutant in [Mutant::PlanForgetsMarks, Mutant::CheckForgetsMarks] {
        let mutant = Some(mutant);
        holds(&Bounds { mutant, ..LOG }, 2_000);
        let two = Bounds {
            backups: 2,
            marks: 3,
            mutant,
            ..LOG
        };
        holds(&two, 10_000);
    }
}

#[test]
fn a_missing_manifest_taken_for_an_empty_one_loses_packs_of_its_successor() {
    breaks(Mutant::MissingManifestIsEmpty, CHILD, Violation::ItemLost);
    breaks(Mutant::MissingManifestIsEmpty, PARTIAL, Violation::ItemLost);
}

#[test]
fn reading_children_first_misses_one_that_is_born_meanwhile() {
    breaks(Mutant::ChildrenFirst, CHILD, Violation::ItemLost);
}

#[test]
fn reading_the_ledger_first_misses_what_took_over_meanwhile() {
    breaks(Mutant::LedgerFirst, WRITER, Violation::ItemLost);
    breaks(Mutant::LedgerFirst, CHILD, Violation::ItemLost);
}

#[test]
fn a_partial_base_backup_that_does_not_count_loses_what_it_took_over() {
    breaks(Mutant::IgnoresPartial, PARTIAL, Violation::ItemLost);
}

#[test]
fn a_manifest_deleted_before_its_packs_leaves_them_for_ever() {
    breaks(Mutant::ManifestFirst, SNAPSHOT, Violation::NeverGone);
}

#[test]
fn a_manifest_deleted_while_a_child_needs_its_packs_leaves_them_for_ever() {
    breaks(Mutant::ManifestDespiteChild, CHILD, Violation::NeverGone);
}

#[test]
fn a_child_that_deletes_what_it_took_over_takes_it_from_its_parent() {
    breaks(Mutant::ChildDeletesTaken, CHILD, Violation::ItemLost);
}

#[test]
fn an_open_lineage_whose_newest_base_backup_goes_takes_over_what_is_deleted() {
    breaks(Mutant::MarksNewestOfOpen, LATE, Violation::ItemLost);
}
