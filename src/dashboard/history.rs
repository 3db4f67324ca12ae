//! `/login/versions`: the kept versions of the canonical login, in pages.

use askama::Template;
use poem::http::StatusCode;
use poem::web::Query;
use poem::{Response, handler};

use super::context::{PageContext, PageError};
use super::format::When;
use super::hosts::source_in_words;
use super::layout::{Layout, show};

const VERSIONS_PER_PAGE: usize = 50;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct HistoryQuery {
    before: String,
}

#[derive(Template)]
#[template(path = "history.html")]
struct HistoryPage {
    layout: Layout,
    versions: Vec<VersionRow>,
    /// Whether this is the first page.
    is_first: bool,
    /// `before` of the next page.
    next: Option<u64>,
    keep: u64,
}

struct VersionRow {
    version: u64,
    last_refresh: String,
    source: String,
    stored: When,
    digest: String,
}

#[handler]
pub async fn page(
    context: PageContext,
    Query(HistoryQuery { before }): Query<HistoryQuery>,
) -> Result<Response, PageError> {
    let (now, before) = (context.now(), before.parse().ok());
    let history = context.areas().login.canonical_history(before, VERSIONS_PER_PAGE).await?;
    let rows = history.versions.into_iter().map(|summary| VersionRow {
        version: summary.version,
        last_refresh: summary.last_refresh,
        source: source_in_words(summary.source),
        stored: When::new(summary.stored_at, now),
        digest: summary.digest.to_string(),
    });
    let page = HistoryPage {
        layout: Layout::new(&context, "Versions of the login"),
        versions: rows.collect(),
        is_first: before.is_none(),
        next: history.next,
        keep: context.areas().core.policy().versions.keep,
    };
    show(StatusCode::OK, &page)
}
