//! The way to shared state: run a script, and know within 20 ms whether it was done.

mod error;

pub use error::{LinkError, OpenError};

use super::{
    client::{Client, Connection},
    keys::Keys,
    metrics::{self, ScriptMetrics, Steps},
    pubsub::{self, Pushed},
    script::Script,
    server_identity::Lost,
    settings::Settings,
    thread_connection::{Numbered, ThreadConnection},
};
use crate::{bounded_file, clock::Clock, rng::Rng, secret::TokenSource, telemetry::task_spans};
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use redis::{Cmd, ErrorKind, ServerErrorKind, ToRedisArgs, Value};
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
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

/// Between two looks at the server.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Messages that a listener may be behind; beyond that it is told that it missed some.
const PUSHED: usize = 1024;
/// How long an answer that nobody waits for any more may still take to be made good for.
const LATE: Duration = Duration::from_secs(30);

/// How shared state stands, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Whether it can be reached now.
    pub is_up: bool,
    /// Whether it evicts data when its memory is full.
    pub may_evict: bool,
    /// How long ago it last lost data, as far as this host knows.
    pub lost_ago: Option<Duration>,
}

/// The way to shared state. Clones share everything; with the last one its connections end.
///
/// Every thread that asks has a connection of its own, driven by the runtime that it first asked on: two threads never wait
/// for each other, and a runtime that ends takes only its own connection with it. A connection is built again after three
/// time-outs in a row, when it breaks, and when the server turns out to be loading or a replica; until then each call is told
/// so at once, without waiting.
#[derive(Clone)]
pub struct RedisConnection {
    inner: Arc<Inner>,
    beside: tokio::runtime::Handle,
    _open: Arc<DropGuard>,
}

/// What the link's threads share.
pub(super) struct Inner {
    number: u64,
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) clock: Clock,
    pub(super) entropy: Rng,
    pub(super) timeout: Duration,
    slots: Mutex<Vec<Arc<ThreadConnection>>>,
    /// The era of the server's data, as this host knows it.
    pub(super) known: Mutex<Option<String>>,
    /// How many eras this host has seen.
    pub(super) eras: watch::Sender<u64>,
    pub(super) lost: watch::Sender<Option<Lost>>,
    pub(super) alarmed: Mutex<Option<String>>,
    pushed: broadcast::Sender<Pushed>,
    pub(super) closed: CancellationToken,
    meter: ScriptMetrics,
    /// Whether the server refuses this host's name or password.
    pub(super) unauthorized: AtomicBool,
}

impl RedisConnection {
    /// Prepares the way and begins to watch the server; whether it can be reached shows later.
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
            pushed: broadcast::Sender::new(PUSHED),
            closed: CancellationToken::new(),
            meter: ScriptMetrics::default(),
            unauthorized: AtomicBool::new(false),
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

    /// Whether keys of different slots lie on different nodes: a script may touch one slot only.
    pub fn is_cluster(&self) -> bool {
        self.inner.client.is_cluster()
    }

    /// How keys are named.
    pub fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    /// `state.timeout`.
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// Runs a script: one round trip, within `state.timeout`. Dropping the future does not undo what was sent.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::may_be_done`] says where the step may have been done all the same.
    pub async fn run<A: ToRedisArgs>(
        &self,
        script: &'static Script,
        keys: &[String],
        args: &[A],
    ) -> Result<Value, LinkError> {
        self.run_within(self.inner.timeout, script, keys, args).await
    }

    /// As [`RedisConnection::run`] within another time, for what cannot go on without the answer.
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
            self.inner.heard(&slot, &connection, began, answer.as_ref().err());
            answer
        };
        traced(script.name(), began, step, went).await
    }

    /// As [`RedisConnection::run`], for a step that takes something: if nobody waits for its answer any more, because it is late or the
    /// caller has gone, the answer goes to `late`, which gives back what was taken. Its time runs from `since`.
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
            self.inner.heard(&slot, &connection, began, answer.as_ref().err());
            answer
        };
        traced(script.name(), began, step, went).await
    }

    /// The era of the server's data: another one begins with each loss that somebody notices. Waits for the first connection.
    ///
    /// # Errors
    /// [`LinkError::Down`] where there is no connection within `longest`.
    pub(super) async fn era(&self, longest: Duration) -> Result<String, LinkError> {
        self.inner.slot().connection(&self.inner, Instant::now() + longest).await?;
        self.inner.known.lock().clone().ok_or(LinkError::Down)
    }

    /// The era of the server's data, as far as this host knows it.
    pub(super) fn known_era(&self) -> Option<String> {
        self.inner.known.lock().clone()
    }

    /// Tells of each new era.
    pub(super) fn eras(&self) -> watch::Receiver<u64> {
        self.inner.eras.subscribe()
    }

    /// Looks at the server now, instead of at the next beat: the era, and losses are known then.
    ///
    /// # Errors
    /// As [`RedisConnection::run`].
    pub(super) async fn recognise(&self, longest: Duration) -> Result<String, LinkError> {
        let (began, slot) = (Instant::now(), self.inner.slot());
        let look = async {
            let deadline = began + longest;
            let mut connection = slot.connection(&self.inner, deadline).await?;
            let looked = timeout_at(deadline, self.inner.census(&mut connection)).await;
            let looked = looked.unwrap_or(Err(LinkError::TimedOut(longest)));
            slot.heard(&self.inner, &connection, looked.as_ref().err());
            looked.map(drop)
        };
        traced("census", began, look, went).await?;
        self.inner.known.lock().clone().ok_or(LinkError::Down)
    }

    /// When data was lost at the latest, as far as this host knows: whatever was entrusted to the server before may be gone.
    /// A connection is used only once this is known of its server.
    pub fn lost_data(&self) -> Option<Lost> {
        *self.inner.lost.borrow()
    }

    /// Tells of each loss.
    pub fn losses(&self) -> watch::Receiver<Option<Lost>> {
        self.inner.lost.subscribe()
    }

    /// What hosts tell each other from now on: see [`Keys::channel`]. A receiver that lags has missed messages, as if it had just
    /// [`Joined`](Pushed::Joined).
    pub fn pushed(&self) -> broadcast::Receiver<Pushed> {
        self.inner.pushed.subscribe()
    }

    /// Runs a task on the thread beside, until it or the last link ends. It must not keep a link alive.
    pub fn beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.beside.spawn(task);
    }

    /// How the steps went so far.
    pub fn steps(&self) -> Steps {
        self.inner.meter.read()
    }

    /// How shared state stands.
    pub fn condition(&self) -> Condition {
        let lost = *self.inner.lost.borrow();
        Condition {
            is_up: self.is_up(),
            may_evict: self.inner.alarmed.lock().is_some(),
            lost_ago: lost.map(|lost| self.inner.clock.now().since(lost.at)),
        }
    }

    /// Whether the server refuses this host's name or password: no wait mends that.
    pub fn is_unauthorized(&self) -> bool {
        self.inner.unauthorized.load(Relaxed)
    }

    /// Whether this thread's connection, or that of the thread beside, stands: what a look from outside can know.
    pub fn is_up(&self) -> bool {
        self.inner.slots.lock().iter().any(|slot| slot.is_up())
    }
}

impl Inner {
    pub(super) fn push(&self, pushed: Pushed) {
        // Nobody may be listening.
        let _ = self.pushed.send(pushed);
    }

    /// This thread's slot.
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

    fn heard(
        self: &Arc<Self>,
        slot: &Arc<ThreadConnection>,
        over: &Numbered,
        began: Instant,
        error: Option<&LinkError>,
    ) {
        self.meter.note(began.elapsed(), error);
        slot.heard(self, over, error);
    }

    /// By digest; by its text where the server does not know it (a new one, or after SCRIPT FLUSH), which then does.
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

/// Tells of a step: in a span of its own, below that of the request that waits for it, and in the request's account. Its name
/// and how it went; never keys, values or addresses. A step that nobody waits for to the end has no outcome.
pub(super) async fn traced<T>(
    name: &'static str,
    began: Instant,
    step: impl Future<Output = T>,
    outcome: impl FnOnce(&T) -> &'static str,
) -> T {
    // At the level of debugging, as the request's own: one that nobody reads costs a look at a flag.
    let span = tracing::debug_span!("state", step = name, outcome = tracing::field::Empty);
    let answer = step.instrument(span.clone()).await;
    let outcome = outcome(&answer);
    span.record("outcome", outcome);
    task_spans::note(name, outcome, began);
    answer
}

/// How a step of the link went.
fn went<T>(answer: &Result<T, LinkError>) -> &'static str {
    metrics::outcome(answer.as_ref().map(|_| ()))
}

/// A step whose answer is somebody's business, whatever becomes of the one who asked.
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
                if let Ok(Ok(answer)) = timeout(LATE, step).await {
                    late(answer);
                }
            });
        }
    }
}

/// What the thread beside does: it looks at the server each second.
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
        if let Ok(mut connection) = slot.connection(inner, Instant::now() + HEARTBEAT_INTERVAL).await {
            let looked = timeout(HEARTBEAT_INTERVAL, inner.census(&mut connection)).await;
            let looked = looked.unwrap_or(Err(LinkError::TimedOut(HEARTBEAT_INTERVAL)));
            slot.heard(inner, &connection, looked.as_ref().err());
        }
        sleep(HEARTBEAT_INTERVAL).await;
    }
}

fn client(settings: &Settings) -> Result<Client, OpenError> {
    let password = settings.password.as_ref().map(|source| secret(source, "state.password_file")).transpose()?;
    let authorities = settings.ca_file.as_ref().map(|path| read("state.ca_file", path)).transpose()?;
    Client::new(&settings.address, password.as_deref(), authorities)
}

/// A secret's text, without blanks around it.
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

/// The largest file of authorities: a system's has some hundred of them.
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
