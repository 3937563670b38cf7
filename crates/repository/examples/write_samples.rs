//! Writes the samples of a format version, which the tests then read for ever.
//!
//! Run it once when the version of a stored format rises, and into a new folder each time; the samples
//! of earlier versions stay as they are:
//!
//! ```text
//! cargo run -p borealis-repository --example write_samples -- crates/repository/tests/samples repository-2 pages-2
//! cd crates/repository/tests/samples
//! python3 read.py repository-2 > repository-2/expected.json    # the second reader says what to expect
//! ```
//!
//! A test that reads the new folder goes beside those of `tests/sample.rs` and
//! `src/pages/sample_tests.rs`. Folders that exist are refused.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use borealis_base::{
    Branch, Entropy, LineageId, ManualClock, ObjectId, Position, RecordSpan, SeededEntropy,
    SystemEntropy, Timestamp,
};
use borealis_keys::{DataKey, DataKeys, FileKey};
use borealis_repository::ledger::{
    BaseBackup, BranchStarted, EntryBody, Gap, Holder, LogPiece, Opening, Retired, Settled,
};
use borealis_repository::numbered::Patience;
use borealis_repository::object::{Compression, PreparedFrame};
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{
    BaseBackupInfo, Directory, Link, Manifest, ManifestBuilder, PageFile,
};
use borealis_repository::pages::pack::{
    BlobMeta, BlobPacker, PackTarget, PackWriter, prepare_pages,
};
use borealis_repository::pins::NewPin;
use borealis_repository::plan::ObjectRef;
use borealis_repository::store::{Absent, FolderStore, MemoryStore, Store};
use borealis_repository::{Environment, Repository};
use bytes::Bytes;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const RECORD: RecordSpan = RecordSpan {
    start: Position(0x90),
    end: Position(0xA0),
};

/// One entry of each kind.
fn bodies() -> Vec<EntryBody> {
    vec![
        EntryBody::LogPiece(LogPiece {
            branch: Branch(1),
            start: Position(0x10),
            end: Position(0xA8),
            settled_before: None,
            settled_after: Some(Timestamp(1_699_999_999_000_000)),
            last_record: Some(RECORD),
            resume_at: Position(0xA0),
            engine: None,
        }),
        EntryBody::BaseBackup(BaseBackup {
            manifest: ObjectRef {
                lineage: LineageId([5; 16]),
                object: ObjectId([3; 16]),
                len: 77,
                head_digest: [4; 32],
            },
            branch: Branch(1),
            start: Position(0x10),
            end: Position(0x60),
            started_at: Timestamp(-1),
            ended_at: Timestamp(2),
            new_bytes: 1_000,
            total_pages: 10,
            rule_set: 3,
            engine: Bytes::from_static(b"engine"),
        }),
        EntryBody::Settled(Settled {
            branch: Branch(1),
            through: Timestamp(1_700_000_000_000_000),
            last_record: RECORD,
        }),
        EntryBody::Gap(Gap {
            branch: Branch(1),
            from: Position(0xA8),
            to: Position(0xB0),
            reason: "slot lost".to_owned(),
        }),
        EntryBody::BranchStarted(BranchStarted {
            branch: Branch(2),
            parent: Branch(1),
            at: Position(0xB0),
            history: Bytes::from_static(b"history"),
        }),
        EntryBody::Retired(Retired {
            reason: "replaced".to_owned(),
        }),
    ]
}

/// A repository with a root key, a cluster, a ledger of more than one recap, and pins.
async fn write_repository(folder: &Path) -> Result<()> {
    let place = folder.join("repository");
    let environment = Environment {
        store: Arc::new(FolderStore::open(&place, Absent::Create)?),
        clock: Arc::new(ManualClock::new(Timestamp(1_700_000_000_000_000))),
        entropy: Arc::new(SystemEntropy),
    };
    let key = FileKey::create(&folder.join("root.key"), &SystemEntropy)?;
    let repository = Repository::init(environment, &[&key]).await?;
    let lineage = repository
        .create_cluster("shop", Bytes::from_static(b"facts"))
        .await?;
    let opening = Opening {
        holder: Holder {
            host: "host".to_owned(),
            pid: 42,
            process_start: 7,
            control: "socket".to_owned(),
            program: "borealis 0.1.0".to_owned(),
            ..Holder::default()
        },
        log_unit: 16 << 20,
        expected_epoch: None,
    };
    let mut writer = lineage.open_writer(opening).await?;
    while writer.state().head < 66 {
        for body in bodies() {
            let frame = PreparedFrame::new(16, Compression::Zstd(1), &[7; 1_000]);
            writer.append(&body, vec![frame]).await?;
        }
    }
    let mut pins = lineage.pins().await?;
    for name in ["one", "two"] {
        let pin = NewPin {
            name: name.to_owned(),
            branch: Branch(1),
            last_record: RECORD,
            time: Some(Timestamp(3)),
            note: "note".to_owned(),
            tags: [("a".to_owned(), "b".to_owned())].into(),
        };
        pins.create(pin).await?;
    }
    pins.delete("one").await?;
    Ok(())
}

const PAGE: u32 = 512;

/// Page files by name; each page is `PAGE` bytes.
type Files = BTreeMap<String, Vec<Vec<u8>>>;

/// Stores a base backup of `files`, of which only `changed` is read where there is a parent.
async fn back_up(
    target: &PackTarget,
    fetcher: &Arc<Fetcher>,
    parent: Option<Arc<Manifest>>,
    files: &Files,
    changed: Option<(&str, usize)>,
) -> Result<Manifest> {
    let mut builder = parent.map_or_else(ManifestBuilder::first, ManifestBuilder::next);
    let mut packs = PackWriter::new(target.clone(), builder.pack_numbers());
    for (name, pages) in files {
        let number = builder.file_number(name);
        builder.add_page_file(PageFile {
            number,
            name: name.clone(),
            page_size: PAGE,
            length: u32::try_from(pages.len())?,
            mode: 0o600,
        });
        let wanted: Vec<(u32, &[u8])> = (0_u32..)
            .zip(pages)
            .filter(|(at, _)| {
                changed.is_none_or(|changed| changed == (name.as_str(), *at as usize))
            })
            .map(|(at, page)| (at, page.as_slice()))
            .collect();
        for some in wanted.chunks(10) {
            let prepared =
                prepare_pages(number, PAGE, some, Compression::Zstd(1), &target.digester())?;
            builder.place(packs.push_pages(prepared).await?);
        }
    }
    let long = vec![5; 3_000_000];
    let mut blobs = BlobPacker::new(Compression::Zstd(1));
    for (name, content) in [
        ("global/settings", &b"a = 1\n"[..]),
        ("empty", b""),
        ("long", &long),
    ] {
        blobs.begin(BlobMeta {
            name: name.to_owned(),
            mode: 0o640,
            modified: Timestamp(5),
        });
        for piece in content.chunks(700_000) {
            blobs.write(&mut packs, piece).await?;
        }
    }
    builder.add_blobs(blobs.finish(&mut packs).await?);
    builder.add_directory(Directory {
        name: "global".to_owned(),
        mode: 0o700,
    });
    builder.add_link(Link {
        name: "space".to_owned(),
        target: "/elsewhere".to_owned(),
    });
    builder.add_packs(packs.finish().await?);
    let info = BaseBackupInfo {
        branch: Branch(1),
        start: Position(100),
        end: Position(200),
        started_at: Timestamp(1),
        ended_at: Timestamp(2),
        rule_set: 3,
        engine: Bytes::from_static(b"opaque"),
    };
    Ok(builder.store(target, fetcher, info).await?)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Two base backups, the second of which shares all but one page with the first; each object is a file
/// with `+` for `/`. Keys come from the seed that `src/pages/tests.rs` uses. `expected.txt` holds the
/// second manifest's object, length and digest, and the SHA-256 of all pages.
async fn write_pages(folder: &Path) -> Result<()> {
    let entropy = Arc::new(SeededEntropy::new(7));
    let store = Arc::new(MemoryStore::default());
    let key = DataKey::random(&*entropy);
    let target = PackTarget {
        store: Arc::clone(&store) as Arc<dyn Store>,
        lineage: LineageId([9; 16]),
        key: key.clone(),
        entropy: Arc::clone(&entropy) as Arc<dyn Entropy>,
        pack_bytes_max: 20_000,
        patience: Patience {
            attempts: 1,
            pause: Duration::ZERO,
        },
    };
    let fetcher = Arc::new(Fetcher::new(
        Arc::clone(&target.store),
        Arc::new(DataKeys::new(key)),
    ));
    let page = || {
        let mut bytes = vec![0; PAGE as usize];
        entropy.fill(&mut bytes);
        bytes
    };
    let mut files = Files::new();
    for (name, pages) in [("base/1", 60), ("base/2", 25), ("base/empty", 0)] {
        files.insert(name.to_owned(), (0..pages).map(|_| page()).collect());
    }
    if let Some(file) = files.get_mut("base/1") {
        file[7] = vec![0; PAGE as usize];
    }
    let first = Arc::new(back_up(&target, &fetcher, None, &files, None).await?);
    if let Some(file) = files.get_mut("base/1") {
        file[3] = page();
    }
    let second = back_up(&target, &fetcher, Some(first), &files, Some(("base/1", 3))).await?;
    std::fs::create_dir(folder)?;
    for listed in store.list("lineages/").await? {
        let bytes = store.read(&listed.name).await?;
        std::fs::write(folder.join(listed.name.replace('/', "+")), bytes)?;
    }
    let object = second.object();
    let all: Vec<u8> = files.values().flatten().flatten().copied().collect();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &all);
    let lines = [
        object.object.to_string(),
        object.len.to_string(),
        hex(&object.head_digest),
        hex(digest.as_ref()),
    ];
    std::fs::write(folder.join("expected.txt"), lines.join("\n") + "\n")?;
    Ok(())
}

fn new_folder(samples: &str, name: &str) -> Result<PathBuf> {
    let folder = Path::new(samples).join(name);
    if folder.exists() {
        return Err(format!(
            "{} exists; samples are never written over",
            folder.display()
        )
        .into());
    }
    Ok(folder)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [samples, repository, pages] = arguments.as_slice() else {
        return Err("usage: write_samples SAMPLES REPOSITORY-FOLDER PAGES-FOLDER".into());
    };
    let (repository, pages) = (
        new_folder(samples, repository)?,
        new_folder(samples, pages)?,
    );
    std::fs::create_dir_all(&repository)?;
    write_repository(&repository).await?;
    write_pages(&pages).await?;
    println!("wrote {} and {}", repository.display(), pages.display());
    Ok(())
}
