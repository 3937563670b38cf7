//! What can be restored, and how: pure functions over [`LineageState`].

pub mod state;

pub use state::{
    BaseBackupSummary, BranchSummary, GapSummary, LineageState, ObjectRef, PieceSummary,
    PinSummary, RecordSpan, SettledSummary,
};
