//! `borealis verify`.

use std::fmt::Write as _;
use std::process::ExitCode;

use borealis_base::{ByteLen, ErrorKind};
use borealis_operations::verify::{VerifyReport, verify};

use super::{Context, cluster_name};
use crate::args::Verify;
use crate::failure::{Failure, exit_code};
use crate::{output, progress};

/// Runs the command.
pub async fn run(context: &Context, args: &Verify) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let site = context.site().await?;
    let progress = progress::for_this_terminal();
    let report = verify(&site, cluster, args.deep, &*progress).await?;
    drop(progress);
    output::answer(context.global.json, &report, text)?;
    Ok(if report.sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit_code(ErrorKind::Damaged))
    })
}

fn text(report: &VerifyReport) -> String {
    let mut out = String::new();
    for lineage in &report.lineages {
        let _ = writeln!(
            out,
            "cluster {}: {} base backups, {} packs, {} log pieces, {} blobs; {} read",
            lineage.cluster,
            lineage.base_backups,
            lineage.packs,
            lineage.log_pieces,
            lineage.blobs,
            ByteLen(lineage.bytes_read)
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
    }
    out += match (report.sound, report.lineages.is_empty(), report.deep) {
        (_, true, _) => "no cluster yet: nothing to verify",
        (false, ..) => "NOT sound: the findings above say what can't be restored",
        (true, _, true) => "sound: every byte that a restore could need was read and authenticated",
        (true, _, false) => {
            "sound: every object that a restore could need is there; --deep reads their content"
        }
    };
    out
}
