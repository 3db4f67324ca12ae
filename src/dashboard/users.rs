//! `/users`: lists users, and lets admins add and change them.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Path};
use poem::{Response, handler};
use time::OffsetDateTime;
use uuid::Uuid;

use super::context::{PageContext, PageError};
use super::form::Form;
use super::format::When;
use super::layout::{Explained, Layout, explain, show};
use crate::api::errors::Failure;
use crate::model::people::{NotARole, Role, UserId};
use crate::records::{ChangedUser, ExternalIdentity, Session, SignInMethod, User};
use crate::service::ServiceError;

#[derive(Template)]
#[template(path = "users.html")]
struct UsersPage {
    layout: Layout,
    users: Vec<User>,
    roles: [Role; 3],
    email: String,
    refused: Option<Explained>,
}

#[derive(Template)]
#[template(path = "user.html")]
struct UserPage {
    layout: Layout,
    user: User,
    roles: [Role; 3],
    default_max: u32,
    identities: Vec<ExternalIdentity>,
    sessions: Vec<SessionRow>,
}

/// A session that is in force.
pub struct SessionRow {
    pub id: Uuid,
    pub by: String,
    pub from: Option<String>,
    pub agent: Option<String>,
    pub started: When,
    pub used: When,
    pub is_this: bool,
}

impl SessionRow {
    pub fn in_force(sessions: Vec<(Session, bool)>, this: Option<Uuid>, now: OffsetDateTime) -> Vec<Self> {
        let in_force = sessions.into_iter().filter(|(_, in_force)| *in_force);
        in_force.map(|(session, _)| Self::new(session, this, now)).collect()
    }

    fn new(session: Session, this: Option<Uuid>, now: OffsetDateTime) -> Self {
        Self {
            id: session.id,
            by: match session.method {
                SignInMethod::Password => "password".into(),
                SignInMethod::Oidc { issuer, .. } => issuer,
            },
            from: session.from.map(|from| from.to_string()),
            agent: session.agent,
            started: When::new(session.started_at, now),
            used: When::new(session.last_used_at, now),
            is_this: this == Some(session.id),
        }
    }
}

#[handler]
pub async fn list(context: PageContext) -> Result<Response, PageError> {
    let users = context.areas().people.users().await?;
    let layout = Layout::new(&context, "Users");
    show(StatusCode::OK, &UsersPage { layout, users, roles: Role::ALL, email: String::new(), refused: None })
}

#[handler]
pub async fn add(context: PageContext, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let email = form.text("email");
    let password = Some(form.exact("password")).filter(|password| !password.is_empty());
    match context.areas().people.add_user(email, role(&form)?, password, context.by()).await {
        Ok(user) => {
            let sentence = format!("{} is a user now: {}.", user.email, user.role);
            Ok(context.redirect(&format!("/users/{}", user.id), sentence))
        }
        Err(error @ (ServiceError::Invalid { .. } | ServiceError::Conflict(_))) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            let users = context.areas().people.users().await?;
            let layout = Layout::new(&context, "Users");
            let refused = Some(explain(body));
            show(status, &UsersPage { layout, users, roles: Role::ALL, email: email.to_owned(), refused })
        }
        Err(error) => Err(error.into()),
    }
}

#[handler]
pub async fn page(context: PageContext, Path(id): Path<u64>) -> Result<Response, PageError> {
    let (areas, now) = (context.areas(), context.now());
    let user = areas.people.user(UserId(id)).await?;
    let identities = areas.people.identities().await?.into_iter().filter(|identity| identity.user == user.id).collect();
    let this = context.principal.signed_in.as_ref().map(|signed_in| signed_in.session.session.id);
    let sessions = SessionRow::in_force(areas.people.sessions(Some(user.id)).await?, this, now);
    let layout = Layout::new(&context, "Users");
    let default_max = areas.people.people_policy().max_hosts;
    show(StatusCode::OK, &UserPage { layout, user, roles: Role::ALL, default_max, identities, sessions })
}

/// Applies the change that the form's field `change` names.
#[handler]
pub async fn change(context: PageContext, Path(id): Path<u64>, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let (areas, by, id) = (context.areas(), context.by(), UserId(id));
    let sentence = match form.text("change") {
        "role" => {
            let user = areas.people.set_role(id, role(&form)?, by).await?;
            format!("{} has the role {} from now on.", user.email, user.role)
        }
        "disable" => {
            let changed = areas.people.disable_user(id, form.is("keep_hosts", "true"), by).await?;
            let hosts = hosts_of(&changed, "disabled");
            format!("{} is disabled; their sessions are ended{hosts}.", changed.user.email)
        }
        "enable" => {
            let changed = areas.people.enable_user(id, by).await?;
            format!("{} may sign in again{}.", changed.user.email, hosts_of(&changed, "enabled"))
        }
        "password" => {
            let user = areas.people.set_password(id, form.exact("password"), by).await?;
            format!("{} has a new password; their sessions are ended.", user.email)
        }
        "max_hosts" => {
            let max = match form.text("max_hosts") {
                "" => None,
                text => Some(text.parse().map_err(|_| ServiceError::invalid("max_hosts", "must be a number"))?),
            };
            format!("The host limit of {} is set.", areas.people.set_max_hosts(id, max, by).await?.email)
        }
        "link" => {
            let user = areas.people.user(id).await?;
            let (issuer, subject) = (form.text("issuer"), form.text("subject"));
            let identity = areas.people.link_identity(issuer, subject, user.email.as_str(), None, by).await?;
            format!("The identity {} at {} now signs in as {}.", identity.subject, identity.issuer, user.email)
        }
        "unlink" => {
            let identity = areas.people.unlink_identity(form.text("issuer"), form.text("subject"), by).await?;
            format!("{} of {} is no longer linked.", identity.subject, identity.issuer)
        }
        "end" => {
            let session = form.text("session").parse().map_err(|_| ServiceError::NotFound("Session"))?;
            areas.people.end_session(session, Some(id), by).await?;
            "The session has ended.".into()
        }
        _ => return Err(ServiceError::Refused("The form is incomplete: it names no change".into()).into()),
    };
    Ok(context.redirect(&format!("/users/{id}"), sentence))
}

/// How many of the user's hosts changed with the user.
fn hosts_of(changed: &ChangedUser, done: &str) -> String {
    match changed.host_count() {
        0 => String::new(),
        1 => format!("; 1 host is {done}"),
        many => format!("; {many} hosts are {done}"),
    }
}

fn role(form: &Form) -> Result<Role, ServiceError> {
    form.text("role").parse().map_err(|error: NotARole| ServiceError::invalid("role", error.to_string()))
}
