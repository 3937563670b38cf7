//! `borealis check`.

use std::process::ExitCode;

use borealis_base::ErrorKind;
use borealis_pg_server::SqlLink;
use borealis_pg_server::check::{CheckFacts, Finding, Severity, findings};
use borealis_pg_server::source;
use serde::Serialize;

use super::Context;
use crate::args::Check;
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
    // Judged even where it cannot be read here, since protect reads it.
    let data_dir = match &args.data_dir.data_dir {
        Some(named) => Some(named.clone()),
        None => (source::settings(&SqlLink::connect(&info).await?).await?)
            .get("data_directory")
            .filter(|path| !path.is_empty())
            .map(Into::into),
    };
    let facts = CheckFacts::read(&info, data_dir.as_deref()).await?;
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
