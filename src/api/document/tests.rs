use std::collections::BTreeSet;

use serde_json::Value;

use super::members::Facts;
use crate::api::document;

fn read() -> Value {
    serde_json::from_str(&document()).unwrap()
}

fn members(document: &Value) -> Vec<(String, String, Value)> {
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let of_schema = |(name, schema): (&String, &Value)| {
        let properties = schema["properties"].as_object().into_iter().flatten();
        properties.map(|(member, it)| (name.clone(), member.clone(), it.clone())).collect::<Vec<_>>()
    };
    schemas.iter().flat_map(of_schema).collect()
}

fn operations(document: &Value) -> Vec<Value> {
    let paths = document["paths"].as_object().unwrap().values();
    paths.flat_map(|item| item.as_object().unwrap().values().cloned()).collect()
}

/// A schema of its own, or a list of such, has its examples itself.
fn is_composed(property: &Value) -> bool {
    property.get("allOf").is_some() || property.get("$ref").is_some() || property["items"].get("$ref").is_some()
}

#[test]
fn every_member_and_parameter_is_described_and_has_an_example() {
    let document = read();
    let mut missing = BTreeSet::new();
    for (schema, member, property) in members(&document) {
        if property.get("description").is_none() {
            missing.insert(format!("{schema}.{member}: description"));
        }
        if !is_composed(&property) && property.get("example").is_none() {
            missing.insert(format!("{schema}.{member}: example"));
        }
    }
    for operation in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            for fact in ["description", "example"].into_iter().filter(|fact| parameter.get(*fact).is_none()) {
                missing.insert(format!("{}.{}: {fact}", operation["operationId"], parameter["name"]));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_fact_is_used() {
    let document = read();
    let mut members: BTreeSet<String> = members(&document)
        .into_iter()
        .flat_map(|(schema, member, _)| {
            let schema = if schema.starts_with("Envelope") { "Envelope" } else { &schema };
            [format!("{schema}.{member}"), member]
        })
        .collect();
    members.insert("Envelope.status".into());
    let parameters: BTreeSet<String> = operations(&document)
        .iter()
        .flat_map(|operation| {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let all = operation["parameters"].as_array().cloned().unwrap_or_default();
            all.into_iter().flat_map(move |parameter| {
                let name = parameter["name"].as_str().unwrap().to_owned();
                [format!("{id}.{name}"), name]
            })
        })
        .collect();
    let facts = Facts::read();
    let (of_members, of_parameters) = facts.names();
    let unused: Vec<&str> = of_members
        .filter(|name| !members.contains(*name))
        .chain(of_parameters.filter(|name| !parameters.contains(*name)))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn every_operation_says_who_may_call_it_and_where() {
    for operation in operations(&read()) {
        let id = operation["operationId"].as_str().unwrap();
        let security = operation["security"].as_array().unwrap();
        assert!(security.iter().all(|one| one.as_object().is_some_and(|one| !one.is_empty())), "{id}: {security:?}");
        assert!(!operation["servers"].as_array().unwrap().is_empty(), "{id}");
    }
}

#[test]
fn every_json_body_has_an_example() {
    let document = read();
    for operation in operations(&document) {
        let Some(body) = operation["requestBody"]["content"].get("application/json") else { continue };
        let name = body["schema"]["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        let schema = &document["components"]["schemas"][name];
        let alternatives = schema["oneOf"].as_array().map_or(vec![schema], |all| {
            let names = all.iter().map(|one| one["$ref"].as_str().unwrap().rsplit('/').next().unwrap());
            names.map(|name| &document["components"]["schemas"][name]).collect()
        });
        for one in alternatives {
            assert!(one.get("example").is_some(), "{}: {name}", operation["operationId"]);
        }
    }
}
