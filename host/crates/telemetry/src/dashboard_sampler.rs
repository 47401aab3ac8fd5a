//! Rates and latencies of the last seconds, for the dashboard: differences between two samples of the counters.

use super::{
    AllEndpointCounters, EndpointCounters, EndpointMeters,
    endpoint_counters::{Counter, STATUSES},
    histogram::Observed,
};
use crate::{
    clock::{Timestamp, micros},
    error::REASONS,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// The time between two samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Samples that latencies and an endpoint's rates span: a shorter span has too few requests for a p99.
const SPAN_SAMPLES: usize = 10;
/// Points of a plot, one per sample: three minutes.
pub const POINTS: usize = 180;

/// Reasons of refusals that protect the upstream or the host: nothing was sent.
const HELD_BACK: [&str; 9] = [
    "breaker-open",
    "rate-limited",
    "budget-exhausted",
    "overloaded",
    "deadline-before-send",
    "upstream-asleep",
    "store-unavailable",
    "keys-full",
    "in-flight",
];
/// Those of [`HELD_BACK`] whose status is no 5xx.
const BELOW_500: [&str; 2] = ["rate-limited", "in-flight"];

/// A sample of one endpoint's counters, the sum of all workers.
#[derive(Debug, Clone, Copy)]
struct Reading {
    answers: u64,
    server_errors: u64,
    /// Refusals by reason, in the order of [`HELD_BACK`].
    refused: [u64; HELD_BACK.len()],
    held: u64,
    held_below_500: u64,
    retries: u64,
    in_flight: u64,
    /// Times of requests, without those that were refused without an attempt.
    times: Observed,
}

impl Reading {
    fn of(meters: &EndpointMeters) -> Self {
        let sum =
            |counters: &dyn Fn(&EndpointCounters) -> u64| meters.all().iter().map(|meter| counters(meter)).sum::<u64>();
        let by_reason = |name: &str| {
            let index = REASONS.iter().position(|reason| *reason == name);
            sum(&|meter| index.and_then(|index| meter.refusals.all().get(index)).map_or(0, Counter::read))
        };
        let refused: [u64; HELD_BACK.len()] = std::array::from_fn(|index| by_reason(HELD_BACK[index]));
        let below = HELD_BACK.iter().zip(refused).filter(|(reason, _)| BELOW_500.contains(reason));
        // `ended` is read before `begun`, so that a request that begins in between does not make the difference negative.
        let ended = sum(&|meter| meter.ended.read());
        let of = |meter: &EndpointCounters| {
            // `refused_time` is read first, so that a request that ends in between is not subtracted before it was added.
            let refused = meter.refused_time.read();
            meter.request_time.read().since(&refused)
        };
        let mut times = of(meters.of(0));
        for meter in meters.all().iter().skip(1) {
            times.add(&of(meter));
        }
        Self {
            answers: sum(&|meter| meter.requests.all().iter().map(Counter::read).sum()),
            server_errors: sum(&|meter| meter.requests.all()[server_errors()].read()),
            refused,
            held: refused.iter().sum(),
            held_below_500: below.map(|(_, count)| count).sum(),
            retries: sum(&|meter| meter.retries.all().iter().map(Counter::read).sum()),
            in_flight: sum(&|meter| meter.begun.read()).saturating_sub(ended),
            times,
        }
    }

    /// Rates since an earlier sample.
    fn since(&self, earlier: &Self, seconds: f64) -> Point {
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let answers = self.answers.saturating_sub(earlier.answers);
        let held = self.held.saturating_sub(earlier.held).min(answers);
        let below = self.held_below_500.saturating_sub(earlier.held_below_500);
        let errors = self.server_errors.saturating_sub(earlier.server_errors);
        let failed = errors.saturating_sub(held.saturating_sub(below)).min(answers - held);
        Point {
            ok: per_second(answers - held - failed),
            held: per_second(held),
            failed: per_second(failed),
            p50_ms: None,
            p99_ms: None,
        }
    }
}

fn server_errors() -> usize {
    STATUSES.iter().position(|status| *status == "5xx").unwrap_or(STATUSES.len() - 1)
}

/// Requests per second by result, and latencies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Point {
    /// Responses without failure, per second.
    pub ok: f64,
    /// Refusals by breaker, limit, budget or overload, per second.
    pub held: f64,
    /// Failures per second: 5xx of the upstream, or of the host because the upstream gave no response.
    pub failed: f64,
    /// Median time to the response, in milliseconds.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the time to the response, in milliseconds.
    pub p99_ms: Option<f64>,
}

impl Point {
    fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.held += other.held;
        self.failed += other.failed;
    }

    fn timed(mut self, times: &Observed) -> Self {
        let ms = |share| times.quantile(share).map(|within| micros(within) as f64 / 1000.0);
        (self.p50_ms, self.p99_ms) = (ms(0.5), ms(0.99));
        self
    }
}

/// An upstream's requests of the last ten seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Name of the upstream; empty for requests that matched none.
    pub upstream: String,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that the host refused to protect the upstream or itself, by reason; only reasons that occurred.
    pub refused: Vec<(&'static str, u64)>,
    /// Requests that failed: 5xx of the upstream, or of the host because the upstream gave no response.
    pub failed: u64,
}

/// Rates of an endpoint over the last ten seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rates {
    /// Name of the upstream; empty for requests that matched none.
    pub upstream: String,
    /// Name of the endpoint.
    pub endpoint: String,
    /// Requests by result, and latencies.
    #[serde(flatten)]
    pub point: Point,
    /// Retries per second.
    pub retries: f64,
    /// Requests under way.
    pub in_flight: u64,
}

type Names = (String, String);

/// The last samples of the counters, and the plots from them.
#[derive(Debug, Default)]
pub struct Sampler {
    samples: VecDeque<(Timestamp, BTreeMap<Names, Reading>)>,
    plots: BTreeMap<String, VecDeque<Point>>,
}

impl Sampler {
    /// Takes a sample of all counters.
    pub fn sample(&mut self, meters: &AllEndpointCounters, now: Timestamp) {
        let names = |one: &EndpointMeters| {
            let names = &one.of(0).names;
            (names.upstream.clone(), names.endpoint.clone())
        };
        let readings = meters.all().iter().map(|one| (names(one), Reading::of(one))).collect();
        if self.samples.is_empty() {
            // All counters were zero at the start. Without this, the requests before the first sample would never count.
            self.samples.push_back((now, BTreeMap::new()));
        }
        self.samples.push_back((now, readings));
        if self.samples.len() > SPAN_SAMPLES + 1 {
            self.samples.pop_front();
        }
        for (upstream, point) in self.points() {
            let plot = self.plots.entry(upstream).or_default();
            if plot.len() == POINTS {
                plot.pop_front();
            }
            plot.push_back(point);
        }
    }

    /// Two readings of each endpoint, the later one first, `back` samples apart, and the seconds between them. The earlier reading of a
    /// new endpoint is zero.
    fn apart(&self, back: usize) -> Option<(f64, impl Iterator<Item = (&Names, Reading, Reading)>)> {
        let (now, late) = self.samples.back()?;
        let (then, early) = self.samples.get(self.samples.len().saturating_sub(back + 1))?;
        let pairs = late.iter().map(|(names, reading)| {
            let none = Reading {
                answers: 0,
                server_errors: 0,
                refused: [0; HELD_BACK.len()],
                held: 0,
                held_below_500: 0,
                retries: 0,
                in_flight: 0,
                times: reading.times.since(&reading.times),
            };
            (names, *reading, early.get(names).copied().unwrap_or(none))
        });
        Some((now.since(*then).as_secs_f64(), pairs))
    }

    /// The latest point of each upstream: rates since the last sample, latencies over the last ten.
    pub fn points(&self) -> BTreeMap<String, Point> {
        let mut points: BTreeMap<String, Point> = BTreeMap::new();
        if let Some((seconds, pairs)) = self.apart(1) {
            for ((upstream, _), late, early) in pairs.filter(|((upstream, _), ..)| !upstream.is_empty()) {
                points.entry(upstream.clone()).or_default().add(&late.since(&early, seconds));
            }
        }
        let mut times: BTreeMap<&str, Observed> = BTreeMap::new();
        if let Some((_, pairs)) = self.apart(SPAN_SAMPLES) {
            for ((upstream, _), late, early) in pairs {
                let took = late.times.since(&early.times);
                times.entry(upstream).and_modify(|sum| sum.add(&took)).or_insert(took);
            }
        }
        for (upstream, point) in &mut points {
            if let Some(times) = times.get(upstream.as_str()) {
                *point = point.timed(times);
            }
        }
        points
    }

    /// Rates of every endpoint over the last ten seconds, except those that never had a request.
    pub fn rates(&self) -> Vec<Rates> {
        let Some((seconds, pairs)) = self.apart(SPAN_SAMPLES) else { return Vec::new() };
        let used = pairs.filter(|(_, late, _)| late.answers + late.in_flight > 0);
        used.map(|((upstream, endpoint), late, early)| Rates {
            upstream: upstream.clone(),
            endpoint: endpoint.clone(),
            point: late.since(&early, seconds).timed(&late.times.since(&early.times)),
            retries: if seconds > 0.0 { late.retries.saturating_sub(early.retries) as f64 / seconds } else { 0.0 },
            in_flight: late.in_flight,
        })
        .collect()
    }

    /// The requests of the last ten seconds, by upstream.
    pub fn traffic(&self) -> Vec<Traffic> {
        let Some((_, pairs)) = self.apart(SPAN_SAMPLES) else { return Vec::new() };
        let mut all: BTreeMap<&str, (u64, [u64; HELD_BACK.len()], u64)> = BTreeMap::new();
        for ((upstream, _), late, early) in pairs {
            let (requests, refused, failed) = all.entry(upstream).or_default();
            // Over one second, the rates of a point are counts.
            *failed += late.since(&early, 1.0).failed as u64;
            *requests += late.answers.saturating_sub(early.answers);
            for (sum, (late, early)) in refused.iter_mut().zip(late.refused.iter().zip(early.refused)) {
                *sum += late.saturating_sub(early);
            }
        }
        let traffic = |(upstream, (requests, refused, failed)): (&str, (u64, [u64; HELD_BACK.len()], u64))| Traffic {
            upstream: upstream.to_owned(),
            requests,
            refused: HELD_BACK.into_iter().zip(refused).filter(|(_, count)| *count > 0).collect(),
            failed,
        };
        all.into_iter().map(traffic).collect()
    }

    /// The plots of every upstream, the oldest point first.
    pub fn plots(&self) -> &BTreeMap<String, VecDeque<Point>> {
        &self.plots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    fn near(got: f64, expected: f64) -> bool {
        (got - expected).abs() < 1e-9
    }

    #[test]
    fn the_sampler_separates_held_failed_and_ok_requests() {
        let meters = AllEndpointCounters::new(2);
        let mut sampler = Sampler::default();
        sampler.sample(&meters, at(1));
        let own = meters.of("api", "any");
        let refuse = |reason: &str| {
            own.of(0).refusals.add(REASONS.iter().position(|own| *own == reason).unwrap_or(usize::MAX));
        };
        // Ten responses over two workers: five good, and five failures or refusals, three of which are the host's own.
        for index in 0..5 {
            own.of(index).requests.add(super::super::endpoint_counters::status(200));
            own.of(index).request_time.observe(Duration::from_millis(7));
        }
        for status in [500, 503, 503, 503, 429] {
            own.of(1).requests.add(super::super::endpoint_counters::status(status));
        }
        refuse("breaker-open");
        refuse("rate-limited");
        refuse("upstream-failed");
        sampler.sample(&meters, at(3));
        let rates = sampler.rates();
        assert_eq!(rates.len(), 1, "the counters that nothing used are left out: {rates:?}");
        let point = rates[0].point;
        assert!(near(point.held, 1.0) && near(point.failed, 1.5) && near(point.ok, 2.5), "{point:?}");
        assert!(point.p99_ms.is_some_and(|ms| (5.0..=10.0).contains(&ms)), "{point:?}");
        assert!(near(sampler.points()["api"].held, 1.0));
        let traffic = sampler.traffic().into_iter().find(|own| own.upstream == "api");
        let refused = vec![("breaker-open", 1), ("rate-limited", 1)];
        assert_eq!(traffic, Some(Traffic { upstream: "api".to_owned(), requests: 10, refused, failed: 3 }));
        // Without further requests the plot falls to zero at once, and the rates within their span.
        sampler.sample(&meters, at(4));
        assert_eq!(sampler.points()["api"].ok.to_bits(), 0.0_f64.to_bits());
        assert!(near(sampler.rates()[0].point.ok, 5.0 / 3.0));
    }

    #[test]
    fn quick_refusals_do_not_hide_that_the_sent_requests_are_slow() {
        let meters = AllEndpointCounters::new(1);
        let own = meters.of("api", "any");
        let mut sampler = Sampler::default();
        sampler.sample(&meters, at(1));
        let took = |refused: bool, took| {
            own.of(0).requests.add(super::super::endpoint_counters::status(if refused { 503 } else { 200 }));
            own.of(0).request_time.observe(took);
            if refused {
                own.of(0).refused_time.observe(took);
            }
        };
        for _ in 0..99 {
            took(true, Duration::from_micros(80));
        }
        took(false, Duration::from_secs(2));
        sampler.sample(&meters, at(2));
        let half = sampler.rates()[0].point.p50_ms;
        assert!(half.is_some_and(|ms| ms > 1000.0), "{half:?}");
        assert_eq!(sampler.points()["api"].p50_ms, half);
    }

    #[test]
    fn looks_and_plots_are_bounded() {
        let meters = AllEndpointCounters::new(1);
        meters.of("api", "any").of(0).requests.add(1);
        let mut sampler = Sampler::default();
        for second in 0..1000 {
            sampler.sample(&meters, at(second));
        }
        assert_eq!((sampler.samples.len(), sampler.plots()["api"].len()), (SPAN_SAMPLES + 1, POINTS));
    }

    #[test]
    fn the_reasons_are_the_hosts() {
        for reason in HELD_BACK {
            assert!(REASONS.contains(&reason), "{reason}");
        }
    }
}
