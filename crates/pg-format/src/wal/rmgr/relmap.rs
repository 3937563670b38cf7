//! Changes of the maps from catalogs to their files (`utils/relmapper.h`).

use crate::DatabaseFiles;
use crate::cursor::Cursor;
use crate::wal::Record;

/// The directory whose `pg_filenode.map` a record of [`crate::wal::Rmgr::RELMAP`] replaces whole;
/// `None` if it is too short.
pub fn parse(record: &Record<'_>) -> Option<DatabaseFiles> {
    let mut data = Cursor::new(record.main_data);
    let database = data.u32()?;
    Some(DatabaseFiles {
        database,
        tablespace: data.u32()?,
    })
}
