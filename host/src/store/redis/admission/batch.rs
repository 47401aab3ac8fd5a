//! First attempts of one thread that ask at the same moment are answered by one step.
//!
//! While a step is under way, whoever comes waits for the next one, which takes as many places as then wait: a busy host asks
//! once for many attempts, an idle one at once for each. The places are taken at the very moment at which they are used, so that an
//! exact limit stays exact. Where not all of them pass at once, those that are left ask for themselves: their senders are dropped.

use super::{
    RedisGate, Shared,
    scripts::{self, Go, ProbeTicket},
};
use crate::{
    state::group::{AttemptKind, Refusal},
    store::redis::{connection, metrics},
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

/// Threads that have a line of their own; more of them share.
const BATCHES: usize = 16;
/// Most places that one step takes beside the first.
const MAX_BATCH_REQUESTS: usize = 256;
/// Who has waited for this part of `state.timeout`, and whose step has not begun, asks for itself: the store is slow, and
/// waiting for two steps would cost a request as much as both.
const MAX_BATCH_WAIT: u32 = 4;

/// Who waits for the next step, thread by thread.
#[derive(Debug)]
pub(super) struct Batches([Mutex<Batch>; BATCHES]);

#[derive(Debug, Default)]
struct Batch {
    under_way: bool,
    waiting: Vec<Waiting>,
    /// How many have come.
    come: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    max_wait: Duration,
    tell: oneshot::Sender<BatchReply>,
}

/// Why one who asked has no place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Missed {
    /// There is none.
    Refused(Refusal),
    /// Nobody knows: the store was not reached, or not in time.
    Unanswered {
        /// How the step went, in the words of its counters.
        went: &'static str,
    },
}

/// What a step comes to for one who asked.
pub(super) type BatchReply = Result<Handed, Missed>;

/// A place on its way to who waits for it. Given back unless it is taken.
#[derive(Debug)]
pub(super) struct Handed {
    gate: Arc<RedisGate>,
    shared: Option<Shared>,
}

impl Handed {
    pub(super) fn take(mut self) -> Option<Shared> {
        self.shared.take()
    }
}

impl Drop for Handed {
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
    /// This thread's line.
    fn own() -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static OWN: usize = THREADS.fetch_add(1, Relaxed) % BATCHES);
        OWN.with(|own| *own)
    }
}

impl RedisGate {
    /// What the thread's next step brings; none where one has to ask for itself. Dropping the future gives a place back.
    pub(super) async fn with_others(self: &Arc<Self>, max_wait: Duration) -> Option<BatchReply> {
        let runtime = Handle::try_current().ok()?;
        let own = Batches::own();
        let (number, told, begins) = self.together.0[own].lock().join(max_wait);
        if begins {
            runtime.spawn(Driver { gate: Arc::clone(self), line: own, left: false }.run());
        }
        // The step itself is the driver's; what this attempt waited for it is its own.
        connection::traced(
            scripts::ACQUIRE.name(),
            Instant::now(),
            self.patiently(own, number, told),
            |told| match told {
                Some(Err(Missed::Unanswered { went })) => went,
                _ => metrics::ANSWERED,
            },
        )
        .await
    }

    async fn patiently(&self, line: usize, number: u64, mut told: oneshot::Receiver<BatchReply>) -> Option<BatchReply> {
        let (longest, patience) = (self.link.timeout(), self.link.timeout() / MAX_BATCH_WAIT);
        if let Ok(told) = timeout(patience, &mut told).await {
            return told.ok();
        }
        if self.together.0[line].lock().leave(number) {
            return None;
        }
        match timeout(longest.saturating_sub(patience), told).await {
            Ok(told) => told.ok(),
            Err(_) => Some(Err(Missed::Unanswered { went: metrics::TIMED_OUT })),
        }
    }

    pub(super) fn hand(self: &Arc<Self>, shared: Shared) -> Handed {
        Handed { gate: Arc::clone(self), shared: Some(shared) }
    }

    /// One step for all who wait. Those who can have a leased place need none.
    async fn serve(self: &Arc<Self>, mut waiting: Vec<Waiting>) {
        waiting.retain(|one| !one.tell.is_closed());
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
            one.tell(Ok(self.hand(shared)));
        }
        let Some(((keys, arguments), intervals)) = step else { return };
        let (standing, Go { wait, taken, lease, leased }) =
            match self.asked(AttemptKind::First, keys, arguments, Instant::now()).await {
                Ok(granted) => granted,
                Err(missed) => return miss(asking, missed),
            };
        let beside = u32::try_from(asking.len().saturating_sub(1)).unwrap_or(0).min(leased);
        // The wait was asked for by one who may have left meanwhile.
        asking.retain(|one| !one.tell.is_closed() && one.max_wait >= wait);
        let used = u32::try_from(asking.len()).unwrap_or(u32::MAX);
        let has_breaker = {
            let mut known = self.known.lock();
            // Their share of a retry is earned with the next step, as that of leased places is.
            known.saved_up.firsts = known.saved_up.firsts.saturating_add(used.saturating_sub(1).min(beside));
            known.leased.add(leased - beside, self.clock.now());
            known.settings.breaker.is_some()
        };
        let places = |numbers: RangeInclusive<u32>| {
            let (wait, lease) = if *numbers.start() == 0 { (wait, lease) } else { (Duration::ZERO, None) };
            let ticket = has_breaker.then(|| ProbeTicket { epoch: standing.epoch.clone(), lease });
            self.hand(Shared::new(wait, AttemptKind::First, taken.range(numbers, &intervals), ticket))
        };
        for (number, one) in (0..=beside).zip(asking) {
            one.tell(Ok(places(number..=number)));
        }
        // What nobody is there for goes back as a whole: of places one by one, only the last is not stood behind.
        if used <= beside {
            drop(places(used..=beside));
        }
    }
}

impl Batch {
    /// Joins: under which number, where it is told, and whether a driver is wanted.
    fn join(&mut self, max_wait: Duration) -> (u64, oneshot::Receiver<BatchReply>, bool) {
        let (tell, told) = oneshot::channel();
        let number = self.come;
        self.come += 1;
        self.waiting.push(Waiting { number, max_wait, tell });
        (number, told, !std::mem::replace(&mut self.under_way, true))
    }

    /// Leaves, unless its step has begun.
    fn leave(&mut self, number: u64) -> bool {
        let place = self.waiting.iter().position(|one| one.number == number);
        place.map(|place| self.waiting.remove(place)).is_some()
    }
}

/// What the first one misses, the others do too, unless they can bear to wait for longer.
fn miss(asking: Vec<Waiting>, missed: Missed) {
    for (number, one) in asking.into_iter().enumerate() {
        let bears_more =
            matches!(missed, Missed::Refused(Refusal::RateLimited { retry_after, .. }) if one.max_wait >= retry_after);
        if number == 0 || !bears_more {
            one.tell(Err(missed));
        }
    }
}

impl Waiting {
    /// One who has gone meanwhile gives back what it is told of. Not to be called with the gate's lock held.
    fn tell(self, told: BatchReply) {
        drop(self.tell.send(told));
    }
}

/// Takes one step after the other for a line, as long as somebody waits.
struct Driver {
    gate: Arc<RedisGate>,
    line: usize,
    /// Nobody waits any more: whoever comes next begins with a driver of its own.
    left: bool,
}

impl Driver {
    async fn run(mut self) {
        while let Some(waiting) = self.next() {
            self.gate.serve(waiting).await;
        }
    }

    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut line = self.gate.together.0[self.line].lock();
        let most = line.waiting.len().min(MAX_BATCH_REQUESTS);
        line.under_way = most > 0;
        self.left = !line.under_way;
        line.under_way.then(|| line.waiting.drain(..most).collect())
    }
}

impl Drop for Driver {
    /// Its runtime has ended before its time: those who wait ask for themselves.
    fn drop(&mut self) {
        if !self.left {
            let mut line = self.gate.together.0[self.line].lock();
            line.under_way = false;
            line.waiting.clear();
        }
    }
}
