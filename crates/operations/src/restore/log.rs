//! Lays the log of a restore into `pg_wal`, cut exactly behind the last record to replay: recovery
//! cannot overrun a byte that is not there, and the target keeps it from ending early (facts, 5).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use borealis_base::{Branch, ErrorKind, Position, Progress, Unit};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_repository::Lineage;
use borealis_repository::log::{LogBytes, LogReader};
use borealis_repository::plan::{BranchSummary, PieceRange};
use futures::TryStreamExt;

use super::files::{blocking, new_file, write_file};
use crate::error::{Error, FileContext, Result};

/// Log pieces fetched ahead.
const PREFETCH: usize = 8;
/// Stretches of log written at a time.
const WRITES: usize = 4;

/// Writes `pieces` as segments below `directory`. Every segment has its full length, zeros behind
/// the cut.
pub async fn lay_out(
    lineage: &Lineage,
    pieces: Vec<PieceRange>,
    size: SegmentSize,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let total = pieces.iter().map(|part| part.to.since(part.from)).sum();
    progress.phase("log", Unit::Bytes, Some(total));
    let reader = LogReader::new(
        lineage.store().clone(),
        lineage.keys().clone(),
        lineage.id(),
    );
    let log = reader.stream(pieces, PREFETCH).map_err(Error::from);
    log.try_for_each_concurrent(WRITES, async |part| {
        let len = part.bytes.len() as u64;
        let directory = directory.to_owned();
        blocking(move || write_part(&directory, &part, size)).await?;
        progress.advance(len);
        Ok(())
    })
    .await
}

/// Writes a stretch of log into the segments that it belongs to.
fn write_part(directory: &Path, part: &LogBytes, size: SegmentSize) -> Result<()> {
    let mut position = part.position;
    let mut bytes = &part.bytes[..];
    while !bytes.is_empty() {
        let number = size.number_of(position);
        let (timeline, offset) = (part.branch, position.since(size.start_of(number)));
        let path = directory.join(LogFile::Segment { timeline, number }.name(size));
        // Its parts come in no order: whichever is first makes it.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .at("open", &path)?;
        file.set_len(size.bytes()).at("set the length of", &path)?;
        let room = usize::try_from(size.bytes() - offset).unwrap_or(usize::MAX);
        let (now, rest) = bytes.split_at(room.min(bytes.len()));
        file.write_all_at(now, offset).at("write", &path)?;
        position = position.plus(now.len() as u64);
        bytes = rest;
    }
    Ok(())
}

/// Writes the history files of the branches that recovery may ask for.
pub fn lay_histories(
    branches: &BTreeMap<Branch, BranchSummary>,
    size: SegmentSize,
    directory: &Path,
) -> Result<()> {
    for (branch, summary) in branches {
        let path = directory.join(LogFile::History(*branch).name(size));
        write_file(&path, &summary.history, None)?;
    }
    Ok(())
}

/// The log of `pieces` as one segment file that begins at `start`, zeros behind its end. Appears at
/// `target` whole or not at all.
pub async fn write_segment(
    lineage: &Lineage,
    pieces: Vec<PieceRange>,
    start: Position,
    size: SegmentSize,
    target: &Path,
) -> Result<()> {
    // A name of its own: two calls for one target must not write into one file.
    let staged = target.with_extension(format!("borealis-{}", std::process::id()));
    let written = fill_segment(lineage, pieces, start, size, &staged).await;
    let placed = written.and_then(|_| std::fs::rename(&staged, target).at("put in place", target));
    if placed.is_err() {
        // What went wrong is told already.
        let _ = std::fs::remove_file(&staged);
    }
    placed
}

/// Writes the log of `pieces` into the file `path` as a segment that begins at `start`, durably; returns
/// the CRC-32C of its bytes, and how many they are.
pub async fn fill_segment(
    lineage: &Lineage,
    pieces: Vec<PieceRange>,
    start: Position,
    size: SegmentSize,
    path: &Path,
) -> Result<(u32, u64)> {
    let file = new_file(path, 0o600)?;
    file.set_len(size.bytes()).at("set the length of", path)?;
    let mut log = std::pin::pin!(LogReader::of(lineage).stream(pieces, PREFETCH));
    let (mut crc, mut len) = (0, 0);
    while let Some(part) = log.try_next().await? {
        if part.position != start.plus(len) {
            return Err(Error::new(
                ErrorKind::Bug,
                format!("log at {} was read for {}", part.position, start.plus(len)),
            ));
        }
        file.write_all_at(&part.bytes, len).at("write", path)?;
        crc = crc32c::crc32c_append(crc, &part.bytes);
        len += part.bytes.len() as u64;
    }
    file.sync_all().at("sync", path)?;
    Ok((crc, len))
}
