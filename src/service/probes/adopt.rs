//! Makes a login that Codex refreshed in a probe the canonical one.
//!
//! The refresh token of the probed version is spent from the moment upstream answered. So the new login counts,
//! whatever the finding of the probe and the clocks. While the probed version is canonical, the new login replaces it,
//! with a new date if necessary. If the records do not take it yet, it is also kept in hot state, so that the next
//! start finds it even after a crash. If a host or an admin was quicker, the newer of the two logins wins, as always.
//! Tokens of another account or user, or of none, are never taken.

use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::hot::Refreshed;
use crate::model::auth_document::{Allowed, AuthDocument, RenewalVerdict, decide, refreshed};
use crate::records::{CanonicalSource, ReplaceCondition};
use crate::seal::Place;
use crate::service::core::canonical::Canonical;
use crate::service::probes::{WRITE_RETRY_INTERVAL, stopped_for_long};
use crate::service::{Initiator, Probes, Result, ServiceError};

/// How often an adoption that lost a race is retried.
const MAX_ADOPT_ATTEMPTS: usize = 16;

pub enum Adopted {
    /// The login is the canonical version of this number.
    Version(u64),
    /// A later login is canonical by now.
    Overtaken,
    /// The login is refused, and why.
    Refused(String),
}

impl Probes {
    /// `from` is the probed version, or the one that this probe adopted before.
    async fn adopt(&self, from: &Canonical, login: &str) -> Result<Adopted> {
        let text = refreshed(&from.text, login)?;
        for _ in 0..MAX_ADOPT_ATTEMPTS {
            let Some(present) = self.core.canonical() else { return Ok(Adopted::Overtaken) };
            let now = self.core.platform.now();
            let document = AuthDocument::parse(&text, now, &self.core.policy.load().document_rules)?;
            if !document.login().has_account() {
                return self.refuse_refreshed(from, &document, "no account").await;
            }
            if !document.login().renews(&from.login) {
                return self.refuse_refreshed(from, &document, "another account").await;
            }
            let even_if_older = present.summary.version == from.summary.version;
            let allowed = Allowed { even_if_older, ..Allowed::default() };
            let document = match decide(&document, Some(present.present()), allowed, now)? {
                RenewalVerdict::Replaces(document) => document,
                RenewalVerdict::Unchanged | RenewalVerdict::Outdated | RenewalVerdict::OtherAccount => {
                    return Ok(Adopted::Overtaken);
                }
            };
            let condition = ReplaceCondition::Version(Some(present.summary.version));
            let note = Initiator::daemon().note(now, "auth.refresh").with("of", from.summary.version);
            let source = CanonicalSource::Runner { of: from.summary.version };
            if let Some(version) = self.login.make_canonical(&document, source, condition, note).await? {
                self.core.metrics.adopted();
                return Ok(Adopted::Version(version));
            }
        }
        Err(ServiceError::Unavailable { cause: "the canonical auth changed under every attempt to replace it".into() })
    }

    async fn refuse_refreshed(&self, from: &Canonical, document: &AuthDocument, outcome: &str) -> Result<Adopted> {
        let why = format!(
            "upstream gave Codex tokens of {outcome}, which are not taken ({} -> {}); the refresh token of the canonical \
             login is spent: sign in anew and upload that login",
            from.login,
            document.login()
        );
        let note = Initiator::daemon().note(self.core.platform.now(), "auth.refresh").on(from.summary.version);
        let note = note.with("present", &from.login).with("new", document.login());
        self.audit.note_alone(note.refused(outcome).alarm()).await?;
        Ok(Adopted::Refused(why))
    }

    /// Retries until the records take the login: there is no other copy. `None`: it cannot be stored, or the daemon has
    /// to stop.
    pub(in crate::service) async fn adopt_at_last(
        &self,
        from: &Canonical,
        login: &Zeroizing<String>,
        stopping: &watch::Receiver<bool>,
    ) -> Option<Adopted> {
        let mut kept = None;
        let stop = stopped_for_long(stopping.clone());
        tokio::pin!(stop);
        loop {
            let error = match self.adopt(from, login).await {
                Ok(adopted) => {
                    if kept.is_some()
                        && let Err(error) = self.core.hot.forget_refreshed()
                    {
                        // The next start takes it up again, and finds it overtaken.
                        log::debug!(event = "login_kept", cause:% = error; "a login is stored, but hot state still keeps it as waiting");
                    }
                    return Some(adopted);
                }
                Err(error) => error,
            };
            if !may_pass(&error) {
                log::error!(event = "login_refused", cause:% = error; "Codex wrote a login in the probe that cannot be stored: {error}");
                return None;
            }
            if kept.is_none() {
                log::warn!(event = "login_waits", cause:% = error; "Codex refreshed the login in the probe, and the store does not take it yet: {error}");
                kept = Some(self.keep_refreshed(from, login).await);
            }
            tokio::select! {
                () = tokio::time::sleep(WRITE_RETRY_INTERVAL) => {}
                () = &mut stop => {
                    match kept {
                        Some(Ok(())) => log::warn!(event = "login_waits", cause:% = error; "Codex refreshed the login in the probe: it is kept, and stored at the next start"),
                        _ => log::error!(event = "login_lost", cause:% = error; "Codex refreshed the login in the probe, and it could neither be stored nor kept before the daemon stopped: sign in anew and upload that login"),
                    }
                    return None;
                }
            }
        }
    }

    /// Keeps the login in hot state while the records do not take it.
    async fn keep_refreshed(&self, from: &Canonical, login: &str) -> Result<()> {
        let of = from.summary.version;
        let login = self.core.ring.load().seal(&refreshed_place(of), login.as_bytes(), &*self.core.platform)?;
        Ok(self.core.hot.keep_refreshed(&Refreshed { of, login }).await?)
    }

    /// Adopts a login that has waited in hot state since before this start.
    pub(in crate::service) async fn take_up_refreshed(&self) -> Result<()> {
        let Some(refreshed) = self.core.hot.refreshed()? else { return Ok(()) };
        match self.adopt_kept(&refreshed).await {
            Ok(Adopted::Version(version)) => {
                log::info!(event = "login_adopted", version; "a login that Codex refreshed before this start is the canonical one now, version {version}");
            }
            Ok(Adopted::Overtaken | Adopted::Refused(_)) => {}
            Err(error) if may_pass(&error) => return Err(error),
            Err(error) => {
                log::error!(event = "login_lost", cause:% = error; "a login that Codex refreshed before this start cannot be stored: sign in anew and upload that login");
            }
        }
        Ok(self.core.hot.forget_refreshed()?)
    }

    async fn adopt_kept(&self, Refreshed { of, login }: &Refreshed) -> Result<Adopted> {
        let from = match self.login.version(*of).await {
            // The canonical version is always kept, so this one was replaced long ago.
            Err(ServiceError::VersionNotKept(_)) => return Ok(Adopted::Overtaken),
            from => from?,
        };
        let login = self.core.ring.load().open(&refreshed_place(*of), login)?;
        self.adopt(&from, std::str::from_utf8(&login).map_err(ServiceError::internal)?).await
    }
}

/// Whether a retry may succeed.
fn may_pass(error: &ServiceError) -> bool {
    matches!(
        error,
        ServiceError::Unavailable { .. }
            | ServiceError::RecordsAway { .. }
            | ServiceError::StoreFailed { .. }
            | ServiceError::StandsStill { .. }
    )
}

fn refreshed_place(of: u64) -> Place {
    Place::new("hot", "refreshed", of)
}
