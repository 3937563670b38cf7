//! `find`: the events worth restoring to before, from what the ledger and the log's indexes say.
//!
//! ```text
//! ledger ─▶ pieces in the range ─▶ digests (in the entries) ─▶ events ─┐
//!                       └─ index, where a digest leaves something out ─┤
//! ledger ─▶ names before, within and after the range ─▶ naming ────────┴─▶ judge ─▶ report
//! ```
//!
//! No log byte is read. Of a day of a piece each second the digests come with the ledger's checkpoints,
//! a few dozen gets in all.

mod judge;
pub mod naming;
pub mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use borealis_base::{ErrorKind, Position, Timestamp};
use borealis_pg_format::index::digest::is_digested;
use borealis_pg_format::index::rows::NOTABLE_ROWS;
use borealis_pg_format::index::{Event, EventDigest, EventKind};
use borealis_repository::Lineage;
use borealis_repository::log::{LogReader, Part, read_names};
use borealis_repository::plan::{
    Coverage, Leg, LineageState, NamesSummary, PieceSummary, newest_branch, windows,
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use self::judge::{Seen, Wanted, judge};
use self::naming::{Extract, Naming};
use self::report::{FindReport, Kind};
use crate::error::{Error, Result};
use crate::protect::control::{Request as Ask, ask};
use crate::protect::{log_frame, process_of};
use crate::site::Site;

/// Log indexes and names read at a time.
const READS_AT_ONCE: usize = 32;
/// How far back is looked where nothing is said.
pub const DEFAULT_RANGE: Duration = Duration::from_hours(24);

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The cluster; may be left out where there is one.
    pub cluster: Option<String>,
    /// Commits at or after this.
    pub since: Option<Timestamp>,
    /// Commits at or before this.
    pub until: Option<Timestamp>,
    /// Transactions that deleted and updated at least so many rows.
    pub min_rows: u64,
    /// Rewrites, indexes and unlogged relations, too.
    pub all: bool,
    /// The words of the command that restores, up to where cluster and target follow.
    pub restore_command: Vec<String>,
}

/// A piece of log, as far as it matters here.
struct Piece {
    start: Position,
    end: Position,
    catalogs_changed: Vec<u32>,
    events: Vec<Event>,
    was_read: bool,
    notes: Vec<String>,
}

/// Looks for events.
///
/// # Errors
/// Usage where fewer rows are asked for than are counted, or the range is empty.
pub async fn find(site: &Site, request: &Request) -> Result<FindReport> {
    if request.min_rows < NOTABLE_ROWS {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("--min-rows is less than {NOTABLE_ROWS}, from where on rows are recorded"),
        ));
    }
    let now = site.clock().now();
    let until = request.until.unwrap_or(now);
    let since = request.since.unwrap_or_else(|| until.minus(DEFAULT_RANGE));
    if since > until {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("--since {since} is later than --until {until}"),
        ));
    }
    let cluster = site.cluster(request.cluster.as_deref()).await?;
    let lineage = site.lineage(&cluster).await?;
    let state = present_state(&lineage).await?;
    let mut report = FindReport {
        cluster: cluster.name,
        lineage: lineage.id(),
        since,
        until,
        min_rows: request.min_rows,
        events: Vec::new(),
        rewrites_not_shown: 0,
        log_through: settled_through(&state),
        log_pieces: 0,
        indexes_read: 0,
        notes: Vec::new(),
    };
    let Some(branch) = newest_branch(&state) else {
        return Ok(report);
    };
    let coverage = Coverage::of(&state, branch);
    let pieces: Vec<_> = (coverage.pieces.iter())
        .filter(|(_, piece)| piece.settled_before.is_none_or(|before| before <= until))
        .copied()
        .collect();
    // Not every piece settles a moment.
    let ended = (pieces.iter()).rposition(|(_, piece)| ended_before(piece, since));
    let first = ended.map_or(0, |index| index + 1);
    let Some((_, first_piece)) = pieces.get(first) else {
        return Ok(report);
    };
    let from = first_piece.start;
    let to = pieces.last().map_or(from, |(_, piece)| piece.end);
    let looked_at = pieces.get(first..).unwrap_or_default();
    report.log_pieces = looked_at.iter().map(|(_, piece)| piece.parts()).sum();
    let extracts = load_names(&lineage, &state, &coverage, from, to, &mut report.notes).await?;
    // What the names before the range say holds until files went away since.
    let names_from = (extracts.first()).map_or(from, |extract| extract.from.min(from));
    let earlier = pieces.partition_point(|(_, piece)| piece.end <= names_from);
    let pieces = pieces.get(earlier.min(first)..).unwrap_or_default();
    let pieces = load_pieces(&lineage, pieces, request.min_rows).await?;
    evaluate(&pieces, &extracts, request, &mut report);
    tell_restores(&state, &coverage.legs, request, &mut report);
    Ok(report)
}

/// The ledger, after a running `protect` on this machine has stored what it holds.
async fn present_state(lineage: &Lineage) -> Result<LineageState> {
    let mut reader = lineage.reader().await?;
    if let Some(present) = reader.presence().await? {
        let holder = &present.holder;
        let runs = !present.closed
            && !holder.control.is_empty()
            && process_of(holder).is_alive() == Some(true);
        if runs {
            ask(Path::new(&holder.control), Ask::Settle).await?;
            reader.refresh().await?;
        }
    }
    let mut state = reader.state().clone();
    state.withdraw(&lineage.known_damage().await?);
    Ok(state)
}

fn settled_through(state: &LineageState) -> Option<Timestamp> {
    let pieces = state.pieces.last().and_then(|piece| piece.settled_after);
    pieces.max(state.settled.last().map(|settled| settled.through))
}

/// Whether nothing in the piece can have committed at `since` or later.
fn ended_before(piece: &PieceSummary, since: Timestamp) -> bool {
    // Commit times are not quite in log order: they are taken before the record is inserted.
    let margin = Duration::from_secs(1);
    piece
        .settled_after
        .is_some_and(|settled| settled < since.minus(margin))
}

/// The names that hold before the range, within it, and first after it.
async fn load_names(
    lineage: &Lineage,
    state: &LineageState,
    coverage: &Coverage<'_>,
    from: Position,
    to: Position,
    notes: &mut Vec<String>,
) -> Result<Vec<Extract>> {
    let on_path = |names: &&NamesSummary| {
        let leg = coverage.leg_of(names.branch);
        leg.is_some_and(|leg| leg.from <= names.from && names.to <= leg.to)
    };
    let mut all: Vec<_> = state.names.iter().filter(on_path).collect();
    all.sort_by_key(|names| (names.to, names.entry));
    let before = all.partition_point(|names| names.to <= from);
    let whole = (all.get(..before).unwrap_or_default().iter()).rposition(|names| names.whole);
    let first = whole.unwrap_or(0);
    let after = (all.iter().position(|names| names.whole && names.from >= to))
        .map_or(all.len(), |index| index + 1);
    let wanted = all.get(first..after.max(first)).unwrap_or_default();
    let read = futures::stream::iter(wanted.iter().copied().cloned())
        .map(|summary| async move {
            let read = read_names(lineage.store(), lineage.keys(), lineage.id(), &summary).await;
            (summary, read)
        })
        .buffered(READS_AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut extracts = Vec::new();
    for (summary, read) in read {
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Damaged => {
                notes.push(format!("names of {} are lost: {error}", summary.taken_at));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let names = serde_json::from_slice(&bytes).map_err(|error| {
            let what = format!("the names in ledger entry {}: {error}", summary.entry);
            Error::new(ErrorKind::Damaged, what)
        })?;
        extracts.push(Extract {
            from: summary.from,
            to: summary.to,
            taken_at: summary.taken_at,
            names,
        });
    }
    Ok(extracts)
}

/// What the pieces tell, by digest or index.
async fn load_pieces(
    lineage: &Lineage,
    pieces: &[(Leg, &PieceSummary)],
    min_rows: u64,
) -> Result<Vec<Piece>> {
    let reader = &LogReader::of(lineage);
    futures::stream::iter(pieces.iter().map(|(leg, piece)| (*leg, (*piece).clone())))
        .map(|(leg, piece)| async move { load_piece(reader, leg, &piece, min_rows).await })
        .buffered(READS_AT_ONCE)
        .try_concat()
        .await
}

/// What a piece tells, or each part of merged log.
async fn load_piece(
    reader: &LogReader,
    leg: Leg,
    piece: &PieceSummary,
    min_rows: u64,
) -> Result<Vec<Piece>> {
    // Of what was not merged the ledger says enough, if it has a digest.
    if piece.merged.is_none()
        && let Some(digest) = sufficient(piece.engine.as_ref(), min_rows)?
    {
        return Ok(vec![told(piece.start, piece.end, digest, leg)]);
    }
    let opened = async {
        let stored = reader.piece(piece).await?;
        let parts = stored.parts().await?;
        Ok::<_, borealis_repository::Error>((stored, parts))
    };
    let (stored, parts) = match opened.await {
        // A piece that the store lost is withdrawn, and tells nothing any more.
        Err(error) if error.kind() == ErrorKind::Damaged => {
            let mut lost = told(piece.start, piece.end, EventDigest::default(), leg);
            lost.notes.push(format!(
                "the log {} to {} is lost, and what happened there is not known: {error}",
                piece.start, piece.end
            ));
            return Ok(vec![lost]);
        }
        opened => opened?,
    };
    let digests: Vec<_> = (parts.iter())
        .map(|part| sufficient(part.engine.as_ref(), min_rows))
        .collect::<Result<_>>()?;
    let unsaid: BTreeSet<Position> = (parts.iter().zip(&digests))
        .filter(|(_, digest)| digest.is_none())
        .map(|(part, _)| part.start)
        .collect();
    let wanted = |part: &Part| unsaid.contains(&part.start);
    let mut indexes = stored.part_indexes(&parts, wanted).await?.into_iter();
    let mut loaded = Vec::new();
    for (part, digest) in parts.iter().zip(digests) {
        loaded.push(if let Some(digest) = digest {
            told(part.start, part.end, digest, leg)
        } else {
            let bytes = indexes.next().unwrap_or_default();
            read_index(stored.head().name(), &bytes, part, leg)?
        });
    }
    Ok(loaded)
}

/// The digest, if it leaves nothing out that matters. What was written before there were digests has none.
fn sufficient(engine: Option<&Bytes>, min_rows: u64) -> Result<Option<EventDigest>> {
    let digest = engine.map(|bytes| EventDigest::decode(bytes)).transpose()?;
    let suffices = |digest: &EventDigest| {
        (digest.left_out).is_none_or(|left_out| !left_out.drops && left_out.rows < min_rows)
    };
    Ok(digest.filter(suffices))
}

fn told(start: Position, end: Position, digest: EventDigest, leg: Leg) -> Piece {
    let mut piece = Piece {
        start,
        end,
        catalogs_changed: digest.catalogs_changed,
        events: digest.events,
        was_read: false,
        notes: Vec::new(),
    };
    piece.keep(leg);
    piece
}

impl Piece {
    /// Forgets what does not lie on the path.
    fn keep(&mut self, leg: Leg) {
        let on_leg = |event: &Event| leg.from < event.record.end && event.record.end <= leg.to;
        self.events.retain(on_leg);
    }
}

fn read_index(name: &str, bytes: &[u8], piece: &Part, leg: Leg) -> Result<Piece> {
    let mut into = told(piece.start, piece.end, EventDigest::default(), leg);
    let index = log_frame::index(name, bytes)?;
    if index.lacks_events() {
        into.notes.push(format!(
            "the index of the log {} to {} lacks {} events and the rows of {} transactions, and {} places could not be read",
            piece.start,
            piece.end,
            index.events_left_out,
            index.transactions_left_out,
            index.unparsed.len() as u64 + index.unparsed_left_out
        ));
    }
    into.was_read = true;
    into.catalogs_changed = index.catalogs_changed;
    into.events = index.events;
    into.events.retain(|event| is_digested(&event.kind));
    into.keep(leg);
    Ok(into)
}

/// Fills the report. Pure.
fn evaluate(pieces: &[Piece], extracts: &[Extract], request: &Request, report: &mut FindReport) {
    let mut naming = Naming::new(extracts);
    // Pieces may overlap.
    let mut events: BTreeMap<(Position, usize), Seen<'_>> = BTreeMap::new();
    for piece in pieces {
        naming.catalogs_changed(&piece.catalogs_changed, piece.end);
        report.indexes_read += u64::from(piece.was_read);
        report.notes.extend(piece.notes.iter().cloned());
        let mut same = (Position::ZERO, 0);
        for event in &piece.events {
            let start = event.record.start;
            same = (start, if same.0 == start { same.1 + 1 } else { 0 });
            let piece_start = piece.start;
            events.entry(same).or_insert(Seen { event, piece_start });
        }
    }
    for seen in events.values() {
        note_what_is_gone(seen.event, &mut naming);
    }
    let wanted = Wanted {
        min_rows: request.min_rows,
        all: request.all,
    };
    for seen in events.values() {
        for found in judge(*seen, &mut naming, wanted) {
            if found.time < report.since || found.time > report.until {
                continue;
            }
            if found.kind == Kind::Rewritten && !request.all {
                report.rewrites_not_shown += 1;
            } else {
                report.events.push(found);
            }
        }
    }
    report.notes.extend(unread_databases(extracts));
}

fn note_what_is_gone(event: &Event, naming: &mut Naming<'_>) {
    let at = event.record.end;
    match &event.kind {
        EventKind::RelationsDropped {
            relations, count, ..
        } => naming.files_gone(relations, *count == relations.len() as u64, at),
        EventKind::DropCommitted { databases, .. } => {
            for database in databases {
                naming.database_gone(*database, at);
            }
        }
        _ => {}
    }
}

/// Databases without names, as of the last reading; templates that nobody can enter hold nothing to
/// look for.
fn unread_databases(extracts: &[Extract]) -> Vec<String> {
    let mut reasons: BTreeMap<u32, &str> = BTreeMap::new();
    for database in extracts.iter().flat_map(|extract| &extract.names.databases) {
        match (&database.relations, &database.unread) {
            (Some(_), _) => {
                reasons.remove(&database.oid);
            }
            (None, Some(reason)) => {
                reasons.insert(database.oid, reason);
            }
            (None, None) => {}
        }
    }
    let last = extracts.last().into_iter();
    last.flat_map(|extract| &extract.names.databases)
        .filter(|database| database.name != "template0")
        .filter_map(|database| {
            let reason = reasons.get(&database.oid)?;
            let name = &database.name;
            Some(format!(
                "relations of database {name} have no names here: {reason}"
            ))
        })
        .collect()
}

/// Adds the commands that restore, where that is possible.
fn tell_restores(state: &LineageState, legs: &[Leg], request: &Request, report: &mut FindReport) {
    let windows = windows(state);
    // What came before the first base backup is no reason to restore.
    let earliest = windows.iter().map(|window| window.earliest.position).min();
    if let Some(earliest) = earliest.filter(|_| !request.all) {
        let all = report.events.len();
        report.events.retain(|found| found.position >= earliest);
        let before = all - report.events.len();
        if before > 0 {
            report.notes.push(format!(
                "{before} events from before the first base backup are not shown; --all shows them"
            ));
        }
    }
    for found in &mut report.events {
        let position = found.position;
        // A position is one of the newest branch's path, as the command takes it.
        let reached = windows.iter().any(|window| {
            let leg = legs.iter().find(|leg| leg.branch == window.branch);
            window.earliest.position <= position
                && position <= window.latest.position
                && leg.is_some_and(|leg| leg.from <= position && position <= leg.to)
        });
        found.restore = reached.then(|| {
            let target = format!(
                "{}-before-{}",
                report.cluster,
                position.to_string().replace('/', "-")
            );
            let to = format!("lsn:{position}");
            let words = [
                "--cluster",
                &report.cluster,
                "--to",
                &to,
                "--target-dir",
                &target,
            ];
            let words = request
                .restore_command
                .iter()
                .map(String::as_str)
                .chain(words);
            words.map(shell_word).collect::<Vec<_>>().join(" ")
        });
    }
}

/// A word as a shell reads it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;
