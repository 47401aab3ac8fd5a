//! The JSON objects of responses. Times are in milliseconds, shares from 0 to 1.

// The API fixes the names.
#![allow(clippy::struct_field_names)]

mod fleet;

use super::AdminState;
use crate::{
    Host,
    breaker::BreakerState,
    clock::{Clock, micros, millis},
    config::settings,
    idempotency::Unsettled,
    rollout::{self, UpstreamPolicy},
    state::group,
    telemetry::{RequestTimeline, TimedEvent},
    upstream_runtime::UpstreamRuntime,
};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    pub(super) ready: bool,
    /// Why it is not ready.
    pub(super) unready: Option<&'static str>,
    pub(super) started_unix_ms: u64,
    pub(super) uptime_ms: u64,
    pub(super) workers: usize,
    pub(super) state: &'static str,
    pub(super) upstreams: Vec<Upstream>,
}

#[derive(Debug, Serialize)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) base_url: String,
    pub(super) policy: String,
    pub(super) generation: u64,
    pub(super) endpoints: usize,
    /// The number of breakers that are not closed.
    pub(super) breakers_open: usize,
}

/// A group's breaker.
#[derive(Debug, Serialize)]
pub(super) struct Breaker {
    pub(super) upstream: String,
    pub(super) group: String,
    pub(super) endpoints: Vec<String>,
    pub(super) enabled: bool,
    pub(super) state: &'static str,
    /// Why it opened.
    pub(super) why: Option<String>,
    /// Whether an operator has forced its state.
    pub(super) forced: bool,
    /// Time until half-open, or until the forced state ends.
    pub(super) remaining_ms: Option<u64>,
    pub(super) open_since_ms: Option<u64>,
    pub(super) failures_in_row: u32,
    pub(super) window: Option<Window>,
    /// The usual share of failed calls; none without a baseline, or before it is known.
    pub(super) usual_failures: Option<f64>,
    pub(super) probes_under_way: usize,
    pub(super) transitions: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Window {
    pub(super) calls: f64,
    pub(super) failures: f64,
    pub(super) slow: f64,
}

/// A group's rate limits.
#[derive(Debug, Serialize)]
pub(super) struct Limits {
    pub(super) upstream: String,
    pub(super) group: String,
    pub(super) endpoints: Vec<String>,
    pub(super) limits: Vec<LimitDto>,
    /// Time left of the upstream's pause.
    pub(super) paused_ms: Option<u64>,
    pub(super) concurrency: Vec<Concurrency>,
    /// This host's adaptive rate; none if disabled.
    pub(super) adaptive_rate: Option<AdaptiveRate>,
}

/// A rate that adapts to the upstream's throughput.
#[derive(Debug, Serialize)]
pub(super) struct AdaptiveRate {
    /// None while no limit is known.
    pub(super) per_minute: Option<f64>,
    pub(super) floor_per_minute: u32,
    pub(super) rise_per_minute: u32,
    pub(super) decreases: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct LimitDto {
    /// The endpoint that owns the limit; none if the whole group shares it.
    pub(super) endpoint: Option<String>,
    pub(super) requests: u32,
    pub(super) period_ms: u64,
    pub(super) burst: u32,
    /// Permits used of `burst`. Exceeds `burst` while some are reserved for later.
    pub(super) taken: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Concurrency {
    pub(super) endpoint: String,
    pub(super) places: usize,
    pub(super) taken: usize,
}

/// A group's retry budget.
#[derive(Debug, Serialize)]
pub(super) struct Budget {
    pub(super) upstream: String,
    pub(super) group: String,
    pub(super) endpoints: Vec<String>,
    /// The retries that the budget covers now.
    pub(super) saved: f64,
    pub(super) capacity: u32,
    pub(super) percent: u32,
    pub(super) floor_per_second: u32,
}

/// An upstream's policy.
#[derive(Debug, Serialize)]
pub(super) struct Policy {
    pub(super) upstream: String,
    pub(super) source: String,
    pub(super) serving: Generation,
    /// The number of the latest generation, even if it no longer serves.
    pub(super) latest: u64,
    /// The target of a `rollback`.
    pub(super) fallback: Option<Generation>,
    pub(super) quarantined: Vec<String>,
    /// The fleet's choice, if the upstream follows the fleet.
    pub(super) fleet: Option<fleet::Fleet>,
}

#[derive(Debug, Serialize)]
pub(super) struct Generation {
    pub(super) generation: u64,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) digest: Option<String>,
    /// `probation`, `good` or `suspended`.
    pub(super) standing: &'static str,
    /// Decisions and faults in the current window.
    pub(super) decisions: u32,
    pub(super) faults: u32,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize)]
pub(super) struct Endpoint {
    pub(super) name: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) effect: &'static str,
    /// Whether the policy may settle unknown writes here.
    pub(super) granted: bool,
}

/// A record of a write with unknown effect.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    pub(super) id: String,
    /// None if this record has no send of its own: the first send went through another host, which lost its record.
    pub(super) upstream: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) sent_ms_ago: u64,
    /// Time until a host verifies it automatically; none if no host will.
    pub(super) verified_in_ms: Option<u64>,
}

pub(super) fn status(state: &AdminState) -> Status {
    let unready = state.unready();
    let now = state.host.shared.clock.unix_ms();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        ready: unready.is_none(),
        unready,
        started_unix_ms: state.started_unix_ms,
        uptime_ms: now.saturating_sub(state.started_unix_ms),
        workers: state.lifecycle.workers(),
        state: match state.settings.load().state {
            settings::State::Memory => "memory",
            settings::State::Shared(_) => "shared",
        },
        upstreams: state.host.shared.rollout.upstreams.iter().map(|serving| upstream(serving)).collect(),
    }
}

pub(super) fn record(own: Unsettled) -> Record {
    let (upstream, endpoint) = own.endpoint.unzip();
    let verified_in_ms = own.verified_in.map(millis);
    Record { id: own.id.to_string(), upstream, endpoint, sent_ms_ago: millis(own.sent_ago), verified_in_ms }
}

/// A group of an upstream with the endpoints that share it.
pub(super) struct Shared<'a> {
    pub(super) upstream: &'a str,
    pub(super) endpoints: Vec<&'a crate::upstream_runtime::Endpoint>,
    pub(super) view: group::GroupStatus,
}

/// Every group of an upstream.
pub(super) fn groups(service: &UpstreamRuntime) -> Vec<Shared<'_>> {
    let mut groups: BTreeMap<&str, Vec<&crate::upstream_runtime::Endpoint>> = BTreeMap::new();
    for endpoint in &service.endpoints {
        groups.entry(endpoint.group.name()).or_default().push(endpoint);
    }
    let upstream = service.settings.name.as_str();
    let views = groups.into_values().filter_map(|endpoints| Some((endpoints.first()?.group.view(), endpoints)));
    views.map(|(view, endpoints)| Shared { upstream, endpoints, view }).collect()
}

impl Shared<'_> {
    fn group(&self) -> String {
        let own = self.view.group.split_once('/').map_or(self.view.group.as_str(), |(_, group)| group);
        own.to_owned()
    }

    fn names(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| endpoint.described.name.clone()).collect()
    }

    pub(super) fn breaker(&self) -> Breaker {
        let view = &self.view.breaker;
        let standing = view.as_ref().map_or(BreakerState::Closed, |view| view.standing);
        let calls = |milli: u64| milli as f64 / 1000.0;
        Breaker {
            upstream: self.upstream.to_owned(),
            group: self.group(),
            endpoints: self.names(),
            enabled: view.is_some(),
            state: standing.name(),
            why: view.as_ref().and_then(|view| view.why).map(|why| why.to_string()),
            forced: view.as_ref().is_some_and(|view| view.forced),
            remaining_ms: view.as_ref().and_then(|view| view.remaining).map(millis),
            open_since_ms: view.as_ref().and_then(|view| view.open_since).map(millis),
            failures_in_row: view.as_ref().map_or(0, |view| view.failures_in_row),
            window: view.as_ref().map(|view| Window {
                calls: calls(view.counts.calls_milli),
                failures: calls(view.counts.failures_milli),
                slow: calls(view.counts.slow_milli),
            }),
            usual_failures: view.as_ref().and_then(|view| view.usual_milli).map(|milli| f64::from(milli) / 1000.0),
            probes_under_way: view.as_ref().map_or(0, |view| view.probes),
            transitions: view.as_ref().map_or(0, |view| view.epoch),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        let limit = |own: &group::LimitView, endpoint: Option<&str>| LimitDto {
            endpoint: endpoint.map(str::to_owned),
            requests: own.quota.requests.get(),
            period_ms: millis(own.quota.period),
            burst: own.quota.burst.get(),
            taken: own.taken,
        };
        let places = self.endpoints.iter().filter_map(|endpoint| {
            let (places, most) = (endpoint.concurrency_permits.as_ref()?, endpoint.settings.concurrency?);
            let taken = most.saturating_sub(places.available_permits());
            Some(Concurrency { endpoint: endpoint.described.name.clone(), places: most, taken })
        });
        let alone = self.endpoints.iter().flat_map(|endpoint| {
            let name = endpoint.described.name.as_str();
            endpoint.group.own_limits().into_iter().map(move |own| limit(&own, Some(name)))
        });
        Limits {
            upstream: self.upstream.to_owned(),
            group: self.group(),
            endpoints: self.names(),
            limits: self.view.limits.iter().map(|own| limit(own, None)).chain(alone).collect(),
            paused_ms: self.view.paused.map(millis),
            concurrency: places.collect(),
            adaptive_rate: self.view.pace.map(|pace| AdaptiveRate {
                per_minute: pace.per_minute,
                floor_per_minute: pace.settings.floor_per_minute,
                rise_per_minute: pace.settings.rise_per_minute,
                decreases: pace.decreases,
            }),
        }
    }

    pub(super) fn budget(&self) -> Budget {
        let settings = &self.view.budget_settings;
        Budget {
            upstream: self.upstream.to_owned(),
            group: self.group(),
            endpoints: self.names(),
            saved: self.view.budget as f64 / 1000.0,
            capacity: settings.capacity,
            percent: settings.percent,
            floor_per_second: settings.floor_per_second,
        }
    }
}

pub(super) fn policy(serving: &UpstreamPolicy) -> Policy {
    let rollout::PolicyStatus { current, latest, fallback, quarantined } = serving.view();
    let mut quarantined: Vec<String> = quarantined.iter().map(ToString::to_string).collect();
    quarantined.sort_unstable();
    Policy {
        upstream: serving.settings.name.clone(),
        source: serving.settings.policy.to_string(),
        serving: generation(&current),
        latest,
        fallback: fallback.map(|service| generation(&service)),
        quarantined,
        fleet: serving.following.as_ref().map(|following| fleet::of(&following.report(current.artifact))),
    }
}

fn generation(service: &UpstreamRuntime) -> Generation {
    let description = service.policy.description();
    let (decisions, faults) = service.probation.counts();
    let standing = match (service.probation.is_suspended(), service.probation.is_good() || service.generation == 1) {
        (true, _) => "suspended",
        (false, true) => "good",
        (false, false) => "probation",
    };
    let endpoint = |own: &crate::upstream_runtime::Endpoint| Endpoint {
        name: own.described.name.clone(),
        method: own.described.method.as_ref().map_or("*", http::Method::as_str).to_owned(),
        path: own.described.path.clone(),
        effect: own.described.effect.name(),
        granted: own.granted,
    };
    Generation {
        generation: service.generation,
        name: description.name.clone(),
        version: description.version.clone(),
        digest: service.policy.digest().map(|digest| digest.to_string()),
        standing,
        decisions,
        faults,
        endpoints: service.endpoints.iter().map(endpoint).collect(),
    }
}

pub(super) fn upstream(serving: &UpstreamPolicy) -> Upstream {
    let service = serving.current();
    let open = groups(&service).iter().filter(|group| group.breaker().state != BreakerState::Closed.name()).count();
    Upstream {
        name: serving.settings.name.clone(),
        base_url: serving.settings.connection.base_url.to_string(),
        policy: service.policy.label().to_str().unwrap_or_default().to_owned(),
        generation: service.generation,
        endpoints: service.endpoints.len(),
        breakers_open: open,
    }
}

/// The upstream with this name.
pub(super) fn serving<'a>(host: &'a Host, name: &str) -> Option<&'a UpstreamPolicy> {
    host.shared.rollout.upstreams.iter().find(|serving| serving.settings.name == name).map(AsRef::as_ref)
}

/// A request and its timeline.
#[derive(Debug, Serialize)]
pub(super) struct Request {
    #[serde(flatten)]
    pub(super) summary: Summary,
    pub(super) policy: String,
    pub(super) generation: u64,
    /// The caller's trace id.
    pub(super) trace: Option<String>,
    pub(super) steps: Vec<TimelineEventDto>,
    /// The number of timeline events that were dropped.
    pub(super) omitted: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) id: String,
    pub(super) upstream: String,
    pub(super) endpoint: String,
    pub(super) method: &'static str,
    pub(super) unix_ms: u64,
    pub(super) took_us: u64,
    /// None if the caller left before the response.
    pub(super) status: Option<u16>,
}

#[derive(Debug, Serialize)]
pub(super) struct TimelineEventDto {
    #[serde(flatten)]
    noted: TimedEvent,
    /// The event as a sentence.
    text: String,
}

pub(super) fn summary(timeline: &RequestTimeline, clock: &Clock) -> Summary {
    Summary {
        id: timeline.id.to_string(),
        upstream: timeline.names.upstream.clone(),
        endpoint: timeline.names.endpoint.clone(),
        method: timeline.method,
        unix_ms: clock.unix_ms().saturating_sub(millis(timeline.began.elapsed())),
        took_us: micros(timeline.took),
        status: timeline.status,
    }
}

pub(super) fn request(timeline: RequestTimeline, clock: &Clock) -> Request {
    Request {
        summary: summary(&timeline, clock),
        policy: timeline.policy.to_str().unwrap_or_default().to_owned(),
        generation: timeline.generation,
        trace: timeline.trace.map(|trace| trace.to_string()),
        steps: timeline
            .steps
            .into_iter()
            .map(|noted| TimelineEventDto { text: noted.step.to_string(), noted })
            .collect(),
        omitted: timeline.omitted,
    }
}
