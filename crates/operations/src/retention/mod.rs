//! What a cluster's backups are kept for, until when, and what they take.
//!
//! The rules are in `borealis_repository::retention`; here they are given what they rest on. Nothing here
//! deletes anything.

mod usage;

use std::collections::BTreeSet;

use borealis_base::{ByteLen, Timestamp};
use borealis_repository::catalog::{Cluster, NewHold, Objectives};
use borealis_repository::pages::fetch::Fetcher;
use borealis_repository::pages::manifest::Manifest;
use borealis_repository::plan::LineageState;
use borealis_repository::retention::{
    Days, ForecastDay, Hold, PackUse, Policy, RetentionPlan, Standing, Terms, forecast, plan,
};
use serde::Serialize;

use crate::error::Result;
use crate::site::Site;

pub use usage::{AuroraBytes, ClusterUsage, Prices, SnapshotUsage, UsageReport, usage};

/// What a cluster's history is kept for.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// The cluster.
    pub cluster: String,
    /// Any second of that many days.
    pub retention_days: Days,
    /// Whether nobody has said so, and it is the default.
    pub default: bool,
    /// How long it can be gone back in place; nothing yet.
    pub backtrack_seconds: u64,
    /// Holds that were made and not deleted.
    pub holds: Vec<Hold>,
    /// What recovery is to achieve.
    pub objectives: Objectives,
}

/// A lineage of a cluster with all that a plan for it rests on.
pub(crate) struct Loaded {
    pub(crate) lineage: borealis_repository::Lineage,
    pub(crate) state: LineageState,
    pub(crate) terms: Terms,
}

/// The plan of one lineage.
#[derive(Debug, Clone, Serialize)]
pub struct LineagePlan {
    /// Whether it still grows.
    pub growing: bool,
    /// What is kept and what goes.
    #[serde(flatten)]
    pub plan: RetentionPlan,
    /// The next days.
    pub forecast: Vec<ForecastDay>,
}

/// The plans of a cluster's lineages, the oldest first.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The cluster.
    pub cluster: String,
    /// The days that it was planned for.
    pub retention_days: Days,
    /// The plans.
    pub lineages: Vec<LineagePlan>,
}

/// The policy of a cluster, with `days` in place of what was said.
pub(crate) fn policy(cluster: &Cluster, days: Option<Days>) -> Policy {
    let policy = Policy::of(cluster);
    Policy {
        retention: days.unwrap_or(policy.retention),
        ..policy
    }
}

/// Loads the lineages of a cluster, the oldest first.
pub(crate) async fn load(
    site: &Site,
    cluster: &Cluster,
    days: Option<Days>,
) -> Result<Vec<Loaded>> {
    let now = site.clock().now();
    let mut lineages = Vec::new();
    let mut states = Vec::new();
    for record in &cluster.lineages {
        let lineage = site.repository.lineage(record.lineage).await?;
        states.push(lineage.load_state().await?);
        lineages.push(lineage);
    }
    let mut loaded = Vec::new();
    for (number, lineage) in lineages.into_iter().enumerate() {
        let (Some(state), Some(newer)) = (states.get(number), states.get(number + 1..)) else {
            continue;
        };
        let terms = site
            .repository
            .terms(cluster, lineage.id(), state, newer, now);
        let terms = Terms {
            policy: policy(cluster, days),
            ..terms.await?
        };
        loaded.push(Loaded {
            lineage,
            state: state.clone(),
            terms,
        });
    }
    Ok(loaded)
}

/// What a cluster's history is kept for.
pub async fn show(site: &Site, cluster: Option<&str>) -> Result<Shown> {
    let cluster = site.cluster(cluster).await?;
    let policy = policy(&cluster, None);
    Ok(Shown {
        cluster: cluster.name,
        retention_days: policy.retention,
        default: cluster.retention.is_none(),
        backtrack_seconds: policy.backtrack.as_secs(),
        holds: cluster.holds,
        objectives: cluster.objectives,
    })
}

/// Promises any second of the last `days` of a cluster.
pub async fn set(site: &Site, cluster: Option<&str>, days: Days) -> Result<Shown> {
    let found = site.cluster(cluster).await?;
    if found.retention != Some(days) {
        site.repository.set_retention(&found.name, days).await?;
    }
    show(site, Some(&found.name)).await
}

/// Says what recovery of a cluster is to achieve; what is not named stays.
pub async fn set_objectives(
    site: &Site,
    cluster: Option<&str>,
    wanted: Objectives,
) -> Result<Shown> {
    let found = site.cluster(cluster).await?;
    let before = found.objectives;
    let objectives = Objectives {
        recovery_point_seconds: wanted
            .recovery_point_seconds
            .or(before.recovery_point_seconds),
        recovery_time_seconds: wanted
            .recovery_time_seconds
            .or(before.recovery_time_seconds),
    };
    if objectives != before {
        (site.repository.set_objectives(&found.name, objectives)).await?;
    }
    show(site, Some(&found.name)).await
}

/// Makes a hold; returns the cluster as it is then.
pub async fn create_hold(site: &Site, cluster: Option<&str>, hold: NewHold) -> Result<Shown> {
    let found = site.cluster(cluster).await?;
    site.repository.create_hold(&found.name, hold).await?;
    show(site, Some(&found.name)).await
}

/// Deletes a hold; returns the cluster as it is then.
pub async fn delete_hold(site: &Site, cluster: Option<&str>, name: &str) -> Result<Shown> {
    let found = site.cluster(cluster).await?;
    site.repository.delete_hold(&found.name, name).await?;
    show(site, Some(&found.name)).await
}

/// What is to be said of a cluster; `None` where that stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NewTerms {
    /// Any second of that many days.
    pub retention: Option<Days>,
    /// What recovery is to achieve.
    pub objectives: Objectives,
}

impl NewTerms {
    /// Says it, where it differs from what was said.
    pub(crate) async fn record(&self, site: &Site, cluster: &Cluster) -> Result<()> {
        let name = Some(cluster.name.as_str());
        if let Some(days) = self.retention {
            set(site, name, days).await?;
        }
        if self.objectives != Objectives::default() {
            set_objectives(site, name, self.objectives).await?;
        }
        Ok(())
    }
}

/// What is kept of a cluster and why, what goes, and what the next days bring; with `days` in place of what
/// was said. Reads the manifest of each base backup, and changes nothing.
pub async fn plan_cluster(
    site: &Site,
    cluster: Option<&str>,
    days: Option<Days>,
) -> Result<PlanReport> {
    let cluster = site.cluster(cluster).await?;
    let now = site.clock().now();
    let loaded = load(site, &cluster, days).await?;
    let mut packs = PackUse::default();
    for loaded in &loaded {
        add_packs(&mut packs, loaded).await?;
    }
    let plans: Vec<RetentionPlan> = (loaded.iter())
        .map(|it| plan(&it.state, &it.terms, now))
        .collect();
    let lineages = (loaded.iter().zip(plans))
        .map(|(it, plan)| LineagePlan {
            growing: it.terms.standing == Standing::Growing,
            forecast: priced(&packs, it, now),
            plan,
        })
        .collect();
    Ok(PlanReport {
        cluster: cluster.name.clone(),
        retention_days: policy(&cluster, days).retention,
        lineages,
    })
}

/// Reads which packs the base backups of a lineage refer to, one manifest at a time.
pub(crate) async fn add_packs(packs: &mut PackUse, loaded: &Loaded) -> Result<()> {
    let fetcher = Fetcher::of(&loaded.lineage);
    for base in &loaded.state.base_backups {
        let manifest = Manifest::load(&fetcher, &base.manifest).await?;
        packs.add(loaded.lineage.id(), base.entry, &manifest);
    }
    Ok(())
}

/// The forecast of a lineage with the bytes of pages that go on each day.
fn priced(packs: &PackUse, loaded: &Loaded, now: Timestamp) -> Vec<ForecastDay> {
    let own = loaded.lineage.id();
    let bases = loaded.state.base_backups.iter().map(|base| base.entry);
    let mut left: BTreeSet<u64> = bases.collect();
    let mut days = forecast(&loaded.state, &loaded.terms, now);
    let bytes = |left: &BTreeSet<u64>| {
        packs.bytes(|lineage, entry| lineage != own || left.contains(&entry))
    };
    let mut before = bytes(&left);
    for day in &mut days {
        let mut given_back = 0;
        if !day.base_backups.is_empty() {
            left.retain(|entry| !day.base_backups.contains(entry));
            let after = bytes(&left);
            given_back = before.saturating_sub(after);
            before = after;
        }
        day.page_bytes = Some(given_back);
    }
    days
}

/// What `status` says of a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PromiseStatus {
    /// Any second of that many days.
    pub retention_days: Days,
    /// Whether that is the default, since nobody has said otherwise.
    pub default: bool,
    /// Whether the window is that long and unbroken.
    pub met: bool,
    /// When it will be, if nothing breaks it; `None` where it is met, and where nothing can be restored yet.
    pub full_on: Option<Timestamp>,
    /// What stands in its way, for people; `None` where it is met.
    pub why: Option<String>,
    /// Holds that stand.
    pub holds: Vec<String>,
    /// What recovery is to achieve.
    pub objectives: Objectives,
}

/// The promise beside the real windows, which are those of the cluster's newest lineage. `spans` are the first
/// and last moments of the windows.
pub(crate) fn promise_status(
    cluster: &Cluster,
    spans: &[(Timestamp, Timestamp)],
    now: Timestamp,
) -> PromiseStatus {
    let days = policy(cluster, None).retention;
    let newest = spans.iter().max_by_key(|(_, latest)| *latest);
    // Windows that join, such as those on both sides of a promotion, count as one.
    let reach = newest.map(|(earliest, latest)| (joined(spans, *earliest), *latest));
    let (met, full_on, why) = match reach {
        None => (false, None, Some("nothing can be restored yet".to_owned())),
        Some((earliest, latest)) => {
            let full_on = earliest.plus(days.duration());
            if full_on <= latest {
                (true, None, None)
            } else {
                let broken = spans.iter().any(|(_, to)| *to < earliest);
                let why = if broken {
                    "broken by a gap, filling"
                } else {
                    "filling"
                };
                (
                    false,
                    Some(full_on),
                    Some(format!("{why}, full on {full_on}")),
                )
            }
        }
    };
    PromiseStatus {
        retention_days: days,
        default: cluster.retention.is_none(),
        met,
        full_on,
        why,
        holds: (cluster.holds.iter())
            .filter(|hold| hold.stands(now))
            .map(|hold| hold.name.clone())
            .collect(),
        objectives: cluster.objectives,
    }
}

/// The first moment from which on all is restorable up to a window that begins at `earliest`.
fn joined(spans: &[(Timestamp, Timestamp)], earliest: Timestamp) -> Timestamp {
    let mut from = earliest;
    loop {
        let before = spans
            .iter()
            .find(|(begin, end)| *begin < from && end.plus_micros(1) >= from);
        match before {
            Some((begin, _)) => from = *begin,
            None => return from,
        }
    }
}

impl PromiseStatus {
    /// In words.
    pub fn line(&self) -> String {
        let days = self.retention_days;
        let promise = format!("any second of the last {days}");
        match &self.why {
            None => format!("{promise}: met"),
            Some(why) => format!("{promise}: {why}"),
        }
    }
}

/// What an objective says of the present lag; `None` where it is met or was not set.
pub(crate) fn missed_recovery_point(
    objectives: &Objectives,
    lag_seconds: Option<f64>,
) -> Option<String> {
    let wanted = objectives.recovery_point_seconds?;
    #[allow(clippy::cast_precision_loss)] // seconds of an objective
    let missed = lag_seconds.is_none_or(|lag| lag > wanted as f64);
    missed.then(|| {
        let lag = lag_seconds.map_or_else(
            || "nothing can be restored".to_owned(),
            |lag| {
                let lag = std::time::Duration::from_secs_f64(lag.max(0.0));
                format!("the lag is {}", borealis_base::show_duration(lag))
            },
        );
        format!("the recovery-point objective of {wanted} s is MISSED: {lag}")
    })
}

/// What an objective says of the recovery time that the last drill measured; `None` where it is met, was not
/// set, or no drill was run.
pub(crate) fn missed_recovery_time(
    objectives: &Objectives,
    recovery_seconds: Option<f64>,
) -> Option<String> {
    let wanted = objectives.recovery_time_seconds?;
    let took = std::time::Duration::from_secs_f64(recovery_seconds?.max(0.0));
    (took > std::time::Duration::from_secs(wanted)).then(|| {
        let took = borealis_base::show_duration(took);
        format!("the recovery-time objective of {wanted} s is MISSED: the last drill took {took}")
    })
}

impl PlanReport {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut out = format!(
            "cluster {}: any second of the last {}\n",
            self.cluster, self.retention_days
        );
        for lineage in &self.lineages {
            let state = if lineage.growing {
                ""
            } else {
                ", which has ended"
            };
            let plan = &lineage.plan;
            out += "\nlineage ";
            out += &plan.lineage.to_string();
            out += state;
            out += "\n";
            out += &plan.to_string();
            out += "the next 30 days, if it goes on as now:\n";
            let mut any = false;
            for day in lineage.forecast.iter().filter(|day| !day.is_empty()) {
                any = true;
                out += &forecast_line(day);
            }
            if !any {
                out += "  nothing goes\n";
            }
        }
        out
    }
}

fn forecast_line(day: &ForecastDay) -> String {
    let mut what = Vec::new();
    match day.base_backups.len() {
        0 => {}
        1 => what.push("1 base backup".to_owned()),
        count => what.push(format!("{count} base backups")),
    }
    if day.log_bytes > 0 {
        what.push(format!("{} of log", ByteLen(day.log_bytes)));
    }
    what.extend(day.holds.iter().map(|hold| format!("hold `{hold}` ends")));
    let bytes = day.log_bytes + day.page_bytes.unwrap_or(0);
    let when = if day.day == 0 {
        "now".to_owned()
    } else {
        format!("day {}", day.day)
    };
    format!(
        "  {when}: {}; gives back {}\n",
        what.join(", "),
        ByteLen(bytes)
    )
}

#[cfg(test)]
mod tests {
    use borealis_base::LineageId;

    use super::*;

    const DAY: i64 = 86_400_000_000;

    fn status(spans: &[(i64, i64)]) -> PromiseStatus {
        let spans: Vec<_> = (spans.iter())
            .map(|(from, to)| (Timestamp(*from), Timestamp(*to)))
            .collect();
        let cluster = Cluster::new("main", LineageId([1; 16]), Timestamp(0));
        promise_status(&cluster, &spans, Timestamp(3 * DAY))
    }

    #[test]
    fn a_young_window_says_when_it_is_full() {
        let young = status(&[(2 * DAY + DAY / 2, 3 * DAY)]);
        assert_eq!(
            (young.met, young.full_on),
            (false, Some(Timestamp(3 * DAY + DAY / 2)))
        );
        assert!(
            young.line().contains("filling, full on"),
            "{}",
            young.line()
        );
        assert_eq!(
            status(&[(2 * DAY, 3 * DAY)]).line(),
            "any second of the last 1 day: met"
        );
        assert!(!status(&[]).met);
    }

    #[test]
    fn a_gap_breaks_the_promise_and_a_promotion_does_not() {
        let broken = status(&[(0, 2 * DAY + 100), (2 * DAY + 200, 3 * DAY)]);
        assert!(
            !broken.met && broken.line().contains("gap"),
            "{}",
            broken.line()
        );
        assert!(status(&[(0, 2 * DAY + 100), (2 * DAY + 101, 3 * DAY)]).met);
    }

    #[test]
    fn a_missed_recovery_point_is_told() {
        let wanted = Objectives {
            recovery_point_seconds: Some(5),
            recovery_time_seconds: None,
        };
        assert_eq!(missed_recovery_point(&wanted, Some(5.0)), None);
        assert!(
            missed_recovery_point(&wanted, Some(5.1))
                .unwrap()
                .contains("MISSED")
        );
        assert!(
            missed_recovery_point(&wanted, None)
                .unwrap()
                .contains("nothing")
        );
        assert_eq!(missed_recovery_point(&Objectives::default(), None), None);
    }

    #[test]
    fn a_missed_recovery_time_is_told() {
        let wanted = Objectives {
            recovery_point_seconds: None,
            recovery_time_seconds: Some(60),
        };
        assert_eq!(missed_recovery_time(&wanted, Some(60.0)), None);
        let missed = missed_recovery_time(&wanted, Some(90.0)).unwrap();
        assert!(missed.contains("MISSED"), "{missed}");
        assert_eq!(missed_recovery_time(&wanted, None), None);
        assert_eq!(
            missed_recovery_time(&Objectives::default(), Some(90.0)),
            None
        );
    }
}
