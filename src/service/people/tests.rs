//! Sign-in, sessions and users, on the embedded store, with a clock that the test sets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use time::Duration;
use uuid::Uuid;

use crate::model::audit::AuditFilter;
use crate::model::people::{Role, UserId};
use crate::records::embedded::Embedded;
use crate::records::{PasswordHash, Records, SignInMethod, User, UserChange};
use crate::service::clock_tests::{TestClock, areas, node};
use crate::service::hosts::enrol::HostOptions;
use crate::service::people::sessions::{Beginning, NewSession};
use crate::service::{Areas, Initiator, Result, ServiceError};

const PASSWORD: &str = "vexed-lantern-42-orbit-plum";
const OTHER: &str = "brisk-otter-77-canal-fig";

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

async fn user(areas: &Areas, email: &str, role: Role) -> User {
    areas.people.add_user(email, role, Some(PASSWORD), &Initiator::daemon()).await.unwrap()
}

async fn sign_in(areas: &Areas, email: &str, password: &str, from: u8) -> Result<NewSession> {
    areas.people.sign_in(email, password, false, address(from), Some("test")).await
}

async fn good(areas: &Areas, token: &NewSession) -> bool {
    match areas.people.signed_in(token.token.expose()).await {
        Ok(_) => true,
        Err(ServiceError::SessionInvalid) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Outcome and reason of the newest refusal.
async fn noted(areas: &Areas) -> (String, String) {
    let filter = AuditFilter { action: Some("session.begin".into()), ..AuditFilter::default() };
    let entry = areas.audit.audit_log(&filter, 1).await.unwrap().remove(0).note;
    (entry.outcome, entry.details.get("reason").cloned().unwrap_or_default())
}

#[tokio::test]
async fn whatever_is_wrong_the_refusal_is_the_same_and_the_reason_is_noted() {
    let (areas, _clock, _directory) = areas().await;
    let ada = user(&areas, "ada@example.test", Role::Admin).await;
    areas.people.add_user("no-password@example.test", Role::Member, None, &Initiator::daemon()).await.unwrap();
    let off = user(&areas, "off@example.test", Role::Member).await;
    areas.people.disable_user(off.id, false, &Initiator::daemon()).await.unwrap();
    let mut words = Vec::new();
    for (from, email, password, reason) in [
        (1, "ada@example.test", "wrong", "password"),
        (2, "nobody@example.test", PASSWORD, "unknown_user"),
        (3, "no-password@example.test", PASSWORD, "password"),
        (4, "off@example.test", PASSWORD, "disabled"),
        (5, "no address at all", PASSWORD, "unknown_user"),
        (6, "ada@example.test", "", "password"),
        (7, "ada@example.test", &PASSWORD.to_uppercase(), "password"),
    ] {
        let Err(error) = sign_in(&areas, email, password, from).await else { panic!("{email} was let in") };
        assert!(matches!(error, ServiceError::SignInRefused), "{email}: {error}");
        words.push(error.to_string());
        assert_eq!(noted(&areas).await, ("401".into(), reason.into()), "{email}");
    }
    words.dedup();
    assert_eq!(words.len(), 1);
    let session = sign_in(&areas, " Ada@EXAMPLE.test ", PASSWORD, 8).await.unwrap();
    assert_eq!(areas.people.signed_in(session.token.expose()).await.unwrap().user.id, ada.id);
    assert_eq!(noted(&areas).await.0, "done");
}

#[tokio::test]
async fn a_guesser_is_turned_away_unseen_and_keeps_nobody_else_out() {
    let (areas, clock, _directory) = areas().await;
    user(&areas, "ada@example.test", Role::Admin).await;
    user(&areas, "bob@example.test", Role::Member).await;
    let blocked = |outcome: Result<NewSession>| matches!(outcome, Err(ServiceError::AuthBlocked(_)));
    for _ in 0..3 {
        assert!(!blocked(sign_in(&areas, "ada@example.test", "wrong", 1).await));
    }
    assert!(blocked(sign_in(&areas, "ada@example.test", PASSWORD, 1).await), "a right password is not checked either");
    assert!(blocked(sign_in(&areas, "bob@example.test", PASSWORD, 1).await));
    sign_in(&areas, "ada@example.test", PASSWORD, 2).await.unwrap();
    // As many failures as are allowed, from five addresses: the account is blocked for every address.
    for from in 2..=5 {
        for _ in 0..3 {
            assert!(!blocked(sign_in(&areas, "ada@example.test", "wrong", from).await), "{from}");
        }
    }
    assert!(blocked(sign_in(&areas, "ada@example.test", PASSWORD, 6).await));
    sign_in(&areas, "bob@example.test", PASSWORD, 6).await.unwrap();
    clock.step(1);
    sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
}

#[tokio::test]
async fn a_block_outlives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (_, clock, _other) = areas().await;
    let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
    let areas = node(&directory, "hot", records.clone(), clock.clone()).await;
    user(&areas, "ada@example.test", Role::Admin).await;
    for _ in 0..3 {
        drop(sign_in(&areas, "ada@example.test", "wrong", 1).await);
    }
    drop(areas);
    let areas = node(&directory, "hot", records, clock).await;
    assert!(matches!(sign_in(&areas, "ada@example.test", PASSWORD, 1).await, Err(ServiceError::AuthBlocked(_))));
}

#[tokio::test]
async fn a_session_ends_when_it_is_not_used_and_when_its_time_is_over() {
    let (areas, clock, _directory) = areas().await;
    user(&areas, "ada@example.test", Role::Admin).await;
    let idle = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    let used = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    // The defaults: twelve hours, and a week.
    for hour in 1..=167 {
        clock.step(1);
        assert!(good(&areas, &used).await, "hour {hour}");
        if hour == 11 {
            assert_eq!(areas.people.sessions(None).await.unwrap().iter().filter(|(_, in_force)| *in_force).count(), 2);
        }
    }
    assert!(!good(&areas, &idle).await);
    clock.step(1);
    assert!(!good(&areas, &used).await, "a week is over");
    assert!(areas.people.sessions(None).await.unwrap().iter().all(|(_, in_force)| !in_force));
}

#[tokio::test]
async fn when_a_session_was_used_is_told_to_the_records() {
    let (areas, clock, _directory) = areas().await;
    user(&areas, "ada@example.test", Role::Admin).await;
    let session = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    clock.step(2);
    assert!(good(&areas, &session).await);
    areas.people.keep_sessions().await.unwrap();
    let kept = areas.core.records.session_list().await.unwrap().remove(0);
    assert_eq!(kept.last_used_at - kept.started_at, Duration::hours(2));
}

#[tokio::test]
async fn whatever_ends_all_sessions_of_a_user_ends_them_for_good() {
    let (areas, _clock, _directory) = areas().await;
    let by = Initiator::daemon();
    let ada = user(&areas, "ada@example.test", Role::Admin).await;
    let bob = user(&areas, "bob@example.test", Role::Member).await;
    let others = sign_in(&areas, "bob@example.test", PASSWORD, 1).await.unwrap();

    let session = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    areas.people.disable_user(ada.id, false, &by).await.unwrap();
    assert!(!good(&areas, &session).await);
    areas.people.enable_user(ada.id, &by).await.unwrap();
    assert!(!good(&areas, &session).await, "the session stays ended");

    let session = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    areas.people.set_password(ada.id, OTHER, &by).await.unwrap();
    assert!(!good(&areas, &session).await);
    assert!(matches!(sign_in(&areas, "ada@example.test", PASSWORD, 2).await, Err(ServiceError::SignInRefused)));
    let session = sign_in(&areas, "ada@example.test", OTHER, 1).await.unwrap();
    areas.people.link_identity("https://id.test", "7", "ada@example.test", None, &by).await.unwrap();
    assert!(good(&areas, &session).await);
    areas.people.unlink_identity("https://id.test", "7", &by).await.unwrap();
    assert!(!good(&areas, &session).await);

    // A new role counts at once, and ends no session.
    areas.people.set_role(bob.id, Role::Viewer, &by).await.unwrap();
    assert_eq!(areas.people.signed_in(others.token.expose()).await.unwrap().user.role, Role::Viewer);
    areas.people.end_session(others.session.id, Some(bob.id), &by).await.unwrap();
    assert!(!good(&areas, &others).await);
}

#[tokio::test]
async fn a_user_gives_themselves_another_password_with_the_present_one_only() {
    let (areas, _clock, _directory) = areas().await;
    user(&areas, "ada@example.test", Role::Member).await;
    let session = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    let signed_in = areas.people.signed_in(session.token.expose()).await.unwrap();
    let set = async |current: &str, new: &str| {
        areas.people.set_own_password(&signed_in, current, new, address(7), &Initiator::anybody(address(7))).await
    };
    for (current, new, field) in [(OTHER, OTHER, "current"), (PASSWORD, "password1", "password")] {
        let refused = set(current, new).await;
        assert!(matches!(&refused, Err(ServiceError::Invalid { field: named, .. }) if named == field), "{refused:?}");
        assert!(good(&areas, &session).await);
    }
    set(PASSWORD, OTHER).await.unwrap();
    assert!(!good(&areas, &session).await, "a stolen session would end, too");
    assert!(sign_in(&areas, "ada@example.test", PASSWORD, 2).await.is_err());
    let session = sign_in(&areas, "ada@example.test", OTHER, 1).await.unwrap();
    let signed_in = areas.people.signed_in(session.token.expose()).await.unwrap();
    let guess = async || {
        areas.people.set_own_password(&signed_in, "wrong", PASSWORD, address(8), &Initiator::anybody(address(8))).await
    };
    for _ in 0..3 {
        assert!(matches!(guess().await, Err(ServiceError::Invalid { .. })));
    }
    assert!(matches!(guess().await, Err(ServiceError::AuthBlocked(_))), "a stolen token guesses no password");
}

#[tokio::test]
async fn a_sign_in_that_was_under_way_does_not_outlive_what_ends_them_all() {
    let (areas, _clock, _directory) = areas().await;
    let seen = Arc::new(user(&areas, "ada@example.test", Role::Admin).await);
    areas.people.set_password(seen.id, OTHER, &Initiator::daemon()).await.unwrap();
    let beginning =
        || Beginning { id: Uuid::new_v4(), method: SignInMethod::Password, browser: false, from: None, agent: None };
    assert!(matches!(areas.people.begin_session(&seen, beginning()).await, Err(ServiceError::SignInRefused)));
    let now = Arc::new(areas.people.user(seen.id).await.unwrap());
    assert!(areas.people.begin_session(&now, beginning()).await.unwrap().is_some());
}

#[tokio::test]
async fn nobody_ends_the_session_of_another_by_its_id() {
    let (areas, _clock, _directory) = areas().await;
    user(&areas, "ada@example.test", Role::Member).await;
    let bob = user(&areas, "bob@example.test", Role::Member).await;
    let session = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    let ended = areas.people.end_session(session.session.id, Some(bob.id), &Initiator::daemon()).await;
    assert!(matches!(ended, Err(ServiceError::NotFound(_))));
    assert!(good(&areas, &session).await);
}

#[tokio::test]
async fn another_node_knows_of_it_once_it_has_caught_up_and_a_new_one_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (_, clock, _other): (_, Arc<TestClock>, _) = areas().await;
    let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
    let one = node(&directory, "one", records.clone(), clock.clone()).await;
    let two = node(&directory, "two", records.clone(), clock.clone()).await;
    let ada = user(&one, "ada@example.test", Role::Admin).await;
    let session = sign_in(&one, "ada@example.test", PASSWORD, 1).await.unwrap();
    assert!(!good(&two, &session).await);
    two.core.catch_up().await.unwrap();
    assert!(good(&two, &session).await);
    let three = node(&directory, "three", records, clock).await;
    assert!(good(&three, &session).await);
    one.people.disable_user(ada.id, false, &Initiator::daemon()).await.unwrap();
    for node in [&two, &three] {
        node.core.catch_up().await.unwrap();
        assert!(!good(node, &session).await);
    }
}

#[tokio::test]
async fn a_password_that_is_kept_under_weaker_parameters_is_hashed_anew_by_a_sign_in() {
    use argon2::password_hash::PasswordHasher as _;
    let (areas, _clock, _directory) = areas().await;
    let ada = user(&areas, "ada@example.test", Role::Admin).await;
    let weaker = argon2::Params::new(8 * 1024, 1, 1, None).unwrap();
    let weaker = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, weaker);
    let kept: argon2::PasswordHash = weaker.hash_password_with_salt(PASSWORD.as_bytes(), &[7; 16]).unwrap();
    let change = UserChange::Password(PasswordHash(kept.to_string()));
    let now = areas.core.now();
    areas.core.records.user_change(ada.id, &change, now, None).await.unwrap();
    areas.core.catch_up().await.unwrap();

    assert!(sign_in(&areas, "ada@example.test", "wrong", 1).await.is_err());
    assert_eq!(areas.people.user(ada.id).await.unwrap().password.unwrap().0, kept.to_string());
    let session = sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
    let rehashed = areas.people.user(ada.id).await.unwrap().password.unwrap();
    assert!(rehashed.0.contains("m=19456,t=2,p=1"), "{}", rehashed.0);
    assert!(good(&areas, &session).await, "a new hash ends no session");
    sign_in(&areas, "ada@example.test", PASSWORD, 1).await.unwrap();
}

#[tokio::test]
async fn a_member_has_so_many_hosts_and_nobody_elses() {
    let (areas, _clock, _directory) = areas().await;
    let by = Initiator::daemon();
    let ada = user(&areas, "ada@example.test", Role::Member).await;
    user(&areas, "bob@example.test", Role::Member).await;
    let signed_in = async |email: &str| {
        let session = sign_in(&areas, email, PASSWORD, 1).await.unwrap();
        areas.people.signed_in(session.token.expose()).await.unwrap()
    };
    areas.hosts.register("fleet.test", HostOptions::default(), &by).await.unwrap();
    areas.people.set_max_hosts(ada.id, Some(2), &by).await.unwrap();
    let (ada, bob) = (signed_in("ada@example.test").await, signed_in("bob@example.test").await);
    let register = async |name: &str, who| match areas.people.register_own(name, who, &by).await {
        Ok(registered) => Ok(registered.host.host),
        Err(ServiceError::Conflict(why)) => Err(why),
        Err(error) => panic!("{error}"),
    };
    let one = register("one.test", &ada).await.unwrap();
    assert_eq!(one.owner, Some(ada.user.id));
    let listed = areas.hosts.list_hosts(crate::service::core::directory::ListQuery::default()).await.unwrap();
    assert_eq!(listed.hosts.iter().map(|host| host.owner).collect::<Vec<_>>(), [None, Some(ada.user.id)]);
    register("two.test", &ada).await.unwrap();
    assert!(register("three.test", &ada).await.unwrap_err().contains("2 hosts"));
    assert!(register("fleet.test", &ada).await.unwrap_err().contains("not yours"));
    assert!(register("one.test", &bob).await.unwrap_err().contains("not yours"));
    assert_eq!(areas.hosts.host(one.id).await.unwrap().host.key_digest, one.key_digest, "its key was not touched");
    let again = register("one.test", &ada).await.unwrap();
    assert_ne!(again.key_digest, one.key_digest, "a host of theirs gets a new key");

    let names = async |who| -> Vec<String> {
        let hosts = areas.people.own_hosts(who).await.unwrap();
        hosts.into_iter().map(|view| view.host.fqdn.into()).collect()
    };
    assert_eq!(names(&ada).await, ["one.test", "two.test"]);
    assert!(names(&bob).await.is_empty());
    assert!(matches!(areas.people.remove_own(one.id, &bob, &by).await, Err(ServiceError::NotFound(_))));
    areas.people.remove_own(one.id, &ada, &by).await.unwrap();
    register("three.test", &ada).await.unwrap();
}

#[tokio::test]
async fn bad_users_are_refused_by_name_and_a_second_one_of_an_address_as_well() {
    let (areas, _clock, _directory) = areas().await;
    let by = Initiator::daemon();
    let ada = user(&areas, "ada@example.test", Role::Admin).await;
    for (email, password, field) in [
        ("ada", PASSWORD, "email"),
        ("a b@example.test", PASSWORD, "email"),
        ("eve@example.test", "short", "password"),
        ("eve@example.test", "password123", "password"),
    ] {
        match areas.people.add_user(email, Role::Member, Some(password), &by).await {
            Err(ServiceError::Invalid { field: named, .. }) => assert_eq!(named, field, "{email}"),
            other => panic!("{email}: {other:?}"),
        }
    }
    let twice = areas.people.add_user("ADA@example.test", Role::Member, Some(OTHER), &by).await;
    assert!(matches!(twice, Err(ServiceError::Conflict(_))));
    assert!(matches!(areas.people.set_role(UserId(7), Role::Admin, &by).await, Err(ServiceError::NotFound(_))));
    assert!(matches!(
        areas.people.link_identity("", "7", "ada@example.test", None, &by).await,
        Err(ServiceError::Invalid { .. })
    ));
    let long = "s".repeat(256);
    let linked = areas.people.link_identity("https://id.test", &long, "ada@example.test", None, &by).await;
    assert!(matches!(linked, Err(ServiceError::Invalid { .. })));
    areas.people.link_identity("https://id.test", "7", "ada@example.test", None, &by).await.unwrap();
    user(&areas, "bob@example.test", Role::Member).await;
    let taken = areas.people.link_identity("https://id.test", "7", "bob@example.test", None, &by).await;
    assert!(matches!(&taken, Err(ServiceError::Conflict(why)) if why.contains(ada.email.as_str())), "{taken:?}");
}

/// A node learns from the records when a session was used on another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_another_node_saw_used_is_not_idle_here() {
    use crate::records::mysql::tests::mariadb::MariaDb;
    use crate::records::mysql::{MySql, Options, Tls};
    let server = MariaDb::start();
    let timeout = std::time::Duration::from_secs(10);
    let options = Options { url: server.create("authd").await, tls: Tls::Off, ca: None, connections: 4, timeout };
    let records = MySql::new(&options).unwrap();
    records.prepare().await.unwrap();
    let records: Arc<dyn Records> = Arc::new(records);
    let directory = tempfile::tempdir().unwrap();
    let (_, clock, _other) = areas().await;
    let one = node(&directory, "one", records.clone(), clock.clone()).await;
    let two = node(&directory, "two", records, clock.clone()).await;
    user(&one, "ada@example.test", Role::Admin).await;
    let (used, idle) = (
        sign_in(&one, "ada@example.test", PASSWORD, 1).await.unwrap(),
        sign_in(&one, "ada@example.test", PASSWORD, 1).await.unwrap(),
    );
    two.core.catch_up().await.unwrap();
    clock.step(11);
    assert!(good(&one, &used).await);
    one.people.keep_sessions().await.unwrap();
    clock.step(2);
    assert!(good(&two, &used).await);
    assert!(!good(&two, &idle).await);
    assert!(!good(&two, &idle).await, "the session stays idle");
}
