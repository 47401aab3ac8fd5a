//! The time from closing a policy file to the generation that serves it.

use crate::stage::{Got, Stage, caller, percentile, prebuilt, runtime, unique, upstream};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Components of each kind.
const TIMES: u32 = 60;

/// Measures a Rust policy of 55 KB, compiled for the first time and from the cache.
pub fn file_closed_to_serving() {
    let runtime = runtime();
    let component = prebuilt("always-retry");
    for cached in [false, true] {
        let stage = Stage::new(runtime.block_on(upstream()), cached);
        let mut took = Vec::new();
        let components: Vec<_> = (0..2).map(|number| unique(&component, number)).collect();
        if cached {
            for component in &components {
                stage.drop_in("a", component);
                stage.serves("a", component);
            }
        }
        for number in 0..TIMES {
            let next = if cached { components[number as usize % 2].clone() } else { unique(&component, number) };
            let before = stage.server.host().policy_events("a").unwrap().len();
            let closed = stage.drop_in("a", &next);
            let serves = || {
                let events = stage.server.host().policy_events("a").unwrap();
                // The event log is bounded, so its length may stay the same; then the last event decides.
                events.len() > before || events.last().is_some_and(|last| last.to_string().contains(&short(&next)))
            };
            while !serves() {
                std::thread::sleep(Duration::from_micros(100));
            }
            took.push(closed.elapsed());
        }
        let kind = if cached { "compiled code in the cache" } else { "compiled" };
        println!(
            "file closed to serving, {} KB, {kind}: p50 {:.1?}, p99 {:.1?}",
            component.len() / 1000,
            percentile(&mut took, 50),
            percentile(&mut took, 99)
        );
    }
}

fn short(component: &[u8]) -> String {
    triage_engine::Digest::of(component).short()
}

/// The latency of requests at a swap: the first requests of each generation against all others.
pub fn first_requests_of_a_generation() {
    const FIRST: usize = 5;
    let runtime = runtime();
    let stage = Stage::new(runtime.block_on(upstream()), true);
    let components: Vec<_> = (0..2).map(|number| unique(&prebuilt("http-standard"), number)).collect();
    let over = Arc::new(AtomicBool::new(false));
    let calls = runtime.spawn(caller(stage.address(), "/a/x", Arc::clone(&over)));
    for number in 0..TIMES as usize * 2 {
        stage.drop_in("a", &components[number % 2]);
        stage.serves("a", &components[number % 2]);
        std::thread::sleep(Duration::from_millis(50));
    }
    over.store(true, Ordering::Relaxed);
    let all: Vec<Got> = runtime.block_on(calls).unwrap();
    assert!(all.iter().all(|got| got.status == 404), "a request failed");
    let (mut first, mut others, mut since) = (Vec::new(), Vec::new(), FIRST);
    for pair in all.windows(2) {
        since = if pair[0].policy == pair[1].policy { since + 1 } else { 0 };
        if since < FIRST { first.push(pair[1].took) } else { others.push(pair[1].took) }
    }
    println!(
        "the first {FIRST} requests of each of {} generations: p50 {:.0?}, p90 {:.0?}; {} other requests: p50 {:.0?}, p90 {:.0?}",
        first.len() / FIRST,
        percentile(&mut first, 50),
        percentile(&mut first, 90),
        others.len(),
        percentile(&mut others, 50),
        percentile(&mut others, 90),
    );
}
