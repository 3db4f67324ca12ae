//! The other clients: hosts that retrieve the login, a user who signs in, and a command on the machine.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Client;
use serde_json::json;

use crate::support::daemon::{Daemon, auth_json};
use crate::support::people::{PASSWORD, add_user, control, register, tell};

const HOSTS: usize = 20;
/// The pause between the calls of one host; 75 calls a minute, below the default limits.
const BETWEEN_CALLS: Duration = Duration::from_millis(800);
const BETWEEN_SIGN_INS: Duration = Duration::from_secs(2);
/// A call that takes longer has failed: `cdx` gives up then.
const PATIENCE: Duration = Duration::from_secs(10);
pub const LOGIN: &str = "2025-11-20T09:27:43.5Z";

pub struct Fleet {
    hosts: Vec<(Client, String)>,
    url: String,
    person: Client,
    session: String,
    machine: Client,
}

/// The results of the fleet's calls.
#[derive(Default)]
pub struct Worked {
    /// The times of hosts' answered calls.
    pub times: Vec<Duration>,
    pub failures: Vec<String>,
}

impl Worked {
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl Fleet {
    pub async fn enrol(daemon: &Daemon) -> Self {
        tell(daemon, "/admin/auth/upload", &json!({ "auth": auth_json(LOGIN, 1) })).await;
        add_user(daemon, "ada@fleet.test", "member").await;
        // A connection for each call, like the wrapper's curl.
        let client = |last: u8| {
            let builder = daemon.client_builder().local_address(IpAddr::from([127, 0, 1, last]));
            builder.pool_max_idle_per_host(0).timeout(PATIENCE).build().unwrap()
        };
        let mut hosts = Vec::new();
        for number in 0..HOSTS {
            let host = register(daemon, &format!("h{number}.fleet.test")).await;
            hosts.push((client(u8::try_from(number).unwrap() + 1), host.api_key));
        }
        Self {
            hosts,
            url: daemon.hosts_url("/auth"),
            person: client(200),
            session: daemon.hosts_url("/auth/session"),
            machine: control(daemon),
        }
    }

    /// Works for this time; awaits each call.
    pub async fn work(&mut self, time: Duration) -> Worked {
        let end = Instant::now() + time;
        let hosts = self.hosts.iter().enumerate().map(async |(number, (client, key))| {
            let mut worked = Worked::default();
            rest(BETWEEN_CALLS * u32::try_from(number).unwrap() / u32::try_from(HOSTS).unwrap()).await;
            while Instant::now() < end {
                let begun = Instant::now();
                let body = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": LOGIN });
                match client.post(&self.url).bearer_auth(key).json(&body).send().await {
                    Ok(answer) if answer.status() == 200 => match answer.bytes().await {
                        Ok(_) => worked.times.push(begun.elapsed()),
                        Err(error) => worked.failures.push(format!("a host's answer: {error:?}")),
                    },
                    Ok(answer) => worked.failures.push(format!("a host: {}", answer.status())),
                    Err(error) => worked.failures.push(format!("a host: {error:?}")),
                }
                rest(BETWEEN_CALLS.saturating_sub(begun.elapsed())).await;
            }
            worked
        });
        let person = async {
            let mut failures = Vec::new();
            while Instant::now() < end {
                let body = json!({ "email": "ada@fleet.test", "password": PASSWORD });
                match self.person.post(&self.session).json(&body).send().await {
                    Ok(answer) if answer.status() == 200 => {}
                    Ok(answer) => failures.push(format!("a sign-in: {}", answer.status())),
                    Err(error) => failures.push(format!("a sign-in: {error:?}")),
                }
                rest(BETWEEN_SIGN_INS).await;
            }
            failures
        };
        let machine = async {
            let mut failures = Vec::new();
            while Instant::now() < end {
                let asked = self.machine.get("http://control/admin/hosts").timeout(PATIENCE).send().await;
                match asked {
                    Ok(answer) if answer.status() == 200 => {}
                    Ok(answer) => failures.push(format!("the control socket: {}", answer.status())),
                    Err(error) => failures.push(format!("the control socket: {error:?}")),
                }
                rest(BETWEEN_SIGN_INS / 2).await;
            }
            failures
        };
        let (hosts, person, machine) = tokio::join!(join_all(hosts), person, machine);
        let mut all = Worked { times: Vec::new(), failures: [person, machine].concat() };
        for worked in hosts {
            all.times.extend(worked.times);
            all.failures.extend(worked.failures);
        }
        all
    }
}

/// The rate of a load; no condition waits on it.
#[allow(clippy::disallowed_methods)]
pub async fn rest(time: Duration) {
    tokio::time::sleep(time).await;
}
