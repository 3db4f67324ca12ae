//! Reading the configuration: file, then environment over it, then the checks.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{AdminAccess, Config};

pub const DEFAULT_PATH: &str = "/etc/codex-authd/config.toml";
const PREFIX: &str = "CODEX_AUTHD_";
/// Names the file, so it is no key of it.
const PATH_VARIABLE: &str = "CODEX_AUTHD_CONFIG";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {cause}")]
    Unreadable { path: PathBuf, cause: std::io::Error },
    /// Without the text: a line of it may hold a password.
    #[error("{path} is not valid TOML, line {line}: {message}")]
    NotToml { path: PathBuf, line: usize, message: String },
    #[error("{origin}: there is no key '{key}'{hint}")]
    UnknownKey { origin: String, key: String, hint: String },
    #[error("{origin}: {key}: {message}")]
    BadValue { origin: String, key: String, message: String },
}

/// Reads the configuration.
///
/// `path` is the file named by `--config`; else `CODEX_AUTHD_CONFIG` of `environment` names it; else
/// [`DEFAULT_PATH`] is read if it is there. Variables `CODEX_AUTHD_<SECTION>__<KEY>` win over the file.
pub fn load(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let variables: Vec<(String, String)> =
        environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let named = path
        .map(Path::to_path_buf)
        .or_else(|| variables.iter().find(|(name, _)| name == PATH_VARIABLE).map(|(_, value)| PathBuf::from(value)));
    let known = known_keys();
    let (origin, mut table) = match named {
        Some(path) => (path.display().to_string(), read(&path)?),
        None if Path::new(DEFAULT_PATH).exists() => (DEFAULT_PATH.into(), read(Path::new(DEFAULT_PATH))?),
        None => ("the defaults".into(), Table::new()),
    };
    refuse_unknown(&table, &known, &origin)?;
    refuse_mistyped(&table, &known, &origin, "")?;
    for (name, value) in variables.iter().filter(|(name, _)| name != PATH_VARIABLE) {
        overlay(&mut table, &known, name, value)?;
    }
    let config: Config = Value::Table(table).try_into().map_err(|cause: toml::de::Error| ConfigError::BadValue {
        origin,
        key: "configuration".into(),
        message: without_value(cause.message()),
    })?;
    check(&config)?;
    Ok(config)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable { path: path.to_path_buf(), cause })?;
    text.parse().map_err(|cause: toml::de::Error| ConfigError::NotToml {
        path: path.to_path_buf(),
        line: cause.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.matches('\n').count() + 1),
        message: cause.message().into(),
    })
}

/// The defaults as a table: their keys are the keys there are, their types the types that are wanted.
#[allow(clippy::expect_used)] // The defaults are plain strings, numbers, booleans and lists.
fn known_keys() -> Table {
    Table::try_from(Config::default()).expect("the defaults are valid TOML")
}

fn refuse_unknown(table: &Table, known: &Table, origin: &str) -> Result<(), ConfigError> {
    let all = flat(known);
    for key in flat(table) {
        if !all.contains(&key) {
            return Err(unknown(origin, &key, &all));
        }
    }
    Ok(())
}

/// By name, and without the value: it may be a password in the wrong place.
fn refuse_mistyped(table: &Table, known: &Table, origin: &str, section: &str) -> Result<(), ConfigError> {
    for (key, value) in table {
        match (value, known.get(key)) {
            (Value::Table(table), Some(Value::Table(known))) => {
                refuse_mistyped(table, known, origin, &format!("{key}."))?
            }
            (value, Some(wanted)) if !value.same_type(wanted) => {
                return Err(ConfigError::BadValue {
                    origin: origin.into(),
                    key: format!("{section}{key}"),
                    message: format!("expected {}", in_words(wanted)),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// serde quotes what it was given, and then says what it expected.
fn without_value(message: &str) -> String {
    message.rsplit_once(", expected ").map_or_else(|| message.into(), |(_, expected)| format!("expected {expected}"))
}

/// `section.key` of everything in the table, one level deep; a section that is known by nobody appears as `section`.
fn flat(table: &Table) -> Vec<String> {
    table
        .iter()
        .flat_map(|(name, value)| match value {
            Value::Table(section) if !section.is_empty() => section.keys().map(|key| format!("{name}.{key}")).collect(),
            _ => vec![name.clone()],
        })
        .collect()
}

fn unknown(origin: &str, key: &str, all: &[String]) -> ConfigError {
    let nearest = all
        .iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(key, candidate), candidate))
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let hint = nearest.map(|(_, candidate)| format!("; did you mean '{candidate}'?")).unwrap_or_default();
    ConfigError::UnknownKey { origin: origin.into(), key: key.into(), hint }
}

fn overlay(table: &mut Table, known: &Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let path = name[PREFIX.len()..].to_lowercase().replacen("__", ".", 1);
    let (section, key) = path.split_once('.').map_or((None, path.as_str()), |(section, key)| (Some(section), key));
    let wanted = match section {
        None => known.get(key).filter(|value| !value.is_table()),
        Some(section) => known.get(section).and_then(Value::as_table).and_then(|section| section.get(key)),
    };
    let Some(wanted) = wanted else {
        let names: Vec<String> = flat(known).iter().map(|key| variable(key)).collect();
        return Err(unknown("the environment", name, &names));
    };
    let value = typed(value, wanted).ok_or_else(|| ConfigError::BadValue {
        origin: "the environment".into(),
        key: name.into(),
        message: format!("expected {}", in_words(wanted)),
    })?;
    let target = match section {
        None => table,
        Some(section) => {
            let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            entry.as_table_mut().ok_or_else(|| unknown("the environment", name, &[]))?
        }
    };
    target.insert(key.into(), value);
    Ok(())
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn typed(text: &str, wanted: &Value) -> Option<Value> {
    Some(match wanted {
        Value::Integer(_) => Value::Integer(text.trim().parse().ok()?),
        Value::Boolean(_) => Value::Boolean(text.trim().parse().ok()?),
        Value::Array(_) => Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::String(item.into()))
                .collect(),
        ),
        _ => Value::String(text.into()),
    })
}

fn in_words(wanted: &Value) -> &'static str {
    match wanted {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
        _ => "a text",
    }
}

fn check(config: &Config) -> Result<(), ConfigError> {
    let bad = |key: &str, message: &str| {
        Err(ConfigError::BadValue { origin: "the configuration".into(), key: key.into(), message: message.into() })
    };
    if !config.database.url.is_empty() {
        return bad("database.url", "this version keeps its records in the embedded store only; leave it empty");
    }
    if config.admin.access != AdminAccess::Mtls {
        return bad("admin.access", "this version knows 'mtls' only; signing in comes with a later one");
    }
    if config.tls.certificate.as_os_str().is_empty() != config.tls.private_key.as_os_str().is_empty() {
        return bad("tls", "certificate and private_key go together: set both, or none for our own CA");
    }
    if !config.listen.trusted_proxies.is_empty() {
        return bad("listen.trusted_proxies", "this version believes no proxy; leave it empty");
    }
    if !config.listen.hosts_tls && !config.listen.hosts.ip().is_loopback() {
        return bad("listen.hosts_tls", "false is allowed on a loopback address only");
    }
    if config.auth.min_token_length < 8 {
        return bad("auth.min_token_length", "must be 8 or more");
    }
    if !(60..=604_800).contains(&config.install.token_ttl_seconds) {
        return bad("install.token_ttl_seconds", "must be from 60 to 604800 (a minute to a week)");
    }
    for (key, url) in [
        ("public_base_url", &config.public_base_url),
        ("install.codex_release_url", &config.install.codex_release_url),
        ("upstream.releases_url", &config.upstream.releases_url),
    ] {
        if !url.is_empty() && !is_url(url) {
            return bad(key, "must be an http:// or https:// URL without spaces or control characters");
        }
    }
    if config.public_base_url.ends_with('/') || config.public_base_url.contains(['?', '#']) {
        return bad("public_base_url", "must not end with '/' and has no query");
    }
    Ok(())
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && text.chars().all(|c| !c.is_whitespace() && !c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        load(Some(file.path()), environment)
    }

    #[test]
    fn an_empty_file_is_a_valid_configuration() {
        let config = from_text("", &[]).unwrap();
        assert_eq!(config.listen.hosts.port(), 8443);
        assert_eq!(config.limits.global_per_minute, 120);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = from_text(
            "[limits]\nglobal_per_minute = 5\n[listen]\nhosts = \"127.0.0.1:1\"",
            &[
                ("CODEX_AUTHD_LIMITS__GLOBAL_PER_MINUTE", "7"),
                ("CODEX_AUTHD_LISTEN__HOSTS_TLS", "false"),
                ("CODEX_AUTHD_STATE_DIR", "/x"),
                ("CODEX_AUTHD_RUNNER__EGRESS", "a:1, b:2"),
                ("OTHER", "1"),
            ],
        )
        .unwrap();
        assert_eq!(config.limits.global_per_minute, 7);
        assert_eq!(config.state_dir, Path::new("/x"));
        assert_eq!(config.runner.egress, ["a:1", "b:2"]);
        assert!(!config.listen.hosts_tls);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_name() {
        for (text, environment, name) in [
            ("[limits]\nglobal_per_minut = 5", None, "limits.global_per_minute"),
            ("state_dri = \"/x\"", None, "state_dir"),
            ("[limit]\nglobal_per_minute = 5", None, "limits.global_per_minute"),
            ("", Some(("CODEX_AUTHD_LISTEN__HOST", "1")), "CODEX_AUTHD_LISTEN__HOSTS"),
            ("", Some(("CODEX_AUTHD_LISTEN", "1")), "CODEX_AUTHD_LISTEN__"),
        ] {
            let error = from_text(text, &Vec::from_iter(environment)).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean '{name}")), "{error}");
        }
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for (text, environment, wanted) in [
            ("[limits]\nglobal_per_minute = \"canary\"", None, "limits.global_per_minute: expected a whole number"),
            ("[limits]\nglobal_per_minute = -1", None, "expected u32"),
            ("[runner]\negress = [1, \"canary\"]", None, "expected a string"),
            ("[listen]\nhosts = \"canary\"", None, "invalid socket address"),
            ("[admin]\naccess = \"canary\"", None, "expected one of `mtls`"),
            ("", Some(("CODEX_AUTHD_LIMITS__GLOBAL_PER_MINUTE", "x")), "expected a whole number"),
            ("[database]\nurl = \"mysql://u:canary@h/d\"", None, "embedded store only"),
            ("[admin]\naccess = \"login\"", None, "'mtls' only"),
            ("[tls]\ncertificate = \"/x\"", None, "go together"),
            ("[listen]\nhosts_tls = false", None, "loopback"),
            ("[auth]\nmin_token_length = 7", None, "8 or more"),
            ("public_base_url = \"ftp://x\"", None, "http"),
            ("public_base_url = \"https://x/\"", None, "must not end"),
            ("public_base_url = \"https://x y\"", None, "spaces"),
            ("[listen", None, "not valid TOML, line 1: "),
            ("\n\n[database]\nurl = mysql://u:canary@h/d", None, "not valid TOML, line 4: "),
            ("database = \"mysql://u:canary@h/d\"", None, "there is no key 'database'"),
        ] {
            let error = from_text(text, &Vec::from_iter(environment)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn the_packaged_file_names_every_key_with_its_default_and_its_variable() {
        let text = include_str!("../../packaging/config.toml");
        let known = known_keys();
        let mut live = String::new();
        for line in text.lines() {
            // Every key stands commented out with its default: uncommented, the file says what the defaults say.
            let is_key = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
            live.push_str(line.strip_prefix('#').filter(|line| is_key(line)).unwrap_or(line));
            live.push('\n');
        }
        let table: Table = live.parse().unwrap();
        assert_eq!(Value::Table(table), Value::Table(known.clone()));
        for key in flat(&known) {
            assert!(text.contains(&variable(&key)), "packaging/config.toml does not name {}", variable(&key));
        }
    }
}
