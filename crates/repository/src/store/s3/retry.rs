//! How often and how long one request is tried. Above this, writers have a patience of their own.

use std::future::Future;
use std::time::Duration;

use borealis_base::Entropy;

use super::answer::Verdict;
use crate::store::{Counters, StoreError};

/// Tries of one request, the first included.
pub(super) const ATTEMPTS_MAX: u32 = 5;
/// The pause after the first try is below this; it doubles from try to try.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take, besides the time for the bytes that are sent.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes a second below which an upload is taken for stuck.
const SENT_PER_SECOND_MIN: u64 = 256 << 10;

/// A request that did not succeed: what that means, and how it is told.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) verdict: Verdict,
    pub(super) error: StoreError,
}

/// How long a request that sends `bytes` may take.
pub(super) fn time_limit(bytes: usize) -> Duration {
    ANSWER_TIMEOUT + Duration::from_secs(bytes as u64 / SENT_PER_SECOND_MIN)
}

/// The pause after try `attempt` (from 1): at least half of what it is at most, so that those who were
/// throttled together do not come back together.
pub(super) fn pause(attempt: u32, entropy: &dyn Entropy) -> Duration {
    let longest = (PAUSE_FIRST * (1 << attempt.saturating_sub(1).min(16))).min(PAUSE_MAX);
    let mut random = [0; 4];
    entropy.fill(&mut random);
    let part = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    longest.mul_f64(0.5 + part / 2.0)
}

/// Tries `once` until it succeeds, fails for good or has been tried often enough. `once` says by itself
/// when it has waited too long.
pub(super) async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
    counters: &Counters,
    entropy: &dyn Entropy,
    mut once: impl FnMut() -> F,
) -> Result<T, Failure> {
    let mut attempt = 1;
    loop {
        match once().await {
            Err(failure) if failure.verdict == Verdict::Later && attempt < ATTEMPTS_MAX => {
                tracing::debug!(error = %failure.error, attempt, "trying again");
                counters.retry();
                tokio::time::sleep(pause(attempt, entropy)).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreErrorKind;
    use borealis_base::SeededEntropy;

    fn failure(verdict: Verdict) -> Failure {
        let error = StoreError::new(StoreErrorKind::Unreachable, "read", "x", "s3://b", "503");
        Failure { verdict, error }
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded_and_counted() {
        let (counters, entropy) = (Counters::default(), SeededEntropy::new(1));
        let mut tries = 0;
        let outcome: Result<(), _> = patiently(&counters, &entropy, || {
            tries += 1;
            std::future::ready(Err(failure(Verdict::Later)))
        })
        .await;
        assert!(outcome.is_err());
        assert_eq!(tries, ATTEMPTS_MAX);
        assert_eq!(counters.usage().retries, u64::from(ATTEMPTS_MAX) - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_change_is_tried_once() {
        let (counters, entropy) = (Counters::default(), SeededEntropy::new(1));
        let verdict = Verdict::Never(StoreErrorKind::Denied);
        let outcome: Result<(), _> = patiently(&counters, &entropy, || {
            std::future::ready(Err(failure(verdict)))
        })
        .await;
        assert_eq!(outcome.unwrap_err().verdict, verdict);
        assert_eq!(counters.usage().retries, 0);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let entropy = SeededEntropy::new(2);
        let pauses: Vec<_> = (0..8).map(|_| pause(1, &entropy)).collect();
        assert!(
            pauses
                .iter()
                .all(|p| *p <= PAUSE_FIRST && *p >= PAUSE_FIRST / 2)
        );
        assert!(
            pauses.iter().any(|p| *p != pauses[0]),
            "no jitter: {pauses:?}"
        );
        assert!(pause(40, &entropy) <= PAUSE_MAX);
        assert_eq!(
            time_limit(32 << 20),
            ANSWER_TIMEOUT + Duration::from_secs(128)
        );
    }
}
