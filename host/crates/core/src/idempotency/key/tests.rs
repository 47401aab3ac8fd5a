#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use proptest::prelude::*;

fn headers(pairs: &[(&HeaderName, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

fn key(value: &str) -> Result<String, String> {
    Key::parse(&headers(&[(&IDEMPOTENCY_KEY, value.as_bytes())]))
        .map(|key| key.unwrap().as_str().to_owned())
        .map_err(|error| error.to_string())
}

#[test]
fn accepts_what_clients_send() {
    let longest = "k".repeat(255);
    for (sent, meant) in [
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("\"8e03978e\"", "8e03978e"),
        ("row:17/a+b=", "row:17/a+b="),
        (r#""a\"b\\c,d;e""#, r#"a"b\c,d;e"#),
        (longest.as_str(), longest.as_str()),
    ] {
        assert_eq!(key(sent).as_deref(), Ok(meant), "{sent}");
    }
    assert_eq!(Key::parse(&HeaderMap::new()), Ok(None));
}

#[test]
fn the_longest_key_may_be_all_escapes() {
    assert_eq!(key(&format!("\"{}\"", r"\\".repeat(255))).map(|key| key.len()), Ok(255));
}

#[test]
fn refuses_with_these_texts() {
    let character = |at| {
        format!(
            "the idempotency-key has an invalid byte at position {at}; send visible ascii without spaces, and quote a key with a comma, semicolon, quote or backslash"
        )
    };
    let empty = "the idempotency-key is empty; send 1 to 255 visible ascii characters, such as a uuid";
    let quoting = "the idempotency-key is not one well-formed quoted string; close the quote and send nothing after it";
    let too_long = |len| format!("the idempotency-key has {len} characters; send 1 to 255, such as a uuid");
    for (sent, text) in [
        (String::new(), empty.to_owned()),
        ("\"\"".into(), empty.into()),
        ("\"".into(), quoting.into()),
        ("\"open".into(), quoting.into()),
        ("\"a\"b".into(), quoting.into()),
        ("\"a\";p=1".into(), quoting.into()),
        ("\"a\", \"b\"".into(), quoting.into()),
        (r#""a\n""#.into(), quoting.into()),
        (r#""a\"#.into(), quoting.into()),
        ("a, b".into(), character(1)),
        ("a;p=1".into(), character(1)),
        ("a b".into(), character(1)),
        ("\"a b\"".into(), character(2)),
        ("a\"".into(), character(1)),
        ("ä".into(), character(0)),
        ("k".repeat(256), too_long(256)),
        ("k".repeat(100_000), too_long(100_000)),
        (format!("\"{}\"", "k".repeat(256)), too_long(256)),
    ] {
        assert_eq!(key(&sent), Err(text), "{}", &sent[..sent.len().min(20)]);
    }
    let twice = headers(&[(&IDEMPOTENCY_KEY, b"a"), (&IDEMPOTENCY_KEY, b"a")]);
    assert_eq!(
        Key::parse(&twice).unwrap_err().to_string(),
        "the request has 2 idempotency-key headers; send exactly one"
    );
}

#[test]
fn maybe_sent_is_yes_or_an_error() {
    for yes in ["true", "?1", "1"] {
        let keyed = Keyed::parse(&headers(&[(&IDEMPOTENCY_KEY, b"a"), (&MAYBE_SENT, yes.as_bytes())])).unwrap();
        assert!(keyed.unwrap().maybe_sent, "{yes}");
    }
    for other in ["", "false", "?0", "yes", "TRUE", "1, 1"] {
        let error = Keyed::parse(&headers(&[(&IDEMPOTENCY_KEY, b"a"), (&MAYBE_SENT, other.as_bytes())])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "triage-maybe-sent must be a single header with the value true, ?1 or 1; leave it out if the request was never sent",
            "{other}"
        );
    }
    assert_eq!(
        Keyed::parse(&headers(&[(&IDEMPOTENCY_KEY, b"a"), (&MAYBE_SENT, b"1"), (&MAYBE_SENT, b"1")])),
        Err(KeyError::MaybeSent)
    );
    assert_eq!(
        Keyed::parse(&headers(&[(&MAYBE_SENT, b"1")])).unwrap_err().to_string(),
        "triage-maybe-sent needs the idempotency-key of the earlier send; add it"
    );
    assert!(!Keyed::parse(&headers(&[(&IDEMPOTENCY_KEY, b"a")])).unwrap().unwrap().maybe_sent);
    assert_eq!(Keyed::parse(&HeaderMap::new()), Ok(None));
}

#[test]
fn debug_hides_the_key() {
    let key = Key::parse(&headers(&[(&IDEMPOTENCY_KEY, b"sk_live_secret")])).unwrap().unwrap();
    assert_eq!(format!("{key:?}"), "Key(14 characters)");
}

proptest! {
    #[test]
    fn any_bytes_give_a_key_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, value);
        if let Ok(Some(key)) = Key::parse(&headers) {
            prop_assert!((1..=255).contains(&key.as_str().len()));
            prop_assert!(key.as_str().bytes().all(|byte| (0x21..=0x7e).contains(&byte)));
        }
    }

    #[test]
    fn quoting_gives_back_every_key(key in "[!-~]{1,255}") {
        let quoted = format!("\"{}\"", key.replace('\\', r"\\").replace('"', "\\\""));
        prop_assert_eq!(super::tests::key(&quoted), Ok(key));
    }
}
