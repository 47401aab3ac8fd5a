//! Generated histories of many owners against a model that counts what was sent.

use super::*;
use crate::clock::Timestamp;

/// An event of a history. Indexes of owners wrap around the present owners.
#[derive(Debug, Clone)]
enum Event {
    Begin {
        key: u16,
        payload: u8,
        maybe_sent: bool,
    },
    Sent(usize),
    Finish(usize),
    Release(usize),
    LeaveUnknown(usize, u64),
    Drop(usize),
    /// The owner vanishes without a call.
    Crash(usize),
    Advance(u64),
    /// An owner that was taken over continues as if it were not.
    Late(u8),
    Resolve {
        key: u16,
        applied: bool,
    },
    /// The process restarts: all records are lost, and callers report that their requests may have been sent.
    Restart,
}

const KEYS: u16 = 6;

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = || 0..12_usize;
    let event = prop_oneof![
        12 => (0..KEYS, prop_oneof![9 => Just(0_u8), 1 => Just(1)], prop::bool::weighted(0.05))
            .prop_map(|(key, payload, maybe_sent)| Event::Begin { key, payload, maybe_sent }),
        8 => index().prop_map(Event::Sent),
        3 => index().prop_map(Event::Finish),
        2 => index().prop_map(Event::Release),
        2 => (index(), 0..200_u64).prop_map(|(guard, ago)| Event::LeaveUnknown(guard, ago)),
        2 => index().prop_map(Event::Drop),
        2 => index().prop_map(Event::Crash),
        6 => prop_oneof![0..20_u64, 100..200_u64].prop_map(Event::Advance),
        3 => (0..4_u8).prop_map(Event::Late),
        1 => (0..KEYS, any::<bool>()).prop_map(|(key, applied)| Event::Resolve { key, applied }),
        1 => Just(Event::Restart),
    ];
    prop::collection::vec(event, 1..120)
}

/// The model's state of a key.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Payload of the record, while there must be one.
    payload: u8,
    /// The latest time at which a byte of a send with unknown effect may have been sent.
    unknown_since: Option<Timestamp>,
    answer: Option<Stored>,
    /// Whether callers report that it may have been sent, because the store was lost.
    lost: bool,
    /// Whether a caller's report is the only reason why it may have been sent.
    doubtful: bool,
    /// Whether an operator then settled it as not applied.
    cleared: bool,
}

impl Known {
    /// Applies an operator's settlement: a response, or `None` if not applied.
    fn settled(&mut self, answer: Option<Stored>) {
        match answer {
            Some(answer) => self.answer = Some(answer),
            None if self.doubtful => *self = Self { payload: self.payload, cleared: true, ..Self::default() },
            None => *self = Self::default(),
        }
    }
}

struct Owner {
    guard: RecordGuard,
    key: u16,
    until: Timestamp,
    marked: Option<Timestamp>,
    /// Whether the owner must verify earlier sends.
    must_verify: bool,
}

struct World {
    clock: Clock,
    records: Arc<dyn Records>,
    restart: Box<dyn Fn() -> Arc<dyn Records>>,
    owners: Vec<Owner>,
    /// Vanished owners: key, end of the lock, and whether they had sent.
    crashed: Vec<(u16, Timestamp, bool)>,
    /// Owners whose locks ended, with their keys.
    late: Vec<(u16, RecordGuard)>,
    /// Owners whose locks ended and that have a successor.
    superseded: Vec<RecordGuard>,
    known: HashMap<u16, Known>,
    cap: usize,
    fences: u128,
    answers: u32,
}

type Checked = Result<(), String>;

fn require(holds: bool, broken: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(broken()) }
}

impl World {
    fn new(cap: usize, restart: impl Fn() -> Arc<dyn Records> + 'static) -> Self {
        Self {
            clock: Clock::system(),
            records: restart(),
            restart: Box::new(restart),
            owners: Vec::new(),
            crashed: Vec::new(),
            late: Vec::new(),
            superseded: Vec::new(),
            known: HashMap::new(),
            cap,
            fences: 0,
            answers: 0,
        }
    }

    fn owner(&mut self, index: usize) -> Option<Owner> {
        (!self.owners.is_empty()).then(|| self.owners.remove(index % self.owners.len()))
    }

    /// Whether an owner's lock on the key still lasts.
    fn locked(&self, key: u16) -> bool {
        let now = self.clock.now();
        self.owners.iter().any(|owner| owner.key == key && now < owner.until)
            || self.crashed.iter().any(|(of, until, _)| *of == key && now < *until)
    }

    /// Ends the locks of vanished owners. Those that had sent may have been sending until then.
    fn run_out(&mut self) {
        let now = self.clock.now();
        let known = &mut self.known;
        let mut vanish = |key: u16, until: Timestamp| {
            let known = known.entry(key).or_default();
            if known.unknown_since.is_some() && known.answer.is_none() {
                known.unknown_since = known.unknown_since.max(Some(until));
            }
        };
        self.crashed.retain(|(key, until, marked)| {
            if *marked && *until <= now {
                vanish(*key, *until);
            }
            *until > now
        });
    }

    /// Whether the owner's lock still lasts.
    fn holds_still(&self, owner: &Owner) -> bool {
        self.clock.now() < owner.until
    }

    async fn apply(&mut self, event: Event) -> Checked {
        self.run_out();
        let now = self.clock.now();
        match event {
            Event::Advance(seconds) => self.advance(seconds).await,
            Event::Begin { key, payload, maybe_sent } => return self.begin(key, payload, maybe_sent).await,
            Event::Sent(index) => {
                if let Some(owner) = self.owner(index) {
                    return self.send(owner).await;
                }
            }
            Event::Finish(index) => {
                if let Some(owner) = self.owner(index) {
                    let (key, in_time) = (owner.key, self.holds_still(&owner));
                    self.answers += 1;
                    let answer = stored(&format!("answer {}", self.answers));
                    let finished = owner.guard.finish(answer.clone()).await;
                    require(finished.is_ok() == in_time, || {
                        format!("key {key}: finish in time {in_time}: {finished:?}")
                    })?;
                    if in_time {
                        let known = self.known.entry(key).or_default();
                        known.answer = Some(answer);
                    }
                }
            }
            Event::Release(index) => {
                if let Some(owner) = self.owner(index) {
                    let (key, in_time) = (owner.key, self.holds_still(&owner));
                    let released = owner.guard.release().await;
                    require(released.is_ok() == in_time, || {
                        format!("key {key}: release in time {in_time}: {released:?}")
                    })?;
                    if in_time {
                        self.known.remove(&key);
                    }
                }
            }
            Event::LeaveUnknown(index, ago) => {
                if let Some(owner) = self.owner(index) {
                    let ago = Duration::from_secs(ago);
                    self.left(&owner, owner.marked.map(|marked| now.before(ago).max(marked)));
                    owner.guard.leave_unknown(ago);
                }
            }
            Event::Drop(index) => {
                if let Some(owner) = self.owner(index) {
                    self.left(&owner, owner.marked.map(|_| now));
                }
            }
            Event::Crash(index) => {
                if let Some(owner) = self.owner(index) {
                    self.crashed.push((owner.key, owner.until, owner.marked.is_some()));
                    std::mem::forget(owner.guard);
                }
            }
            Event::Late(how) => {
                let Some(mut guard) = self.superseded.pop() else { return Ok(()) };
                let id = guard.id();
                let lost = match how {
                    0 => guard.sent().await.is_err(),
                    1 => guard.finish(stored("late")).await.is_err(),
                    2 => guard.release().await.is_err(),
                    _ => true,
                };
                return require(lost, || format!("{id:?}: a superseded owner did {how}"));
            }
            Event::Resolve { key, applied } => {
                let answer = stored("by hand");
                let resolution = if applied { Resolution::Applied(answer.clone()) } else { Resolution::NotApplied };
                let resolved = self.records.resolve(id(key), resolution).await.map_err(|error| error.to_string())?;
                if resolved == Resolved::Done {
                    require(!self.locked(key), || format!("key {key}: settled by hand while under way"))?;
                    let known = self.known.entry(key).or_default();
                    require(known.unknown_since.is_some() && known.answer.is_none(), || {
                        format!("key {key}: nothing to settle")
                    })?;
                    known.settled(applied.then_some(answer));
                }
            }
            Event::Restart => {
                for owner in self.owners.drain(..) {
                    std::mem::forget(owner.guard);
                }
                self.crashed.clear();
                self.late.drain(..).for_each(|(_, guard)| std::mem::forget(guard));
                self.superseded.drain(..).for_each(std::mem::forget);
                self.records = (self.restart)();
                for known in self.known.values_mut() {
                    *known = Known { unknown_since: known.unknown_since, lost: true, ..Known::default() };
                }
            }
        }
        Ok(())
    }

    /// Advances the clock. Owners whose locks end meanwhile count as crashed, and as late until they have a successor.
    async fn advance(&mut self, seconds: u64) {
        advance(Duration::from_secs(seconds)).await;
        let now = self.clock.now();
        let (going, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.owners).into_iter().partition(|owner| now < owner.until);
        self.owners = going;
        for owner in late {
            self.crashed.push((owner.key, owner.until, owner.marked.is_some()));
            self.late.push((owner.key, owner.guard));
        }
        self.run_out();
    }

    fn left(&mut self, owner: &Owner, sent: Option<Timestamp>) {
        let known = self.known.entry(owner.key).or_default();
        known.unknown_since = known.unknown_since.max(sent);
    }

    async fn send(&mut self, mut owner: Owner) -> Checked {
        let now = self.clock.now();
        let sent = owner.guard.sent().await;
        let key = owner.key;
        require(sent.is_ok(), || format!("key {key}: an owner with a lock may not send: {sent:?}"))?;
        require(!self.locked(key), || format!("key {key}: two owners may send at once"))?;
        let known = self.known.entry(key).or_default();
        let first = known.unknown_since.is_none() && known.answer.is_none();
        // The main property: an owner repeats another owner's send only if it was must_verify to verify first.
        require(first || owner.must_verify || owner.marked.is_some(), || format!("key {key}: sent twice"))?;
        require(known.answer.is_none(), || format!("key {key}: sent after it was answered"))?;
        known.unknown_since = known.unknown_since.max(Some(now));
        known.doubtful = false;
        owner.marked = Some(now);
        self.owners.push(owner);
        Ok(())
    }

    async fn begin(&mut self, key: u16, payload: u8, maybe_sent: bool) -> Checked {
        let now = self.clock.now();
        self.fences += 1;
        let known = self.known.get(&key).cloned().unwrap_or_default();
        let maybe_sent = maybe_sent || known.lost;
        let opening = BeginRequest { maybe_sent, ..opening(self.fences, payload) };
        let locked = self.locked(key);
        let recorded = locked || ((known.unknown_since.is_some() || known.answer.is_some()) && !known.lost);
        let begun = begin(&self.records, self.clock, id(key), opening).await;
        let (guard, must_verify) = match begun {
            Err(RecordError::Full { .. }) => {
                let cleared = |key: &u16| self.known.get(key).is_some_and(|known| known.cleared);
                let live = (0..KEYS).filter(|key| self.live(*key) || self.answered(*key) || cleared(key)).count();
                return require(live >= self.cap && !self.live(key), || {
                    format!("key {key}: refused at {live} live records")
                });
            }
            Err(error) => return Err(format!("key {key}: {error}")),
            Ok(BeginOutcome::Replay(answer)) => {
                return require(!locked && known.answer.as_ref() == Some(&*answer), || {
                    format!("key {key}: replays {answer:?}")
                });
            }
            Ok(BeginOutcome::InFlight { retry_after }) => {
                return require(locked && retry_after <= LOCK && payload == known.payload, || {
                    format!("key {key}: waits for nobody")
                });
            }
            Ok(BeginOutcome::Mismatch) => {
                return require((recorded || known.cleared) && payload != known.payload, || {
                    format!("key {key}: mismatches nothing")
                });
            }
            Ok(BeginOutcome::New(guard)) => {
                require(known.answer.is_none(), || format!("key {key}: new after an answer"))?;
                require(known.unknown_since.is_none(), || format!("key {key}: new after an unknown send"))?;
                require(!maybe_sent || known.cleared, || format!("key {key}: new though it may have been sent"))?;
                self.known.insert(key, Known { payload, ..Known::default() });
                (guard, false)
            }
            Ok(BeginOutcome::Reconcile { guard, sent_ago, .. }) => {
                let recorded = recorded && known.answer.is_none();
                let since = known.unknown_since.filter(|_| recorded).unwrap_or(now);
                require(recorded || maybe_sent, || format!("key {key}: nothing to reconcile"))?;
                require(sent_ago == now.since(since), || {
                    format!("key {key}: {sent_ago:?} ago, not {:?}", now.since(since))
                })?;
                let doubtful = known.doubtful || !recorded;
                self.known.insert(key, Known { payload, unknown_since: Some(since), doubtful, ..Known::default() });
                (guard, true)
            }
        };
        require(!locked, || format!("key {key}: two owners"))?;
        let (superseded, late) =
            std::mem::take(&mut self.late).into_iter().partition::<Vec<_>, _>(|(of, _)| *of == key);
        self.late = late;
        self.superseded.extend(superseded.into_iter().map(|(_, guard)| guard));
        self.owners.push(Owner { guard, key, until: now.after(LOCK), marked: None, must_verify });
        Ok(())
    }

    /// Whether the key has a response.
    fn answered(&self, key: u16) -> bool {
        self.known.get(&key).is_some_and(|known| known.answer.is_some())
    }

    /// Whether the key has a record that must not be removed.
    fn live(&self, key: u16) -> bool {
        let unknown = self
            .known
            .get(&key)
            .is_some_and(|known| known.unknown_since.is_some() && known.answer.is_none() && !known.lost);
        unknown || self.locked(key)
    }

    /// After any history, every key can be begun again once all locks have ended.
    async fn settle(mut self) -> Checked {
        self.owners.clear();
        self.superseded.clear();
        advance(LOCK).await;
        for key in 0..KEYS {
            self.fences += 1;
            let payload = self.known.get(&key).map_or(0, |known| known.payload);
            let begun = begin(&self.records, self.clock, id(key), opening(self.fences, payload)).await;
            let goes_on = match &begun {
                Ok(BeginOutcome::New(_) | BeginOutcome::Replay(_) | BeginOutcome::Reconcile { .. }) => true,
                Err(RecordError::Full { .. }) => self.cap < usize::from(KEYS),
                Ok(BeginOutcome::InFlight { .. } | BeginOutcome::Mismatch) | Err(_) => false,
            };
            require(goes_on, || format!("key {key}: wedged: {begun:?}"))?;
        }
        Ok(())
    }
}

/// Runs a history on paused time; `check` inspects the store after each event.
fn run(cap: usize, store: impl Fn() -> Arc<dyn Records> + 'static, events: Vec<Event>, check: impl Fn()) -> Checked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(cap, store);
        for (number, event) in events.into_iter().enumerate() {
            let shown = format!("{event:?}");
            world.apply(event).await.map_err(|broken| format!("event {number}, {shown}: {broken}"))?;
            check();
        }
        world.settle().await
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_history_sends_a_key_twice(events in events(), cap in prop_oneof![Just(100_usize), 2..5_usize]) {
        let latest: Arc<Mutex<Option<Arc<MemoryRecords>>>> = Arc::default();
        let made = Arc::clone(&latest);
        let store = move || -> Arc<dyn Records> {
            let records = Arc::new(MemoryRecords::new(Clock::system(), limits(cap)));
            *made.lock() = Some(Arc::clone(&records));
            records
        };
        let checked = run(cap, store, events, || {
            let records = latest.lock().clone().unwrap();
            assert!(records.len() <= cap, "{} records over the limit of {cap}", records.len());
            records.shards.iter().for_each(|shard| shard.lock().check());
            let present: usize = (0..KEYS).filter(|key| records.shard(id(*key)).get(&id(*key)).is_some()).count();
            assert_eq!(present, records.len(), "the count is true");
        });
        prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }
}

/// A store that accepts everything and stores nothing.
#[derive(Debug)]
struct Nothing;

impl Records for Nothing {
    fn begin(&self, _: RecordId, _: BeginRequest) -> Reply<'_, StoreBegin> {
        ready_reply(Ok(RecordBegin::New.into()))
    }
    fn sent(&self, _: RecordId, _: FencingToken, _: Option<Arc<Intent>>) -> Reply<'_, ()> {
        ready_reply(Ok(()))
    }
    fn finish(&self, _: RecordId, _: FencingToken, _: Stored) -> Reply<'_, ()> {
        ready_reply(Ok(()))
    }
    fn release(&self, _: RecordId, _: FencingToken) -> Reply<'_, ()> {
        ready_reply(Ok(()))
    }
    fn abandon_record(&self, _: RecordId, _: FencingToken, _: Leaving) {}
    fn record_unknown(&self, _: RecordId, _: BeginRequest, _: Leaving) {}
    fn arrive(&self, _: Arriving) -> Reply<'_, Arrived> {
        ready_reply(Ok(Arrived::Full))
    }
    fn recheck_orphan(&self, _: Ticket) -> Reply<'_, Option<RecordId>> {
        ready_reply(Ok(None))
    }
    fn keep_alive(&self, _: Ticket, _: Duration, _: EntryTerm) -> Reply<'_, Renewed> {
        ready_reply(Ok(Renewed::ALL))
    }
    fn abandon(&self, _: Ticket) {}
    fn answered(&self, _: Ticket, _: bool) {}
    fn claim(&self, _: ClaimName, _: ClaimOwner, _: Duration) -> Reply<'_, Claim> {
        ready_reply(Ok(Claim::Ours))
    }
    fn claimant(&self, _: ClaimName, _: ClaimOwner) -> Reply<'_, Claimant> {
        ready_reply(Ok(Claimant::Nobody))
    }
    fn lock_fingerprint(&self, _: Fingerprint) -> Reply<'static, FingerprintLock> {
        ready_reply(Ok(FingerprintLock::new(())))
    }
    fn unsettled(&self, _: usize) -> Reply<'_, Vec<Unsettled>> {
        ready_reply(Ok(Vec::new()))
    }
    fn unsettled_one(&self, _: RecordId) -> Reply<'_, Option<Unsettled>> {
        ready_reply(Ok(None))
    }
    fn due(&self, _: usize) -> Reply<'_, Vec<RecordId>> {
        ready_reply(Ok(Vec::new()))
    }
    fn postpone(&self, _: RecordId, _: Duration, _: Duration) -> Reply<'_, Postponed> {
        ready_reply(Ok(Postponed::NotUnsettled))
    }
    fn take(&self, _: RecordId, _: Duration) -> Reply<'_, Option<Arc<Intent>>> {
        ready_reply(Ok(None))
    }
    fn status(&self, _: RecordId) -> Reply<'_, Option<RecordStatus>> {
        ready_reply(Ok(None))
    }
    fn resolve(&self, _: RecordId, _: Resolution) -> Reply<'_, Resolved> {
        ready_reply(Ok(Resolved::NotUnsettled))
    }
}

#[test]
fn the_model_catches_a_store_that_does_nothing() {
    let begin = || Event::Begin { key: 1, payload: 0, maybe_sent: false };
    for (case, end, broken) in [
        (
            "unknown",
            Event::Drop(0),
            "event 3, Begin { key: 1, payload: 0, maybe_sent: false }: key 1: new after an unknown send",
        ),
        (
            "done",
            Event::Finish(0),
            "event 3, Begin { key: 1, payload: 0, maybe_sent: false }: key 1: new after an answer",
        ),
        (
            "under way",
            Event::Advance(1),
            "event 3, Begin { key: 1, payload: 0, maybe_sent: false }: key 1: new after an unknown send",
        ),
    ] {
        let events = vec![begin(), Event::Sent(0), end, begin()];
        assert_eq!(run(100, || Arc::new(Nothing), events, || ()), Err(broken.to_owned()), "{case}");
    }
}
