//! Reading and sealing the entries of one log.

use std::sync::Arc;

use borealis_base::{LineageId, ObjectId};
use borealis_keys::DataKeys;
use bytes::Bytes;
use prost::Message;

use super::item::{Chain, EntryHead, Item, decode_items, encode_items};
use crate::object::{
    Compression, FrameKind, ObjectBuilder, ObjectHead, ObjectKind, PreparedFrame, SealedObject,
    fetch_frames, fetch_head_with,
};
use crate::store::Store;
use crate::{Error, Result, layout};

/// Frame 0 of every entry: its body.
pub(crate) const FRAME_BODY: FrameKind = 1;
/// The last frame of every 64th entry: the entries before it.
pub(crate) const FRAME_RECAP: FrameKind = 2;
/// Longest recap; a longer one is left out, and readers read its entries one by one.
const RECAP_BYTES_MAX: usize = 4 << 20;
const LEVEL: Compression = Compression::Zstd(1);

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrackName {
    Catalog,
    Ledger(LineageId),
    Maintenance(LineageId),
    Pins(LineageId),
    Drills(LineageId),
    Scrubs(LineageId),
}

impl TrackName {
    pub(crate) fn entry(self, n: u64) -> String {
        match self {
            Self::Catalog => layout::catalog(n),
            Self::Ledger(lineage) => layout::entry(lineage, n),
            Self::Maintenance(lineage) => layout::maintenance_entry(lineage, n),
            Self::Pins(lineage) => layout::pin(lineage, n),
            Self::Drills(lineage) => layout::drill(lineage, n),
            Self::Scrubs(lineage) => layout::scrub(lineage, n),
        }
    }

    const fn kind(self) -> ObjectKind {
        match self {
            Self::Catalog => ObjectKind::CatalogEntry,
            Self::Ledger(_) => ObjectKind::LedgerEntry,
            Self::Maintenance(_) => ObjectKind::MaintenanceEntry,
            Self::Pins(_) => ObjectKind::Pin,
            Self::Drills(_) => ObjectKind::Drill,
            Self::Scrubs(_) => ObjectKind::Scrub,
        }
    }
}

/// One log in a store.
#[derive(Clone)]
pub(crate) struct Track {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: Arc<DataKeys>,
    pub(crate) owner: [u8; 16],
    pub(crate) name: TrackName,
    pub(crate) entries_per_recap: u64,
}

/// An entry that was read: its item, and what it takes to read more of it.
pub(crate) struct Entry {
    pub(crate) item: Item,
    pub(crate) head: ObjectHead,
    pub(crate) known: Bytes,
}

/// A new entry, sealed.
#[derive(Debug, Clone)]
pub(crate) struct NewEntry {
    pub(crate) item: Item,
    pub(crate) object: SealedObject,
}

/// What could be read of a log.
pub(crate) struct Collected {
    pub(crate) items: Vec<Item>,
    /// Whether the next entry does not exist.
    pub(crate) at_end: bool,
    /// An entry that does not follow the one before it. It is damage only if the floor has not
    /// moved; see `specs/ledger`.
    pub(crate) misfit: Option<Error>,
}

impl Track {
    /// Reads entry `n`; `None` where it does not exist.
    pub(crate) async fn read(&self, n: u64) -> Result<Option<Entry>> {
        let name = self.name.entry(n);
        let (store, kind) = (self.store.as_ref(), self.name.kind());
        let (head, known) = match fetch_head_with(store, &self.keys, &name, kind).await {
            Err(error) if error.is_absent() => return Ok(None),
            other => other?,
        };
        let stored = match fetch_frames(self.store.as_ref(), &head, &known, 0..1).await {
            // It was removed between the two gets.
            Err(error) if error.is_absent() => return Ok(None),
            other => other?,
        };
        let body = head.open_frame(&self.keys, 0, &stored)?;
        let entry_head = EntryHead::decode(head.clear())
            .ok_or_else(|| head.damaged("its entry head is malformed"))?;
        if entry_head.number != n || entry_head.owner != self.owner {
            return Err(head.damaged(format!(
                "it holds entry {} of {}",
                entry_head.number,
                ObjectId(entry_head.owner)
            )));
        }
        let item = Item {
            head: entry_head,
            digest: head.digest(),
            object_len: head.object_len(),
            body,
        };
        Ok(Some(Entry { item, head, known }))
    }

    /// The entries that `entry` repeats; `None` where it repeats none.
    async fn recap(&self, entry: &Entry) -> Result<Option<Vec<Item>>> {
        let Some(frame) = entry.head.frames_of(FRAME_RECAP).last() else {
            return Ok(None);
        };
        let range = frame..frame + 1;
        let stored = fetch_frames(self.store.as_ref(), &entry.head, &entry.known, range).await?;
        let plain = entry.head.open_frame(&self.keys, frame, &stored)?;
        decode_items(plain)
            .map(Some)
            .ok_or_else(|| entry.head.damaged("its recap is malformed"))
    }

    /// Reads on from `chain` until the log ends or entry `stop_at` has been read.
    pub(crate) async fn collect(&self, chain: &mut Chain, stop_at: u64) -> Result<Collected> {
        let mut got = Collected {
            items: Vec::new(),
            at_end: false,
            misfit: None,
        };
        // The entry that would recap what comes next, known not to help.
        let mut no_recap_at = 0;
        while chain.head < stop_at {
            let group_end = (chain.head / self.entries_per_recap + 1) * self.entries_per_recap;
            if group_end > chain.head + 1 && group_end != no_recap_at {
                if let Some(mut items) = self.read_group(group_end).await? {
                    items.retain(|item| item.head.number > chain.head);
                    if !self.take(chain, items, &mut got) {
                        return Ok(got);
                    }
                    continue;
                }
                no_recap_at = group_end;
            }
            let Some(entry) = self.read(chain.head + 1).await? else {
                got.at_end = true;
                return Ok(got);
            };
            if !self.take(chain, vec![entry.item], &mut got) {
                return Ok(got);
            }
        }
        Ok(got)
    }

    /// Entry `n` with the entries it repeats, in order.
    async fn read_group(&self, n: u64) -> Result<Option<Vec<Item>>> {
        let Some(entry) = self.read(n).await? else {
            return Ok(None);
        };
        let Some(mut items) = self.recap(&entry).await? else {
            return Ok(None);
        };
        items.push(entry.item);
        Ok(Some(items))
    }

    /// Moves `items` into `got` as far as they follow; false where one does not.
    pub(crate) fn take(&self, chain: &mut Chain, items: Vec<Item>, got: &mut Collected) -> bool {
        for item in items {
            if let Err(error) = chain.accept(&self.name.entry(chain.head + 1), &item) {
                got.misfit = Some(error);
                return false;
            }
            got.items.push(item);
        }
        true
    }

    /// Looks for entries beyond the first missing one, which would mean that an entry in the middle
    /// was removed: taken for the end, it would hide everything after it.
    pub(crate) async fn check_end(&self, head: u64) -> Result<()> {
        let group = self.entries_per_recap;
        let beyond = [
            head + 2,
            (head / group + 1) * group + 1,
            (head / group + 2) * group,
        ];
        for n in beyond {
            if n <= head + 1 || self.store.stat(&self.name.entry(n)).await?.is_none() {
                continue;
            }
            // The writer may have come this far since the end was seen.
            let missing = self.name.entry(head + 1);
            if self.store.stat(&missing).await?.is_none() {
                return Err(Error::Missing {
                    object: missing,
                    needed_by: self.name.entry(n),
                });
            }
        }
        Ok(())
    }

    /// Seals an entry. `before` are the entries before it, as many as are at hand.
    pub(crate) fn seal(
        &self,
        object: ObjectId,
        head: EntryHead,
        body: Bytes,
        frames: Vec<PreparedFrame>,
        before: &[Item],
    ) -> NewEntry {
        let mut builder = ObjectBuilder::new(self.name.kind(), object, Some(self.keys.current()));
        builder.clear(head.to_message().encode_to_vec());
        builder.push_frame(FRAME_BODY, LEVEL, &body);
        for frame in frames {
            builder.push(frame);
        }
        let repeated = self.entries_per_recap - 1;
        if head.number.is_multiple_of(self.entries_per_recap) && before.len() as u64 >= repeated {
            let recap = encode_items(&before[before.len() - repeated as usize..]);
            if recap.len() <= RECAP_BYTES_MAX {
                builder.push_frame(FRAME_RECAP, LEVEL, &recap);
            }
        }
        let object = builder.seal();
        let item = Item {
            head,
            digest: object.head_digest,
            object_len: object.bytes.len() as u64,
            body,
        };
        NewEntry { item, object }
    }
}
