//! The JSON objects of an upstream's groups: breaker, rate limits and retry budget.

use crate::{
    admission::Group,
    breaker,
    clock::millis,
    state::group,
    telemetry::{self, Events, TripFailures},
    upstream_runtime::{Endpoint, UpstreamRuntime},
};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A group's breaker.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Breaker {
    pub(crate) upstream: String,
    pub(crate) group: String,
    /// The endpoints of the group.
    pub(crate) endpoints: Vec<String>,
    #[schema(inline)]
    pub(crate) requests: Requests,
    /// Whether the group has a breaker.
    pub(crate) enabled: bool,
    #[schema(inline)]
    pub(crate) state: BreakerState,
    /// Why it opened, and what failed.
    pub(crate) why: Option<String>,
    /// The first failure that opened it; null if this host saw none.
    pub(crate) first_failure: Option<FailedAttempt>,
    /// The latest failure before it opened.
    pub(crate) latest_failure: Option<FailedAttempt>,
    /// Whether an operator has forced its state.
    pub(crate) forced: bool,
    /// Time until half-open, or until the forced state ends.
    pub(crate) remaining_ms: Option<u64>,
    /// Time since it opened.
    pub(crate) open_since_ms: Option<u64>,
    /// Consecutive failed calls.
    pub(crate) failures_in_row: u32,
    pub(crate) window: Option<Window>,
    /// The usual share of failed calls; null if the breaker has no baseline, or does not know it yet.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) usual_failures: Option<f64>,
    /// Probes of the half-open state that have no result yet.
    pub(crate) probes_under_way: usize,
    /// Number of state changes so far.
    pub(crate) transitions: u64,
}

/// The requests that a breaker counts and refuses: all of its endpoints, the safe ones, or the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Requests {
    All,
    Reads,
    Writes,
}

/// A failed attempt. Its request stays explainable until the breaker opens again.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FailedAttempt {
    /// Id of the request.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    pub(crate) request: String,
    /// Time of the failure, since 1970.
    pub(crate) unix_ms: u64,
    /// What failed.
    pub(crate) cause: String,
}

impl From<telemetry::FailedAttempt> for FailedAttempt {
    fn from(failed: telemetry::FailedAttempt) -> Self {
        let telemetry::FailedAttempt { request, unix_ms, cause } = failed;
        Self { request: request.to_string(), unix_ms, cause: cause.to_string() }
    }
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BreakerState {
    Closed,
    Open,
    HalfOpen,
}

impl From<breaker::BreakerState> for BreakerState {
    fn from(state: breaker::BreakerState) -> Self {
        match state {
            breaker::BreakerState::Closed => Self::Closed,
            breaker::BreakerState::Open => Self::Open,
            breaker::BreakerState::HalfOpen => Self::HalfOpen,
        }
    }
}

/// The calls in a breaker's window. Older calls count for less than one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Window {
    #[schema(minimum = 0)]
    pub(crate) calls: f64,
    #[schema(minimum = 0)]
    pub(crate) failures: f64,
    #[schema(minimum = 0)]
    pub(crate) slow: f64,
}

/// A group's rate limits.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Limits {
    pub(crate) upstream: String,
    pub(crate) group: String,
    pub(crate) endpoints: Vec<String>,
    pub(crate) limits: Vec<LimitDto>,
    /// Time left of the upstream's pause.
    pub(crate) paused_ms: Option<u64>,
    pub(crate) concurrency: Vec<Concurrency>,
    /// This host's adaptive rate; null if it is switched off.
    pub(crate) adaptive_rate: Option<AdaptiveRate>,
}

/// A rate that adapts to the upstream's throughput.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdaptiveRate {
    /// Null while no limit is known.
    #[schema(minimum = 0)]
    pub(crate) per_minute: Option<f64>,
    #[schema(minimum = 1)]
    pub(crate) floor_per_minute: u32,
    #[schema(minimum = 1)]
    pub(crate) rise_per_minute: u32,
    pub(crate) decreases: u64,
}

/// A rate limit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Limit)]
pub(crate) struct LimitDto {
    /// The endpoint that has this limit for itself; null for a limit that the whole group shares.
    pub(crate) endpoint: Option<String>,
    pub(crate) requests: u32,
    pub(crate) period_ms: u64,
    pub(crate) burst: u32,
    /// Permits used of `burst`. Exceeds `burst` while some are reserved for later.
    pub(crate) taken: u32,
}

/// The limit of an endpoint's concurrent requests.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Concurrency {
    pub(crate) endpoint: String,
    /// Maximum concurrent requests.
    pub(crate) places: usize,
    /// Requests in flight.
    pub(crate) taken: usize,
}

/// A group's retry budget.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Budget {
    pub(crate) upstream: String,
    pub(crate) group: String,
    pub(crate) endpoints: Vec<String>,
    /// The retries that the budget covers now.
    #[schema(minimum = 0)]
    pub(crate) saved: f64,
    pub(crate) capacity: u32,
    pub(crate) percent: u32,
    pub(crate) floor_per_second: u32,
}

/// A group of an upstream with the endpoints that share it.
pub(crate) struct Shared<'a> {
    pub(crate) upstream: &'a str,
    pub(crate) endpoints: Vec<&'a Endpoint>,
    /// Whether only safe requests belong to it. Then it has no limits of its own.
    pub(crate) is_reads: bool,
    pub(crate) view: group::GroupStatus,
    /// The failures that opened the breaker, as far as this host saw them.
    pub(crate) trip: Option<TripFailures>,
}

/// Every group of an upstream.
pub(crate) fn groups<'a>(service: &'a UpstreamRuntime, events: &Events) -> Vec<Shared<'a>> {
    let mut groups: BTreeMap<&str, (&Group, bool, Vec<&Endpoint>)> = BTreeMap::new();
    for endpoint in &service.endpoints {
        for (group, is_reads) in
            std::iter::once((&endpoint.group, false)).chain(endpoint.group.reads().map(|reads| (reads, true)))
        {
            groups.entry(group.name()).or_insert_with(|| (group, is_reads, Vec::new())).2.push(endpoint);
        }
    }
    let upstream = service.settings.name.as_str();
    let trip = |view: &group::GroupStatus| {
        view.breaker.as_ref().and_then(|breaker| breaker.why)?;
        events.failures().trip(&view.group)
    };
    let shared = |(group, is_reads, endpoints): (&Group, bool, Vec<&'a Endpoint>)| {
        let view = group.view();
        Shared { upstream, endpoints, is_reads, trip: trip(&view), view }
    };
    groups.into_values().map(shared).collect()
}

impl Shared<'_> {
    fn group(&self) -> String {
        let own = self.view.group.split_once('/').map_or(self.view.group.as_str(), |(_, group)| group);
        own.to_owned()
    }

    fn names(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| endpoint.described.name.clone()).collect()
    }

    pub(crate) fn breaker(&self) -> Breaker {
        let view = &self.view.breaker;
        let state = view.as_ref().map_or(breaker::BreakerState::Closed, |view| view.state);
        let calls = |milli: u64| milli as f64 / 1000.0;
        Breaker {
            upstream: self.upstream.to_owned(),
            group: self.group(),
            endpoints: self.names(),
            requests: match (self.is_reads, self.endpoints.iter().any(|own| own.group.reads().is_some())) {
                (true, _) => Requests::Reads,
                (false, true) => Requests::Writes,
                (false, false) => Requests::All,
            },
            enabled: view.is_some(),
            state: state.into(),
            why: view.as_ref().and_then(|view| view.why).map(|why| match &self.trip {
                Some(trip) => format!("{why}: {trip}"),
                None => why.to_string(),
            }),
            first_failure: self.trip.as_ref().map(|trip| trip.first.into()),
            latest_failure: self.trip.as_ref().map(|trip| trip.latest.into()),
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

    /// The rate limits; none for the group of safe requests, whose limits are those of its endpoint.
    pub(crate) fn limits(&self) -> Option<Limits> {
        (!self.is_reads).then(|| self.own_limits())
    }

    fn own_limits(&self) -> Limits {
        let limit = |own: &group::LimitView, endpoint: Option<&str>| LimitDto {
            endpoint: endpoint.map(str::to_owned),
            requests: own.quota.requests.get(),
            period_ms: millis(own.quota.period),
            burst: own.quota.burst.get(),
            taken: own.taken,
        };
        let limits = self.endpoints.iter().filter_map(|endpoint| {
            let (permits, most) = (endpoint.concurrency_permits.as_ref()?, endpoint.settings.concurrency?);
            let taken = most.saturating_sub(permits.available_permits());
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
            concurrency: limits.collect(),
            adaptive_rate: self.view.pace.map(|pace| AdaptiveRate {
                per_minute: pace.per_minute,
                floor_per_minute: pace.settings.floor_per_minute,
                rise_per_minute: pace.settings.rise_per_minute,
                decreases: pace.decreases,
            }),
        }
    }

    pub(crate) fn budget(&self) -> Budget {
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
