//! The roles of header fields: they identify the caller, name the operation, or concern only the transport of one message. All code that
//! compares requests, or sends a verification with a caller's credentials, uses these lists. For the reasons see
//! `host/docs/src/design/orphans.md` and `host/docs/src/concepts/settlement.md`.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Credentials, by which upstreams distinguish callers. The default of `idempotency.tenant_header`.
pub static CREDENTIALS: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("api-key"),
    HeaderName::from_static("apikey"),
    HeaderName::from_static("ocp-apim-subscription-key"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
];

/// Fields that name the operation, its target or the encoding of its body: with another value, the same path and body are another
/// operation.
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

/// Fields that choose the form of the response. For a verification the policy sets them itself, because it must be able to read the
/// response.
const ANSWER: [&str; 7] =
    ["accept", "accept-charset", "accept-encoding", "cache-control", "pragma", "prefer", "want-digest"];

/// Fields that identify or date one message. A verification is another message.
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

/// Compares at each position: header names are short, so preparing a search would cost more.
fn contains<const LENGTH: usize>(name: &str, part: &[u8; LENGTH]) -> bool {
    name.as_bytes().windows(LENGTH).any(|window| window == part)
}

/// The fields that distinguish requests without a key, and those that `own` accepts: the tenant's, and the upstream's own key. Sorted by
/// name; several values of one name stay in their order.
pub fn distinguishing_headers(
    headers: &HeaderMap,
    own: impl Fn(&HeaderName) -> bool,
) -> Vec<(HeaderName, HeaderValue)> {
    let fields = headers.iter().filter(|(name, _)| distinguishes_requests(name) || own(name));
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
    fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    fields
}

/// Whether a verification carries this field of the write. Any field may select the data that the upstream searches, such as a tenant's,
/// and a search of other data proves nothing. So a verification carries all fields but those of the body, of conditions, of the operation
/// (an override of the method would turn the read into a write), of the response's form, of idempotency and of one message.
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
