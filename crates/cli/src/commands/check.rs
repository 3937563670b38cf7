//! `borealis check`.

use std::path::Path;
use std::process::ExitCode;

use borealis_base::ErrorKind;
use borealis_pg_server::ConnInfo;
use borealis_pg_server::SqlLink;
use borealis_pg_server::check::{CheckFacts, Finding, Severity, findings};
use borealis_pg_server::data_dir::{Access, choose};
use borealis_pg_server::source;
use serde::Serialize;

use super::Context;
use crate::args::{Check, DataDirArg};
use crate::failure::{Failure, exit_code};
use crate::output::{self, table};

#[derive(Serialize)]
struct Checked {
    problems: usize,
    findings: Vec<Finding>,
}

/// Runs the command.
pub async fn run(context: &Context, args: &Check) -> Result<ExitCode, Failure> {
    let info = context.source(&args.source)?;
    let access = access(&info, &args.data_dir).await?;
    let facts = CheckFacts::read(&info, &access).await?;
    let findings = findings(&facts);
    let problems = (findings.iter())
        .filter(|finding| finding.severity == Severity::Problem)
        .count();
    let answer = Checked { problems, findings };
    output::answer(context.global.json, &answer, text)?;
    Ok(if problems == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit_code(ErrorKind::Refused))
    })
}

/// As `protect` chooses. Where the server does not say where its files are, that is one of the findings, and
/// what is needed to read them through SQL is told as well.
async fn access(info: &ConnInfo, args: &DataDirArg) -> Result<Access, Failure> {
    let link = SqlLink::connect(info).await?;
    let settings = source::settings(&link).await?;
    let said = settings
        .get("data_directory")
        .filter(|path| !path.is_empty());
    let named = args.data_dir.as_deref();
    let chosen = choose(&link, named, said.map(Path::new), args.agentless.into()).await?;
    Ok(chosen.unwrap_or_else(|| Access::Agentless {
        because: "the server does not say where its data directory is".to_owned(),
    }))
}

const fn state(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Advice => "advice",
        Severity::Problem => "PROBLEM",
    }
}

fn text(checked: &Checked) -> String {
    let rows = (checked.findings.iter())
        .map(|finding| {
            vec![
                finding.subject.clone(),
                finding.found.clone(),
                finding.wanted.clone(),
                state(finding.severity).to_owned(),
            ]
        })
        .collect();
    let mut out = table(&["subject", "found", "wanted", "state"], rows);
    let sql: Vec<&str> = (checked.findings.iter())
        .filter_map(|finding| finding.sql.as_deref())
        .collect();
    if !sql.is_empty() {
        out += "\n\nTo paste, as a superuser:\n\n";
        out += &sql.join("\n");
    }
    out += match checked.problems {
        0 => "\n\nThe server can be protected.",
        _ => "\n\nThe server can't be protected before the problems are solved.",
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, sql: Option<&str>) -> Finding {
        Finding {
            subject: "wal_level".to_owned(),
            found: "minimal".to_owned(),
            wanted: "replica or logical".to_owned(),
            severity,
            sql: sql.map(str::to_owned),
        }
    }

    #[test]
    fn the_sql_stands_below_the_table_to_be_pasted() {
        let shown = text(&Checked {
            problems: 1,
            findings: vec![finding(
                Severity::Problem,
                Some("ALTER SYSTEM SET wal_level = 'replica';"),
            )],
        });
        let (table, rest) = shown.split_once("To paste").unwrap();
        assert!(table.contains("PROBLEM"), "{shown}");
        assert!(
            rest.lines()
                .any(|line| line == "ALTER SYSTEM SET wal_level = 'replica';"),
            "{shown}"
        );
        assert!(shown.ends_with("problems are solved."));
    }

    #[test]
    fn a_good_server_has_nothing_to_paste() {
        let shown = text(&Checked {
            problems: 0,
            findings: vec![finding(Severity::Ok, None)],
        });
        assert!(!shown.contains("To paste"));
        assert!(shown.ends_with("The server can be protected."));
    }
}
