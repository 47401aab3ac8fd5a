//! All metrics in the `OpenMetrics` text format.

use crate::{
    breaker::BreakerState,
    dto::{Condition, ConditionId, Severity},
    error::REASONS,
    overload::{self, Priority},
    policy::contract::{Class, FailureKind},
    retry::ClampReason,
    rollout::TrialCounts,
    settlement,
    state::group::{GroupStatus, LimitView},
    state_redis::{Condition as StateCondition, Steps},
    telemetry::{
        AllEndpointCounters, EndpointCounters, EndpointMeters, Events, Metric,
        endpoint_counters::{Counter, FAULTS, KeyResult, Names, OrphanResult, STATUSES},
        histogram::{Histogram, Observed},
        metrics, process,
    },
    upstream_runtime::{Endpoint as RuntimeEndpoint, UpstreamRuntime},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text},
    metrics::exemplar::Exemplar,
    registry::Registry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};
use strum::{VariantArray as _, VariantNames as _};

/// The sources of a scrape.
#[derive(Debug)]
pub struct Sources {
    /// Counters by endpoint and worker.
    pub meters: Arc<AllEndpointCounters>,
    /// The log of recent events, for its counters.
    pub events: Arc<Events>,
    /// The serving generation of each upstream.
    pub services: Vec<Arc<UpstreamRuntime>>,
    /// The overload status of each upstream, in the same order.
    pub loads: Vec<overload::OverloadStatus>,
    /// For each upstream that follows the fleet: its name, the fleet's generation, and whether this host is behind.
    pub fleets: Vec<(String, u64, bool)>,
    /// For each upstream with a candidate: its name, the counts of all trials, and the skipped outcomes.
    pub candidates: Vec<(String, TrialCounts, u64)>,
    /// The number of unsettled records and the age of the oldest; none if the store could not count them.
    pub unsettled: Option<(usize, Duration)>,
    /// Settled writes by class.
    pub settlements: Vec<(&'static str, u64)>,
    /// Settlement notices by result.
    pub notices: settlement::Counts,
    /// The condition of the connection to shared state; none if state is in this process.
    pub state: Option<StateCondition>,
    /// Counters of the store's steps.
    pub steps: Option<Steps>,
    /// The memory limit, and the bytes of buffered bodies.
    pub memory: (Option<u64>, u64),
    /// Requests whose traces the collector accepted, and requests whose traces it did not.
    pub traces: (u64, u64),
    /// The conditions that hold now.
    pub conditions: Vec<Condition>,
    /// Whether the host is ready.
    pub ready: bool,
    /// The start time, in milliseconds since 1970.
    pub started_unix_ms: u64,
}

/// Renders all metrics.
///
/// # Errors
/// In practice none, since a string accepts every write.
pub fn scrape(sources: Sources) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(sources));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes the samples of a metric.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn counters<'a>(&mut self, metric: &Metric, samples: impl IntoIterator<Item = (Labels<'a>, u64)>) -> fmt::Result {
        // The encoder appends `_total` again.
        let name = metric.name.trim_end_matches("_total");
        let mut family = self.0.encode_descriptor(name, metric.help, None, metric.kind)?;
        for (labels, value) in samples {
            let none: Option<&Exemplar<NoLabelSet, f64>> = None;
            family.encode_family(&labels)?.encode_counter(&value, none)?;
        }
        Ok(())
    }

    fn gauges<'a>(&mut self, metric: &Metric, samples: impl IntoIterator<Item = (Labels<'a>, f64)>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn histograms<'a>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels<'a>, Observed)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
        for (labels, read) in samples {
            let mut one = family.encode_family(&labels)?;
            one.encode_histogram::<NoLabelSet>(read.sum_seconds(), read.count(), &read.buckets(), None)?;
        }
        Ok(())
    }
}

/// One endpoint, summed over all workers.
struct Endpoint(Arc<EndpointMeters>);

impl Endpoint {
    fn names(&self) -> &Names {
        &self.0.of(0).names
    }

    fn labels(&self) -> Labels<'_> {
        let Names { upstream, endpoint } = self.names();
        vec![("upstream", upstream), ("endpoint", endpoint)]
    }

    fn labels_and(&self, name: &'static str, value: &'static str) -> Labels<'_> {
        let mut labels = self.labels();
        labels.push((name, value));
        labels
    }

    fn sum(&self, counter: impl Fn(&EndpointCounters) -> &Counter) -> u64 {
        self.0.all().iter().map(|meter| counter(meter).read()).sum()
    }

    fn each(&self, counters: impl Fn(&EndpointCounters) -> &[Counter]) -> Vec<u64> {
        let mut sums = vec![0; counters(self.0.of(0)).len()];
        for meter in self.0.all() {
            for (sum, counter) in sums.iter_mut().zip(counters(meter)) {
                *sum += counter.read();
            }
        }
        sums
    }

    fn observed(&self, histogram: impl Fn(&EndpointCounters) -> &Histogram) -> Observed {
        let (first, others) = (histogram(self.0.of(0)).read(), self.0.all().iter().skip(1));
        others.fold(first, |mut sum, meter| {
            sum.add(&histogram(meter).read());
            sum
        })
    }

    /// Whether this endpoint had a request. An unused endpoint is not exported. A used one exports all its series at once, so that each
    /// starts at 0.
    fn is_used(&self) -> bool {
        self.sum(|meter| &meter.begun) > 0 || self.each(|meter| meter.requests.all()).iter().any(|count| *count > 0)
    }
}

/// Samples of a set of counters that differ in one label.
fn labelled<'a>(
    endpoints: &'a [Endpoint],
    label: &'static str,
    values: &'a [&'static str],
    counters: impl Fn(&EndpointCounters) -> &[Counter] + 'a,
) -> impl Iterator<Item = (Labels<'a>, u64)> {
    endpoints.iter().flat_map(move |endpoint| {
        let sums = endpoint.each(&counters);
        values.iter().zip(sums).map(move |(value, sum)| (endpoint.labels_and(label, value), sum))
    })
}

/// The number of subjects of each condition and severity. All are exported, so that an alert sees each go from 0 to 1.
fn conditions(all: &[Condition]) -> impl Iterator<Item = (Labels<'static>, f64)> {
    ConditionId::VARIANTS.iter().flat_map(move |id| {
        [Severity::Critical, Severity::Warning].map(|severity| {
            let count = all.iter().filter(|own| (own.id, own.severity) == (*id, severity)).count();
            (vec![("condition", id.name()), ("severity", severity.name())], count as f64)
        })
    })
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page(encoder);
        let all: Vec<Endpoint> = self.meters.all().into_iter().map(Endpoint).filter(Endpoint::is_used).collect();
        requests(&mut page, &all)?;
        let found: Vec<Endpoint> = all.into_iter().filter(|one| !one.names().upstream.is_empty()).collect();
        attempts(&mut page, &found)?;
        verdicts(&mut page, &found)?;
        self.groups(&mut page)?;
        self.policies(&mut page)?;
        self.candidates(&mut page)?;
        self.host(&mut page)
    }
}

fn requests(page: &mut Page<'_>, all: &[Endpoint]) -> fmt::Result {
    page.counters(&metrics::REQUESTS, labelled(all, "status", &STATUSES, |meter| meter.requests.all()))?;
    page.counters(&metrics::REFUSALS, labelled(all, "reason", &REASONS, |meter| meter.refusals.all()))?;
    page.counters(&metrics::ABANDONED, all.iter().map(|one| (one.labels(), one.sum(|meter| &meter.abandoned))))?;
    // Read `ended` first: the other order could count a request that ends in between as negative.
    let in_flight = |one: &Endpoint| {
        let ended = one.sum(|meter| &meter.ended);
        one.sum(|meter| &meter.begun).saturating_sub(ended) as f64
    };
    page.gauges(&metrics::IN_FLIGHT, all.iter().map(|one| (one.labels(), in_flight(one))))?;
    let times = all.iter().map(|one| (one.labels(), one.observed(|meter| &meter.request_time)));
    page.histograms(&metrics::REQUEST_TIME, times)?;
    page.counters(&metrics::KEYED, labelled(all, "result", KeyResult::VARIANTS, |meter| meter.keyed.all()))?;
    page.counters(&metrics::ORPHANS, labelled(all, "result", OrphanResult::VARIANTS, |meter| meter.orphans.all()))
}

fn attempts(page: &mut Page<'_>, all: &[Endpoint]) -> fmt::Result {
    let answered = labelled(all, "outcome", &STATUSES, |meter| meter.answered.all());
    let failed = labelled(all, "outcome", FailureKind::VARIANTS, |meter| meter.failed.all());
    page.counters(&metrics::ATTEMPTS, answered.chain(failed))?;
    let times = all.iter().map(|one| (one.labels(), one.observed(|meter| &meter.attempt_time)));
    page.histograms(&metrics::ATTEMPT_TIME, times)?;
    page.counters(&metrics::RETRIES, labelled(all, "class", Class::VARIANTS, |meter| meter.retries.all()))?;
    for verifications in [&metrics::VERIFICATIONS, &metrics::LOOKS] {
        page.counters(verifications, all.iter().map(|one| (one.labels(), one.sum(|meter| &meter.verifications))))?;
    }
    let waits = all.iter().map(|one| (one.labels(), one.observed(|meter| &meter.wait_time)));
    page.histograms(&metrics::WAIT_TIME, waits)
}

fn verdicts(page: &mut Page<'_>, all: &[Endpoint]) -> fmt::Result {
    page.counters(&metrics::VERDICTS, labelled(all, "class", Class::VARIANTS, |meter| meter.verdicts.all()))?;
    let times = all.iter().map(|one| (one.labels(), one.observed(|meter| &meter.decision_time)));
    page.histograms(&metrics::DECISION_TIME, times)?;
    page.counters(&metrics::CLAMPS, labelled(all, "limit", ClampReason::VARIANTS, |meter| meter.clamps.all()))?;
    page.counters(&metrics::FAULTS, labelled(all, "fault", &FAULTS, |meter| meter.faults.all()))
}

/// Splits `upstream/group` into labels.
fn group_labels(name: &str) -> Labels<'_> {
    let (upstream, group) = name.split_once('/').unwrap_or(("", name));
    vec![("upstream", upstream), ("group", group)]
}

fn with<'a>(mut labels: Labels<'a>, name: &'static str, value: &'a str) -> Labels<'a> {
    labels.push((name, value));
    labels
}

fn limit_taken<'a>(group: &'a str, number: &'a str, limit: &LimitView) -> (Labels<'a>, f64) {
    let share = f64::from(limit.taken) / f64::from(limit.quota.burst.get());
    (with(group_labels(group), "limit", number), share)
}

const BREAKER_STATES: [BreakerState; 3] = [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen];

impl Sources {
    fn groups(&self, page: &mut Page<'_>) -> fmt::Result {
        let endpoints = self.services.iter().flat_map(|service| &service.endpoints);
        let groups: BTreeMap<&str, GroupStatus> =
            endpoints.clone().flat_map(RuntimeEndpoint::groups).map(|group| (group.name(), group.view())).collect();
        // Safe requests share pause and adaptive rate with their endpoint's group.
        let main: BTreeSet<&str> = endpoints.clone().map(|endpoint| endpoint.group.name()).collect();
        let breakers = || {
            groups.iter().filter_map(|(name, view)| view.breaker.as_ref().map(|breaker| (group_labels(name), breaker)))
        };
        let states = breakers().flat_map(|(labels, breaker)| {
            BREAKER_STATES
                .map(|state| (with(labels.clone(), "state", state.name()), f64::from(u8::from(breaker.state == state))))
        });
        page.gauges(&metrics::BREAKER, states)?;
        let forced = breakers().map(|(labels, breaker)| (labels, f64::from(u8::from(breaker.forced))));
        page.gauges(&metrics::BREAKER_FORCED, forced)?;
        let usual = breakers().filter_map(|(labels, breaker)| Some((labels, f64::from(breaker.usual_milli?) / 1000.0)));
        page.gauges(&metrics::BREAKER_USUAL, usual)?;
        let counted = groups.iter().filter(|(_, view)| view.breaker.is_some()).flat_map(|(name, _)| {
            [("opened", "breaker-opened"), ("closed", "breaker-closed"), ("held", "breaker-held")]
                .map(|(to, kind)| (with(group_labels(name), "to", to), self.events.transitions(name, kind)))
        });
        page.counters(&metrics::TRANSITIONS, counted)?;
        let numbers: Vec<String> = (0..16).map(|number| number.to_string()).collect();
        let limits = groups.iter().flat_map(|(name, view)| {
            view.limits.iter().zip(&numbers).map(|(limit, number)| limit_taken(name, number, limit))
        });
        let own: Vec<(String, Vec<LimitView>)> = endpoints
            .clone()
            .map(|endpoint| {
                (format!("{}/{}", endpoint.group.name(), endpoint.described.name), endpoint.group.own_limits())
            })
            .collect();
        let own = own.iter().flat_map(|(name, limits)| {
            limits.iter().zip(&numbers).map(|(limit, number)| limit_taken(name, number, limit))
        });
        page.gauges(&metrics::LIMIT_TAKEN, limits.chain(own))?;
        let pauses = groups
            .iter()
            .filter(|(name, _)| main.contains(*name))
            .map(|(name, view)| (group_labels(name), view.paused.map_or(0.0, |pause| pause.as_secs_f64())));
        page.gauges(&metrics::PAUSED, pauses)?;
        let paces = || {
            let shown = groups.iter().filter(|(name, _)| main.contains(*name));
            shown.filter_map(|(name, view)| Some((group_labels(name), view.pace?)))
        };
        let rates = paces().filter_map(|(labels, pace)| Some((labels, pace.per_minute? / 60.0)));
        page.gauges(&metrics::ADAPTIVE_RATE, rates)?;
        page.counters(&metrics::ADAPTIVE_DECREASES, paces().map(|(labels, pace)| (labels, pace.decreases)))?;
        let budgets = groups.iter().map(|(name, view)| (group_labels(name), view.budget as f64 / 1000.0));
        page.gauges(&metrics::BUDGET, budgets)?;
        self.concurrency(page)?;
        self.loads(page)
    }

    fn concurrency(&self, page: &mut Page<'_>) -> fmt::Result {
        let limited: Vec<(Labels<'_>, usize, usize)> = self
            .services
            .iter()
            .flat_map(|service| service.endpoints.iter().map(|endpoint| (service.settings.name.as_str(), endpoint)))
            .filter_map(|(upstream, endpoint)| {
                let (permits, most) = (endpoint.concurrency_permits.as_ref()?, endpoint.settings.concurrency?);
                let labels = vec![("upstream", upstream), ("endpoint", endpoint.described.name.as_str())];
                Some((labels, most.saturating_sub(permits.available_permits()), most))
            })
            .collect();
        page.gauges(&metrics::PLACES_TAKEN, limited.iter().map(|(labels, taken, _)| (labels.clone(), *taken as f64)))?;
        page.gauges(&metrics::PLACES, limited.iter().map(|(labels, _, most)| (labels.clone(), *most as f64)))
    }

    fn loads(&self, page: &mut Page<'_>) -> fmt::Result {
        let all = || {
            let names = self.services.iter().map(|one| vec![("upstream", one.settings.name.as_str())]);
            names.zip(&self.loads)
        };
        page.gauges(&metrics::LOAD_TAKEN, all().map(|(labels, load)| (labels, load.under_way as f64)))?;
        page.gauges(&metrics::LOAD_LIMIT, all().map(|(labels, load)| (labels, load.limit as f64)))?;
        page.gauges(&metrics::LOAD_WAITING, all().map(|(labels, load)| (labels, load.waiting as f64)))?;
        let shed = all().flat_map(|(labels, load)| {
            Priority::ALL.map(|own| (with(labels.clone(), "priority", own.name()), load.shed[own as usize]))
        });
        page.counters(&metrics::SHED, shed)
    }

    fn policies(&self, page: &mut Page<'_>) -> fmt::Result {
        fn labels(service: &UpstreamRuntime) -> Labels<'_> {
            vec![("upstream", service.settings.name.as_str())]
        }
        page.gauges(&metrics::GENERATION, self.services.iter().map(|one| (labels(one), one.generation as f64)))?;
        let digest = |one: &Arc<UpstreamRuntime>| one.policy.digest().map_or_else(String::new, |digest| digest.short());
        let digests: Vec<String> = self.services.iter().map(digest).collect();
        let serving = self.services.iter().zip(&digests).map(|(one, digest)| {
            let named = with(labels(one), "policy", &one.policy.description().name);
            (with(named, "digest", digest), 1.0)
        });
        page.gauges(&metrics::POLICY, serving)?;
        let fleets = |value: fn(&(String, u64, bool)) -> f64| {
            self.fleets.iter().map(move |own| (vec![("upstream", own.0.as_str())], value(own)))
        };
        page.gauges(&metrics::FLEET_GENERATION, fleets(|(_, generation, _)| *generation as f64))?;
        page.gauges(&metrics::FLEET_BEHIND, fleets(|(_, _, behind)| f64::from(u8::from(*behind))))
    }

    fn candidates(&self, page: &mut Page<'_>) -> fmt::Result {
        let all = |value: fn(&TrialCounts) -> u64| {
            self.candidates
                .iter()
                .map(move |(upstream, counts, _)| (vec![("upstream", upstream.as_str())], value(counts)))
        };
        page.counters(&metrics::CANDIDATE_COMPARED, all(|counts| counts.compared))?;
        page.counters(&metrics::CANDIDATE_DIFFERED, all(|counts| counts.differed))?;
        let skipped =
            self.candidates.iter().map(|(upstream, _, skipped)| (vec![("upstream", upstream.as_str())], *skipped));
        page.counters(&metrics::CANDIDATE_SKIPPED, skipped)?;
        page.counters(&metrics::CANDIDATE_DECISIONS, all(|counts| counts.decisions))?;
        page.counters(&metrics::CANDIDATE_FAULTS, all(|counts| counts.faults))
    }

    fn host(&self, page: &mut Page<'_>) -> fmt::Result {
        let unsettled = |value: fn((usize, Duration)) -> f64| self.unsettled.map(|own| (Labels::new(), value(own)));
        page.gauges(&metrics::RECORDS_UNSETTLED, unsettled(|(count, _)| count as f64))?;
        page.gauges(&metrics::RECORD_AGE, unsettled(|(_, oldest)| oldest.as_secs_f64()))?;
        let settlements = self.settlements.iter().map(|(class, count)| (vec![("class", *class)], *count));
        page.counters(&metrics::SETTLEMENTS, settlements)?;
        let settlement::Counts { delivered, failed, dropped } = self.notices;
        let notices = [("delivered", delivered), ("failed", failed), ("dropped", dropped)];
        page.counters(&metrics::NOTICES, notices.map(|(result, count)| (vec![("result", result)], count)))?;
        let state = |value: fn(&StateCondition) -> f64| self.state.as_ref().map(|state| (Labels::new(), value(state)));
        page.gauges(&metrics::STATE_UP, state(|state| f64::from(u8::from(state.is_up))))?;
        page.gauges(&metrics::STATE_EVICTS, state(|state| f64::from(u8::from(state.may_evict))))?;
        let lost = self.state.as_ref().and_then(|state| state.lost_ago);
        page.gauges(&metrics::STATE_LOST, lost.map(|ago| (Labels::new(), ago.as_secs_f64())))?;
        page.histograms(&metrics::STATE_TIME, self.steps.map(|steps| (Labels::new(), steps.times)))?;
        let failed = self.steps.into_iter().flat_map(|steps| steps.failed);
        page.counters(&metrics::STATE_FAILURES, failed.map(|(why, count)| (vec![("why", why)], count)))?;
        let kinds = self.events.kinds();
        page.counters(&metrics::EVENTS, kinds.iter().map(|(kind, count)| (vec![("kind", *kind)], *count)))?;
        let one = |value: f64| [(Labels::new(), value)];
        let (exported, dropped) = self.traces;
        let traces = [("exported", exported), ("dropped", dropped)];
        page.counters(&metrics::TRACES, traces.map(|(result, count)| (vec![("result", result)], count)))?;
        page.gauges(&metrics::CONDITION, conditions(&self.conditions))?;
        page.gauges(&metrics::READY, one(f64::from(u8::from(self.ready))))?;
        page.gauges(&metrics::STARTED, one(self.started_unix_ms as f64 / 1000.0))?;
        let process = process::read();
        page.gauges(&metrics::MEMORY, process.memory_bytes.map(|bytes| (Labels::new(), bytes as f64)))?;
        let cpu = &metrics::CPU;
        let mut family = page.0.encode_descriptor(cpu.name.trim_end_matches("_total"), cpu.help, None, cpu.kind)?;
        let none: Option<&Exemplar<NoLabelSet, f64>> = None;
        family.encode_counter(&process.cpu_seconds, none)?;
        let (limit, held) = self.memory;
        page.gauges(&metrics::MEMORY_LIMIT, one(limit.unwrap_or_default() as f64))?;
        page.gauges(&metrics::HELD, one(held as f64))?;
        page.gauges(&metrics::FILES, process.open_files.map(|files| (Labels::new(), files as f64)))?;
        page.gauges(&metrics::BUILD, [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)])
    }
}
