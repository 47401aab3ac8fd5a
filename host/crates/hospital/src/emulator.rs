//! An emulator of the hospital directory API for demonstrations and tests, so that they need not burden the public server.
//!
//! It responds like the real server (a `FastAPI` application with all data in memory): with the same statuses and bodies, a create that
//! takes 5 s, limits per minute, a pool of 40 handlers, and the same races. It injects faults on demand ([`Faults`]), which can be changed
//! while it runs. It has two interfaces: in-process ([`Emulator::handle`] and [`InProcess`], also under paused time) and sockets
//! ([`Emulator::serve`]).
//!
//! ```
//! use triage_hospital::emulator::{Emulator, Options, Reply, Request};
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
//! # runtime.block_on(async {
//! let emulator = Emulator::new(Options::default());
//! let reply = emulator.handle(Request::post("/hospitals/", r#"{"name": "A", "address": "B"}"#)).await;
//! assert!(matches!(reply, Reply::Answer(response) if response.status() == 200));
//! assert_eq!(emulator.hospitals().len(), 1);
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```

mod call;
mod cold_start;
mod directory;
mod fault;
mod handler;
mod in_process;
mod record;
mod response;
mod rule;
mod socket;
#[cfg(test)]
mod tests;
mod validate;
mod window;

pub use call::Call;
pub use cold_start::{ColdStart, Meanwhile};
pub use directory::{BATCH_CAP, Draft, Hospital};
pub use fault::{Fault, Faults, When};
pub use in_process::InProcess;
pub use record::Arrival;
pub use rule::Rule;

use crate::rng::Rng;
use bytes::Bytes;
use call::Route;
use cold_start::{Entry, Sleeper};
use directory::Directory;
use http::{HeaderMap, Method, Response, StatusCode};
use parking_lot::Mutex;
use record::Record;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};
use window::Windows;

/// The emulator's behaviour without faults. The defaults were observed at the public server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Duration of a create; the hospital is stored at its end. Default 5 s.
    pub create_delay: Duration,
    /// Duration of any other call. Default 0.3 s.
    pub other_delay: Duration,
    /// Requests handled at once. A create occupies a handler for its whole duration. Default 40.
    pub handlers: usize,
    /// Maximum stored hospitals; the oldest are deleted first. Default 10,000.
    pub capacity: usize,
    /// The window of the rate limits; none switches them off. Default 1 min.
    pub limit_window: Option<Duration>,
    /// How the deployment sleeps. Default: never.
    pub cold_start: Option<ColdStart>,
    /// The emulator's date at the start, in milliseconds since 1970. Default 2026-01-01.
    pub unix_ms: u64,
    /// Random numbers for faults. Default: a fixed seed, so that runs are reproducible.
    pub entropy: Rng,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            create_delay: Duration::from_secs(5),
            other_delay: Duration::from_millis(300),
            handlers: 40,
            capacity: 10_000,
            limit_window: Some(Duration::from_mins(1)),
            cold_start: None,
            unix_ms: 1_767_225_600_000,
            entropy: Rng::seeded(1),
        }
    }
}

impl Options {
    /// Options without delays and limits, for tests that do not measure time.
    pub fn immediate() -> Self {
        Self { create_delay: Duration::ZERO, other_delay: Duration::ZERO, limit_window: None, ..Self::default() }
    }

    /// Divides all times by `factor` (0 counts as 1), for demonstrations.
    #[must_use]
    pub fn scaled_down(mut self, factor: u32) -> Self {
        let factor = factor.max(1);
        self.create_delay /= factor;
        self.other_delay /= factor;
        self.limit_window = self.limit_window.map(|window| window / factor);
        self.cold_start =
            self.cold_start.map(|cold| ColdStart { idle: cold.idle / factor, waking: cold.waking / factor, ..cold });
        self
    }
}

/// A request to the emulator.
#[derive(Debug, Clone)]
pub struct Request {
    /// The HTTP method.
    pub method: Method,
    /// The path, with the query if any.
    pub path_and_query: String,
    /// The header fields. The emulator uses only Content-Type.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The client's address, by which the limits count.
    pub client: IpAddr,
}

impl Request {
    /// A request without headers from this machine.
    pub fn new(method: Method, path_and_query: impl Into<String>, body: impl Into<Bytes>) -> Self {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self { method, path_and_query: path_and_query.into(), headers: HeaderMap::new(), body: body.into(), client }
    }

    /// A GET.
    pub fn get(path_and_query: impl Into<String>) -> Self {
        Self::new(Method::GET, path_and_query, Bytes::new())
    }

    /// A POST of JSON.
    pub fn post(path_and_query: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, path_and_query, body)
    }
}

/// The result of a request.
#[derive(Debug)]
pub enum Reply {
    /// A complete response.
    Answer(Response<Bytes>),
    /// The head of this response, this many bytes of its body, and then a reset.
    CutShort(Response<Bytes>, usize),
    /// A connection reset without a response.
    Reset,
    /// The emulator closed the connection before it read a byte. Only the in-process emulator returns this: with sockets, the emulator's
    /// accept loop closes the connection itself.
    Refused,
    /// No response ever.
    Stall,
}

/// The emulator, shared by `Arc`.
#[derive(Debug)]
pub struct Emulator {
    options: Options,
    started: Instant,
    handlers: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    directory: Directory,
    windows: Option<Windows>,
    sleeper: Sleeper,
    faults: Faults,
    record: Record,
    /// Counts restarts. A create that an earlier process began stores nothing.
    process: u64,
}

impl Emulator {
    /// Creates an emulator with an empty directory.
    pub fn new(options: Options) -> Arc<Self> {
        let started = Instant::now();
        let state = State {
            directory: Directory::new(options.capacity),
            windows: options.limit_window.map(Windows::new),
            sleeper: Sleeper::new(options.cold_start, started),
            faults: Faults::none(),
            record: Record::default(),
            process: 0,
        };
        Arc::new(Self { handlers: Semaphore::new(options.handlers.max(1)), options, started, state: Mutex::new(state) })
    }

    /// Replaces the faults for later requests, with new counters.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// The hospitals, in the order of their ids.
    pub fn hospitals(&self) -> Vec<Hospital> {
        self.state.lock().directory.all()
    }

    /// The hospital with this id.
    pub fn hospital(&self, id: u64) -> Option<Hospital> {
        self.state.lock().directory.get(id).cloned()
    }

    /// The number of hospitals ever created by the current process, including deleted ones.
    pub fn made(&self) -> u64 {
        self.state.lock().directory.made()
    }

    /// The number of hospitals that repeat an earlier one's (batch, name, address, phone).
    pub fn duplicates(&self) -> usize {
        self.state.lock().directory.duplicates()
    }

    /// Arrived requests, oldest first (the newest 200,000). Refused connections are not included.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.state.lock().record.arrivals()
    }

    /// The maximum number of this call's arrivals in any window of this length.
    pub fn most_within(&self, call: Call, window: Duration) -> usize {
        self.state.lock().record.most_within(call, window)
    }

    /// The number of requests that got a fault.
    pub fn faults_injected(&self) -> u64 {
        self.state.lock().record.injected
    }

    /// Restarts the process: all data is lost, ids start at 1, and running requests end in a reset.
    pub fn restart(&self) {
        self.state.lock().restart(self.options.capacity);
    }

    /// Puts a deployment with a cold start to sleep; without one, this does nothing.
    pub fn sleep(&self) {
        self.state.lock().sleeper.sleep();
    }

    /// Handles one request in-process. Time is tokio's, so under paused time the 5 s pass at once. Begun work is finished even if the
    /// caller leaves, as on the real server.
    pub async fn handle(self: &Arc<Self>, request: Request) -> Reply {
        if self.refuses() { Reply::Refused } else { self.answer(request).await }
    }

    fn refuses(&self) -> bool {
        self.state.lock().faults.refuses(self.options.entropy.next())
    }

    async fn answer(self: &Arc<Self>, request: Request) -> Reply {
        let emulator = Arc::clone(self);
        tokio::spawn(async move { emulator.process(&request).await }).await.unwrap_or(Reply::Reset)
    }

    async fn process(self: &Arc<Self>, request: &Request) -> Reply {
        let entry = self.state.lock().enter(self.options.capacity);
        match entry {
            Entry::Answer(status) => return Reply::Answer(response::failure(status)),
            Entry::From(awake) => tokio::time::sleep_until(awake).await,
            Entry::Open => {}
        }
        let (call, parameter) = match call::route(&request.method, &request.path_and_query) {
            Route::Call(call, parameter) => (call, parameter),
            Route::Answered(response) => return Reply::Answer(response),
        };
        let fault = self.state.lock().arrive(call, self.options.entropy.next());
        tracing::debug!("{call:?} begins");
        match &fault {
            Some(Fault::FailBefore(status)) => return Reply::Answer(response::failure(*status)),
            Some(Fault::ResetBefore) => return Reply::Reset,
            Some(Fault::StallBefore) => return Reply::Stall,
            Some(Fault::RateLimited(wait)) => return Reply::Answer(response::rate_limited(call.limit(), *wait)),
            _ => {}
        }
        let commit_after = match &fault {
            Some(Fault::ResetThenCommit(range)) => Some(fault::within(range, self.options.entropy.next())),
            _ => None,
        };
        let response = match validate::validate(call, parameter, request) {
            Err(response) => *response,
            Ok(operation) => match self.perform(call, operation, request.client, commit_after).await {
                Some(response) => response,
                None => return Reply::Reset,
            },
        };
        apply_fault(response, fault.as_ref())
    }
}

impl State {
    fn enter(&mut self, capacity: usize) -> Entry {
        let (entry, restarted) = self.sleeper.enter(Instant::now());
        if restarted {
            self.restart(capacity);
        }
        entry
    }

    fn restart(&mut self, capacity: usize) {
        self.directory = Directory::new(capacity);
        self.process += 1;
    }

    fn arrive(&mut self, call: Call, random: u64) -> Option<Fault> {
        self.record.arrive(call, Instant::now());
        let fault = self.faults.choose(call, random);
        self.record.injected += u64::from(fault.is_some());
        fault
    }
}

/// Applies a fault to the response of finished work.
fn apply_fault(response: Response<Bytes>, fault: Option<&Fault>) -> Reply {
    let half = response.body().len() / 2;
    match fault {
        Some(Fault::FailAfter(status)) => Reply::Answer(response::failure(*status)),
        Some(Fault::ResetAfter | Fault::ResetThenCommit(_)) => Reply::Reset,
        Some(Fault::StallAfter) => Reply::Stall,
        Some(Fault::Unreadable) if response.status() == StatusCode::OK => {
            Reply::Answer(response.map(|body| body.slice(..half)))
        }
        Some(Fault::CutShort) => Reply::CutShort(response, half),
        _ => Reply::Answer(response),
    }
}
