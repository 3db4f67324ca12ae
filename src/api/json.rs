//! JSON bodies, read and written by serde directly: an answer's members stand in the order of the struct, and a document
//! inside it stays byte for byte as it is. The schemas are poem-openapi's.

use std::borrow::Cow;

use bytes::Bytes;
use poem::error::ReadBodyError;
use poem::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use poem::{Body, IntoResponse, Request, RequestBody, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::{
    MetaMediaType, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ApiResponse, Enum, ExtractParamOptions, Object};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::errors::Failure;
use super::guards::CallerKnown;
use crate::hot::HotHost;
use crate::service::ServiceError;

/// The longest body that is read of a caller who is known, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;
/// The longest body that is read of a stranger, in bytes: somebody signs in with an address and a password.
pub const MAX_STRANGERS_BODY: usize = 16 * 1024;

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

/// The answer of a handler that has one success.
pub type Answer<T> = Result<JsonBody<Envelope<T>>, Failure>;

pub fn ok<T: Type + ParseFromJSON + ToJSON>(data: T) -> Answer<T> {
    Ok(JsonBody(Envelope { status: OkStatus::Ok, data }))
}

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

/// A raw body that is parsed as well.
impl<'a, T: Type + DeserializeOwned> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = RawBody::<T>::TYPES;
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        <RawBody<T> as ApiExtractor>::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        RawBody::<T>::request_meta()
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let text = read(request, body).await?;
        // serde refuses a member that stands twice, and passes over one that nobody knows.
        serde_json::from_str(&text)
            .map(Self)
            .map_err(|error| Failure::from(ServiceError::InvalidJson { reason: error.to_string() }).into())
    }
}

impl<T: Serialize + Send> IntoResponse for JsonBody<T> {
    fn into_response(self) -> Response {
        // Most answers are shorter than this: they are written without growing.
        let mut body = Vec::with_capacity(2048);
        match serde_json::to_writer(&mut body, &self.0) {
            Ok(()) => Response::builder().content_type("application/json").body(body),
            Err(error) => Failure::from(ServiceError::internal(error)).into_response(),
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

/// A body as it came, for the service to read: described as `T`, not parsed here.
pub struct RawBody<T> {
    pub text: String,
    described_as: std::marker::PhantomData<fn() -> T>,
}

impl<'a, T: Type> ApiExtractor<'a> for RawBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(request_meta::<T>())
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self { text: read(request, body).await?, described_as: std::marker::PhantomData })
    }
}

/// A body that is read when the handler knows that the caller may send it, not before. Described as `T`, not parsed here.
pub struct UnreadBody<T> {
    head: BodyHead,
    body: Body,
    described_as: std::marker::PhantomData<fn() -> T>,
}

impl<T> UnreadBody<T> {
    /// For the host that was admitted.
    pub async fn read(self, _admitted: &HotHost) -> Result<String, Failure> {
        let bytes = self.head.read(self.body, MAX_BODY).await?;
        Ok(text(&bytes)?.to_owned())
    }
}

impl<'a, T: Type> ApiExtractor<'a> for UnreadBody<T> {
    const TYPES: &'static [ApiExtractorType] = RawBody::<T>::TYPES;
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        <RawBody<T> as ApiExtractor>::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        RawBody::<T>::request_meta()
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self { head: BodyHead::of(request), body: body.take()?, described_as: std::marker::PhantomData })
    }
}

fn request_meta<T: Type>() -> MetaRequest {
    MetaRequest {
        description: None,
        content: vec![MetaMediaType { content_type: "application/json", schema: T::schema_ref() }],
        required: true,
    }
}

async fn read(request: &Request, body: &mut RequestBody) -> poem::Result<String> {
    let bytes = read_bytes(request, body.take()?, bound_of(request)).await?;
    Ok(text(&bytes)?.to_owned())
}

/// How long a body of this caller may be. A guard that let the caller in has said so in the request; it stands before the
/// body among the parameters of a handler.
pub fn bound_of(request: &Request) -> usize {
    if request.data::<CallerKnown>().is_some_and(CallerKnown::is_known) { MAX_BODY } else { MAX_STRANGERS_BODY }
}

/// The body. No content type at all is taken for JSON: scripts forget it.
pub async fn read_bytes(request: &Request, body: Body, bound: usize) -> Result<Bytes, Failure> {
    BodyHead::of(request).read(body, bound).await
}

/// What the head of a request says of its body.
struct BodyHead {
    /// The content type, where it is none of JSON's.
    other_type: Option<String>,
    /// `None` where the body's end is told in some other way.
    length: Option<usize>,
}

impl BodyHead {
    fn of(request: &Request) -> Self {
        let other_type = request.content_type().filter(|content_type| !is_json(content_type)).map(str::to_owned);
        Self { other_type, length: declared_length(request) }
    }

    async fn read(self, body: Body, bound: usize) -> Result<Bytes, Failure> {
        if let Some(other) = self.other_type {
            return Err(Failure::unsupported_media_type(&other));
        }
        let bytes = match self.length {
            // It is no longer than was declared: whoever reads the connection sees to that.
            Some(length) if length <= bound => body.into_bytes().await,
            // Read as far as it may be, also where it is said to be too long: whoever is still sending would not see the
            // answer. Boxed, for it carries a buffer about that few callers need.
            _ => Box::pin(body.into_bytes_limit(bound)).await,
        };
        bytes.map_err(|error| match error {
            ReadBodyError::PayloadTooLarge if bound < MAX_BODY => Failure::too_large_of_stranger(),
            ReadBodyError::PayloadTooLarge => Failure::too_large(),
            error => ServiceError::InvalidJson { reason: error.to_string() }.into(),
        })
    }
}

pub fn text(body: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(body).map_err(|_| ServiceError::InvalidJson { reason: "the body is not UTF-8".into() }.into())
}

/// `None` where the body's end is told in some other way.
fn declared_length(request: &Request) -> Option<usize> {
    let headers = request.headers();
    if headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(crate) fn is_json(content_type: &str) -> bool {
    if content_type == "application/json" {
        return true;
    }
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // The characters that RFC 9110 lets a subtype have.
    let in_a_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    essence
        .strip_prefix("application/")
        .is_some_and(|subtype| (subtype == "json" || subtype.ends_with("+json")) && subtype.bytes().all(in_a_token))
}

/// A JSON document inside an answer: written as it stands.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Verbatim(Box<RawValue>);

impl Verbatim {
    pub fn new(text: &str) -> serde_json::Result<Self> {
        RawValue::from_string(text.to_owned()).map(Self)
    }

    pub fn text(&self) -> &str {
        self.0.get()
    }
}

impl Type for Verbatim {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "object".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new("object")))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ParseFromJSON for Verbatim {
    fn parse_from_json(value: Option<serde_json::Value>) -> ParseResult<Self> {
        Self::new(&value.unwrap_or_default().to_string()).map_err(ParseError::custom)
    }
}

impl ToJSON for Verbatim {
    fn to_json(&self) -> Option<serde_json::Value> {
        serde_json::from_str(self.text()).ok()
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
