//! `borealis retention`.

use std::process::ExitCode;

use borealis_operations::retention::{PlanReport, Shown, plan_cluster, set, show};

use super::{Context, cluster_name};
use crate::args::{Retention, RetentionAction};
use crate::failure::Failure;
use crate::output;

/// Runs the command.
pub async fn run(context: &Context, args: &Retention) -> Result<ExitCode, Failure> {
    let json = context.global.json;
    match &args.action {
        RetentionAction::Set(args) => {
            let cluster = cluster_name(&args.cluster)?;
            let shown = set(&context.site().await?, cluster, args.days).await?;
            output::answer(json, &shown, text)?;
        }
        RetentionAction::Show(args) => {
            let cluster = cluster_name(args)?;
            let shown = show(&context.site().await?, cluster).await?;
            output::answer(json, &shown, text)?;
        }
        RetentionAction::Plan(args) => {
            let cluster = cluster_name(&args.cluster)?;
            let report = plan_cluster(&context.site().await?, cluster, args.days).await?;
            output::answer(json, &report, PlanReport::to_text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(shown: &Shown) -> String {
    let default = if shown.default { ", by default" } else { "" };
    format!(
        "cluster {}: any second of the last {}{default}, snapshots until they are deleted, holds: {}",
        shown.cluster,
        shown.retention_days,
        shown.holds.len()
    )
}
