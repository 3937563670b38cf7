//! What is found, from events and names as they could have been stored.

use borealis_base::{LineageId, RecordSpan};
use borealis_pg_format::Relation;
use borealis_pg_format::index::{CreatedRelation, RelationRows};
use borealis_pg_server::names::RelationName;

use super::naming::tests::{DATABASE, extract, file, table};
use super::report::FoundObject;
use super::*;

const NOON: Timestamp = Timestamp(1_700_000_000_000_000);

fn request(all: bool) -> Request {
    Request {
        cluster: None,
        since: None,
        until: None,
        min_rows: 1000,
        all,
        restore_command: vec!["borealis".to_owned(), "restore".to_owned()],
    }
}

fn event(at: u64, kind: EventKind) -> Event {
    Event {
        record: RecordSpan {
            start: Position(at),
            end: Position(at + 8),
        },
        kind,
    }
}

fn gone(at: u64, files: &[u32], created: &[(u32, bool)], created_complete: bool) -> Event {
    let made = |(number, filled): &(u32, bool)| CreatedRelation {
        relation: file(*number),
        filled: *filled,
    };
    event(
        at,
        EventKind::RelationsDropped {
            xid: 700,
            time: NOON,
            relations: files.iter().map(|number| file(*number)).collect(),
            count: files.len() as u64,
            created: created.iter().map(made).collect(),
            created_complete,
        },
    )
}

fn rows(at: u64, changes: &[(u32, u64, u64)]) -> Event {
    let of = |(number, deleted, updated): &(u32, u64, u64)| RelationRows {
        relation: file(*number),
        inserted: 5,
        updated: *updated,
        deleted: *deleted,
    };
    event(
        at,
        EventKind::RowsChanged {
            xid: 700,
            time: NOON,
            relations: changes.iter().map(of).collect(),
        },
    )
}

fn found(events: Vec<Event>, extracts: &[Extract], request: &Request) -> FindReport {
    let mut report = FindReport {
        cluster: "main".to_owned(),
        lineage: LineageId([1; 16]),
        since: NOON.minus(Duration::from_secs(9)),
        until: NOON,
        min_rows: request.min_rows,
        events: Vec::new(),
        rewrites_not_shown: 0,
        log_through: None,
        log_pieces: 1,
        indexes_read: 0,
        notes: Vec::new(),
    };
    // One piece each, as on a quiet server.
    let pieces: Vec<Piece> = (events.into_iter())
        .map(|event| Piece {
            start: Position(event.record.start.0 - 10),
            end: Position(event.record.end.0 + 10),
            catalogs_changed: vec![DATABASE],
            events: vec![event],
            was_read: false,
            notes: Vec::new(),
        })
        .collect();
    evaluate(&pieces, extracts, request, &mut report);
    report
}

fn shown(report: &FindReport) -> Vec<(Kind, Vec<String>)> {
    let name = |object: &FoundObject| match &object.name {
        Some(name) if object.partitions > 0 => format!("{name} ({})", object.partitions),
        Some(name) => name.clone(),
        None => object.number.clone(),
    };
    let of = |found: &report::Found| (found.kind, found.objects.iter().map(name).collect());
    report.events.iter().map(of).collect()
}

fn part(kind: &str, oid: u32, owner: u32, file: u32) -> RelationName {
    RelationName {
        kind: kind.to_owned(),
        owner,
        partition: kind == "r" || kind == "p",
        ..table(oid, &format!("{kind}{oid}"), file)
    }
}

/// A table with everything that belongs to it.
fn orders(first_file: u32) -> Vec<RelationName> {
    vec![
        table(20_000, "orders", first_file),
        part("t", 20_001, 20_000, first_file + 1),
        part("i", 20_002, 20_001, first_file + 2),
        part("i", 20_003, 20_000, first_file + 3),
        part("S", 20_004, 20_000, first_file + 4),
    ]
}

const ORDERS: &str = "public.orders";

#[test]
fn one_drop_of_a_table_with_all_its_parts_is_one_event() {
    let extracts = [extract(100, 100, Some(orders(30_000)))];
    let files = [30_000, 30_001, 30_002, 30_003, 30_004];
    let report = found(
        vec![gone(200, &files, &[], true)],
        &extracts,
        &request(false),
    );
    assert_eq!(shown(&report), [(Kind::Dropped, vec![ORDERS.to_owned()])]);
    assert_eq!(report.events[0].position, Position(200));
    assert_eq!(
        report.events[0].objects[0].database.as_deref(),
        Some("shop")
    );
}

#[test]
fn drops_truncations_and_rewrites_are_told_apart_by_what_the_transaction_created() {
    let files = [30_000, 30_001, 30_002, 30_003];
    // Old and new files of table, TOAST table and its index, and an index; only indexes have a page.
    let truncated = [
        (31_000, false),
        (31_001, false),
        (31_002, true),
        (31_003, true),
    ];
    let rewritten = [
        (31_000, true),
        (31_001, false),
        (31_002, true),
        (31_003, true),
    ];
    let after = |relations| {
        [
            extract(100, 100, Some(orders(30_000))),
            extract(300, 300, Some(relations)),
        ]
    };
    let there = after(orders(31_000));
    let gone_since = after(Vec::new());
    let replaced_since = after(orders(32_000));
    let kind = |created: &[(u32, bool)], extracts: &[Extract]| {
        let events = vec![gone(200, &files, created, true)];
        let report = found(events, extracts, &request(true));
        assert_eq!(report.events.len(), 1, "{:?}", report.events);
        report.events[0].kind
    };
    assert_eq!(kind(&truncated, &there), Kind::Truncated);
    assert_eq!(kind(&rewritten, &there), Kind::Rewritten);
    assert_eq!(kind(&[], &there), Kind::Dropped);
    // Dropped, beside something that was made.
    assert_eq!(kind(&truncated, &gone_since), Kind::Dropped);
    // Replaced once more since: the number of empty files tells,
    assert_eq!(kind(&truncated, &replaced_since), Kind::Truncated);
    assert_eq!(kind(&rewritten, &replaced_since), Kind::Rewritten);
    // unless not everything that went away has a successor, or something else was made, too.
    assert_eq!(kind(&truncated[..3], &replaced_since), Kind::Gone);
    assert_eq!(kind(&[(31_000, true); 5], &replaced_since), Kind::Gone);
    // Not looked at since: it may have been dropped, beside something else that was made.
    assert_eq!(kind(&truncated, &there[..1]), Kind::Gone);
    assert_eq!(kind(&rewritten, &there[..1]), Kind::Gone);
    let hidden = found(
        vec![gone(200, &files, &rewritten, true)],
        &there,
        &request(false),
    );
    assert_eq!((hidden.events.len(), hidden.rewrites_not_shown), (0, 1));
}

#[test]
fn a_table_that_was_truncated_and_then_dropped_is_not_called_dropped_twice() {
    let extracts = [
        extract(100, 100, Some(vec![table(20_000, "orders", 30_000)])),
        extract(300, 300, Some(Vec::new())),
    ];
    let events = vec![
        gone(200, &[30_000], &[(31_000, false)], true),
        gone(250, &[31_000], &[], true),
    ];
    let report = found(events, &extracts, &request(false));
    assert_eq!(
        shown(&report),
        [
            (Kind::Gone, vec![ORDERS.to_owned()]),
            (Kind::Dropped, vec!["1663/5/31000".to_owned()])
        ]
    );
}

#[test]
fn rewrites_one_after_the_other_are_told_though_names_were_read_before_and_after_only() {
    let extracts = [
        extract(100, 100, Some(orders(30_000))),
        extract(900, 900, Some(orders(33_000))),
    ];
    let parts = |first: u32| [first, first + 1, first + 2, first + 3];
    let made = |first: u32, table| {
        let [heap, toast, toast_index, index] = parts(first);
        [
            (heap, table),
            (toast, false),
            (toast_index, true),
            (index, true),
        ]
    };
    let events = |second| {
        vec![
            gone(200, &parts(30_000), &made(31_000, true), true),
            gone(300, &parts(31_000), &made(32_000, second), true),
            // Indexes only.
            gone(
                400,
                &[32_002, 32_003],
                &[(33_002, true), (33_003, true)],
                true,
            ),
            gone(
                500,
                &[32_000, 32_001],
                &[(33_000, true), (33_001, false)],
                true,
            ),
        ]
    };
    let report = found(events(true), &extracts, &request(false));
    assert_eq!((shown(&report), report.rewrites_not_shown), (vec![], 4));
    // A truncation in between is not hidden.
    let report = found(events(false), &extracts, &request(false));
    assert_eq!(shown(&report), [(Kind::Truncated, vec![ORDERS.to_owned()])]);
    // Files that only go away are dropped, whoever they were made for.
    let mut dropped = events(true);
    dropped.push(gone(600, &[33_003], &[], true));
    let report = found(dropped, &extracts, &request(false));
    let names = vec!["1663/5/33003".to_owned()];
    assert_eq!(shown(&report), [(Kind::Dropped, names)]);
}

#[test]
fn where_what_was_created_is_not_known_no_drop_is_claimed() {
    let extracts = [extract(100, 100, Some(orders(30_000)))];
    let report = found(
        vec![gone(200, &[30_000, 40_000], &[], false)],
        &extracts,
        &request(false),
    );
    let names = vec![ORDERS.to_owned(), "1663/5/40000".to_owned()];
    assert_eq!(shown(&report), [(Kind::Gone, names)]);
}

#[test]
fn files_that_came_and_went_within_the_transaction_count_for_nothing() {
    let extracts = [extract(100, 100, Some(orders(30_000)))];
    let brief = [(40_000, true), (40_001, false)];
    let report = found(
        vec![gone(200, &[30_000, 40_000, 40_001], &brief, true)],
        &extracts,
        &request(false),
    );
    assert_eq!(shown(&report), [(Kind::Dropped, vec![ORDERS.to_owned()])]);
}

#[test]
fn a_truncation_stays_in_its_tablespace_and_is_of_tables_only() {
    let moved = RelationName {
        tablespace: 16_500,
        ..table(20_000, "orders", 31_000)
    };
    let view = RelationName {
        kind: "m".to_owned(),
        ..table(20_010, "totals", 30_010)
    };
    let extracts = [
        extract(
            100,
            100,
            Some(vec![table(20_000, "orders", 30_000), view.clone()]),
        ),
        extract(
            300,
            300,
            Some(vec![
                moved,
                RelationName {
                    file: 31_010,
                    ..view
                },
            ]),
        ),
    ];
    let mut event = gone(200, &[30_000, 30_010], &[(31_010, false)], true);
    if let EventKind::RelationsDropped { created, .. } = &mut event.kind {
        created.push(CreatedRelation {
            relation: Relation {
                tablespace: 16_500,
                ..file(31_000)
            },
            filled: false,
        });
    }
    let report = found(vec![event], &extracts, &request(false));
    assert_eq!((report.events.len(), report.rewrites_not_shown), (0, 1));
}

#[test]
fn partitions_are_folded_only_where_all_of_them_are_concerned() {
    let relations = || {
        Some(vec![
            RelationName {
                kind: "p".to_owned(),
                ..table(20_000, "orders", 0)
            },
            part("r", 20_001, 20_000, 30_001),
            part("p", 20_002, 20_000, 0),
            part("r", 20_003, 20_002, 30_003),
            part("r", 20_004, 20_002, 30_004),
        ])
    };
    let extracts = [extract(100, 100, relations())];
    let dropped = |files: &[u32]| {
        let report = found(
            vec![gone(200, files, &[], true)],
            &extracts,
            &request(false),
        );
        shown(&report)[0].1.clone()
    };
    assert_eq!(dropped(&[30_001, 30_003, 30_004]), ["public.orders (3)"]);
    assert_eq!(dropped(&[30_003, 30_004]), ["public.p20002 (2)"]);
    assert_eq!(
        dropped(&[30_001, 30_003]),
        ["public.r20001", "public.r20003"]
    );

    let changes = [(30_001, 400, 0), (30_003, 600, 0)];
    let report = found(vec![rows(200, &changes)], &extracts, &request(false));
    let names = vec!["public.orders (2)".to_owned()];
    assert_eq!(shown(&report), [(Kind::RowsDeleted, names)]);
    assert_eq!(report.events[0].objects[0].deleted, 1000);
}

#[test]
fn rows_of_toast_tables_and_catalogs_are_not_counted() {
    let mut relations = orders(30_000);
    relations.push(RelationName {
        schema: "pg_catalog".to_owned(),
        ..table(1249, "pg_attribute", 30_100)
    });
    let extracts = [extract(100, 100, Some(relations))];
    let many = [(30_000, 999, 0), (30_001, 5000, 0), (30_100, 5000, 0)];
    let report = found(vec![rows(200, &many)], &extracts, &request(false));
    assert_eq!(shown(&report), []);
    let enough = [(30_000, 600, 400), (40_000, 7, 0)];
    let report = found(vec![rows(200, &enough)], &extracts, &request(false));
    let names = vec![ORDERS.to_owned(), "1663/5/40000".to_owned()];
    assert_eq!(shown(&report), [(Kind::RowsDeletedAndUpdated, names)]);
}

#[test]
fn a_name_that_may_have_changed_says_when_it_was_read() {
    let renamed = |name| extract(300, 300, Some(vec![table(20_000, name, 30_000)]));
    let first = extract(100, 100, Some(vec![table(20_000, "orders", 30_000)]));
    let object = |extracts: &[Extract]| {
        // Something unrelated changes the catalogs before.
        let events = vec![
            gone(150, &[50_000], &[], true),
            rows(200, &[(30_000, 1000, 0)]),
        ];
        let report = found(events, extracts, &request(false));
        report.events[1].objects[0].clone()
    };
    let later = object(&[first.clone(), renamed("sales")]);
    assert_eq!(later.name.as_deref(), Some(ORDERS));
    assert_eq!(later.later_name.as_deref(), Some("public.sales"));
    assert_eq!(object(&[first.clone(), renamed("orders")]).name_as_of, None);
    assert_eq!(object(&[first]).name_as_of, Some(Timestamp(100)));
}

#[test]
fn lone_indexes_and_unlogged_relations_are_shown_only_when_asked_for() {
    let mut relations = orders(30_000);
    relations.push(RelationName {
        unlogged: true,
        ..table(20_010, "cache", 30_010)
    });
    let extracts = [extract(100, 100, Some(relations))];
    let events = || vec![gone(200, &[30_003, 30_010], &[], true)];
    assert_eq!(shown(&found(events(), &extracts, &request(false))), []);
    let names = vec!["public.cache".to_owned(), "public.i20003".to_owned()];
    let all = found(events(), &extracts, &request(true));
    assert_eq!(shown(&all), [(Kind::Dropped, names)]);
}

#[test]
fn a_dropped_database_has_its_name_and_one_that_was_moved_is_none() {
    let before = extract(100, 100, Some(Vec::new()));
    let mut after = extract(300, 300, None);
    let drop = || {
        event(
            200,
            EventKind::DropCommitted {
                xid: 700,
                time: NOON,
                before: Position(180),
                databases: vec![DATABASE],
                tablespaces: vec![],
            },
        )
    };
    let moved = found(
        vec![drop()],
        &[before.clone(), after.clone()],
        &request(false),
    );
    assert_eq!(shown(&moved), []);
    after.names.databases.clear();
    let dropped = found(vec![drop()], &[before, after], &request(false));
    assert_eq!(
        shown(&dropped),
        [(Kind::DatabaseDropped, vec!["shop".to_owned()])]
    );
    assert_eq!(dropped.events[0].position, Position(180));
}

#[test]
fn events_of_pieces_that_overlap_are_told_once() {
    let extracts = [extract(100, 100, Some(orders(30_000)))];
    let same = || gone(200, &[30_000], &[], true);
    let report = found(vec![same(), same()], &extracts, &request(false));
    assert_eq!(report.events.len(), 1);
}

#[test]
fn words_are_quoted_as_a_shell_reads_them() {
    assert_eq!(shell_word("lsn:0/5000148"), "lsn:0/5000148");
    assert_eq!(shell_word("/srv/my backup"), "'/srv/my backup'");
    assert_eq!(shell_word("it's"), r"'it'\''s'");
    assert_eq!(
        shell_word("s3://b/p?endpoint=x&y"),
        "'s3://b/p?endpoint=x&y'"
    );
    assert_eq!(shell_word(""), "''");
}
