//! The `borealis` program: reads the command line, calls one function of `commands`, prints its
//! answer, and turns a failure into a message and an exit code.

mod commands;
mod config;
mod failure;
mod output;
mod progress;
mod service;
mod target;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use borealis_base::ErrorKind;
use borealis_cli::args;
use clap::Parser;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use failure::{EXIT_LOG_UNKNOWN, Failure, exit_code};

fn main() -> ExitCode {
    keep_memory_private();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let serves_log = serves_log(&arguments);
    let code = move |kind| {
        if serves_log {
            EXIT_LOG_UNKNOWN
        } else {
            exit_code(kind)
        }
    };
    report_panics(code(ErrorKind::Bug));
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help or the version was asked for; a reader that is gone is no failure.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            if arguments.iter().any(|argument| argument == "--json") {
                Failure::usage(first_paragraph(&error.to_string())).print(true);
            } else {
                let _ = error.print();
            }
            return ExitCode::from(code(ErrorKind::Usage));
        }
    };
    log_to_stderr(&cli);
    let json = cli.global.json;
    commands::run(cli).unwrap_or_else(|failure| {
        failure.print(json);
        ExitCode::from(code(failure.kind))
    })
}

/// Keys are in this process's memory: no core is written of it, and no other process of the same user may look
/// into it (`PR_SET_DUMPABLE` in `prctl(2)`). Programs that it starts are not concerned.
fn keep_memory_private() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        // It works all the same, and a core may be forbidden otherwise.
        let _ = writeln!(
            std::io::stderr(),
            "warning: a core of this process could be written: {error}"
        );
    }
}

/// Whether this is PostgreSQL's `restore_command`. It has exit codes of its own from the first
/// instruction on: PostgreSQL takes small codes for "there is no such file" and would end recovery early.
fn serves_log(arguments: &[OsString]) -> bool {
    arguments
        .windows(2)
        .any(|pair| matches!(pair, [wal, fetch] if wal == "wal" && fetch == "fetch"))
}

/// clap's message without the usage lines that follow it.
fn first_paragraph(text: &str) -> String {
    let message = text.split("\n\n").next().unwrap_or(text);
    message
        .strip_prefix("error: ")
        .unwrap_or(message)
        .to_owned()
}

/// Prints one line for a defect and ends the process with `code`, whichever thread it is on: a
/// protection with one part gone would look alive.
fn report_panics(code: u8) {
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let what = (payload.downcast_ref::<&str>().copied())
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown");
        let place = panic.location().map_or_else(String::new, |place| {
            format!(" ({}:{})", place.file(), place.line())
        });
        let what = what.replace('\n', " ");
        let _ = writeln!(std::io::stderr(), "defect: {what}{place}");
        std::process::exit(i32::from(code));
    }));
}

fn log_to_stderr(cli: &Cli) {
    let protects = matches!(cli.command, Command::Protect(_));
    let filter = match (cli.global.verbose, protects) {
        (0, false) => "warn",
        (0, true) => "warn,borealis=info",
        (1, _) => "warn,borealis=debug",
        _ => "info,borealis=trace",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(cli.global.verbose > 0)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn only_the_restore_command_has_its_own_exit_codes() {
        assert!(serves_log(&arguments("borealis --config /c wal fetch F T")));
        assert!(!serves_log(&arguments("borealis status --cluster wal")));
        assert!(!serves_log(&arguments("borealis")));
        // As a recovery_end_command, a code above 125 would end a promotion (`ExecuteRecoveryCommand`).
        assert!(!serves_log(&arguments("borealis wal finish")));
    }

    #[test]
    fn a_usage_message_is_one_paragraph() {
        assert_eq!(
            first_paragraph("error: unexpected argument '--x' found\n\nUsage: borealis\n"),
            "unexpected argument '--x' found"
        );
    }
}
