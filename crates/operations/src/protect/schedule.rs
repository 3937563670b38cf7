//! When the next base backup is due. Pure.

use std::time::Duration;

use borealis_base::{ByteLen, show_duration};

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// A base backup is due when this much log was written since the last one began.
    pub every_log: ByteLen,
    /// And at least this often, unless nothing was written.
    pub every: Duration,
}

/// What has happened since the last base backup.
#[derive(Debug, Clone, Copy)]
pub struct Since {
    /// Log from the last base backup's start to the durable end.
    pub log: u64,
    /// Of that, what the base backup itself wrote: its checkpoint and the rest of a switched
    /// segment. It does not count, or an idle server would be backed up for being backed up.
    pub own_log: u64,
    /// Time since the last base backup began.
    pub elapsed: Duration,
    /// The server's `checkpoint_timeout`. Each base backup forces a checkpoint, and more frequent
    /// checkpoints mean more full-page images, so base backups come no faster than that.
    pub checkpoint_timeout: Duration,
}

/// Log that counts as nothing: an idle server writes a checkpoint and a snapshot of its transactions
/// after each base backup, and would else be backed up for ever. Replaying it takes no time.
pub const IDLE_LOG_BYTES: u64 = 64 << 10;

/// Why a base backup is due, or `None`.
pub fn due(schedule: &Schedule, since: Option<&Since>) -> Option<String> {
    let Some(since) = since else {
        return Some("there is none yet".to_owned());
    };
    let log = since.log.saturating_sub(since.own_log);
    if log <= IDLE_LOG_BYTES || since.elapsed < since.checkpoint_timeout.min(schedule.every) {
        return None;
    }
    if log >= schedule.every_log.0 {
        return Some(format!("{} of log since the last one", ByteLen(log)));
    }
    (since.elapsed >= schedule.every)
        .then(|| format!("the last one began {} ago", show_duration(since.elapsed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        every_log: ByteLen(1 << 30),
        every: Duration::from_secs(3600),
    };

    fn since(log: u64, seconds: u64) -> Since {
        Since {
            log,
            own_log: 0,
            elapsed: Duration::from_secs(seconds),
            checkpoint_timeout: Duration::from_secs(300),
        }
    }

    #[test]
    fn the_first_is_due_at_once() {
        assert!(due(&SCHEDULE, None).is_some());
    }

    #[test]
    fn much_log_makes_one_due_but_not_faster_than_checkpoints() {
        assert_eq!(due(&SCHEDULE, Some(&since(2 << 30, 299))), None);
        assert!(due(&SCHEDULE, Some(&since(2 << 30, 300))).is_some());
        assert_eq!(due(&SCHEDULE, Some(&since(1 << 29, 300))), None);
    }

    #[test]
    fn time_makes_one_due_only_if_something_was_written() {
        assert!(due(&SCHEDULE, Some(&since(1 << 20, 3600))).is_some());
        assert_eq!(due(&SCHEDULE, Some(&since(0, 360_000))), None);
        assert_eq!(due(&SCHEDULE, Some(&since(500, 360_000))), None);
    }

    #[test]
    fn an_idle_server_is_not_backed_up_for_being_backed_up() {
        let own = Since {
            own_log: 16 << 20,
            ..since(16 << 20, 7200)
        };
        assert_eq!(due(&SCHEDULE, Some(&own)), None);
    }

    #[test]
    fn a_short_interval_beats_the_checkpoint_timeout() {
        let often = Schedule {
            every: Duration::from_secs(60),
            ..SCHEDULE
        };
        assert!(due(&often, Some(&since(1 << 20, 60))).is_some());
    }
}
