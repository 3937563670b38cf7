//! `borealis unprotect`.

use std::process::ExitCode;

use borealis_operations::protect::unprotect;
use serde::Serialize;

use super::{Context, cluster_name};
use crate::args::Unprotect;
use crate::failure::Failure;
use crate::output;

#[derive(Serialize)]
struct Unprotected {
    done: Vec<String>,
}

/// Runs the command.
pub async fn run(context: &Context, args: &Unprotect) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let info = context.source(&args.source)?;
    let site = context.site().await?;
    let done = unprotect(&site, cluster, &info).await?;
    output::answer(context.global.json, &Unprotected { done }, |answer| {
        answer.done.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
