//! What can be restored, and how: pure functions over [`LineageState`].
//!
//! ```text
//! LineageState ── Coverage ──> windows             what can be restored
//!              └─ settlements ─> locate / resolve  which record a time or a position means
//!                               └> plan_restore    which base backup and which log reach it
//! ```
//!
//! One function, [`Coverage`], decides what log is there without a break, for all of them.

pub mod coverage;
pub mod damage;
pub mod resolve;
pub mod restore;
pub mod selection;
pub mod settlement;
pub mod state;
pub mod windows;

#[cfg(test)]
mod tests;

pub use coverage::{Coverage, Leg, Stretch};
pub use damage::{Damage, DamagedBaseBackup, Fault, LostRange, Part, lost, lost_pins};
pub use resolve::{
    Located, Lookup, Notice, PlanError, RecordSearch, ResolvedTarget, StepSearch, Target, locate,
    newest_branch, resolve,
};
pub use restore::{LogRange, PieceRange, RestorePlan, plan_restore, plan_to, what_a_pin_needs};
pub use selection::{Runs, Selected, Selection};
pub use settlement::{Settlement, settlements};
pub use state::{
    BaseBackupSummary, BranchSummary, Forgotten, GapSummary, LineageState, Merged, NamesSummary,
    ObjectRef, PartialSummary, PieceSummary, PinSummary, Run, SettledSummary,
};
pub use windows::{Edge, KnownSteps, Window, steps_wanted, windows, windows_with};
