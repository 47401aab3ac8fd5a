//! Idempotency keys: the states of a record, and the result of a second request with the same key.
//!
//! A record is *new* (an owner holds it, nothing was sent), *sent* (the write may have taken effect) or *done* (the answer is kept
//! for replays). [`record`] holds the transitions as pure functions; `records` is the interface of a store. An owner works under a
//! `record_guard`, which gives the record back even if the owner is dropped.

use std::time::Duration;

mod after_loss;
pub mod codec;
pub mod compact;
pub mod fingerprint;
pub mod header_roles;
pub mod host_lease;
pub mod intent;
pub mod key;
pub mod lease;
mod owner_proof;
pub mod record;
pub mod retention;
pub mod search_condition;
pub mod stored_response;
pub mod unanswered;

pub use after_loss::AfterLoss;
pub use compact::Compact;
pub use fingerprint::{Fingerprint, Identity, KeyTag, Likeness, RecordId, RequestDigest, Tenant};
pub use host_lease::{HeartbeatLease, HostLease};
pub use intent::{Intent, KeptRequest};
pub use key::{Key, KeyError, Keyed};
pub use lease::{Generation, LeaseTerm, RenewedLease};
pub use owner_proof::OwnerProofs;
pub use record::{BeginRequest, FencingToken, KeyedSends, Leaving, Postponed, RecordStatus};
pub use retention::{Ended, Ending, Retention, retention};
pub use stored_response::{Stored, StoredBody};

/// The settings of idempotency keys and of writes without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a record is kept after it was finished. Default 24 h, as payment APIs have it.
    pub keep: Duration,
    /// How long an owner may hold a record before the host takes it for crashed. At least the deadline; default 150 s.
    pub lock: Duration,
    /// The largest request body that a keyed request may have. Default 1 MiB.
    pub max_request_bytes: usize,
    /// The largest response body that is kept for replays. Default 1 MiB.
    pub max_response_bytes: usize,
    /// The maximum number of records, in this process or in shared state. At the limit the store refuses new keys. The host uses the
    /// largest value of its upstreams. Default 1,000,000: 11 new keys a second for 24 h, some 200 MB.
    pub max_records: usize,
    /// Whether callers may read the state of their records on the data listener. Default false.
    pub record_status: bool,
    /// The request headers whose hashed values identify the tenant. If a request has none of them, it shares one tenant with all such
    /// requests. Default: `Authorization`, `Cookie` and the usual headers of API keys, so that no caller gets an answer to another
    /// caller's credentials. If a credential changes between repetitions, name a header that stays the same.
    pub tenant_headers: Vec<http::HeaderName>,
    /// Whether a replayed answer keeps its `Set-Cookie` header. Default false: the cookie may belong to another session.
    pub replay_set_cookie: bool,
    /// How long a write without a key is kept for the next equal request after its caller disconnected; none: not at all. Default
    /// 10 min: clients with automatic retries have given up by then.
    pub orphans: Option<Duration>,
    /// The maximum number of writes without a key that are under way or kept; a write above it proceeds but is not kept. Default
    /// 10,000, as many as a host has connections.
    pub max_orphans: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            keep: Duration::from_hours(24),
            lock: Duration::from_secs(150),
            max_request_bytes: 1 << 20,
            max_response_bytes: 1 << 20,
            max_records: 1_000_000,
            record_status: false,
            tenant_headers: header_roles::CREDENTIALS.to_vec(),
            replay_set_cookie: false,
            orphans: Some(Duration::from_mins(10)),
            max_orphans: 10_000,
        }
    }
}
