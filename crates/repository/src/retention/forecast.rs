//! What goes on which of the next days, if backing up goes on as it does.

use std::collections::BTreeSet;
use std::time::Duration;

use borealis_base::Timestamp;
use serde::Serialize;

use super::demand::Demands;
use super::index::Index;
use super::plan::Held;
use super::terms::Terms;
use crate::plan::LineageState;

/// Days that [`forecast`] looks ahead.
pub const DAYS_FORECAST: u32 = 30;

/// What goes by one day, of what is stored now, that had not gone by the day before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForecastDay {
    /// Days from now; 0 is now.
    pub day: u32,
    /// The moment.
    pub at: Timestamp,
    /// Base backups that go, by entry.
    pub base_backups: Vec<u64>,
    /// Stored bytes of log and names that go.
    pub log_bytes: u64,
    /// Stored bytes of pages that go with the base backups, where that was looked up.
    pub page_bytes: Option<u64>,
    /// Holds that end.
    pub holds: Vec<String>,
}

impl ForecastDay {
    /// Whether nothing happens.
    pub fn is_empty(&self) -> bool {
        self.base_backups.is_empty() && self.log_bytes == 0 && self.holds.is_empty()
    }
}

/// Today and each of the next [`DAYS_FORECAST`] days. Of a lineage that grows it is taken that it goes on to
/// grow, and that new base backups take the place of old ones; of that nothing is counted.
pub fn forecast(state: &LineageState, terms: &Terms, now: Timestamp) -> Vec<ForecastDay> {
    let index = Index::of(state, terms.children.iter().map(|child| child.branch));
    let demands = Demands {
        index: &index,
        terms,
        now,
    };
    let mut bases: BTreeSet<u64> = state.base_backups.iter().map(|base| base.entry).collect();
    let log = state.pieces.iter().map(|piece| piece.stored_bytes);
    let mut bytes: u64 = log
        .chain(state.names.iter().map(|it| it.stored_bytes))
        .sum();
    let mut before = None;
    (0..=DAYS_FORECAST)
        .map(|day| {
            let ahead = Duration::from_secs(u64::from(day) * 86_400);
            let held = Held::of(&index, demands.after(ahead));
            let kept = held.bases();
            let left = held.log_bytes(&index) + held.names_bytes(&index);
            let at = now.plus(ahead);
            let ends =
                |until: Timestamp| before.is_some_and(|before| before <= until) && until < at;
            let forecast = ForecastDay {
                day,
                at,
                base_backups: bases.difference(&kept).copied().collect(),
                log_bytes: bytes.saturating_sub(left),
                page_bytes: None,
                holds: (terms.holds.iter())
                    .filter(|hold| hold.until.is_some_and(ends))
                    .map(|hold| hold.name.clone())
                    .collect(),
            };
            before = Some(at);
            bytes = bytes.min(left);
            bases.retain(|base| kept.contains(base));
            forecast
        })
        .collect()
}
