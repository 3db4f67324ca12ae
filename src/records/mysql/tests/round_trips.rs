//! How many statements a change sends to the database. Each is a round trip over the network.

use super::conformance::people::{ISSUER, identity, session, through, user};
use super::conformance::probes::{claim, outcome};
use super::conformance::{at, ip, new_canonical, noted, registration, seen};
use super::*;
use crate::records::{AuthEntry, ProbeState, ProbeTrigger};

/// The statements that reached the server during `work`.
async fn asked<T>(server: &MariaDb, work: impl Future<Output = Result<T>>) -> Vec<String> {
    server.query("TRUNCATE mysql.general_log").await;
    server.query("SET GLOBAL general_log = 1").await;
    work.await.unwrap();
    server.query("SET GLOBAL general_log = 0").await;
    let log = "SELECT CONVERT(command_type USING utf8mb4), CONVERT(argument USING utf8mb4) FROM mysql.general_log \
               WHERE thread_id IN (SELECT id FROM information_schema.processlist WHERE db = 'authd') \
               AND command_type <> 'Close stmt' ORDER BY event_time";
    let rows = server.query(log).await.into_iter().map(mysql_async::from_row::<(String, String)>);
    rows.map(|(kind, text)| format!("{kind}: {}", text.chars().take(90).collect::<String>())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_asks_the_database_few_things() {
    let server = MariaDb::with(&["--log-output=TABLE"]);
    let records = open(&options(server.create("authd").await)).await.unwrap();
    let sealing_key = SealingKey { id: KeyId(1), sealed: conformance::sealed(0, "key"), created_at: at(0) };
    records.sealing_key_add(&sealing_key, &noted()).await.unwrap();
    // Everything runs twice: in the second round no statement has to be prepared.
    for round in 0..2 {
        let name = format!("h{round}.test");
        let first = registration(round + 1, &name, &format!("a{round}"));
        let second = registration(round + 1, &name, &format!("b{round}"));
        let (id, digest, token) = (first.id, second.key_digest, second.token.digest);
        let last_refresh = format!("2026-11-21T12:00:0{round}Z");
        let newer = ReplaceCondition::Version((round > 0).then_some(round));
        let mut login = NewCanonical { last_refresh, ..new_canonical("1") };
        let entry = login.entries[0].clone();
        login.entries = ["a", "b", "c"].map(|target| AuthEntry { target: target.into(), ..entry.clone() }).into();
        let batch = [seen(round + 1, 1, 1, Some("0.1"))];
        let node = uuid::Uuid::from_u128(7);
        let epoch = records.epoch().await.unwrap();
        let rename = HostChange { allow_roaming_ips: Some(true), ..HostChange::default() };
        let note = noted();
        let probe = claim(1000 * round as i64, ProbeTrigger::Store);
        let found = outcome(ProbeState::Ok, 1);
        let person = user(round + 1, &format!("u{round}@example.test"));
        let owner = Owner { user: person.id, at_most: 1 };
        let theirs = registration(round + 10, &format!("own{round}.test"), &format!("own{round}"));
        let linked = identity(ISSUER, &name, round + 1);
        let begun = through(session(round as u8, round + 1), &name);
        let used = [(begun.id, at(500)), (uuid::Uuid::from_u128(8), at(500))];
        let disabled = UserChange::Disable { keep_hosts: false };
        let counted = [
            ("a new host", 10, asked(&server, records.host_register(&first, &note)).await),
            ("a new key", 10, asked(&server, records.host_register(&second, &note)).await),
            (
                "a first contact",
                7,
                asked(&server, records.host_bind_ip(id, &digest, ip("192.0.2.1"), 64, at(1), &note)).await,
            ),
            (
                "an installer redeemed",
                8,
                asked(&server, records.installer_redeem(&token, &digest, at(1), ip("192.0.2.1"), &note)).await,
            ),
            ("a change of a host", 7, asked(&server, records.host_change(id, &rename, at(2), &note)).await),
            ("a store with three entries", 8, asked(&server, records.canonical_replace(&newer, &login, &note)).await),
            ("a probe begun", 8, asked(&server, records.probe_claim(&probe, Some(&note))).await),
            ("a probe finished", 7, asked(&server, records.probe_finish(probe.id, &found, Some(&note))).await),
            ("what probes found", 1, asked(&server, records.probe_summary(at(0))).await),
            ("a new user", 7, asked(&server, records.user_add(&person, &note)).await),
            ("an owner's host", 10, asked(&server, records.host_register_owned(&theirs, &owner, &note)).await),
            ("an identity linked", 7, asked(&server, records.identity_link(&linked, &note)).await),
            ("an identity found", 1, asked(&server, records.identity_fetch(ISSUER, &name)).await),
            ("a session begun", 7, asked(&server, records.session_begin(&begun, &note)).await),
            ("sessions used", 4, asked(&server, records.session_touch(&used)).await),
            ("a session ended", 7, asked(&server, records.session_end(begun.id, at(9), &note)).await),
            ("an identity taken away", 8, asked(&server, records.identity_unlink(ISSUER, &name, at(9), &note)).await),
            (
                "a user and their host disabled",
                9,
                asked(&server, records.user_change(person.id, &disabled, at(9), Some(&note))).await,
            ),
            ("another login in hand", 8, asked(&server, records.telemetry_append(node, 2 * round + 1, &batch)).await),
            ("telemetry", 7, asked(&server, records.telemetry_append(node, 2 * round + 2, &batch)).await),
            ("a removal", 8, asked(&server, records.host_remove(id, at(3), &note)).await),
            ("what changed", 12, asked(&server, records.changes_since(epoch)).await),
            ("nothing changed", 1, asked(&server, records.changes_since(records.epoch().await.unwrap())).await),
        ];
        for (what, most, asked) in counted {
            println!("{what}: {}\n  {}", asked.len(), asked.join("\n  "));
            assert!(round == 0 || asked.len() <= most, "{what} asks {} things, not {most}", asked.len());
        }
    }
}
