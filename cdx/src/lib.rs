//! cdx: runs Codex with the login that codex-authd keeps for the whole fleet. `COMMANDS` names the commands and exit codes.
//!
//! Data from the daemon is never evaluated. Its document is written to auth.json only if its SHA-256 is as announced. The
//! API key is in no argument list and in no environment.

#![deny(unsafe_code)]

mod arguments;
mod baked;
mod causes;
mod codex;
mod config;
mod daemon;
mod doctor;
mod document;
mod download;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod home;
mod install;
mod locks;
mod login;
mod messages;
mod platform;
mod quote;
mod run_codex;
mod state;
mod status;
mod store;
mod uninstall;
mod update;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use arguments::Command;
use config::Config;
use home::Home;
use login::Login;
use messages::{Result, complain, failure, say};
use state::State;

/// What `cdx --help` prints before the help of Codex.
const COMMANDS: &str = "\
cdx [arguments]      fetch the canonical auth.json, run `codex` with these arguments, send back a login that it renews
cdx -- [arguments]   the same, for arguments that are also options of cdx
cdx --sync           only fetch the canonical login, or send a newer one (--json)
cdx status           what the daemon says about the login here; changes nothing (--json)
cdx --update         update codex and cdx to the daemon's versions (--to-bash: the script replaces this program)
cdx --uninstall      remove this host from the fleet, and remove cdx (--yes: do not ask; --force: even without the daemon)
cdx --doctor         check everything that cdx needs (--json)
cdx --version        the versions of cdx and codex (--json)

  --profile NAME       first, or with a command of cdx: another daemon, whose configuration is NAME.toml
  CDX_PROFILE=NAME     the same
  CODEX_HOME           where auth.json is (default ~/.codex)
  CDX_QUIET=1          print only errors

Exit codes are codex's own (128+n when a signal ended it), or, when codex was not started:
  1   a check or an update failed                    74  auth.json cannot be read or written, or codex could not save
  64  `login` or `logout`, without `--` before it        a login that it renews
  65  --sync: the daemon refuses the login here      76  the daemon's certificate cannot be trusted
  69  the daemon is away and the login here is       77  the daemon refuses this host
      missing, or more than a day old                78  this cdx was never set up
                                                     126 codex does not start
                                                     127 codex is not installed
";

/// The whole program.
pub fn run() -> ExitCode {
    platform::use_built_in_name_services();
    // If codex is a script that runs cdx, this cdx answers in its place. Then the script is skipped (`codex::find`).
    if std::env::var_os(codex::ASKS_CODEX).is_some() {
        status::print(&format!("cdx {}", daemon::VERSION));
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("this system lets no program wait for events: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(command(std::env::args_os().skip(1).collect())) {
        Ok(code) => code,
        Err(failure) => {
            if let Some(message) = failure.message {
                complain(message);
            }
            failure.code
        }
    };
    ExitCode::from(code)
}

async fn command(arguments: Vec<OsString>) -> Result<u8> {
    let home = Home::find();
    let invocation = arguments::parse(arguments, |profile| config::knows(&home, Some(profile)))?;
    let profile = invocation.profile.or_else(|| std::env::var("CDX_PROFILE").ok().filter(|name| !name.is_empty()));
    let prepared = || Prepared::new(&home, profile.as_deref());
    match invocation.command {
        Command::Version { json } => status::versions(&home, profile.as_deref(), json),
        Command::Launch { arguments, stops_login } => {
            if stops_login {
                arguments::stop_login(&arguments)?;
            }
            if arguments.first().is_some_and(|word| word == "--help" || word == "-h") {
                status::print(COMMANDS);
            }
            launch(&home, &prepared()?, &arguments).await
        }
        Command::Sync { json } => status::synchronise(&home, &prepared()?, json).await,
        Command::Status { json } => status::show(&home, &prepared()?, json).await,
        Command::Doctor { json } => doctor::examine(&home, &prepared()?, json).await,
        Command::Update { to_bash } => update::update(&home, &prepared()?, to_bash).await,
        // A crash of an uninstallation may have left nothing but the program.
        Command::Uninstall { yes, .. } if profile.is_none() && !config::knows(&home, None) => {
            uninstall::remove_alone(&home, yes)
        }
        Command::Uninstall { yes, force } => uninstall::uninstall(&home, &prepared()?, yes, force).await,
        Command::InstallCodex => install::install_missing(&home, &prepared()?).await,
        Command::RemoveCodex => install::remove(&home, &prepared()?),
    }
}

/// What every command but `--version` needs.
pub struct Prepared {
    pub config: Config,
    pub state: State,
}

impl Prepared {
    fn new(home: &Home, profile: Option<&str>) -> Result<Self> {
        let config = Config::read(home, profile)?;
        let state = State::open(home, &config.values.base_url)?;
        state::sweep(home, &state.directory, &config.file);
        Ok(Self { config, state })
    }

    pub fn find_codex(&self, home: &Home) -> Option<codex::Codex> {
        codex::find(home, Some(&self.state), &self.config.values.codex_npm)
    }

    pub fn login<'a>(&'a self, home: &'a Home, codex: Option<&codex::Codex>) -> Result<Login<'a>> {
        let mut daemon = daemon::Daemon::new(&self.config, &self.state);
        daemon.codex_version = codex.and_then(|codex| codex.version.clone());
        Login::new(home, &self.state, daemon)
    }
}

async fn launch(home: &Home, prepared: &Prepared, arguments: &[OsString]) -> Result<u8> {
    let codex = prepared
        .find_codex(home)
        .ok_or_else(|| failure(127, "codex is not installed, or not on PATH: install it with 'cdx --update'"))?;
    let mut login = prepared.login(home, Some(&codex))?;
    login.synchronise().await?;
    login.notice_update();
    if let Some(keyring) = store::keyring(home) {
        say(keyring);
    }
    store::make_home(home)?;
    if let Some(why) = store::cannot_save(home, &login.local) {
        return Err(failure(
            74,
            format!("codex could not save a renewed login, and its refresh token would be lost: {why}"),
        ));
    }
    let cleared = codex::cleared_overrides();
    if !cleared.is_empty() {
        say(format_args!("not passed to codex, which would prefer it to the fleet's login: {}", cleared.join(" ")));
    }
    let before = login.local.digest.clone();
    let code = run_codex::run(&mut login, &codex, arguments).await?;
    hand_back(&mut login, &before).await?;
    Ok(code)
}

/// Sends a login that codex renewed, unless that was done while it ran.
async fn hand_back(login: &mut Login<'_>, before: &str) -> Result<()> {
    login.read()?;
    let is_synced = login.state.recall().is_some_and(|last| last.digest == login.local.digest);
    if login.local.digest == before || is_synced || login.local.text.is_none() {
        return Ok(());
    }
    // Codex has run; its exit code counts.
    if let Err(failure) = login.push().await
        && let Some(message) = failure.message
    {
        complain(message);
    }
    if login.is_turned_down() && login.declined {
        say(format_args!(
            "the next cdx brings the fleet's login back, and keeps this one as {}",
            home::shown(&store::kept_file(login.home))
        ));
    }
    Ok(())
}
