//! `GET /install/{token}`: an installer, once.

use std::sync::Arc;

use poem::web::Data;
use poem::{IntoResponse, Response};
use poem_openapi::param::Path;
use poem_openapi::payload::Payload;
use poem_openapi::registry::MetaSchemaRef;
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, OpenApi};

use super::Tag;
use super::errors::{Failure, rfc3339};
use super::guards::Caller;
use crate::model::secret::Secret;
use crate::service::error::InstallerRefusal;
use crate::service::{Service, ServiceError, bake};

pub struct InstallApi;

#[OpenApi(tag = "Tag::Install")]
impl InstallApi {
    /// Redeem an installer token
    ///
    /// Answers with the script that makes the calling machine the host the token was made for; once. Every refusal is a
    /// script too, which prints the reason and exits 1: the answer is piped into bash.
    #[oai(path = "/install/:token", method = "get", operation_id = "install")]
    async fn install(
        &self,
        service: Data<&Arc<Service>>,
        caller: Caller,
        /// As it was printed when the host was registered.
        token: Path<String>,
    ) -> InstallAnswer {
        match service.redeem(&token.0, caller.0).await {
            Ok(install) => InstallAnswer::Script(Script(install.script), rfc3339(install.expires_at)),
            Err(error) => InstallAnswer::refusal(error),
        }
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

impl Payload for Script {
    const CONTENT_TYPE: &'static str = "text/x-shellscript";

    fn schema_ref() -> MetaSchemaRef {
        String::schema_ref()
    }
}

impl IntoResponse for Script {
    fn into_response(self) -> Response {
        Response::builder().content_type("text/x-shellscript; charset=utf-8").body(self.0.expose().to_owned())
    }
}
