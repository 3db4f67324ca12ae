//! Tests of the browser's parameters, of the discovery document, and of invalid answers.

use super::*;

#[tokio::test]
async fn a_state_that_is_missing_or_anothers_is_refused_before_the_provider_is_asked() {
    let world = World::new();
    let (url, flow) = world.client.begin().await.unwrap();
    let (_, other) = world.client.begin().await.unwrap();
    for (state, refusal) in [
        (None, SignInRefusal::StateMissing),
        (Some(String::new()), SignInRefusal::StateForeign),
        (Some(other.state.clone()), SignInRefusal::StateForeign),
        (Some(format!("{}A", flow.state)), SignInRefusal::StateForeign),
        (Some(flow.state[..42].to_owned()), SignInRefusal::StateForeign),
        (Some(flow.state.to_lowercase()), SignInRefusal::StateForeign),
    ] {
        let answer = ProviderAnswer { state: state.map(Secret::new), ..world.visit(&url).await };
        assert_eq!(world.client.finish(&flow, &answer).await, Err(refusal));
    }
    assert_eq!(world.provider.count(TOKEN), 0);
}

#[tokio::test]
async fn an_answer_of_another_issuer_is_refused_before_the_code_goes_anywhere() {
    let world = World::new();
    let (url, flow) = world.client.begin().await.unwrap();
    let issuer = world.provider.issuer();
    for iss in [None, Some(String::new()), Some("https://evil.test".into()), Some(format!("{issuer}/"))] {
        let answer = ProviderAnswer { iss, ..world.visit(&url).await };
        assert_eq!(world.client.finish(&flow, &answer).await, Err(SignInRefusal::IssuerOfResponse));
        // Also with an error of the provider.
        let answer = ProviderAnswer { error: Some("access_denied".into()), code: None, ..answer };
        assert_eq!(world.client.finish(&flow, &answer).await, Err(SignInRefusal::IssuerOfResponse));
    }
    assert_eq!(world.provider.count(TOKEN), 0);
}

#[tokio::test]
async fn a_provider_that_does_not_name_itself_need_not_but_may_not_lie() {
    let world = World::new();
    world.provider.set().document = Some(Box::new(|document| {
        document.as_object_mut().unwrap().remove("authorization_response_iss_parameter_supported");
    }));
    world.provider.set().response = Some(Box::new(|response| response.retain(|(name, _)| name != "iss")));
    world.assert_is_ada(&world.sign_in().await);
    world.provider.set().response = Some(Box::new(|response| response[1].1 = "https://evil.test".into()));
    assert_eq!(world.sign_in().await, Err(SignInRefusal::IssuerOfResponse));
}

#[tokio::test]
async fn a_no_and_a_missing_code_are_told_apart() {
    let world = World::new();
    let (url, flow) = world.client.begin().await.unwrap();
    let answer = ProviderAnswer { error: Some("access_denied".into()), ..world.visit(&url).await };
    assert_eq!(world.client.finish(&flow, &answer).await, Err(SignInRefusal::Denied));
    for code in [None, Some(Secret::new(""))] {
        let answer = ProviderAnswer { code, ..world.visit(&url).await };
        assert_eq!(world.client.finish(&flow, &answer).await, Err(SignInRefusal::CodeMissing));
    }
    assert_eq!(world.provider.count(TOKEN), 0);
}

#[tokio::test]
async fn a_code_is_good_once() {
    let world = World::new();
    let (url, flow) = world.client.begin().await.unwrap();
    let answer = world.visit(&url).await;
    world.assert_is_ada(&world.client.finish(&flow, &answer).await);
    assert_eq!(world.client.finish(&flow, &answer).await, Err(SignInRefusal::CodeRefused));
}

#[tokio::test]
async fn a_code_that_was_got_without_our_challenge_is_good_for_nothing() {
    let world = World::new();
    let (url, flow) = world.client.begin().await.unwrap();
    let kept = url.query_pairs().into_owned().filter(|(name, _)| !name.starts_with("code_challenge"));
    let kept: Vec<(String, String)> = kept.collect();
    let mut stripped = url.clone();
    stripped.query_pairs_mut().clear().extend_pairs(kept);
    let answer = world.visit(&stripped).await;
    assert_eq!(world.client.finish(&flow, &answer).await, Err(SignInRefusal::CodeRefused));
    assert_eq!(world.provider.last(TOKEN).unwrap().form.get("code_verifier"), Some(&flow.verifier));
    // And the code of another sign-in with our state.
    let (others, _) = world.client.begin().await.unwrap();
    let answer = ProviderAnswer { state: Some(Secret::new(flow.state.clone())), ..world.visit(&others).await };
    assert_eq!(world.client.finish(&flow, &answer).await, Err(SignInRefusal::CodeRefused));
}

#[tokio::test]
async fn a_document_of_another_issuer_is_not_taken() {
    listen_to_the_log();
    for issuer in [json!("https://evil.test"), json!("http://127.0.0.1:1"), Value::Null] {
        let world = World::new();
        world.provider.set().document = Some(Box::new(move |document| document["issuer"] = issuer.clone()));
        let refusal = world.sign_in().await.unwrap_err();
        assert!(matches!(refusal, SignInRefusal::IssuerOfDiscovery | SignInRefusal::Unavailable), "{refusal:?}");
        assert_eq!(world.provider.count(AUTHORIZE), 0);
    }
    let world = World::new();
    world.provider.set().document = Some(Box::new(|document| {
        let issuer = format!("{}/", document["issuer"].as_str().unwrap());
        document["issuer"] = issuer.into();
    }));
    assert_eq!(world.sign_in().await, Err(SignInRefusal::IssuerOfDiscovery), "to the letter");
    let lines = logged("oidc_unavailable");
    let names_both = |line: &&String| line.contains("https://evil.test") && line.contains("http://127.0.0.1:");
    assert_eq!(lines.iter().filter(names_both).count(), 1, "an operator sees both issuers: {lines:?}");
    world.provider.set().document = None;
    world.assert_is_ada(&world.sign_in().await);
}

#[tokio::test]
async fn endpoints_are_taken_only_where_nobody_can_listen() {
    for name in ["authorization_endpoint", "token_endpoint", "jwks_uri"] {
        for endpoint in [
            Value::Null,
            json!("http://evil.test/token"),
            json!("ftp://127.0.0.1/token"),
            json!("file:///etc/passwd"),
            json!("https://user:word@id.test/token"),
            json!("https://id.test/token#part"),
            json!("/token"),
        ] {
            let (world, words) = (World::new(), endpoint.to_string());
            world.provider.set().document = Some(Box::new(move |document| document[name] = endpoint.clone()));
            assert_eq!(world.client.begin().await.err(), Some(SignInRefusal::Unavailable), "{name} {words}");
        }
    }
}

/// Faults that replace a valid answer.
fn faults() -> [Fault; 16] {
    const DEEP: &str = match std::str::from_utf8(&[b'['; 100_000]) {
        Ok(text) => text,
        Err(_) => "",
    };
    [
        Fault::Text(DEEP),
        Fault::Redirect,
        Fault::Silent,
        Fault::Halting,
        Fault::Padded(256 * 1024),
        Fault::Endless,
        Fault::Cut,
        Fault::Text(""),
        Fault::Text("{"),
        Fault::Text("[]"),
        Fault::Text("<html></html>"),
        Fault::ContentType("text/html"),
        Fault::ContentType("application/jsonp"),
        Fault::Status(500),
        Fault::Status(404),
        Fault::Gone,
    ]
}

async fn an_answer_that_is_none(path: &str) {
    for fault in faults() {
        let world = World::with(HttpLimits { whole: Duration::from_millis(600), ..LIMITS }, |_| ());
        let begun = std::time::Instant::now();
        world.provider.fault(path, fault.clone());
        assert_eq!(world.sign_in().await, Err(SignInRefusal::Unavailable), "{fault:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{fault:?}: within the limit");
        assert_eq!(world.provider.count(path), 1, "{fault:?}: it is asked once, and nothing is followed");
        world.provider.mend(path);
        world.assert_is_ada(&world.sign_in().await);
    }
}

#[tokio::test]
async fn a_token_endpoint_that_is_slow_huge_or_broken_is_unavailable_and_comes_back() {
    an_answer_that_is_none(TOKEN).await;
}

#[tokio::test]
async fn a_document_that_is_slow_huge_or_broken_is_unavailable_and_comes_back() {
    an_answer_that_is_none(DISCOVERY).await;
}

#[tokio::test]
async fn keys_that_are_slow_huge_or_broken_are_unavailable_and_come_back() {
    an_answer_that_is_none(KEYS).await;
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_is_asked_nothing() {
    listen_to_the_log();
    let world = World::new();
    let (_, certificate, key) = authority::authority("localhost");
    let server = https::HttpServer::tls(&certificate, &key, |_| https::Reply::json(200, &json!({})));
    let issuer = format!("https://localhost:{}", server.port);
    let settings = ProviderSettings { issuer, ..settings(&world.provider) };
    let client = Provider::within(LIMITS, settings, world.clock.clone()).unwrap();
    assert_eq!(client.begin().await.err(), Some(SignInRefusal::Unavailable));
    assert!(server.calls().is_empty());
    assert!(logged("oidc_unavailable")[0].contains("UnknownIssuer"), "{:?}", logged("oidc_unavailable"));
    // The server has a runtime of its own.
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}

#[tokio::test]
async fn an_answer_just_short_of_the_limit_is_taken() {
    let world = World::new();
    world.provider.fault(DISCOVERY, Fault::Padded(250 * 1024));
    world.assert_is_ada(&world.sign_in().await);
}

#[tokio::test]
async fn the_log_hears_once_that_the_provider_is_away_and_once_that_it_is_back() {
    listen_to_the_log();
    let world = World::new();
    world.provider.fault(DISCOVERY, Fault::Status(503));
    for _ in 0..3 {
        assert_eq!(world.client.begin().await.err(), Some(SignInRefusal::Unavailable));
    }
    assert_eq!(logged("oidc_unavailable").len(), 1);
    assert!(logged("oidc_unavailable")[0].contains("cause=it answers 503"), "{:?}", logged("oidc_unavailable"));
    assert_eq!(logged("oidc_available").len(), 0);
    world.provider.mend(DISCOVERY);
    for _ in 0..2 {
        world.assert_is_ada(&world.sign_in().await);
    }
    assert_eq!((logged("oidc_unavailable").len(), logged("oidc_available").len()), (1, 1));
    // A second part that fails while the first one fails is not logged.
    world.provider.fault(TOKEN, Fault::Gone);
    assert_eq!(world.sign_in().await, Err(SignInRefusal::Unavailable));
    world.provider.fault(KEYS, Fault::Gone);
    world.client.look_after_keys().await;
    assert_eq!((logged("oidc_unavailable").len(), logged("oidc_available").len()), (2, 1));
    world.provider.mend(KEYS);
    world.client.look_after_keys().await;
    assert_eq!(logged("oidc_available").len(), 1, "the token endpoint is still away");
    world.provider.mend(TOKEN);
    world.assert_is_ada(&world.sign_in().await);
    assert_eq!((logged("oidc_unavailable").len(), logged("oidc_available").len()), (2, 2));
}
