//! Targets `auth_document` and `digest`.

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::oracle::{self, Refused};
use super::{NOW, RULES};
use crate::model::auth_document::{
    AuthDocument, DocumentError, DocumentRules, MAX_DOCUMENT_BYTES, redated, split_request, uploaded_text,
};
use crate::model::instant::Instant;

/// The deepest nesting of a document. A request around it has one level more.
const LEVELS: usize = 64;

/// Everything that is done with a body before the caller is authenticated.
pub fn auth_document(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    document(text);
    request(text);
    upload(text);
}

fn parse(text: &str) -> Result<AuthDocument, DocumentError> {
    AuthDocument::parse(text, NOW, &RULES)
}

/// Parses text that the daemon wrote, which may exceed the size limit.
fn parse_again(text: &str) -> Result<AuthDocument, DocumentError> {
    AuthDocument::parse_stored(text, NOW, &RULES)
}

/// The served form of a loadable document must be accepted again.
fn strict(text: &str) {
    let rules = DocumentRules::default();
    let Ok(document) = AuthDocument::parse(text, NOW, &rules) else { return };
    let again = AuthDocument::parse_stored(document.text(), NOW, &rules).expect("the served text is accepted again");
    assert_eq!((again.text(), again.digest()), (document.text(), document.digest()));
    assert!(again.login().renews(document.login()) && document.login().renews(again.login()));
    assert_eq!(again.agent_identity(), None);
}

fn document(text: &str) {
    strict(text);
    // A stored document is taken unchanged.
    if let Ok(stored) = AuthDocument::from_canonical(text, &RULES) {
        assert_eq!(stored.text(), text);
    }
    let Ok(document) = parse(text) else { return };
    // The writer reserves this much, so that a reallocation leaves no copies.
    assert!(document.text().len() <= 2 * text.len() + 256, "{} of {}", document.text().len(), text.len());
    let stored = AuthDocument::from_canonical(document.text(), &RULES).expect("canonical text can be read again");
    assert_eq!((stored.digest(), stored.last_refresh()), (document.digest(), document.last_refresh()));
    assert_eq!(format!("{:?}", stored.targets()), format!("{:?}", document.targets()));
    assert!(document.targets().is_sorted_by(|a, b| a.name < b.name), "targets are sorted and unique");
    for (again, target) in stored.targets().iter().zip(document.targets()) {
        assert_eq!(again.token.expose(), target.token.expose());
    }

    // Changing the date and canonicalizing must commute.
    const LATER: &str = "2026-11-21T11:59:59.000000001Z";
    let dated = redated(text, LATER).expect("it has a date");
    let dated = parse_again(&dated).expect("another date breaks no rule");
    assert_eq!(dated.last_refresh().text(), LATER);
    assert_eq!(dated.text(), &*redated(document.text(), LATER).expect("it has a date"));
    let back = redated(dated.text(), document.last_refresh().text()).expect("it has a date");
    assert_eq!(&*back, document.text());
}

fn request(text: &str) {
    let Ok(members) = split_request(text) else {
        assert!(oracle::compact(text, LEVELS + 1).is_none(), "serde_json reads a body that was refused");
        return;
    };
    let blank = text.trim_matches([' ', '\t', '\n', '\r']).is_empty();
    assert!(blank || oracle::compact(text, LEVELS + 1).is_some(), "serde_json refuses a body that was read");
    assert_eq!(members.is_empty(), members.iter().next().is_none());
    for (name, raw) in members.iter() {
        assert!(members.has(name));
        assert_eq!(members.raw(name), Some(raw));
        let read: &RawValue = serde_json::from_str(raw).expect("a member's text is JSON");
        assert_eq!(read.get(), raw, "there is no space around it");
        assert_eq!(members.text(name), serde_json::from_str::<String>(raw).ok().as_deref());
        if raw.starts_with('{') {
            document(raw);
        }
    }
}

fn upload(text: &str) {
    let Ok(inner) = uploaded_text(text) else { return };
    let expected = serde_json::from_str::<String>(text).unwrap_or_else(|_| text.to_owned());
    assert_eq!(*inner, expected);
    if *inner != text {
        document(&inner);
    }
}

/// Compares the canonical text with that of a second implementation of the rules.
pub fn digest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let ours = parse(text);
    match (&ours, oracle::canonical(text)) {
        (Ok(document), Ok(expected)) => {
            assert_eq!(document.text(), expected);
            assert_eq!(document.digest().to_string(), hex::encode(Sha256::digest(&expected)));
            let again = parse_again(&expected).expect("canonical text is accepted again");
            assert_eq!((again.text(), again.digest()), (document.text(), document.digest()));
        }
        (Err(DocumentError::Json(_)), Err(Refused::Json)) => {}
        (Err(DocumentError::Field { .. }), Err(Refused::Rule)) => {}
        (Err(DocumentError::TooLarge { bytes }), _) => assert!(*bytes > MAX_DOCUMENT_BYTES),
        // The oracle reads no claims.
        (Err(DocumentError::Field { path, .. }), Ok(_)) if path == "auth.tokens.id_token" => {}
        // The oracle does not check the date.
        (Err(DocumentError::Field { path, .. }), Ok(_)) if path == "auth.last_refresh" => {
            assert!(!has_good_date(text), "a good date is refused");
        }
        (ours, expected) => panic!("{ours:?}, but {expected:?}"),
    }
}

fn has_good_date(text: &str) -> bool {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let date = value.get("last_refresh").and_then(serde_json::Value::as_str);
    date.and_then(|date| Instant::parse(date).ok()).is_some_and(|date| date.check(NOW).is_ok())
}
