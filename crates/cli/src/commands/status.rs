//! `borealis status`.

use std::process::ExitCode;
use std::time::Duration;

use borealis_operations::status::{StatusReport, load};

use super::{Context, cluster_name};
use crate::args::Status;
use crate::failure::{EXIT_LAG, Failure};
use crate::output;

/// Runs the command.
pub async fn run(context: &Context, args: &Status) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let site = context.site().await?;
    let report = load(&site, cluster).await?;
    let now = context.clock.now();
    output::answer(context.global.json, &report, |report| report.to_text(now))?;
    let late = (args.fail_if_lag).is_some_and(|bound| lags(&report, bound, cluster.is_some()));
    Ok(if late {
        ExitCode::from(EXIT_LAG)
    } else {
        ExitCode::SUCCESS
    })
}

/// Whether a cluster is further behind than `bound`, or cannot be restored at all. One that is
/// deliberately no longer protected counts only where it was `named`.
fn lags(report: &StatusReport, bound: Duration, named: bool) -> bool {
    let mut watched = (report.clusters.iter())
        .filter(|cluster| named || cluster.retired.is_none())
        .peekable();
    watched.peek().is_none()
        || watched.any(|cluster| {
            cluster
                .lag_seconds
                .is_none_or(|lag| lag > bound.as_secs_f64())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_operations::status::ClusterStatus;

    fn cluster(lag_seconds: Option<f64>, retired: Option<&str>) -> ClusterStatus {
        ClusterStatus {
            name: "main".to_owned(),
            lineage: borealis_base::LineageId([1; 16]),
            protector: None,
            retired: retired.map(str::to_owned),
            latest_restorable_time: None,
            lag_seconds,
            windows: Vec::new(),
            promise: None,
            base_backups: 0,
            last_base_backup: None,
            snapshots: 0,
            log_verified_through: None,
            log_pieces_unverified: 0,
            log_pieces_withdrawn: 0,
            log_bytes: 0,
            base_backup_bytes: 0,
            gaps: Vec::new(),
            earlier_lineages: Vec::new(),
            single_writer: false,
            requests: None,
            base_backup_states: Vec::new(),
            last_drill: None,
            scrub: borealis_operations::status::ScrubStatus::default(),
            damage: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn late(clusters: Vec<ClusterStatus>, named: bool) -> bool {
        let report = StatusReport {
            repository: "file:///r".to_owned(),
            clusters,
        };
        lags(&report, Duration::from_secs(60), named)
    }

    #[test]
    fn the_worst_cluster_decides() {
        assert!(!late(vec![cluster(Some(60.0), None)], false));
        assert!(late(
            vec![cluster(Some(1.0), None), cluster(Some(60.1), None)],
            false
        ));
    }

    #[test]
    fn nothing_restorable_is_lag() {
        assert!(late(vec![cluster(None, None)], false));
        assert!(late(Vec::new(), false));
    }

    #[test]
    fn a_cluster_that_is_no_longer_protected_counts_where_it_is_named() {
        let old = || cluster(Some(1e6), Some("unprotected on request"));
        assert!(!late(vec![cluster(Some(1.0), None), old()], false));
        assert!(late(vec![old()], true));
    }
}
