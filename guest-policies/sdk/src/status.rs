//! Statuses whose meaning for a request's effect does not depend on the API.

/// Whether a response with this status leaves open what became of a write. The upstream, or a gateway in front of it, gave up
/// (408, 460, 499), is in trouble (500 and every 5xx that a CDN makes up), or did not answer in HTTP (below 200, above 599).
/// 501, 505 and 511 are refusals.
#[must_use]
pub fn leaves_unknown(status: u16) -> bool {
    match status {
        501 | 505 | 511 => false,
        408 | 460 | 499 => true,
        200..=499 => false,
        _ => true,
    }
}

/// Whether a redirect asks for the same request at another place (307, 308): nothing was done here. After the other redirects
/// a caller asks for the result, or for a page, by GET.
#[must_use]
pub fn is_elsewhere(status: u16) -> bool {
    matches!(status, 307 | 308)
}
