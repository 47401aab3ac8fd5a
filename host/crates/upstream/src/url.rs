//! Builds the URL of a request below an upstream's base URL.

use http::Uri;
use reqwest::Url;

/// The URL of a path below the base. The base is parsed only once, since that is most of the cost.
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

/// The URI of a path below the base; none if the base has no authority or the result is no URI.
pub fn uri_below(base: &Uri, path_and_query: &str) -> Option<Uri> {
    let base = Url::parse(&base.to_string()).ok()?;
    below(&base, path_and_query).as_str().parse().ok()
}

/// Whether a path can be sent unchanged. Other paths (a policy may request `/rooms?name=A#4`) are first encoded and normalised like a
/// URL's, so that all kinds of connections send the same path.
pub(super) fn is_plain(path_and_query: &str) -> bool {
    let takes_encoding = |byte: &u8| !byte.is_ascii_graphic() || b"\"#'<>\\^`{|}".contains(byte);
    !path_and_query.as_bytes().iter().any(takes_encoding) && !path_and_query.contains("/.")
}
