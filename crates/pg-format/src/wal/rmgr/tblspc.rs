//! Creation and removal of tablespaces (`commands/tablespace.h`).

use crate::cursor::Cursor;
use crate::wal::Record;

/// A record about a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TblspcRecord<'a> {
    /// A tablespace was created.
    Create {
        /// Its object identifier.
        tablespace: u32,
        /// Its absolute directory. Replay makes directories there and points the link at it, on
        /// whatever machine it runs.
        path: &'a [u8],
    },
    /// A tablespace was dropped.
    Drop {
        /// Its object identifier.
        tablespace: u32,
    },
}

/// Reads a record of [`crate::wal::Rmgr::TBLSPC`]; `None` if it is too short or not known.
pub fn parse<'a>(record: &Record<'a>) -> Option<TblspcRecord<'a>> {
    let mut data = Cursor::new(record.main_data);
    let tablespace = data.u32()?;
    match record.header.operation() {
        0x00 => Some(TblspcRecord::Create {
            tablespace,
            path: data.c_string()?,
        }),
        0x10 => Some(TblspcRecord::Drop { tablespace }),
        _ => None,
    }
}
