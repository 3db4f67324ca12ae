//! The baseline: a bare poem server. It reads the body and answers every call with the same bytes and headers. It uses
//! the daemon's own acceptors and TLS configuration. So the difference to the daemon is the daemon's own work for an
//! answer.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use codex_authd::listener::{Limits, PlainAcceptor, TlsAcceptor};
use codex_authd::pki::{LiveConfig, ServerIdentity, server_config};
use poem::endpoint::make;
use poem::listener::Acceptor;
use poem::{Request, Response, Route, Server, get, post};

use crate::Result;

/// `fleet bare BODY [CERTIFICATE KEY]`: prints its address, and serves until it is killed.
pub async fn serve(arguments: &[String]) -> Result<()> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    match arguments {
        [body] => {
            let acceptor = PlainAcceptor::bind(anywhere, Limits::default())?;
            let address = acceptor.address();
            run(acceptor, address, body).await
        }
        [body, certificate, key] => {
            let identity = ServerIdentity::load(Path::new(certificate), Path::new(key))?;
            let live = LiveConfig::new(server_config(&identity)?);
            let acceptor = TlsAcceptor::bind(anywhere, live, Limits::default())?;
            let address = acceptor.address();
            run(acceptor, address, body).await
        }
        _ => Err("usage: bare BODY [CERTIFICATE KEY]".into()),
    }
}

async fn run<A: Acceptor + 'static>(acceptor: A, address: SocketAddr, body: &str) -> Result<()> {
    // Leaked, so that all answers share the bytes: one body for the life of the process.
    let body: &'static [u8] = std::fs::read(body)?.leak();
    let answer = move |mut request: Request| async move {
        request.take_body().into_bytes().await?;
        let answer = Response::builder()
            .content_type("application/json")
            .header("x-content-type-options", "nosniff")
            .header("cache-control", "no-store, must-revalidate")
            .body(body);
        Ok::<_, poem::Error>(answer)
    };
    let route = Route::new().at("/auth", post(make(answer))).at("/healthz", get(make(answer)));
    writeln!(std::io::stdout(), "{address}")?;
    // No idle timeout: poem's costs several microseconds per request.
    Server::<Infallible, A>::new_with_acceptor(acceptor).run(route).await?;
    Ok(())
}
