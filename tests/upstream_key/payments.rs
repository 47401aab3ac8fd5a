//! A payment API with idempotency keys as documented for Stripe's API v1, with faults.
//!
//! Rules (<https://docs.stripe.com/api/idempotent_requests>, <https://docs.stripe.com/error-low-level>): once execution begins, status and
//! body are stored under the key and replayed, including 500s. The same key with other parameters is 400 `idempotency_error`. While the
//! first request executes, a repetition is 409 `idempotency_key_in_use`. The rate limiter comes before the keys. Keys expire after a day.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use triage_engine::contract::{Failure, FailureKind};
use triage_upstream::{Inbound, Outbound, OutboundBody, Transport, full};

const KEYS_KEPT: Duration = Duration::from_hours(24);

/// Faults, each in percent of the sends.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The connection breaks before the request arrives.
    pub reset_before: u32,
    /// The connection breaks after the payment was made.
    pub reset_after: u32,
    /// The payment takes longer than the attempt timeout.
    pub slow: u32,
    /// 500, stored; in every second case after the payment was made.
    pub broken: u32,
    /// 402, stored.
    pub declined: u32,
    /// 429 from the rate limiter.
    pub limited: u32,
}

/// The faults and payments so far.
#[derive(Debug, Default)]
pub struct Books {
    keys: HashMap<Vec<u8>, Entry>,
    /// The number of payments by request body.
    pub payments: HashMap<Bytes, u32>,
    /// The key of each send.
    pub sent_keys: Vec<Option<String>>,
    /// The responses to each body, for failure messages.
    pub answers: HashMap<Bytes, Vec<&'static str>>,
    /// Bodies whose stored response is a 500.
    pub broken: HashSet<Bytes>,
    pub resets: u32,
    pub conflicts: u32,
    pub replays: u32,
}

impl Books {
    pub fn duplicates(&self) -> usize {
        self.payments.values().filter(|count| **count > 1).count()
    }
}

#[derive(Debug, Clone)]
struct Entry {
    body: Bytes,
    begun: Instant,
    done: Instant,
    status: StatusCode,
    answer: String,
}

pub struct Payments {
    pub faults: Faults,
    books: Mutex<Books>,
    random: Mutex<SmallRng>,
}

impl std::fmt::Debug for Payments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Payments")
    }
}

impl Payments {
    pub fn new(faults: Faults) -> Self {
        Self { faults, books: Mutex::default(), random: Mutex::new(SmallRng::seed_from_u64(11)) }
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    fn strikes(&self, percent: u32) -> bool {
        self.random.lock().unwrap().random_range(0..100) < percent
    }

    /// Executes a request for the first time. Returns the response to store, and whether a payment was made.
    fn execute(&self, body: &Bytes, now: Instant) -> Entry {
        let took = if self.strikes(self.faults.slow) { Duration::from_secs(8) } else { Duration::from_millis(50) };
        let id = self.random.lock().unwrap().next_u32();
        let (status, is_made, answer) = if self.strikes(self.faults.broken) {
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                id.is_multiple_of(2),
                "{\"error\": {\"type\": \"api_error\"}}".to_owned(),
            )
        } else if self.strikes(self.faults.declined) {
            (StatusCode::PAYMENT_REQUIRED, false, "{\"error\": {\"type\": \"card_error\"}}".to_owned())
        } else {
            (StatusCode::OK, true, format!("{{\"id\": {id}}}"))
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            self.books().broken.insert(body.clone());
        }
        if is_made {
            *self.books().payments.entry(body.clone()).or_default() += 1;
        }
        Entry { body: body.clone(), begun: now, done: now + took, status, answer }
    }

    async fn answer(&self, request: Outbound) -> Result<Inbound, Failure> {
        let OutboundBody::Bytes(body) = request.body else { panic!("bodies are small") };
        let key = request.headers.get("idempotency-key").map(|key| key.as_bytes().to_vec());
        let shown = key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
        self.books().sent_keys.push(shown);
        let reset = || Failure::new(FailureKind::Reset, true);
        let note = |what| self.books().answers.entry(body.clone()).or_default().push(what);
        if self.strikes(self.faults.reset_before) {
            self.books().resets += 1;
            note("reset before");
            return Err(reset());
        }
        if self.strikes(self.faults.limited) {
            note("429");
            return Ok(inbound(StatusCode::TOO_MANY_REQUESTS, "{}".to_owned(), false));
        }
        let now = Instant::now();
        let known = key.as_ref().and_then(|key| self.books().keys.get(key).cloned());
        let known = known.filter(|entry| now < entry.begun + KEYS_KEPT);
        let (entry, replayed) = match known {
            Some(entry) if entry.body != body => {
                let answer = "{\"error\": {\"type\": \"idempotency_error\"}}".to_owned();
                return Ok(inbound(StatusCode::BAD_REQUEST, answer, false));
            }
            Some(entry) if now < entry.done => {
                self.books().conflicts += 1;
                note("in use");
                let answer = "{\"error\": {\"code\": \"idempotency_key_in_use\"}}".to_owned();
                return Ok(inbound(StatusCode::CONFLICT, answer, false));
            }
            Some(entry) => {
                self.books().replays += 1;
                (entry, true)
            }
            None => {
                let entry = self.execute(&body, now);
                if let Some(key) = key {
                    self.books().keys.insert(key, entry.clone());
                }
                (entry, false)
            }
        };
        note("executed or stored");
        sleep_until(entry.done).await;
        if self.strikes(self.faults.reset_after) {
            self.books().resets += 1;
            note("reset after");
            return Err(reset());
        }
        note("answered");
        Ok(inbound(entry.status, entry.answer, replayed))
    }
}

impl Transport for Payments {
    fn stops_when_dropped(&self) -> bool {
        true
    }

    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        Box::pin(self.answer(request))
    }
}

pub fn inbound(status: StatusCode, body: String, replayed: bool) -> Inbound {
    let mut headers = HeaderMap::new();
    if replayed {
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Inbound { status, headers, body: full(Bytes::from(body)) }
}
