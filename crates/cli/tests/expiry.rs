//! What no promise holds any more expires by the command that anybody runs, and a promise brings it back.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{
    Branch, Clock, ManualClock, Position, RecordSpan, SeededEntropy, SystemClock, SystemEntropy,
    TimeStep,
};
use borealis_keys::FileKey;
use borealis_repository::ledger::{BaseBackup, EntryBody, Holder, LogPiece, Opening};
use borealis_repository::log::{PieceIdentity, prepare_piece};
use borealis_repository::object::Compression;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{BaseBackupInfo, ManifestBuilder};
use borealis_repository::pages::pack::{PackTarget, PackWriter};
use borealis_repository::store::{Absent, FolderStore};
use borealis_repository::{Environment, Lineage, Repository};
use serde_json::Value;

const BRANCH: Branch = Branch(1);
const HOURS: u64 = 72;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A cluster that was protected for three days, with an entry each hour and a base backup each twelve.
    async fn of_three_days() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = FileKey::create(&folder.path().join("key"), &SystemEntropy).unwrap();
        let store = FolderStore::open(&folder.path().join("repository"), Absent::Create).unwrap();
        let begun = SystemClock.now().minus(Duration::from_hours(HOURS));
        let clock = Arc::new(ManualClock::new(begun));
        let environment = Environment {
            store: Arc::new(store),
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(3)),
        };
        let repository = Repository::init(environment, &[&key]).await.unwrap();
        let engine = br#"{"system_id":1}"#.as_slice();
        let lineage = repository.create_cluster("sales", engine.into()).await;
        let lineage = lineage.unwrap();
        let opening = Opening {
            holder: Holder::default(),
            log_unit: 1,
            expected_epoch: None,
        };
        let mut writer = lineage.open_writer(opening).await.unwrap();
        for hour in 0..HOURS {
            let (start, now) = (1_000 + hour * 100, clock.now());
            let last_record = RecordSpan {
                start: Position(start + 92),
                end: Position(start + 100),
            };
            let step = TimeStep {
                settled_through: now,
                last_record,
            };
            let body = EntryBody::LogPiece(LogPiece {
                branch: BRANCH,
                start: Position(start),
                end: last_record.end,
                settled_before: (hour > 0).then(|| now.minus(Duration::from_hours(1))),
                settled_after: Some(now),
                last_record: Some(last_record),
                resume_at: last_record.end,
                engine: None,
            });
            let identity = PieceIdentity {
                lineage: lineage.id(),
                branch: BRANCH,
                start: Position(start),
            };
            let frames = prepare_piece(&identity, &[7; 100], &[step], b"", Compression::None);
            writer.append(&body, frames.unwrap()).await.unwrap();
            if hour % 12 == 0 {
                let body = base_backup(&lineage, start, &*clock).await;
                writer.append(&body, Vec::new()).await.unwrap();
            }
            writer.note_read_back(writer.state().head);
            clock.advance(Duration::from_hours(1));
        }
        writer.close().await.unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_borealis"))
            .args(arguments)
            .arg("--repository")
            .arg(self.path("repository"))
            .arg("--key-file")
            .arg(self.path("key"))
            .env_clear()
            .env("HOME", "/nonexistent")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(&answer).unwrap()
    }

    /// How many base backups are planned to stay, and to go.
    fn base_backups(&self) -> (usize, usize) {
        let plan = self.json(&["retention", "plan"]);
        let count = |list: &str| {
            let all = plan["lineages"][0][list].as_array().unwrap();
            (all.iter().filter(|it| it["object"] == "base_backup")).count()
        };
        (count("kept"), count("removed"))
    }
}

/// A base backup of nothing.
async fn base_backup(lineage: &Lineage, start: u64, clock: &dyn Clock) -> EntryBody {
    let mut builder = ManifestBuilder::first();
    let target = PackTarget::of(lineage);
    let packs = PackWriter::new(target.clone(), builder.pack_numbers());
    builder.add_packs(packs.finish().await.unwrap());
    let (now, fetcher) = (clock.now(), Fetcher::of(lineage));
    let info = BaseBackupInfo {
        branch: BRANCH,
        start: Position(start),
        end: Position(start + 100),
        started_at: now,
        ended_at: now,
        rule_set: 1,
        engine: Vec::new().into(),
    };
    let manifest = builder.store(&target, &fetcher, info).await.unwrap();
    EntryBody::BaseBackup(BaseBackup {
        manifest: manifest.object(),
        branch: BRANCH,
        start: Position(start),
        end: Position(start + 100),
        started_at: now,
        ended_at: now,
        new_bytes: 0,
        total_pages: 0,
        rule_set: 1,
        engine: Vec::new().into(),
    })
}

#[tokio::test]
async fn what_no_promise_holds_is_hidden_and_a_promise_brings_it_back() {
    let place = Place::of_three_days().await;
    // Of six, each twelve hours apart, the third last was there a day ago.
    assert_eq!(place.base_backups(), (3, 3));
    let maintained = place.json(&["maintain", "--once"]);
    let maintained = &maintained["lineages"][0];
    assert_eq!(maintained["expired_base_backups"], 3, "{maintained:#}");
    assert!(maintained["expired_bytes"].as_u64() > Some(0));
    assert_eq!(maintained["deleted"], 0, "a day has to pass");
    assert_eq!(place.base_backups(), (3, 0));
    let usage = place.json(&["usage"]);
    assert_eq!(
        usage["clusters"][0]["expired_bytes"], maintained["expired_bytes"],
        "{usage:#}"
    );
    let nothing = place.json(&["maintain", "--once"]);
    assert_eq!(nothing["lineages"][0]["expired_bytes"], 0, "{nothing:#}");

    place.run(&["hold", "create", "case-17", "--reason", "lawsuit"]);
    let said = place.run(&["maintain", "--once"]);
    assert!(said.contains("are promised again, and are back"), "{said}");
    assert_eq!(place.base_backups(), (6, 0));
    assert_eq!(place.json(&["usage"])["clusters"][0]["expired_bytes"], 0);

    place.run(&["hold", "delete", "case-17"]);
    let said = place.run(&["maintain", "--once"]);
    assert!(
        said.contains("with 3 base backups expired, hidden from here on"),
        "{said}"
    );
    // More days bring back what is not deleted yet.
    place.run(&["retention", "set", "--days", "2"]);
    place.run(&["maintain", "--once"]);
    assert_eq!(place.base_backups(), (5, 0));
}
