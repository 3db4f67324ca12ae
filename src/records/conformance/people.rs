use super::*;
use crate::model::people::{Role, UserId};

pub fn email(text: &str) -> Email {
    text.parse().unwrap()
}

pub fn user(id: u64, address: &str) -> User {
    User {
        id: UserId(id),
        email: email(address),
        role: Role::Member,
        password: Some(PasswordHash(format!("$argon2id${id}"))),
        disabled: false,
        generation: 3,
        max_hosts: None,
        created_at: at(0),
        updated_at: at(0),
    }
}

/// A session that began with a password, with the generation of [`user`].
pub fn session(id: u8, user: u64) -> Session {
    Session {
        id: Uuid::from_bytes([id; 16]),
        token: token(&id.to_string()),
        user: UserId(user),
        generation: 3,
        method: SignInMethod::Password,
        browser: id.is_multiple_of(2),
        started_at: at(i64::from(id)),
        expires_at: at(1000 + i64::from(id)),
        last_used_at: at(i64::from(id)),
        from: Some(ip("2001:db8::7")),
        agent: Some("curl/8 \u{1f980}".into()),
        ended_at: None,
    }
}

pub fn identity(issuer: &str, subject: &str, user: u64) -> ExternalIdentity {
    ExternalIdentity {
        issuer: issuer.into(),
        subject: subject.into(),
        user: UserId(user),
        email: Some("Ada@Idp.Test".into()),
        linked_at: at(5),
    }
}

pub const ISSUER: &str = "https://idp.test/";

pub fn through(session: Session, subject: &str) -> Session {
    Session { method: SignInMethod::Oidc { issuer: ISSUER.into(), subject: subject.into() }, ..session }
}

pub async fn add(store: &Store, id: u64, address: &str) -> User {
    let user = user(id, address);
    assert!(store.user_add(&user, &noted()).await.unwrap());
    user
}

pub async fn change(store: &Store, id: u64, change: UserChange) -> Option<User> {
    store.user_change(UserId(id), &change, at(9), Some(&note("change"))).await.unwrap().map(|changed| changed.user)
}

pub async fn begin(store: &Store, session: &Session) -> SessionOutcome {
    store.session_begin(session, &note("begin")).await.unwrap()
}

pub async fn link(store: &Store, identity: &ExternalIdentity) -> LinkOutcome {
    store.identity_link(identity, &note("link")).await.unwrap()
}

pub async fn actions(store: &Store) -> Vec<String> {
    store.audit_list_from(1, 10_000).await.unwrap().into_iter().map(|entry| entry.note.action).collect()
}

pub async fn position(store: &Store) -> (Epoch, u64) {
    (store.epoch().await.unwrap(), store.audit_head().await.unwrap().number)
}

/// Checks that `work` changes nothing: neither epoch nor audit log nor the rows of a copy.
pub async fn changes_nothing<T>(store: &Store, work: impl Future<Output = T>) -> T {
    let (before, copied) = (position(store).await, copying::export(store).await);
    let answer = work.await;
    assert_eq!(position(store).await, before);
    assert_eq!(copying::export(store).await, copied);
    answer
}

pub async fn users_are_added_once_and_listed_by_address(store: Store) {
    assert_eq!(store.user_list().await.unwrap(), []);
    let before = store.epoch().await.unwrap();
    let last = add(&store, 1, "Zoe@example.test").await;
    let first = User { password: None, max_hosts: Some(7), role: Role::Admin, ..user(2, "ada@example.test") };
    assert!(store.user_add(&first, &note("add")).await.unwrap());
    assert_eq!(store.user_list().await.unwrap(), [first.clone(), last.clone()]);
    assert_eq!(store.user_fetch_by_email(&email("zoe@EXAMPLE.test")).await.unwrap(), Some(last.clone()));
    assert_eq!(store.user_fetch_by_email(&email("zoe@example.tes")).await.unwrap(), None);
    let told = store.changes_since(before).await.unwrap();
    assert_eq!(told.users, Some(vec![first.clone(), last.clone()]));
    assert!(told.epoch > before && told.sessions.is_empty());

    changes_nothing(&store, async {
        let other = User { id: UserId(3), ..first.clone() };
        assert!(!store.user_add(&other, &note("add")).await.unwrap(), "another user has the address");
        let again = User { role: Role::Member, ..first.clone() };
        assert!(store.user_add(&again, &note("add")).await.unwrap(), "the user was added before");
        let moved = user(2, "eve@example.test");
        assert!(store.user_add(&moved, &note("add")).await.is_err(), "a taken id is never given to another address");
    })
    .await;
    assert_eq!(store.user_list().await.unwrap(), [first, last]);
}

pub async fn racing_users_of_one_address_make_one(store: Store) {
    for round in 0..5 {
        let address = format!("u{round}@example.test");
        let added = race(10, |number| {
            let (store, user) = (Arc::clone(&store), user(round * 10 + number as u64 + 1, &address));
            async move { (user.id, store.user_add(&user, &note("add")).await.unwrap()) }
        })
        .await;
        let won: Vec<_> = added.into_iter().filter(|(_, added)| *added).collect();
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(store.user_fetch_by_email(&email(&address)).await.unwrap().unwrap().id, won[0].0);
    }
    assert_eq!(actions(&store).await, ["add"; 5]);
}

pub async fn a_user_changes_only_where_told_and_turns_the_generation(store: Store) {
    let added = add(&store, 1, "ada@example.test").await;
    let hash = |text: &str| PasswordHash(text.into());
    let now = |user: &User, generation| User { generation, updated_at: at(9), ..user.clone() };
    let course = [
        (UserChange::Role(Role::Admin), now(&User { role: Role::Admin, ..added.clone() }, 3)),
        (UserChange::Disable { keep_hosts: false }, User { disabled: true, ..added.clone() }),
        (UserChange::Enable, added.clone()),
        (UserChange::Password(hash("b")), User { password: Some(hash("b")), ..added.clone() }),
        (UserChange::Rehashed { old: hash("b"), new: hash("c") }, User { password: Some(hash("c")), ..added.clone() }),
        (UserChange::MaxHosts(Some(2)), User { password: Some(hash("c")), max_hosts: Some(2), ..added.clone() }),
        (UserChange::MaxHosts(None), User { password: Some(hash("c")), ..added.clone() }),
    ];
    for ((wanted, expected), generation) in course.into_iter().zip([3, 4, 5, 6, 6, 6, 6]) {
        let before = position(&store).await;
        let expected = User { role: Role::Admin, ..now(&expected, generation) };
        assert_eq!(change(&store, 1, wanted.clone()).await.as_ref(), Some(&expected), "{wanted:?}");
        assert_eq!(store.user_fetch_by_email(&added.email).await.unwrap().as_ref(), Some(&expected));
        assert_eq!(store.changes_since(before.0).await.unwrap().users, Some(vec![expected.clone()]));
        assert_eq!(position(&store).await.1, before.1 + 1);
        // Repeated after an unknown outcome.
        let again = changes_nothing(&store, change(&store, 1, wanted)).await;
        assert_eq!(again, Some(expected));
    }
    changes_nothing(&store, async {
        let rehashed = UserChange::Rehashed { old: hash("b"), new: hash("d") };
        assert_eq!(change(&store, 1, rehashed).await, None, "the password has been replaced meanwhile");
        assert_eq!(change(&store, 2, UserChange::Disable { keep_hosts: false }).await, None);
    })
    .await;
    // A rehash has no actor, so it writes no entry.
    let rehashed = UserChange::Rehashed { old: hash("c"), new: hash("d") };
    let before = position(&store).await;
    assert!(store.user_change(UserId(1), &rehashed, at(10), None).await.unwrap().is_some());
    assert_eq!(store.audit_head().await.unwrap().number, before.1);
    assert!(store.epoch().await.unwrap() > before.0);

    let none = User { password: None, ..user(2, "bob@example.test") };
    assert!(store.user_add(&none, &noted()).await.unwrap());
    let rehashed = UserChange::Rehashed { old: hash("c"), new: hash("d") };
    assert_eq!(
        changes_nothing(&store, change(&store, 2, rehashed)).await,
        None,
        "a user without a password gets none by a rehash"
    );
}

pub async fn a_session_begins_once_and_of_the_user_as_it_is(store: Store) {
    add(&store, 1, "ada@example.test").await;
    add(&store, 2, "bob@example.test").await;
    let first = session(1, 1);
    let before = position(&store).await;
    assert_eq!(begin(&store, &first).await, SessionOutcome::Begun);
    assert_eq!(store.session_list().await.unwrap(), std::slice::from_ref(&first));
    let told = store.changes_since(before.0).await.unwrap();
    assert_eq!((told.sessions, told.users), (vec![first.clone()], None));
    assert_eq!(position(&store).await.1, before.1 + 1);

    changes_nothing(&store, async {
        assert_eq!(begin(&store, &first).await, SessionOutcome::Begun, "repeated");
        let other = Session { token: token("other"), ..first.clone() };
        assert_eq!(begin(&store, &other).await, SessionOutcome::Known);
        for (user, generation) in [(1, 2), (1, 4), (9, 3)] {
            let session = Session { user: UserId(user), generation, ..session(2, 1) };
            assert_eq!(begin(&store, &session).await, SessionOutcome::Refused, "{user} {generation}");
        }
    })
    .await;
    let disabled = change(&store, 1, UserChange::Disable { keep_hosts: false }).await.unwrap();
    changes_nothing(&store, async {
        for generation in [3, disabled.generation] {
            assert_eq!(begin(&store, &Session { generation, ..session(2, 1) }).await, SessionOutcome::Refused);
        }
        assert_eq!(
            begin(&store, &first).await,
            SessionOutcome::Begun,
            "the session began before, and ended with its generation"
        );
    })
    .await;
    assert_eq!(begin(&store, &session(2, 2)).await, SessionOutcome::Begun, "another user's");
    let enabled = change(&store, 1, UserChange::Enable).await.unwrap();
    assert!(enabled.generation > first.generation, "an ended session stays ended");
    assert_eq!(
        begin(&store, &Session { generation: enabled.generation, ..session(3, 1) }).await,
        SessionOutcome::Begun
    );
    let ids: Vec<_> = store.session_list().await.unwrap().into_iter().map(|session| session.id.as_bytes()[0]).collect();
    assert_eq!(ids, [3, 2, 1], "newest first");
}

pub async fn racing_sign_ins_of_one_id_begin_one_session(store: Store) {
    add(&store, 1, "ada@example.test").await;
    let begun = race(12, |number| {
        let store = Arc::clone(&store);
        let session = Session { token: token(&(number % 3).to_string()), ..session(1, 1) };
        async move { (session.token, begin(&store, &session).await) }
    })
    .await;
    let kept = store.session_list().await.unwrap().remove(0);
    for (token, answer) in begun {
        assert_eq!(answer, if token == kept.token { SessionOutcome::Begun } else { SessionOutcome::Known });
    }
    assert_eq!(actions(&store).await[1..], ["begin"]);
}

/// In either order: after the entry of the change that ends a generation, there is no entry of a session of that
/// generation.
pub async fn no_session_begins_of_a_generation_that_is_over(store: Store) {
    let mut outcomes = [0, 0];
    for round in 0..30_u64 {
        let added = add(&store, round + 1, &format!("u{round}@example.test")).await;
        assert_eq!(link(&store, &identity(ISSUER, &round.to_string(), added.id.0)).await, LinkOutcome::Linked);
        let answers = race(4, |number| {
            let store = Arc::clone(&store);
            async move {
                let id = Uuid::from_u128(u128::from(round) * 10 + number as u128);
                let of = |action: &str| note(action).on(round);
                let session = Session { id, ..session(1, round + 1) };
                let session = if number == 1 { through(session, &round.to_string()) } else { session };
                match (number, round % 3) {
                    (0 | 1, _) => Some(store.session_begin(&session, &of("begin")).await.unwrap()),
                    (3, _) => None,
                    (_, 0) => {
                        let disabled = UserChange::Disable { keep_hosts: false };
                        store.user_change(added.id, &disabled, at(9), Some(&of("turn"))).await.unwrap().unwrap();
                        None
                    }
                    (_, 1) => {
                        let password = UserChange::Password(PasswordHash("b".into()));
                        store.user_change(added.id, &password, at(9), Some(&of("turn"))).await.unwrap().unwrap();
                        None
                    }
                    _ => {
                        let unlinked = store.identity_unlink(ISSUER, &round.to_string(), at(9), &of("turn")).await;
                        unlinked.unwrap().unwrap();
                        None
                    }
                }
            }
        })
        .await;
        let begun = answers.iter().filter(|answer| **answer == Some(SessionOutcome::Begun)).count();
        outcomes[usize::from(begun > 0)] += 1;
        let entries = store.audit_list_from(1, 10_000).await.unwrap();
        let ours = entries.into_iter().filter(|entry| entry.note.target.as_deref() == Some(&round.to_string()));
        let ours: Vec<_> = ours.map(|entry| entry.note.action).filter(|action| action != "link").collect();
        assert_eq!(ours.len(), begun + 1, "{ours:?}");
        assert_eq!(ours.last().map(String::as_str), Some("turn"), "{ours:?}");
        let user = store.user_fetch_by_email(&added.email).await.unwrap().unwrap();
        assert_eq!(user.generation, 4);
    }
    println!("turned first: {}, begun first: {}", outcomes[0], outcomes[1]);
}

pub async fn a_session_through_a_provider_needs_its_identity(store: Store) {
    add(&store, 1, "ada@example.test").await;
    add(&store, 2, "bob@example.test").await;
    link(&store, &identity(ISSUER, "bob", 2)).await;
    changes_nothing(&store, async {
        assert_eq!(
            begin(&store, &through(session(1, 1), "ada")).await,
            SessionOutcome::Refused,
            "the identity was never linked"
        );
        assert_eq!(
            begin(&store, &through(session(1, 1), "bob")).await,
            SessionOutcome::Refused,
            "the identity is another user's"
        );
    })
    .await;
    link(&store, &identity(ISSUER, "ada", 1)).await;
    let begun = through(session(1, 1), "ada");
    assert_eq!(begin(&store, &begun).await, SessionOutcome::Begun);
    assert_eq!(store.session_list().await.unwrap(), [begun]);
    let before = position(&store).await;
    let unlinked = store.identity_unlink(ISSUER, "ada", at(9), &note("unlink")).await.unwrap();
    let (unlinked, user) = unlinked.unwrap();
    assert_eq!((unlinked, user.generation), (identity(ISSUER, "ada", 1), 4));
    let told = store.changes_since(before.0).await.unwrap().users.unwrap();
    let generations: Vec<_> = told.iter().map(|user| (user.generation, user.updated_at)).collect();
    assert_eq!(generations, [(4, at(9)), (3, at(0))], "the sessions of the user have ended");
    changes_nothing(&store, async {
        let now = Session { generation: 4, ..through(session(2, 1), "ada") };
        assert_eq!(
            begin(&store, &now).await,
            SessionOutcome::Refused,
            "the sign-in was decided before the identity was unlinked"
        );
        assert_eq!(store.identity_unlink(ISSUER, "ada", at(10), &note("unlink")).await.unwrap(), None);
    })
    .await;
    assert_eq!(actions(&store).await[2..], ["link", "link", "begin", "unlink"]);
}

pub async fn a_session_ends_once(store: Store) {
    add(&store, 1, "ada@example.test").await;
    for id in [1, 2] {
        begin(&store, &session(id, 1)).await;
    }
    let before = store.epoch().await.unwrap();
    let ended = race(10, |number| {
        let store = Arc::clone(&store);
        let id = session(1, 1).id;
        async move { store.session_end(id, at(50 + number as i64), &note("end")).await.unwrap() }
    })
    .await;
    let ended: Vec<_> = ended.into_iter().flatten().collect();
    assert_eq!(ended.len(), 1, "{ended:?}");
    let expected = Session { ended_at: ended[0].ended_at, ..session(1, 1) };
    assert!(ended[0].ended_at >= Some(at(50)));
    assert_eq!(ended, std::slice::from_ref(&expected));
    assert_eq!(store.session_list().await.unwrap(), [session(2, 1), expected.clone()]);
    assert_eq!(store.changes_since(before).await.unwrap().sessions, std::slice::from_ref(&expected));
    changes_nothing(&store, async {
        assert_eq!(store.session_end(Uuid::new_v4(), at(50), &note("end")).await.unwrap(), None);
        assert_eq!(
            begin(&store, &session(1, 1)).await,
            SessionOutcome::Begun,
            "the session began before, and stays ended"
        );
    })
    .await;
    assert_eq!(actions(&store).await[1..], ["begin", "begin", "end"]);
}

pub async fn when_a_session_was_used_is_kept_and_told_to_nobody(store: Store) {
    add(&store, 1, "ada@example.test").await;
    let many: Vec<_> = (0..600).map(|number| Session { id: Uuid::from_u128(1000 + number), ..session(9, 1) }).collect();
    for session in [session(1, 1), session(2, 1), session(3, 1)].iter().chain(&many) {
        begin(&store, session).await;
    }
    store.session_end(session(3, 1).id, at(4), &noted()).await.unwrap();
    let before = position(&store).await;
    let id = |number: u8| session(number, 1).id;
    store.session_touch(&[]).await.unwrap();
    store
        .session_touch(&[
            (id(1), at(100)),
            (id(1), at(101)),
            (id(1), at(99)),
            (id(2), at(1)),
            (Uuid::new_v4(), at(500)),
        ])
        .await
        .unwrap();
    store.session_touch(&many.iter().map(|session| (session.id, at(200))).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(position(&store).await, before);
    assert!(store.changes_since(before.0).await.unwrap().sessions.is_empty());
    let known = store.session_list().await.unwrap();
    let used = |session: &Session| known.iter().find(|known| known.id == session.id).unwrap().last_used_at;
    assert_eq!(
        [1, 2, 3].map(|number| used(&session(number, 1))),
        [at(101), at(2), at(3)],
        "only a later time is stored"
    );
    assert!(many.iter().all(|session| used(session) == at(200)));
    // A change for another reason also reports the time of use.
    store.session_end(id(1), at(300), &noted()).await.unwrap();
    let told = store.changes_since(before.0).await.unwrap().sessions;
    assert_eq!(told, [Session { last_used_at: at(101), ended_at: Some(at(300)), ..session(1, 1) }]);
}

pub async fn sessions_that_are_over_are_forgotten(store: Store) {
    add(&store, 1, "ada@example.test").await;
    for id in 1..=4 {
        begin(&store, &session(id, 1)).await;
    }
    store.session_end(session(1, 1).id, at(49), &noted()).await.unwrap();
    store.session_end(session(2, 1).id, at(50), &noted()).await.unwrap();
    let before = position(&store).await;
    assert_eq!(changes_nothing(&store, store.session_purge(at(49))).await.unwrap(), 0);
    assert_eq!(store.session_purge(at(50)).await.unwrap(), 1);
    assert_eq!(store.session_purge(at(1004)).await.unwrap(), 2, "one ended session, and one expired session");
    assert_eq!(store.session_list().await.unwrap(), [session(4, 1)]);
    assert_eq!(position(&store).await, before);
    let told = store.changes_since(Epoch(0)).await.unwrap().sessions;
    assert_eq!(told, [session(4, 1)]);
    assert_eq!(store.session_end(session(1, 1).id, at(60), &noted()).await.unwrap(), None);
    assert_eq!(begin(&store, &session(1, 1)).await, SessionOutcome::Begun, "the id of a purged session counts as new");
}

pub async fn only_what_changed_of_people_is_told(store: Store) {
    let ada = add(&store, 1, "ada@example.test").await;
    begin(&store, &session(1, 1)).await;
    begin(&store, &session(2, 1)).await;
    let all = store.changes_since(Epoch(0)).await.unwrap();
    assert_eq!((all.users, all.sessions), (Some(vec![ada]), vec![session(1, 1), session(2, 1)]));
    let none = store.changes_since(all.epoch).await.unwrap();
    assert_eq!((none.users, none.sessions, none.epoch), (None, vec![], all.epoch));
    store.host_register(&registration(1, "h1.test", "a"), &noted()).await.unwrap();
    let other = store.changes_since(all.epoch).await.unwrap();
    assert_eq!((other.users, other.sessions, other.hosts.len()), (None, vec![], 1));
    let disabled = change(&store, 1, UserChange::Disable { keep_hosts: false }).await.unwrap();
    let told = store.changes_since(other.epoch).await.unwrap();
    assert_eq!((told.users, told.sessions), (Some(vec![disabled]), vec![]), "the user's sessions need no row");
    store.session_end(session(1, 1).id, at(9), &noted()).await.unwrap();
    let ended = store.changes_since(told.epoch).await.unwrap();
    let told: Vec<_> = ended.sessions.iter().map(|session| (session.id.as_bytes()[0], session.ended_at)).collect();
    assert_eq!((ended.users, told), (None, vec![(1, Some(at(9)))]));
}

/// Each sign-in is one session and one entry. A copy with unequal numbers of them has seen half a change.
pub async fn a_session_is_noted_in_the_transaction_that_begins_it(store: Store) {
    add(&store, 1, "ada@example.test").await;
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for number in 0..150 {
                let session = Session { id: Uuid::from_u128(number), ..session(1, 1) };
                assert_eq!(begin(&store, &session).await, SessionOutcome::Begun);
            }
        }
    });
    while !writing.is_finished() {
        let rows = copying::export(&store).await;
        let of = |table| rows.iter().filter(|row| row.table() == table).count();
        assert_eq!(of(copy::Table::Sessions) + 1, of(copy::Table::AuditLog));
    }
    writing.await.unwrap();
}
