//! `borealis wal fetch`: PostgreSQL's `restore_command`. A failure exits with 200.

use std::path::Path;
use std::process::ExitCode;

use borealis_operations::Site;
use borealis_operations::restore::recovery_file::Answer;
use borealis_operations::wal_fetch::{Fetched, decide, serve};

use super::Context;
use crate::args::{Wal, WalAction};
use crate::failure::Failure;

/// What PostgreSQL takes for "there is no such file", so that recovery ends there.
const EXIT_ABSENT: u8 = 1;

/// Runs the command.
pub async fn run(context: &Context, args: Wal) -> Result<ExitCode, Failure> {
    let WalAction::Fetch { file, target } = args.action;
    // PostgreSQL runs this in the data directory.
    let (plan, answer) = decide(Path::new("."), &file)?;
    let fetched = if let Answer::Absent(why) = &answer {
        Fetched::Absent((*why).to_owned())
    } else {
        let key_file = match &plan.key_file {
            Some(path) => path.clone(),
            None => context.key_file()?,
        };
        let site = Site::open(
            &plan.repository,
            key_file,
            context.clock.clone(),
            context.entropy.clone(),
        )
        .await?;
        let lineage = site.repository.lineage(plan.lineage).await?;
        serve(&lineage, &plan, &answer, &target).await?
    };
    match fetched {
        Fetched::Served => Ok(ExitCode::SUCCESS),
        Fetched::Absent(why) => {
            tracing::debug!(file, why, "not needed");
            Ok(ExitCode::from(EXIT_ABSENT))
        }
    }
}
