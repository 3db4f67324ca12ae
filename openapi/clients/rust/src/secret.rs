use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Text that must not appear in logs: API keys, tokens, passwords, login documents. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.expose().to_owned()
    }
}

/// A login as JSON. `Debug` shows nothing of it. Its bytes are not those of the daemon's document: use the member
/// `auth_text`, or [`crate::Client::auth_document`].
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretJson(serde_json::Map<String, serde_json::Value>);

impl SecretJson {
    pub fn expose(&self) -> &serde_json::Map<String, serde_json::Value> {
        &self.0
    }
}

impl fmt::Debug for SecretJson {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretJson(…)")
    }
}

impl From<serde_json::Map<String, serde_json::Value>> for SecretJson {
    fn from(members: serde_json::Map<String, serde_json::Value>) -> Self {
        Self(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("canary")), "Secret(…)");
        let login: SecretJson = serde_json::from_str(r#"{"tokens": "canary"}"#).unwrap();
        assert_eq!(format!("{login:?}"), "SecretJson(…)");
    }

    #[test]
    fn json_carries_the_text() {
        let secret: Secret = serde_json::from_str("\"a\\u00e9\"").unwrap();
        assert_eq!(secret.expose(), "aé");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"aé\"");
    }
}
