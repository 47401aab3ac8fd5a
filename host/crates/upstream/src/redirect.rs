//! Rewrites URLs in response headers from the upstream's address to the address that the caller used.
//!
//! Frameworks redirect to the authority of the request, which is the upstream's own. A caller that follows such a redirect bypasses every
//! limit, breaker and record. URLs of the upstream therefore become the caller's, with the removed path prefix added again. URLs of other
//! servers keep their meaning, and so do URLs of the upstream that no path of this host leads to.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{CONTENT_LOCATION, LOCATION, REFRESH},
};
use reqwest::Url;

/// The scheme and authority that a caller used to reach the host.
#[derive(Debug, Clone)]
pub struct Origin {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and port; none if an in-process caller gave none.
    pub authority: Option<HeaderValue>,
}

/// The URL of a request on both sides of the host.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// The upstream's base URL.
    pub base_url: &'a Uri,
    /// Path and query below the base URL.
    pub path_and_query: &'a str,
    /// The prefix removed from the caller's path, without a trailing slash.
    pub prefix: &'a str,
    /// The scheme and authority that the caller used.
    pub origin: &'a Origin,
}

/// Rewrites `Location`, `Content-Location` and `Refresh`. Without any of them, the cost is three header lookups.
pub fn rewrite(headers: &mut HeaderMap, route: &Route<'_>) {
    let present = |name: &HeaderName| headers.contains_key(name);
    let (location, content_location, refresh) = (present(&LOCATION), present(&CONTENT_LOCATION), present(&REFRESH));
    if !location && !content_location && !refresh {
        return;
    }
    let Some(urls) = Urls::of(route) else { return };
    for (name, present) in [(LOCATION, location), (CONTENT_LOCATION, content_location)] {
        if present {
            each(headers, &name, |value| urls.rewritten(value));
        }
    }
    if refresh {
        each(headers, &REFRESH, |value| {
            let (before, url) = refreshed_url(value)?;
            Some(format!("{before}; url={}", urls.rewritten(url)?))
        });
    }
}

fn each(headers: &mut HeaderMap, name: &HeaderName, rewritten: impl Fn(&str) -> Option<String>) {
    let http::header::Entry::Occupied(mut entry) = headers.entry(name) else { return };
    for value in entry.iter_mut() {
        let new = rewritten(&ascii(value.as_bytes())).and_then(|text| HeaderValue::try_from(text).ok());
        if let Some(new) = new {
            *value = new;
        }
    }
}

/// Percent-encodes bytes beyond ASCII, as URL parsers do.
fn ascii(value: &[u8]) -> String {
    use std::fmt::Write as _;
    value.iter().fold(String::with_capacity(value.len()), |mut text, byte| {
        if byte.is_ascii() {
            text.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// The seconds and URL of a `Refresh`, parsed by the HTML standard ("shared declarative refresh steps").
fn refreshed_url(value: &str) -> Option<(&str, &str)> {
    let value = value.trim();
    let end = value.find([';', ',', ' ', '\t'])?;
    let (time, rest) = value.split_at(end);
    let rest = rest.trim_start_matches([';', ',', ' ', '\t']);
    let named = rest.get(..3).filter(|name| name.eq_ignore_ascii_case("url"));
    let url = named.and_then(|_| rest[3..].trim_start().strip_prefix('=')).map_or(rest, str::trim_start);
    let url = match url.as_bytes() {
        [quote @ (b'"' | b'\''), ..] => url[1..].split(char::from(*quote)).next().unwrap_or_default(),
        _ => url,
    };
    (!url.is_empty()).then_some((time, url))
}

struct Urls<'a> {
    base: Url,
    /// The request's URL at the upstream, the base of relative references.
    asked: Url,
    /// The base URL's path without its trailing slash.
    base_path: String,
    prefix: &'a str,
    origin: &'a Origin,
}

impl<'a> Urls<'a> {
    fn of(route: &Route<'a>) -> Option<Self> {
        let base = Url::parse(route.base_url.to_string().trim_end_matches('/')).ok()?;
        let asked = super::url::below(&base, route.path_and_query);
        let base_path = base.path().trim_end_matches('/').to_owned();
        Some(Self { base, asked, base_path, prefix: route.prefix, origin: route.origin })
    }

    /// The value for the caller; none if it needs no change.
    fn rewritten(&self, reference: &str) -> Option<String> {
        let reference = reference.trim();
        let names_authority = Url::parse(reference).is_ok() || is_network_path(reference);
        let target = self.asked.join(reference).ok()?;
        if reference.is_empty() || !self.is_own(&target) {
            return None;
        }
        let Some(rest) = self.below_base(target.path()) else {
            // No path of this host leads there. Without an authority, the caller would resolve it to the host, so make it absolute.
            return (!names_authority).then(|| target.to_string());
        };
        if !names_authority && self.base_path == self.prefix {
            return None;
        }
        let mut path = [self.prefix, rest].concat();
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        if let Some(query) = target.query() {
            path = [&path, "?", query].concat();
        }
        if let Some(fragment) = target.fragment() {
            path = [&path, "#", fragment].concat();
        }
        match self.origin.authority.as_ref().and_then(|authority| authority.to_str().ok()) {
            Some(authority) if names_authority => Some(format!("{}://{authority}{path}", self.origin.scheme)),
            // A path that begins with two slashes would be an authority (RFC 3986 section 4.2).
            _ if path.starts_with("//") => Some(["/.", &path].concat()),
            _ => Some(path),
        }
    }

    /// Whether the URL is the upstream's: the host is the same, and the port is the same or neither URL names a port. If neither URL names a
    /// port, the schemes may differ: an upstream behind a TLS proxy may not know about TLS.
    fn is_own(&self, target: &Url) -> bool {
        let host = |url: &Url| url.host_str().map(|host| host.trim_end_matches('.').to_owned());
        let same_port = target.port_or_known_default() == self.base.port_or_known_default()
            || (target.port().is_none() && self.base.port().is_none());
        matches!(target.scheme(), "http" | "https") && host(target) == host(&self.base) && same_port
    }

    /// The rest of a path below the base URL's path; none if it is not below.
    fn below_base<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.base_path.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }
}

/// Whether the reference begins with an authority but no scheme. Browsers read a backslash as a slash and ignore tabs.
fn is_network_path(reference: &str) -> bool {
    let mut read = reference.chars().filter(|c| *c != '\t').map(|c| matches!(c, '/' | '\\'));
    read.next() == Some(true) && read.next() == Some(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const CALLER: &str = "triage.example:8443";

    fn rewritten(base: &str, prefix: &str, name: HeaderName, value: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        let origin = Origin { scheme: "https", authority: Some(HeaderValue::from_static(CALLER)) };
        let base_url = base.parse().unwrap();
        let route = Route { base_url: &base_url, path_and_query: "/a/b?c=1", prefix, origin: &origin };
        rewrite(&mut headers, &route);
        String::from_utf8(headers[name].as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn urls_of_the_upstream_become_the_callers() {
        const UP: &str = "http://up.example:8000";
        for (base, prefix, value, expected) in [
            (UP, "", "http://up.example:8000/x/?y=1#z", "https://triage.example:8443/x/?y=1#z"),
            (UP, "", "HTTP://UP.EXAMPLE:8000/x", "https://triage.example:8443/x"),
            (UP, "", "http://up.example.:8000/x", "https://triage.example:8443/x"),
            (UP, "", "http://up.example:8000", "https://triage.example:8443/"),
            (UP, "", "//up.example:8000/x", "https://triage.example:8443/x"),
            (UP, "", "\\\\up.example:8000\\x", "https://triage.example:8443/x"),
            (UP, "", "/\t/up.example:8000/x", "https://triage.example:8443/x"),
            (UP, "", "http://user:word@up.example:8000/x", "https://triage.example:8443/x"),
            (UP, "/api", "http://up.example:8000/x", "https://triage.example:8443/api/x"),
            (UP, "/api", "http://up.example:8000", "https://triage.example:8443/api/"),
            ("https://up.example", "", "https://up.example:443/x", "https://triage.example:8443/x"),
            ("https://up.example", "", "http://up.example/x", "https://triage.example:8443/x"),
            ("http://[::1]:8000", "", "http://[0:0::1]:8000/x", "https://triage.example:8443/x"),
            // A base URL with a path, replaced by a prefix.
            ("http://up.example/v1", "/api", "http://up.example/v1/x", "https://triage.example:8443/api/x"),
            ("http://up.example/v1", "/api", "http://up.example/v1", "https://triage.example:8443/api"),
            // Beyond ASCII.
            (UP, "", "http://up.example:8000/h\u{f6}f", "https://triage.example:8443/h%C3%B6f"),
        ] {
            assert_eq!(rewritten(base, prefix, LOCATION, value), expected, "{value}");
            assert_eq!(rewritten(base, prefix, CONTENT_LOCATION, value), expected, "{value}");
        }
    }

    #[test]
    fn relative_ones_get_the_prefix() {
        for (base, prefix, value, expected) in [
            ("http://up.example", "", "/x", "/x"),
            ("http://up.example", "", "../x", "../x"),
            ("http://up.example", "/api", "/x?y#z", "/api/x?y#z"),
            ("http://up.example", "/api", "x", "/api/a/x"),
            ("http://up.example", "/api", "../../../x", "/api/x"),
            ("http://up.example", "/api", "?d=2", "/api/a/b?d=2"),
            ("http://up.example/v1", "", "/v1/x", "/x"),
            ("http://up.example/v1", "/v1", "/v1/x", "/v1/x"),
            // Two slashes would be an authority.
            ("http://up.example/v1", "", "/v1//evil.example/x", "/.//evil.example/x"),
            // Not below the base URL, so reachable only at the upstream.
            ("http://up.example/v1", "/api", "/login", "http://up.example/login"),
            ("http://up.example/v1", "", "/v10/x", "http://up.example/v10/x"),
        ] {
            assert_eq!(rewritten(base, prefix, LOCATION, value), expected, "{value}");
        }
    }

    #[test]
    fn other_urls_stay_as_they_are() {
        for value in [
            "http://other.example/x",
            "http://up.example:8001/x",
            "http://up.example.evil.example/x",
            "http://up.example@evil.example/x",
            "https://evil.example\\@up.example/",
            "//evil.example/x",
            "/\\evil.example/x",
            "mailto:a@up.example",
            "javascript:alert(1)",
            "urn:uuid:1",
            "http://[::1/x",
            "http://up.example:99999/",
            "",
        ] {
            assert_eq!(rewritten("http://up.example", "/api", LOCATION, value), value);
        }
        assert_eq!(
            rewritten("http://up.example/v1", "/api", LOCATION, "http://up.example/v2/x"),
            "http://up.example/v2/x",
            "no path here leads there"
        );
    }

    #[test]
    fn the_url_of_a_refresh_is_found_in_all_its_forms() {
        for (value, expected) in [
            ("5; url=http://up.example/x", "5; url=https://triage.example:8443/api/x"),
            ("5;URL='http://up.example/x' and more", "5; url=https://triage.example:8443/api/x"),
            ("0, url = \"/x\"", "0; url=/api/x"),
            ("3 http://up.example/x", "3; url=https://triage.example:8443/api/x"),
            ("5", "5"),
            ("5;", "5;"),
            ("5; url=", "5; url="),
            ("5; url=http://other.example/x", "5; url=http://other.example/x"),
        ] {
            assert_eq!(rewritten("http://up.example", "/api", REFRESH, value), expected, "{value}");
        }
    }

    #[test]
    fn a_caller_without_a_host_gets_a_path() {
        let mut headers = HeaderMap::new();
        headers.append(LOCATION, HeaderValue::from_static("http://up.example/x"));
        headers.append(LOCATION, HeaderValue::from_static("http://up.example//y"));
        let origin = Origin { scheme: "http", authority: None };
        let base_url = "http://up.example".parse().unwrap();
        rewrite(&mut headers, &Route { base_url: &base_url, path_and_query: "/", prefix: "", origin: &origin });
        assert_eq!(headers.get_all(LOCATION).iter().collect::<Vec<_>>(), ["/x", "/.//y"]);
    }

    proptest! {
        /// For any value, a reader as lenient as a browser reaches the URL that the upstream meant, or the host if the upstream meant
        /// itself.
        #[test]
        fn no_value_leads_past_the_host(value in "([a-z]{0,5}:)?[/\\\\]{0,3}(up\\.example|evil|@|:|8000){0,3}[ -~\u{e4}]{0,30}") {
            let before = Url::parse("http://up.example:8000/a/b?c=1").unwrap().join(value.trim());
            let seen = rewritten("http://up.example:8000", "/api", LOCATION, &value);
            let after = Url::parse("https://triage.example:8443/api/a/b?c=1").unwrap().join(&seen);
            let (Ok(before), Ok(after)) = (before, after) else { return Ok(()) };
            if before.host_str() == Some("up.example") && before.port() == Some(8000) && before.scheme() == "http" {
                prop_assert_eq!(after.host_str(), Some("triage.example"), "{} became {}", value, seen);
                prop_assert!(after.path().starts_with("/api"), "{} became {}", value, seen);
            } else {
                prop_assert_eq!((after.host(), after.path()), (before.host(), before.path()), "{} became {}", value, seen);
            }
        }
    }
}
