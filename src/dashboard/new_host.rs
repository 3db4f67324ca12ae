//! `/hosts/new`: registers a host, and shows its installer command once.
//!
//! The command contains the installer token, so it is never in a URL or a cookie. It waits in memory (`flash_store.rs`)
//! until the browser has followed the redirect and shown it once.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Path, Query, Redirect};
use poem::{IntoResponse, Response, handler};
use time::OffsetDateTime;

use super::context::{PageContext, PageError};
use super::form::Form;
use super::format::When;
use super::layout::{Explained, Layout, explain, show};
use crate::api::errors::Failure;
use crate::model::secret::Secret;
use crate::service::ServiceError;
use crate::service::hosts::enrol::{HostOptions, Registered};

/// The data of the installer page.
pub struct ShownInstaller {
    name: String,
    shared: bool,
    command: Secret,
    expires_at: OffsetDateTime,
}

impl ShownInstaller {
    pub fn of(registered: Registered) -> Self {
        let host = registered.host.host;
        Self {
            name: host.fqdn.into(),
            shared: !host.rules.secure,
            command: registered.installer.command,
            expires_at: registered.installer.expires_at,
        }
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Prefilled {
    name: String,
}

#[derive(Template)]
#[template(path = "new_host.html")]
struct NewHostPage {
    layout: Layout,
    name: String,
    shared: bool,
    /// A host of this name exists. Making it again revokes the old key.
    known: bool,
    /// Set if `public_base_url` is not configured: the guessed URL, and why hosts may not reach the daemon there.
    guessed: Option<Guessed>,
    allow_short_name: bool,
    refused: Option<Explained>,
}

struct Guessed {
    base_url: String,
    doubt: &'static str,
    file: String,
}

impl Guessed {
    fn of(context: &PageContext) -> Option<Self> {
        let policy = context.areas().core.policy();
        let doubt = policy.base_url_doubt?;
        Some(Self { base_url: policy.base_url.clone(), doubt, file: policy.config_file.clone() })
    }
}

#[derive(Template)]
#[template(path = "installer.html")]
struct InstallerPage {
    layout: Layout,
    shown: ShownInstaller,
    expires: When,
}

#[derive(Template)]
#[template(path = "shown.html")]
struct ShownBeforePage {
    layout: Layout,
}

const TITLE: &str = "New host";

#[handler]
pub async fn page(context: PageContext, Query(Prefilled { name }): Query<Prefilled>) -> Result<Response, PageError> {
    let known = !name.is_empty() && context.areas().hosts.host_named(&name).await?.is_some();
    let layout = Layout::new(&context, TITLE);
    let guessed = Guessed::of(&context);
    let page = NewHostPage { layout, name, shared: false, known, guessed, allow_short_name: false, refused: None };
    show(StatusCode::OK, &page)
}

#[handler]
pub async fn make(context: PageContext, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let (name, shared) = (form.text("name").to_owned(), form.is("shared", "yes"));
    let allow_short_name = form.is("allow_short_name", "yes");
    let again = async |status, known, refused| {
        let layout = Layout::new(&context, TITLE);
        let (name, guessed) = (name.clone(), Guessed::of(&context));
        show(status, &NewHostPage { layout, name, shared, known, guessed, allow_short_name, refused })
    };
    // The confirmation counts only for the name it was asked about. The admin may have typed another name since.
    let confirmed = form.text("again").eq_ignore_ascii_case(&name);
    if !confirmed && context.areas().hosts.host_named(&name).await?.is_some() {
        return again(StatusCode::CONFLICT, true, None).await;
    }
    // Unchecked means unchanged: a new host is secure, a known host keeps its kind.
    let options = HostOptions { secure: shared.then_some(false), expires_at: None, allow_short_name };
    match context.areas().hosts.register(&name, options, context.by()).await {
        Ok(registered) => {
            let id = context.keep(|d| &d.installers, ShownInstaller::of(registered));
            Ok(Redirect::see_other(format!("/hosts/installer/{id}")).into_response())
        }
        Err(error @ (ServiceError::Refused(_) | ServiceError::BaseUrlGuessed { .. })) => {
            let failure = Failure::from(error);
            let (status, body) = failure.body();
            again(status, confirmed, Some(explain(body))).await
        }
        Err(error) => Err(error.into()),
    }
}

#[handler]
pub async fn installer(context: PageContext, Path(id): Path<String>) -> Result<Response, PageError> {
    let now = context.now();
    let layout = Layout::new(&context, "Install the host");
    match context.take(|d| &d.installers, &id) {
        Some(shown) => {
            let expires = When::new(shown.expires_at, now);
            show(StatusCode::OK, &InstallerPage { layout, shown, expires })
        }
        None => show(StatusCode::GONE, &ShownBeforePage { layout }),
    }
}
