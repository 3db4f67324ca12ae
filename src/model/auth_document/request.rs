//! Reads the body of a request around a document. Each member keeps its raw text, so the document inside stays exactly
//! as it was sent.

use zeroize::Zeroizing;

use super::DocumentError;
use super::json::{self, Member, Members, Node};

/// The members of a request's body, in their order. It has no `Debug`, because a member may be a whole document.
pub struct RequestMembers<'a>(Members<'a>);

/// Reads a body. An empty body, or one that is not an object, counts as an empty object. Invalid JSON is refused, as
/// are duplicate members and the other JSON faults that a document is refused for.
pub fn split_request(body: &str) -> Result<RequestMembers<'_>, DocumentError> {
    if body.trim_matches([' ', '\t', '\n', '\r']).is_empty() {
        return Ok(RequestMembers(Members(Vec::new())));
    }
    // One level more than a document, for the body around it.
    match json::read_nested(body, json::MAX_DEPTH + 1)? {
        Node::Object(members) => Ok(RequestMembers(members)),
        _ => Ok(RequestMembers(Members(Vec::new()))),
    }
}

/// The text of an uploaded document. If `raw` is a JSON string, it is the string's content; otherwise `raw` itself.
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

    /// A member's raw text, without the space around it.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.member(name).map(|member| member.raw)
    }

    /// A member's unescaped text, if it is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.member(name).and_then(|member| member.value.as_str())
    }

    /// Every member's name and raw value, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.0.iter().map(|member| (&*member.name, member.raw))
    }

    fn member(&self, name: &str) -> Option<&Member<'a>> {
        self.0.0.iter().find(|member| member.name == name)
    }
}
