//! `POST /auth` and `DELETE /auth`: the canonical login, retrieved or stored, and a host that leaves.

use poem::http::{Method, StatusCode};
use poem::{IntoResponse, Request};
use poem_openapi::param::Query;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::Tag;
use super::area::Area;
use super::bodies::UnreadBody;
use super::errors::{Answer, Failure, ok};
use super::guards::HostCaller;
use super::json::{Envelope, JsonBody};
use super::lines::Lines;
use super::types::auth::{AuthAnswer, AuthRequest};
use crate::service::admission::Purpose;
use crate::service::login::sync::QueryVersions;
use crate::service::{Admission, Hosts, Login};

pub struct AuthApi;

#[OpenApi(tag = "Tag::Auth")]
impl AuthApi {
    /// Retrieve or store the canonical login
    ///
    /// Retrieve: the digest is compared with the canonical one (`valid`); where it differs, the newer `last_refresh`
    /// decides between `outdated` (the answer holds `auth`) and `upload_required`, which is also the answer to a date that is
    /// in the future; `missing`: there is none yet. Store: a newer document of the same account becomes the canonical one
    /// (`updated`), dated anew if the host's clock is wrong; the same one is `unchanged`, an older one `outdated`. Each of
    /// these answers holds the `auth` that the host should have. Another account: 409 `other_account`. Newer is what the
    /// access token's `iat` says, or `last_refresh` where a token has none. Without a command it is a retrieve, or, where
    /// the body is itself an auth.json, a store of it.
    ///
    /// The SHA-256 of the bytes of `auth` is `canonical_digest`. A host whose store held `agent_identity` gets that back as
    /// the last member, and nobody else does: its digest is its own.
    #[oai(path = "/auth", method = "post", operation_id = "syncAuth")]
    #[allow(clippy::too_many_arguments)] // One parameter each of the operation.
    async fn sync(
        &self,
        hosts: Area<'_, Hosts>,
        login: Area<'_, Login>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
        /// For bodies that have none.
        client_version: Query<Option<String>>,
        /// For bodies that have none.
        wrapper_version: Query<Option<String>>,
        /// `lines`: the answer as lines of text, for shells (see the default response).
        format: Query<Option<Format>>,
        body: UnreadBody<AuthRequest>,
    ) -> Result<SyncAnswer, Failure> {
        let versions = QueryVersions {
            client_version: client_version.0.as_deref(),
            wrapper_version: wrapper_version.0.as_deref(),
        };
        let done = async {
            // Admit the host before reading a byte of the body.
            let host = caller.admit(&admission, Purpose::Service).await?;
            let text = body.read(&host).await?;
            Ok::<_, Failure>(AuthAnswer::of(&hosts, &login, login.sync(host, caller.address, &text, versions).await?)?)
        }
        .await;
        match (format.0, done) {
            (None, done) => ok(done?).map(SyncAnswer::Done),
            (Some(Format::Lines), Ok(data)) => Ok(SyncAnswer::lines(Lines::of_answer(&data))),
            (Some(Format::Lines), Err(failure)) => Ok(SyncAnswer::lines(Lines::of_failure(&failure))),
        }
    }

    /// Take this host out
    ///
    /// The host, its key and its pending installers are gone. `force=1` works from any address.
    #[oai(path = "/auth", method = "delete", operation_id = "leave")]
    async fn leave(
        &self,
        hosts: Area<'_, Hosts>,
        admission: Area<'_, Admission>,
        caller: HostCaller,
        /// `1`: from whatever address the call comes.
        force: Query<Option<String>>,
    ) -> Answer<Left> {
        let anywhere = force.0.as_deref().is_some_and(|force| force == "1" || force == "true");
        let host = caller.admit(&admission, Purpose::Leave { anywhere }).await?;
        let removed = hosts.leave(&host, caller.address).await?;
        ok(Left { deleted: removed.fqdn.into() })
    }
}

#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "lowercase")]
pub enum Format {
    Lines,
}

/// The host that was taken out.
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Left {
    deleted: String,
}

#[derive(ApiResponse)]
enum SyncAnswer {
    /// Retrieved or stored.
    #[oai(status = 200)]
    Done(JsonBody<Envelope<AuthAnswer>>),
    /// Every answer when `format=lines`: lines `name value`, then, where there is a document, a line `auth LENGTH` and
    /// that many bytes.
    Lines(StatusCode, Lines),
}

impl SyncAnswer {
    fn lines((status, lines): (StatusCode, Lines)) -> Self {
        Self::Lines(status, lines)
    }
}

/// A refusal before any handler, in the format that the caller asked for.
pub fn refusal(request: &Request, failure: Failure) -> poem::Error {
    let mut parameters = request.uri().query().unwrap_or_default().split('&');
    let is_sync = request.method() == Method::POST && request.uri().path() == "/auth";
    if is_sync && parameters.any(|parameter| parameter == "format=lines") {
        return poem::Error::from_response(SyncAnswer::lines(Lines::of_failure(&failure)).into_response());
    }
    failure.into()
}
