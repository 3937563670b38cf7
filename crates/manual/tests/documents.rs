//! What the package carries beside the program says what the program does.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use borealis_cli::args::Cli;
use clap::CommandFactory;

fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_borealis-manual"))
        .arg(folder.path())
        .status();
    assert!(status.unwrap().success());
    folder
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// The names of the pages that `command` and what is below it should have.
fn expected(command: &clap::Command, name: &str, names: &mut BTreeSet<String>) {
    names.insert(format!("{name}.1"));
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        expected(below, &format!("{name}-{}", below.get_name()), names);
    }
}

#[test]
fn every_command_has_a_page_with_its_options_and_no_hidden_one_has() {
    let folder = written();
    let mut names = BTreeSet::new();
    expected(&Cli::command(), "borealis", &mut names);
    let found: BTreeSet<String> = std::fs::read_dir(folder.path().join("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, names);
    assert!(names.contains("borealis-wal-fetch.1") && !names.contains("borealis-wal-prefetch.1"));
    let page = read(folder.path(), "man/borealis-protect.1");
    for words in [
        r"\-\-base\-backup\-every\-log",
        "BOREALIS_SOURCE",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        assert!(page.contains(words), "{words} is not in:\n{page}");
    }
    assert!(!read(folder.path(), "man/borealis-wal.1").contains("prefetch"));
}

#[test]
fn the_programs_page_lists_every_exit_code() {
    let folder = written();
    let page = read(folder.path(), "man/borealis.1");
    let (_, status) = page.split_once("EXIT STATUS").unwrap();
    for code in 0..=9 {
        assert!(
            status.contains(&format!("\\fB{code}\\fR")),
            "{code} is not in:\n{status}"
        );
    }
}

/// What bash offers behind `words`, the last of which is being typed.
fn offered(folder: &Path, words: &[&str]) -> Vec<String> {
    let typed = words.last().unwrap();
    let before = words.len().checked_sub(2).map_or("", |at| words[at]);
    let script = format!(
        "set -eu; source '{}'; COMP_WORDS=({}); COMP_CWORD={}; COMPREPLY=(); _borealis borealis '{typed}' '{before}'; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        folder.join("completions/bash/borealis").display(),
        words.join(" "),
        words.len() - 1,
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let folder = written();
    let offered = |words: &[&str]| offered(folder.path(), words);
    assert_eq!(offered(&["borealis", "prot"]), ["protect"]);
    assert_eq!(offered(&["borealis", "protect", "--take"]), ["--take-over"]);
    assert_eq!(
        offered(&["borealis", "protect", "--protect", "c"]),
        ["continuity"]
    );
    for file in ["zsh/_borealis", "fish/borealis.fish"] {
        assert!(read(folder.path(), &format!("completions/{file}")).contains("take-over"));
    }
}
