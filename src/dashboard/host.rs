//! `/hosts/{id}`: shows one host, with the actions of an admin.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Path};
use poem::{Response, handler};

use super::context::{PageContext, PageError};
use super::form::Form;
use super::hosts::HostRow;
use super::layout::{Layout, show};
use crate::model::host::HostId;
use crate::service::ServiceError;

use super::format::When;

#[derive(Template)]
#[template(path = "host.html")]
struct HostPage {
    layout: Layout,
    host: HostRow,
    created: When,
    /// The user who installed it for themselves.
    owner: Option<String>,
    refused: Option<RefusedCall>,
}

/// The last call that was refused because of its address.
struct RefusedCall {
    called_from: String,
    bound_to: Option<String>,
    at: When,
}

#[derive(Template)]
#[template(path = "remove.html")]
struct RemovePage {
    layout: Layout,
    host: HostRow,
}

#[handler]
pub async fn page(context: PageContext, Path(id): Path<u64>) -> Result<Response, PageError> {
    let now = context.now();
    let view = context.areas().hosts.host(HostId(id)).await?;
    let created = When::new(view.host.created_at, now);
    let owner = view.host.owner.map(|owner| match context.areas().people.known_user(owner) {
        Some(user) => user.email.to_string(),
        None => owner.to_string(),
    });
    let refused = context.areas().admission.last_address_refused(&view.host).await?.map(|(refused, at)| RefusedCall {
        called_from: refused.called_from.to_string(),
        bound_to: refused.bound_to.map(|bound| bound.to_string()),
        at: When::new(at, now),
    });
    let layout = Layout::new(&context, "Host");
    show(StatusCode::OK, &HostPage { layout, created, owner, refused, host: HostRow::new(view, now) })
}

#[handler]
pub async fn confirm(context: PageContext, Path(id): Path<u64>) -> Result<Response, PageError> {
    let host = HostRow::new(context.areas().hosts.host(HostId(id)).await?, context.now());
    show(StatusCode::OK, &RemovePage { layout: Layout::new(&context, "Remove a host"), host })
}

#[handler]
pub async fn remove(context: PageContext, Path(id): Path<u64>) -> Result<Response, PageError> {
    let removed = context.areas().hosts.remove(HostId(id), context.by()).await?;
    let sentence = format!(
        "{} is removed. Its key is refused from now on. Within a day `codex-authd hosts restore` undoes it.",
        removed.fqdn
    );
    Ok(context.redirect("/", sentence))
}

#[handler]
pub async fn roaming(context: PageContext, Path(id): Path<u64>, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let allow = decision(&form, "allow")?;
    let host = context.areas().hosts.allow_roaming(HostId(id), allow, context.by()).await?;
    let sentence = if allow {
        format!("{} may now call from another address; it is then bound to that one.", host.fqdn)
    } else {
        format!("{} may only call from the address it is bound to.", host.fqdn)
    };
    Ok(context.redirect(&format!("/hosts/{id}"), sentence))
}

#[handler]
pub async fn clear(context: PageContext, Path(id): Path<u64>) -> Result<Response, PageError> {
    let host = context.areas().hosts.clear(HostId(id), context.by()).await?;
    let sentence =
        format!("The address of {} is forgotten. The host is bound to the next address it calls from.", host.fqdn);
    Ok(context.redirect(&format!("/hosts/{id}"), sentence))
}

#[handler]
pub async fn window(context: PageContext, Path(id): Path<u64>, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let open = decision(&form, "open")?;
    let areas = context.areas();
    let host = match open {
        true => areas.hosts.open_window(HostId(id), context.by()).await?,
        false => areas.hosts.close_window(HostId(id), context.by()).await?,
    };
    let sentence = match host.rules.insecure_enabled_until {
        Some(until) => {
            let When { shown, distance, .. } = When::new(until, context.now());
            format!("The window of {} is open until {shown} ({distance}).", host.fqdn)
        }
        None => format!("The window of {} is closed: the host is refused until you open it again.", host.fqdn),
    };
    Ok(context.redirect(&format!("/hosts/{id}"), sentence))
}

/// Reads a boolean field. The form sends the wanted state, not a toggle, so sending it twice has the same effect.
pub fn decision(form: &Form, name: &str) -> Result<bool, PageError> {
    match form.text(name) {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => {
            Err(ServiceError::Refused(format!("The form is incomplete: the field {name} must be true or false")).into())
        }
    }
}
