//! What the document says of members and parameters beyond their types: `members.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// By name, or by `Schema.name` or `operation.name` where a name means something else.
#[derive(Deserialize)]
pub struct Facts {
    members: BTreeMap<String, Map<String, Value>>,
    parameters: BTreeMap<String, Map<String, Value>>,
}

const FACTS: &str = include_str!("members.json");

impl Facts {
    /// The file is a part of the program, and a test reads it: an unreadable one counts as empty.
    pub fn read() -> Self {
        serde_json::from_str(FACTS).unwrap_or(Self { members: BTreeMap::new(), parameters: BTreeMap::new() })
    }

    /// Completes the members of one schema.
    pub fn describe_members(&self, name: &str, schema: &mut Value) {
        for (member, property) in members_of(schema) {
            let Some(facts) = self.of_member(name, member) else { continue };
            // OpenAPI ignores members beside a `$ref`.
            if property.get("$ref").is_some() {
                *property = serde_json::json!({ "allOf": [property.take()] });
            }
            apply(facts, property);
        }
    }

    /// Gives a request's or an answer's schema an example, made of those of its members.
    pub fn give_example(schema: &mut Value) {
        if let Some(example) = schema.get_mut("example").and_then(Value::as_object_mut) {
            example.retain(|_, value| !value.is_null());
            return;
        }
        let Some(properties) = schema["properties"].as_object() else { return };
        let examples =
            properties.iter().map(|(member, property)| Some((member.clone(), property.get("example")?.clone())));
        // A member that is a schema of its own has its own example.
        if let Some(example) = examples.collect::<Option<Map<String, Value>>>().filter(|example| !example.is_empty()) {
            schema["example"] = Value::Object(example);
        }
    }

    /// Completes the parameters of one operation.
    pub fn describe_parameters(&self, operation: &mut Value) {
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or_default();
            let facts = self.parameters.get(&format!("{id}.{name}")).or_else(|| self.parameters.get(name));
            let Some(facts) = facts else { continue };
            if let Some(description) = facts.get("description").filter(|_| parameter.get("description").is_none()) {
                parameter["description"] = description.clone();
            }
            if let Some(example) = facts.get("example") {
                parameter["example"] = example.clone();
            }
            let bounds = facts.iter().filter(|(fact, _)| !["description", "example"].contains(&fact.as_str()));
            for (fact, value) in bounds {
                parameter["schema"][fact] = value.clone();
            }
        }
    }

    fn of_member(&self, schema: &str, member: &str) -> Option<&Map<String, Value>> {
        let schema = if schema.starts_with("Envelope") { "Envelope" } else { schema };
        self.members.get(&format!("{schema}.{member}")).or_else(|| self.members.get(member))
    }

    #[cfg(test)]
    pub fn names(&self) -> (impl Iterator<Item = &str>, impl Iterator<Item = &str>) {
        (self.members.keys().map(String::as_str), self.parameters.keys().map(String::as_str))
    }
}

fn members_of(schema: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten()
}

/// The comment of a type goes before the description here. Elements of a list get the bounds of their own type only.
fn apply(facts: &Map<String, Value>, property: &mut Value) {
    for (fact, value) in facts {
        if fact != "description" || property.get("description").is_none() {
            property[fact] = value.clone();
        }
    }
}
