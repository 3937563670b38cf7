//! `borealis snapshot`.

use std::process::ExitCode;

use borealis_operations::snapshot::{
    Created, Listed, check_name, create, create_at_latest, delete, list,
};
use serde::Serialize;

use super::{Context, cluster_name};
use crate::args::{ClusterArg, Snapshot, SnapshotAction, SnapshotCreate, SnapshotName};
use crate::failure::Failure;
use crate::output::{self, table};

/// Runs the command.
pub async fn run(context: &Context, args: &Snapshot) -> Result<ExitCode, Failure> {
    match &args.action {
        SnapshotAction::Create(args) => run_create(context, args).await,
        SnapshotAction::List(args) => run_list(context, args).await,
        SnapshotAction::Delete(args) => run_delete(context, args).await,
    }
}

async fn run_create(context: &Context, args: &SnapshotCreate) -> Result<ExitCode, Failure> {
    let name = &args.snapshot.name;
    check_name(name)?;
    let cluster = cluster_name(&args.snapshot.cluster)?;
    if args.timeout.is_zero() {
        return Err(Failure::usage("--timeout is zero")
            .hint("Name how long to wait, or leave the option out."));
    }
    let created = if args.at.is_some() {
        create_at_latest(&context.site().await?, cluster, name).await?
    } else {
        let info = context.source(&args.source)?;
        let site = context.site().await?;
        create(&site, cluster, name, &info, args.timeout).await?
    };
    output::answer(context.global.json, &created, created_text)?;
    Ok(ExitCode::SUCCESS)
}

fn created_text(created: &Created) -> String {
    let time = (created.time).map_or_else(String::new, |time| format!(", {time}"));
    let place = format!(
        "snapshot `{}` of cluster {} stands at {} on timeline {}{time}",
        created.name, created.cluster, created.position, created.branch
    );
    if created.at_latest_stored {
        format!(
            "{place}\nnote: this is the last stored position; the server was not asked, and newer commits are not in it"
        )
    } else {
        place
    }
}

#[derive(Serialize)]
struct Snapshots {
    snapshots: Vec<Listed>,
}

async fn run_list(context: &Context, args: &ClusterArg) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(args)?;
    let snapshots = list(&context.site().await?, cluster).await?;
    output::answer(context.global.json, &Snapshots { snapshots }, list_text)?;
    Ok(ExitCode::SUCCESS)
}

fn list_text(answer: &Snapshots) -> String {
    if answer.snapshots.is_empty() {
        return "no snapshots".to_owned();
    }
    let rows = (answer.snapshots.iter())
        .map(|snapshot| {
            vec![
                snapshot.name.clone(),
                snapshot
                    .time
                    .map_or_else(String::new, |time| time.to_string()),
                snapshot.position.to_string(),
                snapshot.branch.to_string(),
                if snapshot.restorable { "yes" } else { "NO" }.to_owned(),
                state(snapshot),
            ]
        })
        .collect();
    let header = [
        "name",
        "time",
        "position",
        "timeline",
        "restorable",
        "state",
    ];
    table(&header, rows)
}

/// How sure a snapshot is.
fn state(snapshot: &Listed) -> String {
    let mut words = vec!["committed".to_owned()];
    if snapshot.read_back {
        words.push("read back".to_owned());
    }
    words.extend((snapshot.scrubbed_at).map(|at| format!("scrubbed {at}")));
    words.extend((snapshot.drilled_at).map(|at| format!("drilled {at}")));
    words.join(", ")
}

#[derive(Serialize)]
struct Deleted {
    deleted: String,
    cluster: String,
}

async fn run_delete(context: &Context, args: &SnapshotName) -> Result<ExitCode, Failure> {
    check_name(&args.name)?;
    let cluster = cluster_name(&args.cluster)?;
    let cluster = delete(&context.site().await?, cluster, &args.name).await?;
    let deleted = args.name.clone();
    output::answer(context.global.json, &Deleted { deleted, cluster }, |done| {
        format!(
            "snapshot `{}` of cluster {} deleted",
            done.deleted, done.cluster
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
