//! Identities as hashes: of a request's content, its tenant, its record and its key.
//!
//! Each hash is SHA-256 over a label for its kind and length-prefixed parts, so that two kinds, or two splits of the same bytes, never have
//! equal values. Hashes keep keys, tokens and bodies out of memory and out of shared state.

use super::{
    key::Key,
    search_condition::{self, IF_NONE_EXIST},
};
use crate::rng::Rng;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sha2::{Digest, Sha256};
use std::{borrow::Cow, fmt, str::FromStr};

/// Identifies a request's content: equal fingerprints mean equal requests, of one tenant or of several.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// Identifies the tenant that a request belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant([u8; 32]);

/// Identifies a record: a tenant's idempotency key at an upstream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId([u8; 32]);

/// Identifies the upstream's own idempotency key of a send: a hash of the header's name and value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyTag([u8; 16]);

/// Identifies a request's content and caller: equal digests mean equal requests of one caller. Each store may compute it by its own hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestDigest([u8; 32]);

/// What a [`RequestDigest`] covers.
#[derive(Debug, Clone, Copy)]
pub struct Likeness<'a> {
    /// The fields that distinguish callers, operations and the upstream's own keys, sorted by name.
    pub distinguishing_headers: &'a [(HeaderName, HeaderValue)],
    /// The header fields that change what the request asks for.
    pub asking: &'a [(&'a str, &'a [u8])],
    /// The request.
    pub identity: Identity<'a>,
    /// The request's fingerprint with the `asking` fields, if it was computed before.
    pub fingerprint: Option<Fingerprint>,
}

/// The parts of a request that its fingerprint covers. Headers are not among them, because clients, tracing and proxies change them between
/// repetitions. [`Fingerprint::with_headers`] adds those that change the request's meaning.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The upstream's name.
    pub upstream: &'a str,
    /// The endpoint's name.
    pub endpoint: &'a str,
    /// The method.
    pub method: &'a Method,
    /// Path and query as the caller sent them.
    pub path_and_query: &'a str,
    /// The whole body.
    pub body: &'a [u8],
}

impl Fingerprint {
    /// The fingerprint of a request.
    pub fn of(request: &Identity<'_>) -> Self {
        Self(digest(
            "fingerprint",
            &[
                request.upstream.as_bytes(),
                request.endpoint.as_bytes(),
                request.method.as_str().as_bytes(),
                request.path_and_query.as_bytes(),
                request.body,
            ],
        ))
    }

    /// The fingerprint from its bytes in a store.
    pub fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The fingerprint in the record of a request without a key. The record's random id is a secret of its owners, so no other request can
    /// match the record, and the request itself need not be hashed.
    pub fn of_record(id: RecordId) -> Self {
        Self(id.0)
    }

    /// The fingerprint with header fields that change the request's meaning, such as a condition. Without fields it does not change, so
    /// that records from before this rule still match.
    #[must_use]
    pub fn with_headers(self, fields: &[(&str, &[u8])]) -> Self {
        if fields.is_empty() {
            return self;
        }
        Self(digest("fingerprint-headers", &parts([&self.0[..]].into(), fields)))
    }

    /// The fingerprint of all requests with the same condition. Query and body do not count: they say which resource is created if the
    /// condition matches none. All spellings of one search are one condition.
    pub fn of_condition(request: &Identity<'_>, fields: &[(&str, &[u8])]) -> Self {
        let path = request.path_and_query.split('?').next().unwrap_or_default().trim_end_matches('/');
        let request = [request.upstream, request.endpoint, request.method.as_str(), path];
        let mut parts: Vec<Cow<'_, [u8]>> = request.iter().map(|part| Cow::from(part.as_bytes())).collect();
        for (name, value) in fields {
            parts.push(Cow::from(name.as_bytes()));
            parts.push(match *name {
                IF_NONE_EXIST => Cow::from(search_condition::canonical(value).into_bytes()),
                _ => Cow::from(*value),
            });
        }
        Self(digest("condition", &parts.iter().map(AsRef::as_ref).collect::<Vec<_>>()))
    }

    /// The fingerprint of all writes to the resources that the query selects, whatever their bodies.
    pub fn of_selection(request: &Identity<'_>) -> Self {
        let request = [request.upstream, request.endpoint, request.method.as_str(), request.path_and_query];
        Self(digest("selection", &request.map(str::as_bytes)))
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn parts<'a>(mut before: Vec<&'a [u8]>, fields: &'a [(&str, &[u8])]) -> Vec<&'a [u8]> {
    before.extend(fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]));
    before
}

/// Header fields that identify the caller, trace the request or choose the form of the response. They do not change the request's meaning:
/// a caller that repeats a request with a fresh token makes the same request.
const CIRCUMSTANCES: [&str; 14] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "authorization",
    "content-type",
    "cookie",
    "date",
    "prefer",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-correlation-id",
    "x-request-id",
];

/// The fields among `read` that change the request's meaning, in the order of `read`.
pub fn asking<'a>(read: &'a [HeaderName], headers: &'a HeaderMap) -> Vec<(&'a str, &'a [u8])> {
    let asks = |name: &&HeaderName| !CIRCUMSTANCES.contains(&name.as_str());
    let values = |name: &'a HeaderName| headers.get_all(name).iter().map(|value| (name.as_str(), value.as_bytes()));
    read.iter().filter(asks).flat_map(values).collect()
}

impl RequestDigest {
    /// The digest that all hosts of a fleet agree on.
    pub fn of(request: &Likeness<'_>) -> Self {
        let of_request = || Fingerprint::of(&request.identity).with_headers(request.asking);
        let fingerprint = request.fingerprint.unwrap_or_else(of_request);
        let fields = request.distinguishing_headers.iter();
        let fields = fields.flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]);
        let parts: Vec<&[u8]> = std::iter::once(&fingerprint.0[..]).chain(fields).collect();
        Self(digest("unanswered", &parts))
    }

    /// The digest from its bytes in a store.
    pub fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Tenant {
    /// The tenant of a request: a hash of the values of all headers with these `names`, in order. Without `names`, all callers are one
    /// tenant. Callers that send none of the headers are one tenant too, different from all others.
    pub fn of(headers: &HeaderMap, names: &[HeaderName]) -> Self {
        Self::by(names, |name| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect())
    }

    /// The same, from values that were taken from the request before.
    pub fn of_values(names: &[HeaderName], values: &[(HeaderName, HeaderValue)]) -> Self {
        Self::by(names, |name| {
            values.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_bytes()).collect()
        })
    }

    fn by<'v>(names: &[HeaderName], values: impl Fn(&HeaderName) -> Vec<&'v [u8]>) -> Self {
        match names {
            [] => Self(digest("every-caller", &[])),
            // The hash of the records of earlier versions.
            [name] => Self(digest("tenant", &values(name))),
            names => {
                // Hash each name with its values, so that a value of one header never passes for a value of another.
                let named = names.iter().map(|name| (name, values(name))).filter(|(_, values)| !values.is_empty());
                let hashes: Vec<[u8; 32]> = named.map(|(name, values)| digest(name.as_str(), &values)).collect();
                let parts: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
                let label = if parts.is_empty() { "every-caller" } else { "tenant-of-several" };
                Self(digest(label, &parts))
            }
        }
    }
}

impl Tenant {
    /// Whether all callers are this one tenant.
    pub fn is_every_caller(&self) -> bool {
        self.0 == digest("every-caller", &[])
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl RecordId {
    /// The id from its bytes in a store.
    pub fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// A random id for the record of a request without a key.
    pub fn draw(entropy: &Rng) -> Self {
        let mut id = [0; 32];
        for word in id.as_chunks_mut::<8>().0 {
            *word = entropy.next().to_le_bytes();
        }
        Self(id)
    }

    /// The same, in the part of a store that holds the request's digest.
    pub fn draw_beside(entropy: &Rng, digest: RequestDigest) -> Self {
        let mut id = Self::draw(entropy);
        let ([.., last], [.., beside]) = (&mut id.0, digest.0);
        *last = beside;
        id
    }

    /// The id of a tenant's `key` at `upstream`. The endpoint is not part of it: a key reused at another endpoint is a mismatch, not a new
    /// request. No secret is part of it either: after a change of the secret, hosts would miss the record, and would send the write again.
    /// Callers that read a record must show a proof with its id.
    pub fn of(tenant: &Tenant, upstream: &str, key: &Key) -> Self {
        Self(digest("record", &[&tenant.0, upstream.as_bytes(), key.as_str().as_bytes()]))
    }

    /// The id of the record of all requests with the same condition, of all tenants and with any key.
    pub fn of_condition(condition: Fingerprint) -> Self {
        Self(digest("condition-record", &[&condition.0]))
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl KeyTag {
    /// The tag of a key that is sent in `header`. Two spellings of a key are two keys.
    pub fn of(header: &HeaderName, value: &http::HeaderValue) -> Self {
        let hash = digest("upstream-key", &[header.as_str().as_bytes(), value.as_bytes()]);
        let mut tag = [0; 16];
        tag.copy_from_slice(&hash[..16]);
        Self(tag)
    }

    /// The tag from its bytes in a store.
    pub fn from_bytes(tag: [u8; 16]) -> Self {
        Self(tag)
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for KeyTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short("KeyTag", &self.0, f)
    }
}

impl fmt::Display for RecordId {
    /// 64 hexadecimal digits, as [`RecordId::from_str`] reads them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", HEXLOWER.encode_display(&self.0))
    }
}

/// A text that is no record's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record id must have 64 hexadecimal digits; copy one from the list of unsettled records")]
pub struct NotARecordId;

impl FromStr for RecordId {
    type Err = NotARecordId;

    fn from_str(text: &str) -> Result<Self, NotARecordId> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| NotARecordId)?;
        bytes.try_into().map(Self).map_err(|_| NotARecordId)
    }
}

/// Writes the first 8 digits of a hash: enough to recognise a value in logs, and no information about the hashed text.
///
/// # Errors
/// Those of the formatter.
pub fn short(name: &str, hash: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let start = hash.first_chunk().copied().map_or(0, u32::from_be_bytes);
    write!(f, "{name}({start:08x})")
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short("Fingerprint", &self.0, f)
    }
}

impl fmt::Debug for RequestDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short("RequestDigest", &self.0, f)
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        short("RecordId", &self.0, f)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tenant(..)")
    }
}

/// SHA-256 over a label and parts, each after its length.
pub fn digest(label: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in std::iter::once(label.as_bytes()).chain(parts.iter().copied()) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use http::HeaderValue;

    fn key(text: &str) -> Key {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", HeaderValue::from_str(text).unwrap());
        Key::parse(&headers).unwrap().unwrap()
    }

    const POST: Method = Method::POST;

    const ROW: Identity<'static> = Identity {
        upstream: "directory",
        endpoint: "create",
        method: &POST,
        path_and_query: "/hospitals/",
        body: b"{\"name\":\"A\"}",
    };

    #[test]
    fn every_part_counts() {
        let base = Fingerprint::of(&ROW);
        assert_eq!(base, Fingerprint::of(&ROW));
        for (case, other) in [
            ("upstream", Identity { upstream: "other", ..ROW }),
            ("endpoint", Identity { endpoint: "other", ..ROW }),
            ("method", Identity { method: &Method::PUT, ..ROW }),
            ("query", Identity { path_and_query: "/hospitals/?a", ..ROW }),
            ("body", Identity { body: b"", ..ROW }),
            ("a split moved", Identity { endpoint: "createPOST", path_and_query: "/hospitals/", ..ROW }),
        ] {
            assert_ne!(base, Fingerprint::of(&other), "{case}");
        }
    }

    #[test]
    fn headers_count_where_they_change_what_is_asked() {
        let names = ["if-none-exist", "accept", "authorization"].map(HeaderName::from_static);
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        let plain = headers(&[("accept", "a"), ("authorization", "b"), ("x-other", "c")]);
        assert!(asking(&names, &plain).is_empty());
        assert_eq!(Fingerprint::of(&ROW).with_headers(&[]), Fingerprint::of(&ROW), "records of before stay known");
        let [one, other] = ["x|1", "x|2"].map(|value| headers(&[("if-none-exist", value), ("accept", "a")]));
        let (one, other) = (asking(&names, &one), asking(&names, &other));
        assert_eq!(one, [("if-none-exist", &b"x|1"[..])]);
        let fingerprints = [&[][..], &one, &other].map(|fields| Fingerprint::of(&ROW).with_headers(fields));
        assert!(fingerprints[0] != fingerprints[1] && fingerprints[1] != fingerprints[2]);
        let condition = |row, fields| Fingerprint::of_condition(&row, fields);
        let twin = Identity { body: b"another", path_and_query: "/hospitals?_format=json", ..ROW };
        assert_eq!(condition(ROW, &one), condition(twin, &one), "the body does not count");
        assert_ne!(condition(ROW, &one), condition(ROW, &other));
        let spelled =
            |name: &'static str, value: &'static str| Fingerprint::of_condition(&ROW, &[(name, value.as_bytes())]);
        for spelling in ["?identifier=x%7C1", "Patient?identifier=x|1", " identifier=x%7c1&"] {
            let [search, other] =
                ["if-none-exist", "x-other"].map(|name| [spelling, "identifier=x|1"].map(|value| spelled(name, value)));
            assert_eq!(search[0], search[1], "{spelling}");
            assert_ne!(other[0], other[1], "no other header is a search: {spelling}");
        }
        assert_ne!(condition(ROW, &one), condition(Identity { path_and_query: "/b", ..ROW }, &one));
        assert_ne!(condition(ROW, &one), condition(Identity { upstream: "b", ..ROW }, &one));
        let query = |path_and_query, body| Fingerprint::of_selection(&Identity { path_and_query, body, ..ROW });
        assert_eq!(query("/a?b=1", b"one"), query("/a?b=1", b"two"), "the body does not count");
        assert_ne!(query("/a?b=1", b"one"), query("/a?b=2", b"one"));
        let id = RecordId::of_condition(condition(ROW, &one));
        assert_eq!(id, RecordId::of_condition(condition(twin, &one)));
    }

    #[test]
    fn a_record_belongs_to_tenant_upstream_and_key() {
        let token = HeaderName::from_static("authorization");
        let names = std::slice::from_ref(&token);
        let headers = |value: &'static str| HeaderMap::from_iter([(token.clone(), HeaderValue::from_static(value))]);
        let ann = Tenant::of(&headers("Bearer ann"), names);
        let bob = Tenant::of(&headers("Bearer bob"), names);
        let nobody = Tenant::of(&HeaderMap::new(), names);
        let all = Tenant::of(&headers("Bearer ann"), &[]);
        let ids: std::collections::HashSet<_> = [ann, bob, nobody, all]
            .iter()
            .flat_map(|tenant| [("a", "k"), ("b", "k"), ("a", "l")].map(|(up, k)| RecordId::of(tenant, up, &key(k))))
            .collect();
        assert_eq!(ids.len(), 12);
        assert_eq!(all, Tenant::of(&HeaderMap::new(), &[]));
    }

    #[test]
    fn credentials_of_either_kind_name_a_tenant() {
        let names = crate::idempotency::Settings::default().tenant_headers;
        let tenant = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            Tenant::of(&headers, &names)
        };
        let tenants = [
            tenant(&[]),
            tenant(&[("authorization", "a")]),
            tenant(&[("authorization", "b")]),
            tenant(&[("cookie", "a")]),
            tenant(&[("authorization", "a"), ("cookie", "a")]),
            tenant(&[("authorization", "a"), ("authorization", "cookie"), ("authorization", "a")]),
            tenant(&[("cookie", "a"), ("cookie", "a")]),
        ];
        let distinct: std::collections::HashSet<_> = tenants.iter().collect();
        assert_eq!(distinct.len(), tenants.len());
        assert_eq!(tenant(&[("x-other", "a")]), tenant(&[]), "another header names none");
        assert_eq!(tenant(&[]), Tenant::of(&HeaderMap::new(), &[]), "callers without credentials are as they were");
    }

    #[test]
    fn an_id_survives_its_text() {
        let id = RecordId::of(&Tenant::of(&HeaderMap::new(), &[]), "up", &key("k"));
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "zz", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66), &"ä".repeat(32)] {
            assert_eq!(text.parse::<RecordId>(), Err(NotARecordId), "{text}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = HeaderName::from_static("x-token");
        let headers = HeaderMap::from_iter([(token.clone(), HeaderValue::from_static("hunter2"))]);
        let tenant = Tenant::of(&headers, std::slice::from_ref(&token));
        let id = RecordId::of(&tenant, "up", &key("sk_live"));
        let text = format!("{tenant:?} {id:?} {:?}", Fingerprint::of(&ROW));
        assert!(text.starts_with("Tenant(..) RecordId("), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("sk_live") && text.len() < 60, "{text}");
    }
}
