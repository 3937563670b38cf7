//! `borealis repository`.

use std::process::ExitCode;

use borealis_base::ErrorKind;
use borealis_repository::store::probe::{Report, State, probe};
use borealis_repository::store::{self, Absent};

use super::Context;
use crate::args::{RepositoryAction, RepositoryArgs};
use crate::failure::{Failure, exit_code};
use crate::output::{self, table};

/// Runs the command.
pub async fn run(context: &Context, args: &RepositoryArgs) -> Result<ExitCode, Failure> {
    let RepositoryAction::Probe = args.action;
    let url = context.repository_url()?;
    let store = store::open(&url, Absent::Refuse, &context.outfit()).await?;
    let report = probe(&store, &*context.clock, &*context.entropy).await?;
    output::answer(context.global.json, &report, text)?;
    Ok(if report.state() == State::Problem {
        ExitCode::from(exit_code(ErrorKind::Refused))
    } else {
        ExitCode::SUCCESS
    })
}

/// Refuses a store with a problem; says on standard error what is weaker.
pub fn refuse_unfit(report: &Report) -> Result<(), Failure> {
    let of = |state: State| {
        let findings = report.findings.iter();
        let told: Vec<String> = findings
            .filter(|finding| finding.state == state)
            .map(|finding| format!("{}: {}", finding.subject, finding.found))
            .collect();
        told.join("; ")
    };
    let problems = of(State::Problem);
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        ErrorKind::Refused,
        format!("{} can't hold a repository: {problems}", report.repository),
    )
    .hint("borealis repository probe shows what was tried."))
}

const fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Advice => "advice",
        State::Weaker => "WEAKER",
        State::Problem => "PROBLEM",
    }
}

fn text(report: &Report) -> String {
    let rows = (report.findings.iter())
        .map(|finding| {
            vec![
                finding.subject.to_owned(),
                finding.found.clone(),
                finding.wanted.to_owned(),
                word(finding.state).to_owned(),
            ]
        })
        .collect();
    let mut out = table(&["subject", "found", "for", "state"], rows);
    out += match report.state() {
        State::Problem => "\n\nThe store can't hold a repository.",
        State::Weaker => {
            "\n\nThe store can hold a repository in single-writer mode. Nothing but one protect a cluster \
             may write to it;\nsingle-writer=forbid in the URL refuses such a store."
        }
        State::Ok | State::Advice => "\n\nThe store can hold a repository.",
    };
    out
}
