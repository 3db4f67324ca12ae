//! JSON bodies, read and written directly by serde. An answer's members keep the order of the struct, and a document
//! inside it stays unchanged byte for byte. The schemas come from poem-openapi.
//!
//! This module knows nothing of errors and callers. `errors.rs` and `bodies.rs` build on it.

use std::sync::Arc;

use poem::http::StatusCode;
use poem::{IntoResponse, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use poem_openapi::{ApiResponse, Enum, Object};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::auth_document::DocumentText;
use crate::service::ServiceError;

/// `{"status": "ok", "data": …}`
#[derive(Debug, Object, Serialize, Deserialize)]
pub struct Envelope<T: Type + ParseFromJSON + ToJSON> {
    pub status: OkStatus,
    pub data: T,
}

#[derive(Clone, Copy, Debug, Enum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase")]
pub enum OkStatus {
    Ok,
}

/// A JSON body of `T`.
pub struct JsonBody<T>(pub T);

impl<T: Type> Payload for JsonBody<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn check_content_type(content_type: &str) -> bool {
        is_json(content_type)
    }

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// Sent instead of an answer that cannot be serialized. It equals the answer of [`super::errors`] to an internal error.
pub(super) const UNWRITTEN: &str =
    r#"{"status":"error","code":"internal","message":"Internal error; the daemon's log says more"}"#;

impl<T: Serialize + Send> IntoResponse for JsonBody<T> {
    fn into_response(self) -> Response {
        // Most answers fit without a reallocation.
        let mut body = Vec::with_capacity(2048);
        match serde_json::to_writer(&mut body, &self.0) {
            Ok(()) => Response::builder().content_type("application/json").body(body),
            Err(error) => {
                log::error!(event = "internal_error", cause:% = error; "an answer could not be written as JSON");
                let answer = Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR);
                answer.content_type("application/json").body(UNWRITTEN)
            }
        }
    }
}

impl<T: Type> ApiResponse for JsonBody<T> {
    fn meta() -> MetaResponses {
        let content = vec![MetaMediaType { content_type: <Self as Payload>::CONTENT_TYPE, schema: T::schema_ref() }];
        MetaResponses {
            responses: vec![MetaResponse {
                description: "Done.",
                status: Some(200),
                status_range: None,
                content,
                headers: vec![],
            }],
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// A body as it is compared with that of a repeated request.
pub fn written(body: &impl Serialize) -> Result<zeroize::Zeroizing<Vec<u8>>, ServiceError> {
    serde_json::to_vec(body).map(zeroize::Zeroizing::new).map_err(ServiceError::internal)
}

pub(crate) fn is_json(content_type: &str) -> bool {
    if content_type == "application/json" {
        return true;
    }
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // The characters that RFC 9110 allows in a subtype.
    let in_a_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    essence
        .strip_prefix("application/")
        .is_some_and(|subtype| (subtype == "json" || subtype.ends_with("+json")) && subtype.bytes().all(in_a_token))
}

/// Describes a type as one of JSON's own types, for poem-openapi.
macro_rules! described_as {
    ($name:ty, $kind:literal) => {
        impl poem_openapi::types::Type for $name {
            const IS_REQUIRED: bool = true;
            type RawValueType = Self;
            type RawElementValueType = Self;

            fn name() -> std::borrow::Cow<'static, str> {
                $kind.into()
            }

            fn schema_ref() -> poem_openapi::registry::MetaSchemaRef {
                let schema = poem_openapi::registry::MetaSchema::new($kind);
                poem_openapi::registry::MetaSchemaRef::Inline(Box::new(schema))
            }

            fn as_raw_value(&self) -> Option<&Self> {
                Some(self)
            }

            fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
                Box::new(std::iter::once(self))
            }
        }
    };
}

pub(super) use described_as;

/// A JSON document inside an answer: written unchanged, and shared by all answers that contain it.
#[derive(Clone, Debug)]
pub struct Verbatim(Arc<DocumentText>);

impl Verbatim {
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl From<Arc<DocumentText>> for Verbatim {
    fn from(text: Arc<DocumentText>) -> Self {
        Self(text)
    }
}

impl Serialize for Verbatim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Verbatim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DocumentText::deserialize(deserializer).map(|text| Self(Arc::new(text)))
    }
}

described_as!(Verbatim, "object");

impl ParseFromJSON for Verbatim {
    fn parse_from_json(value: Option<serde_json::Value>) -> ParseResult<Self> {
        let text = DocumentText::new(&value.unwrap_or_default().to_string()).map_err(ParseError::custom)?;
        Ok(Self(Arc::new(text)))
    }
}

impl ToJSON for Verbatim {
    fn to_json(&self) -> Option<serde_json::Value> {
        serde_json::from_str(self.text()).ok()
    }
}

/// A JSON document inside an answer as a string: its exact text, which no JSON library can change.
#[derive(Clone, Debug)]
pub struct ExactText(Arc<DocumentText>);

impl ExactText {
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl From<Arc<DocumentText>> for ExactText {
    fn from(text: Arc<DocumentText>) -> Self {
        Self(text)
    }
}

impl Serialize for ExactText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

impl<'de> Deserialize<'de> for ExactText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(deserializer)?);
        DocumentText::new(&text).map(|text| Self(Arc::new(text))).map_err(serde::de::Error::custom)
    }
}

described_as!(ExactText, "string");

impl ParseFromJSON for ExactText {
    fn parse_from_json(value: Option<serde_json::Value>) -> ParseResult<Self> {
        serde_json::from_value(value.unwrap_or_default()).map_err(ParseError::custom)
    }
}

impl ToJSON for ExactText {
    fn to_json(&self) -> Option<serde_json::Value> {
        Some(self.text().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_types_of_json_are_taken_for_it() {
        for text in
            ["application/json", "Application/JSON; charset=utf-8", "application/problem+json", " application/json ;"]
        {
            assert!(is_json(text), "{text:?}");
        }
        for text in [
            "",
            "text/json",
            "text/plain",
            "application/jsonx",
            "text/plain; application/json",
            "application/x, y/a+json",
            "application/ +json",
            "application/\u{e9}+json",
        ] {
            assert!(!is_json(text), "{text:?}");
        }
    }
}
