//! What a listener asks of a request beyond what every caller is asked, those in process included.

use crate::error::Problem;
use http::{Request, Version, header::HOST};

/// The parser's limit on header fields for a limit on those that are admitted. Above the parser's, hyper answers 431 by itself and
/// without a body; between the two the host says which key it is.
pub(super) const fn parsed_fields(max_fields: usize) -> usize {
    max_fields.saturating_mul(4)
}

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
