//! Who makes probes of the login, as the operator decided.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Upstream};
use crate::model::egress::Egress;
use crate::runner::{Prober, Runner, Settings};

/// `None`: probes are switched off. `cgroup`: where sandboxes' own are made, or why nowhere.
pub fn prober(config: &Config, cgroup: Result<PathBuf, String>) -> Option<Arc<dyn Prober>> {
    let runner = &config.runner;
    if !runner.enabled {
        log::info!(event = "runner_off"; "the canonical login is not proved: runner.enabled is false");
        return None;
    }
    if let Err(why) = &cgroup {
        log::warn!(event = "sandbox_without_cgroup", cause = why.as_str(); "probes get no cgroup: {why}. Their memory is bounded for the process, and the kernel's for it only by the number of its sockets; `codex-authd runner doctor` says what mends it");
    }
    let token_url = &config.upstream.token_url;
    let settings = Settings {
        codex: runner.codex.clone(),
        timeout: Duration::from_secs(runner.timeout_seconds.into()),
        // It was refused if it is none.
        egress: Egress::parse(&runner.egress).unwrap_or_default(),
        config_toml: runner.config_toml.clone(),
        token_url: (!token_url.is_empty() && *token_url != Upstream::default().token_url).then(|| token_url.clone()),
    };
    // Whatever is at its path by now: the program that runs is the one that is started again.
    let launcher = PathBuf::from("/proc/self/exe");
    Some(Arc::new(Runner::new(settings, launcher, cgroup)))
}
