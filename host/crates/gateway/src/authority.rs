//! Host and port as HTTP has them (RFC 3986 section 3.2, RFC 9110 section 7.2): without user name and password.

use std::net::Ipv6Addr;

/// Longer names are no host's (RFC 1035 section 2.3.4), plus a port.
const MAX_BYTES: usize = 261;

/// Whether this is `host` or `host:port`.
pub fn is_valid(authority: &[u8]) -> bool {
    if authority.len() > MAX_BYTES {
        return false;
    }
    let (host_is_valid, rest) = match authority {
        [b'[', literal @ ..] => {
            let Some(end) = literal.iter().position(|byte| *byte == b']') else { return false };
            let address = std::str::from_utf8(&literal[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
            (address.is_some(), &literal[end + 1..])
        }
        _ => {
            let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
            (is_name(&authority[..end]), &authority[end..])
        }
    };
    host_is_valid && is_port(rest)
}

/// A registered name or an IPv4 address.
fn is_name(host: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte);
    let mut rest = host;
    while let Some((byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => after,
            (b'%', _) => return false,
            _ if is_plain(byte) => after,
            _ => return false,
        };
    }
    !host.is_empty()
}

/// Nothing, or a colon and a port; the port may be left out (RFC 3986 section 3.2.3).
fn is_port(rest: &[u8]) -> bool {
    match rest {
        [] | [b':'] => true,
        [b':', digits @ ..] => std::str::from_utf8(digits)
            .is_ok_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()),
        _ => false,
    }
}

/// Whether two name the same host and port, where `default_port` is meant by none.
pub fn is_same(one: &str, other: &str, default_port: u16) -> bool {
    let ((host, port), (other_host, other_port)) = (parts(one, default_port), parts(other, default_port));
    host.eq_ignore_ascii_case(other_host) && port == other_port
}

fn parts(authority: &str, default_port: u16) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand before its bracket.
        Some((host, port)) if !port.ends_with(']') => {
            (host, if port.is_empty() { Some(default_port) } else { port.parse().ok() })
        }
        _ => (authority, Some(default_port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_with_an_optional_port_is_a_valid_authority() {
        for valid in
            ["a", "a.example", "a.example:80", "a:", "127.0.0.1:1", "[::1]", "[::1]:8080", "a_b", "%41", "a!b", "A-1.x"]
        {
            assert!(is_valid(valid.as_bytes()), "{valid}");
        }
        for invalid in [
            "",
            ":80",
            "a:65536",
            "a:8x",
            "a:+8",
            "a b",
            "a/b",
            "user@a",
            "a\\b",
            "[::1",
            "[::g]",
            "[]",
            "[::1]x",
            "a?b",
            "a#b",
            "%4",
            "%zz",
            "a:1:2",
            "a\"b",
            "<a>",
            "h\u{f6}st",
            &"a".repeat(300),
        ] {
            assert!(!is_valid(invalid.as_bytes()), "{invalid}");
        }
    }

    #[test]
    fn the_same_authority_in_other_words_is_the_same() {
        for (one, other, expected) in [
            ("a.example", "A.EXAMPLE", true),
            ("a.example", "a.example:443", true),
            ("a.example:", "a.example", true),
            ("a.example:80", "a.example", false),
            ("[::1]", "[::1]:443", true),
            ("[::1]:1", "[::1]:2", false),
            ("a.example", "b.example", false),
        ] {
            assert_eq!(is_same(one, other, 443), expected, "{one} {other}");
            assert_eq!(is_same(other, one, 443), expected, "{other} {one}");
        }
    }
}
