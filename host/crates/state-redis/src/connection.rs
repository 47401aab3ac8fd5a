//! The connection to shared state: runs a script, and reports within 20 ms whether it ran.

pub(crate) mod pubsub;
pub(crate) mod server_identity;
mod thread_connection;

use crate::{
    bounded_file,
    client::{Client, Connection},
    clock::{Clock, Timestamp},
    error::{LinkError, OpenError},
    keys::Keys,
    metrics::{self, ScriptMetrics, Steps},
    rng::Rng,
    script::Script,
    secret::TokenSource,
    settings::Settings,
    telemetry::task_spans,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use pubsub::Pushed;
use redis::{Cmd, ErrorKind, ServerErrorKind, ToRedisArgs, Value};
use server_identity::Lost;
use std::{
    cell::RefCell,
    fmt,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use thread_connection::{Numbered, ThreadConnection};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

/// Between two checks of the server's identity.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Messages that a receiver may lag behind. A receiver that lags further gets `Lagged`, and reads everything again.
const MAX_PUSHED_MESSAGES: usize = 1024;
/// How long to wait for the reply of an abandoned call, in order to give back what it took.
const LATE_REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum characters of the server's code for a refusal.
const MAX_CODE_CHARS: usize = 32;

/// Condition of shared state, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether Redis can be reached now.
    pub is_up: bool,
    /// Whether Redis evicts data when its memory is full.
    pub may_evict: bool,
    /// Age of the last loss of data that this host knows of.
    pub lost_ago: Option<Duration>,
    /// The server's code for the last call that it refused, such as `OOM`, and the time since.
    pub refused: Option<(String, Duration)>,
}

/// The connection to shared state. Clones share everything; dropping the last one closes the sockets.
///
/// Every calling thread has its own socket, driven by the runtime of its first call: two threads never wait for each other, and a
/// runtime that ends takes only its own socket with it. A socket is replaced after three time-outs in a row, when it breaks, and
/// when the server turns out to be loading or a replica. Until the new one is ready, each call fails at once, without waiting.
#[derive(Clone)]
pub struct RedisConnection {
    inner: Arc<Inner>,
    beside: tokio::runtime::Handle,
    _open: Arc<DropGuard>,
}

/// State shared by all threads that use the connection.
pub(super) struct Inner {
    number: u64,
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) clock: Clock,
    pub(super) entropy: Rng,
    pub(super) timeout: Duration,
    slots: Mutex<Vec<Arc<ThreadConnection>>>,
    /// The era of the server's data, as this host knows it: see `records/incarnation.rs`.
    pub(super) known: Mutex<Option<String>>,
    /// Number of eras that this host has seen.
    pub(super) eras: watch::Sender<u64>,
    pub(super) lost: watch::Sender<Option<Lost>>,
    pub(super) alarmed: Mutex<Option<String>>,
    /// The code of the last refusal of a call, and its time.
    refused: Mutex<Option<(String, Timestamp)>>,
    pushed: broadcast::Sender<Pushed>,
    pub(super) closed: CancellationToken,
    meter: ScriptMetrics,
    /// Whether the server rejects this host's user name or password.
    pub(super) unauthorized: AtomicBool,
    /// Whether the server answered the last check of its identity; true before the first one.
    is_alive: AtomicBool,
}

impl RedisConnection {
    /// Prepares the client and starts the thread that watches the server. Does not wait for a connection.
    ///
    /// # Errors
    /// [`OpenError`] where the address, a certificate or a password file cannot be used.
    pub fn open(settings: &Settings, clock: Clock, entropy: Rng) -> Result<Self, OpenError> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let client = client(settings)?;
        let inner = Arc::new(Inner {
            number: NUMBERS.fetch_add(1, Relaxed),
            client,
            keys: Keys::new(&settings.prefix),
            clock,
            entropy,
            timeout: settings.timeout,
            slots: Mutex::default(),
            known: Mutex::default(),
            eras: watch::Sender::new(0),
            lost: watch::Sender::new(None),
            alarmed: Mutex::default(),
            refused: Mutex::default(),
            pushed: broadcast::Sender::new(MAX_PUSHED_MESSAGES),
            closed: CancellationToken::new(),
            meter: ScriptMetrics::default(),
            unauthorized: AtomicBool::new(false),
            is_alive: AtomicBool::new(true),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread)?;
        let beside = runtime.handle().clone();
        let watching = Arc::clone(&inner);
        let spawned =
            thread::Builder::new().name("triage-state".to_owned()).spawn(move || runtime.block_on(watched(&watching)));
        spawned.map_err(OpenError::Thread)?;
        let open = Arc::new(inner.closed.clone().drop_guard());
        Ok(Self { inner, beside, _open: open })
    }

    /// Whether [`RedisConnection::open`] would succeed. Connects to nothing.
    ///
    /// # Errors
    /// As [`RedisConnection::open`].
    pub fn check(settings: &Settings) -> Result<(), OpenError> {
        client(settings).map(drop)
    }

    /// Whether shared state is a Cluster: a script may then touch keys of one hash slot only.
    pub fn is_cluster(&self) -> bool {
        self.inner.client.is_cluster()
    }

    /// Names of the fleet's keys.
    pub fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// The time limit of a call: `state.timeout`.
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// Runs a script: one round trip, within `state.timeout`. Dropping the future does not undo a script that was sent.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::may_be_done`] tells whether the script may have run all the same.
    pub async fn run<A: ToRedisArgs>(
        &self,
        script: &'static Script,
        keys: &[String],
        args: &[A],
    ) -> Result<Value, LinkError> {
        self.run_within(self.inner.timeout, script, keys, args).await
    }

    /// As [`RedisConnection::run`], with another time limit, for callers that cannot go on without the reply.
    ///
    /// # Errors
    /// As [`RedisConnection::run`].
    pub async fn run_within<A: ToRedisArgs>(
        &self,
        longest: Duration,
        script: &'static Script,
        keys: &[String],
        args: &[A],
    ) -> Result<Value, LinkError> {
        let (began, slot) = (Instant::now(), self.inner.slot());
        let step = async {
            let deadline = began + longest;
            let mut connection = self.inner.connected(&slot, deadline).await?;
            let step = self.inner.evaluate(&mut connection, script, keys, args);
            let answer = timeout_at(deadline, step).await.unwrap_or(Err(LinkError::TimedOut(longest)));
            self.inner.record_result(&slot, &connection, began, answer.as_ref().err());
            answer
        };
        traced(script.name(), began, step, outcome_name).await
    }

    /// As [`RedisConnection::run`], for a script that takes something. If the reply is late or the caller has gone, the reply goes to
    /// `late`, which gives back what was taken. The time limit runs from `since`.
    ///
    /// # Errors
    /// As [`RedisConnection::run`].
    pub async fn run_or_late(
        &self,
        script: &'static Script,
        keys: Vec<String>,
        args: Vec<String>,
        since: Instant,
        late: impl FnOnce(Value) + Send + 'static,
    ) -> Result<Value, LinkError> {
        let (began, slot) = (Instant::now(), self.inner.slot());
        let step = async {
            let deadline = since + self.inner.timeout;
            let connection = self.inner.connected(&slot, deadline).await?;
            let (inner, mut own) = (Arc::clone(&self.inner), connection.clone());
            let step = async move { inner.evaluate(&mut own, script, &keys, &args).await }.boxed();
            let mut awaited = Awaited { step: Some(step), late: Some(late) };
            let answer =
                timeout_at(deadline, awaited.answer()).await.unwrap_or(Err(LinkError::TimedOut(self.inner.timeout)));
            self.inner.record_result(&slot, &connection, began, answer.as_ref().err());
            answer
        };
        traced(script.name(), began, step, outcome_name).await
    }

    /// The era of the server's data; a new era begins with each loss that a host detects. Waits for the first connection.
    ///
    /// # Errors
    /// [`LinkError::Down`] where there is no connection within `longest`.
    pub(super) async fn era(&self, longest: Duration) -> Result<String, LinkError> {
        self.inner.slot().connection(&self.inner, Instant::now() + longest).await?;
        self.inner.known.lock().clone().ok_or(LinkError::Down)
    }

    /// The era of the server's data, as far as this host knows it. Does not wait.
    pub(super) fn known_era(&self) -> Option<String> {
        self.inner.known.lock().clone()
    }

    /// Signals each new era, by the number of eras seen.
    pub(super) fn eras(&self) -> watch::Receiver<u64> {
        self.inner.eras.subscribe()
    }

    /// Checks the server's identity now instead of at the next interval, and returns the era. Losses are known afterwards.
    ///
    /// # Errors
    /// As [`RedisConnection::run`].
    pub(super) async fn recognise(&self, longest: Duration) -> Result<String, LinkError> {
        let (began, slot) = (Instant::now(), self.inner.slot());
        let check = async {
            let deadline = began + longest;
            let mut connection = slot.connection(&self.inner, deadline).await?;
            let checked = timeout_at(deadline, self.inner.census(&mut connection)).await;
            let checked = checked.unwrap_or(Err(LinkError::TimedOut(longest)));
            slot.record_result(&self.inner, &connection, checked.as_ref().err());
            checked.map(drop)
        };
        traced("census", began, check, outcome_name).await?;
        self.inner.known.lock().clone().ok_or(LinkError::Down)
    }

    /// The last loss of data that this host knows of: anything written before may be gone. A connection is used only after this
    /// check of its server.
    pub fn lost_data(&self) -> Option<Lost> {
        *self.inner.lost.borrow()
    }

    /// Signals each loss of data.
    pub fn losses(&self) -> watch::Receiver<Option<Lost>> {
        self.inner.lost.subscribe()
    }

    /// Messages of other hosts from now on: see [`Keys::channel`]. A receiver that lags has missed messages, as after
    /// [`Joined`](Pushed::Joined).
    pub fn pushed(&self) -> broadcast::Receiver<Pushed> {
        self.inner.pushed.subscribe()
    }

    /// Runs a task on the thread `triage-state`, until the task ends or the last connection is dropped. The task must not hold a
    /// connection.
    pub fn beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.beside.spawn(task);
    }

    /// Durations and failures of script calls so far.
    pub fn steps(&self) -> Steps {
        self.inner.meter.read()
    }

    /// Condition of shared state now.
    pub fn condition(&self) -> Condition {
        let lost = *self.inner.lost.borrow();
        Condition {
            is_up: self.is_up(),
            may_evict: self.inner.alarmed.lock().is_some(),
            lost_ago: lost.map(|lost| self.inner.clock.now().since(lost.at)),
            refused: self
                .inner
                .refused
                .lock()
                .as_ref()
                .map(|(code, at)| (code.clone(), self.inner.clock.now().since(*at))),
        }
    }

    /// Whether the server rejects this host's user name or password, which waiting does not cure.
    pub fn is_unauthorized(&self) -> bool {
        self.inner.unauthorized.load(Relaxed)
    }

    /// Whether the server answered the last check of its identity, and any thread's connection is up. The check matters without traffic: a
    /// server that hangs breaks no connection.
    pub fn is_up(&self) -> bool {
        self.inner.is_alive.load(Relaxed) && self.has_connection()
    }

    /// Whether any thread's connection is up: a call would be sent. Whether it would be answered is another matter: see
    /// [`RedisConnection::is_up`].
    pub fn has_connection(&self) -> bool {
        self.inner.slots.lock().iter().any(|slot| slot.is_up())
    }
}

impl Inner {
    pub(super) fn push(&self, pushed: Pushed) {
        // No receiver: nothing to do.
        let _ = self.pushed.send(pushed);
    }

    /// The calling thread's connection.
    fn slot(&self) -> Arc<ThreadConnection> {
        thread_local! {
            static OWN: RefCell<Vec<(u64, Weak<ThreadConnection>)>> = const { RefCell::new(Vec::new()) };
        }
        OWN.with_borrow_mut(|own| {
            if let Some(slot) =
                own.iter().find(|(number, _)| *number == self.number).and_then(|(_, slot)| slot.upgrade())
            {
                return slot;
            }
            own.retain(|(_, slot)| slot.strong_count() > 0);
            let slot = Arc::new(ThreadConnection::default());
            own.push((self.number, Arc::downgrade(&slot)));
            self.slots.lock().push(Arc::clone(&slot));
            slot
        })
    }

    async fn connected(
        self: &Arc<Self>,
        slot: &Arc<ThreadConnection>,
        deadline: Instant,
    ) -> Result<Numbered, LinkError> {
        let connection = slot.connection(self, deadline).await;
        connection.inspect_err(|error| self.meter.note(Duration::ZERO, Some(error)))
    }

    fn record_result(
        self: &Arc<Self>,
        slot: &Arc<ThreadConnection>,
        over: &Numbered,
        began: Instant,
        error: Option<&LinkError>,
    ) {
        self.meter.note(began.elapsed(), error);
        if let Some(LinkError::Refused(refusal)) = error {
            // A code is a short word, but the server is not trusted to send one.
            let code = refusal.code().unwrap_or("ERR").chars().filter(char::is_ascii_alphanumeric).take(MAX_CODE_CHARS);
            *self.refused.lock() = Some((code.collect(), self.clock.now()));
        }
        slot.record_result(self, over, error);
    }

    /// Runs a script by its digest. A server that does not know the digest (new, or after SCRIPT FLUSH) gets the text, and caches it.
    pub(super) async fn evaluate<A: ToRedisArgs>(
        &self,
        connection: &mut Connection,
        script: &'static Script,
        keys: &[String],
        args: &[A],
    ) -> Result<Value, LinkError> {
        let command = |verb: &str, text: &str| -> Cmd {
            let mut command = redis::cmd(verb);
            command.arg(text).arg(keys.len()).arg(keys).arg(args);
            command
        };
        match connection.ask(&command("EVALSHA", script.sha())).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                connection.ask(&command("EVAL", script.source())).await.map_err(LinkError::of)
            }
            answer => answer.map_err(LinkError::of),
        }
    }
}

/// Reports a script call in a span of its own, below the request that waits for it, and in the request's timeline: name and
/// outcome, never keys, values or addresses. A call that is dropped before its end has no outcome.
pub(super) async fn traced<T>(
    name: &'static str,
    began: Instant,
    step: impl Future<Output = T>,
    outcome: impl FnOnce(&T) -> &'static str,
) -> T {
    // Level debug, like the request's span: if no subscriber wants it, it costs one check of a flag.
    let span = tracing::debug_span!("state", step = name, outcome = tracing::field::Empty);
    let answer = step.instrument(span.clone()).await;
    let outcome = outcome(&answer);
    span.record("outcome", outcome);
    task_spans::note(name, outcome, began);
    answer
}

/// The outcome of a script call, for its span.
fn outcome_name<T>(answer: &Result<T, LinkError>) -> &'static str {
    metrics::outcome(answer.as_ref().map(|_| ()))
}

/// A script call whose reply goes to `late` if the caller stops waiting.
struct Awaited<F: FnOnce(Value) + Send + 'static> {
    step: Option<BoxFuture<'static, Result<Value, LinkError>>>,
    late: Option<F>,
}

impl<F: FnOnce(Value) + Send + 'static> Awaited<F> {
    async fn answer(&mut self) -> Result<Value, LinkError> {
        let Some(step) = &mut self.step else { return Err(LinkError::Down) };
        let answer = step.await;
        self.step = None;
        answer
    }
}

impl<F: FnOnce(Value) + Send + 'static> Drop for Awaited<F> {
    fn drop(&mut self) {
        let (Some(step), Some(late)) = (self.step.take(), self.late.take()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Ok(Ok(answer)) = timeout(LATE_REPLY_TIMEOUT, step).await {
                    late(answer);
                }
            });
        }
    }
}

/// Body of the thread `triage-state`: watches the server and listens to pub/sub.
async fn watched(inner: &Arc<Inner>) {
    tokio::select! {
        () = watch(inner) => {}
        () = pubsub::listen(inner) => {}
        () = inner.closed.cancelled() => {}
    }
}

async fn watch(inner: &Arc<Inner>) {
    let slot = inner.slot();
    loop {
        let is_alive = match slot.connection(inner, Instant::now() + HEARTBEAT_INTERVAL).await {
            Err(_) => false,
            Ok(mut connection) => {
                let checked = timeout(HEARTBEAT_INTERVAL, inner.census(&mut connection)).await;
                let checked = checked.unwrap_or(Err(LinkError::TimedOut(HEARTBEAT_INTERVAL)));
                slot.record_result(inner, &connection, checked.as_ref().err());
                checked.is_ok()
            }
        };
        inner.is_alive.store(is_alive, Relaxed);
        sleep(HEARTBEAT_INTERVAL).await;
    }
}

fn client(settings: &Settings) -> Result<Client, OpenError> {
    let password = settings.password.as_ref().map(|source| secret(source, "state.password_file")).transpose()?;
    let authorities = settings.ca_file.as_ref().map(|path| read("state.ca_file", path)).transpose()?;
    Client::new(&settings.address, password.as_deref(), authorities)
}

/// The text of a secret, without surrounding whitespace.
pub(super) fn secret(source: &TokenSource, key: &'static str) -> Result<String, OpenError> {
    match source {
        TokenSource::Environment(secret) => Ok(secret.reveal().to_owned()),
        TokenSource::File(path) => {
            let text = bounded_file::read_secret(path);
            let text = text.map_err(|source| OpenError::File { key, path: path.clone(), source })?;
            Ok(text.trim().to_owned())
        }
    }
}

/// Limit of a CA file; a system's bundle has a few hundred certificates.
const AUTHORITIES_BYTES: u64 = 4 << 20;

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, OpenError> {
    bounded_file::read(path, AUTHORITIES_BYTES).map_err(|source| OpenError::File { key, path: path.to_owned(), source })
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("client", &self.inner.client)
            .field("keys", &self.inner.keys)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
