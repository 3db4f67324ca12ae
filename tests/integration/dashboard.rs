//! The dashboard in a real browser with an admin's certificate, with and without JavaScript; and the requests that it
//! refuses.

use std::time::Instant;

use reqwest::header::{CONTENT_TYPE, ORIGIN};
use reqwest::{Client, RequestBuilder, Response};
use rustls::AlertDescription;
use serde_json::{Value, json};

use crate::support::browser::{Browser, Looks};
use crate::support::daemon::{BOUND, Daemon, auth_json, pause};
use crate::support::http::{HttpServer, Reply};
use crate::support::people::redeeming;
use crate::support::raw_tls::{Outcome, RawClient};

const SEC_FETCH_SITE: &str = "sec-fetch-site";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_there_is_no_page() {
    let daemon = Daemon::start();
    let stranger = RawClient::anonymous(&daemon).call(daemon.client().get(daemon.admin_url("/"))).await;
    assert_eq!(stranger, Outcome::Alert(AlertDescription::CertificateRequired), "the handshake is refused");
    for path in ["/", "/login", "/login/versions", "/hosts/new", "/runner", "/switch"] {
        let answer = daemon.client().get(daemon.hosts_url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path} on the hosts' listener");
    }
    let control = reqwest::Client::builder().unix_socket(daemon.state.path().join("control.sock")).build().unwrap();
    assert_eq!(control.get("http://control/").send().await.unwrap().status(), 404, "the control socket serves a page");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_sites_page_changes_nothing() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let own = daemon.admin_url("");
    let disable = || admin.post(daemon.admin_url("/admin/api/state")).json(&json!({ "disabled": true }));
    // A request that a page of another site can send without a preflight: it has no content type.
    let bare = || admin.post(daemon.admin_url("/admin/api/state")).body(r#"{"disabled": true}"#);
    let foreign = "https://evil.example";
    let http = own.replacen("https", "http", 1);
    let cases: Vec<(&str, RequestBuilder)> = vec![
        ("a cross-site fetch without a content type", bare().header(SEC_FETCH_SITE, "cross-site")),
        ("the same, from a browser that tells the origin only", bare().header(ORIGIN, foreign)),
        ("a sister site", disable().header(SEC_FETCH_SITE, "same-site")),
        ("an opaque origin", disable().header(ORIGIN, "null")),
        ("another port", disable().header(ORIGIN, "https://127.0.0.1:1")),
        ("another scheme", disable().header(ORIGIN, http.as_str())),
        ("a longer name", disable().header(ORIGIN, format!("{own}.evil.example"))),
        ("an unknown word", disable().header(SEC_FETCH_SITE, "friendly")),
        ("no word", disable().header(SEC_FETCH_SITE, "")),
        ("one good and one bad", disable().header(ORIGIN, own.as_str()).header(ORIGIN, foreign)),
        ("two that do not agree", disable().header(SEC_FETCH_SITE, "same-origin").header(ORIGIN, foreign)),
        ("a removal", admin.delete(daemon.admin_url("/admin/hosts/1")).header(SEC_FETCH_SITE, "cross-site")),
        ("a form", form(&admin, &daemon, "/switch", &[("disabled", "true")]).header(SEC_FETCH_SITE, "cross-site")),
    ];
    for (what, request) in cases {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 403, "{what}");
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], "cross_site", "{what}");
    }
    assert!(!disabled(&daemon, &admin).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_and_our_own_pages_go_on() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let set = |to: bool| admin.post(daemon.admin_url("/admin/api/state")).json(&json!({ "disabled": to }));
    assert_eq!(set(true).send().await.unwrap().status(), 200, "a program sends no such header");
    let own = set(false).header(SEC_FETCH_SITE, "same-origin").header(ORIGIN, daemon.admin_url(""));
    assert_eq!(own.send().await.unwrap().status(), 200, "the API's page at /docs");
    let http1 = daemon
        .client_builder()
        .identity(crate::support::daemon::identity(&daemon.state.path().join("admin-tester"), "tester"))
        .http1_only()
        .build()
        .unwrap();
    let own = http1.post(daemon.admin_url("/admin/api/state")).json(&json!({ "disabled": false }));
    assert_eq!(own.header(ORIGIN, daemon.admin_url("")).send().await.unwrap().status(), 200, "HTTP/1.1");
    let typed = admin.get(daemon.admin_url("/")).header(SEC_FETCH_SITE, "cross-site");
    assert_eq!(typed.send().await.unwrap().status(), 200, "a link from elsewhere shows a page");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_without_this_admins_token_changes_nothing() {
    let mut daemon = Daemon::start();
    let admin = daemon.admin();
    let mallory = {
        let directory = daemon.admin_certificate("mallory");
        let identity = crate::support::daemon::identity(&directory, "mallory");
        daemon.client_builder().identity(identity).build().unwrap()
    };
    let token = token(&daemon, &admin).await;
    let others = self::token(&daemon, &mallory).await;
    assert_ne!(token, others);
    for bad in ["", "00", &token[1..], &others, &"0".repeat(64)] {
        let answer = form(&admin, &daemon, "/switch", &[("token", bad), ("disabled", "true")]).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{bad:?}");
        assert!(answer.text().await.unwrap().contains("out of date"));
    }
    assert!(!disabled(&daemon, &admin).await);
    let good = form(&admin, &daemon, "/switch", &[("token", &token), ("disabled", "true")]).send().await.unwrap();
    assert_eq!(good.status(), 200);
    assert!(good.text().await.unwrap().contains("The kill switch is on"));
    assert!(disabled(&daemon, &admin).await);

    // A token is valid for one process.
    daemon.stop();
    daemon.launch();
    let admin = daemon.admin();
    let stale = form(&admin, &daemon, "/switch", &[("token", &token), ("disabled", "false")]).send().await.unwrap();
    assert_eq!(stale.status(), 403);
    assert!(stale.text().await.unwrap().contains("after the daemon was restarted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_tells_the_browser_what_it_may_do() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let host = daemon.register(&admin, "h.test").await;
    let paths = [
        "/".into(),
        "/login".into(),
        "/login/versions".into(),
        "/hosts/new".into(),
        "/hosts/installer/0".into(),
        "/runner".into(),
        "/switch".into(),
        format!("/hosts/{}", host.id),
        format!("/hosts/{}/remove", host.id),
        "/hosts/1".into(),
        format!("/hosts/{}/roaming", host.id),
    ];
    for path in &paths {
        let answer = admin.get(daemon.admin_url(path)).send().await.unwrap();
        let headers = answer.headers().clone();
        let is = |name: &str, value: &str| assert_eq!(headers[name], value, "{name} of {path}");
        is(
            "content-security-policy",
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; \
             base-uri 'none'; frame-ancestors 'none'",
        );
        is("referrer-policy", "same-origin");
        is("x-frame-options", "DENY");
        is("x-content-type-options", "nosniff");
        is("cross-origin-opener-policy", "same-origin");
        is("cross-origin-resource-policy", "same-origin");
        is("cache-control", "no-store, must-revalidate");
        is("content-type", "text/html; charset=utf-8");
        let page = answer.text().await.unwrap();
        assert!(page.contains("Kill switch off"), "{path} shows the kill switch");
        assert!(
            page.contains("You are <strong class=\"name\">tester</strong>"),
            "{path} shows the owner of the certificate"
        );
        assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains("<script>"), "{path}");
    }
    let page = admin.get(daemon.admin_url("/")).send().await.unwrap().text().await.unwrap();
    let assets: Vec<&str> = page.split('"').filter(|text| text.starts_with("/assets/")).collect();
    assert_eq!(assets.len(), 3);
    for asset in assets {
        let answer = admin.get(daemon.admin_url(asset)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["cache-control"], "private, max-age=31536000, immutable");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    }
    assert_eq!(admin.get(daemon.admin_url("/assets/style-0.css")).send().await.unwrap().status(), 404);
}

/// Hostile values that the model allows: a certificate's name, the versions that a host reports, a search text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_text_stays_text() {
    let daemon = Daemon::start();
    let name = r#"</strong><script>alert('x')</script>"&{{7*7}}"#;
    let directory = daemon.state.path().join("hostile");
    daemon.cli_json(&["admin-cert", name, "--pem", directory.to_str().unwrap()]);
    let mut pem = Vec::new();
    for ending in ["crt", "key"] {
        let file = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                path.extension().is_some_and(|found| found == ending) && !path.to_str().unwrap().ends_with("ca.crt")
            })
            .unwrap();
        pem.extend(std::fs::read(file).unwrap());
    }
    let admin = daemon.client_builder().identity(reqwest::Identity::from_pem(&pem).unwrap()).build().unwrap();

    let host = daemon.register(&daemon.admin(), "_h.test").await;
    let version = r#""><img/src=x/onerror=alert(1)><script>'`"#;
    let asked = json!({
        "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64), "client_version": version,
        "wrapper_version": "</td></table><script>alert(2)</script>",
    });
    let answer = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", &host.api_key).json(&asked);
    assert_eq!(answer.send().await.unwrap().status(), 200);

    // The list gets hosts' telemetry once a second. The version is shown unchanged.
    page_with(&daemon, &admin, "/", "onerror=alert(1)&#62;").await;
    let paths = [
        "/".to_owned(),
        "/?q=%22+autofocus+onfocus%3Dalert(3)+%3Cscript%3E".to_owned(),
        format!("/hosts/{}", host.id),
        "/hosts/new?name=%22+autofocus+onfocus%3Dalert(3)+%3Cscript%3E%27".to_owned(),
    ];
    for path in paths {
        let page = admin.get(daemon.admin_url(&path)).send().await.unwrap().text().await.unwrap();
        assert_eq!(page.matches("<script").count(), 1, "{path}: {page}");
        assert!(!page.contains("<img") && !page.contains("\" autofocus onfocus"), "{path}: {page}");
        assert!(page.contains("alert(&#39;x&#39;)"), "{path}: the name is shown as it is: {page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_login_is_refused_in_words() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let token = token(&daemon, &admin).await;
    let upload = async |file: &[u8], pasted: &str| {
        let form = multipart(&[("token", token.as_bytes()), ("file", file), ("pasted", pasted.as_bytes())]);
        let request = admin.post(daemon.admin_url("/login")).header(CONTENT_TYPE, form.0).body(form.1);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let good = auth_json("2025-11-20T09:27:43Z", 1).to_string();
    for (file, pasted, status, words) in [
        (&b""[..], "", 422, "Choose a file, or paste its content."),
        (b"{}", "{}", 422, "send one of them"),
        (b"{\"tokens\": ", "", 400, "Invalid JSON payload."),
        (b"{}", "", 422, "last_refresh"),
        (b"\xff\xfe\x00", "", 422, "is not text"),
        (&[b' '; 1024 * 1024 + 1], "", 413, "was it the right file?"),
        (&[b'x'; 9 * 1024 * 1024], "", 413, "was it the right file?"),
        (b"", &good, 200, "Stored: this is the canonical login now, version 1"),
        (good.as_bytes(), "", 200, "this login is the canonical one already"),
        (auth_json("2025-11-19T09:27:43Z", 1).to_string().as_bytes(), "", 200, "older than the canonical login"),
        (&[b'x'; 65 * 1024], "", 413, "64 KiB"),
        (b"{\"auth_mode\":\"bogus\",\"last_refresh\":\"2025-11-21T09:27:43Z\"}", "", 422, "auth_mode"),
    ] {
        let (got, page) = upload(file, pasted).await;
        assert_eq!(got, status, "{words}: {page}");
        assert!(page.contains(words), "{words}: {page}");
        assert!(!page.contains("Zk3vQ9xT1mB7rLp0"), "no page shows a token");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_made_once_and_its_command_is_shown_once() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let token = token(&daemon, &admin).await;
    let make = async |fields: &[(&str, &str)]| {
        let mut all = vec![("token", token.as_str())];
        all.extend_from_slice(fields);
        form(&admin, &daemon, "/hosts/new", &all).send().await.unwrap()
    };
    let refused = make(&[("name", "a b'")]).await;
    assert_eq!(refused.status(), 422);
    let page = refused.text().await.unwrap();
    assert!(page.contains("Fqdn must be a host name") && page.contains("value=\"a b&#39;\""), "{page}");

    let made = make(&[("name", "H1.test")]).await;
    assert_eq!(made.status(), 200);
    let address = made.url().to_string();
    let page = made.text().await.unwrap();
    let installer = text_of(&page, "command");
    assert!(installer.starts_with("curl ") && installer.ends_with("| bash"), "{installer}");
    let secret = installer.split("/install/").nth(1).unwrap().split('/').next().unwrap();
    assert!(!address.contains(secret), "a secret is in a URL: {address}");
    let again = admin.get(&address).send().await.unwrap();
    assert_eq!(again.status(), 410);
    assert!(!again.text().await.unwrap().contains(secret));

    // For a known name the page asks first, because its key would be revoked.
    let known = make(&[("name", "h1.test")]).await;
    assert_eq!(known.status(), 409);
    assert!(known.text().await.unwrap().contains("is a host already"));
    let spent = daemon.client().get(daemon.hosts_url(&format!("/install/{secret}"))).send().await.unwrap();
    assert_eq!(spent.status(), 200, "the question revoked the key");
    let other = make(&[("name", "h1.test"), ("again", "h2.test")]).await;
    assert_eq!(other.status(), 409, "the question was about another host");
    assert_eq!(make(&[("name", "h1.test"), ("again", "H1.test")]).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_is_told_once_and_to_nobody_else() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let other = {
        let directory = daemon.admin_certificate("other");
        daemon.client_builder().identity(crate::support::daemon::identity(&directory, "other")).build().unwrap()
    };
    let no_redirect = {
        let identity = crate::support::daemon::identity(&daemon.state.path().join("admin-tester"), "tester");
        daemon.client_builder().identity(identity).redirect(reqwest::redirect::Policy::none()).build().unwrap()
    };
    let token = token(&daemon, &admin).await;
    let host = daemon.register(&admin, "h.test").await;
    let remove = form(&no_redirect, &daemon, &format!("/hosts/{}/remove", host.id), &[("token", &token)]);
    let answer = remove.send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let location = daemon.admin_url(answer.headers()["location"].to_str().unwrap());
    let told = async |client: &Client| {
        let page = client.get(&location).send().await.unwrap().text().await.unwrap();
        page.contains("h.test is removed.")
    };
    assert!(!told(&other).await);
    assert!(told(&admin).await);
    assert!(!told(&admin).await);
    let again = form(&admin, &daemon, &format!("/hosts/{}/remove", host.id), &[("token", &token)]);
    let again = again.send().await.unwrap();
    assert_eq!(again.status(), 404);
    assert!(again.text().await.unwrap().contains("removed meanwhile"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_found_sorted_and_paged() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    for n in 0..53 {
        daemon.register(&admin, &format!("h{n:02}.test")).await;
    }
    let seen = daemon.register(&admin, "zz.test").await;
    let asked = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
    let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", &seen.api_key).json(&asked);
    assert_eq!(call.send().await.unwrap().status(), 200);
    let page = async |query: &str| {
        admin.get(daemon.admin_url(&format!("/?{query}"))).send().await.unwrap().text().await.unwrap()
    };
    let rows = |page: &str| page.matches("<th scope=\"row\"").count();
    let first = page("").await;
    assert_eq!(rows(&first), 50);
    assert!(
        first.contains("54 hosts, page 1 of 2") && first.contains("rel=\"next\"") && !first.contains("rel=\"prev\"")
    );
    let second = page("page=2").await;
    assert_eq!(rows(&second), 4);
    assert!(second.contains("zz.test") && second.contains("rel=\"prev\"") && !second.contains("rel=\"next\""));
    page_with(&daemon, &admin, "/?sort=seen", "zz.test").await;
    let found = page("q=H1").await;
    assert_eq!(rows(&found), 10);
    assert!(found.contains("10 hosts<"));
    assert_eq!(rows(&page("q=127.0.0.1").await), 1, "by address");
    assert!(
        page("page=99999999999999999999").await.contains("54 hosts"),
        "an impossible number did not show the first page"
    );
    assert!(page("page=18446744073709551615").await.contains("There is no page"));
    assert!(page("q=nobody").await.contains("No host has"));
}

/// The audit entry of a form has the result of the action, not of the redirect that answers it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_on_a_page_is_noted_once() {
    let daemon = Daemon::start();
    let admin = daemon.admin();
    let token = token(&daemon, &admin).await;
    for disabled in ["true", "false"] {
        let sent = form(&admin, &daemon, "/switch", &[("token", &token), ("disabled", disabled)]).send().await.unwrap();
        assert!(sent.status().is_success(), "{}", sent.status());
    }
    let refused = form(&admin, &daemon, "/switch", &[("token", "wrong"), ("disabled", "true")]).send().await.unwrap();
    assert_eq!(refused.status(), 403);
    let log: Value = admin.get(daemon.admin_url("/admin/audit")).send().await.unwrap().json().await.unwrap();
    let noted: Vec<_> = log["data"]["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["action"].as_str().unwrap(), entry["outcome"].as_str().unwrap()))
        .take(3)
        .collect();
    assert_eq!(noted, [("unknown", "403"), ("api.enable", "done"), ("api.disable", "done")]);
}

/// Polls the page until it shows `text`.
async fn page_with(daemon: &Daemon, admin: &Client, path: &str, text: &str) {
    let begun = std::time::Instant::now();
    loop {
        let page = admin.get(daemon.admin_url(path)).send().await.unwrap().text().await.unwrap();
        if page.contains(text) {
            return;
        }
        assert!(begun.elapsed() < BOUND, "{path} does not show {text:?}: {page}");
        tokio::task::spawn_blocking(pause).await.unwrap();
    }
}

fn form(client: &Client, daemon: &Daemon, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
    client.post(daemon.admin_url(path)).form(fields)
}

async fn token(daemon: &Daemon, admin: &Client) -> String {
    let page = admin.get(daemon.admin_url("/switch")).send().await.unwrap().text().await.unwrap();
    token_in(&page).to_owned()
}

/// The token that a form of this page must send.
pub fn token_in(page: &str) -> &str {
    page.split("name=\"token\" value=\"").nth(1).unwrap().split('"').next().unwrap()
}

async fn disabled(daemon: &Daemon, admin: &Client) -> bool {
    let state: Response = admin.get(daemon.admin_url("/admin/api/state")).send().await.unwrap();
    state.json::<Value>().await.unwrap()["data"]["disabled"].as_bool().unwrap()
}

/// Content type and body of a multipart form.
fn multipart(fields: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, value) in fields {
        let file = if *name == "file" { "; filename=\"auth.json\"" } else { "" };
        let head = format!("--border\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(value);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--border--\r\n");
    ("multipart/form-data; boundary=border".into(), body)
}

/// The text of the only element with this id, which contains only text.
pub fn text_of(page: &str, id: &str) -> String {
    let inside = page.split(&format!("id=\"{id}\">")).nth(1).unwrap().split('<').next().unwrap();
    inside.replace("&#34;", "\"").replace("&#38;", "&").replace("&#39;", "'")
}

/// An admin's first day, in a browser. Each page is clean: no error, and nothing that its policy blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_makes_and_removes_a_host_and_throws_the_kill_switch() {
    first_day("alice", Looks::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_all_works_without_javascript_on_a_narrow_dark_screen() {
    first_day("bob", Looks { dark: true, no_javascript: true, narrow: true }).await;
}

async fn first_day(name: &'static str, looks: Looks) {
    let daemon = Daemon::start_with(&[("RUNNER__ENABLED", "true"), ("RUNNER__CODEX", "/nowhere/codex")]);
    let browser = Browser::start(&daemon, name, looks).await;
    browser.open(&daemon.admin_url("/")).await;
    browser.says("main", "There is no login yet.").await;
    browser.says("#serving", "Kill switch off").await;
    browser.says("footer", &format!("You are {name}")).await;

    // The login: a file, then pasted again.
    browser.press("Upload a login").await;
    let login = auth_json("2025-11-20T09:27:43.373506211Z", 1).to_string();
    let file = browser.home().join("auth.json");
    std::fs::write(&file, &login).unwrap();
    browser.fill("The file", file.to_str().unwrap()).await;
    browser.press("Upload").await;
    browser.says("[role=status]", "Stored: this is the canonical login now, version 1").await;
    browser.says("#login", "2025-11-20T09:27:43.373506211Z").await;
    browser.says("#login", &browser.fingerprint).await;
    browser.open(&daemon.admin_url("/login")).await;
    browser.fill("Or its content", &login).await;
    browser.press("Upload").await;
    browser.says("[role=status]", "Nothing changed").await;

    // A host, by the command on the page.
    browser.press("New host").await;
    browser.fill("Name of the machine", "h1.test").await;
    browser.press("Make the host").await;
    browser.says("#command", " | bash").await;
    let command = browser.text("#command").await;
    let address = browser.address().await;
    browser.check(command.starts_with("curl ") && command.ends_with(" | bash"), "the command is there").await;
    let secret = command.split("/install/").nth(1).unwrap().split('/').next().unwrap();
    browser.check(!address.contains(secret), "no secret stands in the address").await;
    if looks.no_javascript {
        browser
            .check(browser.texts("button[data-copy]").await == [""], "a button that does nothing is not shown")
            .await;
    } else {
        browser.press("Copy the command").await;
        browser.says("#copied", "Copied.").await;
    }
    let key = redeem(&command).await;
    browser.press("Done: back to the hosts").await;
    browser.says("#hosts", "Waiting for its first call").await;

    let retrieve = async || {
        let asked = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
        let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", &key).json(&asked);
        call.send().await.unwrap().status().as_u16()
    };
    assert_eq!(retrieve().await, 200);
    browser.open(&daemon.admin_url("/?q=h1")).await;
    browser.says("#hosts", "127.0.0.1").await;
    browser.says("#hosts", "Served").await;

    // Whether the login works; this machine has no Codex.
    browser.press("Runner").await;
    runner_lists(&daemon, &browser, "once a day").await;
    browser.says("#proof", "Could not be tried").await;
    browser.says("#reason", "there is no Codex at /nowhere/codex; install it").await;
    browser.press("Try it now").await;
    browser.says("[role=status]", "Codex is being run on the canonical login.").await;
    runner_lists(&daemon, &browser, "an admin asked").await;
    browser.press("Hosts").await;
    browser.says("#login", "Could not be tried").await;

    // The kill switch on and off.
    browser.press("Kill switch").await;
    browser.press("Switch it on: stop serving all hosts").await;
    browser.says("#serving", "Kill switch on. Every host is answered 503.").await;
    assert_eq!(retrieve().await, 503);
    browser.open(&daemon.admin_url("/")).await;
    browser.says("#serving", "Kill switch on.").await;
    browser.press("Switch it off").await;
    browser.press("Switch it off and serve hosts again").await;
    browser.says("#serving", "Kill switch off").await;
    assert_eq!(retrieve().await, 200);

    // The settings of a host, and its removal.
    browser.press("Hosts").await;
    browser.press("h1.test").await;
    browser.press("Allow roaming").await;
    browser.says("[role=status]", "may now call from another address").await;
    browser.press("Forbid roaming").await;
    browser.says("[role=status]", "only call from the address it is bound to").await;
    browser.press("Remove this host").await;
    browser.says("h1", "Remove h1.test?").await;
    browser.press("Remove h1.test").await;
    browser.says("[role=status]", "h1.test is removed.").await;
    browser.says("main", "There are no hosts yet").await;
    assert_eq!(retrieve().await, 401);

    // The window of a shared machine.
    browser.press("New host").await;
    browser.fill("Name of the machine", "lab.test").await;
    browser.press_label("Shared machine").await;
    browser.press("Make the host").await;
    browser.says("main", "This is a shared machine").await;
    browser.press("Done: back to the hosts").await;
    browser.press("lab.test").await;
    browser.press("Close the window").await;
    browser.says("[role=status]", "is closed").await;
    browser.says("main", "Shared: window closed, refused").await;
    browser.press("Open the window").await;
    browser.says("[role=status]", "is open until").await;

    // Page content that is for one admin is not in the log.
    let log = daemon.log();
    for kept in [secret, &key, "Zk3vQ9xT1mB7rLp0", &token_of(&browser).await] {
        assert!(!log.contains(kept), "the log holds {kept}");
    }

    let overflows = browser.script("return document.documentElement.scrollWidth > window.innerWidth").await;
    browser.check(overflows == false, "the page is as wide as the screen").await;
    let scheme = browser.script("return matchMedia('(prefers-color-scheme: dark)').matches").await;
    browser.check(scheme == looks.dark, "the screen is as dark as was asked for").await;
    assert_eq!(browser.console().await, Vec::<String>::new());
}

/// Attacks of another site with the admin's own browser, which sends the certificate with every request.
#[test]
fn another_sites_page_in_the_admins_browser_changes_nothing() {
    let daemon = Daemon::start();
    let target = daemon.admin_url("/admin/api/state");
    let form = daemon.admin_url("/switch");
    let evil = format!(
        r#"<!doctype html><title>evil</title><form method="post" action="{form}"><input name="disabled" value="true">
        <button>Win</button></form><script>
        fetch("{target}", {{ method: "POST", mode: "no-cors", credentials: "include",
          body: new Blob(['{{"disabled": true}}']) }}).then(() => document.title = "sent", () => document.title = "failed");
        </script>"#
    );
    let page = daemon.admin_url("/switch");
    let framing = format!("<!doctype html><iframe src=\"{page}\"></iframe>");
    let site = HttpServer::plain(move |call| {
        Reply::new(200, "text/html", if call.path == "/frame" { framing.clone() } else { evil.clone() })
    });
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let browser = Browser::start(&daemon, "carol", Looks::default()).await;
        browser.open(&format!("http://localhost:{}/", site.port)).await;
        browser.wait_for_title("sent").await;
        browser.press("Win").await;
        browser.says("body", "cross_site").await;
        let refused = daemon.log().matches("another site's page was refused").count();
        assert_eq!(refused, 2, "both arrived, with the certificate:\n{}", daemon.log());
        assert!(!disabled(&daemon, &daemon.admin()).await);
        // The site cannot frame a page of ours either.
        browser.console().await;
        browser.open(&format!("http://localhost:{}/frame", site.port)).await;
        let said = browser.console().await.join("\n");
        browser.check(said.contains("frame-ancestors 'none'"), &said).await;
    });
}

/// The API's own page. Its policy allows its scripts and styles by their digests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_apis_page_renders_and_calls_under_its_policy() {
    let daemon = Daemon::start();
    let browser = Browser::start(&daemon, "dave", Looks::default()).await;
    browser.open(&daemon.admin_url("/docs")).await;
    browser.says("#ui", "Keeps one canonical Codex auth.json").await;
    browser.says("#operations-AdminSettings-setApiState", "/admin/api/state").await;
    // "Try it out" on the kill switch: a change, from our own page.
    for button in ["button.opblock-summary-control", ".try-out__btn", ".execute"] {
        browser.press_css(&format!("#operations-AdminSettings-getApiState {button}")).await;
    }
    browser.says("#operations-AdminSettings-getApiState .responses-wrapper", "\"disabled\": false").await;
    assert_eq!(browser.console().await, Vec::<String>::new());
}

/// Polls until a finished probe with this reason is listed.
async fn runner_lists(daemon: &Daemon, browser: &Browser, why: &str) {
    let started = Instant::now();
    loop {
        browser.open(&daemon.admin_url("/runner")).await;
        let rows = browser.texts("#probes tbody tr").await;
        if rows.iter().any(|row| row.contains(why) && row.contains("Could not be tried")) {
            return;
        }
        assert!(started.elapsed() < BOUND, "{why}: {rows:?}");
    }
}

async fn token_of(browser: &Browser) -> String {
    let token = browser.script("return document.querySelector('input[name=token]').value").await;
    token.as_str().filter(|token| token.len() == 64).unwrap().to_owned()
}

/// Fetches the installer as the printed command does; the returned script contains the host's key.
pub async fn redeem(command: &str) -> String {
    let curl = redeeming(command);
    let output = tokio::process::Command::new("bash").args(["-c", &curl]).output().await.unwrap();
    assert!(output.status.success(), "{curl}: {}", String::from_utf8_lossy(&output.stderr));
    let script = String::from_utf8(output.stdout).unwrap();
    let key = script.split("CDX_API_KEY=").nth(1).unwrap_or_default();
    key.chars().filter(char::is_ascii_hexdigit).take(64).collect()
}
