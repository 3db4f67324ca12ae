//! Bakes a host's values into the scripts that run on it: `cdx`, the installer that carries it, and the first stage.
//! The first stage checks the machine and then fetches the installer.
//!
//! A template holds one marked block of assignments; baking replaces values in that block and touches nothing else.
//! Each value is quoted: the shell reads back exactly that text and runs none of it. This module must not know hosts,
//! keys or storage: it gets text.

use std::sync::LazyLock;

use zeroize::Zeroizing;

use crate::model::digest::Digest;
use crate::model::secret::Secret;
use crate::model::version::Version;

/// The version of the `cdx` that this daemon serves.
pub const WRAPPER_VERSION: &str = include_str!("../../../wrapper/VERSION").trim_ascii();

/// The version suffix of a wrapper that also trusts the machine's store. Hosts report the version with every call.
const TRUSTS_SYSTEM: &str = "+system";

/// The first version that always trusts our authority. Earlier versions trust either our authority or the machine's
/// store, and do not report which.
const FIRST_OF_BOTH: &str = "2026.11.30-01";

const WRAPPER: &str = include_str!("../../../wrapper/cdx");
const INSTALLER: &str = include_str!("../../../wrapper/install.sh");
const START: &str = include_str!("../../../wrapper/start.sh");

/// The shell functions that the first stage runs, and the template that owns each.
const START_FUNCTIONS: [(&str, &str); 20] = [
    (WRAPPER, "missing_tools"),
    (INSTALLER, "missing_for_install"),
    (INSTALLER, "choose_place"),
    (WRAPPER, "find_home"),
    (WRAPPER, "leave_foreign_home"),
    (WRAPPER, "roots_own"),
    (WRAPPER, "is_foreign"),
    (WRAPPER, "resolve_links"),
    (WRAPPER, "is_readable_file"),
    (WRAPPER, "has_room"),
    (WRAPPER, "find_config"),
    (WRAPPER, "name_machine"),
    (WRAPPER, "find_codex"),
    (WRAPPER, "codex_version"),
    (WRAPPER, "is_version"),
    (WRAPPER, "plan_codex"),
    (WRAPPER, "plan_npm"),
    (WRAPPER, "plan_release"),
    (WRAPPER, "release_config"),
    (WRAPPER, "config_line"),
];

const BEGIN: &str = "# --- baked: begin";
const END: &str = "# --- baked: end";

/// Values that may have several lines. A line break in any other value is a mistake or an attack.
const TEXTS: [&str; 3] = ["CDX_CA_PEM", "CDX_SCRIPT", "CDX_FUNCTIONS"];

/// What a host's scripts are made of.
pub struct Values<'a> {
    /// The address by which hosts reach the daemon; a trailing slash is removed.
    pub base_url: &'a str,
    pub api_key: &'a Secret,
    pub fqdn: &'a str,
    /// The CA to trust, PEM; empty: the system's trust store.
    pub ca_pem: &'a str,
    /// Whether the machine's trust store is trusted as well.
    pub trusts_system: bool,
    /// A URL of a tar.gz with `{version}` and `{target}` in it; empty: npm installs Codex.
    pub codex_release_url: &'a str,
    /// `TARGET=SHA-256` pairs for that archive, separated by spaces; empty: the digest is not checked.
    pub codex_release_sha256: &'a str,
    /// Empty: `@openai/codex`.
    pub codex_npm: &'a str,
    /// The native programs that the daemon has: `TARGET=SHA-256` pairs, separated by spaces. Only for the installer.
    pub programs: &'a str,
}

/// Where Codex comes from on a machine that has none.
pub struct Codex<'a> {
    /// As in [`Values::codex_release_url`].
    pub release_url: &'a str,
    /// As in [`Values::codex_release_sha256`].
    pub release_sha256: &'a str,
    /// The version that hosts should have; empty: not known yet.
    pub version: &'a str,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BakeError {
    #[error("a shell cannot hold the NUL byte in {0}")]
    Nul(String),
    #[error("{0} holds a line break")]
    LineBreak(String),
    #[error("the template has no single block of baked values")]
    NoBlock,
    #[error("the template has no value {0} to bake")]
    Unknown(String),
}

/// The version that a `cdx` reports.
pub fn wrapper_version(trusts_system: bool) -> &'static str {
    static OF_BOTH: LazyLock<String> = LazyLock::new(|| format!("{WRAPPER_VERSION}{TRUSTS_SYSTEM}"));
    if trusts_system { &OF_BOTH } else { WRAPPER_VERSION }
}

/// Whether a `cdx` that reports this version trusts our authority, and the machine's store. `None`: it is too old to
/// tell.
pub fn reported_trust(version: &str) -> Option<(bool, bool)> {
    let date = version.split('+').next().unwrap_or_default();
    let is_date = date.bytes().all(|byte| byte.is_ascii_digit() || b".-".contains(&byte));
    let is_new = is_date && Version::reported(date)? >= Version::reported(FIRST_OF_BOTH)?;
    is_new.then(|| (true, version.ends_with(TRUSTS_SYSTEM)))
}

/// The host's `cdx`. It contains the API key, so it is a secret.
pub fn wrapper(values: &Values<'_>) -> Result<Secret, BakeError> {
    let mut baked = vec![
        ("CDX_BASE_URL", values.base_url.trim_end_matches('/')),
        ("CDX_API_KEY", values.api_key.expose()),
        ("CDX_FQDN", values.fqdn),
        ("CDX_CA_PEM", values.ca_pem),
        ("CDX_SYSTEM_CA", if values.trusts_system { "1" } else { "" }),
        ("CDX_WRAPPER_VERSION", wrapper_version(values.trusts_system)),
        ("CDX_CODEX_RELEASE_URL", values.codex_release_url),
        ("CDX_CODEX_RELEASE_SHA256", values.codex_release_sha256),
    ];
    if !values.codex_npm.is_empty() {
        baked.push(("CDX_CODEX_NPM", values.codex_npm));
    }
    bake(WRAPPER, &baked).map(Secret::new)
}

/// The installer of a host, with its `cdx` inside.
pub fn installer(values: &Values<'_>) -> Result<Secret, BakeError> {
    let script = wrapper(values)?;
    let baked = [
        ("CDX_BASE_URL", values.base_url.trim_end_matches('/')),
        ("CDX_FQDN", values.fqdn),
        ("CDX_PROGRAMS", values.programs),
        ("CDX_SCRIPT", script.expose()),
    ];
    bake(INSTALLER, &baked).map(Secret::new)
}

/// The first stage of an installation: it checks the machine, then fetches the installer from `url` and runs it.
///
/// `pin`: base64 of the SHA-256 of the server's public key.
/// `programs`: as in [`Values::programs`].
pub fn start(url: &str, pin: Option<&str>, programs: &str, codex: &Codex<'_>) -> Result<Secret, BakeError> {
    let functions: String =
        START_FUNCTIONS.iter().map(|(template, name)| function(template, name)).collect::<Result<_, _>>()?;
    let baked = [
        ("CDX_URL", url),
        ("CDX_PIN", pin.unwrap_or_default()),
        ("CDX_PROGRAMS", programs),
        ("CDX_CODEX_RELEASE_URL", codex.release_url),
        ("CDX_CODEX_RELEASE_SHA256", codex.release_sha256),
        ("CDX_CODEX_VERSION", codex.version),
        ("CDX_FUNCTIONS", functions.as_str()),
    ];
    bake(START, &baked).map(Secret::new)
}

/// The text of a shell function that begins and ends at the start of a line.
fn function<'a>(template: &'a str, name: &str) -> Result<&'a str, BakeError> {
    let unknown = || BakeError::Unknown(name.to_owned());
    let begin = template.find(&format!("\n{name}() {{\n")).ok_or_else(unknown)? + 1;
    let text = &template[begin..];
    let end = text.find("\n}\n").ok_or_else(unknown)? + "\n}\n".len();
    Ok(&text[..end])
}

/// The SHA-256 of the wrapper with nothing baked in, for callers without a key.
pub fn plain_wrapper_digest() -> Digest {
    Digest::of(WRAPPER.as_bytes())
}

/// The script that is served if there is no installer: it prints the reason and fails. Its text is exactly that of the
/// former service. Characters that are special within double quotes are removed from the reason.
pub fn refusal(reason: &str) -> String {
    let special = |c: char| c.is_control() || matches!(c, '"' | '$' | '`' | '\\' | '!');
    let reason: String = reason.chars().filter(|c| !special(*c)).collect();
    format!("echo \"{reason}\" >&2\nexit 1\n")
}

/// Replaces the assignments of the given names in the marked block of `template`; the others keep their defaults.
pub fn bake(template: &str, values: &[(&str, &str)]) -> Result<String, BakeError> {
    let (head, rest) = template.split_once(&format!("\n{BEGIN}\n")).ok_or(BakeError::NoBlock)?;
    let (block, tail) = rest.split_once(&format!("\n{END}\n")).ok_or(BakeError::NoBlock)?;
    if tail.contains(&format!("\n{BEGIN}\n")) {
        return Err(BakeError::NoBlock);
    }
    let mut lines: Vec<(&str, Zeroizing<String>)> = Vec::new();
    for line in block.lines() {
        let (name, default) = line.split_once('=').ok_or(BakeError::NoBlock)?;
        lines.push((name, Zeroizing::new(default.to_owned())));
    }
    for (name, value) in values {
        if value.contains('\n') && !TEXTS.contains(name) {
            return Err(BakeError::LineBreak((*name).to_owned()));
        }
        let line = lines.iter_mut().find(|(known, _)| known == name);
        let (_, place) = line.ok_or_else(|| BakeError::Unknown((*name).to_owned()))?;
        *place = Zeroizing::new(sh_quote(value).map_err(|_| BakeError::Nul((*name).to_owned()))?);
    }
    // One allocation: a growing string would leave copies of the key in memory.
    let length = template.len() + lines.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
    let mut script = String::with_capacity(length);
    for part in [head, "\n", BEGIN, "\n"] {
        script.push_str(part);
    }
    for (name, value) in &lines {
        for part in [name, "=", value, "\n"] {
            script.push_str(part);
        }
    }
    for part in [END, "\n", tail] {
        script.push_str(part);
    }
    Ok(script)
}

/// Quotes text as one shell word. Within single quotes, only the single quote is special.
pub fn sh_quote(text: &str) -> Result<String, BakeError> {
    if text.contains('\0') { Err(BakeError::Nul("the text".to_owned())) } else { Ok(quoted(text)) }
}

fn quoted(text: &str) -> String {
    let quotes = text.matches('\'').count();
    let mut word = String::with_capacity(text.len() + 3 * quotes + 2);
    word.push('\'');
    for (position, part) in text.split('\'').enumerate() {
        if position > 0 {
            word.push_str("'\\''");
        }
        word.push_str(part);
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Output, Stdio};

    use super::*;

    const HOSTILE: [&str; 16] = [
        "'; touch \"$CANARY\"; '",
        "$(touch \"$CANARY\")",
        "`touch \"$CANARY\"`",
        "\\",
        "\\'",
        "'",
        "''",
        "\"",
        "-n",
        "${CANARY}",
        "a'\\''; touch \"$CANARY\" #",
        "# --- baked: end",
        "äöü €\u{2028} 漢字 \u{1f34c}",
        "!! \t ~ * ? [a-z] & | < > ;",
        "\r\u{1b}[31m",
        "",
    ];

    fn values<'a>(text: &'a str, key: &'a Secret) -> Values<'a> {
        Values {
            base_url: text,
            api_key: key,
            fqdn: text,
            ca_pem: text,
            trusts_system: false,
            codex_release_url: text,
            codex_release_sha256: text,
            codex_npm: text,
            programs: text,
        }
    }

    /// Runs a script with `CANARY` set to a file that must not be created.
    fn run(shell: &[&str], script: &str) -> Output {
        let home = tempfile::tempdir().unwrap();
        let canary = home.path().join("canary");
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .env_clear()
            .envs([("PATH", "/usr/bin:/bin")])
            .env("HOME", home.path())
            .env("CANARY", &canary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A shell that stops early closes its stdin, so the write may fail. The caller checks the output.
        let _ = child.stdin.take().unwrap().write_all(script.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert!(!canary.exists(), "the script ran what was baked into it");
        output
    }

    /// The marked block of a script, followed by a command that prints one of its values and a full stop.
    fn block_printing(script: &str, name: &str) -> String {
        let start = script.find(BEGIN).unwrap();
        // The last end mark, because a value may hold one too.
        let end = script.rfind(&format!("\n{END}\n")).unwrap();
        format!("{}\nprintf '%s.' \"${name}\"\n", &script[start..=end])
    }

    fn printed(output: &Output) -> String {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        String::from_utf8(output.stdout.clone()).unwrap()
    }

    #[test]
    fn the_shell_reads_back_what_was_baked_and_runs_none_of_it() {
        let long = "x'$(touch $CANARY)".repeat(20_000);
        for text in HOSTILE.into_iter().chain([long.as_str()]) {
            let script = bake(WRAPPER, &[("CDX_FQDN", text), ("CDX_API_KEY", text)]).unwrap();
            for shell in [&["bash"][..], &["bash", "--posix"], &["sh"]] {
                for name in ["CDX_FQDN", "CDX_API_KEY"] {
                    assert_eq!(printed(&run(shell, &block_printing(&script, name))), format!("{text}."), "{shell:?}");
                }
            }
        }
    }

    #[test]
    fn scripts_with_hostile_values_parse_and_say_their_version() {
        for text in HOSTILE {
            let key = Secret::new(text);
            let cdx = wrapper(&values(text, &key)).unwrap();
            let install = installer(&values(text, &key)).unwrap();
            for script in [&cdx, &install] {
                printed(&run(&["bash", "-n"], script.expose()));
                printed(&run(&["bash", "--posix", "-n"], script.expose()));
            }
            let said = run(&["bash", "-s", "--", "--version"], cdx.expose());
            assert!(String::from_utf8_lossy(&said.stdout).starts_with(&format!("cdx {WRAPPER_VERSION}\n")), "{said:?}");
        }
    }

    #[test]
    fn the_installer_carries_the_wrapper_byte_for_byte() {
        let key = Secret::new("k'1");
        let host = Values {
            base_url: "https://auth.example.test:8443/",
            api_key: &key,
            fqdn: "h1.example.test",
            ca_pem: "-----BEGIN CERTIFICATE-----\nMIIB'\n-----END CERTIFICATE-----\n",
            trusts_system: true,
            codex_release_url: "",
            codex_release_sha256: "",
            codex_npm: "",
            programs: "x86_64-linux=0",
        };
        let install = installer(&host).unwrap();
        let carried = printed(&run(&["bash"], &block_printing(install.expose(), "CDX_SCRIPT")));
        assert_eq!(carried, format!("{}.", wrapper(&host).unwrap().expose()));
        assert!(carried.contains("\nCDX_BASE_URL='https://auth.example.test:8443'\n"));
        assert!(carried.contains("\nCDX_CODEX_NPM='@openai/codex'\n"), "an empty package keeps the default");
    }

    #[test]
    fn the_first_stage_has_the_functions_of_the_other_scripts_and_reads_its_values() {
        let codex = Codex { release_url: "https://x.test/{target}'", release_sha256: "a=1", version: "0.1.2" };
        let start =
            start("https://auth.example.test:8443/install/t'1", Some("pin="), "x86_64-linux=0 b=1", &codex).unwrap();
        for shell in [&["bash", "-n"][..], &["bash", "--posix", "-n"]] {
            printed(&run(shell, start.expose()));
        }
        let read = |name| printed(&run(&["bash"], &block_printing(start.expose(), name)));
        assert_eq!(read("CDX_URL"), "https://auth.example.test:8443/install/t'1.");
        assert_eq!((read("CDX_PIN"), read("CDX_CODEX_VERSION")), ("pin=.".into(), "0.1.2.".into()));
        assert_eq!(read("CDX_CODEX_RELEASE_URL"), "https://x.test/{target}'.");
        assert_eq!(read("CDX_CODEX_RELEASE_SHA256"), "a=1.");
        assert_eq!(read("CDX_PROGRAMS"), "x86_64-linux=0 b=1.");
        let functions = read("CDX_FUNCTIONS");
        let functions = functions.strip_suffix('.').unwrap();
        for (template, name) in START_FUNCTIONS {
            let own = function(template, name).unwrap();
            assert!(own.starts_with(&format!("{name}() {{\n")) && functions.contains(own), "{name}: {functions}");
        }
        // The functions need nothing else from the scripts.
        let called = "set -u\nmissing_tools\nmissing_for_install\nchoose_place\nprintf '%s' \"$CDX${MISSING+.}\"\n";
        assert!(printed(&run(&["bash"], &format!("{functions}{called}"))).ends_with("/bin/cdx."), "{functions}");
        assert_eq!(function(WRAPPER, "no_such_function"), Err(BakeError::Unknown("no_such_function".into())));
    }

    /// A missing tool is reported before anything is fetched.
    #[test]
    fn the_first_stage_fetches_nothing_where_a_tool_is_missing() {
        let codex = Codex { release_url: "", release_sha256: "", version: "" };
        let start = start("http://127.0.0.1:1/install/t", None, "", &codex).unwrap();
        let without_path = format!("PATH=/nonexistent\n{}", start.expose());
        let said = run(&["bash"], &without_path);
        assert_eq!(said.status.code(), Some(1), "{said:?}");
        let message = String::from_utf8(said.stderr).unwrap();
        assert!(message.starts_with("codex-authd: missing here: curl tar sed"), "{message}");
        assert!(message.contains(" sha256sum id. Nothing was done and the command is still good"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }

    #[test]
    fn a_wrapper_reports_what_it_trusts() {
        assert_eq!(reported_trust(wrapper_version(false)), Some((true, false)));
        assert_eq!(reported_trust(wrapper_version(true)), Some((true, true)));
        for old in ["2026.11.29-02", "2026.11.29-02+system", "2025.11.28-04", "", "x"] {
            assert_eq!(reported_trust(old), None, "{old}");
        }
        assert_eq!(reported_trust("2027.01.02-01+system"), Some((true, true)));
        let key = Secret::new("k");
        let of = |trusts_system| wrapper(&Values { trusts_system, ..values("x", &key) }).unwrap();
        assert!(of(false).expose().contains("\nCDX_SYSTEM_CA=''\n"));
        assert!(of(true).expose().contains("\nCDX_SYSTEM_CA='1'\n"));
        assert!(of(true).expose().contains(&format!("\nCDX_WRAPPER_VERSION='{WRAPPER_VERSION}+system'\n")));
    }

    #[test]
    fn nothing_but_the_block_is_touched() {
        let script =
            bake("#!x\na\n# --- baked: begin\nA='1'\nB=''\n# --- baked: end\nb A=''\n", &[("B", "2")]).unwrap();
        assert_eq!(script, "#!x\na\n# --- baked: begin\nA='1'\nB='2'\n# --- baked: end\nb A=''\n");
    }

    #[test]
    fn a_nul_and_a_stray_line_break_are_refused() {
        assert_eq!(sh_quote("a\0b"), Err(BakeError::Nul("the text".into())));
        assert_eq!(bake(WRAPPER, &[("CDX_CA_PEM", "a\0")]), Err(BakeError::Nul("CDX_CA_PEM".into())));
        for name in [
            "CDX_BASE_URL",
            "CDX_API_KEY",
            "CDX_FQDN",
            "CDX_CODEX_RELEASE_URL",
            "CDX_CODEX_RELEASE_SHA256",
            "CDX_CODEX_NPM",
        ] {
            assert_eq!(bake(WRAPPER, &[(name, "a\nb")]), Err(BakeError::LineBreak(name.into())));
        }
        let script = bake(WRAPPER, &[("CDX_CA_PEM", "a\n$(touch $CANARY)\nb\n")]).unwrap();
        assert_eq!(printed(&run(&["bash"], &block_printing(&script, "CDX_CA_PEM"))), "a\n$(touch $CANARY)\nb\n.");
    }

    #[test]
    fn a_name_that_the_template_does_not_know_is_refused() {
        assert_eq!(bake(WRAPPER, &[("CDX_NONE", "")]), Err(BakeError::Unknown("CDX_NONE".into())));
        assert_eq!(bake("no block", &[]), Err(BakeError::NoBlock));
    }

    #[test]
    fn a_refusal_says_its_reason_and_fails() {
        let said = run(&["bash"], &refusal("this '$(touch $CANARY)'\"`! is\nspent"));
        assert_eq!(said.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&said.stderr), "this '(touch CANARY)' isspent\n");
    }
}
