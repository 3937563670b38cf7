//! `borealis restore`.

use std::process::ExitCode;

use borealis_base::ByteLen;
use borealis_operations::restore::start::PreparedTransaction;
use borealis_operations::restore::{self, Options, Restored, prepare_lineage};
use borealis_pg_server::instance::binaries::BIN_VARIABLE;
use borealis_repository::plan::Target;
use jiff::tz::TimeZone;

use super::{Context, cluster_name};
use crate::args::Restore;
use crate::failure::Failure;
use crate::target::{self, To};
use crate::{output, progress};

/// Runs the command.
pub async fn run(context: &Context, args: Restore) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let to = target::parse(&args.to, context.clock.now(), &TimeZone::system())
        .map_err(|error| Failure::usage(error.to_string()))?;
    if args.target_dir.as_os_str().is_empty() {
        return Err(Failure::usage("--target-dir is empty").hint("Name a directory."));
    }
    if args.owner.as_deref() == Some("") {
        return Err(Failure::usage("--owner is empty").hint("Name a system user."));
    }
    if args.lineage.as_deref() == Some("") {
        return Err(Failure::usage("--lineage is empty").hint("borealis status shows them."));
    }
    let options = Options {
        start: args.start,
        port: args.port,
        owner: args.owner.clone(),
        mapping: args.tablespace_mapping.clone(),
        standby: args.standby,
        delta: args.delta,
        programs: std::env::var_os(BIN_VARIABLE)
            .filter(|folder| !folder.is_empty())
            .map(Into::into),
        ..Options::default()
    };
    let site = context.site().await?;
    let (lineage, target) = (args.lineage.as_deref(), as_target(to));
    let prepared =
        prepare_lineage(&site, cluster, lineage, &target, args.target_dir.clone()).await?;
    if args.dry_run {
        let report = restore::check(&prepared, &options)?;
        output::answer(context.global.json, &report, restore::PlanReport::to_text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let progress = progress::for_this_terminal();
    let restored = restore::restore(&site, prepared, &options, &*progress).await?;
    drop(progress);
    output::answer(context.global.json, &restored, text)?;
    Ok(ExitCode::SUCCESS)
}

pub fn as_target(to: To) -> Target {
    match to {
        To::Time(time) => Target::Time(time),
        To::Position(position) => Target::Position(position, None),
        To::Snapshot(name) => Target::Pin(name),
        To::Latest => Target::Latest,
    }
}

/// What a person can do about a transaction that waits.
fn prepared(transaction: &PreparedTransaction) -> [String; 2] {
    [
        format!(
            "  note          transaction '{}' of {}, prepared {}, waits and holds its locks",
            transaction.gid, transaction.owner, transaction.prepared_at
        ),
        format!(
            "                in database {}: {} or {}",
            transaction.database, transaction.commit, transaction.rollback
        ),
    ]
}

fn text(restored: &Restored) -> String {
    let mut lines = vec![
        restored.plan.to_text(),
        format!(
            "  files took    {:.1} s, {} fetched",
            restored.files_seconds,
            ByteLen(restored.fetched_bytes)
        ),
    ];
    lines.extend(
        restored
            .delta
            .map(|delta| format!("  delta         {delta}")),
    );
    if let Some(server) = &restored.server {
        lines.push(format!(
            "  answering     process {} on port {}, socket in {}, after {:.1} s",
            server.pid,
            server.port,
            server.socket_directory.display(),
            server.seconds
        ));
        lines.push(format!(
            "  server log    {}, until it is restarted",
            server.log_file.display()
        ));
        for transaction in &server.prepared_transactions {
            lines.extend(prepared(transaction));
        }
    }
    lines.extend(
        restored
            .notices
            .iter()
            .map(|notice| format!("  note          {notice}")),
    );
    if let Some(command) = &restored.start_command {
        lines.push(format!("start it with:\n  {command}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::Timestamp;

    #[test]
    fn a_transaction_that_waits_is_told_with_what_to_do() {
        let transaction = PreparedTransaction {
            gid: "transfer 7".to_owned(),
            owner: "bank".to_owned(),
            database: "sales".to_owned(),
            prepared_at: Timestamp(0),
            commit: "COMMIT PREPARED 'transfer 7';".to_owned(),
            rollback: "ROLLBACK PREPARED 'transfer 7';".to_owned(),
        };
        let text = prepared(&transaction).join("\n");
        for words in [
            "'transfer 7' of bank",
            "1970-01-01T00:00:00.000000Z",
            "in database sales: COMMIT PREPARED 'transfer 7'; or ROLLBACK PREPARED 'transfer 7';",
        ] {
            assert!(text.contains(words), "{text}");
        }
    }
}
