//! Plays the same generated histories on the scripts and on the gate in memory, which uses the pure functions.

use super::*;
use crate::{
    breaker,
    clock::{Clock, micros},
    contract::BreakerSignal,
    group::{AttemptKind, Pybreaker, Recheck, Refusal, Report, Settings},
    rate_limit::Quota,
    retry::budget,
    rng::Rng,
    {
        memory::admission::{Grant, MemoryGate},
        {
            Keys, Script, Value,
            admission::scripts,
            admission::shared_breaker::{Fleet, SharedBreakerStatus},
            test_server::RedisServer,
        },
    },
};
use proptest::{prelude::*, test_runner::TestRunner};
use scripts::{Acquired, Frame, Go, LimitDebit, ProbeTicket, RecheckDecision, SavedUp};
use std::{num::NonZeroU32, ops::RangeInclusive, time::Duration};
use tokio::time::advance;

/// The same attempt at both gates.
struct Pair {
    own: Grant,
    taken: LimitDebit,
    ticket: Option<ProbeTicket>,
    sent: bool,
    ask: AttemptKind,
}

#[derive(Debug, Clone)]
enum Event {
    /// Maximal wait, and the minimal wait in percent of it.
    Ask(AttemptKind, u64, u32),
    Together(u32, u64),
    Pass(u64),
    Look(prop::sample::Index),
    /// Result, whether it was slow, and the upstream's `Retry-After` in milliseconds.
    Report(prop::sample::Index, BreakerSignal, bool, Option<u64>),
    GiveBack(prop::sample::Index),
    Pause(u64),
    Lift,
    Force(breaker::Force),
    SavedUp(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let ask = prop_oneof![6 => Just(AttemptKind::First), 2 => Just(AttemptKind::Retry), 1 => Just(AttemptKind::Probe)];
    let signal = prop_oneof![
        4 => Just(BreakerSignal::Success), 5 => Just(BreakerSignal::Failure), 1 => Just(BreakerSignal::Ignore),
    ];
    let time = (1u64..4_000).prop_map(Duration::from_millis);
    let force = prop_oneof![
        time.clone().prop_map(breaker::Force::Open),
        time.prop_map(breaker::Force::Close),
        Just(breaker::Force::Reset),
        Just(breaker::Force::Clear),
    ];
    let index = any::<prop::sample::Index>;
    prop_oneof![
        10 => (ask, prop_oneof![Just(0u64), 0u64..3_000], prop_oneof![2 => Just(0_u32), 1 => 0_u32..=100])
            .prop_map(|(ask, wait, least)| Event::Ask(ask, wait, least)),
        4 => (2u32..8, prop_oneof![Just(0u64), 0u64..3_000]).prop_map(|(count, wait)| Event::Together(count, wait)),
        6 => prop_oneof![0u64..300, 0u64..6_000].prop_map(Event::Pass),
        6 => index().prop_map(Event::Look),
        8 => (index(), signal, prop::bool::weighted(0.2), prop::option::weighted(0.3, 0u64..8_000))
            .prop_map(|(which, signal, slow, asked)| Event::Report(which, signal, slow, asked)),
        2 => index().prop_map(Event::GiveBack),
        1 => (0u64..1_500).prop_map(Event::Pause),
        1 => Just(Event::Lift),
        1 => force.prop_map(Event::Force),
        2 => (1u32..4).prop_map(Event::SavedUp),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let quota = (1u32..40, 1u64..4_000, 1u32..12).prop_map(|(requests, period, burst)| Quota {
        requests: NonZeroU32::new(requests).unwrap(),
        period: Duration::from_millis(period),
        burst: NonZeroU32::new(burst).unwrap(),
    });
    let breaker = (
        prop::option::of(1u32..6),
        prop::option::of(1u32..100),
        prop::option::of(Just(Duration::from_millis(100))),
        1u64..5_000,
        1u32..6,
        prop_oneof![Just(0u32), 0u32..100],
        1u32..3,
        100u64..3_000,
    );
    let breaker = breaker.prop_map(|(row, rate, slow, window, least, jitter, probes, lease)| breaker::Settings {
        consecutive_failures: row,
        failure_rate_percent: rate,
        baseline_percent: None,
        slow_call_after: slow,
        slow_rate_percent: 60,
        window: Duration::from_millis(window),
        minimum_calls: least,
        open_for: Duration::from_millis(700),
        open_for_max: Duration::from_secs(5),
        jitter_percent: jitter,
        probes,
        probe_lease: Duration::from_millis(lease),
        settled: BreakerSignal::Ignore,
    });
    let budget = (0u32..150, 0u32..5, 1u32..20).prop_map(|(percent, floor_per_second, capacity)| budget::Settings {
        percent,
        floor_per_second,
        capacity,
    });
    let pybreaker = prop::option::of(Just(Pybreaker::default()));
    (prop::option::weighted(0.9, breaker), prop::collection::vec(quota, 0..3), budget, pybreaker)
        .prop_map(|(breaker, limits, budget, pybreaker)| Settings { breaker, limits, budget, leased: false, pybreaker })
}

/// Both gates, with the same random numbers.
struct Both {
    memory: MemoryGate,
    frame: Frame,
    chance: Rng,
    clock: Clock,
    connection: redis::Connection,
    slow: bool,
    limits: Vec<Quota>,
}

impl Both {
    fn run(&mut self, script: &'static Script, chance: u64, own: &[String]) -> Value {
        let now = self.clock.now().0;
        let arguments = self.frame.arguments(Some(now), chance, &scripts::Memory::default(), own);
        let mut command = redis::cmd("EVAL");
        command.arg(script.source()).arg(self.frame.keys.len()).arg(&self.frame.keys).arg(arguments);
        command.query(&mut self.connection).unwrap_or_else(|error| panic!("{}: {error}", script.name()))
    }

    fn ask(
        &mut self,
        ask: AttemptKind,
        wait: RangeInclusive<Duration>,
        pairs: &mut Vec<Pair>,
    ) -> Result<(), TestCaseError> {
        let answer = self.run(&scripts::ACQUIRE, 0, &scripts::acquire(ask, &wait, &SavedUp::default(), 0));
        let (shared, own) = scripts::split_reply(&answer).unwrap();
        match (self.memory.acquire(ask, wait), scripts::acquired(own).unwrap()) {
            (Ok(grant), Acquired::Go(Go { wait, taken, lease, .. })) => {
                prop_assert_eq!((grant.wait, grant.is_probe()), (wait, lease.is_some()));
                let ticket = grant.counts().then_some(ProbeTicket { epoch: shared.epoch, lease });
                pairs.push(Pair { own: grant, taken, ticket, sent: false, ask });
            }
            (Err(Refusal::RateLimited { quota, retry_after }), Acquired::Limited { which, wait }) => {
                prop_assert_eq!((quota.is_some(), retry_after), (which.is_some(), wait));
            }
            (Err(Refusal::BreakerOpen { retry_after, .. }), Acquired::Open { wait })
            | (Err(Refusal::BudgetExhausted { retry_after }), Acquired::Budget { wait }) => {
                prop_assert_eq!(retry_after, wait);
            }
            (own, shared) => prop_assert!(false, "{own:?} in memory, {shared:?} in the script"),
        }
        Ok(())
    }

    /// One call for several attempts takes the same permits as one call for each.
    fn batches(&mut self, count: u32, max_wait: Duration, pairs: &mut Vec<Pair>) -> Result<(), TestCaseError> {
        let answer = self.run(
            &scripts::ACQUIRE,
            0,
            &scripts::acquire(AttemptKind::First, &(Duration::ZERO..=max_wait), &SavedUp::default(), count - 1),
        );
        let (shared, own) = scripts::split_reply(&answer).unwrap();
        let first = self.memory.acquire(AttemptKind::First, Duration::ZERO..=max_wait);
        let (Ok(grant), Acquired::Go(Go { wait, taken, lease, leased })) = (&first, scripts::acquired(own).unwrap())
        else {
            prop_assert!(first.is_err(), "{first:?} in memory, {answer:?} in the script");
            return Ok(());
        };
        prop_assert_eq!((grant.wait, grant.is_probe()), (wait, lease.is_some()));
        let (at_once, counts) = (wait.is_zero() && shared.state == State::Closed, grant.counts());
        let ticket = counts.then_some(ProbeTicket { epoch: shared.epoch, lease });
        let mut all = vec![first.unwrap()];
        if at_once {
            for _ in 1..count {
                all.extend(self.memory.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).ok());
            }
        }
        prop_assert_eq!(all.len(), leased as usize + 1, "of {}", count);
        if leased > 0 {
            let firsts = SavedUp { firsts: leased, ..SavedUp::default() };
            self.run(&scripts::REPORT, 0, &scripts::report(&firsts, None, false));
        }
        let intervals: Vec<u64> = self.limits.iter().map(|quota| micros(quota.interval())).collect();
        for (number, own) in (0..).zip(all) {
            let (taken, ticket) = (taken.range(number..=number, &intervals), ticket.clone());
            pairs.push(Pair { own, taken, ticket, sent: false, ask: AttemptKind::First });
        }
        Ok(())
    }

    fn recheck(&mut self, pair: &mut Pair) -> Result<bool, TestCaseError> {
        let answer = self.run(&scripts::RECHECK, 0, &scripts::recheck(&pair.taken, pair.ticket.as_ref()));
        let (shared, own) = scripts::split_reply(&answer).unwrap();
        let (rechecked, again) = scripts::recheck_reply(own).unwrap();
        if let Some(again) = again {
            (pair.taken, pair.sent) = (again, false);
        }
        match (self.memory.recheck(&mut pair.own), rechecked) {
            (Recheck::Send, RecheckDecision::Send { lease }) => {
                prop_assert_eq!(pair.own.is_probe(), lease.is_some());
                pair.ticket = pair.own.counts().then_some(ProbeTicket { epoch: shared.epoch, lease });
                pair.sent = true;
            }
            (Recheck::Wait(own), RecheckDecision::Wait(shared)) => prop_assert_eq!(own, shared),
            (Recheck::Refused(Refusal::BreakerOpen { retry_after, .. }), RecheckDecision::Open { wait }) => {
                prop_assert_eq!(retry_after, wait);
                // As in service, the refund has no ticket.
                pair.ticket = None;
                return Ok(false);
            }
            (own, shared) => prop_assert!(false, "{own:?} in memory, {shared:?} in the script"),
        }
        Ok(true)
    }

    fn give_back(&mut self, pair: &Pair) {
        self.memory.give_back(&pair.own);
        self.run(&scripts::REFUND, 0, &scripts::give_back(pair.ticket.as_ref(), pair.sent, pair.ask, &pair.taken));
    }

    fn play(&mut self, event: &Event, pairs: &mut Vec<Pair>) -> Result<(), TestCaseError> {
        match event {
            Event::Ask(ask, wait_ms, least) => {
                let longest = Duration::from_millis(*wait_ms);
                self.ask(*ask, longest * *least / 100..=longest, pairs)?;
            }
            Event::Together(count, wait_ms) => self.batches(*count, Duration::from_millis(*wait_ms), pairs)?,
            Event::Look(which) if !pairs.is_empty() => {
                let index = which.index(pairs.len());
                if !self.recheck(&mut pairs[index])? {
                    let pair = pairs.remove(index);
                    self.give_back(&pair);
                }
            }
            Event::Report(which, signal, slow, asked_ms) if !pairs.is_empty() => {
                let pair = pairs.remove(which.index(pairs.len()));
                let took = Duration::from_millis(if *slow { 100 } else { 99 });
                let report = Report { signal: *signal, took, retry_after: asked_ms.map(Duration::from_millis) };
                self.memory.report(&pair.own, report);
                if let Some(ticket) = &pair.ticket {
                    let chance = if *signal == BreakerSignal::Failure { self.chance.next() } else { 0 };
                    let slow = *slow && self.frame_counts_slow();
                    let own = scripts::report(&SavedUp::default(), Some((ticket, &report)), slow);
                    self.run(&scripts::REPORT, chance, &own);
                }
            }
            Event::GiveBack(which) if !pairs.is_empty() => {
                let pair = pairs.remove(which.index(pairs.len()));
                self.give_back(&pair);
            }
            Event::Pause(ms) => {
                let pause = Duration::from_millis(*ms);
                self.memory.pause(pause);
                self.run(&scripts::PAUSE, 0, &scripts::pause(pause));
            }
            Event::Lift => {
                let answer = self.run(&scripts::LIFT_PAUSE, 0, &[]);
                let (_, own) = scripts::split_reply(&answer).unwrap();
                prop_assert_eq!(self.memory.lift(), scripts::lifted(own).unwrap().0);
            }
            Event::Force(force) => {
                if self.memory.force(*force) {
                    self.run(&scripts::FORCE, 0, &scripts::force(*force));
                }
            }
            Event::SavedUp(count) => self.save_up(*count),
            Event::Pass(_) | Event::Look(_) | Event::Report(..) | Event::GiveBack(_) => {}
        }
        Ok(())
    }

    fn frame_counts_slow(&self) -> bool {
        self.memory.view().breaker.is_some() && self.slow
    }

    /// Successes that are reported together count like separate ones.
    fn save_up(&mut self, count: u32) {
        let answer = self.run(&scripts::HEARTBEAT, 0, &scripts::heartbeat(&SavedUp::default()));
        let (shared, _) = scripts::split_reply(&answer).unwrap();
        if shared.state != State::Closed {
            return;
        }
        let Ok(Some(ticket)) = self.memory.admit() else { return };
        for _ in 0..count {
            self.memory.record(&ticket, Report::new(BreakerSignal::Success, Duration::ZERO));
        }
        let saved_up = SavedUp { epoch: shared.epoch, successes: count, firsts: 0 };
        self.run(&scripts::REPORT, 0, &scripts::report(&saved_up, None, false));
    }

    /// Compares the states of both gates, to the last digit.
    fn compare(&mut self, after: &Event) -> Result<(), TestCaseError> {
        let answer = self.run(&scripts::HEARTBEAT, 0, &scripts::heartbeat(&SavedUp::default()));
        let (shared, own) = scripts::split_reply(&answer).unwrap();
        let heartbeat = scripts::heartbeat_reply(own).unwrap();
        let view = self.memory.view();
        let mut fleet = Fleet::default();
        fleet.observe(shared, self.clock.now(), true);
        let shared = fleet.seen(self.clock.now()).unwrap();
        if let Some(own) = &view.breaker {
            let SharedBreakerStatus { state, forced, why, remaining, epoch } = shared;
            prop_assert_eq!(
                (own.state, own.forced, own.why, own.remaining, own.epoch),
                (state, forced, why, remaining, epoch),
                "after {:?}",
                after
            );
            prop_assert_eq!(
                (own.failures_in_row, own.counts, own.probes),
                (heartbeat.failures_in_row, heartbeat.counts, heartbeat.probes),
                "after {:?}",
                after
            );
        }
        prop_assert_eq!(view.budget, heartbeat.budget, "after {:?}", after);
        prop_assert_eq!(view.paused.unwrap_or_default(), heartbeat.pause, "after {:?}", after);
        let taken: Vec<u32> = view.limits.iter().map(|limit| limit.taken).collect();
        let ahead = view.limits.iter().zip(&heartbeat.ahead).map(|(limit, ahead)| limit.quota.requests_ahead(*ahead));
        prop_assert_eq!(taken, ahead.collect::<Vec<_>>(), "after {:?}", after);
        if let Some(own) = &view.breaker {
            self.compare_shown(own, after)?;
        }
        Ok(())
    }
}

/// The keys that Python workers read. They do not change the gate as long as no worker writes.
impl Both {
    fn compare_shown(&mut self, own: &breaker::BreakerStatus, after: &Event) -> Result<(), TestCaseError> {
        let Some(keys) = self.frame.keys.get(3..).filter(|keys| !keys.is_empty()) else { return Ok(()) };
        let (values, kept): (Vec<Option<String>>, i64) =
            redis::pipe().mget(keys).pttl(&keys[0]).query(&mut self.connection).unwrap();
        let [Some(state), Some(failures), Some(successes), opened_at] = values.as_slice() else {
            return Err(TestCaseError::fail(format!("{values:?} after {after:?}")));
        };
        let closed = own.state == breaker::BreakerState::Closed;
        prop_assert_eq!((state.as_str(), kept), (if closed { "closed" } else { "open" }, -1), "after {:?}", after);
        if closed && !own.forced {
            prop_assert_eq!(failures, &own.failures_in_row.to_string(), "after {:?}", after);
        }
        let whole = |word: &String| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        prop_assert!(closed || opened_at.is_some(), "open since never, after {after:?}");
        prop_assert!([failures, successes].into_iter().chain(opened_at).all(whole), "{values:?} after {after:?}");
        Ok(())
    }
}

async fn run(
    mut settings: Settings,
    events: Vec<Event>,
    group: &str,
    server: &RedisServer,
) -> Result<(), TestCaseError> {
    let (clock, entropy, chance) = (Clock::system(), Rng::seeded(7), Rng::seeded(7));
    chance.next();
    if let Some(pybreaker) = &mut settings.pybreaker {
        pybreaker.namespace = Some(group.to_owned());
    }
    let frame = Frame::new(&Keys::new("test"), group, "here", 1, &settings);
    let slow = settings.breaker.as_ref().is_some_and(|breaker| breaker.slow_call_after.is_some());
    let limits = settings.limits.clone();
    let memory = MemoryGate::new(group.to_owned(), settings, clock, entropy);
    let mut both = Both { memory, frame, chance, clock, connection: server.connection(), slow, limits };
    let mut pairs = Vec::new();
    both.compare(&Event::Pass(0))?;
    for event in &events {
        if let Event::Pass(ms) = event {
            advance(Duration::from_millis(*ms)).await;
        }
        both.play(event, &mut pairs)?;
        both.compare(event)?;
    }
    Ok(())
}

#[test]
fn one_history_goes_alike_in_memory_and_in_redis() {
    let server = RedisServer::start();
    let cases = ProptestConfig { cases: 400, ..ProptestConfig::default() };
    let mut case = 0;
    let mut runner = TestRunner::new(cases);
    let counter = std::cell::RefCell::new(&mut case);
    runner
        .run(&(settings(), prop::collection::vec(event(), 1..80)), |(settings, events)| {
            let group = {
                let mut case = counter.borrow_mut();
                **case += 1;
                format!("api/{case}")
            };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(run(settings, events, &group, &server))
        })
        .unwrap();
}

const HOUR_US: u64 = 3_600_000_000;

/// A clock that is set back by an hour shifts all times, so that no attempt waits for an hour.
#[test]
fn a_clock_that_is_set_back_delays_no_attempt() {
    let server = RedisServer::start();
    let breaker =
        breaker::Settings { consecutive_failures: Some(1), jitter_percent: 0, ..breaker::Settings::default() };
    let limits =
        vec![Quota { requests: NonZeroU32::MIN, period: Duration::from_secs(1), burst: NonZeroU32::new(2).unwrap() }];
    let settings = Settings {
        breaker: Some(breaker),
        limits,
        budget: budget::Settings::default(),
        leased: false,
        pybreaker: None,
    };
    let frame = Frame::new(&Keys::new("test"), "api/clock", "here", 1, &settings);
    let mut connection = server.connection();
    let mut run = |now: u64, script: &'static Script, own: &[String]| -> Value {
        let arguments = frame.arguments(Some(now), 5, &scripts::Memory::default(), own);
        let mut command = redis::cmd("EVAL");
        command.arg(script.source()).arg(frame.keys.len()).arg(&frame.keys).arg(arguments);
        command.query(&mut connection).unwrap()
    };
    let (late, early) = (10 * HOUR_US, 9 * HOUR_US);
    let ask = scripts::acquire(AttemptKind::First, &(Duration::ZERO..=Duration::ZERO), &SavedUp::default(), 0);
    for _ in 0..2 {
        run(late, &scripts::ACQUIRE, &ask);
    }
    let full = run(early, &scripts::ACQUIRE, &ask);
    let (shared, own) = scripts::split_reply(&full).unwrap();
    assert_eq!(scripts::acquired(own), Some(Acquired::Limited { which: Some(0), wait: Duration::from_secs(1) }));
    let ticket = ProbeTicket { epoch: shared.epoch, lease: None };
    let own = scripts::report(
        &SavedUp::default(),
        Some((&ticket, &Report::new(BreakerSignal::Failure, Duration::ZERO))),
        false,
    );
    run(late, &scripts::REPORT, &own);
    let open = run(early, &scripts::HEARTBEAT, &scripts::heartbeat(&SavedUp::default()));
    let state = scripts::split_reply(&open).unwrap().0.state;
    assert_eq!(state, State::Open { left: Duration::from_secs(60), why: breaker::Trip::Consecutive(1) });
}
