//! Target `configuration`: a file's text and environment variables (`NAME=value`), separated by NUL bytes.

use toml::{Table, Value};

use crate::config::{Config, ConfigError, load_text};

pub fn configuration(data: &[u8]) {
    let Ok(all) = std::str::from_utf8(data) else { return };
    let mut parts = all.split('\0');
    let file = parts.next().unwrap_or_default();
    let environment: Vec<(String, String)> =
        parts.filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect();

    let loaded = load_text(file, environment.clone());
    let known = known();
    let strange = environment.iter().any(|(name, _)| is_strange(name, &known)) || has_strange_keys(file, &known);
    match loaded {
        Ok(config) => {
            assert!(!strange, "an unknown name was ignored");
            prints_and_loads(&config);
            overlays(&config, &environment);
        }
        Err(error) => {
            // The error is shown to people.
            assert!(!error.to_string().is_empty());
            if matches!(error, ConfigError::UnknownKey { .. }) {
                assert!(strange, "a known name was refused: {error}");
            }
        }
    }
}

fn known() -> Table {
    Table::try_from(Config::default()).expect("the defaults are valid TOML")
}

/// A configuration that is printed and loaded again must print the same text.
fn prints_and_loads(config: &Config) {
    let text = toml::to_string(config).expect("a configuration can be printed");
    let again = load_text(&text, Vec::new()).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(toml::to_string(&again).expect("a configuration can be printed"), text);
    let pasted = &config.public_base_url;
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"\"$`\\!".contains(c);
    assert!(pasted.chars().all(plain), "{pasted:?} is double-quoted in a command to paste");
    assert_eq!(config.listen.trusted_networks().len(), config.listen.trusted_proxies.len());
}

/// A text that a variable sets must equal the variable's value exactly.
fn overlays(config: &Config, environment: &[(String, String)]) {
    let last =
        |wanted: &str| environment.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    if let Some(value) = last("CODEX_AUTHD_PUBLIC_BASE_URL") {
        assert_eq!(config.public_base_url, value);
    }
    if let Some(value) = last("CODEX_AUTHD_RUNNER__CONFIG_TOML") {
        assert_eq!(config.runner.config_toml, value);
    }
    if let Some(value) = last("CODEX_AUTHD_STATE_DIR") {
        assert_eq!(config.state_dir, std::path::Path::new(value));
    }
}

/// Whether a variable has our prefix but does not exactly name a key.
fn is_strange(name: &str, known: &Table) -> bool {
    let Some(rest) = name.strip_prefix("CODEX_AUTHD_") else { return false };
    let names = known.iter().flat_map(|(name, value)| match value {
        Value::Table(section) => section.keys().map(|key| format!("{name}__{key}")).collect(),
        _ => vec![name.clone()],
    });
    rest != "CONFIG" && !names.map(|name| name.to_ascii_uppercase()).any(|name| name == rest)
}

fn has_strange_keys(file: &str, known: &Table) -> bool {
    let Ok(table) = file.parse::<Table>() else { return false };
    table.iter().any(|(name, value)| match (value, known.get(name)) {
        (_, None) => true,
        (Value::Table(section), Some(Value::Table(known))) => section.keys().any(|key| !known.contains_key(key)),
        (_, Some(Value::Table(_))) => true,
        // A section instead of a value is a type error, not an unknown key.
        _ => false,
    })
}
