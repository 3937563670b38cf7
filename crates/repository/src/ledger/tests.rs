use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{
    Branch, ErrorKind, ManualClock, ObjectId, Position, RecordSpan, SeededEntropy, Timestamp,
};
use borealis_keys::DataKey;

use super::*;
use crate::object::PreparedFrame;
use crate::plan::ObjectRef;
use crate::store::{
    Counters, CountingStore, Created, FaultStore, Faults, MemoryStore, StoreError, StoreErrorKind,
    StoreLayer,
};

fn context(store: Arc<dyn Store>, seed: u64) -> Context {
    Context {
        store,
        keys: Arc::new(DataKeys::new(DataKey::random(&SeededEntropy::new(7)))),
        lineage: LineageId([9; 16]),
        clock: Arc::new(ManualClock::new(Timestamp(1_000))),
        entropy: Arc::new(SeededEntropy::new(seed)),
        shape: Shape::default(),
        patience: Patience {
            attempts: 3,
            pause: Duration::from_millis(1),
        },
        without: None,
    }
}

fn opening() -> Opening {
    Opening {
        holder: Holder {
            host: "here".to_owned(),
            pid: 42,
            ..Holder::default()
        },
        log_unit: 16 << 20,
        expected_epoch: None,
    }
}

fn piece(start: u64, end: u64) -> EntryBody {
    EntryBody::LogPiece(LogPiece {
        branch: Branch(1),
        start: Position(start),
        end: Position(end),
        settled_before: None,
        settled_after: Some(Timestamp(5)),
        last_record: Some(RecordSpan {
            start: Position(start),
            end: Position(end),
        }),
        resume_at: Position(end),
        engine: None,
    })
}

fn frame(content: &[u8]) -> PreparedFrame {
    PreparedFrame::new(16, Compression::Zstd(1), content)
}

/// One entry of each kind.
fn one_of_each() -> Vec<EntryBody> {
    let record = RecordSpan {
        start: Position(90),
        end: Position(100),
    };
    vec![
        piece(0, 100),
        EntryBody::BaseBackup(BaseBackup {
            manifest: ObjectRef {
                lineage: LineageId([9; 16]),
                object: ObjectId([3; 16]),
                len: 77,
                head_digest: [4; 32],
            },
            branch: Branch(1),
            start: Position(10),
            end: Position(60),
            started_at: Timestamp(1),
            ended_at: Timestamp(2),
            new_bytes: 1_000,
            total_pages: 10,
            rule_set: 3,
            engine: Bytes::from_static(b"engine"),
        }),
        EntryBody::Settled(Settled {
            branch: Branch(1),
            through: Timestamp(-9),
            last_record: record,
        }),
        EntryBody::Gap(Gap {
            branch: Branch(1),
            from: Position(100),
            to: Position(200),
            reason: "slot lost".to_owned(),
        }),
        EntryBody::BranchStarted(BranchStarted {
            branch: Branch(2),
            parent: Branch(1),
            at: Position(300),
            history: Bytes::from_static(b"history"),
        }),
        EntryBody::Retired(Retired {
            reason: "replaced".to_owned(),
        }),
        EntryBody::ReadBack,
        partial(500),
        EntryBody::Names(Names {
            branch: Branch(1),
            from: Position(90),
            to: Position(110),
            taken_at: Timestamp(-6),
            whole: true,
        }),
        EntryBody::LogPiece(LogPiece {
            branch: Branch(1),
            start: Position(100),
            end: Position(110),
            settled_before: None,
            settled_after: None,
            last_record: None,
            resume_at: Position(110),
            engine: Some(Bytes::from_static(b"digest")),
        }),
    ]
}

fn partial(start: u64) -> EntryBody {
    EntryBody::PartialBaseBackup(PartialBaseBackup {
        manifest: ObjectRef {
            lineage: LineageId([2; 16]),
            object: ObjectId([6; 16]),
            len: 88,
            head_digest: [7; 32],
        },
        branch: Branch(1),
        start: Position(start),
        started_at: Timestamp(-5),
        new_bytes: 9,
        stored_pages: 7,
        missing_pages: 3,
        rule_set: 3,
    })
}

#[tokio::test]
async fn a_partial_base_backup_counts_until_the_next_one_or_a_base_backup() {
    let context = context(Arc::new(MemoryStore::default()), 1);
    let mut writer = LedgerWriter::open(context.clone(), opening())
        .await
        .unwrap();
    let start = |writer: &LedgerWriter| writer.state().partial.as_ref().map(|p| p.start);
    for at in [100, 200] {
        writer.append(&partial(at), Vec::new()).await.unwrap();
        assert_eq!(start(&writer), Some(Position(at)));
        assert!(writer.state().base_backups.is_empty());
    }
    let whole = one_of_each()
        .into_iter()
        .find(|body| matches!(body, EntryBody::BaseBackup(_)));
    writer.append(&whole.unwrap(), Vec::new()).await.unwrap();
    assert_eq!(start(&writer), None);
    assert_eq!(writer.state().base_backups.len(), 1);
    let reader = LedgerReader::load(context).await.unwrap();
    assert_eq!(reader.state(), writer.state());
}

#[tokio::test]
async fn every_kind_of_entry_folds_to_what_it_says() {
    let context = context(Arc::new(MemoryStore::default()), 1);
    let mut writer = LedgerWriter::open(context.clone(), opening())
        .await
        .unwrap();
    for body in one_of_each() {
        writer
            .append(&body, vec![frame(b"log bytes")])
            .await
            .unwrap();
    }
    let reader = LedgerReader::load(context).await.unwrap();
    assert_eq!(reader.state(), writer.state());
    let state = reader.state();
    assert_eq!((state.head, state.log_unit), (11, 16 << 20));
    let piece = &state.pieces[0];
    assert_eq!(
        (piece.entry, piece.start, piece.end),
        (2, Position(0), Position(100))
    );
    assert_eq!(piece.settled_after, Some(Timestamp(5)));
    assert_eq!(piece.recorded_at, Timestamp(1_000));
    assert_eq!(state.base_backups[0].manifest.len, 77);
    assert_eq!(state.base_backups[0].rule_set, 3);
    let partial = state.partial.as_ref().unwrap();
    assert_eq!((partial.entry, partial.start), (9, Position(500)));
    assert_eq!((partial.stored_pages, partial.missing_pages), (7, 3));
    assert_eq!(state.settled[0].through, Timestamp(-9));
    let names = &state.names[0];
    assert_eq!(
        (names.entry, names.from, names.to),
        (10, Position(90), Position(110))
    );
    assert!(names.whole && names.taken_at == Timestamp(-6));
    let engine: Vec<_> = state
        .pieces
        .iter()
        .map(|piece| piece.engine.as_deref())
        .collect();
    assert_eq!(engine, [None, Some(&b"digest"[..])]);
    assert_eq!(state.gaps[0].reason, "slot lost");
    assert_eq!(state.branches[&Branch(2)].parent, Branch(1));
    assert_eq!(state.retired.as_deref(), Some("replaced"));
    for (number, body) in (2..).zip(one_of_each()) {
        assert_eq!(reader.body(number).await.unwrap(), body);
        let object = reader.object(number).await.unwrap();
        assert_eq!(
            object.frame(&reader.context.keys, 1).unwrap().as_ref(),
            b"log bytes"
        );
        assert_eq!(
            state.pieces[0].stored_bytes == object.head().object_len(),
            number == 2
        );
    }
}

#[tokio::test]
async fn a_zombie_writer_commits_nothing_however_long_it_slept() {
    let store = Arc::new(MemoryStore::default());
    let mut old = LedgerWriter::open(context(store.clone(), 1), opening())
        .await
        .unwrap();
    old.append(&piece(0, 1), Vec::new()).await.unwrap();
    let mut new = LedgerWriter::open(context(store.clone(), 2), opening())
        .await
        .unwrap();
    new.append(&piece(1, 2), Vec::new()).await.unwrap();
    let error = old.append(&piece(1, 2), Vec::new()).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Fenced {
                epoch: 1,
                by: 2,
                ..
            }
        ),
        "{error}"
    );
    let error = old.append(&piece(1, 2), Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "and it stays fenced");
    let head = LedgerReader::load(context(store, 3))
        .await
        .unwrap()
        .head()
        .0;
    assert_eq!(head, 4);
}

#[tokio::test]
async fn a_zombie_between_create_and_probe_commits_nothing() {
    // The new writer has taken its epoch and not yet read: the old one's create still lands.
    let store = Arc::new(MemoryStore::default());
    let mut old = LedgerWriter::open(context(store.clone(), 1), opening())
        .await
        .unwrap();
    let new = context(store.clone(), 2);
    assert_eq!(new.take_epoch(Role::Ledger, &opening()).await.unwrap(), 2);
    let error = old.append(&piece(0, 1), Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
    // Its entry was not reported, but it is there, and whoever opens next takes it in.
    let writer = LedgerWriter::open(context(store, 3), opening())
        .await
        .unwrap();
    assert_eq!(writer.state().pieces.len(), 1);
    assert_eq!(writer.epoch(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_told_from_a_rival() {
    let faults = Faults {
        lost_replies: 700,
        ..Faults::default()
    };
    let store = Arc::new(FaultStore::new(Arc::new(MemoryStore::default()), faults, 5));
    let mut context = context(store, 1);
    context.patience.attempts = 100;
    let mut writer = LedgerWriter::open(context, opening()).await.unwrap();
    for n in 0..50 {
        let entry = writer.append(&piece(n, n + 1), Vec::new()).await.unwrap();
        assert_eq!(entry.number, n + 2, "each entry is appended once");
    }
}

/// A store that can be switched to "full" and to "never answers".
struct Gate {
    inner: MemoryStore,
    full: AtomicBool,
    silent: AtomicBool,
}

impl Gate {
    fn open() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::default(),
            full: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        })
    }
}

#[async_trait]
impl StoreLayer for Gate {
    fn inner(&self) -> &dyn Store {
        &self.inner
    }

    async fn create(&self, name: &str, bytes: Bytes) -> Result<Created, StoreError> {
        if self.full.load(Ordering::Relaxed) {
            let kind = StoreErrorKind::Full;
            return Err(StoreError::new(
                kind,
                "create",
                name,
                "gate:",
                "no space left",
            ));
        }
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.inner.create(name, bytes).await
    }
}

#[tokio::test]
async fn a_full_store_is_said_and_the_entry_is_appended_once_there_is_room() {
    let gate = Gate::open();
    let mut writer = LedgerWriter::open(context(gate.clone(), 1), opening())
        .await
        .unwrap();
    gate.full.store(true, Ordering::Relaxed);
    let error = writer.append(&piece(0, 1), Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("Make room")));
    // Another entry cannot overtake it.
    let error = writer.append(&piece(5, 6), Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::Poisoned { entry: 2, .. }), "{error}");
    gate.full.store(false, Ordering::Relaxed);
    let entry = writer.resume().await.unwrap().unwrap();
    assert_eq!(entry.number, 2);
    assert_eq!(writer.state().pieces[0].end, Position(1));
    assert_eq!(writer.resume().await.unwrap(), None);
}

#[tokio::test]
async fn an_append_that_is_dropped_stays_pending() {
    let gate = Gate::open();
    let mut writer = LedgerWriter::open(context(gate.clone(), 1), opening())
        .await
        .unwrap();
    gate.silent.store(true, Ordering::Relaxed);
    {
        let body = piece(0, 1);
        let append = writer.append(&body, Vec::new());
        let waited = tokio::time::timeout(Duration::from_millis(5), append).await;
        assert!(waited.is_err());
    }
    assert!(writer.is_pending());
    gate.silent.store(false, Ordering::Relaxed);
    assert_eq!(writer.resume().await.unwrap().unwrap().number, 2);
}

#[tokio::test]
async fn a_cold_reader_of_thousands_of_entries_needs_few_gets() {
    const ENTRIES: u64 = 4_096 + 300;
    let memory = Arc::new(MemoryStore::default());
    let mut writer = LedgerWriter::open(context(memory.clone(), 1), opening())
        .await
        .unwrap();
    while writer.state().head < ENTRIES {
        let n = writer.state().head;
        writer.append(&piece(n, n + 1), Vec::new()).await.unwrap();
    }
    let counters = Arc::new(Counters::default());
    let counting = Arc::new(CountingStore::new(memory.clone(), counters.clone()));
    let reader = LedgerReader::load(context(counting, 2)).await.unwrap();
    assert_eq!(reader.state(), writer.state());
    assert_eq!(reader.head(), writer.reader().head());
    // One checkpoint, 4 recaps, a tail of 44, and some looks for floor and end.
    let usage = counters.usage();
    assert!(usage.gets < 80, "{usage:?}");
    assert_eq!((usage.puts, usage.lists), (0, 0));

    // The next writer continues from it, its checkpoint and recaps included.
    let mut next = LedgerWriter::open(context(memory, 3), opening())
        .await
        .unwrap();
    while next.state().head < 2 * 4_096 + 3 {
        let n = next.state().head;
        next.append(&piece(n, n + 1), Vec::new()).await.unwrap();
    }
    let mut reader = reader;
    reader.refresh().await.unwrap();
    assert_eq!(reader.state(), next.state());
}

#[tokio::test]
async fn an_entry_missing_in_the_middle_is_not_taken_for_the_end() {
    for missing in [2, 5, 20, 63, 64, 65, 100] {
        let store = Arc::new(MemoryStore::default());
        let mut writer = LedgerWriter::open(context(store.clone(), 1), opening())
            .await
            .unwrap();
        for n in 0..130 {
            writer.append(&piece(n, n + 1), Vec::new()).await.unwrap();
        }
        let name = layout::entry(LineageId([9; 16]), missing);
        store.delete(&name).await.unwrap();
        match LedgerReader::load(context(store, 2)).await {
            // The state is whole from a recap; reading the entry itself says what is missing.
            Ok(reader) => {
                assert_eq!(reader.state(), writer.state(), "entry {missing}");
                let error = reader.object(missing).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Damaged);
                assert!(error.to_string().contains(&name), "{error}");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                assert!(error.to_string().contains(&name), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn two_entries_that_are_swapped_are_damage() {
    let store = Arc::new(MemoryStore::default());
    let mut writer = LedgerWriter::open(context(store.clone(), 1), opening())
        .await
        .unwrap();
    for n in 0..4 {
        writer.append(&piece(n, n + 1), Vec::new()).await.unwrap();
    }
    let name = |n| layout::entry(LineageId([9; 16]), n);
    let three = store.read(&name(3)).await.unwrap();
    store.tamper(&name(4), three);
    let error = LedgerReader::load(context(store, 2)).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains(&name(4)), "{error}");
}

#[tokio::test]
async fn presence_tells_who_writes_and_who_has_stopped() {
    let store = Arc::new(MemoryStore::default());
    let reader = LedgerReader::load(context(store.clone(), 1)).await.unwrap();
    assert_eq!(reader.presence().await.unwrap(), None);
    let writer = LedgerWriter::open(context(store.clone(), 1), opening())
        .await
        .unwrap();
    let reader = LedgerReader::load(context(store.clone(), 2)).await.unwrap();
    let presence = reader.presence().await.unwrap().unwrap();
    assert_eq!(
        (presence.holder.pid, presence.epoch, presence.closed),
        (42, 1, false)
    );
    assert_eq!(presence.last_sign, Timestamp(1_000));
    writer.close().await.unwrap();
    let reader = LedgerReader::load(context(store.clone(), 3)).await.unwrap();
    assert!(reader.presence().await.unwrap().unwrap().closed);
    // An epoch that was taken and has no entry yet is a sign of life, too.
    context(store.clone(), 4)
        .take_epoch(Role::Ledger, &opening())
        .await
        .unwrap();
    let presence = reader.presence().await.unwrap().unwrap();
    assert_eq!((presence.epoch, presence.closed), (2, false));
}

#[tokio::test]
async fn a_writer_opens_only_on_the_epoch_it_decided_on() {
    let store = Arc::new(MemoryStore::default());
    let on = |expected| Opening {
        expected_epoch: Some(expected),
        ..opening()
    };
    LedgerWriter::open(context(store.clone(), 1), on(0))
        .await
        .unwrap();
    let error = LedgerWriter::open(context(store.clone(), 2), on(0))
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    LedgerWriter::open(context(store, 3), on(1)).await.unwrap();
}

#[tokio::test]
async fn a_floor_is_raised_to_boundaries_that_exist_and_never_falls() {
    let mut context = context(Arc::new(MemoryStore::default()), 1);
    context.shape = Shape {
        recap: 4,
        checkpoint: 8,
    };
    let mut writer = LedgerWriter::open(context.clone(), opening())
        .await
        .unwrap();
    for n in 0..30 {
        writer.append(&piece(n, n + 1), Vec::new()).await.unwrap();
    }
    assert_eq!(
        context.raise_floor(10).await.unwrap_err().kind(),
        ErrorKind::Usage
    );
    assert_eq!(
        context.raise_floor(41).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(context.raise_floor(17).await.unwrap(), 17);
    assert_eq!(context.raise_floor(9).await.unwrap(), 17);
    for n in 1..17 {
        context
            .store
            .delete(&layout::entry(context.lineage, n))
            .await
            .unwrap();
    }
    context
        .store
        .delete(&layout::checkpoint(context.lineage, 1))
        .await
        .unwrap();
    let reader = LedgerReader::load(context.clone()).await.unwrap();
    assert_eq!(reader.head(), writer.reader().head());
    // What the removed entries said is in the baseline.
    assert_eq!(reader.state(), writer.state());
    // That is needed, and its loss is named.
    let anchor = reader.floor.baseline.unwrap();
    let anchor = layout::baseline(context.lineage, anchor.object);
    context.store.delete(&anchor).await.unwrap();
    let error = LedgerReader::load(context).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains(&anchor), "{error}");
}

/// A store that loses an entry after it acknowledged it cuts readers off only until a later entry
/// repeats what it said.
#[tokio::test]
async fn an_entry_that_the_store_lost_is_repeated_by_a_later_one() {
    // Within a group; the recap of a group, which only a checkpoint repeats; beside a checkpoint.
    for lost in [3, 4, 6, 8] {
        let mut context = context(Arc::new(MemoryStore::default()), 1);
        context.shape = Shape {
            recap: 4,
            checkpoint: 8,
        };
        let mut writer = LedgerWriter::open(context.clone(), opening())
            .await
            .unwrap();
        while writer.state().head < lost {
            let at = writer.state().head;
            writer.append(&piece(at, at + 1), Vec::new()).await.unwrap();
        }
        let name = layout::entry(context.lineage, lost);
        context.store.delete(&name).await.unwrap();
        writer
            .append(&piece(lost, lost + 1), Vec::new())
            .await
            .unwrap();
        if !writer.is_repeated(lost) {
            let error = LedgerReader::load(context.clone()).await.err().unwrap();
            assert!(error.to_string().contains(&name), "{error}");
        }
        while !writer.is_repeated(lost) {
            writer
                .append(&EntryBody::ReadBack, Vec::new())
                .await
                .unwrap();
        }
        assert!(writer.state().head <= lost + 8, "entry {lost}");
        let reader = LedgerReader::load(context).await.unwrap();
        assert_eq!(reader.state(), writer.state(), "entry {lost}");
    }
}

#[tokio::test]
async fn how_far_the_log_was_read_back_is_known_to_the_next_writer() {
    let context = context(Arc::new(MemoryStore::default()), 1);
    let mut writer = LedgerWriter::open(context.clone(), opening())
        .await
        .unwrap();
    for n in 0..3 {
        writer.append(&piece(n, n + 1), Vec::new()).await.unwrap();
    }
    assert_eq!(writer.state().unread_pieces().len(), 3);
    writer.note_read_back(3);
    // Noted is not stored yet.
    assert_eq!(
        LedgerReader::load(context.clone())
            .await
            .unwrap()
            .state()
            .read_back,
        0
    );
    writer.close().await.unwrap();
    let writer = LedgerWriter::open(context, opening()).await.unwrap();
    assert_eq!(writer.read_back(), 3);
    let unread: Vec<u64> = (writer.state().unread_pieces().iter())
        .map(|piece| piece.entry)
        .collect();
    assert_eq!(unread, [4]);
}
