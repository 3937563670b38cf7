//! `borealis restore`.

use std::process::ExitCode;

use borealis_base::ErrorKind;
use jiff::tz::TimeZone;

use super::{Context, cluster_name};
use crate::args::Restore;
use crate::failure::Failure;
use crate::target;

/// Runs the command.
#[allow(clippy::unused_async, clippy::needless_pass_by_value)]
pub async fn run(context: &Context, args: Restore) -> Result<ExitCode, Failure> {
    cluster_name(&args.cluster)?;
    let _to = target::parse(&args.to, context.clock.now(), &TimeZone::system())
        .map_err(|error| Failure::usage(error.to_string()))?;
    Err(Failure::new(ErrorKind::Refused, "restore is not built yet"))
}
