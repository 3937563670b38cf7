//! The `borealis` program: reads the command line, calls one function of `commands`, prints its
//! answer, and turns a failure into a message and an exit code.

mod args;
mod config;
mod failure;
mod progress;
mod target;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::SUCCESS
}
