//! What `pg_waldump` prints, read back.

use borealis_pg_format::{Lsn, Relation};

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

/// Each record, with the name of its operation.
pub fn parse(text: &str) -> Vec<(Seen, String)> {
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
