//! `borealis inspect`.

use std::process::ExitCode;

use borealis_base::ErrorKind;

use super::Context;
use crate::args::Inspect;
use crate::failure::Failure;

/// Runs the command.
#[allow(clippy::unused_async)]
pub async fn run(_context: &Context, _args: &Inspect) -> Result<ExitCode, Failure> {
    Err(Failure::new(ErrorKind::Refused, "not built yet"))
}
