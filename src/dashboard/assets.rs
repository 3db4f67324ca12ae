//! The style sheet, the script and the icon. They are compiled in; their names contain their digest, so that browsers
//! may cache them.

use std::sync::LazyLock;

use bytes::Bytes;
use poem::http::StatusCode;
use poem::web::Path;
use poem::{Body, Response, handler};

use crate::model::digest::Digest;

pub struct Asset {
    /// `style-0123456789abcdef.css`
    pub name: String,
    content_type: &'static str,
    text: &'static str,
}

pub static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("style", "css", "text/css; charset=utf-8", include_str!("assets/style.css")));
/// Adds the copy buttons. Every page works without it.
pub static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("copy", "js", "text/javascript; charset=utf-8", include_str!("assets/copy.js")));
pub static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_str!("assets/icon.svg")));

impl Asset {
    fn new(name: &str, ending: &str, content_type: &'static str, text: &'static str) -> Self {
        let digest = Digest::of(text.as_bytes()).to_string();
        let name = format!("{name}-{}.{ending}", digest.get(..16).unwrap_or(&digest));
        Self { name, content_type, text }
    }
}

#[handler]
pub fn asset(Path(name): Path<String>) -> Response {
    match [&STYLE, &SCRIPT, &ICON].into_iter().find(|asset| asset.name == name) {
        Some(asset) => Response::builder()
            .content_type(asset.content_type)
            .header("cache-control", "private, max-age=31536000, immutable")
            .header("cross-origin-resource-policy", "same-origin")
            .body(Body::from_bytes(Bytes::from_static(asset.text.as_bytes()))),
        None => StatusCode::NOT_FOUND.into(),
    }
}
