//! Where capturing begins: after what the repository holds, or, the first time and after a gap, where
//! the server can still give log from.

use std::sync::Arc;

use borealis_base::{Branch, ErrorKind, Position, RecordSpan};
use borealis_keys::DataKeys;
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_format::index::LogIndexer;
use borealis_pg_format::wal::{LogFormat, Start};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::link::replication::ReplicationLink;
use borealis_pg_server::source::{SlotHold, slot_state};
use borealis_repository::log::{LogReader, pieces_of};
use borealis_repository::plan::{LineageState, PieceSummary};
use borealis_repository::store::Store;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;

use super::cutter::Cutter;
use super::log_frame;
use super::receive::overlap_start;
use super::ship::{Durable, PIECE_BYTES_MAX};
use crate::error::{Error, Result};

/// Log pieces read ahead while the parser is brought back to where it was.
const PREFETCH: usize = 4;

/// Reads what a lineage holds.
#[derive(Clone)]
pub struct Held {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The lineage's keys.
    pub keys: Arc<DataKeys>,
    /// What its ledger adds up to.
    pub state: LineageState,
}

/// A place to go on from.
pub struct Beginning {
    /// Holds log on the server while it is kept, where there is no slot of ours.
    pub hold: Option<ReplicationLink>,
    /// The cutter, its parser where it was.
    pub cutter: Cutter,
    /// What is durable already.
    pub durable: Durable,
    /// The last record that is durable.
    pub last_record: Option<RecordSpan>,
    /// The end of the log that is durable, to be compared with what the server has there.
    pub tail: Bytes,
}

/// The last piece of the log, if any is held.
pub fn last_piece(state: &LineageState) -> Option<&PieceSummary> {
    state.pieces.last()
}

/// The format of a cluster's log.
pub fn log_format(control: &ControlFile) -> LogFormat {
    LogFormat {
        version: control.version,
        segment_size: control.wal_segment_size,
        page_size: control.page_size,
    }
}

/// Goes on after `piece`: the parser is given the beginning of the record that crosses its end.
pub async fn resume(held: &Held, format: LogFormat, piece: &PieceSummary) -> Result<Beginning> {
    let reader = LogReader::new(held.store.clone(), held.keys.clone(), held.state.lineage);
    let stored = reader.piece(piece).await?;
    let carry = log_frame::carry(stored.head().name(), &stored.index().await?)?;
    let mut indexer = LogIndexer::resume(format, &carry);
    if carry.resume_at < piece.end {
        let pieces = pieces_of(&held.state, piece.branch, carry.resume_at, piece.end)?;
        let mut log = std::pin::pin!(reader.stream(pieces, PREFETCH));
        while let Some(part) = log.try_next().await? {
            indexer.push(part.position, &part.bytes);
        }
    }
    let tail = tail(held, format, &reader, piece).await?;
    let settled = held.state.settled.last().map(|settled| settled.through);
    Ok(Beginning {
        hold: None,
        cutter: Cutter::new(indexer, piece.end, PIECE_BYTES_MAX),
        durable: Durable {
            position: piece.end,
            settled: settled.max(piece.settled_after),
        },
        last_record: held
            .state
            .pieces
            .iter()
            .rev()
            .find_map(|piece| piece.last_record),
        tail,
    })
}

/// The end of the stored log, as much of it as the server is sure to have still.
async fn tail(
    held: &Held,
    format: LogFormat,
    reader: &LogReader,
    piece: &PieceSummary,
) -> Result<Bytes> {
    let from = overlap_start(piece.end, format.segment_size).max(piece.start);
    let pieces = pieces_of(&held.state, piece.branch, from, piece.end)?;
    let mut log = std::pin::pin!(reader.stream(pieces, PREFETCH));
    let mut tail = BytesMut::new();
    while let Some(part) = log.try_next().await? {
        tail.extend_from_slice(&part.bytes);
    }
    Ok(tail.freeze())
}

/// Begins at `start`, the beginning of a segment, with nothing known of what came before.
pub fn anew(format: LogFormat, start: Position, held: Option<&LineageState>) -> Beginning {
    let settled = held.and_then(|state| {
        let pieces = state.pieces.last().and_then(|piece| piece.settled_after);
        pieces.max(state.settled.last().map(|settled| settled.through))
    });
    Beginning {
        hold: None,
        cutter: Cutter::new(
            LogIndexer::new(format, start, Start::Anywhere),
            start,
            PIECE_BYTES_MAX,
        ),
        durable: Durable {
            position: start,
            settled,
        },
        last_record: None,
        tail: Bytes::new(),
    }
}

/// Makes the slot if it is missing, or makes it anew if it is of no more use. Returns the oldest log
/// that it holds, at the beginning of a segment: the server keeps whole segments.
pub async fn reserve(
    info: &ConnInfo,
    sql: &SqlLink,
    slot: &str,
    segment_bytes: u64,
) -> Result<Position> {
    let mut link = ReplicationLink::connect(info).await?;
    match slot_state(sql, slot).await? {
        Some(state) if state.hold == Some(SlotHold::Lost) || state.restart.is_none() => {
            link.drop_slot(slot).await?;
            link.create_slot(slot, true).await?;
        }
        Some(_) => {}
        None => link.create_slot(slot, true).await?,
    }
    let restart = slot_state(sql, slot).await?.and_then(|state| state.restart);
    restart
        .map(|restart| restart.align_down(segment_bytes))
        .ok_or_else(|| Error::new(ErrorKind::Unreachable, format!("slot {slot} holds no log")))
}

/// Holds log for as long as the connection is kept, without leaving a slot behind: the checkpoint of a
/// base backup would else remove what is still being sent. Returns the oldest log held, at the beginning
/// of a segment.
pub async fn hold(
    info: &ConnInfo,
    sql: &SqlLink,
    slot: &str,
    segment_bytes: u64,
) -> Result<(ReplicationLink, Position)> {
    let mut link = ReplicationLink::connect(info).await?;
    link.create_temporary_slot(slot).await?;
    let restart = slot_state(sql, slot).await?.and_then(|state| state.restart);
    restart
        .map(|restart| (link, restart.align_down(segment_bytes)))
        .ok_or_else(|| Error::new(ErrorKind::Unreachable, format!("slot {slot} holds no log")))
}

/// Refuses a server whose branch is not the one that the repository follows.
pub fn check_branch(server: Branch, state: &LineageState) -> Result<()> {
    match last_piece(state) {
        Some(piece) if piece.branch != server => Err(Error::refused(
            format!(
                "the server is on timeline {server} now, and the repository follows timeline {}: it was promoted or restored",
                piece.branch
            ),
            "Protect it under another name with --cluster; the old window stays restorable. Following a promotion is not supported yet.",
        )),
        _ => Ok(()),
    }
}
