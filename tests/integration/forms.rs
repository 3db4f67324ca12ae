//! The dashboard's forms, and the sessions that may send them. The test finds each form by following the links from the
//! first page as a signed-in user. It sends each without the token of that session, and with other sessions.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::refusals::{Targets, call, operation, refused, upload_again};
use crate::roles::{LOGIN, Least, ROLES, state};
use crate::support::daemon::Daemon;
use crate::support::people::{PASSWORD, add_user, ask, link, me, register, sign_in, tell};

pub const COOKIE: &str = "__Host-codex-authd-session";

/// Whether the answer is the sign-in page, or redirected there.
pub fn is_sign_in(answer: &Response) -> bool {
    answer.url().path() == "/sign-in"
        || answer.headers().get("location").is_some_and(|to| to.to_str().unwrap().starts_with("/sign-in"))
}

/// Every form of the dashboard; numbers and ids in a path are replaced by placeholders.
const FORMS: [&str; 16] = [
    "/certificates",
    "/hosts/:id/clear",
    "/hosts/:id/remove",
    "/hosts/:id/roaming",
    "/hosts/:id/window",
    "/hosts/new",
    "/login",
    "/mine",
    "/mine/:id/remove",
    "/mine/password",
    "/mine/sessions/:id/end",
    "/runner",
    "/sign-out",
    "/switch",
    "/users",
    "/users/:id",
];

/// A user's browser with its cookies; it does not follow redirects.
struct Seat {
    client: Client,
    cookie: String,
}

impl Seat {
    async fn new(daemon: &Daemon, email: &str) -> Self {
        let client = daemon.client_builder().redirect(Policy::none()).build().unwrap();
        let form = [("email", email), ("password", PASSWORD), ("return_to", "/")];
        let answer = client.post(daemon.admin_url("/sign-in")).form(&form).send().await.unwrap();
        assert_eq!(answer.status(), 303, "{email} is signed in");
        let cookie = answer.headers()["set-cookie"].to_str().unwrap();
        assert!(cookie.starts_with(&format!("{COOKIE}=cxa_")), "{cookie}");
        for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
            assert!(cookie.split("; ").any(|part| part == attribute), "{attribute} of {cookie}");
        }
        assert!(!cookie.contains("Domain="), "{cookie}");
        Self { client, cookie: cookie.split(';').next().unwrap().to_owned() }
    }

    async fn page(&self, daemon: &Daemon, path: &str) -> String {
        let answer = self.client.get(daemon.admin_url(path)).header("cookie", &self.cookie).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// The token on the pages of this session.
    async fn token(&self, daemon: &Daemon) -> String {
        token_on(&self.page(daemon, "/switch").await)
    }

    fn post(&self, daemon: &Daemon, form: &PageForm) -> RequestBuilder {
        self.client.post(daemon.admin_url(&form.action)).header("cookie", &self.cookie)
    }
}

fn token_on(page: &str) -> String {
    page.split("name=\"token\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

/// A form of a page, with its default values.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct PageForm {
    action: String,
    fields: Vec<(String, String)>,
}

impl PageForm {
    fn all_of(page: &str) -> Vec<Self> {
        let forms = page.split("<form ").skip(1).map(|rest| rest.split("</form>").next().unwrap());
        forms
            .filter(|form| attribute(form.split('>').next().unwrap(), "method").is_some_and(|it| it == "post"))
            .map(Self::of)
            .collect()
    }

    fn of(form: &str) -> Self {
        let (head, inside) = form.split_once('>').unwrap();
        let inputs = inside.split('<').filter(|tag| tag.starts_with("input ") || tag.starts_with("textarea "));
        let field = |tag: &str| Some((attribute(tag, "name")?, attribute(tag, "value").unwrap_or_default()));
        let fields = inputs.filter_map(field).filter(|(name, _)| name != "token").collect();
        let action = attribute(head, "action").unwrap();
        Self { action, fields }
    }

    /// The path with placeholders for numbers and ids.
    fn kind(&self) -> String {
        let is_id = |part: &str| part.contains(|letter: char| letter.is_ascii_digit());
        self.action.split('/').map(|part| if is_id(part) { ":id" } else { part }).collect::<Vec<_>>().join("/")
    }

    fn with(&self, token: Option<&str>) -> Vec<(String, String)> {
        let token = token.map(|token| ("token".to_owned(), token.to_owned()));
        token.into_iter().chain(self.fields.clone()).collect()
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let value = tag.split(&format!(" {name}=\"")).nth(1).or_else(|| tag.strip_prefix(&format!("{name}=\"")))?;
    value.split('"').next().map(str::to_owned)
}

/// Opens every linked page, and returns the forms on them, one of each kind and content.
async fn forms(daemon: &Daemon, seat: &Seat) -> BTreeMap<String, BTreeSet<PageForm>> {
    let mut found: BTreeMap<String, BTreeSet<PageForm>> = BTreeMap::new();
    let (mut seen, mut next) = (BTreeSet::new(), vec!["/".to_owned()]);
    while let Some(path) = next.pop() {
        if !seen.insert(path.clone()) || path == "/docs" || path.starts_with("/assets/") {
            continue;
        }
        let page = seat.page(daemon, &path).await;
        for form in PageForm::all_of(&page) {
            found.entry(form.kind()).or_default().insert(form);
        }
        let links = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap().replace("&#38;", "&"));
        next.extend(links.filter(|link| link.starts_with('/')));
    }
    found
}

/// Every form of the dashboard accepts only the token of the session that sends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_form_takes_the_token_of_its_own_session_only() {
    let mut daemon = Daemon::start_with(&LOGIN);
    daemon.admin_certificate("spare");
    let bound = register(&daemon, "h1.test").await;
    tell(&daemon, "/admin/hosts/register", &json!({ "fqdn": "lab1.test", "secure": false })).await;
    upload_again(&daemon).await;
    // A host that is bound has an address to clear.
    let asked = json!({ "last_refresh": "2025-11-20T09:27:43Z", "digest": "0".repeat(64) });
    let first = daemon.client().post(daemon.hosts_url("/auth")).header("x-api-key", &bound.api_key).json(&asked);
    assert_eq!(first.send().await.unwrap().status(), 200);
    for (email, role) in [("ada@roles.test", "admin"), ("bob@roles.test", "admin")] {
        add_user(&daemon, email, role).await;
    }
    link(&daemon, "https://id.roles.test", "bob", "bob@roles.test").await;
    let (ada, again) = (Seat::new(&daemon, "ada@roles.test").await, Seat::new(&daemon, "ada@roles.test").await);
    let bob = Seat::new(&daemon, "bob@roles.test").await;
    let own = ada.token(&daemon).await;
    let made = ada.client.post(daemon.admin_url("/mine")).header("cookie", &ada.cookie);
    assert_eq!(made.form(&[("token", &*own), ("name", "own1.test")]).send().await.unwrap().status(), 303);

    let found = forms(&daemon, &ada).await;
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), FORMS, "every form of every page has a row");

    let old = Seat::new(&daemon, "ada@roles.test").await;
    let over = old.token(&daemon).await;
    let out = old.client.post(daemon.admin_url("/sign-out")).header("cookie", &old.cookie).form(&[("token", &over)]);
    assert_eq!(out.send().await.unwrap().status(), 303);

    let before = state(&daemon).await;
    let another = again.token(&daemon).await;
    let bobs = bob.token(&daemon).await;
    assert!(own != another && own != bobs && own != over, "each session has its own token");
    for form in found.values().flatten() {
        let what = |how: &str| format!("{} {:?} {how}", form.action, form.fields);
        for (how, token) in [
            ("without a token", None),
            ("with an empty one", Some("")),
            ("with one of another session of the same user", Some(&*another)),
            ("with another user's", Some(&*bobs)),
            ("with that of a session that is over", Some(&*over)),
            ("with one made up", Some(&*"0".repeat(64))),
        ] {
            let answer = ada.post(&daemon, form).form(&form.with(token)).send().await.unwrap();
            assert_eq!(answer.status(), 403, "{}", what(how));
            assert!(answer.text().await.unwrap().contains("out of date"), "{}", what(how));
        }
        // Without a session, any token leads to the sign-in page.
        for cookie in ["", &old.cookie, &format!("{COOKIE}=cxa_{}", "A".repeat(43)), &ada.cookie["__Host-".len()..]] {
            let call = ada.client.post(daemon.admin_url(&form.action)).header("cookie", cookie);
            let answer = call.form(&form.with(Some(&own))).send().await.unwrap();
            assert!(is_sign_in(&answer), "{}: {}", what("without a session"), answer.status());
        }
        // The access token of a program is not a page's session either.
        let bearer = ada.cookie.split_once('=').unwrap().1;
        let call = ada.client.post(daemon.admin_url(&form.action)).bearer_auth(bearer);
        let answer = call.form(&form.with(Some(&own))).send().await.unwrap();
        assert!(is_sign_in(&answer), "{}: {}", what("with a header"), answer.status());
    }
    assert_eq!(state(&daemon).await, before, "a refused form changed something");

    // A restart makes all form tokens invalid, but no session.
    daemon.stop();
    daemon.launch();
    let fresh = ada.token(&daemon).await;
    assert_ne!(fresh, own);
    for form in found.values().flatten() {
        let answer = ada.post(&daemon, form).form(&form.with(Some(&own))).send().await.unwrap();
        assert_eq!(answer.status(), 403, "after a restart: {}", form.action);
    }
    assert_eq!(state(&daemon).await, before);

    // With the right token each form works, except those that end this session.
    let own_page = format!("/users/{}", me_of(&daemon, "ada@roles.test").await);
    let others = found.values().flatten().filter(|form| form.action != "/sign-out" && form.action != own_page);
    for form in others {
        let answer = ada.post(&daemon, form).form(&form.with(Some(&fresh))).send().await.unwrap();
        assert!(!is_sign_in(&answer), "{} {:?}", form.action, form.fields);
        let (status, page) = (answer.status(), answer.text().await.unwrap());
        assert!(!page.contains("out of date"), "{} {:?}: {status} {page}", form.action, form.fields);
    }
    assert_ne!(state(&daemon).await, before);
}

/// The pages and forms of each role; the right token of one's own session is not enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_forms_are_for_their_least_role_and_those_above() {
    let daemon = Daemon::start_with(&LOGIN);
    daemon.admin_certificate("spare");
    let host = register(&daemon, "h1.test").await;
    tell(&daemon, "/admin/hosts/register", &json!({ "fqdn": "lab1.test", "secure": false })).await;
    upload_again(&daemon).await;
    for role in ["member", "viewer", "admin"] {
        add_user(&daemon, &format!("{role}@roles.test"), role).await;
    }
    let admin = Seat::new(&daemon, "admin@roles.test").await;
    let found = forms(&daemon, &admin).await;
    let of_fleet: Vec<&PageForm> = found
        .iter()
        .filter(|(kind, _)| !kind.starts_with("/mine") && *kind != "/sign-out")
        .flat_map(|(_, forms)| forms)
        .collect();
    assert!(of_fleet.len() > 10, "{of_fleet:?}");
    let of_host = format!("/hosts/{}", host.id);
    let pages = [
        "/hosts",
        "/login",
        "/login/versions",
        "/hosts/new",
        &of_host,
        "/runner",
        "/switch",
        "/users",
        "/certificates",
    ];
    for (role, may_look) in [("member", false), ("viewer", true)] {
        let seat = Seat::new(&daemon, &format!("{role}@roles.test")).await;
        let token = token_on(&seat.page(&daemon, "/mine").await);
        let before = state(&daemon).await;
        for form in &of_fleet {
            let answer = seat.post(&daemon, form).form(&form.with(Some(&token))).send().await.unwrap();
            let (status, page) = (answer.status(), answer.text().await.unwrap());
            assert_eq!(status, 403, "{role}: {} {:?}: {page}", form.action, form.fields);
            assert!(
                !page.contains("out of date"),
                "{role}: {} {:?}: the refusal is because of the role",
                form.action,
                form.fields
            );
        }
        assert_eq!(state(&daemon).await, before, "{role} changed something");
        let log = ask(&daemon, "/admin/audit?limit=1000").await;
        let by = |entry: &&Value| entry["actor"] == format!("user {role}@roles.test") && entry["outcome"] == "403";
        let noted = log["entries"].as_array().unwrap().iter().filter(by).count();
        assert_eq!(noted, 1, "{role}: the first attempt is an entry, repeats within the minute are counted");
        for page in pages {
            let answer = seat.client.get(daemon.admin_url(page)).header("cookie", &seat.cookie).send().await.unwrap();
            let status = match (may_look, page) {
                (true, _) => 200,
                // Their first page is another one.
                (false, "/hosts") => 303,
                (false, _) => 403,
            };
            assert_eq!(answer.status(), status, "{role} opens {page}");
        }
        assert!(seat.page(&daemon, "/mine").await.contains("class=\"looks-only\""), "{role} gets no such form");
    }
}

async fn me_of(daemon: &Daemon, email: &str) -> Value {
    me(daemon, &sign_in(daemon, email).await).await["user"]["id"].clone()
}

/// A page of another site cannot sign a browser in as another user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_sites_page_signs_nobody_in() {
    let daemon = Daemon::start_with(&LOGIN);
    add_user(&daemon, "ada@roles.test", "admin").await;
    let form = [("email", "ada@roles.test"), ("password", PASSWORD)];
    for (header, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
        let call = daemon.client().post(daemon.admin_url("/sign-in")).form(&form).header(header, value);
        let answer = call.send().await.unwrap();
        assert!(answer.headers().get("set-cookie").is_none());
        refused(answer, 403, "cross_site", header).await;
    }
}

/// A cookie works only for pages. The API ignores it, whatever page of another site makes a browser send it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cookie_of_a_page_is_nothing_to_the_api() {
    let daemon = Daemon::start_with(&LOGIN);
    let host = register(&daemon, "h.test").await;
    let targets = Targets::with_people(&daemon, &host).await;
    upload_again(&daemon).await;
    add_user(&daemon, "ada@roles.test", "admin").await;
    let ada = Seat::new(&daemon, "ada@roles.test").await;
    let before = state(&daemon).await;
    for row in ROLES.iter().filter(|row| row.2 >= Least::Member) {
        let what = format!("{} {}", row.0, row.1);
        let listeners = [Some(daemon.admin_url("")), (row.2 == Least::Member).then(|| daemon.hosts_url(""))];
        for base in listeners.into_iter().flatten() {
            let call = call(&ada.client, &base, operation(row.0, row.1), &targets).header("cookie", &ada.cookie);
            refused(call.send().await.unwrap(), 401, "session_required", &what).await;
        }
    }
    assert_eq!(state(&daemon).await, before);
    assert!(ada.page(&daemon, "/").await.contains("ada@roles.test"), "the cookie does not work for a page");
}
