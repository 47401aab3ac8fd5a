//! Invalid descriptions.

use super::{
    guest::{Guest, at},
    refusal::{Case, failed, refused, spoilt},
};
use triage_upstream_runtime::StagePhase;

/// Not UTF-8 after its second byte.
const BROKEN: &[u8] = b"ok\xff\xfe";
const TIME: &str = "a proposed time must be from 1 ms to 1 h";
const LIMIT: &str = "a limit's requests, period and burst must be at least 1";
const INTEREST: &str = "a policy may read at most 1048576 body bytes and 32 headers";
const NOT_UTF8: &str = "invalid utf-8 sequence of 1 bytes from index 2";

fn endpoint(cause: &str) -> String {
    described(&format!("endpoint \"any\": {cause}"))
}

fn described(cause: &str) -> String {
    format!("the policy's description is invalid: {cause}")
}

#[tokio::test]
async fn texts_that_are_none() {
    refused(vec![
        spoilt("the name", |guest| guest.text(at::NAME, BROKEN), failed("describe", NOT_UTF8)),
        spoilt("the version", |guest| guest.text(at::VERSION, BROKEN), failed("describe", NOT_UTF8)),
        spoilt("an endpoint's name", |guest| guest.text(at::ENDPOINT_NAME, BROKEN), failed("describe", NOT_UTF8)),
        spoilt("a method", |guest| guest.text(at::METHOD, BROKEN), failed("describe", NOT_UTF8)),
        spoilt("a path", |guest| guest.text(at::PATH, BROKEN), failed("describe", NOT_UTF8)),
        spoilt(
            "a request header's name",
            |guest| guest.texts(at::REQUEST_HEADERS, &[BROKEN]),
            failed("describe", NOT_UTF8),
        ),
        spoilt(
            "a response header's name",
            |guest| guest.texts(at::RESPONSE_HEADERS, &[BROKEN]),
            failed("describe", NOT_UTF8),
        ),
        spoilt(
            "the health call",
            |guest| guest.byte(at::HEALTH, 1).text(at::HEALTH_PATH, BROKEN),
            failed("describe", NOT_UTF8),
        ),
        spoilt(
            "a refusal of settings",
            |guest| guest.byte(at::CONFIGURED, 1).text(at::CONFIGURED + 4, BROKEN),
            failed("configure", NOT_UTF8),
        ),
        spoilt(
            "a surrogate",
            |guest| guest.text(at::NAME, b"\xed\xa0\x80"),
            failed("describe", "invalid utf-8 sequence of 1 bytes from index 0"),
        ),
        spoilt(
            "an overlong slash",
            |guest| guest.text(at::PATH, b"\xc0\xaf"),
            failed("describe", "invalid utf-8 sequence of 1 bytes from index 0"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn discriminants_that_are_none() {
    refused(vec![
        spoilt("an effect", |guest| guest.byte(at::EFFECT, 3), failed("describe", "unexpected discriminant: 3")),
        spoilt("an option", |guest| guest.byte(at::HEALTH, 2), failed("describe", "invalid option discriminant")),
        spoilt(
            "a time's option",
            |guest| guest.byte(at::DEADLINE, 0xff),
            failed("describe", "invalid option discriminant"),
        ),
        spoilt("a result", |guest| guest.byte(at::CONFIGURED, 9), failed("configure", "invalid expected discriminant")),
    ])
    .await;
}

#[tokio::test]
async fn too_much_of_anything() {
    let long = |length: usize| "a".repeat(length);
    let mut text_of_3_mib = Guest::new();
    text_of_3_mib.pages(64).pair(at::VERSION, 0, 3 << 20);
    let mut list_of_3_mib = Guest::new();
    list_of_3_mib.pages(64).pair(at::REQUEST_HEADERS, 0x2_0000, (3 << 20) / 8);
    let mut refusal_of_3_mib = Guest::new();
    refusal_of_3_mib.pages(64).byte(at::CONFIGURED, 1).pair(at::CONFIGURED + 4, 0, 3 << 20);
    refused(vec![
        Case::load(
            "a text of 3 MiB",
            &text_of_3_mib,
            failed(
                "describe",
                "too much data is being copied between the host and the guest: fuel allocated for \
                 hostcalls has been exhausted",
            ),
        ),
        Case::load(
            "a list of 3 MiB",
            &list_of_3_mib,
            failed(
                "describe",
                "too much data is being copied between the host and the guest: fuel allocated for \
                 hostcalls has been exhausted",
            ),
        ),
        Case::load(
            "a refusal of 3 MiB",
            &refusal_of_3_mib,
            failed(
                "configure",
                "too much data is being copied between the host and the guest: fuel allocated for \
                 hostcalls has been exhausted",
            ),
        ),
        spoilt(
            "a name of 65 bytes",
            |guest| guest.text(at::NAME, long(65)),
            described(
                "name \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\" must have 1 \
                 to 64 characters of a-z, 0-9 and '-'",
            ),
        ),
        spoilt(
            "a name of 4000 bytes",
            |guest| guest.text(at::NAME, long(4000)),
            described(
                "name \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\" must have 1 \
                 to 64 characters of a-z, 0-9 and '-'",
            ),
        ),
        spoilt(
            "a path of 4000 bytes",
            |guest| guest.text(at::PATH, format!("/{}", long(4000))),
            endpoint(
                "path \"/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\" must be a URI \
                 template of at most 512 bytes that starts with '/'",
            ),
        ),
        spoilt(
            "a refusal of 4000 bytes",
            |guest| guest.byte(at::CONFIGURED, 1).text(at::CONFIGURED + 4, long(4000)),
            format!("the policy refused its settings: {}; correct `policy_settings`", long(1000)),
        ),
        spoilt(
            "257 endpoints",
            |guest| guest.endpoints(257, true),
            described("the description has 257 endpoints; it must have 1 to 256"),
        ),
        spoilt(
            "no endpoint",
            |guest| guest.word(at::ENDPOINTS + 4, 0),
            described("the description has 0 endpoints; it must have 1 to 256"),
        ),
        spoilt(
            "one endpoint over and over",
            |guest| guest.endpoints(250, false),
            described("endpoint \"any\" is described twice; names must be unique"),
        ),
        spoilt("every body", |guest| guest.word(at::REQUEST_BODY_BYTES, u32::MAX), endpoint(INTEREST)),
        spoilt("33 headers", |guest| guest.texts(at::REQUEST_HEADERS, &[b"a".as_slice(); 33]), endpoint(INTEREST)),
        spoilt("an hour and more", |guest| guest.some(at::DEADLINE, 3_600_001), endpoint(TIME)),
        spoilt("all time", |guest| guest.some(at::ATTEMPT_TIMEOUT, u32::MAX), endpoint(TIME)),
    ])
    .await;
}

#[tokio::test]
async fn invalid_values_in_a_description_are_refused() {
    let settled = |first: u16, last: u16| {
        move |guest: &mut Guest| {
            guest.half(0x600, first).half(0x602, last).pair(at::SETTLED, 0x600, 1);
        }
    };
    let limit = |requests: u32, period: u32, burst: u32| {
        move |guest: &mut Guest| {
            guest.word(0x600, requests).word(0x604, period).word(0x608, burst).pair(at::LIMITS, 0x600, 1);
        }
    };
    let made = |what, spoil: &dyn Fn(&mut Guest), reason: String| {
        spoilt(
            what,
            |guest| {
                spoil(guest);
                guest
            },
            reason,
        )
    };
    refused(vec![
        made("a range in reverse", &settled(399, 200), endpoint("settled range 399-200 must lie within 200-399")),
        made("a range of 1xx", &settled(100, 199), endpoint("settled range 100-199 must lie within 200-399")),
        made("a range with failures", &settled(200, 599), endpoint("settled range 200-599 must lie within 200-399")),
        made("a range of nothing", &settled(0, u16::MAX), endpoint("settled range 0-65535 must lie within 200-399")),
        made("no requests", &limit(0, 1000, 1), endpoint(LIMIT)),
        made("no period", &limit(1, 0, 1), endpoint(LIMIT)),
        made("no burst", &limit(1, 1000, 0), endpoint(LIMIT)),
        spoilt("no time at all", |guest| guest.some(at::DEADLINE, 0), endpoint(TIME)),
        spoilt("nothing to commit within", |guest| guest.some(at::COMMIT_WITHIN, 0), endpoint(TIME)),
        spoilt(
            "no name",
            |guest| guest.text(at::NAME, ""),
            described("name \"\" must have 1 to 64 characters of a-z, 0-9 and '-'"),
        ),
        spoilt(
            "a name with a line break",
            |guest| guest.text(at::NAME, "a\r\nset-cookie: b"),
            described("name \"a set-cookie: b\" must have 1 to 64 characters of a-z, 0-9 and '-'"),
        ),
        spoilt(
            "a name with a terminal's colours",
            |guest| guest.text(at::NAME, "\u{1b}[31mred"),
            described("name \" [31mred\" must have 1 to 64 characters of a-z, 0-9 and '-'"),
        ),
        spoilt(
            "a method in lower case",
            |guest| guest.text(at::METHOD, "get"),
            endpoint("\"get\" is not a method; it must be one in upper case or '*'"),
        ),
        spoilt(
            "two methods",
            |guest| guest.text(at::METHOD, "GET /a HTTP/1.1\r\nPOST"),
            endpoint("\"GET /a HTTP/1.1 POST\" is not a method; it must be one in upper case or '*'"),
        ),
        spoilt(
            "no method",
            |guest| guest.text(at::METHOD, ""),
            endpoint("\"\" is not a method; it must be one in upper case or '*'"),
        ),
        spoilt(
            "another host's path",
            |guest| guest.text(at::PATH, "http://elsewhere.invalid/"),
            endpoint(
                "path \"http://elsewhere.invalid/\" must be a URI template of at most 512 bytes that \
                 starts with '/'",
            ),
        ),
        spoilt(
            "a header in upper case",
            |guest| guest.texts(at::REQUEST_HEADERS, &[b"Retry-After"]),
            endpoint("\"Retry-After\" is not a header name in lower case"),
        ),
        spoilt(
            "a header with a line break",
            |guest| guest.texts(at::RESPONSE_HEADERS, &[b"a\r\nb"]),
            endpoint("\"a b\" is not a header name in lower case"),
        ),
        spoilt(
            "a health call elsewhere",
            |guest| health(guest, "https://elsewhere.invalid/"),
            described(
                "health call \"https://elsewhere.invalid/\" must be a path on the same upstream that \
                 starts with one '/'",
            ),
        ),
        spoilt(
            "a health call to another host",
            |guest| health(guest, "//elsewhere.invalid/"),
            described(
                "health call \"//elsewhere.invalid/\" must be a path on the same upstream that starts \
                 with one '/'",
            ),
        ),
        spoilt(
            "a health call with a line break",
            |guest| health(guest, "/a HTTP/1.1\r\nhost: b"),
            described(
                "health call \"/a HTTP/1.1 host: b\" must be a path on the same upstream that starts \
                 with one '/'",
            ),
        ),
        spoilt(
            "a refusal with a terminal's colours",
            |guest| guest.byte(at::CONFIGURED, 1).text(at::CONFIGURED + 4, "\u{1b}[2J\r\nINFO all is well"),
            "the policy refused its settings: [2J INFO all is well; correct `policy_settings`".to_owned(),
        ),
    ])
    .await;
}

#[tokio::test]
async fn paths_that_cannot_be_routed() {
    let unroutable = |path: &'static str, why: &str| {
        let reason = format!(
            "upstream api: endpoint path {path:?} cannot be routed: {why}; use templates such as /hospitals/{{id}}"
        );
        Case(path, Guest::new().text(at::PATH, path).build(), StagePhase::Configuration, reason)
    };
    refused(vec![
        unroutable("/{", "Parameters must be registered with a valid name"),
        unroutable("/{}", "Parameters must be registered with a valid name"),
        unroutable("/{a}{b}", "Only one parameter is allowed per path segment"),
        unroutable("/{*a}/{*b}", "Catch-all parameters are only allowed at the end of a route"),
    ])
    .await;
}

fn health<'a>(guest: &'a mut Guest, path: &str) -> &'a mut Guest {
    guest.byte(at::HEALTH, 1).text(at::HEALTH_PATH, path)
}
