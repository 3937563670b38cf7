//! Histories of a cluster, made up entry by entry or simulated over weeks.

#![allow(dead_code)] // the tests and the example use different parts

use std::collections::BTreeMap;

use borealis_base::{Branch, LineageId, ObjectId, Position, RecordSpan, TimeStep, Timestamp};
use borealis_repository::plan::{
    BaseBackupSummary, BranchSummary, GapSummary, LineageState, Located, NamesSummary, ObjectRef,
    PartialSummary, PieceSummary, PinSummary, PlanError, ResolvedTarget, Run, SettledSummary,
    Target, locate,
};
use bytes::Bytes;

/// Microseconds of a second.
pub const SECOND: i64 = 1_000_000;
/// Microseconds of an hour.
pub const HOUR: i64 = 3_600 * SECOND;
/// Microseconds of a day.
pub const DAY: i64 = 24 * HOUR;
/// Microseconds of a minute.
pub const MINUTE: i64 = 60 * SECOND;

pub const LINEAGE: LineageId = LineageId([1; 16]);

pub fn span(start: u64, end: u64) -> RecordSpan {
    RecordSpan {
        start: Position(start),
        end: Position(end),
    }
}

/// A ledger with the time maps that its pieces hold.
#[derive(Clone)]
pub struct History {
    pub state: LineageState,
    pub steps: BTreeMap<u64, Vec<TimeStep>>,
}

impl History {
    pub fn new() -> Self {
        Self {
            state: LineageState::empty(LINEAGE),
            steps: BTreeMap::new(),
        }
    }

    fn entry(&mut self) -> u64 {
        self.state.head += 1;
        self.state.head
    }

    pub fn settled(&self) -> Option<Timestamp> {
        let piece = self
            .state
            .pieces
            .last()
            .and_then(|piece| piece.settled_after);
        piece.max(self.state.settled.last().map(|settled| settled.through))
    }

    /// A piece whose steps are (moment, record start, record end).
    pub fn piece(
        &mut self,
        at: i64,
        branch: u32,
        range: (u64, u64),
        last: Option<RecordSpan>,
        steps: &[(i64, u64, u64)],
    ) -> &mut Self {
        let entry = self.entry();
        let before = self.settled();
        let steps: Vec<TimeStep> = (steps.iter())
            .map(|(through, start, end)| TimeStep {
                settled_through: Timestamp(*through),
                last_record: span(*start, *end),
            })
            .collect();
        let after = steps.last().map(|step| step.settled_through).or(before);
        self.state.pieces.push(PieceSummary {
            entry,
            recorded_at: Timestamp(at),
            branch: Branch(branch),
            start: Position(range.0),
            end: Position(range.1),
            settled_before: before,
            settled_after: after.max(before),
            last_record: last,
            resume_at: Position(range.1),
            stored_bytes: (range.1 - range.0) / 3 + 1,
            head_digest: [0; 32],
            engine: None,
            merged: None,
        });
        if !steps.is_empty() {
            self.steps.insert(entry, steps);
        }
        self
    }

    pub fn heartbeat(&mut self, at: i64, branch: u32, through: i64, last: RecordSpan) -> &mut Self {
        let entry = self.entry();
        self.state.settled.push(SettledSummary {
            entry,
            recorded_at: Timestamp(at),
            branch: Branch(branch),
            through: Timestamp(through),
            last_record: last,
            run: Run::at(Timestamp(at)),
        });
        self
    }

    pub fn base(&mut self, at: i64, branch: u32, start: u64, end: u64) -> &mut Self {
        let entry = self.entry();
        self.state.base_backups.push(BaseBackupSummary {
            entry,
            recorded_at: Timestamp(at),
            manifest: object(entry),
            branch: Branch(branch),
            start: Position(start),
            end: Position(end),
            started_at: Timestamp(at),
            ended_at: Timestamp(at),
            new_bytes: 1_000,
            total_pages: 10,
            rule_set: 1,
        });
        self
    }

    pub fn partial(&mut self, at: i64, branch: u32, start: u64) -> &mut Self {
        let entry = self.entry();
        self.state.partial = Some(PartialSummary {
            entry,
            recorded_at: Timestamp(at),
            manifest: object(entry),
            branch: Branch(branch),
            start: Position(start),
            started_at: Timestamp(at),
            new_bytes: 7,
            stored_pages: 1,
            missing_pages: 0,
            rule_set: 1,
        });
        self
    }

    pub fn names(&mut self, at: i64, branch: u32, position: u64, whole: bool) -> &mut Self {
        let entry = self.entry();
        self.state.names.push(NamesSummary {
            entry,
            branch: Branch(branch),
            from: Position(position),
            to: Position(position),
            taken_at: Timestamp(at),
            whole,
            stored_bytes: 11,
            head_digest: [0; 32],
        });
        self
    }

    pub fn gap(&mut self, branch: u32, from: u64, to: u64) -> &mut Self {
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

    pub fn fork(&mut self, branch: u32, parent: u32, at: u64) -> &mut Self {
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

    pub fn pin(&mut self, name: &str, branch: u32, last: RecordSpan) -> &mut Self {
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

    /// What a moment means.
    pub fn resolve(&self, time: i64) -> Result<ResolvedTarget, PlanError> {
        resolve_in(&self.state, &self.steps, time)
    }
}

/// What a moment means by `state`.
pub fn resolve_in(
    state: &LineageState,
    steps: &BTreeMap<u64, Vec<TimeStep>>,
    time: i64,
) -> Result<ResolvedTarget, PlanError> {
    match locate(state, &Target::Time(Timestamp(time)))? {
        Located::Steps(search) => {
            let steps = steps[&search.entry].clone();
            search.finish(state, &steps)
        }
        Located::Resolved(resolved) => Ok(resolved),
        Located::Records(_) => panic!("a time needs no record boundary"),
    }
}

pub fn object(number: u64) -> ObjectRef {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    ObjectRef {
        lineage: LINEAGE,
        object: ObjectId(id),
        len: 100,
        head_digest: [0; 32],
    }
}

/// How a busy cluster is backed up.
#[derive(Clone, Copy)]
pub struct Busy {
    pub days: i64,
    /// Microseconds between pieces, base backups, failovers and gaps; zero for none.
    pub piece_every: i64,
    pub base_every: i64,
    pub failover_every: i64,
    pub gap_every: i64,
    pub snapshot_every: i64,
}

impl Busy {
    /// A base backup each ten minutes, a piece each minute.
    pub const fn quiet(days: i64) -> Self {
        Self {
            days,
            piece_every: MINUTE,
            base_every: 10 * MINUTE,
            failover_every: 0,
            gap_every: 0,
            snapshot_every: 0,
        }
    }

    fn due(every: i64, time: i64, piece_every: i64) -> bool {
        every > 0 && time > 0 && time % every < piece_every
    }

    /// What is stored at the end.
    pub fn simulate(self) -> History {
        const PIECE: u64 = 16 << 20;
        let mut history = History::new();
        let (mut at, mut branch, mut last) = (PIECE, 1, None::<RecordSpan>);
        let (mut time, mut snapshots) = (0, 0);
        while time < self.days * DAY {
            if Self::due(self.failover_every, time, self.piece_every) {
                history.fork(branch + 1, branch, at);
                branch += 1;
            }
            if Self::due(self.gap_every, time, self.piece_every) {
                history.gap(branch, at, at + PIECE);
                (at, last) = (at + PIECE, None);
            }
            let record = span(at + PIECE - 200, at + PIECE - 100);
            let through = time + self.piece_every;
            let mut steps = Vec::new();
            if let Some(last) = last {
                // Until the first commit of this piece the record before it is the last one.
                steps.push((time + self.piece_every / 2, last.start.0, last.end.0));
            }
            steps.push((through, record.start.0, record.end.0));
            let range = (at, at + PIECE);
            history.piece(through, branch, range, Some(record), &steps);
            if time == 0 || Self::due(self.base_every, time, self.piece_every) {
                history.base(through, branch, at + 1_000, at + 2_000);
                history.names(through, branch, at + 2_000, true);
            }
            if Self::due(self.snapshot_every, time, self.piece_every) {
                snapshots += 1;
                history.pin(&format!("s{snapshots}"), branch, record);
            }
            (at, last, time) = (at + PIECE, Some(record), through);
        }
        history
    }
}
