//! The identity provider, by OpenID Connect: authorization code with PKCE (S256), state and nonce.
//!
//! It begins a sign-in (where to send the browser) and finishes one (the identity, proved by an ID token). It knows
//! nothing of users, sessions and browsers. The provider's document and keys are fetched at first use and cached in
//! memory; after a crash they are fetched again. Data from the provider is checked before it is used, and none of it
//! gets into an error. An error is a [`SignInRefusal`] with a stable name and our own message.

mod document;
mod http;
mod kept;
mod keys;
mod refusal;
#[cfg(test)]
pub(crate) mod tests;
mod token;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use openidconnect::core::{CoreAuthenticationFlow, CoreErrorResponseType};
use openidconnect::{
    AuthorizationCode, CsrfToken, HttpRequest, IssuerUrl, Nonce, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl,
    RequestTokenError, Scope, TokenResponse as _,
};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use self::document::Document;
use self::http::{Http, HttpFailure, HttpLimits};
use self::kept::{Kept, ProviderPart};
pub use self::refusal::SignInRefusal;
use self::token::{ExpectedClaims, Token, TokenHeader};
use crate::model::secret::Secret;
use crate::platform::{Platform, random};

#[derive(Clone, Debug)]
pub struct ProviderSettings {
    pub issuer: String,
    pub client_id: String,
    /// `None` for a public client.
    pub client_secret: Option<Secret>,
    pub redirect_uri: String,
    /// Other audiences that an ID token may name besides `client_id`.
    pub trusted_audiences: Vec<String>,
    /// How long fetched keys may be used.
    pub keys_ttl: Duration,
    /// The interval of the refresh in the background.
    pub keys_refresh: Duration,
}

/// The data that a sign-in needs when the browser comes back. The caller keeps it, sealed.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Flow {
    /// 256 random bits, base64url.
    pub state: String,
    pub nonce: String,
    pub verifier: String,
}

/// The parameters that the browser brings back. A missing one is `None`; none is trusted.
#[derive(Default)]
pub struct ProviderAnswer {
    pub code: Option<Secret>,
    pub state: Option<Secret>,
    pub iss: Option<String>,
    /// The provider reports an error instead of a code.
    pub error: Option<String>,
}

/// The user who signed in, as the provider proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub issuer: String,
    pub subject: String,
    /// Only for display; it decides nothing.
    pub email: Option<String>,
}

/// Why these settings do not make a provider.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("oidc.issuer is not a URL: set it to the issuer URL of the provider")]
    Issuer,
    #[error(
        "oidc.redirect_uri is not a URL: set it to the URL of this service for browsers, followed by /auth/oidc/callback"
    )]
    RedirectUri,
    #[error("the HTTP client for the provider cannot be made: {0}")]
    Client(#[from] reqwest::Error),
}

pub struct Provider {
    issuer: IssuerUrl,
    platform: Arc<dyn Platform>,
    kept: Arc<Kept>,
}

impl Provider {
    /// Opens no connection: the provider is contacted at first use.
    pub fn new(settings: ProviderSettings, platform: Arc<dyn Platform>) -> Result<Self, ProviderError> {
        Self::within(HttpLimits::REAL, settings, platform)
    }

    fn within(
        limits: HttpLimits,
        settings: ProviderSettings,
        platform: Arc<dyn Platform>,
    ) -> Result<Self, ProviderError> {
        let issuer = IssuerUrl::new(settings.issuer.clone()).map_err(|_| ProviderError::Issuer)?;
        RedirectUrl::new(settings.redirect_uri.clone()).map_err(|_| ProviderError::RedirectUri)?;
        let http = Http::new(&limits, is_loopback(issuer.url()))?;
        Ok(Self { issuer, platform, kept: Arc::new(Kept::new(settings, http, &limits)) })
    }

    /// The URL to which the browser comes back.
    pub fn redirect_uri(&self) -> &str {
        &self.kept.settings.redirect_uri
    }

    /// Returns the URL for the browser, and the data to keep until it comes back.
    pub async fn begin(&self) -> Result<(Url, Flow), SignInRefusal> {
        let document = self.kept.document().await?;
        let flow = Flow { state: self.random(), nonce: self.random(), verifier: self.random() };
        let verifier = PkceCodeVerifier::new(flow.verifier.clone());
        let (state, nonce) = (CsrfToken::new(flow.state.clone()), Nonce::new(flow.nonce.clone()));
        let (url, _, _) = document
            .client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, || state, || nonce)
            .add_scope(Scope::new("email".to_owned()))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok((url, flow))
    }

    /// Finishes a sign-in, and returns the identity of the user.
    pub async fn finish(&self, flow: &Flow, answer: &ProviderAnswer) -> Result<Identity, SignInRefusal> {
        let state = answer.state.as_ref().ok_or(SignInRefusal::StateMissing)?;
        if !bool::from(state.expose().as_bytes().ct_eq(flow.state.as_bytes())) {
            return Err(SignInRefusal::StateForeign);
        }
        let settings = &self.kept.settings;
        if let Some(iss) = answer.iss.as_ref().filter(|iss| **iss != settings.issuer) {
            refusal::tell_issuers("the browser's answer", &settings.issuer, iss);
            return Err(SignInRefusal::IssuerOfResponse);
        }
        let document = self.kept.document().await?;
        if answer.iss.is_none() && document.names_itself {
            return Err(SignInRefusal::IssuerOfResponse);
        }
        if answer.error.is_some() {
            return Err(SignInRefusal::Denied);
        }
        let code = answer.code.as_ref().filter(|code| !code.expose().is_empty()).ok_or(SignInRefusal::CodeMissing)?;
        let (token, header) = self.exchange(&document, code, flow).await?;
        let key = self.kept.key(&header).await?;
        let expected =
            ExpectedClaims { settings, issuer: self.issuer.clone(), nonce: &flow.nonce, now: self.platform.now() };
        expected.check(&token, key)
    }

    /// To be called in the background every `keys_refresh`: refreshes the document and the keys before they expire.
    pub async fn look_after_keys(&self) {
        self.kept.look_after().await;
    }

    /// Exchanges the code for an ID token.
    async fn exchange(
        &self,
        document: &Document,
        code: &Secret,
        flow: &Flow,
    ) -> Result<(Token, TokenHeader), SignInRefusal> {
        let seen = Arc::new(OnceLock::new());
        let (http, header) = (self.kept.http.clone(), seen.clone());
        // Owned values, so that the future is `Send`.
        let client = move |request: HttpRequest| {
            let (http, header) = (http.clone(), header.clone());
            async move {
                let answer = http.call(request).await?;
                if answer.status().is_success() {
                    // Checked here, because the library would look up a key first.
                    if let Some(found) = TokenHeader::in_answer(answer.body())? {
                        let _ = header.set(found);
                    }
                }
                Ok::<_, Stopped>(answer)
            }
        };
        let asked = document
            .client
            .exchange_code(AuthorizationCode::new(code.expose().to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(flow.verifier.clone()))
            .request_async(&client)
            .await;
        let (refusal, failure) = match asked {
            Ok(tokens) => {
                self.kept.parts.works(ProviderPart::Exchange);
                let header: TokenHeader = seen.get().cloned().ok_or(SignInRefusal::TokenMissing)?;
                return Ok((tokens.id_token().ok_or(SignInRefusal::TokenMissing)?.clone(), header));
            }
            Err(RequestTokenError::Request(Stopped::Refused(refusal))) => (refusal, None),
            Err(RequestTokenError::Request(Stopped::Failed(failure))) => (SignInRefusal::Unavailable, Some(failure)),
            Err(RequestTokenError::ServerResponse(error)) => match error.error() {
                CoreErrorResponseType::InvalidClient | CoreErrorResponseType::UnauthorizedClient => {
                    let failure = HttpFailure::new("it rejects oidc.client_id or oidc.client_secret");
                    (SignInRefusal::ClientRefused, Some(failure))
                }
                _ => (SignInRefusal::CodeRefused, None),
            },
            Err(RequestTokenError::Parse(_, body)) if seen.get().is_some() => {
                (token::why_unreadable(&Zeroizing::new(body)), None)
            }
            Err(_) => {
                (SignInRefusal::Unavailable, Some(HttpFailure::new("its answer is not valid for a token endpoint")))
            }
        };
        match failure {
            Some(failure) => self.kept.parts.fails(ProviderPart::Exchange, &failure),
            None => self.kept.parts.works(ProviderPart::Exchange),
        }
        Err(refusal)
    }

    /// Returns 256 random bits, base64url.
    fn random(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Zeroizing::new(random::<32>(&*self.platform)))
    }
}

/// Why the token endpoint's answer was not given to the library.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Failed(#[from] HttpFailure),
    #[error(transparent)]
    Refused(#[from] SignInRefusal),
}

fn is_loopback(url: &Url) -> bool {
    matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"))
}
