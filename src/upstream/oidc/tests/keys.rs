//! Tests of keys: which are accepted, how long they are cached, and how often they are fetched.

use futures_util::future::join_all;

use super::*;

fn kid(world: &World, kid: Option<&'static str>) {
    world.provider.set().header = Some(Box::new(move |header| {
        match kid {
            Some(kid) => header.insert("kid".into(), kid.into()),
            None => header.remove("kid"),
        };
    }));
}

#[tokio::test]
async fn a_token_that_names_no_key_is_taken_only_where_there_is_one() {
    let world = World::new();
    kid(&world, None);
    world.assert_is_ada(&world.sign_in().await);
    let second = hostile::signing::RsaKey::new("second").public();
    world.provider.set().keys = Some(Box::new(move |keys| keys.push(second.clone())));
    world.client.look_after_keys().await;
    assert_eq!(world.sign_in().await, Err(SignInRefusal::UnknownKey));
    kid(&world, Some("first"));
    world.assert_is_ada(&world.sign_in().await);
    kid(&world, Some("second"));
    assert_eq!(world.sign_in().await, Err(SignInRefusal::Signature), "the other key did not sign it");
    assert_eq!(world.provider.count(KEYS), 2);
}

#[tokio::test]
async fn two_keys_of_one_name_are_none() {
    let world = World::new();
    let second = hostile::signing::RsaKey::new("first").public();
    world.provider.set().keys = Some(Box::new(move |keys| keys.insert(0, second.clone())));
    assert_eq!(world.sign_in().await, Err(SignInRefusal::UnknownKey));
}

#[tokio::test]
async fn a_flood_of_unknown_keys_makes_one_request() {
    let world = World::new();
    world.assert_is_ada(&world.sign_in().await);
    assert_eq!(world.provider.count(KEYS), 1);
    kid(&world, Some("nobody-knows-it"));
    let outcomes = join_all((0..100).map(|_| world.sign_in())).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Err(SignInRefusal::UnknownKey)), "{outcomes:?}");
    assert_eq!(world.provider.count(KEYS), 2);
    assert_eq!(world.sign_in().await, Err(SignInRefusal::UnknownKey));
    assert_eq!(world.provider.count(KEYS), 2);
    // A sign-in with a known key is not delayed.
    kid(&world, Some("first"));
    world.assert_is_ada(&world.sign_in().await);
}

#[tokio::test]
async fn after_a_while_an_unknown_key_is_looked_for_again() {
    let limits = HttpLimits { between_rereads: Duration::from_millis(300), ..LIMITS };
    let world = World::with(limits, |_| ());
    kid(&world, Some("not-yet"));
    assert_eq!(world.sign_in().await, Err(SignInRefusal::UnknownKey));
    assert_eq!(world.provider.count(KEYS), 2);
    world.provider.rotate("not-yet");
    let begun = std::time::Instant::now();
    while world.sign_in().await != Ok(world.sign_in_as_ada()) {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(world.provider.count(KEYS), 3);
}

impl World {
    fn sign_in_as_ada(&self) -> Identity {
        Identity {
            issuer: self.provider.issuer(),
            subject: "ada-of-the-provider".into(),
            email: Some("ada@example.test".into()),
        }
    }
}

#[tokio::test]
async fn a_key_that_was_changed_loses_no_sign_in_and_costs_one_request() {
    let world = World::new();
    world.assert_is_ada(&world.sign_in().await);
    world.provider.rotate("second");
    let outcomes = join_all((0..20).map(|_| world.sign_in())).await;
    for outcome in &outcomes {
        world.assert_is_ada(outcome);
    }
    assert_eq!(world.provider.count(KEYS), 2);
}

#[tokio::test]
async fn those_who_come_first_share_one_document_and_one_set_of_keys() {
    let world = World::new();
    for outcome in join_all((0..50).map(|_| world.sign_in())).await {
        world.assert_is_ada(&outcome);
    }
    assert_eq!((world.provider.count(DISCOVERY), world.provider.count(KEYS)), (1, 1));
}

#[tokio::test]
async fn those_who_wait_share_a_failure_too() {
    let world = World::new();
    world.provider.fault(DISCOVERY, Fault::Silent);
    let outcomes = join_all((0..50).map(|_| world.client.begin())).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(SignInRefusal::Unavailable))));
    assert_eq!(world.provider.count(DISCOVERY), 1);
}

#[tokio::test]
async fn a_browser_that_goes_away_takes_no_keys_from_the_others() {
    let world = World::new();
    world.assert_is_ada(&world.sign_in().await);
    world.provider.rotate("second");
    world.provider.fault(KEYS, Fault::Silent);
    let (url, flow) = world.client.begin().await.unwrap();
    let answer = world.visit(&url).await;
    tokio::select! {
        _ = world.client.finish(&flow, &answer) => panic!("it waits for the keys"),
        () = async { while world.provider.count(KEYS) < 2 { tokio::task::yield_now().await } } => {}
    }
    world.provider.mend(KEYS);
    world.assert_is_ada(&world.sign_in().await);
    assert_eq!(world.provider.count(KEYS), 2);
}

#[tokio::test]
async fn keys_that_are_kept_outlive_the_provider_until_they_are_too_old() {
    let world = World::with(LIMITS, |settings| settings.keys_ttl = Duration::from_secs(4));
    let begun = std::time::Instant::now();
    world.assert_is_ada(&world.sign_in().await);
    world.provider.fault(KEYS, Fault::Gone);
    world.client.look_after_keys().await;
    assert_eq!(world.provider.count(KEYS), 2);
    world.assert_is_ada(&world.sign_in().await);
    assert!(begun.elapsed() < Duration::from_secs(4), "the machine is too slow for this test");
    let outcome = loop {
        let outcome = world.sign_in().await;
        if outcome.is_err() {
            break outcome;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "they are never too old");
    };
    assert_eq!(outcome, Err(SignInRefusal::Unavailable));
    assert!(begun.elapsed() >= Duration::from_secs(4));
    world.provider.mend(KEYS);
    world.assert_is_ada(&world.sign_in().await);
}

#[tokio::test]
async fn a_document_that_is_kept_outlives_the_provider_until_it_is_too_old() {
    let world = World::with(LIMITS, |settings| settings.keys_ttl = Duration::from_secs(2));
    assert!(world.client.begin().await.is_ok());
    let begun = std::time::Instant::now();
    world.provider.fault(DISCOVERY, Fault::Gone);
    while world.client.begin().await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is never too old");
        tokio::task::yield_now().await;
    }
    assert!(world.provider.count(DISCOVERY) == 2 && begun.elapsed() > Duration::from_secs(1));
    world.provider.mend(DISCOVERY);
    world.assert_is_ada(&world.sign_in().await);
}

#[tokio::test]
async fn an_unknown_key_while_the_keys_cannot_be_read_is_nobodys_fault() {
    let world = World::new();
    world.assert_is_ada(&world.sign_in().await);
    world.provider.fault(KEYS, Fault::Status(500));
    world.provider.rotate("second");
    for _ in 0..3 {
        assert_eq!(world.sign_in().await, Err(SignInRefusal::Unavailable));
    }
    assert_eq!(world.provider.count(KEYS), 2);
}

#[tokio::test]
async fn the_background_discovers_renews_and_drops_what_is_gone() {
    let world = World::with(LIMITS, |settings| settings.keys_refresh = Duration::from_secs(1800));
    world.provider.fault(DISCOVERY, Fault::Gone);
    world.client.look_after_keys().await;
    world.provider.mend(DISCOVERY);
    world.client.look_after_keys().await;
    assert_eq!((world.provider.count(DISCOVERY), world.provider.count(KEYS)), (2, 1));
    world.assert_is_ada(&world.sign_in().await);
    assert_eq!((world.provider.count(DISCOVERY), world.provider.count(KEYS)), (2, 1), "it was all there");
    let key = world.provider.key();
    world.provider.rotate("second");
    world.client.look_after_keys().await;
    assert_eq!(world.provider.count(KEYS), 2);
    // The provider withdrew the first key: a thief of that key must not get in.
    world.provider.set().sign_with(&key);
    let fresh = hostile::signing::RsaKey::new("second").public();
    world.provider.set().keys = Some(Box::new(move |keys| *keys = vec![fresh.clone()]));
    assert_eq!(world.sign_in().await, Err(SignInRefusal::UnknownKey));
}

#[tokio::test]
async fn keys_for_something_else_are_not_used() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 12] = [
        ("use: enc", |key| key["use"] = "enc".into()),
        ("use: no text", |key| key["use"] = json!(["sig"])),
        ("alg of another", |key| key["alg"] = "RS512".into()),
        ("alg PS256", |key| key["alg"] = "PS256".into()),
        ("alg of encryption", |key| key["alg"] = "RSA-OAEP".into()),
        ("key_ops: sign", |key| key["key_ops"] = json!(["sign"])),
        ("kty", |key| key["kty"] = "EC".into()),
        ("a private part", |key| key["d"] = "AQAB".into()),
        ("a prime", |key| key["p"] = "AQAB".into()),
        ("exponent 1", |key| key["e"] = "AQ".into()),
        ("an even exponent", |key| key["e"] = "AQAA".into()),
        ("no modulus", |key| drop(key.as_object_mut().unwrap().remove("n"))),
    ];
    let good = hostile::signing::RsaKey::new("good").public();
    for (what, change) in changes {
        let (world, good) = (World::new(), good.clone());
        world.provider.set().keys = Some(Box::new(move |keys| {
            change(&mut keys[0]);
            keys.push(good.clone());
        }));
        assert_eq!(world.sign_in().await, Err(SignInRefusal::UnknownKey), "{what}");
        // If it is the only key of the set, the set counts as unusable.
        let world = World::new();
        world.provider.set().keys = Some(Box::new(move |keys| change(&mut keys[0])));
        let expected = if what == "alg of another" { SignInRefusal::UnknownKey } else { SignInRefusal::Unavailable };
        assert_eq!(world.sign_in().await, Err(expected), "{what}, alone");
    }
}

#[tokio::test]
async fn short_keys_are_not_used() {
    let good = hostile::signing::RsaKey::new("good").public();
    for (bits, is_good) in [(1024, false), (2047, false), (2048, true), (4096, true)] {
        let (pem, public) = hostile::signing::short(bits, "first");
        let (world, good) = (World::new(), good.clone());
        world.provider.set().signing = Signing::Short(pem);
        world.provider.set().keys = Some(Box::new(move |keys| *keys = vec![public.clone(), good.clone()]));
        let outcome = world.sign_in().await;
        if is_good {
            world.assert_is_ada(&outcome);
        } else {
            assert_eq!(outcome, Err(SignInRefusal::UnknownKey), "{bits} bits");
        }
    }
}

#[tokio::test]
async fn what_is_no_key_is_left_out_of_the_set() {
    let world = World::new();
    world.provider.set().keys = Some(Box::new(|keys| {
        keys.insert(0, json!(7));
        keys.insert(0, json!({}));
        keys.insert(0, json!({ "kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB", "kid": "first" }));
        keys.insert(0, json!({ "kty": "oct", "k": "AQAB", "kid": "first" }));
    }));
    world.assert_is_ada(&world.sign_in().await);
}
