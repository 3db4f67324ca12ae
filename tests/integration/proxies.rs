//! A real nginx and a real Caddy in front of the hosts' listener, configured exactly by the blocks of
//! docs/OPERATIONS.md.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::listen::proxies_check;
use crate::support::authority::authority;
use crate::support::daemon::{BOUND, Daemon, Registered};
use crate::support::eventually;
use crate::support::oidc_provider::free_port;
use crate::support::skip::{cache, skipped};

const MANUAL: &str = include_str!("../../docs/OPERATIONS.md");
const NAME: &str = "auth.example.com";

/// The block in this language that contains `words`.
fn block(language: &str, words: &str) -> String {
    let fence = format!("```{language}\n");
    let blocks = MANUAL.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    let found: Vec<&str> = blocks.filter(|block| block.contains(words)).collect();
    assert_eq!(found.len(), 1, "blocks of {language} with {words} in OPERATIONS.md");
    found[0].to_owned()
}

/// Replaces each text, which must occur.
fn filled(mut text: String, replacements: &[(&str, &str)]) -> String {
    for (old, new) in replacements {
        assert!(text.contains(old), "{old} is not in {text}");
        text = text.replace(old, new);
    }
    text
}

/// A program of a package that is unpacked, not installed.
fn program(path: &str) -> Option<PathBuf> {
    let place = cache().join(path);
    if !place.exists() {
        skipped(format!("{} is missing: tests/needs.sh puts it there", place.display()));
        return None;
    }
    Some(place)
}

/// A running proxy, with its files.
struct Proxy {
    process: Child,
    directory: TempDir,
    port: u16,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            eprintln!("the proxy's log:\n{log}");
        }
    }
}

impl Proxy {
    fn start(program: &Path, arguments: &[&str], directory: TempDir, port: u16) -> Self {
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new(program)
            .args(arguments)
            .env("HOME", directory.path())
            .env("XDG_DATA_HOME", directory.path())
            .env("XDG_CONFIG_HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let proxy = Self { process, directory, port };
        eventually("the proxy listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        proxy
    }

    /// `block`: the documented part of its configuration; the rest is for the test.
    fn nginx(block: &str, directory: TempDir, port: u16) -> Option<Self> {
        let nginx = program("nginx/usr/sbin/nginx")?;
        let module = program("nginx-stream/usr/lib/nginx/modules/ngx_stream_module.so")?;
        let at = directory.path().display();
        // Its workers run as root, like the files of the test.
        let text = format!(
            "load_module {};\nuser root;\ndaemon off;\nmaster_process off;\npid {at}/pid;\nerror_log {at}/log;\nevents {{}}\n{block}",
            module.display()
        );
        std::fs::write(directory.path().join("nginx.conf"), text).unwrap();
        let path = directory.path().join("nginx.conf").display().to_string();
        Some(Self::start(&nginx, &["-c", &path, "-e", &format!("{at}/log")], directory, port))
    }

    /// A client that resolves the name to the proxy and trusts `authority`.
    fn client(&self, authority: &[u8]) -> Client {
        self.client_from(authority, "127.0.0.9")
    }

    fn client_from(&self, authority: &[u8], address: &str) -> Client {
        crate::support::daemon::install_provider();
        Client::builder()
            .tls_built_in_root_certs(false)
            .add_root_certificate(reqwest::Certificate::from_pem(authority).unwrap())
            .no_proxy()
            .resolve(NAME, ([127, 0, 0, 1], self.port).into())
            .local_address(Some(address.parse().unwrap()))
            .timeout(BOUND)
            .build()
            .unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("https://{NAME}:{}{path}", self.port)
    }
}

/// The settings of a TOML block, as environment variables.
fn settings(block: &str) -> Vec<(&'static str, String)> {
    let read: toml::Table = toml::from_str(block).unwrap();
    assert_eq!(read["public_base_url"].as_str(), Some("https://auth.example.com"));
    let listen = read["listen"].as_table().unwrap();
    let told = |value: &toml::Value| match value {
        toml::Value::Array(all) => all.iter().map(|one| one.as_str().unwrap()).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    let mut settings = vec![("PUBLIC_BASE_URL", format!("https://{NAME}"))];
    for (key, value) in listen {
        let name = match key.as_str() {
            "hosts_tls" => "LISTEN__HOSTS_TLS",
            "trusted_proxies" => "LISTEN__TRUSTED_PROXIES",
            "proxy_protocol" => "LISTEN__PROXY_PROTOCOL",
            // The test sets its own address.
            "hosts" => continue,
            other => panic!("{other}"),
        };
        settings.push((name, told(value)));
    }
    settings
}

fn daemon(block: &str) -> Daemon {
    let settings = settings(block);
    Daemon::start_with(&settings.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>())
}

async fn retrieve(client: &Client, url: String, host: &Registered) -> (u16, Value) {
    let question = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" });
    let answer = client.post(url).header("X-API-Key", &host.api_key).json(&question).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// A host that calls through the proxy is bound to its own address, and not to the proxy's.
async fn is_known_by_its_own_address(daemon: &Daemon, proxy: &Proxy, authority: &[u8]) -> Registered {
    let host = daemon.register(&daemon.admin(), "h.test").await;
    let (status, body) = retrieve(&proxy.client(authority), proxy.url("/auth"), &host).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(daemon.cli_json(&["hosts", "list"])["hosts"][0]["ip"], "127.0.0.9");
    host
}

/// A certificate for the name, and its authority.
fn certificate(directory: &Path) -> (String, [String; 2]) {
    let (authority, certificate, key) = authority(NAME);
    let paths = ["fullchain.pem", "privkey.pem"].map(|name| directory.join(name).display().to_string());
    std::fs::write(&paths[0], certificate).unwrap();
    std::fs::write(&paths[1], key).unwrap();
    (authority, paths)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_passes_tls_through_and_says_who_calls() {
    let daemon = daemon(&block("toml", "proxy_protocol = true"));
    let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
    let stream = filled(
        block("nginx", "stream {"),
        &[
            ("listen 443;", &format!("listen 127.0.0.1:{port};")),
            ("listen [::]:443;", ""),
            ("127.0.0.1:8443", &daemon.listen.hosts.to_string()),
        ],
    );
    let Some(proxy) = Proxy::nginx(&stream, directory, port) else { return };
    let authority = std::fs::read(daemon.state_dir().join("pki/server-ca.crt")).unwrap();
    is_known_by_its_own_address(&daemon, &proxy, &authority).await;
    assert_eq!(proxies_check(&daemon).unwrap()["verdict"], "good");
    // From the proxy's own machine too: the connection has the address, and no header is needed.
    let near = proxy.client_from(&authority, "127.0.0.1");
    let host = daemon.register(&daemon.admin(), "near.test").await;
    assert_eq!(retrieve(&near, proxy.url("/auth"), &host).await.0, 200);
    assert_eq!(proxies_check(&daemon).unwrap()["verdict"], "good");
    let doctor: Value = serde_json::from_slice(&daemon.cli(&["doctor", "--json"]).stdout).unwrap();
    assert!(doctor["checks"].as_array().unwrap().iter().all(|check| check["name"] != "certificate"), "{doctor:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_ends_tls_and_the_doctor_says_when_it_does_not_name_the_caller() {
    let daemon = daemon(&block("toml", "hosts_tls = false"));
    let start = |change: &dyn Fn(String) -> String| {
        let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
        let (authority, [chain, key]) = certificate(directory.path());
        let server = filled(
            block("nginx", "proxy_set_header"),
            &[
                ("listen 443 ssl;", &format!("listen 127.0.0.1:{port} ssl;")),
                ("listen [::]:443 ssl;", ""),
                ("/etc/letsencrypt/live/auth.example.com/fullchain.pem", &chain),
                ("/etc/letsencrypt/live/auth.example.com/privkey.pem", &key),
                ("127.0.0.1:8443", &daemon.listen.hosts.to_string()),
            ],
        );
        let at = directory.path().display().to_string();
        let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .concat();
        let http = format!("http {{\naccess_log off;\n{places}{}\n}}", change(server));
        Proxy::nginx(&http, directory, port).map(|proxy| (proxy, authority))
    };
    let Some((proxy, authority)) = start(&|server| server) else { return };
    let host = is_known_by_its_own_address(&daemon, &proxy, authority.as_bytes()).await;
    assert_eq!(proxies_check(&daemon).unwrap()["verdict"], "good");

    let header = "proxy_set_header X-Forwarded-For $remote_addr;";
    let (forgetful, authority) = start(&|server| filled(server, &[(header, "")])).unwrap();
    let (status, body) = retrieve(&forgetful.client(authority.as_bytes()), forgetful.url("/auth"), &host).await;
    assert_eq!((status, body["code"].as_str()), (403, Some("address_refused")), "{body}");
    let told = proxies_check(&daemon).unwrap();
    assert!(told["verdict"] == "missing" && told["remedy"].as_str().unwrap().contains(header), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caddy_ends_tls() {
    let daemon = daemon(&block("toml", "hosts_tls = false"));
    let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
    let (authority, [chain, key]) = certificate(directory.path());
    let site = filled(
        block("caddyfile", "reverse_proxy"),
        &[
            ("auth.example.com {", &format!("https://{NAME}:{port} {{\n\ttls {chain} {key}")),
            ("127.0.0.1:8443", &daemon.listen.hosts.to_string()),
        ],
    );
    // Caddy opens no other ports.
    let text = format!("{{\n\tadmin off\n\tauto_https off\n}}\n{site}");
    let path = directory.path().join("Caddyfile");
    std::fs::write(&path, text).unwrap();
    let Some(program) = program("caddy/usr/bin/caddy") else { return };
    let path = path.display().to_string();
    let proxy = Proxy::start(&program, &["run", "--config", &path, "--adapter", "caddyfile"], directory, port);
    is_known_by_its_own_address(&daemon, &proxy, authority.as_bytes()).await;
    assert_eq!(proxies_check(&daemon).unwrap()["verdict"], "good");
}
