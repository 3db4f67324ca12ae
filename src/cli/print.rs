//! Answers on the terminal: a sentence or a table for people, one JSON document for machines.
//!
//! All that the command line writes to standard output and standard error goes through here. A reader that is gone ends a
//! command quietly; an answer that cannot be written is a failure of the command.

use std::io::{self, ErrorKind, Write as _};

use serde::Serialize;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::CliError;

/// One answer: `value` as JSON, or `sentence`.
pub fn done(json: bool, value: &impl Serialize, sentence: &str) -> Result<(), CliError> {
    if json {
        let mut document = serde_json::to_string_pretty(value).unwrap_or_default();
        document.push('\n');
        text(&document)
    } else {
        text(&format!("{sentence}\n"))
    }
}

/// To standard output, as it is.
pub fn text(text: &str) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    written(output.write_all(text.as_bytes()).and_then(|()| output.flush()))
}

/// What became of what was written to standard output.
pub fn written(outcome: io::Result<()>) -> Result<(), CliError> {
    outcome.map_err(|cause| match cause.kind() {
        ErrorKind::BrokenPipe => CliError::ReaderGone,
        _ => CliError::Write { path: "standard output".into(), cause },
    })
}

/// To standard error, beside the answer. Where nobody reads it, nothing else can be said.
pub fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Columns as wide as their widest cell; the first row is the head.
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

/// A table, and below it how to see more where it is not all of it.
pub fn page(rows: &[Vec<String>], more: Option<String>) -> String {
    let table = table(rows);
    more.map_or_else(|| table.clone(), |more| format!("{table}\n\nThere are more: {more}."))
}

/// What may be missing, in a table.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

/// An instant as people read it: UTC, to the second.
pub fn instant(instant: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    instant.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}
