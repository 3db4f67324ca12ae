//! The fleet of a machine: its configuration, the canonical login, and hosts. The first host has the real Codex.

use std::fs;

use reqwest::{Certificate, Client, ClientBuilder};
use serde_json::{Value, json};

use super::callers::Callers;
use super::install::{CONFIG, Operator, UNIT, runs};
use super::machine::Machine;
use crate::dashboard::{text_of, token_in};
use crate::support::daemon::{BOUND, install_provider};
use crate::support::host::{Ran, codex_itself};
use crate::support::upstream::Upstream;

const PROMPT: &str = "cdx exec 'Reply Banana if this works.' -s read-only --skip-git-repo-check";
/// The number of hosts that only call.
const CALLERS: usize = 4;

pub struct Fleet<'a> {
    pub machine: &'a Machine,
    upstream: Upstream,
    /// The keys of the hosts that only call.
    keys: Vec<String>,
}

impl<'a> Fleet<'a> {
    /// Configures the machine for a stand-in of OpenAI, uploads a login, and registers hosts.
    pub fn seed(machine: &'a Machine) -> Self {
        install_provider();
        let upstream = Upstream::start();
        fs::copy(codex_itself(), machine.file("/usr/local/bin/codex")).unwrap();
        machine.write("/root/.codex/config.toml", &upstream.config_toml());
        let mut fleet = Self { machine, upstream, keys: Vec::new() };
        fleet.configure("");
        machine.write("/root/auth.json", &fleet.upstream.login("acc-1", 864_000).to_string());
        assert_eq!(machine.authd(&["auth", "upload", "/root/auth.json"])["status"], "updated");
        for number in 0..CALLERS {
            let added = machine.authd(&["hosts", "add", &format!("caller-{number}.test")]);
            fleet.keys.push(added["host"]["api_key"].as_str().unwrap().to_owned());
        }
        fleet
    }

    /// Writes the configuration with some additional lines, as an operator edits it, and restarts the daemon.
    pub fn configure(&self, more: &str) {
        let text = format!(
            "public_base_url = \"https://localhost:8443\"\n\
             [limits]\nglobal_per_minute = 0\nhost_per_minute = 0\n\
             [upstream]\ntoken_url = \"{}\"\nreleases_url = \"\"\n\
             [runner]\negress = [\"{}\"]\nconfig_toml = '''\n{}'''\n{more}",
            self.upstream.token_url(),
            self.upstream.authority(),
            self.upstream.config_toml(),
        );
        fs::write(self.machine.file(CONFIG), text).unwrap();
        self.machine.done(&["codex-authd", "check-config", "--force"]);
        self.restart();
    }

    pub fn restart(&self) {
        self.machine.done(&["systemctl", "restart", UNIT]);
        runs(self.machine);
    }

    pub fn a_host_is_installed_from_the_dashboard(&self, operator: &Operator, fqdn: &str) {
        let form = operator.page("/hosts/new", "");
        let token = token_in(&form);
        let made = operator.page("/hosts/new", &format!("--data-urlencode token={token} --data-urlencode name={fqdn}"));
        let command = text_of(&made, "command");
        assert!(command.starts_with("curl ") && command.ends_with("| bash"), "{command}");
        let installed = self.machine.bash(&command);
        assert_eq!(installed.code, Some(0), "{installed:#?}");
        self.the_host_goes_on();
    }

    /// Runs the first host again, through `cdx` and the real Codex, with the files of its installation.
    pub fn the_host_goes_on(&self) {
        let ran = self.machine.bash(PROMPT);
        assert_eq!((ran.code, ran.out.trim()), (Some(0), "Banana"), "{ran:#?}");
        self.the_host_has_the_login();
    }

    /// Its login is the canonical one, byte for byte, and its key is valid.
    fn the_host_has_the_login(&self) {
        let synced = self.synced();
        assert_eq!(synced.code, Some(0), "{synced:#?}");
        let digest = |path: &str| self.machine.done(&["sha256sum", path])[..64].to_owned();
        assert_eq!(Value::from(digest("/root/.codex/auth.json")), self.machine.authd(&["auth", "show"])["digest"]);
    }

    /// Neither on the host nor at the daemon.
    pub fn a_user_who_may_not_remove_cdx_changes_nothing(&self) {
        let machine = self.machine;
        let before = machine.authd(&["hosts", "list"]);
        machine.done(&["useradd", "--create-home", "mallory"]);
        for more in [&[][..], &["--force"]] {
            let command = [&["cdx --uninstall"], more].concat().join(" ");
            let refused = machine.run(&["runuser", "--login", "mallory", "--command", &command]);
            assert!(refused.code.is_some_and(|code| code != 0), "{refused:?}");
        }
        machine.done(&["userdel", "--remove", "mallory"]);
        let names = |list: &Value| {
            let hosts = list["hosts"].as_array().unwrap().iter();
            hosts.map(|host| host["fqdn"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&machine.authd(&["hosts", "list"])), names(&before));
        self.the_host_goes_on();
    }

    pub fn synced(&self) -> Ran {
        self.machine.bash("cdx --sync")
    }

    pub fn the_login_is_proved_under_the_units_hardening(&self) {
        let asked = self.upstream.calls_to("POST", "/v1/responses").len();
        let found = self.machine.authd(&["runner", "run"]);
        assert_eq!(found["state"], "ok", "{found:#}");
        assert!(self.upstream.calls_to("POST", "/v1/responses").len() > asked, "Codex asked the model");
        let doctor = self.machine.run(&["codex-authd", "runner", "doctor"]);
        println!("{}", doctor.out.trim());
        let sandbox = doctor.out.lines().find(|line| line.contains("sandbox: ")).unwrap();
        assert!(sandbox.starts_with("good") && sandbox.ends_with("all of it was built"), "{doctor:#?}");
    }

    pub fn main_pid(&self) -> String {
        self.machine.property(UNIT, "MainPID")
    }

    /// The number of restarts by systemd.
    pub fn restarts(&self) -> u32 {
        self.machine.property(UNIT, "NRestarts").parse().unwrap()
    }

    /// Clients that trust `authority`, or otherwise the daemon's own.
    pub fn client(&self, authority: Option<&str>) -> ClientBuilder {
        let own = || fs::read_to_string(self.machine.file("/var/lib/codex-authd/pki/server-ca.crt")).unwrap();
        let pem = authority.map_or_else(own, String::from);
        let certificate = Certificate::from_pem(pem.as_bytes()).unwrap();
        Client::builder().tls_built_in_root_certs(false).add_root_certificate(certificate).no_proxy().timeout(BOUND)
    }

    pub fn callers(&self) -> Callers {
        Callers::begin("https://localhost:8443/auth", &self.keys, || self.client(None))
    }

    /// Every host is still accepted with its key.
    pub fn everybody_goes_on(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = self.client(None).build().unwrap();
            for key in &self.keys {
                let call = client.post("https://localhost:8443/auth").header("X-API-Key", key);
                let answer = call.json(
                    &json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2025-01-01T00:00:00Z" }),
                );
                let answer = answer.send().await.unwrap();
                let status = answer.status();
                assert_eq!(status, 200, "{}", answer.text().await.unwrap());
            }
        });
        self.the_host_has_the_login();
    }
}
