//! `GET /install/{token}/start`: the script that checks a machine. `GET /install/{token}`: the installer, which works
//! once.

use poem::http::StatusCode;
use poem::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use poem::{IntoResponse, Response};
use poem_openapi::param::Path;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, OpenApi};

use super::Tag;
use super::area::Area;
use super::errors::{ErrorBody, Failure, rfc3339};
use super::guards::Caller;
use crate::model::secret::Secret;
use crate::service::error::InstallerRefusal;
use crate::service::hosts::install::InstallScript;
use crate::service::{Hosts, ServiceError, hosts::bake};

pub struct InstallApi;

#[OpenApi(tag = "Tag::Install")]
impl InstallApi {
    /// Fetch the first stage of an installation
    ///
    /// This is what the printed command runs. The script checks the machine, then fetches the installer and runs it. The
    /// token is not spent. The refusals are those of the installer.
    #[oai(path = "/install/:token/start", method = "get", operation_id = "startInstall")]
    async fn start(
        &self,
        hosts: Area<'_, Hosts>,
        caller: Caller,
        /// As it was printed when the host was registered.
        token: Path<String>,
    ) -> InstallAnswer {
        InstallAnswer::of(hosts.start_install(&token.0, caller.0))
    }

    /// Redeem an installer token
    ///
    /// Answers with the script that makes the calling machine the host the token was made for; once. Every refusal is a
    /// script too, which prints the reason and exits 1: the answer is piped into bash.
    #[oai(path = "/install/:token", method = "get", operation_id = "install")]
    async fn install(
        &self,
        hosts: Area<'_, Hosts>,
        caller: Caller,
        /// As it was printed when the host was registered.
        token: Path<String>,
    ) -> InstallAnswer {
        InstallAnswer::of(hosts.redeem(&token.0, caller.0).await)
    }
}

/// A bash script.
pub struct Script(pub Secret);

/// A script, with the status of the installer or of the refusal.
struct InstallAnswer(Response);

impl InstallAnswer {
    fn of(answer: Result<InstallScript, ServiceError>) -> Self {
        match answer {
            Ok(InstallScript { script, expires_at }) => {
                let mut response = Script(script).into_response();
                if let Ok(expires_at) = HeaderValue::from_str(&rfc3339(expires_at)) {
                    response.headers_mut().insert(EXPIRES_AT, expires_at);
                }
                Self(response)
            }
            Err(error) => Self::refusal(error),
        }
    }

    fn refusal(error: ServiceError) -> Self {
        let gone = matches!(&error, ServiceError::Installer(InstallerRefusal::Used | InstallerRefusal::Expired));
        let script = Script(Secret::new(bake::refusal(&error.to_string())));
        let failure = Failure::from(error);
        let mut response = script.into_response();
        response.set_status(if gone { StatusCode::GONE } else { failure.body().0 });
        if let Some(seconds) = failure.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        Self(response)
    }
}

impl IntoResponse for InstallAnswer {
    fn into_response(self) -> Response {
        self.0
    }
}

impl ApiResponse for InstallAnswer {
    fn meta() -> MetaResponses {
        let response = |status, description, header: Option<&str>| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType { content_type: Script::CONTENT_TYPE, schema: Script::schema_ref() }],
            headers: header.map(text_header).into_iter().collect(),
        };
        MetaResponses {
            responses: vec![
                response(200, "The script.", Some("X-Installer-Expires-At")),
                response(400, "A parameter is unknown, or a proxy does not name the caller.", None),
                response(404, "Never issued, or revoked.", None),
                response(410, "Redeemed already, or too late.", None),
                response(429, "Too many requests from this address; the token is still good.", Some("Retry-After")),
                response(500, "A fault of the daemon; its log says more.", None),
                response(503, "The store is not available just now; the token is still good.", Some("Retry-After")),
            ],
        }
    }

    fn register(_registry: &mut Registry) {}
}

fn text_header(name: &str) -> MetaHeader {
    MetaHeader {
        name: name.into(),
        description: None,
        required: false,
        deprecated: false,
        schema: String::schema_ref(),
    }
}

const EXPIRES_AT: HeaderName = HeaderName::from_static("x-installer-expires-at");
const PATH: &str = "/install/";
const SCRIPT_TYPE: &str = "text/x-shellscript; charset=utf-8";

/// Whether the answer to this path is piped into bash.
pub fn is_installer(path: &str) -> bool {
    path.starts_with(PATH)
}

/// Converts any refusal below `/install/` to a script, also a refusal before the handler. The printed command pipes the
/// answer into bash, and bash must not read JSON. Status and headers stay.
pub async fn script_of(refusal: Response) -> Response {
    let (mut parts, body) = refusal.into_parts();
    let body = body.into_vec().await.unwrap_or_default();
    let message = serde_json::from_slice(&body).map(|ErrorBody { message, .. }| message);
    let reason = message.unwrap_or_else(|_| format!("The installer was refused: {}", parts.status));
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(SCRIPT_TYPE));
    Response::from_parts(parts, bake::refusal(&reason).into())
}

impl Payload for Script {
    const CONTENT_TYPE: &'static str = "text/x-shellscript";

    fn schema_ref() -> MetaSchemaRef {
        String::schema_ref()
    }
}

impl IntoResponse for Script {
    fn into_response(self) -> Response {
        Response::builder().content_type(SCRIPT_TYPE).body(self.0.expose().to_owned())
    }
}
