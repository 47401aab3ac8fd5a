//! Validates the head of a response before it is forwarded.

use super::headers;
use crate::contract::FailureReason;
use http::{HeaderMap, StatusCode};

/// HTTP defines five classes of statuses (RFC 9110 section 15). Callers interpret a higher status in different ways.
const MAX_STATUS: u16 = 599;

/// Validates a head and reduces it to one content length. Of the interim responses, only 101 gets here.
///
/// # Errors
/// Why the head is invalid. The upstream may still have processed the request.
pub fn check(status: StatusCode, headers: &mut HeaderMap, max_fields: usize) -> Result<(), FailureReason> {
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
