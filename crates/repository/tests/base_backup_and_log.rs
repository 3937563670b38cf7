//! One lineage from an empty repository to a restore plan, through the real ledger.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::sync::{Arc, Mutex};

use borealis_base::{
    Branch, ErrorKind, LineageId, ManualClock, NoProgress, Position, RecordSpan, SeededEntropy,
    SystemEntropy, TimeStep, Timestamp,
};
use borealis_keys::FileKey;
use borealis_repository::ledger::{BaseBackup, EntryBody, Gap, Holder, LogPiece, Opening, Settled};
use borealis_repository::log::{LogReader, PieceIdentity, TimeMaps, prepare_piece};
use borealis_repository::object::Compression;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{BaseBackupInfo, Manifest, ManifestBuilder, PageFile};
use borealis_repository::pages::pack::{PackTarget, PackWriter, prepare_pages};
use borealis_repository::pages::read::{PageReader, PageSink};
use borealis_repository::plan::{Located, Target, locate, plan_restore, windows};
use borealis_repository::store::{FolderStore, Store};
use borealis_repository::verify::verify_lineage;
use borealis_repository::{Environment, Error, Lineage, Repository, layout};
use bytes::Bytes;
use futures::TryStreamExt;

const BRANCH: Branch = Branch(1);

struct Setup {
    folder: tempfile::TempDir,
    lineage: Lineage,
}

async fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let key = FileKey::create(&folder.path().join("key"), &SystemEntropy).unwrap();
    let place = folder.path().join("repository");
    let store: Arc<dyn Store> =
        Arc::new(FolderStore::open(&place, borealis_repository::store::Absent::Create).unwrap());
    let environment = Environment {
        store,
        clock: Arc::new(ManualClock::new(Timestamp(0))),
        entropy: Arc::new(SeededEntropy::new(3)),
    };
    let repository = Repository::init(environment, &[&key]).await.unwrap();
    let lineage = repository
        .create_cluster("shop", Bytes::new())
        .await
        .unwrap();
    Setup { folder, lineage }
}

fn record(start: u64, end: u64) -> RecordSpan {
    RecordSpan {
        start: Position(start),
        end: Position(end),
    }
}

fn piece(
    lineage: LineageId,
    start: u64,
    log: &[u8],
    settled: (i64, i64),
) -> (EntryBody, Vec<TimeStep>, PieceIdentity) {
    let end = start + log.len() as u64;
    let last_record = record(end - 8, end);
    let step = TimeStep {
        settled_through: Timestamp(settled.1),
        last_record,
    };
    let body = EntryBody::LogPiece(LogPiece {
        branch: BRANCH,
        start: Position(start),
        end: Position(end),
        settled_before: (settled.0 > 0).then_some(Timestamp(settled.0)),
        settled_after: Some(Timestamp(settled.1)),
        last_record: Some(last_record),
        resume_at: Position(end),
        engine: None,
    });
    (
        body,
        vec![step],
        PieceIdentity {
            lineage,
            branch: BRANCH,
            start: Position(start),
        },
    )
}

async fn store_base_backup(lineage: &Lineage) -> Manifest {
    let mut builder = ManifestBuilder::first();
    let target = PackTarget::of(lineage);
    let mut packs = PackWriter::new(target.clone(), builder.pack_numbers());
    let number = builder.file_number("base/1");
    builder.add_page_file(PageFile {
        number,
        name: "base/1".to_owned(),
        page_size: 8192,
        length: 3,
        mode: 0o600,
    });
    let (full, zero) = (vec![7; 8192], vec![0; 8192]);
    let prepared = prepare_pages(
        number,
        8192,
        &[(0, &full), (1, &zero), (2, &full)],
        Compression::Zstd(3),
        &target.digester(),
    )
    .unwrap();
    builder.place(packs.push_pages(prepared).await.unwrap());
    builder.add_packs(packs.finish().await.unwrap());
    let info = BaseBackupInfo {
        branch: BRANCH,
        start: Position(1_000),
        end: Position(1_500),
        started_at: Timestamp(1),
        ended_at: Timestamp(2),
        rule_set: 1,
        engine: Bytes::new(),
    };
    builder
        .store(&target, &Fetcher::of(lineage), info)
        .await
        .unwrap()
}

fn entry_of(manifest: &Manifest) -> EntryBody {
    let info = manifest.info();
    EntryBody::BaseBackup(BaseBackup {
        manifest: manifest.object(),
        branch: info.branch,
        start: info.start,
        end: info.end,
        started_at: info.started_at,
        ended_at: info.ended_at,
        new_bytes: 0,
        total_pages: manifest.total_pages(),
        rule_set: info.rule_set,
        engine: Bytes::new(),
    })
}

#[derive(Default)]
struct Counted(Mutex<(u64, u64)>);

impl PageSink for Counted {
    type Error = Error;

    fn pages(&self, _: &PageFile, pages: &[(u32, Bytes)]) -> Result<(), Error> {
        self.0.lock().unwrap().0 += pages.len() as u64;
        Ok(())
    }

    fn zeros(&self, _: &PageFile, _: u32, count: u32) -> Result<(), Error> {
        self.0.lock().unwrap().1 += u64::from(count);
        Ok(())
    }
}

#[tokio::test]
async fn a_lineage_is_written_resolved_planned_read_and_verified() {
    let Setup { folder, lineage } = setup().await;
    let holder = Holder {
        host: "here".to_owned(),
        pid: 1,
        process_start: 1,
        control: String::new(),
        program: "test".to_owned(),
        ..Holder::default()
    };
    let mut writer = lineage
        .open_writer(Opening {
            holder,
            log_unit: 500,
            expected_epoch: None,
        })
        .await
        .unwrap();
    let log: Vec<u8> = (0..3_000_u32).map(|at| (at % 251) as u8).collect();
    for (at, settled) in [(1_000_u64, (0, 10)), (2_000, (10, 20)), (3_000, (20, 30))] {
        let bytes = &log[at as usize - 1_000..][..1_000];
        let (body, steps, identity) = piece(lineage.id(), at, bytes, settled);
        let frames =
            prepare_piece(&identity, bytes, &steps, b"index", Compression::Zstd(1)).unwrap();
        writer.append(&body, frames).await.unwrap();
    }
    let manifest = store_base_backup(&lineage).await;
    writer
        .append(&entry_of(&manifest), Vec::new())
        .await
        .unwrap();
    let idle = Settled {
        branch: BRANCH,
        through: Timestamp(40),
        last_record: record(3_992, 4_000),
    };
    writer
        .append(&EntryBody::Settled(idle), Vec::new())
        .await
        .unwrap();
    let lost = Gap {
        branch: BRANCH,
        from: Position(4_000),
        to: Position(9_000),
        reason: "test".to_owned(),
    };
    writer
        .append(&EntryBody::Gap(lost), Vec::new())
        .await
        .unwrap();
    writer.close().await.unwrap();

    let state = lineage.load_state().await.unwrap();
    assert_eq!(state.log_unit, 500);
    let found = windows(&state);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].earliest.position, found[0].latest.position),
        (Position(1_500), Position(4_000))
    );
    assert_eq!(
        (found[0].earliest.time, found[0].latest.time),
        (Some(Timestamp(11)), Some(Timestamp(40)))
    );

    let reader = LogReader::of(&lineage);
    let Located::Steps(search) = locate(&state, &Target::Time(Timestamp(15))).unwrap() else {
        panic!("not in a piece")
    };
    let holds = state
        .pieces
        .iter()
        .find(|piece| piece.entry == search.entry)
        .unwrap();
    let steps = reader.time_steps(holds).await.unwrap();
    let resolved = search.finish(&state, &steps).unwrap();
    assert_eq!(resolved.last_record, record(2_992, 3_000));
    let plan = plan_restore(&state, &resolved).unwrap();
    let parts: Vec<_> = reader.stream(plan.pieces, 2).try_collect().await.unwrap();
    let read: Vec<u8> = parts
        .iter()
        .flat_map(|part| part.bytes.iter().copied())
        .collect();
    assert_eq!(read, log[..2_000]);

    let fetcher = Arc::new(Fetcher::of(&lineage));
    let loaded = Arc::new(
        Manifest::load(&fetcher, &plan.base_backup.manifest)
            .await
            .unwrap(),
    );
    let pages = Arc::new(PageReader::new(fetcher, loaded));
    let sink = Arc::new(Counted::default());
    pages
        .restore_pages(Arc::clone(&sink), 4, &NoProgress)
        .await
        .unwrap();
    assert_eq!(*sink.0.lock().unwrap(), (2, 1));

    for deep in [false, true] {
        let report = verify_lineage(&lineage, deep, &NoProgress).await.unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!(
            (report.base_backups, report.pieces, report.packs),
            (1, 3, 1)
        );
    }
    // The base backup's entry: what it says is repeated elsewhere, and its loss is found all the same.
    let entry = layout::entry(lineage.id(), state.base_backups[0].entry);
    std::fs::write(folder.path().join("repository").join(&entry), b"").unwrap();
    let broken = verify_lineage(&lineage, true, &NoProgress).await.unwrap();
    assert!(
        broken
            .findings
            .iter()
            .any(|found| found.what.contains(&entry)),
        "{broken:?}"
    );
}

#[tokio::test]
async fn an_empty_lineage_has_no_window_and_is_sound() {
    let Setup {
        folder: _folder,
        lineage,
    } = setup().await;
    let state = lineage.load_state().await.unwrap();
    assert!(windows(&state).is_empty());
    let error = locate(&state, &Target::Latest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error
            .hint()
            .unwrap()
            .contains("Nothing can be restored yet")
    );
    assert!(
        verify_lineage(&lineage, true, &NoProgress)
            .await
            .unwrap()
            .is_sound()
    );
}
