//! Sign-ins through a provider that come back late, or on another node.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use crate::model::audit::AuditFilter;
use crate::model::people::Role;
use crate::model::secret::Secret;
use crate::platform::System;
use crate::records::Records;
use crate::records::embedded::Embedded;
use crate::service::clock_tests::{TestClock, node};
use crate::service::people::provider::Begun;
use crate::service::{Adapters, Areas, Initiator};
use crate::upstream::oidc::tests::hostile::{self, CLIENT, SECRET, TOKEN};
use crate::upstream::oidc::{Provider, ProviderAnswer, ProviderSettings};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SUBJECT: &str = "ada-of-the-provider";

struct World {
    provider: hostile::Provider,
    clock: Arc<TestClock>,
    records: Arc<dyn Records>,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        crate::pki::tls::install_default_provider();
        let directory = tempfile::tempdir().unwrap();
        let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
        Self { provider: hostile::Provider::start(), clock: Arc::new(TestClock::new()), records, directory }
    }

    /// Only the service's clock is set; tokens follow the system's.
    async fn node(&self, name: &str) -> Areas {
        let settings = ProviderSettings {
            issuer: self.provider.issuer(),
            client_id: CLIENT.into(),
            client_secret: Some(Secret::new(SECRET)),
            redirect_uri: "https://auth.test/auth/oidc/callback".into(),
            trusted_audiences: Vec::new(),
            keys_ttl: Duration::from_secs(3600),
            keys_refresh: Duration::from_secs(600),
        };
        let provider = Provider::new(settings, Arc::new(System)).unwrap();
        let areas = node(&self.directory, name, self.records.clone(), self.clock.clone()).await;
        let adapters = Adapters { provider: Some(Arc::new(provider)), ..Adapters::default() };
        Areas::on(areas.core, adapters)
    }

    async fn link_ada(&self, areas: &Areas) {
        areas.people.add_user("ada@example.test", Role::Member, None, &Initiator::daemon()).await.unwrap();
        let issuer = self.provider.issuer();
        areas.people.link_identity(&issuer, SUBJECT, "ada@example.test", None, &Initiator::daemon()).await.unwrap();
    }
}

async fn visit(begun: &Begun) -> ProviderAnswer {
    let browser = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let response = browser.get(&begun.location).send().await.unwrap();
    let location = Url::parse(response.headers()["location"].to_str().unwrap()).unwrap();
    let mut brought: HashMap<String, String> = location.query_pairs().into_owned().collect();
    let [code, state] = ["code", "state"].map(|name| brought.remove(name).map(Secret::new));
    ProviderAnswer { code, state, iss: brought.remove("iss"), error: None }
}

/// `done`, or why not.
async fn finish(areas: &Areas, begun: &Begun, answer: &ProviderAnswer) -> String {
    let finished = areas.people.finish_sign_in(Some(&begun.cookie), answer, HERE, None).await;
    let filter = AuditFilter { action: Some("session.begin".into()), ..AuditFilter::default() };
    let entry = areas.audit.audit_log(&filter, 1).await.unwrap().remove(0).note;
    assert_eq!(finished.is_ok(), entry.outcome == "done");
    if finished.is_ok() { "done".into() } else { entry.details["reason"].clone() }
}

#[tokio::test]
async fn a_browser_has_ten_minutes() {
    let world = World::new();
    let areas = world.node("one").await;
    world.link_ada(&areas).await;
    for (seconds, outcome) in [(0, "done"), (599, "done"), (600, "state_expired"), (86_400, "state_expired")] {
        let begun = areas.people.begin_sign_in(None, HERE).await.unwrap();
        let answer = visit(&begun).await;
        let asked = world.provider.count(TOKEN);
        world.clock.go_on(time::Duration::seconds(seconds));
        assert_eq!(finish(&areas, &begun, &answer).await, outcome, "{seconds} s");
        assert_eq!(world.provider.count(TOKEN) - asked, usize::from(outcome == "done"), "{seconds} s");
    }
}

#[tokio::test]
async fn what_one_node_began_another_finishes_and_once_even_if_the_provider_takes_codes_twice() {
    let world = World::new();
    let (one, two) = (world.node("one").await, world.node("two").await);
    world.link_ada(&one).await;
    world.provider.set().takes_codes_again = true;
    let begun = one.people.begin_sign_in(None, HERE).await.unwrap();
    let answer = visit(&begun).await;
    assert_eq!(finish(&two, &begun, &answer).await, "done");
    assert_eq!(finish(&two, &begun, &answer).await, "state_replayed");
    assert_eq!(world.provider.count(TOKEN), 1);
    // This node does not know that the sign-in is finished, and asks the provider, which accepts the code. The records
    // refuse it.
    assert_eq!(finish(&one, &begun, &answer).await, "state_replayed");
    assert_eq!(world.provider.count(TOKEN), 2);
    assert_eq!(world.records.session_list().await.unwrap().len(), 1);
}
