//! Idempotency keys, end to end.

use crate::support::{World, create, settings, unlimited};
use std::{sync::Arc, time::Duration};
use triage_hospital::emulator::Options;

#[tokio::test(start_paused = true)]
async fn a_key_is_replayed_to_the_byte() {
    let world = World::new(&settings(), Options::default());
    let first = world.create("A", Some("k")).await;
    let again = world.create("A", Some("k")).await;
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    assert_eq!((first.header("triage-replay"), again.header("triage-replay")), ("", "true"));
    assert_eq!(world.emulator.hospitals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn refusals_of_keys() {
    let world = Arc::new(World::new(&settings(), Options::default()));
    let slow = Arc::clone(&world);
    let first = tokio::spawn(async move { slow.create("A", Some("k")).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let in_flight = world.create("A", Some("k")).await;
    assert_eq!((in_flight.status, in_flight.problem().as_str()), (409, "in-flight"));
    assert!(!in_flight.header("retry-after").is_empty());
    let other = world.create("B", Some("k")).await;
    assert_eq!((other.status, other.problem().as_str()), (422, "key-reused"));
    assert_eq!(first.await.unwrap().status, 200);
    for malformed in ["", "a b", "\"unclosed", &"x".repeat(300)] {
        let answer = world.create("A", Some(malformed)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "key-malformed"), "key {malformed:?}");
    }
    let mut large = create("A", Some("large"));
    *large.body_mut() = vec![b' '; 2 << 20].into();
    let answer = world.send(large).await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "body-too-large"));
    assert_eq!(world.emulator.hospitals().len(), 1);
}

/// Responses may contain patients' data, so they are deleted when they expire, and not only with the next request.
#[tokio::test(start_paused = true)]
async fn expired_records_are_purged_without_traffic() {
    let world = World::new(&unlimited(), Options::immediate());
    for row in 0..20 {
        assert_eq!(world.create("A", Some(&format!("k{row}"))).await.status, 200);
    }
    let held = |records: &str, claims: &str| {
        let state = format!("{:?}", world.host);
        state.contains(&format!("records: {records}, bytes: ")) && state.contains(&format!("claims_held: {claims}"))
    };
    assert!(held("20", "20"), "{:?}", world.host);
    tokio::time::sleep(Duration::from_hours(25)).await;
    assert!(held("20", "20"), "tripwire: no request is verified");
    let host = world.host.clone();
    let tidying = tokio::spawn(async move { host.purge_expired().await });
    tokio::time::sleep(Duration::from_mins(6)).await;
    assert!(held("0", "0"), "{:?}", world.host);
    tidying.abort();
}
