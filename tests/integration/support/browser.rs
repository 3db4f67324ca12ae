//! A real Chromium, driven over WebDriver, with its own home: it has an admin's PKCS#12 and trusts our authority.
//!
//! WebDriver is a few JSON calls to chromedriver over plain HTTP on loopback, so the tests' HTTP client is enough.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::daemon::{BOUND, Daemon, install_provider, pause};

/// The member under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The time limit for a page to show the expected text.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Browser {
    /// Dropped before the home directory.
    _driver: Driver,
    home: TempDir,
    http: Client,
    /// `http://127.0.0.1:PORT/session/ID`
    session: String,
    /// The key for the last pages when a test fails.
    name: &'static str,
    /// The fingerprint of the certificate.
    pub fingerprint: String,
}

#[derive(Clone, Copy, Default)]
pub struct Looks {
    pub dark: bool,
    pub no_javascript: bool,
    pub narrow: bool,
}

impl Browser {
    /// Starts with a fresh certificate of an admin `name`, imported from the PKCS#12 as a person would import it.
    pub async fn start(daemon: &Daemon, name: &'static str, looks: Looks) -> Self {
        let home = tempfile::Builder::new().prefix("authd-browser-").tempdir().unwrap();
        let fingerprint = trust_and_import(daemon, home.path(), name);
        let (driver, port) = start_driver(home.path());
        install_provider();
        let http = Client::builder().no_proxy().timeout(BOUND).build().unwrap();
        let mut browser = Self {
            _driver: driver,
            home,
            http,
            session: format!("http://127.0.0.1:{port}/session"),
            name,
            fingerprint,
        };
        let size = if looks.narrow { "--window-size=500,900" } else { "--window-size=1280,900" };
        let mut arguments = vec!["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", size];
        if nix::unistd::geteuid().is_root() {
            arguments.push("--no-sandbox");
        }
        let site = format!("https://{},*", daemon.listen.admin);
        let mut preferences = json!({ "profile": {
            // Chromium selects the certificate without a prompt, because no person can choose it.
            "content_settings": { "exceptions": { "auto_select_certificate": { site: { "setting": { "filters": [{}] } } } } },
        }});
        if looks.no_javascript {
            preferences["profile"]["managed_default_content_settings"] = json!({ "javascript": 2 });
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "args": arguments, "prefs": preferences },
        }}});
        let made = browser.call("", Some(&wanted)).await;
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        let scheme = if looks.dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.call("/goog/cdp/execute", Some(&json!({ "cmd": "Emulation.setEmulatedMedia", "params": media }))).await;
        browser
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub async fn open(&self, url: &str) {
        self.call("/url", Some(&json!({ "url": url }))).await;
    }

    pub async fn address(&self) -> String {
        self.call("/url", None).await.as_str().unwrap().to_owned()
    }

    pub async fn title(&self) -> String {
        self.call("/title", None).await.as_str().unwrap().to_owned()
    }

    /// The visible text of the elements that match a CSS selector at this moment.
    pub async fn texts(&self, selector: &str) -> Vec<String> {
        let started = Instant::now();
        loop {
            match self.try_texts(selector).await {
                Ok(texts) => return texts,
                // The page is being replaced by the next one.
                Err(error) => self.within_bound(started, &format!("{selector}: {error}")).await,
            }
        }
    }

    async fn try_texts(&self, selector: &str) -> Result<Vec<String>, String> {
        let found = self.try_call("/elements", Some(&by("css selector", selector))).await?;
        let mut texts = Vec::new();
        for element in found.as_array().unwrap() {
            let text = self.try_call(&format!("/element/{}/text", id(element)), None).await?;
            texts.push(text.as_str().unwrap().to_owned());
        }
        Ok(texts)
    }

    pub async fn text(&self, selector: &str) -> String {
        self.texts(selector).await.join("\n")
    }

    /// Presses the link or button that says exactly this, as soon as it is there.
    pub async fn press(&self, says: &str) {
        let path = format!("//*[self::a or self::button][normalize-space()={says:?}]");
        self.act(&by("xpath", &path), "click", &json!({})).await;
    }

    /// Presses the box with this label.
    pub async fn press_label(&self, says: &str) {
        let path = format!("//label[normalize-space()={says:?}]//input");
        self.act(&by("xpath", &path), "click", &json!({})).await;
    }

    pub async fn press_css(&self, selector: &str) {
        self.act(&by("css selector", selector), "click", &json!({})).await;
    }

    /// Types into the field with this label; for a file chooser, a path.
    pub async fn fill(&self, label: &str, text: &str) {
        let path = format!("//*[@id=//label[normalize-space()={label:?}]/@for]");
        self.act(&by("xpath", &path), "value", &json!({ "text": text })).await;
    }

    async fn act(&self, which: &Value, what: &str, with: &Value) {
        let started = Instant::now();
        loop {
            let done = match self.try_call("/element", Some(which)).await {
                Ok(element) => self.try_call(&format!("/element/{}/{what}", id(&element)), Some(with)).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(_) => return,
                Err(error) => self.within_bound(started, &format!("{which} {what}: {error}")).await,
            }
        }
    }

    async fn within_bound(&self, started: Instant, what: &str) {
        self.check(started.elapsed() < PATIENCE, what).await;
        pause();
    }

    pub async fn script(&self, script: &str) -> Value {
        self.call("/execute/sync", Some(&json!({ "script": script, "args": [] }))).await
    }

    /// The console messages since the last call: errors, and violations of the page's policy.
    pub async fn console(&self) -> Vec<String> {
        let entries = self.call("/se/log", Some(&json!({ "type": "browser" }))).await;
        entries.as_array().unwrap().iter().map(|entry| format!("{}: {}", entry["level"], entry["message"])).collect()
    }

    /// The cookies that the browser would send to the current page, each with its attributes.
    pub async fn cookies(&self) -> Vec<Value> {
        self.call("/cookie", None).await.as_array().unwrap().clone()
    }

    async fn call(&self, path: &str, body: Option<&Value>) -> Value {
        match self.try_call(path, body).await {
            Ok(value) => value,
            Err(error) => panic!("{path}: {error}; {}", self.keep().await),
        }
    }

    /// A POST with a body, otherwise a GET.
    async fn try_call(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let url = format!("{}{path}", self.session);
        let request = match body {
            Some(body) => self.http.post(url).json(body),
            None => self.http.get(url),
        };
        let answer = request.send().await.unwrap();
        let good = answer.status().is_success();
        let mut answer: Value = answer.json().await.unwrap();
        if good { Ok(answer["value"].take()) } else { Err(answer["value"]["message"].to_string()) }
    }

    /// Saves a picture of the page for the failure report; returns its path.
    async fn keep(&self) -> String {
        let picture = self.http.get(format!("{}/screenshot", self.session)).send().await;
        let Ok(answer) = picture else { return "no picture".into() };
        let Ok(answer) = answer.json::<Value>().await else { return "no picture".into() };
        let Ok(bytes) = BASE64_STANDARD.decode(answer["value"].as_str().unwrap_or_default()) else {
            return "no picture".into();
        };
        let file = pictures().join(format!("{}.png", self.name));
        std::fs::write(&file, bytes).unwrap();
        format!("the page: {}", file.display())
    }

    /// Waits until the current page, or the next one, shows the words there.
    pub async fn says(&self, selector: &str, words: &str) {
        let started = Instant::now();
        loop {
            let text = self.text(selector).await;
            if text.contains(words) {
                return;
            }
            self.within_bound(started, &format!("{selector} says {words:?}, not {text:?}")).await;
        }
    }

    pub async fn wait_for_title(&self, title: &str) {
        let started = Instant::now();
        while self.title().await != title {
            self.within_bound(started, &format!("the title is {title:?}")).await;
        }
    }

    /// Asserts, and saves a picture on failure.
    pub async fn check(&self, holds: bool, what: &str) {
        if !holds {
            let kept = self.keep().await;
            panic!("{what}; {kept}; it reads:\n{}", self.try_texts("body").await.unwrap_or_default().join("\n"));
        }
    }
}

/// chromedriver, and the browser in its process group.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// The directory for pictures of failures; `AUTHD_TEST_PICTURES` overrides it.
pub fn pictures() -> std::path::PathBuf {
    let directory = std::env::var_os("AUTHD_TEST_PICTURES")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("pictures"), std::path::PathBuf::from);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn by(using: &str, value: &str) -> Value {
    json!({ "using": using, "value": value })
}

fn id(element: &Value) -> String {
    element[ELEMENT].as_str().unwrap().to_owned()
}

/// Uses the certificate library of Chromium and Firefox: imports our file, and trusts our authority. Returns the
/// fingerprint of the certificate.
fn trust_and_import(daemon: &Daemon, home: &Path, name: &str) -> String {
    let file = home.join("admin.p12");
    let issued = daemon.cli_json(&["admin-cert", name, "--out", file.to_str().unwrap()]);
    let database = home.join(".pki/nssdb");
    std::fs::create_dir_all(&database).unwrap();
    let database = format!("sql:{}", database.display());
    let password = issued["pkcs12_password"].as_str().unwrap();
    let authority = daemon.state_dir().join("pki/server-ca.crt");
    for (program, arguments) in [
        ("certutil", vec!["-N", "--empty-password"]),
        ("pk12util", vec!["-i", file.to_str().unwrap(), "-W", password, "-K", ""]),
        ("certutil", vec!["-A", "-n", "codex-authd", "-t", "C,,", "-i", authority.to_str().unwrap()]),
    ] {
        let output = Command::new(program).args(["-d", &database]).args(&arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program} (Debian: libnss3-tools): {error}"));
        assert!(output.status.success(), "{program} {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    }
    issued["fingerprint"].as_str().unwrap().to_owned()
}

fn start_driver(home: &Path) -> (Driver, u16) {
    use std::os::unix::process::CommandExt as _;
    let log = home.join("driver.log");
    let mut command = Command::new("chromedriver");
    // Files that remain after a kill are removed with the home.
    command.arg("--port=0").env("HOME", home).env("TMPDIR", home).env_remove("XDG_CONFIG_HOME");
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&log).unwrap()).stderr(Stdio::null()).process_group(0);
    let spawned = command.spawn();
    let driver = Driver(spawned.unwrap_or_else(|error| panic!("chromedriver (Debian: chromium-driver): {error}")));
    let started = Instant::now();
    loop {
        let said = std::fs::read_to_string(&log).unwrap();
        let port = said
            .split("started successfully on port ")
            .nth(1)
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(port, _)| port.trim().parse().ok());
        if let Some(port) = port {
            return (driver, port);
        }
        assert!(started.elapsed() < BOUND, "chromedriver does not start: {said}");
        pause();
    }
}
