//! `/auth/users`, `/auth/sessions` and `/auth/identities`: admins manage users. On the admin listener only.

use poem_openapi::param::{Path, Query};
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Tag;
use super::account::{SessionEnded, SessionList, UserBody, UserRole};
use super::area::Area;
use super::errors::{Answer, ok};
use super::flags::Flag;
use super::guards::{Admin, Viewer};
use super::json::JsonBody;
use super::pages::{self, Page, default_limit};
use crate::model::people::UserId;
use crate::records::{ChangedUser, ExternalIdentity, User};
use crate::service::People;

pub struct UsersApi;

#[OpenApi(tag = "Tag::Users", prefix_path = "/auth")]
impl UsersApi {
    /// Users, by e-mail address
    ///
    /// Disabled ones too.
    #[oai(path = "/users", method = "get", operation_id = "listUsers")]
    async fn list(
        &self,
        people: Area<'_, People>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<UserList> {
        let Page { entries, next } = Page::cut(people.users().await?, &cursor, &limit, |user| user.id.to_string())?;
        ok(UserList { users: entries.iter().map(UserBody::from).collect(), next })
    }

    /// Make a user
    ///
    /// Without a password they sign in through the identity provider, once an identity is linked to them.
    #[oai(path = "/users", method = "post", operation_id = "addUser")]
    async fn add(&self, people: Area<'_, People>, admin: Admin, body: JsonBody<NewUser>) -> Answer<UserAnswer> {
        let NewUser { email, role, password } = body.0;
        let password = password.map(zeroize::Zeroizing::new);
        let password = password.as_ref().map(|password| password.as_str());
        answer(people.add_user(&email, role.into(), password, &admin.0).await?)
    }

    /// One user
    ///
    /// With role and limits.
    #[oai(path = "/users/:id", method = "get", operation_id = "getUser")]
    async fn show(&self, people: Area<'_, People>, _viewer: Viewer, id: Path<u64>) -> Answer<UserAnswer> {
        answer(people.user(UserId(id.0)).await?)
    }

    /// Give a user another role
    ///
    /// It counts for their sessions at once.
    #[oai(path = "/users/:id/role", method = "post", operation_id = "setUserRole")]
    async fn role(
        &self,
        people: Area<'_, People>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<RoleRequest>,
    ) -> Answer<UserAnswer> {
        answer(people.set_role(UserId(id.0), body.0.role.into(), &admin.0).await?)
    }

    /// Let a user in no more
    ///
    /// All of their sessions are over, on every node within a second, and stay so when they are let in again. Their own
    /// hosts are disabled with them, unless `keep_hosts`.
    #[oai(path = "/users/:id/disable", method = "post", operation_id = "disableUser")]
    async fn disable(
        &self,
        people: Area<'_, People>,
        admin: Admin,
        id: Path<u64>,
        /// Their own hosts stay as they are.
        keep_hosts: Query<Option<Flag>>,
    ) -> Answer<UserAnswer> {
        let keep_hosts = keep_hosts.0.is_some_and(Flag::is_set);
        answer_changed(people.disable_user(UserId(id.0), keep_hosts, &admin.0).await?)
    }

    /// Let a user in again
    ///
    /// Hosts that were disabled with them are enabled; those that an admin disabled stay disabled.
    #[oai(path = "/users/:id/enable", method = "post", operation_id = "enableUser")]
    async fn enable(&self, people: Area<'_, People>, admin: Admin, id: Path<u64>) -> Answer<UserAnswer> {
        answer_changed(people.enable_user(UserId(id.0), &admin.0).await?)
    }

    /// Give a user another password
    ///
    /// All of their sessions are over.
    #[oai(path = "/users/:id/password", method = "post", operation_id = "setUserPassword")]
    async fn password(
        &self,
        people: Area<'_, People>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<PasswordRequest>,
    ) -> Answer<UserAnswer> {
        let password = zeroize::Zeroizing::new(body.0.password);
        answer(people.set_password(UserId(id.0), &password, &admin.0).await?)
    }

    /// Say how many hosts of their own a user may have
    ///
    /// Fewer than they have takes none away.
    #[oai(path = "/users/:id/max-hosts", method = "post", operation_id = "setUserMaxHosts")]
    async fn max_hosts(
        &self,
        people: Area<'_, People>,
        admin: Admin,
        id: Path<u64>,
        body: JsonBody<MaxHostsRequest>,
    ) -> Answer<UserAnswer> {
        answer(people.set_max_hosts(UserId(id.0), body.0.max_hosts, &admin.0).await?)
    }

    /// A user's sessions, the newest first
    ///
    /// Those of the last thirty days.
    #[oai(path = "/users/:id/sessions", method = "get", operation_id = "listUserSessions")]
    async fn of_user(
        &self,
        people: Area<'_, People>,
        _viewer: Viewer,
        id: Path<u64>,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<SessionList> {
        let user = people.user(UserId(id.0)).await?;
        ok(SessionList::of(&people, Some(&user), &cursor, &limit).await?)
    }

    /// Everybody's sessions, the newest first
    ///
    /// Those of the last thirty days.
    #[oai(path = "/sessions", method = "get", operation_id = "listSessions")]
    async fn sessions(
        &self,
        people: Area<'_, People>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<SessionList> {
        ok(SessionList::of(&people, None, &cursor, &limit).await?)
    }

    /// End a session
    ///
    /// Its token is good for nothing from here on, on every node within a second.
    #[oai(path = "/sessions/:id/end", method = "post", operation_id = "endSession")]
    async fn end(&self, people: Area<'_, People>, admin: Admin, id: Path<Uuid>) -> Answer<SessionEnded> {
        ok(SessionEnded { ended: people.end_session(id.0, None, &admin.0).await?.id })
    }

    /// Identities of the provider that are linked to users
    ///
    /// By issuer and subject.
    #[oai(path = "/identities", method = "get", operation_id = "listIdentities")]
    async fn identities(
        &self,
        people: Area<'_, People>,
        _viewer: Viewer,
        cursor: Query<Option<String>>,
        /// At most this many entries.
        #[oai(default = "default_limit", validator(minimum(value = "1"), maximum(value = "1000")))]
        limit: Query<u32>,
    ) -> Answer<IdentityList> {
        let id = |identity: &ExternalIdentity| format!("{} {}", identity.issuer, identity.subject);
        let Page { entries, next } = Page::cut(people.identities().await?, &cursor, &limit, id)?;
        let identities = entries.into_iter().map(|identity| IdentityBody::new(&people, identity));
        ok(IdentityList { identities: identities.collect(), next })
    }

    /// Link an identity to a user
    ///
    /// Whoever the provider says is this subject signs in as that user. Linked to another user: 409.
    #[oai(path = "/identities", method = "post", operation_id = "linkIdentity")]
    async fn link(
        &self,
        people: Area<'_, People>,
        admin: Admin,
        body: JsonBody<LinkRequest>,
    ) -> Answer<IdentityAnswer> {
        let LinkRequest { issuer, subject, user, email } = body.0;
        let identity = people.link_identity(&issuer, &subject, &user, email.as_deref(), &admin.0).await?;
        ok(IdentityAnswer { identity: IdentityBody::new(&people, identity) })
    }

    /// Take the link between an identity and its user away
    ///
    /// All sessions of the user are over.
    #[oai(path = "/identities/unlink", method = "post", operation_id = "unlinkIdentity")]
    async fn unlink(
        &self,
        people: Area<'_, People>,
        admin: Admin,
        body: JsonBody<UnlinkRequest>,
    ) -> Answer<IdentityAnswer> {
        let identity = people.unlink_identity(&body.0.issuer, &body.0.subject, &admin.0).await?;
        ok(IdentityAnswer { identity: IdentityBody::new(&people, identity) })
    }
}

fn answer(user: User) -> Answer<UserAnswer> {
    ok(UserAnswer { user: UserBody::from(&user), hosts_changed: None })
}

fn answer_changed(changed: ChangedUser) -> Answer<UserAnswer> {
    let hosts_changed = Some(changed.host_count() as u64);
    ok(UserAnswer { user: UserBody::from(&changed.user), hosts_changed })
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct UserList {
    pub users: Vec<UserBody>,
    pub next: Option<String>,
}

pages::listed!(UserList: users, IdentityList: identities);

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct UserAnswer {
    pub user: UserBody,
    /// How many of their hosts were disabled, or enabled, with them; left out by every other change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts_changed: Option<u64>,
}

#[derive(Object, Serialize, Deserialize)]
#[oai(example)]
pub struct NewUser {
    pub email: String,
    pub role: UserRole,
    /// Eight characters or more, not easily guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

impl poem_openapi::types::Example for NewUser {
    fn example() -> Self {
        Self { email: "ada@example.com".into(), role: UserRole::Member, password: None }
    }
}

#[derive(Object, Serialize, Deserialize)]
pub struct RoleRequest {
    pub role: UserRole,
}

#[derive(Object, Serialize, Deserialize)]
pub struct PasswordRequest {
    /// Eight characters or more, not easily guessed.
    pub password: String,
}

#[derive(Object, Serialize, Deserialize)]
pub struct MaxHostsRequest {
    /// null: as many as the configuration says.
    pub max_hosts: Option<u32>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct IdentityList {
    pub identities: Vec<IdentityBody>,
    pub next: Option<String>,
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct IdentityAnswer {
    pub identity: IdentityBody,
}

/// Somebody at the provider, and the user they are here.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct IdentityBody {
    pub issuer: String,
    pub subject: String,
    pub user_id: u64,
    /// The user's e-mail address; null: they are not known here.
    pub user: Option<String>,
    /// What the provider said, or who linked it wrote; it decides nothing.
    pub email: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub linked_at: OffsetDateTime,
}

impl IdentityBody {
    fn new(people: &People, identity: ExternalIdentity) -> Self {
        let ExternalIdentity { issuer, subject, user, email, linked_at } = identity;
        let name = people.known_user(user).map(|user| user.email.to_string());
        Self { issuer, subject, user_id: user.0, user: name, email, linked_at }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(example)]
pub struct LinkRequest {
    /// As the provider names itself.
    pub issuer: String,
    /// Who it is there.
    pub subject: String,
    /// The user's e-mail address here.
    pub user: String,
    /// The address at the provider, for people to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

impl poem_openapi::types::Example for LinkRequest {
    fn example() -> Self {
        Self {
            issuer: "https://id.example.com".into(),
            subject: "248289761001".into(),
            user: "ada@example.com".into(),
            email: None,
        }
    }
}

#[derive(Debug, Object, Serialize, Deserialize)]
pub struct UnlinkRequest {
    pub issuer: String,
    pub subject: String,
}
