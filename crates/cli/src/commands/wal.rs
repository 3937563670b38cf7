//! `borealis wal fetch`: PostgreSQL's `restore_command`. A failure exits with 200.

use std::process::ExitCode;

use borealis_base::ErrorKind;

use super::Context;
use crate::args::Wal;
use crate::failure::Failure;

/// Runs the command.
#[allow(clippy::unused_async, clippy::needless_pass_by_value)]
pub async fn run(_context: &Context, _args: Wal) -> Result<ExitCode, Failure> {
    Err(Failure::new(
        ErrorKind::Refused,
        "wal fetch is not built yet",
    ))
}
