//! From a record to what must be fetched to restore to it.

use std::fmt::Write as _;

use borealis_base::{Branch, ByteLen, Position, RecordSpan};

use super::coverage::{Coverage, log_from};
use super::resolve::ResolvedTarget;
use super::{BaseBackupSummary, LineageState, PieceSummary, PinSummary};

/// A range of one branch's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// The branch.
    pub branch: Branch,
    /// First position.
    pub from: Position,
    /// Position just past the last one.
    pub to: Position,
}

/// The bytes `[from, to)` of a log piece that a range takes from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceRange {
    /// The piece.
    pub piece: PieceSummary,
    /// First position taken.
    pub from: Position,
    /// Position just past the last one taken.
    pub to: Position,
}

/// What a restore fetches and where it stops. Prints itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// The branch to recover along: the one on which the log stops.
    pub branch: Branch,
    /// The last record to replay. The log is cut at its end, and its start is the recovery target.
    pub stop: RecordSpan,
    /// The base backup.
    pub base_backup: BaseBackupSummary,
    /// The log, in order, without a break.
    pub log: Vec<LogRange>,
    /// The pieces it is read from, in order, none read twice.
    pub pieces: Vec<PieceRange>,
    /// Bytes of log to replay.
    pub log_bytes: u64,
    /// Bytes of log objects to fetch at most.
    pub stored_log_bytes: u64,
}

impl std::fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let base = &self.base_backup;
        let mut text = String::new();
        writeln!(
            text,
            "stop behind the record {} to {} on branch {}",
            self.stop.start, self.stop.end, self.branch
        )?;
        writeln!(
            text,
            "base backup of entry {} from {} to {}, ended {}, {} pages",
            base.entry, base.start, base.end, base.ended_at, base.total_pages
        )?;
        for range in &self.log {
            writeln!(
                text,
                "log of branch {} from {} to {}",
                range.branch, range.from, range.to
            )?;
        }
        write!(
            text,
            "{} of log to replay, at most {} to fetch in {} pieces",
            ByteLen(self.log_bytes),
            ByteLen(self.stored_log_bytes),
            self.pieces.len()
        )?;
        f.write_str(&text)
    }
}

/// The plan for `target`; `None` where no base backup and unbroken log reach it.
pub fn plan_restore(state: &LineageState, target: &ResolvedTarget) -> Option<RestorePlan> {
    plan_to(state, target.branch, target.last_record)
}

/// What a pin keeps from being deleted; `None` where it cannot be restored at all.
pub fn what_a_pin_needs(state: &LineageState, pin: &PinSummary) -> Option<RestorePlan> {
    plan_to(state, pin.branch, pin.last_record)
}

/// The plan to stop behind `stop` on `branch`.
pub fn plan_to(state: &LineageState, branch: Branch, stop: RecordSpan) -> Option<RestorePlan> {
    let coverage = Coverage::of(state, branch);
    let base_backup = state
        .base_backups
        .iter()
        .filter(|base| coverage.serves(base, state.log_unit, stop.end))
        .max_by_key(|base| (base.end, base.entry))?;
    let from = log_from(base_backup, state.log_unit);
    let pieces = choose_pieces(&coverage, from, stop.end)?;
    let log: Vec<LogRange> = coverage
        .legs
        .iter()
        .map(|leg| LogRange {
            branch: leg.branch,
            from: from.max(leg.from),
            to: stop.end.min(leg.to),
        })
        .filter(|range| range.from < range.to)
        .collect();
    Some(RestorePlan {
        // Where the log stops before a fork, what comes behind that is not asked for.
        branch: log.last().map_or(branch, |range| range.branch),
        stop,
        base_backup: base_backup.clone(),
        log,
        log_bytes: stop.end.since(from),
        stored_log_bytes: pieces.iter().map(|part| part.piece.stored_bytes).sum(),
        pieces,
    })
}

/// Pieces that together hold `[from, to)` of the path, each taken where the one before it ends.
/// `None` if some position is in no piece.
pub fn choose_pieces(
    coverage: &Coverage<'_>,
    from: Position,
    to: Position,
) -> Option<Vec<PieceRange>> {
    let mut chosen = Vec::new();
    let mut at = from;
    let mut rest = coverage.pieces.iter().peekable();
    while at < to {
        let mut best: Option<(Position, &PieceSummary)> = None;
        while let Some((leg, piece)) = rest.next_if(|(leg, piece)| piece.start.max(leg.from) <= at)
        {
            let end = piece.end.min(leg.to);
            if end > at && best.is_none_or(|(reach, _)| end > reach) {
                best = Some((end, piece));
            }
        }
        let (end, piece) = best?;
        let end = end.min(to);
        chosen.push(PieceRange {
            piece: piece.clone(),
            from: at,
            to: end,
        });
        at = end;
    }
    Some(chosen)
}
