//! The body of a request around a document: its members, each with its raw text, so that the document inside can be
//! taken exactly as it was sent.

use zeroize::Zeroizing;

use super::DocumentError;
use super::json::{self, Member, Members, Node};

/// The members of a request's body, in their order. No `Debug`: they may hold a whole document.
pub struct RequestMembers<'a>(Members<'a>);

/// Reads a body. An empty one, and one that is no object, counts as an empty object; broken JSON is refused, and so is,
/// anywhere in it, what a document is refused for.
pub fn split_request(body: &str) -> Result<RequestMembers<'_>, DocumentError> {
    if body.trim_matches([' ', '\t', '\n', '\r']).is_empty() {
        return Ok(RequestMembers(Members(Vec::new())));
    }
    // One level more than a document: the body around it.
    match json::read_nested(body, json::MAX_DEPTH + 1)? {
        Node::Object(members) => Ok(RequestMembers(members)),
        _ => Ok(RequestMembers(Members(Vec::new()))),
    }
}

/// The text of an uploaded document: `raw` itself, or, where it is a JSON string, the text inside.
pub fn uploaded_text(raw: &str) -> Result<Zeroizing<String>, DocumentError> {
    match json::read_nested(raw, json::MAX_DEPTH + 1)? {
        Node::String(text) => Ok(text),
        _ => Ok(Zeroizing::new(raw.to_owned())),
    }
}

impl<'a> RequestMembers<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }

    pub fn has(&self, name: &str) -> bool {
        self.member(name).is_some()
    }

    /// A member as it was spelled, without the space around it.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.member(name).map(|member| member.raw)
    }

    /// A member's text, unescaped, if it is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.member(name).and_then(|member| member.value.as_str())
    }

    /// Every member's name with its value as it was spelled, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.0.iter().map(|member| (&*member.name, member.raw))
    }

    fn member(&self, name: &str) -> Option<&Member<'a>> {
        self.0.0.iter().find(|member| member.name == name)
    }
}
