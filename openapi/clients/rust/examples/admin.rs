//! The admin's story: uploads a login, lists hosts page by page, reads the audit log, rotates a key, rolls back. The
//! places of the daemon and of two logins are in `AUTHD_` variables (`tests/openapi/stories_rust.py`).

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;

use codex_authd_client::{Client, ErrorExt as _, ErrorKind};

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(story())
}

async fn story() -> Result<(), Box<dyn Error>> {
    let place = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let text = |name: &str| Ok::<_, Box<dyn Error>>(fs::read_to_string(place(name)?)?);
    let ca = text("AUTHD_CA")?;
    let admin = Client::connect(&place("AUTHD_ADMIN_URL")?)
        .ca_pem(&ca)
        .client_certificate(text("AUTHD_CERTIFICATE")?, text("AUTHD_KEY")?)
        .build()?;
    let (login, renewed) = (text("AUTHD_LOGIN")?, text("AUTHD_RENEWED_LOGIN")?);
    let first = admin.upload_auth().body_map(|body| body.auth_text(login)).send().await?.into_inner().data;
    let second = admin.upload_auth().body_map(|body| body.auth_text(renewed)).send().await?.into_inner().data;
    assert_ne!(first.canonical_digest, second.canonical_digest);

    let mut hosts = BTreeMap::new();
    let mut old_key = None;
    for number in 0..5 {
        let name = format!("page-{number}.example.com");
        let made = admin.register_host().body_map(|body| body.fqdn(&name)).send().await?.into_inner().data;
        hosts.insert(name, made.host.id);
        old_key = Some(made.host.api_key);
    }
    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut request = admin.list_hosts().limit(2);
        if let Some(cursor) = cursor {
            request = request.cursor(cursor);
        }
        let page = request.send().await?.into_inner().data;
        assert!(page.hosts.len() <= 2);
        seen.extend(page.hosts.into_iter().map(|host| host.fqdn));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    seen.sort();
    assert!(hosts.keys().eq(&seen), "{seen:?}");

    // Registering a host again gives it a new key; the old one is refused at once.
    let rotated =
        admin.register_host().body_map(|body| body.fqdn("page-4.example.com")).send().await?.into_inner().data;
    let old_key = old_key.ok_or("five hosts were registered")?;
    assert!(rotated.host.id == hosts["page-4.example.com"] && rotated.host.api_key != old_key);
    let host = Client::connect(&place("AUTHD_HOSTS_URL")?).ca_pem(&ca).api_key(old_key).build()?;
    assert_eq!(host.auth_document(None).await.map(|_| ()).unwrap_err().kind(), ErrorKind::Status(401));

    let audit = admin.list_audit().limit(1000).send().await?.into_inner().data;
    assert!(audit.entries.len() >= hosts.len() + 3, "{}", audit.entries.len());

    let versions = admin.get_auth_history().send().await?.into_inner().data.versions;
    let old = versions.iter().find(|version| Some(&version.digest) == first.canonical_digest.as_ref());
    let old = old.ok_or("the first login is in the history")?.version;
    let back = admin.roll_back_auth().body_map(|body| body.version(old)).send().await?.into_inner().data;
    assert!(back.version.version > old);

    for (name, id) in &hosts {
        assert_eq!(&admin.remove_host().id(*id).send().await?.data.deleted, name);
    }
    let gone = admin.get_host().id(hosts["page-0.example.com"]).send().await.map(|_| ()).unwrap_err();
    assert!(gone.kind() == ErrorKind::Status(404) && gone.body().is_some(), "{gone:?}");
    Ok(())
}
