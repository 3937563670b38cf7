use std::collections::BTreeMap;

use async_trait::async_trait;
use borealis_base::{
    Branch, ErrorKind, LineageId, ObjectId, Position, RecordSpan, TimeStep, Timestamp,
};
use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// Seconds in microseconds.
const S: i64 = 1_000_000;

fn span(start: u64, end: u64) -> RecordSpan {
    RecordSpan {
        start: Position(start),
        end: Position(end),
    }
}

#[allow(clippy::unnecessary_wraps)] // shorter where it is compared
fn at(time: i64) -> Option<Timestamp> {
    Some(Timestamp(time))
}

fn step(through: i64, start: u64, end: u64) -> TimeStep {
    TimeStep {
        settled_through: Timestamp(through),
        last_record: span(start, end),
    }
}

/// Builds a ledger entry by entry.
#[derive(Clone)]
struct Ledger {
    state: LineageState,
    steps: BTreeMap<u64, Vec<TimeStep>>,
}

impl Ledger {
    fn new() -> Self {
        Self {
            state: LineageState::empty(LineageId([1; 16])),
            steps: BTreeMap::new(),
        }
    }

    fn entry(&mut self) -> u64 {
        self.state.head += 1;
        self.state.head
    }

    fn piece(
        &mut self,
        branch: u32,
        start: u64,
        end: u64,
        last: Option<RecordSpan>,
        steps: &[TimeStep],
    ) -> &mut Self {
        let entry = self.entry();
        let before = self.settled();
        let after = steps.last().map(|step| step.settled_through).or(before);
        self.state.pieces.push(PieceSummary {
            entry,
            recorded_at: after.unwrap_or(Timestamp(0)),
            branch: Branch(branch),
            start: Position(start),
            end: Position(end),
            settled_before: before,
            settled_after: after,
            last_record: last,
            resume_at: last.map_or(Position(end), |last| last.end),
            stored_bytes: end - start,
            head_digest: [0; 32],
            engine: None,
            merged: None,
        });
        if !steps.is_empty() {
            self.steps.insert(entry, steps.to_vec());
        }
        self
    }

    fn settled(&self) -> Option<Timestamp> {
        let pieces = self
            .state
            .pieces
            .iter()
            .filter_map(|piece| piece.settled_after);
        pieces
            .chain(self.state.settled.iter().map(|settled| settled.through))
            .max()
    }

    fn heartbeat(&mut self, branch: u32, through: i64, last: RecordSpan) -> &mut Self {
        let entry = self.entry();
        self.state.settled.push(SettledSummary {
            entry,
            recorded_at: Timestamp(through),
            branch: Branch(branch),
            through: Timestamp(through),
            last_record: last,
            run: Run::at(Timestamp(through)),
        });
        self
    }

    fn base(&mut self, branch: u32, start: u64, end: u64) -> &mut Self {
        let entry = self.entry();
        self.state.base_backups.push(BaseBackupSummary {
            entry,
            recorded_at: Timestamp(0),
            manifest: ObjectRef {
                lineage: self.state.lineage,
                object: ObjectId([0; 16]),
                len: 0,
                head_digest: [0; 32],
            },
            branch: Branch(branch),
            start: Position(start),
            end: Position(end),
            started_at: Timestamp(0),
            ended_at: Timestamp(0),
            new_bytes: 0,
            total_pages: 0,
            rule_set: 1,
        });
        self
    }

    fn partial(&mut self, branch: u32, start: u64) -> &mut Self {
        let entry = self.entry();
        self.state.partial = Some(PartialSummary {
            entry,
            recorded_at: Timestamp(0),
            manifest: ObjectRef {
                lineage: self.state.lineage,
                object: ObjectId([0; 16]),
                len: 0,
                head_digest: [0; 32],
            },
            branch: Branch(branch),
            start: Position(start),
            started_at: Timestamp(0),
            new_bytes: 0,
            stored_pages: 1,
            missing_pages: 0,
            rule_set: 1,
        });
        self
    }

    fn gap(&mut self, branch: u32, from: u64, to: u64) -> &mut Self {
        let entry = self.entry();
        self.state.gaps.push(GapSummary {
            entry,
            branch: Branch(branch),
            from: Position(from),
            to: Position(to),
            reason: "slot lost".to_owned(),
        });
        self
    }

    fn fork(&mut self, branch: u32, parent: u32, at: u64) -> &mut Self {
        let entry = self.entry();
        let start = BranchSummary {
            entry,
            parent: Branch(parent),
            at: Position(at),
            history: Bytes::new(),
        };
        self.state.branches.insert(Branch(branch), start);
        self
    }

    fn pin(&mut self, name: &str, branch: u32, last: RecordSpan) -> &mut Self {
        self.state.pins.push(PinSummary {
            number: self.state.pins.len() as u64 + 1,
            name: name.to_owned(),
            branch: Branch(branch),
            last_record: last,
            time: None,
            note: String::new(),
            tags: BTreeMap::new(),
        });
        self
    }

    fn time(&self, time: i64) -> Result<ResolvedTarget, PlanError> {
        match locate(&self.state, &Target::Time(Timestamp(time)))? {
            Located::Steps(search) => {
                let steps = self.steps[&search.entry].clone();
                search.finish(&self.state, &steps)
            }
            Located::Resolved(resolved) => Ok(resolved),
            Located::Records(_) => panic!("a time needs no record boundary"),
        }
    }
}

/// Base backup [100, 150), log [100, 400), two commits a second apart, then a heartbeat.
fn simple() -> Ledger {
    let mut ledger = Ledger::new();
    ledger
        .piece(
            1,
            100,
            200,
            Some(span(180, 200)),
            &[step(10 * S, 140, 150), step(11 * S - 1, 180, 200)],
        )
        .base(1, 100, 150)
        .piece(1, 200, 300, Some(span(260, 280)), &[step(12 * S, 240, 260)])
        .heartbeat(1, 20 * S, span(260, 280));
    ledger
}

#[test]
fn a_window_reaches_from_the_first_base_backup_to_the_last_settled_moment() {
    let ledger = simple();
    let exact = windows_with(&ledger.state, &ledger.steps);
    assert_eq!(exact.len(), 1);
    assert_eq!(
        exact[0].earliest,
        Edge {
            position: Position(150),
            time: at(10 * S + 1)
        }
    );
    assert_eq!(
        exact[0].latest,
        Edge {
            position: Position(280),
            time: at(20 * S)
        }
    );
    // Without the time map the first moment may be late, and is never early.
    assert_eq!(windows(&ledger.state)[0].earliest.time, at(11 * S));
    assert_eq!(steps_wanted(&ledger.state), [1]);
}

#[test]
fn a_partial_base_backup_makes_nothing_restorable() {
    let mut ledger = Ledger::new();
    ledger
        .piece(1, 100, 200, Some(span(180, 200)), &[step(10 * S, 180, 200)])
        .partial(1, 100);
    assert_eq!(windows(&ledger.state), []);
    assert_eq!(plan_to(&ledger.state, Branch(1), span(180, 200)), None);
    let with = simple().partial(1, 220).state.clone();
    assert_eq!(windows(&with), windows(&simple().state));
}

#[test]
fn both_ends_of_a_window_can_be_restored_and_nothing_beyond() {
    let ledger = simple();
    assert_eq!(ledger.time(10 * S + 1).unwrap().last_record, span(180, 200));
    assert_eq!(ledger.time(20 * S).unwrap().last_record, span(260, 280));
    for outside in [i64::MIN, 0, 10 * S, 20 * S + 1, i64::MAX] {
        let error = ledger.time(outside).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{outside}: {error}");
        assert!(
            error.hint().unwrap().contains("0/96 to 0/118"),
            "{:?}",
            error.hint()
        );
    }
}

#[test]
fn a_moment_between_commits_stands_behind_the_last_record_before_the_later_commit() {
    let ledger = simple();
    assert_eq!(ledger.time(11 * S - 1).unwrap().last_record, span(180, 200));
    assert_eq!(ledger.time(11 * S).unwrap().last_record, span(240, 260));
    assert_eq!(ledger.time(15 * S).unwrap().last_record, span(260, 280));
}

#[test]
fn a_moment_that_is_exactly_a_commit_includes_it_and_says_so() {
    let resolved = simple().time(11 * S).unwrap();
    assert_eq!(
        resolved.notices,
        [Notice::ExactlyATransactionEnd(Timestamp(11 * S))]
    );
    assert!(simple().time(11 * S + 1).unwrap().notices.is_empty());
}

#[test]
fn a_base_backup_without_its_whole_log_counts_for_nothing() {
    let mut ledger = Ledger::new();
    ledger
        .piece(
            1,
            101,
            200,
            Some(span(180, 200)),
            &[step(S, 140, 150), step(2 * S, 180, 200)],
        )
        .base(1, 100, 150);
    assert!(
        windows(&ledger.state).is_empty(),
        "its first byte of log is missing"
    );
    let mut ledger = Ledger::new();
    ledger
        .piece(1, 100, 149, Some(span(120, 140)), &[step(S, 120, 140)])
        .base(1, 100, 150);
    assert!(
        windows(&ledger.state).is_empty(),
        "its last byte of log is missing"
    );
    ledger.state.log_unit = 64;
    let mut ledger = simple();
    ledger.state.log_unit = 64;
    assert!(
        windows(&ledger.state).is_empty(),
        "the unit's first byte, 64, is missing"
    );
    ledger.state.log_unit = 50;
    assert_eq!(windows(&ledger.state).len(), 1);
}

#[test]
fn a_gap_splits_the_window_and_both_halves_can_be_restored() {
    let mut ledger = simple();
    ledger
        .gap(1, 300, 1000)
        .piece(
            1,
            1000,
            1100,
            Some(span(1050, 1080)),
            &[step(100 * S, 1010, 1020), step(110 * S, 1050, 1080)],
        )
        .base(1, 1000, 1080)
        .piece(
            1,
            1100,
            1200,
            Some(span(1150, 1180)),
            &[step(120 * S, 1150, 1180)],
        );
    let found = windows_with(&ledger.state, &ledger.steps);
    assert_eq!(found.len(), 2);
    assert_eq!(
        (found[0].latest.position, found[0].latest.time),
        (Position(280), at(20 * S))
    );
    assert_eq!(
        found[1].earliest,
        Edge {
            position: Position(1080),
            time: at(100 * S + 1)
        }
    );
    assert_eq!(
        found[1].latest,
        Edge {
            position: Position(1180),
            time: at(120 * S)
        }
    );
    assert_eq!(ledger.time(15 * S).unwrap().last_record, span(260, 280));
    assert_eq!(ledger.time(115 * S).unwrap().last_record, span(1150, 1180));
}

#[test]
fn a_moment_within_a_gap_is_refused_even_if_a_base_backup_reaches_the_first_step_behind_it() {
    let mut ledger = simple();
    // Idle behind the gap: the first sample already lies at the end of the new base backup.
    ledger
        .gap(1, 300, 1000)
        .piece(
            1,
            1000,
            1100,
            Some(span(1050, 1080)),
            &[step(100 * S, 1050, 1080)],
        )
        .base(1, 1000, 1080)
        .heartbeat(1, 110 * S, span(1050, 1080));
    for lost in [20 * S + 1, 60 * S, 100 * S] {
        let error = ledger.time(lost).unwrap_err();
        assert!(error.to_string().contains("is not stored"), "{error}");
    }
    assert_eq!(
        ledger.time(100 * S + 1).unwrap().last_record,
        span(1050, 1080)
    );
    assert_eq!(
        windows_with(&ledger.state, &ledger.steps)[1].earliest.time,
        at(100 * S + 1)
    );
}

#[test]
fn a_hole_that_no_entry_declares_is_a_gap_all_the_same() {
    let mut ledger = simple();
    ledger
        .piece(
            1,
            1000,
            1100,
            Some(span(1050, 1080)),
            &[step(100 * S, 1050, 1080)],
        )
        .base(1, 1000, 1080)
        .heartbeat(1, 110 * S, span(1050, 1080));
    assert_eq!(windows(&ledger.state).len(), 2);
    assert!(ledger.time(60 * S).is_err());
    // Log that fills the hole later does not make its moments known.
    ledger.piece(1, 300, 1000, Some(span(900, 1000)), &[]);
    assert_eq!(windows(&ledger.state).len(), 1);
    assert!(ledger.time(60 * S).is_err());
}

#[test]
fn a_clock_set_back_is_reported_and_does_not_change_what_was_settled() {
    let mut ledger = simple();
    let before = ledger.time(15 * S).unwrap();
    // An hour of log whose commits bear earlier times settles nothing; then the clock passes 20 s again.
    ledger.piece(1, 300, 5000, Some(span(4900, 5000)), &[]);
    ledger.piece(
        1,
        5000,
        6000,
        Some(span(5900, 6000)),
        &[step(21 * S, 5900, 6000)],
    );
    ledger.state.pieces.last_mut().unwrap().recorded_at = Timestamp(3600 * S);
    assert_eq!(ledger.time(15 * S).unwrap(), before);
    let behind = ledger.time(21 * S).unwrap();
    assert_eq!(behind.last_record, span(5900, 6000));
    assert!(
        matches!(behind.notices[..], [Notice::ClockStoodStill { .. }]),
        "{:?}",
        behind.notices
    );
}

#[test]
fn a_position_means_every_record_that_ends_at_or_before_it() {
    let ledger = simple();
    let whole = |position| match locate(&ledger.state, &Target::Position(Position(position), None))
        .unwrap()
    {
        Located::Resolved(resolved) => resolved.last_record,
        other => panic!("{other:?}"),
    };
    assert_eq!(whole(200), span(180, 200));
    assert_eq!(whole(280), span(260, 280));
    assert_eq!(whole(300), span(260, 280));
    let Located::Records(search) =
        locate(&ledger.state, &Target::Position(Position(279), None)).unwrap()
    else {
        panic!("the summaries cannot tell the record before 279");
    };
    assert_eq!(
        (search.from, search.through),
        (Position(200), Position(279))
    );
    assert_eq!(
        search
            .clone()
            .finish(&ledger.state, Some(span(240, 260)))
            .unwrap()
            .last_record,
        span(240, 260)
    );
    assert_eq!(
        search
            .clone()
            .finish(&ledger.state, None)
            .unwrap()
            .last_record,
        span(180, 200)
    );
    let wrong = search
        .finish(&ledger.state, Some(span(260, 280)))
        .unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Damaged);
    let beyond = locate(&ledger.state, &Target::Position(Position(301), None)).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::Refused);
}

#[test]
fn log_at_a_branch_boundary_belongs_to_one_branch() {
    let mut ledger = simple();
    // The parent went on to 300; the child left at 250 and has other bytes from there.
    ledger
        .fork(2, 1, 250)
        .piece(2, 250, 320, Some(span(300, 320)), &[step(30 * S, 300, 320)]);
    let plan = plan_to(&ledger.state, Branch(2), span(300, 320)).unwrap();
    let ranges: Vec<_> = plan
        .log
        .iter()
        .map(|range| (range.branch.0, range.from.0, range.to.0))
        .collect();
    assert_eq!(ranges, [(1, 100, 250), (2, 250, 320)]);
    let pieces: Vec<_> = plan
        .pieces
        .iter()
        .map(|part| (part.piece.branch.0, part.from.0, part.to.0))
        .collect();
    assert_eq!(pieces, [(1, 100, 200), (1, 200, 250), (2, 250, 320)]);
    assert_eq!(plan.branch, Branch(2));
    // Before the fork the child's log is not needed, nor is its segment file, which begins before the fork.
    let before = plan_to(&ledger.state, Branch(2), span(180, 200)).unwrap();
    assert_eq!(before.branch, Branch(1));
    let found = windows(&ledger.state);
    assert_eq!(
        found
            .iter()
            .map(|window| window.branch.0)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(found[1].earliest.position, Position(250));
    // A base backup of the parent behind the fork does not serve the child.
    ledger.base(1, 200, 260);
    let plan = plan_to(&ledger.state, Branch(2), span(300, 320)).unwrap();
    assert_eq!(plan.base_backup.end, Position(150));
}

#[test]
fn log_of_the_parent_behind_the_fork_does_not_fill_a_hole_of_the_child() {
    let mut ledger = simple();
    ledger
        .fork(2, 1, 250)
        .piece(2, 260, 320, Some(span(300, 320)), &[step(30 * S, 300, 320)]);
    assert!(plan_to(&ledger.state, Branch(2), span(300, 320)).is_none());
}

#[test]
fn the_latest_position_says_when_newer_log_cannot_be_restored() {
    let mut ledger = simple();
    ledger.gap(1, 300, 1000).piece(
        1,
        1000,
        1100,
        Some(span(1050, 1080)),
        &[step(100 * S, 1050, 1080)],
    );
    let Located::Resolved(latest) = locate(&ledger.state, &Target::Latest).unwrap() else {
        panic!()
    };
    assert_eq!(latest.last_record, span(260, 280));
    assert_eq!(
        latest.notices,
        [Notice::NewerLogNotRestorable {
            branch: Branch(1),
            through: Position(1100)
        }]
    );
}

#[test]
fn a_pin_keeps_its_base_backup_and_log() {
    let mut ledger = simple();
    ledger
        .pin("before", 1, span(240, 260))
        .base(1, 200, 290)
        .pin("lost", 1, span(100, 110));
    let needs = what_a_pin_needs(&ledger.state, &ledger.state.pins[0]).unwrap();
    assert_eq!(
        (needs.base_backup.end, needs.log_bytes),
        (Position(150), 160)
    );
    assert!(what_a_pin_needs(&ledger.state, &ledger.state.pins[1]).is_none());
    assert!(matches!(
        locate(&ledger.state, &Target::Pin("none".to_owned())),
        Err(PlanError::NoSuchPin(_))
    ));
}

#[test]
fn a_time_map_that_contradicts_its_entry_is_damage() {
    let ledger = simple();
    let Located::Steps(search) = locate(&ledger.state, &Target::Time(Timestamp(12 * S))).unwrap()
    else {
        panic!()
    };
    let error = search
        .finish(&ledger.state, &[step(13 * S, 240, 260)])
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

struct Map(Ledger);

#[async_trait]
impl Lookup for Map {
    async fn time_steps(&self, entry: u64) -> crate::Result<Vec<TimeStep>> {
        Ok(self.0.steps[&entry].clone())
    }

    async fn last_record(
        &self,
        _: Branch,
        _: Position,
        _: Position,
    ) -> crate::Result<Option<RecordSpan>> {
        Ok(Some(span(240, 260)))
    }
}

#[tokio::test]
async fn a_target_is_resolved_through_a_lookup() {
    let map = Map(simple());
    for (target, expected) in [
        (Target::Time(Timestamp(11 * S)), span(240, 260)),
        (
            Target::Position(Position(270), Some(Branch(1))),
            span(240, 260),
        ),
        (Target::Latest, span(260, 280)),
    ] {
        let resolved = resolve(&map.0.state, &target, &map).await.unwrap();
        assert_eq!(resolved.last_record, expected, "{target}");
        assert!(
            plan_restore(&map.0.state, &resolved)
                .unwrap()
                .to_string()
                .contains("base backup of entry 2")
        );
    }
}

/// One random ledger entry; positions are small, so that every kind of overlap happens.
#[derive(Debug, Clone)]
enum Random {
    Piece(u32, u64, u64, i64),
    Base(u32, u64, u64),
    Gap(u32, u64, u64),
    Heartbeat(u32, i64),
    Partial(u32, u64),
}

fn random_entries() -> impl Strategy<Value = Vec<Random>> {
    let branch = 1_u32..4;
    let entry = prop_oneof![
        6 => (branch.clone(), 0_u64..40, 1_u64..16, -3_i64..9).prop_map(|(b, s, l, t)| Random::Piece(b, s, s + l, t)),
        3 => (branch.clone(), 0_u64..40, 0_u64..8).prop_map(|(b, s, l)| Random::Base(b, s, s + l)),
        1 => (branch.clone(), 0_u64..40, 0_u64..4).prop_map(|(b, s, l)| Random::Gap(b, s, s + l)),
        1 => (branch.clone(), 1_i64..9).prop_map(|(b, t)| Random::Heartbeat(b, t)),
        1 => (branch, 0_u64..40).prop_map(|(b, s)| Random::Partial(b, s)),
    ];
    proptest::collection::vec(entry, 0..24)
}

impl Ledger {
    /// Appends a random entry. Every record is one byte long, so that boundaries are everywhere.
    fn append(&mut self, random: &Random) {
        let now = self.settled().map_or(0, |time| time.0);
        match *random {
            Random::Piece(branch, start, end, tick) => {
                // Log that repeats what is stored settles nothing.
                let known = self
                    .state
                    .pieces
                    .iter()
                    .filter(|piece| piece.branch == Branch(branch));
                let repeats = known
                    .map(|piece| piece.end.0)
                    .max()
                    .is_some_and(|reach| start < reach);
                let steps = if tick > 1 && !repeats {
                    vec![
                        step(now + tick - 1, start, start + 1),
                        step(now + tick, end - 1, end),
                    ]
                } else {
                    Vec::new()
                };
                self.piece(branch, start, end, Some(span(end - 1, end)), &steps);
            }
            Random::Base(branch, start, end) => {
                self.base(branch, start, end);
            }
            Random::Gap(branch, from, to) => {
                self.gap(branch, from, to);
            }
            Random::Partial(branch, start) => {
                self.partial(branch, start);
            }
            Random::Heartbeat(branch, tick) => {
                let own = self
                    .state
                    .pieces
                    .iter()
                    .filter(|piece| piece.branch == Branch(branch));
                let newest = own.max_by_key(|piece| piece.end);
                if let Some(record) = newest.and_then(|piece| piece.last_record) {
                    self.heartbeat(branch, now + tick, record);
                }
            }
        }
    }

    fn forked() -> Self {
        let mut ledger = Self::new();
        // 2 leaves 1 at 15, 3 leaves 2 at 25.
        ledger.fork(2, 1, 15).fork(3, 2, 25);
        ledger
    }

    /// Whose log a position of a branch's path is, told without `path`.
    fn holder(branch: u32, position: u64) -> u32 {
        match branch {
            3 if position >= 25 => 3,
            3 | 2 if position >= 15 => 2,
            _ => 1,
        }
    }

    /// Whether each byte of `[from, to)` is stored, and no gap lies in or between them.
    fn brute_covered(&self, branch: u32, from: u64, to: u64) -> bool {
        let state = &self.state;
        let stored = (from..to).all(|at| {
            let holder = Branch(Self::holder(branch, at));
            let held = (state.pieces.iter())
                .any(|p| p.branch == holder && p.start.0 <= at && at < p.end.0);
            let lost =
                (state.gaps.iter()).any(|g| g.branch == holder && g.from.0 <= at && at < g.to.0);
            held && !lost
        });
        let broken = (from + 1..to).any(|at| {
            let holder = Branch(Self::holder(branch, at));
            (state.gaps.iter()).any(|g| g.branch == holder && g.from.0 == at && g.to.0 == at)
        });
        stored && !broken
    }

    fn brute_base(&self, branch: u32, end: u64) -> Option<u64> {
        let on_path = |base: &&BaseBackupSummary| match (base.branch.0, branch) {
            (b, c) if b == c => true,
            (1, 2 | 3) => base.end.0 <= 15,
            (2, 3) => base.end.0 <= 25,
            _ => false,
        };
        (self.state.base_backups.iter())
            .filter(on_path)
            .filter(|base| base.end.0 <= end && self.brute_covered(branch, base.start.0, end))
            .max_by_key(|base| (base.end, base.entry))
            .map(|base| base.entry)
    }
}

proptest! {
    #[test]
    fn plans_equal_brute_force(entries in random_entries()) {
        let mut ledger = Ledger::forked();
        for entry in &entries {
            ledger.append(entry);
        }
        let found = windows(&ledger.state);
        for branch in 1..4 {
            for end in 1..56 {
                let plan = plan_to(&ledger.state, Branch(branch), span(end - 1, end));
                let expected = ledger.brute_base(branch, end);
                // A base backup of no length at the very end needs no log, and may stand beside any.
                let needs_log = |entry| (ledger.state.base_backups.iter()).any(|b| b.entry == entry && b.start.0 < end);
                if expected.is_none_or(needs_log) && plan.as_ref().is_none_or(|plan| needs_log(plan.base_backup.entry)) {
                    prop_assert_eq!(plan.as_ref().map(|plan| plan.base_backup.entry), expected, "branch {} to {}", branch, end);
                }
                if let Some(plan) = plan {
                    let mut next = plan.base_backup.start;
                    for part in &plan.pieces {
                        prop_assert_eq!(part.from, next);
                        prop_assert!(part.piece.start <= part.from && part.to <= part.piece.end);
                        for at in part.from.0..part.to.0 {
                            prop_assert_eq!(part.piece.branch.0, Ledger::holder(branch, at));
                        }
                        next = part.to;
                    }
                    prop_assert!(next == Position(end));
                }
            }
        }
        // Each window can be restored at both its ends, and at every byte between.
        for window in &found {
            for end in window.earliest.position.0.max(1)..=window.latest.position.0 {
                prop_assert!(plan_to(&ledger.state, window.branch, span(end - 1, end)).is_some(), "{:?} at {}", window, end);
            }
        }
        // Each moment of a window resolves, with and without the time maps that make it exact.
        for window in found.into_iter().chain(windows_with(&ledger.state, &ledger.steps)) {
            if let (Some(earliest), Some(latest)) = (window.earliest.time, window.latest.time) {
                for time in earliest.0..=latest.0 {
                    let resolved = ledger.time(time);
                    // A moment settled on another branch meanwhile belongs to that one.
                    prop_assert!(resolved.is_ok() || !resolved_here(&ledger, window.branch, time), "{:?} at {}", window, time);
                }
            }
        }
    }

    #[test]
    fn a_settled_moment_means_the_same_whatever_is_appended(entries in random_entries()) {
        let mut ledger = Ledger::forked();
        let mut meant: BTreeMap<i64, (Branch, RecordSpan)> = BTreeMap::new();
        let mut refused: std::collections::BTreeSet<i64> = std::collections::BTreeSet::new();
        for entry in &entries {
            ledger.append(entry);
            let settled = ledger.settled().map_or(0, |time| time.0);
            for time in 1..=settled {
                let resolved = meaning(&ledger, time);
                match (meant.get(&time), resolved) {
                    (Some(before), Some(now)) => prop_assert_eq!(*before, now, "at {}", time),
                    (Some(_), None) => prop_assert!(false, "{} was settled and no longer is", time),
                    (None, Some(now)) => {
                        prop_assert!(!refused.contains(&time), "{} lay in missing log and now resolves", time);
                        meant.insert(time, now);
                    }
                    (None, None) => { refused.insert(time); }
                }
            }
        }
    }
}

/// What a moment means, whether or not a base backup reaches it.
fn meaning(ledger: &Ledger, time: i64) -> Option<(Branch, RecordSpan)> {
    let all = settlements(&ledger.state);
    let found = all.iter().find(|settlement| settlement.high.0 >= time)?;
    let steps = match found.last_record {
        Some(last_record) => vec![TimeStep {
            settled_through: found.high,
            last_record,
        }],
        None => ledger.steps[&found.entry].clone(),
    };
    let index = steps
        .iter()
        .position(|step| step.settled_through.0 >= time)?;
    (index > 0 || found.low.is_some()).then(|| (found.branch, steps[index].last_record))
}

fn resolved_here(ledger: &Ledger, branch: Branch, time: i64) -> bool {
    meaning(ledger, time).is_some_and(|(found, _)| found == branch)
}
