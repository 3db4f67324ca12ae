//! `codex-authd create-admin`, `users`, `link-identity`, `identities` and `sessions`: users and their sign-ins.

use std::io::{IsTerminal as _, Read as _};

use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use super::CliError;
use super::client::Client;
use super::print;
use crate::api::{
    IdentityAnswer, IdentityList, LinkRequest, NewUser, SessionEnded, SessionList, UserAnswer, UserBody, UserList,
    UserRole,
};

#[derive(Args)]
pub struct CreateAdmin {
    /// The e-mail address for signing in
    email: String,
    #[command(flatten)]
    password: GivenPassword,
}

#[derive(Args)]
pub struct GivenPassword {
    /// The password; all users of this machine can read it while the command runs; without it, there is a prompt
    #[arg(value_name = "PASSWORD")]
    password: Option<String>,
    /// Read the password from the first line of standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
}

/// Help text of each argument that names a user.
const EMAIL: &str = "The e-mail address that the user signs in with";

#[derive(Subcommand)]
pub enum Command {
    /// List the users
    List,
    /// Add a user; without a password, the user can sign in only through the identity provider
    Add {
        #[arg(help = EMAIL)]
        email: String,
        /// admin, viewer or member
        #[arg(long, default_value = "member")]
        role: UserRole,
        /// Read a password from the first line of standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Set a user's role: admin, viewer or member
    Role {
        #[arg(help = EMAIL)]
        email: String,
        /// admin, viewer or member
        role: UserRole,
    },
    /// Disable a user: their sessions end, and their own hosts are disabled with them
    Disable {
        #[arg(help = EMAIL)]
        email: String,
        /// Keep serving the user's own hosts
        #[arg(long)]
        keep_hosts: bool,
    },
    /// Enable a user again, with the hosts that were disabled with them
    Enable {
        #[arg(help = EMAIL)]
        email: String,
    },
    /// Set a user's password; their sessions end
    Password {
        #[arg(help = EMAIL)]
        email: String,
        #[command(flatten)]
        password: GivenPassword,
    },
    /// Set how many own hosts a user may have
    MaxHosts {
        #[arg(help = EMAIL)]
        email: String,
        /// The number; without it, the number from the configuration applies
        number: Option<u32>,
    },
}

#[derive(Args)]
pub struct Link {
    /// The issuer URL of the identity provider
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// The user's subject (sub) at the provider
    #[arg(long, value_name = "SUB")]
    subject: String,
    /// The user's e-mail address here
    #[arg(long, value_name = "EMAIL")]
    user: String,
    /// The user's e-mail address at the provider, only for display
    #[arg(long, value_name = "EMAIL")]
    email: Option<String>,
}

#[derive(Subcommand)]
pub enum Identities {
    /// List linked identities; `link-identity` links one
    List,
    /// Remove a link; all sessions of its user end
    Unlink {
        #[arg(long, value_name = "URL")]
        issuer: String,
        #[arg(long, value_name = "SUB")]
        subject: String,
    },
}

#[derive(Subcommand)]
pub enum Sessions {
    /// List sessions of the last thirty days, newest first
    List {
        /// Only sessions of this user
        #[arg(long, value_name = "EMAIL")]
        user: Option<String>,
    },
    /// End a session: its token is no longer valid
    End {
        /// The id from the list
        id: String,
    },
}

pub async fn create_admin(arguments: &CreateAdmin, client: &Client, json: bool) -> Result<(), CliError> {
    let password = arguments.password.read()?;
    add(client, &arguments.email, UserRole::Admin, Some(&password), json).await
}

pub async fn run(command: &Command, client: &Client, json: bool) -> Result<(), CliError> {
    let (email, change, body, sentence) = match command {
        Command::List => return list(client, json).await,
        Command::Add { email, role, password_stdin } => {
            let password = if *password_stdin { Some(from_stdin()?) } else { None };
            return add(client, email, *role, password.as_ref(), json).await;
        }
        Command::Role { email, role } => (email, "role", json!({ "role": role }), "has a new role."),
        Command::Disable { email, keep_hosts: true } => (
            email,
            "disable?keep_hosts=true",
            json!({}),
            "is disabled; their sessions have ended. Their hosts are still served.",
        ),
        Command::Disable { email, keep_hosts: false } => {
            (email, "disable", json!({}), "is disabled; their sessions have ended.")
        }
        Command::Enable { email } => (email, "enable", json!({}), "may sign in again."),
        Command::Password { email, password } => {
            let body = json!({ "password": password.read()?.as_str() });
            (email, "password", body, "has a new password; their sessions have ended.")
        }
        Command::MaxHosts { email, number } => {
            (email, "max-hosts", json!({ "max_hosts": number }), "has a new limit of hosts.")
        }
    };
    let user = find(client, email).await?;
    let changed: UserAnswer = client.post(&format!("/auth/users/{}/{change}", user.id), &body).await?;
    let hosts = match (changed.hosts_changed, changed.user.disabled) {
        (None | Some(0), _) => String::new(),
        (Some(count), true) => format!(" Hosts disabled with them: {count}."),
        (Some(count), false) => format!(" Hosts enabled with them: {count}."),
    };
    print::done(json, &changed, &format!("{} {sentence}{hosts}", changed.user.email))?;
    Ok(())
}

async fn add(
    client: &Client,
    email: &str,
    role: UserRole,
    password: Option<&Zeroizing<String>>,
    json: bool,
) -> Result<(), CliError> {
    let request = NewUser { email: email.into(), role, password: password.map(|password| password.to_string()) };
    let made: UserAnswer = client.post("/auth/users", &request).await?;
    print::done(json, &made, &format!("{} is a user now: {}.", made.user.email, made.user.role))?;
    Ok(())
}

async fn list(client: &Client, json: bool) -> Result<(), CliError> {
    let list: UserList = client.all("/auth/users").await?;
    let head = ["EMAIL", "ROLE", "STATE", "PASSWORD", "MADE"].map(String::from).into();
    let row = |user: &UserBody| {
        let state = if user.disabled { "disabled" } else { "active" };
        let password = if user.has_password { "yes" } else { "no" };
        vec![user.email.clone(), user.role.to_string(), state.into(), password.into(), print::instant(user.created_at)]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(list.users.iter().map(row)).collect();
    print::done(json, &list, &print::table(&rows))?;
    Ok(())
}

async fn find(client: &Client, email: &str) -> Result<UserBody, CliError> {
    let list: UserList = client.all("/auth/users").await?;
    let wanted = email.trim().to_lowercase();
    let found = list.users.into_iter().find(|user| user.email == wanted);
    found.ok_or_else(|| CliError::Refused(format!("there is no user {wanted}; `codex-authd users list` shows them")))
}

pub async fn link(arguments: &Link, client: &Client, json: bool) -> Result<(), CliError> {
    let Link { issuer, subject, user, email } = arguments;
    let request =
        LinkRequest { issuer: issuer.clone(), subject: subject.clone(), user: user.clone(), email: email.clone() };
    let linked: IdentityAnswer = client.post("/auth/identities", &request).await?;
    print::done(json, &linked, &format!("The identity {subject} of {issuer} signs in as {user}."))?;
    Ok(())
}

pub async fn identities(command: &Identities, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Identities::List => {
            let list: IdentityList = client.all("/auth/identities").await?;
            let head = ["USER", "ISSUER", "SUBJECT", "EMAIL THERE"].map(String::from).into();
            let rows = list.identities.iter().map(|identity| {
                let user = identity.user.clone().unwrap_or_else(|| identity.user_id.to_string());
                vec![user, identity.issuer.clone(), identity.subject.clone(), print::or_dash(identity.email.as_ref())]
            });
            let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
            print::done(json, &list, &print::table(&rows))?;
        }
        Identities::Unlink { issuer, subject } => {
            let body = json!({ "issuer": issuer, "subject": subject });
            let unlinked: IdentityAnswer = client.post("/auth/identities/unlink", &body).await?;
            print::done(json, &unlinked, &format!("The identity {subject} of {issuer} is no longer linked."))?;
        }
    }
    Ok(())
}

pub async fn sessions(command: &Sessions, client: &Client, json: bool) -> Result<(), CliError> {
    match command {
        Sessions::List { user } => {
            let list: SessionList = match user {
                None => client.all("/auth/sessions").await?,
                Some(email) => client.all(&format!("/auth/users/{}/sessions", find(client, email).await?.id)).await?,
            };
            let head = ["USER", "STATE", "BY", "BEGAN", "LAST USED", "FROM", "ID"].map(String::from).into();
            let rows = list.sessions.iter().map(|session| {
                vec![
                    session.user.clone().unwrap_or_else(|| session.user_id.to_string()),
                    if session.in_force { "in force" } else { "over" }.into(),
                    session.issuer.clone().unwrap_or_else(|| session.signed_in_by.to_string()),
                    print::instant(session.started_at),
                    print::instant(session.last_used_at),
                    print::or_dash(session.from.as_ref()),
                    session.id.to_string(),
                ]
            });
            let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
            print::done(json, &list, &print::table(&rows))?;
        }
        Sessions::End { id } => {
            let ended: SessionEnded = client.post(&format!("/auth/sessions/{id}/end"), &json!({})).await?;
            print::done(json, &ended, "The session is over.")?;
        }
    }
    Ok(())
}

impl GivenPassword {
    fn read(&self) -> Result<Zeroizing<String>, CliError> {
        match &self.password {
            Some(password) => Ok(Zeroizing::new(password.clone())),
            None if self.password_stdin || !std::io::stdin().is_terminal() => from_stdin(),
            None => {
                let failed = |cause| CliError::Refused(format!("cannot ask for a password here: {cause}"));
                let ask = |prompt: &str| rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(failed);
                let (password, again) = (ask("Password: ")?, ask("Again: ")?);
                if *password != *again {
                    return Err(CliError::Refused("the two passwords differ; nothing was changed".into()));
                }
                Ok(password)
            }
        }
    }
}

fn from_stdin() -> Result<Zeroizing<String>, CliError> {
    const LONGEST: u64 = 4096;
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().take(LONGEST).read_to_string(&mut text);
    read.map_err(|cause| CliError::Read { path: "standard input".into(), cause })?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(CliError::Refused(
            "there is no password on standard input: --password-stdin reads one line".into(),
        ));
    }
    Ok(Zeroizing::new(line.to_owned()))
}
