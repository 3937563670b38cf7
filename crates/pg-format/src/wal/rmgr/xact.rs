//! Ends of transactions (`access/xact.h`, `ParseCommitRecord` and its kin in
//! `rmgrdesc/xactdesc.c`).

use borealis_base::Timestamp;

use crate::cursor::Cursor;
use crate::time::from_timestamptz;
use crate::wal::Record;
use crate::wal::record::relation_of;
use crate::{Relation, Version};

const OPERATION_MASK: u8 = 0x70;
const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const HAS_INFO: u8 = 0x80;

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_GID: u32 = 1 << 7;
/// From 15 on.
const HAS_DROPPED_STATISTICS: u32 = 1 << 8;

/// Bytes of a `SharedInvalidationMessage`.
const INVALIDATION_LEN: usize = 16;
/// `SHAREDINVALSMGR_ID`.
const INVALIDATION_OF_STORAGE: i8 = -3;
const RELATION_LEN: usize = 12;

/// A record about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XactRecord<'a> {
    /// A transaction or subtransaction ended.
    End(TransactionEnd<'a>),
    /// A transaction was made ready to commit. It can still go either way.
    Prepare(Prepare<'a>),
    /// Nothing that has a meaning here.
    Other,
}

/// A commit or an abort, of a prepared transaction or of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd<'a> {
    /// Whether it committed.
    pub committed: bool,
    /// The transaction; for a prepared one, the one that was prepared.
    pub xid: u32,
    /// When it ended, as taken before the record was inserted.
    pub time: Timestamp,
    /// The name under which it was prepared, if it was.
    pub gid: Option<&'a [u8]>,
    subtransactions: &'a [u8],
    relations: &'a [u8],
    invalidations: &'a [u8],
}

impl<'a> TransactionEnd<'a> {
    /// The subtransactions that share its fate.
    pub fn subtransactions(&self) -> impl Iterator<Item = u32> + use<'a> {
        let (words, _) = self.subtransactions.as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word))
    }

    /// The relations whose files go away with this end: those dropped by a commit or created by
    /// what was aborted.
    pub fn dropped(&self) -> impl ExactSizeIterator<Item = Relation> + use<'a> {
        let (rows, _) = self.relations.as_chunks::<RELATION_LEN>();
        rows.iter().map(|row| {
            relation_of(&mut Cursor::new(row)).expect("a row has the length of a relation")
        })
    }

    /// The databases of whose catalogs anything cached went stale with this end, 0 for catalogs that
    /// all share; the same one many times. Every change of a catalog is announced so
    /// (`storage/sinval.h`).
    pub fn invalidated_databases(&self) -> impl Iterator<Item = u32> + use<'a> {
        let (messages, _) = self.invalidations.as_chunks::<INVALIDATION_LEN>();
        messages.iter().filter_map(|message| {
            // Of storage it names files, not rows of a catalog.
            let is_storage = i8::from_le_bytes([message[0]]) == INVALIDATION_OF_STORAGE;
            let mut data = Cursor::new(message.get(4..)?);
            (!is_storage).then(|| data.u32()).flatten()
        })
    }
}

/// What a prepared transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// The transaction.
    pub xid: u32,
    /// Its database.
    pub database: u32,
    /// When it was prepared.
    pub time: Timestamp,
    /// Its name.
    pub gid: &'a [u8],
}

/// Reads a record of [`crate::wal::Rmgr::XACT`]; `None` if its parts do not fit.
pub fn parse<'a>(record: &Record<'a>, version: Version) -> Option<XactRecord<'a>> {
    let operation = record.header.info & OPERATION_MASK;
    let committed = match operation {
        COMMIT | COMMIT_PREPARED => true,
        ABORT | ABORT_PREPARED => false,
        PREPARE => return parse_prepare(record.main_data, version).map(XactRecord::Prepare),
        _ => return Some(XactRecord::Other),
    };
    let mut data = Cursor::new(record.main_data);
    let mut end = TransactionEnd {
        committed,
        xid: record.header.xid,
        time: from_timestamptz(data.i64()?),
        gid: None,
        subtransactions: &[],
        relations: &[],
        invalidations: &[],
    };
    let info = if record.header.info & HAS_INFO != 0 {
        data.u32()?
    } else {
        0
    };
    parse_sections(&mut end, &mut data, info, version)?;
    let prepared = matches!(operation, COMMIT_PREPARED | ABORT_PREPARED);
    // The end of a prepared transaction is written by another one, or by none.
    if prepared && info & HAS_TWO_PHASE == 0 {
        return None;
    }
    Some(XactRecord::End(end))
}

fn parse_sections<'a>(
    end: &mut TransactionEnd<'a>,
    data: &mut Cursor<'a>,
    info: u32,
    version: Version,
) -> Option<()> {
    if info & HAS_DATABASE != 0 {
        data.take(8)?;
    }
    if info & HAS_SUBTRANSACTIONS != 0 {
        end.subtransactions = array(data, 4)?;
    }
    if info & HAS_RELATIONS != 0 {
        end.relations = array(data, RELATION_LEN)?;
    }
    if info & HAS_DROPPED_STATISTICS != 0 {
        // 18 widened the object's identifier to 64 bits.
        let item = match version {
            Version::V14 => return None,
            Version::V15 | Version::V16 | Version::V17 => 12,
            Version::V18 => 16,
        };
        array(data, item)?;
    }
    if info & HAS_INVALIDATIONS != 0 {
        end.invalidations = array(data, INVALIDATION_LEN)?;
    }
    if info & HAS_TWO_PHASE != 0 {
        end.xid = data.u32()?;
    }
    if info & HAS_GID != 0 {
        end.gid = Some(data.c_string()?);
    }
    Some(())
}

/// A counted array of items of `len` bytes.
fn array<'a>(data: &mut Cursor<'a>, len: usize) -> Option<&'a [u8]> {
    let count = data.count()?;
    data.take(count.checked_mul(len)?)
}

/// `xl_xact_prepare`, then its name at the next multiple of 8.
fn parse_prepare(bytes: &[u8], version: Version) -> Option<Prepare<'_>> {
    let mut data = Cursor::new(bytes);
    data.take(8)?;
    let xid = data.u32()?;
    let database = data.u32()?;
    let time = from_timestamptz(data.i64()?);
    // Owner and four counts; from 15 on two more, of statistics to drop.
    let (counts, header_len) = match version {
        Version::V14 => (20, 64),
        _ => (28, 72),
    };
    data.take(counts + 2)?;
    let gid_len = usize::from(data.u16()?);
    let mut gid = Cursor::new(bytes.get(header_len..)?.get(..gid_len)?);
    Some(Prepare {
        xid,
        database,
        time,
        gid: gid.c_string()?,
    })
}
