//! What people read. Errors always appear, the rest does not with `CDX_QUIET=1`, and nothing while Codex has the terminal.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why `cdx` ends early. Without a message, it was printed already.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    pub message: Option<String>,
}

pub type Result<T> = std::result::Result<T, Failure>;

pub fn failure(code: u8, message: impl Into<String>) -> Failure {
    Failure { code, message: Some(message.into()) }
}

/// A failure whose reason was printed.
pub fn reported(code: u8) -> Failure {
    Failure { code, message: None }
}

static MUTED: AtomicBool = AtomicBool::new(false);

/// Codex draws on the whole terminal: while it runs, `cdx` prints nothing.
pub fn mute(muted: bool) {
    MUTED.store(muted, Ordering::Relaxed);
}

pub fn say(message: impl Display) {
    if std::env::var_os("CDX_QUIET").is_none_or(|value| value != "1") {
        complain(message);
    }
}

pub fn complain(message: impl Display) {
    if !MUTED.load(Ordering::Relaxed) {
        let _ = writeln!(std::io::stderr().lock(), "cdx: {message}");
    }
}

/// Text of the daemon or the environment on one line: without control characters, at most `limit` characters.
pub fn clean(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|letter| if is_safe(letter) { letter } else { ' ' }).collect()
}

/// Control characters would change the terminal; the others reorder or hide text.
fn is_safe(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_one_plain_line() {
        assert_eq!(clean("Not \u{1b}[31mthis\nhost\u{9b}x\u{202e}", 300), "Not  [31mthis host x ");
        assert_eq!(clean("äöü", 2), "äö");
    }
}
