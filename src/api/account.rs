//! `/auth/session` and `/auth/me`: sign-in with a password, and the user's own data. On both listeners.

use std::net::IpAddr;

use poem::http::header::USER_AGENT;
use poem::{FromRequest, Request, RequestBody};
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Tag;
use super::area::Area;
use super::closed_set::closed_set;
use super::errors::{Answer, Failure, ok};
use super::guards::{Caller, SignedInMember};
use super::json::{JsonBody, OkStatus, written};
use super::pages::{self, Page, default_limit};
use super::types::hosts::{AdminHost, Registration, Removed};
use crate::model::host::HostId;
use crate::model::people::Role;
use crate::records::{Session, SignInMethod, User};
use crate::service::core::replays::Repeatable;
use crate::service::people::sessions::NewSession;
use crate::service::{Core, People, ServiceError};

pub struct AccountApi;

#[OpenApi(tag = "Tag::Account", prefix_path = "/auth")]
impl AccountApi {
    /// Sign in with a password
    ///
    /// Answers with an access token, which is shown here only. Whatever is wrong, the refusal is the same. Failures count
    /// against the address and the account.
    #[oai(path = "/session", method = "post", operation_id = "signIn")]
    async fn sign_in(
        &self,
        core: Area<'_, Core>,
        people: Area<'_, People>,
        client: SignInClient,
        body: JsonBody<Credentials>,
    ) -> Result<JsonBody<TokenAnswer>, Failure> {
        let Credentials { email, password } = body.0;
        let password = zeroize::Zeroizing::new(password);
        let core = core.share();
        let people = people.share();
        let session =
            to_its_end(
                async move { people.sign_in(&email, &password, false, client.from, client.agent.as_deref()).await },
            );
        Ok(JsonBody(TokenAnswer::new(session.await?, core.now())))
    }

    /// Sign out
    ///
    /// The access token is good for nothing from here on, on every node within a second.
    #[oai(path = "/session", method = "delete", operation_id = "signOut")]
    async fn sign_out(&self, people: Area<'_, People>, member: SignedInMember) -> Answer<SessionEnded> {
        let ended = people.end_session(member.signed_in.session.session.id, None, &member.by).await?;
        ok(SessionEnded { ended: ended.id })
    }

    /// Who is signed in
    ///
    /// The user and the session of the access token.
    #[oai(path = "/me", method = "get", operation_id = "getMe")]
    async fn me(&self, people: Area<'_, People>, member: SignedInMember) -> Answer<Me> {
        let session = SessionBody::new(&people, member.signed_in.session.session.clone(), true);
        ok(Me { user: UserBody::from(&*member.signed_in.user), session })
    }

    /// Give oneself another password
    ///
    /// All of one's sessions are over then, this one too. A wrong `current` counts as a refused sign-in.
    #[oai(path = "/me/password", method = "post", operation_id = "setOwnPassword")]
    async fn password(
        &self,
        people: Area<'_, People>,
        member: SignedInMember,
        client: SignInClient,
        body: JsonBody<OwnPasswordRequest>,
    ) -> Answer<OwnPasswordSet> {
        let OwnPasswordRequest { current, new } = body.0;
        let (current, new) = (zeroize::Zeroizing::new(current), zeroize::Zeroizing::new(new));
        let people = people.share();
        let setting =
            async move { people.set_own_password(&member.signed_in, &current, &new, client.from, &member.by).await };
        ok(OwnPasswordSet { user: UserBody::from(&to_its_end(setting).await?) })
    }

    /// One's own sessions, the newest first
    ///
    /// Those of the last thirty days.
    #[oai(path = "/me/sessions", method = "get", operation_id = "listOwnSessions")]
    async fn sessions(
        &self,
        people: Area<'_, People>,
        member: SignedInMember,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<SessionList> {
        ok(SessionList::of(&people, Some(&member.signed_in.user), &cursor, &limit).await?)
    }

    /// End one of one's own sessions
    ///
    /// Its token is good for nothing from here on.
    #[oai(path = "/me/sessions/:id", method = "delete", operation_id = "endOwnSession")]
    async fn end_session(
        &self,
        people: Area<'_, People>,
        member: SignedInMember,
        id: Path<Uuid>,
    ) -> Answer<SessionEnded> {
        let ended = people.end_session(id.0, Some(member.signed_in.user.id), &member.by).await?;
        ok(SessionEnded { ended: ended.id })
    }

    /// One's own hosts
    ///
    /// Those that the user installed.
    #[oai(path = "/me/hosts", method = "get", operation_id = "listOwnHosts")]
    async fn hosts(
        &self,
        people: Area<'_, People>,
        member: SignedInMember,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<OwnHosts> {
        let hosts = people.own_hosts(&member.signed_in).await?;
        let Page { entries, next } = Page::cut(hosts, &cursor, &limit, |view| view.host.id.to_string())?;
        let max_hosts = people.max_hosts(&member.signed_in);
        ok(OwnHosts { hosts: entries.into_iter().map(AdminHost::from).collect(), max_hosts, next })
    }

    /// Install a host of one's own
    ///
    /// Answers with a command for that machine, good once. A name that is a host of one's own already gets a new key; one
    /// that is somebody else's is refused, and so is one more than `max_hosts`.
    #[oai(path = "/me/hosts", method = "post", operation_id = "registerOwnHost")]
    async fn register(
        &self,
        core: Area<'_, Core>,
        people: Area<'_, People>,
        member: SignedInMember,
        /// A repeated request with the same key is given the first answer, for a day, and is not done again.
        #[oai(name = "Idempotency-Key")]
        key: Header<Option<String>>,
        body: JsonBody<OwnHostRequest>,
    ) -> Answer<Registration> {
        let (asked, by) = (written(&body.0)?, member.by.clone());
        let request = Repeatable { key: key.0.as_deref(), by: &by, operation: "registerOwnHost", body: &asked };
        let people = people.share();
        let register = async move {
            Ok(Registration::from(people.register_own(&body.0.fqdn, &member.signed_in, &member.by).await?))
        };
        ok(core.share().once(request, register).await?)
    }

    /// Remove a host of one's own
    ///
    /// Its key and its pending installers are refused from here on.
    #[oai(path = "/me/hosts/:id", method = "delete", operation_id = "removeOwnHost")]
    async fn remove(&self, people: Area<'_, People>, member: SignedInMember, id: Path<u64>) -> Answer<Removed> {
        let host = people.remove_own(HostId(id.0), &member.signed_in, &member.by).await?;
        ok(Removed { deleted: host.fqdn.into() })
    }
}

/// Finishes `work`, which checks a password, even if the caller disconnects, so that a failure is always counted.
pub async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, ServiceError> {
    tokio::spawn(work).await.map_err(ServiceError::internal)?
}

/// The address of a sign-in and its user agent.
pub struct SignInClient {
    pub from: IpAddr,
    pub agent: Option<String>,
}

impl SignInClient {
    pub fn of(request: &Request) -> Result<Self, Failure> {
        let agent = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok()).map(str::to_owned);
        Ok(Self { from: Caller::of(request)?.0, agent })
    }
}

impl<'a> FromRequest<'a> for SignInClient {
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        Ok(Self::of(request)?)
    }
}

#[derive(Object, Serialize, Deserialize)]
#[oai(example)]
pub struct Credentials {
    pub email: String,
    pub password: String,
}

impl poem_openapi::types::Example for Credentials {
    fn example() -> Self {
        Self { email: "ada@example.com".into(), password: "four words that differ".into() }
    }
}

/// An access token, in the envelope of every answer, and beside it where OAuth 2.0 clients look (RFC 6749, 5.1).
#[derive(Object, Serialize, Deserialize)]
pub struct TokenAnswer {
    pub status: OkStatus,
    pub data: TokenBody,
    pub access_token: String,
    pub token_type: TokenType,
    pub expires_in: i64,
}

/// An access token; shown here only. It is sent as `Authorization: Bearer`.
#[derive(Object, Serialize, Deserialize)]
pub struct TokenBody {
    /// `cxa_` and 43 characters.
    pub access_token: String,
    pub token_type: TokenType,
    /// Seconds until it is over, however much it is used.
    pub expires_in: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    pub user: UserBody,
}

impl TokenAnswer {
    pub fn new(new: NewSession, now: OffsetDateTime) -> Self {
        let NewSession { token, session, user } = new;
        let token_type = TokenType::Bearer;
        let expires_in = (session.expires_at - now).whole_seconds();
        let data = TokenBody {
            access_token: token.expose().into(),
            token_type,
            expires_in,
            expires_at: session.expires_at,
            user: UserBody::from(&*user),
        };
        Self { status: OkStatus::Ok, access_token: token.expose().into(), token_type, expires_in, data }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Me {
    pub user: UserBody,
    pub session: SessionBody,
}

closed_set! {
    /// `viewer`: reads everything but secrets. `member`: sees and installs hosts of their own.
    pub enum UserRole { Member = "member", Viewer = "viewer", Admin = "admin" } of Role
}

impl From<UserRole> for Role {
    fn from(role: UserRole) -> Self {
        match role {
            UserRole::Member => Self::Member,
            UserRole::Viewer => Self::Viewer,
            UserRole::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct UserBody {
    pub id: u64,
    pub email: String,
    pub role: UserRole,
    pub disabled: bool,
    /// Whether they can sign in with a password.
    pub has_password: bool,
    /// How many hosts of their own they may have; null: as many as the configuration says.
    pub max_hosts: Option<u32>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

impl From<&User> for UserBody {
    fn from(user: &User) -> Self {
        Self {
            id: user.id.0,
            email: user.email.to_string(),
            role: user.role.into(),
            disabled: user.disabled,
            has_password: user.password.is_some(),
            max_hosts: user.max_hosts,
            created_at: user.created_at,
            updated_at: user.updated_at,
        }
    }
}

closed_set! {
    pub enum SignedInBy { Password = "password", Oidc = "oidc" }
}

closed_set! {
    pub enum TokenType { Bearer = "bearer" }
}

/// A session, without its token.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct SessionBody {
    pub id: Uuid,
    pub user_id: u64,
    /// The user's e-mail address; null: they are not known here.
    pub user: Option<String>,
    pub signed_in_by: SignedInBy,
    /// Of a sign-in through the provider.
    pub issuer: Option<String>,
    /// Of a sign-in through the provider.
    pub subject: Option<String>,
    /// Whether a browser holds it, as a cookie of the dashboard.
    pub browser: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// To the minute.
    #[serde(with = "time::serde::rfc3339")]
    pub last_used_at: OffsetDateTime,
    /// The address of the sign-in.
    pub from: Option<String>,
    /// What the client called itself.
    pub agent: Option<String>,
    /// Whether its token is good now.
    pub in_force: bool,
}

impl SessionBody {
    pub fn new(people: &People, session: Session, in_force: bool) -> Self {
        let (signed_in_by, issuer, subject) = match session.method {
            SignInMethod::Password => (SignedInBy::Password, None, None),
            SignInMethod::Oidc { issuer, subject } => (SignedInBy::Oidc, Some(issuer), Some(subject)),
        };
        Self {
            id: session.id,
            user_id: session.user.0,
            user: people.known_user(session.user).map(|user| user.email.to_string()),
            signed_in_by,
            issuer,
            subject,
            browser: session.browser,
            started_at: session.started_at,
            expires_at: session.expires_at,
            last_used_at: session.last_used_at,
            from: session.from.map(|from| from.to_string()),
            agent: session.agent,
            in_force,
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct SessionList {
    pub sessions: Vec<SessionBody>,
    pub next: Option<String>,
}

pages::listed!(SessionList: sessions);

impl SessionList {
    pub async fn of(
        people: &People,
        user: Option<&User>,
        cursor: &Query<Option<String>>,
        limit: &Query<u32>,
    ) -> Result<Self, ServiceError> {
        let sessions = people.sessions(user.map(|user| user.id)).await?;
        let Page { entries, next } = Page::cut(sessions, cursor, limit, |(session, _)| session.id.to_string())?;
        let sessions = entries.into_iter().map(|(session, in_force)| SessionBody::new(people, session, in_force));
        Ok(Self { sessions: sessions.collect(), next })
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct SessionEnded {
    /// The id of the session.
    pub ended: Uuid,
}

#[derive(Object, Serialize, Deserialize)]
pub struct OwnPasswordRequest {
    /// The present one.
    pub current: String,
    /// Eight characters or more, not easily guessed.
    pub new: String,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct OwnPasswordSet {
    pub user: UserBody,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct OwnHosts {
    pub hosts: Vec<AdminHost>,
    /// How many there may be.
    pub max_hosts: u32,
    pub next: Option<String>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(example)]
pub struct OwnHostRequest {
    /// The machine's name.
    pub fqdn: String,
}

impl poem_openapi::types::Example for OwnHostRequest {
    fn example() -> Self {
        Self { fqdn: "laptop.example.com".into() }
    }
}
