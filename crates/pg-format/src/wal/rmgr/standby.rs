//! What standbys are told (`storage/standbydefs.h`).

use crate::cursor;
use crate::wal::Record;

const RUNNING_XACTS: u8 = 0x10;

/// The oldest transaction that runs, where a record of [`crate::wal::Rmgr::STANDBY`] says so.
/// Prepared transactions count as running.
pub fn oldest_running(record: &Record<'_>) -> Option<u32> {
    if record.header.operation() != RUNNING_XACTS {
        return None;
    }
    // Two counts, a flag with its padding, the next transaction, then the oldest.
    cursor::at(record.main_data, 16).u32()
}
