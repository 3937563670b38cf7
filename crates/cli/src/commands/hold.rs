//! `borealis hold`.

use std::process::ExitCode;

use borealis_base::Timestamp;
use borealis_operations::retention::{Shown, create_hold, delete_hold, show};
use borealis_repository::catalog::NewHold;
use borealis_repository::retention::{Hold as Standing, HoldRange};
use serde::Serialize;

use super::{Context, cluster_name, parse_moment};
use crate::args::{ClusterArg, Hold, HoldAction, HoldCreate, HoldName};
use crate::failure::Failure;
use crate::output::{self, table};

/// Runs the command.
pub async fn run(context: &Context, args: &Hold) -> Result<ExitCode, Failure> {
    match &args.action {
        HoldAction::Create(args) => create(context, args).await,
        HoldAction::List(args) => list(context, args).await,
        HoldAction::Delete(args) => delete(context, args).await,
    }
}

async fn create(context: &Context, args: &HoldCreate) -> Result<ExitCode, Failure> {
    let now = context.clock.now();
    let moment = |option, text: &Option<String>| {
        let text = text.as_deref();
        text.map(|text| parse_moment(option, text, now)).transpose()
    };
    let range = match (moment("--from", &args.from)?, moment("--to", &args.to)?) {
        (Some(from), Some(to)) => HoldRange::Moments(from, to),
        _ => HoldRange::Everything,
    };
    let hold = NewHold {
        name: args.hold.name.clone(),
        reason: args.reason.clone(),
        range,
        until: moment("--until", &args.until)?,
    };
    let cluster = cluster_name(&args.hold.cluster)?;
    let shown = create_hold(&context.site().await?, cluster, hold).await?;
    output::answer(context.global.json, &shown, |shown| {
        format!(
            "hold `{}` of cluster {} stands",
            args.hold.name, shown.cluster
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(context: &Context, args: &ClusterArg) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(args)?;
    let shown = show(&context.site().await?, cluster).await?;
    let now = context.clock.now();
    output::answer(context.global.json, &shown, |shown| list_text(shown, now))?;
    Ok(ExitCode::SUCCESS)
}

fn list_text(shown: &Shown, now: Timestamp) -> String {
    if shown.holds.is_empty() {
        return "no holds".to_owned();
    }
    let rows = shown.holds.iter().map(|hold| row(hold, now)).collect();
    table(&["name", "on", "until", "reason"], rows)
}

fn row(hold: &Standing, now: Timestamp) -> Vec<String> {
    let on = match hold.range {
        HoldRange::Everything => "everything".to_owned(),
        HoldRange::Moments(from, to) => format!("{from} to {to}"),
    };
    let until = match hold.until {
        None => "it is deleted".to_owned(),
        Some(until) if hold.stands(now) => until.to_string(),
        Some(until) => format!("{until}, ENDED"),
    };
    vec![hold.name.clone(), on, until, hold.reason.clone()]
}

#[derive(Serialize)]
struct Deleted {
    deleted: String,
    cluster: String,
}

async fn delete(context: &Context, args: &HoldName) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let shown = delete_hold(&context.site().await?, cluster, &args.name).await?;
    let answer = Deleted {
        deleted: args.name.clone(),
        cluster: shown.cluster,
    };
    output::answer(context.global.json, &answer, |done| {
        format!(
            "hold `{}` of cluster {} deleted",
            done.deleted, done.cluster
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
