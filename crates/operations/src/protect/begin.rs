//! Where capturing begins: after what the repository holds, where a branch leaves it, or, the first time
//! and after a gap, where the server can still give log from.

use std::sync::Arc;

use borealis_base::{ErrorKind, Position, RecordSpan};
use borealis_keys::DataKeys;
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_format::index::LogIndexer;
use borealis_pg_format::wal::{LogFormat, Start};
use borealis_pg_server::conninfo::ConnInfo;
use borealis_pg_server::link::SqlLink;
use borealis_pg_server::link::replication::ReplicationLink;
use borealis_pg_server::source::{SlotHold, slot_state};
use borealis_repository::log::{LogReader, pieces_of};
use borealis_repository::plan::{Coverage, LineageState, PieceSummary};
use borealis_repository::store::Store;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;

use super::cutter::Cutter;
use super::log_frame;
use super::receive::overlap_start;
use super::route::Place;
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

/// Goes on at `place`, behind the last piece of its branch or where it leaves another one.
///
/// # Errors
/// Damaged or not found where the log that leads there can't be read.
pub async fn at(held: &Held, format: LogFormat, place: Place) -> Result<Beginning> {
    let mut pieces = held.state.pieces.iter().rev();
    match pieces.find(|piece| piece.branch == place.branch) {
        Some(piece) if piece.end == place.at => resume(held, format, piece).await,
        _ => fork(held, format, place).await,
    }
}

/// Begins a branch where it leaves the stored log: the parser is given what was stored before that, from
/// the last place on where its state is known. More may be stored behind it, which belongs to the other
/// branch only.
async fn fork(held: &Held, format: LogFormat, place: Place) -> Result<Beginning> {
    let Place { at, stored, .. } = place;
    let reader = LogReader::new(held.store.clone(), held.keys.clone(), held.state.lineage);
    let coverage = Coverage::of(&held.state, stored);
    let stretch = coverage.spanning(at, at).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!(
                "the log before {at}, where timeline {} begins, is not stored",
                place.branch
            ),
        )
    })?;
    // Of a piece that `at` lies in, the state at its end is no use.
    let before = coverage.pieces.iter().rev().find(|(leg, piece)| {
        piece.end <= at.min(leg.to) && stretch.from <= piece.start.max(leg.from)
    });
    let (mut indexer, from) = if let Some((_, piece)) = before {
        let known = reader.piece(piece).await?;
        let mut carry = log_frame::carry(known.head().name(), &known.last_index().await?)?;
        // They speak of positions of the other branch.
        carry.samples.clear();
        (LogIndexer::resume(format, &carry), carry.resume_at)
    } else {
        let indexer = LogIndexer::new(format, stretch.from, Start::Anywhere);
        (indexer, stretch.from)
    };
    let pieces = pieces_of(&held.state, stored, from, at)?;
    let mut log = std::pin::pin!(reader.stream(pieces, PREFETCH));
    while let Some(part) = log.try_next().await? {
        indexer.push(part.position, &part.bytes);
    }
    // What these bytes change stands in the index of the piece that holds them.
    indexer.cut();
    let from = overlap_start(at, format.segment_size).max(stretch.from);
    let tail = stored_log(held, &reader, stored, from, at).await?;
    Ok(Beginning {
        hold: None,
        cutter: Cutter::new(indexer, at, PIECE_BYTES_MAX),
        durable: Durable {
            position: at,
            settled: settled(&held.state),
        },
        // The last one stored may lie on the other branch only.
        last_record: None,
        tail,
    })
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
    let carry = log_frame::carry(stored.head().name(), &stored.last_index().await?)?;
    let mut indexer = LogIndexer::resume(format, &carry);
    if carry.resume_at < piece.end {
        let pieces = pieces_of(&held.state, piece.branch, carry.resume_at, piece.end)?;
        let mut log = std::pin::pin!(reader.stream(pieces, PREFETCH));
        while let Some(part) = log.try_next().await? {
            indexer.push(part.position, &part.bytes);
        }
    }
    let from = overlap_start(piece.end, format.segment_size).max(piece.start);
    let tail = stored_log(held, &reader, piece.branch, from, piece.end).await?;
    Ok(Beginning {
        hold: None,
        cutter: Cutter::new(indexer, piece.end, PIECE_BYTES_MAX),
        durable: Durable {
            position: piece.end,
            settled: settled(&held.state),
        },
        last_record: (held.state.pieces.iter().rev())
            .filter(|other| other.branch == piece.branch)
            .find_map(|piece| piece.last_record),
        tail,
    })
}

/// The last moment settled on any branch: none is ever settled again.
fn settled(state: &LineageState) -> Option<borealis_base::Timestamp> {
    let pieces = (state.pieces.iter()).filter_map(|piece| piece.settled_after);
    let settled = state.settled.iter().map(|settled| settled.through);
    pieces.chain(settled).max()
}

/// Stored log of the path of `branch`.
async fn stored_log(
    held: &Held,
    reader: &LogReader,
    branch: borealis_base::Branch,
    from: Position,
    to: Position,
) -> Result<Bytes> {
    let pieces = pieces_of(&held.state, branch, from, to)?;
    let mut log = std::pin::pin!(reader.stream(pieces, PREFETCH));
    let mut tail = BytesMut::new();
    while let Some(part) = log.try_next().await? {
        tail.extend_from_slice(&part.bytes);
    }
    Ok(tail.freeze())
}

/// Begins at `start`, the beginning of a segment, with nothing known of what came before.
pub fn anew(format: LogFormat, start: Position, held: &LineageState) -> Beginning {
    Beginning {
        hold: None,
        cutter: Cutter::new(
            LogIndexer::new(format, start, Start::Anywhere),
            start,
            PIECE_BYTES_MAX,
        ),
        durable: Durable {
            position: start,
            settled: settled(held),
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
