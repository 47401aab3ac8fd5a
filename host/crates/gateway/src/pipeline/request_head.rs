//! Checks and normalises a request's head before anything else reads it (RFC 9110, 9112 and 9113).
//!
//! An upstream may read a malformed head as another request than the host does (request smuggling): such a head is refused, never
//! forwarded.

use crate::{authority, error::Problem, upstream::headers};
use bytes::{BufMut as _, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{COOKIE, EXPECT, HOST},
    request::Parts,
};

/// Checks a head, and leaves one content length and one cookie field in it.
///
/// # Errors
/// The [`Problem`] to respond with.
pub fn check(head: &mut Parts) -> Result<(), Problem> {
    if head.method == Method::CONNECT {
        return Err(Problem::Tunnel);
    }
    target(head)?;
    host(head)?;
    if headers::is_coded(&head.headers) {
        return Err(Problem::TransferCoding);
    }
    headers::one_length(&mut head.headers).map_err(|_| Problem::LengthMalformed)?;
    if head.headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Problem::Expectation);
    }
    join_cookies(&mut head.headers);
    Ok(())
}

/// Whether the request is `OPTIONS *`, which asks about the host itself (RFC 9110 section 9.3.7).
pub(super) fn asks_the_host(head: &Parts) -> bool {
    head.method == Method::OPTIONS && head.uri.path() == "*"
}

/// Accepts a path, an http or https URL with a path, and `*` with OPTIONS. `GET x` parses as an authority, which only CONNECT may use (RFC
/// 9112 section 3.2.3).
fn target(head: &Parts) -> Result<(), Problem> {
    match (head.uri.scheme_str(), head.uri.authority()) {
        _ if !head.uri.path().starts_with('/') && !asks_the_host(head) => Err(Problem::TargetMalformed),
        (None, None) | (Some("http" | "https"), Some(_)) => Ok(()),
        _ => Err(Problem::TargetMalformed),
    }
}

/// Accepts one valid host. HTTP/2 may send it twice, as `:authority` and `Host`: both must be equal (RFC 9113 section 8.3.1). In HTTP/1.1
/// an absolute form overrides the field (RFC 9112 section 3.2.2).
fn host(head: &Parts) -> Result<(), Problem> {
    let mut fields = head.headers.get_all(HOST).iter();
    let (field, other) = (fields.next(), fields.next());
    if other.is_some() {
        return Err(Problem::HostAmbiguous);
    }
    if field.is_some_and(|field| !authority::is_valid(field.as_bytes())) {
        return Err(Problem::HostMalformed);
    }
    let Some(named) = head.uri.authority().map(without_userinfo) else { return Ok(()) };
    if !authority::is_valid(named.as_bytes()) {
        return Err(Problem::HostMalformed);
    }
    let default_port = if head.uri.scheme_str() == Some("https") { 443 } else { 80 };
    match field.map(HeaderValue::to_str) {
        Some(Ok(field)) if head.version >= Version::HTTP_2 && !authority::is_same(field, named, default_port) => {
            Err(Problem::HostAmbiguous)
        }
        _ => Ok(()),
    }
}

/// Host and port of an authority.
pub(super) fn without_userinfo(authority: &http::uri::Authority) -> &str {
    authority.as_str().rsplit('@').next().unwrap_or_default()
}

/// Joins cookie fields: HTTP/2 splits them, and an HTTP/1.1 upstream reads only the first (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (all.next(), all.next()) else { return };
    let mut joined = BytesMut::from(first.as_bytes());
    for value in std::iter::once(second).chain(all) {
        joined.put_slice(b"; ");
        joined.put_slice(value.as_bytes());
    }
    // Always valid: joined from valid values.
    if let Ok(joined) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(COOKIE, joined);
    }
}
