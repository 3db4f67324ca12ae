//! Reads forms within limits, and accepts them only with the token that this process gave this admin.
//!
//! A browser sends an admin's certificate with every request, even if another site's page causes it. The listener
//! refuses such requests by the headers that the browser sends (`api/guards.rs`). The token is a second check, for
//! browsers that send no such headers. It is an HMAC over the admin's name and session. Its key is made at start, so
//! nothing is stored. After a restart old tokens are stale, and the page says so.

use std::sync::Arc;

use aws_lc_rs::hmac;
use poem::http::Method;
use poem::web::Multipart;
use poem::{Body, FromRequest, Request, RequestBody};
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use super::context::{PageContext, PageError};
use crate::api::bodies::{MAX_BODY, MAX_STRANGERS_BODY, bound_of};
use crate::api::errors::Failure;
use crate::api::guards::Principal;
use crate::platform::{SecureRandom, random};
use crate::service::ServiceError;

/// The field of every form that holds the token.
pub const TOKEN: &str = "token";
/// Room for the boundaries and small fields of a form, in addition to a document of maximum length.
const MAX_FORM_OVERHEAD_BYTES: usize = 64 * 1024;
/// A body that is too long is still read up to here, because a browser that cannot finish sending shows no answer.
const MAX_DRAINED_BYTES: usize = 16 * 1024 * 1024;

/// Makes and checks the tokens of forms.
pub struct Tokens(hmac::Key);

impl Tokens {
    pub fn new(rng: &dyn SecureRandom) -> Self {
        let key = Zeroizing::new(random::<32>(rng));
        Self(hmac::Key::new(hmac::HMAC_SHA256, &*key))
    }

    pub fn token(&self, principal: &Principal) -> String {
        hex::encode(hmac::sign(&self.0, bound_to(principal).as_bytes()))
    }

    /// Compares in constant time.
    fn is_good(&self, principal: &Principal, token: &str) -> bool {
        let Ok(tag) = hex::decode(token) else { return false };
        hmac::verify(&self.0, bound_to(principal).as_bytes(), &tag).is_ok()
    }
}

/// What a token is bound to: the caller and, for a signed-in user, the session.
fn bound_to(principal: &Principal) -> String {
    let session = principal.signed_in.as_ref().map(|signed_in| signed_in.session.session.id);
    format!("form of {} {}", principal.by.actor, session.unwrap_or_default())
}

/// The fields of a form. Handlers receive it only after [`check`] has verified its token.
pub struct Form(Vec<(String, Zeroizing<String>)>);

impl Form {
    /// The field's value, trimmed. Empty if the field is missing.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.trim()).unwrap_or_default()
    }

    /// The field's value, not trimmed. For passwords.
    pub fn exact(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.text(name) == value
    }
}

/// Ignores GET and HEAD. For other methods, reads the form and checks its token. The handler finds the form in
/// `Data<&Arc<Form>>`.
pub async fn check(context: &PageContext, request: &mut Request) -> poem::Result<()> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let body = request.take_body();
    let form = read(request, body).await?;
    if !context.dashboard.tokens.is_good(&context.principal, form.text(TOKEN)) {
        log::warn!(event = "form_refused", admin:% = context.by().actor; "refused a form without a valid token");
        return Err(PageError(Failure::form_stale()).into());
    }
    request.set_data(Arc::new(form));
    Ok(())
}

pub async fn read(request: &Request, body: Body) -> poem::Result<Form> {
    let mut body = RequestBody::new(Body::from_bytes(gather(body, bound_of(request)).await?.into()));
    match request.content_type().and_then(|given| given.split(';').next()).map(str::trim) {
        Some("application/x-www-form-urlencoded") => {
            let fields = poem::web::Form::<Vec<(String, String)>>::from_request(request, &mut body).await?.0;
            Ok(Form(fields.into_iter().map(|(name, value)| (name, Zeroizing::new(value))).collect()))
        }
        Some("multipart/form-data") => {
            let mut parts = Multipart::from_request(request, &mut body).await?;
            let mut fields = Vec::new();
            while let Some(part) = parts.next_field().await? {
                let name = part.name().unwrap_or_default().to_owned();
                let bytes = part.bytes().await?;
                if bytes.len() > MAX_BODY {
                    return Err(PageError(Failure::too_large()).into());
                }
                let text = String::from_utf8(bytes).map_err(|_| {
                    refused("The upload is not text (UTF-8), but an auth.json is. Was it the right file?")
                })?;
                fields.push((name, Zeroizing::new(text)));
            }
            Ok(Form(fields))
        }
        _ => Err(refused("The dashboard accepts only its own forms")),
    }
}

fn refused(why: &str) -> poem::Error {
    PageError::from(ServiceError::Refused(why.into())).into()
}

/// `bound`: the caller's limit in bytes. An unauthenticated caller sends no document, so it gets no overhead, and its
/// long bodies are not drained.
async fn gather(body: Body, bound: usize) -> poem::Result<Vec<u8>> {
    let is_known = bound > MAX_STRANGERS_BODY;
    let (bound, drained) = if is_known { (bound + MAX_FORM_OVERHEAD_BYTES, MAX_DRAINED_BYTES) } else { (bound, bound) };
    let mut reader = body.into_async_read();
    let (mut gathered, mut seen) = (Vec::new(), 0);
    let mut chunk = Zeroizing::new(vec![0; 16 * 1024]);
    loop {
        let read =
            reader.read(&mut chunk).await.map_err(|error| refused(&format!("The form was not received: {error}")))?;
        seen += read;
        if read == 0 || seen > drained {
            break;
        }
        if seen <= bound {
            gathered.extend_from_slice(&chunk[..read]);
        }
    }
    match seen > bound {
        false => Ok(gathered),
        true if is_known => Err(Failure::too_large().into()),
        true => Err(Failure::too_large_of_stranger().into()),
    }
}
