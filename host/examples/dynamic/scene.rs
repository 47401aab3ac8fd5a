//! The real pipeline in process, in front of an upstream that throttles or fails as it is told, on paused time: the
//! same run each time.

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
use triage::{
    Host,
    clock::Clock,
    config,
    policy::contract::Failure,
    rng::Rng,
    upstream::{Inbound, Outbound, Transport, full},
};

/// How an upstream throttles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttle {
    /// A fixed window of a minute that opens with its first request, and 429 without a word until it is over: the
    /// hospital directory's.
    Window,
    /// A token bucket that holds a second's worth, and 429 with a `Retry-After` in whole seconds.
    Bucket,
    /// None.
    Never,
}

/// An upstream: what it takes, what fails, and what came of it.
#[derive(Debug)]
pub struct Upstream {
    throttle: Throttle,
    /// From when on it takes how many a second.
    limits: Vec<(Duration, f64)>,
    /// From when on how many of a thousand fail.
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

/// What reached an upstream.
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

    /// The answer's status and, where it is throttled, when to come back.
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
        // Knuth's MMIX.
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

/// What came of the requests.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub asked: u64,
    /// Answered by the upstream, other than by 429 or a failure.
    pub delivered: u64,
    /// 429 of the upstream that a caller got.
    pub passed_on: u64,
    /// Refused by the host: a limit, a pause or an adaptive rate.
    pub refused: u64,
    /// Refused by the host: the breaker.
    pub held_back: u64,
    pub failed: u64,
    pub retries: u64,
    /// How often the breaker opened, as callers saw it.
    pub trips: u64,
    /// Requests that failed before it first did, and when that was.
    pub first_trip: Option<(u64, Duration)>,
    /// How long each delivered answer took.
    pub waits: Vec<Duration>,
}

/// A host in front of an upstream: `policy`, and keys below `[upstreams.api.defaults]`.
pub fn host(upstream: &Arc<Upstream>, policy: &str, defaults: &str) -> Result<Host, Box<dyn Error>> {
    let text = format!(
        "[upstreams.api]\nbase_url = \"http://api.invalid\"\npolicy = \"{policy}\"\n[upstreams.api.defaults]\n{defaults}\n"
    );
    let settings = config::from_toml(&text)?;
    let transport: Arc<dyn Transport> = Arc::clone(upstream) as _;
    let clock = Clock::anchored(1_767_225_600_000);
    Ok(Host::with_transports(&settings, clock, Rng::seeded(7), vec![transport])?)
}

/// Asks so often a second for so many seconds, without waiting for answers, and waits for all of them in the end.
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
        // Requests that were under way at a trip end after it, and a probe's success comes only once it closes.
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

/// Status, the problem's type, attempts, how long it took, and when it came since `began`.
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
