//! Idempotency records, claims and fingerprint locks in Redis, shared by a fleet.
//!
//! Each operation is one script, which implements the pure transitions of [`crate::idempotency::record`] in Lua; tests play the same
//! histories on both. Responses are encrypted before they leave this process.

use super::{Keys, LinkError, Lost, RedisConnection, Value};
pub use crate::error::KeyError;
use crate::{
    clock::Clock,
    idempotency::{
        Arrived, Arriving, BeginRequest, Claim, ClaimName, ClaimOwner, Claimant, EntryTerm, FencingToken, Fingerprint,
        FingerprintLock, Intent, KeptRequest, Leaving, Postponed, RecordError, RecordId, Records, Renewed, Resolution,
        Resolved, StoreBegin, Stored, Ticket, Unsettled, codec,
        record::{HostId, Record, RecordBegin, RecordRetention, RecordStatus},
        records::{Reply, ready_reply},
    },
    memory::records::fingerprint_locks::FingerprintLocks,
    rng::Rng,
    telemetry::Events,
};
use answered_requests::{Ending, Endings};
pub use encryption::{SealError, Sealer};
use fingerprint_lock::QueueTicket;
use futures_util::{FutureExt as _, future::BoxFuture};
use heartbeat::Heartbeat;
use local_copy::LocalCopy;
use scripts::{Asked, Circumstances, PARTS, ScriptCall, ScriptReply};
use settling::name_of;
#[cfg(test)]
use settling::record_id;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

mod answered_requests;
mod claims;
mod encryption;
mod fingerprint_lock;
mod heartbeat;
mod incarnation;
mod local_copy;
mod restore;
mod scripts;
mod settling;
mod unanswered;

/// Time limit of a script call, unless `state.timeout` is longer: a write, unlike a read, cannot go on without the reply.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// Waits between retries of a background call.
const RETRY_INTERVAL: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(4)];

/// Waits between retries of a call that a caller waits for.
const FINISH_RETRY_WAITS: [Duration; 1] = [Duration::from_millis(20)];

/// Requests of one host that hold a fingerprint lock or wait for one: as many as a host has connections.
const MAX_FINGERPRINT_LOCKS: usize = 10_000;

/// Losses of data during one operation before it fails as unavailable.
const MAX_LOSSES: usize = 5;

/// First byte of a stored value that is not encrypted.
const UNSEALED: u8 = 0;

/// [`Records`] in Redis, shared by a fleet.
pub struct RedisRecords(Arc<Inner>);

pub(super) struct Inner {
    link: RedisConnection,
    clock: Clock,
    entropy: Rng,
    sealer: Sealer,
    cap: usize,
    local_locks: Arc<FingerprintLocks>,
    heartbeat: Heartbeat,
    ledger: LocalCopy,
    endings: Endings,
    events: Arc<Events>,
    /// Script calls in the background.
    behind: TaskTracker,
    /// Whether a request that cannot be decrypted was logged.
    unreadable_reported: AtomicBool,
}

/// Why a stored response or request cannot be read.
#[derive(Debug, thiserror::Error)]
enum KeptError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Codec(#[from] codec::Unreadable),
}

impl RedisRecords {
    /// Records over `link`, at most `max_records`; each of sixteen parts holds an equal share.
    ///
    /// `events`: notified of records that the server had no space for.
    pub fn new(
        link: RedisConnection,
        clock: Clock,
        entropy: Rng,
        sealer: Sealer,
        max_records: usize,
        events: Arc<Events>,
    ) -> Self {
        let cap = max_records.div_ceil(PARTS.into());
        let (local_locks, behind) = (Arc::new(FingerprintLocks::new(MAX_FINGERPRINT_LOCKS)), TaskTracker::new());
        let unreadable_reported = AtomicBool::new(false);
        let heartbeat = Heartbeat::new(HostId(entropy.next()));
        let ledger = LocalCopy::new(clock);
        let inner = Arc::new(Inner {
            link,
            clock,
            entropy,
            sealer,
            cap,
            local_locks,
            heartbeat,
            ledger,
            endings: Endings::default(),
            events,
            behind,
            unreadable_reported,
        });
        inner.link.beside(heartbeat::renew(Arc::downgrade(&inner)));
        inner.link.beside(restore::watch(Arc::downgrade(&inner)));
        inner.link.beside(answered_requests::report(Arc::downgrade(&inner)));
        Self(inner)
    }
}

impl Inner {
    fn keys(&self) -> &Keys {
        self.link.keys()
    }

    fn call_timeout(&self) -> Duration {
        REPLY_TIMEOUT.max(self.link.timeout())
    }

    async fn run(&self, step: &ScriptCall) -> Result<Value, RecordError> {
        let ran = self.link.run_within(self.call_timeout(), step.script, &step.keys, &step.args).await;
        ran.map_err(unavailable)
    }

    /// Runs an idempotent script, and retries it on errors.
    async fn run_with_retries(&self, step: &ScriptCall, again: &[Duration]) -> Result<Value, RecordError> {
        let mut again = again.iter();
        loop {
            let error = match self.link.run_within(self.call_timeout(), step.script, &step.keys, &step.args).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let in_vain = matches!(error, LinkError::Nonsense { .. });
            match again.next().filter(|_| !in_vain) {
                Some(wait) => sleep(*wait).await,
                None => return Err(unavailable(error)),
            }
        }
    }

    /// Runs a script in the background, with retries.
    fn afterwards(self: &Arc<Self>, step: ScriptCall) {
        self.leaving(step, None);
    }

    /// The same for a script that leaves an unknown write. `intent`: the request, named if the server has no space for it.
    fn leaving(self: &Arc<Self>, step: ScriptCall, intent: Option<Arc<Intent>>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let inner = Arc::clone(self);
        let work = async move {
            match inner.run_with_retries(&step, &RETRY_INTERVAL).await {
                Ok(value) => inner.note_unkept(&value, &intent.map(|intent| intent.subject()).unwrap_or_default()),
                Err(error) => {
                    tracing::warn!(step = step.script.name(), %error, "shared state did not get a change of a record; \
                                                                       the record's lease corrects that later");
                }
            }
        };
        runtime.spawn(self.behind.track_future(work.in_current_span()));
    }

    /// Reports a write that the server had no space for. Another owner's record (`lost`, `there`) is no error.
    fn note_unkept(&self, value: &Value, subject: &str) {
        let Some(answer) = ScriptReply::of(value) else { return };
        if answer.word == "full" {
            let max = self.cap * usize::from(PARTS);
            self.events.note_unrecorded(subject, max);
        } else if answer.names_only() {
            self.events.note_unverified(subject);
        }
    }

    fn kept(&self, id: RecordId, bytes: &[u8]) -> Result<Stored, RecordError> {
        let kept = match bytes.split_first() {
            // Without encryption any writer to Redis could have forged it, so only the fact of a response is accepted.
            Some((&UNSEALED, plain)) => codec::decode(plain).map_err(KeptError::from).and_then(|stored| match stored {
                Stored::TooLarge { .. } => Ok(stored),
                Stored::Answer(_) => Err(KeptError::Seal(SealError::Broken)),
            }),
            _ => self.sealer.open(id, bytes).map_err(KeptError::from).and_then(|plain| Ok(codec::decode(&plain)?)),
        };
        kept.map_err(|error| {
            tracing::error!(%error, ?id, "a stored answer cannot be replayed");
            RecordError::Unavailable { source: Box::new(error), maybe_done: false }
        })
    }

    /// Encodes a response for Redis: encrypted, or without a key only its status.
    fn seal(&self, id: RecordId, stored: &Stored) -> Result<Vec<u8>, RecordError> {
        if !self.sealer.has_key() {
            let status = codec::encode(&Stored::TooLarge { status: stored.status() });
            return Ok([vec![UNSEALED], status].concat());
        }
        let sealed = self.sealer.seal(id, &codec::encode(stored));
        sealed.map_err(|error| RecordError::Unavailable { source: Box::new(error), maybe_done: false })
    }

    /// Encodes a write's request for Redis: upstream and endpoint, and the encrypted request. Without a key the request is not kept.
    fn asked(&self, id: RecordId, intent: &Intent) -> Asked {
        let seal = |request: &KeptRequest| self.sealer.seal(id, &codec::encode_request(request)).ok();
        let request = intent.request.as_ref().filter(|_| self.sealer.has_key()).and_then(seal);
        Asked { name: intent.subject(), request }
    }

    /// Decodes a write's request from Redis. If it cannot be decrypted, only the names: the caller or an operator settles the write.
    fn intent(&self, id: RecordId, name: &str, sealed: &[u8]) -> Option<Intent> {
        let (upstream, endpoint) = name_of(name)?;
        let opened = self.sealer.open(id, sealed).map_err(KeptError::from);
        let request = match opened.and_then(|plain| Ok(codec::decode_request(&plain)?)) {
            Ok(request) => Some(request),
            Err(error) => {
                if !self.unreadable_reported.swap(true, Relaxed) {
                    tracing::error!(%error, ?id, "the request of an unknown write cannot be read; it is not verified in the background");
                }
                None
            }
        };
        Some(Intent { upstream, endpoint, request })
    }

    /// The circumstances for a new record, and the last loss that they account for.
    async fn circumstances(&self) -> Result<(Circumstances, Option<Lost>), RecordError> {
        let era = self.link.era(self.call_timeout()).await.map_err(unavailable)?;
        self.restored().await;
        let lost = self.link.lost_data();
        let about = Circumstances {
            cap: self.cap,
            lost_ago: lost.map(|lost| self.clock.now().since(lost.at)),
            host: self.heartbeat.host,
            one_node: !self.link.is_cluster(),
            era,
        };
        Ok((about, lost))
    }

    async fn begin(self: Arc<Self>, id: RecordId, opening: BeginRequest) -> Result<StoreBegin, RecordError> {
        for _ in 0..MAX_LOSSES {
            let (about, lost) = self.circumstances().await?;
            let asked = Instant::now();
            // Created before the call, so that its drop leaves the queue even if the reply is lost.
            let queue_ticket = (opening.fingerprint_lock && about.one_node)
                .then(|| QueueTicket::new(&self, opening.fingerprint, opening.fence));
            let value = match self.run(&scripts::begin(self.keys(), id, &opening, &about)).await {
                Ok(value) => value,
                Err(error) => {
                    // Nothing was sent, so the queue was not joined.
                    if let Some(queue_ticket) = queue_ticket.filter(|_| !error.may_be_done()) {
                        queue_ticket.discard();
                    }
                    return Err(error);
                }
            };
            let answer = ScriptReply::of(&value).ok_or_else(|| nonsense("begin"))?;
            let sent_ago = answer.duration();
            let begin = match (answer.word, sent_ago) {
                ("strange", _) => {
                    if let Some(queue_ticket) = queue_ticket {
                        queue_ticket.discard();
                    }
                    self.recognise().await?;
                    continue;
                }
                ("new", _) => RecordBegin::New,
                ("reconcile", Some(sent_ago)) => RecordBegin::Reconcile { sent_ago, doubtful: answer.doubtful() },
                ("busy", Some(retry_after)) => RecordBegin::InFlight { retry_after },
                ("mismatch", _) => RecordBegin::Mismatch,
                ("replay", _) => {
                    let sealed = answer.bytes().ok_or_else(|| nonsense("begin"))?;
                    RecordBegin::Replay(Arc::new(self.kept(id, sealed)?))
                }
                ("full", _) => {
                    return Err(RecordError::Full { what: "idempotency records", max: self.cap * usize::from(PARTS) });
                }
                _ => return Err(nonsense("begin")),
            };
            if matches!(begin, RecordBegin::New) && self.link.lost_data() != lost {
                // The record was new to a server that had lost data, of which this host learned only after the call: begin again.
                let leave = scripts::leave(self.keys(), id, opening.fence, &Leaving::at_once(None), None);
                self.run(&leave).await.map_err(still_begun)?;
                continue;
            }
            let fingerprint_lock = match queue_ticket {
                Some(queue_ticket) if answer.has_lock() => {
                    queue_ticket.record_renewal(asked);
                    Some(queue_ticket.hold(None))
                }
                Some(queue_ticket) => {
                    queue_ticket.discard();
                    None
                }
                None => None,
            };
            let goes_on = matches!(begin, RecordBegin::New | RecordBegin::Reconcile { .. });
            let host = if goes_on { self.heartbeat.begun(&self, id, asked) } else { None };
            if goes_on {
                let opening = BeginRequest { host: Some(self.heartbeat.host), ..opening };
                self.ledger.begun(id, &opening, &begin, self.clock.timestamp(asked));
            }
            return Ok(StoreBegin { begin, keyed_sends: answer.keyed_sends(), fingerprint_lock, host });
        }
        Err(unavailable(LinkError::Down))
    }

    async fn own(&self, step: ScriptCall) -> Result<(), RecordError> {
        done(step.script.name(), &self.run(&step).await?)
    }

    async fn sent(
        self: Arc<Self>,
        id: RecordId,
        fence: FencingToken,
        intent: Option<Arc<Intent>>,
    ) -> Result<(), RecordError> {
        let mut asked = Instant::now();
        let written = intent.as_ref().map(|intent| self.asked(id, intent));
        let step = scripts::sent(self.keys(), id, fence, written, self.heartbeat.host);
        match self.own(step.clone()).await {
            Err(RecordError::Lost) if self.give_back_own(id).await? => {
                asked = Instant::now();
                self.own(step).await?;
            }
            marked => marked?,
        }
        self.ledger.change(id, |record, now| record.sent(fence, intent, now).map(|()| RecordRetention::Keep));
        self.heartbeat.renewed(&self, id, asked);
        Ok(())
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.link.lost_data().map(|lost| self.clock.now().since(lost.at))
    }

    async fn finish(self: Arc<Self>, id: RecordId, fence: FencingToken, stored: Stored) -> Result<(), RecordError> {
        // Also if the call fails: after a loss this host restores the record from its copy.
        self.ledger.finished(id, fence, stored.clone());
        let step = scripts::finish(self.keys(), id, fence, self.seal(id, &stored)?);
        match self.run_with_retries(&step, &FINISH_RETRY_WAITS).await {
            Ok(value) => match done("finish", &value) {
                Err(RecordError::Lost) if self.give_back_own(id).await? => Ok(()),
                finished => finished,
            },
            // Redis may have space for the status where it has none for the response.
            Err(error) if matches!(stored, Stored::Answer(_)) => {
                tracing::warn!(%error, "an answer could not be stored; the host stores its status instead");
                let status = Stored::TooLarge { status: stored.status() };
                self.own(scripts::finish(self.keys(), id, fence, self.seal(id, &status)?)).await
            }
            Err(error) => Err(error),
        }
    }

    /// Runs a script that is fenced by the era (not on a Cluster), after the time in which hosts restore lost data.
    async fn in_this_era(
        &self,
        again: &[Duration],
        step: impl Fn(scripts::InEra<'_>) -> ScriptCall,
    ) -> Result<Value, RecordError> {
        for _ in 0..MAX_LOSSES {
            let era = self.link.era(self.call_timeout()).await.map_err(unavailable)?;
            self.restored().await;
            let value = self.run_with_retries(&step(self.in_era(&era)), again).await?;
            match ScriptReply::of(&value).map(|answer| answer.word) {
                Some("strange") => self.recognise().await?,
                _ => return Ok(value),
            }
        }
        Err(unavailable(LinkError::Down))
    }
}

fn done(script: &'static str, value: &Value) -> Result<(), RecordError> {
    match ScriptReply::of(value).map(|answer| answer.word) {
        Some("done") => Ok(()),
        Some("lost") => Err(RecordError::Lost),
        _ => Err(nonsense(script)),
    }
}

fn nonsense(script: &'static str) -> RecordError {
    unavailable(LinkError::Nonsense { script })
}

/// The error of a call that should have removed a record that was just begun.
fn still_begun(error: RecordError) -> RecordError {
    match error {
        RecordError::Unavailable { source, .. } => RecordError::Unavailable { source, maybe_done: true },
        other => other,
    }
}

fn unavailable(error: LinkError) -> RecordError {
    let maybe_done = error.may_be_done();
    RecordError::Unavailable { source: Box::new(error), maybe_done }
}

/// Decodes bytes as a stored response and as a stored request, for fuzzing.
pub fn read_kept(bytes: &[u8]) {
    let _ = codec::decode(bytes);
    let _ = codec::decode_request(bytes);
}

impl Records for RedisRecords {
    fn begin(&self, id: RecordId, opening: BeginRequest) -> Reply<'_, StoreBegin> {
        Reply::Right(Arc::clone(&self.0).begin(id, opening).boxed())
    }

    fn sent(&self, id: RecordId, fence: FencingToken, intent: Option<Arc<Intent>>) -> Reply<'_, ()> {
        Reply::Right(Arc::clone(&self.0).sent(id, fence, intent).boxed())
    }

    fn finish(&self, id: RecordId, fence: FencingToken, stored: Stored) -> Reply<'_, ()> {
        Reply::Right(Arc::clone(&self.0).finish(id, fence, stored).boxed())
    }

    fn release(&self, id: RecordId, fence: FencingToken) -> Reply<'_, ()> {
        self.0.ledger.change(id, |record, now| record.release(fence, now));
        Reply::Right(self.0.own(scripts::release(self.0.keys(), id, fence)).boxed())
    }

    fn abandon_record(&self, id: RecordId, fence: FencingToken, leaving: Leaving) {
        self.0.ledger.change(id, |record, now| record.leave(fence, &leaving, now));
        let asked = leaving.intent.as_ref().map(|intent| self.0.asked(id, intent));
        let step = scripts::leave(self.0.keys(), id, fence, &leaving, asked);
        self.0.leaving(step, leaving.intent);
    }

    fn record_unknown(&self, id: RecordId, opening: BeginRequest, leaving: Leaving) {
        let asked = leaving.intent.as_ref().map(|intent| self.0.asked(id, intent));
        self.0.ledger.put(id, Record::unknown(&opening, &leaving, self.0.clock.now()));
        let step = scripts::unknown(self.0.keys(), id, &opening, &leaving, asked, self.0.cap);
        self.0.leaving(step, leaving.intent);
    }

    fn lease(&self) -> Option<Duration> {
        Some(scripts::ENTRY_LEASE)
    }

    fn arrive(&self, arriving: Arriving) -> Reply<'_, Arrived> {
        Reply::Right(Arc::clone(&self.0).arrive(arriving).boxed())
    }

    fn recheck_orphan(&self, ticket: Ticket) -> Reply<'_, Option<RecordId>> {
        Reply::Right(self.0.recheck_orphan(ticket).boxed())
    }

    fn keep_alive(&self, ticket: Ticket, lock: Duration, term: EntryTerm) -> Reply<'_, Renewed> {
        Reply::Right(self.0.keep_alive(ticket, lock, term).boxed())
    }

    fn abandon(&self, ticket: Ticket) {
        self.0.afterwards(scripts::abandon(self.0.keys(), &ticket));
    }

    fn answered(&self, ticket: Ticket, forget: bool) {
        if forget {
            self.0.ledger.forget(ticket.id);
        }
        let ending = Ending::of(ticket, forget);
        let Ok(runtime) = Handle::try_current() else { return self.0.endings.put(ending) };
        let inner = Arc::clone(&self.0);
        let work = async move { inner.ended(ending).await };
        runtime.spawn(self.0.behind.track_future(work.in_current_span()));
    }

    fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim> {
        Reply::Right(self.0.claim(name, owner, keep).boxed())
    }

    fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant> {
        Reply::Right(self.0.claimant(name, owner).boxed())
    }

    fn lock_fingerprint(&self, fingerprint: Fingerprint) -> Reply<'static, FingerprintLock> {
        match self.0.local_locks.take(fingerprint) {
            Err(full) => ready_reply(Err(full)),
            Ok(local_lock) => Reply::Right(Arc::clone(&self.0).lock_fingerprint(fingerprint, local_lock).boxed()),
        }
    }

    fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>> {
        Reply::Right(self.0.unsettled(limit).boxed())
    }

    fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>> {
        Reply::Right(self.0.unsettled_one(id).boxed())
    }

    fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>> {
        Reply::Right(self.0.due(limit).boxed())
    }

    fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>> {
        Reply::Right(self.0.take(id, lease).boxed())
    }

    fn postpone(&self, id: RecordId, wait: Duration, longest_age: Duration) -> Reply<'_, Postponed> {
        Reply::Right(self.0.postpone(id, wait, longest_age).boxed())
    }

    fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>> {
        Reply::Right(self.0.status(id).boxed())
    }

    fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved> {
        Reply::Right(async move { self.0.resolve(id, resolution).await }.boxed())
    }

    fn lost_ago(&self) -> Option<Duration> {
        self.0.lost_ago()
    }

    fn purge_expired(&self) {
        self.0.ledger.purge_expired();
        for part in 0..PARTS {
            self.0.afterwards(scripts::sweep(self.0.keys(), part));
        }
    }

    fn flushed(&self) -> BoxFuture<'_, ()> {
        async {
            self.0.behind.close();
            self.0.behind.wait().await;
            self.0.report_rest().await;
        }
        .boxed()
    }
}

impl fmt::Debug for RedisRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRecords").field("link", &self.0.link).field("cap", &self.0.cap).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
