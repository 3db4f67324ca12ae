//! Answers on the terminal: a sentence or a table for people, one JSON document for machines.

use serde::Serialize;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

/// One answer: `value` as JSON, or `sentence`.
pub fn done(json: bool, value: &impl Serialize, sentence: &str) {
    if json {
        println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
    } else {
        println!("{sentence}");
    }
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
