//! What a listener asks of a request beyond what every caller is asked, those in process included.

use crate::error::Problem;
use http::{Request, Version, header::HOST};

/// The parser's own limit on header fields. Above it hyper answers 431 by itself and without a body; below it the host names the key.
/// The parser's table of fields costs 25 ns a request, whatever its size up to here (measured with mimalloc): it is not cleared.
pub(super) const PARSED_FIELDS: usize = 8192;

/// Why a request is not taken, if it is not.
pub(super) fn refusal<B>(request: &Request<B>, max_fields: usize) -> Option<Problem> {
    if request.headers().len() > max_fields {
        return Some(Problem::TooManyFields { limit: max_fields });
    }
    // RFC 9112 section 3.2: a request without it may be meant for any host.
    let needs_host = request.version() >= Version::HTTP_11;
    let names_host = request.uri().authority().is_some() || request.headers().contains_key(HOST);
    (needs_host && !names_host).then_some(Problem::HostMissing)
}
