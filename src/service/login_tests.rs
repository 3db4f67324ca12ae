//! Which caller may change the fleet's login, and which of two logins is newer: whole calls, on real records.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::hot::HotHost;
use crate::model::audit::{AuditFilter, AuditNote};
use crate::model::auth_document::{Allowed, AuthDocument, DocumentRules, MAX_DOCUMENT_BYTES, fixture};
use crate::model::digest::Digest;
use crate::platform::Clock as _;
use crate::records::{CanonicalSource, Records, ReplaceCondition};
use crate::service::admission::Purpose;
use crate::service::clock_tests::{areas, node};
use crate::service::hosts::enrol::HostOptions;
use crate::service::login::sync::{Outcome, QueryVersions, Sync};
use crate::service::*;

const HERE: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

async fn a_host(areas: &Areas) -> Arc<HotHost> {
    let registered = areas.hosts.register("h1.test", HostOptions::default(), &Initiator::daemon()).await.unwrap();
    areas
        .admission
        .admit(&areas.admission.credential(registered.api_key.expose()), HERE, Purpose::Service)
        .await
        .unwrap()
}

fn text(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap()
}

/// A login of an account, issued and dated.
fn login_of(account: &str, issued: OffsetDateTime, dated: OffsetDateTime) -> Value {
    let tag = format!("{account}-{}", issued.unix_timestamp());
    fixture::chatgpt(account, "user-1", &tag, Some(issued.unix_timestamp()), &text(dated))
}

fn login(issued: OffsetDateTime, dated: OffsetDateTime) -> Value {
    login_of("account-1", issued, dated)
}

fn api_key(key: &str) -> Value {
    json!({ "auth_mode": "apikey", "OPENAI_API_KEY": format!("sk-Zk3vQ9xT1mB7rLp0sWc5-{key}") })
}

async fn call(areas: &Areas, host: &Arc<HotHost>, body: Value) -> Result<Sync> {
    areas.login.sync(Arc::clone(host), HERE, &body.to_string(), QueryVersions::default()).await
}

async fn store(areas: &Areas, host: &Arc<HotHost>, auth: &Value) -> Result<Sync> {
    call(areas, host, json!({ "command": "store", "auth": auth })).await
}

async fn upload(areas: &Areas, auth: &Value, allowed: Allowed) -> Result<Outcome> {
    let body = json!({
        "auth": auth, "change_account": allowed.change_account, "even_if_older": allowed.even_if_older, "probe": false,
    });
    Ok(areas.login.upload(&body.to_string(), &Initiator::daemon()).await?.outcome)
}

async fn noted(areas: &Areas) -> Vec<AuditNote> {
    let entries = areas.audit.audit_log(&AuditFilter::default(), 100).await.unwrap();
    entries.into_iter().map(|entry| entry.note).collect()
}

fn canonical_account(areas: &Areas) -> Value {
    let canonical = areas.core.canonical().unwrap();
    serde_json::from_str::<Value>(&canonical.text).unwrap()["tokens"]["account_id"].clone()
}

#[tokio::test]
async fn a_host_only_renews_the_login_and_a_login_of_another_account_raises_an_alarm() {
    let (areas, clock, _directory) = areas().await;
    let host = a_host(&areas).await;
    let now = clock.now();
    assert_eq!(store(&areas, &host, &login(now, now)).await.unwrap().outcome, Outcome::Updated, "the first one");
    clock.step(1);
    let now = clock.now();
    let mut other_user = login(now, now);
    let claims = json!({ "iat": now.unix_timestamp(), "https://api.openai.com/auth": {
        "chatgpt_account_id": "account-1", "chatgpt_user_id": "user-2",
    } });
    let token = fixture::jwt(&claims);
    other_user["tokens"]["id_token"] = token.clone().into();
    other_user["tokens"]["access_token"] = token.into();
    let nobody = fixture::chatgpt("", "", "nobody", Some(now.unix_timestamp()), &text(now));
    let mut access_only = login(now, now);
    access_only["auth_mode"] = "chatgptAuthTokens".into();
    for (round, other) in
        [login_of("account-2", now, now), other_user, nobody, api_key("one"), access_only].iter().enumerate()
    {
        let refused = store(&areas, &host, other).await.err();
        assert!(matches!(refused, Some(ServiceError::OtherAccount { .. })), "{refused:?} for {other}");
        assert_eq!(areas.core.canonical().unwrap().summary.version, 1);
        let noted = noted(&areas).await;
        let alarms: Vec<_> = noted.iter().filter(|note| note.alarm && note.action == "auth.store").collect();
        assert_eq!(alarms.len(), round + 1, "{noted:?}");
        assert_eq!(alarms[0].outcome, "another account");
        assert!(alarms[0].details["present"].starts_with("ChatGPT account"), "{:?}", alarms[0]);
        assert!(!format!("{refused:?} {:?}", alarms[0]).contains("account-"), "they are masked");
    }
    assert_eq!(store(&areas, &host, &login(now, now)).await.unwrap().outcome, Outcome::Updated);
}

#[tokio::test]
async fn an_api_key_is_replaced_by_an_admin_only() {
    let (areas, _clock, _directory) = areas().await;
    let host = a_host(&areas).await;
    assert_eq!(upload(&areas, &api_key("one"), Allowed::default()).await.unwrap(), Outcome::Updated);
    let canonical = areas.core.canonical().unwrap();
    assert!(canonical.text.contains("last_refresh"), "it is dated by the server");
    let same = store(&areas, &host, &api_key("one")).await.unwrap();
    assert!(same.outcome.carries_auth(), "it comes back with its present date");
    assert_eq!((same.outcome, same.canonical.unwrap().summary.version), (Outcome::Unchanged, 1));
    let refused = store(&areas, &host, &api_key("two")).await.err();
    assert!(matches!(refused, Some(ServiceError::OtherAccount { .. })), "{refused:?}");
    let change = Allowed { change_account: true, ..Allowed::default() };
    assert_eq!(upload(&areas, &api_key("two"), change).await.unwrap(), Outcome::Updated);
    assert!(areas.core.canonical().unwrap().text.contains("-two"));
}

#[tokio::test]
async fn an_admin_changes_the_account_only_when_told_to() {
    let (areas, clock, _directory) = areas().await;
    let now = clock.now();
    assert_eq!(upload(&areas, &login(now, now), Allowed::default()).await.unwrap(), Outcome::Updated);
    clock.step(1);
    let other = login_of("account-2", clock.now(), clock.now());
    let refused = upload(&areas, &other, Allowed::default()).await.unwrap_err();
    let told = refused.to_string();
    assert!(told.contains("ac…-1 ") && told.contains("ac…-2 ") && told.contains("--change-account"), "{told}");
    assert_eq!(canonical_account(&areas), "account-1");

    let change = Allowed { change_account: true, ..Allowed::default() };
    assert_eq!(upload(&areas, &other, change).await.unwrap(), Outcome::Updated);
    assert_eq!(canonical_account(&areas), "account-2");
    let noted = noted(&areas).await;
    assert!(noted[0].alarm && noted[0].details.contains_key("present"), "{:?}", noted[0]);
    let body = json!({ "auth": other, "change_account": "yes" }).to_string();
    let refused = areas.login.upload(&body, &Initiator::daemon()).await.err();
    assert!(matches!(refused, Some(ServiceError::Invalid { .. })), "{refused:?}");
}

/// One clock is a day wrong, ahead or behind; the login that was renewed there is the fleet's in the end.
#[tokio::test]
async fn a_host_with_a_wrong_clock_keeps_its_renewed_login_and_loses_a_spent_one() {
    for days in [-1, 1] {
        let (areas, clock, _directory) = areas().await;
        let host = a_host(&areas).await;
        let start = clock.now();
        upload(&areas, &login(start, start), Allowed::default()).await.unwrap();
        clock.step(1);
        let now = clock.now();
        let wrong = now + Duration::days(days);
        let ask = json!({ "command": "retrieve", "digest": "0".repeat(64), "last_refresh": text(wrong) });
        let asked = call(&areas, &host, ask.clone()).await.unwrap();
        let expected = if days > 0 { Outcome::UploadRequired } else { Outcome::Outdated };
        assert_eq!(asked.outcome, expected, "never refused for ever");

        let answer = store(&areas, &host, &login(now, wrong)).await.unwrap();
        assert_eq!(answer.outcome, Outcome::Updated);
        let canonical = answer.canonical.unwrap();
        assert_eq!(canonical.summary.last_refresh, text(now), "dated anew");
        assert!(answer.outcome.carries_auth(), "the host gets the login to write");
        let again = call(
            &areas,
            &host,
            json!({ "command": "retrieve", "digest": canonical.summary.digest.to_string(), "last_refresh": text(now) }),
        );
        assert_eq!(again.await.unwrap().outcome, Outcome::Valid);

        // The spent login loses, whatever its date.
        for dated in [start, wrong, now] {
            let mut spent = login(start, dated);
            spent["note"] = "rewritten".into();
            let answer = store(&areas, &host, &spent).await.unwrap();
            assert_eq!((answer.outcome, answer.outcome.carries_auth()), (Outcome::Outdated, true));
            assert_eq!(answer.canonical.unwrap().summary.version, 2);
        }
    }
}

#[tokio::test]
async fn no_host_can_move_the_login_into_the_future() {
    let (areas, clock, _directory) = areas().await;
    let host = a_host(&areas).await;
    let now = clock.now();
    let opaque = |dated: OffsetDateTime| fixture::chatgpt("account-1", "user-1", "opaque", None, &text(dated));
    store(&areas, &host, &opaque(now)).await.unwrap();
    for step in 1..20 {
        let stored = store(&areas, &host, &opaque(now + Duration::seconds(300 * step))).await;
        assert_eq!(stored.is_ok(), step == 1, "{step}");
    }
    assert_eq!(areas.core.canonical().unwrap().summary.last_refresh, text(now + Duration::seconds(300)));
    // If the tokens contain their time of issue, it cannot move even that far.
    clock.step(1);
    let now = clock.now();
    upload(&areas, &login(now, now), Allowed::default()).await.unwrap();
    store(&areas, &host, &login(now, now + Duration::seconds(300))).await.unwrap();
    clock.go_on(Duration::seconds(10));
    let real = store(&areas, &host, &login(clock.now(), clock.now())).await.unwrap();
    assert_eq!(real.outcome, Outcome::Updated);
    let forged = store(&areas, &host, &login(now + Duration::hours(9), now)).await.err();
    assert!(matches!(forged, Some(ServiceError::Invalid { .. })), "{forged:?}");
}

#[tokio::test]
async fn what_a_roll_back_or_an_override_replaced_does_not_come_back() {
    let (areas, clock, _directory) = areas().await;
    let host = a_host(&areas).await;
    let logins: Vec<Value> = {
        let mut made = Vec::new();
        for _ in 0..2 {
            clock.step(1);
            made.push(login(clock.now(), clock.now()));
            upload(&areas, &made[made.len() - 1], Allowed::default()).await.unwrap();
        }
        made
    };
    clock.step(1);
    areas.login.roll_back(1, &Initiator::daemon()).await.unwrap();
    assert_eq!(store(&areas, &host, &logins[1]).await.unwrap().outcome, Outcome::Outdated);
    clock.step(1);
    let renewed = login(clock.now(), clock.now() - Duration::days(1));
    assert_eq!(store(&areas, &host, &renewed).await.unwrap().outcome, Outcome::Updated);

    clock.step(1);
    assert_eq!(upload(&areas, &logins[0], Allowed::default()).await.unwrap(), Outcome::Outdated);
    let anyway = Allowed { even_if_older: true, ..Allowed::default() };
    assert_eq!(upload(&areas, &logins[0], anyway).await.unwrap(), Outcome::Updated);
    assert!(matches!(areas.core.canonical().unwrap().summary.source, CanonicalSource::Override { .. }));
    assert_eq!(store(&areas, &host, &renewed).await.unwrap().outcome, Outcome::Outdated);
    clock.step(1);
    assert_eq!(upload(&areas, &login(clock.now(), clock.now()), anyway).await.unwrap(), Outcome::Updated);
    let source = areas.core.canonical().unwrap().summary.source.clone();
    assert!(matches!(source, CanonicalSource::Admin { .. }), "{source:?}: it won because it is newer");
}

/// A node may not know another node's canonical version yet: the version in the records decides.
#[tokio::test]
async fn a_store_is_decided_against_the_version_that_it_replaces() {
    let (one, clock, directory) = areas().await;
    let records: Arc<dyn Records> = one.core.records.clone();
    let host = a_host(&one).await;
    let now = clock.now();
    upload(&one, &login(now, now), Allowed::default()).await.unwrap();
    let two = node(&directory, "hot-2", records, Arc::clone(&clock)).await;
    let on_two = Arc::clone(&host);
    clock.step(1);
    let now = clock.now();
    let change = Allowed { change_account: true, ..Allowed::default() };
    upload(&one, &login_of("account-2", now, now), change).await.unwrap();
    assert_eq!(canonical_account(&two), "account-1", "node two does not know the change yet");

    clock.step(1);
    let now = clock.now();
    let stale = store(&two, &on_two, &login(now, now)).await.err();
    assert!(matches!(stale, Some(ServiceError::OtherAccount { .. })), "{stale:?}");
    assert_eq!(canonical_account(&one), "account-2");

    upload(&one, &login(now, now), change).await.unwrap();
    assert_eq!(canonical_account(&two), "account-2");
    clock.step(1);
    let renewed = login(clock.now(), clock.now());
    assert_eq!(store(&two, &on_two, &renewed).await.unwrap().outcome, Outcome::Updated, "the store is decided again");
}

#[tokio::test]
async fn members_of_one_host_reach_nobody_even_from_an_old_version() {
    let (areas, clock, directory) = areas().await;
    let host = a_host(&areas).await;
    let now = clock.now();
    let mut given = login(now, now);
    given["agent_identity"] = json!("private-key-of-this-host");
    given["tokens"]["login_owner_id"] = json!("owner-of-this-sign-in");
    let stored = store(&areas, &host, &given).await.unwrap();
    assert!(!stored.canonical.unwrap().text.contains("of-this"));

    // A version of an earlier release.
    clock.step(1);
    given["last_refresh"] = text(clock.now()).into();
    let old = AuthDocument::from_canonical(given.to_string(), &DocumentRules::default()).unwrap();
    assert!(old.text().contains("of-this"));
    let note = Initiator::daemon().note(clock.now(), "auth.store");
    let source = CanonicalSource::Admin { by: "before".into() };
    areas.login.make_canonical(&old, source, ReplaceCondition::Version(Some(1)), note).await.unwrap().unwrap();
    let restarted = node(&directory, "hot-2", areas.core.records.clone(), clock).await;
    let canonical = restarted.core.canonical().unwrap();
    assert_eq!(canonical.summary.version, 2);
    assert!(!canonical.text.contains("of-this"), "{}", &**canonical.text);
    assert_eq!(canonical.summary.digest, Digest::of(canonical.text.as_bytes()));
    assert_eq!(store(&restarted, &host, &given).await.unwrap().outcome, Outcome::Unchanged);
}

#[tokio::test]
async fn a_login_of_more_than_64_kib_is_taken_nowhere() {
    let (areas, clock, _directory) = areas().await;
    let host = a_host(&areas).await;
    let mut large = login(clock.now(), clock.now());
    large["filler"] = "x".repeat(MAX_DOCUMENT_BYTES).into();
    for refused in [
        store(&areas, &host, &large).await.err(),
        upload(&areas, &large, Allowed::default()).await.err(),
        areas.login.upload(&json!({ "auth": large.to_string() }).to_string(), &Initiator::daemon()).await.err(),
        areas.login.upload_text(&large.to_string(), Allowed::default(), false, &Initiator::daemon()).await.err(),
    ] {
        let refused = refused.expect("it was taken");
        assert!(matches!(refused, ServiceError::DocumentTooLarge(_)), "{refused:?}");
        assert!(refused.to_string().contains("64 KiB"), "{refused}");
    }
    assert!(areas.core.canonical().is_none());
}

#[tokio::test]
async fn a_login_that_codex_cannot_load_reaches_nobody() {
    let (areas, clock, _directory) = areas().await;
    let host = a_host(&areas).await;
    let mut broken = login(clock.now(), clock.now());
    broken["tokens"]["id_token"] = "opaque".into();
    let refused = store(&areas, &host, &broken).await.err();
    assert!(
        matches!(&refused, Some(ServiceError::Invalid { field, .. }) if field == "auth.tokens.id_token"),
        "{refused:?}"
    );
    assert!(areas.core.canonical().is_none());
}
