#![allow(clippy::unwrap_used)]
use super::*;
use crate::secret::Secret;

const READ: &str = "0123456789abcdef-read";
const WRITE: &str = "0123456789abcdef-write";
const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn access(read: Option<&str>, write: Option<&str>) -> Result<Access, TokenError> {
    let source = |token: Option<&str>| token.map(|token| TokenSource::Environment(Secret::new(token)));
    let admin =
        settings::Admin { listen: None, read_token: source(read), write_token: source(write), explain: 0, tls: None };
    Access::of(&admin, Clock::anchored(0))
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_token_opens_what_its_role_may() {
    let access = access(Some(READ), Some(WRITE)).unwrap();
    let bearer = |token: &str| headers(&[("authorization", &format!("Bearer {token}")), ("host", "h.example")]);
    let check = |headers: HeaderMap, needed| access.check(&Method::POST, &headers, PEER, needed);
    assert_eq!(check(bearer(READ), Role::Read), Ok(Role::Read));
    assert_eq!(check(bearer(READ), Role::Write), Err(Refusal::ReadOnly));
    assert_eq!(check(bearer(WRITE), Role::Write), Ok(Role::Write));
    let schemes = [("authorization", format!("bEARER  {WRITE} "))];
    assert_eq!(check(headers(&[(schemes[0].0, &schemes[0].1)]), Role::Write), Ok(Role::Write));
    for wrong in ["", "Bearer", "Bearer ", "Basic 0123456789abcdef-read", "Bearer 0123456789abcdef-rea", "\u{e9}"] {
        assert_eq!(check(headers(&[("authorization", wrong)]), Role::Read), Err(Refusal::NoToken), "{wrong:?}");
    }
    assert_eq!(check(HeaderMap::new(), Role::Read), Err(Refusal::NoToken));
}

#[tokio::test(start_paused = true)]
async fn without_tokens_this_machine_may_do_all_but_no_site_in_a_browser() {
    let access = access(None, None).unwrap();
    for (method, given, expected) in [
        (Method::POST, headers(&[("host", "127.0.0.1:9464")]), Ok(Role::Write)),
        (Method::POST, headers(&[("host", "[::1]:9464")]), Ok(Role::Write)),
        (Method::GET, headers(&[("host", "localhost")]), Ok(Role::Write)),
        (Method::GET, headers(&[("host", "evil.example:9464")]), Err(Refusal::Rebound)),
        (Method::GET, HeaderMap::new(), Err(Refusal::Rebound)),
        (
            Method::POST,
            headers(&[("host", "127.0.0.1:9464"), ("origin", "https://evil.example")]),
            Err(Refusal::Foreign),
        ),
        (Method::POST, headers(&[("host", "127.0.0.1:9464"), ("origin", "null")]), Err(Refusal::Foreign)),
        (Method::POST, headers(&[("host", "127.0.0.1:9464"), ("sec-fetch-site", "cross-site")]), Err(Refusal::Foreign)),
        (
            Method::DELETE,
            headers(&[
                ("host", "127.0.0.1:9464"),
                ("origin", "http://127.0.0.1:9464"),
                ("sec-fetch-site", "same-origin"),
            ]),
            Ok(Role::Write),
        ),
    ] {
        assert_eq!(access.check(&method, &given, PEER, Role::Read), expected, "{method} {given:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_refused_and_ends() {
    let access = access(None, None).unwrap();
    let given = headers(&[("host", "localhost")]);
    let passed = (0..1000).filter(|_| access.check(&Method::GET, &given, PEER, Role::Read).is_ok()).count();
    assert_eq!(passed, 200, "the burst");
    tokio::time::advance(Duration::from_secs(1)).await;
    let passed = (0..1000).filter(|_| access.check(&Method::GET, &given, PEER, Role::Read).is_ok()).count();
    assert_eq!(passed, 100, "a second's worth");
    assert!(access.worth_a_line() && !access.worth_a_line(), "one line a second");
}

/// Requests without a token do not use up the quota of token bearers at the same address.
#[tokio::test(start_paused = true)]
async fn a_flood_without_a_token_keeps_no_bearer_out() {
    let access = access(Some(READ), Some(WRITE)).unwrap();
    let bearer = headers(&[("authorization", &format!("Bearer {READ}"))]);
    let refused = (0..1000).map(|_| access.check(&Method::GET, &HeaderMap::new(), PEER, Role::Read));
    assert_eq!(refused.filter(|refused| *refused == Err(Refusal::NoToken)).count(), 200, "then they are too many");
    assert_eq!(access.check(&Method::GET, &bearer, PEER, Role::Read), Ok(Role::Read), "the same address, with a token");
    let other = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    assert_eq!(access.check(&Method::GET, &HeaderMap::new(), other, Role::Read), Err(Refusal::NoToken));
}

#[tokio::test]
async fn weak_tokens_are_refused_and_none_is_shown() {
    for weak in ["short", "0123456789 abcdef", "0123456789abcde\u{e9}"] {
        let error = access(Some(weak), None).unwrap_err();
        assert!(matches!(error, TokenError::Weak { key: READ_TOKEN }) && !error.to_string().contains(weak), "{error}");
    }
    assert!(matches!(access(Some(READ), Some(READ)), Err(TokenError::Same)));
    let secret = TokenSource::Environment(Secret::new(READ));
    assert!(!format!("{secret:?} {:?}", access(Some(READ), None)).contains(READ));
}

#[tokio::test(start_paused = true)]
async fn a_session_looks_by_itself_and_acts_only_for_the_page() {
    let access = access(Some(READ), Some(WRITE)).unwrap();
    let (role, value) = access.session(WRITE.as_bytes(), 0).unwrap();
    assert_eq!((role, access.session(b"another", 0).is_none()), (Role::Write, true));
    let cookie = format!("triage-session={value}");
    let with = |name: &'static str, value: &str| headers(&[("cookie", &cookie), ("host", "h.example"), (name, value)]);
    for (method, given, expected) in [
        (Method::GET, with("accept", "*/*"), Ok(Role::Write)),
        (Method::POST, with("accept", "*/*"), Err(Refusal::Foreign)),
        (Method::POST, with("sec-fetch-site", "same-origin"), Ok(Role::Write)),
        (Method::POST, with("sec-fetch-site", "same-site"), Err(Refusal::Foreign)),
        (Method::POST, with("sec-fetch-site", "none"), Err(Refusal::Foreign)),
        (Method::POST, with("origin", "https://h.example"), Ok(Role::Write)),
        (Method::POST, with("origin", "https://g.example"), Err(Refusal::Foreign)),
        (Method::GET, with("authorization", "Bearer wrong"), Err(Refusal::NoToken)),
    ] {
        assert_eq!(access.check(&method, &given, PEER, Role::Write), expected, "{method} {given:?}");
    }
}
