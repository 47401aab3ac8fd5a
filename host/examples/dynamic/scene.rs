//! The real pipeline in-process, in front of an upstream that throttles or fails as configured. It runs in paused time, so every run is the
//! same.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header::RETRY_AFTER};
use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use triage::Host;
use triage_config as config;
use triage_core::{clock::Clock, rng::Rng};
use triage_engine::contract::Failure;
use triage_upstream::{Inbound, Outbound, Transport, full};

/// How an upstream throttles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttle {
    /// A fixed window of a minute that begins with its first request, and 429 without `Retry-After` until it ends, as in the hospital
    /// directory.
    Window,
    /// A token bucket with a capacity of one second, and 429 with a `Retry-After` in whole seconds.
    Bucket,
    /// No throttling.
    Never,
}

/// An upstream with its capacity, its failures and its counters.
#[derive(Debug)]
pub struct Upstream {
    throttle: Throttle,
    /// The requests per second that it takes, each from the given time on.
    limits: Vec<(Duration, f64)>,
    /// How many of a thousand requests fail, each from the given time on.
    failing_milli: Vec<(Duration, u64)>,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    window: Option<(Instant, f64)>,
    tokens: f64,
    filled: Option<Instant>,
    chance: u64,
    seen: Seen,
}

/// The requests that reached the upstream.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub taken: u64,
    pub throttled: u64,
    pub failed: u64,
}

fn at(steps: &[(Duration, f64)], elapsed: Duration) -> f64 {
    steps.iter().rev().find(|(from, _)| *from <= elapsed).map_or(0.0, |(_, value)| *value)
}

impl Upstream {
    pub fn throttling(throttle: Throttle, limits: &[(u64, f64)]) -> Arc<Self> {
        Self::new(throttle, limits, &[])
    }

    pub fn failing(failing_milli: &[(u64, u64)]) -> Arc<Self> {
        Self::new(Throttle::Never, &[], failing_milli)
    }

    fn new(throttle: Throttle, limits: &[(u64, f64)], failing: &[(u64, u64)]) -> Arc<Self> {
        let limits = limits.iter().map(|(from, rate)| (Duration::from_secs(*from), *rate)).collect();
        let failing_milli = failing.iter().map(|(from, share)| (Duration::from_secs(*from), *share)).collect();
        let state = Mutex::new(State { chance: 11, ..State::default() });
        Arc::new(Self { throttle, limits, failing_milli, began: Instant::now(), state })
    }

    pub fn seen(&self) -> Seen {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).seen
    }

    /// The response's status, and the seconds of its `Retry-After` when it throttles.
    fn decide(&self) -> (u16, Option<u64>) {
        let (now, elapsed) = (Instant::now(), self.began.elapsed());
        let limit = at(&self.limits, elapsed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let throttled = match self.throttle {
            Throttle::Never => None,
            Throttle::Window => {
                let fresh = (now, limit * 60.0);
                let (opened, left) =
                    state.window.filter(|(opened, _)| now - *opened < Duration::from_mins(1)).unwrap_or(fresh);
                state.window = Some((opened, (left - 1.0).max(0.0)));
                (left < 1.0).then_some(None)
            }
            Throttle::Bucket => {
                let filled = state.filled.replace(now).map_or(Duration::from_secs(1), |filled| now - filled);
                state.tokens = (state.tokens + limit * filled.as_secs_f64()).min(limit);
                if state.tokens < 1.0 {
                    let seconds = ((1.0 - state.tokens) / limit).ceil().max(1.0);
                    Some(Some(seconds as u64))
                } else {
                    state.tokens -= 1.0;
                    None
                }
            }
        };
        if let Some(wait) = throttled {
            state.seen.throttled += 1;
            return (429, wait);
        }
        // The constants of Knuth's MMIX generator.
        state.chance = state.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = self.failing_milli.iter().rev().find(|(from, _)| *from <= elapsed).map_or(0, |(_, share)| *share);
        if (state.chance >> 33) % 1000 < share {
            state.seen.failed += 1;
            return (503, None);
        }
        state.seen.taken += 1;
        (200, None)
    }
}

impl Transport for Upstream {
    fn send(&self, _: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        Box::pin(async move {
            let (status, wait) = self.decide();
            sleep(Duration::from_millis(if status == 200 { 50 } else { 5 })).await;
            let mut headers = HeaderMap::new();
            if let Some(seconds) = wait {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            let status = StatusCode::from_u16(status).unwrap_or_default();
            Ok(Inbound { status, headers, body: full(Bytes::new()) })
        })
    }
}

/// The results of all requests.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub asked: u64,
    /// Responses of the upstream, except 429 and failures.
    pub delivered: u64,
    /// Responses 429 of the upstream that reached a caller.
    pub passed_on: u64,
    /// Refused by the host because of a limit, a pause or an adaptive rate.
    pub refused: u64,
    /// Refused by the host because of the breaker.
    pub held_back: u64,
    pub failed: u64,
    pub retries: u64,
    /// How often the breaker opened, as seen by callers.
    pub trips: u64,
    /// The failed requests before the first trip, and its time.
    pub first_trip: Option<(u64, Duration)>,
    /// The latency of each delivered response.
    pub waits: Vec<Duration>,
}

/// A host in front of an upstream, with `policy` and keys below `[upstreams.api.defaults]`.
pub fn host(upstream: &Arc<Upstream>, policy: &str, defaults: &str) -> Result<Host, Box<dyn Error>> {
    let text = format!(
        "[upstreams.api]\nbase_url = \"http://api.invalid\"\npolicy = \"{policy}\"\n[upstreams.api.defaults]\n{defaults}\n"
    );
    let settings = config::from_toml(&text)?;
    let transport: Arc<dyn Transport> = Arc::clone(upstream) as _;
    let clock = Clock::anchored(1_767_225_600_000);
    Ok(Host::with_transports(&settings, clock, Rng::seeded(7), vec![transport])?)
}

/// Sends this many requests a second for this many seconds without waiting for responses, then waits for all of them.
pub async fn offer(host: &Host, per_second: u64, seconds: u64) -> Tally {
    let (began, mut tally, mut under_way) = (Instant::now(), Tally::default(), JoinSet::new());
    let mut open = false;
    let mut note = |tally: &mut Tally,
                    (status, problem, attempts, took, at): (u16, String, u64, Duration, Duration)| {
        tally.retries += attempts.saturating_sub(1);
        let held_back = problem == "urn:triage:problem:breaker-open";
        if held_back && !open {
            tally.trips += 1;
            tally.first_trip.get_or_insert((tally.failed, at));
        }
        // Requests that were running at a trip end after it, so only a successful probe counts as the end of the open state.
        open = if held_back { true } else { open && status != 200 };
        match (status, problem.as_str()) {
            (200, _) => {
                tally.delivered += 1;
                tally.waits.push(took);
            }
            (429, "") => tally.passed_on += 1,
            (429, _) => tally.refused += 1,
            (503, _) if held_back => tally.held_back += 1,
            _ => tally.failed += 1,
        }
    };
    for number in 0..per_second * seconds {
        sleep_until(began + Duration::from_micros(number * 1_000_000 / per_second)).await;
        let host = host.clone();
        under_way.spawn(async move { ask(&host, began).await });
        tally.asked += 1;
        while let Some(done) = under_way.try_join_next() {
            note(&mut tally, done.unwrap_or_default());
        }
    }
    while let Some(done) = under_way.join_next().await {
        note(&mut tally, done.unwrap_or_default());
    }
    tally
}

/// The status, the problem's type, attempts, latency, and the time since `began`.
async fn ask(host: &Host, began: Instant) -> (u16, String, u64, Duration, Duration) {
    let asked = Instant::now();
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = http::Uri::from_static("/hospitals/");
    let answer = host.call(request).await;
    let took = asked.elapsed();
    let attempts = answer.headers().get("triage-attempts").and_then(|value| value.to_str().ok()?.parse().ok());
    let is_problem = answer.headers().get("content-type").is_some_and(|kind| kind == "application/problem+json");
    let status = answer.status().as_u16();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.map(http_body_util::Collected::to_bytes);
    let problem: serde_json::Value = body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
    let kind = problem["type"].as_str().filter(|_| is_problem).unwrap_or_default().to_owned();
    (status, kind, attempts.unwrap_or(0), took, began.elapsed())
}
