//! Forms: read within bounds, and believed only with the token that this process gave this admin.
//!
//! A browser shows an admin's certificate to us whichever page makes it send a request. That the request comes from
//! another page is refused for the whole listener by what the browser says of it (`api/guards.rs`); the token is the
//! second lock, for a browser that says nothing. It is an HMAC over the admin's name and session under a key made at the start, so
//! nothing is stored; a restart makes it stale, and the page says so.

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
use crate::outside::{Outside, random};
use crate::service::ServiceError;

/// The field of every form that holds the token.
pub const TOKEN: &str = "token";
/// What the borders and small fields of a form may take beside a document of the greatest length.
const MAX_FORM_OVERHEAD_BYTES: usize = 64 * 1024;
/// A longer body is read this far before it is refused: a browser that cannot send the rest shows no answer.
const MAX_DRAINED_BYTES: usize = 16 * 1024 * 1024;

/// Makes and checks the tokens of forms.
pub struct Tokens(hmac::Key);

impl Tokens {
    pub fn new(outside: &dyn Outside) -> Self {
        let key = Zeroizing::new(random::<32>(outside));
        Self(hmac::Key::new(hmac::HMAC_SHA256, &*key))
    }

    pub fn token(&self, principal: &Principal) -> String {
        hex::encode(hmac::sign(&self.0, bound_to(principal).as_bytes()))
    }

    /// In constant time.
    fn is_good(&self, principal: &Principal, token: &str) -> bool {
        let Ok(tag) = hex::decode(token) else { return false };
        hmac::verify(&self.0, bound_to(principal).as_bytes(), &tag).is_ok()
    }
}

/// To who asks, and, where they signed in, to this very session.
fn bound_to(principal: &Principal) -> String {
    let session = principal.signed_in.as_ref().map(|signed_in| signed_in.session.session.id);
    format!("form of {} {}", principal.by.actor, session.unwrap_or_default())
}

/// A form that was sent, its token checked.
pub struct Form(Vec<(String, Zeroizing<String>)>);

impl Form {
    /// The field, without space around it; empty where there is none.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.trim()).unwrap_or_default()
    }

    /// With the space around it: a password.
    pub fn exact(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.text(name) == value
    }
}

/// Lets what only asks go by; of what changes something it reads the form and checks the token. The handler finds the
/// form in `Data<&Arc<Form>>`.
pub async fn check(context: &PageContext, request: &mut Request) -> poem::Result<()> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(());
    }
    let body = request.take_body();
    let form = read(request, body).await?;
    if !context.dashboard.tokens.is_good(&context.principal, form.text(TOKEN)) {
        log::warn!(event = "form_refused", admin:% = context.by().actor; "a form came without a token that is good");
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
                    refused("What you sent is not text (UTF-8). An auth.json is: was it the right file?")
                })?;
                fields.push((name, Zeroizing::new(text)));
            }
            Ok(Form(fields))
        }
        _ => Err(refused("The dashboard takes its own forms only")),
    }
}

fn refused(why: &str) -> poem::Error {
    PageError::from(ServiceError::Refused(why.into())).into()
}

/// `bound`: of what this caller may send. A stranger sends no document, and nothing too long of theirs is drained.
async fn gather(body: Body, bound: usize) -> poem::Result<Vec<u8>> {
    let is_known = bound > MAX_STRANGERS_BODY;
    let (bound, drained) = if is_known { (bound + MAX_FORM_OVERHEAD_BYTES, MAX_DRAINED_BYTES) } else { (bound, bound) };
    let mut reader = body.into_async_read();
    let (mut gathered, mut seen) = (Vec::new(), 0);
    let mut chunk = Zeroizing::new(vec![0; 16 * 1024]);
    loop {
        let read =
            reader.read(&mut chunk).await.map_err(|error| refused(&format!("The form did not arrive: {error}")))?;
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
