//! `borealis objective`.

use std::process::ExitCode;

use borealis_operations::retention::{Shown, set_objectives};
use borealis_repository::catalog::Objectives;

use super::{Context, cluster_name};
use crate::args::{Objective, ObjectiveAction};
use crate::failure::Failure;
use crate::output;

/// Runs the command.
pub async fn run(context: &Context, args: &Objective) -> Result<ExitCode, Failure> {
    let ObjectiveAction::Set(args) = &args.action;
    let wanted = Objectives::from(args.objectives);
    if wanted == Objectives::default() {
        return Err(Failure::usage("no objective is named")
            .hint("Name one with --rpo-seconds, --rto-seconds or both."));
    }
    let cluster = cluster_name(&args.cluster)?;
    let shown = set_objectives(&context.site().await?, cluster, wanted).await?;
    output::answer(context.global.json, &shown, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(shown: &Shown) -> String {
    let seconds = |seconds: Option<u64>| {
        seconds.map_or_else(|| "not set".to_owned(), |seconds| format!("{seconds} s"))
    };
    format!(
        "cluster {}: recovery point {}, recovery time {}",
        shown.cluster,
        seconds(shown.objectives.recovery_point_seconds),
        seconds(shown.objectives.recovery_time_seconds)
    )
}
