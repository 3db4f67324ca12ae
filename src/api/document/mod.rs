//! The OpenAPI document: what poem-openapi derives from the handlers, and what it cannot derive.
//!
//! poem-openapi knows the paths, the types and their comments. Added here: null for optional members, who may call,
//! which listener serves an operation, the refusals that an operation can really answer with, and for each member and
//! parameter an example, its bounds, and a description if the type has no comment (`members.json`).

mod members;
pub(super) mod routes;
pub(super) mod statuses;

use serde_json::{Map, Value, json};

use members::Facts;

/// Which listener serves an operation, and who may call it there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Hosts' listener, everybody.
    Anybody,
    /// Hosts' listener, with a host's key.
    Hosts,
    /// Both listeners, everybody.
    AnybodyAnywhere,
    /// Both listeners, who is signed in.
    Members,
    /// Admin listener and control socket, everybody who may read there, or change.
    Admins,
    /// Control socket only.
    ThisMachine,
}

const THIS_MACHINE: [&str; 6] =
    ["getBackup", "sealBackupKeys", "noteVerifiedBackup", "restoreBackup", "migrate", "abortMigration"];

impl Audience {
    fn of(path: &str, operation: &Value) -> Self {
        let id = operation["operationId"].as_str().unwrap_or_default();
        let of_admins = ["/admin/", "/metrics", "/auth/users", "/auth/sessions", "/auth/identities"];
        if THIS_MACHINE.contains(&id) {
            Self::ThisMachine
        } else if of_admins.iter().any(|prefix| path.starts_with(prefix)) {
            Self::Admins
        } else if path.starts_with("/auth/me") || id == "signOut" {
            Self::Members
        } else if operation.get("security").is_some() {
            Self::Hosts
        } else if ["/install", "/versions"].iter().any(|prefix| path.starts_with(prefix)) {
            Self::Anybody
        } else {
            Self::AnybodyAnywhere
        }
    }

    fn security(self) -> Value {
        match self {
            Self::Anybody | Self::AnybodyAnywhere => json!([]),
            Self::Hosts => json!([{ "ApiKey": [] }, { "BearerKey": [] }]),
            Self::Members => json!([{ "AccessToken": [] }]),
            Self::Admins => json!([
                { "ClientCertificate": [] },
                { "AccessToken": [] },
                { "ClientCertificate": [], "AccessToken": [] },
            ]),
            Self::ThisMachine => json!([{ "ControlSocket": [] }]),
        }
    }

    fn servers(self) -> Value {
        match self {
            Self::Anybody | Self::Hosts => json!([hosts_server()]),
            Self::AnybodyAnywhere | Self::Members => json!([hosts_server(), admin_server()]),
            Self::Admins => json!([admin_server()]),
            Self::ThisMachine => json!([{
                "url": "http://control-socket",
                "description": "The control socket, /run/codex-authd/control.sock: HTTP over a Unix socket.",
            }]),
        }
    }
}

fn hosts_server() -> Value {
    server("The hosts' listener.", "8443")
}

fn admin_server() -> Value {
    server("The admin listener. It asks for a client certificate in the TLS handshake.", "9443")
}

fn server(description: &str, port: &str) -> Value {
    json!({
        "url": "https://{host}:{port}",
        "description": description,
        "variables": {
            "host": { "default": "auth.example.com", "description": "The name of the daemon's machine." },
            "port": { "default": port, "description": "As `listen` of its configuration says." },
        },
    })
}

/// Completes the document that poem-openapi made.
pub fn complete(mut document: Value) -> Value {
    let facts = Facts::read();
    document["servers"] = json!([hosts_server(), admin_server()]);
    add_schemes(&mut document["components"]["securitySchemes"]);
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        for (name, schema) in schemas {
            allow_null(name, schema);
            facts.describe_members(name, schema);
            Facts::give_example(schema);
        }
    }
    let paths = document.get_mut("paths").and_then(Value::as_object_mut).into_iter().flatten();
    for (path, item) in paths {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let audience = Audience::of(path, operation);
            operation["security"] = audience.security();
            operation["servers"] = audience.servers();
            facts.describe_parameters(operation);
            name_headers(operation);
            if path == super::lines::PATH {
                answer_with_text(operation);
            }
            statuses::keep_real(method, audience, operation);
        }
    }
    tidy(&mut document);
    document
}

/// OpenAPI 3.0 has no type for a client certificate, and none for a Unix socket.
fn add_schemes(schemes: &mut Value) {
    let access_token = "The access token of somebody who signed in: `cxa_` and 43 characters.";
    schemes["AccessToken"] = json!({ "type": "http", "scheme": "bearer", "description": access_token });
    let certificate = "Not a header: a client certificate of the daemon's own authority, in the TLS handshake. Whether the \
        admin listener requires it, an access token, or both, is `admin.access` of the configuration.";
    schemes["ClientCertificate"] = json!({ "type": "http", "scheme": "mutual-tls", "description": certificate });
    let socket = "Not a header: the operation is there on the control socket only, for root and the daemon's user.";
    schemes["ControlSocket"] = json!({ "type": "http", "scheme": "unix-socket", "description": socket });
}

/// Members with a schema of their own that are null if there is nothing, as the recorded service answers. All others are
/// left out then, because most generators cannot describe such a null.
const NULL_AS_RECORDED: [(&str, &str); 4] = [
    ("AuthAnswer", "token_usage_month"),
    ("RunnerBody", "state"),
    ("RunnerBody", "latest_validation"),
    ("RunnerBody", "latest_runner_store"),
];

/// Marks optional members as nullable, in requests and in answers: answers have null for what is not there, and a
/// generated client would fail on it.
fn allow_null(name: &str, schema: &mut Value) {
    let required: Vec<String> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(String::from))
        .collect();
    if required.is_empty() {
        schema.as_object_mut().map(|schema| schema.remove("required"));
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (member, property) in properties.iter_mut().filter(|(name, _)| !required.contains(name)) {
        let is_schema = property.get("$ref").is_some() || property.get("allOf").is_some();
        if property.get("$ref").is_some() {
            // OpenAPI ignores members beside a `$ref`.
            *property = json!({ "allOf": [property.take()] });
        }
        if !is_schema || NULL_AS_RECORDED.contains(&(name, member)) {
            property["nullable"] = Value::Bool(true);
        }
    }
}

/// Refusals of this operation are lines as well.
fn answer_with_text(operation: &mut Value) {
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
    for response in responses.into_iter().flat_map(Map::values_mut) {
        response["content"] = json!({ "text/plain": { "schema": { "type": "string" } } });
    }
}

/// The names of headers as people write them; the framework has them in capitals.
const HEADERS: [&str; 7] =
    ["Retry-After", "ETag", "X-SHA256", "Content-Disposition", "X-Installer-Expires-At", "Location", "Set-Cookie"];

fn name_headers(operation: &mut Value) {
    for response in operation.get_mut("responses").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
    {
        let Some(headers) = response.get_mut("headers").and_then(Value::as_object_mut) else { continue };
        *headers = std::mem::take(headers)
            .into_iter()
            .map(|(name, header)| {
                let known = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(&name));
                (known.map_or(name, |known| (*known).to_owned()), header)
            })
            .collect();
    }
}

/// Numbers as OpenAPI 3.0 knows them, and nothing that says nothing.
fn tidy(node: &mut Value) {
    match node {
        Value::Object(members) => {
            let unsigned =
                matches!(members.get("format").and_then(Value::as_str), Some("uint32" | "uint64" | "uint16"));
            if unsigned && members.get("type") == Some(&json!("integer")) {
                members.insert("format".into(), "int64".into());
                members.entry("minimum").or_insert(json!(0));
            }
            if members.get("type") == Some(&json!("integer")) {
                for bound in ["minimum", "maximum"] {
                    if let Some(whole) = members.get(bound).and_then(Value::as_f64).filter(|n| n.fract() == 0.0) {
                        members.insert(bound.into(), json!(whole as i64));
                    }
                }
            }
            if members.get("type") == Some(&json!("object")) && !members.contains_key("properties") {
                members.entry("additionalProperties").or_insert(Value::Bool(true));
            }
            // The description stands beside the list as well.
            if let Some(parts) = members.get_mut("allOf").and_then(Value::as_array_mut) {
                parts.retain(|part| part.as_object().is_none_or(|part| !part.keys().eq(["description"])));
            }
            drop_default(members, "deprecated", &json!(false));
            drop_default(members, "explode", &json!(true));
            members.values_mut().for_each(tidy);
        }
        Value::Array(elements) => elements.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn drop_default(members: &mut Map<String, Value>, name: &str, default: &Value) {
    if members.get(name) == Some(default) {
        members.remove(name);
    }
}

#[cfg(test)]
mod tests;
