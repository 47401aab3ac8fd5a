//! What a request's head must be like before anything is done with it, and what is put right in it (RFC 9110, 9112 and 9113).
//!
//! An upstream may read another request than the host out of a head that breaks these rules: such a head is refused, and never
//! sent on.

use crate::{authority, error::Problem, upstream::headers};
use bytes::{BufMut as _, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{COOKIE, EXPECT, HOST},
    request::Parts,
};

/// Checks a head, and gives it one content length and one cookie field.
///
/// # Errors
/// The [`Problem`] that answers it.
pub(super) fn check(head: &mut Parts) -> Result<(), Problem> {
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

/// Whether it asks the host itself what it offers, not a resource (RFC 9110 section 9.3.7).
pub(super) fn asks_the_host(head: &Parts) -> bool {
    head.method == Method::OPTIONS && head.uri.path() == "*"
}

/// A path, or a URL of http or https with one; of `OPTIONS` an asterisk too. `GET x` reads as an authority, which only CONNECT may have (RFC 9112 section 3.2.3).
fn target(head: &Parts) -> Result<(), Problem> {
    match (head.uri.scheme_str(), head.uri.authority()) {
        _ if !head.uri.path().starts_with('/') && !asks_the_host(head) => Err(Problem::TargetMalformed),
        (None, None) | (Some("http" | "https"), Some(_)) => Ok(()),
        _ => Err(Problem::TargetMalformed),
    }
}

/// One host, named as a host is. HTTP/2 may say it twice, and must say the same then (RFC 9113 section 8.3.1); beside an absolute
/// form of HTTP/1.1 the field does not count (RFC 9112 section 3.2.2).
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

/// HTTP/2 splits cookies over several fields; what knows HTTP/1.1 reads the first one only (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (all.next(), all.next()) else { return };
    let mut joined = BytesMut::from(first.as_bytes());
    for value in std::iter::once(second).chain(all) {
        joined.put_slice(b"; ");
        joined.put_slice(value.as_bytes());
    }
    // Made of values, it is one.
    if let Ok(joined) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(COOKIE, joined);
    }
}
