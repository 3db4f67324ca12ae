//! Builds the prober of the canonical login from the configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Upstream};
use crate::model::egress::Egress;
use crate::runner::{Prober, Runner, Settings};

/// `None` if probes are switched off. `cgroup`: where cgroups of sandboxes are made, or the reason why there is no
/// place.
pub fn prober(config: &Config, cgroup: Result<PathBuf, String>) -> Option<Arc<dyn Prober>> {
    let runner = &config.runner;
    if !runner.enabled {
        log::info!(event = "runner_off"; "probes of the canonical login are off: runner.enabled is false");
        return None;
    }
    if let Err(why) = &cgroup {
        log::warn!(event = "sandbox_without_cgroup", cause = why.as_str(); "probes get no cgroup: {why}. Their process memory is limited, but kernel memory only by the number of sockets; `codex-authd runner doctor` shows the remedy");
    }
    let token_url = &config.upstream.token_url;
    let settings = Settings {
        codex: runner.codex.clone(),
        timeout: Duration::from_secs(runner.timeout_seconds.into()),
        // The configuration was checked before, so this parses.
        egress: Egress::parse(&runner.egress).unwrap_or_default(),
        config_toml: runner.config_toml.clone(),
        token_url: (!token_url.is_empty() && *token_url != Upstream::default().token_url).then(|| token_url.clone()),
    };
    // Not the path, which may hold another version by now: the same program is started again.
    let launcher = PathBuf::from("/proc/self/exe");
    Some(Arc::new(Runner::new(settings, launcher, cgroup)))
}
