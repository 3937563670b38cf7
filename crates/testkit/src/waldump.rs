//! The log as PostgreSQL itself reads it: a witness that shares nothing with the program under test.
//! `pg_waldump` for 15 and, translated, for 14; `pg_walinspect` for 16 and later, which come without programs.

pub mod translate;

use std::path::Path;

use borealis_base::{Position, Timestamp};
use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::{Lsn, Timeline};
use borealis_pg_server::instance::command_as;

use crate::TestServer;
use crate::installed::{DEBIAN_MAJOR, binaries};
use crate::server::{give_to, system_user};

/// Bytes of a log segment of test servers, unless they ask for another size.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes of the header of a segment's first page (`SizeOfXLogLongPHD` in `xlog_internal.h`).
const LONG_PAGE_HEADER_BYTES: u64 = 40;

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it begins.
    pub start: Position,
    /// The end of a transaction, prepared or not, kept or not, where it is one.
    pub end: Option<TransactionEnd>,
}

/// What the end of a transaction says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Which transaction, without the epoch.
    pub xid: u32,
    /// When it ended. Several may end in one microsecond.
    pub time: Timestamp,
}

/// The records of `[from, to)` of a running server's own log, which must still be there, on timeline 1.
pub async fn records(server: &TestServer, from: Position, to: Position) -> Vec<Record> {
    // What was inserted is not in the files until a commit waits for it, as this one does.
    server
        .sql(
            "BEGIN; SET LOCAL synchronous_commit = 'local'; \
             SELECT pg_logical_emit_message(true, 'flush', ''); COMMIT",
        )
        .await;
    let log = server.data_dir().join("pg_wal");
    match server.binaries().major {
        14 => {
            let folder = server.scratch("log-as-15");
            translate_log(&log, &folder, from);
            waldump(&folder, from, to)
        }
        DEBIAN_MAJOR => waldump(&log, from, to),
        _ => walinspect(server, from, to).await,
    }
}

fn translate_log(log: &Path, folder: &Path, from: Position) {
    let (size, timeline) = (SegmentSize::DEFAULT, Timeline(1));
    let first = size.number_of(Lsn(from.0));
    let mut bytes = Vec::new();
    let segments = (first..).map(|number| LogFile::Segment { timeline, number }.name(size));
    for name in segments {
        let Ok(segment) = std::fs::read(log.join(name)) else {
            break;
        };
        bytes.extend(segment);
    }
    translate::write_as_15(folder, timeline, size.start_of(first), &bytes);
    for entry in std::fs::read_dir(folder).expect("it was made").flatten() {
        give_to(&entry.path(), system_user().as_ref());
    }
}

async fn walinspect(server: &TestServer, from: Position, to: Position) -> Vec<Record> {
    let session = server.session("postgres").await;
    session
        .run("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
        .await
        .expect("contrib is installed");
    let rows = session
        .rows(&format!(
            "SELECT start_lsn, xid::text, resource_manager = 'Transaction' AS ends, \
             record_type || ' ' || description AS what \
             FROM pg_get_wal_records_info('{from}', '{to}') ORDER BY start_lsn"
        ))
        .await
        .unwrap_or_else(|error| panic!("pg_walinspect: {error}"));
    rows.iter()
        .map(|row| Record {
            start: row.position("start_lsn").expect("a position"),
            end: row
                .flag("ends")
                .expect("a flag")
                .then(|| {
                    let xid = row.text("xid").expect("a number");
                    transaction_end(xid, row.text("what").unwrap_or_default())
                })
                .flatten(),
        })
        .collect()
}

fn waldump(log: &Path, from: Position, to: Position) -> Vec<Record> {
    // Where the log ends with a segment, the next one has no file yet, only the header to come counts.
    let header_only = to.0 % SEGMENT_BYTES <= LONG_PAGE_HEADER_BYTES;
    let to = if header_only {
        to.align_down(SEGMENT_BYTES)
    } else {
        to
    };
    let program = binaries(DEBIAN_MAJOR).program("pg_waldump");
    let output = command_as(&program, system_user().as_ref())
        .current_dir("/")
        .env("TZ", "UTC")
        .arg("-p")
        .arg(log)
        .args(["-s", &from.to_string(), "-e", &to.to_string()])
        // Else it asks any file for the size of a segment, which may be one that is yet to be used.
        .args([segment_of(from), segment_of(Position(to.0 - 1))])
        .output()
        .expect("pg_waldump is installed");
    assert!(
        output.status.success(),
        "pg_waldump: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(record).collect()
}

fn segment_of(position: Position) -> String {
    let (size, timeline) = (SegmentSize::DEFAULT, Timeline(1));
    let number = size.number_of(Lsn(position.0));
    LogFile::Segment { timeline, number }.name(size)
}

fn record(line: &str) -> Option<Record> {
    let (_, rest) = line.split_once(" lsn: ")?;
    let start = rest.split(',').next()?.trim().parse().ok()?;
    let end = line
        .contains("rmgr: Transaction")
        .then(|| {
            let (_, xid) = line.split_once(" tx: ")?;
            let (_, what) = rest.split_once(" desc: ")?;
            transaction_end(xid.split(',').next()?.trim(), what)
        })
        .flatten();
    Some(Record { start, end })
}

/// `COMMIT 2026-11-21 08:15:00.123456 UTC; …` of the transaction that wrote it, and
/// `COMMIT_PREPARED 731: 2026-…` of another one; `pg_walinspect` writes the zone as `+00`.
fn transaction_end(writer: &str, what: &str) -> Option<TransactionEnd> {
    let words: Vec<_> = what.split([' ', ';']).collect();
    let xid = match *words.first()? {
        "COMMIT" | "ABORT" => writer,
        "COMMIT_PREPARED" | "ABORT_PREPARED" => words.get(1)?.trim_end_matches(':'),
        _ => return None,
    };
    let time = words.windows(2).find_map(|pair| {
        let [day, time] = pair else { return None };
        let time = time.trim_end_matches("+00");
        format!("{day}T{time}Z").parse().ok()
    });
    Some(TransactionEnd {
        xid: xid.parse().expect("the number of a transaction"),
        time: time.expect("the time of an end"),
    })
}

/// The last end of a transaction before the first one with a time after `moment`, and that first one:
/// what a restore to `moment` holds and does not hold.
pub fn ends_around(records: &[Record], moment: Timestamp) -> (Option<Position>, Option<Position>) {
    let mut last = None;
    for record in records {
        match record.end {
            Some(end) if end.time > moment => return (last, Some(record.start)),
            Some(_) => last = Some(record.start),
            None => {}
        }
    }
    (last, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_transactions_are_read_with_their_times() {
        let commit = "rmgr: Transaction len (rec/tot):     34/    34, tx:        730, lsn: 0/0152AF60, prev 0/0152AF28, desc: COMMIT 2026-11-21 08:15:00.123456 UTC";
        let prepared = "rmgr: Transaction len (rec/tot):     54/    54, tx:          0, lsn: 0/0152B000, prev 0/0152AF60, desc: ABORT_PREPARED 731: 2026-11-21 08:15:00.200000 UTC; rels: base/5/1";
        let prepare = "rmgr: Transaction len (rec/tot):    154/   154, tx:        732, lsn: 0/0152B040, prev 0/0152B000, desc: PREPARE gid two_phase_1: 2026-11-21 08:15:00.300000 UTC";
        let inspected = "COMMIT 2026-11-21 08:15:00.123456+00; inval msgs: catcache 1";
        assert_eq!(
            transaction_end("730", inspected),
            Some(TransactionEnd {
                xid: 730,
                time: "2026-11-21T08:15:00.123456Z".parse().unwrap()
            })
        );
        let heap = "rmgr: Heap        len (rec/tot):     59/    59, tx:        730, lsn: 0/0152AF20, prev 0/0152AEE8, desc: INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 0";
        let all: Vec<_> = [heap, commit, prepared, prepare]
            .into_iter()
            .filter_map(record)
            .collect();
        let starts: Vec<_> = all.iter().map(|record| record.start.0).collect();
        assert_eq!(starts, [0x0152_AF20, 0x0152_AF60, 0x0152_B000, 0x0152_B040]);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(
            all.iter()
                .map(|record| record.end.map(|end| (end.xid, end.time)))
                .collect::<Vec<_>>(),
            [
                None,
                Some((730, at("2026-11-21T08:15:00.123456Z"))),
                Some((731, at("2026-11-21T08:15:00.200000Z"))),
                None
            ]
        );
        assert_eq!(
            ends_around(&all, at("2026-11-21T08:15:00.123456Z")),
            (Some(Position(0x0152_AF60)), Some(Position(0x0152_B000)))
        );
    }
}
