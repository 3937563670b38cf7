//! What is kept, why, and until when: pure functions over [`LineageState`](crate::plan::LineageState).
//!
//! Retention is stated as [`Promise`]s. Each says which records must stay restorable, and so which base
//! backups, which log and which names are kept; what no promise holds may go.
//!
//! ```text
//! state + Terms + now ── Planner ──> what each promise holds ──> RetentionPlan   kept, with reasons; removed
//!                                                            └─> forecast        what goes on which day
//! manifests ── PackUse ──> bytes that go with a set of base backups
//! ```
//!
//! Nothing here deletes anything or reads a clock: [`maintenance`](crate::maintenance) deletes what expired, and plans
//! again first.

mod age;
mod demand;
mod forecast;
mod index;
mod plan;
mod references;
mod terms;
mod usage;

pub use age::{RECORDED_STEP_MAX, recorded_span};
pub use forecast::{DAYS_FORECAST, ForecastDay, forecast};
pub use plan::{Expiry, Kept, Object, Removed, RetentionPlan, expiry, plan};
pub use terms::{
    Child, DAYS_DEFAULT, DAYS_MAX, Days, Hold, HoldRange, Policy, Promise, Standing, Terms,
    standing,
};
pub use usage::{PackUse, Released, SnapshotBytes, snapshot_bytes};
