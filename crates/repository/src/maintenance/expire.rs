//! Letting go of what no promise holds, by law 4: plan with reasons, mark, wait out the grace period, look at every
//! promise again, delete.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use borealis_base::{ErrorKind, LineageId, Timestamp};

use super::turn::Turn;
use crate::catalog::Lineage;
use crate::ledger::{Expired, LedgerReader, Maintainer, Mark, Rule};
use crate::pages::fetch::Fetcher;
use crate::pages::manifest::Manifest;
use crate::plan::{LineageState, ObjectRef, Selected, Selection};
use crate::retention::{Expiry, PackUse, Released, expiry, plan};
use crate::{Error, Repository, Result, layout};

/// Manifests read at a time.
const CONCURRENCY: usize = 16;

/// How often it is planned what has expired.
const PLAN_EVERY: Duration = Duration::from_hours(1);

/// Lets what no promise holds expire, for one lineage.
pub(super) struct Expiring<'a> {
    repository: &'a Repository,
    lineage: Lineage,
    /// Objects of all base backups that were seen so far.
    packs: PackUse,
    /// Marks whose log was deleted by this process.
    log_deleted: BTreeSet<u64>,
    /// When it was last planned, by the clock that never steps.
    planned_at: Option<Duration>,
}

/// Base backups that share objects, by lineage and entry, with their manifests.
type Bases = BTreeMap<(LineageId, u64), ObjectRef>;

impl<'a> Expiring<'a> {
    pub(super) fn new(repository: &'a Repository, lineage: Lineage) -> Self {
        Self {
            repository,
            lineage,
            packs: PackUse::default(),
            log_deleted: BTreeSet::new(),
            planned_at: None,
        }
    }

    /// Whether there is something to say.
    pub(super) async fn is_due(&mut self, reader: &LedgerReader, grace: Duration) -> Result<bool> {
        let marks = reader.marks();
        if marks.iter().any(|it| it.dated.is_none() || it.checked) {
            return Ok(true);
        }
        let present = reader.present().await?;
        if marks.iter().any(|mark| self.is_old(mark, grace, present)) {
            return Ok(true);
        }
        if !self.is_time_to_plan() {
            return Ok(false);
        }
        let expired = self.look(reader, present).await?;
        let (none, marks) = (Selection::default(), reader.marks().iter());
        let comes_back = marks
            .filter(|mark| !mark.checked)
            .any(|mark| outside(&mark.selected, &expired.selection) != none);
        let due = comes_back || among(reader.state(), &expired.selection) != none;
        if !due {
            self.planned();
        }
        Ok(due)
    }

    fn is_time_to_plan(&self) -> bool {
        let now = self.lineage.clock().elapsed();
        self.planned_at
            .is_none_or(|at| now.saturating_sub(at) >= PLAN_EVERY)
    }

    fn planned(&mut self) {
        self.planned_at = Some(self.lineage.clock().elapsed());
    }

    /// What no promise holds, as everything is now: of what is visible and of what is hidden and can come back, since
    /// what one promise needs may have gone with several marks.
    ///
    /// What a scrub found damaged may be healed: it goes only if it would go whole as well. And what serves in its
    /// place is held, too.
    async fn look(&self, reader: &LedgerReader, present: Timestamp) -> Result<Expiry> {
        let mut stored = reader.state().clone();
        for mark in reader.marks().iter().filter(|mark| !mark.checked) {
            stored.put_back(mark.selected.clone());
        }
        stored.pins = self.lineage.pins().await?.all().to_vec();
        let mut sound = stored.clone();
        sound.withdraw(&self.lineage.known_damage().await?);
        // A clock that is late keeps too much rather than too little.
        let now = present.min(self.lineage.clock().now());
        let terms = (self.repository).terms_of(self.lineage.id(), &stored, now);
        let terms = terms.await?;
        let plans = [plan(&stored, &terms, now), plan(&sound, &terms, now)];
        Ok(expiry(&stored, &plans))
    }

    /// Looks again at the promises for what is marked, then marks what has expired since.
    pub(super) async fn mark_and_check(
        &mut self,
        maintainer: &mut Maintainer,
        grace: Duration,
        turn: &mut Turn,
    ) -> Result<()> {
        maintainer.date_marks().await?;
        let present = maintainer.reader().present().await?;
        let marks = maintainer.reader().marks().iter();
        let old = marks
            .filter(|mark| self.is_old(mark, grace, present))
            .count();
        let planning = self.is_time_to_plan();
        if old == 0 && !planning {
            return Ok(());
        }
        let expired = self.look(maintainer.reader(), present).await?;
        (self.keep(maintainer, &expired, grace, present, turn)).await?;
        let selection = among(maintainer.state(), &expired.selection);
        if !planning {
            return Ok(());
        }
        self.planned();
        if selection.is_empty() {
            return Ok(());
        }
        let gone = maintainer.state().clone().take(&selection);
        turn.expired_base_backups += gone.base_backups.len() as u64;
        turn.expired_bytes += gone.bytes();
        let forgotten = expired.forgotten;
        let expired = Expired {
            selection,
            forgotten,
        };
        maintainer.expire(expired).await?;
        maintainer.date_marks().await?;
        // A promise may have been made between the look and the mark, and what it needs is not to be missed for a day.
        let again = self.look(maintainer.reader(), present).await?;
        (self.keep(maintainer, &again, grace, present, turn)).await
    }

    /// Brings back what is promised after all. Of marks that are as old as the grace period the rest never comes back.
    async fn keep(
        &self,
        maintainer: &mut Maintainer,
        expired: &Expiry,
        grace: Duration,
        present: Timestamp,
        turn: &mut Turn,
    ) -> Result<()> {
        let marks: Vec<Mark> = maintainer.reader().marks().to_vec();
        for mark in marks.iter().filter(|mark| !mark.checked) {
            let mut kept = outside(&mark.selected, &expired.selection);
            if !self.lineage.keeps(Rule::SecondCheck) {
                kept = Selection::default();
            }
            turn.kept_after_all += mark.selected.clone().take(&kept).bytes();
            if self.is_old(mark, grace, present) {
                maintainer.checked(mark.number, kept).await?;
            } else if !kept.is_empty() {
                maintainer.keep(mark.number, kept).await?;
            }
        }
        Ok(())
    }

    /// Whether the rest of a mark can be deleted, once the promises were looked at again.
    fn is_old(&self, mark: &Mark, grace: Duration, present: Timestamp) -> bool {
        let aged = |dated| present.since(dated) >= grace || !self.lineage.keeps(Rule::Grace);
        !mark.checked && mark.dated.is_some_and(aged)
    }

    /// Deletes what is left in the first checked mark that can be; false where there is none.
    ///
    /// # Errors
    /// Refused where the right to delete is missing: nothing is lost by that but room.
    pub(super) async fn delete_one(
        &mut self,
        maintainer: &mut Maintainer,
        turn: &mut Turn,
    ) -> Result<bool> {
        // What is left is read after it is settled what goes.
        maintainer.refresh().await?;
        let marks: Vec<Mark> = maintainer.reader().marks().to_vec();
        for mark in marks.iter().filter(|mark| mark.checked) {
            if !self.log_deleted.contains(&mark.number) {
                let lowest = maintainer.removed_below().await?;
                let objects = log_objects(self.lineage.id(), &mark.selected, lowest);
                turn.deleted += objects.len() as u64;
                let log = mark.selected.pieces.iter().map(|it| it.stored_bytes);
                turn.deleted_bytes += log.sum::<u64>();
                maintainer.delete([objects, Vec::new()]).await?;
                self.log_deleted.insert(mark.number);
            }
            let pages = match self.pages(maintainer.reader(), mark).await {
                Ok(pages) => pages,
                // What can't be read may refer to anything.
                Err(error) if is_damage(&error) => {
                    tracing::warn!(%error, "no pages are deleted: a manifest that tells which are needed can't be read");
                    continue;
                }
                Err(error) => return Err(error),
            };
            // A manifest tells which packs go, so it stays as long as one of them.
            let done = pages.held_elsewhere == 0;
            let last = if done { pages.manifests } else { Vec::new() };
            turn.deleted += (pages.packs.len() + last.len()) as u64;
            maintainer.delete([pages.packs, last]).await?;
            if done {
                turn.deleted_bytes += pages.bytes;
                maintainer.deleted(mark.number).await?;
                self.log_deleted.remove(&mark.number);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The objects of pages that go with a checked mark.
    async fn pages(&mut self, reader: &LedgerReader, mark: &Mark) -> Result<Released> {
        let gone = &mark.selected.base_backups;
        if gone.is_empty() {
            return Ok(Released::default());
        }
        let own = self.lineage.id();
        let mut left = bases_of(own, reader);
        left.retain(|(_, entry), _| !gone.iter().any(|base| base.entry == *entry));
        let mut fetchers = BTreeMap::from([(own, Fetcher::of(&self.lineage))]);
        for lineage in self.repository.descendants(own).await? {
            left.extend(bases_of(lineage.id(), &lineage.reader().await?));
            fetchers.insert(lineage.id(), Fetcher::of(&lineage));
        }
        // Of these, pages and then manifests may have been deleted by whoever was interrupted before saying so; and none
        // of them comes back, so what one of them that is damaged refers to is not kept for it.
        let doomed = reader.marks().iter().filter(|mark| mark.checked);
        let doomed: BTreeSet<u64> = doomed
            .flat_map(|mark| mark.selected.base_backups.iter().map(|it| it.entry))
            .collect();
        let mut all = left.clone();
        all.extend((gone.iter()).map(|base| ((own, base.entry), base.manifest)));
        all.retain(|(lineage, entry), _| !self.packs.knows(*lineage, *entry));
        let all: Vec<((LineageId, u64), ObjectRef)> = all.into_iter().collect();
        for some in all.chunks(CONCURRENCY) {
            let mut loading = Vec::new();
            for ((lineage, _), object) in some {
                if let Some(fetcher) = fetchers.get(lineage) {
                    loading.push(Manifest::load_any(fetcher, object));
                }
            }
            let loaded = futures::future::join_all(loading).await;
            for (((lineage, entry), _), manifest) in some.iter().zip(loaded) {
                match manifest {
                    Ok(manifest) => self.packs.add(*lineage, *entry, &manifest),
                    Err(error)
                        if *lineage == own && doomed.contains(entry) && is_damage(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let entries: BTreeSet<u64> = gone.iter().map(|base| base.entry).collect();
        let mut left: BTreeSet<(LineageId, u64)> = left.into_keys().collect();
        if !self.lineage.keeps(Rule::SharedPages) {
            left.clear();
        }
        let mut released = self.packs.released(own, &entries, &left);
        let unread = gone
            .iter()
            .filter(|base| !self.packs.knows(own, base.entry));
        let unread = unread.map(|base| base.manifest.object);
        released.manifests.extend(
            unread
                .filter(|object| !self.packs.is_used(*object, &left))
                .map(|object| layout::manifest(own, object)),
        );
        Ok(released)
    }
}

/// Whether an object is lost or not what was written; not whether a key for it is missing.
fn is_damage(error: &Error) -> bool {
    error.kind() == ErrorKind::Damaged
}

/// What is in `selected` and not in `selection`.
fn outside(selected: &Selected, selection: &Selection) -> Selection {
    Selection::of(selected, |list, entry| !selection.holds(list, entry))
}

/// What of `selection` is there in `state`.
fn among(state: &LineageState, selection: &Selection) -> Selection {
    Selection::of(state, |list, entry| selection.holds(list, entry))
}

/// All base backups that a lineage names, also those that are hidden and not deleted yet, and the partial one.
fn bases_of(lineage: LineageId, reader: &LedgerReader) -> Bases {
    let state = reader.state();
    let hidden = (reader.marks().iter()).flat_map(|mark| &mark.selected.base_backups);
    let bases = (state.base_backups.iter().chain(hidden)).map(|base| (base.entry, base.manifest));
    (bases.chain(state.partial.iter().map(|it| (it.entry, it.manifest))))
        .map(|(entry, manifest)| ((lineage, entry), manifest))
        .collect()
}

/// The objects of log and names that can be deleted: of ledger entries those below `lowest`. The others are links of the
/// chain yet, and go when the floor has risen above them, since nothing names them.
fn log_objects(lineage: LineageId, selected: &Selected, lowest: u64) -> Vec<String> {
    let pieces = (selected.pieces.iter())
        .filter(|piece| piece.merged.is_some() || piece.entry < lowest)
        .map(|piece| piece.object_name(lineage));
    let names = (selected.names.iter()).filter(|names| names.entry < lowest);
    pieces
        .chain(names.map(|names| layout::entry(lineage, names.entry)))
        .collect()
}
