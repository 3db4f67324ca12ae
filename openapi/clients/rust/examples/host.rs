//! The host's story: an admin registers it, it redeems its token, retrieves, stores and removes itself. The places of the
//! daemon and of two logins are in `AUTHD_` variables (`tests/openapi/stories_rust.py`).

use std::error::Error;
use std::fs;

use codex_authd_client::types::{
    AuthRequest, RetrieveCommand, RetrieveRequest, StoreCommand, StoreRequest, SyncStatus,
};
use codex_authd_client::{Client, ErrorExt as _, ErrorKind, collect, sha256_hex};

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(story())
}

async fn story() -> Result<(), Box<dyn Error>> {
    let place = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let text = |name: &str| Ok::<_, Box<dyn Error>>(fs::read_to_string(place(name)?)?);
    let (ca, hosts_url) = (text("AUTHD_CA")?, place("AUTHD_HOSTS_URL")?);
    let admin = Client::connect(&place("AUTHD_ADMIN_URL")?)
        .ca_pem(&ca)
        .client_certificate(text("AUTHD_CERTIFICATE")?, text("AUTHD_KEY")?)
        .build()?;
    admin.upload_auth().body_map(|body| body.auth_text(text("AUTHD_LOGIN").unwrap_or_default())).send().await?;
    let made = admin.register_host().body_map(|body| body.fqdn("rs.example.com")).send().await?.into_inner().data;
    let (key, token) = (made.host.api_key.clone(), made.installer.token.clone());
    let shown = format!("{made:?} {admin:?}");
    assert!(!shown.contains(key.expose()) && !shown.contains(token.expose()));

    let anybody = Client::connect(&hosts_url).ca_pem(&ca).build()?;
    let script = collect::<()>(anybody.install().token(token.expose()).send().await?, 1 << 20, |_| ()).await?;
    assert!(String::from_utf8(script)?.contains(key.expose()), "the installer has the key");
    let again = anybody.install().token(token.expose()).send().await.map(|_| ()).unwrap_err();
    assert_eq!(again.status().map(|status| status.as_u16()), Some(410));

    let host = Client::connect(&hosts_url).ca_pem(&ca).api_key(key.clone()).build()?;
    let retrieve = |digest: String, last_refresh: &str| {
        AuthRequest::RetrieveRequest(RetrieveRequest {
            command: RetrieveCommand::Retrieve,
            digest,
            last_refresh: last_refresh.to_owned(),
            client_version: None,
            wrapper_version: None,
            wrapper_target: None,
        })
    };
    let answer =
        host.sync_auth().body(retrieve("0".repeat(64), "2020-01-01T00:00:00Z")).send().await?.into_inner().data;
    let login = answer.auth_text.ok_or("a login is in the answer")?;
    let digest = answer.canonical_digest.ok_or("its digest is in the answer")?;
    assert_eq!((answer.status, sha256_hex(login.expose().as_bytes())), (SyncStatus::Outdated, digest.clone()));

    let exact = host.auth_document(None).await?.ok_or("asked without a digest")?;
    assert!(exact.text == login && exact.sha256 == digest && !format!("{exact:?}").contains("access_token"));
    assert!(host.auth_document(Some(&digest)).await?.is_none(), "it is not sent again");
    let last_refresh = answer.canonical_last_refresh.ok_or("its date is in the answer")?;
    let status = host.sync_auth().body(retrieve(digest.clone(), &last_refresh)).send().await?.into_inner().data.status;
    assert_eq!(status, SyncStatus::Valid);

    let store = AuthRequest::StoreRequest(StoreRequest {
        command: StoreCommand::Store,
        auth_text: text("AUTHD_RENEWED_LOGIN")?.into(),
        client_version: None,
        wrapper_version: None,
        wrapper_target: None,
    });
    let stored = host.sync_auth().body(store).send().await?.into_inner().data;
    assert_eq!(stored.status, SyncStatus::Updated);
    let newer = host.auth_document(Some(&digest)).await?.ok_or("there is a newer one")?;
    assert_eq!(Some(newer.sha256), stored.canonical_digest);

    assert_eq!(host.leave().send().await?.data.deleted, "rs.example.com");
    let refused = host.auth_document(None).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Status(401));
    assert!(refused.body().is_some() && !format!("{refused:?} {refused}").contains(key.expose()));
    Ok(())
}
