//! Checks that apply at a listener only, not to requests in process.

use crate::error::Problem;
use http::{Request, Version, header::HOST};

/// The parser's own limit on header fields. Above it, hyper responds 431 by itself and without a body; below it, the host's 431 names the
/// configuration key. The parser's table of fields costs 25 ns a request, at any size up to this one (measured with mimalloc): it is not
/// cleared.
pub(super) const PARSED_FIELDS: usize = 8192;

/// The problem with a request, if there is one.
pub(super) fn refusal<B>(request: &Request<B>, max_fields: usize) -> Option<Problem> {
    if request.headers().len() > max_fields {
        return Some(Problem::TooManyFields { limit: max_fields });
    }
    // RFC 9112 section 3.2: without a Host field, a request could be meant for any host.
    let needs_host = request.version() >= Version::HTTP_11;
    let names_host = request.uri().authority().is_some() || request.headers().contains_key(HOST);
    (needs_host && !names_host).then_some(Problem::HostMissing)
}
