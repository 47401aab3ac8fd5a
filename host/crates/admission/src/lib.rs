//! Admits attempts: breaker, retry budget and every rate limit, all or nothing, in one step.

#[cfg(test)]
use triage_config as config;
use triage_core::{breaker, clock, rate_limit, rng};
use triage_engine as policy;
use triage_state as state;
use triage_state_redis as state_redis;
use triage_telemetry as telemetry;

mod adaptive_throttle;

use crate::{
    breaker::Force,
    clock::Clock,
    policy::contract::{BreakerSignal, Class},
    rng::Rng,
    state::group::{AttemptKind, EndpointSettings, GroupStatus, LimitView, Recheck, Refusal, Report, Settings},
    state::memory::admission::{self as memory, MemoryGate},
    state_redis::{
        LinkError,
        admission::{self as redis, RedisGate, RedisGates},
    },
    telemetry::{Events, FailureCause, RequestId},
};
use adaptive_throttle::{Pace, Throttled};
use parking_lot::Mutex;
use std::{collections::HashMap, ops::RangeInclusive, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The longest wait of a reservation that is made again after a pause: longer than any request lives.
const MAX_RESERVED: Duration = Duration::from_hours(24);
/// How often the group's and the endpoint's limits are asked until both reserve the same moment.
const ALIGNMENTS: u32 = 4;
/// Moments that differ by less count as the same: the longest time that a script in shared state may take.
const SAME_MOMENT: Duration = Duration::from_millis(20);

/// Endpoints that share a breaker, a budget and rate limits.
#[derive(Debug, Clone)]
pub struct Group {
    gate: Backend,
    pace: Arc<Pace>,
    /// The endpoint's own limits, in addition to the group's.
    own: Option<Backend>,
    /// The group of safe requests, if these have a breaker of their own. Its limits are this group's.
    reads: Option<Box<Group>>,
    /// Whether this is the group of safe requests of another group.
    is_reads: bool,
    reporter: Arc<Reporter>,
}

/// Notes failures of a group's attempts for operators.
#[derive(Debug)]
struct Reporter {
    group: String,
    events: Arc<Events>,
}

/// The store of a group's state.
#[derive(Debug, Clone)]
enum Backend {
    Memory(Arc<MemoryGate>),
    Redis(Arc<RedisGate>),
}

impl Group {
    /// The name: `upstream/group`.
    pub fn name(&self) -> &str {
        match &self.gate {
            Backend::Memory(gate) => gate.name(),
            Backend::Redis(gate) => gate.name(),
        }
    }

    /// The group's status.
    pub fn view(&self) -> GroupStatus {
        let view = match &self.gate {
            Backend::Memory(gate) => gate.view(),
            Backend::Redis(gate) => gate.view(),
        };
        GroupStatus { pace: self.pace.view(), ..view }
    }

    /// Forces the breaker, and that of safe requests, for the whole fleet with shared state. False: the group has no breaker.
    ///
    /// # Errors
    /// [`LinkError`] if shared state cannot be reached; the command may or may not have been executed.
    pub async fn force(&self, force: Force) -> Result<bool, LinkError> {
        let Some(reads) = &self.reads else { return self.gate.force(force).await };
        // Both, even if one fails: half of a command is worse than a failure that can be repeated.
        let (reads, own) = tokio::join!(reads.gate.force(force), self.gate.force(force));
        Ok(reads? | own?)
    }

    /// Applies an endpoint's settings after a reload. Counts stay: an open breaker stays open, and a used-up limit stays used up. Only a
    /// new limit or breaker starts anew.
    pub fn adopt(&self, endpoint: &EndpointSettings) {
        self.pace.adopt(endpoint);
        self.gate.adopt(endpoint.group.clone());
        if let Some(reads) = &self.reads {
            reads.gate.adopt(endpoint.reads().group);
        }
        if let Some(own) = &self.own {
            own.adopt(endpoint.own.clone());
        }
    }

    /// The group for an endpoint that also has its own limits, those of `own`. An attempt passes both at the same moment.
    #[must_use]
    pub fn beside(self, own: Self) -> Self {
        Self { own: Some(own.gate), ..self }
    }

    /// The group with a breaker and a retry budget for safe requests alone, those of `reads`: a read that fails says nothing of writes.
    /// Limits, pauses and the adaptive rate stay common. `endpoint`: the settings of this group.
    #[must_use]
    pub fn with_reads(self, reads: Self, endpoint: &EndpointSettings) -> Self {
        let own = (!endpoint.group.limits.is_empty()).then(|| self.gate.clone());
        let reads = Self { own, pace: Arc::clone(&self.pace), is_reads: true, ..reads };
        Self { reads: Some(Box::new(reads)), ..self }
    }

    /// The group of safe requests, if these have a breaker of their own.
    pub fn reads(&self) -> Option<&Self> {
        self.reads.as_deref()
    }

    /// The endpoint's own limits; empty if it has only the group's.
    pub fn own_limits(&self) -> Vec<LimitView> {
        match &self.own {
            Some(Backend::Memory(gate)) => gate.view().limits,
            Some(Backend::Redis(gate)) => gate.view().limits,
            None => Vec::new(),
        }
    }
}

/// All groups of a host.
#[derive(Debug)]
pub struct Groups {
    store: GroupStore,
    clock: Clock,
    events: Arc<Events>,
    paces: Mutex<HashMap<String, Arc<Pace>>>,
}

#[derive(Debug)]
enum GroupStore {
    Memory { entropy: Rng, groups: Mutex<HashMap<String, Arc<MemoryGate>>> },
    Redis(Arc<RedisGates>),
}

impl Groups {
    /// Groups with their state in this process; `events` records breaker transitions.
    pub fn memory(clock: Clock, entropy: Rng, events: Arc<Events>) -> Self {
        Self::at(GroupStore::Memory { entropy, groups: Mutex::default() }, clock, events)
    }

    fn at(store: GroupStore, clock: Clock, events: Arc<Events>) -> Self {
        Self { store, clock, events, paces: Mutex::default() }
    }

    /// Groups that a fleet shares.
    pub fn shared(gates: Arc<RedisGates>, clock: Clock, events: Arc<Events>) -> Self {
        Self::at(GroupStore::Redis(gates), clock, events)
    }

    /// The group of a name. The first endpoint that names it sets its settings; an existing group keeps its state and, until
    /// [`Group::adopt`], its settings.
    pub fn group(&self, name: &str, endpoint: &EndpointSettings) -> Group {
        let gate = match &self.store {
            GroupStore::Redis(gates) => Backend::Redis(gates.group(name, || endpoint.group.clone())),
            GroupStore::Memory { entropy, groups } => {
                let made = || {
                    let gate = MemoryGate::new(name.to_owned(), endpoint.group.clone(), self.clock, entropy.clone());
                    Arc::new(gate.reporting_to(Arc::clone(&self.events)))
                };
                let mut groups = groups.lock();
                Backend::Memory(Arc::clone(groups.entry(name.to_owned()).or_insert_with(made)))
            }
        };
        let made = || Pace::new(name, self.clock, Arc::clone(&self.events), endpoint);
        let pace = Arc::clone(self.paces.lock().entry(name.to_owned()).or_insert_with(made));
        let reporter = Arc::new(Reporter { group: name.to_owned(), events: Arc::clone(&self.events) });
        Group { gate, pace, own: None, reads: None, is_reads: false, reporter }
    }

    /// Waits until this host's reports have reached shared state. Their own timeouts bound the wait.
    pub async fn flushed(&self) {
        if let GroupStore::Redis(gates) = &self.store {
            gates.flush().await;
        }
    }
}

impl Group {
    /// Acquires a permit for one attempt, with a wait of up to `max_wait`. Dropping the future takes nothing.
    ///
    /// # Errors
    /// The [`Refusal`]; nothing was taken.
    pub async fn acquire(&self, ask: AttemptKind, max_wait: Duration) -> Result<Permit, Refusal> {
        let paced = self.pace.reserve(ask, || self.paused(), max_wait)?;
        let wait = paced.as_ref().map_or(Duration::ZERO, |paced| paced.wait)..=max_wait;
        let (reservation, own) = match &self.own {
            None => (self.gate.acquire(ask, wait).await?, None),
            Some(limits) if self.is_reads => self.within(limits, ask, wait).await?,
            Some(own) => self.aligned(own, ask, wait).await?,
        };
        Ok(Permit { reservation, own, paced, retry_after: None, reporter: Arc::clone(&self.reporter), cause: None })
    }

    /// Asks the breaker and the budget of safe requests, then the limits that they share with the others. A read that its breaker refuses
    /// must take nothing of these limits: a reservation that later ones follow is not refunded.
    async fn within(
        &self,
        limits: &Backend,
        ask: AttemptKind,
        wait: RangeInclusive<Duration>,
    ) -> Result<(Reserved, Option<OwnReserved>), Refusal> {
        let began = Instant::now();
        let (least, most) = wait.into_inner();
        let reservation = self.gate.acquire(ask, least..=most).await?;
        let left = |duration: Duration| duration.saturating_sub(began.elapsed());
        let shared = limits.acquire(AttemptKind::Probe, left(least)..=left(most)).await?;
        Ok((reservation, Some(OwnReserved { gate: limits.clone(), reservation: shared, is_shared: true })))
    }

    /// Reserves the same moment in the group's and in the endpoint's own limits. A reservation used later than its moment would let a
    /// window exceed its limit.
    async fn aligned(
        &self,
        own: &Backend,
        ask: AttemptKind,
        wait: RangeInclusive<Duration>,
    ) -> Result<(Reserved, Option<OwnReserved>), Refusal> {
        let began = Instant::now();
        let (mut least, most) = wait.into_inner();
        // Times count from `began`.
        let left = |least: Duration| least.saturating_sub(began.elapsed())..=most.saturating_sub(began.elapsed());
        let since_began = |asked: Duration, reservation: &Reserved| asked.saturating_add(reservation.wait());
        for _ in 0..ALIGNMENTS {
            let asked = began.elapsed();
            // The endpoint's own group has only limits, so the kind of attempt does not matter.
            let alone = own.acquire(AttemptKind::Probe, left(least)).await?;
            let due_alone = since_began(asked, &alone);
            let asked = began.elapsed();
            let reservation = self.gate.acquire(ask, left(due_alone)).await?;
            let due = since_began(asked, &reservation);
            if due <= due_alone.saturating_add(SAME_MOMENT) {
                return Ok((
                    reservation,
                    Some(OwnReserved { gate: own.clone(), reservation: alone, is_shared: false }),
                ));
            }
            drop(alone);
            let asked = began.elapsed();
            let alone = own.acquire(AttemptKind::Probe, left(due)).await?;
            let due_alone = since_began(asked, &alone);
            if due_alone <= due.saturating_add(SAME_MOMENT) {
                return Ok((
                    reservation,
                    Some(OwnReserved { gate: own.clone(), reservation: alone, is_shared: false }),
                ));
            }
            least = due_alone;
        }
        Err(Refusal::RateLimited { quota: None, retry_after: least.saturating_sub(began.elapsed()) })
    }

    /// How long the upstream's pause still lasts, as far as this host knows.
    fn paused(&self) -> Duration {
        match &self.gate {
            Backend::Memory(gate) => gate.paused(),
            Backend::Redis(gate) => gate.paused(),
        }
    }

    /// Ends a pause early, that of the whole fleet with shared state. False: there is no pause. No limit admits more for it: requests
    /// continue at the limits' rate, without a burst.
    ///
    /// # Errors
    /// [`LinkError`] if shared state cannot be reached; the command may or may not have been executed.
    pub async fn lift_pause(&self) -> Result<bool, LinkError> {
        let Some(reads) = &self.reads else { return self.gate.lift().await };
        let (reads, own) = tokio::join!(reads.gate.lift(), self.gate.lift());
        Ok(reads? | own?)
    }

    /// Delays every attempt of the group for a time, as the upstream asked.
    pub async fn pause(&self, pause: Duration) {
        self.pace.pause(pause);
        match &self.reads {
            None => self.gate.pause(pause).await,
            // At once: this host's own copies are paused even if the caller leaves during the calls to shared state.
            Some(reads) => {
                tokio::join!(reads.gate.pause(pause), self.gate.pause(pause));
            }
        }
    }
}

/// The permit for one attempt. Dropping it unreported releases it.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    reservation: Reserved,
    /// The reservation in the endpoint's own limits, if it has any.
    own: Option<OwnReserved>,
    /// The reservation in the adaptive rate; none if that is switched off.
    paced: Option<Throttled>,
    /// How long the upstream says that it is unavailable.
    retry_after: Option<Duration>,
    reporter: Arc<Reporter>,
    /// The request, and what to note if the attempt counts as a failure.
    cause: Option<(RequestId, FailureCause)>,
}

/// A reservation at a gate. Refunded on drop, unless it was used.
#[derive(Debug)]
struct Reserved(Option<HeldReservation>);

#[derive(Debug)]
enum HeldReservation {
    Memory(Arc<MemoryGate>, memory::Grant),
    Redis(Arc<RedisGate>, redis::Grant),
}

/// A reservation in an endpoint's own limits.
#[derive(Debug)]
struct OwnReserved {
    gate: Backend,
    reservation: Reserved,
    /// Whether the limits belong to another group, so that a pause moves this reservation by itself.
    is_shared: bool,
}

impl Backend {
    async fn acquire(&self, ask: AttemptKind, wait: RangeInclusive<Duration>) -> Result<Reserved, Refusal> {
        Ok(Reserved(Some(match self {
            Self::Memory(gate) => HeldReservation::Memory(Arc::clone(gate), gate.acquire(ask, wait)?),
            Self::Redis(gate) => HeldReservation::Redis(Arc::clone(gate), gate.acquire(ask, wait).await?),
        })))
    }

    async fn force(&self, force: Force) -> Result<bool, LinkError> {
        match self {
            Self::Memory(gate) => Ok(gate.force(force)),
            Self::Redis(gate) => gate.force(force).await,
        }
    }

    async fn lift(&self) -> Result<bool, LinkError> {
        match self {
            Self::Memory(gate) => Ok(gate.lift()),
            Self::Redis(gate) => gate.lift().await,
        }
    }

    async fn pause(&self, pause: Duration) {
        match self {
            Self::Memory(gate) => gate.pause(pause),
            Self::Redis(gate) => gate.pause(pause).await,
        }
    }

    fn adopt(&self, settings: Settings) {
        match self {
            Self::Memory(gate) => gate.adopt(settings),
            Self::Redis(gate) => gate.adopt(settings),
        }
    }
}

impl Reserved {
    fn wait(&self) -> Duration {
        match &self.0 {
            Some(HeldReservation::Memory(_, grant)) => grant.wait,
            Some(HeldReservation::Redis(_, grant)) => grant.wait(),
            None => Duration::ZERO,
        }
    }

    async fn recheck(&mut self) -> Recheck {
        match &mut self.0 {
            Some(HeldReservation::Memory(gate, grant)) => gate.recheck(grant),
            Some(HeldReservation::Redis(gate, grant)) => gate.recheck(grant).await,
            None => Recheck::Send,
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        match self.0.take() {
            Some(HeldReservation::Memory(gate, grant)) => gate.give_back(&grant),
            Some(HeldReservation::Redis(gate, grant)) => gate.give_back(&grant),
            None => {}
        }
    }
}

impl OwnReserved {
    /// Replaces this reservation after a pause has postponed the group's by `wait` from now. Returns the wait until both may be used.
    async fn moved(&mut self, wait: Duration) -> Result<Duration, Refusal> {
        self.reservation = Reserved(None);
        self.reservation = self.gate.acquire(AttemptKind::Probe, wait..=wait.saturating_add(MAX_RESERVED)).await?;
        Ok(self.reservation.wait().max(wait))
    }
}

impl Permit {
    /// The wait until the reserved moment.
    pub fn wait(&self) -> Duration {
        let own = self.own.as_ref().map_or(Duration::ZERO, |own| own.reservation.wait());
        self.reservation.wait().max(own)
    }

    /// The wait that the adaptive rate adds, and that rate in requests per minute.
    pub fn paced(&self) -> Option<(Duration, u32)> {
        self.paced.as_ref().filter(|paced| !paced.wait.is_zero()).map(|paced| (paced.wait, paced.per_minute))
    }

    /// Feeds the response's class to the adaptive rate. Returns the new rate in requests per minute if it was lowered.
    pub fn answered(&self, class: Class) -> Option<u32> {
        self.paced.as_ref()?.answered(class)
    }

    /// Whether this attempt decides if a half-open breaker closes.
    pub fn is_probe(&self) -> bool {
        match &self.reservation.0 {
            Some(HeldReservation::Memory(_, grant)) => grant.is_probe(),
            Some(HeldReservation::Redis(_, grant)) => grant.is_probe(),
            None => false,
        }
    }

    /// Whether a report has an effect, that is, whether there is a breaker.
    pub fn counts(&self) -> bool {
        match &self.reservation.0 {
            Some(HeldReservation::Memory(_, grant)) => grant.counts(),
            Some(HeldReservation::Redis(_, grant)) => grant.counts(),
            None => false,
        }
    }

    /// Whether this host issued the permit by itself, because shared state could not be reached.
    pub fn is_alone(&self) -> bool {
        matches!(&self.reservation.0, Some(HeldReservation::Redis(_, redis::Grant::Alone(_))))
    }

    /// Rechecks breaker and pause right before the send, and starts a half-open probe's lease.
    pub async fn recheck(&mut self) -> Recheck {
        let mut recheck = self.reservation.recheck().await;
        if let Some(own) = &mut self.own {
            recheck = match recheck {
                Recheck::Send => own.reservation.recheck().await,
                Recheck::Wait(wait) if own.is_shared => match own.reservation.recheck().await {
                    Recheck::Send => Recheck::Wait(wait),
                    Recheck::Wait(longer) => Recheck::Wait(wait.max(longer)),
                    refused @ Recheck::Refused(_) => refused,
                },
                Recheck::Wait(wait) => own.moved(wait).await.map_or_else(Recheck::Refused, Recheck::Wait),
                refused @ Recheck::Refused(_) => refused,
            };
        }
        if let (Some(paced), Recheck::Send) = (&mut self.paced, recheck) {
            paced.is_sent = true;
        }
        recheck
    }

    /// Sets how long the upstream says that it is unavailable (the `Retry-After` of a 503). A breaker that the report opens, or finds just
    /// opened, stays open at least that long, up to `open_for_max`.
    pub fn unavailable_for(&mut self, retry_after: Option<Duration>) {
        self.retry_after = retry_after;
    }

    /// Sets what failed, for operators, in case the report is a failure.
    pub fn blame(&mut self, request: RequestId, cause: FailureCause) {
        self.cause = Some((request, cause));
    }

    /// Changes what failed: the attempt had an answer, and something after it failed.
    pub fn blame_instead(&mut self, cause: FailureCause) {
        if let Some((_, own)) = &mut self.cause {
            *own = cause;
        }
    }

    /// Reports the attempt's signal to the breaker.
    pub fn report(mut self, signal: BreakerSignal, took: Duration) {
        // Without a breaker too: operators ask for the cause of failures, not of trips alone.
        if let (BreakerSignal::Failure, Some((request, cause))) = (signal, self.cause) {
            self.reporter.events.failed(&self.reporter.group, request, cause);
        }
        let report = Report { signal, took, retry_after: self.retry_after };
        match self.reservation.0.take() {
            Some(HeldReservation::Memory(gate, grant)) => gate.report(&grant, report),
            Some(HeldReservation::Redis(gate, grant)) => gate.report(&grant, report),
            None => {}
        }
    }
}
