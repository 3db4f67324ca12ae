//! `/hosts/{id}`: one host, and what an admin can do to it.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Path, Query};
use poem::{Response, handler};

use super::Dashboard;
use super::form::Form;
use super::hosts::Row;
use super::shell::{Shell, Told, show, tell};
use crate::api::errors::Failure;
use crate::api::guards::Asking;
use crate::model::host::HostId;
use crate::service::ServiceError;

use super::words::When;

#[derive(Template)]
#[template(path = "host.html")]
struct HostPage {
    shell: Shell,
    host: Row,
    created: When,
    /// The user who installed it for themselves.
    owner: Option<String>,
    refused: Option<Refused>,
}

/// A call from an address that the host may not call from.
struct Refused {
    called_from: String,
    bound_to: Option<String>,
    at: When,
}

#[derive(Template)]
#[template(path = "remove.html")]
struct RemovePage {
    shell: Shell,
    host: Row,
}

#[handler]
pub async fn page(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<u64>,
    Query(Told { told }): Query<Told>,
) -> Result<Response, Failure> {
    let now = dashboard.now();
    let view = dashboard.areas.hosts.host(HostId(id)).await?;
    let created = When::new(view.host.created_at, now);
    let owner = view.host.owner.map(|owner| match dashboard.areas.people.known_user(owner) {
        Some(user) => user.email.to_string(),
        None => owner.to_string(),
    });
    let refused = dashboard.areas.admission.last_address_refused(&view.host).await?.map(|(refused, at)| Refused {
        called_from: refused.called_from.to_string(),
        bound_to: refused.bound_to.map(|bound| bound.to_string()),
        at: When::new(at, now),
    });
    let shell = Shell::new(&dashboard, &asking, "Host", &told);
    show(StatusCode::OK, &HostPage { shell, created, owner, refused, host: Row::new(view, now) })
}

#[handler]
pub async fn confirm(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<u64>,
) -> Result<Response, Failure> {
    let host = Row::new(dashboard.areas.hosts.host(HostId(id)).await?, dashboard.now());
    show(StatusCode::OK, &RemovePage { shell: Shell::new(&dashboard, &asking, "Remove a host", ""), host })
}

#[handler]
pub async fn remove(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<u64>,
) -> Result<Response, Failure> {
    let removed = dashboard.areas.hosts.remove(HostId(id), &asking.by).await?;
    let sentence = format!(
        "{} is removed. Its key is refused from now on. Within a day `codex-authd hosts restore` undoes it.",
        removed.fqdn
    );
    Ok(tell(&dashboard, &asking, "/", sentence))
}

#[handler]
pub async fn roaming(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<u64>,
    form: Data<&Arc<Form>>,
) -> Result<Response, Failure> {
    let allow = decision(&form, "allow")?;
    let host = dashboard.areas.hosts.allow_roaming(HostId(id), allow, &asking.by).await?;
    let sentence = if allow {
        format!("{} may now call from another address; it is then bound to that one.", host.fqdn)
    } else {
        format!("{} may only call from the address it is bound to.", host.fqdn)
    };
    Ok(tell(&dashboard, &asking, &format!("/hosts/{id}"), sentence))
}

#[handler]
pub async fn clear(dashboard: Data<&Arc<Dashboard>>, asking: Asking, Path(id): Path<u64>) -> Result<Response, Failure> {
    let host = dashboard.areas.hosts.clear(HostId(id), &asking.by).await?;
    let sentence =
        format!("The address of {} is forgotten; it is bound to the next one that it calls from.", host.fqdn);
    Ok(tell(&dashboard, &asking, &format!("/hosts/{id}"), sentence))
}

#[handler]
pub async fn window(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Path(id): Path<u64>,
    form: Data<&Arc<Form>>,
) -> Result<Response, Failure> {
    let open = decision(&form, "open")?;
    let areas = &dashboard.areas;
    let host = match open {
        true => areas.hosts.open_window(HostId(id), &asking.by).await?,
        false => areas.hosts.close_window(HostId(id), &asking.by).await?,
    };
    let sentence = match host.rules.insecure_enabled_until {
        Some(until) => {
            let When { shown, distance, .. } = When::new(until, dashboard.now());
            format!("The window of {} is open until {shown} ({distance}).", host.fqdn)
        }
        None => format!("The window of {} is closed: it is refused until you open it again.", host.fqdn),
    };
    Ok(tell(&dashboard, &asking, &format!("/hosts/{id}"), sentence))
}

/// A field that says what is wanted, not "the other one": sent twice, it does the same.
pub fn decision(form: &Form, name: &str) -> Result<bool, Failure> {
    match form.text(name) {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => {
            Err(ServiceError::Refused(format!("The form does not say what is wanted: {name} is true or false")).into())
        }
    }
}
