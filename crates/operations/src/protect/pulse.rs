//! Signs of life of a running protection, for a service manager that restarts what hangs.
//!
//! They are given where the work is done and nowhere else: by each turn of the loop that ships log, which
//! turns at least every [`HEARTBEAT_INTERVAL`](super::ship::HEARTBEAT_INTERVAL), and by each answer of the
//! repository, a refusal too: `protect` waits for room and for stores that are away, and a restart would not
//! bring them back. No timer gives one, so that nothing looks alive beside a loop that hangs.
//!
//! No part covers for another: while the receiver has not heard of the server for [`PART_SILENCE_MAX`], or the
//! shipper works on one stretch for as long, and neither waits for the other or for the repository, signs from
//! elsewhere count for nothing. Base backups and the reading back are not watched: they wait for the server and
//! for the store by design.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use borealis_base::{Clock, Position};

/// How long a part may take for one step of its own. The receiver's longest is to connect, with the pause before
/// it, and then a silence that breaks the connection: less than a minute and a half. The shipper's is to index
/// and seal a log piece: seconds.
pub const PART_SILENCE_MAX: Duration = Duration::from_mins(5);
/// The longest pause between two signs of a healthy protection: an upload of the largest log piece to a bucket,
/// tried as often and as long as one request is (five times 94 s, and pauses), behind an idle heartbeat.
pub const SIGN_PAUSE_MAX: Duration = Duration::from_mins(10);
/// Signs are passed on no more often.
const SIGN_INTERVAL: Duration = Duration::from_secs(1);

/// Whoever watches the process from outside.
pub trait Watcher: Send + Sync {
    /// Log streams for the first time: whatever the server writes from now on is captured.
    fn ready(&self);
    /// What goes on, in one line for people.
    fn status(&self, line: &str);
    /// The work has gone on since the last sign.
    fn alive(&self);
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWatcher;

impl Watcher for NoWatcher {
    fn ready(&self) {}
    fn status(&self, _line: &str) {}
    fn alive(&self) {}
}

/// Where the parts of a protection give their signs of life.
#[derive(Clone)]
pub struct Pulse {
    clock: Arc<dyn Clock>,
    watcher: Arc<dyn Watcher>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    ready: bool,
    /// Since when the receiver waits for the server; `None` while it does not.
    waits_for_server: Option<Duration>,
    /// Since when the shipper works on what it has; `None` while it waits for more or for the repository.
    works: Option<Duration>,
    /// When the last sign was passed on.
    last_sign: Option<Duration>,
    silence_told: bool,
    status: String,
}

impl Pulse {
    /// Signs for `watcher`.
    pub fn new(clock: Arc<dyn Clock>, watcher: Arc<dyn Watcher>) -> Self {
        Self {
            clock,
            watcher,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has begun to send log from `position` on.
    pub fn streams(&self, position: Position) {
        self.waits_for_server();
        self.say(format!("streaming log from {position} on"));
        if !std::mem::replace(&mut self.state().ready, true) {
            self.watcher.ready();
        }
    }

    /// The receiver begins to wait for the server, after it has heard of it or failed to.
    pub fn waits_for_server(&self) {
        self.state().waits_for_server = Some(self.clock.elapsed());
    }

    /// The receiver waits for the shipper, or has ended.
    pub fn waits_for_shipper(&self) {
        self.state().waits_for_server = None;
    }

    /// The shipper begins to work on what it has, and waits for nobody.
    pub fn works(&self) {
        self.state().works = Some(self.clock.elapsed());
    }

    /// The shipper begins to wait, for the repository or for more.
    pub fn waits(&self) {
        self.state().works = None;
    }

    /// The work has gone on: a turn of a loop, or an answer of the repository.
    pub fn turn(&self) {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let hangs = |since: Option<Duration>| {
            since.is_some_and(|since| now.saturating_sub(since) > PART_SILENCE_MAX)
        };
        if hangs(state.waits_for_server) || hangs(state.works) {
            if !std::mem::replace(&mut state.silence_told, true) {
                tracing::error!(
                    receiver = hangs(state.waits_for_server),
                    shipper = hangs(state.works),
                    "a part of the protection hangs; no sign of life is given until it goes on"
                );
            }
            return;
        }
        state.silence_told = false;
        let recent = |last: Duration| now.saturating_sub(last) < SIGN_INTERVAL;
        if !state.last_sign.is_some_and(recent) {
            state.last_sign = Some(now);
            drop(state);
            self.watcher.alive();
        }
    }

    /// Tells what goes on, where that is news.
    pub fn say(&self, line: String) {
        let mut state = self.state();
        if state.status != line {
            self.watcher.status(&line);
            state.status = line;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{ManualClock, Timestamp};

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Seen {
        fn push(&self, what: &str) {
            self.0.lock().unwrap().push(what.to_owned());
        }
        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Watcher for Seen {
        fn ready(&self) {
            self.push("ready");
        }
        fn status(&self, line: &str) {
            self.push(line);
        }
        fn alive(&self) {
            self.push("alive");
        }
    }

    fn watched() -> (Arc<ManualClock>, Arc<Seen>, Pulse) {
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let seen = Arc::new(Seen::default());
        let pulse = Pulse::new(clock.clone(), seen.clone());
        (clock, seen, pulse)
    }

    #[test]
    fn it_is_ready_once_and_a_status_is_told_when_it_is_news() {
        let (_, seen, pulse) = watched();
        pulse.streams(Position(0x0100_0000));
        pulse.streams(Position(0x0100_0000));
        pulse.say("waiting".to_owned());
        pulse.say("waiting".to_owned());
        pulse.streams(Position(0x0200_0000));
        let streaming = |position| format!("streaming log from 0/{position} on");
        let expected = [
            streaming("1000000"),
            "ready".to_owned(),
            "waiting".to_owned(),
            streaming("2000000"),
        ];
        assert_eq!(seen.take(), expected);
    }

    #[test]
    fn signs_are_passed_on_as_work_goes_on_and_not_more_often_than_each_second() {
        let (clock, seen, pulse) = watched();
        pulse.turn();
        pulse.turn();
        assert_eq!(seen.take(), ["alive"]);
        clock.advance(SIGN_INTERVAL);
        assert!(seen.take().is_empty(), "time alone gives no sign");
        pulse.turn();
        assert_eq!(seen.take(), ["alive"]);
    }

    #[test]
    fn a_receiver_that_hangs_is_not_covered_by_a_shipper_that_turns() {
        let (clock, seen, pulse) = watched();
        pulse.waits_for_server();
        clock.advance(PART_SILENCE_MAX);
        pulse.turn();
        assert_eq!(seen.take(), ["alive"]);
        clock.advance(SIGN_INTERVAL);
        pulse.turn();
        assert!(seen.take().is_empty(), "the receiver hangs");
        // It was only slow.
        pulse.waits_for_server();
        pulse.turn();
        assert_eq!(seen.take(), ["alive"]);
    }

    #[test]
    fn a_receiver_that_waits_for_the_shipper_does_not_hang() {
        let (clock, seen, pulse) = watched();
        pulse.waits_for_server();
        pulse.waits_for_shipper();
        clock.advance(PART_SILENCE_MAX * 3);
        pulse.turn();
        assert_eq!(seen.take(), ["alive"]);
    }

    #[test]
    fn a_shipper_that_hangs_is_not_covered_by_answers_to_others_and_one_that_waits_is() {
        let (clock, seen, pulse) = watched();
        pulse.works();
        clock.advance(PART_SILENCE_MAX * 2);
        // The entry of a base backup was appended.
        pulse.turn();
        assert!(seen.take().is_empty(), "the shipper hangs");
        pulse.waits();
        pulse.turn();
        assert_eq!(seen.take(), ["alive"]);
    }
}
