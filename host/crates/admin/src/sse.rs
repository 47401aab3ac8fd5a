//! Live data for the admin page as server-sent events: one snapshot a second, shared by all open pages. Without an open page, only rates
//! are sampled.

use super::{AdminState, auth::is_foreign, conditions::monitor, dto, response::Refusal};
use crate::{
    clock::millis,
    telemetry::{Point, Rates, Sampler, dashboard_sampler, memory_bytes},
};
use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::Arc,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Maximum pages that follow at once. Each costs about 20 kB a second.
const MAX_PAGES: usize = 16;
/// The most recent entries of each list that a page gets.
const MAX_EVENTS: usize = 40;
const MAX_REQUESTS: usize = 15;
const MAX_RECORDS: usize = 10;

/// State shared by all open pages.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) sampler: Mutex<Sampler>,
    snapshots: watch::Sender<Arc<str>>,
    permits: Arc<Semaphore>,
}

impl Live {
    pub(super) fn new() -> Self {
        let (snapshots, _) = watch::channel(Arc::from(""));
        Self { sampler: Mutex::default(), snapshots, permits: Arc::new(Semaphore::new(MAX_PAGES)) }
    }
}

/// Keeps the data of pages and the conditions up to date. Never returns.
pub(super) async fn run(state: AdminState) {
    tokio::join!(sample(&state), count_unsettled(&state));
}

/// Counts unknown writes every few seconds, beside the samples: the store may take long.
async fn count_unsettled(state: &AdminState) {
    let mut ticks = tokio::time::interval(monitor::COUNT_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        state.monitor.count_unsettled(state).await;
    }
}

/// Samples rates and conditions once a second, and sends a snapshot if any page is open.
async fn sample(state: &AdminState) {
    let mut ticks = tokio::time::interval(dashboard_sampler::SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let shared = &state.host.shared;
        state.live.sampler.lock().sample(&shared.meters, shared.clock.now());
        let conditions = state.monitor.sample(state);
        if state.live.snapshots.receiver_count() > 0 {
            let now = now(state, conditions).await;
            state.live.snapshots.send_replace(now);
        }
    }
}

#[derive(Serialize)]
struct Now {
    unix_ms: u64,
    status: dto::Status,
    memory_bytes: Option<u64>,
    rates: Vec<Rates>,
    points: BTreeMap<String, Point>,
    breakers: Vec<dto::Breaker>,
    limits: Vec<dto::Limits>,
    budgets: Vec<dto::Budget>,
    policies: Vec<dto::Policy>,
    events: Vec<dto::Event>,
    requests: Vec<dto::Summary>,
    unsettled: Unsettled,
}

#[derive(Serialize)]
struct Unsettled {
    count: usize,
    first: Vec<dto::Record>,
}

async fn now(state: &AdminState, conditions: Vec<dto::Condition>) -> Arc<str> {
    let shared = &state.host.shared;
    let unsettled = shared.records.unsettled(monitor::MAX_COUNTED).await.unwrap_or_default();
    let services: Vec<_> = shared.rollout.upstreams.iter().map(|serving| serving.current()).collect();
    let groups: Vec<_> = services.iter().flat_map(|service| dto::groups(service, &shared.events)).collect();
    let (rates, points) = {
        let sampler = state.live.sampler.lock();
        (sampler.rates(), sampler.points())
    };
    let requests = shared.workers.latest(MAX_REQUESTS, true, |_| true);
    let now = Now {
        unix_ms: shared.clock.unix_ms(),
        status: dto::status(state, conditions),
        memory_bytes: memory_bytes(),
        rates,
        points,
        breakers: groups.iter().map(dto::Shared::breaker).collect(),
        limits: groups.iter().filter_map(dto::Shared::limits).collect(),
        budgets: groups.iter().map(dto::Shared::budget).collect(),
        policies: shared.rollout.upstreams.iter().map(|serving| dto::policy(serving)).collect(),
        events: shared.events.latest(MAX_EVENTS).into_iter().map(dto::Event::from).collect(),
        requests: requests.iter().map(|row| dto::summary(row, &shared.clock)).collect(),
        unsettled: Unsettled {
            count: unsettled.len(),
            first: unsettled.into_iter().take(MAX_RECORDS).map(dto::record).collect(),
        },
    };
    text(&now)
}

/// The history that a page draws at first.
#[derive(Serialize)]
struct Past<'a> {
    every_ms: u64,
    most: usize,
    upstreams: &'a BTreeMap<String, VecDeque<Point>>,
}

fn text<T: Serialize>(value: &T) -> Arc<str> {
    // Maps with text keys and numbers always have a JSON form.
    serde_json::to_string(value).unwrap_or_default().into()
}

fn event(name: &'static str, data: &str) -> Event {
    Event::default().event(name).data(data)
}

/// One open page.
struct Follower {
    state: AdminState,
    /// The request's headers: its credentials are checked again with every event.
    headers: HeaderMap,
    snapshots: watch::Receiver<Arc<str>>,
    #[expect(dead_code, reason = "given back when the page leaves")]
    permit: OwnedSemaphorePermit,
}

/// Sends the history once, then a snapshot each second. The stream ends with the page, when its session ends or its token changes, and with
/// the connection's maximum life.
pub(super) async fn follow(State(state): State<AdminState>, headers: HeaderMap) -> Result<Response, Refusal> {
    if is_foreign(&headers) {
        return Err(Refusal::Foreign);
    }
    let permit = Arc::clone(&state.live.permits).try_acquire_owned().map_err(|_| Refusal::TooManyPages)?;
    let past = {
        let sampler = state.live.sampler.lock();
        text(&Past {
            every_ms: millis(dashboard_sampler::SAMPLE_INTERVAL),
            most: dashboard_sampler::POINTS,
            upstreams: sampler.plots(),
        })
    };
    let mut snapshots = state.live.snapshots.subscribe();
    // The first event sends a fresh snapshot, so the previous one counts as sent.
    snapshots.mark_unchanged();
    let first = now(&state, state.monitor.refresh(&state)).await;
    let begin = stream::iter([event("history", &past), event("now", &first)]);
    let follower = Follower { state, headers, snapshots, permit };
    let then = stream::unfold(follower, async |mut follower: Follower| {
        follower.snapshots.changed().await.ok()?;
        if !follower.state.access().may_still_read(&follower.headers) {
            return None;
        }
        let now = Arc::clone(&follower.snapshots.borrow_and_update());
        Some((event("now", &now), follower))
    });
    let mut response = Sse::new(begin.chain(then).map(Ok::<_, Infallible>)).into_response();
    let headers = response.headers_mut();
    headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    Ok(response)
}
