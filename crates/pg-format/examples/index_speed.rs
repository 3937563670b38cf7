//! How fast log segments are indexed, against the checksum alone over the same bytes.
//!
//! Rates are per second of this thread's CPU time, which other work on the machine disturbs less than wall time.
//!
//! `cargo run --release -p borealis-pg-format --example index_speed -- SEGMENT...`

use std::process::ExitCode;
use std::time::Duration;

use borealis_pg_format::index::LogIndexer;
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};
use borealis_pg_format::{Lsn, Version};
use rustix::time::{ClockId, clock_gettime};

/// Each measurement is the fastest of this many.
const ROUNDS: usize = 15;
/// Bytes pushed at a time: what a replication link delivers.
const CHUNK: usize = 128 << 10;
/// Bytes of a piece of the log, each with an index of its own.
const PIECE: u64 = 16 << 20;

/// CPU time of this thread so far.
fn cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn fastest(mut run: impl FnMut()) -> Duration {
    let times = (0..ROUNDS).map(|_| {
        let start = cpu();
        run();
        cpu().saturating_sub(start)
    });
    times.min().unwrap_or_default()
}

#[allow(clippy::cast_precision_loss)] // three digits are shown
fn show(name: &str, bytes: usize, time: Duration) -> f64 {
    let rate = bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9);
    println!("{name:<34}{rate:>9.0} MB/s");
    rate
}

fn main() -> ExitCode {
    let mut files: Vec<_> = std::env::args().skip(1).collect();
    files.sort();
    let Some(start) = files.first().and_then(|file| start_of(file)) else {
        eprintln!("usage: index_speed SEGMENT...\nSegments of one timeline, without a gap.");
        return ExitCode::from(2);
    };
    let mut log = Vec::new();
    for file in &files {
        match std::fs::read(file) {
            Ok(bytes) => log.extend(bytes),
            Err(error) => {
                eprintln!("read {file}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    measure(start, &log);
    ExitCode::SUCCESS
}

fn start_of(file: &str) -> Option<Lsn> {
    let name = std::path::Path::new(file).file_name()?.to_str()?;
    match LogFile::parse(name, SegmentSize::DEFAULT)? {
        LogFile::Segment { number, .. } => Some(SegmentSize::DEFAULT.start_of(number)),
        _ => None,
    }
}

fn measure(start: Lsn, log: &[u8]) {
    let format = LogFormat::new(Version::V15);
    let mut lens = Vec::new();
    let mut reader = WalReader::new(format, start, Start::Anywhere, None);
    reader.push(start, log, &mut |event| {
        if let LogEvent::Record(record) = event {
            lens.push(record.header.total_len as usize);
        }
    });
    let end = reader.last_record().map_or(start, |last| last.1);
    let log = log.get(..end.since(start) as usize).unwrap_or(log);
    println!("{} bytes, {} records", log.len(), lens.len());

    let pages = fastest(|| {
        let sum = log
            .chunks(8192)
            .fold(0, |sum, page| sum ^ crc32c::crc32c(page));
        std::hint::black_box(sum);
    });
    show("CRC-32C, page by page", log.len(), pages);
    let records = fastest(|| {
        let mut rest = log;
        for len in &lens {
            let (record, after) = rest.split_at((*len).min(rest.len()));
            std::hint::black_box(crc32c::crc32c(record));
            rest = after;
        }
    });
    let alone = show("CRC-32C, record by record", log.len(), records);
    let read = fastest(|| {
        let mut reader = WalReader::new(format, start, Start::Anywhere, None);
        let mut records = 0_u64;
        push(start, log, |lsn, bytes| {
            reader.push(lsn, bytes, &mut |_| records += 1);
        });
        std::hint::black_box(records);
    });
    show("records read and checked", log.len(), read);
    let indexed = fastest(|| {
        let mut indexer = LogIndexer::new(format, start, Start::Anywhere);
        let mut stored = 0;
        push(start, log, |lsn, bytes| {
            indexer.push(lsn, bytes);
            if indexer.position().0.is_multiple_of(PIECE) {
                let cut = indexer.cut();
                stored += cut.index.encode().len() + cut.carry.encode().len();
            }
        });
        stored += indexer.cut().index.encode().len();
        std::hint::black_box(stored);
    });
    let index = show("log index, stored form included", log.len(), indexed);
    println!("index / CRC-32C of the records: {:.2}", index / alone);
}

fn push(start: Lsn, log: &[u8], mut to: impl FnMut(Lsn, &[u8])) {
    for (index, bytes) in log.chunks(CHUNK).enumerate() {
        to(start.plus((index * CHUNK) as u64), bytes);
    }
}
