//! Reads the configuration: the file, the environment over it, then the checks.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::credentials;
use super::proxies::network;
use super::urls::is_url;
use super::{Config, Oidc, urls};
use crate::model::egress::Egress;

pub const DEFAULT_PATH: &str = "/etc/codex-authd/config.toml";
const PREFIX: &str = "CODEX_AUTHD_";
/// Variables of the section `oidc` that other programs know by these names.
const OIDC_PREFIX: &str = "CODEX_OIDC_";
/// Names the file, so it is not a key of the file.
const PATH_VARIABLE: &str = "CODEX_AUTHD_CONFIG";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {cause}")]
    Unreadable { path: PathBuf, cause: std::io::Error },
    /// Without the line itself, which may hold a password.
    #[error("{path} is not valid TOML, line {line}: {message}")]
    NotToml { path: PathBuf, line: usize, message: String },
    #[error("{origin}: there is no key '{key}'{hint}")]
    UnknownKey { origin: String, key: String, hint: String },
    #[error(
        "the credential {path} {message}; put one line into the file that LoadCredential= names, or remove that setting"
    )]
    Credential { path: PathBuf, message: String },
    #[error("{origin}: {key}: {message}")]
    BadValue { origin: String, key: String, message: String },
}

/// Reads the configuration.
///
/// `path` is the file named by `--config`. Otherwise `CODEX_AUTHD_CONFIG` of `environment` names it. Otherwise
/// [`DEFAULT_PATH`] is read if it exists. Variables `CODEX_AUTHD_<SECTION>__<KEY>` win over the file, and over
/// `CODEX_OIDC_<KEY>`, which are the keys of the section `oidc`. The `credentials` win over all of them.
pub fn load(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    credentials: Option<&Path>,
) -> Result<Config, ConfigError> {
    let variables = ours(environment);
    let mut config = match file(path, &variables) {
        Some(path) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|cause| ConfigError::Unreadable { path: path.clone(), cause })?;
            let config = from_text(path.display().to_string(), &text, &variables)?;
            Config { file: Some(path), ..config }
        }
        None => from_text("the defaults".into(), "", &variables)?,
    };
    if let Some(directory) = credentials {
        credentials::apply(&mut config, directory)?;
    }
    Ok(config)
}

/// The file that is read; `None`: there is none.
pub fn file(path: Option<&Path>, environment: &[(String, String)]) -> Option<PathBuf> {
    let told = || environment.iter().find(|(name, _)| name == PATH_VARIABLE).map(|(_, value)| PathBuf::from(value));
    let named = path.map(Path::to_path_buf).or_else(told);
    named.or_else(|| Path::new(DEFAULT_PATH).exists().then(|| DEFAULT_PATH.into()))
}

/// The variables of a process that belong to us. Other variables may hold any bytes; ours must be UTF-8.
pub fn environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let is_ours = |name: &OsString| {
        [PREFIX, OIDC_PREFIX].iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    };
    let ours = variables.into_iter().filter(|(name, _)| is_ours(name));
    ours.map(|(name, value)| match (name.into_string(), value.into_string()) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        (name, _) => Err(ConfigError::BadValue {
            origin: "the environment".into(),
            key: name.unwrap_or_else(|name| name.to_string_lossy().into_owned()),
            message: "is not valid UTF-8".into(),
        }),
    })
    .collect()
}

/// Loads this text as if it were the file.
pub(crate) fn load_text(
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    from_text("the file".into(), text, &ours(environment))
}

/// Whether the configuration reads a variable of this name.
pub fn is_variable(name: &str) -> bool {
    name.starts_with(PREFIX) || name.starts_with(OIDC_PREFIX)
}

/// The key, `section.key`, that a variable sets.
pub fn key_of_variable(name: &str) -> Option<String> {
    flat(&known_keys()).into_iter().find(|key| variable(key) == name || oidc_variable(key).is_some_and(|it| it == name))
}

fn ours(environment: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    environment.into_iter().filter(|(name, _)| is_variable(name)).collect()
}

fn from_text(origin: String, text: &str, variables: &[(String, String)]) -> Result<Config, ConfigError> {
    let known = known_keys();
    let mut table: Table = text.parse().map_err(|cause: toml::de::Error| ConfigError::NotToml {
        path: PathBuf::from(&origin),
        line: cause.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.matches('\n').count() + 1),
        message: cause.message().into(),
    })?;
    refuse_unknown(&table, &known, &origin)?;
    refuse_mistyped(&table, &known, &origin, "")?;
    let overlaid = variables.iter().filter(|(name, _)| name != PATH_VARIABLE);
    let (of_others, own): (Vec<_>, Vec<_>) = overlaid.partition(|(name, _)| name.starts_with(OIDC_PREFIX));
    for (name, value) in of_others.into_iter().chain(own) {
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

/// The defaults as a table: it has all keys that exist, with their types.
#[allow(clippy::expect_used)] // The defaults are plain strings, numbers, booleans and lists.
fn known_keys() -> Table {
    Table::try_from(Config::default()).expect("the defaults are valid TOML")
}

fn refuse_unknown(table: &Table, known: &Table, origin: &str) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = match (value, known.get(name)) {
            // An empty section is one whose keys are all commented out, as in the packaged file.
            (Value::Table(section), Some(Value::Table(known))) => {
                section.keys().find(|key| !known.contains_key(*key)).map(|key| format!("{name}.{key}"))
            }
            (Value::Table(section), None) => {
                Some(section.keys().next().map_or_else(|| name.clone(), |key| format!("{name}.{key}")))
            }
            (_, None | Some(Value::Table(_))) => Some(name.clone()),
            _ => None,
        };
        if let Some(key) = key {
            return Err(unknown(origin, &key, &flat(known)));
        }
    }
    Ok(())
}

/// Names the key without its value, which may be a password in the wrong place.
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

/// Removes the value from an error of serde, which quotes it before it says what it expected.
fn without_value(message: &str) -> String {
    message.rsplit_once(", expected ").map_or_else(|| message.into(), |(_, expected)| format!("expected {expected}"))
}

/// `section.key` of everything in the table, one level deep.
fn flat(table: &Table) -> Vec<String> {
    table
        .iter()
        .flat_map(|(name, value)| match value {
            Value::Table(section) if !section.is_empty() => section.keys().map(|key| format!("{name}.{key}")).collect(),
            _ => vec![name.clone()],
        })
        .collect()
}

/// A less similar key is not suggested.
const MIN_SIMILARITY: f64 = 0.6;

fn unknown(origin: &str, key: &str, all: &[String]) -> ConfigError {
    let nearest = all
        .iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(key, candidate), candidate))
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let nearest = nearest.filter(|(similarity, _)| *similarity >= MIN_SIMILARITY);
    let hint = nearest.map(|(_, candidate)| format!("; did you mean '{candidate}'?")).unwrap_or_default();
    ConfigError::UnknownKey { origin: origin.into(), key: key.into(), hint }
}

fn overlay(table: &mut Table, known: &Table, name: &str, value: &str) -> Result<(), ConfigError> {
    // Case counts: otherwise two variables could set one key.
    let keys = flat(known);
    let path = keys.iter().find(|key| variable(key) == name || oidc_variable(key).is_some_and(|other| other == name));
    let parts =
        path.map(|path| path.split_once('.').map_or((None, path.as_str()), |(section, key)| (Some(section), key)));
    let wanted = parts.and_then(|(section, key)| match section {
        None => known.get(key),
        Some(section) => known.get(section).and_then(|section| section.get(key)),
    });
    let (Some((section, key)), Some(wanted)) = (parts, wanted) else {
        let is_oidc = name.starts_with(OIDC_PREFIX);
        let names = keys.iter().filter_map(|key| if is_oidc { oidc_variable(key) } else { Some(variable(key)) });
        let names: Vec<String> = names.collect();
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

fn oidc_variable(key: &str) -> Option<String> {
    key.strip_prefix("oidc.").map(|key| format!("{OIDC_PREFIX}{}", key.to_uppercase()))
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
    if !config.database.url.is_empty() && !is_database(&config.database.url) {
        return bad(
            "database.url",
            "must be mysql://user:password@host:port/name (a password percent-encoded), or empty for the embedded store",
        );
    }
    if !(1..=1000).contains(&config.database.connections) {
        return bad("database.connections", "must be from 1 to 1000");
    }
    if !(1..=300).contains(&config.database.timeout_seconds) {
        return bad("database.timeout_seconds", "must be from 1 to 300");
    }
    if config.sessions.idle_seconds < 60 || config.sessions.lifetime_seconds < 60 {
        return bad("sessions", "idle_seconds and lifetime_seconds must be 60 or more");
    }
    if config.tls.certificate.as_os_str().is_empty() != config.tls.private_key.as_os_str().is_empty() {
        return bad("tls", "certificate and private_key go together: set both, or none for our own CA");
    }
    for (at, text) in config.listen.trusted_proxies.iter().enumerate() {
        if let Err(reason) = network(text) {
            return bad("listen.trusted_proxies", &format!("entry {} {reason}", at + 1));
        }
    }
    if !config.listen.hosts_tls && !config.listen.hosts.ip().is_loopback() && config.listen.trusted_proxies.is_empty() {
        return bad(
            "listen.hosts_tls",
            "false is allowed on a loopback address, or behind a proxy that listen.trusted_proxies names",
        );
    }
    if config.listen.proxy_protocol && config.listen.trusted_proxies.is_empty() {
        return bad("listen.proxy_protocol", "needs listen.trusted_proxies: only their PROXY header is believed");
    }
    if config.limits.connections != 0 && !(16..=60_000).contains(&config.limits.connections) {
        return bad("limits.connections", "must be 0 (as many as there are descriptors for), or from 16 to 60000");
    }
    if !(8..=60_000).contains(&config.limits.connections_per_address) {
        return bad("limits.connections_per_address", "must be from 8 to 60000");
    }
    if !(4..=1024).contains(&config.limits.handshakes_per_address) {
        return bad("limits.handshakes_per_address", "must be from 4 to 1024");
    }
    if !(16..=4096).contains(&config.limits.buffered_mib) {
        return bad("limits.buffered_mib", "must be from 16 to 4096");
    }
    if config.auth.min_token_length < 8 {
        return bad("auth.min_token_length", "must be 8 or more");
    }
    if config.auth.keep_versions < 1 {
        return bad("auth.keep_versions", "must be 1 or more: the canonical version is always kept");
    }
    if !(60..=604_800).contains(&config.install.token_ttl_seconds) {
        return bad("install.token_ttl_seconds", "must be from 60 to 604800 (a minute to a week)");
    }
    if !(48..=128).contains(&config.hosts.ipv6_prefix) {
        return bad("hosts.ipv6_prefix", "must be from 48 to 128 (bits of the network that a host is bound to)");
    }
    if let Err((entry, error)) = Egress::parse(&config.runner.egress) {
        return bad("runner.egress", &format!("entry {entry} {error}"));
    }
    if !(5..=600).contains(&config.runner.timeout_seconds) {
        return bad("runner.timeout_seconds", "must be from 5 to 600");
    }
    if config.runner.codex.trim().is_empty() {
        return bad(
            "runner.codex",
            "must be a path, or a name that is looked up in PATH; runner.enabled switches probes off",
        );
    }
    // Without the parser's message, which may quote a key.
    if config.runner.config_toml.parse::<Table>().is_err() {
        return bad("runner.config_toml", "must be valid TOML");
    }
    // The URLs come first: they name credentials as such, where the second check would only call the URL bad.
    if let Err((key, message)) = urls::check(config).and_then(|()| check_oidc(&config.oidc)) {
        return bad(key, message);
    }
    Ok(())
}

fn check_oidc(oidc: &Oidc) -> Result<(), (&'static str, &'static str)> {
    let Oidc { issuer, client_id, client_secret, redirect_uri, trusted_audiences, jwks_cache_ttl, jwks_cache_refresh } =
        oidc;
    if issuer.is_empty() {
        if !(client_id.is_empty()
            && client_secret.is_empty()
            && redirect_uri.is_empty()
            && trusted_audiences.is_empty())
        {
            return Err(("oidc.issuer", "is missing, but other keys of [oidc] are set: set it, or none of them"));
        }
        return Ok(());
    }
    // The requests and answers are secret, or decide which user signs in.
    let is_good = |url: &str| {
        reqwest::Url::parse(url).is_ok_and(|parsed| {
            let is_loopback = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            let is_safe = parsed.scheme() == "https" || parsed.scheme() == "http" && is_loopback;
            is_safe
                && is_url(url)
                && parsed.fragment().is_none()
                && parsed.password().is_none()
                && parsed.username().is_empty()
        })
    };
    if !is_good(issuer) || issuer.contains('?') || issuer.len() > crate::model::people::MAX_IDENTITY_PART_BYTES {
        return Err((
            "oidc.issuer",
            "must be the provider's https:// URL as it names itself, without a query, of at most 255 characters \
             (http:// on a loopback address only)",
        ));
    }
    if client_id.is_empty() {
        return Err(("oidc.client_id", "is missing: the provider made it when this service was registered there"));
    }
    if !redirect_uri.is_empty() && !is_good(redirect_uri) {
        return Err(("oidc.redirect_uri", "must be an https:// URL (http:// on a loopback address only)"));
    }
    if trusted_audiences.iter().any(|audience| audience.trim().is_empty()) {
        return Err(("oidc.trusted_audiences", "holds an empty entry: name the audiences, or leave it empty"));
    }
    if !(1..=31_536_000).contains(jwks_cache_ttl) || !(1..=31_536_000).contains(jwks_cache_refresh) {
        return Err(("oidc", "jwks_cache_ttl and jwks_cache_refresh must be from 1 to 31536000 seconds"));
    }
    Ok(())
}

fn is_database(text: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(text) else { return false };
    url.scheme() == "mysql" && url.has_host() && url.path().len() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        load(Some(file.path()), environment, None)
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
    fn plain_http_needs_a_loopback_address_or_a_trusted_proxy() {
        for text in ["hosts = \"127.0.0.1:1\"", "trusted_proxies = [\"10.0.0.0/8\", \"fd00::7\"]"] {
            let config = from_text(&format!("[listen]\nhosts_tls = false\n{text}"), &[]).unwrap();
            assert_eq!(config.listen.trusted_networks().len(), config.listen.trusted_proxies.len());
        }
    }

    #[test]
    fn the_packaged_file_is_accepted_as_it_is() {
        let config = load_text(include_str!("../../packaging/config.toml"), []).unwrap();
        assert_eq!(toml::to_string(&config).unwrap(), toml::to_string(&Config::default()).unwrap());
        // A section without a live key must be accepted.
        assert!(load_text("[admin]\n[listen]\n", []).is_ok());
        for (text, hint) in [("[limit]\n", "limit"), ("admin = 1", "admin"), ("state_dir = {}", "state_dir")] {
            assert!(load_text(text, []).unwrap_err().to_string().contains(hint), "{text}");
        }
    }

    #[test]
    fn a_variable_is_named_to_the_letter() {
        // The Kelvin sign is a k in lower case.
        for name in
            ["CODEX_AUTHD_state_dir", "CODEX_AUTHD_LIMITS.GLOBAL_PER_MINUTE", "CODEX_AUTHD_TLS__PRIVATE_\u{212a}EY"]
        {
            let error = load_text("", [(name.into(), "1".into())]).unwrap_err();
            assert!(matches!(error, ConfigError::UnknownKey { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn variables_that_are_no_text_are_refused_and_those_of_others_are_left_alone() {
        use std::os::unix::ffi::OsStringExt as _;
        let bytes = |text: &[u8]| OsString::from_vec(text.to_vec());
        let others = [(bytes(b"OTHER\xff"), bytes(b"\xff")), (bytes(b"CODEX_AUTHD_STATE_DIR"), bytes(b"/x"))];
        assert_eq!(environment(others).unwrap(), [("CODEX_AUTHD_STATE_DIR".into(), "/x".into())]);
        for (name, value) in [(&b"CODEX_AUTHD_STATE_DIR"[..], &b"/x\xff"[..]), (b"CODEX_AUTHD_\xff", b"")] {
            let error = environment([(bytes(name), bytes(value))]).unwrap_err().to_string();
            assert!(error.contains("not valid UTF-8") && !error.contains("/x"), "{error}");
        }
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
        let error = from_text("colour = 1", &[]).unwrap_err().to_string();
        assert!(error.contains("colour") && !error.contains("did you mean"), "{error}");
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
            ("[database]\nurl = \"postgres://u:canary@h/d\"", None, "mysql://user:password@host:port/name"),
            ("[database]\nurl = \"mysql://u:canary@h\"", None, "mysql://user:password@host:port/name"),
            ("[database]\nurl = \"mysql://u:can/ary@h/d\"", None, "percent-encoded"),
            ("[database]\nconnections = 0", None, "from 1 to 1000"),
            ("[database]\ntimeout_seconds = 0", None, "from 1 to 300"),
            ("[oidc]\nclient_id = \"canary\"", None, "oidc.issuer: is missing"),
            ("[oidc]\nissuer = \"https://id.test\"", None, "oidc.client_id: is missing"),
            ("[oidc]\nissuer = \"http://id.test\"\nclient_id = \"c\"", None, "oidc.issuer: must be"),
            (
                "[oidc]\nissuer = \"https://id.test\"\nclient_id = \"c\"\nredirect_uri = \"http://a.test\"",
                None,
                "oidc.redirect_uri",
            ),
            ("[sessions]\nidle_seconds = 1", None, "60 or more"),
            ("[tls]\ncertificate = \"/x\"", None, "go together"),
            ("[listen]\nhosts_tls = false", None, "loopback"),
            (
                "[listen]\ntrusted_proxies = [\"10.0.0.0/8\", \"canary/8\"]",
                None,
                "trusted_proxies: entry 2 is not a network",
            ),
            ("[listen]\ntrusted_proxies = [\"0.0.0.0/0\"]", None, "entry 1 would trust everybody"),
            ("[listen]\nproxy_protocol = true", None, "listen.proxy_protocol: needs"),
            ("[listen]\nforwarded_header = \"canary\"", None, "expected one of `x-forwarded-for`, `forwarded`, `none`"),
            ("[auth]\nmin_token_length = 7", None, "8 or more"),
            ("[auth]\nkeep_versions = 0", None, "1 or more"),
            ("[hosts]\nipv6_prefix = 47", None, "hosts.ipv6_prefix: must be from 48 to 128"),
            ("[hosts]\nipv6_prefix = 129", None, "hosts.ipv6_prefix: must be from 48 to 128"),
            ("public_base_url = \"ftp://x\"", None, "http"),
            ("public_base_url = \"https://x/\"", None, "must not end"),
            ("public_base_url = \"https://x y\"", None, "spaces"),
            ("public_base_url = \"https://x/$(canary)\"", None, "special to a shell"),
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
            // Every key is commented out with its default: uncommented, the file equals the defaults.
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
