//! Prints answers: a sentence or a table for people, or one JSON document for programs.
//!
//! Everything that the command line writes to standard output and standard error goes through here. If the reader has
//! gone, a command ends quietly. If an answer cannot be written, the command fails.

use std::io::{self, ErrorKind, Write as _};

use serde::Serialize;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::CliError;

/// Prints one answer: `value` as JSON, or `sentence`.
pub fn done(json: bool, value: &impl Serialize, sentence: &str) -> Result<(), CliError> {
    if json {
        let mut document = serde_json::to_string_pretty(value).unwrap_or_default();
        document.push('\n');
        text(&document)
    } else {
        text(&format!("{sentence}\n"))
    }
}

/// Writes to standard output, unchanged.
pub fn text(text: &str) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    written(output.write_all(text.as_bytes()).and_then(|()| output.flush()))
}

/// Maps an error of standard output.
pub fn written(outcome: io::Result<()>) -> Result<(), CliError> {
    outcome.map_err(|cause| match cause.kind() {
        ErrorKind::BrokenPipe => CliError::ReaderGone,
        _ => CliError::Write { path: "standard output".into(), cause },
    })
}

/// Writes to standard error. A failure is ignored: it could not be reported.
pub fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Formats columns as wide as their widest cell. The first row is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A table, with a hint below it if there are more rows.
pub fn page(rows: &[Vec<String>], more: Option<String>) -> String {
    let table = table(rows);
    more.map_or_else(|| table.clone(), |more| format!("{table}\n\nThere are more: {more}."))
}

/// A value for a table, or `-` if it is missing.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// A time for people: UTC, to the second.
pub fn instant(instant: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    instant.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}
