//! The messages of `docs/formats/log-index.proto`, field for field; that page says what each means.

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LogIndex {
    #[prost(uint32, tag = "1")]
    pub(super) rule_set: u32,
    #[prost(fixed64, tag = "2")]
    pub(super) start: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) end: u64,
    #[prost(fixed64, optional, tag = "4")]
    pub(super) first_record_start: Option<u64>,
    #[prost(message, optional, tag = "5")]
    pub(super) last_record: Option<Span>,
    #[prost(uint64, tag = "6")]
    pub(super) records: u64,
    #[prost(message, optional, tag = "7")]
    pub(super) change_map: Option<ChangeMap>,
    #[prost(message, optional, tag = "8")]
    pub(super) time_steps: Option<TimeSteps>,
    #[prost(message, repeated, tag = "9")]
    pub(super) redo_points: Vec<RedoPoint>,
    #[prost(message, repeated, tag = "10")]
    pub(super) parameter_changes: Vec<ParameterChange>,
    #[prost(message, repeated, tag = "11")]
    pub(super) full_page_writes: Vec<FullPageWritesChange>,
    #[prost(message, repeated, tag = "12")]
    pub(super) events: Vec<Event>,
    #[prost(uint64, tag = "13")]
    pub(super) events_left_out: u64,
    #[prost(uint64, tag = "14")]
    pub(super) transactions_left_out: u64,
    #[prost(uint64, tag = "15")]
    pub(super) samples_left_out: u64,
    #[prost(message, repeated, tag = "16")]
    pub(super) unparsed: Vec<Unparsed>,
    #[prost(uint64, tag = "17")]
    pub(super) unparsed_left_out: u64,
    #[prost(uint32, repeated, tag = "18")]
    pub(super) catalogs_changed: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EventDigest {
    #[prost(uint32, tag = "1")]
    pub(super) rule_set: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) events: Vec<Event>,
    #[prost(message, optional, tag = "3")]
    pub(super) left_out: Option<LeftOut>,
    #[prost(uint32, repeated, tag = "4")]
    pub(super) catalogs_changed: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct LeftOut {
    #[prost(uint64, tag = "1")]
    pub(super) rows: u64,
    #[prost(bool, tag = "2")]
    pub(super) drops: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Span {
    #[prost(fixed64, tag = "1")]
    pub(super) start: u64,
    #[prost(fixed64, tag = "2")]
    pub(super) end: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Relation {
    #[prost(uint32, tag = "1")]
    pub(super) tablespace: u32,
    #[prost(uint32, tag = "2")]
    pub(super) database: u32,
    #[prost(uint32, tag = "3")]
    pub(super) number: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct DatabaseFiles {
    #[prost(uint32, tag = "1")]
    pub(super) tablespace: u32,
    #[prost(uint32, tag = "2")]
    pub(super) database: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ChangeMap {
    #[prost(message, repeated, tag = "1")]
    pub(super) forks: Vec<ForkChanges>,
    #[prost(message, repeated, tag = "2")]
    pub(super) resets: Vec<DatabaseFiles>,
    #[prost(uint32, repeated, tag = "3")]
    pub(super) widened_databases: Vec<u32>,
    #[prost(bool, tag = "4")]
    pub(super) everything: bool,
    #[prost(message, repeated, tag = "5")]
    pub(super) widenings: Vec<Counter>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ForkChanges {
    #[prost(message, optional, tag = "1")]
    pub(super) relation: Option<Relation>,
    #[prost(uint32, tag = "2")]
    pub(super) fork: u32,
    #[prost(uint32, optional, tag = "3")]
    pub(super) limit: Option<u32>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) blocks: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Counter {
    #[prost(uint32, tag = "1")]
    pub(super) reason: u32,
    #[prost(uint64, tag = "2")]
    pub(super) times: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TimeSteps {
    #[prost(sfixed64, tag = "1")]
    pub(super) first_settled_through_us: i64,
    #[prost(fixed64, tag = "2")]
    pub(super) first_start: u64,
    #[prost(uint64, repeated, tag = "3")]
    pub(super) later_us: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub(super) further: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    pub(super) lens: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct RedoPoint {
    #[prost(message, optional, tag = "1")]
    pub(super) record: Option<Span>,
    #[prost(fixed64, tag = "2")]
    pub(super) redo: u64,
    #[prost(bool, tag = "3")]
    pub(super) shutdown: bool,
    #[prost(uint32, tag = "4")]
    pub(super) timeline: u32,
    #[prost(uint32, tag = "5")]
    pub(super) previous_timeline: u32,
    #[prost(bool, tag = "6")]
    pub(super) full_page_writes: bool,
    #[prost(sfixed64, tag = "7")]
    pub(super) time_us: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct ParameterChange {
    #[prost(message, optional, tag = "1")]
    pub(super) record: Option<Span>,
    #[prost(int32, tag = "2")]
    pub(super) max_connections: i32,
    #[prost(int32, tag = "3")]
    pub(super) max_worker_processes: i32,
    #[prost(int32, tag = "4")]
    pub(super) max_wal_senders: i32,
    #[prost(int32, tag = "5")]
    pub(super) max_prepared_transactions: i32,
    #[prost(int32, tag = "6")]
    pub(super) max_locks_per_transaction: i32,
    #[prost(int32, tag = "7")]
    pub(super) wal_level: i32,
    #[prost(bool, tag = "8")]
    pub(super) wal_log_hints: bool,
    #[prost(bool, tag = "9")]
    pub(super) track_commit_timestamp: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct FullPageWritesChange {
    #[prost(message, optional, tag = "1")]
    pub(super) record: Option<Span>,
    #[prost(bool, tag = "2")]
    pub(super) on: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Unparsed {
    #[prost(fixed64, tag = "1")]
    pub(super) from: u64,
    #[prost(uint32, tag = "2")]
    pub(super) reason: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RestorePoint {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) name: Vec<u8>,
    #[prost(sfixed64, tag = "2")]
    pub(super) time_us: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct TimelineSwitch {
    #[prost(uint32, tag = "1")]
    pub(super) timeline: u32,
    #[prost(uint32, tag = "2")]
    pub(super) previous: u32,
    #[prost(sfixed64, tag = "3")]
    pub(super) time_us: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RelationsDropped {
    #[prost(uint32, tag = "1")]
    pub(super) xid: u32,
    #[prost(sfixed64, tag = "2")]
    pub(super) time_us: i64,
    #[prost(message, repeated, tag = "3")]
    pub(super) relations: Vec<Relation>,
    #[prost(uint64, tag = "4")]
    pub(super) count: u64,
    #[prost(message, repeated, tag = "5")]
    pub(super) created: Vec<CreatedRelation>,
    #[prost(bool, tag = "6")]
    pub(super) created_complete: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct CreatedRelation {
    #[prost(message, optional, tag = "1")]
    pub(super) relation: Option<Relation>,
    #[prost(bool, tag = "2")]
    pub(super) filled: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DropCommitted {
    #[prost(uint32, tag = "1")]
    pub(super) xid: u32,
    #[prost(sfixed64, tag = "2")]
    pub(super) time_us: i64,
    #[prost(fixed64, tag = "3")]
    pub(super) before: u64,
    #[prost(uint32, repeated, tag = "4")]
    pub(super) databases: Vec<u32>,
    #[prost(uint32, repeated, tag = "5")]
    pub(super) tablespaces: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct RelationTruncated {
    #[prost(uint32, tag = "1")]
    pub(super) xid: u32,
    #[prost(message, optional, tag = "2")]
    pub(super) relation: Option<Relation>,
    #[prost(uint32, tag = "3")]
    pub(super) blocks: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct DatabaseCreated {
    #[prost(message, optional, tag = "1")]
    pub(super) files: Option<DatabaseFiles>,
    #[prost(message, optional, tag = "2")]
    pub(super) source: Option<DatabaseFiles>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DatabaseDropped {
    #[prost(uint32, tag = "1")]
    pub(super) database: u32,
    #[prost(uint32, repeated, tag = "2")]
    pub(super) tablespaces: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TablespaceCreated {
    #[prost(uint32, tag = "1")]
    pub(super) tablespace: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) path: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct RelationRows {
    #[prost(message, optional, tag = "1")]
    pub(super) relation: Option<Relation>,
    #[prost(uint64, tag = "2")]
    pub(super) inserted: u64,
    #[prost(uint64, tag = "3")]
    pub(super) updated: u64,
    #[prost(uint64, tag = "4")]
    pub(super) deleted: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RowsChanged {
    #[prost(uint32, tag = "1")]
    pub(super) xid: u32,
    #[prost(sfixed64, tag = "2")]
    pub(super) time_us: i64,
    #[prost(message, repeated, tag = "3")]
    pub(super) relations: Vec<RelationRows>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct ClockStep {
    #[prost(sfixed64, tag = "1")]
    pub(super) from_us: i64,
    #[prost(sfixed64, tag = "2")]
    pub(super) to_us: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Event {
    #[prost(message, optional, tag = "1")]
    pub(super) record: Option<Span>,
    #[prost(oneof = "event::Kind", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    pub(super) kind: Option<event::Kind>,
}

/// What an event is.
pub(super) mod event {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(in super::super) enum Kind {
        #[prost(message, tag = "2")]
        RestorePoint(super::RestorePoint),
        #[prost(message, tag = "3")]
        TimelineSwitch(super::TimelineSwitch),
        #[prost(message, tag = "4")]
        RelationsDropped(super::RelationsDropped),
        #[prost(message, tag = "5")]
        RelationTruncated(super::RelationTruncated),
        #[prost(message, tag = "6")]
        DatabaseCreated(super::DatabaseCreated),
        #[prost(message, tag = "7")]
        DatabaseDropped(super::DatabaseDropped),
        #[prost(message, tag = "8")]
        TablespaceCreated(super::TablespaceCreated),
        #[prost(uint32, tag = "9")]
        TablespaceDropped(u32),
        #[prost(message, tag = "10")]
        RelationMapChanged(super::DatabaseFiles),
        #[prost(message, tag = "11")]
        RowsChanged(super::RowsChanged),
        #[prost(message, tag = "12")]
        ClockStep(super::ClockStep),
        #[prost(message, tag = "13")]
        DropCommitted(super::DropCommitted),
    }
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct ClockSample {
    #[prost(sfixed64, tag = "1")]
    pub(super) clock_us: i64,
    #[prost(fixed64, tag = "2")]
    pub(super) at: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OpenTransaction {
    #[prost(uint32, tag = "1")]
    pub(super) xid: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) relations: Vec<RelationRows>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CarryState {
    #[prost(uint32, tag = "1")]
    pub(super) rule_set: u32,
    #[prost(fixed64, tag = "2")]
    pub(super) cut: u64,
    #[prost(fixed64, tag = "3")]
    pub(super) resume_at: u64,
    #[prost(bool, tag = "4")]
    pub(super) anywhere: bool,
    #[prost(message, optional, tag = "5")]
    pub(super) last_record: Option<Span>,
    #[prost(fixed64, optional, tag = "6")]
    pub(super) lost_since: Option<u64>,
    #[prost(sfixed64, optional, tag = "7")]
    pub(super) settled_us: Option<i64>,
    #[prost(bool, tag = "8")]
    pub(super) stepped_back: bool,
    #[prost(bool, tag = "9")]
    pub(super) minimal_log: bool,
    #[prost(message, repeated, tag = "10")]
    pub(super) samples: Vec<ClockSample>,
    #[prost(message, repeated, tag = "11")]
    pub(super) transactions: Vec<OpenTransaction>,
    #[prost(message, repeated, tag = "12")]
    pub(super) files: Vec<TransactionFiles>,
    #[prost(message, repeated, tag = "13")]
    pub(super) in_place: Vec<InPlaceChange>,
    #[prost(uint32, optional, tag = "14")]
    pub(super) known_from: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TransactionFiles {
    #[prost(uint32, tag = "1")]
    pub(super) xid: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) created: Vec<CreatedRelation>,
    #[prost(bool, tag = "3")]
    pub(super) created_more: bool,
    #[prost(uint32, repeated, tag = "4")]
    pub(super) databases: Vec<u32>,
    #[prost(uint32, repeated, tag = "5")]
    pub(super) tablespaces: Vec<u32>,
    #[prost(fixed64, optional, tag = "6")]
    pub(super) before: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct InPlaceChange {
    #[prost(message, optional, tag = "1")]
    pub(super) relation: Option<Relation>,
    #[prost(uint32, tag = "2")]
    pub(super) block: u32,
    #[prost(uint32, tag = "3")]
    pub(super) offset: u32,
    #[prost(fixed64, tag = "4")]
    pub(super) at: u64,
}
