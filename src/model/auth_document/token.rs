//! Checks that a token looks like a real one.

/// The operator's settings for documents.
#[derive(Clone, Copy, Debug)]
pub struct DocumentRules {
    /// The shortest accepted token, in bytes. Values below [`DocumentRules::FLOOR`] count as the floor.
    pub min_token_length: usize,
    /// `true`: accepts only documents that Codex can load, and treats each API key as its own account. `false`: accepts
    /// any document with a token, as the former service did.
    pub strict: bool,
}

impl DocumentRules {
    pub const FLOOR: usize = 8;
}

impl Default for DocumentRules {
    fn default() -> Self {
        Self { min_token_length: 24, strict: true }
    }
}

const PLACEHOLDERS: [&str; 8] =
    ["token", "newer-token", "placeholder", "changeme", "dummy", "test", "example", "example-token"];
const MIN_DISTINCT_BYTES: usize = 6;

/// Why a (trimmed) token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadToken {
    #[error("token is required")]
    Missing,
    #[error("token may not contain whitespace or newlines")]
    Whitespace,
    #[error("token too short (min {0} characters)")]
    TooShort(usize),
    #[error("token appears to be a placeholder value")]
    Placeholder,
    #[error("token is one character repeated")]
    Repeated,
    #[error("token has too few different characters (min {MIN_DISTINCT_BYTES})")]
    TooUniform,
}

/// Checks a trimmed token. The error is the first broken rule.
pub(super) fn check(token: &str, rules: &DocumentRules) -> Result<(), BadToken> {
    let min_length = rules.min_token_length.max(DocumentRules::FLOOR);
    if token.is_empty() {
        return Err(BadToken::Missing);
    }
    if token.chars().any(char::is_whitespace) {
        return Err(BadToken::Whitespace);
    }
    if token.len() < min_length {
        return Err(BadToken::TooShort(min_length));
    }
    if PLACEHOLDERS.iter().any(|word| token.eq_ignore_ascii_case(word)) {
        return Err(BadToken::Placeholder);
    }
    let first = token.chars().next();
    if token.chars().all(|character| Some(character) == first) {
        return Err(BadToken::Repeated);
    }
    let mut seen = [false; 256];
    token.bytes().for_each(|byte| seen[usize::from(byte)] = true);
    if seen.iter().filter(|seen| **seen).count() < MIN_DISTINCT_BYTES {
        return Err(BadToken::TooUniform);
    }
    Ok(())
}

/// Trims blanks, tabs, line ends, vertical tabs and NULs. The former service trimmed the same ones, so both write the
/// same canonical text. Other white space stays, and a token that has it is refused.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\r', '\0', '\x0b'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: DocumentRules = DocumentRules { min_token_length: 8, strict: true };

    #[test]
    fn the_first_broken_rule_is_named() {
        for (token, reason) in [
            ("", BadToken::Missing),
            ("a b", BadToken::Whitespace),
            ("Zk3vQ9xT1mB7\u{a0}rLp0sWc5yHd8", BadToken::Whitespace),
            ("test", BadToken::TooShort(8)),
            ("ééé", BadToken::TooShort(8)),
            ("PlaceHolder", BadToken::Placeholder),
            ("Example-Token", BadToken::Placeholder),
            ("aaaaaaaaaa", BadToken::Repeated),
            ("éééééé", BadToken::Repeated),
            ("abcdeabcde", BadToken::TooUniform),
        ] {
            assert_eq!(check(token, &RULES), Err(reason), "{token:?}");
        }
        assert_eq!(check("abcdefab", &RULES), Ok(()));
        assert_eq!(check("placeholder1", &RULES), Ok(()));
    }

    #[test]
    fn the_shortest_length_can_be_set_but_not_below_the_floor() {
        assert_eq!(check("abcdefg", &DocumentRules { min_token_length: 1, ..RULES }), Err(BadToken::TooShort(8)));
        assert_eq!(check("abcdefgh", &DocumentRules { min_token_length: 1, ..RULES }), Ok(()));
        let default = DocumentRules::default();
        assert_eq!(check("abcdefghijklmnopqrstuvw", &default), Err(BadToken::TooShort(24)));
        assert_eq!(check("abcdefghijklmnopqrstuvwx", &default), Ok(()));
    }
}
