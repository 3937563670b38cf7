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
use borealis_repository::plan::{BranchSummary, LogRange, PieceRange, RestorePlan};
use futures::TryStreamExt;

use super::files::{blocking, new_file, write_file};
use crate::error::{Error, FileContext, Result};

/// Log pieces fetched ahead.
const PREFETCH: usize = 8;
/// Stretches of log written at a time.
const WRITES: usize = 4;

/// Writes the log of `plan` as segments below `directory`. Every segment has its full length, zeros behind
/// the cut.
pub async fn lay_out(
    lineage: &Lineage,
    plan: &RestorePlan,
    size: SegmentSize,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    progress.phase("log", Unit::Bytes, Some(plan.log_bytes));
    let reader = LogReader::new(
        lineage.store().clone(),
        lineage.keys().clone(),
        lineage.id(),
    );
    let pieces = plan.pieces.clone();
    let log = reader.stream(pieces, PREFETCH).map_err(Error::from);
    log.try_for_each_concurrent(WRITES, async |part| {
        let len = part.bytes.len() as u64;
        let directory = directory.to_owned();
        let repeats = repeated_by(&plan.log, &part, size);
        blocking(move || {
            write_part(&directory, &part, size)?;
            (repeats.iter()).try_for_each(|part| write_part(&directory, part, size))
        })
        .await?;
        progress.advance(len);
        Ok(())
    })
    .await
}

/// The parts of a stretch of log that the branches behind it repeat. The segment in which a branch begins
/// holds the log before that, too, and recovery reads the whole segment from the file of the newest branch
/// that has one (`XLogFileReadAnyTLI` in `xlogrecovery.c`).
fn repeated_by(legs: &[LogRange], part: &LogBytes, size: SegmentSize) -> Vec<LogBytes> {
    let part_end = part.position.plus(part.bytes.len() as u64);
    let behind = legs
        .iter()
        .skip_while(|leg| leg.branch != part.branch)
        .skip(1);
    let repeat = |leg: &LogRange| {
        let segment = size.start_of(size.number_of(leg.from));
        let (from, to) = (part.position.max(segment), part_end.min(leg.from));
        let offset = |at: Position| usize::try_from(at.since(part.position)).ok();
        if from >= to {
            return None;
        }
        Some(LogBytes {
            branch: leg.branch,
            position: from,
            bytes: part.bytes.slice(offset(from)?..offset(to)?),
        })
    };
    behind.filter_map(repeat).collect()
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn leg(branch: u32, from: u64, to: u64) -> LogRange {
        LogRange {
            branch: Branch(branch),
            from: Position(from),
            to: Position(to),
        }
    }

    #[test]
    fn the_segment_in_which_a_branch_begins_holds_the_log_before_it() {
        let segment = SIZE.bytes();
        // The second branch begins 100 bytes into the third segment, the third one 50 bytes behind that.
        let (second, third) = (2 * segment + 100, 2 * segment + 150);
        let legs = [
            leg(1, 0, second),
            leg(2, second, third),
            leg(3, third, third + 10),
        ];
        let directory = tempfile::tempdir().unwrap();
        let byte = |at: u64| (at % 251) as u8 + 1;
        for leg in legs {
            // In several stretches, as the log comes.
            let middle = Position(u64::midpoint(leg.from.0, leg.to.0));
            for (from, to) in [(leg.from, middle), (middle, leg.to)] {
                let part = LogBytes {
                    branch: leg.branch,
                    position: from,
                    bytes: (from.0..to.0).map(byte).collect::<Bytes>(),
                };
                for part in repeated_by(&legs, &part, SIZE).iter().chain([&part]) {
                    write_part(directory.path(), part, SIZE).unwrap();
                }
            }
        }
        let read = |branch: u32| {
            let name = LogFile::Segment {
                timeline: Branch(branch),
                number: 2,
            }
            .name(SIZE);
            std::fs::read(directory.path().join(name)).unwrap()
        };
        for (branch, end) in [(1, 100), (2, 150), (3, 160)] {
            let bytes = read(branch);
            assert_eq!(bytes.len() as u64, segment);
            let expected: Vec<u8> = (0..end).map(|at| byte(2 * segment + at)).collect();
            assert_eq!(
                bytes[..160][..end as usize],
                expected[..],
                "branch {branch}"
            );
            assert!(bytes[end as usize..].iter().all(|byte| *byte == 0));
        }
        // Nothing of the segments before it is repeated.
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 5);
    }
}
