//! What holds for every history.

use std::time::Duration;

use borealis_base::{Branch, Timestamp};
use borealis_repository::plan::{LineageState, plan_to, what_a_pin_needs};
use borealis_repository::retention::{
    Days, Hold, HoldRange, Policy, RetentionPlan, Standing, Terms, plan,
};
use proptest::prelude::*;

use super::history::{DAY, HOUR, History, resolve_in, span};

#[derive(Debug, Clone)]
enum Random {
    Piece(u32, u64, u64, i64, i64),
    Base(u32, u64, u64),
    Heartbeat(u32, i64),
    Gap(u32, u64, u64),
    Next(u32, i64),
    Pin(u32, u64),
    Partial,
    Names(bool),
}

fn random() -> impl Strategy<Value = Vec<Random>> {
    let branch = 1_u32..4;
    let entry = prop_oneof![
        // Pieces that follow each other, as they mostly do.
        6 => (branch.clone(), 0_i64..12).prop_map(|(b, t)| Random::Next(b, t)),
        2 => (branch.clone(), 0_u64..50, 1_u64..15, 0_i64..12, -30_i64..60)
            .prop_map(|(b, at, len, t, step)| Random::Piece(b, at, len, t, step)),
        3 => (branch.clone(), 0_u64..50, 1_u64..9).prop_map(|(b, at, len)| Random::Base(b, at, len)),
        2 => (branch.clone(), 0_i64..12).prop_map(|(b, t)| Random::Heartbeat(b, t)),
        1 => (branch.clone(), 0_u64..50, 0_u64..5).prop_map(|(b, at, len)| Random::Gap(b, at, len)),
        1 => (branch, 1_u64..50).prop_map(|(b, at)| Random::Pin(b, at)),
        1 => Just(Random::Partial),
        1 => any::<bool>().prop_map(Random::Names),
    ];
    prop::collection::vec(entry, 0..60)
}

/// Makes entries of random kinds; times are hours. The writer's clock steps by what a piece says.
fn build(entries: &[Random]) -> (History, i64) {
    let mut history = History::new();
    // 2 leaves 1 at 15, 3 leaves 2 at 25.
    history.fork(2, 1, 15).fork(3, 2, 25);
    let mut clock = 0;
    for entry in entries {
        let settled = history.settled().map_or(0, |time| time.0);
        match *entry {
            Random::Next(branch, hours) => {
                let own = (history.state.pieces.iter()).filter(|it| it.branch == Branch(branch));
                let fork = [0, 0, 15, 25][branch as usize];
                let start = own.map(|piece| piece.end.0).max().unwrap_or(fork);
                clock += hours * HOUR;
                piece(
                    &mut history,
                    clock,
                    (branch, start, start + 4),
                    settled,
                    hours,
                );
            }
            Random::Piece(branch, start, len, hours, step) => {
                clock += step * HOUR;
                piece(
                    &mut history,
                    clock,
                    (branch, start, start + len),
                    settled,
                    hours,
                );
            }
            Random::Base(branch, start, len) => {
                history.base(clock, branch, start, start + len);
            }
            Random::Gap(branch, from, len) => {
                history.gap(branch, from, from + len);
            }
            Random::Heartbeat(branch, hours) => {
                let own = (history.state.pieces.iter()).filter(|it| it.branch == Branch(branch));
                let newest = own.max_by_key(|piece| piece.end);
                if let Some(record) = newest.and_then(|piece| piece.last_record) {
                    clock += hours * HOUR;
                    history.heartbeat(clock, branch, settled + hours * HOUR, record);
                }
            }
            Random::Pin(branch, end) => {
                let name = format!("p{}", history.state.pins.len());
                history.pin(&name, branch, span(end - 1, end));
            }
            Random::Partial => {
                history.partial(clock, 1, 0);
            }
            Random::Names(whole) => {
                history.names(clock, 1, 0, whole);
            }
        }
    }
    (history, clock)
}

fn piece(history: &mut History, at: i64, part: (u32, u64, u64), settled: i64, hours: i64) {
    let (branch, start, end) = part;
    // Log that is sent again settles nothing that was not settled.
    let reach = (history.state.pieces.iter())
        .filter(|piece| piece.branch == Branch(branch))
        .map(|piece| piece.end.0);
    let repeats = reach.max().is_some_and(|reach| start < reach);
    let steps = if hours > 1 && !repeats && end > start + 1 {
        vec![
            (settled + HOUR, start, start + 1),
            (settled + hours * HOUR, end - 1, end),
        ]
    } else {
        Vec::new()
    };
    history.piece(at, branch, (start, end), Some(span(end - 1, end)), &steps);
}

fn days(days: u32) -> Policy {
    Policy {
        retention: Days::new(days).unwrap(),
        ..Policy::default()
    }
}

fn hold(from: i64, to: i64) -> Hold {
    Hold {
        number: 1,
        name: "case".to_owned(),
        reason: "law".to_owned(),
        range: HoldRange::Moments(Timestamp(from), Timestamp(to)),
        until: None,
        created_at: Timestamp(0),
    }
}

/// Each hour's moment of `[from, to]` means in `left` what it means in `history`, and the same base backup
/// reaches it.
fn same(history: &History, left: &LineageState, from: i64, to: i64) -> Result<(), TestCaseError> {
    for moment in (from..=to).step_by(HOUR as usize / 2) {
        let Ok(before) = history.resolve(moment) else {
            continue;
        };
        let after = resolve_in(left, &history.steps, moment);
        prop_assert!(
            after.is_ok(),
            "{} h: {:?}",
            moment / HOUR,
            after.err().map(|e| e.to_string())
        );
        let after = after.unwrap();
        prop_assert_eq!(
            (before.branch, before.last_record),
            (after.branch, after.last_record),
            "{} h",
            moment / HOUR
        );
        let base = |state| {
            plan_to(state, before.branch, before.last_record).map(|plan| plan.base_backup.entry)
        };
        prop_assert_eq!(base(&history.state), base(left), "{} h", moment / HOUR);
    }
    Ok(())
}

fn keeps_everything(wide: &RetentionPlan, narrow: &RetentionPlan, state: &LineageState) -> bool {
    let pieces = state.pieces.iter().map(|piece| piece.entry);
    let bases = state.base_backups.iter().map(|base| base.entry);
    let names = state.names.iter().map(|names| names.entry);
    pieces
        .clone()
        .all(|it| wide.keeps_piece(it) || !narrow.keeps_piece(it))
        && bases
            .clone()
            .all(|it| wide.keeps_base_backup(it) || !narrow.keeps_base_backup(it))
        && names
            .clone()
            .all(|it| wide.keeps_names(it) || !narrow.keeps_names(it))
}

proptest! {
    #[test]
    fn every_promised_second_can_be_restored_from_exactly_what_is_kept(
        entries in random(), n in 1_u32..4, ahead in -40_i64..40, (from, length) in (0_i64..80, 0_i64..30),
    ) {
        let (history, clock) = build(&entries);
        let now = clock + ahead * HOUR;
        let mut terms = Terms::of(days(n));
        terms.holds.push(hold(from * HOUR, (from + length) * HOUR));
        let newest = history.settled().map_or(0, |time| time.0).min(now);
        let mut left = history.state.clone();
        // Planned again and again, it takes nothing more that is promised.
        for _ in 0..3 {
            let plan = plan(&left, &terms, Timestamp(now));
            left = plan.remaining(&left);
            same(&history, &left, newest - i64::from(n) * DAY, newest)?;
            same(&history, &left, from * HOUR, (from + length) * HOUR)?;
            for pin in &history.state.pins {
                let needs = |state| {
                    what_a_pin_needs(state, pin).map(|plan| (plan.base_backup.entry, plan.log, plan.log_bytes))
                };
                prop_assert_eq!(needs(&history.state), needs(&left), "{}", pin.name);
            }
        }
    }

    #[test]
    fn what_is_kept_has_a_promise_and_what_goes_has_none(entries in random(), n in 1_u32..4) {
        let (history, clock) = build(&entries);
        let plan = plan(&history.state, &Terms::of(days(n)), Timestamp(clock));
        prop_assert!(plan.kept.iter().all(|kept| !kept.promises.is_empty()));
        let state = &history.state;
        let listed = plan.kept.len() + plan.removed.len();
        prop_assert!(listed >= state.pins.len() + state.base_backups.len());
        let bytes = plan.kept.iter().map(|kept| kept.bytes)
            .chain(plan.removed.iter().map(|removed| removed.bytes)).sum::<u64>();
        let stored = state.pieces.iter().map(|piece| piece.stored_bytes).sum::<u64>()
            + state.names.iter().map(|names| names.stored_bytes).sum::<u64>()
            + state.base_backups.iter().map(|base| base.new_bytes).sum::<u64>()
            + state.partial.as_ref().map_or(0, |partial| partial.new_bytes);
        prop_assert_eq!(bytes, stored, "each object is listed once");
    }

    #[test]
    fn more_days_keep_more_and_a_later_present_keeps_less(entries in random(), n in 1_u32..4, ahead in 0_i64..90) {
        let (history, clock) = build(&entries);
        let state = &history.state;
        let of = |n, now| plan(state, &Terms::of(days(n)), Timestamp(now));
        prop_assert!(keeps_everything(&of(n + 1, clock), &of(n, clock), state));
        prop_assert!(keeps_everything(&of(n, clock), &of(n, clock + ahead * HOUR), state));
        prop_assert_eq!(of(n, clock), of(n, clock), "the same arguments give the same plan");
    }

    #[test]
    fn an_ended_lineage_keeps_its_window_until_its_days_are_over(entries in random(), n in 1_u32..3, ago in 0_u64..100) {
        let (history, clock) = build(&entries);
        let newest = history.settled().map_or(0, |time| time.0);
        let terms = Terms {
            standing: Standing::Ended { ago: Duration::from_secs(ago * 3_600), replaced: true },
            ..Terms::of(days(n))
        };
        let plan = plan(&history.state, &terms, Timestamp(clock.max(newest)));
        let left = plan.remaining(&history.state);
        if ago < u64::from(n) * 24 {
            same(&history, &left, newest - i64::from(n) * DAY, newest)?;
        } else {
            prop_assert!(plan.kept.iter().all(|kept| {
                kept.promises.iter().all(|why| matches!(why, borealis_repository::retention::Promise::Snapshot { .. }))
            }), "{plan}");
        }
    }
}
