//! The facts that decide about conditions, gathered from the host.

use crate::{
    AdminState,
    config::settings,
    dto,
    rollout::UpstreamPolicy,
    state_redis,
    telemetry::{Event, Events, FailedAttempt, FailureCause, Traffic},
};
use std::time::Duration;

/// Everything that the rules look at.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) now_unix_ms: u64,
    /// Why the host is not ready.
    pub(crate) unready: Option<&'static str>,
    /// None: state is in this process.
    pub(crate) state: Option<StateFacts>,
    pub(crate) is_memory_full: bool,
    pub(crate) upstreams: Vec<UpstreamFacts>,
    /// Requests of the last ten seconds, by upstream; an empty name for requests that matched none.
    pub(crate) traffic: Vec<Traffic>,
    pub(crate) unsettled: UnsettledFacts,
    /// The last refused reload, if no reload has succeeded since.
    pub(crate) reload_refused: Option<Event>,
    /// Refusals of connections: nothing else shows them.
    pub(crate) refused_connections: Vec<Event>,
    /// Timelines that the trace exporter dropped in the last ten seconds.
    pub(crate) traces_dropped: u64,
}

/// Whether shared state can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Up,
    Down,
    /// The server refuses this host's name or password.
    Unauthorized,
}

/// Shared state.
#[derive(Debug)]
pub(crate) struct StateFacts {
    pub(crate) reach: Reach,
    pub(crate) may_evict: bool,
    /// `state.prefix`.
    pub(crate) prefix: String,
    /// `state.writes_alone`.
    pub(crate) writes_alone: bool,
    /// Age of the last loss of data, while keys of before the loss may still be in use.
    pub(crate) lost_ago: Option<Duration>,
    /// The server's code for the last call that it refused, in the last ten seconds.
    pub(crate) refused: Option<String>,
    /// Calls in the last ten seconds that got no answer in time.
    pub(crate) timed_out: u64,
}

/// An upstream.
#[derive(Debug)]
pub(crate) struct UpstreamFacts {
    pub(crate) name: String,
    /// Each breaker, and the most frequent cause of the failures that opened it.
    pub(crate) breakers: Vec<(dto::Breaker, Option<FailureCause>)>,
    pub(crate) limits: Vec<dto::Limits>,
    pub(crate) policy: dto::Policy,
    /// Requests that the adaptive limit refused in the last ten seconds.
    pub(crate) shed: u64,
    /// The latest failure of an attempt.
    pub(crate) latest_failure: Option<FailedAttempt>,
    /// The last events of a policy's life that are conditions for an hour.
    pub(crate) events: Vec<Event>,
}

/// Writes whose effect is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct UnsettledFacts {
    pub(crate) count: usize,
    /// Those that no host verifies by itself.
    pub(crate) unverified: usize,
    /// When the last byte of the oldest was sent, since 1970.
    pub(crate) oldest_unix_ms: u64,
}

/// Events that stay conditions for an hour, each with the event that ends it.
const LASTING: [(&str, &str); 4] = [
    ("policy-rolled-back", "policy-installed"),
    ("policy-withdrawn", "policy-installed"),
    ("policy-refused", "policy-installed"),
    ("candidate-given-up", "candidate-tried"),
];

/// The host's facts now. `recent`: what happened in the last ten seconds; `unsettled`: the last count of unknown writes.
pub(crate) fn gather(state: &AdminState, recent: Recent, unsettled: UnsettledFacts) -> Facts {
    let shared = &state.host.shared;
    let events = &shared.events;
    let refused = events.last("reload-refused", "config");
    let reloaded = events.last("reloaded", "config").map_or(0, |event| event.number);
    // Before the first sample, nothing was shed.
    let upstreams = shared.rollout.upstreams.iter().zip(recent.shed.into_iter().chain(std::iter::repeat(0)));
    let now_unix_ms = shared.clock.unix_ms();
    Facts {
        now_unix_ms,
        unready: state.unready(),
        state: state_facts(state, recent.state_timed_out),
        is_memory_full: shared.memory.is_full(),
        upstreams: upstreams.map(|(serving, shed)| upstream(serving, events, shed, now_unix_ms)).collect(),
        traffic: recent.traffic,
        unsettled,
        reload_refused: refused.filter(|event| event.number > reloaded),
        refused_connections: ["peer-limited", "exhausted"]
            .into_iter()
            .filter_map(|kind| events.recent(kind, now_unix_ms.saturating_sub(SELDOM_EVENT_MS)))
            .collect(),
        traces_dropped: recent.traces_dropped,
    }
}

/// What happened in the last ten seconds.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    pub(crate) traffic: Vec<Traffic>,
    /// Requests that the adaptive limit refused, by upstream.
    pub(crate) shed: Vec<u64>,
    pub(crate) state_timed_out: u64,
    pub(crate) traces_dropped: u64,
}

fn state_facts(state: &AdminState, timed_out: u64) -> Option<StateFacts> {
    let link = state.host.shared.link.as_ref()?;
    let settings = state.settings.load();
    let settings::State::Shared(shared) = &settings.state else { return None };
    let state_redis::Condition { is_up, may_evict, refused, .. } = link.condition();
    let keep = |upstream: &settings::Upstream| {
        let keys = &upstream.idempotency;
        keys.keep.saturating_add(keys.lock)
    };
    let longest = settings.upstreams.iter().map(keep).max().unwrap_or_default();
    Some(StateFacts {
        reach: match (link.is_unauthorized(), is_up) {
            (true, _) => Reach::Unauthorized,
            (false, true) => Reach::Up,
            (false, false) => Reach::Down,
        },
        may_evict,
        prefix: shared.prefix.clone(),
        writes_alone: shared.writes_alone,
        lost_ago: state.host.shared.records.lost_ago().filter(|ago| *ago < longest),
        refused: refused.filter(|(_, ago)| *ago < RECENT).map(|(code, _)| code),
        timed_out,
    })
}

/// A failure that is older does not explain the failures of the last ten seconds.
const MAX_CAUSE_AGE_MS: u64 = 60_000;
/// Events of refused connections come at most once a minute, so that one of them stands for longer than that.
const SELDOM_EVENT_MS: u64 = 90_000;
/// How long ago an incident may be to count as present, where only its last occurrence is known.
const RECENT: Duration = Duration::from_secs(10);

fn upstream(serving: &UpstreamPolicy, events: &Events, shed: u64, now_unix_ms: u64) -> UpstreamFacts {
    let service = serving.current();
    let groups = dto::groups(&service, events);
    let name = serving.settings.name.clone();
    let failures = groups.iter().filter_map(|group| events.failures().latest(&group.view.group));
    // An older failure does not explain what fails now.
    let failures = failures.filter(|failure| now_unix_ms.saturating_sub(failure.unix_ms) < MAX_CAUSE_AGE_MS);
    let cause = |group: &dto::Shared<'_>| Some(group.trip.as_ref()?.causes.first()?.0);
    let lasting = LASTING.iter().filter_map(|(kind, end)| {
        let ended = events.last(end, &name).map_or(0, |event| event.number);
        events.last(kind, &name).filter(|event| event.number > ended)
    });
    UpstreamFacts {
        breakers: groups.iter().map(|group| (group.breaker(), cause(group))).collect(),
        limits: groups.iter().filter_map(dto::Shared::limits).collect(),
        policy: dto::policy(serving),
        shed,
        latest_failure: failures.max_by_key(|failure| failure.unix_ms),
        events: lasting.collect(),
        name,
    }
}
