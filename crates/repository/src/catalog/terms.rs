//! What people have said of a cluster: for how many days it is kept, what must not go, what recovery is to
//! achieve. Each is an entry of the catalog, and the last one counts.

use borealis_base::Timestamp;
use serde::Serialize;

use super::{CatalogBody, Cluster};
use crate::open::Repository;
use crate::retention::{Days, HoldRange};
use crate::{Error, Result};

/// Longest name of a hold.
pub const HOLD_NAME_BYTES_MAX: usize = 255;
/// Longest reason of a hold.
pub const HOLD_REASON_BYTES_MAX: usize = 4_096;

/// What recovery is to achieve. `None` where nobody has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Objectives {
    /// The most that may be lost: how far the latest restorable moment may be behind the present.
    pub recovery_point_seconds: Option<u64>,
    /// The longest that a recovery may take.
    pub recovery_time_seconds: Option<u64>,
}

/// A hold to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHold {
    /// Its name, unique among the holds of the cluster.
    pub name: String,
    /// Why.
    pub reason: String,
    /// What it is on.
    pub range: HoldRange,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
}

impl NewHold {
    fn check(&self, now: Timestamp) -> Result<()> {
        let usage = |what: String| Err(Error::Usage { what });
        let name = &self.name;
        if name.is_empty()
            || name.len() > HOLD_NAME_BYTES_MAX
            || name.trim() != name
            || name.chars().any(char::is_control)
        {
            return usage(format!(
                "{name:?} is not the name of a hold: 1 to {HOLD_NAME_BYTES_MAX} bytes, without control characters and without spaces at its ends"
            ));
        }
        if self.reason.trim().is_empty() || self.reason.len() > HOLD_REASON_BYTES_MAX {
            return usage(format!(
                "a hold needs a reason of at most {HOLD_REASON_BYTES_MAX} bytes"
            ));
        }
        if let HoldRange::Moments(from, to) = self.range
            && from > to
        {
            return usage(format!("a hold from {from} can't end before that, at {to}"));
        }
        match self.until {
            Some(until) if until <= now => usage(format!("a hold until {until} has ended already")),
            _ => Ok(()),
        }
    }
}

impl Repository {
    /// Promises any second of the last `days` of a cluster. Fewer than before takes effect by the next plan;
    /// more brings nothing back.
    pub async fn set_retention(&self, cluster: &str, days: Days) -> Result<()> {
        let body = CatalogBody::RetentionSet {
            cluster: cluster.to_owned(),
            days,
        };
        self.change(cluster, |_| Ok(body.clone())).await.map(|_| ())
    }

    /// Says what recovery of a cluster is to achieve.
    pub async fn set_objectives(&self, cluster: &str, objectives: Objectives) -> Result<()> {
        let body = CatalogBody::ObjectivesSet {
            cluster: cluster.to_owned(),
            objectives,
        };
        self.change(cluster, |_| Ok(body.clone())).await.map(|_| ())
    }

    /// Makes a hold; durable when this returns. Returns its number.
    ///
    /// # Errors
    /// Refused where a hold of this name was made and not deleted.
    pub async fn create_hold(&self, cluster: &str, hold: NewHold) -> Result<u64> {
        hold.check(self.environment().clock.now())?;
        self.change(cluster, |found| {
            if found.holds.iter().any(|other| other.name == hold.name) {
                return Err(Error::refused(
                    format!("cluster {cluster} has a hold `{}`", hold.name),
                    "Choose another name, or delete that one first.",
                ));
            }
            Ok(CatalogBody::HoldCreated {
                cluster: cluster.to_owned(),
                name: hold.name.clone(),
                reason: hold.reason.clone(),
                range: hold.range,
                until: hold.until,
            })
        })
        .await
    }

    /// Deletes a hold. What it kept goes with the next plans, not here.
    pub async fn delete_hold(&self, cluster: &str, name: &str) -> Result<()> {
        let decide = |found: &Cluster| {
            let hold = found.holds.iter().find(|hold| hold.name == name);
            let hold = hold.ok_or_else(|| Error::NotFound {
                what: format!("hold `{name}` of cluster {cluster}"),
            })?;
            Ok(CatalogBody::HoldDeleted {
                cluster: cluster.to_owned(),
                name: name.to_owned(),
                number: hold.number,
            })
        };
        self.change(cluster, decide).await.map(|_| ())
    }
}
