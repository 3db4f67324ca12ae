//! The provider's discovery document (OpenID Connect Discovery 1.0), as far as a sign-in needs it.

use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreErrorResponseType,
    CoreGenderClaim, CoreGrantType, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm,
    CoreJwsSigningAlgorithm, CoreResponseMode, CoreResponseType, CoreRevocableToken, CoreRevocationErrorResponse,
    CoreSubjectIdentifierType, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AdditionalProviderMetadata, AuthType, ClientId, ClientSecret, EmptyExtraTokenFields, EndpointMaybeSet,
    EndpointNotSet, EndpointSet, IdTokenFields, ProviderMetadata, RedirectUrl, StandardErrorResponse,
    StandardTokenResponse,
};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::http::HttpFailure;
use super::refusal::{SignInRefusal, issuers};
use super::token::Extra;
use super::{ProviderSettings, is_loopback};

type Fields = IdTokenFields<
    Extra,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
pub(super) type Client = openidconnect::Client<
    Extra,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    StandardTokenResponse<Fields, CoreTokenType>,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
    EndpointMaybeSet,
>;
type Metadata = ProviderMetadata<
    OfResponse,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// RFC 9207, 3.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct OfResponse {
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for OfResponse {}

pub(super) struct Document {
    pub client: Client,
    /// The URL of the provider's keys.
    pub keys: String,
    /// Whether the provider adds its issuer (`iss`) to answers through the browser.
    pub names_itself: bool,
}

/// The URL of the discovery document of this issuer.
pub(super) fn address(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

impl Document {
    pub fn read(body: &[u8], settings: &ProviderSettings) -> Result<Self, (SignInRefusal, HttpFailure)> {
        let unfit = |words: &str| (SignInRefusal::Unavailable, HttpFailure::new(words));
        let metadata: Metadata =
            serde_json::from_slice(body).map_err(|_| unfit("its discovery document lacks a required member"))?;
        if metadata.issuer().as_str() != settings.issuer {
            let words = issuers("its discovery document", &settings.issuer, metadata.issuer().as_str());
            return Err((SignInRefusal::IssuerOfDiscovery, HttpFailure::new(words)));
        }
        let issuer = metadata.issuer().url();
        let token_endpoint =
            metadata.token_endpoint().ok_or_else(|| unfit("its discovery document has no token_endpoint"))?.clone();
        let keys = metadata.jwks_uri().clone();
        if ![metadata.authorization_endpoint().url(), token_endpoint.url(), keys.url()]
            .into_iter()
            .all(|url| is_fit(url, issuer))
        {
            return Err(unfit("its discovery document has an endpoint that is not https"));
        }
        let names_itself = metadata.additional_metadata().authorization_response_iss_parameter_supported;
        let auth_type = auth_type(&metadata, settings.client_secret.is_some());
        let secret = settings.client_secret.as_ref().map(|secret| ClientSecret::new(secret.expose().to_owned()));
        let redirect =
            RedirectUrl::new(settings.redirect_uri.clone()).map_err(|_| unfit("oidc.redirect_uri is not a URL"))?;
        let client =
            openidconnect::Client::from_provider_metadata(metadata, ClientId::new(settings.client_id.clone()), secret)
                .set_token_uri(token_endpoint)
                .set_redirect_uri(redirect)
                .set_auth_type(auth_type);
        Ok(Self { client, keys: keys.to_string(), names_itself })
    }
}

/// Endpoints receive secrets, or decide the identity of a user. So they must use https, except on loopback.
fn is_fit(endpoint: &Url, issuer: &Url) -> bool {
    let is_safe = endpoint.scheme() == "https"
        || endpoint.scheme() == "http" && issuer.scheme() == "http" && is_loopback(issuer) && is_loopback(endpoint);
    is_safe && endpoint.username().is_empty() && endpoint.password().is_none() && endpoint.fragment().is_none()
}

/// How this client authenticates at the token endpoint: in the header, unless the provider accepts only the body.
fn auth_type(metadata: &Metadata, is_confidential: bool) -> AuthType {
    let offered = metadata.token_endpoint_auth_methods_supported();
    let is_offered = |method| offered.is_some_and(|offered| offered.contains(&method));
    let in_body_only =
        is_offered(CoreClientAuthMethod::ClientSecretPost) && !is_offered(CoreClientAuthMethod::ClientSecretBasic);
    if in_body_only || !is_confidential { AuthType::RequestBody } else { AuthType::BasicAuth }
}
