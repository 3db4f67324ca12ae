use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use time::macros::datetime;

use super::*;

const NOW: OffsetDateTime = datetime!(2025-11-29 12:00 UTC);
/// Codex could not load most of these documents. The strict rules are tested in [`loadable`](super::loadable).
const LENIENT: DocumentRules = DocumentRules { min_token_length: 24, strict: false };
const TOKEN: &str = "Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6";

fn parse(text: &str) -> Result<AuthDocument, DocumentError> {
    AuthDocument::parse(text, NOW, &LENIENT)
}

fn parsed(text: &str) -> AuthDocument {
    parse(text).unwrap_or_else(|error| panic!("{error:?} in {text}"))
}

/// A document around an `auths` member, in a fixed order.
fn with_auths(auths: &str) -> String {
    format!(r#"{{"last_refresh":"2025-11-21T11:00:00Z","auths":{auths}}}"#)
}

/// The canonical `auths` of a document around `auths`.
fn auths_of(auths: &str) -> String {
    let document = parsed(&with_auths(auths));
    let text = document.text().strip_prefix(r#"{"last_refresh":"2025-11-21T11:00:00Z","auths":"#);
    text.and_then(|text| text.strip_suffix('}')).expect("members in place").to_owned()
}

fn field(path: &str, message: &str) -> DocumentError {
    DocumentError::Field { path: path.into(), message: message.into() }
}

#[track_caller]
fn refused(document: &str, path: &str, message: &str) {
    assert_eq!(parse(document).expect_err("it was taken"), field(path, message), "{document}");
}

mod recorded {
    //! The documents of the recorded exchanges, with the answers of the former service.

    use super::*;

    #[test]
    fn a_login_is_canonical_once_its_target_is_appended() {
        let document = parsed(
            r#" {"OPENAI_API_KEY": null, "tokens": {"id_token": "eyJhbGciOi.id", "access_token": "Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6",
                "refresh_token": "rt_abc\/def", "account_id": "acc-1234"}, "last_refresh": "2025-11-20T09:27:43.373506211Z"}
            "#,
        );
        assert_eq!(
            document.text(),
            r#"{"OPENAI_API_KEY":null,"tokens":{"id_token":"eyJhbGciOi.id","access_token":"Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6","refresh_token":"rt_abc/def","account_id":"acc-1234"},"last_refresh":"2025-11-20T09:27:43.373506211Z","auths":{"api.openai.com":{"token":"Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6","token_type":"bearer"}}}"#
        );
        assert_eq!(document.digest().to_string(), "4ca8999f9c1e77edd48fd23c9c0ff9182c3dd3604f11131e286139a9d948db33");
        assert_eq!(document.last_refresh().text(), "2025-11-20T09:27:43.373506211Z");
    }

    #[test]
    fn given_targets_are_renamed_and_sorted_and_the_rest_stays_in_order() {
        let document = parsed(
            r#"{"last_refresh":"2025-11-21T11:00:00Z","auths":{"z.example.com":{"type":"Bearer","token":" Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6 ","org":"o1","note":"é/€","nested":{"x":1},"n":null},"api.openai.com":{"token":"6eNa2fJu8dHy5cWs0pLr7Bm1Tx9Qv3kZ","base_url":"https://x/v1"}},"custom":{"b":1,"a":2}}"#,
        );
        assert_eq!(
            document.text(),
            r#"{"last_refresh":"2025-11-21T11:00:00Z","auths":{"api.openai.com":{"api_base":"https://x/v1","token":"6eNa2fJu8dHy5cWs0pLr7Bm1Tx9Qv3kZ","token_type":"bearer"},"z.example.com":{"n":null,"note":"é/€","organization":"o1","token":"Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6","token_type":"Bearer"}},"custom":{"b":1,"a":2}}"#
        );
        assert_eq!(document.digest().to_string(), "f2224c7b366599277e259a48ca862b5264ea263baa64dbf9a5159ef84c5928af");
    }

    #[test]
    fn accepted_documents_get_the_digest_they_had() {
        for (name, document, digest) in [
            (
                "admin_upload_system",
                r#"{"OPENAI_API_KEY":null,"tokens":{"id_token":"id.aZSE4O0qUkLnVUXzVPHsb4BqfqHo8leByQslfDXK-G3b4iF6nfAxHAdefn9bSUiz","access_token":"eyJRGPEDFibPk1QGLcWBusdn4XjE2rQBswCsUJMwMT3yCH597zsCPtrVf3sPSwFyXCR","refresh_token":"rt_fPtCJIJ6LkV2umg3TWSD8_beRcmLg3HhwcXGCccvMd36Qq4wq_vuQu9aN7-xPUel","account_id":"acc-1234"},"last_refresh":"2025-11-20T09:27:43.373506211Z"}"#,
                "5d5c1cdaaf6cb0de51a081eaeabd09fc66bc0bb0a95874b4aa311bd46c881729",
            ),
            (
                "store_updated",
                r#"{"OPENAI_API_KEY":null,"tokens":{"id_token":"id.aZSE4O0qUkLnVUXzVPHsb4BqfqHo8leByQslfDXK-G3b4iF6nfAxHAdefn9bSUiz","access_token":"eyJB9lnEJVIcQM5DlatkAY-XjD6biSmXyKzhAi4NZx_HA6PaSmm35hjjRgZ4ovrZtRG","refresh_token":"rt_fPtCJIJ6LkV2umg3TWSD8_beRcmLg3HhwcXGCccvMd36Qq4wq_vuQu9aN7-xPUel","account_id":"acc-1234"},"last_refresh":"2025-11-21T10:00:00.000000001Z"}"#,
                "49cf8285014bca619e6fbf15a766a02e5c60a86a19a1a67c15d96909bef3064c",
            ),
            (
                "store_openai_api_key_only",
                r#"{"last_refresh":"2025-11-21T14:00:00Z","OPENAI_API_KEY":"sk-tKZW1Ynj1Cd1XcvjDRJ4U3j---Y_m2_y9JCjJskT"}"#,
                "dca25cb611fb92e0cfcaacbd997f45fe55b333eb469a239f3b46de33eaf57150",
            ),
            (
                // As recorded, except `"a":{}`, which the former service changed to `[]`.
                "store_auths_entries",
                r#"{"last_refresh":"2025-11-21T11:00:00Z","auths":{"z.example.com":{"type":"Bearer","token":" zP1LrokTx6cvlAjtn66VcYgTg6u4fdlXubxOzzy9GOqutpxCtHUupX--OxKNOUu4n ","org":"o1","extra":1,"nested":{"x":1}},"api.openai.com":{"token":"aDA9ghrJ0InCOlqBlPPCFBLWvwUd3SfeqVOWZZPRqM3rzMVvpK6wtpPgdq16d5CEO","base_url":"https://x/"}},"custom":{"b":1,"a":[]},"uni":"\u00e9/\u20ac /"}"#,
                "d5e3c0cdce22e7bdf76388b7eeec85cbeac9e25316249a77ff8b1a492d7848a2",
            ),
        ] {
            assert_eq!(parsed(document).digest().to_string(), digest, "{name}");
        }
    }

    #[test]
    fn refused_documents_are_refused_with_the_recorded_path_and_message() {
        let with_token = |token: &str| {
            format!(r#"{{"last_refresh":"2025-11-21T13:00:00Z","auths":{{"api.openai.com":{{"token":"{token}"}}}}}}"#)
        };
        for (name, document, min, path, message) in [
            (
                "store_bad_date",
                r#"{"last_refresh":"nope","tokens":{"access_token":"q7YuRbeNZ2LPjezlwcbR1b0wQ1MhjtROFcxt2HJaEgzUP_uie4ppx5lLsXrxeKI2-"}}"#.into(),
                24,
                "auth.last_refresh",
                "must be an RFC3339 timestamp",
            ),
            (
                "store_no_tokens",
                r#"{"last_refresh":"2025-11-21T10:00:00.000000001Z"}"#.into(),
                24,
                "auth.auths",
                "auths must be an object of targets",
            ),
            ("store_token_empty", with_token("  "), 24, "auth.auths.api.openai.com.token", "token is required"),
            (
                "store_token_short",
                with_token("abc123"),
                24,
                "auth.auths.api.openai.com.token",
                "token too short (min 24 characters)",
            ),
            (
                "store_token_space",
                with_token("abc def ghi jkl mno pqr stu vwx"),
                24,
                "auth.auths.api.openai.com.token",
                "token may not contain whitespace or newlines",
            ),
            (
                "store_token_short_min8",
                with_token("abc"),
                8,
                "auth.auths.api.openai.com.token",
                "token too short (min 8 characters)",
            ),
            (
                "store_token_placeholder_min8",
                with_token("PlaceHolder"),
                8,
                "auth.auths.api.openai.com.token",
                "token appears to be a placeholder value",
            ),
        ] {
            let rules = DocumentRules { min_token_length: min, strict: false };
            let error = AuthDocument::parse(&document, NOW, &rules).expect_err(name);
            assert_eq!(error, field(path, message), "{name}");
        }
    }

    #[test]
    fn bodies_that_are_no_objects_count_as_empty_and_broken_ones_are_invalid_json() {
        for body in ["", " \n", "5", "\"text\"", "[1,2]", "null", "{}"] {
            assert!(split_request(body).is_ok_and(|members| members.is_empty()), "{body:?}");
        }
        let broken = split_request("{nope").err().expect("it was taken");
        assert_eq!(broken.to_string(), "Invalid JSON payload");
    }

    #[test]
    fn a_body_that_is_the_document_itself_is_taken_whole() {
        let body = format!(
            r#"{{"tokens":{{"access_token":"{TOKEN}"}},"last_refresh":"2025-11-21T11:00:00Z","client_version":"0.63.0"}}"#
        );
        assert!(!split_request(&body).unwrap().has("auth"));
        assert!(parsed(&body).text().contains(r#""client_version":"0.63.0","auths":{"api.openai.com":{"token":"Zk3"#));
    }
}

#[test]
fn a_document_must_be_an_object() {
    for text in ["null", "5", "\"{}\"", "[]", "[{}]"] {
        refused(text, "auth", "Auth payload is required");
    }
}

#[test]
fn a_document_without_a_date_is_refused_before_its_targets_are_looked_at() {
    for text in ["{}", r#"{"last_refresh":null}"#, r#"{"last_refresh":" "}"#] {
        refused(text, "auth.last_refresh", "last_refresh is required");
    }
    for text in [r#"{"last_refresh":1763631000}"#, r#"{"last_refresh":"yesterday"}"#, r#"{"last_refresh":[]}"#] {
        refused(text, "auth.last_refresh", "must be an RFC3339 timestamp");
    }
    refused(r#"{"last_refresh":"1999-12-31T23:59:59Z"}"#, "auth.last_refresh", "timestamp is before 2000-01-01");
}

#[test]
fn a_target_is_made_in_the_place_of_an_empty_auths() {
    let made = format!(r#"{{"api.openai.com":{{"token":"{TOKEN}","token_type":"bearer"}}}}"#);
    for empty in ["null", "{}", "[]"] {
        let text = parsed(&format!(
            r#"{{"auths":{empty},"last_refresh":"2025-11-21T11:00:00Z","OPENAI_API_KEY":"\t{TOKEN}\n","x":1.0}}"#
        ));
        let expected = format!(
            r#"{{"auths":{made},"last_refresh":"2025-11-21T11:00:00Z","OPENAI_API_KEY":"\t{TOKEN}\n","x":1.0}}"#
        );
        assert_eq!(text.text(), expected);
    }
}

#[test]
fn the_access_token_goes_before_the_api_key_unless_it_is_blank() {
    let token_of = |tokens: &str| {
        let text =
            format!(r#"{{"tokens":{tokens},"OPENAI_API_KEY":" {TOKEN} ","last_refresh":"2025-11-21T11:00:00Z"}}"#);
        parsed(&text).targets()[0].token.expose().to_owned()
    };
    assert_eq!(token_of(r#"{"access_token":" abcdefghijklmnopqrstuvwxyz "}"#), "abcdefghijklmnopqrstuvwxyz");
    for tokens in [r#"{"access_token":" \t"}"#, r#"{"access_token":7}"#, "{}", "null", "[]", "\"x\""] {
        assert_eq!(token_of(tokens), TOKEN, "{tokens}");
    }
}

#[test]
fn a_made_target_obeys_the_token_rules_too() {
    refused(
        r#"{"last_refresh":"2025-11-21T11:00:00Z","OPENAI_API_KEY":"sk-short"}"#,
        "auth.auths.api.openai.com.token",
        "token too short (min 24 characters)",
    );
}

#[test]
fn given_targets_must_be_an_object_of_named_objects() {
    for auths in ["5", "\"x\"", "true", "[1]", r#"[{"token":"Zk3vQ9xT1mB7rLp0sWc5yHd8uJf2aNe6"}]"#] {
        refused(&with_auths(auths), "auth.auths", "auths must be an object of targets");
    }
    for index in ["0", "7", "1234567890123"] {
        let auths = format!(r#"{{"{index}":{{"token":"{TOKEN}"}}}}"#);
        refused(&with_auths(&auths), "auth.auths", "auths must be an object of targets");
    }
    for name in ["", "  ", "\\t"] {
        let auths = format!(r#"{{"{name}":{{"token":"{TOKEN}"}}}}"#);
        refused(&with_auths(&auths), "auth.auths", "the name of a target may not be blank");
    }
    for value in ["null", "5", "\"x\"", "[]"] {
        refused(&with_auths(&format!(r#"{{"a.example":{value}}}"#)), "auth.auths.a.example", "must be an object");
    }
    for token in ["null", "5", "{}", "\"\"", "\"\\u0000 \""] {
        let auths = format!(r#"{{"a.example":{{"token":{token}}}}}"#);
        refused(&with_auths(&auths), "auth.auths.a.example.token", "token is required");
    }
    // Digits that are not a list index are a valid name.
    assert!(parse(&with_auths(&format!(r#"{{"007":{{"token":"{TOKEN}"}},"1a":{{"token":"{TOKEN}"}}}}"#))).is_ok());
}

#[test]
fn the_first_faulty_target_as_sent_is_named() {
    let auths = format!(r#"{{"z":{{"token":"{TOKEN}"}},"y":{{"token":"short"}},"a":{{}}}}"#);
    refused(&with_auths(&auths), "auth.auths.y.token", "token too short (min 24 characters)");
}

#[test]
fn other_names_for_the_members_of_an_entry_are_understood() {
    for (given, canonical) in [
        (r#""type":" MAC ""#, r#""token_type":"MAC""#),
        (r#""token_type":"a","type":"b""#, r#""token_type":"a""#),
        (r#""token_type":" ","type":"b""#, r#""token_type":"b""#),
        (r#""token_type":5"#, r#""token_type":"bearer""#),
    ] {
        assert_eq!(
            auths_of(&format!(r#"{{"t":{{{given},"token":"{TOKEN}"}}}}"#)),
            format!(r#"{{"t":{{"token":"{TOKEN}",{canonical}}}}}"#)
        );
    }
    for (given, canonical) in [
        (r#""organization":" o ","org":"x""#, r#""organization":"o""#),
        (r#""default_org":"3","default_organization":"2""#, r#""organization":"2""#),
        (r#""default_org":"3","org":"1""#, r#""organization":"1""#),
        (r#""default_project":"p""#, r#""project":"p""#),
        (r#""project":null,"default_project":"p""#, r#""project":"p""#),
    ] {
        assert_eq!(
            auths_of(&format!(r#"{{"t":{{"token":"{TOKEN}",{given}}}}}"#)),
            format!(r#"{{"t":{{{canonical},"token":"{TOKEN}","token_type":"bearer"}}}}"#)
        );
    }
    assert_eq!(
        auths_of(&format!(r#"{{"t":{{"token":"{TOKEN}","base_url":"b","api_base":""}}}}"#)),
        format!(r#"{{"t":{{"api_base":"b","token":"{TOKEN}","token_type":"bearer"}}}}"#)
    );
    // Members that are blank or not a text are removed, under any of their names.
    assert_eq!(
        auths_of(&format!(r#"{{"t":{{"token":"{TOKEN}","org":" ","project":5,"base_url":null}}}}"#)),
        format!(r#"{{"t":{{"token":"{TOKEN}","token_type":"bearer"}}}}"#)
    );
}

#[test]
fn other_scalars_of_an_entry_are_kept_as_they_are_and_containers_dropped() {
    assert_eq!(
        auths_of(&format!(
            r#"{{"t":{{"z":" spaced ","Y":1.50,"a":null,"b":false,"é":-0,"token":"{TOKEN}","l":[1],"o":{{}}}}}}"#
        )),
        format!(
            r#"{{"t":{{"Y":1.50,"a":null,"b":false,"token":"{TOKEN}","token_type":"bearer","z":" spaced ","é":-0}}}}"#
        )
    );
}

#[test]
fn targets_are_sorted_bytewise() {
    let entry = format!(r#"{{"token":"{TOKEN}"}}"#);
    let document =
        parsed(&with_auths(&format!(r#"{{"é":{entry},"b":{entry},"a.b":{entry},"B":{entry},"a":{entry}}}"#)));
    let names: Vec<_> = document.targets().iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names, ["B", "a", "a.b", "b", "é"]);
}

#[test]
fn targets_are_handed_out_with_their_members() {
    let document = parsed(&with_auths(&format!(
        r#"{{"t":{{"token":" {TOKEN} ","org":"o","default_project":"p","base_url":"https://x/v1"}}}}"#
    )));
    let [target] = document.targets() else { panic!("one target") };
    assert_eq!((target.name.as_str(), target.token.expose(), target.token_type.as_str()), ("t", TOKEN, "bearer"));
    assert_eq!(target.organization.as_deref(), Some("o"));
    assert_eq!(target.project.as_deref(), Some("p"));
    assert_eq!(target.api_base.as_deref(), Some("https://x/v1"));
}

#[test]
fn everything_else_is_kept_as_it_was_spelled() {
    let rest = "\"n\":[1.0,1e5,1E+2,-0,12345678901234567890123],\"e\":{},\"l\":[],\"u\":\"\u{2028}😀\\u0001\"";
    let text = with_auths(&format!(r#"{{"t":{{"token":"{TOKEN}","token_type":"bearer"}}}},{rest}"#));
    assert_eq!(parsed(&text).text(), text);
}

#[test]
fn a_document_that_two_readers_could_read_differently_is_refused() {
    for text in [
        with_auths(&format!(r#"{{"t":{{"token":"{TOKEN}","token":"{TOKEN}"}}}}"#)),
        with_auths(&format!(r#"{{"t":{{"token":"{TOKEN}"}},"\u0074":{{"token":"{TOKEN}"}}}}"#)),
        with_auths(r#"{"t":{"token":"\ud83d"}}"#),
        format!("{} x", with_auths("{}")),
    ] {
        assert!(matches!(parse(&text), Err(DocumentError::Json(_))), "{text}");
    }
}

#[test]
fn a_stored_document_is_taken_byte_for_byte() {
    // Today's rules would refuse this: a short token, a date far in the future, space between members.
    let text = r#"{"last_refresh":"2099-01-01T00:00:00Z", "auths":{"t":{"token":"old","token_type":"x"}}}"#;
    let document = AuthDocument::from_canonical(text, &LENIENT).expect("it was stored");
    assert_eq!(document.text(), text);
    assert_eq!(document.digest(), Digest::of(text.as_bytes()));
    assert_eq!(document.last_refresh().text(), "2099-01-01T00:00:00Z");
    assert_eq!(document.targets()[0].token.expose(), "old");

    for broken in ["{", "{}", r#"{"last_refresh":"2025-11-21T11:00:00Z","auths":{}}"#] {
        assert!(AuthDocument::from_canonical(broken, &LENIENT).is_err(), "{broken}");
    }
}

#[test]
fn members_of_one_host_or_sign_in_are_taken_out() {
    let rest =
        format!(r#""last_refresh":"2025-11-21T11:00:00Z","auths":{{"t":{{"token":"{TOKEN}","token_type":"bearer"}}}}"#);
    let with = |identity: &str| {
        format!(r#"{{"tokens":{{"login_owner_id":"owner","account_id":"a"}},"agent_identity" : {identity} ,{rest}}}"#)
    };
    for identity in ["\"header.claims.signature\"", r#"{"agent_private_key" : "private", "n":1.0}"#] {
        let document = parsed(&with(identity));
        assert_eq!(document.text(), format!(r#"{{"tokens":{{"account_id":"a"}},{rest}}}"#));
        assert_eq!(document.agent_identity(), Some(identity), "as it was spelled");
        assert!(!format!("{document:?}").contains("private") && !format!("{document:?}").contains("claims"));
    }
    let without = parsed(&with("null"));
    assert_eq!((without.agent_identity(), without.text().contains("agent_identity")), (None, false));
    assert_eq!(parsed(&format!("{{{rest}}}")).agent_identity(), None);

    // An agent identity that is the login itself stays.
    let login = format!(r#"{{"auth_mode":"agentIdentity","agent_identity":"header.claims.signature",{rest}}}"#);
    let document = parsed(&login);
    assert_eq!((document.text(), document.agent_identity()), (login.as_str(), None));
}

#[test]
fn a_stored_document_is_freed_of_the_members_of_one_host() {
    let stored = r#"{"tokens":{"login_owner_id":"o","access_token":"a"},"agent_identity":"i","n": 1.0}"#;
    let freed = without_host_members(stored).unwrap().unwrap();
    assert_eq!(*freed, r#"{"tokens":{"access_token":"a"},"n":1.0}"#);
    assert_eq!(without_host_members(&freed).unwrap(), None);
    assert_eq!(without_host_members(r#"{"auth_mode":"agentIdentity","agent_identity":"i"}"#).unwrap(), None);
}

#[test]
fn debug_shows_no_secret() {
    let document = parsed(&format!(
        r#"{{"tokens":{{"access_token":"{TOKEN}","refresh_token":"rt_secret"}},"last_refresh":"2025-11-21T11:00:00Z"}}"#
    ));
    let shown = format!("{document:?}");
    assert!(shown.contains("***") && shown.contains("2025-11-21T11:00:00Z"), "{shown}");
    assert!(!shown.contains(TOKEN) && !shown.contains("rt_secret"), "{shown}");
}

#[test]
fn errors_quote_nothing_of_a_token() {
    for text in [with_auths(r#"{"t":{"token":"canary x"}}"#), with_auths(r#"{"t":{"token":"canary}}"#)] {
        let error = parse(&text).expect_err("it was taken");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[test]
fn the_members_of_a_request_are_handed_out_as_they_were_spelled() {
    let body = " {\"command\" : \"sto\\u0072e\", \"digest\":null,\n \"auth\" : { \"a\" : 1.0 } , \"n\":5}";
    let members = split_request(body).expect("it is JSON");
    assert_eq!(members.text("command"), Some("store"));
    assert_eq!(members.raw("auth"), Some("{ \"a\" : 1.0 }"));
    assert_eq!((members.raw("digest"), members.text("digest")), (Some("null"), None));
    assert_eq!((members.raw("n"), members.text("n")), (Some("5"), None));
    assert!(members.has("auth") && !members.has("last_refresh"));
    let names: Vec<_> = members.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["command", "digest", "auth", "n"]);
}

#[test]
fn a_request_with_a_member_twice_is_refused() {
    for body in [r#"{"auth":{},"auth":{}}"#, r#"{"auth":{},"\u0061uth":{}}"#, r#"{"x":{"y":1,"y":2}}"#] {
        assert!(matches!(split_request(body), Err(DocumentError::Json(_))), "{body}");
    }
}

#[test]
fn a_document_of_the_deepest_nesting_fits_into_a_request() {
    let deep = format!("{}{}", "[".repeat(63), "]".repeat(63));
    let document = with_auths(&format!(r#"{{"t":{{"token":"{TOKEN}"}}}},"x":{deep}"#));
    let body = format!(r#"{{"auth":{document}}}"#);
    assert_eq!(split_request(&body).expect("it is JSON").raw("auth"), Some(document.as_str()));
    assert!(parse(&document).is_ok());
    assert!(matches!(parse(&document.replace("[]", "[[]]")), Err(DocumentError::Json(_))));
}

#[test]
fn an_uploaded_document_may_stand_in_a_string() {
    let document = with_auths("null");
    let quoted = serde_json::to_string(&document).expect("a string is JSON");
    assert_eq!(*uploaded_text(&quoted).expect("it is a string"), document);
    assert_eq!(*uploaded_text(&document).expect("it is JSON"), document);
    assert_eq!(uploaded_text("\"{nope\"").map(|text| parse(&text).is_err()), Ok(true));
}

#[test]
fn a_hostile_document_takes_linear_time() {
    // For stored documents of any length; a sent document is limited.
    let parsed = |text: &str| AuthDocument::parse_stored(text, NOW, &LENIENT).unwrap();
    let started = std::time::Instant::now();
    let many_targets: Vec<_> = (0..15_000).map(|number| format!(r#""t{number}":{{"token":"{TOKEN}"}}"#)).collect();
    let document = parsed(&with_auths(&format!("{{{}}}", many_targets.join(","))));
    assert_eq!(document.targets().len(), 15_000);
    let many_members: Vec<_> = (0..80_000).map(|number| format!(r#""m{number}":0"#)).collect();
    let members = many_members.join(",");
    assert_eq!(
        parsed(&with_auths(&format!(r#"{{"t":{{{members},"token":"{TOKEN}"}}}},{members}"#))).targets().len(),
        1
    );
    // The limit allows for an unoptimised build on a busy machine. A quadratic pass takes minutes.
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}

fn any_member() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("\"a\\u006cias\":{}".to_owned()),
        "\"x[a-z]{1,4}\": (null|-?[1-9][0-9]{0,30}|1\\.50|\"[a-z\u{e9}/ ]{0,6}\"|\\[ \\]|\\{\"b\":1, \"a\":[\\{\\}]\\})",
    ]
}

fn any_target() -> impl Strategy<Value = String> {
    (
        "[a-z.\u{e9}]{1,12}",
        "[A-Z]{8}[a-z0-9]{20,40}",
        prop::collection::vec(
            "\"(org|organization|type|base_url|project|zz|Q)\": ?(null|1e5|\" [a-z]{0,3} \"|\\[1\\])",
            0..4,
        ),
    )
        .prop_map(|(name, token, mut members)| {
            members.sort_by_key(|member| member.split(':').next().map(str::to_owned));
            members.dedup_by_key(|member| member.split(':').next().map(str::to_owned));
            members.push(format!("\"token\": \" {token}abcdef\\n\""));
            format!("\"{name}\" : {{{}}}", members.join(" , "))
        })
}

proptest! {
    #[test]
    fn canonicalising_is_idempotent_and_the_digest_is_of_the_text(
        members in prop::collection::vec(any_member(), 0..4),
        targets in prop::collection::vec(any_target(), 0..4),
        at in any::<prop::sample::Index>(),
    ) {
        let mut all = members;
        all.push("\"last_refresh\" :\"2025-11-21T11:00:00Z\"".into());
        all.push(format!("\"OPENAI_API_KEY\":\"{TOKEN}\""));
        all.insert(at.index(all.len() + 1), format!("\"auths\": {{{}}}", targets.join(",")));
        let text = format!("{{ {} }}", all.join("\n,"));
        // Random names may collide. Such documents are refused, which is tested above.
        if let Ok(document) = parse(&text) {
            // The capacity that `json::write` reserves.
            prop_assert!(document.text().len() <= 2 * text.len() + 256);
            let again = parsed(document.text());
            prop_assert_eq!(again.text(), document.text());
            prop_assert_eq!(again.digest(), document.digest());
            prop_assert_eq!(hex::encode(Sha256::digest(document.text())), document.digest().to_string());
            let stored = AuthDocument::from_canonical(document.text(), &LENIENT).expect("it is canonical");
            prop_assert_eq!(stored.digest(), document.digest());
            prop_assert_eq!(stored.targets().len(), document.targets().len());
            prop_assert_eq!(document.targets().len(), targets.len().max(1));
        } else {
            prop_assert!(matches!(parse(&text), Err(DocumentError::Json(_))));
        }
    }
}
