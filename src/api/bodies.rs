//! Request bodies: size limits, when they are read, and how they are parsed.
//!
//! No body is read before its caller is authenticated. Either a guard comes before the body in the handler's
//! parameters, or the handler admits the caller and then reads ([`UnreadBody`]).

use std::io;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use poem::{Body, Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::DeserializeOwned;

use super::errors::Failure;
use super::guards::CallerKnown;
use super::json::{JsonBody, is_json};
use crate::hot::HotHost;
use crate::model::auth_document::split_request;
use crate::service::ServiceError;

/// The longest body of an authenticated caller, in bytes.
pub const MAX_BODY: usize = 1024 * 1024;
/// The longest body of an unauthenticated caller, in bytes. Enough for a sign-in with an e-mail address and a password.
pub const MAX_STRANGERS_BODY: usize = 16 * 1024;

/// Reads a raw body and parses it.
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
        let RawBody::<T> { text, .. } = RawBody::from_request(request, body, ExtractParamOptions::default()).await?;
        // serde refuses duplicate members and ignores unknown ones.
        let mut reader = serde_json::Deserializer::from_str(&text);
        let body = serde_path_to_error::deserialize(&mut reader);
        let body = body.map_err(|error| Failure::from(unreadable(&text, &error)))?;
        let invalid = |error: serde_json::Error| ServiceError::InvalidJson { reason: error.to_string() };
        reader.end().map_err(|error| Failure::from(invalid(error)))?;
        Ok(Self(body))
    }
}

/// A text that is not JSON, or JSON that does not have the right members.
fn unreadable(text: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> ServiceError {
    // A wrong member may be found before the text turns out to be no JSON.
    if let Err(error) = split_request(text) {
        return error.into();
    }
    let (member, reason) = (error.path().to_string(), error.inner().to_string());
    match error.inner().classify() {
        serde_json::error::Category::Data if member == "." => ServiceError::invalid("body", reason),
        serde_json::error::Category::Data => ServiceError::invalid(&member, reason),
        _ => ServiceError::InvalidJson { reason },
    }
}

/// The raw body, which the service parses. The document describes it as `T`.
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
        let text = read(other_type(request), body.take()?, bound_of(request)).await?;
        Ok(Self { text, described_as: std::marker::PhantomData })
    }
}

/// A body that the handler reads after it has admitted the caller. The document describes it as `T`; the service parses
/// it.
pub struct UnreadBody<T> {
    other_type: Option<String>,
    body: Body,
    described_as: std::marker::PhantomData<fn() -> T>,
}

impl<T> UnreadBody<T> {
    /// Requires the admitted host, as proof that the caller is authenticated.
    pub async fn read(self, _admitted: &HotHost) -> Result<String, Failure> {
        read(self.other_type, self.body, MAX_BODY).await
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
        Ok(Self { other_type: other_type(request), body: body.take()?, described_as: std::marker::PhantomData })
    }
}

fn request_meta<T: Type>() -> MetaRequest {
    MetaRequest {
        description: None,
        content: vec![MetaMediaType { content_type: "application/json", schema: T::schema_ref() }],
        required: true,
    }
}

/// The size limit for the body of this caller. The guard that authenticated the caller has marked the request. It comes
/// before the body in the handler's parameters.
pub fn bound_of(request: &Request) -> usize {
    if request.data::<CallerKnown>().is_some_and(CallerKnown::is_known) { MAX_BODY } else { MAX_STRANGERS_BODY }
}

/// The content type of a request, if it is not JSON. A missing content type counts as JSON, because scripts often omit
/// it.
fn other_type(request: &Request) -> Option<String> {
    request.content_type().filter(|content_type| !is_json(content_type)).map(str::to_owned)
}

/// Reads up to `bound` bytes, even if the declared length is larger: a client that is still sending would not see the
/// answer.
async fn read(other_type: Option<String>, body: Body, bound: usize) -> Result<String, Failure> {
    if let Some(other) = other_type {
        return Err(Failure::unsupported_media_type(&other));
    }
    let gathered = Limited::new(BoxBody::<Bytes, io::Error>::from(body), bound).collect().await;
    let bytes = gathered.map_err(|error| match error.is::<LengthLimitError>() {
        true if bound < MAX_BODY => Failure::too_large_of_stranger(),
        true => Failure::too_large(),
        false => ServiceError::InvalidJson { reason: format!("io: {error}") }.into(),
    })?;
    String::from_utf8(bytes.to_bytes().into())
        .map_err(|_| ServiceError::InvalidJson { reason: "the body is not UTF-8".into() }.into())
}
