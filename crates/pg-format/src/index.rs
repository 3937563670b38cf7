//! The log index: what has to be known about a piece of the log, made once while its bytes pass by.
//!
//! A [`LogIndexer`] is pushed the log's bytes in order and cut where a piece ends. A record belongs
//! to the piece in which its last byte lies (padding included), so that the piece from `a` to `b`
//! describes exactly the records that end in `(a, b]`. Neither the split of the bytes nor the
//! places of the cuts change what the pieces say together.
//!
//! State: the indexer is owned by whoever streams the log. What must survive a crash is the
//! [`CarryState`] that comes with each cut, stored beside the index before the next piece; nothing
//! of a half-read record is in it, the stored log has that.

pub mod carry;
pub mod change_map;
pub mod digest;
pub mod events;
pub mod files;
mod hash;
pub mod indexer;
pub mod rows;
pub mod time_map;
mod wire;

pub use carry::CarryState;
pub use change_map::{ChangeMap, ForkChanges, ForkKey, Widening, visibility_map_block};
pub use digest::EventDigest;
pub use events::{
    Event, EventKind, FullPageWritesChange, LogIndex, ParameterChange, RedoPoint, RelationRows,
    Unparsed,
};
pub use files::CreatedRelation;
pub use indexer::{Cut, LogIndexer};

/// The number of the rules by which indexes are made. It rises whenever a rule changes, so that an
/// index made by a rule that turned out wrong can be found, and made again from the kept log.
pub const RULE_SET: u32 = 2;
/// The lowest rule set whose change maps are made by the rules of [`RULE_SET`]: what came since concerns
/// events only.
pub const CHANGE_MAP_RULE_SET: u32 = 1;

/// Stands for any number of databases, where there are too many to list. No database has it.
pub const MANY_DATABASES: u32 = u32::MAX;
