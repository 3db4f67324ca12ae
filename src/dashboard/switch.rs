//! `/switch`: the kill switch. The page explains its effect first.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::Data;
use poem::{Response, handler};

use super::context::{PageContext, PageError};
use super::form::Form;
use super::host::decision;
use super::layout::{Layout, show};

#[derive(Template)]
#[template(path = "switch.html")]
struct SwitchPage {
    layout: Layout,
}

#[handler]
pub async fn page(context: PageContext) -> Result<Response, PageError> {
    show(StatusCode::OK, &SwitchPage { layout: Layout::new(&context, "Kill switch") })
}

#[handler]
pub async fn set(context: PageContext, form: Data<&Arc<Form>>) -> Result<Response, PageError> {
    let disabled = decision(&form, "disabled")?;
    context.areas().admission.disable_api(disabled, None, context.by()).await?;
    let sentence = if disabled {
        "The kill switch is on: every host is answered 503 until you switch it off."
    } else {
        "The kill switch is off: hosts are served again."
    };
    Ok(context.redirect("/switch", sentence.into()))
}
