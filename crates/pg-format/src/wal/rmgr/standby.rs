//! What standbys are told (`storage/standbydefs.h`).

use crate::cursor;
use crate::wal::Record;

const RUNNING_XACTS: u8 = 0x10;

/// Which transactions run, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The next transaction that will be given a number.
    pub next: u32,
    /// The oldest one that runs; prepared ones count.
    pub oldest: u32,
}

/// The transactions that run, where a record of [`crate::wal::Rmgr::STANDBY`] says so.
pub fn running(record: &Record<'_>) -> Option<Running> {
    if record.header.operation() != RUNNING_XACTS {
        return None;
    }
    // Two counts, then a flag with its padding.
    let mut data = cursor::at(record.main_data, 12);
    Some(Running {
        next: data.u32()?,
        oldest: data.u32()?,
    })
}
