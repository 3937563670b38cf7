//! What PostgreSQL's own readers say of a log: `pg_waldump` of 14 and 15, `pg_walinspect` of 16 and later.

use std::collections::{BTreeMap, HashMap};

use borealis_pg_format::segment::{LogFile, SegmentSize};
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};
use borealis_pg_format::{Lsn, Relation, Timeline, Version};

use borealis_testkit::waldump::translate;

use crate::server::Server;

/// A record, as both sides see it. The operation is a number here and a name there.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub start: Lsn,
    pub prev: Lsn,
    pub rmgr: String,
    pub xid: u32,
    pub total_len: u32,
    pub blocks: Vec<(u8, Relation, u8, u32, bool)>,
}

/// What PostgreSQL's own reader says of a log.
pub struct Witness {
    /// Its records, with the names of their operations. `pg_walinspect` describes each record that it
    /// shows, which takes long: of a long log it is asked for some stretches.
    pub records: Vec<(Seen, String)>,
    /// The stretches that `records` are of.
    pub stretches: Vec<(Lsn, Lsn)>,
    /// How many records of which resource manager and operation there are in all, and their bytes.
    pub kinds: BTreeMap<(String, String), (u64, u64)>,
}

/// How much of a log is shown record by record: all up to `WHOLE`, else `SHOWN` of each `EVERY` bytes.
const WHOLE: u64 = 64 << 20;
const SHOWN: u64 = 1 << 20;
const EVERY: u64 = 10 << 20;

/// The records of `log`, whose bytes begin with a segment at `start`, that begin in `[from, end)`.
/// Names of operations of 14 are those of 15.
pub fn witness(
    server: &mut Server,
    timeline: Timeline,
    (start, log): (Lsn, &[u8]),
    (from, end): (Lsn, Lsn),
) -> Witness {
    if server.version() >= Version::V16 {
        let stretches = stretches(server.version(), (start, log), (from, end));
        server.start();
        server.sql(&["CREATE EXTENSION IF NOT EXISTS pg_walinspect"]);
        let shown = stretches.iter();
        let shown = shown.flat_map(|(from, end)| walinspect(server, *from, *end));
        let records = shown.collect();
        let kinds = statistics(server, from, end);
        server.stop();
        return Witness {
            records,
            stretches,
            kinds,
        };
    }
    let records = waldump(server, timeline, (start, log), (from, end));
    let mut kinds = BTreeMap::new();
    for (seen, name) in &records {
        let (count, bytes) = kinds
            .entry((seen.rmgr.clone(), name.clone()))
            .or_insert((0, 0));
        *count += 1;
        *bytes += u64::from(seen.total_len);
    }
    Witness {
        records,
        stretches: vec![(from, end)],
        kinds,
    }
}

/// Stretches that begin and end with a record.
fn stretches(
    version: Version,
    (start, log): (Lsn, &[u8]),
    (from, end): (Lsn, Lsn),
) -> Vec<(Lsn, Lsn)> {
    if end.since(from) <= WHOLE {
        return vec![(from, end)];
    }
    let mut found = Vec::new();
    let mut open = None;
    let mut reader = WalReader::new(LogFormat::new(version), start, Start::Anywhere, None);
    reader.push(start, log, &mut |event| {
        let LogEvent::Record(record) = event else {
            return;
        };
        let into = record.start.0.saturating_sub(from.0) % EVERY;
        match open {
            None if record.start >= from && into < SHOWN => open = Some(record.start),
            Some(begin) if into >= SHOWN => {
                found.push((begin, record.start));
                open = None;
            }
            _ => {}
        }
    });
    found.extend(open.map(|begin| (begin, end)));
    found
}

/// How many records of which kind there are.
fn statistics(server: &Server, from: Lsn, end: Lsn) -> BTreeMap<(String, String), (u64, u64)> {
    let rows = server.sql(&[&format!(
        "SELECT \"resource_manager/record_type\", count, combined_size \
         FROM pg_get_wal_stats('{from}', '{end}', true)"
    )]);
    let kinds = rows.lines().map(|line| {
        let columns: Vec<&str> = line.split('|').collect();
        let (rmgr, name) = columns[0].split_once('/').expect("two names");
        let number = |index: usize| -> u64 { columns[index].parse().expect("a number") };
        ((rmgr.to_owned(), name.to_owned()), (number(1), number(2)))
    });
    kinds.collect()
}

fn waldump(
    server: &Server,
    timeline: Timeline,
    (start, log): (Lsn, &[u8]),
    (from, end): (Lsn, Lsn),
) -> Vec<(Seen, String)> {
    let size = SegmentSize::DEFAULT;
    let name = |number| LogFile::Segment { timeline, number }.name(size);
    let last = size.number_of(Lsn(end.0 - 1));
    let folder = match server.version() {
        Version::V14 => {
            let folder = server.home().join(format!("as-15-{timeline}"));
            translate::write_as_15(&folder, timeline, start, log);
            folder
        }
        _ => server.data().join("pg_wal"),
    };
    let output = server
        .command("pg_waldump")
        .arg("-p")
        .arg(folder)
        .args(["-s", &from.to_string(), "-e", &end.to_string()])
        .args(["-t", &timeline.to_string()])
        .args([&name(size.number_of(from)), &name(last)])
        .output()
        .expect("pg_waldump runs");
    let records = parse(&String::from_utf8_lossy(&output.stdout));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pg_waldump: {complaint}");
    records
}

fn walinspect(server: &Server, from: Lsn, end: Lsn) -> Vec<(Seen, String)> {
    let range = format!("'{from}', '{end}'");
    let blocks = server.sql(&[&format!(
        "SELECT start_lsn, block_id, reltablespace, reldatabase, relfilenode, relforknumber, \
         relblocknumber, block_fpi_length > 0 FROM pg_get_wal_block_info({range}, false)"
    )]);
    let mut blocks_of: HashMap<&str, Vec<_>> = HashMap::new();
    for line in blocks.lines() {
        let columns: Vec<&str> = line.split('|').collect();
        let number = |index: usize| -> u32 { columns[index].parse().expect("a number") };
        let relation = Relation {
            tablespace: number(2),
            database: number(3),
            number: number(4),
        };
        blocks_of.entry(columns[0]).or_default().push((
            number(1) as u8,
            relation,
            number(5) as u8,
            number(6),
            columns[7] == "t",
        ));
    }
    let records = server.sql(&[&format!(
        "SELECT start_lsn, prev_lsn, xid, record_length, resource_manager, record_type \
         FROM pg_get_wal_records_info({range}) ORDER BY start_lsn"
    )]);
    let seen = records.lines().map(|line| {
        let columns: Vec<&str> = line.split('|').collect();
        let mut blocks = blocks_of.remove(columns[0]).unwrap_or_default();
        blocks.sort_by_key(|block| block.0);
        let seen = Seen {
            start: columns[0].parse().expect("a position"),
            prev: columns[1].parse().expect("a position"),
            rmgr: columns[4].to_owned(),
            xid: columns[2].parse().expect("a transaction"),
            total_len: columns[3].parse().expect("a length"),
            blocks,
        };
        (seen, columns[5].to_owned())
    });
    seen.collect()
}

/// The text between two others.
pub fn field<'a>(line: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = line
        .split_once(before)
        .unwrap_or_else(|| panic!("`{before}` in {line}"));
    rest.split_once(after)
        .map_or(rest, |(value, _)| value)
        .trim()
}

fn block_of(text: &str) -> (u8, Relation, u8, u32, bool) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let id = words[0]
        .trim_end_matches(':')
        .parse()
        .expect("a block number");
    let numbers: Vec<u32> = words[2]
        .split('/')
        .map(|word| word.parse().expect("a number"))
        .collect();
    let relation = Relation {
        tablespace: numbers[0],
        database: numbers[1],
        number: numbers[2],
    };
    let (fork, block) = if words[3] == "fork" {
        let fork = ["main", "fsm", "vm", "init"]
            .iter()
            .position(|name| *name == words[4]);
        (fork.expect("a fork") as u8, words[6])
    } else {
        (0, words[4])
    };
    let block = block.trim_end_matches(',').parse().expect("a block");
    (id, relation, fork, block, words.contains(&"FPW"))
}

/// Each record that `pg_waldump` prints, with the name of its operation.
fn parse(text: &str) -> Vec<(Seen, String)> {
    let lines = text.lines().filter(|line| line.starts_with("rmgr: "));
    let seen = lines.map(|line| {
        let (head, desc) = line.split_once(", desc: ").expect("a description");
        let mut blocks = desc.split(", blkref #");
        let operation = blocks
            .next()
            .expect("an operation")
            .split_whitespace()
            .next();
        let len = field(head, "tot):", ", ");
        let seen = Seen {
            start: field(head, "lsn: ", ",").parse().expect("a position"),
            prev: field(head, "prev ", ",").parse().expect("a position"),
            rmgr: field(head, "rmgr: ", " ").to_owned(),
            xid: field(head, "tx: ", ",").parse().expect("a transaction"),
            total_len: field(len, "/", ",").parse().expect("a length"),
            blocks: blocks.map(block_of).collect(),
        };
        (seen, operation.unwrap_or_default().to_owned())
    });
    seen.collect()
}
