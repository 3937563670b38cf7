//! One manual page.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// What begins the list of exit codes in the text below the program's help.
const EXIT_CODES: &str = "Exit codes: ";

/// Where the program looks.
const FILES: [(&str, &str); 4] = [
    (
        "~/.config/borealis/config.toml",
        "The configuration file: repository, key_file (or key) and source.",
    ),
    (
        "/etc/borealis/config.toml",
        "The configuration file where there is none in the home directory.",
    ),
    (
        "/etc/borealis/NAME.env",
        "The environment of the service borealis-protect@NAME.",
    ),
    (
        "/usr/share/doc/borealis",
        "The guide, the runbooks and examples.",
    ),
];

/// The subcommands that are no secret.
pub fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
}

/// The page of a command that was built, and the name of its file.
pub fn render(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let source = concat!("borealis ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("Borealis");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if shown(command).next().is_some() {
        man.render_subcommands_section(&mut page)?;
    }
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    let (notes, codes) = help.split_once(EXIT_CODES).unwrap_or((&help, ""));
    notes_section(notes, &mut page)?;
    if codes.is_empty() {
        see_also(&mut page)?;
    } else {
        list_section(
            "EXIT STATUS",
            codes.split(", ").filter_map(|code| code.split_once(' ')),
            &mut page,
        )?;
        list_section("FILES", FILES, &mut page)?;
    }
    Ok((man.get_filename(), page))
}

/// The examples and notes below the help, with their lines as they are.
fn notes_section(text: &str, page: &mut impl Write) -> io::Result<()> {
    if text.trim().is_empty() {
        return Ok(());
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in text.trim().lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.to_writer(page)
}

fn list_section<'a>(
    title: &str,
    rows: impl IntoIterator<Item = (&'a str, &'a str)>,
    page: &mut impl Write,
) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (term, meaning) in rows {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(meaning)]);
    }
    roff.to_writer(page)
}

fn see_also(page: &mut impl Write) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("borealis"),
        roman("(1), for the options that every command takes, the exit codes and the files."),
    ]);
    roff.to_writer(page)
}
