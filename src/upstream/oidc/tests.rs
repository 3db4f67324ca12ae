//! Tests with a provider that misbehaves in one way at a time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::*;
use crate::platform::{Clock, SecureRandom, System};

// Only the integration tests use the rest.
#[allow(dead_code)]
#[path = "../../../tests/integration/support/provider.rs"]
pub(crate) mod hostile;

#[path = "../../../tests/integration/support/authority.rs"]
mod authority;
// Only the integration tests use the rest.
#[allow(dead_code)]
#[path = "../../../tests/integration/support/http.rs"]
mod https;

mod answers;
mod keys;
mod tokens;

use hostile::signing::Signing;
use hostile::{AUTHORIZE, CLIENT, DISCOVERY, Fault, KEYS, SECRET, TOKEN};

const CALLBACK: &str = "https://auth.test/auth/oidc/callback";

/// A clock ahead of the system's clock.
#[derive(Default)]
struct TestClock(Mutex<time::Duration>);

impl TestClock {
    fn set_ahead(&self, ahead: time::Duration) {
        *self.0.lock().unwrap() = ahead;
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        System.now() + *self.0.lock().unwrap()
    }
}

impl SecureRandom for TestClock {
    fn fill(&self, buffer: &mut [u8]) {
        System.fill(buffer);
    }
}

struct World {
    provider: hostile::Provider,
    clock: Arc<TestClock>,
    client: Provider,
    browser: reqwest::Client,
}

fn settings(provider: &hostile::Provider) -> ProviderSettings {
    ProviderSettings {
        issuer: provider.issuer(),
        client_id: CLIENT.into(),
        client_secret: Some(Secret::new(SECRET)),
        redirect_uri: CALLBACK.into(),
        trusted_audiences: Vec::new(),
        keys_ttl: Duration::from_secs(3600),
        keys_refresh: Duration::from_secs(600),
    }
}

/// Long enough for a busy machine. A test of a timeout uses an answer that never comes.
const LIMITS: HttpLimits =
    HttpLimits { connect: Duration::from_secs(2), whole: Duration::from_secs(2), ..HttpLimits::REAL };

impl World {
    fn new() -> Self {
        Self::with(LIMITS, |_| ())
    }

    fn with(limits: HttpLimits, change: impl FnOnce(&mut ProviderSettings)) -> Self {
        crate::pki::tls::install_default_provider();
        let provider = hostile::Provider::start();
        let mut settings = settings(&provider);
        change(&mut settings);
        let clock = Arc::new(TestClock::default());
        let client = Provider::within(limits, settings, clock.clone()).unwrap();
        let browser =
            reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { provider, clock, client, browser }
    }

    /// Follows the URL, and returns the parameters that the browser brings back.
    async fn visit(&self, url: &Url) -> ProviderAnswer {
        let response = self.browser.get(url.clone()).send().await.unwrap();
        assert_eq!(response.status(), 302, "{}", response.text().await.unwrap());
        let location = Url::parse(response.headers()["location"].to_str().unwrap()).unwrap();
        assert!(location.as_str().starts_with(CALLBACK));
        let mut brought: HashMap<String, String> = location.query_pairs().into_owned().collect();
        ProviderAnswer {
            code: brought.remove("code").map(Secret::new),
            state: brought.remove("state").map(Secret::new),
            iss: brought.remove("iss"),
            error: brought.remove("error"),
        }
    }

    async fn sign_in(&self) -> Result<Identity, SignInRefusal> {
        let (url, flow) = self.client.begin().await?;
        let answer = self.visit(&url).await;
        self.client.finish(&flow, &answer).await
    }

    #[track_caller]
    fn assert_is_ada(&self, outcome: &Result<Identity, SignInRefusal>) {
        let ada = Identity {
            issuer: self.provider.issuer(),
            subject: "ada-of-the-provider".into(),
            email: Some("ada@example.test".into()),
        };
        assert_eq!(outcome.as_ref(), Ok(&ada));
    }

    fn claim(&self, name: &'static str, value: Option<Value>) {
        self.provider.set().claims = Some(Box::new(move |claims| {
            match &value {
                Some(value) => claims.insert(name.into(), value.clone()),
                None => claims.remove(name),
            };
        }));
    }
}

thread_local! {
    /// The log of this thread; a test runs entirely on one thread.
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Pairs(String);
        impl<'kvs> log::kv::VisitSource<'kvs> for Pairs {
            fn visit_pair(
                &mut self,
                key: log::kv::Key<'kvs>,
                value: log::kv::Value<'kvs>,
            ) -> Result<(), log::kv::Error> {
                self.0 += &format!(" {key}={value}");
                Ok(())
            }
        }
        let mut pairs = Pairs(format!("{} {} {}", record.level(), record.target(), record.args()));
        record.key_values().visit(&mut pairs).unwrap();
        LOGGED.with_borrow_mut(|logged| logged.push(pairs.0));
    }

    fn flush(&self) {}
}

fn listen_to_the_log() {
    let _ = log::set_logger(&Log);
    log::set_max_level(log::LevelFilter::Trace);
}

fn logged(event: &str) -> Vec<String> {
    let event = format!("event={event}");
    LOGGED.with_borrow(|logged| logged.iter().filter(|line| line.contains(&event)).cloned().collect())
}

#[tokio::test]
async fn who_signs_in_is_who_the_provider_says() {
    let world = World::new();
    assert_eq!(world.provider.count(DISCOVERY), 0, "nothing is asked before it is needed");
    world.assert_is_ada(&world.sign_in().await);
    world.assert_is_ada(&world.sign_in().await);
    let counts = [DISCOVERY, KEYS, AUTHORIZE, TOKEN].map(|path| world.provider.count(path));
    assert_eq!(counts, [1, 1, 2, 2]);
}

#[tokio::test]
async fn the_browser_is_sent_with_what_binds_the_code_to_it() {
    let world = World::new();
    let (url, flow) = world.client.begin().await.unwrap();
    let (_, other) = world.client.begin().await.unwrap();
    let sent: HashMap<String, String> = url.query_pairs().into_owned().collect();
    let hash = BASE64_URL_SAFE_NO_PAD.encode(crate::model::digest::Digest::of(flow.verifier.as_bytes()).as_bytes());
    let expected = [
        ("response_type", "code"),
        ("client_id", CLIENT),
        ("redirect_uri", CALLBACK),
        ("scope", "openid email"),
        ("state", &flow.state),
        ("nonce", &flow.nonce),
        ("code_challenge", &hash),
        ("code_challenge_method", "S256"),
    ];
    let expected: HashMap<String, String> =
        expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(sent, expected);
    let all = [&flow.state, &flow.nonce, &flow.verifier, &other.state, &other.nonce, &other.verifier];
    for one in all {
        assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(one).unwrap().len(), 32, "256 bits");
        assert_eq!(all.iter().filter(|other| **other == one).count(), 1, "no two are the same");
    }
}

#[tokio::test]
async fn the_code_goes_with_its_verifier_and_the_secret_in_the_header() {
    let world = World::new();
    let (url, flow) = world.client.begin().await.unwrap();
    let answer = world.visit(&url).await;
    world.assert_is_ada(&world.client.finish(&flow, &answer).await);
    let seen = world.provider.last(TOKEN).unwrap();
    assert_eq!(seen.form.get("code_verifier"), Some(&flow.verifier));
    assert_eq!(seen.form.get("redirect_uri").unwrap(), CALLBACK);
    assert!(seen.authorization.unwrap().starts_with("Basic "));
    assert!(!seen.form.contains_key("client_secret"));
}

#[tokio::test]
async fn the_secret_goes_in_the_body_where_the_provider_takes_it_there_only() {
    for (methods, in_body) in [
        (json!(["client_secret_post"]), true),
        (json!(["private_key_jwt", "client_secret_post"]), true),
        (json!(["client_secret_post", "client_secret_basic"]), false),
        (json!(["none"]), false),
    ] {
        let world = World::new();
        world.provider.set().document =
            Some(Box::new(move |document| document["token_endpoint_auth_methods_supported"] = methods.clone()));
        world.assert_is_ada(&world.sign_in().await);
        let seen = world.provider.last(TOKEN).unwrap();
        assert_eq!((seen.form.contains_key("client_secret"), seen.authorization.is_none()), (in_body, in_body));
    }
}

#[tokio::test]
async fn a_public_client_says_its_name_only() {
    let world = World::with(LIMITS, |settings| settings.client_secret = None);
    world.provider.set().secret = None;
    world.assert_is_ada(&world.sign_in().await);
    let seen = world.provider.last(TOKEN).unwrap();
    assert_eq!((seen.authorization, seen.form.get("client_id").map(String::as_str)), (None, Some(CLIENT)));
}

#[tokio::test]
async fn a_client_that_the_provider_does_not_take_is_an_operators_matter() {
    listen_to_the_log();
    let world = World::with(LIMITS, |settings| settings.client_secret = Some(Secret::new("another-secret")));
    assert_eq!(world.sign_in().await, Err(SignInRefusal::ClientRefused));
    assert_eq!(logged("oidc_unavailable").len(), 1);
    assert!(logged("oidc_unavailable")[0].contains("oidc.client_secret"));
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_asked() {
    crate::pki::tls::install_default_provider();
    let good = ProviderSettings {
        issuer: "https://id.test".into(),
        client_id: CLIENT.into(),
        client_secret: None,
        redirect_uri: CALLBACK.into(),
        trusted_audiences: Vec::new(),
        keys_ttl: Duration::from_secs(1),
        keys_refresh: Duration::from_secs(1),
    };
    assert!(Provider::new(good.clone(), Arc::new(System)).is_ok());
    let outcome = Provider::new(ProviderSettings { issuer: "id.test".into(), ..good.clone() }, Arc::new(System));
    assert!(matches!(outcome, Err(ProviderError::Issuer)));
    let outcome = Provider::new(ProviderSettings { redirect_uri: "/callback".into(), ..good }, Arc::new(System));
    assert!(matches!(outcome, Err(ProviderError::RedirectUri)));
}

#[tokio::test]
async fn nothing_that_is_secret_gets_into_the_log() {
    listen_to_the_log();
    let world = World::new();
    let mut secrets = Vec::new();
    for fault in [None, Some(Fault::Status(500)), Some(Fault::Cut), Some(Fault::Gone), Some(Fault::Redirect)] {
        if let Some(fault) = &fault {
            // Each recovery and each failure is logged.
            world.provider.mend(TOKEN);
            world.assert_is_ada(&world.sign_in().await);
            world.provider.fault(TOKEN, fault.clone());
        }
        let (url, flow) = world.client.begin().await.unwrap();
        let answer = world.visit(&url).await;
        let outcome = world.client.finish(&flow, &answer).await;
        assert_eq!(outcome.is_ok(), fault.is_none());
        secrets.extend([flow.state.clone(), flow.nonce.clone(), flow.verifier.clone()]);
    }
    world.provider.mend(TOKEN);
    for signing in [Signing::None, Signing::Foreign] {
        world.provider.set().signing = signing;
        assert!(world.sign_in().await.is_err());
    }
    secrets.extend(world.provider.secrets());
    let of_a_token: Vec<String> = secrets.iter().flat_map(|secret| secret.split('.').map(String::from)).collect();
    let ours =
        |line: &String| line.contains("codex_authd") || line.contains("openidconnect") || line.contains("oauth2");
    LOGGED.with_borrow(|logged| {
        assert!(logged.iter().any(|line| line.contains("oidc_unavailable")));
        for secret in of_a_token.iter().filter(|secret| secret.len() > 20) {
            assert!(!logged.iter().filter(|line| ours(line)).any(|line| line.contains(secret)), "{secret}");
        }
    });
}
