//! `GET /install/{token}/start`: the script that checks a machine. `GET /install/{token}`: the installer, which works
//! once.

use poem::http::header::{CONTENT_TYPE, HeaderValue};
use poem::{IntoResponse, Response};
use poem_openapi::param::Path;
use poem_openapi::payload::Payload;
use poem_openapi::registry::MetaSchemaRef;
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

#[derive(ApiResponse)]
enum InstallAnswer {
    /// The installer.
    #[oai(status = 200)]
    Script(Script, #[oai(header = "X-Installer-Expires-At")] String),
    /// Never issued, or revoked.
    #[oai(status = 404)]
    Unknown(Script),
    /// Redeemed already, or too late.
    #[oai(status = 410)]
    Gone(Script),
    /// A fault of the daemon; its log says more.
    #[oai(status = 500)]
    Internal(Script),
    /// The store is not available just now; the token is still good.
    #[oai(status = 503)]
    Unavailable(Script, #[oai(header = "Retry-After")] u64),
}

impl InstallAnswer {
    fn of(answer: Result<InstallScript, ServiceError>) -> Self {
        match answer {
            Ok(install) => Self::Script(Script(install.script), rfc3339(install.expires_at)),
            Err(error) => Self::refusal(error),
        }
    }

    fn refusal(error: ServiceError) -> Self {
        let script = Script(Secret::new(bake::refusal(&error.to_string())));
        match error {
            ServiceError::Installer(InstallerRefusal::Unknown) => Self::Unknown(script),
            ServiceError::Installer(InstallerRefusal::Used | InstallerRefusal::Expired) => Self::Gone(script),
            error => match Failure::from(error) {
                Failure::Unavailable(_, seconds) => Self::Unavailable(script, seconds),
                _ => Self::Internal(script),
            },
        }
    }
}

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
