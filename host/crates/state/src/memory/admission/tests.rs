//! With any behaviour of callers (waiting, leaving, arriving during a pause), no window exceeds a limit.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::rng::Rng;
use crate::{rate_limit::Quota, retry::budget};
use proptest::prelude::*;
use std::num::NonZeroU32;
use tokio::time::{Instant, advance};

fn quota(requests: u32, period_ms: u64, burst: u32) -> Quota {
    let period = Duration::from_millis(period_ms);
    Quota { requests: NonZeroU32::new(requests).unwrap(), period, burst: NonZeroU32::new(burst).unwrap() }
}

fn gate(limits: &[Quota]) -> MemoryGate {
    let settings = Settings {
        breaker: None,
        limits: limits.to_vec(),
        budget: budget::Settings::default(),
        leased: false,
        pybreaker: None,
    };
    MemoryGate::new("test".to_owned(), settings, Clock::system(), Rng::seeded(1))
}

/// Checks that no window of length w has more than burst + rate * w requests, in whole numbers. Windows that begin and end with a
/// request are sufficient.
fn check_windows(sent: &[Instant], quota: &Quota) -> Result<(), String> {
    for (first, start) in sent.iter().enumerate() {
        for (count, end) in sent[first..].iter().enumerate().map(|(index, end)| (index as u128 + 1, end)) {
            let width = *end - *start;
            let over = count.saturating_sub(u128::from(quota.burst.get()));
            if over * quota.period.as_micros() > u128::from(quota.requests.get()) * width.as_micros() {
                return Err(format!("{count} requests within {width:?} exceed {quota:?}"));
            }
        }
    }
    Ok(())
}

/// Advances the clock, and sends the waiting attempts as they become due.
async fn pass(gate: &MemoryGate, line: &mut Vec<(Instant, Grant)>, sent: &mut Vec<Instant>, by: Duration) {
    let until = Instant::now() + by;
    loop {
        let next = line.iter().enumerate().min_by_key(|(_, (at, _))| *at).map(|(index, (at, _))| (index, *at));
        let Some((index, at)) = next.filter(|(_, at)| *at <= until) else { break };
        advance(at.saturating_duration_since(Instant::now())).await;
        let (_, mut grant) = line.swap_remove(index);
        match gate.recheck(&mut grant) {
            Recheck::Send => sent.push(Instant::now()),
            Recheck::Wait(more) => line.push((Instant::now() + more, grant)),
            Recheck::Refused(refusal) => panic!("{refusal:?}"),
        }
    }
    advance(until.saturating_duration_since(Instant::now())).await;
}

#[derive(Debug, Clone)]
enum Event {
    Ask(u64),
    Pass(u64),
    Leave(prop::sample::Index),
    Pause(u64),
    Lift,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0u64..5_000).prop_map(Event::Ask),
        4 => (0u64..700).prop_map(Event::Pass),
        3 => any::<prop::sample::Index>().prop_map(Event::Leave),
        1 => (0u64..3_000).prop_map(Event::Pause),
        1 => Just(Event::Lift),
    ];
    prop::collection::vec(event, 1..150)
}

fn quotas() -> impl Strategy<Value = Vec<Quota>> {
    prop::collection::vec((1u32..40, 1u64..4_000, 1u32..12).prop_map(|(r, p, b)| quota(r, p, b)), 1..4)
}

async fn run(quotas: &[Quota], events: Vec<Event>) -> Result<Vec<Instant>, TestCaseError> {
    let gate = gate(quotas);
    let (mut line, mut sent, mut paused_until) = (Vec::new(), Vec::new(), Instant::now());
    for event in events {
        match event {
            Event::Ask(max_wait_ms) => {
                let max_wait = Duration::from_millis(max_wait_ms);
                match gate.acquire(AttemptKind::First, Duration::ZERO..=max_wait) {
                    Ok(grant) => {
                        prop_assert!(grant.wait <= max_wait, "no longer than the caller can bear");
                        line.push((Instant::now() + grant.wait, grant));
                    }
                    Err(Refusal::RateLimited { retry_after, .. }) => prop_assert!(retry_after > max_wait),
                    Err(other) => prop_assert!(false, "{other:?}"),
                }
            }
            Event::Pass(ms) => pass(&gate, &mut line, &mut sent, Duration::from_millis(ms)).await,
            Event::Leave(which) if !line.is_empty() => {
                // Half of the time the last one, because only the last reservation can be refunded.
                let index = which.index(line.len() * 2).min(line.len() - 1);
                let (_, grant) = line.remove(index);
                gate.give_back(&grant);
            }
            Event::Leave(_) => {}
            Event::Pause(ms) => {
                let before = sent.len();
                gate.pause(Duration::from_millis(ms));
                paused_until = paused_until.max(Instant::now() + Duration::from_millis(ms));
                let left_ms = paused_until.saturating_duration_since(Instant::now()).as_millis() as u64;
                pass(&gate, &mut line, &mut sent, Duration::from_millis(left_ms / 2)).await;
                prop_assert!(left_ms == 0 || sent.len() == before, "nothing is sent during a pause");
            }
            Event::Lift => {
                let is_paused = paused_until > Instant::now();
                prop_assert_eq!(gate.lift(), is_paused);
                prop_assert_eq!(gate.paused(), Duration::ZERO);
                paused_until = Instant::now();
            }
        }
    }
    pass(&gate, &mut line, &mut sent, Duration::from_secs(100_000)).await;
    prop_assert!(line.is_empty(), "everybody gets through in the end");
    Ok(sent)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_window_exceeds_any_limit(quotas in quotas(), events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let sent = runtime.block_on(run(&quotas, events))?;
        for quota in &quotas {
            if let Err(exceeded) = check_windows(&sent, quota) {
                prop_assert!(false, "{exceeded}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_waited_through_a_pause_leave_it_one_by_one() {
    let quota = quota(1, 1_000, 1);
    let gate = gate(&[quota]);
    let began = Instant::now();
    let wait = Duration::from_secs(100);
    let (mut line, mut sent) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let grant = gate.acquire(AttemptKind::First, Duration::ZERO..=wait).unwrap();
        line.push((began + grant.wait, grant));
    }
    gate.pause(Duration::from_secs(10));
    let late = gate.acquire(AttemptKind::First, Duration::ZERO..=wait).unwrap();
    line.push((began + late.wait, late));
    pass(&gate, &mut line, &mut sent, wait).await;
    let at: Vec<_> = sent.iter().map(|at| (*at - began).as_secs()).collect();
    assert_eq!(at, [10, 11, 12, 13], "in line, a second apart");
}

/// A pause shifts a limit's arrival time. A lift must undo that too, or the limit would refuse until the pause's end.
#[tokio::test(start_paused = true)]
async fn a_lifted_pause_lets_the_next_request_through_at_the_limits_rate() {
    let quota = quota(1, 1_000, 1);
    let gate = gate(&[quota]);
    let mut first = gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).unwrap();
    assert_eq!(gate.recheck(&mut first), Recheck::Send);
    gate.pause(Duration::from_mins(10));
    assert!(gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_secs(30)).is_err());
    advance(Duration::from_secs(5)).await;
    assert!(gate.lift());
    assert!(!gate.lift(), "once");
    let next = gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_secs(1)).unwrap();
    assert_eq!(next.wait, Duration::from_secs(1), "at its rate");
}

/// A request that waits for the end of a lifted pause reserves again at its own time, so that two requests never share a place.
#[tokio::test(start_paused = true)]
async fn a_request_reserves_anew_after_its_pause_was_lifted() {
    let quota = quota(1, 1_000, 1);
    let gate = gate(&[quota]);
    gate.pause(Duration::from_secs(10));
    let mut waiting = gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_mins(1)).unwrap();
    assert_eq!(waiting.wait, Duration::from_secs(10));
    advance(Duration::from_secs(1)).await;
    assert!(gate.lift());
    advance(Duration::from_secs(9)).await;
    let mut other = gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).unwrap();
    assert_eq!(gate.recheck(&mut other), Recheck::Send, "the waiting one's reservation is void");
    assert_eq!(gate.recheck(&mut waiting), Recheck::Wait(Duration::from_secs(1)));
    gate.give_back(&waiting);
    let again = gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_secs(1)).unwrap();
    assert_eq!(again.wait, Duration::from_secs(1), "what it reserved anew is given back");
}
