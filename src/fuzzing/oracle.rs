//! A second implementation of the canonical text, for comparison. serde_json reads and quotes. The rules are
//! implemented again from their description, without code from `model/auth_document`. It is slow and simple on purpose.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Why there is no canonical text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Json,
    Rule,
}

#[derive(Debug)]
enum Tree {
    /// `null`, `true`, `false`, or a number in its original spelling.
    Plain(String),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

/// The raw elements of one level, in their order.
struct Level<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Level<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array or an object")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some(element) = elements.next_element()? {
                    found.push((String::new(), element));
                }
                Ok(found)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some(member) = members.next_entry()? {
                    found.push(member);
                }
                Ok(found)
            }
        }
        deserializer.deserialize_any(Elements).map(Self)
    }
}

fn tree(raw: &str, levels: usize) -> Option<Tree> {
    match raw.bytes().next()? {
        b'"' => serde_json::from_str(raw).ok().map(Tree::Text),
        b'[' | b'{' if levels == 0 => None,
        b'[' => {
            let Level(elements) = serde_json::from_str(raw).ok()?;
            elements.iter().map(|(_, raw)| tree(raw.get(), levels - 1)).collect::<Option<_>>().map(Tree::List)
        }
        b'{' => {
            let Level(members) = serde_json::from_str(raw).ok()?;
            let mut seen = HashSet::new();
            members
                .into_iter()
                .map(|(name, raw)| {
                    seen.insert(name.clone()).then_some(())?;
                    Some((name, tree(raw.get(), levels - 1)?))
                })
                .collect::<Option<_>>()
                .map(Tree::Object)
        }
        _ => Some(Tree::Plain(raw.to_owned())),
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        match self {
            Self::Plain(text) => f.write_str(text),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::List(elements) => {
                let elements: Vec<_> = elements.iter().map(Tree::to_string).collect();
                write!(f, "[{}]", elements.join(","))
            }
            Self::Object(members) => {
                let members: Vec<_> =
                    members.iter().map(|(name, value)| quoted(name) + ":" + &value.to_string()).collect();
                write!(f, "{{{}}}", members.join(","))
            }
        }
    }
}

/// Writes any JSON compactly. `None` if it must be refused.
pub(super) fn compact(text: &str, levels: usize) -> Option<String> {
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    tree(raw.get(), levels).map(|tree| tree.to_string())
}

/// The canonical text. The caller checks the date.
pub(super) fn canonical(text: &str) -> Result<String, Refused> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|_| Refused::Json)?;
    let Tree::Object(mut members) = tree(raw.get(), 64).ok_or(Refused::Json)? else { return Err(Refused::Rule) };

    let is_agent =
        members.iter().any(|(name, mode)| name == "auth_mode" && said(mode).as_deref() == Some("agentIdentity"));
    members.retain(|(name, _)| is_agent || name != "agent_identity");
    if let Some((_, Tree::Object(tokens))) = members.iter_mut().find(|(name, _)| name == "tokens") {
        tokens.retain(|(name, _)| name != "login_owner_id");
    }
    let place = members.iter().position(|(name, _)| name == "auths");
    let given = place.map(|place| std::mem::replace(&mut members[place].1, Tree::Plain("null".into())));
    let mut entries = match given {
        None => Vec::new(),
        Some(Tree::Plain(text)) if text == "null" => Vec::new(),
        Some(Tree::List(elements)) if elements.is_empty() => Vec::new(),
        Some(Tree::Object(entries)) => entries,
        Some(_) => return Err(Refused::Rule),
    };
    if entries.is_empty() {
        let tokens = members.iter().find(|(name, _)| name == "tokens").map(|(_, tokens)| tokens);
        let access = tokens.and_then(|tokens| text_of(tokens, &["access_token"]));
        let key = members.iter().find(|(name, _)| name == "OPENAI_API_KEY").and_then(|(_, key)| said(key));
        let token = access.or(key).ok_or(Refused::Rule)?;
        entries.push(("api.openai.com".into(), Tree::Object(vec![("token".into(), Tree::Text(token))])));
    }
    let mut entries = entries.into_iter().map(entry).collect::<Option<Vec<_>>>().ok_or(Refused::Rule)?;
    entries.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    let auths = Tree::Object(entries);
    match place {
        Some(place) => members[place].1 = auths,
        None => members.push(("auths".into(), auths)),
    }
    Ok(Tree::Object(members).to_string())
}

fn entry((name, given): (String, Tree)) -> Option<(String, Tree)> {
    let index = name == "0" || name.as_bytes()[..].iter().all(u8::is_ascii_digit) && !name.starts_with('0');
    if blank(&name) || index {
        return None;
    }
    let token = text_of(&given, &["token"])?;
    let distinct: HashSet<u8> = token.bytes().collect();
    let known = ["token", "newer-token", "placeholder", "changeme", "dummy", "test", "example", "example-token"];
    if token.contains(char::is_whitespace)
        || token.len() < 8
        || distinct.len() < 6
        || known.contains(&token.to_ascii_lowercase().as_str())
    {
        return None;
    }
    let mut entry = vec![("token".to_owned(), Tree::Text(token))];
    let token_type = text_of(&given, &["token_type", "type"]).unwrap_or_else(|| "bearer".into());
    entry.push(("token_type".into(), Tree::Text(token_type)));
    let organization = ["organization", "org", "default_organization", "default_org"];
    let project = ["project", "default_project"];
    let api_base = ["api_base", "base_url"];
    for aliases in [&organization[..], &project, &api_base] {
        if let Some(text) = text_of(&given, aliases) {
            entry.push((aliases[0].into(), Tree::Text(text)));
        }
    }
    let rewritten = ["token", "token_type", "type"].into_iter().chain(organization).chain(project).chain(api_base);
    let rewritten: HashSet<&str> = rewritten.collect();
    let Tree::Object(given) = given else { return None };
    for (name, value) in given {
        if !rewritten.contains(name.as_str()) && matches!(value, Tree::Plain(_) | Tree::Text(_)) {
            entry.push((name, value));
        }
    }
    entry.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    Some((name, Tree::Object(entry)))
}

/// The first of these members with a text that is not blank.
fn text_of(object: &Tree, names: &[&str]) -> Option<String> {
    let Tree::Object(members) = object else { return None };
    names.iter().find_map(|wanted| members.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| said(value)))
}

fn said(value: &Tree) -> Option<String> {
    match value {
        Tree::Text(text) if !blank(text) => Some(trimmed(text).to_owned()),
        _ => None,
    }
}

fn blank(text: &str) -> bool {
    trimmed(text).is_empty()
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|character| matches!(character, ' ' | '\t' | '\n' | '\r' | '\0' | '\u{b}'))
}
