//! Each record agrees with PostgreSQL's own reader; what they mean is found.

use std::collections::{BTreeMap, BTreeSet};

use borealis_pg_format::Version;
use borealis_pg_format::index::EventKind;
use borealis_pg_format::wal::{LogEvent, LogFormat, Start, WalReader};

use crate::fixture::{Fixture, fixture, whole_index};
use crate::witness::Seen;

/// Each record that the witness shows, and its operation's number.
type Ours = Vec<(Seen, u8)>;
/// Records and their bytes, by resource manager.
type Sums = BTreeMap<String, (u64, u64)>;

fn ours(fixture: &Fixture) -> (Ours, Sums) {
    let (start, log) = &fixture.log;
    let (mut records, mut sums) = (Ours::new(), Sums::new());
    let mut stretches = fixture.theirs.stretches.iter().peekable();
    let format = LogFormat::new(fixture.version);
    let mut reader = WalReader::new(format, *start, Start::Anywhere, None);
    reader.push(*start, log, &mut |event| match event {
        LogEvent::Record(record) => {
            let rmgr = record.header.rmgr.to_string();
            let (count, bytes) = sums.entry(rmgr.clone()).or_default();
            *count += 1;
            *bytes += u64::from(record.header.total_len);
            stretches.next_if(|(_, end)| record.start >= *end);
            if stretches
                .peek()
                .is_none_or(|(from, _)| record.start < *from)
            {
                return;
            }
            let blocks = record.blocks.iter();
            let blocks = blocks.map(|block| {
                (
                    block.id,
                    block.relation,
                    block.fork,
                    block.block,
                    block.image.is_some(),
                )
            });
            let seen = Seen {
                start: record.start,
                prev: record.header.prev,
                rmgr,
                xid: record.header.xid,
                total_len: record.header.total_len,
                blocks: blocks.collect(),
            };
            records.push((seen, record.header.operation()));
        }
        other => panic!("{other:?}"),
    });
    (records, sums)
}

pub fn every_record_agrees(version: Version) {
    let witness = &fixture(version).theirs;
    let (ours, sums) = ours(fixture(version));
    let mut their_sums = Sums::new();
    for ((rmgr, _), (count, bytes)) in &witness.kinds {
        let (all, all_bytes) = their_sums.entry(rmgr.clone()).or_default();
        *all += count;
        *all_bytes += bytes;
    }
    assert_eq!(sums, their_sums);
    let theirs = &witness.records;
    assert!(theirs.len() > 50_000, "{} records", theirs.len());
    let mut names: BTreeMap<(String, u8), BTreeSet<String>> = BTreeMap::new();
    let mut numbers: BTreeMap<(String, String), BTreeSet<u8>> = BTreeMap::new();
    for ((ours, number), (theirs, name)) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs);
        let rmgr = &ours.rmgr;
        names
            .entry((rmgr.clone(), *number))
            .or_default()
            .insert(name.clone());
        numbers
            .entry((rmgr.clone(), name.clone()))
            .or_default()
            .insert(*number);
    }
    assert_eq!(ours.len(), theirs.len());
    // Each operation number stands for one name. The other way a flag can share a name (HAS_INFO of
    // transactions).
    for (number, names) in &names {
        assert_eq!(names.len(), 1, "{number:?}: {names:?}");
    }
    for ((rmgr, name), numbers) in &numbers {
        assert!(
            numbers.len() == 1 || rmgr == "Transaction" || rmgr == "Heap2",
            "{rmgr} {name}: {numbers:?}"
        );
    }
}

pub fn notable_events_are_found(version: Version) {
    let index = whole_index(version);
    assert_eq!(index.unparsed, []);
    let restore_points: Vec<_> = index
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::RestorePoint { name, .. } => {
                Some(String::from_utf8_lossy(name).into_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(restore_points, ["before everything", "after everything"]);
    // DELETE of 1000 and 3000 rows in a subtransaction, one update; 1000 more were rolled back.
    let disaster = index.events.iter().any(|event| matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.deleted == 4000 && rows.updated == 1)));
    assert!(disaster);
    let prepared = index.events.iter().any(|event| matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.deleted == 200)));
    assert!(prepared, "rows deleted by a prepared transaction");
    let moved = index.events.iter().any(|event| matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.updated == 200 && rows.deleted == 0)));
    assert!(moved, "rows moved to another partition count as updated");
    // The 1000 rows left of `doomed` were deleted by a transaction that was rolled back.
    let rolled_back = index.events.iter().any(|event| {
        matches!(&event.kind,
        EventKind::RowsChanged { relations, .. } if relations.iter().any(|rows| rows.deleted == 1000))
    });
    assert!(
        !rolled_back,
        "a transaction that was rolled back is no event"
    );
    let count = |wanted: fn(&EventKind) -> bool| {
        index
            .events
            .iter()
            .filter(|event| wanted(&event.kind))
            .count()
    };
    assert!(count(|kind| matches!(kind, EventKind::RelationsDropped { .. })) > 5);
    // 14 knows one way to create a database.
    let copied = if version == Version::V14 { 4 } else { 2 };
    assert!(count(|kind| matches!(kind, EventKind::RelationTruncated { .. })) >= 1);
    assert_eq!(
        count(|kind| matches!(
            kind,
            EventKind::DatabaseCreated {
                source: Some(_),
                ..
            }
        )),
        copied
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::DatabaseCreated { source: None, .. })),
        4 - copied
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::DatabaseDropped { .. })),
        2
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::TablespaceCreated { .. })),
        2
    );
    assert_eq!(
        count(|kind| matches!(kind, EventKind::TablespaceDropped { .. })),
        1
    );
    assert_eq!(count(|kind| matches!(kind, EventKind::ClockStep { .. })), 0);
    assert!(index.full_page_writes.iter().any(|change| !change.on));
    assert!(index.redo_points.iter().any(|point| point.shutdown));
    assert!(index.time_steps.len() > 100);
}
