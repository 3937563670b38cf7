//! `borealis wal fetch`: PostgreSQL's `restore_command`. A failure exits with 200.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use borealis_keys::KeyUrl;
use borealis_operations::Site;
use borealis_operations::restore::recovery_file::RecoveryFile;
use borealis_operations::wal_fetch::prefetch::fetch_ahead;
use borealis_operations::wal_fetch::spool::Spool;
use borealis_operations::wal_fetch::{Decision, Fetched, decide, load_plan, serve};
use borealis_repository::Lineage;

use super::Context;
use crate::args::{Wal, WalAction};
use crate::failure::Failure;

/// What PostgreSQL takes for "there is no such file", so that recovery ends there.
const EXIT_ABSENT: u8 = 1;

/// Runs the command.
pub async fn run(context: &Context, args: Wal) -> Result<ExitCode, Failure> {
    // PostgreSQL runs all of these in the data directory.
    let data_dir = Path::new(".");
    match args.action {
        WalAction::Fetch { file, target } => fetch(context, data_dir, &file, &target).await,
        WalAction::Prefetch => prefetch(context, data_dir).await,
        WalAction::Finish => {
            let (plan, size) = load_plan(data_dir)?;
            Spool::of(data_dir, &plan, size).finish().await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn fetch(
    context: &Context,
    data_dir: &Path,
    file: &str,
    target: &Path,
) -> Result<ExitCode, Failure> {
    let fetched = match decide(data_dir, file, target).await? {
        Decision::Known(fetched) => fetched,
        Decision::Ask(question) => {
            let lineage = open(context, &question.plan).await?;
            let (fetched, more) = serve(&lineage, &question, target).await?;
            if more {
                start_prefetch(&key(context, &question.plan)?);
            }
            fetched
        }
    };
    match fetched {
        Fetched::Served => Ok(ExitCode::SUCCESS),
        Fetched::Absent(why) => {
            tracing::debug!(file, why, "not needed");
            Ok(ExitCode::from(EXIT_ABSENT))
        }
    }
}

async fn open(context: &Context, plan: &RecoveryFile) -> Result<Lineage, Failure> {
    let site = Site::open(
        &plan.repository,
        key(context, plan)?,
        context.clock.clone(),
        context.entropy.clone(),
    )
    .await?;
    Ok(site.repository.lineage(plan.lineage).await?)
}

fn key(context: &Context, plan: &RecoveryFile) -> Result<KeyUrl, Failure> {
    match (&plan.key_file, &plan.key) {
        (Some(path), _) => Ok(path.clone().into()),
        (None, Some(url)) => Ok(KeyUrl::parse(url)?),
        (None, None) => context.key(),
    }
}

/// Starts the process that fetches ahead. It outlives this one, which the server waits for, and is in a
/// group of its own, since a server that stops signals the group of its recovery.
fn start_prefetch(key: &KeyUrl) {
    let started = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        // One of them names the key, and both at once none.
        command
            .env_remove("BOREALIS_KEY")
            .env_remove("BOREALIS_KEY_FILE");
        match key.key_file() {
            Some(path) => command.env("BOREALIS_KEY_FILE", path),
            None => command.env("BOREALIS_KEY", key.to_string()),
        };
        command
            .args(["wal", "prefetch"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
    });
    if let Err(error) = started {
        // The next segment is fetched when it is asked for.
        tracing::warn!(%error, "no log is fetched ahead");
    }
}

async fn prefetch(context: &Context, data_dir: &Path) -> Result<ExitCode, Failure> {
    let (plan, size) = load_plan(data_dir)?;
    let spool = Spool::of(data_dir, &plan, size);
    if let Some(lock) = spool.lock()? {
        let lineage = open(context, &plan).await?;
        let segments = fetch_ahead(&lineage, &plan, size, data_dir, &lock).await?;
        tracing::debug!(segments, "fetched ahead");
    }
    Ok(ExitCode::SUCCESS)
}
