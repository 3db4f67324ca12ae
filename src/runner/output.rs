//! Captures the last part of a program's output, and shows it without secrets.
//!
//! The program is hostile. Its output may contain its login: whole, split by a line break, or coloured. People see a
//! few lines of plain text. Every part of a login, and everything that looks like one, is replaced by `***`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use zeroize::Zeroizing;

/// How many bytes are kept, from the end of the output.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// Counts the bytes from all pipes of a program.
#[derive(Clone, Default)]
pub struct Total(Arc<AtomicU64>);

impl Total {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Reads to the end and returns the last [`MAX_KEPT_BYTES`] bytes.
pub async fn tail(mut pipe: impl AsyncRead + Unpin, total: Total) -> Zeroizing<Vec<u8>> {
    // Allocates everything at once: a buffer that grows is moved, and its old copy is not wiped.
    let mut kept = Zeroizing::new(Vec::with_capacity(3 * MAX_KEPT_BYTES));
    let mut chunk = Zeroizing::new([0; 16 * 1024]);
    while let Ok(read @ 1..) = pipe.read(&mut chunk[..]).await {
        total.0.fetch_add(read as u64, Ordering::Relaxed);
        kept.extend_from_slice(chunk.get(..read).unwrap_or_default());
        if kept.len() > 2 * MAX_KEPT_BYTES {
            let surplus = kept.len() - MAX_KEPT_BYTES;
            kept.drain(..surplus);
        }
    }
    let surplus = kept.len().saturating_sub(MAX_KEPT_BYTES);
    kept.drain(..surplus);
    kept
}

/// The secrets in the logins that a program had; they must not be shown.
#[derive(Default)]
pub struct OutputSecrets(Vec<Zeroizing<String>>);

/// Shorter texts are not secrets, and would match everywhere.
const MIN_SECRET_CHARACTERS: usize = 8;
/// Longer words are treated as secrets.
const MAX_WORD_CHARACTERS: usize = 40;
/// Members of a login that are not secret.
const PLAIN: [&str; 4] = ["auth_mode", "last_refresh", "token_type", "api_base"];

impl OutputSecrets {
    /// Adds the secrets of a login. A text that is not JSON is one secret as a whole.
    pub fn add(&mut self, login: &str) {
        match serde_json::from_str::<Value>(login) {
            Ok(value) => self.add_value(&value),
            Err(_) => self.add_text(login),
        }
        // Longest first, so that masking a part does not leave the rest of a longer secret.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        self.0.dedup();
    }

    fn add_value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.add_text(text),
            Value::Array(values) => values.iter().for_each(|value| self.add_value(value)),
            Value::Object(members) => {
                members
                    .iter()
                    .filter(|(name, _)| !PLAIN.contains(&name.as_str()))
                    .for_each(|(_, value)| self.add_value(value));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn add_text(&mut self, text: &str) {
        // Parts of a token are as secret as the whole token.
        let parts = text.split(['.', '/', '+', '=']).filter(|part| *part != text);
        for secret in std::iter::once(text).chain(parts).filter(|secret| secret.len() >= MIN_SECRET_CHARACTERS) {
            self.0.push(Zeroizing::new(secret.to_owned()));
        }
    }

    /// Returns the last `lines` non-empty lines, as plain text without secrets, at most `bytes` long.
    pub fn last_lines(&self, output: &[u8], lines: usize, bytes: usize) -> String {
        let text = plain(&String::from_utf8_lossy(output));
        let masked = self.mask(&text);
        let mut last: Vec<&str> = masked.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        last.dedup();
        let first = last.len().saturating_sub(lines);
        let mut shown = last.split_off(first).join("\n");
        if shown.len() > bytes {
            shown = format!("…{}", &shown[shown.ceil_char_boundary(shown.len() - bytes)..]);
        }
        shown
    }

    fn mask(&self, text: &str) -> Zeroizing<String> {
        let mut masked = Zeroizing::new(text.to_owned());
        for secret in &self.0 {
            if masked.contains(secret.as_str()) {
                masked = Zeroizing::new(masked.replace(secret.as_str(), "***"));
            }
        }
        mask_long_words(&masked)
    }
}

/// Removes colours and other terminal control sequences.
fn plain(text: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(text.len()));
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' if letters.next_if_eq(&'[').is_some() => {
                // Skip to the letter that ends the sequence.
                while letters.next_if(|next| matches!(next, '0'..='9' | ';' | '?' | ':')).is_some() {}
                letters.next_if(char::is_ascii_alphabetic);
            }
            '\n' => out.push('\n'),
            '\r' | '\t' => out.push(' '),
            letter if letter.is_control() => {}
            letter => out.push(letter),
        }
    }
    out
}

/// Masks each run of token characters that is longer than a normal word.
fn mask_long_words(text: &str) -> Zeroizing<String> {
    let is_of_a_token = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.' | '+' | '=');
    let mut out = Zeroizing::new(String::with_capacity(text.len()));
    let mut rest = text;
    while let Some(start) = rest.find(is_of_a_token) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|letter| !is_of_a_token(letter)).unwrap_or(from.len()));
        out.push_str(before);
        out.push_str(if word.len() > MAX_WORD_CHARACTERS { "***" } else { word });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: &str = r#"{"auth_mode":"chatgpt","tokens":{"access_token":"eyJhbGciOi.Zk3vQ9xT1mB7rLp0.c2lnbmF0","refresh_token":"rt_abc/defghijk-1","account_id":"acc-12345"},"last_refresh":"2026-11-20T12:00:00Z"}"#;

    fn shown(output: &str) -> String {
        let mut secrets = OutputSecrets::default();
        secrets.add(LOGIN);
        secrets.last_lines(output.as_bytes(), 5, 2048)
    }

    #[test]
    fn no_part_of_the_login_is_shown() {
        let printed = format!(
            "login: {LOGIN}\nhalf a token: Zk3vQ9xT1mB7rLp0\nrefresh rt_abc/defghijk-1 again: defghijk-1 {}",
            "acc-12345"
        );
        let shown = shown(&printed);
        for secret in ["eyJhbGciOi", "Zk3vQ9xT1mB7rLp0", "c2lnbmF0", "rt_abc", "defghijk", "acc-12345"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(shown.contains("half a token: ***") && shown.contains("2026-11-20T12:00:00Z"), "{shown}");
    }

    #[test]
    fn what_looks_like_a_token_is_not_shown_either() {
        let token = "sk-".to_owned() + &"a1B2".repeat(12);
        assert_eq!(shown(&format!("refused: {token}, sorry")), "refused: ***, sorry");
        assert_eq!(shown("an ordinary sentence about rt-tokens"), "an ordinary sentence about rt-tokens");
    }

    #[test]
    fn the_last_lines_are_shown_as_plain_text() {
        assert_eq!(shown("again\nagain\n\nagain\nonce"), "again\nonce");
        let printed = (1..=9).map(|n| format!("\u{1b}[31mline\u{1b}[0m {n}\u{7}\r\n\n")).collect::<String>();
        assert_eq!(shown(&printed), "line 5\nline 6\nline 7\nline 8\nline 9");
        let mut secrets = OutputSecrets::default();
        secrets.add("no JSON, so all of it");
        assert_eq!(secrets.last_lines(b"x no JSON, so all of it y", 5, 2048), "x *** y");
        assert_eq!(OutputSecrets::default().last_lines("ä".repeat(20).as_bytes(), 5, 5), "…ää");
        assert_eq!(OutputSecrets::default().last_lines(&[0xff, 0xfe, b'a'], 5, 50), "\u{fffd}\u{fffd}a");
    }

    #[tokio::test]
    async fn of_a_flood_the_end_is_kept() {
        let total = Total::default();
        let mut flood = vec![b'a'; 10 * MAX_KEPT_BYTES + 7];
        flood.extend(b"the end");
        let kept = tail(&flood[..], total.clone()).await;
        assert_eq!((kept.len(), total.bytes()), (MAX_KEPT_BYTES, 10 * MAX_KEPT_BYTES as u64 + 14));
        assert!(kept.ends_with(b"aathe end"));
    }
}
