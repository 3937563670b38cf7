//! Verification of a small lineage: two base backups and three log pieces.

use borealis_base::{Branch, NoProgress, RecordSpan, TimeStep, Timestamp};

use super::*;
use crate::log::prepare_piece;
use crate::object::{Compression, ObjectBuilder};
use crate::pages::manifest::ManifestBuilder;
use crate::pages::tests::{World, some_files};
use crate::plan::GapSummary;
use crate::store::Store;

struct Lineage {
    world: World,
    state: LineageState,
}

impl Lineage {
    /// Base backups at [100, 200), log [100, 400).
    async fn new() -> Self {
        let world = World::new();
        let mut lineage = Self {
            state: LineageState::empty(world.target.lineage),
            world,
        };
        let files = some_files(&lineage.world);
        let first = lineage.world.back_up(None, &files, &[]).await.unwrap();
        let second = lineage
            .world
            .back_up(Some(&first), &files, &[("base/1", 3)])
            .await
            .unwrap();
        for start in [100, 200, 300] {
            lineage.piece(start, start + 100);
        }
        for manifest in [first, second] {
            lineage.state.head += 1;
            let info = manifest.info();
            lineage.state.base_backups.push(BaseBackupSummary {
                entry: lineage.state.head,
                recorded_at: Timestamp(0),
                manifest: manifest.object(),
                branch: info.branch,
                start: info.start,
                end: info.end,
                started_at: info.started_at,
                ended_at: info.ended_at,
                new_bytes: 0,
                total_pages: manifest.total_pages(),
                rule_set: info.rule_set,
            });
        }
        lineage
    }

    fn piece(&mut self, start: u64, end: u64) {
        let identity = PieceIdentity {
            lineage: self.state.lineage,
            branch: Branch(1),
            start: Position(start),
        };
        let last_record = RecordSpan {
            start: Position(end - 8),
            end: Position(end),
        };
        let step = TimeStep {
            settled_through: Timestamp(end.cast_signed()),
            last_record,
        };
        let bytes = vec![1; (end - start) as usize];
        self.state.head += 1;
        let id = ObjectId::random(&*self.world.entropy);
        let mut builder =
            ObjectBuilder::new(ObjectKind::LedgerEntry, id, Some(self.world.keys.current()));
        builder.push_frame(1, Compression::None, b"body");
        for frame in prepare_piece(&identity, &bytes, &[step], b"index", Compression::None).unwrap()
        {
            builder.push(frame);
        }
        let sealed = builder.seal();
        let bytes = sealed.bytes;
        let settled_before = self
            .state
            .pieces
            .last()
            .and_then(|piece| piece.settled_after);
        self.state.pieces.push(PieceSummary {
            entry: self.state.head,
            recorded_at: Timestamp(0),
            branch: Branch(1),
            start: Position(start),
            end: Position(end),
            settled_before,
            settled_after: Some(step.settled_through),
            last_record: Some(last_record),
            resume_at: Position(end),
            stored_bytes: bytes.len() as u64,
            head_digest: sealed.head_digest,
            engine: None,
            merged: None,
        });
        self.world
            .store
            .tamper(&layout::entry(self.state.lineage, self.state.head), bytes);
    }

    /// With what an attempt after the second base backup has stored.
    async fn with_partial() -> Self {
        let mut lineage = Self::new().await;
        let world = &lineage.world;
        let last = &lineage.state.base_backups[1];
        let parent = Manifest::load(&world.fetcher(), &last.manifest)
            .await
            .unwrap();
        let files = some_files(world);
        let read = (0..20).map(|at| ("base/1".to_owned(), at)).collect();
        let builder = ManifestBuilder::next(Arc::new(parent));
        let (_, partial) = world.attempt(builder, &files, &read, 15, 5).await.unwrap();
        let partial = partial.unwrap();
        let (entry, info) = (lineage.state.head + 1, partial.info());
        lineage.state.head = entry;
        lineage.state.partial = Some(PartialSummary {
            entry,
            recorded_at: Timestamp(0),
            manifest: partial.object(),
            branch: info.branch,
            start: info.start,
            started_at: info.started_at,
            new_bytes: 0,
            stored_pages: partial.stored_pages(),
            missing_pages: partial.missing_pages(),
            rule_set: info.rule_set,
        });
        lineage
    }

    async fn verify(&self, deep: bool) -> Report {
        verify(&self.world.fetcher(), &self.state, deep, &NoProgress)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_sound_lineage_has_no_findings() {
    let lineage = Lineage::new().await;
    for deep in [false, true] {
        let report = lineage.verify(deep).await;
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!((report.base_backups, report.pieces), (2, 3));
        assert!(report.packs > 2);
        assert_eq!(report.windows.len(), 1);
        assert_eq!(report.bytes_read > 0, deep);
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_region_of_any_object_is_found_deep() {
    let lineage = Lineage::new().await;
    for name in lineage.world.names() {
        let good = lineage.world.bytes(&name);
        let step = (good.len() / 25).max(1);
        for at in (0..good.len())
            .step_by(step)
            .chain([8, 12, 16, good.len() - 1, good.len() - 6])
        {
            let mut bad = good.clone();
            bad[at] ^= 1;
            lineage.world.store.tamper(&name, bad.into());
            let report = lineage.verify(true).await;
            assert!(
                report.findings.iter().any(|found| found.object == name),
                "byte {at} of {name}: {report:?}"
            );
            assert!(
                report
                    .findings
                    .iter()
                    .all(|found| found.kind == FindingKind::Damaged)
            );
            assert!(
                report
                    .findings
                    .iter()
                    .all(|found| !found.affects.is_empty()),
                "{report:?}"
            );
        }
        lineage.world.store.tamper(&name, good.into());
    }
}

#[tokio::test]
async fn a_missing_or_truncated_object_is_found_without_reading_content() {
    let lineage = Lineage::new().await;
    for name in lineage.world.names() {
        let good = lineage.world.bytes(&name);
        lineage
            .world
            .store
            .tamper(&name, good[..good.len() - 1].to_vec().into());
        let report = lineage.verify(false).await;
        let found: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|found| found.object == name)
            .collect();
        assert!(!found.is_empty(), "{name} truncated: {report:?}");
        lineage.world.store.delete(&name).await.unwrap();
        let report = lineage.verify(false).await;
        let found = report
            .findings
            .iter()
            .find(|found| found.object == name)
            .expect("a finding");
        assert_eq!(found.kind, FindingKind::Missing);
        assert!(!found.affects.is_empty());
        lineage.world.store.tamper(&name, good.into());
    }
}

#[tokio::test]
async fn damage_names_the_base_backups_and_ranges_it_affects() {
    let lineage = Lineage::new().await;
    let piece = layout::entry(lineage.state.lineage, 2);
    lineage.world.store.delete(&piece).await.unwrap();
    let report = lineage.verify(false).await;
    assert_eq!(report.findings.len(), 1);
    assert_eq!(
        report.findings[0].affects,
        ["restores on branch 1 to 0/C8 and later, up to 0/190, that replay the log 0/C8 to 0/12C"]
    );
    let second = object_name(
        ObjectKind::Manifest,
        &lineage.state.base_backups[1].manifest,
    );
    lineage.world.store.delete(&second).await.unwrap();
    let report = lineage.verify(false).await;
    let found = report
        .findings
        .iter()
        .find(|found| found.object == second)
        .unwrap();
    assert_eq!(
        found.affects,
        ["base backup of entry 5 (0/64 to 0/C8 on branch 1)"]
    );
}

#[tokio::test]
async fn a_pack_that_lacks_a_page_is_found() {
    let mut lineage = Lineage::new().await;
    // The summary of another base backup, of the same manifest, is a contradiction.
    lineage.state.base_backups[0].total_pages += 1;
    let report = lineage.verify(false).await;
    assert!(
        report.findings[0]
            .what
            .contains("is not the base backup that entry 4 names"),
        "{report:?}"
    );
}

#[tokio::test]
async fn damage_of_a_partial_base_backup_is_found_and_affects_no_restore() {
    let lineage = Lineage::with_partial().await;
    for deep in [false, true] {
        let report = lineage.verify(deep).await;
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!(report.base_backups, 2, "it is none");
    }
    let whole = Lineage::new().await.world.names();
    let own: Vec<String> = (lineage.world.names().into_iter())
        .filter(|name| !whole.contains(name))
        .collect();
    assert!(own.len() >= 4, "{own:?}");
    for name in own {
        let good = lineage.world.bytes(&name);
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        let (store, report) = (&lineage.world.store, async |deep| {
            lineage.verify(deep).await
        });
        store.tamper(&name, bad.into());
        let flipped = report(true).await;
        store.delete(&name).await.unwrap();
        let missing = report(false).await;
        store.tamper(&name, good.into());
        for report in [flipped, missing] {
            // An earlier partial of the same attempt that shares no map part is named by nothing.
            for found in &report.findings {
                let affects = found.affects.join("; ");
                assert!(
                    affects.starts_with("the resumption of the base backup begun at"),
                    "{found}"
                );
                assert!(affects.ends_with("no restore"), "{found}");
            }
        }
    }
    let manifest = lineage.state.partial.as_ref().unwrap().manifest;
    let name = object_name(ObjectKind::Manifest, &manifest);
    lineage.world.store.delete(&name).await.unwrap();
    let report = lineage.verify(false).await;
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!(
        (&report.findings[0].object, report.findings[0].kind),
        (&name, FindingKind::Missing)
    );
}

#[tokio::test]
async fn a_partial_base_backup_that_is_another_one_is_found() {
    let mut lineage = Lineage::with_partial().await;
    lineage.state.partial.as_mut().unwrap().start = Position(101);
    let report = lineage.verify(false).await;
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert!(
        report.findings[0]
            .what
            .contains("is not the partial base backup"),
        "{report:?}"
    );
    // Neither is what the ledger calls a base backup ever a partial one.
    let mut lineage = Lineage::with_partial().await;
    let manifest = lineage.state.partial.as_ref().unwrap().manifest;
    lineage.state.base_backups[1].manifest = manifest;
    let report = lineage.verify(false).await;
    assert!(
        report
            .findings
            .iter()
            .any(|found| found.what.contains("it is a partial manifest")),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_hole_in_the_log_is_found_unless_an_entry_declares_it() {
    let mut lineage = Lineage::new().await;
    lineage.state.pieces.remove(1);
    let report = lineage.verify(true).await;
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert!(
        report.findings[0]
            .what
            .contains("from 0/C8 to 0/12C is missing"),
        "{report:?}"
    );
    lineage.state.head += 1;
    lineage.state.gaps.push(GapSummary {
        entry: lineage.state.head,
        branch: Branch(1),
        from: Position(200),
        to: Position(300),
        reason: "slot lost".to_owned(),
    });
    // The later piece's settled moments no longer follow the earlier one's, which is no damage.
    assert!(lineage.verify(true).await.is_sound());
}

#[tokio::test]
async fn a_base_backup_without_its_log_is_found() {
    let mut lineage = Lineage::new().await;
    lineage.state.pieces.remove(0);
    let report = lineage.verify(false).await;
    assert_eq!(report.findings.len(), 2);
    assert!(
        report
            .findings
            .iter()
            .all(|found| found.kind == FindingKind::Incomplete)
    );
}

#[tokio::test]
async fn an_unreachable_store_is_no_finding() {
    let lineage = Lineage::new().await;
    let keys =
        borealis_keys::DataKeys::new(borealis_keys::DataKey::random(&*lineage.world.entropy));
    let fetcher = Arc::new(Fetcher::new(
        Arc::clone(&lineage.world.target.store),
        Arc::new(keys),
    ));
    let error = verify(&fetcher, &lineage.state, true, &NoProgress)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn digests_that_are_not_those_of_the_pages_are_found() {
    let mut lineage = Lineage::new().await;
    assert!(lineage.verify(true).await.findings.is_empty());
    // Made under another key, as a writer with a defect would.
    let other = borealis_keys::SecretKey::random(&*lineage.world.entropy);
    lineage.world.digester = PageDigester::new(&other);
    let files = some_files(&lineage.world);
    let wrong = lineage.world.back_up(None, &files, &[]).await.unwrap();
    lineage.state.base_backups[1].manifest = wrong.object();
    let findings = lineage.verify(true).await.findings;
    assert!(!findings.is_empty());
    for finding in &findings {
        let text = format!("{finding:?}");
        assert!(text.contains("are not those of the pages"), "{text}");
    }
}
