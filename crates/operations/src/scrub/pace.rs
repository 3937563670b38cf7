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
        let wait = {
            let now = self.clock.elapsed();
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(rate) = state.rate {
                let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
                // What was not used up before is not saved up.
                state.free_at = state.free_at.max(now.saturating_sub(takes)) + takes;
            }
            state.free_at.saturating_sub(now)
        };
        if !wait.is_zero() {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        !self.stop.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{ManualClock, Timestamp};

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_and_idle_time_is_not_saved_up() {
        let clock = Arc::new(ManualClock::new(Timestamp(0)));
        let pace = Pace::new(
            clock.clone(),
            Some(ByteLen(1_000)),
            CancellationToken::new(),
        );
        let spend = async |bytes| {
            let before = tokio::time::Instant::now();
            assert!(pace.spend(bytes).await);
            let waited = before.elapsed();
            clock.advance(waited);
            waited
        };
        // The first one was read before anything was due.
        assert_eq!(spend(2_000).await, Duration::from_secs(2));
        assert_eq!(spend(500).await, Duration::from_millis(500));
        clock.advance(Duration::from_secs(3600));
        assert_eq!(spend(4_000).await, Duration::ZERO);
        assert_eq!(spend(1_000).await, Duration::from_secs(1));
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
