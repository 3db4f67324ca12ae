//! The command line: parses the arguments, calls the admin API, prints the answer. No rule lives here.
//!
//! Every command except `serve`, `check-config`, `openapi`, `completions` and `man` uses the admin API: through the
//! control socket of the running daemon, or, if none runs, by the same endpoint in this process (see `client`).
//!
//! Exit codes: 0 done; 1 refused or failed; 2 usage; 3 done, but something could not be read (`records export`); 141
//! the reader of the output has gone (the code that a shell gives a program that SIGPIPE ended).
//!
//! Commands that may open the state take the identity of its owner first, in [`run`], while the process has one thread.

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
    /// The configuration file [default: /etc/codex-authd/config.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Serve,
    /// Check whether the daemon can start with this configuration
    ///
    /// As root, it uses the user and the variables of the unit codex-authd.service, if systemd has that unit. It asks
    /// the daemon (or its state, if none runs) whether the configured certificate would cut off hosts. If so, it exits
    /// with 1.
    CheckConfig(check_config::Arguments),
    /// Show problems, and the command that solves each
    ///
    /// It checks the configuration, credentials, the state directory and its disk, the clock, ports and certificates. It
    /// also checks the database, the login, the needs of probes, and the connections to upstream and public_base_url.
    /// Each line says `good`, `weak` or `missing`, with the remedy below it. `weak`: it works, but could be better or
    /// will fail soon. `missing`: something does not work. It works with and without a running daemon. Run it as root:
    /// then it uses the user, variables, credentials and sockets of the unit codex-authd.service, if systemd has that
    /// unit.
    Doctor,
    /// Print the OpenAPI document
    Openapi,
    /// Print the completion script for a shell
    Completions(completions::Arguments),
    /// Write the manual pages into a directory
    Man(manual::Arguments),
    /// Issue an admin's client certificate
    AdminCert(certificate::Arguments),
    /// Create a user with the role admin
    CreateAdmin(users::CreateAdmin),
    /// Manage the users who may sign in, and their roles
    #[command(subcommand)]
    Users(users::Command),
    /// Link an identity of an identity provider to a user, who can then sign in with it
    LinkIdentity(users::Link),
    /// List and unlink identities
    #[command(subcommand)]
    Identities(users::Identities),
    /// List and end sessions
    #[command(subcommand)]
    Sessions(users::Sessions),
    /// Register, list and remove hosts
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
    /// Read and verify the audit log
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show or set the kill switch, which stops serving hosts
    #[command(subcommand)]
    Api(api::Command),
    /// Prove the canonical login by running the real Codex on it
    #[command(subcommand)]
    Runner(runner::Command),
    /// Rotate the keys that seal secrets
    #[command(subcommand)]
    Keys(keys::Command),
    /// Copy everything into a directory, for a restore; or verify such a backup
    Backup(backup::Arguments),
    /// Verify a backup, and replace all records by it
    Restore(restore::Arguments),
    /// Move all records into another, empty store
    ///
    /// During the migration, hosts get the login and nothing can be changed. Afterwards this store accepts no changes:
    /// start the daemons on the other store, or undo the migration with --abort.
    Migrate(migrate::Arguments),
    /// Save the readable part of damaged records
    #[command(subcommand)]
    Records(records::Command),
    /// Print the metrics of the running daemon, in the Prometheus text format
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
    /// The request was answered in full, but the answer is that something does not work.
    #[error("{0}")]
    Found(&'static str),
    /// Done as far as possible; the gaps were reported.
    #[error("not everything could be read")]
    Incomplete,
    /// The reader of the output has gone, so nothing more is printed.
    #[error("the reader of the output has gone")]
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
/// 128 plus the number of SIGPIPE. The signal itself would end a command before its work is done.
const EXIT_READER_GONE: u8 = 141;

pub fn main() -> ExitCode {
    if let Some(code) = sandbox::dispatch() {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(refused) if refused.use_stderr() => refused.exit(),
        // The output of --help or --version.
        Err(answer) => return code_of(print::written(answer.print().and_then(|()| std::io::stdout().flush())), false),
    };
    crate::pki::tls::install_default_provider();
    code_of(run(&arguments), arguments.json)
}

fn code_of(outcome: Result<(), CliError>, json: bool) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // JSON output is one document: the answer itself, if there is one.
    let is_answered = matches!(error, CliError::Found(_) | CliError::Incomplete | CliError::ReaderGone);
    if json && !is_answered {
        let document = serde_json::json!({"status": "error", "message": error.to_string()});
        // The error is printed to standard error in any case.
        let _ = print::text(&format!("{document}\n"));
    }
    if !matches!(error, CliError::ReaderGone) {
        print::note(&format!("codex-authd: {error}\n"));
    }
    error.exit_code()
}

fn run(arguments: &Arguments) -> Result<(), CliError> {
    // These commands give the same output on every machine, so they need no configuration.
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
    // These two commands check the unit's view.
    let view = match &arguments.command {
        Command::Doctor | Command::CheckConfig(_) => View::take(&places),
        _ => View::of_caller(),
    };
    // The database of the variable is the target, not the present store.
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
            // Do not wait without end for a thread that is blocked by a disk.
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

/// Must run before the first thread starts: threads inherit the identity from their creator.
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
        // `run` and `ask` have handled these.
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
