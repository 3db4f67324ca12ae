//! Boolean members and parameters that also take what the former service took.

use poem_openapi::types::{ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON};
use serde::{Deserialize, Serialize};

use super::json::described_as;
use crate::service::ServiceError;

/// A query parameter: `true` or `false`, also as `1` or `0`.
#[derive(Clone, Copy, Debug)]
pub struct Flag(bool);

impl Flag {
    pub fn is_set(self) -> bool {
        self.0
    }
}

/// `secure` of a registration. Any JSON is read, so that something else than a boolean is refused in the recorded words.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecureFlag(serde_json::Value);

impl SecureFlag {
    pub fn value(self) -> Result<Option<bool>, ServiceError> {
        serde_json::from_value(self.0).map_err(|_| ServiceError::Refused("secure must be boolean".into()))
    }
}

described_as!(Flag, "boolean");
described_as!(SecureFlag, "boolean");

impl ParseFromParameter for Flag {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        match value {
            "true" | "1" => Ok(Self(true)),
            "false" | "0" => Ok(Self(false)),
            _ => Err(ParseError::custom("must be true or false")),
        }
    }
}

impl ParseFromJSON for SecureFlag {
    fn parse_from_json(value: Option<serde_json::Value>) -> ParseResult<Self> {
        Ok(Self(value.unwrap_or_default()))
    }
}

impl ToJSON for SecureFlag {
    fn to_json(&self) -> Option<serde_json::Value> {
        Some(self.0.clone())
    }
}
