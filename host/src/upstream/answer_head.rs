//! What an answer's head must be like to be passed on, and what is put right in it.

use super::headers;
use crate::policy::contract::FailureReason;
use http::{HeaderMap, StatusCode};

/// HTTP has five classes of statuses (RFC 9110 section 15); callers read what lies above as they please.
const MAX_STATUS: u16 = 599;

/// Checks a head, and gives it one content length. Interim answers other than 101 do not come this far.
///
/// # Errors
/// Why it is no answer: the request may have been processed all the same.
pub(crate) fn check(status: StatusCode, headers: &mut HeaderMap, max_fields: usize) -> Result<(), FailureReason> {
    if status.is_informational() {
        return Err(FailureReason::Upgrade);
    }
    if status.as_u16() > MAX_STATUS {
        return Err(FailureReason::Status);
    }
    if headers.len() > max_fields {
        return Err(FailureReason::TooManyFields);
    }
    if headers::is_coded(headers) {
        return Err(FailureReason::TransferCoding);
    }
    headers::one_length(headers).map_err(|_| FailureReason::ContentLength)
}
