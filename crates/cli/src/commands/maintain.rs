//! `borealis maintain`.

use std::fmt::Write as _;
use std::process::ExitCode;

use borealis_base::ByteLen;
use borealis_operations::maintain::{MAY_NOT_REMOVE, MaintainReport, Maintained, maintain};

use super::{Context, cluster_name};
use crate::args::Maintain;
use crate::failure::Failure;
use crate::{output, progress};

/// Runs the command.
pub async fn run(context: &Context, args: &Maintain) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let site = context.site().await?;
    let progress = progress::for_this_terminal();
    let report = maintain(&site, cluster, args.merge_after, &*progress).await?;
    drop(progress);
    output::answer(context.global.json, &report, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(report: &MaintainReport) -> String {
    if report.lineages.is_empty() {
        return "no cluster yet: nothing to maintain".to_owned();
    }
    let lines: Vec<String> = report.lineages.iter().map(line).collect();
    lines.join("\n")
}

fn line(done: &Maintained) -> String {
    let mut out = format!("cluster {}, lineage {}: ", done.cluster, done.lineage);
    if done.objects == 0 {
        out += "no log to merge";
    } else {
        let _ = write!(
            out,
            "{} log pieces ({}) are {} objects ({}) now",
            done.pieces_merged,
            ByteLen(done.bytes_before),
            done.objects,
            ByteLen(done.bytes_after)
        );
    }
    if let Some(floor) = done.floor {
        let _ = write!(out, "; readers begin at ledger entry {floor}");
    }
    if done.removed > 0 {
        let _ = write!(
            out,
            "; {} objects removed that these replaced",
            done.removed
        );
    }
    if done.expired_bytes > 0 {
        let _ = write!(
            out,
            "; {} with {} base backups expired, hidden from here on",
            ByteLen(done.expired_bytes),
            done.expired_base_backups
        );
    }
    if done.kept_after_all_bytes > 0 {
        let _ = write!(
            out,
            "; {} that had expired are promised again, and are back",
            ByteLen(done.kept_after_all_bytes)
        );
    }
    if done.deleted > 0 {
        let _ = write!(
            out,
            "; {} expired objects ({}) deleted",
            done.deleted,
            ByteLen(done.deleted_bytes)
        );
    }
    if done.may_not_remove {
        let _ = write!(out, "; {MAY_NOT_REMOVE}");
    }
    if done.skipped > 0 {
        let _ = write!(
            out,
            "; {} log pieces can't be merged, borealis verify --deep tells why",
            done.skipped
        );
    }
    out
}
