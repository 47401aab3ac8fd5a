//! Header rules of a proxy: removes hop-by-hop headers and adds forwarding headers (RFC 9110 section 7.6, RFC 7239).

use crate::flush_notice::Handover;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE, VIA,
    },
};
use std::net::IpAddr;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const VIA_TRIAGE: HeaderValue = HeaderValue::from_static("1.1 triage");

/// Removes headers of a single connection: the standard ones, and those named in `Connection`.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// The caller's values for forwarding headers. Created once per connection.
#[derive(Debug, Clone)]
pub struct Caller {
    address: HeaderValue,
    forwarded: HeaderValue,
    scheme: &'static str,
    /// Reports whether data written to the connection has reached the kernel.
    handover: Option<Handover>,
}

impl Caller {
    /// Reports whether data written to the connection has reached the kernel; none for a caller that takes responses in memory.
    pub fn handover(&self) -> Option<Handover> {
        self.handover.clone()
    }

    /// The same caller with a connection that reports what has reached the kernel.
    #[must_use]
    pub fn with_handover(self, handover: Handover) -> Self {
        Self { handover: Some(handover), ..self }
    }

    /// The caller with this address and scheme.
    pub fn new(address: IpAddr, scheme: &'static str) -> Self {
        let node = match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"));
        Self {
            address: value(address.to_string()),
            forwarded: value(format!("for={node};proto={scheme}")),
            scheme,
            handover: None,
        }
    }

    /// The scheme that the original caller used: from the forwarding header of a proxy in between, else that of the connection to this
    /// host.
    pub fn scheme(&self, headers: &HeaderMap) -> &'static str {
        let said = headers.get(FORWARDED_PROTO).and_then(|value| value.as_bytes().split(|byte| *byte == b',').next());
        match said.map(<[u8]>::trim_ascii) {
            Some(said) if said.eq_ignore_ascii_case(b"https") => "https",
            Some(said) if said.eq_ignore_ascii_case(b"http") => "http",
            _ => self.scheme,
        }
    }
}

/// Converts a caller's headers to the upstream's: removes hop-by-hop headers and adds forwarding headers. The HTTP client sets `Host`.
pub fn to_upstream(headers: &mut HeaderMap, caller: &Caller) {
    strip_hop_by_hop(headers);
    headers.remove(EXPECT);
    // This header is for this host, not for the upstream.
    headers.remove(PROXY_AUTHORIZATION);
    headers.append(FORWARDED, caller.forwarded.clone());
    headers.append(FORWARDED_FOR, caller.address.clone());
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(caller.scheme));
    if let Some(host) = headers.remove(HOST) {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
    headers.append(VIA, VIA_TRIAGE);
}

/// Converts an upstream's headers to the caller's. Removes `triage-` headers, since only the host may send those.
pub fn to_caller(headers: &mut HeaderMap) {
    // A transfer coding overrides the length (RFC 9112 section 6.3). A recipient that trusts the length would lose sync with the
    // connection.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
    let forged: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with("triage-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    headers.append(VIA, VIA_TRIAGE);
}

/// A content length that is not a number, or several that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a content-length must be a whole number up to 9223372036854775807, and equal wherever it is repeated")]
pub struct MalformedLength;

/// Reduces the content length to one canonical number. The next recipient may interpret repeated values or leading zeros differently, and
/// may overflow on a number that needs 64 bits (RFC 9110 section 8.6, RFC 9112 section 6.3).
///
/// # Errors
/// [`MalformedLength`]; the message must then not be forwarded.
pub fn one_length(headers: &mut HeaderMap) -> Result<(), MalformedLength> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(()) };
    let bytes = length(first)?;
    let mut is_plain = first.len() == 1 || !first.as_bytes().starts_with(b"0");
    for repeated in all {
        if length(repeated)? != bytes {
            return Err(MalformedLength);
        }
        is_plain = false;
    }
    if !is_plain {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    Ok(())
}

fn length(value: &HeaderValue) -> Result<u64, MalformedLength> {
    let digits = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let bytes = digits.and_then(|text| text.parse::<i64>().ok()).and_then(|bytes| u64::try_from(bytes).ok());
    bytes.ok_or(MalformedLength)
}

/// Whether the body has a transfer coding other than a single `chunked`. The host requests no other coding, and would forward an undecoded
/// body as if it were the content (RFC 9112 section 6.1).
pub fn is_coded(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(TRANSFER_ENCODING).iter();
    match (all.next(), all.next()) {
        (None, _) => false,
        (Some(only), None) => !only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn connection_and_what_it_names_are_taken_off() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("accept", "*/*")]));
    }

    #[test]
    fn forwarding_headers_are_appended_and_the_host_moves() {
        let mut headers = map(&[("host", "triage.local"), ("x-forwarded-for", "10.0.0.1")]);
        to_upstream(&mut headers, &Caller::new("192.0.2.7".parse().unwrap(), "http"));
        let all: Vec<_> = headers.get_all("x-forwarded-for").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(all, ["10.0.0.1", "192.0.2.7"]);
        assert_eq!(headers["x-forwarded-host"], "triage.local");
        assert_eq!(headers["forwarded"], "for=192.0.2.7;proto=http");
        assert_eq!(headers["via"], "1.1 triage");
        assert!(!headers.contains_key("host"));
    }

    #[test]
    fn a_length_beside_a_transfer_coding_is_dropped() {
        let mut headers = map(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        to_caller(&mut headers);
        assert_eq!(headers, map(&[("via", "1.1 triage")]));
        let mut headers = map(&[("content-length", "5")]);
        to_caller(&mut headers);
        assert_eq!(headers, map(&[("content-length", "5"), ("via", "1.1 triage")]));
    }

    #[test]
    fn one_length_is_left_and_written_plainly() {
        for (values, expected) in [
            (&[][..], Ok(None)),
            (&["0"], Ok(Some("0"))),
            (&["5"], Ok(Some("5"))),
            (&["05"], Ok(Some("5"))),
            (&["000"], Ok(Some("0"))),
            (&["5", "5"], Ok(Some("5"))),
            (&["5", "05"], Ok(Some("5"))),
            (&["9223372036854775807"], Ok(Some("9223372036854775807"))),
            (&["9223372036854775808"], Err(MalformedLength)),
            (&["5", "6"], Err(MalformedLength)),
            (&["5, 5"], Err(MalformedLength)),
            (&["+5"], Err(MalformedLength)),
            (&["-0"], Err(MalformedLength)),
            (&["0x5"], Err(MalformedLength)),
            (&[""], Err(MalformedLength)),
            (&["5", ""], Err(MalformedLength)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            let made = one_length(&mut headers).map(|()| {
                let left: Vec<_> =
                    headers.get_all(CONTENT_LENGTH).iter().map(|value| value.to_str().unwrap()).collect();
                assert!(left.len() < 2, "{values:?}: {left:?}");
                left.first().copied()
            });
            assert_eq!(made, expected, "{values:?}");
        }
    }

    #[test]
    fn only_chunked_alone_is_no_coding() {
        for (values, coded) in [
            (&[][..], false),
            (&["chunked"], false),
            (&[" Chunked "], false),
            (&["gzip, chunked"], true),
            (&["chunked, gzip"], true),
            (&["chunked, chunked"], true),
            (&["chunked", "chunked"], true),
            (&["xchunked"], true),
            (&["identity"], true),
            (&["chunked,"], true),
            (&[""], true),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TRANSFER_ENCODING, HeaderValue::from_static(value));
            }
            assert_eq!(is_coded(&headers), coded, "{values:?}");
        }
    }

    #[test]
    fn a_proxy_before_the_host_says_by_which_scheme_the_caller_came() {
        let caller = Caller::new("192.0.2.7".parse().unwrap(), "http");
        for (said, expected) in [
            (None, "http"),
            (Some("https"), "https"),
            (Some("HTTPS, http"), "https"),
            (Some("ftp"), "http"),
            (Some(""), "http"),
        ] {
            let headers = said.map_or(HeaderMap::new(), |said| map(&[("x-forwarded-proto", said)]));
            assert_eq!(caller.scheme(&headers), expected, "{said:?}");
        }
    }

    #[test]
    fn an_upstream_cannot_speak_for_the_host() {
        let mut headers = map(&[("triage-verdict", "applied"), ("content-type", "text/plain")]);
        to_caller(&mut headers);
        assert_eq!(headers, map(&[("content-type", "text/plain"), ("via", "1.1 triage")]));
    }
}
