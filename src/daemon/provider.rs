//! Builds the client of the identity provider from the configuration.

use std::sync::Arc;
use std::time::Duration;

use super::DaemonError;
use crate::config::Config;
use crate::model::secret::Secret;
use crate::platform::Platform;
use crate::upstream::oidc::{Provider, ProviderSettings};

/// Opens no connection: the provider may start after the daemon.
pub fn provider(config: &Config, platform: Arc<dyn Platform>) -> Result<Option<Arc<Provider>>, DaemonError> {
    let oidc = &config.oidc;
    if !oidc.is_configured() {
        return Ok(None);
    }
    let settings = ProviderSettings {
        issuer: oidc.issuer.clone(),
        client_id: oidc.client_id.clone(),
        client_secret: (!oidc.client_secret.is_empty()).then(|| Secret::new(oidc.client_secret.clone())),
        redirect_uri: oidc.redirect_uri(&config.public_base_url),
        trusted_audiences: oidc.trusted_audiences.clone(),
        keys_ttl: Duration::from_secs(oidc.jwks_cache_ttl.into()),
        keys_refresh: Duration::from_secs(oidc.jwks_cache_refresh.into()),
    };
    log::info!(event = "oidc", issuer = settings.issuer.as_str(), redirect_uri = settings.redirect_uri.as_str(); "users sign in through an identity provider");
    let provider = Provider::new(settings, platform).map_err(|error| DaemonError::Provider(error.to_string()))?;
    Ok(Some(Arc::new(provider)))
}
