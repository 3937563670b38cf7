//! Creation and removal of databases (`commands/dbcommands_xlog.h`).

use crate::cursor::Cursor;
use crate::wal::Record;
use crate::{DatabaseFiles, Version};

/// A record about a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DbaseRecord {
    /// A database's directory was made by copying another one's files: nothing else is logged about
    /// them.
    CreateByCopy {
        /// The new directory.
        files: DatabaseFiles,
        /// The directory copied.
        source: DatabaseFiles,
    },
    /// A database's directory was made; its pages follow one by one.
    CreateByLog(DatabaseFiles),
    /// A database's directories were removed.
    Drop {
        /// The database.
        database: u32,
        /// The tablespaces it had files in.
        tablespaces: Vec<u32>,
    },
}

/// Reads a record of [`crate::wal::Rmgr::DBASE`]; `None` if it is too short or not known.
pub fn parse(record: &Record<'_>, version: Version) -> Option<DbaseRecord> {
    let mut data = Cursor::new(record.main_data);
    // 14 had one way to create, and dropped with the number that 15 gave to the second way.
    let operation = match (version, record.header.operation()) {
        (Version::V14, 0x10) => 0x20,
        (Version::V14, 0x20) => return None,
        (_, operation) => operation,
    };
    match operation {
        0x00 => Some(DbaseRecord::CreateByCopy {
            files: files(&mut data)?,
            source: files(&mut data)?,
        }),
        0x10 => Some(DbaseRecord::CreateByLog(files(&mut data)?)),
        0x20 => {
            let database = data.u32()?;
            let count = data.count()?;
            let (tablespaces, _) = data.take(count.checked_mul(4)?)?.as_chunks::<4>();
            Some(DbaseRecord::Drop {
                database,
                tablespaces: tablespaces
                    .iter()
                    .map(|tablespace| u32::from_le_bytes(*tablespace))
                    .collect(),
            })
        }
        _ => None,
    }
}

fn files(data: &mut Cursor<'_>) -> Option<DatabaseFiles> {
    let database = data.u32()?;
    Some(DatabaseFiles {
        database,
        tablespace: data.u32()?,
    })
}
