//! `borealis drill`.

use std::process::ExitCode;
use std::time::Duration;

use borealis_base::{ByteLen, ErrorKind};
use borealis_operations::drill::{DrillReport, Options, Point, drill};
use borealis_pg_server::instance::binaries::BIN_VARIABLE;
use jiff::tz::TimeZone;

use super::restore::as_target;
use super::{Context, absolute, cluster_name};
use crate::args::Drill;
use crate::failure::{Failure, exit_code};
use crate::{output, progress, target};

/// Findings that the text shows; the rest is in JSON.
const FINDINGS_SHOWN: usize = 20;

/// Runs the command.
pub async fn run(context: &Context, args: Drill) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let options = Options {
        point: point(context, &args)?,
        scratch: absolute(&args.scratch),
        lineage: args.lineage,
        keep: args.keep,
        keep_libraries: args.keep_libraries,
        programs: std::env::var_os(BIN_VARIABLE)
            .filter(|folder| !folder.is_empty())
            .map(Into::into),
        owner: args.owner,
        every: args.scheduled_every.map(Duration::from_secs),
    };
    let site = context.site().await?;
    let progress = progress::for_this_terminal();
    let report = drill(&site, cluster, &options, &*progress, &context.stop).await?;
    drop(progress);
    output::answer(context.global.json, &report, text)?;
    Ok(if report.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit_code(ErrorKind::Damaged))
    })
}

fn point(context: &Context, args: &Drill) -> Result<Point, Failure> {
    for (option, empty) in [
        ("--scratch", args.scratch.as_os_str().is_empty()),
        ("--lineage", args.lineage.as_deref() == Some("")),
        ("--owner", args.owner.as_deref() == Some("")),
    ] {
        if empty {
            return Err(Failure::usage(format!("{option} is empty"))
                .hint("Name one, or leave the option out."));
        }
    }
    if args.to.trim() == "random" {
        return Ok(Point::Random(args.seed));
    }
    if args.seed.is_some() {
        return Err(Failure::usage("--seed is given, and --to names the point")
            .hint("Leave one of them out."));
    }
    let to = target::parse(&args.to, context.clock.now(), &TimeZone::system())
        .map_err(|error| Failure::usage(error.to_string()))?;
    Ok(Point::At(as_target(to)))
}

fn text(report: &DrillReport) -> String {
    let drill = &report.drill;
    let seed = (drill.seed).map_or_else(String::new, |seed| format!(" (--seed {seed})"));
    let mut lines = vec![
        format!(
            "drill of cluster {}: {}",
            report.cluster,
            if report.passed { "passed" } else { "FAILED" }
        ),
        format!("  point         {}{seed}", drill.target),
    ];
    if let Some(position) = drill.position {
        let time = (drill.time).map_or_else(String::new, |time| format!(", {time}"));
        lines.push(format!("  position      {position}{time}"));
        lines.push(format!(
            "  restored      {} of files from the base backup of entry {}, {} of log from {} on",
            ByteLen(drill.file_bytes),
            drill.base_backup_entry,
            ByteLen(drill.log_bytes),
            drill.log_from
        ));
    }
    lines.push(format!(
        "  recovery      {:.1} s: {:.1} plan, {:.1} pages, {:.1} replay, {:.1} until it answered",
        drill.recovery_seconds,
        drill.plan_seconds,
        drill.pages_seconds,
        drill.replay_seconds,
        drill.answer_seconds
    ));
    if let Some(loss) = drill.loss_window_seconds {
        lines.push(format!(
            "  loss window   {loss:.1} s, had the source been lost when the drill began"
        ));
    }
    lines.push(format!(
        "  checked       {} databases, {} tables, {} rows, {} indexes in {:.1} s",
        report.databases, report.tables, drill.rows, report.indexes, drill.checks_seconds
    ));
    let more = drill.more_findings as usize + drill.findings.len().saturating_sub(FINDINGS_SHOWN);
    match (&drill.reason, drill.findings.is_empty()) {
        (Some(reason), true) => lines.push(format!("  failed        {reason}")),
        _ => lines.extend(
            (drill.findings.iter().take(FINDINGS_SHOWN))
                .map(|finding| format!("  FOUND         {finding}")),
        ),
    }
    if more > 0 {
        lines.push(format!("                and {more} more"));
    }
    lines.extend((drill.not_checked.iter()).map(|what| format!("  NOT checked   {what}")));
    lines.extend(
        report
            .notes
            .iter()
            .map(|note| format!("  note          {note}")),
    );
    if let Some(kept) = &report.kept {
        lines.push(format!(
            "  kept          {}, for you to remove",
            kept.display()
        ));
    }
    lines.join("\n")
}
