//! codex-authd-config(5), generated from `packaging/config.toml`: every key with its default, meaning and environment
//! variable.
//!
//! It parses the format of that file: a block of comments, then a key (commented out) or a section. A test of `config`
//! checks that the file has every key.

use clap_mangen::roff::{Roff, bold, roman};

use crate::config::DEFAULT_PATH;

const PACKAGED: &str = include_str!("../../../packaging/config.toml");

enum Line<'a> {
    Section(&'a str),
    /// A key and its default.
    Key(&'a str, &'a str),
    Comment(&'a str),
    Blank,
}

impl<'a> From<&'a str> for Line<'a> {
    fn from(line: &'a str) -> Self {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return Self::Section(section);
        }
        match line.strip_prefix('#') {
            Some(text) if text.is_empty() || text.starts_with(' ') => Self::Comment(text.trim()),
            Some(key) => key.split_once(" = ").map_or(Self::Blank, |(key, default)| Self::Key(key, default)),
            None => Self::Blank,
        }
    }
}

pub fn page() -> std::io::Result<Vec<u8>> {
    let source = format!("codex-authd {}", env!("CARGO_PKG_VERSION"));
    let mut roff = Roff::default();
    roff.control("TH", ["codex-authd-config", "5", super::DATE, &source, super::MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("codex-authd-config - the configuration of codex-authd")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(DEFAULT_PATH)]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "A TOML file, read by the daemon at its start and by every command. The file is optional, because each key has a \
         default. An unknown key is refused, and so is a variable that begins with CODEX_AUTHD_ and matches no key.",
    )]);
    roff.control("SH", ["GENERAL"]);
    let mut text = Vec::new();
    for line in PACKAGED.lines().map(Line::from) {
        match line {
            Line::Comment(line) => text.push(line),
            Line::Section(name) => {
                roff.control("SH", [format!("SECTION [{name}]").as_str()]);
                paragraph(&mut roff, &text);
                text.clear();
            }
            Line::Key(key, default) => {
                roff.control("TP", []);
                roff.text([bold(key), roman(format!(" = {default}"))]);
                paragraph(&mut roff, &text);
                text.clear();
            }
            // The comment at the head of the file describes the file, and belongs to no key.
            Line::Blank => {
                paragraph(&mut roff, &text);
                text.clear();
            }
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("codex-authd"), roman("(1),")]);
    roff.text([bold("codex-authd-check-config"), roman("(1)")]);
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// Writes lines as one paragraph. The last line, in parentheses, is the variable.
fn paragraph(roff: &mut Roff, lines: &[&str]) {
    for line in lines {
        roff.text([roman(*line)]);
    }
}
