//! Records about the log itself (`catalog/pg_control.h`, `access/xlog_internal.h`, `xlogdesc.c`).

use borealis_base::Timestamp;

use crate::control_file::{Checkpoint, Parameters, WalLevel};
use crate::cursor::Cursor;
use crate::time::from_timestamptz;
use crate::wal::Record;
use crate::{Lsn, Timeline};

/// The operation that leaves the rest of a segment unused.
pub const SWITCH: u8 = 0x40;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const BACKUP_END: u8 = 0x50;
const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
const FPW_CHANGE: u8 = 0x80;
const END_OF_RECOVERY: u8 = 0x90;

/// A record of the log about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XlogRecord<'a> {
    /// A checkpoint.
    Checkpoint {
        /// What it says.
        checkpoint: Checkpoint,
        /// Whether the server stopped, or ended recovery, with it: nothing runs across it.
        shutdown: bool,
    },
    /// The end of a backup that began at this redo position.
    BackupEnd(Lsn),
    /// Settings changed at a server's start.
    ParameterChange(Parameters),
    /// A named place.
    RestorePoint {
        /// When it was made.
        time: Timestamp,
        /// Its name, in the server's encoding.
        name: &'a [u8],
    },
    /// Full-page writes are now on or off.
    FullPageWrites(bool),
    /// A promotion without a checkpoint.
    EndOfRecovery {
        /// When it was.
        time: Timestamp,
        /// The new timeline.
        timeline: Timeline,
        /// The timeline before.
        previous: Timeline,
    },
    /// Nothing that has a meaning beyond its blocks.
    Other,
}

/// Reads a record of [`crate::wal::Rmgr::XLOG`]; `None` if it is too short.
pub fn parse<'a>(record: &Record<'a>) -> Option<XlogRecord<'a>> {
    let mut data = Cursor::new(record.main_data);
    Some(match record.header.operation() {
        operation @ (CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE) => XlogRecord::Checkpoint {
            checkpoint: Checkpoint::parse(record.main_data)?,
            shutdown: operation == CHECKPOINT_SHUTDOWN,
        },
        BACKUP_END => XlogRecord::BackupEnd(Lsn(data.u64()?)),
        PARAMETER_CHANGE => XlogRecord::ParameterChange(Parameters {
            max_connections: data.i32()?,
            max_worker_processes: data.i32()?,
            max_wal_senders: data.i32()?,
            max_prepared_transactions: data.i32()?,
            max_locks_per_transaction: data.i32()?,
            wal_level: WalLevel::from_number(data.i32()?)?,
            wal_log_hints: data.u8()? != 0,
            track_commit_timestamp: data.u8()? != 0,
        }),
        RESTORE_POINT => {
            let time = from_timestamptz(data.i64()?);
            XlogRecord::RestorePoint {
                time,
                name: data.c_string()?,
            }
        }
        FPW_CHANGE => XlogRecord::FullPageWrites(data.u8()? != 0),
        END_OF_RECOVERY => XlogRecord::EndOfRecovery {
            time: from_timestamptz(data.i64()?),
            timeline: Timeline(data.u32()?),
            previous: Timeline(data.u32()?),
        },
        _ => XlogRecord::Other,
    })
}
