//! Folding records into a log index.

use borealis_base::{RecordSpan, Timestamp};

use super::files::OpenFiles;
use super::rows::OpenTransactions;
use super::time_map::TimeMap;
use super::{
    CarryState, Event, EventKind, ForkKey, FullPageWritesChange, LogIndex, MANY_DATABASES,
    ParameterChange, RULE_SET, RedoPoint, Unparsed, Widening, visibility_map_block,
};
use crate::control_file::WalLevel;
use crate::wal::rmgr::dbase::DbaseRecord;
use crate::wal::rmgr::heap::{SharedRow, SharedRowChange};
use crate::wal::rmgr::smgr::SmgrRecord;
use crate::wal::rmgr::tblspc::TblspcRecord;
use crate::wal::rmgr::xact::{TransactionEnd, XactRecord};
use crate::wal::rmgr::xlog::XlogRecord;
use crate::wal::rmgr::{dbase, heap, relmap, smgr, standby, tblspc, xact, xlog};
use crate::wal::{LogEvent, LogFormat, Record, Rmgr, Start, WalReader};
use crate::{Fork, Lsn, Relation};

/// Events that one index holds; more are counted.
pub const EVENTS_MAX: usize = 16_384;
/// Relations that one event names; more are counted.
pub const RELATIONS_PER_EVENT_MAX: usize = 65_536;
/// Databases whose catalogs changed that one index lists.
pub const CATALOGS_CHANGED_MAX: usize = 64;
/// Unreadable places that one index holds; more are counted.
pub const UNPARSED_MAX: usize = 256;
/// Bytes of a tablespace's directory that an event holds (`MAXPGPATH`).
const PATH_LEN_MAX: usize = 1024;

/// The index of a piece, and what the next piece needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// What the piece says.
    pub index: LogIndex,
    /// What an indexer that goes on after it must know.
    pub carry: CarryState,
}

/// Makes log indexes of bytes that pass by.
///
/// ```
/// use borealis_pg_format::index::LogIndexer;
/// use borealis_pg_format::wal::{LogFormat, Start};
/// use borealis_pg_format::{Lsn, Version};
///
/// let mut indexer = LogIndexer::new(LogFormat::new(Version::V15), Lsn(0x100_0000), Start::Record);
/// indexer.push(Lsn(0x100_0000), &[0; 512]);
/// let cut = indexer.cut();
/// assert_eq!((cut.index.start, cut.index.end), (Lsn(0x100_0000), Lsn(0x100_0200)));
/// // Zeros where log was expected: whatever they stand for, nothing may be taken as unchanged.
/// assert!(cut.index.change_map.is_everything());
/// ```
#[derive(Debug)]
pub struct LogIndexer {
    reader: WalReader,
    folder: Folder,
    /// Where the last cut was.
    cut_at: Lsn,
}

impl LogIndexer {
    /// An indexer of the log from `at` on.
    pub fn new(format: LogFormat, at: Lsn, start: Start) -> Self {
        Self {
            reader: WalReader::new(format, at, start, None),
            folder: Folder::new(format),
            cut_at: at,
        }
    }

    /// An indexer that goes on after a cut. The log must be pushed from [`CarryState::resume_at`].
    pub fn resume(format: LogFormat, carry: &CarryState) -> Self {
        let reader = if let Some(lost) = carry.lost_since {
            WalReader::lost(format, carry.resume_at, lost)
        } else {
            let last = carry.last_record.map(|last| (last.start, last.end));
            WalReader::new(format, carry.resume_at, carry.start, last)
        };
        let mut folder = Folder::new(format);
        folder.last = carry.last_record;
        folder.minimal = carry.minimal_log;
        folder.time.settled = carry.settled;
        folder.time.stepped_back = carry.stepped_back;
        for (clock, at) in &carry.samples {
            folder.time.push_sample(*clock, *at, format.segment_size);
        }
        folder.open = OpenTransactions::restore(&carry.transactions);
        folder.files = OpenFiles::restore(&carry.files);
        Self {
            reader,
            folder,
            cut_at: carry.cut,
        }
    }

    /// The byte that is expected next.
    pub const fn position(&self) -> Lsn {
        self.reader.position()
    }

    /// The start of the first record that has not ended: from where the log would have to be read
    /// again.
    pub const fn resume_at(&self) -> Lsn {
        self.reader.resume_at()
    }

    /// The reader, for what it knows of the log.
    pub const fn reader(&self) -> &WalReader {
        &self.reader
    }

    /// Takes the bytes at `lsn`. Bytes that were pushed before are ignored.
    pub fn push(&mut self, lsn: Lsn, bytes: &[u8]) {
        let folder = &mut self.folder;
        self.reader
            .push(lsn, bytes, &mut |event| folder.event(&event));
        self.reach_samples();
    }

    /// Takes a sample of the server's clock: `clock` was read there, then its insert position `at`,
    /// in this order. It settles what it can once the log has been pushed to `at`.
    pub fn push_sample(&mut self, clock: Timestamp, at: Lsn) {
        let size = self.folder.format.segment_size;
        self.folder.time.push_sample(clock, at, size);
        self.reach_samples();
    }

    fn reach_samples(&mut self) {
        // Where the log is unreadable the last record is not known, and a sample settles nothing.
        let last = match self.reader.unreadable_since() {
            Some(_) => None,
            None => self.folder.last,
        };
        self.folder.time.reach(self.reader.position(), true, last);
    }

    /// Ends the piece at the byte expected next.
    pub fn cut(&mut self) -> Cut {
        let start = self.cut_at;
        let end = self.reader.position().max(start);
        self.cut_at = end;
        let mut index = self.folder.take();
        index.start = start;
        index.end = end;
        // A record that cannot be read may lie in any piece that overlaps the unreadable stretch.
        if end > start && self.reader.unreadable_since().is_some() {
            index.change_map.widen(Widening::Unparsed);
        }
        if end > start && self.folder.minimal {
            index.change_map.widen(Widening::MinimalLog);
        }
        let carry = CarryState {
            rule_set: RULE_SET,
            cut: end,
            resume_at: self.reader.resume_at(),
            start: self.reader.resume_start(),
            last_record: self.folder.last,
            lost_since: self.reader.lost_since(),
            settled: self.folder.time.settled,
            stepped_back: self.folder.time.stepped_back,
            minimal_log: self.folder.minimal,
            samples: self.folder.time.samples.iter().copied().collect(),
            transactions: self.folder.open.carried(),
            files: self.folder.files.carried(),
        };
        Cut { index, carry }
    }
}

/// Everything but the reader.
#[derive(Debug)]
struct Folder {
    format: LogFormat,
    index: LogIndex,
    time: TimeMap,
    open: OpenTransactions,
    files: OpenFiles,
    last: Option<RecordSpan>,
    minimal: bool,
}

impl Folder {
    fn new(format: LogFormat) -> Self {
        Self {
            format,
            index: LogIndex::default(),
            time: TimeMap::new(),
            open: OpenTransactions::default(),
            files: OpenFiles::default(),
            last: None,
            minimal: false,
        }
    }

    fn take(&mut self) -> LogIndex {
        let mut index = std::mem::take(&mut self.index);
        index.rule_set = RULE_SET;
        index.time_steps = std::mem::take(&mut self.time.steps);
        index.samples_left_out = std::mem::take(&mut self.time.samples_left_out);
        index.transactions_left_out = std::mem::take(&mut self.open.left_out);
        index
    }

    fn event(&mut self, event: &LogEvent<'_>) {
        match *event {
            LogEvent::Record(ref record) => self.record(record),
            LogEvent::Unparsed { from, reason } => {
                self.last = None;
                self.files.lose();
                self.index.change_map.widen(Widening::Unparsed);
                if self.index.unparsed.len() < UNPARSED_MAX {
                    self.index.unparsed.push(Unparsed { from, reason });
                } else {
                    self.index.unparsed_left_out += 1;
                }
            }
            LogEvent::Resynchronised { .. } => self.index.change_map.widen(Widening::Unparsed),
        }
    }

    fn record(&mut self, record: &Record<'_>) {
        let span = RecordSpan {
            start: record.start,
            end: record.end,
        };
        self.time.reach(record.end, false, self.last);
        self.index.first_record_start.get_or_insert(record.start);
        self.index.records += 1;
        match record.header.rmgr {
            Rmgr::HEAP | Rmgr::HEAP2 => {
                if let Some((relation, change, rows)) = heap::rows(record) {
                    self.open.count(record.header.xid, relation, change, rows);
                }
                if let Some((row, change)) = heap::shared_row(record) {
                    self.shared_row(record, row, change);
                }
            }
            _ => self.special(record, span),
        }
        for block in record.blocks {
            match Fork::from_number(block.fork) {
                Some(fork) => {
                    let relation = block.relation;
                    if fork == Fork::Main {
                        self.files.written(relation);
                    }
                    self.index
                        .change_map
                        .mark(ForkKey { relation, fork }, block.block);
                }
                None => self
                    .index
                    .change_map
                    .widen_database(block.relation.database, Widening::UnknownFork),
            }
        }
        self.last = Some(span);
        self.index.last_record = Some(span);
    }

    /// Records whose effect goes beyond the blocks they name.
    fn special(&mut self, record: &Record<'_>, span: RecordSpan) {
        let header = &record.header;
        if !header.rmgr.knows(header.operation(), self.format.version) {
            self.unknown(record);
            return;
        }
        let read = match header.rmgr {
            Rmgr::XACT => self.xact(record, span),
            Rmgr::XLOG => self.xlog(record, span),
            Rmgr::SMGR => self.smgr(record, span),
            Rmgr::DBASE => self.dbase(record, span),
            Rmgr::TBLSPC => self.tblspc(record, span),
            Rmgr::RELMAP => relmap::parse(record).map(|files| {
                self.note(span, EventKind::RelationMapChanged { files });
            }),
            Rmgr::STANDBY => {
                if let Some(running) = standby::running(record) {
                    self.open.forget_before(running.oldest);
                    self.files.running(running.oldest, running.next);
                }
                Some(())
            }
            // No other record of a known kind has the flag; what it means is not known.
            _ if header.is_special() => {
                self.unknown(record);
                Some(())
            }
            _ => Some(()),
        };
        if read.is_none() {
            self.index.change_map.widen(Widening::UnreadableRecord);
        }
    }

    /// A record that may change more than it names: in the databases it names, or anywhere.
    fn unknown(&mut self, record: &Record<'_>) {
        let map = &mut self.index.change_map;
        if record.blocks.is_empty() {
            map.widen(Widening::UnknownRecord);
        }
        for block in record.blocks {
            map.widen_database(block.relation.database, Widening::UnknownRecord);
        }
    }

    fn shared_row(&mut self, record: &Record<'_>, row: SharedRow, change: SharedRowChange) {
        match change {
            SharedRowChange::InPlace => self.files.changed_in_place(row, record.start),
            SharedRowChange::Deleted => self.files.deleted(record.header.xid, row, record.start),
        }
    }

    fn xact(&mut self, record: &Record<'_>, span: RecordSpan) -> Option<()> {
        if let XactRecord::End(end) = xact::parse(record, self.format.version)? {
            self.transaction_end(record, &end, span);
        }
        Some(())
    }

    fn transaction_end(&mut self, record: &Record<'_>, end: &TransactionEnd<'_>, span: RecordSpan) {
        // After an unreadable stretch only the start of the record before is known, from this one.
        let before = self.last.unwrap_or(RecordSpan {
            start: record.header.prev,
            end: record.start,
        });
        if let Some(from) = self.time.end(end.time, before) {
            let to = end.time;
            self.note(span, EventKind::ClockStep { from, to });
        }
        for relation in end.dropped() {
            self.index.change_map.limit_relation(relation);
        }
        let (xid, time) = (end.xid, end.time);
        if !end.committed {
            self.open.abort(xid, end.subtransactions());
            self.files.abort(xid, end.subtransactions());
            return;
        }
        self.catalogs_changed(end);
        let (files, created_complete) = self.files.commit(xid, end.subtransactions());
        let count = end.dropped().len() as u64;
        if count > 0 {
            let relations: Vec<Relation> = end.dropped().take(RELATIONS_PER_EVENT_MAX).collect();
            self.note(
                span,
                EventKind::RelationsDropped {
                    xid,
                    time,
                    relations,
                    count,
                    created: files.created,
                    created_complete,
                },
            );
        }
        if !files.databases.is_empty() || !files.tablespaces.is_empty() {
            self.note(
                span,
                EventKind::DropCommitted {
                    xid,
                    time,
                    before: files.before.unwrap_or(span.start),
                    databases: files.databases,
                    tablespaces: files.tablespaces,
                },
            );
        }
        if let Some(relations) = self.open.commit(xid, end.subtransactions()) {
            self.note(
                span,
                EventKind::RowsChanged {
                    xid,
                    time,
                    relations,
                },
            );
        }
    }

    fn catalogs_changed(&mut self, end: &TransactionEnd<'_>) {
        let changed = &mut self.index.catalogs_changed;
        for database in end.invalidated_databases() {
            if changed.first() == Some(&MANY_DATABASES) {
                return;
            }
            if let Err(place) = changed.binary_search(&database) {
                changed.insert(place, database);
            }
            if changed.len() > CATALOGS_CHANGED_MAX {
                *changed = vec![MANY_DATABASES];
            }
        }
    }

    fn xlog(&mut self, record: &Record<'_>, span: RecordSpan) -> Option<()> {
        match xlog::parse(record)? {
            XlogRecord::Checkpoint {
                checkpoint,
                shutdown,
            } => {
                self.index.redo_points.push(RedoPoint {
                    record: span,
                    redo: checkpoint.redo,
                    shutdown,
                    timeline: checkpoint.timeline,
                    previous_timeline: checkpoint.previous_timeline,
                    full_page_writes: checkpoint.full_page_writes,
                    time: checkpoint.time,
                });
                if checkpoint.timeline != checkpoint.previous_timeline {
                    let kind = EventKind::TimelineSwitch {
                        timeline: checkpoint.timeline,
                        previous: checkpoint.previous_timeline,
                        time: checkpoint.time,
                    };
                    self.note(span, kind);
                }
            }
            XlogRecord::ParameterChange(parameters) => {
                let minimal = parameters.wal_level == WalLevel::Minimal;
                // A piece in which the level changes holds log of both kinds.
                if minimal || self.minimal {
                    self.index.change_map.widen(Widening::MinimalLog);
                }
                self.minimal = minimal;
                self.index.parameter_changes.push(ParameterChange {
                    record: span,
                    parameters,
                });
            }
            XlogRecord::FullPageWrites(on) => self
                .index
                .full_page_writes
                .push(FullPageWritesChange { record: span, on }),
            XlogRecord::RestorePoint { time, name } => {
                let name = name.to_vec();
                self.note(span, EventKind::RestorePoint { name, time });
            }
            XlogRecord::EndOfRecovery {
                time,
                timeline,
                previous,
            } => {
                let kind = EventKind::TimelineSwitch {
                    timeline,
                    previous,
                    time,
                };
                self.note(span, kind);
            }
            XlogRecord::BackupEnd(_) | XlogRecord::Other => {}
        }
        Some(())
    }

    fn smgr(&mut self, record: &Record<'_>, span: RecordSpan) -> Option<()> {
        match smgr::parse(record)? {
            SmgrRecord::Create { relation, fork } => {
                // Of an unlogged relation only the init fork is logged.
                if matches!(fork, Fork::Main | Fork::Init) {
                    self.files.created(record.header.xid, relation);
                }
                let map = &mut self.index.change_map;
                map.limit(ForkKey { relation, fork }, 0);
                if fork == Fork::Main {
                    // Free space and visibility maps are created without a record of their own,
                    // later.
                    for fork in [Fork::FreeSpaceMap, Fork::VisibilityMap] {
                        map.limit(ForkKey { relation, fork }, 0);
                    }
                }
            }
            SmgrRecord::Truncate {
                relation,
                blocks,
                main,
                visibility_map,
                free_space_map,
            } => {
                let key = |fork| ForkKey { relation, fork };
                let map = &mut self.index.change_map;
                if main {
                    map.limit(key(Fork::Main), blocks);
                }
                if visibility_map {
                    // `visibilitymap_prepare_truncate` clears the tail of the last page that stays,
                    // which is not logged unless hint bits are.
                    let last = visibility_map_block(blocks, self.format.page_size);
                    let first =
                        visibility_map_block(blocks.saturating_sub(1), self.format.page_size);
                    let whole = blocks == 0 || first != last;
                    let limit = if whole { last } else { last + 1 };
                    map.limit(key(Fork::VisibilityMap), limit);
                    if !whole {
                        map.mark(key(Fork::VisibilityMap), last);
                    }
                }
                if free_space_map {
                    // Its upper levels change too; hardly anything of it is logged.
                    map.limit(key(Fork::FreeSpaceMap), 0);
                }
                let xid = record.header.xid;
                self.note(
                    span,
                    EventKind::RelationTruncated {
                        xid,
                        relation,
                        blocks,
                    },
                );
            }
        }
        Some(())
    }

    fn dbase(&mut self, record: &Record<'_>, span: RecordSpan) -> Option<()> {
        let kind = match dbase::parse(record, self.format.version)? {
            DbaseRecord::CreateByCopy { files, source } => {
                self.index.change_map.reset(files);
                EventKind::DatabaseCreated {
                    files,
                    source: Some(source),
                }
            }
            DbaseRecord::CreateByLog(files) => {
                self.index.change_map.reset(files);
                EventKind::DatabaseCreated {
                    files,
                    source: None,
                }
            }
            DbaseRecord::Drop {
                database,
                tablespaces,
            } => {
                for tablespace in &tablespaces {
                    self.index.change_map.reset(crate::DatabaseFiles {
                        tablespace: *tablespace,
                        database,
                    });
                }
                self.files
                    .dropped_database(record.header.xid, database, record.start);
                EventKind::DatabaseDropped {
                    database,
                    tablespaces,
                }
            }
        };
        self.note(span, kind);
        Some(())
    }

    fn tblspc(&mut self, record: &Record<'_>, span: RecordSpan) -> Option<()> {
        let kind = match tblspc::parse(record)? {
            TblspcRecord::Create { tablespace, path } => EventKind::TablespaceCreated {
                tablespace,
                path: path.get(..PATH_LEN_MAX).unwrap_or(path).to_vec(),
            },
            TblspcRecord::Drop { tablespace } => {
                self.files
                    .dropped_tablespace(record.header.xid, tablespace, record.start);
                EventKind::TablespaceDropped { tablespace }
            }
        };
        self.note(span, kind);
        Some(())
    }

    fn note(&mut self, record: RecordSpan, kind: EventKind) {
        // A restore must know of every tablespace, and they are few.
        let always = matches!(kind, EventKind::TablespaceCreated { .. });
        if always || self.index.events.len() < EVENTS_MAX {
            self.index.events.push(Event { record, kind });
        } else {
            self.index.events_left_out += 1;
        }
    }
}

#[cfg(test)]
mod tests;
