//! `borealis protect`.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use borealis_base::show_duration;
use borealis_operations::protect::schedule::Schedule;
use borealis_operations::protect::slot_policy::Policy as SlotPolicy;
use borealis_operations::protect::upkeep::UpkeepOptions;
use borealis_operations::protect::{KeyPatience, Options, Stopped, protect};
use borealis_operations::retention::NewTerms;

use super::{Context, cluster_name, interrupted};
use crate::args::{Global, Policy, Protect};
use crate::failure::Failure;
use crate::{output, progress, service};

/// Runs the command.
pub async fn run(context: &Context, args: Protect) -> Result<ExitCode, Failure> {
    refuse_unusable(&args)?;
    let cluster = cluster_name(&args.cluster)?.map(str::to_owned);
    let options = Options {
        info: context.source(&args.source)?,
        cluster,
        agentless: args.data_dir.agentless.into(),
        data_dir: args.data_dir.data_dir,
        once: args.once,
        no_slot: args.no_slot,
        flush_interval: args.flush_interval,
        schedule: Schedule {
            every_log: args.base_backup_every_log,
            every: args.base_backup_every,
        },
        maintain_every: (!args.no_maintenance).then_some(args.maintain_every),
        resumable_every: args.base_backup_resumable_every,
        policy: match args.protect {
            Policy::Primary => SlotPolicy::Primary,
            Policy::Continuity => SlotPolicy::Continuity,
        },
        key_patience: KeyPatience {
            interval: args.key_check_interval,
            outage_max: args.key_outage_max,
        },
        take_over: args.take_over,
        new_lineage: args.new_lineage,
        upkeep: UpkeepOptions {
            scrub_every: args.scrub_every.0,
            scrub_rate: args.scrub_rate,
            drill_every: args.drill_every.0,
            drill_directory: args.drill_dir,
            drill_command: drill_command(&context.global),
        },
        terms: NewTerms {
            retention: args.retention_days,
            objectives: args.objectives.into(),
        },
    };
    let site = context.site().await?;
    let progress = Arc::from(progress::for_this_terminal());
    let watcher = service::watcher(&context.stop);
    let stopped = protect(&site, &options, progress, watcher, context.stop.clone()).await?;
    if options.once && context.stop.is_cancelled() {
        return Err(interrupted());
    }
    output::answer(context.global.json, &stopped, text)?;
    Ok(ExitCode::SUCCESS)
}

/// The words that run this program with the same repository and key; what came from the surroundings comes from
/// there again.
fn drill_command(global: &Global) -> Vec<OsString> {
    let Ok(program) = std::env::current_exe() else {
        return Vec::new();
    };
    let mut words = vec![program.into_os_string()];
    let mut add = |option: &str, value: Option<OsString>| {
        words.extend(value.into_iter().flat_map(|value| [option.into(), value]));
    };
    add("--repository", global.repository.clone().map(Into::into));
    add("--key", global.key.clone().map(Into::into));
    add("--key-file", global.key_file.clone().map(Into::into));
    add("--config", global.config.clone().map(Into::into));
    words
}

/// The longest that log may be held back: a base backup waits for its log, and `--once` for its end.
const FLUSH_INTERVAL_MAX: Duration = Duration::from_hours(1);

fn refuse_unusable(args: &Protect) -> Result<(), Failure> {
    if args.flush_interval > FLUSH_INTERVAL_MAX {
        return Err(Failure::usage(format!(
            "--flush-interval {} is longer than {}",
            show_duration(args.flush_interval),
            show_duration(FLUSH_INTERVAL_MAX)
        ))
        .hint("What was committed in that time is lost with the server; name a shorter one."));
    }
    let zero = [
        ("--flush-interval", args.flush_interval.is_zero()),
        ("--key-check-interval", args.key_check_interval.is_zero()),
        ("--base-backup-every", args.base_backup_every.is_zero()),
        ("--scrub-rate", args.scrub_rate.0 == 0),
        ("--maintain-every", args.maintain_every.is_zero()),
        ("--base-backup-every-log", args.base_backup_every_log.0 == 0),
        (
            "--base-backup-resumable-every",
            args.base_backup_resumable_every.0 == 0,
        ),
    ];
    match zero.into_iter().find(|(_, zero)| *zero) {
        Some((option, _)) => Err(Failure::usage(format!("{option} is zero"))
            .hint("Name a value above zero, or leave the option out.")),
        None => Ok(()),
    }
}

fn text(stopped: &Stopped) -> String {
    let mut out = format!(
        "cluster {}: stopped; the log is durable up to {}",
        stopped.cluster, stopped.durable
    );
    for note in &stopped.notes {
        out += "\nnote: ";
        out += note;
    }
    out
}
