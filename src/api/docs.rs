//! `/docs`: shows the OpenAPI document to people. The page is poem-openapi's Swagger UI, one file with everything
//! inline.
//!
//! The content security policy allows only the page's own scripts and styles, by digests computed from the page.
//! Swagger UI sets element styles from its script, which no policy blocks, and draws its icons from `data:` images.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use poem::{Body, Response};

use crate::model::digest::Digest;

#[derive(Clone)]
pub struct Page {
    /// Shared by all answers. With a copy per answer, each slow reader would hold megabytes.
    html: Bytes,
    policy: Arc<str>,
}

impl Page {
    pub fn new(html: String) -> Self {
        let (scripts, styles) = (digests(&html, "script"), digests(&html, "style"));
        let policy = format!(
            "default-src 'none'; script-src{scripts}; style-src{styles}; img-src data:; connect-src 'self'; \
             form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
        );
        Self { html: html.into(), policy: policy.into() }
    }

    pub fn answer(&self) -> Response {
        Response::builder()
            .content_type("text/html; charset=utf-8")
            .header("content-security-policy", &*self.policy)
            .header("referrer-policy", "same-origin")
            .header("x-frame-options", "DENY")
            .header("cross-origin-opener-policy", "same-origin")
            .header("cross-origin-resource-policy", "same-origin")
            .body(Body::from_bytes(self.html.clone()))
    }
}

/// ` 'sha256-…'` for the content of each `<tag …>…</tag>`, in the syntax of a content security policy.
fn digests(html: &str, tag: &str) -> String {
    let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
    let mut rest = html;
    let mut sources = String::new();
    while let Some((_, after)) = rest.split_once(&open) {
        let Some((inside, after)) = after.split_once('>').and_then(|(_, inside)| inside.split_once(&close)) else {
            break;
        };
        sources.push_str(&format!(" 'sha256-{}'", BASE64_STANDARD.encode(Digest::of(inside.as_bytes()).as_bytes())));
        rest = after;
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_and_style_of_the_page_is_allowed_by_its_digest() {
        let page = Page::new("<style a=\"b\">x</style><script>1</script><p><script c>2</script>".into());
        let digest = |text: &str| BASE64_STANDARD.encode(Digest::of(text.as_bytes()).as_bytes());
        let scripts = format!("script-src 'sha256-{}' 'sha256-{}';", digest("1"), digest("2"));
        assert!(page.policy.contains(&scripts), "{}", page.policy);
        assert!(page.policy.contains(&format!("style-src 'sha256-{}';", digest("x"))), "{}", page.policy);
    }

    #[tokio::test]
    async fn answers_share_one_copy_of_the_page() {
        let page = Page::new("<p>".repeat(100_000));
        let (one, two) = (page.answer().into_body(), page.answer().into_body());
        let (one, two) = (one.into_bytes().await.unwrap(), two.into_bytes().await.unwrap());
        assert_eq!((one.as_ptr(), one.len()), (two.as_ptr(), 300_000));
    }
}
