//! `global/pg_control`: what a cluster is and where its last checkpoint lies
//! (`catalog/pg_control.h`).

use borealis_base::Timestamp;

use crate::cursor;
use crate::segment::SegmentSize;
use crate::time::from_pg_time;
use crate::{Error, Lsn, Timeline, Version};

/// The file's size on disk; less than 300 bytes of it are used.
pub const CONTROL_FILE_SIZE: usize = 8192;

/// What the server was doing when the file was last written (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerState {
    /// Starting up.
    Startup,
    /// Shut down cleanly.
    ShutDown,
    /// Shut down while in recovery.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a standby.
    InArchiveRecovery,
    /// Running.
    InProduction,
}

impl ServerState {
    const ALL: [Self; 7] = [
        Self::Startup,
        Self::ShutDown,
        Self::ShutDownInRecovery,
        Self::ShuttingDown,
        Self::InCrashRecovery,
        Self::InArchiveRecovery,
        Self::InProduction,
    ];
}

/// How much the log holds (`access/xlog.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Enough for crash recovery only: bulk changes leave no trace, and no backup can cross them.
    Minimal,
    /// Enough for backups and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

impl WalLevel {
    /// The level of PostgreSQL's number.
    pub const fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }

    /// PostgreSQL's number.
    pub const fn number(self) -> i32 {
        self as i32
    }
}

/// The settings that recovery must match or exceed, and those that decide what the log holds. The
/// log carries them in parameter-change records, the control file has the last ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// A checkpoint: the body of its log record, copied into the control file (`CheckPoint`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where replay from this checkpoint begins.
    pub redo: Lsn,
    /// The timeline it was written on.
    pub timeline: Timeline,
    /// The timeline before, where this checkpoint begins a new one; else the same.
    pub previous_timeline: Timeline,
    /// Whether full-page writes were on.
    pub full_page_writes: bool,
    /// The next transaction identifier, with its epoch in the upper half.
    pub next_xid: u64,
    /// The next object identifier.
    pub next_oid: u32,
    /// The next multixact.
    pub next_multi: u32,
    /// The next member of a multixact.
    pub next_multi_offset: u32,
    /// The oldest transaction identifier that any database may still hold unfrozen.
    pub oldest_xid: u32,
    /// The oldest multixact likewise.
    pub oldest_multi: u32,
    /// When it was made, in whole seconds.
    pub time: Timestamp,
    /// The oldest transaction that ran, for online checkpoints; else 0.
    pub oldest_active_xid: u32,
}

/// Bytes of a `CheckPoint`.
pub const CHECKPOINT_LEN: usize = 88;

impl Checkpoint {
    /// Reads a `CheckPoint`. Its fields lie alike in 14 to 18; 17 put `wal_level` into what was
    /// padding.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < CHECKPOINT_LEN {
            return None;
        }
        Some(Self {
            redo: Lsn(cursor::at(bytes, 0).u64()?),
            timeline: Timeline(cursor::at(bytes, 8).u32()?),
            previous_timeline: Timeline(cursor::at(bytes, 12).u32()?),
            full_page_writes: cursor::at(bytes, 16).u8()? != 0,
            next_xid: cursor::at(bytes, 24).u64()?,
            next_oid: cursor::at(bytes, 32).u32()?,
            next_multi: cursor::at(bytes, 36).u32()?,
            next_multi_offset: cursor::at(bytes, 40).u32()?,
            oldest_xid: cursor::at(bytes, 44).u32()?,
            oldest_multi: cursor::at(bytes, 52).u32()?,
            time: from_pg_time(cursor::at(bytes, 64).i64()?),
            oldest_active_xid: cursor::at(bytes, 80).u32()?,
        })
    }
}

/// What the control file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The major version that wrote it.
    pub version: Version,
    /// Chosen by `initdb`; clones share it.
    pub system_identifier: u64,
    /// `PG_CONTROL_VERSION`.
    pub control_version: u32,
    /// `CATALOG_VERSION_NO`.
    pub catalog_version: u32,
    /// What the server was doing.
    pub state: ServerState,
    /// When the file was last written, in whole seconds.
    pub time: Timestamp,
    /// The start of the last checkpoint record.
    pub checkpoint_lsn: Lsn,
    /// That checkpoint.
    pub checkpoint: Checkpoint,
    /// What an unlogged relation's pages use for positions.
    pub unlogged_lsn: Lsn,
    /// Recovery must reach this before the cluster is consistent; zero outside archive recovery.
    pub min_recovery_point: Lsn,
    /// The timeline of `min_recovery_point`.
    pub min_recovery_point_timeline: Timeline,
    /// The redo position of the backup being recovered from; zero once its end was reached.
    pub backup_start: Lsn,
    /// The end of a backup taken from a standby, until it was reached.
    pub backup_end: Lsn,
    /// Whether a backup-end record must still be seen.
    pub backup_end_required: bool,
    /// The settings last in force.
    pub parameters: Parameters,
    /// Bytes of a page.
    pub page_size: u32,
    /// Pages of a relation's segment file.
    pub relation_segment_pages: u32,
    /// Bytes of a page of the log.
    pub wal_page_size: u32,
    /// Bytes of a log segment.
    pub wal_segment_size: SegmentSize,
    /// The version of page checksums; 0 where they are off.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// Reads and checks a control file. The server may be writing it: a torn file fails its
    /// checksum, and the caller reads it again.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let short = || Error::ControlFile("the file is too short".to_owned());
        let control_version = cursor::at(bytes, 8).u32().ok_or_else(short)?;
        let catalog_version = cursor::at(bytes, 12).u32().ok_or_else(short)?;
        // `ControlFileData` is the same in 14 to 17 except for its version; 18 has one more byte
        // before the nonce, which moves the checksum.
        let crc_offset = match control_version {
            1300 | 1700 => 288,
            1800 => 292,
            other => return Err(Error::ControlFileVersion(other)),
        };
        let covered = bytes.get(..crc_offset).ok_or_else(short)?;
        let stored = cursor::at(bytes, crc_offset).u32().ok_or_else(short)?;
        if crc32c::crc32c(covered) != stored {
            return Err(Error::ControlFile("its checksum does not match".to_owned()));
        }
        let version = Version::from_catalog(catalog_version).ok_or_else(|| {
            Error::ControlFile(format!(
                "catalog version {catalog_version} is not that of a released version"
            ))
        })?;
        let foreign = || Error::ControlFile("a field has an impossible value".to_owned());
        Self::fields(covered, version).ok_or_else(foreign)
    }

    fn fields(bytes: &[u8], version: Version) -> Option<Self> {
        let lsn = |offset| cursor::at(bytes, offset).u64().map(Lsn);
        let word = |offset| cursor::at(bytes, offset).u32();
        let flag = |offset| cursor::at(bytes, offset).u8().map(|byte| byte != 0);
        Some(Self {
            version,
            system_identifier: cursor::at(bytes, 0).u64()?,
            control_version: word(8)?,
            catalog_version: word(12)?,
            state: *ServerState::ALL.get(word(16)? as usize)?,
            time: from_pg_time(cursor::at(bytes, 24).i64()?),
            checkpoint_lsn: lsn(32)?,
            checkpoint: Checkpoint::parse(bytes.get(40..)?)?,
            unlogged_lsn: lsn(128)?,
            min_recovery_point: lsn(136)?,
            min_recovery_point_timeline: Timeline(word(144)?),
            backup_start: lsn(152)?,
            backup_end: lsn(160)?,
            backup_end_required: flag(168)?,
            parameters: Parameters {
                wal_level: WalLevel::from_number(cursor::at(bytes, 172).i32()?)?,
                wal_log_hints: flag(176)?,
                max_connections: cursor::at(bytes, 180).i32()?,
                max_worker_processes: cursor::at(bytes, 184).i32()?,
                max_wal_senders: cursor::at(bytes, 188).i32()?,
                max_prepared_transactions: cursor::at(bytes, 192).i32()?,
                max_locks_per_transaction: cursor::at(bytes, 196).i32()?,
                track_commit_timestamp: flag(200)?,
            },
            page_size: word(216)?,
            relation_segment_pages: word(220)?,
            wal_page_size: word(224)?,
            wal_segment_size: SegmentSize::new(word(228)?)?,
            data_checksum_version: word(252)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file put together field by field from `catalog/pg_control.h` of 15.
    fn sample() -> Vec<u8> {
        let mut file = vec![0; CONTROL_FILE_SIZE];
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &7_123_456_789_u64.to_le_bytes());
        put(8, &1300_u32.to_le_bytes());
        put(12, &202_209_061_u32.to_le_bytes());
        put(16, &6_u32.to_le_bytes());
        put(24, &1_700_000_000_i64.to_le_bytes());
        put(32, &0x300_0060_u64.to_le_bytes());
        put(40, &0x300_0028_u64.to_le_bytes());
        put(48, &2_u32.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        put(64, &742_u64.to_le_bytes());
        put(172, &1_u32.to_le_bytes());
        put(180, &100_u32.to_le_bytes());
        put(216, &8192_u32.to_le_bytes());
        put(220, &131_072_u32.to_le_bytes());
        put(224, &8192_u32.to_le_bytes());
        put(228, &(16_u32 << 20).to_le_bytes());
        put(252, &1_u32.to_le_bytes());
        let crc = crc32c::crc32c(&file[..288]);
        file[288..292].copy_from_slice(&crc.to_le_bytes());
        file
    }

    #[test]
    fn fields_are_read_where_the_header_puts_them() {
        let file = ControlFile::parse(&sample()).expect("a valid file");
        assert_eq!(file.version, Version::V15);
        assert_eq!(file.state, ServerState::InProduction);
        assert_eq!(file.checkpoint.redo, Lsn(0x300_0028));
        assert_eq!(file.checkpoint.timeline, Timeline(2));
        assert_eq!(file.checkpoint.next_xid, 742);
        assert_eq!(file.parameters.max_connections, 100);
        assert_eq!(file.parameters.wal_level, WalLevel::Replica);
        assert_eq!(file.wal_segment_size, SegmentSize::DEFAULT);
        assert_eq!(file.data_checksum_version, 1);
    }

    #[test]
    fn a_torn_file_is_told_from_an_unsupported_one() {
        let mut torn = sample();
        torn[36] ^= 1;
        assert!(matches!(
            ControlFile::parse(&torn),
            Err(Error::ControlFile(_))
        ));
        let mut old = sample();
        old[8..12].copy_from_slice(&1201_u32.to_le_bytes());
        assert_eq!(
            ControlFile::parse(&old),
            Err(Error::ControlFileVersion(1201))
        );
    }

    proptest! {
        #[test]
        fn no_contents_panic(bytes: Vec<u8>, len in 0_usize..400) {
            let _ = ControlFile::parse(&bytes);
            let _ = ControlFile::parse(&sample()[..len]);
        }
    }
}
