//! Watches whether the root key may still be used, and follows the rings of the repository.
//!
//! What is held in memory would go on sealing for as long as the process runs, whatever became of the root
//! key. So the key's service is asked at an interval to open the newest ring. A plain "no" ends the
//! protection at once: nothing is published for a key that is disabled, deleted or forbidden. No answer is no
//! "no": it is said, and borne for a stated time. A ring that others have made meanwhile is taken over, and
//! a data key that has come of age is followed by another.

use std::time::Duration;

use borealis_base::{ErrorKind, show_duration};
use borealis_repository::{Lineage, Repository, sealed_since};
use tokio::time::MissedTickBehavior;

use super::ledger::Ledger;
use super::pulse::Pulse;
use crate::error::Error;

/// How the root key is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyPatience {
    /// How often its service is asked.
    pub interval: Duration,
    /// How long the service may give no answer before nothing more is published.
    pub outage_max: Duration,
}

impl Default for KeyPatience {
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(1),
            outage_max: Duration::from_hours(24),
        }
    }
}

/// A root key under watch.
pub(super) struct KeyWatch<'a> {
    pub(super) repository: &'a Repository,
    pub(super) lineage: &'a Lineage,
    pub(super) ledger: &'a Ledger,
    pub(super) pulse: &'a Pulse,
    pub(super) patience: KeyPatience,
}

/// What one question has led to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The key opens the newest ring.
    Good,
    /// Its service has given no answer for so long.
    Silent(Duration),
    /// The store could not be asked for the ring, which has its own patience.
    Unknown,
    /// Nothing may be published any more.
    End,
}

/// Since when the key's service has given no answer.
#[derive(Default)]
struct Silence(Option<Duration>);

impl Silence {
    fn judge(
        &mut self,
        asked: &Result<(), borealis_repository::Error>,
        now: Duration,
        outage_max: Duration,
    ) -> Verdict {
        let error = match asked {
            Ok(()) => {
                self.0 = None;
                return Verdict::Good;
            }
            Err(error) => error,
        };
        match error {
            borealis_repository::Error::Keys(keys) if keys.kind() == ErrorKind::Unreachable => {
                let silent = now.saturating_sub(*self.0.get_or_insert(now));
                if silent >= outage_max {
                    Verdict::End
                } else {
                    Verdict::Silent(silent)
                }
            }
            error if error.is_transient() => Verdict::Unknown,
            _ => Verdict::End,
        }
    }
}

impl KeyWatch<'_> {
    /// Returns the error that ends the protection.
    pub(super) async fn until_unusable(&self) -> Error {
        let mut tick = tokio::time::interval(self.patience.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // It has just opened the repository.
        tick.tick().await;
        let mut silence = Silence::default();
        loop {
            tick.tick().await;
            let asked = self.repository.check_key(Some(self.lineage)).await;
            let now = self.lineage.clock().elapsed();
            let was_silent = silence.0.is_some();
            let verdict = silence.judge(&asked, now, self.patience.outage_max);
            match (verdict, asked) {
                (Verdict::Good, _) => {
                    if was_silent {
                        tracing::info!("the root key's service answers again");
                        self.pulse.say("streaming log".to_owned());
                    }
                    follow(self.repository, self.lineage, self.ledger).await;
                }
                (Verdict::Silent(silent), Err(error)) => {
                    let told = format!(
                        "the root key's service gives no answer since {}; this goes on for {} at most: {error}",
                        show_duration(silent),
                        show_duration(self.patience.outage_max)
                    );
                    tracing::warn!("{told}");
                    self.pulse.say(told);
                }
                (Verdict::End, Err(error)) => return ended(error, &silence),
                (Verdict::Unknown | Verdict::Silent(_) | Verdict::End, asked) => {
                    tracing::debug!(?asked, "the newest key ring could not be read");
                }
            }
        }
    }
}

fn ended(error: borealis_repository::Error, silence: &Silence) -> Error {
    if silence.0.is_none() {
        return error.into();
    }
    Error::with_hint(
        ErrorKind::Unreachable,
        format!(
            "the root key could not be asked for too long, and nothing more is published: {error}"
        ),
        "Bring its service back; the log waits in the replication slot meanwhile.",
    )
}

/// Has the next data key seal where the present one has come of age. Where that fails, the next question
/// tries it again: the present one goes on sealing.
async fn follow(repository: &Repository, lineage: &Lineage, ledger: &Ledger) {
    let since = lineage.keys().current().created;
    let sealed = ledger.read(|state| sealed_since(state, since)).await;
    match repository.follow_data_keys(lineage, sealed).await {
        Ok(true) => tracing::info!("a new data key seals from now on"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "no new data key was made; trying again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_keys::{Error as KeyError, Why};
    use borealis_repository::store::{StoreError, StoreErrorKind};

    const MAX: Duration = Duration::from_secs(100);

    fn silent() -> Result<(), borealis_repository::Error> {
        Err(KeyError::Unreachable {
            service: "service".into(),
            what: "no answer".into(),
        }
        .into())
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_no_ends_at_once_and_silence_only_after_the_stated_time() {
        for why in [
            Why::Disabled,
            Why::Dying,
            Why::Gone,
            Why::Forbidden,
            Why::Unknown,
        ] {
            let no = Err(KeyError::Unusable {
                key: "key".into(),
                why,
                said: "so".into(),
            }
            .into());
            let verdict = Silence::default().judge(&no, at(0), MAX);
            assert_eq!(verdict, Verdict::End, "{why:?}");
        }
        let mut silence = Silence::default();
        assert_eq!(
            silence.judge(&silent(), at(10), MAX),
            Verdict::Silent(at(0))
        );
        assert_eq!(
            silence.judge(&silent(), at(109), MAX),
            Verdict::Silent(at(99))
        );
        assert_eq!(silence.judge(&Ok(()), at(109), MAX), Verdict::Good);
        assert_eq!(
            silence.judge(&silent(), at(150), MAX),
            Verdict::Silent(at(0)),
            "an answer begins the time anew"
        );
        assert_eq!(silence.judge(&silent(), at(250), MAX), Verdict::End);
    }

    #[test]
    fn a_sealed_vault_is_silent_and_a_store_that_is_away_is_not_the_keys_fault() {
        let sealed = Err(KeyError::Sealed {
            service: "Vault".into(),
        }
        .into());
        let mut silence = Silence::default();
        assert_eq!(silence.judge(&sealed, at(0), MAX), Verdict::Silent(at(0)));
        let away = StoreError::new(
            StoreErrorKind::Unreachable,
            "read",
            "keys/1",
            "s3://b",
            "503",
        );
        let mut silence = Silence::default();
        for now in [0, 1_000] {
            let verdict = silence.judge(&Err(away.clone().into()), at(now), MAX);
            assert_eq!(verdict, Verdict::Unknown);
        }
    }
}
