//! Who writes a lineage, whether it still lives, and what a second writer may do about it.
//!
//! None of this protects the ledger: epochs do, whoever is mistaken about whose life. It spares people
//! a writer that is replaced while it works.

use std::time::Duration;

use borealis_base::Timestamp;

/// A writer elsewhere that has shown no sign of life for this long is taken for dead. Writers append
/// at least every minute, so this is two missed heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_mins(2);

/// A process that writes a lineage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holder {
    /// Identity of the machine, stable over restarts of the process and told apart from other machines.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// When that process started, in whatever unit the machine counts: tells a reused process id.
    pub process_start: u64,
    /// Where it listens for commands; empty if it does not.
    pub control: String,
    /// Program and version.
    pub program: String,
    /// Whether the store ignored create-if-absent when it opened: nothing fences it, nor did it fence
    /// anybody.
    pub single_writer: bool,
}

/// What is known of the present holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// Who.
    pub holder: Holder,
    /// Its epoch.
    pub epoch: u64,
    /// The later of when it took its epoch and its last entry, by its own clock.
    pub last_sign: Timestamp,
    /// Whether it said that it stops.
    pub closed: bool,
}

/// What a starting writer is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nobody writes: open.
    Free,
    /// The holder is dead: open in its place.
    Replace,
    /// The holder is silent, or the caller insists: open, and it will find itself fenced.
    TakeOver,
    /// The holder lives: stop.
    Refuse {
        /// Time since its last sign of life.
        silent_for: Duration,
        /// How long until its silence would be taken for death; `None` where it is known to live.
        dead_after: Option<Duration>,
    },
}

/// Decides. `alive_here` is the answer of this machine's process table, `None` where the holder is on
/// another machine or the table cannot be asked.
pub fn decide(
    present: Option<&Presence>,
    alive_here: Option<bool>,
    now: Timestamp,
    take_over: bool,
) -> Decision {
    let Some(present) = present.filter(|present| !present.closed) else {
        return Decision::Free;
    };
    let silent_for = now.since(present.last_sign);
    match alive_here {
        Some(false) => Decision::Replace,
        _ if take_over => Decision::TakeOver,
        Some(true) => Decision::Refuse {
            silent_for,
            dead_after: None,
        },
        None if silent_for > SILENCE_MAX => Decision::TakeOver,
        None => Decision::Refuse {
            silent_for,
            dead_after: Some(SILENCE_MAX.saturating_sub(silent_for)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(closed: bool) -> Presence {
        Presence {
            holder: Holder::default(),
            epoch: 1,
            last_sign: Timestamp(0),
            closed,
        }
    }

    #[test]
    fn the_living_are_refused_and_the_dead_replaced() {
        let (soon, late) = (Timestamp(60_000_000), Timestamp(121_000_000));
        let decide =
            |alive, now, take_over| super::decide(Some(&presence(false)), alive, now, take_over);
        assert_eq!(decide(Some(false), soon, false), Decision::Replace);
        assert_eq!(decide(Some(true), soon, true), Decision::TakeOver);
        assert_eq!(decide(None, soon, true), Decision::TakeOver);
        assert_eq!(decide(None, late, false), Decision::TakeOver);
        let minute = Duration::from_mins(1);
        assert_eq!(
            decide(None, soon, false),
            Decision::Refuse {
                silent_for: minute,
                dead_after: Some(minute)
            }
        );
        // A process of this machine that lives and is silent is busy, not dead.
        assert!(matches!(
            decide(Some(true), late, false),
            Decision::Refuse { .. }
        ));
    }

    #[test]
    fn a_lineage_without_a_writer_is_free() {
        assert_eq!(decide(None, None, Timestamp(0), false), Decision::Free);
        assert_eq!(
            decide(Some(&presence(true)), None, Timestamp(0), false),
            Decision::Free
        );
    }

    #[test]
    fn a_clock_that_stepped_back_kills_nobody() {
        let decision = decide(
            Some(&presence(false)),
            None,
            Timestamp(-3_600_000_000),
            false,
        );
        assert!(matches!(decision, Decision::Refuse { .. }));
    }
}
