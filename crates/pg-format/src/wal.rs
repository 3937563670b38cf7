//! The write-ahead log: pages, records, and what the records of each resource manager say.

#[cfg(test)]
pub(crate) mod builder;
mod collect;
pub mod page;
pub mod reader;
pub mod record;
pub mod rmgr;

pub use page::WAL_PAGE_SIZE;
pub use reader::{LogEvent, LogFormat, Start, UnparsedReason, WalReader};
pub use record::{BlockImage, BlockRef, Record, RecordHeader};
pub use rmgr::Rmgr;
