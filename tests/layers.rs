//! Breaker, limits, retries and keys through the whole pipeline, with a scripted upstream in one process and paused time.

mod breaker;
mod cancellation;
mod concurrency;
mod dynamic;
mod isolation;
mod limits;
mod orphans;
mod overload;
mod retry;
mod timelines;

use crate::support::{Answered, World, read};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use triage::Host;
use triage_config::{self as config, settings::Settings};
use triage_core::{clock::Clock, rng::Rng};
use triage_engine::contract::{Failure, FailureKind};
use triage_hospital::emulator::Options;
use triage_upstream::{Inbound, Outbound, Transport, full};

/// How the upstream treats one request.
#[derive(Debug, Clone)]
struct Plan {
    /// The time before the head or the failure.
    after: Duration,
    answer: Answer,
}

#[derive(Debug, Clone)]
enum Answer {
    Status(u16, &'static [(&'static str, &'static str)]),
    /// 200 and a body of this length, with a pause before a reset at its end.
    Broken(Duration),
    /// 200 and a body that arrives complete after a pause.
    Late(Duration),
    /// The connection is refused.
    Refused,
    /// The request arrives, and the connection is reset.
    Lost,
}

impl Plan {
    fn status(status: u16) -> Self {
        Self { after: Duration::ZERO, answer: Answer::Status(status, &[]) }
    }

    fn asking(status: u16, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { after: Duration::ZERO, answer: Answer::Status(status, headers) }
    }

    fn of(answer: Answer) -> Self {
        Self { after: Duration::ZERO, answer }
    }

    fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }
}

type Script = Box<dyn FnMut(&Outbound) -> Plan + Send>;

/// An upstream that follows a script and records arrivals.
struct Scripted {
    script: Mutex<Script>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    arrivals: Vec<(Instant, String)>,
    under_way: usize,
    most: usize,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

/// Counts a request as running until it gets a response or is dropped.
struct UnderWay<'a>(&'a Mutex<Seen>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

impl Transport for Scripted {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        Box::pin(async move {
            let plan = (self.script.lock())(&request);
            {
                let mut seen = self.seen.lock();
                seen.arrivals.push((Instant::now(), request.path_and_query.clone()));
                seen.under_way += 1;
                seen.most = seen.most.max(seen.under_way);
            }
            let _under_way = UnderWay(&self.seen);
            if !plan.after.is_zero() {
                sleep(plan.after).await;
            }
            let ok = |status: u16, headers, body| {
                Ok(Inbound { status: StatusCode::from_u16(status).unwrap(), headers, body })
            };
            match plan.answer {
                Answer::Status(status, fields) => {
                    let mut headers = HeaderMap::new();
                    for (name, value) in fields {
                        headers.insert(*name, value.parse().unwrap());
                    }
                    ok(status, headers, full(Bytes::from_static(b"scripted")))
                }
                Answer::Broken(pause) => {
                    let parts = futures_util::stream::unfold(0, move |part| async move {
                        match part {
                            0 => Some((Ok(Frame::data(Bytes::from_static(b"half"))), 1)),
                            1 => {
                                sleep(pause).await;
                                Some((Err("reset in the middle".into()), 2))
                            }
                            _ => None,
                        }
                    });
                    ok(200, HeaderMap::new(), StreamBody::new(Box::pin(SyncStream::new(parts))).boxed())
                }
                Answer::Late(pause) => {
                    let parts = futures_util::stream::once(async move {
                        sleep(pause).await;
                        Ok(Frame::data(Bytes::from_static(b"late")))
                    });
                    ok(200, HeaderMap::new(), StreamBody::new(Box::pin(SyncStream::new(parts))).boxed())
                }
                Answer::Refused => Err(Failure::new(FailureKind::Connect, false)),
                Answer::Lost => Err(Failure::new(FailureKind::Reset, true)),
            }
        })
    }
}

/// Makes a stream `Sync` for a boxed body. Only one owner ever polls it.
struct SyncStream<S>(Mutex<Pin<Box<S>>>);

impl<S> SyncStream<S> {
    fn new(stream: S) -> Self {
        Self(Mutex::new(Box::pin(stream)))
    }
}

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.get_mut().as_mut().poll_next(context)
    }
}

/// An emulated directory whose breakers open for 10 s and then make the policy's health call. No retries and no jitter.
fn with_health_call() -> World {
    let text = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.defaults]
        retry = { max_attempts = 1 }
        breaker = { jitter = 0, open_for = "10s" }
    "#;
    let settings = triage_config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
    World::new(&settings, Options::default())
}

/// A host in front of a scripted upstream.
struct Stage {
    host: Host,
    upstream: Arc<Scripted>,
}

impl Stage {
    fn new(settings: &Settings, script: impl FnMut(&Outbound) -> Plan + Send + 'static) -> Arc<Self> {
        Self::seeded(settings, 7, script)
    }

    fn seeded(settings: &Settings, seed: u64, script: impl FnMut(&Outbound) -> Plan + Send + 'static) -> Arc<Self> {
        let upstream = Arc::new(Scripted { script: Mutex::new(Box::new(script)), seen: Mutex::default() });
        let transport: Arc<dyn Transport> = Arc::clone(&upstream) as _;
        let clock = Clock::anchored(1_767_225_600_000);
        let host = Host::with_transports(settings, clock, Rng::seeded(seed), vec![transport]).unwrap();
        Arc::new(Self { host, upstream })
    }

    /// Replaces the upstream's script.
    fn then(&self, script: impl FnMut(&Outbound) -> Plan + Send + 'static) {
        *self.upstream.script.lock() = Box::new(script);
    }

    async fn send(&self, request: Request<Bytes>) -> Answered {
        read(self.host.call(request).await).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.send(get(path)).await
    }

    /// Sends a request in the background.
    fn begin(self: &Arc<Self>, path: &'static str) -> tokio::task::JoinHandle<Answered> {
        let stage = Arc::clone(self);
        tokio::spawn(async move { stage.get(path).await })
    }

    fn arrived(&self) -> usize {
        self.upstream.seen.lock().arrivals.len()
    }

    fn arrivals(&self) -> Vec<Instant> {
        self.upstream.seen.lock().arrivals.iter().map(|(at, _)| *at).collect()
    }

    fn most_under_way(&self) -> usize {
        self.upstream.seen.lock().most
    }
}

/// A future that its owner drops after a number of polls.
struct Polls<F> {
    inner: Pin<Box<F>>,
    left: usize,
}

fn polled<F: Future>(polls: usize, inner: F) -> Polls<F> {
    Polls { inner: Box::pin(inner), left: polls }
}

impl<F: Future> Future for Polls<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        let polled = self.inner.as_mut().poll(context).map(Some);
        if polled.is_pending() && self.left == 0 {
            // Drop it now, before anything else can happen.
            return Poll::Ready(None);
        }
        polled
    }
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

/// An API with the policy `http-standard` and these defaults for all endpoints. Further lines may add tables.
fn api(defaults: &str) -> Settings {
    let text = format!("[upstreams.api]\nbase_url = \"http://api.invalid\"\n[upstreams.api.defaults]\n{defaults}\n");
    config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
