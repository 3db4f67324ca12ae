//! `/mine`: the hosts and sessions of the user who signed in. Hosts are installed and removed here.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Path, Redirect};
use poem::{IntoResponse, Request, Response, handler};
use uuid::Uuid;

use super::context::{PageContext, PageError};
use super::form::Form;
use super::hosts::HostRow;
use super::layout::{Explained, Layout, explain, show};
use super::new_host::ShownInstaller;
use super::users::SessionRow;
use crate::api::account::{SignInClient, to_its_end};
use crate::api::errors::Failure;
use crate::model::host::HostId;
use crate::service::ServiceError;
use crate::service::people::sessions::SignedIn;

#[derive(Template)]
#[template(path = "mine.html")]
struct AccountPage {
    layout: Layout,
    hosts: Vec<HostRow>,
    max_hosts: u32,
    has_password: bool,
    sessions: Vec<SessionRow>,
    name: String,
    refused: Option<Explained>,
}

#[handler]
pub async fn page(context: PageContext) -> Result<Response, PageError> {
    show(StatusCode::OK, &AccountPage::new(&context).await?)
}

impl AccountPage {
    async fn new(context: &PageContext) -> Result<Self, PageError> {
        let (areas, signed_in, now) = (context.areas(), signed_in(context)?, context.now());
        let hosts = areas.people.own_hosts(signed_in).await?;
        let sessions = areas.people.sessions(Some(signed_in.user.id)).await?;
        Ok(Self {
            layout: Layout::new(context, "My hosts"),
            hosts: hosts.into_iter().map(|view| HostRow::new(view, now)).collect(),
            max_hosts: areas.people.max_hosts(signed_in),
            has_password: signed_in.user.password.is_some(),
            sessions: SessionRow::in_force(sessions, Some(signed_in.session.session.id), now),
            name: String::new(),
            refused: None,
        })
    }
}

#[handler]
pub async fn install(context: PageContext, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let name = form.text("name");
    match context.areas().people.register_own(name, signed_in(&context)?, context.by()).await {
        Ok(registered) => {
            let id = context.keep(|d| &d.installers, ShownInstaller::of(registered));
            Ok(Redirect::see_other(format!("/hosts/installer/{id}")).into_response())
        }
        Err(error @ (ServiceError::Refused(_) | ServiceError::Conflict(_) | ServiceError::BaseUrlGuessed { .. })) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            let again = AccountPage::new(&context).await?;
            show(status, &AccountPage { name: name.to_owned(), refused: Some(explain(body)), ..again })
        }
        Err(error) => Err(error.into()),
    }
}

#[handler]
pub async fn remove(context: PageContext, Path(id): Path<u64>) -> Result<Response, PageError> {
    let host = context.areas().people.remove_own(HostId(id), signed_in(&context)?, context.by()).await?;
    Ok(context.redirect("/mine", format!("{} is removed. Its key is refused from now on.", host.fqdn)))
}

#[handler]
pub async fn end_session(context: PageContext, Path(id): Path<Uuid>) -> Result<Response, PageError> {
    let user = signed_in(&context)?.user.id;
    context.areas().people.end_session(id, Some(user), context.by()).await?;
    Ok(context.redirect("/mine", "The session has ended.".into()))
}

/// Ends all sessions of the user, including this one, so it redirects to the sign-in page.
#[handler]
pub async fn set_password(
    context: PageContext,
    request: &Request,
    form: Data<&Arc<Form>>,
) -> Result<Response, PageError> {
    let from = SignInClient::of(request)?.from;
    let (areas, who, by) = (Arc::clone(context.areas()), signed_in(&context)?.clone(), context.by().clone());
    let form = Arc::clone(&form);
    let setting =
        async move { areas.people.set_own_password(&who, form.exact("current"), form.exact("new"), from, &by).await };
    match to_its_end(setting).await {
        Ok(_) => Ok(Redirect::see_other("/sign-in?return_to=%2Fmine").into_response()),
        Err(error @ ServiceError::Invalid { .. }) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            let again = AccountPage::new(&context).await?;
            show(status, &AccountPage { refused: Some(explain(body)), ..again })
        }
        Err(error) => Err(error.into()),
    }
}

/// Fails for a caller with a certificate, who is not a signed-in user.
fn signed_in(context: &PageContext) -> Result<&SignedIn, PageError> {
    context.principal.signed_in.as_ref().ok_or_else(|| ServiceError::SessionRequired.into())
}
