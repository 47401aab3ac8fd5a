//! Guests with well-formed but absurd verdicts: the host follows them only within its own limits.

use super::guest::{Guest, SPIN, at};
use crate::support::{Answered, World, create};
use bytes::Bytes;
use http::{Request, StatusCode};
use std::{fs, time::Duration};
use tokio::time::Instant;
use triage_config as config;
use triage_core::clock;
use triage_engine::{
    self as policy, Engine, LoadOptions, Policy,
    contract::{Attempt, Effect, Outcome, Purpose},
};
use triage_hospital::emulator::{Call, Fault, Faults, Options, When};
use triage_rollout::Event;

/// A host with a guest as its policy, and further keys of the upstream and of every endpoint.
fn world(guest: &Guest, keys: &str, defaults: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hostile.wasm");
    fs::write(&file, guest.build()).unwrap();
    let settings = config::from_toml(&format!(
        "[upstreams.hospital]\nbase_url = \"http://hospital.invalid\"\npolicy = \"{}\"\n{keys}\n\
         [upstreams.hospital.defaults]\nbreaker = {{ enabled = false }}\n{defaults}\n",
        file.display()
    ))
    .unwrap_or_else(|problems| panic!("{problems}"));
    World::new(&settings, Options { capacity: 10_000, ..Options::immediate() })
}

fn verifications(world: &World) -> usize {
    world.emulator.arrivals().iter().filter(|arrival| arrival.call == Call::List).count()
}

fn spoilt(spoil: impl FnOnce(&mut Guest) -> &mut Guest) -> Guest {
    let mut guest = Guest::new();
    spoil(&mut guest);
    guest
}

fn failing(world: &World) {
    world.emulator.set_faults(Faults::none().anywhere(When::Always, Fault::FailAfter(StatusCode::BAD_GATEWAY)));
}

async fn list(world: &World) -> Answered {
    world.send(Request::get("/hospitals/").body(Bytes::new()).unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn delays_are_bounded_by_the_deadline() {
    for (delay_ms, attempts, took) in
        [(0, "3", 4), (1, "3", 4), (3_000, "3", 6), (20_000, "2", 10), (u64::MAX, "2", 10)]
    {
        let world = world(&spoilt(|guest| guest.retry(delay_ms)), "", "");
        failing(&world);
        let began = Instant::now();
        let answer = list(&world).await;
        assert_eq!((answer.status, answer.header("triage-attempts")), (502, attempts), "{delay_ms} ms: {answer:?}");
        assert_eq!(began.elapsed().as_secs(), took, "{delay_ms} ms: between the shortest wait and the longest");
    }
}

#[tokio::test(start_paused = true)]
async fn proposals_without_measure_are_capped() {
    let guest = spoilt(|guest| {
        guest.word(0x600, u32::MAX).word(0x604, 1).word(0x608, u32::MAX).pair(at::LIMITS, 0x600, 1);
        guest.some(at::MAX_ATTEMPTS, u32::MAX).some(at::CONCURRENCY, u32::MAX).some(at::DEADLINE, 3_600_000).retry(0)
    });
    let world = world(&guest, "", "");
    failing(&world);
    let answer = list(&world).await;
    assert_eq!((answer.status, answer.header("triage-attempts")), (502, "100"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_what_may_be_in_effect_is_not_made() {
    let world = world(&spoilt(|guest| guest.retry(0)), "", "");
    failing(&world);
    let lost = world.create("A", None).await;
    assert_eq!((lost.status, lost.header("triage-clamped")), (502, "effect"), "{lost:?}");
    assert_eq!(lost.header("triage-verdict"), "unknown", "{lost:?}");
    assert_eq!(world.emulator.made(), 1);
}

/// An earlier owner may have sent the request. A trusted policy's verdict alone is no reason to resend, whatever its delay.
#[tokio::test(start_paused = true)]
async fn a_retry_after_a_reconcile_verdict_sends_nothing_without_proof() {
    let world = world(&spoilt(|guest| guest.retry(7_000)), "", "settle = true\nretry = { max_wait = \"10s\" }");
    let mut request = create("A", Some("k"));
    request.headers_mut().insert("triage-maybe-sent", "true".parse().unwrap());
    let answer = world.send(request).await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "effect-unknown"), "{answer:?}");
    assert!(world.emulator.arrivals().is_empty());
}

/// There is no response to replay, but the key is not released: otherwise the write would be applied again.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_that_a_trusted_policy_calls_applied_keeps_its_key() {
    let world = world(&spoilt(|guest| guest.byte(at::CLASS, 0)), "", "settle = true");
    world.emulator.set_faults(Faults::none().on(Call::Create, When::Always, Fault::ResetAfter));
    let lost = world.create("A", Some("k")).await;
    assert_eq!((lost.status, lost.problem().as_str()), (502, "upstream-failed"), "{lost:?}");
    for again in 1..=3 {
        let lost = world.create("A", Some("k")).await;
        assert_eq!((lost.status, lost.problem().as_str()), (504, "effect-unknown"), "time {again}: {lost:?}");
    }
    assert_eq!(world.emulator.made(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pause_without_end_ends_and_pauses_do_not_add_up() {
    let world = world(&spoilt(|guest| guest.byte(at::PAUSE, 1).long(at::PAUSE_MS, u64::MAX)), "", "");
    failing(&world);
    assert_eq!(list(&world).await.status, 502);
    for _ in 0..20 {
        let held = list(&world).await;
        assert_eq!((held.status, held.problem().as_str()), (429, "rate-limited"), "{held:?}");
        let wait: u64 = held.header("retry-after").parse().unwrap();
        assert!(wait <= 300, "{held:?}");
    }
    tokio::time::advance(Duration::from_secs(300)).await;
    assert_eq!(list(&world).await.status, 502, "the upstream is asked again");
}

#[tokio::test(start_paused = true)]
async fn endless_probes_end() {
    let probing = spoilt(|guest| guest.probe("GET", "/hospitals/", &[]));
    // Without the grant there is no verification.
    let ungranted = world(&probing, "", "");
    failing(&ungranted);
    let lost = ungranted.create("A", None).await;
    assert_eq!((lost.status, lost.header("triage-clamped")), (502, "grant"), "{lost:?}");
    assert_eq!(verifications(&ungranted), 0);
    // With it there are a few, within a short time.
    for delay_ms in [0, u64::MAX] {
        let probing = spoilt(|guest| guest.probe("GET", "/hospitals/", &[]).long(at::PROBE_DELAY, delay_ms));
        let granted = world(&probing, "", "settle = true\nlimits = []");
        failing(&granted);
        let began = Instant::now();
        let lost = granted.create("A", None).await;
        assert_eq!((lost.status, lost.problem().as_str()), (504, "effect-unknown"), "{delay_ms} ms: {lost:?}");
        assert!(verifications(&granted) <= 40, "{delay_ms} ms");
        assert!(began.elapsed() <= Duration::from_secs(15), "{delay_ms} ms: {:?}", began.elapsed());
        assert_eq!(granted.emulator.made(), 1, "{delay_ms} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_stands_for_safe_answers_only() {
    let guest = spoilt(|guest| guest.byte(at::CLASS, 0).replacement(299, &[("x-guest", "by the guest")]));
    let world = world(&guest, "", "");
    failing(&world);
    let read = list(&world).await;
    assert_eq!((read.status, read.header("x-guest")), (299, "by the guest"), "{read:?}");
    let lost = world.create("A", None).await;
    assert_eq!((lost.status, lost.header("triage-clamped")), (502, "grant"), "{lost:?}");
    assert_eq!(lost.header("triage-verdict"), "unknown", "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_description_that_calls_writes_safe_and_settled_is_not_believed() {
    let guest = spoilt(|guest| {
        guest.byte(at::EFFECT, 0).half(0x600, 200).half(0x602, 399).pair(at::SETTLED, 0x600, 1).retry(0)
    });
    let world = world(&guest, "", "");
    let made = world.create("A", None).await;
    assert_eq!((made.status, made.header("triage-verdict")), (200, "unknown"), "asked, and not believed: {made:?}");
    assert_eq!(world.emulator.made(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_description_that_changes_is_heard_once() {
    // The second call would describe no endpoint.
    let world = world(
        &spoilt(|guest| {
            guest.describe(
                "(global.set $count (i32.add (global.get $count) (i32.const 1)))
                 (if (i32.gt_u (global.get $count) (i32.const 1)) (then unreachable)) (i32.const 0x100)",
            )
        }),
        "reuse_instances = true",
        "",
    );
    failing(&world);
    for _ in 0..50 {
        assert_eq!(list(&world).await.header("triage-verdict"), "rejected");
    }
}

/// A guest that behaves until its fourth decision.
fn later(then: &str) -> Guest {
    spoilt(|guest| {
        guest.decide(&format!(
            "(global.set $count (i32.add (global.get $count) (i32.const 1)))
             (if (i32.gt_u (global.get $count) (i32.const 3)) (then {then}))"
        ))
    })
}

/// Code for the verdict "not applied, retry at once".
fn lie() -> String {
    format!("(i32.store8 (i32.const {}) (i32.const 2)) (i32.store8 (i32.const {}) (i32.const 1))", at::CLASS, at::NEXT)
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_waits_before_it_lies_has_no_memory() {
    let world = world(&later("unreachable"), "", "");
    failing(&world);
    for asked in 0..50 {
        assert_eq!(list(&world).await.header("triage-verdict"), "rejected", "{asked}: each has an instance of its own");
    }
}

#[tokio::test(start_paused = true)]
async fn with_reused_instances_it_lies_in_vain() {
    let world = world(&later(&lie()), "reuse_instances = true", "");
    failing(&world);
    let asked = 20;
    for row in 0..asked {
        let lost = world.send(create(&format!("H{row}"), Some(&format!("key-{row}")))).await;
        assert_eq!(lost.status, 502, "{row}: {lost:?}");
        assert_eq!(lost.header("triage-attempts"), "1", "{row}: {lost:?}");
    }
    assert_eq!(world.emulator.made(), asked, "each was sent once");
    assert_eq!(world.emulator.duplicates(), 0);
}

#[tokio::test(start_paused = true)]
async fn with_reused_instances_one_that_trapped_is_not_used_again() {
    let world = world(&later("unreachable"), "reuse_instances = true", "");
    failing(&world);
    // Each instance gives three good verdicts and then traps; the third trap quarantines it.
    for _ in 0..12 {
        list(&world).await;
    }
    let events = world.host.policy_events("hospital").unwrap();
    assert!(matches!(events.last(), Some(Event::RolledBack { faults: 3, decisions: 12, .. })), "{events:?}");
}

#[test]
fn a_runaway_is_stopped_within_its_limit_and_two_milliseconds() {
    let engine = Engine::start().unwrap();
    let bytes = Guest::new().decide(SPIN).build();
    let policy = Policy::load(&engine, &bytes, &LoadOptions::default()).unwrap();
    let nothing = http::HeaderMap::new();
    let attempt = Attempt {
        endpoint: 0,
        method: &http::Method::GET,
        effect: Effect::Safe,
        purpose: Purpose::Request,
        number: 1,
        prior_unknown: false,
        sent_ago: None,
        elapsed: Duration::ZERO,
        remaining: Duration::from_secs(10),
        previous_delay: Duration::ZERO,
        random: 0,
        now_unix_ms: 0,
        keyed: false,
        path: "/",
        request_headers: &nothing,
        request_body: b"",
        taken: &[],
    };
    let outcome = Outcome::Response { status: StatusCode::BAD_GATEWAY, headers: &nothing, body: b"", complete: true };
    // Measures processor time and takes the minimum, since other processes run too.
    let best = (0..50).map(|_| {
        let before = clock::thread_time();
        let fault = policy.decide(&attempt, &outcome).unwrap_err();
        assert!(matches!(fault, policy::Fault::Overran { cap_ms: 5 }), "{fault}");
        clock::thread_time().checked_sub(before).unwrap()
    });
    let best = best.min().unwrap();
    assert!(best <= Duration::from_millis(7), "{best:?}");
}
