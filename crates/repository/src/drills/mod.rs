//! Drills: restores that were tried, and what came of them. Whoever drills writes here; the writer of the
//! ledger has nothing to do with it.

use std::sync::Arc;

use borealis_base::{Branch, Clock, Entropy, Position, RecordSpan, Timestamp};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use crate::numbered::{Item, Logged, NumberedLog, Track};
use crate::{Error, Result};

/// Findings that a record keeps; more are counted.
pub const FINDINGS_MAX: usize = 64;
/// Longest text in a record.
pub const TEXT_BYTES_MAX: usize = 4_096;

/// What a drill came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrillOutcome {
    /// Everything that was looked at is sound.
    Passed,
    /// The restore or a check failed.
    Failed {
        /// Why, in one sentence.
        reason: String,
        /// What checks found, at most [`FINDINGS_MAX`].
        findings: Vec<String>,
        /// How many there are beyond these.
        more: u64,
    },
    /// It was due and was not run.
    Missed {
        /// Why.
        reason: String,
    },
}

/// How long the parts took, in microseconds. Zero for what was not come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrillTimes {
    /// To find base backup and log.
    pub plan: u64,
    /// To put pages and files in place.
    pub pages: u64,
    /// From the start of the server to the end of the replay.
    pub replay: u64,
    /// From there until it answered.
    pub answer: u64,
    /// The checks, which are no part of a recovery.
    pub checks: u64,
}

impl DrillTimes {
    /// How long a recovery takes: everything until the server answers.
    pub fn recovery(&self) -> u64 {
        self.plan + self.pages + self.replay + self.answer
    }
}

/// A drill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    /// When it began.
    pub begun_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The machine.
    pub host: String,
    /// What was asked for, in words.
    pub target: String,
    /// The seed that chose a random point.
    pub seed: Option<u64>,
    /// The branch.
    pub branch: Branch,
    /// The last record that is replayed; `None` where it did not come to a plan.
    pub last_record: Option<RecordSpan>,
    /// The moment restored to.
    pub time: Option<Timestamp>,
    /// Ledger entry of the base backup; zero where it did not come to a plan.
    pub base_backup: u64,
    /// Where the log that was replayed begins.
    pub log_from: Position,
    /// The latest restorable moment when it began.
    pub latest: Option<Timestamp>,
    /// Measured.
    pub times: DrillTimes,
    /// Bytes of files that were restored.
    pub file_bytes: u64,
    /// Bytes of log that were replayed.
    pub log_bytes: u64,
    /// Rows read.
    pub rows: u64,
    /// What could not be checked, which makes a pass weaker.
    pub not_checked: Vec<String>,
    /// What it came to.
    pub outcome: DrillOutcome,
    /// How often drills were to be run, in seconds; zero for one that somebody ran by hand.
    pub every_seconds: u64,
}

impl Drill {
    /// One that has come to no plan.
    pub fn without_plan(
        at: Timestamp,
        host: String,
        target: String,
        outcome: DrillOutcome,
    ) -> Self {
        Self {
            begun_at: at,
            ended_at: at,
            host,
            target,
            seed: None,
            branch: Branch(0),
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
            every_seconds: 0,
        }
    }

    /// Microseconds of commits that would have been lost if the source had gone when it began.
    pub fn loss_window(&self) -> Option<u64> {
        let latest = self.latest?;
        Some(u64::try_from(self.begun_at.since(latest).as_micros()).unwrap_or(u64::MAX))
    }

    /// Whether a restore was tried.
    pub fn was_run(&self) -> bool {
        !matches!(self.outcome, DrillOutcome::Missed { .. })
    }

    /// Whether it passed.
    pub fn passed(&self) -> bool {
        self.outcome == DrillOutcome::Passed
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct DrillMessage {
    #[prost(oneof = "DrillKind", tags = "1, 2, 3")]
    kind: Option<DrillKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum DrillKind {
    #[prost(message, tag = "1")]
    Passed(RunMessage),
    #[prost(message, tag = "2")]
    Failed(RunMessage),
    #[prost(message, tag = "3")]
    Missed(RunMessage),
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunMessage {
    #[prost(sint64, tag = "1")]
    begun_at: i64,
    #[prost(sint64, tag = "2")]
    ended_at: i64,
    #[prost(string, tag = "3")]
    host: String,
    #[prost(string, tag = "4")]
    target: String,
    #[prost(uint64, optional, tag = "5")]
    seed: Option<u64>,
    #[prost(uint32, tag = "6")]
    branch: u32,
    #[prost(uint64, tag = "7")]
    record_start: u64,
    #[prost(uint64, tag = "8")]
    record_end: u64,
    #[prost(sint64, optional, tag = "9")]
    time: Option<i64>,
    #[prost(uint64, tag = "10")]
    base_backup: u64,
    #[prost(uint64, tag = "11")]
    log_from: u64,
    #[prost(sint64, optional, tag = "12")]
    latest: Option<i64>,
    #[prost(uint64, tag = "13")]
    plan_micros: u64,
    #[prost(uint64, tag = "14")]
    pages_micros: u64,
    #[prost(uint64, tag = "15")]
    replay_micros: u64,
    #[prost(uint64, tag = "16")]
    answer_micros: u64,
    #[prost(uint64, tag = "17")]
    checks_micros: u64,
    #[prost(uint64, tag = "18")]
    file_bytes: u64,
    #[prost(uint64, tag = "19")]
    log_bytes: u64,
    #[prost(uint64, tag = "20")]
    rows: u64,
    #[prost(string, repeated, tag = "21")]
    not_checked: Vec<String>,
    #[prost(uint64, tag = "22")]
    every_seconds: u64,
    #[prost(string, tag = "23")]
    reason: String,
    #[prost(string, repeated, tag = "24")]
    findings: Vec<String>,
    #[prost(uint64, tag = "25")]
    more_findings: u64,
}

fn short(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

fn encode(drill: &Drill) -> Bytes {
    let mut message = RunMessage {
        begun_at: drill.begun_at.0,
        ended_at: drill.ended_at.0,
        host: short(&drill.host),
        target: short(&drill.target),
        seed: drill.seed,
        branch: drill.branch.0,
        record_start: drill.last_record.map_or(0, |record| record.start.0),
        record_end: drill.last_record.map_or(0, |record| record.end.0),
        time: drill.time.map(|time| time.0),
        base_backup: drill.base_backup,
        log_from: drill.log_from.0,
        latest: drill.latest.map(|time| time.0),
        plan_micros: drill.times.plan,
        pages_micros: drill.times.pages,
        replay_micros: drill.times.replay,
        answer_micros: drill.times.answer,
        checks_micros: drill.times.checks,
        file_bytes: drill.file_bytes,
        log_bytes: drill.log_bytes,
        rows: drill.rows,
        not_checked: drill.not_checked.iter().map(|text| short(text)).collect(),
        every_seconds: drill.every_seconds,
        ..RunMessage::default()
    };
    let kind = match &drill.outcome {
        DrillOutcome::Passed => DrillKind::Passed(message),
        DrillOutcome::Failed {
            reason,
            findings,
            more,
        } => {
            message.reason = short(reason);
            let kept = findings.iter().take(FINDINGS_MAX);
            message.findings = kept.map(|text| short(text)).collect();
            message.more_findings = more + findings.len().saturating_sub(FINDINGS_MAX) as u64;
            DrillKind::Failed(message)
        }
        DrillOutcome::Missed { reason } => {
            message.reason = short(reason);
            DrillKind::Missed(message)
        }
    };
    DrillMessage { kind: Some(kind) }.encode_to_vec().into()
}

fn decode(name: &str, body: Bytes) -> Result<Drill> {
    let message =
        DrillMessage::decode(body).map_err(|_| Error::damaged(name, "its body is malformed"))?;
    let (m, outcome) = match message.kind {
        Some(DrillKind::Passed(m)) => (m, DrillOutcome::Passed),
        Some(DrillKind::Failed(mut m)) => {
            let outcome = DrillOutcome::Failed {
                reason: std::mem::take(&mut m.reason),
                findings: std::mem::take(&mut m.findings),
                more: m.more_findings,
            };
            (m, outcome)
        }
        Some(DrillKind::Missed(mut m)) => {
            let reason = std::mem::take(&mut m.reason);
            (m, DrillOutcome::Missed { reason })
        }
        None => {
            return Err(Error::Newer {
                object: name.to_owned(),
                what: "an entry of an unknown kind".to_owned(),
            });
        }
    };
    Ok(Drill {
        begun_at: Timestamp(m.begun_at),
        ended_at: Timestamp(m.ended_at),
        host: m.host,
        target: m.target,
        seed: m.seed,
        branch: Branch(m.branch),
        last_record: (m.record_end > 0).then_some(RecordSpan {
            start: Position(m.record_start),
            end: Position(m.record_end),
        }),
        time: m.time.map(Timestamp),
        base_backup: m.base_backup,
        log_from: Position(m.log_from),
        latest: m.latest.map(Timestamp),
        times: DrillTimes {
            plan: m.plan_micros,
            pages: m.pages_micros,
            replay: m.replay_micros,
            answer: m.answer_micros,
            checks: m.checks_micros,
        },
        file_bytes: m.file_bytes,
        log_bytes: m.log_bytes,
        rows: m.rows,
        not_checked: m.not_checked,
        outcome,
        every_seconds: m.every_seconds,
    })
}

/// The body of an entry of the log of drills, for people.
pub(crate) fn inspect_body(name: &str, body: Bytes) -> Result<Value> {
    let drill = decode(name, body)?;
    let (word, reason, findings) = match &drill.outcome {
        DrillOutcome::Passed => ("passed", None, &[][..]),
        DrillOutcome::Failed {
            reason, findings, ..
        } => ("failed", Some(reason), &findings[..]),
        DrillOutcome::Missed { reason } => ("missed", Some(reason), &[][..]),
    };
    Ok(json!({word: {
        "begun_at": drill.begun_at,
        "ended_at": drill.ended_at,
        "host": drill.host,
        "target": drill.target,
        "seed": drill.seed,
        "branch": drill.branch,
        "last_record": drill.last_record.map(|record| json!({"start": record.start, "end": record.end})),
        "time": drill.time,
        "base_backup": drill.base_backup,
        "log_from": drill.log_from,
        "latest": drill.latest,
        "micros": {
            "plan": drill.times.plan,
            "pages": drill.times.pages,
            "replay": drill.times.replay,
            "answer": drill.times.answer,
            "checks": drill.times.checks,
        },
        "file_bytes": drill.file_bytes,
        "log_bytes": drill.log_bytes,
        "rows": drill.rows,
        "not_checked": drill.not_checked,
        "every_seconds": drill.every_seconds,
        "reason": reason,
        "findings": findings,
    }}))
}

#[derive(Debug, Default)]
struct DrillState(Vec<Drill>);

impl Logged for DrillState {
    fn apply(&mut self, item: &Item) -> Result<()> {
        let name = format!(
            "drill {} of lineage {}",
            item.head.number,
            borealis_base::LineageId(item.head.owner)
        );
        self.0.push(decode(&name, item.body.clone())?);
        Ok(())
    }
}

/// The drills of a lineage. Many processes may record drills at the same time.
pub struct Drills(NumberedLog<DrillState>);

impl Drills {
    /// Reads the log of drills.
    pub(crate) async fn load(
        track: Track,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        NumberedLog::load(track, clock, entropy).await.map(Self)
    }

    /// All drills, oldest first.
    pub fn all(&self) -> &[Drill] {
        &self.0.state().0
    }

    /// The number of the last entry; zero if there is none.
    pub fn head(&self) -> u64 {
        self.0.head()
    }

    /// Reads what was recorded since.
    pub async fn refresh(&mut self) -> Result<()> {
        self.0.refresh().await
    }

    /// Records a drill; durable when this returns. Returns its number.
    pub async fn record(&mut self, drill: &Drill) -> Result<u64> {
        let body = encode(drill);
        self.0.append(|_| Ok(body.clone())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn drill(outcome: DrillOutcome) -> Drill {
        Drill {
            begun_at: Timestamp(10_000_000),
            ended_at: Timestamp(20_000_000),
            host: "db1".to_owned(),
            target: "random".to_owned(),
            seed: Some(7),
            branch: Branch(1),
            last_record: Some(RecordSpan {
                start: Position(90),
                end: Position(100),
            }),
            time: Some(Timestamp(8_000_000)),
            base_backup: 3,
            log_from: Position(50),
            latest: Some(Timestamp(8_500_000)),
            times: DrillTimes {
                plan: 1,
                pages: 2,
                replay: 3,
                answer: 4,
                checks: 5,
            },
            file_bytes: 6,
            log_bytes: 7,
            rows: 8,
            not_checked: vec!["visibility".to_owned()],
            outcome,
            every_seconds: 604_800,
        }
    }

    #[test]
    fn what_is_recorded_is_read_back() {
        let failed = DrillOutcome::Failed {
            reason: "an index is broken".to_owned(),
            findings: vec!["one".to_owned()],
            more: 2,
        };
        let missed = DrillOutcome::Missed {
            reason: "no room".to_owned(),
        };
        for outcome in [DrillOutcome::Passed, failed, missed] {
            let drill = drill(outcome);
            assert_eq!(decode("drill", encode(&drill)).unwrap(), drill);
        }
    }

    #[test]
    fn very_many_findings_are_counted_and_long_ones_cut() {
        let drill = drill(DrillOutcome::Failed {
            reason: "é".repeat(TEXT_BYTES_MAX),
            findings: vec!["x".to_owned(); FINDINGS_MAX + 5],
            more: 1,
        });
        let DrillOutcome::Failed {
            reason,
            findings,
            more,
        } = decode("drill", encode(&drill)).unwrap().outcome
        else {
            panic!("it failed");
        };
        assert_eq!(
            (reason.len(), findings.len(), more),
            (TEXT_BYTES_MAX, FINDINGS_MAX, 6)
        );
    }

    #[test]
    fn recovery_is_until_the_server_answers_and_loss_until_the_drill_began() {
        let drill = drill(DrillOutcome::Passed);
        assert_eq!(drill.times.recovery(), 10);
        assert_eq!(drill.loss_window(), Some(1_500_000));
    }
}
