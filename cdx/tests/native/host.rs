//! A host with a home of its own, and a stand-in of the daemon.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use codex_authd_client::sha256_hex;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const KEY: &str = "canary-key-0123456789";

#[derive(Default)]
pub struct Daemon {
    pub canonical: String,
    /// Method, path with query, and body of each request.
    pub calls: Vec<(String, String, Value)>,
    /// Answers of this status come in place of all others.
    pub refuses: Option<u16>,
    pub script: Vec<u8>,
    pub program: Option<Vec<u8>>,
}

#[derive(Clone)]
pub struct StandIn {
    pub url: String,
    pub state: Arc<Mutex<Daemon>>,
}

impl StandIn {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(Daemon::default()));
        let standin = Self { url, state };
        let served = standin.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = served.clone();
                std::thread::spawn(move || served.serve(stream.unwrap()));
            }
        });
        standin
    }

    pub fn with_canonical(text: &str) -> Self {
        let standin = Self::start();
        standin.state.lock().unwrap().canonical = text.to_owned();
        standin
    }

    pub fn canonical(&self) -> String {
        self.state.lock().unwrap().canonical.clone()
    }

    pub fn commands(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.calls.iter().map(|(_, _, body)| body["command"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let mut buffer = [0; 65_536];
        let (head, body) = loop {
            let length = stream.read(&mut buffer).unwrap_or(0);
            if length == 0 {
                return;
            }
            request.extend_from_slice(&buffer[..length]);
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let announced = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            if body.len() >= announced.map_or(0, |text| text.parse().unwrap()) {
                break (head.to_owned(), body.to_owned());
            }
        };
        assert!(head.contains(&format!("x-api-key: {KEY}")), "{head}");
        let mut words = head.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (status, kind, answer) = self.answer(&method, &path, serde_json::from_str(&body).unwrap_or_default());
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nX-SHA256: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            sha256_hex(&answer),
            answer.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), &answer].concat());
    }

    fn answer(&self, method: &str, path: &str, body: Value) -> (u16, &'static str, Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        state.calls.push((method.to_owned(), path.to_owned(), body.clone()));
        let error = |status: u16| {
            let error = json!({"status": "error", "code": "refused", "message": "Not now"});
            (status, "application/json", error.to_string().into_bytes())
        };
        if let Some(status) = state.refuses {
            return error(status);
        }
        match (method, path) {
            ("POST", "/auth") => (200, "application/json", sync(&mut state, &body).to_string().into_bytes()),
            ("GET", "/wrapper/download") => (200, "text/x-shellscript", state.script.clone()),
            ("GET", path) if path.starts_with("/wrapper/download?target=") && state.program.is_some() => {
                (200, "application/octet-stream", state.program.clone().unwrap())
            }
            _ => error(404),
        }
    }
}

fn sync(state: &mut Daemon, body: &Value) -> Value {
    let status = match body["auth_text"].as_str() {
        Some(text) => {
            text.clone_into(&mut state.canonical);
            "updated"
        }
        None if body["digest"] == sha256_hex(state.canonical.as_bytes()) => "valid",
        None => "outdated",
    };
    let script = sha256_hex(&state.script);
    let mut versions = json!({
        "client_version": "0.1.2", "client_version_source": "cache", "wrapper_version": "9", "wrapper_sha256": script,
        "wrapper_url": "/wrapper/download", "quota_hard_fail": false,
    });
    if let Some(program) = &state.program {
        versions["wrapper_sha256"] = sha256_hex(program).into();
        versions["wrapper_target"] = body["wrapper_target"].clone();
    }
    let mut data = json!({
        "status": status, "api_calls": 1, "quota_hard_fail": false, "versions": versions,
        "canonical_digest": sha256_hex(state.canonical.as_bytes()), "canonical_last_refresh": "2025-11-20T09:27:43Z",
    });
    if status == "outdated" {
        data["auth_text"] = state.canonical.clone().into();
    }
    json!({"status": "ok", "data": data})
}

pub struct Host {
    pub home: TempDir,
}

impl Host {
    pub fn new(daemon: &StandIn) -> Self {
        let host = Self { home: tempfile::tempdir().unwrap() };
        host.write(".config/cdx/host.toml", &config(&daemon.url), 0o600);
        let codex = "#!/bin/sh\n[ \"$1\" != --version ] || { echo codex-cli 0.1.2; exit; }\necho \"$@\" >\"$HOME/arguments\"\neval \"$FAKE_CODEX\"\n";
        host.write("bin/codex", codex, 0o755);
        host
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str, mode: u32) {
        let file = self.file(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn auth(&self) -> Option<String> {
        fs::read_to_string(self.file(".codex/auth.json")).ok()
    }

    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.home.path());
        command.env("PATH", format!("{}:/usr/bin:/bin", self.file("bin").display()));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    pub fn cdx(&self, arguments: &[&str]) -> Command {
        self.command(Path::new(env!("CARGO_BIN_EXE_cdx")), arguments)
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.cdx(arguments).output().unwrap())
    }
}

pub fn config(url: &str) -> String {
    format!("base_url = \"{url}\"\napi_key = \"{KEY}\"\nfqdn = \"h1.example.test\"\n")
}

pub fn login(second: u8) -> String {
    json!({"tokens": {"access_token": "a", "refresh_token": "r"}, "last_refresh": format!("2025-11-20T09:27:{second:02}Z")})
        .to_string()
}

#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Polls until there is a value, for ten seconds.
pub fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within ten seconds");
        std::thread::yield_now();
    }
}
