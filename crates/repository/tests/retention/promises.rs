//! One hazard each.

use std::collections::BTreeSet;
use std::time::Duration;

use borealis_base::{Branch, LineageId, ObjectId, Position, Timestamp};
use borealis_repository::catalog::{Cluster, LineageRecord};
use borealis_repository::plan::{LineageState, ObjectRef, what_a_pin_needs, windows_with};
use borealis_repository::retention::{
    Child, Days, ForecastDay, Hold, HoldRange, Object, PackUse, Policy, Promise, RetentionPlan,
    Standing, Terms, forecast, plan, snapshot_bytes, standing,
};

use super::history::{Busy, DAY, HOUR, History, LINEAGE, MINUTE, SECOND, object, resolve_in, span};

fn terms(days: u32) -> Terms {
    Terms::of(Policy {
        retention: Days::new(days).unwrap(),
        ..Policy::default()
    })
}

fn planned(history: &History, terms: &Terms, now: i64) -> RetentionPlan {
    plan(&history.state, terms, Timestamp(now))
}

fn ended(ago_days: u64, replaced: bool, days: u32) -> Terms {
    Terms {
        standing: Standing::Ended {
            ago: Duration::from_secs(ago_days * 86_400),
            replaced,
        },
        ..terms(days)
    }
}

/// The first and the last moment of the newest window that is left, its time maps known.
fn window(history: &History, left: &LineageState) -> (i64, i64) {
    let windows = windows_with(left, &history.steps);
    let newest = windows.iter().max_by_key(|window| window.last_entry);
    let newest = newest.expect("something can be restored");
    (
        newest.earliest.time.expect("settled").0,
        newest.latest.time.expect("settled").0,
    )
}

/// The plan, and the window that it leaves.
fn left(history: &History, terms: &Terms, now: i64) -> (RetentionPlan, (i64, i64)) {
    let plan = planned(history, terms, now);
    let state = plan.remaining(&history.state);
    let window = window(history, &state);
    (plan, window)
}

/// Pieces of an hour, base backups where they are asked for.
fn hourly(hours: i64, bases: &[i64]) -> History {
    let mut history = History::new();
    for hour in 0..hours {
        let at = u64::try_from(hour).unwrap() * 1_000 + 1_000;
        let (before, record) = (span(at - 200, at - 100), span(at + 800, at + 900));
        let mut steps = vec![((hour + 1) * HOUR, record.start.0, record.end.0)];
        if hour > 0 {
            steps.insert(0, (hour * HOUR + HOUR / 2, before.start.0, before.end.0));
        }
        history.piece((hour + 1) * HOUR, 1, (at, at + 1_000), Some(record), &steps);
        if bases.contains(&hour) {
            history.base((hour + 1) * HOUR, 1, at + 100, at + 200);
        }
    }
    history
}

#[test]
fn two_quick_base_backups_do_not_shorten_the_window() {
    let mut history = hourly(48, &[0, 12, 24, 36]);
    let end = 49_000;
    history.piece(
        48 * HOUR + 1,
        1,
        (end, end + 10),
        Some(span(end, end + 9)),
        &[],
    );
    for quick in 0..5 {
        history.base(48 * HOUR + 2 + quick, 1, end, end + 1);
    }
    let (_, (earliest, latest)) = left(&history, &terms(1), 48 * HOUR);
    assert!(earliest <= 24 * HOUR, "{} h", earliest / HOUR);
    assert_eq!(latest, 48 * HOUR);
}

#[test]
fn one_older_base_backup_stays_to_cover_the_first_day() {
    let history = hourly(72, &[0, 20, 60]);
    let (plan, (earliest, _)) = left(&history, &terms(1), 72 * HOUR);
    let ends: Vec<u64> = (history.state.base_backups.iter())
        .filter(|base| plan.keeps_base_backup(base.entry))
        .map(|base| base.end.0)
        .collect();
    // That of hour 20 covers the seconds from hour 48 on; the one before is of no use to any promise.
    assert_eq!(ends, [21_200, 61_200]);
    assert!(earliest <= 48 * HOUR);
    let log = plan.kept.iter().find_map(|kept| match kept.object {
        Object::Log { from, .. } => Some(from),
        _ => None,
    });
    assert_eq!(log, Some(Position(21_000)), "log is kept from its start on");
}

#[test]
fn there_is_always_one_state_to_restore() {
    let history = hourly(30, &[2, 4]);
    // A year has passed by every clock, and nobody protects it any more.
    let (plan, (_, latest)) = left(&history, &ended(365, false, 1), 30 * HOUR + 365 * DAY);
    assert_eq!(plan.base_backups().len(), 1, "{plan}");
    assert_eq!(latest, 30 * HOUR);
    assert!(
        plan.kept
            .iter()
            .any(|kept| kept.promises == [Promise::Latest])
    );
    // Nobody has stored anything for a year, though it is still to be protected: the window waits.
    let (_, (earliest, _)) = left(&history, &terms(1), 30 * HOUR + 365 * DAY);
    assert!(earliest <= 6 * HOUR);
}

#[test]
fn plans_for_little_or_nothing_remove_nothing_that_is_young() {
    let nothing = planned(&History::new(), &terms(1), 0);
    assert_eq!((nothing.kept.len(), nothing.removed.len()), (0, 0));
    // Log without a base backup, and an unfinished one: the first base backup is on its way.
    let mut history = hourly(100, &[]);
    history.partial(100 * HOUR, 1, 2_000);
    let plan = planned(&history, &terms(1), 100 * HOUR);
    assert!(plan.removed.is_empty(), "{plan}");
    assert!(
        plan.kept
            .iter()
            .all(|kept| kept.promises == [Promise::Young])
    );
    // Behind a gap the same holds beside the old window.
    let mut history = hourly(100, &[1]);
    history.gap(1, 101_000, 102_000);
    let record = span(102_500, 102_600);
    history.piece(101 * HOUR, 1, (102_000, 103_000), Some(record), &[]);
    let plan = planned(&history, &terms(1), 101 * HOUR);
    let young =
        |kept: &&borealis_repository::retention::Kept| kept.promises.contains(&Promise::Young);
    assert_eq!(plan.kept.iter().filter(young).count(), 1, "{plan}");
}

#[test]
fn a_snapshot_keeps_its_own_log_when_the_window_has_passed() {
    let mut history = hourly(96, &[0, 10, 40, 80]);
    // Of 15 h: in the middle of the log between two base backups.
    history.pin("before-upgrade", 1, span(15_800, 15_900));
    let pin = history.state.pins[0].clone();
    let needs = what_a_pin_needs(&history.state, &pin);
    let plan = planned(&history, &terms(1), 96 * HOUR);
    let left = plan.remaining(&history.state);
    assert_eq!(what_a_pin_needs(&left, &pin), needs);
    assert!(left.pieces.len() < history.state.pieces.len());
    // Deleted, it holds nothing any more.
    history.state.pins.clear();
    let without = planned(&history, &terms(1), 96 * HOUR);
    assert!(without.base_backups().len() < plan.base_backups().len());
}

#[test]
fn a_hold_keeps_what_it_is_on_until_it_ends() {
    let history = hourly(200, &[0, 30, 60, 90, 120, 150, 180]);
    let mut terms = terms(1);
    let hold = Hold {
        number: 1,
        name: "case-17".to_owned(),
        reason: "litigation".to_owned(),
        range: HoldRange::Moments(Timestamp(40 * HOUR), Timestamp(50 * HOUR)),
        until: Some(Timestamp(199 * HOUR)),
        created_at: Timestamp(0),
    };
    terms.holds.push(hold.clone());
    let resolvable = |terms: &Terms, hour: i64, now: i64| {
        let left = planned(&history, terms, now).remaining(&history.state);
        resolve_in(&left, &history.steps, hour * HOUR).is_ok()
    };
    assert!((40..=50).all(|hour| resolvable(&terms, hour, 199 * HOUR)));
    assert!(!resolvable(&terms, 20, 199 * HOUR));
    assert!(!resolvable(&terms, 45, 200 * HOUR), "it has ended");
    terms.holds[0].range = HoldRange::Everything;
    terms.holds[0].until = None;
    let plan = planned(&history, &terms, 200 * HOUR);
    let first = history.state.base_backups[0].entry;
    assert!(plan.keeps_base_backup(first), "{plan}");
    // A planner whose clock is years ahead ends no hold of a lineage that grows.
    terms.holds[0].until = Some(Timestamp(300 * HOUR));
    assert!(planned(&history, &terms, 100 * 365 * DAY).keeps_base_backup(first));
}

#[test]
fn a_step_of_the_planners_clock_removes_nothing() {
    let history = hourly(96, &[0, 20, 40, 60, 80]);
    let right = planned(&history, &terms(2), 96 * HOUR);
    for now in [i64::MIN, 0, 1_000 * 365 * DAY, i64::MAX] {
        let plan = planned(&history, &terms(2), now);
        let bases = history.state.base_backups.iter().map(|base| base.entry);
        for entry in bases.filter(|entry| right.keeps_base_backup(*entry)) {
            assert!(plan.keeps_base_backup(entry), "at {now}");
        }
        let pieces = history.state.pieces.iter().map(|piece| piece.entry);
        for entry in pieces.filter(|entry| right.keeps_piece(*entry)) {
            assert!(plan.keeps_piece(entry), "at {now}");
        }
    }
}

/// One machine that runs everything wakes up ten years ahead for an entry.
#[test]
fn a_server_clock_in_the_future_expires_nothing_at_once() {
    let mut history = hourly(48, &[0, 20, 40]);
    let future = 10 * 365 * DAY;
    let record = span(49_800, 49_900);
    history.piece(
        future,
        1,
        (49_000, 50_000),
        Some(record),
        &[(future, 49_800, 49_900)],
    );
    for now in [48 * HOUR, future] {
        let (_, (earliest, _)) = left(&history, &terms(1), now);
        assert!(earliest <= 25 * HOUR, "at {now}: {} h", earliest / HOUR);
    }
}

#[test]
fn a_server_clock_that_stands_still_or_is_slow_keeps_days_of_both_clocks() {
    // The server's clock is a year behind the writer's.
    let mut history = hourly(72, &[0, 20, 40, 60]);
    let year = 365 * DAY;
    for piece in &mut history.state.pieces {
        piece.recorded_at = piece.recorded_at.plus_micros(year);
    }
    for base in &mut history.state.base_backups {
        base.recorded_at = base.recorded_at.plus_micros(year);
    }
    let (plan, (earliest, latest)) = left(&history, &terms(1), 72 * HOUR + year);
    assert!(earliest <= 48 * HOUR && latest == 72 * HOUR);
    assert!(
        !plan.removed.is_empty(),
        "what is older by both clocks goes"
    );
    // The writer's clock stands still: entries look as if they were made at once.
    for piece in &mut history.state.pieces {
        piece.recorded_at = Timestamp(0);
    }
    for base in &mut history.state.base_backups {
        base.recorded_at = Timestamp(0);
    }
    assert!(planned(&history, &terms(1), 72 * HOUR).removed.is_empty());
}

#[test]
fn both_sides_of_a_gap_and_the_parents_of_a_branch_are_kept() {
    let history = Busy {
        failover_every: 7 * HOUR,
        gap_every: 11 * HOUR,
        base_every: HOUR,
        ..Busy::quiet(3)
    }
    .simulate();
    let now = 3 * DAY;
    let plan = planned(&history, &terms(1), now);
    let left = plan.remaining(&history.state);
    assert!(plan.removed.len() > 10, "{plan}");
    let mut compared = 0;
    for moment in (2 * DAY..=now).step_by(67 * SECOND as usize) {
        if let Ok(before) = history.resolve(moment) {
            let after = resolve_in(&left, &history.steps, moment).unwrap();
            assert_eq!(before.last_record, after.last_record);
            compared += 1;
        }
    }
    assert!(compared > 1_000, "{compared}");
}

#[test]
fn a_lineage_keeps_what_a_child_was_born_of_until_that_has_a_base_backup() {
    let history = hourly(96, &[0, 20, 40, 60, 80]);
    let child = Child {
        lineage: LineageId([7; 16]),
        branch: Branch(1),
        at: Position(25_000),
    };
    let mut terms = ended(400, true, 1);
    terms.children.push(child);
    let plan = planned(&history, &terms, 500 * DAY);
    assert_eq!(plan.base_backups().len(), 1, "{plan}");
    let log = plan.kept.iter().find_map(|kept| match kept.object {
        Object::Log { from, to, .. } => Some((from.0, to.0)),
        _ => None,
    });
    assert_eq!(log, Some((21_000, 25_000)));
    terms.children.clear();
    assert!(planned(&history, &terms, 500 * DAY).kept.is_empty());
}

fn cluster(ends: &[i64], retired_at: Option<i64>) -> Cluster {
    let record = |(number, at): (usize, &i64)| LineageRecord {
        lineage: LineageId([number as u8 + 1; 16]),
        parent: None,
        added_at: Timestamp(*at),
    };
    Cluster {
        lineages: ends.iter().enumerate().map(record).collect(),
        retired_at: retired_at.map(Timestamp),
        ..Cluster::new("sales", LINEAGE, Timestamp(0))
    }
}

#[test]
fn an_old_lineage_stays_until_a_newer_one_has_shown_that_its_days_have_passed() {
    let cluster = cluster(&[0, 100 * HOUR], None);
    let old = hourly(100, &[0, 50]);
    let tell = |newer: &History, now: i64| {
        let newer = [newer.state.clone()];
        standing(&cluster, LINEAGE, &old.state, &newer, Timestamp(now))
    };
    let ago = |standing| match standing {
        Standing::Ended { ago, replaced } => (ago.as_secs() / 3_600, replaced),
        Standing::Growing => panic!("it has ended"),
    };
    // A clock alone shows nothing, and without a base backup of its own nothing is replaced.
    assert_eq!(ago(tell(&hourly(1, &[]), 1_000 * DAY)), (0, false));
    assert_eq!(ago(tell(&hourly(11, &[]), 1_000 * DAY)), (10, false));
    assert_eq!(ago(tell(&hourly(11, &[2]), 1_000 * DAY)), (10, true));
    assert_eq!(ago(tell(&hourly(11, &[2]), 105 * HOUR)), (5, true));
}

#[test]
fn a_cluster_that_was_retired_keeps_its_window_for_its_days_and_snapshots_for_ever() {
    let mut history = hourly(50, &[0, 30]);
    history.pin("last", 1, span(40_800, 40_900));
    let tell = |now| {
        standing(
            &cluster(&[0], Some(50 * HOUR)),
            LINEAGE,
            &history.state,
            &[],
            Timestamp(now),
        )
    };
    let at = |now| {
        let terms = Terms {
            standing: tell(now),
            ..terms(1)
        };
        planned(&history, &terms, now)
    };
    assert!(at(50 * HOUR + DAY - 1).kept.iter().any(|kept| {
        kept.promises.contains(&Promise::Window {
            days: Days::new(1).unwrap(),
        })
    }));
    let after = at(50 * HOUR + DAY);
    assert!(
        after.kept.iter().all(|kept| kept.promises
            == [Promise::Snapshot {
                name: "last".to_owned()
            }]),
        "{after}"
    );
    assert_eq!(after.base_backups().len(), 1);
    // One that is only not protected keeps its latest state.
    history.state.retired = Some("unprotected on request".to_owned());
    let unprotected = standing(
        &cluster(&[0], None),
        LINEAGE,
        &history.state,
        &[],
        Timestamp(500 * DAY),
    );
    assert!(matches!(
        unprotected,
        Standing::Ended {
            replaced: false,
            ..
        }
    ));
}

#[test]
fn fewer_days_take_effect_with_the_next_plan_and_more_bring_nothing_back() {
    let mut history = Busy {
        base_every: HOUR,
        ..Busy::quiet(6)
    }
    .simulate();
    let now = 6 * DAY;
    let (long, (earliest, _)) = left(&history, &terms(5), now);
    assert!(earliest <= DAY);
    let (short, (earliest, _)) = left(&history, &terms(2), now);
    assert!(earliest > 3 * DAY && earliest <= 4 * DAY);
    assert!(short.log_bytes() < long.log_bytes());
    history.state = short.remaining(&history.state);
    let (_, (earliest, _)) = left(&history, &terms(5), now);
    assert!(earliest > 3 * DAY);
}

#[test]
fn names_are_kept_for_the_log_that_the_window_keeps() {
    let history = Busy {
        base_every: HOUR,
        ..Busy::quiet(3)
    }
    .simulate();
    let plan = planned(&history, &terms(1), 3 * DAY);
    let log_from = (history.state.pieces.iter())
        .find(|piece| plan.keeps_piece(piece.entry))
        .map(|piece| piece.entry);
    let kept = (history.state.names.iter()).filter(|names| plan.keeps_names(names.entry));
    let first = kept.clone().map(|names| names.entry).min();
    assert!(
        first <= log_from,
        "names from before the first log that is kept: {first:?}, {log_from:?}"
    );
    assert!(kept.count() < history.state.names.len());
}

/// Thirty-five days, a base backup each ten minutes, snapshots, a hold, failovers and gaps.
#[test]
fn after_thirty_five_simulated_days_each_promised_moment_can_be_restored() {
    let history = Busy {
        piece_every: 5 * MINUTE,
        failover_every: 6 * DAY,
        gap_every: 9 * DAY,
        snapshot_every: DAY,
        ..Busy::quiet(35)
    }
    .simulate();
    assert!(history.state.base_backups.len() > 5_000);
    let now = 35 * DAY;
    let mut terms = terms(7);
    terms.holds.push(Hold {
        number: 1,
        name: "audit".to_owned(),
        reason: "asked for".to_owned(),
        range: HoldRange::Moments(Timestamp(10 * DAY), Timestamp(11 * DAY)),
        until: Some(Timestamp(40 * DAY)),
        created_at: Timestamp(now),
    });
    let plan = planned(&history, &terms, now);
    let left = plan.remaining(&history.state);
    let again = borealis_repository::retention::plan(&left, &terms, Timestamp(now));
    assert!(
        again.removed.is_empty(),
        "planning again removes nothing more: {again}"
    );
    let each = |from: i64, to: i64| (from..=to).step_by(3_517 * SECOND as usize);
    for moment in each(10 * DAY, 11 * DAY).chain(each(28 * DAY, now)) {
        let Ok(before) = history.resolve(moment) else {
            continue;
        };
        let after = resolve_in(&left, &history.steps, moment).unwrap();
        assert_eq!(before.last_record, after.last_record);
    }
    for pin in &history.state.pins {
        assert!(what_a_pin_needs(&left, pin).is_some(), "{}", pin.name);
    }
    let share = left.pieces.len() * 100 / history.state.pieces.len();
    assert!((20..35).contains(&share), "{share} % of the log is kept");

    let days = forecast(&history.state, &terms, Timestamp(now));
    assert_eq!(days.len(), 31);
    let at = |day: u32| &days[day as usize];
    assert_eq!(
        at(0).base_backups.len(),
        plan.removed
            .iter()
            .filter(|removed| { matches!(removed.object, Object::BaseBackup { .. }) })
            .count()
    );
    // A day's worth of base backups goes each day, until what there is now has gone.
    assert!(
        (130..160).contains(&at(3).base_backups.len()),
        "{:?}",
        at(3)
    );
    assert!(
        at(5).holds == ["audit"] || at(6).holds == ["audit"],
        "{days:#?}"
    );
    assert!(
        days[10..].iter().all(ForecastDay::is_empty),
        "{:?}",
        &days[10..]
    );
    let kept_for_ever: u64 = days.iter().map(|day| day.log_bytes).sum();
    let stored = (history.state.pieces.iter())
        .map(|piece| piece.stored_bytes)
        .chain(history.state.names.iter().map(|names| names.stored_bytes))
        .sum::<u64>();
    assert!(kept_for_ever < stored, "snapshots keep theirs");
}

fn pack(number: u64, len: u64) -> ObjectRef {
    ObjectRef {
        len,
        object: ObjectId([number as u8; 16]),
        ..object(number)
    }
}

#[test]
fn deleting_a_snapshot_gives_back_what_nothing_else_uses() {
    let mut history = hourly(96, &[0, 30, 60, 90]);
    history.pin("old", 1, span(10_800, 10_900));
    let terms = terms(1);
    let plan = planned(&history, &terms, 96 * HOUR);
    let entries: Vec<u64> = history
        .state
        .base_backups
        .iter()
        .map(|base| base.entry)
        .collect();
    let kept: Vec<bool> = entries
        .iter()
        .map(|entry| plan.keeps_base_backup(*entry))
        .collect();
    assert_eq!(kept, [true, false, true, true]);
    let mut packs = PackUse::default();
    // Pack 1 lives on, pack 2 was replaced before the window, pack 3 came after the snapshot.
    packs.add_objects(LINEAGE, entries[0], [pack(1, 100), pack(2, 20)]);
    packs.add_objects(LINEAGE, entries[1], [pack(1, 100), pack(2, 20), pack(3, 7)]);
    packs.add_objects(LINEAGE, entries[2], [pack(1, 100), pack(3, 7)]);
    packs.add_objects(LINEAGE, entries[3], [pack(1, 100), pack(3, 7)]);
    let none = BTreeSet::new();
    let bytes = snapshot_bytes(&plan, &packs, "old", &none);
    let log: u64 = (history.state.pieces.iter())
        .filter(|piece| piece.start < Position(10_900) && piece.end > Position(1_000))
        .map(|piece| piece.stored_bytes)
        .sum();
    assert_eq!(bytes.unique_bytes, 20 + log);
    assert_eq!(bytes.shared_bytes, 100);
    // What is counted is what is given back when it is done.
    let before = plan.log_bytes() + packs.bytes(|_, entry| plan.keeps_base_backup(entry));
    history.state.pins.clear();
    let without = planned(&history, &terms, 96 * HOUR);
    let after = without.log_bytes() + packs.bytes(|_, entry| without.keeps_base_backup(entry));
    assert_eq!(before - after, bytes.unique_bytes);
    // A child that uses the pack keeps it.
    let child = LineageId([9; 16]);
    packs.add_objects(child, 1, [pack(2, 20)]);
    let others = BTreeSet::from([(child, 1)]);
    assert_eq!(
        snapshot_bytes(&plan, &packs, "old", &others).unique_bytes,
        log
    );
}
