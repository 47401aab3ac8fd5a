//! The API's calls, with limits that keep every fixed window of a minute below the server's.

use triage_policy::{Effect, Endpoint, Limit, StatusRange, endpoint, retry::hint_headers};

/// Which call an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// GET /
    Health,
    /// POST /hospitals/
    Create,
    /// GET /hospitals/
    List,
    /// GET /hospitals/{id}
    GetHospital,
    /// PUT /hospitals/{id}
    UpdateHospital,
    /// DELETE /hospitals/{id}
    DeleteHospital,
    /// GET /hospitals/batch/{batch}
    ListBatch,
    /// PATCH /hospitals/batch/{batch}/activate
    Activate,
    /// DELETE /hospitals/batch/{batch}
    DeleteBatch,
    /// Anything else.
    Other,
}

/// In the order of the description: the call, its name, method, path and the server's limit a minute.
const CALLS: [(Call, &str, &str, &str, u32); 10] = [
    (Call::Health, "health", "GET", "/", 100),
    (Call::Create, "create-hospital", "POST", "/hospitals/", 30),
    (Call::List, "list-hospitals", "GET", "/hospitals/", 50),
    (Call::GetHospital, "get-hospital", "GET", "/hospitals/{id}", 50),
    (Call::UpdateHospital, "update-hospital", "PUT", "/hospitals/{id}", 50),
    (Call::DeleteHospital, "delete-hospital", "DELETE", "/hospitals/{id}", 50),
    (Call::ListBatch, "list-batch", "GET", "/hospitals/batch/{batch}", 50),
    (Call::Activate, "activate-batch", "PATCH", "/hospitals/batch/{batch}/activate", 50),
    (Call::DeleteBatch, "delete-batch", "DELETE", "/hospitals/batch/{batch}", 50),
    (Call::Other, "other", "*", "/{*rest}", 0),
];

/// The largest create or activate body, and the largest batch, that are read.
const REQUEST_BYTES: u32 = 64 << 10;
const RESPONSE_BYTES: u32 = 256 << 10;
/// How late a create may land: a full pool of 40 handlers, a cold start of up to 60 s, the create's own 5 to 7.5 s.
pub const COMMIT_WITHIN_MS: u32 = 75_000;
/// Above the 5 to 7.5 s that a create takes, and well below the 30 s after which common clients give up: the look at the batch
/// must settle a lost create while its caller still waits.
const CREATE_TIMEOUT_MS: u32 = 12_000;

impl Call {
    /// The call at an index of the description.
    pub fn of(index: u32) -> Self {
        CALLS.get(index as usize).map_or(Self::Other, |call| call.0)
    }
}

/// All endpoints, described.
pub fn all() -> Vec<Endpoint> {
    CALLS.iter().map(|(call, name, method, path, limit)| described(*call, name, method, path, *limit)).collect()
}

fn described(call: Call, name: &str, method: &str, path: &str, limit: u32) -> Endpoint {
    let mut endpoint = endpoint(name, method, path);
    endpoint.interest.response_headers = hint_headers();
    endpoint.defaults.attempt_timeout_ms = Some(5_000);
    endpoint.defaults.deadline_ms = Some(15_000);
    if endpoint.effect != Effect::Unsafe {
        endpoint.settled = vec![StatusRange { first: 200, last: 299 }];
    }
    // 404 bodies tell a missing resource from a missing route.
    endpoint.interest.response_body_bytes = 4 << 10;
    if limit > 0 {
        // Half at once, the rest spread: burst + a minute's rate stays at the server's limit.
        let burst = limit / 2;
        endpoint.defaults.limits = vec![Limit { requests: limit - burst - 1, period_ms: 60_000, burst }];
    }
    match call {
        Call::Create => {
            endpoint.interest.request_body_bytes = REQUEST_BYTES;
            endpoint.interest.response_body_bytes = RESPONSE_BYTES;
            endpoint.commit_within_ms = Some(COMMIT_WITHIN_MS);
            endpoint.defaults.attempt_timeout_ms = Some(CREATE_TIMEOUT_MS);
            endpoint.defaults.deadline_ms = Some(120_000);
            endpoint.defaults.limits = vec![Limit { requests: 1, period_ms: 6_500, burst: 20 }];
            endpoint.defaults.concurrency = Some(20);
        }
        Call::Activate => {
            endpoint.interest.path = true;
            endpoint.interest.response_body_bytes = RESPONSE_BYTES;
            endpoint.commit_within_ms = Some(COMMIT_WITHIN_MS);
            endpoint.defaults.deadline_ms = Some(120_000);
        }
        _ => {}
    }
    endpoint
}
