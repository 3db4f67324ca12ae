//! Generates `../rust/src/generated.rs` from `../../openapi.json`. With `--check` it writes nothing, and fails if the
//! file differs.
//!
//! progenitor cannot express everything that the document says. What is changed in memory before the generation stands
//! in `adapt`, with the reasons. The generated text is changed in one place (`read_answers_ourselves`).

use std::path::Path;
use std::process::ExitCode;

use progenitor_impl::{GenerationSettings, Generator, InterfaceStyle, TagStyle, TypeImpl};
use serde_json::{Map, Value, json};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");
const GENERATED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../rust/src/generated.rs");

/// The name of the schema that stands for every string of `format: password`.
const SECRET: &str = "Secret";

/// The name of the schema that stands for every login as JSON: the members `auth`.
const SECRET_JSON: &str = "SecretJson";

/// Its answer is JSON whose exact bytes matter: the client must not read and write it again.
const EXACT: &str = "getAuthDocument";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let document = std::env::var("OPENAPI_DOCUMENT").unwrap_or_else(|_| DOCUMENT.to_owned());
    let text = std::fs::read_to_string(&document).unwrap_or_else(|error| panic!("{document}: {error}"));
    let code = generate(serde_json::from_str(&text).expect("the document is JSON"));
    if arguments == ["--check"] {
        if std::fs::read_to_string(GENERATED).is_ok_and(|present| present == code) {
            return ExitCode::SUCCESS;
        }
        eprintln!("{GENERATED} is not what {document} gives: make clients-rust");
        return ExitCode::FAILURE;
    }
    std::fs::create_dir_all(Path::new(GENERATED).parent().expect("it has a directory")).expect("it can be made");
    std::fs::write(GENERATED, code).expect("it can be written");
    ExitCode::SUCCESS
}

fn generate(mut document: Value) -> String {
    adapt(&mut document);
    let document: openapiv3::OpenAPI = serde_json::from_value(document).expect("the document is OpenAPI 3.0");
    let mut settings = GenerationSettings::new();
    settings
        .with_interface(InterfaceStyle::Builder)
        .with_tag(TagStyle::Merged)
        .with_replacement(SECRET, "crate::Secret", std::iter::empty::<TypeImpl>())
        .with_replacement(SECRET_JSON, "crate::SecretJson", std::iter::empty::<TypeImpl>());
    let tokens = Generator::new(&settings).generate_tokens(&document).expect("progenitor takes the document");
    let code = prettyplease::unparse(&syn::parse2(tokens).expect("progenitor writes Rust"));
    let code = drop_schemas(&read_answers_ourselves(&code));
    format!("// Generated from openapi/openapi.json by openapi/clients/generate: make clients-rust. Do not edit.\n\n{code}")
}

/// progenitor's own reader has no limit for the size of an answer, loses the status of an error whose body is not ours,
/// and keeps the whole body in an error that is printed.
fn read_answers_ourselves(code: &str) -> String {
    let theirs = "ResponseValue::from_response(response)";
    assert!(code.contains(theirs), "progenitor reads answers in another way now");
    code.replace(theirs, "crate::answer::read(response)")
}

/// The schema of each type in its documentation: half of the file, and the document says it better.
fn drop_schemas(code: &str) -> String {
    let mut inside = false;
    let mut kept = String::with_capacity(code.len());
    for line in code.lines() {
        let text = line.trim_start();
        inside |= text.starts_with("/// <details><summary>JSON schema</summary>");
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
        inside &= text != "/// </details>";
    }
    assert!(!inside, "the documentation of a type does not end");
    kept
}

fn adapt(document: &mut Value) {
    hide_logins(&mut document["components"]["schemas"]);
    // A secret in a path is text: progenitor prints it into the path.
    for item in document["paths"].as_object_mut().expect("there are paths").values_mut() {
        for operation in item.as_object_mut().expect("a path has operations").values_mut() {
            let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
            for schema in parameters.into_iter().flatten().filter_map(|parameter| parameter.get_mut("schema")) {
                schema.as_object_mut().expect("a schema is an object").remove("format");
            }
        }
    }
    adapt_schemas(document);
    document["components"]["schemas"][SECRET] = json!({"type": "string"});
    document["components"]["schemas"][SECRET_JSON] = json!({"type": "object"});
    for item in document["paths"].as_object_mut().expect("there are paths").values_mut() {
        for operation in item.as_object_mut().expect("a path has operations").values_mut() {
            if operation["operationId"] == EXACT {
                let content = &mut operation["responses"]["200"]["content"];
                *content = json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}});
            }
            if let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) {
                adapt_responses(responses);
            }
        }
    }
}

/// progenitor takes one type of errors for each operation. All errors in JSON have one schema, so they become one range:
/// the client then reads an error of any status. The installer's errors are scripts that print the reason: there the
/// client reports the status.
fn adapt_responses(responses: &mut Map<String, Value>) {
    let mut json = None;
    responses.retain(|status, response| {
        let is_error = status.starts_with(['4', '5']);
        if is_error && let Some(schema) = response.pointer("/content/application~1json/schema") {
            let other = json.replace(schema.clone()).is_some_and(|other| other != *schema);
            assert!(!other, "two schemas of errors in one operation: {schema}");
        }
        !is_error
    });
    if let Some(schema) = json {
        let content = json!({"application/json": {"schema": schema}});
        for range in ["4XX", "5XX"] {
            responses.insert(range.into(), json!({"description": "An error.", "content": content}));
        }
    }
}

/// OpenAPI marks secret strings only, and a login as JSON is an object.
fn hide_logins(schemas: &mut Value) {
    for schema in schemas.as_object_mut().expect("there are schemas").values_mut() {
        if let Some(login) = schema.pointer_mut("/properties/auth").filter(|auth| auth["type"] == "object") {
            *login = json!({"$ref": format!("#/components/schemas/{SECRET_JSON}")});
        }
    }
}

fn adapt_schemas(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.get("type").is_some_and(|kind| kind == "string") {
                adapt_string(members);
            }
            // progenitor would merge what stands beside them into each alternative, and lose their names.
            if members.get("oneOf").is_some_and(Value::is_array) {
                members.retain(|name, _| name == "oneOf" || name == "description");
            }
            members.values_mut().for_each(adapt_schemas);
        }
        Value::Array(values) => values.iter_mut().for_each(adapt_schemas),
        _ => {}
    }
}

/// Limits of strings would make a type of each, with a library of regular expressions; the daemon checks them. Dates
/// stay text: a date that is parsed and written again is another text.
fn adapt_string(schema: &mut Map<String, Value>) {
    if schema.get("format").is_some_and(|format| format == "password") {
        let described = schema.get("description").cloned();
        let reference = json!({"$ref": format!("#/components/schemas/{SECRET}")});
        let nullable = schema.get("nullable").cloned();
        schema.clear();
        if described.is_none() && nullable.is_none() {
            schema.insert("$ref".into(), reference["$ref"].clone());
            return;
        }
        schema.insert("allOf".into(), json!([reference]));
        schema.extend(described.map(|text| ("description".into(), text)));
        schema.extend(nullable.map(|nullable| ("nullable".into(), nullable)));
        return;
    }
    for limit in ["pattern", "minLength", "maxLength"] {
        schema.remove(limit);
    }
    if schema.get("format").is_some_and(|format| format != "binary") {
        schema.remove("format");
    }
}
