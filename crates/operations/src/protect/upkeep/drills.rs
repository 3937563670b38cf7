//! Drills beside a running protection: in a process of their own, which gives way to others, at a quiet moment
//! and never beside a base backup.

use std::convert::Infallible;
use std::process::Stdio;
use std::time::Duration;

use borealis_base::{ErrorKind, Timestamp, show_duration};
use borealis_repository::drills::{Drill, DrillOutcome};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, Command};

use super::{RETRY_PAUSE, SLEEP_MAX, Upkeep, first_due, start_pause};
use crate::error::{Error, Result};
use crate::host;

/// The niceness of a drill.
const NICENESS: &str = "10";
/// Load by processor below which a moment is quiet.
const QUIET_LOAD: f64 = 0.5;
/// The longest that a quiet moment is waited for; a seventh of shorter intervals.
const QUIET_WAIT_MAX: Duration = Duration::from_hours(24);
/// How often it is looked whether a moment is quiet and no base backup is taken.
const QUIET_LOOK_INTERVAL: Duration = Duration::from_mins(1);
/// How long a drill that is given up may take to remove what it made.
const END_TIMEOUT: Duration = Duration::from_mins(1);
/// What is kept of a drill's error output.
const WORDS_BYTES_MAX: usize = 16 << 10;
/// Exit codes of a drill that has recorded what it came to: passed, and damaged.
const RECORDED: [i32; 2] = [0, 6];

/// What became of a drill that was due.
enum Ended {
    Recorded,
    NotRun(String),
}

impl Upkeep<'_> {
    pub(super) async fn drill_for_ever(&self) -> Infallible {
        let Some(every) = self.options.drill_every else {
            return std::future::pending().await;
        };
        if self.options.drill_command.is_empty() {
            return std::future::pending().await;
        }
        let pause = start_pause(every);
        tokio::time::sleep(pause).await;
        loop {
            let wait = match self.drill_if_due(every).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(%error, "no drill could be run; tried again later");
                    RETRY_PAUSE
                }
            };
            let least = pause.min(Duration::from_secs(1));
            tokio::time::sleep(wait.clamp(least, SLEEP_MAX)).await;
        }
    }

    /// Runs one if it is due; returns how long to wait for the next look.
    async fn drill_if_due(&self, every: Duration) -> Result<Duration> {
        let mut drills = self.lineage.drills().await?;
        let first = (self.ledger)
            .read(|state| state.base_backups.first().map(|base| base.ended_at))
            .await;
        let Some(first) = first else {
            return Ok(RETRY_PAUSE.min(start_pause(every)));
        };
        let last = drills.all().iter().rev().find(|drill| drill.was_run());
        let due = last.map_or_else(|| first_due(first, every), |last| last.begun_at.plus(every));
        let now = self.site.clock().now();
        if due > now {
            return Ok(due.since(now));
        }
        let patience = (every / 7).min(QUIET_WAIT_MAX);
        let late = now.since(due);
        let load = host::load_per_processor();
        if late < patience && load.is_some_and(|load| load > QUIET_LOAD) {
            return Ok(QUIET_LOOK_INTERVAL.min(patience));
        }
        let Some(_turn) = self.turns.drill() else {
            return Ok(QUIET_LOOK_INTERVAL.min(patience));
        };
        let reason = match self.run_drill(every).await? {
            Ended::Recorded => return Ok(every),
            Ended::NotRun(reason) => reason,
        };
        tracing::warn!(reason, due = %due, "a drill was due and was not run");
        let told = |drill: &Drill| !drill.was_run() && drill.begun_at.plus(every) > now;
        if late >= patience && !drills.all().iter().any(told) {
            drills.record(&missed(due, now, reason, every)).await?;
        }
        Ok(RETRY_PAUSE.min(start_pause(every)))
    }

    async fn run_drill(&self, every: Duration) -> Result<Ended> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Refused, format!("run borealis drill: {error}"))
        };
        let Some((program, arguments)) = self.options.drill_command.split_first() else {
            return Ok(Ended::NotRun("there is no program to run it".to_owned()));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(["drill", "--to", "random", "--nice", NICENESS])
            .args(["--cluster", &self.cluster.name])
            .args(["--scheduled-every", &every.as_secs().to_string()]);
        if let Some(directory) = &self.options.drill_directory {
            command.arg("--scratch").arg(directory);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A Ctrl-C meant for us is passed on in good order.
            .process_group(0);
        tracing::info!("a drill begins");
        let mut child = command.spawn().map_err(failed)?;
        let mut ending = Ending(child.id());
        let errors = child.stderr.take();
        let mut ended = std::pin::pin!(async { tokio::join!(child.wait(), listen(errors)) });
        let done = tokio::select! {
            done = &mut ended => Some(done),
            () = self.turns.wanted() => None,
        };
        let Some((status, words)) = done else {
            ending.ask();
            // It removes what it made; if it takes longer, the next one does.
            let _ = tokio::time::timeout(END_TIMEOUT, &mut ended).await;
            let why = "a base backup was due meanwhile, and waited for as long as it may";
            return Ok(Ended::NotRun(why.to_owned()));
        };
        ending.0 = None;
        let status = status.map_err(failed)?;
        let words = String::from_utf8_lossy(&words);
        let words = words.trim();
        match status.code() {
            Some(code) if RECORDED.contains(&code) => {
                if code == 0 {
                    tracing::info!("the drill passed");
                } else {
                    tracing::error!(words, "THE DRILL FAILED: see borealis status");
                }
                Ok(Ended::Recorded)
            }
            _ => {
                let error = words.lines().rev().find(|line| line.starts_with("error"));
                let said = error
                    .or_else(|| words.lines().last())
                    .unwrap_or("it said nothing");
                Ok(Ended::NotRun(said.to_owned()))
            }
        }
    }
}

/// The end of what a process says.
async fn listen(errors: Option<ChildStderr>) -> Vec<u8> {
    let mut words = Vec::new();
    let Some(mut errors) = errors else {
        return words;
    };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = errors.read(&mut buffer).await {
        words.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let surplus = words.len().saturating_sub(WORDS_BYTES_MAX);
        words.drain(..surplus);
    }
    words
}

/// Asks a drill to end when the protection does.
struct Ending(Option<u32>);

impl Ending {
    fn ask(&self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.ask();
    }
}

fn missed(due: Timestamp, now: Timestamp, reason: String, every: Duration) -> Drill {
    let target = format!("random, due {due}, {} ago", show_duration(now.since(due)));
    let outcome = DrillOutcome::Missed { reason };
    Drill {
        every_seconds: every.as_secs(),
        ..Drill::without_plan(now, host::name(), target, outcome)
    }
}
