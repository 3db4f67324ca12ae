//! People: cases that need a database, or several daemons.

use super::conformance::people::{ISSUER, identity, session, through, user};
use super::conformance::{at, note, noted, race, registration};
use super::*;
use crate::platform::{Clock as _, System};

const INSERT: &str = "INSERT INTO authd.external_identities (issuer, subject, user_id, email) VALUES";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_was_put_there_by_hand_signs_in() {
    let server = MariaDb::start();
    let records = open(&options(server.create("authd").await)).await.unwrap();
    for (id, address) in [(1, "ada@example.test"), (2, "bob@example.test")] {
        assert!(records.user_add(&user(id, address), &noted()).await.unwrap());
    }
    assert_eq!(records.identity_fetch(ISSUER, "a").await.unwrap(), None);
    let before = System.now() - Duration::from_secs(60);
    // Subjects that differ only in case, or only in a final space. With a padding collation the latter would be the
    // same key.
    server.query(&format!("{INSERT} ('{ISSUER}', 'a', 1, 'Ada@Idp.Test'), ('{ISSUER}', 'a ', 2, NULL)")).await;
    server.query(&format!("{INSERT} ('{ISSUER}', 'A', 2, NULL)")).await;
    let longest = "x".repeat(255);
    server.query(&format!("{INSERT} ('{longest}', '{longest}', 1, NULL)")).await;
    let find = async |subject: &str| records.identity_fetch(ISSUER, subject).await.unwrap();
    let found = find("a").await.unwrap();
    assert_eq!((found.user, found.email.as_deref()), (UserId(1), Some("Ada@Idp.Test")));
    assert!(found.linked_at > before && found.linked_at < before + Duration::from_secs(120), "{}", found.linked_at);
    assert_eq!(find("a ").await.unwrap().user, UserId(2));
    assert_eq!(find("A").await.unwrap().email, None);
    assert_eq!(find("a  ").await, None);
    assert!(records.identity_fetch(&longest, &longest).await.unwrap().is_some());
    assert_eq!(records.identity_list().await.unwrap().len(), 4);

    for (values, cause) in [
        (format!("('{ISSUER}', 'a', 2, NULL)"), 1062),
        (format!("('{ISSUER}', 'new', 9, NULL)"), 1452),
        (format!("('{ISSUER}', '{longest}x', 1, NULL)"), 1406),
    ] {
        match server.try_query(&format!("{INSERT} {values}")).await {
            Err(mysql_async::Error::Server(error)) => assert_eq!(error.code, cause, "{error}"),
            outcome => panic!("{values}: {outcome:?}"),
        }
    }
    assert_eq!(records.identity_link(&identity(ISSUER, "a", 1), &noted()).await.unwrap(), LinkOutcome::Linked);
    let taken = records.identity_link(&identity(ISSUER, "a", 2), &noted()).await.unwrap();
    assert_eq!(taken, LinkOutcome::Taken(UserId(1)));
    assert_eq!(find("a").await.unwrap(), found, "the inserted identity stays as it is");

    let begin = async |session: Session| records.session_begin(&session, &noted()).await.unwrap();
    assert_eq!(begin(through(session(1, 1), "a")).await, SessionOutcome::Begun);
    assert_eq!(begin(through(session(2, 1), "a ")).await, SessionOutcome::Refused, "the identity is another user's");
    server.query("DELETE FROM authd.external_identities WHERE subject = 'A'").await;
    assert_eq!(begin(through(session(2, 2), "A")).await, SessionOutcome::Refused);
    let unlinked = records.identity_unlink(ISSUER, "a", at(9), &noted()).await.unwrap();
    assert_eq!(unlinked.map(|(identity, _)| identity), Some(found));
    assert_eq!(find("a ").await.unwrap().user, UserId(2));
}

/// An operator inserts the identity between the lookup and the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_is_put_there_meanwhile_is_seen() {
    let server = MariaDb::start();
    let records = open(&options(server.create("authd").await)).await.unwrap();
    for (id, address) in [(1, "ada@example.test"), (2, "bob@example.test")] {
        assert!(records.user_add(&user(id, address), &noted()).await.unwrap());
    }
    let mut lease = records.connections.lease(records.connections.deadline()).await.unwrap();
    let mut change = transaction::Change::begin(lease.connection().unwrap()).await.unwrap();
    server.query(&format!("{INSERT} ('{ISSUER}', 'b', 2, NULL)")).await;
    let late = tables::identities::insert_all(&mut change, &[&identity(ISSUER, "b", 1)]).await;
    assert!(matches!(late, Err(Problem::Conflict(_))), "{late:?}");
    assert!(matches!(change.end(late).await, Err(Problem::Conflict(_))));
    drop(lease);
    let taken = records.identity_link(&identity(ISSUER, "b", 1), &noted()).await.unwrap();
    assert_eq!(taken, LinkOutcome::Taken(UserId(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_before_there_were_people_gets_them() {
    let server = MariaDb::start();
    let options = options(server.create("authd").await);
    let records = open(&options).await.unwrap();
    let host = records.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    drop(records);
    // The state before migration 4, except for one table that an interrupted migration has changed already.
    for statement in [
        "DROP TABLE authd.external_identities",
        "DROP TABLE authd.sessions",
        "DROP TABLE authd.users",
        "ALTER TABLE authd.hosts DROP COLUMN owner",
        "ALTER TABLE authd.admin_certificates DROP COLUMN user_id",
        "DELETE FROM authd.schema_migrations WHERE version = 4",
    ] {
        server.query(statement).await;
    }
    let records = open(&options).await.unwrap();
    assert_eq!(records.host_list().await.unwrap(), [host]);
    assert!(records.user_add(&user(1, "ada@example.test"), &noted()).await.unwrap());
    let owner = Owner { user: UserId(1), at_most: 1 };
    let theirs = records.host_register_owned(&registration(2, "h2.test", "b"), &owner, &noted()).await.unwrap();
    assert!(matches!(theirs, RegistrationOutcome::Host(host) if host.owner == Some(UserId(1))));
    let keys = server.query("SHOW INDEX FROM authd.hosts WHERE Key_name = 'hosts_owner'").await;
    assert_eq!(keys.len(), 1);
    let all = records.changes_since(Epoch(0)).await.unwrap();
    assert_eq!((all.hosts.len(), all.users.map(|users| users.len())), (2, Some(1)));
}

/// Each node has connections of its own. The nodes share only the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_agree_on_who_is_who() {
    let server = MariaDb::start();
    let options = options(server.create("authd").await);
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Arc::new(open(&options).await.unwrap()));
    }
    let added = race(30, |number| {
        let node = Arc::clone(&nodes[number % 3]);
        let user = user(number as u64 + 1, "ada@example.test");
        async move { node.user_add(&user, &note("add")).await.unwrap() }
    })
    .await;
    assert_eq!(added.iter().filter(|added| **added).count(), 1);
    let ada = nodes[0].user_list().await.unwrap().remove(0).id;
    let registered = race(30, |number| {
        let node = Arc::clone(&nodes[number % 3]);
        async move {
            let (id, owner) = (number as u64 + 1, Owner { user: ada, at_most: 3 });
            let registration = registration(id, &format!("h{id}.test"), &id.to_string());
            node.host_register_owned(&registration, &owner, &note("register")).await.unwrap()
        }
    })
    .await;
    assert_eq!(registered.iter().filter(|it| matches!(it, RegistrationOutcome::Host(_))).count(), 3);
    assert_eq!(nodes[1].host_list().await.unwrap().len(), 3);
    let begun = race(31, |number| {
        let node = Arc::clone(&nodes[number % 3]);
        async move {
            let session = Session { id: Uuid::from_u128(number as u128), ..session(1, ada.0) };
            if number == 15 {
                let disabled = UserChange::Disable { keep_hosts: false };
                node.user_change(ada, &disabled, at(9), Some(&note("turn"))).await.unwrap().unwrap();
                return SessionOutcome::Known;
            }
            node.session_begin(&session, &note("begin")).await.unwrap()
        }
    })
    .await;
    let begun = begun.iter().filter(|begun| **begun == SessionOutcome::Begun).count();
    let entries = nodes[2].audit_list_from(1, 1000).await.unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| &*entry.note.action).collect();
    println!("{begun} of 30 sessions began before the user was disabled");
    assert_eq!(actions.iter().filter(|action| **action == "begin").count(), begun);
    assert_eq!(actions.last(), Some(&"turn"));
}

/// On a cluster a lock holds on its node only. A change that was decided by an outdated state must be refused at the
/// commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_no_session_begins_of_a_user_who_is_being_disabled() {
    let cluster = galera::Galera::start().await;
    let one = open(&options(cluster.nodes[0].create("authd").await)).await.unwrap();
    let two = open(&options(cluster.nodes[1].url("authd"))).await.unwrap();
    assert!(one.user_add(&user(1, "ada@example.test"), &noted()).await.unwrap());
    let deadline = two.connections.deadline();
    let mut lease = two.connections.lease(deadline).await.unwrap();
    let mut late = transaction::Change::begin(lease.connection().unwrap()).await.unwrap();
    let begun = super::super::people::begin_session(&mut late, &session(1, 1), &noted()).await;
    assert!(matches!(begun, Ok(SessionOutcome::Begun)), "{begun:?}");
    one.user_change(UserId(1), &UserChange::Disable { keep_hosts: false }, at(9), None).await.unwrap().unwrap();
    let refused = late.end(begun).await;
    assert!(matches!(refused, Err(Problem::Conflict(_))), "{refused:?}");
    drop(lease);
    assert_eq!(two.session_begin(&session(1, 1), &noted()).await.unwrap(), SessionOutcome::Refused);

    // One node reports the use of a session while the other ends it. In either order it stays ended.
    let enabled = one.user_change(UserId(1), &UserChange::Enable, at(9), None).await.unwrap().unwrap();
    let session = Session { generation: enabled.user.generation, ..session(1, 1) };
    assert_eq!(one.session_begin(&session, &noted()).await.unwrap(), SessionOutcome::Begun);
    let mut lease = two.connections.lease(deadline).await.unwrap();
    let mut late = transaction::Change::begin(lease.connection().unwrap()).await.unwrap();
    let touched = super::super::people::touch_sessions(&mut late, &[(session.id, at(100))]).await;
    assert!(one.session_end(session.id, at(99), &noted()).await.unwrap().is_some());
    let refused = late.end(touched).await;
    assert!(matches!(refused, Err(Problem::Conflict(_))), "{refused:?}");
    drop(lease);
    two.session_touch(&[(session.id, at(100))]).await.unwrap();
    let known = two.session_list().await.unwrap();
    assert_eq!(known, [Session { last_used_at: at(100), ended_at: Some(at(99)), ..session }]);
}
