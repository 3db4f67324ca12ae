//! `/mine`: what is one's own, for whoever signed in: hosts, installed and removed here, and sessions.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Path, Query, Redirect};
use poem::{IntoResponse, Request, Response, handler};
use uuid::Uuid;

use super::Dashboard;
use super::form::Form;
use super::hosts::Row;
use super::new_host::Shown;
use super::shell::{Explained, Shell, Told, explain, show, tell};
use super::users::SessionRow;
use crate::api::account::{SignInClient, to_its_end};
use crate::api::errors::Failure;
use crate::api::guards::Asking;
use crate::model::host::HostId;
use crate::service::ServiceError;
use crate::service::people::sessions::SignedIn;

#[derive(Template)]
#[template(path = "mine.html")]
struct MinePage {
    shell: Shell,
    hosts: Vec<Row>,
    max_hosts: u32,
    has_password: bool,
    sessions: Vec<SessionRow>,
    name: String,
    refused: Option<Explained>,
}

#[handler]
pub async fn page(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Query(Told { told }): Query<Told>,
) -> Result<Response, Failure> {
    show(StatusCode::OK, &MinePage::new(&dashboard, &asking, &told).await?)
}

impl MinePage {
    async fn new(dashboard: &Dashboard, asking: &Asking, told: &str) -> Result<Self, Failure> {
        let (areas, signed_in, now) = (&dashboard.areas, signed_in(asking)?, dashboard.now());
        let hosts = areas.people.own_hosts(signed_in).await?;
        let sessions = areas.people.sessions(Some(signed_in.user.id)).await?;
        Ok(Self {
            shell: Shell::new(dashboard, asking, "My hosts", told),
            hosts: hosts.into_iter().map(|view| Row::new(view, now)).collect(),
            max_hosts: areas.people.max_hosts(signed_in),
            has_password: signed_in.user.password.is_some(),
            sessions: SessionRow::in_force(sessions, Some(signed_in.session.session.id), now),
            name: String::new(),
            refused: None,
        })
    }
}

#[handler]
pub async fn install(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    form: Data<&Arc<Form>>,
) -> Result<Response, Failure> {
    let name = form.text("name");
    match dashboard.areas.people.register_own(name, signed_in(&asking)?, &asking.by).await {
        Ok(registered) => {
            let id = dashboard.installers.put(&asking, Shown::of(registered), &*dashboard.outside);
            Ok(Redirect::see_other(format!("/hosts/installer/{id}")).into_response())
        }
        Err(error @ (ServiceError::Refused(_) | ServiceError::Conflict(_) | ServiceError::BaseUrlGuessed { .. })) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            let again = MinePage::new(&dashboard, &asking, "").await?;
            show(status, &MinePage { name: name.to_owned(), refused: Some(explain(body)), ..again })
        }
        Err(error) => Err(error.into()),
    }
}

#[handler]
pub async fn remove(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<u64>,
) -> Result<Response, Failure> {
    let host = dashboard.areas.people.remove_own(HostId(id), signed_in(&asking)?, &asking.by).await?;
    Ok(tell(&dashboard, &asking, "/mine", format!("{} is removed. Its key is refused from now on.", host.fqdn)))
}

#[handler]
pub async fn end_session(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<Uuid>,
) -> Result<Response, Failure> {
    let user = signed_in(&asking)?.user.id;
    dashboard.areas.people.end_session(id, Some(user), &asking.by).await?;
    Ok(tell(&dashboard, &asking, "/mine", "The session is over.".into()))
}

/// It ends the session that asks: the next page is for signing in.
#[handler]
pub async fn set_password(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    request: &Request,
    form: Data<&Arc<Form>>,
) -> Result<Response, Failure> {
    let from = SignInClient::of(request)?.from;
    let (areas, who, by) = (Arc::clone(&dashboard.areas), signed_in(&asking)?.clone(), asking.by.clone());
    let form = Arc::clone(&form);
    let setting =
        async move { areas.people.set_own_password(&who, form.exact("current"), form.exact("new"), from, &by).await };
    match to_its_end(setting).await {
        Ok(_) => Ok(Redirect::see_other("/sign-in?return_to=%2Fmine").into_response()),
        Err(error @ ServiceError::Invalid { .. }) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            let again = MinePage::new(&dashboard, &asking, "").await?;
            show(status, &MinePage { refused: Some(explain(body)), ..again })
        }
        Err(error) => Err(error.into()),
    }
}

/// By certificate nobody in particular asks.
fn signed_in(asking: &Asking) -> Result<&SignedIn, Failure> {
    asking.signed_in.as_ref().ok_or_else(|| ServiceError::SessionRequired.into())
}
