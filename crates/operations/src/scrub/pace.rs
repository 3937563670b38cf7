//! A bound on how fast something is read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use borealis_base::{ByteLen, Clock};
use tokio_util::sync::CancellationToken;

/// Lets bytes pass at a rate.
pub struct Pace {
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    state: Mutex<State>,
}

struct State {
    /// Bytes a second; `None` without bound.
    rate: Option<u64>,
    /// From when on more may be read, by the clock's elapsed time.
    free_at: Duration,
}

impl Pace {
    /// A bound of `rate` bytes a second, which `stop` ends.
    pub fn new(clock: Arc<dyn Clock>, rate: Option<ByteLen>, stop: CancellationToken) -> Self {
        let state = State {
            rate: rate.map(|rate| rate.0.max(1)),
            free_at: clock.elapsed(),
        };
        Self {
            clock,
            stop,
            state: Mutex::new(state),
        }
    }

    /// Another rate, from now on.
    pub fn set(&self, rate: ByteLen) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.rate = Some(rate.0.max(1));
    }

    /// Waits for as long as `bytes` take at this rate, less what has passed already. False once it is to stop.
    pub async fn spend(&self, bytes: u64) -> bool {
        let wait = self.wait_for(bytes);
        if !wait.is_zero() {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        !self.stop.is_cancelled()
    }

    /// How long to wait once `bytes` were read.
    fn wait_for(&self, bytes: u64) -> Duration {
        let now = self.clock.elapsed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = state.rate {
            let micros = u128::from(bytes) * 1_000_000 / u128::from(rate);
            let takes = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
            // Time in which nothing was read is not saved up.
            state.free_at = state.free_at.max(now.saturating_sub(takes)) + takes;
        }
        state.free_at.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{ManualClock, Timestamp};

    #[test]
    fn bytes_pass_at_the_rate_and_idle_time_is_not_saved_up() {
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let stop = CancellationToken::new();
        let pace = Pace::new(clock.clone(), Some(ByteLen(1_000)), stop.clone());
        let spend = |bytes| {
            let wait = pace.wait_for(bytes);
            clock.advance(wait);
            wait
        };
        assert_eq!(spend(2_000), Duration::from_secs(2));
        assert_eq!(spend(500), Duration::from_millis(500));
        clock.advance(Duration::from_secs(3600));
        assert_eq!(spend(4_000), Duration::ZERO);
        assert_eq!(spend(1_000), Duration::from_secs(1));
        pace.set(ByteLen(2_000));
        assert_eq!(spend(1_000), Duration::from_millis(500));
        let free = Pace::new(clock.clone(), None, stop);
        assert_eq!(free.wait_for(u64::MAX), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_stop_ends_the_waiting() {
        let stop = CancellationToken::new();
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let pace = Pace::new(clock, Some(ByteLen(1)), stop.clone());
        stop.cancel();
        assert!(!pace.spend(1 << 40).await);
    }
}
