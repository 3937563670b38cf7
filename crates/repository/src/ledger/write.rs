//! Writing a ledger.

use borealis_base::{ObjectId, Timestamp, WriteId};
use bytes::Bytes;
use prost::Message;

use super::body::{Closed, EntryBody, Opened};
use super::fold::Half;
use super::holder::Holder;
use super::maintenance::MaintenanceBody;
use super::message::{self, CheckpointMessage};
use super::protocol::{Intent, OnExists, fence_holds, on_exists};
use super::{Context, LedgerReader, RESTARTS_MAX, Role, Rule, maintenance};
use crate::numbered::{EntryHead, FRAME_BODY, FRAME_RECAP, NewEntry, encode_items};
use crate::object::{
    Compression, FrameKind, HeadDigest, ObjectBuilder, ObjectKind, PreparedFrame, SealedObject,
};
use crate::plan::LineageState;
use crate::store::Created;
use crate::{Error, Result, layout};

/// Longest body; what is longer belongs into frames or objects of its own.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of bodies per frame of a checkpoint, about; one body more still fits a frame.
const CHECKPOINT_FRAME_BYTES: usize = 1 << 20;
/// Entries above this are sealed off the executor's threads.
const SEAL_INLINE_BYTES_MAX: u64 = 256 << 10;
/// Entries of older writers that a fence may find in its place; each is one that was in flight.
const ADOPTIONS_MAX: u32 = 64;

/// What a writer opens with.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Who it is.
    pub holder: Holder,
    /// See [`Opened::log_unit`].
    pub log_unit: u64,
    /// Open only if the highest epoch still is this one: the one on which the decision to open was
    /// made. Zero where there was none; `None` opens whatever it is.
    pub expected_epoch: Option<u64>,
}

/// An entry that is durable and that every reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number.
    pub number: u64,
    /// The digest of its head.
    pub head_digest: HeadDigest,
    /// When it was written, by this machine's clock.
    pub recorded_at: Timestamp,
    /// The length of its object.
    pub stored_bytes: u64,
}

/// The one writer of a lineage, as long as no newer epoch is taken.
pub struct LedgerWriter {
    role: Role,
    reader: LedgerReader,
    opening: Opening,
    epoch: u64,
    fenced_by: Option<u64>,
    /// An entry whose create was begun and whose fate is not known. While there is one, no other can
    /// be appended: it may stand at the next number, now or later.
    pending: Option<NewEntry>,
    checkpointed: u64,
    /// What the next entry says in [`EntryHead::read_back`].
    read_back: u64,
}

impl LedgerWriter {
    /// Takes the next epoch, reads the ledger to its head and fences: when this returns, no older
    /// writer's entry can follow what [`Self::state`] tells.
    ///
    /// # Errors
    /// Fenced where a newer writer has opened meanwhile; unreachable where the store gave no answer,
    /// after which the attempt leaves at most an epoch and a fence that nobody owns.
    pub(crate) async fn open(context: Context, opening: Opening) -> Result<Self> {
        Self::open_as(Role::Ledger, context, opening).await
    }

    /// The same of either row of entries.
    pub(super) async fn open_as(role: Role, context: Context, opening: Opening) -> Result<Self> {
        let epoch = context.take_epoch(role, &opening).await?;
        let reader = LedgerReader::load(context).await?;
        let mut writer = Self {
            role,
            reader,
            opening,
            epoch,
            fenced_by: None,
            pending: None,
            checkpointed: 0,
            read_back: 0,
        };
        writer.read_back = writer.state().read_back;
        if writer.context().keeps(Rule::Fence) {
            writer.fence().await?;
        }
        Ok(writer)
    }

    /// What the ledger adds up to, this writer's entries included.
    pub fn state(&self) -> &LineageState {
        self.reader.state()
    }

    /// The ledger as this writer has read it.
    pub fn reader(&self) -> &LedgerReader {
        &self.reader
    }

    /// This writer's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When the last entry was written, by its writer's clock: a writer with nothing to say appends
    /// before this is [`super::SILENCE_MAX`] ago.
    pub fn last_sign(&self) -> Option<Timestamp> {
        self.half().last_recorded_at
    }

    /// Whether the fate of an entry is open; [`Self::resume`] settles it.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Appends an entry and returns when it is committed. `frames` follow the body, as frames 1, 2 and
    /// so on.
    ///
    /// # Errors
    /// Fenced: another writer has taken over, and nothing more can be appended. Unreachable: the entry
    /// may exist; [`Self::resume`] tries it again, and until it succeeds this answers
    /// [`Error::Poisoned`]. Dropping the future has the same effect as that error.
    pub async fn append(
        &mut self,
        body: &EntryBody,
        frames: Vec<PreparedFrame>,
    ) -> Result<Committed> {
        self.append_encoded(message::encode(body), frames).await
    }

    /// Appends an entry to the maintenance of the lineage.
    pub(super) async fn maintain(&mut self, body: &MaintenanceBody) -> Result<Committed> {
        let body = maintenance::encode(body);
        self.append_encoded(body, Vec::new()).await
    }

    async fn append_encoded(
        &mut self,
        body: Bytes,
        frames: Vec<PreparedFrame>,
    ) -> Result<Committed> {
        self.refuse_if_fenced()?;
        if let Some(pending) = &self.pending {
            return Err(Error::Poisoned {
                lineage: self.context().lineage,
                entry: pending.item.head.number,
            });
        }
        self.checkpoint().await?;
        self.prepare(body, frames).await?;
        self.drive().await
    }

    /// Tries a pending entry again; `None` where there is none.
    pub async fn resume(&mut self) -> Result<Option<Committed>> {
        self.refuse_if_fenced()?;
        if self.pending.is_none() {
            return Ok(None);
        }
        self.drive().await.map(Some)
    }

    /// Says that this writer stops, so that the next one need not wait out its silence.
    pub async fn close(mut self) -> Result<()> {
        self.resume().await?;
        let closed = Closed { epoch: self.epoch };
        let body = match self.role {
            Role::Ledger => message::encode(&EntryBody::Closed(closed)),
            Role::Maintenance => maintenance::encode(&MaintenanceBody::Closed(closed)),
        };
        self.append_encoded(body, Vec::new()).await?;
        Ok(())
    }

    /// Notes that each log piece in an entry up to `entry` was read back, or its range withdrawn; the
    /// entries from the next one on say so.
    pub fn note_read_back(&mut self, entry: u64) {
        self.read_back = self.read_back.max(entry);
    }

    /// Up to which entry each log piece was read back, this writer's notes included.
    pub fn read_back(&self) -> u64 {
        self.read_back
    }

    /// Whether a reader of the whole ledger can do without the object of `entry`, since a later one
    /// repeats what it says: the recap of its group or, for an entry that is itself a recap, the
    /// checkpoint.
    pub fn is_repeated(&self, entry: u64) -> bool {
        let (shape, head) = (self.context().shape, self.state().head);
        if entry.is_multiple_of(shape.recap) {
            // A checkpoint is written before the entry after it.
            head > entry.next_multiple_of(shape.checkpoint)
        } else {
            head >= entry.next_multiple_of(shape.recap)
        }
    }

    /// Asks whether a newer writer has opened. An append asks by itself; this is for a writer that
    /// has long had nothing to append.
    pub async fn check_epoch(&mut self) -> Result<()> {
        self.refuse_if_fenced()?;
        self.probe().await
    }

    /// Reads what was appended to the other row since, so that what this writer knows stays small and names
    /// only what is there; where the floor has risen far, all from there on.
    ///
    /// # Errors
    /// Fenced where a newer writer has appended meanwhile.
    pub async fn refresh(&mut self) -> Result<()> {
        self.refuse_if_fenced()?;
        if self.pending.is_some() {
            return Ok(());
        }
        self.reader.refresh().await?;
        let newest = self.half().chain.epoch;
        if newest > self.epoch {
            return Err(self.fenced(newest));
        }
        Ok(())
    }

    /// Takes over what `reader`, once a clone of [`Self::reader`], has read since without holding this
    /// writer up; true where that was possible. What was appended meanwhile is added to it.
    ///
    /// # Errors
    /// Fenced where a newer writer has appended meanwhile.
    pub fn adopt(&mut self, mut reader: LedgerReader) -> Result<bool> {
        self.refuse_if_fenced()?;
        let newest = reader.half(self.role).chain.epoch;
        if newest > self.epoch {
            return Err(self.fenced(newest));
        }
        let head = reader.half(self.role).chain.head;
        for item in self
            .half()
            .block
            .iter()
            .filter(|item| item.head.number > head)
        {
            if reader.fold.apply(self.role, item.clone()).is_err() {
                return Ok(false);
            }
        }
        let same = reader.half(self.role).chain == self.half().chain;
        if same {
            self.reader = reader;
        }
        Ok(same)
    }

    pub(super) fn reader_mut(&mut self) -> &mut LedgerReader {
        &mut self.reader
    }

    pub(super) fn context(&self) -> &Context {
        &self.reader.context
    }

    fn half(&self) -> &Half {
        self.reader.half(self.role)
    }

    fn entry_name(&self, number: u64) -> String {
        self.role.entry(self.context().lineage, number)
    }

    fn refuse_if_fenced(&self) -> Result<()> {
        match self.fenced_by {
            None => Ok(()),
            Some(by) => Err(Error::Fenced {
                lineage: self.context().lineage,
                epoch: self.epoch,
                by,
            }),
        }
    }

    fn fenced(&mut self, by: u64) -> Error {
        self.fenced_by = Some(by);
        Error::Fenced {
            lineage: self.context().lineage,
            epoch: self.epoch,
            by,
        }
    }

    /// Seals the next entry and makes it the pending one.
    async fn prepare(&mut self, body: Bytes, frames: Vec<PreparedFrame>) -> Result<()> {
        let reserved = |kind: FrameKind| kind == FRAME_BODY || kind == FRAME_RECAP;
        if frames.iter().any(|frame| reserved(frame.kind())) {
            return Err(Error::Bug {
                what: "a frame of an entry has a kind that the ledger keeps for itself".to_owned(),
            });
        }
        if body.len() > BODY_BYTES_MAX {
            return Err(Error::Bug {
                what: format!("a ledger entry's body has {} bytes", body.len()),
            });
        }
        let context = self.context();
        let (half, entropy) = (self.half(), context.entropy.as_ref());
        let chain = &half.chain;
        let head = EntryHead {
            owner: context.lineage.0,
            number: chain.head + 1,
            epoch: self.epoch,
            write_id: WriteId::random(entropy),
            previous: chain.digest,
            recorded_at: context.clock.now(),
            read_back: self.read_back,
        };
        let (id, track) = (ObjectId::random(entropy), context.track(self.role));
        let frame_bytes: u64 = frames.iter().map(PreparedFrame::stored_len).sum();
        let recapped = if head.number.is_multiple_of(context.shape.recap) {
            let recent = half.block.len() as u64;
            let from = recent.saturating_sub(context.shape.recap - 1);
            half.block[from as usize..].to_vec()
        } else {
            Vec::new()
        };
        let seal = move || track.seal(id, head, body, frames, &recapped);
        let entry = if frame_bytes > SEAL_INLINE_BYTES_MAX {
            tokio::task::spawn_blocking(seal)
                .await
                .map_err(|error| Error::Bug {
                    what: format!("sealing a ledger entry: {error}"),
                })?
        } else {
            seal()
        };
        self.pending = Some(entry);
        Ok(())
    }

    /// Brings the pending entry to its end.
    async fn drive(&mut self) -> Result<Committed> {
        let entry = self
            .pending
            .clone()
            .expect("the caller has prepared an entry");
        let found = self.create(&entry, false).await?;
        match found {
            None | Some(OnExists::Own) => {}
            Some(OnExists::Fenced { by }) => return Err(self.fenced(by)),
            Some(OnExists::Impossible | OnExists::Adopt | OnExists::ReadAgain) => {
                // Another's entry after this writer's fence: only its own removed place can hold one.
                self.probe().await?;
                return Err(Error::damaged(
                    self.entry_name(entry.item.head.number),
                    "it was written by an older writer after it had been superseded",
                ));
            }
        }
        self.probe().await?;
        self.commit(entry)
    }

    fn commit(&mut self, entry: NewEntry) -> Result<Committed> {
        let committed = Committed {
            number: entry.item.head.number,
            head_digest: entry.item.digest,
            recorded_at: entry.item.head.recorded_at,
            stored_bytes: entry.item.object_len,
        };
        self.reader.fold.apply(self.role, entry.item)?;
        self.pending = None;
        Ok(committed)
    }

    /// Creates an entry; `None` where it is new, else what to do about the one that is there.
    async fn create(&self, entry: &NewEntry, fence: bool) -> Result<Option<OnExists>> {
        let number = entry.item.head.number;
        let name = self.entry_name(number);
        let created = self
            .context()
            .create_patiently(&name, &entry.object.bytes)
            .await?;
        if created == Created::New || !self.context().keeps(Rule::WriteId) {
            return Ok(None);
        }
        let Some(found) = self.context().track(self.role).read(number).await? else {
            // Removed since: the floor has moved past it, so this writer's view is old.
            return Ok(Some(OnExists::ReadAgain));
        };
        let intent = Intent {
            epoch: self.epoch,
            write_id: entry.item.head.write_id,
            previous: entry.item.head.previous,
            fence,
        };
        Ok(Some(on_exists(&intent, &found.item.head)))
    }

    /// Looks for a newer epoch. Comes after the create: an epoch taken before this moment is seen, one
    /// taken later reads the entry. Before the create it would prove nothing.
    async fn probe(&mut self) -> Result<()> {
        if !self.context().keeps(Rule::Probe) {
            return Ok(());
        }
        let next = self.epoch + 1;
        let name = self.role.epoch(self.context().lineage, next);
        let mut attempt = 1;
        loop {
            match self.context().store.stat(&name).await {
                Ok(None) => return Ok(()),
                Ok(Some(_)) => return Err(self.fenced(next)),
                Err(error)
                    if error.is_transient() && self.context().patience.wait(attempt).await =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Appends this writer's first entry after everything there is.
    async fn fence(&mut self) -> Result<()> {
        let opened = Opened {
            epoch: self.epoch,
            log_unit: self.opening.log_unit,
            holder: self.opening.holder.clone(),
        };
        let body = match self.role {
            Role::Ledger => message::encode(&EntryBody::Opened(opened)),
            Role::Maintenance => maintenance::encode(&MaintenanceBody::Opened(opened)),
        };
        let (mut adoptions, mut restarts) = (0, 0);
        while adoptions <= ADOPTIONS_MAX && restarts <= RESTARTS_MAX {
            let newest = self.half().chain.epoch;
            if newest > self.epoch {
                return Err(self.fenced(newest));
            }
            self.checkpoint().await?;
            self.prepare(body.clone(), Vec::new()).await?;
            let entry = self.pending.clone().expect("an entry was just prepared");
            match self.create(&entry, true).await? {
                None | Some(OnExists::Own) => {
                    let floor = self.context().floor(self.reader.floor).await?;
                    if fence_holds(entry.item.head.number, floor.lowest_of(self.role)) {
                        self.probe().await?;
                        self.commit(entry)?;
                        return Ok(());
                    }
                    restarts += 1;
                }
                Some(OnExists::Adopt) => adoptions += 1,
                Some(OnExists::Fenced { by }) => return Err(self.fenced(by)),
                Some(OnExists::ReadAgain | OnExists::Impossible) => restarts += 1,
            }
            self.pending = None;
            self.reader.refresh().await?;
        }
        Err(Error::refused(
            format!(
                "opening lineage {} met too many other writers",
                self.context().lineage
            ),
            "Stop the other writers of this lineage, and try again.",
        ))
    }

    /// Writes the checkpoint that ends at the head, if one does. It comes before the next entry, so
    /// checkpoints have no holes and readers need not look for them.
    async fn checkpoint(&mut self) -> Result<()> {
        let context = self.context();
        let (head, size) = (self.half().chain.head, context.shape.checkpoint);
        if self.role == Role::Maintenance {
            return Ok(());
        }
        if head == 0 || !head.is_multiple_of(size) || self.checkpointed == head {
            return Ok(());
        }
        if self.half().block.len() as u64 == size {
            let name = layout::checkpoint(context.lineage, head / size);
            let object = self.seal_checkpoint(head / size);
            // One that exists says the same: its content follows from the entries.
            context.create_patiently(&name, &object.bytes).await?;
        }
        self.checkpointed = head;
        Ok(())
    }

    fn seal_checkpoint(&self, number: u64) -> SealedObject {
        let (context, chain) = (self.context(), &self.half().chain);
        let clear = CheckpointMessage {
            lineage: Bytes::copy_from_slice(&context.lineage.0),
            number,
            last: chain.head,
            last_digest: Bytes::copy_from_slice(&chain.digest),
            last_epoch: chain.epoch,
        };
        let id = ObjectId::random(context.entropy.as_ref());
        let key = context.keys.current();
        let mut builder = ObjectBuilder::new(ObjectKind::Checkpoint, id, Some(key));
        builder.clear(clear.encode_to_vec());
        builder.push_frame(1, Compression::None, &[]);
        let mut items = self.half().block.as_slice();
        while !items.is_empty() {
            let mut bytes = 0;
            let fitting = items.iter().take_while(|item| {
                let before = bytes;
                bytes += item.body.len();
                before < CHECKPOINT_FRAME_BYTES
            });
            let (now, later) = items.split_at(fitting.count());
            builder.push_frame(1, Compression::Zstd(3), &encode_items(now));
            items = later;
        }
        builder.seal()
    }
}
