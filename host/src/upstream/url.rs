//! Where below an upstream's base a request goes.

use reqwest::Url;

/// A URL below the base. Scheme and authority were parsed once: that is most of what parsing a URL costs.
pub(super) fn below(base: &Url, path_and_query: &str) -> Url {
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let mut url = base.clone();
    match base.path() {
        "" | "/" => url.set_path(path),
        prefix => url.set_path(&[prefix, path].concat()),
    }
    url.set_query(query);
    url
}

/// Whether a path is sent as it stands. Others (a policy may look at `/rooms?name=A#4`) are encoded and resolved first, as a URL's
/// parts are, so that they arrive alike over every kind of connection.
pub(super) fn is_plain(path_and_query: &str) -> bool {
    let takes_encoding = |byte: &u8| !byte.is_ascii_graphic() || b"\"#'<>\\^`{|}".contains(byte);
    !path_and_query.as_bytes().iter().any(takes_encoding) && !path_and_query.contains("/.")
}
