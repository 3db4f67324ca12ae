//! A host: a clean home with a `cdx`, bash or native, and a `codex` that is the real one or a script.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use codex_authd::model::secret::Secret;
use codex_authd::service::hosts::bake::{self, Values};
use tempfile::TempDir;

use super::answers::Format;
use super::skip::{Unavailable, bash32};
use super::standin::KEY;
use super::upstream::Upstream;

/// The two programs that a host may have. Each test of their behaviour runs with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The script `wrapper/cdx`, with the host's values baked in.
    Bash,
    /// The program of the crate `cdx`, with the host's values in host.toml.
    Native,
}

impl Program {
    pub fn is_native(self) -> bool {
        self == Self::Native
    }

    /// The format of the answers that it asks for.
    pub fn format(self) -> Format {
        match self {
            Self::Bash => Format::Lines,
            Self::Native => Format::Json,
        }
    }

    /// The shells that must be able to run it; `None`: the one of its first line, or none at all. For the script also
    /// bash 3.2 (as in macOS), if `AUTHD_TEST_BASH32` names one or the tests' cache has it.
    pub fn shells(self) -> Vec<Option<PathBuf>> {
        if self.is_native() {
            return vec![None];
        }
        let old = bash32();
        if old.is_none() {
            Unavailable::Bash32.skipped();
        }
        std::iter::once(None).chain(old.map(Some)).collect()
    }
}

/// Makes two tests of each function, one for each [`Program`]: `bash::NAME` and `native::NAME`.
#[macro_export]
macro_rules! for_both_programs {
    ($($test:ident),+ $(,)?) => {
        mod bash {
            $(#[test] fn $test() { super::$test($crate::support::host::Program::Bash); })+
        }

        mod native {
            $(#[test] fn $test() { super::$test($crate::support::host::Program::Native); })+
        }
    };
}

/// What an installation tells a host's program.
#[derive(Clone, Copy, Default)]
pub struct HostConfig<'a> {
    pub base_url: &'a str,
    pub ca_pem: &'a str,
    pub trusts_system: bool,
    pub codex_release_url: &'a str,
    pub codex_release_sha256: &'a str,
}

impl HostConfig<'_> {
    /// The text of host.toml.
    pub fn toml(&self) -> String {
        // A JSON string is a basic string of TOML.
        let line = |name: &str, value: &str| format!("{name} = {}\n", serde_json::Value::from(value));
        [
            line("base_url", self.base_url),
            line("api_key", KEY),
            line("fqdn", "h1.example.test"),
            line("ca_pem", self.ca_pem),
            format!("system_ca = {}\n", self.trusts_system),
            line("codex_release_url", self.codex_release_url),
            line("codex_release_sha256", self.codex_release_sha256),
            line("codex_npm", "@openai/codex"),
        ]
        .concat()
    }
}

pub struct Host {
    pub program: Program,
    home: TempDir,
    pub path: String,
    pub codex_home: PathBuf,
    /// The shell that runs `cdx`, if not the one of its first line.
    pub shell: Option<PathBuf>,
    extra_env: Vec<(String, String)>,
}

const FAKE: &str = r#"#!/usr/bin/env bash
if [ "${1-}" = --version ]; then echo 'codex-cli 0.1.2'; exit; fi
printf '%s\n' "$@" >"$HOME/codex.arguments"
env >"$HOME/codex.environment"
eval "${FAKE_CODEX:-}"
"#;

impl Host {
    pub fn new(program: Program, base_url: &str) -> Self {
        Self::with_ca(program, base_url, "")
    }

    /// A clean home without `cdx` and codex.
    pub fn bare() -> Self {
        Self::bare_for(Program::Bash)
    }

    /// A clean home without codex, where `program` is going to be installed.
    pub fn bare_for(program: Program) -> Self {
        let home = TempDir::new().unwrap();
        Self {
            program,
            path: format!("{}:/usr/bin:/bin", home.path().join("bin").display()),
            codex_home: home.path().join(".codex"),
            shell: None,
            extra_env: Vec::new(),
            home,
        }
    }

    pub fn with_ca(program: Program, base_url: &str, ca_pem: &str) -> Self {
        let host = Self::bare_for(program);
        host.write_codex();
        host.install(&HostConfig { base_url, ca_pem, ..HostConfig::default() });
        host
    }

    /// A codex that logs its arguments and runs `FAKE_CODEX`.
    pub fn write_codex(&self) {
        self.write_program("bin/codex", FAKE, 0o755);
    }

    /// Puts the program in place, with this configuration instead of an earlier one.
    pub fn install(&self, config: &HostConfig) {
        match self.program {
            Program::Bash => self.write_program(".local/bin/cdx", baked(config).0.expose(), 0o700),
            Program::Native => {
                if !self.cdx_file().exists() {
                    copy_program(native_program(), &self.cdx_file(), 0o700);
                }
                self.write_host_toml(&config.toml());
            }
        }
    }

    pub fn host_toml(&self) -> PathBuf {
        self.file(".config/cdx/host.toml")
    }

    pub fn write_host_toml(&self, text: &str) {
        let file = self.host_toml();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::set_permissions(file.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The real Codex instead of the script, configured to call `upstream`.
    pub fn with_real_codex(mut self, upstream: &Upstream) -> Self {
        let _ = fs::remove_file(self.file("bin/codex"));
        let directory = real_codex().parent().unwrap();
        self.path = format!("{}:/usr/bin:/bin", directory.display());
        fs::create_dir_all(&self.codex_home).unwrap();
        fs::set_permissions(&self.codex_home, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(self.codex_home.join("config.toml"), upstream.config_toml()).unwrap();
        self.env("CODEX_REFRESH_TOKEN_URL_OVERRIDE", &upstream.token_url());
        self
    }

    pub fn env(&mut self, name: &str, value: &str) {
        self.extra_env.push((name.to_owned(), value.to_owned()));
    }

    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn cdx_file(&self) -> PathBuf {
        self.file(".local/bin/cdx")
    }

    pub fn write_program(&self, name: &str, text: &str, mode: u32) {
        let file = self.file(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        write_by_another_process(&file, text.as_bytes());
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn auth_file(&self) -> PathBuf {
        self.codex_home.join("auth.json")
    }

    pub fn auth(&self) -> Option<String> {
        fs::read_to_string(self.auth_file()).ok()
    }

    pub fn set_auth(&self, text: &str) {
        fs::create_dir_all(&self.codex_home).unwrap();
        fs::write(self.auth_file(), text).unwrap();
        fs::set_permissions(self.auth_file(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Any command in this host's environment and home.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.home.path()).env("PATH", &self.path).current_dir(self.home.path());
        if self.codex_home != self.file(".codex") {
            command.env("CODEX_HOME", &self.codex_home);
        }
        command.envs(self.extra_env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn cdx(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.shell {
            Some(shell) => {
                let mut command = self.command(shell);
                command.arg(self.cdx_file());
                command
            }
            None => self.command(self.cdx_file()),
        };
        command.args(arguments);
        command
    }

    /// Runs `cdx` with its own mounts, after a shell line that makes them.
    pub fn cdx_within(&self, setup: &str, arguments: &[&str]) -> Ran {
        let mut command = self.command("unshare");
        let script = format!("{{ {setup}; }} && exec \"$@\"");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
        command.args(&self.shell).arg(self.cdx_file()).args(arguments);
        Ran::from(command.output().unwrap())
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.cdx(arguments).output().unwrap())
    }

    /// Runs `cdx` with a codex that runs `script`.
    pub fn run_codex(&self, script: &str, arguments: &[&str]) -> Ran {
        Ran::from(self.cdx(arguments).env("FAKE_CODEX", script).output().unwrap())
    }

    pub fn codex_was_started(&self) -> bool {
        self.file("codex.arguments").exists()
    }

    /// The file with the time of this host's last sync.
    pub fn state_file(&self) -> PathBuf {
        let mut found = Vec::new();
        for directory in fs::read_dir(self.file(".cache/cdx")).unwrap() {
            for file in fs::read_dir(directory.unwrap().path()).unwrap() {
                let file = file.unwrap();
                if file.file_name().to_string_lossy().starts_with("synced-") {
                    found.push(file.path());
                }
            }
        }
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    /// Moves the time of the last sync by this many seconds.
    pub fn shift_last_sync(&self, seconds: i64) {
        let file = self.state_file();
        let text = fs::read_to_string(&file).unwrap();
        let (moment, rest) = text.split_once(' ').unwrap();
        fs::write(&file, format!("{} {rest}", moment.parse::<i64>().unwrap() + seconds)).unwrap();
    }
}

/// The scripts of a stand-in host: the bash cdx, and an installer that offers no native program.
pub fn baked(config: &HostConfig) -> (Secret, Secret) {
    baked_with(config, "")
}

/// The same; the installer offers `programs` (`TARGET=SHA-256`, separated by spaces).
pub fn baked_with(config: &HostConfig, programs: &str) -> (Secret, Secret) {
    let key = Secret::new(KEY);
    let values = Values {
        base_url: config.base_url,
        api_key: &key,
        fqdn: "h1.example.test",
        ca_pem: config.ca_pem,
        trusts_system: config.trusts_system,
        codex_release_url: config.codex_release_url,
        codex_release_sha256: config.codex_release_sha256,
        codex_npm: "",
        programs,
    };
    match std::env::var_os("AUTHD_TEST_WRAPPER") {
        Some(directory) => baked_from(Path::new(&directory), &values),
        None => (bake::wrapper(&values).unwrap(), bake::installer(&values).unwrap()),
    }
}

/// The same from templates in a directory, so that a change or a deliberate fault needs no build.
fn baked_from(directory: &Path, values: &Values<'_>) -> (Secret, Secret) {
    let read = |name| fs::read_to_string(directory.join(name)).unwrap();
    let cdx = [
        ("CDX_BASE_URL", values.base_url),
        ("CDX_API_KEY", values.api_key.expose()),
        ("CDX_FQDN", values.fqdn),
        ("CDX_CA_PEM", values.ca_pem),
        ("CDX_SYSTEM_CA", if values.trusts_system { "1" } else { "" }),
        ("CDX_WRAPPER_VERSION", bake::wrapper_version(values.trusts_system)),
        ("CDX_CODEX_RELEASE_URL", values.codex_release_url),
        ("CDX_CODEX_RELEASE_SHA256", values.codex_release_sha256),
    ];
    let cdx = bake::bake(&read("cdx"), &cdx).unwrap();
    let installer = [
        ("CDX_BASE_URL", values.base_url),
        ("CDX_FQDN", values.fqdn),
        ("CDX_PROGRAMS", values.programs),
        ("CDX_SCRIPT", cdx.as_str()),
    ];
    let installer = bake::bake(&read("install.sh"), &installer).unwrap();
    (Secret::new(cdx), Secret::new(installer))
}

/// The native program under test: `AUTHD_TEST_CDX`, else the one that was built beside the daemon, without its symbols:
/// each host gets a copy.
pub fn native_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("AUTHD_TEST_CDX") {
        Some(program) => PathBuf::from(program),
        None => stripped(&Path::new(env!("CARGO_BIN_EXE_codex-authd")).with_file_name("cdx")),
    })
}

/// A copy without symbols, made once for each build.
fn stripped(program: &Path) -> PathBuf {
    let built = fs::metadata(program).unwrap_or_else(|error| {
        panic!("{}: {error}; cargo build --package cdx builds it", program.display());
    });
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let copy = directory.join(format!("cdx-{}.{}-{}", built.mtime(), built.mtime_nsec(), built.len()));
    if !copy.exists() {
        let part = directory.join(format!("cdx.part.{}", std::process::id()));
        assert!(Command::new("strip").arg("-o").arg(&part).arg(program).status().unwrap().success());
        fs::rename(&part, &copy).unwrap();
    }
    copy
}

/// A file that this process has open for writing cannot be executed while another thread starts a program, which
/// inherits the descriptor for a moment ("text file busy"). So programs are written by processes of their own.
fn write_by_another_process(file: &Path, content: &[u8]) {
    let mut tee = Command::new("tee").arg(file).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    tee.stdin.take().unwrap().write_all(content).unwrap();
    assert!(tee.wait().unwrap().success());
}

/// Copies a program; see [`write_by_another_process`].
pub fn copy_program(from: &Path, to: &Path, mode: u32) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    assert!(Command::new("cp").args(["--reflink=auto", "--"]).args([from, to]).status().unwrap().success());
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether this test can have its own mounts and other users; otherwise prints the reason.
pub fn is_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        super::skip::skipped(format_args!("{what}: needs root"));
    }
    root
}

/// The real Codex CLI, installed on first use.
pub fn real_codex() -> &'static Path {
    static CODEX: OnceLock<PathBuf> = OnceLock::new();
    CODEX.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install-codex.sh");
        let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "tests/install-codex.sh failed");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// The ELF file that npm's launcher starts.
pub fn codex_itself() -> PathBuf {
    let package = real_codex().parent().unwrap().parent().unwrap().join("lib/node_modules/@openai/codex");
    let architecture = if cfg!(target_arch = "aarch64") { ("arm64", "aarch64") } else { ("x64", "x86_64") };
    package.join(format!(
        "node_modules/@openai/codex-linux-{}/vendor/{}-unknown-linux-musl/bin/codex",
        architecture.0, architecture.1
    ))
}

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
