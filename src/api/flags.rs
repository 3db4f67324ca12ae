//! Boolean members and parameters that also take what the former service took.

use std::borrow::Cow;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::types::{ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON, Type};
use serde::{Deserialize, Serialize};

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

impl From<bool> for SecureFlag {
    fn from(secure: bool) -> Self {
        Self(secure.into())
    }
}

/// The document describes both as a boolean.
macro_rules! described_as_boolean {
    ($($name:ty),+) => {$(
        impl Type for $name {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> Cow<'static, str> {
                "boolean".into()
            }

            fn schema_ref() -> MetaSchemaRef {
                MetaSchemaRef::Inline(Box::new(MetaSchema::new("boolean")))
            }

            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }

            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(std::iter::once(self))
            }
        }
    )+};
}

described_as_boolean!(Flag, SecureFlag);

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
