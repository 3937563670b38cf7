//! Reading a range of log: without a break, or an error that names the position.

use std::sync::Arc;

use async_trait::async_trait;
use borealis_base::{Branch, LineageId, Position, TimeStep};
use borealis_keys::DataKeys;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;

use super::piece::{LOG_FRAME_BYTES, LogBytes, StoredPiece};
use crate::catalog::Lineage;
use crate::plan::restore::choose_pieces;
use crate::plan::{Coverage, LineageState, PieceRange, PieceSummary};
use crate::store::Store;
use crate::{Error, Result};

/// Stretches of log fetched ahead at most. Memory of a reader: this many, each of at most a piece and of
/// merged log of at most [`STRETCH_BYTES_MAX`].
pub const PREFETCH_MAX: usize = 16;
/// Bytes of merged log fetched with one get.
const STRETCH_BYTES_MAX: u64 = 16 * LOG_FRAME_BYTES as u64;

/// Reads the log of one lineage.
#[derive(Clone)]
pub struct LogReader {
    store: Arc<dyn Store>,
    keys: Arc<DataKeys>,
    lineage: LineageId,
}

/// Reads time maps where a time is resolved.
#[async_trait]
pub trait TimeMaps: Send + Sync {
    /// The time map of `piece`.
    async fn time_steps(&self, piece: &PieceSummary) -> Result<Vec<TimeStep>>;
}

#[async_trait]
impl TimeMaps for LogReader {
    async fn time_steps(&self, piece: &PieceSummary) -> Result<Vec<TimeStep>> {
        self.piece(piece).await?.time_steps().await
    }
}

/// The pieces that hold `[from, to)` of the path of `branch`.
///
/// # Errors
/// Not found, naming the first position from which on the log is broken.
pub fn pieces_of(
    state: &LineageState,
    branch: Branch,
    from: Position,
    to: Position,
) -> Result<Vec<PieceRange>> {
    let coverage = Coverage::of(state, branch);
    let whole = coverage.spanning(from, to).is_some() || from >= to;
    let pieces = if whole {
        choose_pieces(&coverage, from, to)
    } else {
        None
    };
    pieces.ok_or_else(|| {
        let reach = coverage
            .stretches
            .iter()
            .filter(|stretch| stretch.from <= from && from < stretch.to);
        let broken = reach.map(|stretch| stretch.to).max().unwrap_or(from);
        Error::NotFound {
            what: format!("the log of branch {branch} at {broken}, needed from {from} to {to},"),
        }
    })
}

/// A piece whose head is read once, however many stretches are.
struct Opened {
    piece: PieceSummary,
    stored: OnceCell<StoredPiece>,
}

/// Cuts what is wanted of a piece into stretches, at frames.
fn stretches(part: PieceRange) -> impl Iterator<Item = (Arc<Opened>, Position, Position)> {
    let PieceRange { piece, from, to } = part;
    let (start, bytes) = (piece.start, STRETCH_BYTES_MAX);
    let (first, last) = if piece.merged.is_some() {
        (from.since(start) / bytes, to.since(start).div_ceil(bytes))
    } else {
        (0, 1)
    };
    let whole = piece.merged.is_none();
    let opened = Arc::new(Opened {
        piece,
        stored: OnceCell::new(),
    });
    (first..last).map(move |number| {
        let cut = |number: u64| start.plus(number * bytes);
        let (low, high) = if whole {
            (from, to)
        } else {
            (from.max(cut(number)), to.min(cut(number + 1)))
        };
        (Arc::clone(&opened), low, high)
    })
}

impl LogReader {
    /// A reader of the log of `lineage`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<DataKeys>, lineage: LineageId) -> Self {
        Self {
            store,
            keys,
            lineage,
        }
    }

    /// A reader of the log of `lineage`.
    pub fn of(lineage: &Lineage) -> Self {
        Self::new(
            Arc::clone(lineage.store()),
            Arc::clone(lineage.keys()),
            lineage.id(),
        )
    }

    /// Opens one piece.
    pub async fn piece(&self, piece: &PieceSummary) -> Result<StoredPiece> {
        StoredPiece::open(&self.store, &self.keys, self.lineage, piece).await
    }

    /// Streams `[from, to)` along the path of `branch`, `prefetch` stretches (at most [`PREFETCH_MAX`]) ahead.
    pub fn read(
        &self,
        state: &LineageState,
        branch: Branch,
        from: Position,
        to: Position,
        prefetch: usize,
    ) -> Result<impl Stream<Item = Result<LogBytes>> + Send + use<>> {
        Ok(self.stream(pieces_of(state, branch, from, to)?, prefetch))
    }

    /// Streams the bytes of `pieces`, such as those of a restore plan, in order.
    pub fn stream(
        &self,
        pieces: Vec<PieceRange>,
        prefetch: usize,
    ) -> impl Stream<Item = Result<LogBytes>> + Send + use<> {
        let reader = self.clone();
        futures::stream::iter(pieces.into_iter().flat_map(stretches))
            .map(move |(opened, from, to)| {
                let reader = reader.clone();
                async move {
                    let piece = opened
                        .stored
                        .get_or_try_init(|| reader.piece(&opened.piece));
                    piece.await?.log(from, to).await
                }
            })
            .buffered(prefetch.clamp(1, PREFETCH_MAX))
            .map_ok(|frames| futures::stream::iter(frames.into_iter().map(Ok)))
            .try_flatten()
    }
}
