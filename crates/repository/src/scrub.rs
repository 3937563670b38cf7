//! Scrub: reads everything that a lineage needs, slowly and for ever, and authenticates each frame.
//!
//! ```text
//! what is live, in one fixed order ── after the cursor ──> read, twice before it counts as damage
//!     ── log of scrubs ──> damage (withdraws what rests on it), progress, sound again
//! ```
//!
//! What survives a crash is the log of scrubs. Progress is recorded each [`PROGRESS_INTERVAL`], so that a
//! scrub that was killed reads at most that much again. A store that gives no answer ends the run with an error:
//! not having looked is no finding.

mod rows;
mod uses;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use borealis_base::{ErrorKind, ObjectId, Progress, Unit};

use crate::catalog::Lineage;
use crate::layout;
use crate::ledger::LedgerReader;
use crate::object::{
    END_MAGIC, ObjectKind, TRAILER_BYTES, fetch_frames, fetch_head_with, fetch_with,
};
use crate::pages::fetch::{Fetcher, check_identity, object_name};
use crate::pages::pack::blocking;
use crate::plan::{Damage, Fault, LineageState, ObjectRef, Part};
use crate::scrubs::{Cursor, Pass, Scrubs};
use crate::verify::{base_backup, verify_manifest_object, verify_piece};
use crate::{Error, Result};
use rows::{numbered_name, read_entry};
use uses::{load, users};

pub(crate) use rows::wrong_in_rows;
pub use uses::{InFrames, pages_in, partial_pages_in};

/// How often progress is recorded.
pub const PROGRESS_INTERVAL: Duration = Duration::from_hours(1);
/// Stored bytes of a pack that are read at once; a single longer frame is read alone.
const SPAN_BYTES_MAX: u64 = 4 << 20;

/// Sections of a pass, in their order.
const SECTION_SMALL: u32 = 1;
const SECTION_LEDGER: u32 = 2;
const SECTION_MANIFESTS: u32 = 3;
const SECTION_PACKS: u32 = 4;

/// Whoever has a scrub run: says how fast, and hears at once what was found.
#[async_trait]
pub trait Host: Send + Sync {
    /// A run begins. `left` bytes are still to be read of the `total` of this pass.
    async fn begins(&self, left: u64, total: u64);

    /// `bytes` were read. Returns when the next may be read; false ends the run, its progress recorded.
    async fn has_read(&self, bytes: u64) -> bool;

    /// Something looks damaged, and is looked at once more when this returns.
    async fn before_second_look(&self);

    /// Damage was recorded. `stored` is what the ledger says, whatever scrubs have found.
    async fn found(&self, damage: &Damage, stored: &LineageState);

    /// An object that was damaged is sound again, or no longer needed.
    async fn sound(&self, object: &str);
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Whether the pass is complete.
    pub complete: bool,
    /// Objects read in this run.
    pub objects: u64,
    /// Bytes read in this run.
    pub bytes: u64,
    /// Damage that was found in this run.
    pub found: Vec<Damage>,
    /// All damage that stands at its end.
    pub standing: Vec<Damage>,
    /// Objects that are sound again.
    pub sound: Vec<String>,
    /// Why what was read and found could not be recorded: with the right to read alone, everybody else goes on
    /// with what they knew.
    pub not_recorded: Option<String>,
}

/// Something to read.
struct Item {
    cursor: Cursor,
    bytes: u64,
    what: Thing,
}

enum Thing {
    Numbered(ObjectKind, u64),
    Epoch(u64),
    Checkpoint,
    Entry(u64),
    /// By its place among the log pieces.
    Piece(usize),
    Manifest(ObjectRef),
    Pack(ObjectRef, u32),
}

/// What is wrong with an object.
struct Bad {
    fault: Fault,
    what: String,
    /// Frames of a pack; none means all of it.
    frames: Vec<u32>,
    /// Whether a restore reads what is wrong.
    needed: bool,
}

/// Turns damage into a finding; other errors end the run.
fn bad(error: Error) -> Result<Bad> {
    let fault = match &error {
        Error::Missing { .. } => Fault::Missing,
        other if other.is_absent() => Fault::Missing,
        other if other.kind() == ErrorKind::Damaged => Fault::Damaged,
        _ => return Err(error),
    };
    Ok(Bad {
        fault,
        what: error.to_string(),
        frames: Vec::new(),
        needed: true,
    })
}

/// Goes on with the pass that is under way, or begins one, and looks again at what is damaged.
///
/// # Errors
/// Damaged where the ledger, the pins or the logs of drills and scrubs themselves can't be read; what the store
/// answers where it gives none.
pub async fn scrub(lineage: &Lineage, host: &dyn Host, progress: &dyn Progress) -> Result<Outcome> {
    let mut run = Run::begin(lineage, host).await?;
    run.look_again().await?;
    run.pass(progress).await?;
    let mut standing = run.scrubs.damage().to_vec();
    standing.retain(|damage| !run.outcome.sound.contains(&damage.object));
    let unrecorded: Vec<Damage> = (run.outcome.found.iter())
        .filter(|damage| standing.iter().all(|other| other.object != damage.object))
        .cloned()
        .collect();
    standing.extend(unrecorded);
    run.outcome.standing = standing;
    Ok(run.outcome)
}

/// What becomes of a record that the store refuses: it is said, and the reading goes on.
fn recorded(result: Result<()>, not_recorded: &mut Option<String>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::Refused => {
            not_recorded.get_or_insert(error.to_string());
            Ok(())
        }
        other => other,
    }
}

struct Run<'a> {
    lineage: &'a Lineage,
    host: &'a dyn Host,
    fetcher: Arc<Fetcher>,
    reader: LedgerReader,
    state: LineageState,
    scrubs: Scrubs,
    items: BTreeMap<Cursor, Item>,
    /// Why the log of drills can't be read.
    unreadable: Option<Error>,
    /// What base backups referred to when it was last asked, and which base backups these were.
    live: tokio::sync::Mutex<Option<(Vec<u64>, BTreeSet<ObjectId>)>>,
    outcome: Outcome,
}

/// Manifests and packs that base backups refer to, packs with their frames.
#[derive(Default)]
struct PageObjects {
    manifests: BTreeMap<ObjectId, ObjectRef>,
    packs: BTreeMap<ObjectId, (ObjectRef, u32)>,
}

impl PageObjects {
    async fn of(fetcher: &Fetcher, state: &LineageState) -> Result<Self> {
        let mut all = Self::default();
        let whole = state.base_backups.iter().map(|base| (base.manifest, false));
        let partial = state.partial.iter().map(|it| (it.manifest, true));
        for (object, partial) in whole.chain(partial) {
            all.manifests.insert(object.object, object);
            let loaded = match load(fetcher, &object, partial).await {
                Ok(loaded) => loaded,
                // The manifest itself is read in the pass, and what it alone names can't be told.
                Err(error) if is_damage(&error) => continue,
                Err(error) => return Err(error),
            };
            let homes = loaded.parts().iter().map(|part| part.handle.object);
            all.manifests.extend(homes.map(|home| (home.object, home)));
            let table = loaded.packs().values();
            (all.packs).extend(table.map(|pack| (pack.object.object, (pack.object, pack.frames))));
        }
        Ok(all)
    }
}

impl<'a> Run<'a> {
    async fn begin(lineage: &'a Lineage, host: &'a dyn Host) -> Result<Self> {
        let scrubs = lineage.scrubs().await?;
        let reader = lineage.reader().await?;
        let state = lineage.load_stored_state().await?;
        let fetcher = Arc::new(Fetcher::of(lineage));
        let mut run = Self {
            lineage,
            host,
            fetcher,
            reader,
            state,
            scrubs,
            items: BTreeMap::new(),
            unreadable: None,
            live: tokio::sync::Mutex::default(),
            outcome: Outcome::default(),
        };
        run.list().await?;
        Ok(run)
    }

    fn add(&mut self, section: u32, name: String, bytes: u64, what: Thing) {
        let cursor = Cursor { section, name };
        let item = Item {
            cursor: cursor.clone(),
            bytes,
            what,
        };
        self.items.insert(cursor, item);
    }

    /// Lists what is live. No listing of the store: everything is named.
    async fn list(&mut self) -> Result<()> {
        let id = self.lineage.id();
        let drills = match self.lineage.drills().await {
            Ok(drills) => drills.head(),
            // No restore needs them; how many there are can't be told.
            Err(error) if is_damage(&error) => {
                self.unreadable = Some(error);
                0
            }
            Err(error) => return Err(error),
        };
        let logs = [
            (ObjectKind::Pin, self.lineage.pins().await?.head()),
            (ObjectKind::Drill, drills),
            (ObjectKind::Scrub, self.scrubs.head()),
        ];
        for (kind, head) in logs {
            for number in 1..=head {
                let name = numbered_name(self.lineage, kind, number);
                self.add(SECTION_SMALL, name, 0, Thing::Numbered(kind, number));
            }
        }
        let epochs: Vec<u64> = self.reader.epochs().iter().map(|e| e.epoch).collect();
        for epoch in epochs {
            self.add(
                SECTION_SMALL,
                layout::epoch(id, epoch),
                0,
                Thing::Epoch(epoch),
            );
        }
        let lowest = self.reader.lowest();
        for number in 1..=self.state.head / layout::ENTRIES_PER_CHECKPOINT {
            if number * layout::ENTRIES_PER_CHECKPOINT >= lowest {
                let name = layout::checkpoint(id, number);
                self.add(SECTION_SMALL, name, 0, Thing::Checkpoint);
            }
        }
        let mut pieces = BTreeSet::new();
        for (place, piece) in self.state.pieces.clone().iter().enumerate() {
            // The entries of merged log are part of the chain like any other.
            if piece.merged.is_none() {
                pieces.insert(piece.entry);
            }
            // Of a piece whose range was withdrawn nothing is promised any more.
            if !self.state.is_withdrawn(piece) {
                let name = piece.object_name(id);
                self.add(
                    SECTION_LEDGER,
                    name,
                    piece.stored_bytes,
                    Thing::Piece(place),
                );
            }
        }
        for number in (lowest..=self.state.head).filter(|number| !pieces.contains(number)) {
            let name = layout::entry(id, number);
            self.add(SECTION_LEDGER, name, 0, Thing::Entry(number));
        }
        self.list_pages().await
    }

    async fn list_pages(&mut self) -> Result<()> {
        let PageObjects { manifests, packs } = PageObjects::of(&self.fetcher, &self.state).await?;
        for object in manifests.into_values() {
            let name = object_name(ObjectKind::Manifest, &object);
            self.add(SECTION_MANIFESTS, name, object.len, Thing::Manifest(object));
        }
        for (object, frames) in packs.into_values() {
            let name = object_name(ObjectKind::Pack, &object);
            self.add(SECTION_PACKS, name, object.len, Thing::Pack(object, frames));
        }
        Ok(())
    }

    /// Looks again at what stands as damaged: it may have been put back, it may not be needed any more, and
    /// base backups may have come to need it.
    async fn look_again(&mut self) -> Result<()> {
        for damage in self.scrubs.damage().to_vec() {
            let item = (self.items.values()).find(|item| item.cursor.name == damage.object);
            let found = match (item, &self.unreadable) {
                (Some(item), _) => self.look(item).await?,
                (None, Some(error)) if object_of(error).as_ref() == Some(&damage.object) => {
                    continue;
                }
                (None, _) => None,
            };
            match found {
                None => {
                    let now = self.lineage.clock().now();
                    let done = self.scrubs.record_sound(&damage.object, now).await;
                    recorded(done, &mut self.outcome.not_recorded)?;
                    self.host.sound(&damage.object).await;
                    self.outcome.sound.push(damage.object);
                }
                Some(bad) => {
                    let now = self.damage(&damage.object, &bad).await?;
                    let same =
                        (&now.part, &now.base_backups) == (&damage.part, &damage.base_backups);
                    if !same {
                        let found_at = damage.found_at;
                        self.note(Damage { found_at, ..now }).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads everything behind the cursor.
    async fn pass(&mut self, progress: &dyn Progress) -> Result<()> {
        let clock = Arc::clone(self.lineage.clock());
        let mut pass = self.scrubs.current().cloned().unwrap_or_else(|| Pass {
            began_at: clock.now(),
            at: clock.now(),
            head: self.state.head,
            cursor: Cursor::default(),
            objects: 0,
            bytes: 0,
        });
        let known: BTreeSet<String> = (self.scrubs.damage().iter())
            .map(|damage| damage.object.clone())
            .collect();
        if let Some(error) = self.unreadable.take()
            && let Some(object) = object_of(&error)
            && !known.contains(&object)
        {
            let damage = self.damage(&object, &bad(error)?).await?;
            self.note(damage).await?;
        }
        let items = std::mem::take(&mut self.items);
        let total = items.values().map(|item| item.bytes).sum();
        let left = (items.values())
            .filter(|item| item.cursor > pass.cursor)
            .map(|item| item.bytes)
            .sum();
        progress.phase("scrub", Unit::Bytes, Some(left));
        self.host.begins(left, total).await;
        let mut recorded_at = clock.elapsed();
        for (cursor, item) in items {
            if cursor <= pass.cursor {
                continue;
            }
            if !known.contains(&cursor.name)
                && let Some(bad) = self.look(&item).await?
            {
                let damage = self.damage(&cursor.name, &bad).await?;
                self.note(damage).await?;
            }
            progress.advance(item.bytes);
            pass.cursor = cursor;
            pass.objects += 1;
            pass.bytes += item.bytes;
            self.outcome.objects += 1;
            self.outcome.bytes += item.bytes;
            // Packs have waited while they were read.
            let waits = !matches!(item.what, Thing::Pack(..));
            let goes_on = self.host.has_read(if waits { item.bytes } else { 0 }).await;
            let due = clock.elapsed().saturating_sub(recorded_at) >= PROGRESS_INTERVAL;
            if due || !goes_on {
                pass.at = clock.now();
                let done = self.scrubs.record_progress(&pass, false).await;
                recorded(done, &mut self.outcome.not_recorded)?;
                recorded_at = clock.elapsed();
            }
            if !goes_on {
                return Ok(());
            }
        }
        pass.at = clock.now();
        let done = self.scrubs.record_progress(&pass, true).await;
        recorded(done, &mut self.outcome.not_recorded)?;
        self.outcome.complete = true;
        Ok(())
    }

    async fn note(&mut self, damage: Damage) -> Result<()> {
        let done = self.scrubs.record_damage(&damage).await;
        recorded(done, &mut self.outcome.not_recorded)?;
        self.host.found(&damage, &self.state).await;
        self.outcome.found.push(damage);
        Ok(())
    }

    /// What damage to `object` means for base backups.
    async fn damage(&self, object: &str, bad: &Bad) -> Result<Damage> {
        let last = object.rsplit('/').next().unwrap_or_default();
        let id: Option<ObjectId> = last.parse().ok();
        let piece = (self.state.pieces.iter())
            .find(|piece| piece.object_name(self.state.lineage) == object);
        let part = match (id, piece) {
            _ if !bad.needed => Part::Other,
            (Some(id), _) if object.contains("/manifests/") => Part::Manifest(id),
            (Some(id), _) if object.contains("/packs/") => Part::Pack(id, bad.frames.clone()),
            (_, Some(piece)) => Part::LogPiece(piece.entry),
            _ => Part::Other,
        };
        Ok(Damage {
            found_at: self.lineage.clock().now(),
            object: object.to_owned(),
            fault: bad.fault,
            what: bad.what.clone(),
            base_backups: users(&self.fetcher, &self.state, &part).await?,
            part,
            looked_through: self.state.head,
        })
    }

    /// Reads an item, once more where it looks damaged: the fault may be on the way.
    async fn look(&self, item: &Item) -> Result<Option<Bad>> {
        if self.look_once(item).await?.is_none() {
            return Ok(None);
        }
        self.host.before_second_look().await;
        let found = self.look_once(item).await?;
        if found.is_some() && !self.is_live(item).await? {
            return Ok(None);
        }
        Ok(found)
    }

    /// Whether a base backup that has not expired refers to an object.
    async fn is_used(&self, object: ObjectId) -> Result<bool> {
        let now = self.lineage.load_stored_state().await?;
        let bases = now.base_backups.iter().map(|base| base.entry);
        let bases: Vec<u64> = bases.chain(now.partial.iter().map(|it| it.entry)).collect();
        let mut live = self.live.lock().await;
        if live.as_ref().is_none_or(|(of, _)| *of != bases) {
            let PageObjects { manifests, packs } = PageObjects::of(&self.fetcher, &now).await?;
            let objects = manifests.into_keys().chain(packs.into_keys()).collect();
            *live = Some((bases, objects));
        }
        Ok(live
            .as_ref()
            .is_some_and(|(_, objects)| objects.contains(&object)))
    }

    /// Whether an item is needed still: since it was listed, its log may have been merged, the floor have risen
    /// above it, it may have expired, and maintenance have removed it.
    async fn is_live(&self, item: &Item) -> Result<bool> {
        let live = async {
            Ok(match &item.what {
                Thing::Entry(number) => *number >= self.lineage.reader().await?.lowest(),
                Thing::Piece(_) => {
                    let now = self.lineage.load_stored_state().await?;
                    (now.pieces.iter())
                        .any(|piece| piece.object_name(now.lineage) == item.cursor.name)
                }
                Thing::Manifest(object) | Thing::Pack(object, _) => {
                    self.is_used(object.object).await?
                }
                _ => true,
            })
        };
        match live.await {
            // The damage itself may be in the way.
            Err(error) if is_damage(&error) => Ok(true),
            other => other,
        }
    }

    async fn look_once(&self, item: &Item) -> Result<Option<Bad>> {
        let read = match &item.what {
            Thing::Numbered(kind, number) => {
                self.look_at_entry(&item.cursor.name, *kind, *number).await
            }
            Thing::Entry(number) => {
                self.look_at_entry(&item.cursor.name, ObjectKind::LedgerEntry, *number)
                    .await
            }
            Thing::Epoch(epoch) => self.reader.check_epoch(*epoch).await,
            Thing::Checkpoint => self.look_at_checkpoint(&item.cursor.name).await,
            Thing::Piece(place) => match self.state.pieces.get(*place) {
                Some(piece) => verify_piece(&self.fetcher, &self.state, piece, true).await,
                None => Ok(()),
            },
            Thing::Manifest(object) => self.look_at_manifest(object).await,
            Thing::Pack(object, frames) => return self.look_at_pack(object, *frames).await,
        };
        match read {
            Ok(()) => Ok(None),
            Err(error) => bad(error).map(Some),
        }
    }

    async fn look_at_entry(&self, name: &str, kind: ObjectKind, number: u64) -> Result<()> {
        read_entry(self.lineage, name, kind, number).await
    }

    /// A checkpoint repeats entries, and one that was never written is made up for by them.
    async fn look_at_checkpoint(&self, name: &str) -> Result<()> {
        let (store, keys) = (&**self.lineage.store(), self.lineage.keys());
        match fetch_with(store, keys, name, ObjectKind::Checkpoint).await {
            Err(error) if error.is_absent() => Ok(()),
            other => other?.authenticate(keys),
        }
    }

    async fn look_at_manifest(&self, object: &ObjectRef) -> Result<()> {
        verify_manifest_object(&self.fetcher, object, "the ledger", true).await?;
        let named = (self.state.base_backups.iter()).find(|base| base.manifest == *object);
        if let Some(base) = named {
            let (mut packs, mut seen) = (BTreeMap::new(), BTreeSet::new());
            // Objects that it shares are items of their own.
            match base_backup(&self.fetcher, base, &mut packs, &mut seen, false).await {
                Err(Error::Damaged {
                    object: other,
                    what,
                }) if other == object_name(ObjectKind::Manifest, object) => {
                    return Err(Error::Damaged {
                        object: other,
                        what,
                    });
                }
                Err(error) if !is_damage(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads a pack span by span, so that memory is bounded and damage is told by frame.
    async fn look_at_pack(&self, object: &ObjectRef, frames: u32) -> Result<Option<Bad>> {
        let store = &**self.lineage.store();
        let name = object_name(ObjectKind::Pack, object);
        let opened = async {
            let keys = self.lineage.keys();
            let (head, known) = fetch_head_with(store, keys, &name, ObjectKind::Pack).await?;
            check_identity(&head, object)?;
            if head.frames().len() != frames as usize {
                let told = format!("it has {} of {frames} frames", head.frames().len());
                return Err(head.damaged(told));
            }
            Ok((Arc::new(head), known))
        };
        let (head, known) = match opened.await {
            Ok(opened) => opened,
            Err(error) => return bad(error).map(Some),
        };
        let mut faults: Vec<u32> = Vec::new();
        let mut first_fault = None;
        let mut at = 0;
        let head_end = head.frame_range(0..1)?.start as usize;
        let mut checksum = crc32c::crc32c(known.get(..head_end).unwrap_or_default());
        let mut whole = true;
        while at < frames {
            let mut end = at + 1;
            while end < frames && span(&head, at, end + 1)? <= SPAN_BYTES_MAX {
                end += 1;
            }
            match fetch_frames(store, &head, &known, at..end).await {
                Ok(stored) => {
                    checksum = crc32c::crc32c_append(checksum, &stored);
                    let (opener, keys) = (Arc::clone(&head), Arc::clone(self.lineage.keys()));
                    let broken =
                        blocking(move || broken_frames(&opener, &keys, at..end, &stored)).await??;
                    for (frame, what) in broken {
                        faults.push(frame);
                        first_fault.get_or_insert(what);
                    }
                }
                Err(error) => {
                    let found = bad(error)?;
                    if found.fault == Fault::Missing {
                        return Ok(Some(found));
                    }
                    faults.extend(at..end);
                    first_fault.get_or_insert(found.what);
                    whole = false;
                }
            }
            self.host.has_read(span(&head, at, end)?).await;
            at = end;
        }
        if let Some(what) = first_fault {
            let more = match faults.len() {
                1 => String::new(),
                count => format!(", the first of {count} damaged frames"),
            };
            return Ok(Some(Bad {
                fault: Fault::Damaged,
                what: format!("{what}{more}"),
                frames: faults,
                needed: true,
            }));
        }
        let end = head.object_len() - TRAILER_BYTES as u64;
        let trailer = store
            .read_range(&name, end..end + TRAILER_BYTES as u64 + 1)
            .await?;
        let sound = trailer.len() == TRAILER_BYTES
            && trailer[..4] == checksum.to_le_bytes()
            && trailer[4..] == END_MAGIC;
        Ok((!sound && whole).then(|| Bad {
            fault: Fault::Damaged,
            what: format!(
                "{name}: its end or checksum is not what was written; its frames are sound"
            ),
            frames: Vec::new(),
            needed: false,
        }))
    }
}

fn is_damage(error: &Error) -> bool {
    error.kind() == ErrorKind::Damaged
}

fn object_of(error: &Error) -> Option<String> {
    match error {
        Error::Damaged { object, .. } | Error::Missing { object, .. } => Some(object.clone()),
        _ => None,
    }
}

fn span(head: &crate::object::ObjectHead, from: u32, to: u32) -> Result<u64> {
    let range = head.frame_range(from..to)?;
    Ok(range.end - range.start)
}

/// The frames that can't be opened, each with what is wrong.
fn broken_frames(
    head: &crate::object::ObjectHead,
    keys: &borealis_keys::DataKeys,
    numbers: std::ops::Range<u32>,
    stored: &bytes::Bytes,
) -> Result<Vec<(u32, String)>> {
    let mut broken = Vec::new();
    let base = head.frame(numbers.start)?.offset;
    for number in numbers {
        let frame = head.frame(number)?;
        let from = (frame.offset - base) as usize;
        let bytes = (stored.get(from..from + frame.stored_len as usize))
            .ok_or_else(|| head.damaged("truncated within a range"))?;
        match head.open_frame(keys, number, bytes) {
            Ok(_) => {}
            Err(error) if is_damage(&error) => broken.push((number, error.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(broken)
}
