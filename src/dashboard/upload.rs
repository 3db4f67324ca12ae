//! `/login`: shows the canonical login, and uploads a newer one.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::Data;
use poem::{Response, handler};

use super::context::{PageContext, PageError};
use super::form::Form;
use super::hosts::{LoginCard, login};
use super::layout::{Explained, Layout, explain, show};
use crate::api::errors::Failure;
use crate::model::auth_document::Allowed;
use crate::service::login::sync::{Outcome, Sync};
use crate::service::{Result as ServiceResult, ServiceError};

#[derive(Template)]
#[template(path = "upload.html")]
struct UploadPage {
    layout: Layout,
    login: Option<LoginCard>,
    refused: Option<Explained>,
}

#[handler]
pub async fn page(context: PageContext) -> Result<Response, PageError> {
    show_form(&context, StatusCode::OK, None).await
}

#[handler]
pub async fn upload(context: PageContext, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    match take(&context, &form).await {
        Ok(sync) => Ok(context.redirect("/", became_of_it(&sync))),
        Err(
            error @ (ServiceError::Unavailable { .. }
            | ServiceError::RecordsAway { .. }
            | ServiceError::Internal { .. }),
        ) => Err(error.into()),
        Err(error) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            show_form(&context, status, Some(explain(body))).await
        }
    }
}

async fn take(context: &PageContext, form: &Form) -> ServiceResult<Sync> {
    // Some editors add a byte order mark.
    let [file, pasted] = ["file", "pasted"].map(|name| form.text(name).trim_start_matches('\u{feff}'));
    let document = match (file.is_empty(), pasted.is_empty()) {
        (false, true) => file,
        (true, false) => pasted,
        (true, true) => return Err(ServiceError::Refused("choose a file, or paste its content".into())),
        (false, false) => {
            return Err(ServiceError::Refused("you chose a file and also pasted text: send one of them".into()));
        }
    };
    let allowed =
        Allowed { change_account: form.is("change_account", "true"), even_if_older: form.is("even_if_older", "true") };
    context.areas().login.upload_text(document, allowed, form.is("probe", "true"), context.by()).await
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
            "Nothing changed: the login you sent is older than the canonical login, version {version}, refreshed \
             {last_refresh}. Sign in with Codex again and upload the new file, or tick the box for an older login."
        ),
        outcome => format!("The login was read: {}.", outcome.as_str()),
    }
}

async fn show_form(
    context: &PageContext,
    status: StatusCode,
    refused: Option<Explained>,
) -> Result<Response, PageError> {
    let layout = Layout::new(context, "Canonical login");
    show(status, &UploadPage { layout, login: login(context.areas(), context.now()).await, refused })
}
