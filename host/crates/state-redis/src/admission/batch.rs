//! One script call for the first attempts of a thread that ask at the same time.
//!
//! While a call is in flight, new attempts wait for the next call, which reserves once for each of them: a busy host sends one call for
//! many attempts, an idle host one call for each. Each attempt sends at once what was reserved for it, so an exact limit stays exact. If
//! the limits do not admit all attempts now, the call drops the senders of the others, and each of those attempts makes a call of its own.

use super::{
    RedisGate, Shared,
    scripts::{self, Go, ProbeTicket},
};
use crate::{
    group::{AttemptKind, Refusal},
    {connection, metrics},
};
use parking_lot::Mutex;
use std::{
    array,
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout},
};

/// Number of batches; with more threads, several share one.
const BATCHES: usize = 16;
/// Maximum of attempts in one call.
const MAX_BATCH_REQUESTS: usize = 256;
/// Divisor of `state.timeout`: an attempt whose call has not begun within that part asks for itself. Redis is slow then, and waiting
/// for two calls would take twice the time.
const MAX_BATCH_WAIT: u32 = 4;

/// Attempts that wait for the next call, by thread.
#[derive(Debug)]
pub(super) struct Batches([Mutex<Batch>; BATCHES]);

#[derive(Debug, Default)]
struct Batch {
    under_way: bool,
    waiting: Vec<Waiting>,
    /// Number of attempts that have joined so far; the next one's number.
    joined: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    max_wait: Duration,
    sender: oneshot::Sender<BatchReply>,
}

/// Why an attempt was not admitted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Missed {
    /// Redis refused it.
    Refused(Refusal),
    /// Redis was not reached, or not in time.
    Unanswered {
        /// Outcome of the script call, as metrics name it.
        outcome: &'static str,
    },
}

/// The result of a call for one attempt.
pub(super) type BatchReply = Result<UnclaimedGrant, Missed>;

/// An admission on its way to its attempt. Refunded on drop unless `take` was called.
#[derive(Debug)]
pub(super) struct UnclaimedGrant {
    gate: Arc<RedisGate>,
    shared: Option<Shared>,
}

impl UnclaimedGrant {
    pub(super) fn take(mut self) -> Option<Shared> {
        self.shared.take()
    }
}

impl Drop for UnclaimedGrant {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            self.gate.give_back_shared(&shared);
        }
    }
}

impl Default for Batches {
    fn default() -> Self {
        Self(array::from_fn(|_| Mutex::default()))
    }
}

impl Batches {
    /// The index of the calling thread's batch.
    fn own() -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static OWN: usize = THREADS.fetch_add(1, Relaxed) % BATCHES);
        OWN.with(|own| *own)
    }
}

impl RedisGate {
    /// Waits for the result of the thread's next call; `None`: the attempt must ask for itself. Dropping the future refunds the
    /// admission.
    pub(super) async fn join_batch(self: &Arc<Self>, max_wait: Duration) -> Option<BatchReply> {
        let runtime = Handle::try_current().ok()?;
        let own = Batches::own();
        let (number, reply, begins) = self.batches.0[own].lock().join(max_wait);
        if begins {
            runtime.spawn(Driver { gate: Arc::clone(self), batch: own, left: false }.run());
        }
        // The driver traces the script call; this span shows how long the attempt waited for it.
        connection::traced(scripts::ACQUIRE.name(), Instant::now(), self.await_reply(own, number, reply), |reply| {
            match reply {
                Some(Err(Missed::Unanswered { outcome })) => outcome,
                _ => metrics::ANSWERED,
            }
        })
        .await
    }

    async fn await_reply(
        &self,
        batch: usize,
        number: u64,
        mut reply: oneshot::Receiver<BatchReply>,
    ) -> Option<BatchReply> {
        let (longest, begin_limit) = (self.link.timeout(), self.link.timeout() / MAX_BATCH_WAIT);
        if let Ok(reply) = timeout(begin_limit, &mut reply).await {
            return reply.ok();
        }
        if self.batches.0[batch].lock().leave(number) {
            return None;
        }
        match timeout(longest.saturating_sub(begin_limit), reply).await {
            Ok(reply) => reply.ok(),
            Err(_) => Some(Err(Missed::Unanswered { outcome: metrics::TIMED_OUT })),
        }
    }

    pub(super) fn unclaimed_grant(self: &Arc<Self>, shared: Shared) -> UnclaimedGrant {
        UnclaimedGrant { gate: Arc::clone(self), shared: Some(shared) }
    }

    /// Serves all waiting attempts with one call. Attempts that get a prefetched permit need none.
    async fn serve(self: &Arc<Self>, mut waiting: Vec<Waiting>) {
        waiting.retain(|one| !one.sender.is_closed());
        let now = self.clock.now();
        let may_lease = self.alone.paused().is_zero();
        let (leased, step) = {
            let mut known = self.known.lock();
            let all = if may_lease { waiting.len() } else { 0 };
            let leased: Vec<_> = (0..all).map_while(|_| known.take_leased(now)).collect();
            let step = waiting.get(leased.len()).map(|first| {
                let others = u32::try_from(waiting.len() - leased.len() - 1).unwrap_or(0);
                let saved_up = known.take_saved_up();
                let own = scripts::acquire(
                    AttemptKind::First,
                    &(Duration::ZERO..=first.max_wait),
                    &saved_up,
                    others.saturating_add(known.lot()),
                );
                (self.arguments(&known, now, own), known.intervals_us())
            });
            (leased, step)
        };
        let mut asking = waiting.split_off(leased.len());
        for (one, shared) in waiting.into_iter().zip(leased) {
            one.reply(Ok(self.unclaimed_grant(shared)));
        }
        let Some(((keys, arguments), intervals)) = step else { return };
        let (shared, Go { wait, taken, lease, leased }) =
            match self.asked(AttemptKind::First, keys, arguments, Instant::now()).await {
                Ok(granted) => granted,
                Err(missed) => return miss(asking, missed),
            };
        let beside = u32::try_from(asking.len().saturating_sub(1)).unwrap_or(0).min(leased);
        // The first attempt determined the wait, and may have left meanwhile; the others may not accept as long a wait.
        asking.retain(|one| !one.sender.is_closed() && one.max_wait >= wait);
        let used = u32::try_from(asking.len()).unwrap_or(u32::MAX);
        let has_breaker = {
            let mut known = self.known.lock();
            // The retry budget that these first attempts earn is reported with the next call, as for prefetched permits.
            known.saved_up.firsts = known.saved_up.firsts.saturating_add(used.saturating_sub(1).min(beside));
            known.leased.add(leased - beside, self.clock.now());
            known.settings.breaker.is_some()
        };
        let debits = |numbers: RangeInclusive<u32>| {
            let (wait, lease) = if *numbers.start() == 0 { (wait, lease) } else { (Duration::ZERO, None) };
            let ticket = has_breaker.then(|| ProbeTicket { epoch: shared.epoch.clone(), lease });
            self.unclaimed_grant(Shared::new(wait, AttemptKind::First, taken.range(numbers, &intervals), ticket))
        };
        for (number, one) in (0..=beside).zip(asking) {
            one.reply(Ok(debits(number..=number)));
        }
        // Refund the remaining permits as one range: of single ones, only the last could be refunded.
        if used <= beside {
            drop(debits(used..=beside));
        }
    }
}

impl Batch {
    /// Joins; returns the attempt's number, the receiver of its result, and whether the caller must start a driver.
    fn join(&mut self, max_wait: Duration) -> (u64, oneshot::Receiver<BatchReply>, bool) {
        let (sender, reply) = oneshot::channel();
        let number = self.joined;
        self.joined += 1;
        self.waiting.push(Waiting { number, max_wait, sender });
        (number, reply, !std::mem::replace(&mut self.under_way, true))
    }

    /// Leaves. False: the call has begun.
    fn leave(&mut self, number: u64) -> bool {
        let index = self.waiting.iter().position(|one| one.number == number);
        index.map(|index| self.waiting.remove(index)).is_some()
    }
}

/// If the first attempt is refused, so are the others, except those that accept a longer wait: these ask for themselves.
fn miss(asking: Vec<Waiting>, missed: Missed) {
    for (number, one) in asking.into_iter().enumerate() {
        let bears_more =
            matches!(missed, Missed::Refused(Refusal::RateLimited { retry_after, .. }) if one.max_wait >= retry_after);
        if number == 0 || !bears_more {
            one.reply(Err(missed));
        }
    }
}

impl Waiting {
    /// Sends the result. If the attempt has gone, dropping the result refunds it, which takes the gate's lock: do not hold it here.
    fn reply(self, reply: BatchReply) {
        drop(self.sender.send(reply));
    }
}

/// Runs one call after the other for a batch, as long as attempts wait.
struct Driver {
    gate: Arc<RedisGate>,
    batch: usize,
    /// No attempt was waiting: the next one starts a new driver.
    left: bool,
}

impl Driver {
    async fn run(mut self) {
        while let Some(waiting) = self.next() {
            self.gate.serve(waiting).await;
        }
    }

    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut batch = self.gate.batches.0[self.batch].lock();
        let most = batch.waiting.len().min(MAX_BATCH_REQUESTS);
        batch.under_way = most > 0;
        self.left = !batch.under_way;
        batch.under_way.then(|| batch.waiting.drain(..most).collect())
    }
}

impl Drop for Driver {
    /// If the runtime ended early, waiting attempts ask for themselves.
    fn drop(&mut self) {
        if !self.left {
            let mut batch = self.gate.batches.0[self.batch].lock();
            batch.under_way = false;
            batch.waiting.clear();
        }
    }
}
