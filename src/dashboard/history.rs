//! `/login/versions`: the versions of the canonical login that are kept, page by page.

use std::sync::Arc;

use askama::Template;
use poem::http::StatusCode;
use poem::web::{Data, Query};
use poem::{Response, handler};

use super::Dashboard;
use super::hosts::source_in_words;
use super::shell::{Shell, show};
use super::words::When;
use crate::api::errors::Failure;
use crate::api::guards::Asking;

const PER_PAGE: usize = 50;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Wanted {
    before: String,
}

#[derive(Template)]
#[template(path = "history.html")]
struct HistoryPage {
    shell: Shell,
    versions: Vec<Row>,
    /// Whether this is the first page.
    is_first: bool,
    /// `before` of the next page.
    next: Option<u64>,
    keep: u64,
}

struct Row {
    version: u64,
    last_refresh: String,
    source: String,
    stored: When,
    digest: String,
}

#[handler]
pub async fn page(
    dashboard: Data<&Arc<Dashboard>>,
    asking: Asking,
    Query(Wanted { before }): Query<Wanted>,
) -> Result<Response, Failure> {
    let (now, before) = (dashboard.now(), before.parse().ok());
    let history = dashboard.areas.login.canonical_history(before, PER_PAGE).await?;
    let rows = history.versions.into_iter().map(|summary| Row {
        version: summary.version,
        last_refresh: summary.last_refresh,
        source: source_in_words(summary.source),
        stored: When::new(summary.stored_at, now),
        digest: summary.digest.to_string(),
    });
    let page = HistoryPage {
        shell: Shell::new(&dashboard, &asking, "Versions of the login", ""),
        versions: rows.collect(),
        is_first: before.is_none(),
        next: history.next,
        keep: dashboard.areas.core.policy().versions.keep,
    };
    show(StatusCode::OK, &page)
}
