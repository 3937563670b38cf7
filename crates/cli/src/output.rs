//! Answers: text for people, JSON for programs.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// Prints an answer: as JSON if asked, else as `text` writes it.
pub fn answer<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let shown = if json {
        serde_json::to_string_pretty(value)
            .map_err(|error| Failure::new(borealis_base::ErrorKind::Bug, error.to_string()))?
    } else {
        text(value)
    };
    match writeln!(std::io::stdout(), "{}", shown.trim_end()) {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            borealis_base::ErrorKind::Refused,
            format!("write the answer: {error}"),
        )),
        _ => Ok(()),
    }
}

/// A table without lines between its rows.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}
