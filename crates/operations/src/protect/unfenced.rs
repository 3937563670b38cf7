//! Opening a writer where the store fences nobody (single-writer mode).
//!
//! The ledger's epochs hold only where creates are atomic. Where they are not, a writer that is still
//! alive, or a request of one that is dead, can replace what its successor has written. What is left is to
//! succeed nobody who may be alive, and to let the requests of the dead end first.

use std::time::Duration;

use borealis_repository::ledger::Decision;
use borealis_repository::store::{Fencing, Store};

use crate::error::{Error, Result};

/// How long the successor of a dead writer waits. Its connections were closed when it died; this is for
/// what the store had received by then.
const REQUESTS_END: Duration = Duration::from_secs(10);

/// Sees to it that a writer that opens upon `decision`, which is not to refuse, follows nobody who may
/// still write. `insists`: a person says that the other one has stopped. Returns whether the writer is in
/// single-writer mode.
///
/// # Errors
/// Refused where the other one is only silent, and where the URL forbids single-writer mode.
pub async fn follow(store: &dyn Store, decision: &Decision, insists: bool) -> Result<bool> {
    let fencing = store.fencing().await;
    let fencing = fencing.map_err(borealis_repository::Error::from)?;
    let pause = pause_before(fencing, decision, insists)?;
    if !pause.is_zero() {
        tracing::info!("single-writer mode: waiting until requests of the last protect have ended");
        tokio::time::sleep(pause).await;
    }
    Ok(fencing == Fencing::SingleWriter)
}

/// How long a writer waits before it opens.
fn pause_before(fencing: Fencing, decision: &Decision, insists: bool) -> Result<Duration> {
    if fencing == Fencing::Atomic {
        return Ok(Duration::ZERO);
    }
    match decision {
        Decision::TakeOver if !insists => Err(Error::refused(
            "the protect of this cluster is silent, and the store can't keep it from writing: it ignores \
             create-if-absent (single-writer mode)",
            "Make sure that it has stopped, then run borealis protect with --take-over.",
        )),
        Decision::Replace | Decision::TakeOver => Ok(REQUESTS_END),
        Decision::Free | Decision::Refuse { .. } => Ok(Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::ErrorKind;

    #[test]
    fn a_silent_writer_is_never_replaced_where_nothing_fences() {
        let refused = pause_before(Fencing::SingleWriter, &Decision::TakeOver, false);
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(refused.hint().unwrap().contains("--take-over"));
        let fenced = pause_before(Fencing::Atomic, &Decision::TakeOver, false);
        assert_eq!(fenced.unwrap(), Duration::ZERO);
    }

    #[test]
    fn requests_of_the_dead_are_waited_for_where_nothing_fences() {
        for (decision, insists, pause) in [
            (Decision::Replace, false, REQUESTS_END),
            (Decision::TakeOver, true, REQUESTS_END),
            (Decision::Free, false, Duration::ZERO),
        ] {
            let waits = pause_before(Fencing::SingleWriter, &decision, insists).unwrap();
            assert_eq!(waits, pause, "{decision:?}");
        }
    }
}
