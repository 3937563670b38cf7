//! What is promised.

use std::fmt;
use std::time::Duration;

use borealis_base::{Branch, LineageId, Position, Timestamp};
use serde::Serialize;

use super::age::{newest_recorded, recorded_span};
use crate::catalog::Cluster;
use crate::plan::{LineageState, windows};
use crate::{Error, Result};

/// Most days that the window can be promised for.
pub const DAYS_MAX: u32 = 35;
/// Days promised where nobody has said anything else.
pub const DAYS_DEFAULT: Days = Days(1);

/// Days of the window, 1 to [`DAYS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Days(u32);

impl Days {
    /// That many days.
    ///
    /// # Errors
    /// Usage where it is none of 1 to [`DAYS_MAX`].
    pub fn new(days: u32) -> Result<Self> {
        if (1..=DAYS_MAX).contains(&days) {
            return Ok(Self(days));
        }
        Err(Error::Usage {
            what: format!("{days} is no number of days to keep: name 1 to {DAYS_MAX}"),
        })
    }

    /// How many.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As a length of time.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64 * 86_400)
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} day{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// How much of a cluster's history is kept whatever else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Any second of that many days can be restored to.
    pub retention: Days,
    /// Any second of this time can be gone back to in place; zero where nothing is promised.
    pub backtrack: Duration,
}

impl Policy {
    /// That of a cluster.
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            retention: cluster.retention.unwrap_or(DAYS_DEFAULT),
            ..Self::default()
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retention: DAYS_DEFAULT,
            backtrack: Duration::ZERO,
        }
    }
}

/// What a hold is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum HoldRange {
    /// All that can be restored, now and as long as the hold stands.
    Everything,
    /// Each moment from the first to the second, both included.
    Moments(Timestamp, Timestamp),
}

/// Something a person has said must not go, such as a legal hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// Its number in the catalog.
    pub number: u64,
    /// Its name, unique among the holds of a cluster that stand.
    pub name: String,
    /// Why, for people.
    pub reason: String,
    /// What it is on.
    pub range: HoldRange,
    /// When it ends by itself; else it stands until it is deleted.
    pub until: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Hold {
    /// Whether it stands at `now`.
    pub fn stands(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now <= until)
    }
}

/// A lineage that was born of this one and can't be restored from its own base backups yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Child {
    /// Which.
    pub lineage: LineageId,
    /// The branch of `at`.
    pub branch: Branch,
    /// Where it was born.
    pub at: Position,
}

/// Whether a lineage still grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is its cluster's newest one, and nobody has said that it takes no more log.
    Growing,
    /// It has ended.
    Ended {
        /// How long ago.
        ago: Duration,
        /// Whether it may go altogether: another lineage of the cluster can be restored in its place, or
        /// the cluster was retired.
        replaced: bool,
    },
}

/// Everything that a plan for a lineage rests on besides its ledger and its snapshots.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The cluster's policy.
    pub policy: Policy,
    /// Whether it still grows.
    pub standing: Standing,
    /// The cluster's holds.
    pub holds: Vec<Hold>,
    /// Lineages born of it that still need it.
    pub children: Vec<Child>,
}

impl Terms {
    /// Those of a lineage that grows, with nothing but a policy.
    pub const fn of(policy: Policy) -> Self {
        Self {
            policy,
            standing: Standing::Growing,
            holds: Vec::new(),
            children: Vec::new(),
        }
    }
}

/// Why an object is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "promise", rename_all = "snake_case")]
pub enum Promise {
    /// Any second of the last so many days.
    Window {
        /// How many.
        days: Days,
    },
    /// Any second that can be gone back to in place.
    Backtrack {
        /// How far, in seconds.
        seconds: u64,
    },
    /// The latest state that can be restored: there is always one.
    Latest,
    /// A snapshot, until it is deleted.
    Snapshot {
        /// Its name.
        name: String,
    },
    /// A hold.
    Hold {
        /// Its name.
        name: String,
    },
    /// A lineage born of this one, until it has a base backup of its own.
    Child {
        /// Which.
        lineage: LineageId,
    },
    /// It is newer than all that can be restored yet.
    Young,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window { days } => write!(f, "any second of the last {days}"),
            Self::Backtrack { seconds } => {
                let window = borealis_base::show_duration(Duration::from_secs(*seconds));
                write!(f, "the backtrack window of {window}")
            }
            Self::Latest => f.write_str("the latest state"),
            Self::Snapshot { name } => write!(f, "snapshot `{name}`"),
            Self::Hold { name } => write!(f, "hold `{name}`"),
            Self::Child { lineage } => write!(f, "lineage {lineage}, born of this one"),
            Self::Young => f.write_str("newer than what can be restored"),
        }
    }
}

/// Whether `lineage` of `cluster` still grows. `newer` are the lineages entered after it.
///
/// That time has passed since a lineage ended is believed only as far as a newer one's ledger shows it
/// ([`recorded_span`]), where there is one: one step of a clock must not end the old window. For the last
/// lineage of a cluster `now` alone tells: the store's clock, where it can be asked.
pub fn standing(
    cluster: &Cluster,
    lineage: LineageId,
    state: &LineageState,
    newer: &[LineageState],
    now: Timestamp,
) -> Standing {
    let after = (cluster.lineages.iter())
        .skip_while(|record| record.lineage != lineage)
        .nth(1);
    if let Some(next) = after {
        let shown = newer.iter().map(recorded_span).max().unwrap_or_default();
        return Standing::Ended {
            ago: now.since(next.added_at).min(shown),
            replaced: newer.iter().any(|state| !windows(state).is_empty()),
        };
    }
    match (cluster.retired_at, &state.retired) {
        (Some(at), _) => Standing::Ended {
            ago: now.since(at),
            replaced: true,
        },
        (None, Some(_)) => Standing::Ended {
            ago: newest_recorded(state).map_or(Duration::ZERO, |at| now.since(at)),
            replaced: false,
        },
        (None, None) => Standing::Growing,
    }
}
