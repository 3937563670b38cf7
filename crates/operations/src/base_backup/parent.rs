//! What a base backup takes pages over from: the base backup before it, or what an attempt that was
//! killed had stored.
//!
//! Either way every page there is as of one position, the start of its base backup or attempt, and the
//! log from that position on says which pages must be read again (law 5). A partial base backup lacks
//! pages besides; those are read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use borealis_base::{Branch, ErrorKind, ObjectId, Position};
use borealis_pg_format::control_file::ControlFile;
use borealis_pg_format::index::{CHANGE_MAP_RULE_SET, ChangeMap, RULE_SET};
use borealis_pg_server::backup::BackupStart;
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::{BaseBackupInfo, FileTable, Manifest, ManifestBuilder};
use borealis_repository::pages::partial::PartialManifest;
use borealis_repository::plan::coverage::{Leg, path};
use borealis_repository::plan::{BaseBackupSummary, GapSummary, LineageState, PartialSummary};
use borealis_repository::scrub::{pages_in, partial_pages_in};
use roaring::RoaringBitmap;

use super::facts::{DamagedPage, PageFacts};
use super::plan::Before;
use super::take::CapturedLog;
use crate::error::Result;

/// Something in the ledger that pages may be taken over from.
#[derive(Debug, Clone)]
pub enum Candidate {
    /// A base backup.
    Whole(BaseBackupSummary),
    /// What an attempt stored that did not come to its end.
    Partial(PartialSummary),
}

/// What the next base backup on `branch` may take over, the best first: the newest of the last base backup
/// on the way there and what an attempt after it has stored. What lies before a gap in the log is out of the
/// question, and so is an attempt on a branch that was left: it may have read pages of later than that.
pub fn candidates(state: &LineageState, branch: Branch) -> Vec<Candidate> {
    let way = path(state, branch);
    let partial = state.partial.iter().cloned();
    let partial = partial.filter(|partial| partial.branch == branch);
    let whole = last_on(&way, state).cloned().map(Candidate::Whole);
    partial
        .map(Candidate::Partial)
        .chain(whole)
        .filter(|candidate| is_after_gaps(&way, state, candidate.summary().start))
        .collect()
}

/// The last base backup whose pages are those of the branch to which `way` leads.
pub fn last_on<'s>(way: &[Leg], state: &'s LineageState) -> Option<&'s BaseBackupSummary> {
    (state.base_backups.iter().rev()).find(|base| {
        way.iter()
            .any(|leg| leg.branch == base.branch && base.end <= leg.to)
    })
}

/// Whether no gap on the way comes after `start`.
pub fn is_after_gaps(way: &[Leg], state: &LineageState, start: Position) -> bool {
    let on_the_way =
        |gap: &&GapSummary| (way.iter()).any(|leg| leg.branch == gap.branch && gap.from < leg.to);
    // A gap that was found late may lie before others that are known already.
    (state.gaps.iter().filter(on_the_way)).all(|gap| gap.to <= start)
}

/// What decides whether anything can be taken over, before it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Summary {
    start: Position,
    rule_set: u32,
}

impl Summary {
    /// Why nothing can be taken over by a base backup that begins at `start`; `None` if something can.
    fn unfit(&self, start: BackupStart) -> Option<&'static str> {
        if !(CHANGE_MAP_RULE_SET..=RULE_SET).contains(&self.rule_set) {
            Some("its pages were chosen by another rule set")
        } else if self.start > start.position {
            Some("it began at a later position")
        } else {
            None
        }
    }
}

impl Candidate {
    fn summary(&self) -> Summary {
        match self {
            Self::Whole(whole) => Summary {
                start: whole.start,
                rule_set: whole.rule_set,
            },
            Self::Partial(partial) => Summary {
                start: partial.start,
                rule_set: partial.rule_set,
            },
        }
    }

    fn entry(&self) -> u64 {
        match self {
            Self::Whole(whole) => whole.entry,
            Self::Partial(partial) => partial.entry,
        }
    }

    async fn load(&self, fetcher: &Fetcher) -> Result<Parent> {
        Ok(match self {
            Self::Whole(whole) => {
                Parent::Whole(Arc::new(Manifest::load(fetcher, &whole.manifest).await?))
            }
            Self::Partial(partial) => {
                let manifest = PartialManifest::load(fetcher, &partial.manifest).await?;
                let missing = manifest.missing(fetcher).await?;
                Parent::Partial {
                    manifest: Box::new(manifest),
                    missing,
                    stored_bytes: partial.new_bytes,
                }
            }
        })
    }
}

/// What pages are taken over from.
#[derive(Debug)]
pub enum Parent {
    /// A base backup.
    Whole(Arc<Manifest>),
    /// What an attempt stored that did not come to its end.
    Partial {
        /// Its manifest.
        manifest: Box<PartialManifest>,
        /// The pages that it lacks, by page file.
        missing: Vec<(u32, Range<u32>)>,
        /// Bytes that were stored for it.
        stored_bytes: u64,
    },
}

impl Parent {
    /// What it is. For an attempt only what it began with counts.
    pub fn info(&self) -> &BaseBackupInfo {
        match self {
            Self::Whole(manifest) => manifest.info(),
            Self::Partial { manifest, .. } => manifest.info(),
        }
    }

    /// Its files.
    pub fn files(&self) -> &FileTable {
        match self {
            Self::Whole(manifest) => manifest.files(),
            Self::Partial { manifest, .. } => manifest.files(),
        }
    }

    /// A manifest that takes over its pages.
    pub fn builder(&self) -> ManifestBuilder {
        match self {
            Self::Whole(manifest) => ManifestBuilder::next(manifest.clone()),
            Self::Partial { manifest, .. } => ManifestBuilder::resume(manifest),
        }
    }

    /// The base backup, if it is a whole one.
    pub fn whole(&self) -> Option<&Manifest> {
        match self {
            Self::Whole(manifest) => Some(manifest),
            Self::Partial { .. } => None,
        }
    }

    /// Whether it is an attempt that did not come to its end.
    pub fn is_partial(&self) -> bool {
        matches!(self, Self::Partial { .. })
    }

    /// Bytes stored for the base backup that is being taken, before it went on from this.
    pub fn stored_bytes(&self) -> u64 {
        match self {
            Self::Whole(_) => 0,
            Self::Partial { stored_bytes, .. } => *stored_bytes,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Whole(manifest) => manifest.name(),
            Self::Partial { manifest, .. } => manifest.name(),
        }
    }

    /// The pages that it lacks, by page file.
    fn missing(&self) -> &[(u32, Range<u32>)] {
        match self {
            Self::Whole(_) => &[],
            Self::Partial { missing, .. } => missing,
        }
    }
}

/// What planning needs to know of a parent. A page that was damaged is read again each time: it may have
/// been put right without log, and if not, each base backup says so.
fn before(files: &FileTable, missing: &[(u32, Range<u32>)], damaged: &[DamagedPage]) -> Before {
    let lengths = files.page_files.values();
    let lengths = lengths.map(|file| (file.name.clone(), file.length));
    let mut unusable: BTreeMap<String, RoaringBitmap> = BTreeMap::new();
    for (number, pages) in missing {
        if let Some(file) = files.page_files.get(number) {
            let unusable = unusable.entry(file.name.clone()).or_default();
            unusable.insert_range(pages.clone());
        }
    }
    for page in damaged {
        let unusable = unusable.entry(page.path.clone()).or_default();
        unusable.insert(page.block);
    }
    Before {
        lengths: lengths.collect(),
        unusable,
    }
}

/// Frames of a pack that a scrub found damaged; none means all of it.
pub type DamagedFrames = (ObjectId, Vec<u32>);

/// A parent with everything that planning needs of it.
#[derive(Debug)]
pub struct Inherited {
    /// Where pages come from.
    pub parent: Parent,
    /// What it has.
    pub before: Before,
    /// What the log says has changed since it began.
    pub changes: ChangeMap,
    /// Its blobs that lie in damaged frames, by name.
    pub lost_blobs: BTreeSet<String>,
}

/// Takes the first candidate whose pages can be relied on; with none, everything is read. What lies in `damaged`
/// frames is not taken over.
///
/// # Errors
/// A store that does not answer. A candidate that is damaged itself is passed over.
pub async fn inherit(
    candidates: &[Candidate],
    damaged: &[DamagedFrames],
    fetcher: &Fetcher,
    log: &dyn CapturedLog,
    start: BackupStart,
    control: &ControlFile,
) -> Result<Option<Inherited>> {
    for candidate in candidates {
        let entry = candidate.entry();
        let passed_over = |reason: &str| {
            tracing::info!(entry, reason, "its pages are not taken over");
        };
        if let Some(reason) = candidate.summary().unfit(start) {
            passed_over(reason);
            continue;
        }
        let loaded = async {
            let parent = candidate.load(fetcher).await?;
            let facts = PageFacts::decode(&parent.name(), &parent.info().engine)?;
            Ok((parent, facts))
        };
        let (parent, facts) = match loaded.await {
            Err(error) if is_damage(&error) => {
                tracing::error!(entry, %error, "what pages could be taken over from is damaged; they are read again");
                continue;
            }
            loaded => loaded?,
        };
        if let Some(reason) = unfit_pages(&facts, control) {
            passed_over(reason);
            continue;
        }
        match log.changes(start, parent.info().start).await? {
            Some(changes) => {
                let (lost_pages, lost_blobs) = lost(&parent, damaged, fetcher).await?;
                let mut missing = parent.missing().to_vec();
                missing.extend(lost_pages);
                return Ok(Some(Inherited {
                    before: before(parent.files(), &missing, &facts.damaged),
                    parent,
                    changes,
                    lost_blobs,
                }));
            }
            None => passed_over("the log since then is not all stored"),
        }
    }
    Ok(None)
}

/// What of `parent` lies in damaged frames: pages by page file, and names of blobs.
async fn lost(
    parent: &Parent,
    damaged: &[DamagedFrames],
    fetcher: &Fetcher,
) -> Result<(Vec<(u32, Range<u32>)>, BTreeSet<String>)> {
    let (mut pages, mut blobs) = (Vec::new(), BTreeSet::new());
    for (pack, frames) in damaged {
        let found = match parent {
            Parent::Whole(manifest) => pages_in(fetcher, manifest, *pack, frames).await?,
            Parent::Partial { manifest, .. } => {
                partial_pages_in(fetcher, manifest, *pack, frames).await?
            }
        };
        if !found.is_empty() {
            tracing::warn!(%pack, runs = found.pages.len(), "what lies in damaged frames is read again");
        }
        let range = |(file, first, count): (u32, u32, u32)| (file, first..first + count);
        pages.extend(found.pages.into_iter().map(range));
        blobs.extend(found.blobs);
    }
    Ok((pages, blobs))
}

fn is_damage(error: &crate::Error) -> bool {
    error.kind() == ErrorKind::Damaged
}

/// Why pages of then are not pages of now. `pg_checksums` writes into every page of a stopped server,
/// without log: an inherited page would fail its checksum on a restored one.
fn unfit_pages(then: &PageFacts, now: &ControlFile) -> Option<&'static str> {
    if then.data_checksums != (now.data_checksum_version != 0) {
        Some("page checksums were turned on or off")
    } else if then.page_bytes != now.page_size
        || then.relation_segment_pages != now.relation_segment_pages
    {
        Some("the sizes of pages or segments differ")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::{LineageId, ObjectId, Timestamp};
    use borealis_repository::pages::manifest::PageFile;
    use borealis_repository::plan::{BranchSummary, ObjectRef};

    const START: BackupStart = BackupStart {
        position: Position(500),
        branch: Branch(1),
    };

    const FIT: Summary = Summary {
        start: Position(400),
        rule_set: RULE_SET,
    };

    fn object(number: u8) -> ObjectRef {
        ObjectRef {
            lineage: LineageId([1; 16]),
            object: ObjectId([number; 16]),
            len: 1,
            head_digest: [0; 32],
        }
    }

    fn whole(entry: u64, start: u64) -> BaseBackupSummary {
        BaseBackupSummary {
            entry,
            recorded_at: Timestamp(0),
            manifest: object(1),
            branch: Branch(1),
            start: Position(start),
            end: Position(start + 10),
            started_at: Timestamp(0),
            ended_at: Timestamp(0),
            new_bytes: 0,
            total_pages: 0,
            rule_set: RULE_SET,
        }
    }

    fn partial(entry: u64, start: u64) -> PartialSummary {
        PartialSummary {
            entry,
            recorded_at: Timestamp(0),
            manifest: object(2),
            branch: Branch(1),
            start: Position(start),
            started_at: Timestamp(0),
            new_bytes: 0,
            stored_pages: 0,
            missing_pages: 0,
            rule_set: RULE_SET,
        }
    }

    fn entries(state: &LineageState) -> Vec<u64> {
        candidates(state, Branch(1))
            .iter()
            .map(Candidate::entry)
            .collect()
    }

    #[test]
    fn an_unfinished_attempt_goes_before_the_base_backup_before_it() {
        let mut state = LineageState::empty(LineageId([1; 16]));
        assert_eq!(entries(&state), [0; 0]);
        state.base_backups = vec![whole(3, 100), whole(7, 200)];
        assert_eq!(entries(&state), [7]);
        state.partial = Some(partial(9, 300));
        assert_eq!(entries(&state), [9, 7]);
    }

    #[test]
    fn nothing_from_before_a_gap_is_taken_over() {
        let mut state = LineageState::empty(LineageId([1; 16]));
        state.base_backups = vec![whole(3, 100)];
        state.partial = Some(partial(9, 300));
        state.gaps.push(GapSummary {
            entry: 10,
            branch: Branch(1),
            from: Position(200),
            to: Position(250),
            reason: "slot lost".to_owned(),
        });
        assert_eq!(entries(&state), [9]);
        state.gaps[0].to = Position(301);
        assert_eq!(entries(&state), [0; 0]);
    }

    #[test]
    fn what_an_attempt_lacks_and_what_was_damaged_is_not_taken_over() {
        let file = |number: u32, name: &str| PageFile {
            number,
            name: name.to_owned(),
            page_size: 8192,
            length: 9,
            mode: 0o600,
        };
        let mut files = FileTable::default();
        for file in [file(4, "base/5/1"), file(6, "base/5/2")] {
            files.page_files.insert(file.number, file);
        }
        let damaged = [DamagedPage {
            path: "base/5/2".to_owned(),
            block: 7,
            fault: "its checksum is wrong".to_owned(),
        }];
        let before = before(&files, &[(4, 1..3), (6, 8..9)], &damaged);
        assert_eq!(before.lengths["base/5/1"], 9);
        let unusable = |name: &str| before.unusable[name].iter().collect::<Vec<_>>();
        assert_eq!(unusable("base/5/1"), [1, 2]);
        assert_eq!(unusable("base/5/2"), [7, 8]);
    }

    #[test]
    fn pages_chosen_by_another_rule_set_are_not_taken_over() {
        assert_eq!(FIT.unfit(START), None);
        for rule_set in [CHANGE_MAP_RULE_SET - 1, RULE_SET + 1] {
            let other = Summary { rule_set, ..FIT };
            let reason = other.unfit(START).expect("nothing is taken over");
            assert!(reason.contains("rule set"), "{reason}");
        }
    }

    #[test]
    fn pages_of_the_future_are_not_taken_over() {
        let start = Position(501);
        assert!(Summary { start, ..FIT }.unfit(START).is_some());
    }

    #[test]
    fn pages_of_a_timeline_that_was_left_are_taken_over_only_up_to_there() {
        let mut state = LineageState::empty(LineageId([1; 16]));
        state.base_backups = vec![whole(3, 100), whole(7, 200)];
        state.partial = Some(partial(9, 300));
        let left_at = |state: &mut LineageState, at| {
            let summary = BranchSummary {
                entry: 10,
                parent: Branch(1),
                at: Position(at),
                history: bytes::Bytes::new(),
            };
            state.branches.insert(Branch(2), summary);
        };
        let entries = |state: &LineageState| -> Vec<u64> {
            let candidates = candidates(state, Branch(2));
            candidates.iter().map(Candidate::entry).collect()
        };
        // The last one ends at 210. An attempt may hold pages of whatever came after it began.
        left_at(&mut state, 210);
        assert_eq!(entries(&state), [7]);
        left_at(&mut state, 209);
        assert_eq!(entries(&state), [3]);
        // A gap behind the place says nothing about this branch.
        let mut gap = GapSummary {
            entry: 11,
            branch: Branch(1),
            from: Position(209),
            to: Position(400),
            reason: "slot lost".to_owned(),
        };
        state.gaps = vec![gap.clone()];
        assert_eq!(entries(&state), [3]);
        gap.from = Position(208);
        state.gaps = vec![gap];
        assert_eq!(entries(&state), [0; 0]);
    }
}
