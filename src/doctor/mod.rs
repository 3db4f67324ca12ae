//! What is wrong with an installation, as far as this machine shows it: the configuration, the state directory, its disk,
//! the ports, the certificates that are shown, and whether upstream can be reached. What only the daemon knows is its own
//! to say (`service/examine`).
//!
//! This room looks, and writes nothing. What is good and what is not is decided in `model/checkup`, or by a function here
//! that takes what was found. It works while the daemon runs and while it does not, and whatever it cannot look at is a
//! finding like any other. Nothing that it says is secret.

mod installation;
mod ports;
mod reach;
mod served;

use std::path::Path;

use crate::config::Config;
use crate::daemon::listen_file::{self, Bound};
use crate::model::check::Check;
use crate::outside::Outside;

pub use installation::{Holder, StateFound, owner, state};

/// Everything that can be looked at without the daemon's help. `file` is the configuration's; `is_running`: whether the
/// daemon answers.
pub async fn examine(
    config: &Config,
    file: Option<&Path>,
    state: &StateFound,
    is_running: bool,
    outside: &dyn Outside,
) -> Vec<Check> {
    let mut checks = vec![installation::configuration(file, config, state.owner)];
    checks.extend(state.checks(is_running));
    checks.extend(installation::set_aside(&config.state_dir));
    checks.extend(installation::disk(&config.state_dir));
    checks.extend(installation::newest_file(&config.state_dir, outside.now()));
    checks.push(installation::time_service(Path::new("/run/systemd/timesync")));
    let bound = if is_running { listen_file::read(&config.state_dir) } else { None };
    checks.extend(listening(config, bound.as_ref()).await);
    let (certificate, public, upstream) = tokio::join!(
        served::certificate(config, bound.as_ref(), outside),
        served::public(config, outside),
        reach::upstream(config, outside),
    );
    checks.extend(certificate);
    checks.extend(public);
    checks.extend(upstream);
    checks
}

async fn listening(config: &Config, bound: Option<&Bound>) -> Vec<Check> {
    match bound {
        Some(bound) => {
            let (hosts, admin) = tokio::join!(
                ports::answers("port of hosts", config.listen.hosts, bound.hosts),
                ports::answers("port of admins", config.listen.admin, bound.admin),
            );
            vec![hosts, admin]
        }
        None => vec![
            ports::is_free("port of hosts", config.listen.hosts),
            ports::is_free("port of admins", config.listen.admin),
        ],
    }
}
