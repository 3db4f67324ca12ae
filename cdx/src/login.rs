//! Synchronises `auth.json` with the daemon.
//!
//! A login that `cdx` neither fetched nor sent is never overwritten without offering it to the daemon, which decides. A
//! replaced login that the daemon did not accept is kept (`store::kept_file`).

use codex_authd_client::types::SyncStatus;

use crate::daemon::{Answer, Daemon, Outcome, Trouble, VERSION, Wrapper};
use crate::document::ZERO_DATE;
use crate::home::{Home, shown};
use crate::messages::{Result, clean, complain, failure, reported, say};
use crate::platform;
use crate::state::State;
use crate::store::{self, Local, Replaced, Replacement, ZERO_DIGEST};

/// How long a login may be used without the daemon, in seconds.
const GRACE: i64 = 86_400;
/// How far a clock may step back before it is not trusted, in seconds.
const SLACK: i64 = 300;
const SYNC_ATTEMPTS: u32 = 4;
const PUSH_ATTEMPTS: u32 = 3;

pub struct Login<'a> {
    pub home: &'a Home,
    pub state: &'a State,
    pub daemon: Daemon<'a>,
    pub local: Local,
    /// The digest of a login that does not count: invalid, or refused by the daemon.
    turned_down: Option<String>,
    /// Why the daemon refused the last request.
    pub declined: bool,
    /// The daemon answered, and the login is as it says.
    pub in_step: bool,
    /// The daemon could not be asked, and the login of today is used.
    pub is_alone: bool,
    pub wrapper: Option<Wrapper>,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// There is nothing more to do.
    Done,
    /// The daemon could not be asked; the next attempt may succeed.
    Later,
}

impl<'a> Login<'a> {
    pub fn new(home: &'a Home, state: &'a State, daemon: Daemon<'a>) -> Result<Self> {
        let local = store::read(&home.auth_file)?;
        Ok(Self {
            home,
            state,
            daemon,
            local,
            turned_down: None,
            declined: false,
            in_step: false,
            is_alone: false,
            wrapper: None,
        })
    }

    pub fn read(&mut self) -> Result<()> {
        self.local = store::read(&self.home.auth_file)?;
        Ok(())
    }

    pub fn is_turned_down(&self) -> bool {
        self.turned_down.as_deref() == Some(&self.local.digest)
    }

    /// Asks the daemon about the present login. An invalid or refused one does not count: the request is the same as
    /// without a login.
    pub async fn ask(&mut self) -> std::result::Result<Answer, Trouble> {
        if self.local.fault.is_some() {
            self.turned_down = Some(self.local.digest.clone());
        }
        let (digest, date) = if self.is_turned_down() {
            (ZERO_DIGEST, ZERO_DATE)
        } else {
            (self.local.digest.as_str(), self.local.last_refresh.as_str())
        };
        let answer = self.daemon.retrieve(digest, date).await?;
        self.wrapper = Some(answer.wrapper.clone());
        Ok(answer)
    }

    /// Fails if codex must not be started.
    pub async fn synchronise(&mut self) -> Result<()> {
        for _ in 0..SYNC_ATTEMPTS {
            self.read()?;
            let answer = match self.ask().await {
                Ok(answer) => answer,
                Err(trouble) if matches!(trouble.outcome, Outcome::Away | Outcome::Declined) => {
                    return self.go_on_alone(&trouble.reason);
                }
                Err(trouble) => return Err(refusal(&trouble)),
            };
            match answer.status {
                SyncStatus::Valid => {
                    self.remember();
                    return Ok(());
                }
                SyncStatus::Missing if self.is_turned_down() => {
                    self.warn_of_no_login();
                    return Ok(());
                }
                SyncStatus::Missing => return self.push().await.map(|_| ()),
                SyncStatus::Outdated if self.gives_way() => match self.take(&answer, false).await? {
                    Replaced::Done => {
                        self.declined = false;
                        self.remember();
                        return Ok(());
                    }
                    Replaced::Changed => {}
                    Replaced::Unusable(reason) => return self.go_on_alone(reason),
                },
                SyncStatus::Outdated | SyncStatus::UploadRequired => {
                    self.push().await?;
                    if !self.is_turned_down() {
                        return Ok(());
                    }
                    // Turned down: take what is canonical.
                }
                other => return self.go_on_alone(&format!("its answer '{other}' is unexpected")),
            }
        }
        say(format_args!(
            "auth.json changes faster than it can be compared; continuing with the present login (attempt {SYNC_ATTEMPTS})"
        ));
        Ok(())
    }

    fn warn_of_no_login(&self) {
        if let Some(fault) = self.local.fault.filter(|_| self.local.exists) {
            say(format_args!("{} {fault}", shown(&self.home.auth_file)));
        }
        say(
            "nobody has logged in yet: run 'cdx -- login' here, or 'codex-authd auth upload FILE' on the daemon's machine",
        );
    }

    /// Whether `auth.json` may be overwritten without offering it to the daemon: it is invalid, it was refused already,
    /// or `cdx` itself fetched or sent exactly this login.
    fn gives_way(&self) -> bool {
        self.is_turned_down() || self.state.recall().is_some_and(|last| last.digest == self.local.digest)
    }

    /// Replaces the local login by that of the answer.
    async fn take(&mut self, answer: &Answer, is_accepted: bool) -> Result<Replaced> {
        let Some(text) = &answer.text else {
            return Ok(Replaced::Unusable("the daemon sent no complete login"));
        };
        if let Some(fault) = self.local.fault.filter(|_| self.local.exists && !is_accepted) {
            say(format_args!("{} {fault}; the fleet's login replaces it", shown(&self.home.auth_file)));
        }
        let replacement = Replacement { text, digest: &answer.digest, is_accepted };
        let replaced = store::replace(self.home, self.state, &self.local, &replacement).await?;
        if replaced == Replaced::Done {
            self.read()?;
        }
        Ok(replaced)
    }

    /// Sends the local login to the daemon, and accepts the login in the answer.
    pub async fn push(&mut self) -> Result<Pushed> {
        for _ in 0..PUSH_ATTEMPTS {
            let file = shown(&self.home.auth_file);
            let Some(text) = self.local.text.clone().filter(|_| self.local.fault.is_none()) else {
                let fault = self.local.fault.map(|fault| fault.to_string()).unwrap_or_default();
                say(format_args!("{file} {fault}: it is not sent to the daemon, and not changed"));
                return Ok(Pushed::Done);
            };
            let answer = match self.daemon.store(&text).await {
                Ok(answer) => answer,
                Err(trouble) => return self.not_pushed(&trouble),
            };
            let is_accepted = matches!(answer.status, SyncStatus::Updated | SyncStatus::Unchanged);
            if !is_accepted && answer.status != SyncStatus::Outdated {
                say(format_args!("the daemon did not accept the login: {}", answer.status));
                return Ok(Pushed::Done);
            }
            if answer.text.is_none() || answer.digest == self.local.digest {
                // Nothing to write back.
                if is_accepted {
                    self.remember();
                }
                return Ok(Pushed::Done);
            }
            match self.take(&answer, is_accepted).await? {
                Replaced::Done => {
                    self.remember();
                    return Ok(Pushed::Done);
                }
                // Codex renewed it again: send the new one.
                Replaced::Changed => self.read()?,
                Replaced::Unusable(reason) => {
                    say(format_args!("the daemon's answer is not usable ({reason}); auth.json was not changed"));
                    return Ok(Pushed::Later);
                }
            }
        }
        say(format_args!(
            "auth.json changes faster than it can be sent (attempt {PUSH_ATTEMPTS}); the next cdx does it"
        ));
        Ok(Pushed::Later)
    }

    fn not_pushed(&mut self, trouble: &Trouble) -> Result<Pushed> {
        match trouble.outcome {
            Outcome::Away => {
                self.is_alone = true;
                say(format_args!(
                    "the renewed login was not sent to the daemon yet ({}); the next cdx does it",
                    trouble.reason
                ));
                Ok(Pushed::Later)
            }
            Outcome::Declined => {
                self.declined = true;
                complain(format_args!("the login in {} is {}", shown(&self.home.auth_file), trouble.reason));
                // Of another account, or not usable for codex.
                if matches!(trouble.status, Some(409 | 422)) {
                    self.turned_down = Some(self.local.digest.clone());
                } else {
                    say("it is not changed");
                }
                Ok(Pushed::Done)
            }
            Outcome::Refused | Outcome::Untrusted => Err(refusal(trouble)),
        }
    }

    /// Without the daemon, a login that was synchronised within the last day is good enough.
    fn go_on_alone(&mut self, reason: &str) -> Result<()> {
        self.is_alone = true;
        let when = format!("when {} is back", self.daemon_address());
        if !self.local.exists || self.local.text.is_none() && self.local.fault == Some(crate::document::Fault::Empty) {
            return Err(failure(69, format!("{reason}, and there is no login here yet; try again {when}")));
        }
        let Some(last) = self.state.recall() else {
            return Err(failure(
                69,
                format!("{reason}, and the login here was never synchronised with it; try again {when}"),
            ));
        };
        let age = platform::now() - last.moment;
        if !(-SLACK..=GRACE).contains(&age) {
            return Err(failure(
                69,
                format!("{reason}, and the login here is more than a day old; try 'cdx --doctor', or again {when}"),
            ));
        }
        let minutes = age.max(0) / 60;
        say(format_args!("{reason}; continuing with the login of {} h {} min ago", minutes / 60, minutes % 60));
        Ok(())
    }

    pub fn daemon_address(&self) -> String {
        clean(self.daemon.base_url(), 300)
    }

    /// Records that the login is synchronised now.
    fn remember(&mut self) {
        self.in_step = true;
        if self.state.remember(&self.local.digest).is_err() {
            say(format_args!("cannot write in {}: cdx will not work without the daemon", shown(&self.state.directory)));
        }
    }

    /// On a terminal, once a launch.
    pub fn notice_update(&self) {
        use std::io::IsTerminal as _;
        let newer =
            self.wrapper.as_ref().and_then(|wrapper| wrapper.version.as_deref()).filter(|version| *version != VERSION);
        if let Some(version) = newer.filter(|version| *version != self.daemon.version())
            && std::io::stderr().is_terminal()
        {
            say(format_args!("cdx {version} is available: 'cdx --update' installs it"));
        }
    }
}

/// Prints why this host cannot go on.
pub fn refusal(trouble: &Trouble) -> crate::messages::Failure {
    let Trouble { reason, remedy, .. } = trouble;
    if trouble.outcome == Outcome::Refused {
        complain(format_args!("the daemon refuses this host ({reason}); {remedy}"));
        return reported(77);
    }
    complain(format_args!("{reason}; {remedy}: stopping"));
    reported(76)
}
