//! Tests of ID tokens that must be refused, each with its reason.

use super::*;

async fn assert_refused(world: &World, refusal: SignInRefusal, what: &str) {
    assert_eq!(world.sign_in().await, Err(refusal), "{what}");
}

#[tokio::test]
async fn the_three_algorithms_are_taken_and_no_other() {
    let world = World::new();
    world.provider.set().keys = Some(Box::new(|keys| {
        keys[0].as_object_mut().unwrap().remove("alg");
    }));
    for signing in [Signing::Rs256, Signing::Rs384, Signing::Rs512] {
        world.provider.set().signing = signing;
        world.assert_is_ada(&world.sign_in().await);
    }
    let mut bad = vec![Signing::None, Signing::Es256, Signing::Ps256, Signing::Hs256(SECRET.into())];
    bad.extend(world.provider.key().spellings().into_iter().map(Signing::Hs256));
    let requests = world.provider.count(KEYS);
    // The key is unknown, and no fetch is made.
    world.provider.set().header = Some(Box::new(|header| {
        header.insert("kid".into(), "unknown".into());
    }));
    for signing in bad {
        world.provider.set().signing = signing;
        assert_refused(&world, SignInRefusal::Algorithm, "before any key").await;
    }
    assert_eq!(world.provider.count(KEYS), requests, "no key is asked for");
}

#[tokio::test]
async fn an_algorithm_is_spelled_as_it_is() {
    let world = World::new();
    for alg in ["none", "None", "NONE", "nOnE", "rs256", "RS256 ", "", "HS256", "RSA-OAEP", "A128GCM", "\u{0}"] {
        world.provider.set().header = Some(Box::new(move |header| {
            header.insert("alg".into(), alg.into());
        }));
        assert_refused(&world, SignInRefusal::Algorithm, alg).await;
    }
    for alg in [Value::Null, json!(256), json!(["RS256"])] {
        world.provider.set().header = Some(Box::new(move |header| {
            header.insert("alg".into(), alg.clone());
        }));
        assert_refused(&world, SignInRefusal::TokenUnreadable, "no text").await;
    }
}

#[tokio::test]
async fn a_header_that_asks_for_more_is_refused() {
    let world = World::new();
    for (name, value) in
        [("crit", json!(["exp"])), ("typ", json!("at+jwt")), ("typ", json!("logout+jwt")), ("cty", json!("JWT"))]
    {
        world.provider.set().header = Some(Box::new(move |header| {
            header.insert(name.into(), value.clone());
        }));
        assert_refused(&world, SignInRefusal::TokenUnreadable, name).await;
    }
    // A key inside the token is ignored.
    let brought = hostile::signing::RsaKey::new("first").public();
    world.provider.set().header = Some(Box::new(move |header| {
        header.insert("jwk".into(), brought.clone());
        header.insert("jku".into(), "https://evil.test/keys".into());
    }));
    world.assert_is_ada(&world.sign_in().await);
    world.provider.set().signing = Signing::Foreign;
    assert_refused(&world, SignInRefusal::Signature, "jwk").await;
}

#[tokio::test]
async fn a_signature_is_of_this_key_and_of_these_claims() {
    let world = World::new();
    for signing in [Signing::Foreign, Signing::Turned, Signing::OtherClaims] {
        world.provider.set().signing = signing;
        assert_refused(&world, SignInRefusal::Signature, "signature").await;
    }
}

#[tokio::test]
async fn a_token_is_of_this_sign_in() {
    let world = World::new();
    for nonce in [None, Some(json!("")), Some(json!("another"))] {
        world.claim("nonce", nonce);
        assert_refused(&world, SignInRefusal::Nonce, "nonce").await;
    }
    world.claim("nonce", Some(json!(7)));
    assert_refused(&world, SignInRefusal::TokenUnreadable, "a number").await;
}

#[tokio::test]
async fn a_token_is_of_this_issuer_to_the_letter() {
    let world = World::new();
    let issuer = world.provider.issuer();
    for iss in [
        json!("https://evil.test"),
        json!(format!("{issuer}/")),
        json!(issuer.to_uppercase()),
        json!(format!("{issuer}#")),
    ] {
        world.claim("iss", Some(iss.clone()));
        assert_refused(&world, SignInRefusal::IssuerOfToken, &iss.to_string()).await;
    }
    for iss in [None, Some(json!(null)), Some(json!(["a"]))] {
        world.claim("iss", iss);
        assert_refused(&world, SignInRefusal::IssuerOfToken, "none").await;
    }
}

#[tokio::test]
async fn a_token_is_for_this_client_alone() {
    let world = World::new();
    world.claim("aud", Some(json!([CLIENT])));
    world.assert_is_ada(&world.sign_in().await);
    for aud in [
        None,
        Some(json!([])),
        Some(json!("")),
        Some(json!("another")),
        Some(json!(["another"])),
        Some(json!([CLIENT, "another"])),
        Some(json!(["another", CLIENT])),
        Some(json!("Canary")),
        Some(json!("canary ")),
    ] {
        world.claim("aud", aud.clone());
        assert_refused(&world, SignInRefusal::Audience, &format!("{aud:?}")).await;
    }
    world.provider.set().claims = Some(Box::new(|claims| {
        claims.insert("aud".into(), json!([CLIENT, "another"]));
        claims.insert("azp".into(), CLIENT.into());
    }));
    assert_refused(&world, SignInRefusal::Audience, "others are not trusted").await;
}

#[tokio::test]
async fn other_audiences_are_allowed_by_configuration_and_with_our_azp_only() {
    let world = World::with(LIMITS, |settings| settings.trusted_audiences = vec!["api".into(), "portal".into()]);
    let claim = |aud: serde_json::Value, azp: Option<&'static str>| {
        world.provider.set().claims = Some(Box::new(move |claims| {
            claims.insert("aud".into(), aud.clone());
            if let Some(azp) = azp {
                claims.insert("azp".into(), azp.into());
            }
        }));
    };
    for aud in [json!([CLIENT, "api"]), json!(["portal", CLIENT, "api"])] {
        claim(aud, Some(CLIENT));
        world.assert_is_ada(&world.sign_in().await);
    }
    for (aud, azp, refusal) in [
        (json!([CLIENT, "api"]), None, SignInRefusal::AuthorizedParty),
        (json!([CLIENT, "api"]), Some("api"), SignInRefusal::AuthorizedParty),
        (json!([CLIENT, "another"]), Some(CLIENT), SignInRefusal::Audience),
        (json!([CLIENT, "api", "another"]), Some(CLIENT), SignInRefusal::Audience),
        (json!(["api"]), Some(CLIENT), SignInRefusal::Audience),
        (json!("api"), Some(CLIENT), SignInRefusal::Audience),
    ] {
        claim(aud.clone(), azp);
        assert_refused(&world, refusal, &format!("{aud} {azp:?}")).await;
    }
}

#[tokio::test]
async fn a_token_was_made_for_this_client() {
    let world = World::new();
    world.claim("azp", Some(json!(CLIENT)));
    world.assert_is_ada(&world.sign_in().await);
    for azp in ["another", "", "Canary"] {
        world.claim("azp", Some(json!(azp)));
        assert_refused(&world, SignInRefusal::AuthorizedParty, azp).await;
    }
    world.claim("aud", Some(json!([CLIENT, CLIENT])));
    assert_refused(&world, SignInRefusal::AuthorizedParty, "two audiences, and not said which asked").await;
}

#[tokio::test]
async fn a_token_is_of_now() {
    let world = World::new();
    let now = hostile::now();
    for (name, value, refusal) in [
        ("exp", now - 1, SignInRefusal::Expired),
        ("exp", 0, SignInRefusal::Expired),
        ("exp", -1, SignInRefusal::Expired),
        ("iat", now + 90, SignInRefusal::IssuedInFuture),
        ("iat", now - 630, SignInRefusal::IssuedTooLongAgo),
        ("iat", 0, SignInRefusal::IssuedTooLongAgo),
        ("nbf", now + 90, SignInRefusal::NotYetValid),
    ] {
        world.claim(name, Some(json!(value)));
        assert_refused(&world, refusal, &format!("{name} {value}")).await;
    }
    for (name, value) in [("iat", now + 45), ("iat", now - 570), ("nbf", now + 45), ("nbf", now - 3600)] {
        world.claim(name, Some(json!(value)));
        world.assert_is_ada(&world.sign_in().await);
    }
    for name in ["exp", "iat"] {
        for value in [None, Some(json!("soon")), Some(json!(1e300)), Some(json!(i64::MAX)), Some(json!([]))] {
            world.claim(name, value.clone());
            assert_refused(&world, SignInRefusal::TokenUnreadable, &format!("{name} {value:?}")).await;
        }
    }
    world.claim("nbf", Some(json!(1e300)));
    assert_refused(&world, SignInRefusal::NotYetValid, "never").await;
    world.claim("nbf", Some(json!("now")));
    assert_refused(&world, SignInRefusal::TokenUnreadable, "no number").await;
}

#[tokio::test]
async fn a_clock_that_is_wrong_refuses_and_does_not_let_in() {
    let world = World::new();
    world.assert_is_ada(&world.sign_in().await);
    for (hours, refusal) in [
        (1, SignInRefusal::Expired),
        (24 * 365 * 50, SignInRefusal::Expired),
        (-1, SignInRefusal::IssuedInFuture),
        (-24 * 365 * 90, SignInRefusal::IssuedInFuture),
    ] {
        world.clock.set_ahead(time::Duration::hours(hours));
        assert_refused(&world, refusal, &format!("{hours} h")).await;
    }
    world.clock.set_ahead(time::Duration::ZERO);
    world.assert_is_ada(&world.sign_in().await);
    assert_eq!(world.provider.count(KEYS), 1, "keys age by another clock");
}

#[tokio::test]
async fn who_it_is_is_said_plainly() {
    let world = World::new();
    for subject in ["a".to_owned(), "a".repeat(255), "Ada|é".to_owned()] {
        world.claim("sub", Some(json!(subject)));
        assert_eq!(world.sign_in().await.unwrap().subject, subject);
    }
    for (subject, refusal) in [
        (None, SignInRefusal::SubjectMissing),
        (Some(json!(null)), SignInRefusal::SubjectMissing),
        (Some(json!("")), SignInRefusal::SubjectMissing),
        (Some(json!(7)), SignInRefusal::SubjectMissing),
        (Some(json!("a".repeat(256))), SignInRefusal::SubjectUnfit),
        (Some(json!("é".repeat(128))), SignInRefusal::SubjectUnfit),
        (Some(json!("a\nb")), SignInRefusal::SubjectUnfit),
    ] {
        world.claim("sub", subject.clone());
        assert_refused(&world, refusal, &format!("{subject:?}")).await;
    }
}

#[tokio::test]
async fn an_address_is_taken_where_it_is_one_and_vouched_for() {
    let world = World::new();
    for (email, verified, expected) in [
        (Some(json!("ada@example.test")), Some(json!(true)), Some("ada@example.test")),
        (Some(json!("ada@example.test")), Some(json!("true")), Some("ada@example.test")),
        (Some(json!("ada@example.test")), None, Some("ada@example.test")),
        (Some(json!("ada@example.test")), Some(json!(false)), None),
        (Some(json!("ada@example.test")), Some(json!("false")), None),
        (Some(json!("<script>@example.test")), Some(json!(true)), None),
        (Some(json!("ada@example.test\n")), Some(json!(true)), Some("ada@example.test")),
        (Some(json!(format!("{}@b", "a".repeat(300)))), Some(json!(true)), None),
        (None, Some(json!(true)), None),
    ] {
        let what = format!("{email:?} {verified:?}");
        world.provider.set().claims = Some(Box::new(move |claims| {
            for (name, value) in [("email", &email), ("email_verified", &verified)] {
                match value {
                    Some(value) => claims.insert(name.into(), value.clone()),
                    None => claims.remove(name),
                };
            }
        }));
        assert_eq!(world.sign_in().await.unwrap().email.as_deref(), expected, "{what}");
    }
}

#[tokio::test]
async fn a_token_that_is_missing_or_in_pieces_is_refused() {
    let world = World::new();
    world.provider.set().answer = Some(Box::new(|answer| {
        answer.as_object_mut().unwrap().remove("id_token");
    }));
    assert_refused(&world, SignInRefusal::TokenMissing, "no token").await;
    let cuts: [fn(&str) -> Value; 8] = [
        |_| json!(""),
        |_| json!("..."),
        |_| json!(7),
        |token| json!(token.rsplit_once('.').unwrap().0),
        |token| json!(format!("{token}.")),
        |token| json!(format!("{token}.a.b")),
        |token| json!(token.replacen('.', ".!", 1)),
        |token| json!(token.replacen('.', ".bm8gSlNPTg", 1)),
    ];
    for (position, cut) in cuts.into_iter().enumerate() {
        world.provider.set().answer = Some(Box::new(move |answer| {
            answer["id_token"] = cut(answer["id_token"].as_str().unwrap());
        }));
        assert_refused(&world, SignInRefusal::TokenUnreadable, &format!("cut {position}")).await;
    }
    // An empty signature is refused.
    world.provider.set().answer = Some(Box::new(|answer| {
        answer["id_token"] = json!(answer["id_token"].as_str().unwrap().rsplit_once('.').unwrap().0.to_owned() + ".");
    }));
    assert_refused(&world, SignInRefusal::Signature, "no signature").await;
}
