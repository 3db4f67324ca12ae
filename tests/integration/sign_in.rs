//! Sign-in, in a real browser and through a real provider.

use std::time::Instant;

use reqwest::Client;
use serde_json::{Value, json};

use crate::dashboard::redeem;
use crate::database::{on_database, with_key_of};
use crate::forms::COOKIE;
use crate::refusals::{DOCUMENT, refused};
use crate::support::browser::{Browser, Looks};
use crate::support::daemon::{BOUND, Daemon, install_provider, pause};
use crate::support::mariadb::MariaDb;
use crate::support::oidc_provider::{OidcProvider, free_port, sign_in};
use crate::support::people::{PASSWORD, add_user, ask, link, me, sign_ins_noted, tell};
use crate::support::{network, now};

const LOGIN: &str = "/auth/oidc/login";
const CALLBACK: &str = "/auth/oidc/callback";
const WITH_PROVIDER: &str = "Sign in with your identity provider";

/// The other tests depend on this: the provider is correct, and its keys change on request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_describes_itself_and_rotates_its_keys() {
    install_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |url: String| -> Value { client.get(url).send().await.unwrap().json().await.unwrap() };
    let mut provider = OidcProvider::start("https://127.0.0.1:1/auth/oidc/callback");
    let document = get(format!("{}/.well-known/openid-configuration", provider.issuer())).await;
    assert_eq!(document["issuer"], provider.issuer());
    assert_eq!(document["code_challenge_methods_supported"], serde_json::json!(["S256"]));
    assert_eq!(document["authorization_response_iss_parameter_supported"], true);

    let mut seen = Vec::new();
    for step in ["started", "rotated", "restarted"] {
        match step {
            "rotated" => provider.rotate(),
            "restarted" => provider.restart(),
            _ => {}
        }
        let served = get(document["jwks_uri"].as_str().unwrap().to_owned()).await;
        let keys = served["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 1, "{step}");
        assert_eq!(keys[0]["kid"], provider.kids[0], "{step}");
        assert_eq!(keys[0]["alg"], "RS256", "{step}");
        assert!(keys[0].get("d").is_none(), "{step}: no private part");
        seen.push(provider.kids[0].clone());
    }
    assert_ne!(seen[0], seen[1], "a rotation did not change the key");
    assert_eq!(seen[1], seen[2], "a restart changed the key");

    // Without PKCE the provider refuses the sign-in.
    let query = "client_id=codex-authd&response_type=code&scope=openid&redirect_uri=https%3A%2F%2F127.0.0.1%3A1%2Fauth%2Foidc%2Fcallback&state=s";
    let bare = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = bare.get(format!("{}/auth?{query}", provider.issuer())).send().await.unwrap();
    let to = answer.headers()["location"].to_str().unwrap();
    assert!(to.contains("error=invalid_request") && to.contains("PKCE"), "{to}");

    provider.stop();
    assert!(client.get(document["jwks_uri"].as_str().unwrap()).send().await.is_err());
}

/// A daemon with the variables of OPERATIONS.md's example, and a provider that redirects to its hosts' listener.
/// Neither runs yet.
fn company(settings: &[(&str, &str)]) -> (Daemon, OidcProvider) {
    let listen = format!("127.0.0.1:{}", free_port());
    let redirect = format!("https://{listen}{CALLBACK}");
    let mut daemon = Daemon::prepare(&[&[("LISTEN__HOSTS", &*listen)], settings].concat());
    let provider = OidcProvider::prepare(&redirect);
    daemon.environment = provider.environment();
    set_redirect(&mut daemon, redirect);
    (daemon, provider)
}

/// Sets the redirect URI. The variables are then exactly those of OPERATIONS.md's example.
fn set_redirect(daemon: &mut Daemon, redirect: String) {
    daemon.environment.push(("CODEX_OIDC_REDIRECT_URI".into(), redirect));
    let lines = include_str!("../../docs/OPERATIONS.md").lines();
    let exported = lines.filter_map(|line| line.split_once('='));
    let example: Vec<&str> = exported.map(|(name, _)| name).filter(|name| name.starts_with("CODEX_OIDC_")).collect();
    assert_eq!(daemon.environment.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), example);
}

fn started(settings: &[(&str, &str)]) -> (Daemon, OidcProvider) {
    let (mut daemon, mut provider) = company(settings);
    provider.restart();
    daemon.launch();
    (daemon, provider)
}

/// The JSON that the browser shows, as soon as it shows it.
async fn json_shown(browser: &Browser, word: &str) -> Value {
    browser.says("pre", word).await;
    let text = browser.text("pre").await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

async fn token_shown(browser: &Browser) -> String {
    let shown = json_shown(browser, "access_token").await;
    let token = shown["access_token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("cxa_") && token.len() == 47, "{token}");
    assert_eq!(shown["data"]["access_token"], *token);
    assert_eq!(shown["token_type"], "bearer");
    assert!(shown["expires_in"].as_u64().is_some_and(|seconds| seconds > 0), "{shown}");
    token
}

/// Our cookies that the browser has for this page.
async fn our_cookies(browser: &Browser) -> Vec<Value> {
    let cookies = browser.cookies().await;
    cookies.into_iter().filter(|cookie| cookie["name"].as_str().unwrap().contains("codex-authd")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_gets_a_token_as_json_through_the_provider() {
    let (daemon, provider) = started(&[]);
    let ada = add_user(&daemon, "ada@here.test", "member").await;
    link(&daemon, &provider.issuer(), "ada", "ada@here.test").await;
    let browser = Browser::start(&daemon, "json", Looks::default()).await;
    browser.open(&daemon.hosts_url(LOGIN)).await;
    browser.says("h1", "The company: sign in").await;

    // The browser's cookies during the sign-in. Cookies ignore ports, and browsers treat loopback like TLS.
    let kept = our_cookies(&browser).await;
    assert_eq!(kept.len(), 1, "{kept:?}");
    let (kept, name) = (&kept[0], kept[0]["name"].as_str().unwrap());
    let tag = name.strip_prefix("__Host-codex-authd-oidc-").unwrap();
    assert!(tag.len() == 16 && tag.bytes().all(|letter| letter.is_ascii_hexdigit()), "{name}");
    assert_eq!(
        (&kept["httpOnly"], &kept["secure"], &kept["path"]),
        (&json!(true), &json!(true), &json!("/")),
        "{kept}"
    );
    assert_eq!(kept["sameSite"], "Lax");
    let left = kept["expiry"].as_i64().unwrap() - now().unix_timestamp();
    assert!((500..=600).contains(&left), "for ten minutes: {left} s");
    let sealed = kept["value"].as_str().unwrap().to_owned();

    sign_in(&browser, "ada").await;
    let token = token_shown(&browser).await;
    let came_back = browser.address().await;
    assert!(came_back.starts_with(&daemon.hosts_url(CALLBACK)), "{came_back}");
    assert_eq!(
        our_cookies(&browser).await,
        Vec::<Value>::new(),
        "the sign-in's cookie is gone, and there is no session cookie"
    );
    let who = me(&daemon, &token).await;
    assert_eq!((&who["user"]["id"], &who["user"]["email"]), (&json!(ada), &json!("ada@here.test")));
    assert_eq!(who["session"]["signed_in_by"], "oidc");
    assert_eq!((&who["session"]["issuer"], &who["session"]["subject"]), (&json!(provider.issuer()), &json!("ada")));
    let on_admin = daemon.admin().get(daemon.admin_url("/auth/me")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(on_admin.status(), 200, "on both listeners");
    assert_eq!(sign_ins_noted(&daemon).await, [("done".to_owned(), String::new())]);

    // The same address a second time does nothing.
    browser.open(&came_back).await;
    assert_eq!(json_shown(&browser, "status").await["code"], "oidc_refused");
    let again = sign_ins_noted(&daemon).await;
    assert_eq!(again.len(), 1, "without its cookie it is no sign-in, and no failed one");

    // A sign-in can also begin on the admin listener.
    let page = daemon.client_builder().redirect(reqwest::redirect::Policy::none());
    let identity = crate::support::daemon::identity(&daemon.admin_certificate("carla"), "carla");
    let answer = page.identity(identity).build().unwrap().get(daemon.admin_url(LOGIN)).send().await.unwrap();
    assert_eq!(answer.status(), 302);
    let to = reqwest::Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
    let asked = |name: &str| to.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned());
    assert_eq!(asked("scope").as_deref(), Some("openid email"));
    assert_eq!(asked("code_challenge_method").as_deref(), Some("S256"));
    assert_eq!(asked("redirect_uri"), Some(daemon.hosts_url(CALLBACK)));
    for random in ["state", "nonce", "code_challenge"] {
        assert_eq!(asked(random).unwrap().len(), 43, "{random}: 256 bits");
    }

    let code = came_back.split("code=").nth(1).unwrap().split('&').next().unwrap();
    let state = came_back.split("state=").nth(1).unwrap().split('&').next().unwrap();
    for secret in [&token, code, state, &sealed, crate::support::oidc_provider::SECRET] {
        assert!(!daemon.log().contains(secret), "the log contains {secret}");
    }
}

/// A person who opens a page signs in first, and returns to that page. The daemon chooses the redirect URI: the address
/// of the hosts' listener.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_enters_the_dashboard_through_the_provider_and_leaves() {
    let listen = format!("127.0.0.1:{}", free_port());
    let base = format!("https://{listen}");
    let settings = [("LISTEN__HOSTS", &*listen), ("PUBLIC_BASE_URL", &base), ("ADMIN__ACCESS", "login")];
    let mut daemon = Daemon::prepare(&settings);
    let provider = OidcProvider::start(&format!("{base}{CALLBACK}"));
    daemon.environment = provider.environment();
    daemon.launch();
    add_user(&daemon, "ada@here.test", "admin").await;
    link(&daemon, &provider.issuer(), "ada", "ada@here.test").await;
    into_the_dashboard("ada-in", &daemon, Looks::default()).await;
}

/// The browser may also come back to the admin listener itself; none of it needs JavaScript.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_may_lead_back_to_the_admin_listener_and_to_a_browser_without_javascript() {
    let admin = format!("127.0.0.1:{}", free_port());
    let redirect = format!("https://{admin}{CALLBACK}");
    let mut daemon = Daemon::prepare(&[("LISTEN__ADMIN", &*admin), ("ADMIN__ACCESS", "login")]);
    let provider = OidcProvider::start(&redirect);
    daemon.environment = provider.environment();
    set_redirect(&mut daemon, redirect);
    daemon.launch();
    add_user(&daemon, "ada@here.test", "admin").await;
    link(&daemon, &provider.issuer(), "ada", "ada@here.test").await;
    into_the_dashboard("ada-on-admin", &daemon, Looks { no_javascript: true, narrow: true, dark: true }).await;
}

async fn into_the_dashboard(name: &'static str, daemon: &Daemon, looks: Looks) {
    let browser = Browser::start(daemon, name, looks).await;
    browser.open(&daemon.admin_url("/hosts?q=h1&sort=seen")).await;
    browser.says("h1", "Sign in").await;
    browser.press(WITH_PROVIDER).await;
    sign_in(&browser, "ada").await;
    browser.says("footer", "You are ada@here.test").await;
    assert_eq!(browser.address().await, daemon.admin_url("/hosts?q=h1&sort=seen"), "back where they came from");

    let cookies = our_cookies(&browser).await;
    assert_eq!(cookies.len(), 1, "only the session's cookie is left: {cookies:?}");
    let cookie = &cookies[0];
    assert_eq!(cookie["name"], COOKIE);
    assert_eq!((&cookie["httpOnly"], &cookie["secure"]), (&json!(true), &json!(true)), "{cookie}");
    assert_eq!((&cookie["sameSite"], &cookie["path"]), (&json!("Lax"), &json!("/")), "{cookie}");
    assert_eq!(cookie["domain"], "127.0.0.1", "of exactly this host");
    assert!(cookie.get("expiry").is_none(), "a cookie of this browser session: {cookie}");
    let token = cookie["value"].as_str().unwrap();

    // A change by a form.
    browser.press("Kill switch").await;
    browser.press("Switch it on: stop serving all hosts").await;
    browser.says("#serving", "Kill switch on.").await;
    browser.press("Switch it off and serve hosts again").await;
    browser.says("#serving", "Kill switch off").await;
    let noted = ask(daemon, "/admin/audit?action=api.disable").await;
    assert_eq!(noted["entries"][0]["actor"], "user ada@here.test", "{noted}");

    browser.press("Sign out").await;
    browser.says("h1", "Sign in").await;
    assert_eq!(our_cookies(&browser).await, Vec::<Value>::new());
    let kept = daemon.client().get(daemon.admin_url("/hosts")).header("cookie", format!("{COOKIE}={token}"));
    assert_eq!(kept.send().await.unwrap().url().path(), "/sign-in", "the old cookie is refused");
    browser.open(&daemon.admin_url("/hosts")).await;
    browser.says("h1", "Sign in").await;

    // With a password, on the same page.
    browser.open(&daemon.admin_url("/runner")).await;
    browser.fill("E-mail address", "ada@here.test").await;
    browser.fill("Password", "not-the-password-of-ada").await;
    press_submit(&browser).await;
    browser.says("[role=alert]", "password").await;
    browser.check(browser.texts("footer").await.is_empty(), "a user is signed in").await;
    browser.fill("Password", PASSWORD).await;
    press_submit(&browser).await;
    browser.says("footer", "You are ada@here.test").await;
    assert_eq!(browser.address().await, daemon.admin_url("/runner"));
    let by_password = our_cookies(&browser).await;
    assert_eq!(by_password.len(), 1);
    assert_eq!((&by_password[0]["name"], &by_password[0]["secure"]), (&json!(COOKIE), &json!(true)));
    assert_ne!(by_password[0]["value"], *token, "another session");

    let refused_by_policy = |line: &String| !line.contains("status of 401");
    let console: Vec<String> = browser.console().await.into_iter().filter(refused_by_policy).collect();
    assert_eq!(console, Vec::<String>::new());
    for secret in [token, by_password[0]["value"].as_str().unwrap(), PASSWORD] {
        assert!(!daemon.log().contains(secret), "the log contains {secret}");
    }
}

async fn press_submit(browser: &Browser) {
    browser.press_css("form[action='/sign-in'] button[type=submit]").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_linked_is_told_what_to_have_linked_and_then_let_in() {
    let (daemon, provider) = started(&[("ADMIN__ACCESS", "login")]);
    // A provider's e-mail address that equals a user's links nothing.
    add_user(&daemon, "eve@company.test", "viewer").await;
    add_user(&daemon, "root@here.test", "admin").await;
    let browser = Browser::start(&daemon, "eve", Looks::default()).await;
    browser.open(&daemon.admin_url("/")).await;
    browser.press(WITH_PROVIDER).await;
    sign_in(&browser, "eve").await;
    browser.says("#issuer", &provider.issuer()).await;
    browser.says("#subject", "eve").await;
    assert_eq!(our_cookies(&browser).await, Vec::<Value>::new());
    assert_eq!(sign_ins_noted(&daemon).await[0], ("403".to_owned(), "not_linked".to_owned()));
    let noted = ask(&daemon, "/admin/audit?action=session.begin").await;
    let details = &noted["entries"][0]["details"];
    assert_eq!((&details["issuer"], &details["subject"]), (&json!(provider.issuer()), &json!("eve")), "{noted}");

    // A program gets the same in JSON.
    browser.open(&daemon.hosts_url(LOGIN)).await;
    let shown = json_shown(&browser, "identity_not_linked").await;
    let message = shown["message"].as_str().unwrap();
    assert!(message.contains(&provider.issuer()) && message.contains("eve"), "{message}");
    assert!(shown.get("data").is_none(), "{shown}");

    // An admin links the identity that the page named.
    browser.open(&daemon.admin_url("/users")).await;
    browser.fill("E-mail address", "root@here.test").await;
    browser.fill("Password", PASSWORD).await;
    press_submit(&browser).await;
    browser.press("eve@company.test").await;
    browser.fill("Issuer", &provider.issuer()).await;
    browser.fill("Subject", "eve").await;
    browser.press("Link").await;
    browser.says("[role=status]", "signs in as eve@company.test").await;
    browser.says("#identities", &provider.issuer()).await;
    browser.press("Sign out").await;

    browser.press(WITH_PROVIDER).await;
    browser.says("footer", "You are eve@company.test").await;
    for page in ["/switch", "/login", "/users"] {
        browser.open(&daemon.admin_url(page)).await;
        browser.says("footer", "You are eve@company.test").await;
        let buttons = browser.texts("button").await;
        browser.check(buttons.iter().all(|says| says.is_empty() || says == "Sign out"), "a viewer only looks").await;
    }
    browser.open(&daemon.hosts_url(LOGIN)).await;
    assert_eq!(me(&daemon, &token_shown(&browser).await).await["user"]["role"], "viewer");
}

/// "Install on this machine": the main task of a member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_signs_in_and_installs_a_machine_of_their_own() {
    let (daemon, provider) = started(&[("ADMIN__ACCESS", "login"), ("HOSTS__MAX_PER_MEMBER", "1")]);
    let bob = add_user(&daemon, "bob@here.test", "member").await;
    link(&daemon, &provider.issuer(), "bob", "bob@here.test").await;
    let browser = Browser::start(&daemon, "member", Looks::default()).await;
    browser.open(&daemon.admin_url("/")).await;
    browser.press(WITH_PROVIDER).await;
    sign_in(&browser, "bob").await;
    browser.says("h1", "My hosts").await;
    browser.check(browser.texts("nav a").await == ["My hosts", "API"], "a member is offered what is theirs").await;
    browser.fill("Name of the machine", "laptop.test").await;
    browser.press("Make an installer").await;
    browser.says("#command", " | bash").await;
    let key = redeem(&browser.text("#command").await).await;
    let asked = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
    let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", &key).json(&asked);
    assert_eq!(call.send().await.unwrap().status(), 200);

    browser.open(&daemon.admin_url("/mine")).await;
    browser.says("#hosts", "laptop.test").await;
    browser.fill("Name of the machine", "second.test").await;
    browser.press("Make an installer").await;
    browser.says("[role=alert]", "1").await;
    browser.check(browser.texts("#command").await.is_empty(), "one more than they may have").await;
    let hosts = ask(&daemon, "/admin/hosts").await;
    assert_eq!(hosts["hosts"].as_array().unwrap().len(), 1, "{hosts}");
    assert!(hosts["hosts"][0].to_string().contains("laptop.test"), "{hosts}");
    let begun = ask(&daemon, &format!("/auth/users/{bob}/sessions")).await;
    assert_eq!(begun["sessions"][0]["browser"], true, "{begun}");

    browser.open(&daemon.admin_url("/mine")).await;
    browser.press("Remove").await;
    browser.says("[role=status]", "laptop.test is removed").await;
    let call = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", &key).json(&asked);
    assert_eq!(call.send().await.unwrap().status(), 401);
    browser.open(&daemon.admin_url("/switch")).await;
    browser.says("main", "role").await;
}

/// The user or the provider may refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_refuses_at_the_provider_is_not_let_in() {
    let (daemon, _provider) = started(&[("ADMIN__ACCESS", "login")]);
    let browser = Browser::start(&daemon, "no", Looks::default()).await;
    browser.open(&daemon.admin_url("/")).await;
    browser.press(WITH_PROVIDER).await;
    browser.press("Cancel").await;
    browser.says("h1", "You are not signed in").await;
    assert_eq!(our_cookies(&browser).await, Vec::<Value>::new());
    assert_eq!(sign_ins_noted(&daemon).await, [("403".to_owned(), "denied".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_change_at_the_provider_lose_no_sign_in() {
    let (daemon, mut provider) = started(&[]);
    for name in ["ada", "bob"] {
        add_user(&daemon, &format!("{name}@here.test"), "member").await;
        link(&daemon, &provider.issuer(), name, &format!("{name}@here.test")).await;
    }
    let ada = Browser::start(&daemon, "rotation-ada", Looks::default()).await;
    ada.open(&daemon.hosts_url(LOGIN)).await;
    sign_in(&ada, "ada").await;
    let first = token_shown(&ada).await;
    let old = provider.kids.clone();

    // The keys change while a user is on the provider's pages.
    let bob = Browser::start(&daemon, "rotation-bob", Looks::default()).await;
    bob.open(&daemon.hosts_url(LOGIN)).await;
    bob.says("h1", "The company: sign in").await;
    provider.rotate();
    assert_ne!(provider.kids, old);
    sign_in(&bob, "bob").await;
    assert_eq!(me(&daemon, &token_shown(&bob).await).await["user"]["email"], "bob@here.test");

    // And the next sign-in, for which the provider shows no page.
    ada.open(&daemon.hosts_url(LOGIN)).await;
    let second = token_shown(&ada).await;
    assert_ne!(first, second);
    for token in [first, second] {
        assert_eq!(me(&daemon, &token).await["user"]["email"], "ada@here.test", "an earlier session still works");
    }
    assert!(sign_ins_noted(&daemon).await.iter().all(|(outcome, _)| outcome == "done"));
}

/// The browser keeps the state of each sign-in separately.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_in_goes_on_after_a_restart_and_beside_another_of_the_same_browser() {
    let (mut daemon, provider) = started(&[]);
    add_user(&daemon, "ada@here.test", "member").await;
    link(&daemon, &provider.issuer(), "ada", "ada@here.test").await;
    let browser = Browser::start(&daemon, "restart", Looks::default()).await;
    browser.open(&daemon.hosts_url(LOGIN)).await;
    browser.says("h1", "The company: sign in").await;
    let first = browser.address().await;
    browser.open(&daemon.hosts_url(LOGIN)).await;
    browser.says("h1", "The company: sign in").await;
    assert_eq!(our_cookies(&browser).await.len(), 2, "one cookie for each");
    daemon.stop();
    daemon.launch();
    sign_in(&browser, "ada").await;
    let second = token_shown(&browser).await;
    browser.open(&first).await;
    // The user consented a moment ago.
    browser.fill("User name", "ada").await;
    browser.press("Sign in").await;
    let first = token_shown(&browser).await;
    assert_ne!(first, second);
    for token in [first, second] {
        assert_eq!(me(&daemon, &token).await["user"]["email"], "ada@here.test");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_daemon_begins_another_finishes_once() {
    let server = MariaDb::start();
    let url = server.create("authd").await;
    let listen = format!("127.0.0.1:{}", free_port());
    let redirect = format!("https://{listen}{CALLBACK}");
    let provider = OidcProvider::start(&redirect);
    let mut one = on_database(&url, &[]);
    let mut two = on_database(&url, &[("LISTEN__HOSTS", &listen)]);
    for daemon in [&mut one, &mut two] {
        daemon.environment = provider.environment();
        set_redirect(daemon, redirect.clone());
    }
    one.launch();
    with_key_of(&one, &two);
    two.launch();
    add_user(&one, "ada@here.test", "member").await;
    link(&one, &provider.issuer(), "ada", "ada@here.test").await;

    let browser = Browser::start(&one, "nodes", Looks::default()).await;
    browser.open(&one.hosts_url(LOGIN)).await;
    browser.says("h1", "The company: sign in").await;
    let kept = our_cookies(&browser).await.remove(0);
    sign_in(&browser, "ada").await;
    let token = token_shown(&browser).await;
    let came_back = browser.address().await;
    assert!(came_back.starts_with(&two.hosts_url(CALLBACK)), "{came_back}");
    for daemon in [&two, &one] {
        let begun = Instant::now();
        let good = async || {
            let call = daemon.client().get(daemon.hosts_url("/auth/me")).bearer_auth(&token).send();
            call.await.unwrap().status() == 200
        };
        while !good().await {
            assert!(begun.elapsed() < BOUND, "the session is not known");
            tokio::task::spawn_blocking(pause).await.unwrap();
        }
    }

    // An attacker who has the cookie and the address cannot use them again, on either daemon.
    let cookie = format!("{}={}", kept["name"].as_str().unwrap(), kept["value"].as_str().unwrap());
    let query = came_back.split_once('?').unwrap().1;
    for daemon in [&two, &one] {
        let again = daemon.client().get(daemon.hosts_url(&format!("{CALLBACK}?{query}"))).header("cookie", &cookie);
        refused(again.send().await.unwrap(), 403, "oidc_refused", "once more").await;
    }
    let noted = sign_ins_noted(&one).await;
    assert_eq!(noted.iter().filter(|(outcome, _)| outcome == "done").count(), 1, "{noted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_comes_later_is_found_without_a_restart() {
    let (mut daemon, mut provider) = company(&[]);
    daemon.launch();
    let process = daemon.pid();
    add_user(&daemon, "ada@here.test", "member").await;
    link(&daemon, &provider.issuer(), "ada", "ada@here.test").await;
    let client = daemon.client_builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let begin = || client.get(daemon.hosts_url(LOGIN)).send();
    refused(begin().await.unwrap(), 503, "provider_unavailable", "no provider yet").await;
    let ready = client.get(daemon.hosts_url("/readyz")).send().await.unwrap();
    assert_eq!(ready.status(), 200, "hosts are not served");

    provider.restart();
    until_it_begins(&daemon, &client).await;
    let browser = Browser::start(&daemon, "later", Looks::default()).await;
    browser.open(&daemon.hosts_url(LOGIN)).await;
    sign_in(&browser, "ada").await;
    assert_eq!(me(&daemon, &token_shown(&browser).await).await["user"]["email"], "ada@here.test");

    // The provider is stopped for a while, and comes back.
    provider.stop();
    browser.open("about:blank").await;
    provider.restart();
    until_it_begins(&daemon, &client).await;
    browser.open(&daemon.hosts_url(LOGIN)).await;
    sign_in(&browser, "ada").await;
    token_shown(&browser).await;
    assert_eq!(daemon.pid(), process);
}

async fn until_it_begins(daemon: &Daemon, client: &Client) {
    let begun = Instant::now();
    loop {
        let answer = client.get(daemon.hosts_url(LOGIN)).send().await.unwrap();
        match answer.status().as_u16() {
            302 => return,
            status => assert_eq!(status, 503),
        }
        assert!(begun.elapsed() < BOUND, "the provider is not found:\n{}", daemon.log());
        tokio::task::spawn_blocking(pause).await.unwrap();
    }
}

/// A daemon with plain HTTP on loopback for hosts, as the documented redirect URI has it.
fn in_the_clear(port: u16, with_redirect: bool) -> (Daemon, OidcProvider) {
    let listen = format!("127.0.0.1:{port}");
    let redirect = format!("http://localhost:{port}{CALLBACK}");
    let mut daemon = Daemon::prepare(&[("LISTEN__HOSTS", &listen), ("LISTEN__HOSTS_TLS", "false")]);
    let provider = OidcProvider::start(&redirect);
    daemon.environment = provider.environment();
    if with_redirect {
        set_redirect(&mut daemon, redirect);
    }
    daemon.launch();
    (daemon, provider)
}

async fn signs_in_on_localhost(daemon: &Daemon, provider: &OidcProvider, port: u16) {
    let base = format!("http://localhost:{port}");
    add_user(daemon, "ada@here.test", "member").await;
    link(daemon, &provider.issuer(), "ada", "ada@here.test").await;
    let browser = Browser::start(daemon, "localhost", Looks::default()).await;
    browser.open(&format!("{base}{LOGIN}")).await;
    sign_in(&browser, "ada").await;
    let token = token_shown(&browser).await;
    assert!(browser.address().await.starts_with(&format!("{base}{CALLBACK}")));
    install_provider();
    let client = Client::builder().no_proxy().build().unwrap();
    let who = client.get(format!("http://127.0.0.1:{port}/auth/me")).bearer_auth(&token).send().await.unwrap();
    let who: Value = who.json().await.unwrap();
    assert_eq!(who["data"]["user"]["email"], "ada@here.test");
    let begun = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let begun = begun.get(format!("{base}{LOGIN}")).send().await.unwrap();
    let cookie = begun.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("codex-authd-oidc-") && !cookie.contains("Secure"), "without TLS: {cookie}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_variables_are_enough_in_the_clear_on_localhost() {
    let port = free_port();
    let (daemon, provider) = in_the_clear(port, true);
    signs_in_on_localhost(&daemon, &provider, port).await;
}

/// In its own network, where port 8000 is free.
#[test]
fn without_a_redirect_uri_the_browser_comes_back_to_port_8000_of_localhost() {
    if !network::leave() {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (daemon, provider) = in_the_clear(8000, false);
        signs_in_on_localhost(&daemon, &provider, 8000).await;
    });
}

/// If the hosts' listener speaks plain HTTP, the dashboard's cookie is still for TLS only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_the_dashboard_is_for_tls_even_where_sign_ins_come_back_without() {
    let port = free_port();
    let redirect = format!("http://localhost:{port}{CALLBACK}");
    let listen = format!("127.0.0.1:{port}");
    let settings = [("LISTEN__HOSTS", &*listen), ("LISTEN__HOSTS_TLS", "false"), ("ADMIN__ACCESS", "login")];
    let mut daemon = Daemon::prepare(&settings);
    let provider = OidcProvider::start(&redirect);
    daemon.environment = provider.environment();
    set_redirect(&mut daemon, redirect);
    daemon.launch();
    add_user(&daemon, "ada@here.test", "admin").await;
    let form = [("email", "ada@here.test"), ("password", PASSWORD), ("return_to", "/")];
    let client = daemon.client_builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = client.post(daemon.admin_url("/sign-in")).form(&form).send().await.unwrap();
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with(&format!("{COOKIE}=cxa_")) && cookie.contains("; Secure"), "{cookie}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_provider_there_is_no_route_and_no_word_of_one() {
    let mut daemon = Daemon::prepare(&[("ADMIN__ACCESS", "login")]);
    // Without an admin the page would show another hint.
    assert!(daemon.cli(&["create-admin", "ada@here.test", PASSWORD]).status.success());
    daemon.launch();
    for url in
        [daemon.hosts_url(LOGIN), daemon.admin_url(LOGIN), daemon.hosts_url(CALLBACK), daemon.admin_url(CALLBACK)]
    {
        refused(daemon.client().get(&url).send().await.unwrap(), 404, "route_not_found", &url).await;
    }
    for url in [daemon.hosts_url("/openapi.json"), daemon.admin_url("/openapi.json")] {
        let served = daemon.client().get(&url).send().await.unwrap().text().await.unwrap();
        assert_eq!(served, DOCUMENT, "the document is the same on every daemon");
    }
    let page = daemon.client().get(daemon.admin_url("/sign-in")).send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(!page.text().await.unwrap().contains("provider"), "the page offers no provider");
    let log = daemon.log();
    let worrying: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert_eq!(worrying, Vec::<&str>::new());
    assert!(!log.to_lowercase().contains("oidc_"), "{log}");
}

/// A browser with a certificate, and a user who signs in with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_certificate_and_session_a_browser_needs_both() {
    let (daemon, provider) = started(&[("ADMIN__ACCESS", "mtls+login")]);
    for (name, email) in [("ada", "ada@here.test"), ("bob", "bob@here.test")] {
        add_user(&daemon, email, "admin").await;
        link(&daemon, &provider.issuer(), name, email).await;
    }
    let browser = Browser::start(&daemon, "both", Looks::default()).await;
    browser.open(&daemon.admin_url("/")).await;
    browser.says("h1", "Sign in").await;
    browser.press(WITH_PROVIDER).await;
    sign_in(&browser, "ada").await;
    browser.says("footer", "You are ada@here.test").await;

    // The certificate is tied to another user.
    let path = format!("/admin/certificates/{}/user", browser.fingerprint);
    tell(&daemon, &path, &json!({ "user": "bob@here.test" })).await;
    browser.open(&daemon.admin_url("/hosts")).await;
    browser.says("body", "certificate").await;
    browser.check(!browser.text("body").await.contains("You are ada@here.test"), "it is another's").await;
    tell(&daemon, &path, &json!({ "user": "ada@here.test" })).await;
    browser.open(&daemon.admin_url("/hosts")).await;
    browser.says("footer", "You are ada@here.test").await;
}
