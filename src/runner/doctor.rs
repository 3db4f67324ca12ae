//! Checks everything that probes need; each finding comes with a remedy.

use super::sandbox::SandboxError;
use super::setup::{ca_bundle, configuration};
use super::{Check, Runner, Verdict};
use crate::model::egress::{Destination, Egress};

pub async fn examine(runner: &Runner) -> Vec<Check> {
    let settings = runner.settings();
    let codex = match runner.program() {
        Ok(program) => Check::good("codex", program.display().to_string()),
        Err(error) => {
            let (found, remedy) = split(&error.to_string());
            Check { name: "codex".into(), verdict: Verdict::Missing, found, remedy }
        }
    };
    let configured = match configuration(&settings.config_toml) {
        Ok(_) => Check::good("configuration", "runner.config_toml can be read"),
        Err(_) => Check::not(
            "configuration",
            Verdict::Missing,
            "runner.config_toml is not valid TOML",
            "correct it and restart the daemon",
        ),
    };
    let certificates = match ca_bundle() {
        Some(path) => Check::good("certificates", path.display().to_string()),
        None => Check::not(
            "certificates",
            Verdict::Weak,
            "this system has no CA bundle; Codex uses its built-in certificates",
            "apt-get install ca-certificates, or name a bundle with SSL_CERT_FILE in the daemon's environment",
        ),
    };
    let sandbox = match runner.try_sandbox().await {
        Ok(()) => Check::good(
            "sandbox",
            "user, mount, pid, ipc, uts, cgroup and net namespaces, a root of its own, no capabilities, limits and the \
             filter of system calls: all of it was built",
        ),
        Err(SandboxError::Unavailable { part, cause, remedy }) => {
            Check::not("sandbox", Verdict::Missing, format!("no {part}: {cause}"), &remedy)
        }
        Err(error) => Check::not("sandbox", Verdict::Missing, error.to_string(), "look at the daemon's log"),
    };
    let limits = match runner.cgroup() {
        Ok(path) => Check::good("cgroup", path.display().to_string()),
        Err(why) => Check::not(
            "cgroup",
            Verdict::Weak,
            format!(
                "{why}; the memory of a probe's process is limited, but the kernel memory of its sockets only by their number"
            ),
            "Delegate=memory pids in the unit (systemctl edit codex-authd), on a machine with cgroup v2; as root, a \
             memory controller with a writable hierarchy",
        ),
    };
    vec![codex, configured, certificates, sandbox, limits, reach(&settings.egress, settings.token_url.as_deref())]
}

/// Checks that `runner.egress` lists the server that refreshes tokens.
fn reach(egress: &Egress, token_url: Option<&str>) -> Check {
    let count = egress.destinations().len();
    let good = || Check::good("egress", format!("{count} destinations are listed in runner.egress"));
    let Some(wanted) = token_url.and_then(destination) else { return good() };
    if egress.check(&wanted).is_ok() {
        return good();
    }
    let remedy = format!("add \"{wanted}\" to runner.egress");
    Check::not("egress", Verdict::Weak, format!("upstream.token_url leads to {wanted}, which is not listed"), &remedy)
}

fn destination(url: &str) -> Option<Destination> {
    let url = reqwest::Url::parse(url).ok()?;
    format!("{}:{}", url.host_str()?, url.port_or_known_default()?).parse().ok()
}

/// Splits a message into the finding and the remedy.
fn split(message: &str) -> (String, Option<String>) {
    match message.split_once("; ") {
        Some((found, remedy)) => (found.into(), Some(remedy.into())),
        None => (message.into(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_tokens_are_refreshed_has_to_be_listed() {
        let egress = Egress::parse(&["auth.test:443".into()]).unwrap();
        assert_eq!(reach(&egress, None).verdict, Verdict::Good);
        assert_eq!(reach(&egress, Some("https://auth.test/oauth/token")).verdict, Verdict::Good);
        let found = reach(&egress, Some("http://127.0.0.1:8080/oauth/token"));
        assert_eq!(found.verdict, Verdict::Weak);
        assert_eq!(found.remedy.as_deref(), Some("add \"127.0.0.1:8080\" to runner.egress"));
    }
}
