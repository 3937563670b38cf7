//! Delta: a restore into a data directory that is there already, of which only what differs is written.
//!
//! What differs is told by content alone: pages and files are read, once, and compared with what belongs
//! there; neither times nor sizes nor page positions prove that bytes are the same. The order keeps a
//! half-done delta from ever being started as a database:
//!
//! 1. everything that can be refused is refused, nothing having been touched;
//! 2. the control file is moved away, durably, so that no server starts from here on, and the mark of an
//!    unfinished restore takes its place: the same restore is run again and goes on;
//! 3. what does not belong there is removed;
//! 4. what differs is written; log and configuration are always written;
//! 5. the control file comes last, as in every restore.
//!
//! Whatever the directory's links lead to may belong to somebody else: a copy of a data directory has the
//! links of the original. So those places are used only where the directory is at home ([`existing`]) or
//! where a mapping names them.

pub mod existing;
pub mod sweep;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use borealis_base::{ByteLen, Progress, Unit};
use serde::Serialize;

/// Bytes that a delta has kept, written and deleted, so far. Log and configuration, which are always
/// written, do not count.
#[derive(Debug, Default)]
pub struct Tally {
    kept: AtomicU64,
    written: AtomicU64,
    deleted: AtomicU64,
}

impl Tally {
    /// These bytes were there already.
    pub fn keep(&self, bytes: u64) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
    }

    /// These bytes were written.
    pub fn write(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// These bytes do not belong there.
    pub fn delete(&self, bytes: u64) {
        self.deleted.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The present numbers.
    pub fn report(&self) -> Done {
        Done {
            kept_bytes: self.kept.load(Ordering::Relaxed),
            written_bytes: self.written.load(Ordering::Relaxed),
            deleted_bytes: self.deleted.load(Ordering::Relaxed),
        }
    }
}

/// A progress that shows beside the bar what a delta has done so far.
pub struct Shown<'a> {
    /// Where it is shown.
    pub progress: &'a dyn Progress,
    /// What it is told from.
    pub tally: Arc<Tally>,
}

impl Progress for Shown<'_> {
    fn phase(&self, name: &str, unit: Unit, total: Option<u64>) {
        self.progress.phase(name, unit, total);
    }

    fn advance(&self, amount: u64) {
        self.note(&self.tally.report().to_string());
        self.progress.advance(amount);
    }

    fn note(&self, text: &str) {
        self.progress.note(text);
    }
}

/// What a delta did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Bytes that were there already.
    pub kept_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Bytes of files, and of ends of files, that do not belong there.
    pub deleted_bytes: u64,
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "kept {}, wrote {}, deleted {}",
            ByteLen(self.kept_bytes),
            ByteLen(self.written_bytes),
            ByteLen(self.deleted_bytes)
        )
    }
}

/// What a delta will do, as far as names and sizes tell: no content has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Bytes that are there under the right name, to be read and compared.
    pub compare_bytes: u64,
    /// Bytes that are not there, to be written in any case.
    pub write_bytes_at_least: u64,
    /// Bytes of files, and of ends of files, that do not belong there.
    pub delete_bytes: u64,
    /// Files, links and directories that do not belong there.
    pub delete_entries: u64,
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} to compare, at least {} to write, {} in {} places to delete, by names and sizes alone",
            ByteLen(self.compare_bytes),
            ByteLen(self.write_bytes_at_least),
            ByteLen(self.delete_bytes),
            self.delete_entries
        )
    }
}
