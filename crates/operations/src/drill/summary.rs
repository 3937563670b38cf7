//! Drills for people: the last one, and what is wrong with how they go. Pure.

use std::time::Duration;

use borealis_base::{Timestamp, show_duration};
use borealis_repository::drills::{Drill, DrillOutcome};
use serde::Serialize;

use crate::protect::upkeep::DRILL_INTERVAL;

/// A drill, as `status` and `drill` show it.
#[derive(Debug, Clone, Serialize)]
pub struct DrillSummary {
    /// When it began.
    pub begun_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// `passed`, `failed` or `missed`.
    pub result: &'static str,
    /// Why it failed or was missed.
    pub reason: Option<String>,
    /// What its checks found.
    pub findings: Vec<String>,
    /// Findings beyond these.
    pub more_findings: u64,
    /// What could not be checked.
    pub not_checked: Vec<String>,
    /// What was asked for.
    pub target: String,
    /// The seed that chose a random point.
    pub seed: Option<u64>,
    /// The moment restored to.
    pub time: Option<Timestamp>,
    /// The position restored to.
    pub position: Option<borealis_base::Position>,
    /// The ledger entry of the base backup.
    pub base_backup_entry: u64,
    /// Where the log that was replayed begins.
    pub log_from: borealis_base::Position,
    /// Seconds from the request until the server answered.
    pub recovery_seconds: f64,
    /// Of that, to find base backup and log.
    pub plan_seconds: f64,
    /// To put pages and files in place.
    pub pages_seconds: f64,
    /// To replay the log, from the start of the server on.
    pub replay_seconds: f64,
    /// From there until it answered.
    pub answer_seconds: f64,
    /// The checks, after that.
    pub checks_seconds: f64,
    /// Seconds of commits that would have been lost if the source had gone when it began.
    pub loss_window_seconds: Option<f64>,
    /// Bytes of files restored.
    pub file_bytes: u64,
    /// Bytes of log replayed.
    pub log_bytes: u64,
    /// Rows read.
    pub rows: u64,
    /// The machine.
    pub host: String,
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

impl From<&Drill> for DrillSummary {
    fn from(drill: &Drill) -> Self {
        let (result, reason, findings, more) = match &drill.outcome {
            DrillOutcome::Passed => ("passed", None, Vec::new(), 0),
            DrillOutcome::Failed {
                reason,
                findings,
                more,
            } => ("failed", Some(reason.clone()), findings.clone(), *more),
            DrillOutcome::Missed { reason } => ("missed", Some(reason.clone()), Vec::new(), 0),
        };
        Self {
            begun_at: drill.begun_at,
            ended_at: drill.ended_at,
            result,
            reason,
            findings,
            more_findings: more,
            not_checked: drill.not_checked.clone(),
            target: drill.target.clone(),
            seed: drill.seed,
            time: drill.time,
            position: drill.last_record.map(|record| record.end),
            base_backup_entry: drill.base_backup,
            log_from: drill.log_from,
            recovery_seconds: seconds(drill.times.recovery()),
            plan_seconds: seconds(drill.times.plan),
            pages_seconds: seconds(drill.times.pages),
            replay_seconds: seconds(drill.times.replay),
            answer_seconds: seconds(drill.times.answer),
            checks_seconds: seconds(drill.times.checks),
            loss_window_seconds: drill.loss_window().map(seconds),
            file_bytes: drill.file_bytes,
            log_bytes: drill.log_bytes,
            rows: drill.rows,
            host: drill.host.clone(),
        }
    }
}

/// The last drill that was run.
pub fn last_run(drills: &[Drill]) -> Option<&Drill> {
    drills.iter().rev().find(|drill| drill.was_run())
}

/// What is wrong: the last one failed, or it is older than two intervals, or the next one was missed. `first` is
/// when the first base backup ended.
pub fn complaints(drills: &[Drill], first: Option<Timestamp>, now: Timestamp) -> Vec<String> {
    let mut complaints = Vec::new();
    let last = last_run(drills);
    if let Some(Drill {
        outcome: DrillOutcome::Failed { reason, .. },
        begun_at,
        ..
    }) = last
    {
        complaints.push(format!("THE LAST DRILL FAILED, at {begun_at}: {reason}"));
    }
    let told = drills.iter().rev().map(|drill| drill.every_seconds);
    let every = told.clone().find(|seconds| *seconds > 0);
    let every = every.map_or(DRILL_INTERVAL, Duration::from_secs);
    let since = last.map(|last| last.begun_at).or(first);
    if let Some(since) = since.filter(|since| now.since(*since) > every * 2) {
        complaints.push(match last {
            Some(_) => format!(
                "the last drill began {} ago; one is due every {}: run borealis drill",
                show_duration(now.since(since)),
                show_duration(every)
            ),
            None => "no drill was ever run: run borealis drill".to_owned(),
        });
    }
    if let Some(Drill {
        outcome: DrillOutcome::Missed { reason },
        target,
        ..
    }) = drills.last()
    {
        complaints.push(format!("a drill was missed ({target}): {reason}"));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{Branch, Position};
    use borealis_repository::drills::DrillTimes;

    const DAY: i64 = 86_400_000_000;

    fn drill(day: i64, outcome: DrillOutcome) -> Drill {
        Drill {
            begun_at: Timestamp(day * DAY),
            ended_at: Timestamp(day * DAY),
            host: String::new(),
            target: "random".to_owned(),
            seed: None,
            branch: Branch(1),
            last_record: None,
            time: None,
            base_backup: 0,
            log_from: Position::ZERO,
            latest: None,
            times: DrillTimes::default(),
            file_bytes: 0,
            log_bytes: 0,
            rows: 0,
            not_checked: Vec::new(),
            outcome,
            every_seconds: 7 * 86_400,
        }
    }

    fn failed() -> DrillOutcome {
        DrillOutcome::Failed {
            reason: "an index lacks a row".to_owned(),
            findings: Vec::new(),
            more: 0,
        }
    }

    fn told(drills: &[Drill], day: i64) -> String {
        complaints(drills, Some(Timestamp(0)), Timestamp(day * DAY)).join("\n")
    }

    #[test]
    fn a_failed_an_old_and_a_missed_drill_are_complained_about() {
        let passed = drill(1, DrillOutcome::Passed);
        assert_eq!(told(std::slice::from_ref(&passed), 15), "");
        assert!(
            told(std::slice::from_ref(&passed), 16).contains("the last drill began 15 d"),
            "{}",
            told(std::slice::from_ref(&passed), 16)
        );
        assert_eq!(told(&[], 14), "");
        assert!(told(&[], 15).contains("no drill was ever run"));
        assert!(told(&[passed.clone(), drill(8, failed())], 9).contains("FAILED"));
        let missed = DrillOutcome::Missed {
            reason: "no room".to_owned(),
        };
        let missed = drill(9, missed);
        assert!(told(&[passed.clone(), missed.clone()], 9).contains("missed"));
        // One that passed since makes up for it.
        assert_eq!(told(&[missed, drill(10, DrillOutcome::Passed)], 11), "");
    }

    #[test]
    fn before_there_is_anything_to_restore_nothing_is_complained_about() {
        assert_eq!(complaints(&[], None, Timestamp(i64::MAX)), [""; 0]);
    }
}
