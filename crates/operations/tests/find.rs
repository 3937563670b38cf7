//! `find` over many small log pieces, without a server: what it costs, and what lost objects change.
//!
//! How long it takes over a day of a piece each second, on a machine of one's own:
//! `BOREALIS_FIND_PIECES=86400 cargo nextest run --release -p borealis-operations --test find --no-capture`.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{
    Branch, Clock, ManualClock, Position, RecordSpan, SeededEntropy, SystemClock, SystemEntropy,
    Timestamp,
};
use borealis_keys::FileKey;
use borealis_operations::Site;
use borealis_operations::find::report::{FindReport, Kind};
use borealis_operations::find::{Request, find};
use borealis_operations::protect::log_frame;
use borealis_pg_format::index::{Cut, Event, EventKind, LogIndexer, RULE_SET, RelationRows};
use borealis_pg_format::wal::{LogFormat, Start};
use borealis_pg_format::{Relation, Version};
use borealis_pg_server::names::{DatabaseNames, Names, RelationName};
use borealis_repository::ledger::{
    EntryBody, Holder, LedgerWriter, LogPiece, Names as NamesEntry, Opening,
};
use borealis_repository::log::{PieceIdentity, prepare_names, prepare_piece};
use borealis_repository::object::Compression;
use borealis_repository::store::{Counters, CountingStore, MemoryStore, Store};
use borealis_repository::{Environment, Lineage, Repository, layout};
use bytes::Bytes;

const NOON: Timestamp = Timestamp(1_700_000_000_000_000);
const PIECE_BYTES: u64 = 64;
/// A piece each second in which something happens.
const DISASTER_EVERY: u64 = 1000;
/// Enough for one checkpoint, with recaps and single entries behind it.
const PIECES: u64 = 4200;

struct Day {
    site: Site,
    lineage: Lineage,
    store: Arc<MemoryStore>,
    usage: Arc<Counters>,
    pieces: u64,
    names: Vec<u64>,
    _dir: tempfile::TempDir,
}

fn relation(number: u32) -> Relation {
    Relation {
        tablespace: 1663,
        database: 5,
        number,
    }
}

/// The index of a piece; each thousandth holds a disaster, and each tenth of those more than a digest.
fn cut(number: u64, at: u64, time: Timestamp) -> Cut {
    let format = LogFormat::new(Version::V15);
    let mut indexer = LogIndexer::new(format, Position(at), Start::Record);
    let mut cut = indexer.cut();
    cut.index.end = Position(at + PIECE_BYTES);
    assert_eq!(cut.index.rule_set, RULE_SET);
    if number % DISASTER_EVERY == 500 {
        let many = if number % (DISASTER_EVERY * 4) == 500 {
            40
        } else {
            1
        };
        cut.index.events = (0..many)
            .map(|n| Event {
                record: RecordSpan {
                    start: Position(at + n),
                    end: Position(at + n + 1),
                },
                kind: EventKind::RowsChanged {
                    xid: 700,
                    time,
                    relations: vec![RelationRows {
                        relation: relation(20_000),
                        deleted: 1000 + n,
                        ..RelationRows::default()
                    }],
                },
            })
            .collect();
    }
    cut
}

async fn append_names(writer: &mut LedgerWriter, lineage: &Lineage, at: u64) -> u64 {
    let names = Names {
        databases: vec![DatabaseNames {
            oid: 5,
            name: "shop".to_owned(),
            tablespace: 1663,
            relations: Some(vec![RelationName {
                oid: 20_000,
                schema: "public".to_owned(),
                name: "orders".to_owned(),
                kind: "r".to_owned(),
                file: 20_000,
                ..RelationName::default()
            }]),
            unread: None,
        }],
        tablespaces: Vec::new(),
    };
    let body = NamesEntry {
        branch: Branch(1),
        from: Position(at),
        to: Position(at),
        taken_at: NOON,
        whole: true,
    };
    let identity = PieceIdentity {
        lineage: lineage.id(),
        branch: body.branch,
        start: body.from,
    };
    let bytes = serde_json::to_vec(&names).unwrap();
    let frames = prepare_names(&identity, &bytes, Compression::Zstd(1)).unwrap();
    let entry = EntryBody::Names(body);
    writer.append(&entry, frames).await.unwrap().number
}

async fn day(pieces: u64) -> Day {
    let dir = tempfile::tempdir().unwrap();
    let key_file: PathBuf = dir.path().join("key");
    let key = FileKey::create(&key_file, &SystemEntropy).unwrap();
    let clock = Arc::new(ManualClock::new(NOON));
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let usage = Arc::new(Counters::default());
    let counted = CountingStore::new(store.clone() as Arc<dyn Store>, usage.clone());
    let environment = Environment {
        store: Arc::new(counted),
        clock: clock.clone(),
        entropy: Arc::new(SeededEntropy::new(1)),
    };
    let repository = Repository::init(environment, &[&key]).await.unwrap();
    let lineage = repository
        .create_cluster("main", Bytes::new())
        .await
        .unwrap();
    let opening = Opening {
        holder: Holder::default(),
        log_unit: 1,
        expected_epoch: None,
    };
    let mut writer = lineage.open_writer(opening).await.unwrap();
    let mut names = vec![append_names(&mut writer, &lineage, 0).await];
    for number in 0..pieces {
        clock.advance(Duration::from_secs(1));
        let (start, time) = (number * PIECE_BYTES, clock.now());
        let cut = cut(number, start, time);
        let last_record = Some(RecordSpan {
            start: Position(start),
            end: Position(start + PIECE_BYTES),
        });
        let body = EntryBody::LogPiece(LogPiece {
            branch: Branch(1),
            start: Position(start),
            end: Position(start + PIECE_BYTES),
            settled_before: Some(time.minus(Duration::from_secs(1))),
            settled_after: Some(time),
            last_record,
            resume_at: Position(start + PIECE_BYTES),
            engine: Some(cut.index.digest().encode().into()),
        });
        let identity = PieceIdentity {
            lineage: lineage.id(),
            branch: Branch(1),
            start: Position(start),
        };
        let index = log_frame::encode(&cut).unwrap();
        let bytes = [0; PIECE_BYTES as usize];
        let frames = prepare_piece(&identity, &bytes, &[], &index, Compression::Zstd(1)).unwrap();
        writer.append(&body, frames).await.unwrap();
        if number % 3600 == 1800 {
            names.push(append_names(&mut writer, &lineage, start).await);
        }
    }
    let site = Site {
        repository,
        url: "memory:".to_owned(),
        key: key_file.into(),
        usage: usage.clone(),
    };
    Day {
        site,
        lineage,
        store,
        usage,
        pieces,
        names,
        _dir: dir,
    }
}

impl Day {
    async fn find(&self, min_rows: u64) -> FindReport {
        let request = Request {
            cluster: None,
            since: None,
            until: None,
            min_rows,
            all: false,
            restore_command: vec!["borealis".to_owned(), "restore".to_owned()],
        };
        find(&self.site, &request).await.unwrap()
    }
}

#[tokio::test]
async fn a_day_of_pieces_is_searched_by_digests_and_few_requests() {
    let pieces = std::env::var("BOREALIS_FIND_PIECES");
    let pieces = pieces.map_or(PIECES, |text| text.parse().unwrap());
    let day = day(pieces).await;
    let (gets, began) = (day.usage.usage().gets, SystemClock.elapsed());
    let report = day.find(1000).await;
    let took = SystemClock.elapsed().saturating_sub(began);
    let gets = day.usage.usage().gets - gets;
    eprintln!(
        "{pieces} pieces: {took:?}, {gets} gets, {} events",
        report.events.len()
    );
    let disasters = pieces / DISASTER_EVERY;
    let large = disasters.div_ceil(4);
    assert_eq!(report.log_pieces, day.pieces);
    assert_eq!(
        report.indexes_read, large,
        "only where a digest has no room"
    );
    assert_eq!(report.events.len() as u64, disasters - large + 40 * large);
    let first = &report.events[0];
    assert_eq!(
        (first.kind, first.objects[0].deleted),
        (Kind::RowsDeleted, 1000)
    );
    assert_eq!(first.objects[0].name.as_deref(), Some("public.orders"));
    // Nothing can be restored without a base backup, and no command claims it.
    assert!(report.events.iter().all(|found| found.restore.is_none()));
    // Checkpoints, recaps and the entries behind them; each index and each reading of the names.
    let ledger = pieces / 4096 + 2 * (4096 / 64) + 2 * 64;
    let allowed = ledger + large + day.names.len() as u64 + 32;
    assert!(gets <= allowed, "{gets} gets, {allowed} allowed");

    // Digests say by how much they are too small.
    let few = day.find(2000).await;
    assert_eq!((few.indexes_read, few.events.len()), (0, 0));
}

#[tokio::test]
async fn names_that_are_lost_are_told_and_numbers_take_their_place() {
    // A recap repeats what the entries of the names say of themselves.
    let day = day(600).await;
    for entry in &day.names {
        let name = layout::entry(day.lineage.id(), *entry);
        let mut bytes = day.store.read(&name).await.unwrap().to_vec();
        let place = bytes.len() / 2;
        bytes[place] ^= 1;
        day.store.tamper(&name, bytes.into());
    }
    let report = day.find(1000).await;
    assert!(
        report.notes.iter().any(|note| note.contains("lost")),
        "{:?}",
        report.notes
    );
    let object = &report.events[0].objects[0];
    assert_eq!(
        (object.name.as_deref(), object.number.as_str()),
        (None, "1663/5/20000")
    );
}
