//! `/switch`: the kill switch, with what it does told before it is thrown.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Query};
use poem::{Response, handler};

use super::Dashboard;
use super::form::Form;
use super::host::decision;
use super::shell::{Shell, Told, show, tell};
use crate::api::errors::Failure;
use crate::api::guards::Asking;

#[derive(Template)]
#[template(path = "switch.html")]
struct SwitchPage {
    shell: Shell,
}

#[handler]
pub async fn page(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Query(Told { told }): Query<Told>,
) -> Result<Response, Failure> {
    show(StatusCode::OK, &SwitchPage { shell: Shell::new(&dashboard, &asking, "Kill switch", &told) })
}

#[handler]
pub async fn set(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    form: Data<&Arc<Form>>,
) -> Result<Response, Failure> {
    let disabled = decision(&form, "disabled")?;
    dashboard.areas.admission.disable_api(disabled, None, &asking.by).await?;
    let sentence = if disabled {
        "The kill switch is on: every host is answered 503 until you switch it off."
    } else {
        "The kill switch is off: hosts are served again."
    };
    Ok(tell(&dashboard, &asking, "/switch", sentence.into()))
}
