//! Policies that fail, and their effect on callers.

#[path = "../../../tests/hostile/guest.rs"]
#[allow(dead_code)]
mod guest;

use crate::stage::{Got, Stage, caller, percentile, prebuilt, runtime, unique, upstream};
use guest::Guest;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use triage_rollout::Event;

/// Callers of the endpoint with the failing policy.
const CALLERS: usize = 4;
const TIMES: u32 = 20;

/// Makes `decide` trap on 2 % of all decisions, by the attempt's random number at offset 56.
const TRAPS_ON_2_PERCENT: &str = "(if (i64.eqz (i64.rem_u (i64.load offset=56 (local.get 0)) (i64.const 50)))
    (then unreachable))";

/// The time from the first request decided by a policy that traps on 2 % of decisions to the rollback.
pub fn rolled_back() {
    let runtime = runtime();
    let stage = Stage::new(runtime.block_on(upstream()), true);
    let over = Arc::new(AtomicBool::new(false));
    let calls: Vec<_> =
        (0..CALLERS).map(|_| runtime.spawn(caller(stage.address(), "/a/x", Arc::clone(&over)))).collect();
    let component = Guest::new().decide(TRAPS_ON_2_PERCENT).build();
    let (mut took, mut decisions) = (Vec::new(), Vec::new());
    for number in 0..TIMES {
        let next = unique(&component, number);
        let own = Some(triage_engine::Digest::of(&next));
        stage.drop_in("a", &next);
        stage.serves("a", &next);
        let serves = tokio::time::Instant::now();
        let event = stage.wait("a", |event| matches!(event, Event::RolledBack { digest, .. } if *digest == own));
        took.push(serves.elapsed());
        let Event::RolledBack { decisions: made, .. } = event else { unreachable!() };
        decisions.push(Duration::from_nanos(u64::from(made)));
    }
    over.store(true, Ordering::Relaxed);
    let all: Vec<Got> = calls.into_iter().flat_map(|calls| runtime.block_on(calls).unwrap()).collect();
    let harmed = all.iter().filter(|got| got.status != 404).count();
    println!(
        "a policy that traps on 2 % is rolled back {:.1?} after it serves (longest of {TIMES}: {:.1?}), after {} decisions; \
         {harmed} of {} requests harmed",
        percentile(&mut took, 50),
        percentile(&mut took, 100),
        percentile(&mut decisions, 50).as_nanos(),
        all.len(),
    );
}

/// The latency at another endpoint before, during and after a policy that spins and is quarantined at its third overrun.
pub fn beside_a_hostile_policy() {
    const SPELL: Duration = Duration::from_secs(5);
    let runtime = runtime();
    let stage = Stage::new(runtime.block_on(upstream()), true);
    let over = Arc::new(AtomicBool::new(false));
    let well = runtime.spawn(caller(stage.address(), "/b/x", Arc::clone(&over)));
    let ill = runtime.spawn(caller(stage.address(), "/a/x", Arc::clone(&over)));
    // Compile it first, so that no measurement includes the compiler's work.
    let spins = prebuilt("spin");
    std::thread::sleep(SPELL);
    stage.drop_in("a", &spins);
    let event = stage.wait("a", |event| matches!(event, Event::RolledBack { .. }));
    let quarantined = tokio::time::Instant::now();
    std::thread::sleep(SPELL);
    over.store(true, Ordering::Relaxed);
    let all = runtime.block_on(well).unwrap();
    runtime.block_on(ill).unwrap();
    let dropped = quarantined - Duration::from_secs(1);
    let (mut before, mut after): (Vec<Duration>, Vec<Duration>) = (
        all.iter().filter(|got| got.asked < dropped).map(|got| got.took).collect(),
        all.iter().filter(|got| got.asked >= quarantined).map(|got| got.took).collect(),
    );
    println!("a policy that spins: {event}");
    println!(
        "another endpoint's p99: {:.0?} before, {:.0?} after it was quarantined",
        percentile(&mut before, 99),
        percentile(&mut after, 99)
    );
}
