//! The command line: reads what was typed, asks the daemon, prints the answer. No rule lives here.
//!
//! Every command but `serve`, `check-config`, `openapi`, `completions` and `man` speaks the admin API: through the control socket of the
//! running daemon, or, when none runs, with the same endpoint opened in this process (see `client`).
//!
//! Exit codes: 0 done, 1 refused or failed, 2 usage, 3 done, and something could not be read (`records export`), 141 nobody
//! reads the answer any more (as a shell says it of a program that SIGPIPE ended).
//!
//! Whatever may open the state takes the identity of its owner first, in [`run`], while the process has one thread.

mod api;
mod archive;
mod audit;
mod auth;
mod authorities;
mod backup;
mod certificate;
mod certificates;
mod check_config;
pub(crate) mod client;
mod completions;
mod configuration;
mod doctor;
mod hosts;
mod installers;
mod keep;
mod keys;
mod manual;
mod metrics;
mod migrate;
mod passphrase;
mod print;
mod progress;
mod records;
mod restore;
mod runner;
mod sandbox;
mod users;
mod verify;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueHint};

use crate::config::{self, Config, ConfigError};
use crate::daemon::state::StateError;
use crate::daemon::{self, DaemonError, owner};
use crate::doctor::{Places, View};

use client::{Client, ClientError};

#[derive(Parser)]
#[command(name = "codex-authd", version, about, disable_help_subcommand = true)]
struct Arguments {
    /// The configuration file [default: /etc/codex-authd/config.toml if it is there]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Serve,
    /// Say whether the daemon can start with this configuration
    ///
    /// As root, with the user and the variables of the unit codex-authd.service, where systemd has that. Asks the daemon, or its
    /// state where none runs, whether hosts would be cut off by another certificate; if so, it exits with 1.
    CheckConfig(check_config::Arguments),
    /// Say what is wrong, and the command that mends it
    ///
    /// Looks at the configuration, credentials, the state directory and its disk, the clock, the ports, certificates, the
    /// database, the login, what probes need, and whether upstream and public_base_url can be reached. Each line is `good`, `weak` (it
    /// works, and something is weaker than it could be, or will be missing soon) or `missing` (what it is needed for does not
    /// work), with what mends it below. It works while the daemon runs and while it does not; run it as root. It then takes
    /// the view of the unit codex-authd.service, where systemd has that: its user, variables, credentials and sockets.
    Doctor,
    /// Print the OpenAPI document
    Openapi,
    /// Print what a shell needs to complete this command line
    Completions(completions::Arguments),
    /// Write the manual pages into a directory
    Man(manual::Arguments),
    /// Issue an admin's client certificate
    AdminCert(certificate::Arguments),
    /// Make a user who may do everything
    CreateAdmin(users::CreateAdmin),
    /// Who may sign in, and as what
    #[command(subcommand)]
    Users(users::Command),
    /// Let whoever an identity provider says is SUB sign in as a user
    LinkIdentity(users::Link),
    /// List and unlink identities
    #[command(subcommand)]
    Identities(users::Identities),
    /// List and end sessions
    #[command(subcommand)]
    Sessions(users::Sessions),
    /// Make, list and remove hosts
    #[command(subcommand)]
    Hosts(hosts::Command),
    /// Upload and show the canonical login
    #[command(subcommand)]
    Auth(auth::Command),
    /// List, renew and revoke admins' certificates; `admin-cert` issues one
    #[command(subcommand)]
    Certificates(certificates::Command),
    /// List the authorities and roll one over: prepare, activate, retire
    #[command(subcommand)]
    Authorities(authorities::Command),
    /// List and revoke installers
    #[command(subcommand)]
    Installers(installers::Command),
    /// Read the audit log and verify that it is whole
    #[command(subcommand)]
    Audit(audit::Command),
    /// The kill switch: whether hosts are served
    #[command(subcommand)]
    Api(api::Command),
    /// Prove the canonical login by running the real Codex on it
    #[command(subcommand)]
    Runner(runner::Command),
    /// The keys that secrets are sealed with
    #[command(subcommand)]
    Keys(keys::Command),
    /// Copy everything into a directory of its own, for a restore; or check such a backup
    Backup(backup::Arguments),
    /// Check a backup, and put it in the place of all records
    Restore(restore::Arguments),
    /// Move all records into another, empty store
    ///
    /// While it lasts, hosts get the login and nothing else changes. Afterwards this store stands still: start the
    /// daemons on the other one, or take it back with --abort.
    Migrate(migrate::Arguments),
    /// Take out of damaged records what can be read
    #[command(subcommand)]
    Records(records::Command),
    /// What the running daemon counts and measures, in the Prometheus text format
    Metrics,
}

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("cannot write {path}: {cause}", path = path.display())]
    Write { path: PathBuf, cause: std::io::Error },
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error("{0}")]
    Refused(String),
    /// What was asked for has been answered in full, and the answer is that something does not work.
    #[error("{0}")]
    Found(&'static str),
    /// It was done as far as it could be, which has been told.
    #[error("not everything could be read")]
    Incomplete,
    /// Who asked has gone, and is told nothing.
    #[error("nobody reads the answer any more")]
    ReaderGone,
}

impl CliError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Incomplete => ExitCode::from(EXIT_INCOMPLETE),
            Self::ReaderGone => ExitCode::from(EXIT_READER_GONE),
            _ => ExitCode::FAILURE,
        }
    }
}

const EXIT_INCOMPLETE: u8 = 3;
/// 128 and the number of SIGPIPE. The signal itself would end a command before its work is.
const EXIT_READER_GONE: u8 = 141;

pub fn main() -> ExitCode {
    if let Some(code) = sandbox::dispatch() {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(refused) if refused.use_stderr() => refused.exit(),
        // Help, or the version.
        Err(answer) => return code_of(print::written(answer.print().and_then(|()| std::io::stdout().flush())), false),
    };
    crate::pki::tls::install_default_provider();
    code_of(run(&arguments), arguments.json)
}

fn code_of(outcome: Result<(), CliError>, json: bool) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // One document: the answer itself, where there is one.
    let is_answered = matches!(error, CliError::Found(_) | CliError::Incomplete | CliError::ReaderGone);
    if json && !is_answered {
        let document = serde_json::json!({"status": "error", "message": error.to_string()});
        // What happened is said below in any case.
        let _ = print::text(&format!("{document}\n"));
    }
    if !matches!(error, CliError::ReaderGone) {
        print::note(&format!("codex-authd: {error}\n"));
    }
    error.exit_code()
}

fn run(arguments: &Arguments) -> Result<(), CliError> {
    // What is the same on every machine needs no configuration.
    match &arguments.command {
        Command::Openapi => {
            return print::text(&crate::api::document());
        }
        Command::Completions(arguments) => return completions::run(arguments),
        Command::Man(pages) => return manual::run(pages, arguments.json),
        _ => {}
    }
    if let Command::Backup(backup::Arguments { verify: Some(directory), passphrase_file, master_key, .. }) =
        &arguments.command
    {
        daemon::hardening::harden()?;
        let verifying = verify::run(directory, passphrase_file.as_deref(), master_key.as_deref(), arguments.json);
        return runtime_of_one()?.block_on(verifying);
    }
    let places = Places::default();
    // Those two are about what the unit does.
    let view = match &arguments.command {
        Command::Doctor | Command::CheckConfig(_) => View::take(&places),
        _ => View::of_caller(),
    };
    // The database that is moved to is not the one that is moved from.
    let is_target = matches!(&arguments.command, Command::Migrate(migrate) if migrate.takes_environment());
    let environment = std::env::vars_os().filter(|(name, _)| !is_target || *name != *migrate::VARIABLE);
    let credentials = config::credentials::directory();
    let (environment, unreadable) = match config::environment(environment) {
        Ok(environment) => (environment, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let file = config::file(arguments.config.as_deref(), &environment);
    let loaded = match unreadable {
        Some(error) => Err(error),
        None => config::load(arguments.config.as_deref(), environment, credentials.as_deref()),
    };
    let loaded = loaded.map_err(|error| view.located(error));
    if let Command::Doctor = arguments.command {
        daemon::hardening::harden()?;
        return doctor::run(&view, &places, loaded, file, arguments.json);
    }
    let config = loaded?;
    if let Command::CheckConfig(check) = &arguments.command {
        daemon::hardening::harden()?;
        check_config::look(&config, &view)?;
        let presence = crate::doctor::presence(&config, &view, &places);
        take_identity(&config)?;
        return runtime_of_one()?.block_on(check_config::run(check, &config, &view, &presence, arguments.json));
    }
    take_identity(&config)?;
    match &arguments.command {
        Command::Serve => {
            daemon::hardening::harden()?;
            daemon::logging::start();
            let runtime = runtime()?;
            let outcome = runtime.block_on(daemon::serve(config));
            // A thread that waits for a disk which does not answer would be waited for without end.
            runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
            outcome.map_err(CliError::from)
        }
        Command::Records(command) => {
            daemon::hardening::harden()?;
            records::run(command, &config, arguments.json)
        }
        command => {
            daemon::hardening::harden()?;
            runtime_of_one()?.block_on(ask(command, &config, arguments.json))
        }
    }
}

/// Before the first thread: each takes it over from the one that begins it.
fn take_identity(config: &Config) -> Result<(), CliError> {
    let failed = |cause| StateError::Directory { path: config.state_dir.clone(), cause };
    Ok(owner::take_on(&config.state_dir).map_err(failed).map_err(DaemonError::from)?)
}

async fn ask(command: &Command, config: &Config, json: bool) -> Result<(), CliError> {
    if let Command::Metrics = command {
        return metrics::run(config, json).await;
    }
    if let Command::Restore(arguments) = command {
        return restore::run(arguments, config, json).await;
    }
    let client = Client::connect(config).await?;
    let outcome = ask_with(&client, command, config, json).await;
    client.close().await;
    outcome
}

async fn ask_with(client: &Client, command: &Command, config: &Config, json: bool) -> Result<(), CliError> {
    match command {
        Command::AdminCert(arguments) => certificate::run(arguments, client, json).await,
        Command::CreateAdmin(arguments) => users::create_admin(arguments, client, json).await,
        Command::Users(command) => users::run(command, client, json).await,
        Command::LinkIdentity(arguments) => users::link(arguments, client, json).await,
        Command::Identities(command) => users::identities(command, client, json).await,
        Command::Sessions(command) => users::sessions(command, client, json).await,
        Command::Hosts(command) => hosts::run(command, client, json).await,
        Command::Auth(command) => auth::run(command, client, json).await,
        Command::Certificates(command) => certificates::run(command, client, json).await,
        Command::Authorities(command) => authorities::run(command, client, json).await,
        Command::Installers(command) => installers::run(command, client, json).await,
        Command::Audit(command) => audit::run(command, client, json).await,
        Command::Api(command) => api::run(command, client, json).await,
        Command::Runner(command) => runner::run(command, client, json).await,
        Command::Keys(command) => keys::run(command, client, json).await,
        Command::Backup(arguments) => backup::run(arguments, client, config, json).await,
        Command::Migrate(arguments) => migrate::run(arguments, client, json).await,
        // `run` and `ask` have seen to them.
        Command::Serve
        | Command::CheckConfig(_)
        | Command::Doctor
        | Command::Openapi
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Metrics
        | Command::Records(_)
        | Command::Restore(_) => Ok(()),
    }
}

const RUNTIME_SHUTDOWN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)
}

fn runtime_of_one() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)
}
