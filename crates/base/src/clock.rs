//! Time, passed in.

use std::sync::Mutex;
use std::time::Duration;

use crate::Timestamp;

/// A source of time.
pub trait Clock: Send + Sync {
    /// The moment now, by this machine's wall clock, which may step.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment; never steps back, and goes on while the machine sleeps.
    fn elapsed(&self) -> Duration;
}

/// The operating system's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp(
            time.tv_sec
                .saturating_mul(1_000_000)
                .saturating_add(time.tv_nsec / 1_000),
        )
    }

    fn elapsed(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            time.tv_sec.unsigned_abs(),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Timestamp, Duration)>);

impl ManualClock {
    /// A clock that stands at `now`.
    pub const fn new(now: Timestamp) -> Self {
        Self(Mutex::new((now, Duration::ZERO)))
    }

    /// Lets `duration` pass on both clocks.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.0.lock().expect("no holder panics");
        state.0 = state.0.plus(duration);
        state.1 += duration;
    }

    /// Steps the wall clock, in either direction, with no time passing.
    pub fn step_to(&self, now: Timestamp) {
        self.0.lock().expect("no holder panics").0 = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.lock().expect("no holder panics").0
    }

    fn elapsed(&self) -> Duration {
        self.0.lock().expect("no holder panics").1
    }
}
