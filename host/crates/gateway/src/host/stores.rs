//! Opens the stores for the state that a fleet shares, or for state in this process.

use super::{HostError, Shared};
use crate::{
    admission::Groups,
    clock::Clock,
    config::settings::{Settings, State},
    idempotency::{self, OwnerProofs, Records},
    rng::Rng,
    state::local_fallback::AloneIfNeeded,
    state::memory::records::{Limits, MemoryRecords},
    state_redis::{
        OpenError, RedisConnection,
        admission::RedisGates,
        records::{RedisRecords, Sealer},
    },
    telemetry::Events,
};
use std::sync::Arc;

impl Shared {
    /// Whether claims may be missing: shared state has lost its data, and records from before the loss could still be alive.
    pub(crate) fn is_after_loss(&self, settings: &idempotency::Settings) -> bool {
        let lifetime = settings.keep.saturating_add(settings.lock);
        self.records.lost_ago().is_some_and(|ago| ago < lifetime)
    }
}

/// The connection to shared state, if it is configured.
pub(super) fn open(settings: &Settings, clock: Clock, entropy: &Rng) -> Result<Option<RedisConnection>, HostError> {
    match &settings.state {
        State::Memory => Ok(None),
        State::Shared(shared) => Ok(Some(RedisConnection::open(shared, clock, entropy.clone())?)),
    }
}

/// The groups of breakers, budgets and rate limits.
pub(super) fn gates(
    settings: &Settings,
    link: Option<&RedisConnection>,
    clock: Clock,
    entropy: &Rng,
    events: &Arc<Events>,
) -> Groups {
    let (entropy, events) = (entropy.clone(), Arc::clone(events));
    match (link, &settings.state) {
        (Some(link), State::Shared(shared)) => {
            let own = Arc::clone(&events);
            Groups::shared(RedisGates::open(link.clone(), shared.quorum, clock, entropy, own), clock, events)
        }
        _ => Groups::memory(clock, entropy, events),
    }
}

/// Idempotency records, claims and fingerprint locks; and the proofs in record ids.
pub(super) fn records(
    settings: &Settings,
    link: Option<&RedisConnection>,
    clock: Clock,
    entropy: &Rng,
    events: &Arc<Events>,
) -> Result<(Arc<dyn Records>, OwnerProofs), HostError> {
    let keys = settings.upstreams.iter().map(|upstream| &upstream.idempotency);
    let limits = keys.max_by_key(|keys| keys.max_records).map(Limits::of).unwrap_or_default();
    // Leave half of the memory to requests: full records must not keep the host from serving reads.
    let most = settings.server.memory_limit.map_or(usize::MAX, |limit| limit / 2);
    let bytes = settings.records.max_bytes.min(most);
    let tenant_bytes = bytes / 100 * settings.records.tenant_share_percent as usize;
    let limits = Limits { bytes, tenant_bytes, ..limits };
    let in_memory = || MemoryRecords::new(clock, limits).with_events(Arc::clone(events));
    let (Some(link), State::Shared(shared)) = (link, &settings.state) else {
        return Ok((Arc::new(in_memory()), OwnerProofs::of_process(entropy)));
    };
    let sealer = Sealer::configured(shared.key.as_ref())?;
    if !sealer.has_key() {
        tracing::warn!(
            "no key encrypts stored answers (state.key_file or TRIAGE_STATE_KEY): the host stores only the status of \
             each answer, and a repetition gets a problem instead of the answer"
        );
    }
    let proofs = OwnerProofs::shared(sealer.proof_secrets());
    let records = RedisRecords::new(link.clone(), clock, entropy.clone(), sealer, limits.records, Arc::clone(events));
    if shared.writes_alone {
        return Ok((Arc::new(AloneIfNeeded::new(Arc::new(records), in_memory())), proofs));
    }
    Ok((Arc::new(records), proofs))
}

/// Checks that shared state can be opened as configured. Does not connect.
///
/// # Errors
/// The configuration key that is wrong, and why.
pub fn check(settings: &Settings) -> Result<(), (&'static str, HostError)> {
    let State::Shared(shared) = &settings.state else { return Ok(()) };
    Sealer::configured(shared.key.as_ref()).map_err(|error| ("state.key_file", error.into()))?;
    let key = |error: &OpenError| if let OpenError::File { key, .. } = error { key } else { "state.url" };
    RedisConnection::check(shared).map_err(|error| (key(&error), error.into()))
}
