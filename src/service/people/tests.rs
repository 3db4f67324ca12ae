//! On the embedded store, with a clock that the test turns.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use time::Duration;
use uuid::Uuid;

use crate::model::audit::AuditFilter;
use crate::model::people::{Role, UserId};
use crate::records::embedded::Embedded;
use crate::records::{PasswordHash, Records, SignInMethod, User, UserChange};
use crate::service::clock_tests::{Clock, node, service};
use crate::service::hosts::enrol::HostOptions;
use crate::service::people::sessions::{Beginning, NewSession};
use crate::service::{Areas, By, Result, ServiceError};

const PASSWORD: &str = "vexed-lantern-42-orbit-plum";
const OTHER: &str = "brisk-otter-77-canal-fig";

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

async fn user(service: &Areas, email: &str, role: Role) -> User {
    service.people.add_user(email, role, Some(PASSWORD), &By::daemon()).await.unwrap()
}

async fn sign_in(service: &Areas, email: &str, password: &str, from: u8) -> Result<NewSession> {
    service.people.sign_in(email, password, false, address(from), Some("test")).await
}

async fn good(service: &Areas, token: &NewSession) -> bool {
    match service.people.signed_in(token.token.expose()).await {
        Ok(_) => true,
        Err(ServiceError::SessionInvalid) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Outcome and reason of the newest refusal.
async fn noted(service: &Areas) -> (String, String) {
    let filter = AuditFilter { action: Some("session.begin".into()), ..AuditFilter::default() };
    let entry = service.audit.audit_log(&filter, 1).await.unwrap().remove(0).note;
    (entry.outcome, entry.details.get("reason").cloned().unwrap_or_default())
}

#[tokio::test]
async fn whatever_is_wrong_the_refusal_is_the_same_and_the_reason_is_noted() {
    let (service, _clock, _directory) = service().await;
    let ada = user(&service, "ada@example.test", Role::Admin).await;
    service.people.add_user("no-password@example.test", Role::Member, None, &By::daemon()).await.unwrap();
    let off = user(&service, "off@example.test", Role::Member).await;
    service.people.disable_user(off.id, false, &By::daemon()).await.unwrap();
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
        let Err(error) = sign_in(&service, email, password, from).await else { panic!("{email} was let in") };
        assert!(matches!(error, ServiceError::SignInRefused), "{email}: {error}");
        words.push(error.to_string());
        assert_eq!(noted(&service).await, ("401".into(), reason.into()), "{email}");
    }
    words.dedup();
    assert_eq!(words.len(), 1);
    let session = sign_in(&service, " Ada@EXAMPLE.test ", PASSWORD, 8).await.unwrap();
    assert_eq!(service.people.signed_in(session.token.expose()).await.unwrap().user.id, ada.id);
    assert_eq!(noted(&service).await.0, "done");
}

#[tokio::test]
async fn a_guesser_is_turned_away_unseen_and_keeps_nobody_else_out() {
    let (service, clock, _directory) = service().await;
    user(&service, "ada@example.test", Role::Admin).await;
    user(&service, "bob@example.test", Role::Member).await;
    let blocked = |outcome: Result<NewSession>| matches!(outcome, Err(ServiceError::AuthBlocked(_)));
    for _ in 0..3 {
        assert!(!blocked(sign_in(&service, "ada@example.test", "wrong", 1).await));
    }
    assert!(blocked(sign_in(&service, "ada@example.test", PASSWORD, 1).await), "the right one is not looked at either");
    assert!(blocked(sign_in(&service, "bob@example.test", PASSWORD, 1).await));
    sign_in(&service, "ada@example.test", PASSWORD, 2).await.unwrap();
    // From five addresses as often as each may: the account is blocked, wherever from.
    for from in 2..=5 {
        for _ in 0..3 {
            assert!(!blocked(sign_in(&service, "ada@example.test", "wrong", from).await), "{from}");
        }
    }
    assert!(blocked(sign_in(&service, "ada@example.test", PASSWORD, 6).await));
    sign_in(&service, "bob@example.test", PASSWORD, 6).await.unwrap();
    clock.step(1);
    sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
}

#[tokio::test]
async fn a_block_outlives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (_, clock, _other) = service().await;
    let records: Arc<dyn Records> = Arc::new(Embedded::open(&directory.path().join("records")).unwrap());
    let service = node(&directory, "hot", records.clone(), clock.clone()).await;
    user(&service, "ada@example.test", Role::Admin).await;
    for _ in 0..3 {
        drop(sign_in(&service, "ada@example.test", "wrong", 1).await);
    }
    drop(service);
    let service = node(&directory, "hot", records, clock).await;
    assert!(matches!(sign_in(&service, "ada@example.test", PASSWORD, 1).await, Err(ServiceError::AuthBlocked(_))));
}

#[tokio::test]
async fn a_session_ends_when_it_is_not_used_and_when_its_time_is_over() {
    let (service, clock, _directory) = service().await;
    user(&service, "ada@example.test", Role::Admin).await;
    let idle = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    let used = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    // The defaults: twelve hours, and a week.
    for hour in 1..=167 {
        clock.step(1);
        assert!(good(&service, &used).await, "hour {hour}");
        if hour == 11 {
            assert_eq!(
                service.people.sessions(None).await.unwrap().iter().filter(|(_, in_force)| *in_force).count(),
                2
            );
        }
    }
    assert!(!good(&service, &idle).await);
    clock.step(1);
    assert!(!good(&service, &used).await, "a week is over");
    assert!(service.people.sessions(None).await.unwrap().iter().all(|(_, in_force)| !in_force));
}

#[tokio::test]
async fn when_a_session_was_used_is_told_to_the_records() {
    let (service, clock, _directory) = service().await;
    user(&service, "ada@example.test", Role::Admin).await;
    let session = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    clock.step(2);
    assert!(good(&service, &session).await);
    service.people.keep_sessions().await.unwrap();
    let kept = service.core.records.session_list().await.unwrap().remove(0);
    assert_eq!(kept.last_used_at - kept.started_at, Duration::hours(2));
}

#[tokio::test]
async fn whatever_ends_all_sessions_of_a_user_ends_them_for_good() {
    let (service, _clock, _directory) = service().await;
    let by = By::daemon();
    let ada = user(&service, "ada@example.test", Role::Admin).await;
    let bob = user(&service, "bob@example.test", Role::Member).await;
    let others = sign_in(&service, "bob@example.test", PASSWORD, 1).await.unwrap();

    let session = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    service.people.disable_user(ada.id, false, &by).await.unwrap();
    assert!(!good(&service, &session).await);
    service.people.enable_user(ada.id, &by).await.unwrap();
    assert!(!good(&service, &session).await, "it comes back with nobody");

    let session = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    service.people.set_password(ada.id, OTHER, &by).await.unwrap();
    assert!(!good(&service, &session).await);
    assert!(matches!(sign_in(&service, "ada@example.test", PASSWORD, 2).await, Err(ServiceError::SignInRefused)));
    let session = sign_in(&service, "ada@example.test", OTHER, 1).await.unwrap();
    service.people.link_identity("https://id.test", "7", "ada@example.test", None, &by).await.unwrap();
    assert!(good(&service, &session).await);
    service.people.unlink_identity("https://id.test", "7", &by).await.unwrap();
    assert!(!good(&service, &session).await);

    // Another role counts at once, and ends nothing.
    service.people.set_role(bob.id, Role::Viewer, &by).await.unwrap();
    assert_eq!(service.people.signed_in(others.token.expose()).await.unwrap().user.role, Role::Viewer);
    service.people.end_session(others.session.id, Some(bob.id), &by).await.unwrap();
    assert!(!good(&service, &others).await);
}

#[tokio::test]
async fn a_user_gives_themselves_another_password_with_the_present_one_only() {
    let (service, _clock, _directory) = service().await;
    user(&service, "ada@example.test", Role::Member).await;
    let session = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    let signed_in = service.people.signed_in(session.token.expose()).await.unwrap();
    let set = async |current: &str, new: &str| {
        service.people.set_own_password(&signed_in, current, new, address(7), &By::anybody(address(7))).await
    };
    for (current, new, field) in [(OTHER, OTHER, "current"), (PASSWORD, "password1", "password")] {
        let refused = set(current, new).await;
        assert!(matches!(&refused, Err(ServiceError::Invalid { field: named, .. }) if named == field), "{refused:?}");
        assert!(good(&service, &session).await);
    }
    set(PASSWORD, OTHER).await.unwrap();
    assert!(!good(&service, &session).await, "a thief's would be over as well");
    assert!(sign_in(&service, "ada@example.test", PASSWORD, 2).await.is_err());
    let session = sign_in(&service, "ada@example.test", OTHER, 1).await.unwrap();
    let signed_in = service.people.signed_in(session.token.expose()).await.unwrap();
    let guess = async || {
        service.people.set_own_password(&signed_in, "wrong", PASSWORD, address(8), &By::anybody(address(8))).await
    };
    for _ in 0..3 {
        assert!(matches!(guess().await, Err(ServiceError::Invalid { .. })));
    }
    assert!(matches!(guess().await, Err(ServiceError::AuthBlocked(_))), "a stolen token guesses no password");
}

#[tokio::test]
async fn a_sign_in_that_was_under_way_does_not_outlive_what_ends_them_all() {
    let (service, _clock, _directory) = service().await;
    let seen = Arc::new(user(&service, "ada@example.test", Role::Admin).await);
    service.people.set_password(seen.id, OTHER, &By::daemon()).await.unwrap();
    let beginning =
        || Beginning { id: Uuid::new_v4(), method: SignInMethod::Password, browser: false, from: None, agent: None };
    assert!(matches!(service.people.begin_session(&seen, beginning()).await, Err(ServiceError::SignInRefused)));
    let now = Arc::new(service.people.user(seen.id).await.unwrap());
    assert!(service.people.begin_session(&now, beginning()).await.unwrap().is_some());
}

#[tokio::test]
async fn nobody_ends_the_session_of_another_by_its_id() {
    let (service, _clock, _directory) = service().await;
    user(&service, "ada@example.test", Role::Member).await;
    let bob = user(&service, "bob@example.test", Role::Member).await;
    let session = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    let ended = service.people.end_session(session.session.id, Some(bob.id), &By::daemon()).await;
    assert!(matches!(ended, Err(ServiceError::NotFound(_))));
    assert!(good(&service, &session).await);
}

#[tokio::test]
async fn another_node_knows_of_it_once_it_has_caught_up_and_a_new_one_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (_, clock, _other): (_, Arc<Clock>, _) = service().await;
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
    one.people.disable_user(ada.id, false, &By::daemon()).await.unwrap();
    for node in [&two, &three] {
        node.core.catch_up().await.unwrap();
        assert!(!good(node, &session).await);
    }
}

#[tokio::test]
async fn a_password_that_is_kept_under_weaker_parameters_is_hashed_anew_by_a_sign_in() {
    use argon2::password_hash::PasswordHasher as _;
    let (service, _clock, _directory) = service().await;
    let ada = user(&service, "ada@example.test", Role::Admin).await;
    let weaker = argon2::Params::new(8 * 1024, 1, 1, None).unwrap();
    let weaker = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, weaker);
    let kept: argon2::PasswordHash = weaker.hash_password_with_salt(PASSWORD.as_bytes(), &[7; 16]).unwrap();
    let change = UserChange::Password(PasswordHash(kept.to_string()));
    let now = service.core.now();
    service.core.records.user_change(ada.id, &change, now, None).await.unwrap();
    service.core.catch_up().await.unwrap();

    assert!(sign_in(&service, "ada@example.test", "wrong", 1).await.is_err());
    assert_eq!(service.people.user(ada.id).await.unwrap().password.unwrap().0, kept.to_string());
    let session = sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
    let rehashed = service.people.user(ada.id).await.unwrap().password.unwrap();
    assert!(rehashed.0.contains("m=19456,t=2,p=1"), "{}", rehashed.0);
    assert!(good(&service, &session).await, "that ends nothing");
    sign_in(&service, "ada@example.test", PASSWORD, 1).await.unwrap();
}

#[tokio::test]
async fn a_member_has_so_many_hosts_and_nobody_elses() {
    let (service, _clock, _directory) = service().await;
    let by = By::daemon();
    let ada = user(&service, "ada@example.test", Role::Member).await;
    user(&service, "bob@example.test", Role::Member).await;
    let signed_in = async |email: &str| {
        let session = sign_in(&service, email, PASSWORD, 1).await.unwrap();
        service.people.signed_in(session.token.expose()).await.unwrap()
    };
    service.hosts.register("fleet.test", HostOptions::default(), &by).await.unwrap();
    service.people.set_max_hosts(ada.id, Some(2), &by).await.unwrap();
    let (ada, bob) = (signed_in("ada@example.test").await, signed_in("bob@example.test").await);
    let register = async |name: &str, who| match service.people.register_own(name, who, &by).await {
        Ok(registered) => Ok(registered.host.host),
        Err(ServiceError::Conflict(why)) => Err(why),
        Err(error) => panic!("{error}"),
    };
    let one = register("one.test", &ada).await.unwrap();
    assert_eq!(one.owner, Some(ada.user.id));
    let listed = service.hosts.list_hosts(crate::service::core::directory::ListQuery::default()).await.unwrap();
    assert_eq!(listed.hosts.iter().map(|host| host.owner).collect::<Vec<_>>(), [None, Some(ada.user.id)]);
    register("two.test", &ada).await.unwrap();
    assert!(register("three.test", &ada).await.unwrap_err().contains("2 hosts"));
    assert!(register("fleet.test", &ada).await.unwrap_err().contains("not yours"));
    assert!(register("one.test", &bob).await.unwrap_err().contains("not yours"));
    assert_eq!(service.hosts.host(one.id).await.unwrap().host.key_digest, one.key_digest, "its key was not touched");
    let again = register("one.test", &ada).await.unwrap();
    assert_ne!(again.key_digest, one.key_digest, "a host of theirs gets a new key");

    let names = async |who| -> Vec<String> {
        let hosts = service.people.own_hosts(who).await.unwrap();
        hosts.into_iter().map(|view| view.host.fqdn.into()).collect()
    };
    assert_eq!(names(&ada).await, ["one.test", "two.test"]);
    assert!(names(&bob).await.is_empty());
    assert!(matches!(service.people.remove_own(one.id, &bob, &by).await, Err(ServiceError::NotFound(_))));
    service.people.remove_own(one.id, &ada, &by).await.unwrap();
    register("three.test", &ada).await.unwrap();
}

#[tokio::test]
async fn bad_users_are_refused_by_name_and_a_second_one_of_an_address_as_well() {
    let (service, _clock, _directory) = service().await;
    let by = By::daemon();
    let ada = user(&service, "ada@example.test", Role::Admin).await;
    for (email, password, field) in [
        ("ada", PASSWORD, "email"),
        ("a b@example.test", PASSWORD, "email"),
        ("eve@example.test", "short", "password"),
        ("eve@example.test", "password123", "password"),
    ] {
        match service.people.add_user(email, Role::Member, Some(password), &by).await {
            Err(ServiceError::Invalid { field: named, .. }) => assert_eq!(named, field, "{email}"),
            other => panic!("{email}: {other:?}"),
        }
    }
    let twice = service.people.add_user("ADA@example.test", Role::Member, Some(OTHER), &by).await;
    assert!(matches!(twice, Err(ServiceError::Conflict(_))));
    assert!(matches!(service.people.set_role(UserId(7), Role::Admin, &by).await, Err(ServiceError::NotFound(_))));
    assert!(matches!(
        service.people.link_identity("", "7", "ada@example.test", None, &by).await,
        Err(ServiceError::Invalid { .. })
    ));
    let long = "s".repeat(256);
    let linked = service.people.link_identity("https://id.test", &long, "ada@example.test", None, &by).await;
    assert!(matches!(linked, Err(ServiceError::Invalid { .. })));
    service.people.link_identity("https://id.test", "7", "ada@example.test", None, &by).await.unwrap();
    user(&service, "bob@example.test", Role::Member).await;
    let taken = service.people.link_identity("https://id.test", "7", "bob@example.test", None, &by).await;
    assert!(matches!(&taken, Err(ServiceError::Conflict(why)) if why.contains(ada.email.as_str())), "{taken:?}");
}

/// What a node knows of when a session was used elsewhere is what the records know.
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
    let (_, clock, _other) = service().await;
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
    assert!(!good(&two, &idle).await, "and stays so");
}
