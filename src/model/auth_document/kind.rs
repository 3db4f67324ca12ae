//! Determines the kind of a login by Codex's rules.

use super::json::{Members, Node};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginKind {
    ChatGpt,
    /// ChatGPT tokens that Codex does not renew.
    ChatGptTokens,
    ApiKey,
    PersonalAccessToken,
    AgentIdentity,
    BedrockApiKey,
    BedrockAccessKeys,
}

/// The values of `auth_mode` and their kinds.
const MODES: [(&str, LoginKind); 7] = [
    ("chatgpt", LoginKind::ChatGpt),
    ("chatgptAuthTokens", LoginKind::ChatGptTokens),
    ("apikey", LoginKind::ApiKey),
    ("personalAccessToken", LoginKind::PersonalAccessToken),
    ("agentIdentity", LoginKind::AgentIdentity),
    ("bedrockApiKey", LoginKind::BedrockApiKey),
    ("bedrockAccessKeys", LoginKind::BedrockAccessKeys),
];

/// Without `auth_mode`, the first of these members that exists decides. Without any of them, it is a ChatGPT login.
const INFERRED: [(&str, LoginKind); 4] = [
    ("personal_access_token", LoginKind::PersonalAccessToken),
    ("bedrock_api_key", LoginKind::BedrockApiKey),
    ("bedrock_access_keys", LoginKind::BedrockAccessKeys),
    ("OPENAI_API_KEY", LoginKind::ApiKey),
];

/// How the kind of a document is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DetectedKind {
    /// Stated by `auth_mode`.
    Stated(LoginKind),
    Inferred(LoginKind),
    /// Codex does not read this `auth_mode` from a file.
    Unknown,
}

impl LoginKind {
    pub(super) fn detect(document: &Members<'_>) -> DetectedKind {
        match document.get("auth_mode") {
            None | Some(Node::Null) => {
                let inferred = INFERRED.iter().find(|(member, _)| document.has(member));
                DetectedKind::Inferred(inferred.map_or(Self::ChatGpt, |(_, kind)| *kind))
            }
            Some(mode) => {
                let known = MODES.iter().find(|(name, _)| mode.as_str() == Some(*name));
                known.map_or(DetectedKind::Unknown, |(_, kind)| DetectedKind::Stated(*kind))
            }
        }
    }

    /// Whether Codex writes a `last_refresh` for this kind. If so, Codex sends no request without one.
    pub(super) fn has_date(self) -> bool {
        matches!(self, Self::ChatGpt | Self::ChatGptTokens)
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::ChatGpt => "ChatGPT account",
            Self::ChatGptTokens => "ChatGPT account (access only)",
            Self::ApiKey => "API key",
            Self::PersonalAccessToken => "personal access token",
            Self::AgentIdentity => "agent identity of account",
            Self::BedrockApiKey => "Bedrock API key",
            Self::BedrockAccessKeys => "Bedrock access key",
        }
    }
}

impl DetectedKind {
    pub(super) fn kind(self) -> Option<LoginKind> {
        match self {
            Self::Stated(kind) | Self::Inferred(kind) => Some(kind),
            Self::Unknown => None,
        }
    }
}
