//! Making one object of a group of log pieces: read, laid out anew, stored, read back, compared.

use std::sync::Arc;

use borealis_base::{LineageId, ObjectId, RecordSpan, TimeStep, Timestamp};
use borealis_keys::DataKeys;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};

use super::plan::Group;
use crate::catalog::Lineage;
use crate::ledger::LogMerged;
use crate::log::merged::{FRAME_PARTS, PART_INDEX_BYTES_MAX, Part, encode_parts, prepare_indexes};
use crate::log::piece::{
    FRAME_LOG_BYTES, FRAME_LOG_INDEX, FRAME_TIME_MAP, LOG_FRAME_BYTES, PieceIdentity, check_entry,
    content, log_frames,
};
use crate::log::time_map::{TIME_STEPS_MAX, decode_steps, encode_steps};
use crate::object::{
    Compression, ObjectBuilder, ObjectKind, ObjectView, PreparedFrame, SealedObject,
};
use crate::pages::pack::{PackTarget, blocking, put_and_read_back};
use crate::plan::{ObjectRef, PieceSummary, SettledSummary};
use crate::{Error, Result, layout};

/// Pieces read ahead; each is at most 16 MiB as `protect` writes them.
const READ_AHEAD: usize = 4;
/// Log that lies for weeks is worth the processor time that log which is waited for is not.
const COMPRESSION: Compression = Compression::Zstd(6);

/// What a piece holds, opened.
struct Content {
    steps: Vec<TimeStep>,
    index: Bytes,
    log: Vec<Bytes>,
}

/// Stores the log of `group` as one object, and says what there is to say of it. Nothing names it yet.
///
/// # Errors
/// Damaged or missing where a piece is not what the ledger names, or where the store gives back other
/// bytes than were written; refused where the pieces cannot be one.
pub async fn merge(lineage: &Lineage, group: &Group) -> Result<LogMerged> {
    let (Some(first), Some(last)) = (group.pieces.first(), group.pieces.last()) else {
        return Err(Error::Bug {
            what: "log of no pieces is to be merged".to_owned(),
        });
    };
    let identity = PieceIdentity {
        lineage: lineage.id(),
        branch: first.branch,
        start: first.start,
    };
    let mut builder = Builder::new(identity, first.settled_before);
    let mut settled = group.settled.iter().peekable();
    let mut contents = futures::stream::iter(group.pieces.clone())
        .map(|piece| async move { Ok::<_, Error>((read(lineage, &piece).await?, piece)) })
        .buffered(READ_AHEAD);
    while let Some((held, piece)) = contents.try_next().await? {
        while let Some(moment) = settled.next_if(|moment| moment.entry < piece.entry) {
            builder.settle(moment)?;
        }
        builder = blocking(move || {
            builder.add(&piece, held)?;
            Ok::<_, Error>(builder)
        })
        .await??;
    }
    settled.try_for_each(|moment| builder.settle(moment))?;
    let (id, key) = (
        ObjectId::random(lineage.entropy().as_ref()),
        lineage.keys().current().clone(),
    );
    let (sealed, crc, last_record) = blocking(move || {
        builder.finish_log();
        let (crc, last_record) = (builder.crc, builder.last_record);
        let sealed = builder.seal(id, &key)?;
        Ok::<_, Error>((sealed, crc, last_record))
    })
    .await??;
    let merged = LogMerged {
        object: ObjectRef {
            lineage: lineage.id(),
            object: sealed.id,
            len: sealed.bytes.len() as u64,
            head_digest: sealed.head_digest,
        },
        branch: first.branch,
        start: first.start,
        end: last.end,
        settled_before: first.settled_before,
        settled_after: group.settled_after(),
        last_record,
        resume_at: last.resume_at,
        first_entry: group.first_entry(),
        last_entry: group.last_entry(),
        last_piece: last.entry,
        recorded_at: last.recorded_at,
        parts: group.pieces.len() as u64,
    };
    let name = layout::merged_log(lineage.id(), sealed.id);
    let target = PackTarget::of(lineage);
    put_and_read_back(&target, &name, &sealed).await?;
    let (keys, lineage_id, summary) = (lineage.keys().clone(), lineage.id(), merged.clone());
    // What the store gave back is what was sealed; that this is the log, opening it tells.
    blocking(move || check(&keys, lineage_id, &name, &sealed, &summary, crc)).await??;
    Ok(merged)
}

/// Reads a piece as a whole, every frame authenticated.
async fn read(lineage: &Lineage, piece: &PieceSummary) -> Result<Content> {
    let name = piece.object_name(lineage.id());
    let bytes = (lineage.store().read(&name).await)
        .map_err(|error| Error::from(error).named_by("the ledger"))?;
    let (keys, piece) = (Arc::clone(lineage.keys()), piece.clone());
    let identity = PieceIdentity {
        lineage: lineage.id(),
        branch: piece.branch,
        start: piece.start,
    };
    blocking(move || {
        let view = ObjectView::parse(&name, bytes)?;
        let head = view.head();
        head.expect_kind(ObjectKind::LedgerEntry)?;
        check_entry(head, &piece)?;
        let open = |number| content(head, &identity, number, &view.frame(&keys, number)?);
        let single = |kind| {
            let mut numbers = head.frames_of(kind);
            match (numbers.next(), numbers.next()) {
                (Some(number), None) => open(number),
                _ => Err(head.damaged(format!("it does not hold one frame of kind {kind}"))),
            }
        };
        let steps = decode_steps(&single(FRAME_TIME_MAP)?)
            .map_err(|error| head.damaged(error.to_string()))?;
        let index = single(FRAME_LOG_INDEX)?;
        if index.len() > PART_INDEX_BYTES_MAX {
            return Err(cannot_be_one(&name, "its log index is too long"));
        }
        let log = log_frames(head, &piece)?.map(open).collect::<Result<_>>()?;
        Ok(Content { steps, index, log })
    })
    .await?
}

fn cannot_be_one(name: &str, why: &str) -> Error {
    Error::refused(
        format!("the log piece in {name} can't be merged: {why}"),
        "It stays as it is, and nothing is lost.",
    )
}

/// Lays out merged log.
struct Builder {
    identity: PieceIdentity,
    /// The last moment settled so far.
    settled: Option<Timestamp>,
    steps: Vec<TimeStep>,
    parts: Vec<Part>,
    indexes: Vec<Bytes>,
    last_record: Option<RecordSpan>,
    /// Log that does not fill a frame yet.
    rest: BytesMut,
    log: Vec<PreparedFrame>,
    plain: Vec<u8>,
    crc: u32,
}

impl Builder {
    fn new(identity: PieceIdentity, settled: Option<Timestamp>) -> Self {
        Self {
            identity,
            settled,
            steps: Vec::new(),
            parts: Vec::new(),
            indexes: Vec::new(),
            last_record: None,
            rest: BytesMut::with_capacity(LOG_FRAME_BYTES),
            log: Vec::new(),
            plain: Vec::new(),
            crc: 0,
        }
    }

    fn add(&mut self, piece: &PieceSummary, held: Content) -> Result<()> {
        for step in held.steps {
            self.step(step, piece.entry)?;
        }
        self.parts.push(Part {
            entry: piece.entry,
            start: piece.start,
            end: piece.end,
            recorded_at: piece.recorded_at,
            engine: piece.engine.clone(),
            index_len: held.index.len() as u32,
        });
        self.indexes.push(held.index);
        self.settled = piece.settled_after;
        self.last_record = piece.last_record.or(self.last_record);
        for bytes in held.log {
            self.push_log(&bytes);
        }
        Ok(())
    }

    fn settle(&mut self, settled: &SettledSummary) -> Result<()> {
        let step = TimeStep {
            settled_through: settled.through,
            last_record: settled.last_record,
        };
        // One that settles nothing must not become the first step, which says from when on moments are
        // known.
        if self.settled.is_some_and(|before| settled.through <= before) {
            return Ok(());
        }
        self.settled = Some(settled.through);
        self.step(step, settled.entry)
    }

    /// Adds a step, unless it settles nothing.
    fn step(&mut self, step: TimeStep, entry: u64) -> Result<()> {
        if let Some(last) = self.steps.last() {
            if step.settled_through <= last.settled_through {
                return Ok(());
            }
            if step.last_record.end < last.last_record.end {
                let name = layout::entry(self.identity.lineage, entry);
                return Err(cannot_be_one(&name, "its moments go back in the log"));
            }
        }
        if self.steps.len() >= TIME_STEPS_MAX {
            let name = layout::entry(self.identity.lineage, entry);
            return Err(cannot_be_one(&name, "there are too many moments"));
        }
        self.steps.push(step);
        Ok(())
    }

    fn push_log(&mut self, mut bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        while !bytes.is_empty() {
            let room = LOG_FRAME_BYTES - self.rest.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.rest.extend_from_slice(now);
            bytes = later;
            if self.rest.len() == LOG_FRAME_BYTES {
                self.finish_log();
            }
        }
    }

    fn finish_log(&mut self) {
        if !self.rest.is_empty() {
            let (identity, rest) = (self.identity, &self.rest);
            let frame = identity.frame(FRAME_LOG_BYTES, COMPRESSION, rest, &mut self.plain);
            self.log.push(frame);
            self.rest.clear();
        }
    }

    fn seal(mut self, id: ObjectId, key: &borealis_keys::DataKey) -> Result<SealedObject> {
        let malformed = |error: crate::wire::Malformed| Error::Bug {
            what: error.to_string(),
        };
        let steps = encode_steps(&self.steps).map_err(malformed)?;
        let parts = encode_parts(&self.parts);
        let mut builder = ObjectBuilder::new(ObjectKind::Log, id, Some(key));
        for (kind, plain) in [(FRAME_TIME_MAP, steps), (FRAME_PARTS, parts)] {
            let identity = self.identity;
            builder.push(identity.frame(kind, COMPRESSION, &plain, &mut self.plain));
        }
        let indexes = prepare_indexes(&self.identity, &self.indexes, COMPRESSION);
        for frame in indexes.into_iter().chain(self.log) {
            builder.push(frame);
        }
        Ok(builder.seal())
    }
}

/// Opens what was stored, and compares its log with the log that it was made of.
fn check(
    keys: &DataKeys,
    lineage: LineageId,
    name: &str,
    sealed: &SealedObject,
    merged: &LogMerged,
    crc: u32,
) -> Result<()> {
    let view = ObjectView::parse(name, sealed.bytes.clone())?;
    view.authenticate(keys)?;
    let (head, summary) = (view.head(), merged.summary());
    check_entry(head, &summary)?;
    let identity = PieceIdentity {
        lineage,
        branch: merged.branch,
        start: merged.start,
    };
    let found = log_frames(head, &summary)?.try_fold(0, |crc, number| {
        let bytes = content(head, &identity, number, &view.frame(keys, number)?)?;
        Ok::<_, Error>(crc32c::crc32c_append(crc, &bytes))
    })?;
    if found == crc {
        return Ok(());
    }
    Err(head.damaged("its log is not that of the pieces it was made of"))
}
