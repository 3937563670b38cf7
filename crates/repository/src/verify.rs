//! Checking that what a lineage's ledger promises is there.
//!
//! Shallow: every reachable object exists, with the length and the head that are named, and every page
//! map is complete. Deep: every frame is authenticated and opened, every page found in the frame that
//! the map names, every blob has its digest, every log piece its bytes and its time map.
//!
//! Damage is a finding and the check goes on, so that one report shows all of it. A store that does not
//! answer or a key that is not held ends the check with an error: not having looked is no finding.
//!
//! The chain of the ledger's entries is checked where the ledger is folded into the
//! [`LineageState`] that this starts from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use borealis_base::{Branch, ErrorKind, ObjectId, Position, Progress, Unit};
use futures::StreamExt;

use crate::catalog::Lineage;
use crate::ledger::LedgerReader;
use crate::log::merged::{FRAME_PART_INDEXES, FRAME_PARTS, decode_parts};
use crate::log::piece::{
    FRAME_LOG_BYTES, FRAME_LOG_INDEX, FRAME_TIME_MAP, PieceIdentity, check_entry, content,
    log_frames,
};
use crate::log::time_map::decode_steps;
use crate::object::{ObjectHead, ObjectKind, ObjectView, fetch_head, fetch_with};
use crate::pages::digests::{self, FrameDigests, PageDigester};
use crate::pages::fetch::{Fetcher, check_identity, object_name};
use crate::pages::frame::PageFrame;
use crate::pages::manifest::{Blob, Manifest};
use crate::pages::map::{Location, Run};
use crate::pages::pack::{FRAME_BLOBS, FRAME_DIGESTS, FRAME_PAGES, blocking};
use crate::pages::partial::PartialManifest;
use crate::pages::read::{PageReader, decode_any};
use crate::plan::coverage::{log_from, path};
use crate::plan::{
    BaseBackupSummary, Coverage, LineageState, ObjectRef, PartialSummary, PieceSummary, Window,
    windows,
};
use crate::scrub::wrong_in_rows;
use crate::{Error, Result, layout};

/// Objects checked at a time. Memory of a deep check: this many packs or pieces, each with one frame
/// opened, and the runs of all base backups, shared ones once.
const CONCURRENCY: usize = 4;

/// What is wrong with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// An object is not what was written.
    Damaged,
    /// An object that is named does not exist.
    Missing,
    /// Something is promised whose other part was never stored.
    Incomplete,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// In what way.
    pub kind: FindingKind,
    /// The object, by its name in the store.
    pub object: String,
    /// What is wrong, with the object's name.
    pub what: String,
    /// What cannot be restored because of it.
    pub affects: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.affects
            .iter()
            .try_for_each(|affected| write!(f, "; affects {affected}"))
    }
}

/// What was checked and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Everything that is wrong, in the order of object names.
    pub findings: Vec<Finding>,
    /// Base backups checked.
    pub base_backups: u64,
    /// Packs checked.
    pub packs: u64,
    /// Log pieces checked.
    pub pieces: u64,
    /// Blobs whose digest was checked.
    pub blobs: u64,
    /// Bytes of packs and log pieces read.
    pub bytes_read: u64,
    /// What the ledger promises; findings say what of it does not hold.
    pub windows: Vec<Window>,
}

impl Report {
    /// Whether everything promised was found.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Turns damage into a finding; other errors end the check.
fn finding(error: Error, object: &str, affects: Vec<String>) -> Result<Finding> {
    let (kind, object) = match &error {
        Error::Missing { object, .. } => (FindingKind::Missing, object.clone()),
        Error::Damaged { object, .. } => (FindingKind::Damaged, object.clone()),
        other if other.kind() == ErrorKind::Damaged => (FindingKind::Damaged, object.to_owned()),
        _ => return Err(error),
    };
    Ok(Finding {
        kind,
        object,
        what: error.to_string(),
        affects,
    })
}

/// A pack and what base backups take from it.
pub(crate) struct UsedPack {
    object: ObjectRef,
    frames: u32,
    users: BTreeSet<u64>,
    /// (frame, page file, page size, first page, count)
    runs: BTreeSet<(u32, u32, u32, u32, u32)>,
    blob_frames: BTreeSet<u32>,
    needed_by: String,
}

/// Checks a lineage from its ledger on: the chain, every entry, and everything that entries name.
pub async fn verify_lineage(
    lineage: &Lineage,
    deep: bool,
    progress: &dyn Progress,
) -> Result<Report> {
    let name = layout::lineage(lineage.id());
    let loaded =
        async { Ok::<_, Error>((lineage.reader().await?, lineage.load_stored_state().await?)) };
    let (reader, state) = match loaded.await {
        Ok(loaded) => loaded,
        Err(error) => {
            let all = vec![format!("all restores of lineage {}", lineage.id())];
            return Ok(Report {
                findings: vec![finding(error, &name, all)?],
                ..Report::default()
            });
        }
    };
    let mut report = verify(&Arc::new(Fetcher::of(lineage)), &state, deep, progress).await?;
    // Entries that hold log are checked as log, merged or not; names below the floor are still named.
    let pieces: BTreeSet<u64> = (state.pieces.iter())
        .filter(|piece| piece.merged.is_none())
        .map(|piece| piece.entry)
        .collect();
    let named = (state.names.iter().map(|names| names.entry))
        .filter(|entry| *entry < reader.lowest())
        .chain(reader.lowest()..=state.head);
    progress.phase("ledger entries", Unit::Items, Some(state.head));
    for number in named.filter(|number| !pieces.contains(number)) {
        if let Err(error) = verify_entry(&reader, lineage, number, deep).await {
            // Recaps and checkpoints repeat what entries say, so nothing is lost yet.
            let affects = vec![format!("the ledger's chain at entry {number}")];
            report.findings.push(finding(
                error,
                &layout::entry(lineage.id(), number),
                affects,
            )?);
        }
        progress.advance(1);
    }
    for summary in reader.epochs() {
        if let Err(error) = reader.check_epoch(summary.epoch).await {
            // No restore reads it, but no writer opens past it.
            let affects = vec![format!("the next writer of lineage {}", lineage.id())];
            let object = layout::epoch(lineage.id(), summary.epoch);
            report.findings.push(finding(error, &object, affects)?);
        }
    }
    if deep {
        for (object, error) in wrong_in_rows(lineage).await? {
            let affects = format!("snapshots, or what drills and scrubs have found, of {name}");
            report
                .findings
                .push(finding(error, &object, vec![affects])?);
        }
    }
    report
        .findings
        .sort_by(|a, b| (&a.object, &a.what).cmp(&(&b.object, &b.what)));
    Ok(report)
}

async fn verify_entry(
    reader: &LedgerReader,
    lineage: &Lineage,
    number: u64,
    deep: bool,
) -> Result<()> {
    let name = layout::entry(lineage.id(), number);
    if !deep {
        return match lineage.store().stat(&name).await? {
            Some(_) => Ok(()),
            None => Err(Error::Missing {
                object: name,
                needed_by: "the ledger".to_owned(),
            }),
        };
    }
    let view = reader.object(number).await?;
    (0..view.head().frames().len() as u32)
        .try_for_each(|frame| view.frame(lineage.keys(), frame).map(|_| ()))
}

/// Checks everything that `state` names: base backups and log pieces. For a whole lineage call
/// [`verify_lineage`].
pub async fn verify(
    fetcher: &Arc<Fetcher>,
    state: &LineageState,
    deep: bool,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut report = Report {
        windows: windows(state),
        ..Report::default()
    };
    let mut packs = BTreeMap::new();
    let mut blobs = BTreeSet::new();
    let mut manifests = BTreeSet::new();
    let mut coverage: BTreeMap<Branch, Coverage<'_>> = BTreeMap::new();
    progress.phase(
        "base backups",
        Unit::Items,
        Some(state.base_backups.len() as u64),
    );
    for base in &state.base_backups {
        let affects = vec![name_of(base)];
        let name = object_name(ObjectKind::Manifest, &base.manifest);
        let whole = coverage
            .entry(base.branch)
            .or_insert_with(|| Coverage::of(state, base.branch));
        report.findings.extend(own_log(state, whole, base, &name));
        match base_backup(fetcher, base, &mut packs, &mut manifests, deep).await {
            Ok(manifest) if deep => {
                verify_blobs(fetcher, &manifest, &mut blobs, &affects, &mut report).await?;
            }
            Ok(_) => {}
            Err(error) => report.findings.push(finding(error, &name, affects)?),
        }
        report.base_backups += 1;
        progress.advance(1);
    }
    if let Some(partial) = &state.partial
        && let Err(error) = verify_partial(fetcher, partial, &mut packs, &mut manifests, deep).await
    {
        let name = object_name(ObjectKind::Manifest, &partial.manifest);
        let affects = vec![name_of_partial(partial)];
        report.findings.push(finding(error, &name, affects)?);
    }
    verify_packs(fetcher, state, packs, deep, progress, &mut report).await?;
    verify_log(fetcher, state, deep, progress, &mut report).await?;
    report.findings.extend(undeclared_holes(state));
    report
        .findings
        .sort_by(|a, b| (&a.object, &a.what).cmp(&(&b.object, &b.what)));
    report.findings.dedup();
    Ok(report)
}

fn name_of(base: &BaseBackupSummary) -> String {
    format!(
        "base backup of entry {} ({} to {} on branch {})",
        base.entry, base.start, base.end, base.branch
    )
}

fn name_of_partial(partial: &PartialSummary) -> String {
    format!(
        "the resumption of the base backup begun at {} (entry {}), and no restore",
        partial.started_at, partial.entry
    )
}

/// A base backup whose own log is not wholly stored can never be restored.
fn own_log(
    state: &LineageState,
    coverage: &Coverage<'_>,
    base: &BaseBackupSummary,
    name: &str,
) -> Option<Finding> {
    let from = log_from(base, state.log_unit);
    (!coverage.serves(base, state.log_unit, base.end)).then(|| Finding {
        kind: FindingKind::Incomplete,
        object: name.to_owned(),
        what: format!("the log {from} to {} of branch {}, without which {name} cannot be restored, is not wholly stored", base.end, base.branch),
        affects: vec![name_of(base)],
    })
}

/// Log between stored pieces that is missing without an entry that says so.
fn undeclared_holes(state: &LineageState) -> Vec<Finding> {
    let branches: BTreeSet<_> = state.pieces.iter().map(|piece| piece.branch).collect();
    let mut findings = Vec::new();
    for branch in branches {
        let coverage = Coverage::of(state, branch);
        for pair in coverage.stretches.windows(2) {
            let [before, after] = pair else { continue };
            let declared = state
                .gaps
                .iter()
                .any(|gap| gap.from <= after.from && before.to <= gap.to);
            if !declared {
                findings.push(Finding {
                    kind: FindingKind::Incomplete,
                    object: layout::lineage(state.lineage),
                    what: format!(
                        "the log of branch {branch} from {} to {} is missing, and no entry says so",
                        before.to, after.from
                    ),
                    affects: vec![format!("restores on branch {branch} across {}", before.to)],
                });
            }
        }
    }
    findings
}

/// Checks one manifest and its map, and notes what it takes from packs.
pub(crate) async fn base_backup(
    fetcher: &Arc<Fetcher>,
    base: &BaseBackupSummary,
    packs: &mut BTreeMap<ObjectId, UsedPack>,
    seen: &mut BTreeSet<ObjectId>,
    deep: bool,
) -> Result<Arc<Manifest>> {
    let manifest = Arc::new(Manifest::load(fetcher, &base.manifest).await?);
    let (info, name) = (manifest.info(), manifest.name());
    let same = (info.branch, info.start, info.end) == (base.branch, base.start, base.end)
        && manifest.total_pages() == base.total_pages;
    if !same {
        return Err(Error::damaged(
            name,
            format!("it is not the base backup that entry {} names", base.entry),
        ));
    }
    verify_homes(fetcher, &manifest, seen, deep).await?;
    let map = PageReader::new(Arc::clone(fetcher), Arc::clone(&manifest))
        .load_map()
        .await?;
    use_packs(&manifest, base.entry, packs)?;
    note_places(&manifest, map.runs(), packs);
    Ok(manifest)
}

/// Checks what the ledger names as a partial base backup, and notes what it takes from packs. Damage in
/// it stops no restore: the next base backup reads the pages again.
async fn verify_partial(
    fetcher: &Arc<Fetcher>,
    summary: &PartialSummary,
    packs: &mut BTreeMap<ObjectId, UsedPack>,
    seen: &mut BTreeSet<ObjectId>,
    deep: bool,
) -> Result<()> {
    let partial = PartialManifest::load(fetcher, &summary.manifest).await?;
    let info = partial.info();
    let same = (info.branch, info.start, info.rule_set)
        == (summary.branch, summary.start, summary.rule_set)
        && (partial.stored_pages(), partial.missing_pages())
            == (summary.stored_pages, summary.missing_pages);
    if !same {
        return Err(Error::damaged(
            partial.name(),
            format!(
                "it is not the partial base backup that entry {} names",
                summary.entry
            ),
        ));
    }
    let manifest = partial.manifest();
    verify_homes(fetcher, manifest, seen, deep).await?;
    partial.missing(fetcher).await?;
    use_packs(manifest, summary.entry, packs)?;
    for index in 0..manifest.parts().len() {
        note_places(manifest, &manifest.load_part(fetcher, index).await?, packs);
    }
    Ok(())
}

/// Checks a manifest's own object, and those whose map parts it shares, as objects.
async fn verify_homes(
    fetcher: &Fetcher,
    manifest: &Manifest,
    seen: &mut BTreeSet<ObjectId>,
    deep: bool,
) -> Result<()> {
    let homes = manifest.parts().iter().map(|part| part.handle.object);
    for object in homes.chain([manifest.object()]) {
        if seen.insert(object.object) {
            verify_manifest_object(fetcher, &object, &manifest.name(), deep).await?;
        }
    }
    Ok(())
}

/// Notes that the manifest of `entry` uses the packs of its table.
fn use_packs(
    manifest: &Manifest,
    entry: u64,
    packs: &mut BTreeMap<ObjectId, UsedPack>,
) -> Result<()> {
    let name = manifest.name();
    for pack in manifest.packs().values() {
        let used = packs.entry(pack.object.object).or_insert_with(|| UsedPack {
            object: pack.object,
            frames: pack.frames,
            users: BTreeSet::new(),
            runs: BTreeSet::new(),
            blob_frames: BTreeSet::new(),
            needed_by: name.clone(),
        });
        if used.object != pack.object || used.frames != pack.frames {
            return Err(Error::damaged(
                name,
                "it names a pack differently from an earlier base backup",
            ));
        }
        used.users.insert(entry);
    }
    Ok(())
}

/// Checks a manifest as an object: all of it, where loading reads only what one base backup needs.
pub(crate) async fn verify_manifest_object(
    fetcher: &Fetcher,
    object: &ObjectRef,
    needed_by: &str,
    deep: bool,
) -> Result<()> {
    let name = object_name(ObjectKind::Manifest, object);
    if !deep {
        return check_len(fetcher, &name, object.len, needed_by).await;
    }
    let view = fetch_with(
        &**fetcher.store(),
        fetcher.keys(),
        &name,
        ObjectKind::Manifest,
    )
    .await
    .map_err(|error| error.named_by(needed_by))?;
    check_identity(view.head(), object)?;
    let keys = Arc::clone(fetcher.keys());
    blocking(move || {
        (0..view.head().frames().len() as u32)
            .try_for_each(|number| view.frame(&keys, number).map(|_| ()))
    })
    .await?
}

fn note_places(manifest: &Manifest, runs: &[Run], packs: &mut BTreeMap<ObjectId, UsedPack>) {
    let table = manifest.packs();
    let sizes = &manifest.files().page_files;
    for Run {
        file,
        first,
        count,
        at,
    } in runs
    {
        let Location::Frame { pack, frame } = at else {
            continue;
        };
        let (Some(entry), Some(page_file)) = (table.get(pack), sizes.get(file)) else {
            continue;
        };
        if let Some(used) = packs.get_mut(&entry.object.object) {
            used.runs
                .insert((*frame, *file, page_file.page_size, *first, *count));
        }
    }
    for chunk in manifest.files().blobs.iter().flat_map(|blob| &blob.chunks) {
        let used = table
            .get(&chunk.pack)
            .and_then(|entry| packs.get_mut(&entry.object.object));
        if let Some(used) = used {
            used.blob_frames.insert(chunk.frame);
        }
    }
}

/// A blob's digest and where its content lies: the same in many base backups, and checked once.
type BlobIdentity = ([u8; 32], Vec<(ObjectId, u32, u32)>);

async fn verify_blobs(
    fetcher: &Arc<Fetcher>,
    manifest: &Arc<Manifest>,
    seen: &mut BTreeSet<BlobIdentity>,
    affects: &[String],
    report: &mut Report,
) -> Result<()> {
    let reader = PageReader::new(Arc::clone(fetcher), Arc::clone(manifest));
    let identity = |blob: &Blob| {
        let place = |chunk: &crate::pages::manifest::BlobChunk| {
            manifest
                .packs()
                .get(&chunk.pack)
                .map(|pack| (pack.object.object, chunk.frame, chunk.offset))
        };
        (
            blob.sha256,
            blob.chunks.iter().filter_map(place).collect::<Vec<_>>(),
        )
    };
    for blob in &manifest.files().blobs {
        if !seen.insert(identity(blob)) {
            continue;
        }
        report.blobs += 1;
        if let Err(error) = reader.read_blob(blob, |_| Ok::<(), Error>(())).await {
            report
                .findings
                .push(finding(error, &manifest.name(), affects.to_vec())?);
        }
    }
    Ok(())
}

async fn verify_packs(
    fetcher: &Arc<Fetcher>,
    state: &LineageState,
    packs: BTreeMap<ObjectId, UsedPack>,
    deep: bool,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<()> {
    let total = packs.values().map(|pack| pack.object.len).sum();
    progress.phase("packs", Unit::Bytes, Some(total));
    let mut checks = futures::stream::iter(packs.into_values())
        .map(|used| async move {
            let used = Arc::new(used);
            let result = verify_pack(fetcher, &used, deep).await;
            (used, result)
        })
        .buffer_unordered(CONCURRENCY);
    while let Some((used, result)) = checks.next().await {
        report.packs += 1;
        progress.advance(used.object.len);
        match result {
            Ok(()) => report.bytes_read += if deep { used.object.len } else { 0 },
            Err(error) => {
                let whole = state.base_backups.iter();
                let whole = whole.filter(|base| used.users.contains(&base.entry));
                let partial = state.partial.iter();
                let partial = partial.filter(|partial| used.users.contains(&partial.entry));
                let users = whole.map(name_of).chain(partial.map(name_of_partial));
                let name = object_name(ObjectKind::Pack, &used.object);
                report
                    .findings
                    .push(finding(error, &name, users.collect())?);
            }
        }
    }
    Ok(())
}

async fn verify_pack(fetcher: &Arc<Fetcher>, used: &Arc<UsedPack>, deep: bool) -> Result<()> {
    let name = object_name(ObjectKind::Pack, &used.object);
    if !deep {
        let head = fetcher
            .head(ObjectKind::Pack, &used.object, &used.needed_by)
            .await?;
        check_len(fetcher, &name, used.object.len, &used.needed_by).await?;
        return check_named(&head, used);
    }
    let view = fetch_with(&**fetcher.store(), fetcher.keys(), &name, ObjectKind::Pack)
        .await
        .map_err(|error| error.named_by(&used.needed_by))?;
    let (keys, used) = (Arc::clone(fetcher.keys()), Arc::clone(used));
    blocking(move || {
        let head = view.head();
        check_identity(head, &used.object)?;
        check_named(head, &used)?;
        let data_key = head.data_key().and_then(|key| keys.get(key));
        let digester = data_key.map(|key| PageDigester::new(&key.secret));
        // Digests stand behind the pages that they are of.
        let mut made = BTreeMap::new();
        for number in 0..head.frames().len() as u32 {
            let plain = view.frame(&keys, number)?;
            if head.frame(number)?.kind == FRAME_DIGESTS {
                check_digests(&made, head, number, &plain)?;
            }
            if head.frame(number)?.kind != FRAME_PAGES {
                continue;
            }
            let pages = decode_any(head, number, &plain)?;
            made.insert(number, digests_of(&pages, number, digester.as_ref()));
            for (frame, file, page_size, first, count) in used.runs.range((number, 0, 0, 0, 0)..) {
                if *frame != number {
                    break;
                }
                let held = (pages.file(), pages.page_size()) == (*file, *page_size)
                    && (0..*count).all(|step| {
                        first.checked_add(step).is_some_and(|page| pages.numbers().binary_search(&page).is_ok())
                    });
                if !held {
                    return Err(head.damaged(format!(
                        "frame {number} does not hold pages {first} and the {} after it of page file {file}, which are named there",
                        count - 1
                    )));
                }
            }
        }
        Ok(())
    })
    .await?
}

fn digests_of(
    pages: &PageFrame,
    frame: u32,
    digester: Option<&PageDigester>,
) -> Option<FrameDigests> {
    let digester = digester?;
    let pages_of = pages
        .iter()
        .map(|(page, content)| (page, digester.digest(&content)));
    Some(FrameDigests {
        frame,
        file: pages.file(),
        pages: pages_of.collect(),
    })
}

/// Checks that the digests in a frame are those of the pages: a restore over files that are there believes them.
fn check_digests(
    made: &BTreeMap<u32, Option<FrameDigests>>,
    head: &ObjectHead,
    number: u32,
    plain: &[u8],
) -> Result<()> {
    let told =
        digests::decode(plain).map_err(|error| head.damaged(format!("frame {number}: {error}")))?;
    match told
        .iter()
        .find(|told| made.get(&told.frame).and_then(Option::as_ref) != Some(told))
    {
        None => Ok(()),
        Some(told) => Err(head.damaged(format!(
            "the digests in frame {number} are not those of the pages of frame {}",
            told.frame
        ))),
    }
}

/// Checks that every frame that is named exists and is of the right kind.
fn check_named(head: &ObjectHead, used: &UsedPack) -> Result<()> {
    if head.frames().len() != used.frames as usize {
        return Err(head.damaged(format!(
            "it has {} of {} frames",
            head.frames().len(),
            used.frames
        )));
    }
    let pages = used.runs.iter().map(|run| (run.0, FRAME_PAGES));
    let blobs = used.blob_frames.iter().map(|frame| (*frame, FRAME_BLOBS));
    for (number, kind) in pages.chain(blobs) {
        if head.frame(number)?.kind != kind {
            return Err(head.damaged(format!("frame {number} is of another kind than is named")));
        }
    }
    Ok(())
}

/// Checks the length by asking the store, which finds a lost tail without reading it.
async fn check_len(fetcher: &Fetcher, name: &str, len: u64, needed_by: &str) -> Result<()> {
    match fetcher.store().stat(name).await? {
        None => Err(Error::Missing {
            object: name.to_owned(),
            needed_by: needed_by.to_owned(),
        }),
        Some(stat) if stat.len != len => Err(Error::damaged(
            name,
            format!("it has {} of {len} bytes", stat.len),
        )),
        Some(_) => Ok(()),
    }
}

async fn verify_log(
    fetcher: &Arc<Fetcher>,
    state: &LineageState,
    deep: bool,
    progress: &dyn Progress,
    report: &mut Report,
) -> Result<()> {
    // Of a piece whose range was withdrawn nothing is promised any more.
    let promised = || (state.pieces.iter()).filter(|piece| !state.is_withdrawn(piece));
    let total = promised().map(|piece| piece.stored_bytes).sum();
    progress.phase("log", Unit::Bytes, Some(total));
    let mut checks = futures::stream::iter(promised().cloned())
        .map(|piece| async move {
            let result = verify_piece(fetcher, state, &piece, deep).await;
            (piece, result)
        })
        .buffer_unordered(CONCURRENCY);
    while let Some((piece, result)) = checks.next().await {
        report.pieces += 1;
        progress.advance(piece.stored_bytes);
        match result {
            Ok(()) => report.bytes_read += if deep { piece.stored_bytes } else { 0 },
            Err(error) => {
                let affects = restores_over(state, &report.windows, &piece);
                report
                    .findings
                    .push(finding(error, &piece.object_name(state.lineage), affects)?);
            }
        }
    }
    Ok(())
}

/// What cannot be restored without `piece`.
fn restores_over(state: &LineageState, windows: &[Window], piece: &PieceSummary) -> Vec<String> {
    let reached = |window: &&Window| {
        let legs = path(state, window.branch);
        let leg = legs.iter().find(|leg| leg.branch == piece.branch);
        leg.is_some_and(|leg| piece.start < window.latest.position.min(leg.to))
    };
    let text = |window: &Window| {
        let from: Position = window.earliest.position.max(piece.start);
        format!(
            "restores on branch {} to {from} and later, up to {}, that replay the log {} to {}",
            window.branch, window.latest.position, piece.start, piece.end
        )
    };
    windows.iter().filter(reached).map(text).collect()
}

pub(crate) async fn verify_piece(
    fetcher: &Arc<Fetcher>,
    state: &LineageState,
    piece: &PieceSummary,
    deep: bool,
) -> Result<()> {
    let name = piece.object_name(state.lineage);
    if !deep {
        let (head, _) = fetch_head(&**fetcher.store(), &name, piece.object_kind())
            .await
            .map_err(|error| error.named_by("the ledger"))?;
        check_entry(&head, piece)?;
        check_len(fetcher, &name, head.object_len(), "the ledger").await?;
        return log_frames(&head, piece).map(|_| ());
    }
    let (store, keys) = (&**fetcher.store(), fetcher.keys());
    let view = fetch_with(store, keys, &name, piece.object_kind())
        .await
        .map_err(|error| error.named_by("the ledger"))?;
    let (keys, piece) = (Arc::clone(fetcher.keys()), piece.clone());
    let identity = PieceIdentity {
        lineage: state.lineage,
        branch: piece.branch,
        start: piece.start,
    };
    blocking(move || open_piece(&view, &keys, &identity, &piece)).await?
}

fn open_piece(
    view: &ObjectView,
    keys: &borealis_keys::DataKeys,
    identity: &PieceIdentity,
    piece: &PieceSummary,
) -> Result<()> {
    let head = view.head();
    check_entry(head, piece)?;
    log_frames(head, piece)?;
    let (mut maps, mut parts, mut index_bytes) = (0, Vec::new(), 0);
    for (number, frame) in (0_u32..).zip(head.frames()) {
        let plain = view.frame(keys, number)?;
        if !matches!(
            frame.kind,
            FRAME_TIME_MAP | FRAME_LOG_INDEX | FRAME_LOG_BYTES | FRAME_PARTS | FRAME_PART_INDEXES
        ) {
            continue;
        }
        let content = content(head, identity, number, &plain)?;
        if frame.kind == FRAME_PARTS {
            parts = decode_parts(&content, piece.start, piece.end)
                .map_err(|error| head.damaged(error.to_string()))?;
        }
        if frame.kind == FRAME_PART_INDEXES {
            index_bytes += content.len();
        }
        if frame.kind == FRAME_TIME_MAP {
            maps += 1;
            let steps = decode_steps(&content).map_err(|error| head.damaged(error.to_string()))?;
            let last = steps.last().map(|step| step.settled_through);
            // A piece that settles nothing has steps of no effect.
            let same = last == piece.settled_after || piece.settled_after == piece.settled_before;
            if !same {
                return Err(head.damaged("its time map does not end where the ledger says"));
            }
        }
    }
    if maps != 1 {
        return Err(head.damaged(format!("it holds {maps} time maps")));
    }
    let said: usize = parts.iter().map(|part| part.index_len as usize).sum();
    if parts.len() as u64 != piece.merged.map_or(0, |merged| merged.parts) || said != index_bytes {
        return Err(head.damaged("its parts are not those that the ledger names"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
