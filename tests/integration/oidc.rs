//! Sign-in by a real daemon through a provider with one fault at a time: the answers to the browser, the audit log, and
//! that neither of them nor the log contains a secret.

use std::collections::{HashMap, HashSet};

use codex_authd::records::{ExternalIdentitySeed, seed_external_identities};
use futures_util::future::join_all;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use serde_json::{Value, json};

use crate::database::{on_database, records};
use crate::support::daemon::Daemon;
use crate::support::mariadb::MariaDb;
use crate::support::provider::signing::{RsaKey, Signing, short};
use crate::support::provider::{Behaviour, CLIENT, DISCOVERY, Fault, KEYS, Provider, SECRET, TOKEN, now};

const CALLBACK: &str = "https://auth.test/auth/oidc/callback";
const ADA: &str = "ada@example.test";
const SUBJECT: &str = "ada-of-the-provider";

struct World {
    provider: Provider,
    daemon: Daemon,
    /// Keeps no cookies and follows no redirects: the tests do that.
    browser: Client,
    admin: Client,
}

/// A browser that comes back from the provider.
struct Back {
    /// Name and value.
    cookie: (String, String),
    query: HashMap<String, String>,
}

#[derive(Debug)]
struct Answered {
    status: StatusCode,
    location: Option<String>,
    cookies: Vec<String>,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Name and value.
    fn cookie(&self, starts: &str) -> Option<(String, String)> {
        let set = self.cookies.iter().find(|cookie| cookie.starts_with(starts))?;
        let (name, value) = set.split(';').next()?.split_once('=')?;
        Some((name.into(), value.into()))
    }
}

fn settings(provider: &Provider) -> Vec<(&'static str, String)> {
    vec![
        ("OIDC__ISSUER", provider.issuer()),
        ("OIDC__CLIENT_ID", CLIENT.into()),
        ("OIDC__CLIENT_SECRET", SECRET.into()),
        ("OIDC__REDIRECT_URI", CALLBACK.into()),
    ]
}

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    /// A world in which Ada's identity is linked.
    fn with(more: &[(&str, &str)]) -> Self {
        Self::by(Provider::start(), more).link_ada()
    }

    /// The daemon calls the provider at once, so faults for the start must be set before.
    fn by(provider: Provider, more: &[(&str, &str)]) -> Self {
        let all = settings(&provider);
        let mut all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        all.extend(more);
        let daemon = Daemon::start_with(&all);
        Self::around(provider, daemon)
    }

    fn link_ada(self) -> Self {
        let issuer = self.provider.issuer();
        self.daemon.cli_json(&["users", "add", ADA]);
        self.daemon.cli_json(&["link-identity", "--issuer", &issuer, "--subject", SUBJECT, "--user", ADA]);
        self
    }

    fn around(provider: Provider, daemon: Daemon) -> Self {
        let browser = daemon.client_builder().redirect(Policy::none()).build().unwrap();
        let admin = daemon.admin();
        Self { provider, daemon, browser, admin }
    }

    async fn get(&self, url: &str, cookies: &[&(String, String)]) -> Answered {
        let mut call = self.browser.get(url);
        if !cookies.is_empty() {
            let line: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            call = call.header(COOKIE, line.join("; "));
        }
        let response = call.send().await.unwrap();
        let headers = response.headers().clone();
        let texts = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
        Answered {
            status: response.status(),
            location: texts(LOCATION).next(),
            cookies: texts(SET_COOKIE).collect(),
            text: response.text().await.unwrap(),
        }
    }

    /// Begins a sign-in, and goes to the provider and back.
    async fn go(&self, login: &str) -> Back {
        let begun = self.get(login, &[]).await;
        assert_eq!(begun.status, 302, "{begun:?}");
        let cookie = begun.cookie("__Host-codex-authd-oidc-").unwrap_or_else(|| panic!("{begun:?}"));
        let location = begun.location.unwrap();
        let told = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap().get(location);
        let told = told.send().await.unwrap();
        assert_eq!(told.status(), 302);
        let back = Url::parse(told.headers()[LOCATION].to_str().unwrap()).unwrap();
        assert!(back.as_str().starts_with(CALLBACK));
        Back { cookie, query: back.query_pairs().into_owned().collect() }
    }

    async fn come_back(&self, back: &Back) -> Answered {
        self.answer(&back.query, &[&back.cookie]).await
    }

    async fn answer(&self, query: &HashMap<String, String>, cookies: &[&(String, String)]) -> Answered {
        let url = Url::parse_with_params(&self.daemon.hosts_url("/auth/oidc/callback"), query).unwrap();
        self.get(url.as_str(), cookies).await
    }

    async fn sign_in(&self) -> Answered {
        let back = self.go(&self.daemon.hosts_url("/auth/oidc/login")).await;
        self.come_back(&back).await
    }

    async fn audit(&self) -> Vec<Value> {
        let url = self.daemon.admin_url("/admin/audit?limit=1000");
        let page: Value = self.admin.get(url).send().await.unwrap().json().await.unwrap();
        let entries = page["data"]["entries"].as_array().unwrap_or_else(|| panic!("{page}"));
        entries.iter().filter(|entry| entry["action"] == "session.begin").cloned().collect()
    }

    /// The audit entry of a refused sign-in with this reason. There is at most one more entry than before, and none if
    /// it is counted with an earlier one of the same minute.
    async fn noted(&self, before: usize, reason: &str) -> Value {
        let entries = self.audit().await;
        assert!((before..=before + 1).contains(&entries.len()), "{reason}: {entries:#?}");
        let noted = entries.iter().find(|entry| entry["details"]["reason"] == reason);
        noted.unwrap_or_else(|| panic!("{reason}: {entries:#?}")).clone()
    }

    /// Asserts that the answer is a refusal, and that the audit log has its reason.
    async fn assert_refused(&self, answered: &Answered, reason: &str, before: usize) {
        assert_eq!(answered.status, 403, "{reason}: {answered:?}");
        let body = answered.json();
        assert_eq!((&body["status"], &body["code"]), (&json!("error"), &json!("oidc_refused")), "{reason}");
        let message =
            "The sign-in was refused; begin it again, and ask an admin to look into the audit log if it stays so";
        assert_eq!(body["message"], message, "{reason}: not the common message");
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
        let entry = self.noted(before, reason).await;
        assert_eq!((&entry["outcome"], &entry["details"]["reason"]), (&json!("403"), &json!(reason)), "{entry}");
    }

    async fn assert_is_in(&self, answered: &Answered) {
        assert_eq!(answered.status, 200, "{answered:?}");
        let token = answered.json()["access_token"].as_str().unwrap().to_owned();
        let me = self.browser.get(self.daemon.hosts_url("/auth/me")).bearer_auth(token).send().await.unwrap();
        assert_eq!(me.status(), 200);
        let me: Value = me.json().await.unwrap();
        assert!(me.to_string().contains(ADA), "{me}");
    }

    /// Asserts that no secret is in these answers, in the log or in the audit log.
    async fn assert_nothing_told(&self, answers: &[Answered]) {
        let secrets = self.provider.secrets();
        assert!(secrets.len() > 3, "{secrets:?}");
        let audit = self.admin.get(self.daemon.admin_url("/admin/audit?limit=1000")).send().await.unwrap();
        let audit = audit.text().await.unwrap();
        let log = self.daemon.log();
        assert!(audit.contains("session.begin") && log.contains("oidc"));
        for secret in &secrets {
            assert!(!log.contains(secret), "the log has {secret}");
            assert!(!audit.contains(secret), "the audit log has {secret}");
            for answer in answers {
                assert!(!format!("{answer:?}").contains(secret), "{answer:?} has {secret}");
            }
        }
    }
}

type Set = Box<dyn Fn(&mut Behaviour)>;

fn claim(name: &'static str, value: Value) -> Set {
    Box::new(move |behaviour| {
        let value = value.clone();
        behaviour.claims = Some(Box::new(move |claims| {
            match &value {
                Value::Null => claims.remove(name),
                value => claims.insert(name.into(), value.clone()),
            };
        }));
    })
}

fn header(name: &'static str, value: Value) -> Set {
    Box::new(move |behaviour| {
        let value = value.clone();
        behaviour.header = Some(Box::new(move |header| {
            match &value {
                Value::Null => header.remove(name),
                value => header.insert(name.into(), value.clone()),
            };
        }));
    })
}

fn signing(signing: Signing) -> Set {
    Box::new(move |behaviour| behaviour.signing = signing.clone())
}

/// Faults of browser and provider that must be refused, each with its reason.
fn cases(provider: &Provider) -> Vec<(&'static str, Set, &'static str)> {
    let brought = |name: &'static str, value: Option<&'static str>| -> Set {
        Box::new(move |behaviour| {
            behaviour.response = Some(Box::new(move |response| {
                response.retain(|(known, _)| known != name);
                response.extend(value.map(|value| (name.to_owned(), value.to_owned())));
            }));
        })
    };
    let answer =
        |change: fn(&mut Value)| -> Set { Box::new(move |behaviour| behaviour.answer = Some(Box::new(change))) };
    let mut cases: Vec<(&'static str, Set, &'static str)> = vec![
        ("no iss", brought("iss", None), "issuer_of_response"),
        ("another's iss", brought("iss", Some("https://evil.test")), "issuer_of_response"),
        ("no code", brought("code", None), "code_missing"),
        ("an unknown code", brought("code", Some("made-up")), "code_refused"),
        ("the provider says no", brought("error", Some("access_denied")), "denied"),
        ("no token", answer(|answer| drop(answer.as_object_mut().unwrap().remove("id_token"))), "token_missing"),
        ("no token but a text", answer(|answer| answer["id_token"] = "text".into()), "token_unreadable"),
        ("no nonce", claim("nonce", Value::Null), "nonce"),
        ("another nonce", claim("nonce", "another".into()), "nonce"),
        ("another issuer's token", claim("iss", "https://evil.test".into()), "issuer_of_token"),
        ("alg none", signing(Signing::None), "algorithm"),
        ("ES256", signing(Signing::Es256), "algorithm"),
        ("PS256", signing(Signing::Ps256), "algorithm"),
        ("HS256 with the client's secret", signing(Signing::Hs256(SECRET.into())), "algorithm"),
        ("another key under the same name", signing(Signing::Foreign), "signature"),
        ("a signature with a bit turned", signing(Signing::Turned), "signature"),
        ("claims that were not signed", signing(Signing::OtherClaims), "signature"),
        ("an unknown key", header("kid", "unknown".into()), "unknown_key"),
        ("crit", header("crit", json!(["exp"])), "token_unreadable"),
        ("another audience", claim("aud", "another".into()), "audience"),
        ("two audiences", claim("aud", json!([CLIENT, "another"])), "audience"),
        ("made for another", claim("azp", "another".into()), "authorized_party"),
        ("two audiences, both ours, and no azp", claim("aud", json!([CLIENT, CLIENT])), "authorized_party"),
        ("over", claim("exp", json!(now() - 1)), "expired"),
        ("of the future", claim("iat", json!(now() + 600)), "issued_in_future"),
        ("old", claim("iat", json!(now() - 1000)), "issued_too_long_ago"),
        ("not yet", claim("nbf", json!(now() + 600)), "not_yet_valid"),
        ("nobody", claim("sub", Value::Null), "subject_missing"),
        ("an empty subject", claim("sub", "".into()), "subject_missing"),
        ("a long subject", claim("sub", "a".repeat(256).into()), "subject_unfit"),
    ];
    for spelling in provider.key().spellings() {
        cases.push(("HS256 with the public key", signing(Signing::Hs256(spelling)), "algorithm"));
    }
    cases
}

#[tokio::test]
async fn whatever_is_wrong_is_refused_alike_and_noted_with_its_reason() {
    let world = World::new();
    // One key for the three algorithms.
    let mut key = world.provider.key().public();
    key.as_object_mut().unwrap().remove("alg");
    world.provider.set().keys = Some(Box::new(move |keys| *keys = vec![key.clone()]));
    let mut answers = vec![world.sign_in().await];
    world.assert_is_in(&answers[0]).await;
    for (what, set, reason) in cases(&world.provider) {
        println!("{what}: {reason}");
        let before = world.audit().await.len();
        set(&mut world.provider.set());
        let answered = world.sign_in().await;
        world.assert_refused(&answered, reason, before).await;
        // The cookie is removed in both cases.
        assert!(answered.cookies.iter().any(|cookie| cookie.contains("Max-Age=0")), "{answered:?}");
        world.provider.set().behave();
        answers.push(answered);
    }
    for good in [Signing::Rs256, Signing::Rs384, Signing::Rs512] {
        world.provider.set().signing = good;
        let answered = world.sign_in().await;
        world.assert_is_in(&answered).await;
        answers.push(answered);
    }
    world.assert_nothing_told(&answers).await;
    assert_eq!(world.daemon.cli_json(&["audit", "verify"])["intact"], true);
}

#[tokio::test]
async fn a_state_is_good_once_and_in_its_own_browser() {
    let world = World::new();
    let login = world.daemon.hosts_url("/auth/oidc/login");
    let mut answers = Vec::new();
    let mut refused = async |back: &Back, cookies: &[&(String, String)], reason: &str| {
        let before = world.audit().await.len();
        let answered = world.answer(&back.query, cookies).await;
        if reason == "not ours" {
            // A sign-in that this browser did not begin: refused, but not a failed sign-in.
            assert_eq!(answered.status, 403, "{answered:?}");
            assert_eq!(answered.json()["code"], "oidc_refused");
            assert_eq!(world.audit().await.len(), before);
        } else {
            world.assert_refused(&answered, reason, before).await;
        }
        answers.push(answered);
    };
    let (back, other) = (world.go(&login).await, world.go(&login).await);
    refused(&back, &[], "not ours").await;
    refused(&back, &[&other.cookie], "not ours").await;
    // Another sign-in's cookie under this one's name.
    let renamed = (back.cookie.0.clone(), other.cookie.1.clone());
    refused(&back, &[&renamed], "not ours").await;
    assert_eq!(world.provider.count(TOKEN), 0, "a code was sent");

    // The cookie cut, changed, and with other letter cases.
    let back = world.go(&login).await;
    let (name, value) = &back.cookie;
    let mut bad: Vec<String> = [0, 1, value.len() / 2, value.len() - 1].map(|length| value[..length].to_owned()).into();
    for position in [0, 20, 32, 33, 40, value.len() / 2, value.len() - 3] {
        let mut turned = value.clone().into_bytes();
        // Upper and lower case of an id's letters are equal, so this changes to another letter.
        turned[position] = if turned[position].eq_ignore_ascii_case(&b'A') { b'B' } else { b'A' };
        bad.push(String::from_utf8(turned).unwrap());
    }
    bad.extend([format!("{value}{value}"), value.repeat(20), "..".into(), value.replace('.', "")]);
    for bad in bad {
        refused(&back, &[&(name.clone(), bad)], "not ours").await;
    }
    let nameless = Back { cookie: back.cookie.clone(), query: HashMap::from([("code".into(), "a".into())]) };
    refused(&nameless, &[&back.cookie], "not ours").await;
    let empty = Back { cookie: back.cookie.clone(), query: HashMap::new() };
    refused(&empty, &[&back.cookie], "not ours").await;
    assert_eq!(world.provider.count(TOKEN), 0, "a code was sent");

    // None of these attempts used up the cookie. The address is not blocked, although a block needs fewer failures.
    world.assert_is_in(&world.come_back(&back).await).await;
    refused(&back, &[&back.cookie], "state_replayed").await;
    refused(&back, &[&back.cookie], "state_replayed").await;
    assert_eq!(world.provider.count(TOKEN), 1, "the code was sent once");
    // It is not valid after a failed sign-in either.
    let back = world.go(&login).await;
    world.provider.set().signing = Signing::Foreign;
    refused(&back, &[&back.cookie], "signature").await;
    world.provider.set().behave();
    refused(&back, &[&back.cookie], "state_replayed").await;
    world.assert_nothing_told(&answers).await;
}

/// Requests that another site's page can cause, whatever headers the browser adds.
#[tokio::test]
async fn a_foreign_page_locks_nobody_out_of_sign_in() {
    let world = World::with(&[("LIMITS__AUTH_FAIL_COUNT", "3"), ("LIMITS__GLOBAL_PER_MINUTE", "0")]);
    for query in ["?state=x", "?state=x&code=y", "?error=access_denied&state=x", "?code=y", ""] {
        for _ in 0..4 {
            let answered = world.get(&world.daemon.hosts_url(&format!("/auth/oidc/callback{query}")), &[]).await;
            assert_eq!((answered.status.as_u16(), &answered.json()["code"]), (403, &json!("oidc_refused")), "{query}");
        }
    }
    assert_eq!(world.audit().await.len(), 0, "a failed sign-in was recorded");
    world.assert_is_in(&world.sign_in().await).await;
    // A sign-in that this browser began and that fails still counts as failed.
    world.provider.set().signing = Signing::Foreign;
    for _ in 0..3 {
        assert_eq!(world.sign_in().await.status, 403);
    }
    let blocked = world.get(&world.daemon.hosts_url("/auth/oidc/login"), &[]).await;
    assert_eq!(blocked.status, 429, "{blocked:?}");
    let started = std::time::Instant::now();
    while !world.daemon.cli_json(&["audit", "list"]).to_string().contains("sign_in.foreign_state") {
        assert!(started.elapsed() < crate::support::daemon::BOUND, "the audit log counts them");
        crate::support::daemon::pause();
    }
}

#[tokio::test]
async fn another_sites_page_reaches_no_sign_in_of_the_hosts_listener() {
    let world = World::new();
    let call = |method: &str, path: &str| {
        let url = world.daemon.hosts_url(path);
        world.browser.request(method.parse().unwrap(), url)
    };
    let body = json!({ "email": ADA, "password": "not the password" });
    for (name, value) in [("origin", "https://evil.test"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        for request in [
            call("POST", "/auth/session").json(&body),
            call("DELETE", "/auth/session"),
            call("POST", "/auth").json(&json!({})).header("x-api-key", "0".repeat(64)),
            call("GET", "/auth/oidc/login"),
            call("GET", "/auth/oidc/callback?state=x"),
        ] {
            let answer = request.header(name, value).send().await.unwrap();
            assert_eq!(answer.status(), 403, "{name}: {value}");
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "cross_site", "{name}: {value}");
        }
    }
    assert_eq!(world.audit().await.len(), 0);
    let own = call("POST", "/auth/session").json(&body).header("origin", world.daemon.hosts_url(""));
    assert_eq!(own.header("sec-fetch-site", "same-origin").send().await.unwrap().status(), 401, "a page of our own");
    // The provider redirects the window from its own site.
    let back = world.go(&world.daemon.hosts_url("/auth/oidc/login")).await;
    let url = Url::parse_with_params(&world.daemon.hosts_url("/auth/oidc/callback"), &back.query).unwrap();
    let window = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    let call = window.iter().fold(world.browser.get(url), |call, (name, value)| call.header(*name, *value));
    let answer = call.header(COOKIE, format!("{}={}", back.cookie.0, back.cookie.1)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// The same with a real browser and a hostile page of another site.
#[test]
fn a_browsers_page_of_another_site_locks_nobody_out() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(async { World::with(&[("LIMITS__AUTH_FAIL_COUNT", "3")]) });
    let (callback, session) =
        (world.daemon.hosts_url("/auth/oidc/callback?state=x"), world.daemon.hosts_url("/auth/session"));
    let evil = format!(
        r#"<!doctype html><title>evil</title><iframe src="{callback}"></iframe><script>
        const all = [];
        for (let n = 0; n < 5; n++) {{
          all.push(fetch("{callback}", {{ mode: "no-cors", credentials: "include" }}));
          all.push(fetch("{session}", {{ method: "POST", mode: "no-cors", credentials: "include",
            body: new Blob(['{{"email": "{ADA}", "password": "x"}}']) }}));
        }}
        Promise.allSettled(all).then(() => document.title = "sent");
        </script>"#
    );
    let site = crate::support::http::HttpServer::plain(move |_| {
        crate::support::http::Reply::new(200, "text/html", evil.clone())
    });
    runtime.block_on(async {
        let looks = crate::support::browser::Looks::default();
        let browser = crate::support::browser::Browser::start(&world.daemon, "eve", looks).await;
        browser.open(&format!("http://localhost:{}/", site.port)).await;
        browser.wait_for_title("sent").await;
        let refused = world.daemon.log().matches("another site's page was refused").count();
        assert!(refused >= 10, "the requests arrived and were refused: {refused}\n{}", world.daemon.log());
        // A link navigates the window itself: no failed sign-in either.
        for _ in 0..4 {
            browser.open(&world.daemon.hosts_url("/auth/oidc/callback?state=x")).await;
        }
        assert_eq!(world.audit().await.len(), 0, "a failed sign-in was recorded");
        world.assert_is_in(&world.sign_in().await).await;
    });
}

/// The caller controls the `Host` header: it never decides where a browser is redirected.
#[tokio::test]
async fn a_sign_in_leads_back_to_known_addresses_only() {
    let world = World::with(&[("ADMIN__ACCESS", "login"), ("ADMIN__ORIGINS", "https://admin.example.test")]);
    // HTTP/1.1 sends the header exactly as written here.
    let client = world.daemon.client_builder().redirect(Policy::none()).http1_only().build().unwrap();
    let port = world.daemon.admin_url("").rsplit_once(':').unwrap().1.to_owned();
    let login = world.daemon.admin_url("/auth/oidc/login?return_to=/users");
    for foreign in
        ["evil.test", &format!("evil.test:{port}"), "127.0.0.1", "127.0.0.1:1", "admin.example.test:1", "a b", ""]
    {
        let answer = client.get(&login).header("host", foreign).send().await.unwrap();
        assert!(answer.headers().get(LOCATION).is_none(), "{foreign}: {answer:?}");
        assert!(answer.headers().get(SET_COOKIE).is_none(), "{foreign}");
        assert!(answer.status().is_client_error(), "{foreign}: {answer:?}");
    }
    let answer = client.get(&login).header("host", "evil.test").send().await.unwrap();
    assert_eq!(answer.status(), 422);
    assert!(answer.text().await.unwrap().contains("admin.origins"), "it says what to do");
    for (host, led) in [
        ("admin.example.test".to_owned(), "https://admin.example.test/users".to_owned()),
        (format!("admin.example.test:{port}"), format!("https://admin.example.test:{port}/users")),
        (format!("localhost:{port}"), format!("https://localhost:{port}/users")),
        (format!("127.0.0.1:{port}"), format!("https://127.0.0.1:{port}/users")),
        // The host of oidc.redirect_uri.
        (format!("{}:{port}", Url::parse(CALLBACK).unwrap().host_str().unwrap()), String::new()),
    ] {
        let answer = client.get(&login).header("host", &host).send().await.unwrap();
        assert_eq!(answer.status(), 302, "{host}");
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        if led.is_empty() {
            continue;
        }
        let to_provider = answer.headers()[LOCATION].to_str().unwrap().to_owned();
        let told = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap().get(to_provider);
        let back = Url::parse(told.send().await.unwrap().headers()[LOCATION].to_str().unwrap()).unwrap();
        let callback = format!("{}?{}", world.daemon.hosts_url("/auth/oidc/callback"), back.query().unwrap());
        // The request of the callback may name any host.
        let answer = client.get(callback).header(COOKIE, &cookie).header("host", "evil.test").send().await.unwrap();
        assert_eq!(answer.status(), 303, "{host}");
        assert_eq!(answer.headers()[LOCATION].to_str().unwrap(), led);
    }
}

#[tokio::test]
async fn of_many_who_come_back_at_once_with_one_state_one_is_let_in() {
    let world = World::new();
    for round in 1..=5 {
        let back = world.go(&world.daemon.hosts_url("/auth/oidc/login")).await;
        let answers = join_all((0..20).map(|_| world.come_back(&back))).await;
        assert_eq!(answers.iter().filter(|answered| answered.status == 200).count(), 1);
        assert!(answers.iter().all(|answered| answered.status == 200 || answered.status == 403));
        assert_eq!(world.provider.count(TOKEN), round, "a code is sent once");
    }
    let reasons: Vec<Value> = world.audit().await.iter().map(|entry| entry["details"]["reason"].clone()).collect();
    assert_eq!(reasons.iter().filter(|reason| **reason == "state_replayed").count(), 1, "{reasons:?}");
}

#[tokio::test]
async fn a_code_without_our_challenge_is_refused() {
    let world = World::new();
    let begun = world.get(&world.daemon.hosts_url("/auth/oidc/login"), &[]).await;
    let url = Url::parse(begun.location.as_ref().unwrap()).unwrap();
    let kept: Vec<(String, String)> =
        url.query_pairs().into_owned().filter(|(name, _)| !name.starts_with("code_challenge")).collect();
    let mut stripped = url.clone();
    stripped.query_pairs_mut().clear().extend_pairs(kept);
    let told = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap().get(stripped);
    let told = told.send().await.unwrap();
    let back = Url::parse(told.headers()[LOCATION].to_str().unwrap()).unwrap();
    let cookie = begun.cookie("__Host-codex-authd-oidc-").unwrap();
    let answered = world.answer(&back.query_pairs().into_owned().collect(), &[&cookie]).await;
    world.assert_refused(&answered, "code_refused", 0).await;
    assert!(world.provider.last(TOKEN).unwrap().form.contains_key("code_verifier"));
    world.assert_nothing_told(&[answered]).await;
}

#[tokio::test]
async fn a_stranger_is_told_who_they_are_and_an_equal_address_links_nobody() {
    let world = World::by(Provider::start(), &[]);
    world.daemon.cli_json(&["users", "add", ADA]);
    let answered = world.sign_in().await;
    assert_eq!(answered.status, 403);
    let body = answered.json();
    assert_eq!(body["code"], "identity_not_linked");
    let message = body["message"].as_str().unwrap();
    assert!(message.contains(&world.provider.issuer()) && message.contains(SUBJECT), "{message}");
    let entry = world.noted(0, "not_linked").await;
    let details = &entry["details"];
    assert_eq!((&entry["outcome"], &details["reason"]), (&json!("403"), &json!("not_linked")));
    assert_eq!((&details["issuer"], &details["subject"]), (&json!(world.provider.issuer()), &json!(SUBJECT)));
    assert_eq!(details["email"], ADA, "as the provider says");
    let identities = world.daemon.cli_json(&["identities", "list"]);
    assert!(!identities.to_string().contains(SUBJECT), "{identities}");

    // Links by the API; then that subject can sign in, and another one with the same address cannot.
    let link = json!({ "issuer": world.provider.issuer(), "subject": SUBJECT, "user": ADA });
    let linked = world.admin.post(world.daemon.admin_url("/auth/identities")).json(&link).send().await.unwrap();
    assert_eq!(linked.status(), 200);
    world.assert_is_in(&world.sign_in().await).await;
    for subject in ["another", "Ada-of-the-provider", "ada-of-the-provider ", "ada-of-the-provide"] {
        claim("sub", subject.into())(&mut world.provider.set());
        let answered = world.sign_in().await;
        assert_eq!(answered.json()["code"], "identity_not_linked", "{subject:?}");
        world.provider.set().behave();
    }

    // After the link or the user is removed, nobody can sign in.
    world.daemon.cli_json(&["users", "disable", ADA]);
    let before = world.audit().await.len();
    let answered = world.sign_in().await;
    world.assert_refused(&answered, "disabled", before).await;
    world.daemon.cli_json(&["users", "enable", ADA]);
    world.assert_is_in(&world.sign_in().await).await;
    world.daemon.cli_json(&["identities", "unlink", "--issuer", &world.provider.issuer(), "--subject", SUBJECT]);
    assert_eq!(world.sign_in().await.json()["code"], "identity_not_linked");
    world.assert_nothing_told(&[answered]).await;
}

#[tokio::test]
async fn an_identity_is_linked_by_a_row_or_by_the_function_too() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let provider = Provider::start();
    let all = settings(&provider);
    let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut daemon = on_database(&url, &all);
    daemon.launch();
    let world = World::around(provider, daemon);
    let id = world.daemon.cli_json(&["users", "add", ADA]).to_string();
    let id: u64 =
        id.split(|letter: char| !letter.is_ascii_digit()).find(|digits| digits.len() > 10).unwrap().parse().unwrap();
    let issuer = world.provider.issuer();

    assert_eq!(world.sign_in().await.json()["code"], "identity_not_linked");
    let row = format!(
        "INSERT INTO authd.external_identities (issuer, subject, user_id) VALUES ('{issuer}', '{SUBJECT}', {id})"
    );
    server.query(&row).await;
    world.assert_is_in(&world.sign_in().await).await;

    claim("sub", "seeded".into())(&mut world.provider.set());
    assert_eq!(world.sign_in().await.json()["code"], "identity_not_linked");
    let seed = ExternalIdentitySeed {
        issuer,
        subject: "seeded".into(),
        user_id: codex_authd::model::people::UserId(id),
        email: None,
    };
    let records = records(&url).await;
    for _ in 0..2 {
        seed_external_identities(&records, std::slice::from_ref(&seed)).await.unwrap();
    }
    world.assert_is_in(&world.sign_in().await).await;
}

#[tokio::test]
async fn a_browser_goes_back_to_a_page_of_our_own_only() {
    let world = World::with(&[("ADMIN__ACCESS", "login")]);
    world.daemon.cli_json(&["users", "role", ADA, "admin"]);
    let home = world.daemon.admin_url("/");
    for (wanted, page) in [
        ("/", "/"),
        ("/hosts?told=ab", "/hosts?told=ab"),
        ("//evil.test", "/"),
        ("///evil.test", "/"),
        ("/\\evil.test", "/"),
        ("\\\\evil.test", "/"),
        ("https://evil.test/", "/"),
        ("https:evil.test", "/"),
        ("javascript:alert(1)", "/"),
        ("evil.test", "/"),
        ("/hosts\r\nSet-Cookie: a=b", "/"),
        ("/\tevil.test", "/"),
        ("/\u{0}", "/"),
        ("", "/"),
        (" //evil.test", "/"),
    ] {
        let login =
            Url::parse_with_params(&world.daemon.admin_url("/auth/oidc/login"), [("return_to", wanted)]).unwrap();
        let back = world.go(login.as_str()).await;
        let callback = Url::parse_with_params(&world.daemon.admin_url("/auth/oidc/callback"), &back.query).unwrap();
        let answered = world.get(callback.as_str(), &[&back.cookie]).await;
        assert_eq!(answered.status, 303, "{wanted:?}: {answered:?}");
        let location = answered.location.clone().unwrap();
        let led = Url::parse(&home).unwrap().join(&location).unwrap();
        assert_eq!(led.as_str(), world.daemon.admin_url(page), "{wanted:?} leads to {location}");
        let session =
            answered.cookies.iter().find(|cookie| cookie.starts_with("__Host-codex-authd-session=cxa_")).unwrap();
        for attribute in ["; HttpOnly", "; Secure", "; SameSite=Lax", "; Path=/"] {
            assert!(session.contains(attribute), "{session}");
        }
        assert!(!session.contains("Domain"), "{session}");
        assert!(answered.text.is_empty() && !location.contains("cxa_"));
        // The session is valid for the pages.
        let cookie = answered.cookie("__Host-codex-authd-session").unwrap();
        assert_eq!(world.get(&home, &[&cookie]).await.status, 200);
    }
    // A refusal on a page says as little.
    let login = world.daemon.admin_url("/auth/oidc/login?return_to=/hosts");
    world.provider.set().signing = Signing::None;
    let before = world.daemon.cli_json(&["audit", "list"]).to_string().matches("\"algorithm\"").count();
    let back = world.go(&login).await;
    let callback = Url::parse_with_params(&world.daemon.admin_url("/auth/oidc/callback"), &back.query).unwrap();
    let answered = world.get(callback.as_str(), &[&back.cookie]).await;
    assert_eq!(answered.status, 403);
    assert!(answered.text.contains("<html") && !answered.text.contains("algorithm"), "{}", answered.text);
    assert!(answered.cookie("__Host-codex-authd-session").is_none());
    let after = world.daemon.cli_json(&["audit", "list"]).to_string().matches("\"algorithm\"").count();
    assert_eq!(after, before + 1);
    for secret in world.provider.secrets() {
        assert!(!answered.text.contains(&secret) && !world.daemon.log().contains(&secret), "{secret}");
    }
}

#[tokio::test]
async fn a_flood_of_unknown_keys_makes_one_request_and_a_changed_key_loses_nobody() {
    let world = World::new();
    world.assert_is_in(&world.sign_in().await).await;
    assert_eq!(world.provider.count(KEYS), 1);
    let stolen = world.provider.key();
    world.provider.rotate("second");
    for answered in join_all((0..10).map(|_| world.sign_in())).await {
        world.assert_is_in(&answered).await;
    }
    assert_eq!(world.provider.count(KEYS), 2);
    header("kid", "nobody-knows-it".into())(&mut world.provider.set());
    let answers = join_all((0..100).map(|_| world.sign_in())).await;
    assert!(answers.iter().all(|answered| answered.status == 403));
    assert!(world.provider.count(KEYS) <= 3, "{} requests", world.provider.count(KEYS));
    let entries = world.audit().await;
    let unknown = entries.iter().filter(|entry| entry["details"]["reason"] == "unknown_key").count();
    assert_eq!(unknown, 1, "repeats within the minute are counted");
    world.provider.set().behave();
    world.assert_is_in(&world.sign_in().await).await;
    // The first key is gone: a token signed with it is refused.
    let second = world.provider.key().public();
    world.provider.set().keys = Some(Box::new(move |keys| *keys = vec![second.clone()]));
    world.provider.set().sign_with(&stolen);
    let before = world.audit().await.len();
    let answered = world.sign_in().await;
    world.assert_refused(&answered, "unknown_key", before).await;
}

#[tokio::test]
async fn keys_that_must_not_be_used_are_not() {
    let good = RsaKey::new("good").public();
    let (pem, weak) = short(1024, "first");
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 4] = [
        ("use: enc", |key| key["use"] = "enc".into()),
        ("a private part", |key| key["d"] = "AQAB".into()),
        ("another alg", |key| key["alg"] = "RS512".into()),
        ("1024 bits", |_| ()),
    ];
    for (what, change) in changes {
        let (provider, good, weak) = (Provider::start(), good.clone(), weak.clone());
        if what == "1024 bits" {
            provider.set().signing = Signing::Short(pem.clone());
            provider.set().keys = Some(Box::new(move |keys| *keys = vec![weak.clone(), good.clone()]));
        } else {
            provider.set().keys = Some(Box::new(move |keys| {
                change(&mut keys[0]);
                keys.push(good.clone());
            }));
        }
        let world = World::by(provider, &[]).link_ada();
        let answered = world.sign_in().await;
        world.assert_refused(&answered, "unknown_key", 0).await;
        // A token must name the key if there are two.
        header("kid", Value::Null)(&mut world.provider.set());
        let answered = world.sign_in().await;
        assert_eq!(answered.status, 403, "{what}: {answered:?}");
    }
}

#[tokio::test]
async fn a_provider_that_is_away_is_waited_for_and_its_kept_keys_are_used() {
    let provider = Provider::start();
    for path in [DISCOVERY, KEYS, TOKEN] {
        provider.fault(path, Fault::Gone);
    }
    let world = World::by(provider, &[]).link_ada();
    let away = |answered: &Answered| {
        assert_eq!(answered.status, 503, "{answered:?}");
        assert_eq!(answered.json()["code"], "provider_unavailable");
    };
    away(&world.get(&world.daemon.hosts_url("/auth/oidc/login"), &[]).await);
    world.provider.mend(DISCOVERY);
    let back = world.go(&world.daemon.hosts_url("/auth/oidc/login")).await;
    away(&world.come_back(&back).await);
    assert_eq!(world.noted(0, "unavailable").await["outcome"], "503");
    world.provider.mend(TOKEN);
    away(&world.sign_in().await);
    world.provider.mend(KEYS);
    world.assert_is_in(&world.sign_in().await).await;
    // From now on the provider serves neither keys nor document.
    world.provider.fault(KEYS, Fault::Status(500));
    world.provider.fault(DISCOVERY, Fault::Status(500));
    world.assert_is_in(&world.sign_in().await).await;
    for event in ["oidc_unavailable", "oidc_available"] {
        // For the document, the token endpoint, and the keys.
        assert_eq!(world.daemon.log().matches(&format!("event={event}")).count(), 3, "{event}");
    }
}

#[tokio::test]
async fn answers_of_the_provider_that_are_none_are_no_fault_of_the_user() {
    let world = World::new();
    world.assert_is_in(&world.sign_in().await).await;
    let mut answers = Vec::new();
    for fault in [
        Fault::Redirect,
        Fault::Padded(256 * 1024),
        Fault::Endless,
        Fault::Cut,
        Fault::ContentType("text/html"),
        Fault::Status(500),
        Fault::Text("[]"),
        // The real limit: ten seconds.
        Fault::Silent,
        Fault::Halting,
    ] {
        let before = world.audit().await.len();
        world.provider.fault(TOKEN, fault.clone());
        let begun = std::time::Instant::now();
        let answered = world.sign_in().await;
        assert_eq!(answered.status, 503, "{fault:?}: {answered:?}");
        assert_eq!(answered.json()["code"], "provider_unavailable", "{fault:?}");
        assert_eq!(world.noted(before, "unavailable").await["outcome"], "503", "{fault:?}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{fault:?}");
        world.provider.mend(TOKEN);
        answers.push(answered);
    }
    world.assert_is_in(&world.sign_in().await).await;
    world.assert_nothing_told(&answers).await;
}

#[tokio::test]
async fn a_document_of_another_issuer_lets_nobody_in() {
    let provider = Provider::start();
    provider.set().document = Some(Box::new(|document| document["issuer"] = "https://evil.test".into()));
    let world = World::by(provider, &[]).link_ada();
    let answered = world.get(&world.daemon.hosts_url("/auth/oidc/login"), &[]).await;
    assert!(answered.location.is_none() && answered.cookies.is_empty(), "{answered:?}");
    world.assert_refused(&answered, "issuer_of_discovery", 0).await;
    assert!(world.daemon.log().contains("oidc_unavailable"));
    assert!(!answered.text.contains("evil.test"));
    // The log shows both to the operator.
    let log = world.daemon.log();
    let line = log.lines().find(|line| line.contains("evil.test")).unwrap_or_default();
    assert!(line.contains(&world.provider.issuer()), "{log}");
    world.provider.set().behave();
    world.assert_is_in(&world.sign_in().await).await;
}

#[tokio::test]
async fn the_variables_that_others_know_are_enough() {
    let provider = Provider::start();
    let mut daemon = Daemon::prepare(&[]);
    for (name, value) in settings(&provider) {
        daemon.environment.push((name.replace("OIDC__", "CODEX_OIDC_"), value));
    }
    daemon.launch();
    let world = World::around(provider, daemon).link_ada();
    world.assert_is_in(&world.sign_in().await).await;
}

#[tokio::test]
async fn each_sign_in_has_secrets_of_its_own() {
    let world = World::new();
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let begun = world.get(&world.daemon.hosts_url("/auth/oidc/login"), &[]).await;
        let location = Url::parse(begun.location.as_ref().unwrap()).unwrap();
        let query: HashMap<String, String> = location.query_pairs().into_owned().collect();
        assert_eq!((query["code_challenge_method"].as_str(), query["scope"].as_str()), ("S256", "openid email"));
        for name in ["state", "nonce", "code_challenge"] {
            assert_eq!(query[name].len(), 43, "256 bits");
            assert!(seen.insert(query[name].clone()), "{name} comes twice");
        }
        let cookie = begun.cookies.iter().find(|cookie| cookie.starts_with("__Host-codex-authd-oidc-")).unwrap();
        for attribute in ["; HttpOnly", "; Secure", "; SameSite=Lax", "; Path=/", "; Max-Age=600"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(!cookie.contains("Domain") && !cookie.contains(&query["state"]) && !cookie.contains(&query["nonce"]));
    }
}
