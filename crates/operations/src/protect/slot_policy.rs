//! What to do about a replication slot that holds log back. Pure.
//!
//! A slot is the spool of the log (law 1): PostgreSQL keeps what we have not confirmed. Kept for
//! ever it fills the primary's disk and stops it. `max_slot_wal_keep_size` bounds that on the server;
//! where it is unlimited, we bound it here.

use borealis_base::ByteLen;

/// What goes first when the primary's disk and unbroken history conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The primary: the slot is let go at a bound, and the window gets a gap.
    Primary,
    /// Continuity: the slot is kept whatever it costs.
    Continuity,
}

/// Log that a slot may hold back under [`Policy::Primary`] where the server sets no bound.
pub const RETAINED_BYTES_MAX: u64 = 64 << 30;
/// Free space of the log's file system below which the slot is let go, in percent, if the slot holds
/// back more than [`RETAINED_BYTES_WORTH_FREEING`].
pub const FREE_PERCENT_MIN: u64 = 10;
/// Letting go of less than this would cost a gap and free nothing that matters.
pub const RETAINED_BYTES_WORTH_FREEING: u64 = 256 << 20;

/// What is known of the slot and the disk.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Log between the slot's restart position and the server's current one.
    pub retained: u64,
    /// The server's own bound, `max_slot_wal_keep_size`, `None` if unlimited.
    pub server_bound: Option<u64>,
    /// Free and total bytes of the log's file system, where it can be seen from here.
    pub disk: Option<(u64, u64)>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Say so: more than half of the bound is used.
    Warn(String),
    /// Drop the slot.
    LetGo(String),
}

/// Judges one observation.
pub fn judge(policy: Policy, slot: &Slot) -> Verdict {
    let bound = slot.server_bound.unwrap_or(RETAINED_BYTES_MAX);
    let retained = ByteLen(slot.retained);
    let low_disk = slot.disk.filter(|(free, total)| {
        slot.retained >= RETAINED_BYTES_WORTH_FREEING
            && u128::from(*free) * 100 < u128::from(*total) * u128::from(FREE_PERCENT_MIN)
    });
    let reason = match low_disk {
        Some((free, _)) => Some(format!(
            "the slot holds back {retained} of log and only {} of the log's file system are free",
            ByteLen(free)
        )),
        None if slot.server_bound.is_none() && slot.retained > RETAINED_BYTES_MAX => Some(format!(
            "the slot holds back {retained} of log, more than the bound of {}",
            ByteLen(RETAINED_BYTES_MAX)
        )),
        None => None,
    };
    match (reason, policy) {
        (Some(reason), Policy::Primary) => Verdict::LetGo(reason),
        (Some(reason), Policy::Continuity) => {
            Verdict::Warn(format!("{reason}; kept, as --protect continuity asks"))
        }
        (None, _) if slot.retained > bound / 2 => Verdict::Warn(format!(
            "the slot holds back {retained} of log, more than half of the bound of {}",
            ByteLen(bound)
        )),
        (None, _) => Verdict::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(retained: u64) -> Slot {
        Slot {
            retained,
            server_bound: None,
            disk: None,
        }
    }

    #[test]
    fn slot_that_would_fill_the_primarys_disk_is_let_go() {
        assert_eq!(judge(Policy::Primary, &slot(1 << 30)), Verdict::Keep);
        assert!(matches!(
            judge(Policy::Primary, &slot(65 << 30)),
            Verdict::LetGo(_)
        ));
        let full = Slot {
            disk: Some((5 << 30, 100 << 30)),
            ..slot(1 << 30)
        };
        assert!(matches!(judge(Policy::Primary, &full), Verdict::LetGo(_)));
    }

    #[test]
    fn a_full_disk_is_no_reason_to_drop_a_slot_that_holds_nothing_back() {
        let full = Slot {
            disk: Some((0, 100 << 30)),
            ..slot(1 << 20)
        };
        assert_eq!(judge(Policy::Primary, &full), Verdict::Keep);
    }

    #[test]
    fn continuity_keeps_the_slot_and_says_so() {
        assert!(matches!(
            judge(Policy::Continuity, &slot(65 << 30)),
            Verdict::Warn(_)
        ));
    }

    #[test]
    fn the_servers_own_bound_is_left_to_the_server() {
        let bounded = Slot {
            server_bound: Some(100 << 30),
            ..slot(65 << 30)
        };
        assert!(matches!(judge(Policy::Primary, &bounded), Verdict::Warn(_)));
    }
}
