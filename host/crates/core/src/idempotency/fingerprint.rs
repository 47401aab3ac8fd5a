//! Identities as hashes: whose request, which record, and whether two requests are equal.
//!
//! Everything is SHA-256 over length-prefixed parts under a label of its own, so that no two kinds and no two splits of the same
//! bytes share a value, and so that neither keys, tokens nor bodies lie about in memory or in a shared store.

use super::{
    key::Key,
    search_condition::{self, IF_NONE_EXIST},
};
use crate::rng::Rng;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sha2::{Digest, Sha256};
use std::{borrow::Cow, fmt, str::FromStr};

/// A request's content: equal fingerprints mean equal requests, whoever sent them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

/// Whose request it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant([u8; 32]);

/// Which record: a tenant's key at an upstream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId([u8; 32]);

/// Which idempotency key of the upstream's own a send carries: a hash of the header's name and value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyTag([u8; 16]);

/// Whose request, and what it asks for: equal digests mean equal requests of one caller. Which hash it is, is its store's matter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestDigest([u8; 32]);

/// What a [`RequestDigest`] covers.
#[derive(Debug, Clone, Copy)]
pub struct Likeness<'a> {
    /// The fields that tell callers, operations and the upstream's own keys apart, sorted by their names.
    pub distinguishing_headers: &'a [(HeaderName, HeaderValue)],
    /// The header fields that change what the request asks for.
    pub asking: &'a [(&'a str, &'a [u8])],
    /// The request.
    pub identity: Identity<'a>,
    /// Its fingerprint, which covers those fields, where that is known already.
    pub fingerprint: Option<Fingerprint>,
}

/// What a fingerprint covers. Headers are left out: clients, tracing and proxies change them from one repetition to the next. Those
/// that change what is asked for are added by [`Fingerprint::with_headers`].
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

    /// The fingerprint that a store gives back.
    pub fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The fingerprint that stands in the record of a request without a key. Only holders of the record's random id can ask for
    /// it, so the request itself need not be hashed.
    pub fn of_record(id: RecordId) -> Self {
        Self(id.0)
    }

    /// The fingerprint of the same request with header fields that change what it asks for, such as a condition. Without any it
    /// stays as it is, so that records of requests without them keep their fingerprint.
    #[must_use]
    pub fn with_headers(self, fields: &[(&str, &[u8])]) -> Self {
        if fields.is_empty() {
            return self;
        }
        Self(digest("fingerprint-headers", &parts([&self.0[..]].into(), fields)))
    }

    /// The fingerprint of all requests with the same condition: the same but for query and body, which say what is made where the
    /// condition does not hold, not whether it holds. Spellings of one search are one condition.
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

    /// The fingerprint of all requests whose query selects the same, whatever they write there.
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

/// Header fields that say for whom a request is made, by which name it is traced, and in which form its answer is wanted. They do
/// not change what is asked for: a caller that comes back with a fresh token asks for the same.
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

/// The fields among `read` that change what a request asks for, in the order of `read`.
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

    /// The digest of a store of its own.
    pub fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Tenant {
    /// The tenant that these `names` of a request's headers name, by all their values in order. Without a name all callers are one
    /// tenant, and so are those that send none of them, apart from all named ones.
    pub fn of(headers: &HeaderMap, names: &[HeaderName]) -> Self {
        Self::by(names, |name| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect())
    }

    /// The same, by the values of these headers that were taken from the request.
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
                // A hash for each name: values of one say nothing of another.
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
    /// The id that a store gives back.
    pub fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The record of one request without a key.
    pub fn draw(entropy: &Rng) -> Self {
        let mut id = [0; 32];
        for word in id.as_chunks_mut::<8>().0 {
            *word = entropy.next().to_le_bytes();
        }
        Self(id)
    }

    /// The record of one request without a key, in the part of a store that its digest is in.
    pub fn draw_beside(entropy: &Rng, digest: RequestDigest) -> Self {
        let mut id = Self::draw(entropy);
        let ([.., last], [.., beside]) = (&mut id.0, digest.0);
        *last = beside;
        id
    }

    /// The record of a tenant's `key` at `upstream`. The endpoint is not part of it: a key reused at another endpoint is a
    /// mismatch, not a new request. No secret is part of it either: hosts that exchange theirs would lose sight of a key and send
    /// its write again. Callers that read a record show a proof beside its id.
    pub fn of(tenant: &Tenant, upstream: &str, key: &Key) -> Self {
        Self(digest("record", &[&tenant.0, upstream.as_bytes(), key.as_str().as_bytes()]))
    }

    /// The record of all requests with the same condition: whoever asks, with whatever key.
    pub fn of_condition(condition: Fingerprint) -> Self {
        Self(digest("condition-record", &[&condition.0]))
    }

    /// The hash itself, for stores.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl KeyTag {
    /// The tag of a key that is sent in `header`. A key that is written otherwise is another key.
    pub fn of(header: &HeaderName, value: &http::HeaderValue) -> Self {
        let hash = digest("upstream-key", &[header.as_str().as_bytes(), value.as_bytes()]);
        let mut tag = [0; 16];
        tag.copy_from_slice(&hash[..16]);
        Self(tag)
    }

    /// The tag that a store gives back.
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

/// The first digits name a value well enough in a log, and give nothing away of what was hashed.
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
