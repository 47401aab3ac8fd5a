//! The interactions of FHIR's REST API, as endpoints of the description.
//!
//! Paths count from the upstream's `base_url`. A base with more segments still works: [`Call::of`] looks at the path's last
//! segment too. Only the host's own view of the effect, and so its handling of a caller that leaves, needs the exact template.

use crate::{Settings, conditional};
use triage_policy::{Attempt, Effect, Endpoint, StatusRange, endpoint, retry::hint_headers};

/// Which interaction an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Reads, searches by GET, history, capabilities.
    Read,
    /// A create, conditional or not, or an operation by POST.
    Create,
    /// An update.
    Update,
    /// An update of what a search finds. It creates where the search finds nothing.
    ConditionalUpdate,
    /// A patch.
    Patch,
    /// A delete.
    Delete,
    /// A delete of what a search finds. Sent twice, it takes what was created in between.
    ConditionalDelete,
    /// A batch or a transaction.
    Bundle,
    /// `$export` by GET: it starts a job.
    Export,
    /// A search by POST: it reads.
    Search,
}

/// In the order of the description: the call, its name, method and path.
const CALLS: [(Call, &str, &str, &str); 14] = [
    (Call::Read, "read", "*", "/{*rest}"),
    (Call::Create, "create", "POST", "/{*rest}"),
    (Call::Update, "update", "PUT", "/{*rest}"),
    (Call::Patch, "patch", "PATCH", "/{*rest}"),
    (Call::Delete, "delete", "DELETE", "/{*rest}"),
    (Call::Bundle, "bundle", "POST", "/"),
    (Call::Export, "export", "GET", "/$export"),
    (Call::Export, "export-type", "GET", "/{type}/$export"),
    (Call::Export, "export-instance", "GET", "/{type}/{id}/$export"),
    (Call::Search, "search", "POST", "/_search"),
    (Call::Search, "search-type", "POST", "/{type}/_search"),
    (Call::Search, "search-compartment", "POST", "/{type}/{id}/{other}/_search"),
    // A resource has an id behind its type: these have a condition instead.
    (Call::ConditionalUpdate, "conditional-update", "PUT", "/{type}"),
    (Call::ConditionalDelete, "conditional-delete", "DELETE", "/{type}"),
];

/// Enough for the issues of an `OperationOutcome`.
const OUTCOME_BYTES: u32 = 64 << 10;
/// A verification's answer holds the resource found.
const BUNDLE_BYTES: u32 = 256 << 10;
/// Of an update's body, which is compared with the resource found. Records keep no more of a request.
const RESOURCE_BYTES: u32 = 64 << 10;
/// The limit on one conditional write. Creates take well below a second; a caller that gives up after 30 s still gets an answer.
const CREATE_TIMEOUT_MS: u32 = 10_000;
/// The longest deadline that a policy may propose.
const MAX_DEADLINE_MS: u32 = 3_600_000;

impl Call {
    /// The call that an attempt is, by its endpoint and the end of its path.
    pub fn of(attempt: &Attempt) -> Self {
        let call = CALLS.get(attempt.endpoint as usize).map_or(Self::Read, |call| call.0);
        let last = last_segment(&attempt.path);
        match call {
            Self::Read if last == "$export" => Self::Export,
            Self::Create if last == "_search" => Self::Search,
            Self::Update | Self::Delete if is_type(last) && conditional::selects_any(&attempt.path) => match call {
                Self::Update => Self::ConditionalUpdate,
                _ => Self::ConditionalDelete,
            },
            _ => call,
        }
    }
}

/// The last segment of a path, without its query.
pub fn last_segment(path_and_query: &str) -> &str {
    let path = path_and_query.split('?').next().unwrap_or_default();
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// Whether a segment is the name of a type, such as `Patient`; an id of letters alone may look like one.
pub fn is_type(segment: &str) -> bool {
    segment.starts_with(|first: char| first.is_ascii_uppercase())
        && segment.contains(|letter: char| letter.is_ascii_lowercase())
        && segment.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// All endpoints, described under the operator's settings.
pub fn all(settings: &Settings) -> Vec<Endpoint> {
    CALLS.iter().map(|(call, name, method, path)| described(settings, *call, name, method, path)).collect()
}

fn described(settings: &Settings, call: Call, name: &str, method: &str, path: &str) -> Endpoint {
    let mut endpoint = endpoint(name, method, path);
    endpoint.interest.path = true;
    endpoint.interest.response_headers = hint_headers();
    endpoint.interest.response_body_bytes = OUTCOME_BYTES;
    match call {
        Call::Create | Call::ConditionalUpdate | Call::ConditionalDelete => {
            endpoint.effect = Effect::Unsafe;
            // `accept` and `prefer` say in which form the answer is wanted, for the one that takes its place.
            let headers: &[&str] = match call {
                Call::Create => &["if-none-exist", "accept", "prefer"],
                Call::ConditionalUpdate => &["if-match", "accept", "prefer"],
                _ => &[],
            };
            endpoint.interest.request_headers = headers.iter().map(|name| (*name).to_owned()).collect();
            if call == Call::ConditionalUpdate {
                endpoint.interest.request_body_bytes = RESOURCE_BYTES;
            }
            endpoint.interest.response_body_bytes = BUNDLE_BYTES;
            endpoint.commit_within_ms = Some(settings.commit_within.0);
            endpoint.defaults.attempt_timeout_ms = Some(CREATE_TIMEOUT_MS);
            // Time for the write, for the proof that it is absent, and for another one.
            let deadline = settings.commit_within.0.saturating_add(3 * CREATE_TIMEOUT_MS);
            endpoint.defaults.deadline_ms = Some(deadline.min(MAX_DEADLINE_MS));
        }
        Call::Update | Call::Patch => endpoint.interest.request_headers = vec!["if-match".to_owned()],
        Call::Export => endpoint.effect = Effect::Unsafe,
        Call::Search => endpoint.effect = Effect::Safe,
        Call::Read | Call::Delete | Call::Bundle => {}
    }
    if endpoint.effect != Effect::Unsafe {
        endpoint.settled = vec![StatusRange { first: 200, last: 299 }];
    }
    endpoint
}
