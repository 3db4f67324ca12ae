//! `/login`: the canonical login, and a newer one in its place.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::Data;
use poem::{Response, handler};

use super::Dashboard;
use super::form::Form;
use super::hosts::{Login, login};
use super::shell::{Explained, Shell, explain, show, tell};
use crate::api::errors::Failure;
use crate::api::guards::Asking;
use crate::model::auth_document::Allowed;
use crate::service::login::sync::{Outcome, Sync};
use crate::service::{Result as ServiceResult, ServiceError};

#[derive(Template)]
#[template(path = "upload.html")]
struct UploadPage {
    shell: Shell,
    login: Option<Login>,
    refused: Option<Explained>,
}

#[handler]
pub async fn page(dashboard: Data<&Arc<Dashboard>>, asking: Asking) -> Result<Response, Failure> {
    show_form(&dashboard, &asking, StatusCode::OK, None).await
}

#[handler]
pub async fn upload(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    form: Data<&Arc<Form>>,
) -> Result<Response, Failure> {
    match take(&dashboard, &asking, &form).await {
        Ok(sync) => Ok(tell(&dashboard, &asking, "/", became_of_it(&sync))),
        Err(
            error @ (ServiceError::Unavailable { .. }
            | ServiceError::RecordsAway { .. }
            | ServiceError::Internal { .. }),
        ) => Err(error.into()),
        Err(error) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            show_form(&dashboard, &asking, status, Some(explain(body))).await
        }
    }
}

async fn take(dashboard: &Dashboard, asking: &Asking, form: &Form) -> ServiceResult<Sync> {
    // Some editors put a byte order mark in front.
    let [file, pasted] = ["file", "pasted"].map(|name| form.text(name).trim_start_matches('\u{feff}'));
    let document = match (file.is_empty(), pasted.is_empty()) {
        (false, true) => file,
        (true, false) => pasted,
        (true, true) => return Err(ServiceError::Refused("choose a file, or paste what is in it".into())),
        (false, false) => {
            return Err(ServiceError::Refused("you chose a file and pasted a text too: send one of them".into()));
        }
    };
    let allowed =
        Allowed { change_account: form.is("change_account", "true"), even_if_older: form.is("even_if_older", "true") };
    dashboard.areas.login.upload_text(document, allowed, form.is("probe", "true"), &asking.by).await
}

fn became_of_it(sync: &Sync) -> String {
    let summary = sync.canonical.as_ref().map(|canonical| &canonical.summary);
    let (version, last_refresh) =
        summary.map(|summary| (summary.version, summary.last_refresh.as_str())).unwrap_or_default();
    match sync.outcome {
        Outcome::Updated => format!(
            "Stored: this is the canonical login now, version {version}, refreshed {last_refresh}. Each host gets it with \
             its next call."
        ),
        Outcome::Unchanged => {
            format!("Nothing changed: this login is the canonical one already, version {version}.")
        }
        Outcome::Outdated => format!(
            "Nothing changed: what you sent is older than the canonical login, version {version}, refreshed \
             {last_refresh}. Sign in with Codex once more, and upload the file it writes then; or tick the box that lets an \
             older login win."
        ),
        outcome => format!("The login was read: {}.", outcome.as_str()),
    }
}

async fn show_form(
    dashboard: &Dashboard,
    asking: &Asking,
    status: StatusCode,
    refused: Option<Explained>,
) -> Result<Response, Failure> {
    let shell = Shell::new(dashboard, asking, "Canonical login", "");
    show(status, &UploadPage { shell, login: login(&dashboard.areas, dashboard.now()).await, refused })
}
