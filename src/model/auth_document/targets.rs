//! The member `auths`, which maps targets to tokens. It is the only member of a document that is rewritten.

use crate::model::secret::Secret;

use super::DocumentError;
use super::json::{Member, Members, Node};
use super::token::{self, DocumentRules};

/// One entry of `auths`.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub token: Secret,
    pub token_type: String,
    pub organization: Option<String>,
    pub project: Option<String>,
    pub api_base: Option<String>,
}

const DEFAULT_TARGET: &str = "api.openai.com";
const DEFAULT_TOKEN_TYPE: &str = "bearer";
const NOT_TARGETS: &str = "auths must be an object of targets";

/// Canonical names of members, with all names that were in use. The first one with a non-blank text counts. All of them
/// are replaced by the canonical name.
const ALIASES: [(&str, &[&str]); 4] = [
    ("token_type", &["token_type", "type"]),
    ("organization", &["organization", "org", "default_organization", "default_org"]),
    ("project", &["project", "default_project"]),
    ("api_base", &["api_base", "base_url"]),
];

/// Checks `auths` and replaces it by its canonical form. If it is missing, null or empty, it is made from the
/// document's own token. A login without such a token (for example a personal access token) has no `auths`.
pub(super) fn canonicalise(document: &mut Members<'_>, rules: &DocumentRules) -> Result<Vec<Target>, DocumentError> {
    let found = match document.0.iter_mut().find(|member| member.name == "auths") {
        Some(member) => std::mem::replace(&mut member.value, Node::Null),
        None => Node::Null,
    };
    let given = match found {
        Node::Null => Members(Vec::new()),
        Node::Array(elements) if elements.is_empty() => Members(Vec::new()),
        Node::Object(targets) => targets,
        _ => return Err(DocumentError::field("auth.auths", NOT_TARGETS)),
    };
    let given = match (given.0.is_empty(), synthesise(document)) {
        (false, _) => given,
        (true, Some(made)) => made,
        (true, None) if rules.strict => {
            document.0.retain(|member| member.name != "auths");
            return Ok(Vec::new());
        }
        (true, None) => return Err(DocumentError::field("auth.auths", NOT_TARGETS)),
    };

    let mut targets =
        given.0.into_iter().map(|target| canonical_target(target, rules)).collect::<Result<Vec<_>, _>>()?;
    targets.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let targets = Members(targets);
    let read = read_targets(&targets)?;
    document.set("auths", Node::Object(targets));
    Ok(read)
}

/// The targets of a document that is already canonical.
pub(super) fn read(document: &Members<'_>) -> Result<Vec<Target>, DocumentError> {
    match document.get("auths") {
        None => Ok(Vec::new()),
        Some(Node::Object(targets)) if !targets.0.is_empty() => read_targets(targets),
        Some(_) => Err(DocumentError::field("auth.auths", NOT_TARGETS)),
    }
}

/// Makes one target from the document's first token that is not blank.
fn synthesise<'a>(document: &Members<'a>) -> Option<Members<'a>> {
    let access_token = match document.get("tokens") {
        Some(Node::Object(tokens)) => tokens.get("access_token"),
        _ => None,
    };
    let token = [access_token, document.get("OPENAI_API_KEY")].into_iter().flatten().find_map(non_blank)?;
    let entry = Members(vec![made("token", Node::string(token))]);
    Some(Members(vec![made(DEFAULT_TARGET, Node::Object(entry))]))
}

fn canonical_target<'a>(target: Member<'a>, rules: &DocumentRules) -> Result<Member<'a>, DocumentError> {
    let name = target.name;
    if token::trim(&name).is_empty() {
        return Err(DocumentError::field("auth.auths", "the name of a target may not be blank"));
    }
    if is_list_index(&name) {
        return Err(DocumentError::field("auth.auths", NOT_TARGETS));
    }
    let Node::Object(given) = target.value else {
        return Err(DocumentError::field(format!("auth.auths.{name}"), "must be an object"));
    };

    let token = given.get("token").and_then(Node::as_str).map(token::trim).unwrap_or_default();
    token::check(token, rules).map_err(|reason| DocumentError::field(format!("auth.auths.{name}.token"), reason))?;
    let mut entry = vec![made("token", Node::string(token))];
    for (member, aliases) in ALIASES {
        let default = (member == "token_type").then_some(DEFAULT_TOKEN_TYPE);
        if let Some(text) = aliases.iter().filter_map(|alias| given.get(alias)).find_map(non_blank).or(default) {
            entry.push(made(member, Node::string(text)));
        }
    }
    entry.extend(given.0.into_iter().filter(|member| {
        let is_scalar = !matches!(member.value, Node::Array(_) | Node::Object(_));
        is_scalar && member.name != "token" && !is_alias(&member.name)
    }));
    entry.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(made(&name, Node::Object(Members(entry))))
}

fn read_targets(targets: &Members<'_>) -> Result<Vec<Target>, DocumentError> {
    targets.0.iter().map(|Member { name, value, .. }| read_target(name, value)).collect()
}

fn read_target(name: &str, value: &Node<'_>) -> Result<Target, DocumentError> {
    let Node::Object(entry) = value else {
        return Err(DocumentError::field(format!("auth.auths.{name}"), "must be an object"));
    };
    let text = |member: &str| entry.get(member).and_then(Node::as_str).map(str::to_owned);
    let token = text("token")
        .ok_or_else(|| DocumentError::field(format!("auth.auths.{name}.token"), token::BadToken::Missing))?;
    Ok(Target {
        name: name.to_owned(),
        token: Secret::new(token),
        token_type: text("token_type").unwrap_or_else(|| DEFAULT_TOKEN_TYPE.to_owned()),
        organization: text("organization"),
        project: text("project"),
        api_base: text("api_base"),
    })
}

fn made<'a>(name: &str, value: Node<'a>) -> Member<'a> {
    Member { name: name.to_owned(), value, raw: "" }
}

fn non_blank<'n>(node: &'n Node<'_>) -> Option<&'n str> {
    node.as_str().map(token::trim).filter(|text| !text.is_empty())
}

fn is_alias(name: &str) -> bool {
    ALIASES.iter().any(|(_, aliases)| aliases.contains(&name))
}

/// `0`, `1`, `17`: names of list elements in languages where lists and objects are one type.
fn is_list_index(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'))
}
