//! `borealis-manual DIR` writes the manual pages and the shell completions of `borealis` into a folder. Both are
//! made from the declaration of the command line, so that they say what `--help` says. The package is built with it;
//! nothing of it is in the program.

mod page;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use borealis_cli::args::Cli;
use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

/// The completions, by shell, under the names that the shells look for.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash/borealis"),
    (Shell::Zsh, "zsh/_borealis"),
    (Shell::Fish, "fish/borealis.fish"),
];

fn main() -> Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        anyhow::bail!("usage: borealis-manual DIR");
    };
    let folder = PathBuf::from(folder);
    let mut command = Cli::command();
    for (shell, name) in COMPLETIONS {
        let mut text = Vec::new();
        generate(shell, &mut command.clone(), "borealis", &mut text);
        write(&folder.join("completions").join(name), &text)?;
    }
    command.build();
    write_pages(&command, &folder.join("man"))
}

/// Writes the page of `command` and those of its subcommands.
fn write_pages(command: &Command, folder: &Path) -> Result<()> {
    let (name, text) = page::render(command)?;
    write(&folder.join(name), &text)?;
    for below in page::shown(command) {
        write_pages(below, folder)?;
    }
    Ok(())
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
