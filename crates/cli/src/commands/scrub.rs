//! `borealis scrub`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use borealis_base::{ByteLen, ErrorKind};
use borealis_operations::scrub::{Options, ScrubReport, scrub};

use super::{Context, cluster_name, interrupted};
use crate::args::Scrub;
use crate::failure::{Failure, exit_code};
use crate::{output, progress};

/// Runs the command.
pub async fn run(context: &Context, args: &Scrub) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    if args.rate.is_some_and(|rate| rate.0 == 0) {
        return Err(Failure::usage("--rate is zero")
            .hint("Name a rate above zero, or leave the option out."));
    }
    let days = args.full_every.map(|days| days.saturating_mul(86_400));
    let options = Options {
        rate: args.rate,
        every: days.map(Duration::from_secs),
    };
    let site = context.site().await?;
    let progress = progress::for_this_terminal();
    let report = scrub(&site, cluster, &options, &*progress, &context.stop).await?;
    drop(progress);
    output::answer(context.global.json, &report, text)?;
    if !report.sound {
        return Ok(ExitCode::from(exit_code(ErrorKind::Damaged)));
    }
    if context.stop.is_cancelled() {
        return Err(interrupted());
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &ScrubReport) -> String {
    let mut out = String::new();
    for lineage in &report.lineages {
        let state = match (lineage.due_at, lineage.complete) {
            (Some(due), _) => format!("not due before {due}"),
            (None, true) => "everything live was read".to_owned(),
            (None, false) => "not all of it was read yet".to_owned(),
        };
        let _ = writeln!(
            out,
            "cluster {}, lineage {}: {state}; {} objects, {} in this run",
            lineage.cluster,
            lineage.lineage,
            lineage.objects,
            ByteLen(lineage.bytes)
        );
        for finding in &lineage.findings {
            let _ = writeln!(
                out,
                "  {} {}: {}",
                finding.kind, finding.object, finding.what
            );
            for affected in &finding.affects {
                let _ = writeln!(out, "    affects {affected}");
            }
        }
        for object in &lineage.sound_again {
            let _ = writeln!(out, "  {object} had been damaged and is sound again");
        }
        if let Some(why) = &lineage.not_recorded {
            let _ = writeln!(out, "  note: what was read is not recorded: {why}");
        }
    }
    out += match (report.sound, report.lineages.is_empty()) {
        (_, true) => "no cluster yet: nothing to scrub",
        (true, false) => "sound: nothing that was read is lost or damaged",
        (false, false) => {
            "NOT sound: what is affected is no longer promised; a running protect takes a new base backup where it can"
        }
    };
    out
}
