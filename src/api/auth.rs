//! `POST /auth` and `DELETE /auth`: the canonical login, retrieved or stored, and a host that leaves.

use std::sync::Arc;

use poem::{IntoResponse, Response};
use poem_openapi::param::{Header, Query};
use poem_openapi::payload::Payload;
use poem_openapi::registry::MetaSchemaRef;
use poem_openapi::types::Type as _;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::Tag;
use super::area::Area;
use super::bodies::UnreadBody;
use super::errors::{Answer, Failure, ok};
use super::flags::Flag;
use super::guards::HostCaller;
use super::json::Verbatim;
use super::lines::Lines;
use super::types::auth::{AuthAnswer, AuthRequest};
use crate::model::auth_document::DocumentText;
use crate::service::admission::Purpose;
use crate::service::login::sync::QueryVersions;
use crate::service::{Admission, Hosts, Login};

pub struct AuthApi;

#[OpenApi(tag = "Tag::Auth")]
impl AuthApi {
    /// Retrieve or store the canonical login
    ///
    /// Retrieve: the digest is compared with the canonical one (`valid`); where it differs, the newer `last_refresh`
    /// decides between `outdated` (the answer holds `auth_text`) and `upload_required`, which is also the answer to a date that is
    /// in the future; `missing`: there is none yet. Store: a newer document of the same account becomes the canonical one
    /// (`updated`), dated anew if the host's clock is wrong; the same one is `unchanged`, an older one `outdated`. Each of
    /// these answers holds the `auth_text` that the host should have. Another account: 409 `other_account`. Newer is what the
    /// access token's `iat` says, or `last_refresh` where a token has none.
    ///
    /// The SHA-256 of `auth_text` is `canonical_digest`. A host whose store held `agent_identity` gets that back as the last
    /// member, and nobody else does: its digest is its own.
    #[oai(path = "/auth", method = "post", operation_id = "syncAuth")]
    #[allow(clippy::too_many_arguments)] // One parameter each of the operation.
    async fn sync(
        &self,
        hosts: Area<'_, Hosts>,
        login: Area<'_, Login>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
        /// Used if the body does not have it.
        client_version: Query<Option<String>>,
        /// Used if the body does not have it.
        wrapper_version: Query<Option<String>>,
        body: UnreadBody<AuthRequest>,
    ) -> Answer<AuthAnswer> {
        let versions = QueryVersions {
            client_version: client_version.0.as_deref(),
            wrapper_version: wrapper_version.0.as_deref(),
        };
        ok(synchronise(&hosts, &login, &admission, &caller, versions, body).await?)
    }

    /// Retrieve or store the canonical login, for shells
    ///
    /// The same as `POST /auth`. Every answer, a refusal too, is lines `name value`; if there is a document, the last line
    /// is `auth LENGTH`, and that many bytes follow it.
    #[oai(path = "/auth/lines", method = "post", operation_id = "syncAuthLines")]
    async fn sync_lines(
        &self,
        hosts: Area<'_, Hosts>,
        login: Area<'_, Login>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
        body: UnreadBody<AuthRequest>,
    ) -> Result<SyncLines, Failure> {
        let data = synchronise(&hosts, &login, &admission, &caller, QueryVersions::default(), body).await?;
        Ok(SyncLines::Done(Lines::of_answer(&data)))
    }

    /// Fetch the canonical login, byte for byte
    ///
    /// The document that this host should have. Its `ETag` is the SHA-256 of these bytes, which is `canonical_digest` of
    /// other answers; with it as `If-None-Match` the answer is 304 as long as nothing has changed.
    #[oai(path = "/auth/document", method = "get", operation_id = "getAuthDocument")]
    async fn document(
        &self,
        login: Area<'_, Login>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
        /// The `ETag` of the document that the caller has.
        #[oai(name = "If-None-Match")]
        if_none_match: Header<Option<String>>,
    ) -> Result<DocumentAnswer, Failure> {
        let host = caller.admit(&admission, Purpose::Service).await?;
        let delivery = login.document_of(&host)?;
        let etag = format!("\"{}\"", delivery.digest);
        Ok(match matches_etag(if_none_match.0.as_deref(), &etag) {
            true => DocumentAnswer::NotModified(etag),
            false => DocumentAnswer::Document(DocumentBytes(delivery.text), etag),
        })
    }

    /// Take this host out
    ///
    /// The host, its key and its pending installers are gone.
    #[oai(path = "/auth", method = "delete", operation_id = "leave")]
    async fn leave(
        &self,
        hosts: Area<'_, Hosts>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
        /// From any address.
        force: Query<Option<Flag>>,
    ) -> Answer<Left> {
        let anywhere = force.0.is_some_and(Flag::is_set);
        let host = caller.admit(&admission, Purpose::Leave { anywhere }).await?;
        let removed = hosts.leave(&host, caller.address).await?;
        ok(Left { deleted: removed.fqdn.into() })
    }
}

/// The host that was taken out.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Left {
    deleted: String,
}

/// Admits the host before it reads a byte of the body.
async fn synchronise(
    hosts: &Hosts,
    login: &Login,
    admission: &Admission,
    caller: &HostCaller,
    versions: QueryVersions<'_>,
    body: UnreadBody<AuthRequest>,
) -> Result<AuthAnswer, Failure> {
    let host = caller.admit(admission, Purpose::Service).await?;
    let text = body.read(&host).await?;
    Ok(AuthAnswer::of(hosts, login, login.sync(host, caller.address, &text, versions).await?)?)
}

#[derive(ApiResponse)]
enum SyncLines {
    /// Retrieved or stored.
    #[oai(status = 200)]
    Done(Lines),
}

#[derive(ApiResponse)]
enum DocumentAnswer {
    /// The auth.json.
    #[oai(status = 200)]
    Document(DocumentBytes, #[oai(header = "ETag")] String),
    /// The caller has it already.
    #[oai(status = 304)]
    NotModified(#[oai(header = "ETag")] String),
}

/// The exact text of a login, as a body.
struct DocumentBytes(Arc<DocumentText>);

impl Payload for DocumentBytes {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        Verbatim::schema_ref()
    }
}

impl IntoResponse for DocumentBytes {
    fn into_response(self) -> Response {
        Response::builder().content_type(Self::CONTENT_TYPE).body(self.0.to_string())
    }
}

/// Whether an `If-None-Match` names this `ETag` (RFC 9110, 13.1.2: weakly compared).
pub fn matches_etag(if_none_match: Option<&str>, etag: &str) -> bool {
    let named = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag;
    if_none_match.is_some_and(|tags| tags.split(',').any(|tag| named(tag.trim())))
}
