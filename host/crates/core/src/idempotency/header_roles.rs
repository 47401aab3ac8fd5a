//! What a header field says of its request: whose request it is, which operation it names, or only how it travels. All code that
//! compares requests, or sends another request in a caller's name, takes its lists from here. The reasons stand in
//! `host/docs/src/design/orphans.md` and `host/docs/src/concepts/settlement.md`.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Credentials: upstreams tell callers apart by them. The default of `idempotency.tenant_header`.
pub static CREDENTIALS: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("api-key"),
    HeaderName::from_static("apikey"),
    HeaderName::from_static("ocp-apim-subscription-key"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
];

/// Fields that name the operation, its target or how its body is to be read: with another value the same path and body ask for
/// something else.
const OPERATION: [&str; 10] = [
    "content-encoding",
    "content-range",
    "content-type",
    "destination",
    "soapaction",
    "x-amz-copy-source",
    "x-amz-target",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// Conditions of a request, and the range that it asks for (RFC 9110 sections 13 and 14; `If` is of `WebDAV`, `If-None-Exist` of FHIR).
const CONDITION: [&str; 8] = [
    "if",
    "if-match",
    "if-modified-since",
    "if-none-exist",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
];

/// How an answer is to be given. A verification's policy says so itself, since it must be able to read the answer.
const ANSWER: [&str; 7] =
    ["accept", "accept-charset", "accept-encoding", "cache-control", "pragma", "prefer", "want-digest"];

/// What names or dates one message. A verification is another message.
const MESSAGE: [&str; 14] = [
    "b3",
    "baggage",
    "correlation-id",
    "date",
    "digest",
    "expect",
    "repr-digest",
    "request-id",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "x-correlation-id",
    "x-request-id",
];

/// Whether a field carries an idempotency key, whatever its prefix.
fn is_key(name: &str) -> bool {
    name.ends_with("idempotency-key")
}

/// Whether two requests without a key differ by this field, although they have one path and one body.
fn distinguishes_requests(name: &HeaderName) -> bool {
    let text = name.as_str();
    CREDENTIALS.contains(name)
        || OPERATION.contains(&text)
        || CONDITION.contains(&text)
        || is_key(text)
        || contains(text, b"tenant")
        || contains(text, b"partition")
}

/// Names are short: a comparison at each place costs less than to prepare a search.
fn contains<const LENGTH: usize>(name: &str, part: &[u8; LENGTH]) -> bool {
    name.as_bytes().windows(LENGTH).any(|window| window == part)
}

/// The fields by which requests without a key differ, and those with `own` names: the tenant's, and the upstream's own key. Values of
/// one name stay in their order; the order of names does not count.
pub fn distinguishing_headers(
    headers: &HeaderMap,
    own: impl Fn(&HeaderName) -> bool,
) -> Vec<(HeaderName, HeaderValue)> {
    let fields = headers.iter().filter(|(name, _)| distinguishes_requests(name) || own(name));
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
    fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    fields
}

/// Whether a verification carries this field of the write. An upstream may choose by any field which data a request sees, and a search
/// of other data proves nothing. So a verification carries all of them but those of the body, of conditions, of the operation (an
/// override of the method would make a write of a read), of the answer's form, of idempotency, and of the one message.
pub fn is_carried_by_verification(name: &HeaderName) -> bool {
    let text = name.as_str();
    let is_left_out = text.starts_with("content-")
        || text.starts_with("triage-")
        || text.starts_with("x-b3-")
        || is_key(text)
        || [&OPERATION[..], &CONDITION, &ANSWER, &MESSAGE].iter().any(|names| names.contains(&text));
    !is_left_out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn names_are_in_lower_case_and_stand_once() {
        let lists = [&OPERATION[..], &CONDITION, &ANSWER, &MESSAGE];
        let mut names: Vec<&str> = lists.concat();
        names.extend(CREDENTIALS.iter().map(HeaderName::as_str));
        for name in &names {
            assert!(name.parse::<HeaderName>().is_ok_and(|parsed| parsed == **name), "{name}");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_order_of_names_does_not_count_and_that_of_values_does() {
        let tell = |fields| distinguishing_headers(&headers(fields), |name| name == "x-own");
        let one = tell(&[("cookie", "a"), ("x-api-key", "1"), ("accept", "b"), ("x-api-key", "2"), ("x-own", "c")]);
        let same =
            tell(&[("x-own", "c"), ("x-api-key", "1"), ("x-api-key", "2"), ("user-agent", "d"), ("cookie", "a")]);
        assert_eq!(one, same);
        assert_eq!(one.len(), 4);
        assert_ne!(one, tell(&[("x-own", "c"), ("x-api-key", "2"), ("x-api-key", "1"), ("cookie", "a")]));
        assert!(tell(&[("accept", "a"), ("x-request-id", "b"), ("traceparent", "c"), ("date", "d")]).is_empty());
    }

    #[test]
    fn a_verification_carries_what_chooses_data_and_nothing_of_the_write() {
        let carried = |name: &'static str| is_carried_by_verification(&HeaderName::from_static(name));
        for name in
            ["authorization", "cookie", "x-api-key", "accept-language", "x-tenant-partition", "x-forwarded-host"]
        {
            assert!(carried(name), "{name}");
        }
        for name in [
            "content-type",
            "content-length",
            "content-md5",
            "if-match",
            "if-none-exist",
            "range",
            "idempotency-key",
            "cko-idempotency-key",
            "x-http-method-override",
            "soapaction",
            "accept",
            "cache-control",
            "prefer",
            "x-request-id",
            "traceparent",
            "expect",
            "triage-deadline-ms",
        ] {
            assert!(!carried(name), "{name}");
        }
    }
}
