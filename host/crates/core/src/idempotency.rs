//! Idempotency keys: what a record goes through, and what a second request with the same key gets.
//!
//! A record is *new* (held by an owner, nothing sent), *sent* (its effect may have taken place) or *done* (the answer is kept
//! for replays). [`record`] holds the transitions, pure; `records` says what a store must do; `record_guard` is what an owner has
//! in hand while it works, and gives the record back whatever becomes of the owner.

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

/// How keys are honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a record is kept after it was finished. Default 24 h, as payment APIs have it.
    pub keep: Duration,
    /// How long an owner holds a record before it counts as crashed. At least the deadline; default 150 s.
    pub lock: Duration,
    /// The largest request body that a keyed request may have. Default 1 MiB.
    pub max_request_bytes: usize,
    /// The largest response body that is kept for replays. Default 1 MiB.
    pub max_response_bytes: usize,
    /// Records kept at most (memory state); at the limit new keys are refused. Default 1,000,000: 11 a second,
    /// and some 200 MB.
    pub max_records: usize,
    /// Whether callers may read the state of their records on the data listener. Default false.
    pub record_status: bool,
    /// The request headers whose values together name the tenant, hashed; none of them: all callers are one. Default the usual
    /// credentials: `Authorization`, `Cookie` and the usual headers of API keys, so that no caller is given an answer to another
    /// one's credentials. Where a credential changes between repetitions, name a header that stays.
    pub tenant_headers: Vec<http::HeaderName>,
    /// Whether an answer that is given again has the `Set-Cookie` of the first one. Default false: it may be another session's.
    pub replay_set_cookie: bool,
    /// How long a write without a key whose caller has gone is kept for the next equal request; none: not at all. Default
    /// 10 min: clients that repeat by themselves have given up by then.
    pub orphans: Option<Duration>,
    /// Writes without a key that are under way or kept at most; more go on without being kept. Default 10,000, a host's
    /// connections.
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
