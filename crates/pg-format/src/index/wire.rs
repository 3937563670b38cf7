//! How a log index and a carry state are stored: `docs/formats/log-index.proto` is the norm, this
//! follows it.
//!
//! Reading is total: whatever the bytes are, the answer is a value or an error. What is read has
//! been authenticated before, so that the bounds here guard against defects, not attacks.

mod messages;

use std::io::Cursor;

use borealis_base::{RecordSpan, TimeStep, Timestamp};
use prost::Message;
use roaring::RoaringBitmap;

use super::digest::{EventDigest, LeftOut};
use super::files::{CarriedFiles, InPlaceChange, TransactionFiles};
use super::{
    CarryState, ChangeMap, CreatedRelation, Event, EventKind, ForkChanges, ForkKey,
    FullPageWritesChange, LogIndex, ParameterChange, RedoPoint, RelationRows, Unparsed, Widening,
};
use crate::control_file::{Parameters, WalLevel};
use crate::wal::rmgr::heap::SharedRow;
use crate::wal::{Start, UnparsedReason};
use crate::{DatabaseFiles, Error, Fork, Lsn, Relation, Timeline};
use messages as wire;

/// The longest encoding that is read.
pub const ENCODED_LEN_MAX: usize = 64 << 20;

const REASONS: [UnparsedReason; 9] = [
    UnparsedReason::Page,
    UnparsedReason::SegmentSize,
    UnparsedReason::Continuation,
    UnparsedReason::Length,
    UnparsedReason::Previous,
    UnparsedReason::Checksum,
    UnparsedReason::Layout,
    UnparsedReason::Hole,
    UnparsedReason::Gap,
];

fn bad(what: &str) -> Error {
    Error::Index(what.to_owned())
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    if bytes.len() > ENCODED_LEN_MAX {
        return Err(bad("it is too long"));
    }
    M::decode(bytes).map_err(|error| Error::Index(error.to_string()))
}

/// A stored number of something listed from 1 on; 0 is what an absent field reads as.
fn listed<T: Copy>(list: &[T], number: u32, what: &str) -> Result<T, Error> {
    let index = number.checked_sub(1).ok_or_else(|| bad(what))?;
    list.get(index as usize).copied().ok_or_else(|| bad(what))
}

fn number_of<T: PartialEq>(list: &[T], item: &T) -> u32 {
    let index = list.iter().position(|other| other == item);
    index.map_or(0, |index| index as u32 + 1)
}

impl LogIndex {
    /// The stored form; the same value gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::LogIndex::from(self).encode_to_vec()
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Self::try_from(decode::<wire::LogIndex>(bytes)?)
    }
}

impl EventDigest {
    /// The stored form; the same value gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::EventDigest::from(self).encode_to_vec()
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let stored = decode::<wire::EventDigest>(bytes)?;
        Ok(Self {
            rule_set: stored.rule_set,
            events: all(stored.events, event_in)?,
            left_out: stored.left_out.map(|left_out| LeftOut {
                rows: left_out.rows,
                drops: left_out.drops,
            }),
            catalogs_changed: stored.catalogs_changed,
        })
    }
}

impl From<&EventDigest> for wire::EventDigest {
    fn from(digest: &EventDigest) -> Self {
        Self {
            rule_set: digest.rule_set,
            events: digest.events.iter().map(event_out).collect(),
            left_out: digest.left_out.map(|left_out| wire::LeftOut {
                rows: left_out.rows,
                drops: left_out.drops,
            }),
            catalogs_changed: digest.catalogs_changed.clone(),
        }
    }
}

/// The bytes that an event takes in a digest.
pub(super) fn digest_event_len(event: &Event) -> usize {
    let len = event_out(event).encoded_len();
    1 + prost::length_delimiter_len(len) + len
}

impl CarryState {
    /// The stored form; the same value gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::CarryState::from(self).encode_to_vec()
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Self::try_from(decode::<wire::CarryState>(bytes)?)
    }
}

fn span_out(span: &RecordSpan) -> wire::Span {
    wire::Span {
        start: span.start.0,
        end: span.end.0,
    }
}

fn span_in(span: Option<wire::Span>) -> Result<RecordSpan, Error> {
    let span = span.ok_or_else(|| bad("a record's place is missing"))?;
    if span.end < span.start {
        return Err(bad("a record ends before it starts"));
    }
    Ok(RecordSpan {
        start: Lsn(span.start),
        end: Lsn(span.end),
    })
}

fn relation_out(relation: Relation) -> wire::Relation {
    wire::Relation {
        tablespace: relation.tablespace,
        database: relation.database,
        number: relation.number,
    }
}

fn relation_in(relation: wire::Relation) -> Relation {
    Relation {
        tablespace: relation.tablespace,
        database: relation.database,
        number: relation.number,
    }
}

fn files_out(files: DatabaseFiles) -> wire::DatabaseFiles {
    wire::DatabaseFiles {
        tablespace: files.tablespace,
        database: files.database,
    }
}

fn files_in(files: wire::DatabaseFiles) -> DatabaseFiles {
    DatabaseFiles {
        tablespace: files.tablespace,
        database: files.database,
    }
}

fn rows_out(rows: &RelationRows) -> wire::RelationRows {
    wire::RelationRows {
        relation: Some(relation_out(rows.relation)),
        inserted: rows.inserted,
        updated: rows.updated,
        deleted: rows.deleted,
    }
}

fn rows_in(rows: wire::RelationRows) -> RelationRows {
    RelationRows {
        relation: rows.relation.map(relation_in).unwrap_or_default(),
        inserted: rows.inserted,
        updated: rows.updated,
        deleted: rows.deleted,
    }
}

fn created_out(created: &CreatedRelation) -> wire::CreatedRelation {
    wire::CreatedRelation {
        relation: Some(relation_out(created.relation)),
        filled: created.filled,
    }
}

fn created_in(created: wire::CreatedRelation) -> CreatedRelation {
    CreatedRelation {
        relation: created.relation.map(relation_in).unwrap_or_default(),
        filled: created.filled,
    }
}

fn files_of_out((xid, files): &(u32, TransactionFiles)) -> wire::TransactionFiles {
    wire::TransactionFiles {
        xid: *xid,
        created: files.created.iter().map(created_out).collect(),
        created_more: files.created_more,
        databases: files.databases.clone(),
        tablespaces: files.tablespaces.clone(),
        before: files.before.map(|lsn| lsn.0),
    }
}

fn files_of_in(files: wire::TransactionFiles) -> (u32, TransactionFiles) {
    let files_of = TransactionFiles {
        created: files.created.into_iter().map(created_in).collect(),
        created_more: files.created_more,
        databases: files.databases,
        tablespaces: files.tablespaces,
        before: files.before.map(Lsn),
    };
    (files.xid, files_of)
}

fn in_place_out(change: &InPlaceChange) -> wire::InPlaceChange {
    wire::InPlaceChange {
        relation: Some(relation_out(change.row.relation)),
        block: change.row.block,
        offset: u32::from(change.row.offset),
        at: change.at.0,
    }
}

fn in_place_in(change: wire::InPlaceChange) -> Result<InPlaceChange, Error> {
    let row = SharedRow {
        relation: change.relation.map(relation_in).unwrap_or_default(),
        block: change.block,
        offset: u16::try_from(change.offset).map_err(|_| bad("a line pointer is too large"))?,
    };
    let at = Lsn(change.at);
    Ok(InPlaceChange { row, at })
}

fn map_out(map: &ChangeMap) -> wire::ChangeMap {
    let forks = map.sorted_forks().into_iter().map(|(key, changes)| {
        let mut blocks = changes.blocks.clone();
        blocks.optimize();
        let mut bytes = Vec::with_capacity(blocks.serialized_size());
        blocks
            .serialize_into(&mut bytes)
            .expect("memory takes what is written");
        wire::ForkChanges {
            relation: Some(relation_out(key.relation)),
            fork: u32::from(key.fork.number()),
            limit: changes.limit,
            blocks: bytes,
        }
    });
    wire::ChangeMap {
        forks: forks.collect(),
        resets: map.resets().iter().copied().map(files_out).collect(),
        widened_databases: map.widened_databases().iter().copied().collect(),
        everything: map.is_everything(),
        widenings: map
            .reasons()
            .iter()
            .map(|(reason, times)| wire::Counter {
                reason: number_of(&Widening::ALL, reason),
                times: *times,
            })
            .collect(),
    }
}

fn map_in(stored: wire::ChangeMap) -> Result<ChangeMap, Error> {
    let mut map = ChangeMap::new();
    for files in stored.resets {
        map.reset(files_in(files));
    }
    for fork in stored.forks {
        let number = u8::try_from(fork.fork).ok().and_then(Fork::from_number);
        let key = ForkKey {
            relation: fork.relation.map(relation_in).unwrap_or_default(),
            fork: number.ok_or_else(|| bad("a fork has an unknown number"))?,
        };
        let mut bytes = Cursor::new(fork.blocks.as_slice());
        let blocks = RoaringBitmap::deserialize_from(&mut bytes)
            .map_err(|error| Error::Index(format!("the blocks of {}: {error}", key.relation)))?;
        if bytes.position() != fork.blocks.len() as u64 {
            return Err(bad("a set of blocks is followed by other bytes"));
        }
        let limit = fork.limit;
        if !map.restore_fork(key, ForkChanges { blocks, limit }) {
            return Err(bad("a fork is there twice"));
        }
    }
    let mut reasons = Vec::new();
    for counter in stored.widenings {
        let reason = listed(&Widening::ALL, counter.reason, "an unknown widening")?;
        reasons.push((reason, counter.times));
    }
    map.restore_widening(
        stored.everything,
        &stored.widened_databases,
        reasons.into_iter(),
    );
    Ok(map)
}

impl From<&LogIndex> for wire::LogIndex {
    fn from(index: &LogIndex) -> Self {
        Self {
            rule_set: index.rule_set,
            start: index.start.0,
            end: index.end.0,
            first_record_start: index.first_record_start.map(|lsn| lsn.0),
            last_record: index.last_record.as_ref().map(span_out),
            records: index.records,
            change_map: Some(map_out(&index.change_map)),
            time_steps: steps_out(&index.time_steps),
            redo_points: index.redo_points.iter().map(redo_out).collect(),
            parameter_changes: index.parameter_changes.iter().map(parameters_out).collect(),
            full_page_writes: index
                .full_page_writes
                .iter()
                .map(|change| wire::FullPageWritesChange {
                    record: Some(span_out(&change.record)),
                    on: change.on,
                })
                .collect(),
            events: index.events.iter().map(event_out).collect(),
            events_left_out: index.events_left_out,
            transactions_left_out: index.transactions_left_out,
            samples_left_out: index.samples_left_out,
            unparsed: index
                .unparsed
                .iter()
                .map(|place| wire::Unparsed {
                    from: place.from.0,
                    reason: number_of(&REASONS, &place.reason),
                })
                .collect(),
            unparsed_left_out: index.unparsed_left_out,
            catalogs_changed: index.catalogs_changed.clone(),
        }
    }
}

impl TryFrom<wire::LogIndex> for LogIndex {
    type Error = Error;

    fn try_from(stored: wire::LogIndex) -> Result<Self, Error> {
        if stored.end < stored.start {
            return Err(bad("the piece ends before it starts"));
        }
        let last_record = stored.last_record.map(|span| span_in(Some(span)));
        let time_steps = steps_in(&stored.time_steps.unwrap_or_default())?;
        Ok(Self {
            rule_set: stored.rule_set,
            start: Lsn(stored.start),
            end: Lsn(stored.end),
            first_record_start: stored.first_record_start.map(Lsn),
            last_record: last_record.transpose()?,
            records: stored.records,
            change_map: map_in(stored.change_map.unwrap_or_default())?,
            time_steps,
            redo_points: all(stored.redo_points, redo_in)?,
            parameter_changes: all(stored.parameter_changes, parameters_in)?,
            full_page_writes: all(stored.full_page_writes, |change| {
                Ok(FullPageWritesChange {
                    record: span_in(change.record)?,
                    on: change.on,
                })
            })?,
            events: all(stored.events, event_in)?,
            events_left_out: stored.events_left_out,
            transactions_left_out: stored.transactions_left_out,
            samples_left_out: stored.samples_left_out,
            unparsed: all(stored.unparsed, |place| {
                Ok(Unparsed {
                    from: Lsn(place.from),
                    reason: listed(&REASONS, place.reason, "an unknown reason")?,
                })
            })?,
            unparsed_left_out: stored.unparsed_left_out,
            catalogs_changed: stored.catalogs_changed,
        })
    }
}

fn all<A, B>(items: Vec<A>, read: impl Fn(A) -> Result<B, Error>) -> Result<Vec<B>, Error> {
    items.into_iter().map(read).collect()
}

/// A busy server has a step for almost every commit: distances take a fifth of the room that values
/// would.
fn steps_out(steps: &[TimeStep]) -> Option<wire::TimeSteps> {
    let mut before = steps.first()?;
    let mut stored = wire::TimeSteps {
        first_settled_through_us: before.settled_through.0,
        first_start: before.last_record.start.0,
        ..wire::TimeSteps::default()
    };
    for step in steps {
        let later = step.settled_through.0.abs_diff(before.settled_through.0);
        stored.later_us.push(later);
        stored
            .further
            .push(step.last_record.start.since(before.last_record.start));
        stored
            .lens
            .push(step.last_record.end.since(step.last_record.start));
        before = step;
    }
    Some(stored)
}

fn steps_in(stored: &wire::TimeSteps) -> Result<Vec<TimeStep>, Error> {
    let count = stored.lens.len();
    if stored.later_us.len() != count || stored.further.len() != count {
        return Err(bad("the time map's lists differ in length"));
    }
    let mut time = stored.first_settled_through_us;
    let mut start = stored.first_start;
    let mut steps = Vec::with_capacity(count);
    let distances = stored.later_us.iter().zip(&stored.further);
    for (index, ((later, further), len)) in distances.zip(&stored.lens).enumerate() {
        let first = index == 0;
        let next = || -> Option<(i64, u64, u64)> {
            let time = time.checked_add_unsigned(*later)?;
            let start = start.checked_add(*further)?;
            Some((time, start, start.checked_add(*len)?))
        };
        let ascends = (*later > 0) != first && (*further > 0) != first;
        let (at, from, end) = next()
            .filter(|_| ascends)
            .ok_or_else(|| bad("the time map does not ascend"))?;
        (time, start) = (at, from);
        steps.push(TimeStep {
            settled_through: Timestamp(at),
            last_record: RecordSpan {
                start: Lsn(from),
                end: Lsn(end),
            },
        });
    }
    Ok(steps)
}

fn redo_out(point: &RedoPoint) -> wire::RedoPoint {
    wire::RedoPoint {
        record: Some(span_out(&point.record)),
        redo: point.redo.0,
        shutdown: point.shutdown,
        timeline: point.timeline.0,
        previous_timeline: point.previous_timeline.0,
        full_page_writes: point.full_page_writes,
        time_us: point.time.0,
    }
}

fn redo_in(point: wire::RedoPoint) -> Result<RedoPoint, Error> {
    Ok(RedoPoint {
        record: span_in(point.record)?,
        redo: Lsn(point.redo),
        shutdown: point.shutdown,
        timeline: Timeline(point.timeline),
        previous_timeline: Timeline(point.previous_timeline),
        full_page_writes: point.full_page_writes,
        time: Timestamp(point.time_us),
    })
}

fn parameters_out(change: &ParameterChange) -> wire::ParameterChange {
    let parameters = &change.parameters;
    wire::ParameterChange {
        record: Some(span_out(&change.record)),
        max_connections: parameters.max_connections,
        max_worker_processes: parameters.max_worker_processes,
        max_wal_senders: parameters.max_wal_senders,
        max_prepared_transactions: parameters.max_prepared_transactions,
        max_locks_per_transaction: parameters.max_locks_per_transaction,
        wal_level: parameters.wal_level.number(),
        wal_log_hints: parameters.wal_log_hints,
        track_commit_timestamp: parameters.track_commit_timestamp,
    }
}

fn parameters_in(change: wire::ParameterChange) -> Result<ParameterChange, Error> {
    Ok(ParameterChange {
        record: span_in(change.record)?,
        parameters: Parameters {
            max_connections: change.max_connections,
            max_worker_processes: change.max_worker_processes,
            max_wal_senders: change.max_wal_senders,
            max_prepared_transactions: change.max_prepared_transactions,
            max_locks_per_transaction: change.max_locks_per_transaction,
            wal_level: WalLevel::from_number(change.wal_level)
                .ok_or_else(|| bad("an unknown wal_level"))?,
            wal_log_hints: change.wal_log_hints,
            track_commit_timestamp: change.track_commit_timestamp,
        },
    })
}

fn event_out(event: &Event) -> wire::Event {
    use wire::event::Kind;
    let kind = match &event.kind {
        EventKind::RestorePoint { name, time } => Kind::RestorePoint(wire::RestorePoint {
            name: name.clone(),
            time_us: time.0,
        }),
        EventKind::TimelineSwitch {
            timeline,
            previous,
            time,
        } => Kind::TimelineSwitch(wire::TimelineSwitch {
            timeline: timeline.0,
            previous: previous.0,
            time_us: time.0,
        }),
        EventKind::RelationsDropped {
            xid,
            time,
            relations,
            count,
            created,
            created_complete,
        } => Kind::RelationsDropped(wire::RelationsDropped {
            xid: *xid,
            time_us: time.0,
            relations: relations.iter().copied().map(relation_out).collect(),
            count: *count,
            created: created.iter().map(created_out).collect(),
            created_complete: *created_complete,
        }),
        EventKind::DropCommitted {
            xid,
            time,
            before,
            databases,
            tablespaces,
        } => Kind::DropCommitted(wire::DropCommitted {
            xid: *xid,
            time_us: time.0,
            before: before.0,
            databases: databases.clone(),
            tablespaces: tablespaces.clone(),
        }),
        EventKind::RelationTruncated {
            xid,
            relation,
            blocks,
        } => Kind::RelationTruncated(wire::RelationTruncated {
            xid: *xid,
            relation: Some(relation_out(*relation)),
            blocks: *blocks,
        }),
        EventKind::DatabaseCreated { files, source } => {
            Kind::DatabaseCreated(wire::DatabaseCreated {
                files: Some(files_out(*files)),
                source: source.map(files_out),
            })
        }
        EventKind::DatabaseDropped {
            database,
            tablespaces,
        } => Kind::DatabaseDropped(wire::DatabaseDropped {
            database: *database,
            tablespaces: tablespaces.clone(),
        }),
        EventKind::TablespaceCreated { tablespace, path } => {
            Kind::TablespaceCreated(wire::TablespaceCreated {
                tablespace: *tablespace,
                path: path.clone(),
            })
        }
        EventKind::TablespaceDropped { tablespace } => Kind::TablespaceDropped(*tablespace),
        EventKind::RelationMapChanged { files } => Kind::RelationMapChanged(files_out(*files)),
        EventKind::RowsChanged {
            xid,
            time,
            relations,
        } => Kind::RowsChanged(wire::RowsChanged {
            xid: *xid,
            time_us: time.0,
            relations: relations.iter().map(rows_out).collect(),
        }),
        EventKind::ClockStep { from, to } => Kind::ClockStep(wire::ClockStep {
            from_us: from.0,
            to_us: to.0,
        }),
    };
    wire::Event {
        record: Some(span_out(&event.record)),
        kind: Some(kind),
    }
}

fn event_in(event: wire::Event) -> Result<Event, Error> {
    use wire::event::Kind;
    let kind = event.kind.ok_or_else(|| bad("an unknown kind of event"))?;
    let kind = match kind {
        Kind::RestorePoint(point) => EventKind::RestorePoint {
            name: point.name,
            time: Timestamp(point.time_us),
        },
        Kind::TimelineSwitch(switch) => EventKind::TimelineSwitch {
            timeline: Timeline(switch.timeline),
            previous: Timeline(switch.previous),
            time: Timestamp(switch.time_us),
        },
        Kind::RelationsDropped(dropped) => EventKind::RelationsDropped {
            xid: dropped.xid,
            time: Timestamp(dropped.time_us),
            relations: dropped.relations.into_iter().map(relation_in).collect(),
            count: dropped.count,
            created: dropped.created.into_iter().map(created_in).collect(),
            created_complete: dropped.created_complete,
        },
        Kind::DropCommitted(dropped) => EventKind::DropCommitted {
            xid: dropped.xid,
            time: Timestamp(dropped.time_us),
            before: Lsn(dropped.before),
            databases: dropped.databases,
            tablespaces: dropped.tablespaces,
        },
        Kind::RelationTruncated(cut) => EventKind::RelationTruncated {
            xid: cut.xid,
            relation: cut.relation.map(relation_in).unwrap_or_default(),
            blocks: cut.blocks,
        },
        Kind::DatabaseCreated(created) => EventKind::DatabaseCreated {
            files: created.files.map(files_in).unwrap_or_default(),
            source: created.source.map(files_in),
        },
        Kind::DatabaseDropped(dropped) => EventKind::DatabaseDropped {
            database: dropped.database,
            tablespaces: dropped.tablespaces,
        },
        Kind::TablespaceCreated(created) => EventKind::TablespaceCreated {
            tablespace: created.tablespace,
            path: created.path,
        },
        Kind::TablespaceDropped(tablespace) => EventKind::TablespaceDropped { tablespace },
        Kind::RelationMapChanged(files) => EventKind::RelationMapChanged {
            files: files_in(files),
        },
        Kind::RowsChanged(rows) => EventKind::RowsChanged {
            xid: rows.xid,
            time: Timestamp(rows.time_us),
            relations: rows.relations.into_iter().map(rows_in).collect(),
        },
        Kind::ClockStep(step) => EventKind::ClockStep {
            from: Timestamp(step.from_us),
            to: Timestamp(step.to_us),
        },
    };
    Ok(Event {
        record: span_in(event.record)?,
        kind,
    })
}

impl From<&CarryState> for wire::CarryState {
    fn from(carry: &CarryState) -> Self {
        Self {
            rule_set: carry.rule_set,
            cut: carry.cut.0,
            resume_at: carry.resume_at.0,
            anywhere: carry.start == Start::Anywhere,
            last_record: carry.last_record.as_ref().map(span_out),
            lost_since: carry.lost_since.map(|lsn| lsn.0),
            settled_us: carry.settled.map(|time| time.0),
            stepped_back: carry.stepped_back,
            minimal_log: carry.minimal_log,
            samples: carry
                .samples
                .iter()
                .map(|(clock, at)| wire::ClockSample {
                    clock_us: clock.0,
                    at: at.0,
                })
                .collect(),
            transactions: carry
                .transactions
                .iter()
                .map(|(xid, rows)| wire::OpenTransaction {
                    xid: *xid,
                    relations: rows.iter().map(rows_out).collect(),
                })
                .collect(),
            files: carry.files.transactions.iter().map(files_of_out).collect(),
            in_place: carry.files.in_place.iter().map(in_place_out).collect(),
            known_from: carry.files.known_from,
        }
    }
}

impl TryFrom<wire::CarryState> for CarryState {
    type Error = Error;

    fn try_from(stored: wire::CarryState) -> Result<Self, Error> {
        if stored.cut < stored.resume_at {
            return Err(bad(
                "the log would have to be read again from after the cut",
            ));
        }
        let last_record = stored.last_record.map(|span| span_in(Some(span)));
        Ok(Self {
            rule_set: stored.rule_set,
            cut: Lsn(stored.cut),
            resume_at: Lsn(stored.resume_at),
            start: if stored.anywhere {
                Start::Anywhere
            } else {
                Start::Record
            },
            last_record: last_record.transpose()?,
            lost_since: stored.lost_since.map(Lsn),
            settled: stored.settled_us.map(Timestamp),
            stepped_back: stored.stepped_back,
            minimal_log: stored.minimal_log,
            samples: stored
                .samples
                .into_iter()
                .map(|sample| (Timestamp(sample.clock_us), Lsn(sample.at)))
                .collect(),
            transactions: stored
                .transactions
                .into_iter()
                .map(|open| (open.xid, open.relations.into_iter().map(rows_in).collect()))
                .collect(),
            files: CarriedFiles {
                transactions: stored.files.into_iter().map(files_of_in).collect(),
                in_place: all(stored.in_place, in_place_in)?,
                known_from: stored.known_from,
            },
        })
    }
}
