//! Sign-in through the identity provider: what the browser keeps meanwhile, and which user the provider's answer names.
//!
//! A sign-in needs data when the browser comes back: state, nonce, verifier, target page. It is sealed in a cookie of
//! the browser. So any node can finish what another one began, and nothing is stored for sign-ins that never come back.
//! A sign-in is finished once: this node remembers the ids of those that came back, and the records take one session of
//! each.

use std::net::IpAddr;
use std::sync::Arc;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::hot::throttle::Failing;
use crate::model::digest::Digest;
use crate::records::SignInMethod;
use crate::seal::{Place, Sealed};
use crate::service::people::sessions::{Beginning, NewSession};
use crate::service::{Initiator, People, Result, ServiceError};
pub use crate::upstream::oidc::ProviderAnswer;
use crate::upstream::oidc::{Flow, Identity, Provider, SignInRefusal};

/// How long the provider's pages may take.
pub const SIGN_IN_TIMEOUT: Duration = Duration::minutes(10);
/// Longer cookies are refused: ours are a few hundred bytes.
const MAX_COOKIE_BYTES: usize = 3000;
const MAX_FINISHED: u64 = 100_000;

pub struct SignIns {
    pub provider: Arc<Provider>,
    /// The sign-ins that came back within the last ten minutes.
    finished: moka::sync::Cache<Uuid, ()>,
}

impl SignIns {
    pub fn new(provider: Arc<Provider>) -> Self {
        let ttl = std::time::Duration::from_secs(SIGN_IN_TIMEOUT.whole_seconds().unsigned_abs());
        Self { provider, finished: moka::sync::Cache::builder().max_capacity(MAX_FINISHED).time_to_live(ttl).build() }
    }
}

/// The data of a sign-in that the browser keeps, sealed.
#[derive(Serialize, Deserialize)]
struct PendingSignIn {
    #[serde(with = "time::serde::timestamp")]
    until: OffsetDateTime,
    /// The page of the dashboard to go back to, with its origin; `None`: the token is answered as JSON.
    back_to: Option<String>,
    flow: Flow,
}

/// A sign-in that has begun.
pub struct Begun {
    /// Where to send the browser.
    pub location: String,
    /// The cookie that the browser keeps meanwhile, under [`cookie_tag`].
    pub cookie: String,
    pub tag: String,
}

pub struct Finished {
    pub session: NewSession,
    pub back_to: Option<String>,
}

/// Why a sign-in was refused, and whether the answer goes to a page or to a program.
pub struct NotFinished {
    pub error: ServiceError,
    pub is_page: bool,
}

/// Why an answer belongs to no open sign-in.
#[derive(Clone, Copy)]
enum Unopened {
    /// The state is missing, or this browser did not begin it.
    Foreign,
    Expired,
}

/// Tells apart the cookies of several sign-ins of one browser. The state itself appears in URLs; this tag does not
/// reveal it.
pub fn cookie_tag(state: &str) -> String {
    let mut tag = Digest::of(state.as_bytes()).to_string();
    tag.truncate(16);
    tag
}

fn place(id: Uuid) -> Place {
    Place::new("sign_ins", "kept", id)
}

/// Logs the full reason of a refusal; the audit log has it as one word.
fn tell(refusal: SignInRefusal) {
    log::info!(event = "oidc_refused", reason = refusal.as_str(); "a sign-in was refused: {refusal}");
}

impl People {
    pub fn has_provider(&self) -> bool {
        self.provider.is_some()
    }

    /// Reads the provider's keys again, if there is a provider.
    pub async fn look_after_provider(&self) {
        if let Some(sign_ins) = &self.provider {
            sign_ins.provider.look_after_keys().await;
        }
    }

    /// Whether the browser comes back over TLS; if so, cookies are for TLS only.
    pub fn comes_back_over_tls(&self) -> bool {
        self.provider.as_ref().is_none_or(|sign_ins| sign_ins.provider.redirect_uri().starts_with("https:"))
    }

    pub async fn begin_sign_in(&self, back_to: Option<String>, from: IpAddr) -> Result<Begun> {
        let sign_ins = self.provider.as_ref().ok_or(ServiceError::NotFound("Provider"))?;
        self.check_blocked(&[Failing::SignIn(from)], self.core.platform.now())?;
        let (location, flow) = match sign_ins.provider.begin().await {
            Ok(begun) => begun,
            // Not noted in the audit log: the sign-in has not begun. The daemon's log has the cause.
            Err(SignInRefusal::Unavailable) => return Err(ServiceError::ProviderUnavailable),
            Err(refusal) => {
                // The caller is not at fault, so this does not count as a failure.
                tell(refusal);
                self.refuse_sign_in(None, 403, refusal.as_str(), from).await;
                return Err(ServiceError::OidcRefused);
            }
        };
        let id = Uuid::new_v4();
        let tag = cookie_tag(&flow.state);
        let kept = PendingSignIn { until: self.core.platform.now() + SIGN_IN_TIMEOUT, back_to, flow };
        let plain = Zeroizing::new(serde_json::to_vec(&kept).map_err(ServiceError::internal)?);
        let sealed = self.core.ring.load().seal(&place(id), &plain, &*self.core.platform)?;
        let cookie = format!("{}.{}", id.simple(), BASE64_URL_SAFE_NO_PAD.encode(sealed.as_bytes()));
        Ok(Begun { location: location.to_string(), cookie, tag })
    }

    /// `cookie`: the browser's cookie for the state of this answer.
    pub async fn finish_sign_in(
        &self,
        cookie: Option<&str>,
        answer: &ProviderAnswer,
        from: IpAddr,
        agent: Option<&str>,
    ) -> std::result::Result<Finished, NotFinished> {
        let kept = self.open_kept(cookie, answer);
        let is_page = kept.as_ref().is_ok_and(|(_, kept)| kept.back_to.is_some());
        // A blocked address is no longer noted either.
        if let Err(error) = self.check_blocked(&[Failing::SignIn(from)], self.core.platform.now()) {
            return Err(NotFinished { error, is_page });
        }
        let finished = match kept {
            Ok((id, kept)) => self.finish_kept(id, kept, answer, from, agent).await,
            Err(Unopened::Foreign) => Err(self.foreign_state(from)),
            Err(Unopened::Expired) => Err(self.not_finished("state_expired", from).await),
        };
        finished.map_err(|error| NotFinished { error, is_page })
    }

    async fn not_finished(&self, reason: &str, from: IpAddr) -> ServiceError {
        self.count_failure(&[Failing::SignIn(from)], from).await;
        self.refuse_sign_in(None, 403, reason, from).await;
        ServiceError::OidcRefused
    }

    /// Does not count as a failed sign-in: this browser began none. Any page can make a browser send such a request,
    /// and must not be able to block the address of a whole office. It is counted per minute in the audit log, because
    /// nothing else bounds it.
    fn foreign_state(&self, from: IpAddr) -> ServiceError {
        self.core.security_events.event("sign_in.foreign_state", "", from, false, self.core.platform.now());
        ServiceError::OidcRefused
    }

    fn open_kept(
        &self,
        cookie: Option<&str>,
        answer: &ProviderAnswer,
    ) -> std::result::Result<(Uuid, PendingSignIn), Unopened> {
        let foreign = Unopened::Foreign;
        if answer.state.is_none() {
            return Err(foreign);
        }
        let cookie = cookie.filter(|cookie| cookie.len() <= MAX_COOKIE_BYTES).ok_or(foreign)?;
        let (id, sealed) = cookie.split_once('.').ok_or(foreign)?;
        let id = Uuid::parse_str(id).map_err(|_| foreign)?;
        let sealed = Sealed::from_bytes(BASE64_URL_SAFE_NO_PAD.decode(sealed).map_err(|_| foreign)?);
        let plain = self.core.ring.load().open(&place(id), &sealed).map_err(|_| foreign)?;
        let kept: PendingSignIn = serde_json::from_slice(&plain).map_err(|_| foreign)?;
        if self.core.platform.now() >= kept.until {
            return Err(Unopened::Expired);
        }
        Ok((id, kept))
    }

    async fn finish_kept(
        &self,
        id: Uuid,
        kept: PendingSignIn,
        answer: &ProviderAnswer,
        from: IpAddr,
        agent: Option<&str>,
    ) -> Result<Finished> {
        let PendingSignIn { back_to, flow, .. } = kept;
        let sign_ins = self.provider.as_ref().ok_or(ServiceError::NotFound("Provider"))?;
        // Comes first, so that a sign-in is never tried twice, however it ends. (`or_insert` would check and write in
        // two steps: two callers at once would both be fresh.)
        if !sign_ins.finished.entry(id).or_insert_with(|| ()).is_fresh() {
            return Err(self.not_finished("state_replayed", from).await);
        }
        let identity = match sign_ins.provider.finish(&flow, answer).await {
            Ok(identity) => identity,
            Err(SignInRefusal::Unavailable) => {
                self.refuse_sign_in(None, 503, SignInRefusal::Unavailable.as_str(), from).await;
                return Err(ServiceError::ProviderUnavailable);
            }
            Err(SignInRefusal::StateMissing | SignInRefusal::StateForeign) => return Err(self.foreign_state(from)),
            Err(refusal) => {
                tell(refusal);
                return Err(self.not_finished(refusal.as_str(), from).await);
            }
        };
        let Identity { issuer, subject, email } = identity;
        let Some(linked) = self.core.records.identity_fetch(&issuer, &subject).await? else {
            let note = Initiator::anybody(from).note(self.core.platform.now(), "session.begin").refused(403);
            let note = note.with("reason", "not_linked").with("issuer", &issuer).with("subject", &subject);
            let note = email.iter().fold(note, |note, email| note.with("email", email));
            self.audit.note_refused(note).await;
            return Err(ServiceError::NotLinked { issuer, subject });
        };
        let user = match self.known_user(linked.user) {
            Some(user) => Some(user),
            // The user may have been added a moment ago.
            None => self.core.records.user_list().await?.into_iter().find(|user| user.id == linked.user).map(Arc::new),
        };
        let Some(user) = user.filter(|user| !user.disabled) else {
            return Err(self.not_finished("disabled", from).await);
        };
        let method = SignInMethod::Oidc { issuer, subject };
        let beginning = Beginning { id, method, browser: back_to.is_some(), from: Some(from), agent };
        match self.begin_session(&user, beginning).await {
            Ok(Some(session)) => Ok(Finished { session, back_to }),
            Ok(None) => Err(self.not_finished("state_replayed", from).await),
            Err(ServiceError::SignInRefused) => Err(self.not_finished("disabled", from).await),
            Err(error) => Err(error),
        }
    }
}
