//! Users of a daemon. Tests make them over the control socket, which is open whatever `admin.access` is.

use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::daemon::{Daemon, Registered, install_provider};

/// Strong enough for a user's password.
pub const PASSWORD: &str = "vexed-lantern-42-orbit-plum";

/// A client on the control socket; urls begin with `http://control`.
pub fn control(daemon: &Daemon) -> Client {
    install_provider();
    Client::builder().unix_socket(daemon.state.path().join("control.sock")).build().unwrap()
}

/// `data` of the answer to a POST over the control socket.
pub async fn tell(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let answer = control(daemon).post(format!("http://control{path}")).json(body).send().await.unwrap();
    data(answer, path).await
}

pub async fn ask(daemon: &Daemon, path: &str) -> Value {
    data(control(daemon).get(format!("http://control{path}")).send().await.unwrap(), path).await
}

async fn data(answer: Response, path: &str) -> Value {
    let status = answer.status();
    let mut body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    body["data"].take()
}

pub async fn register(daemon: &Daemon, fqdn: &str) -> Registered {
    Registered::from(&tell(daemon, "/admin/hosts/register", &json!({ "fqdn": fqdn })).await)
}

/// The curl command with which the first stage of this printed command fetches the installer. It spends the token.
pub fn redeeming(command: &str) -> String {
    command.strip_suffix(" | bash").unwrap().replacen("/start\" ", "\" ", 1)
}

/// Makes a user with [`PASSWORD`]; returns the user's number.
pub async fn add_user(daemon: &Daemon, email: &str, role: &str) -> u64 {
    let body = json!({ "email": email, "role": role, "password": PASSWORD });
    tell(daemon, "/auth/users", &body).await["user"]["id"].as_u64().unwrap()
}

pub async fn link(daemon: &Daemon, issuer: &str, subject: &str, user: &str) {
    tell(daemon, "/auth/identities", &json!({ "issuer": issuer, "subject": subject, "user": user })).await;
}

/// Signs in by password; returns an access token.
pub async fn sign_in(daemon: &Daemon, email: &str) -> String {
    let body = json!({ "email": email, "password": PASSWORD });
    let answer = daemon.client().post(daemon.hosts_url("/auth/session")).json(&body).send().await.unwrap();
    let token = data(answer, "/auth/session").await["access_token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("cxa_") && token.len() == 47, "{token}");
    token
}

/// The user that this token belongs to.
pub async fn me(daemon: &Daemon, token: &str) -> Value {
    let answer = daemon.client().get(daemon.hosts_url("/auth/me")).bearer_auth(token).send().await.unwrap();
    data(answer, "/auth/me").await
}

/// The audit entries of sign-ins: outcome and reason (if any); the newest first.
pub async fn sign_ins_noted(daemon: &Daemon) -> Vec<(String, String)> {
    let log = ask(daemon, "/admin/audit?action=session.begin").await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entries = log["entries"].as_array().unwrap().iter();
    let sign_ins = entries.filter(|entry| entry["action"] == "session.begin");
    sign_ins.map(|entry| (text(&entry["outcome"]), text(&entry["details"]["reason"]))).collect()
}
