//! Conditional updates and deletes, against the same racing server.

use super::{World, create, one_of_each};
use crate::support::{Answered, faulty::Fault};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request};
use std::time::Duration;
use tokio::time::sleep;

/// A conditional update that gives the patient with this identifier this name.
fn update(identifier: &str, name: &str) -> Request<Bytes> {
    let (mut head, body) = create(identifier, name).into_parts();
    head.headers.remove("if-none-exist");
    head.method = Method::PUT;
    head.uri = format!("/Patient?identifier=urn:mrn%7C{identifier}").parse().unwrap();
    Request::from_parts(head, body)
}

fn delete(identifier: &str) -> Request<Bytes> {
    Request::delete(format!("/Patient?identifier=urn:mrn%7C{identifier}")).body(Bytes::new()).unwrap()
}

/// The main check: if updates were resent without proof, many identifiers would get two patients.
#[tokio::test(start_paused = true)]
async fn a_hundred_conditional_updates_through_late_commits_make_one_patient_an_identifier() {
    let world = World::new();
    let late = Fault::Late(Duration::from_secs(55));
    world.faults.set(&[(Method::PUT, 0.30, late), (Method::GET, 0.05, Fault::Refused(502))]);
    // Two per identifier, with different bodies, repeated by their callers until they get a response.
    let one = async |row: usize| {
        for _ in 0..8 {
            let answer = world.send(update(&(row / 2).to_string(), &format!("Row {row}"))).await;
            match answer.status {
                200 | 201 => return 0,
                409 | 503 | 504 => sleep(Duration::from_secs(1)).await,
                _ => panic!("{answer:?}"),
            }
        }
        1
    };
    let gave_up = stream::iter(0..200).map(one).buffer_unordered(9).fold(0, async |sum, own| sum + own).await;
    sleep(Duration::from_secs(120)).await;
    one_of_each(&world.server.patients(), 100);
    assert_eq!(gave_up, 0);
    assert!(world.faults.injected() > 40, "faults were injected: {}", world.faults.injected());
}

#[tokio::test(start_paused = true)]
async fn updates_with_one_condition_take_turns_whatever_they_write() {
    let world = World::new();
    let answers = stream::iter(0..3).map(|row| world.send(update("1", &format!("Row {row}")))).buffer_unordered(3);
    let statuses: Vec<u16> = answers.map(|answer| answer.status).collect().await;
    assert_eq!((statuses.iter().filter(|own| **own == 201).count(), statuses.len()), (1, 3), "{statuses:?}");
    one_of_each(&world.server.patients(), 1);
}

async fn with_fault(world: &World, fault: (Method, Fault), request: Request<Bytes>) -> Answered {
    world.faults.set(&[(fault.0, 1.0, fault.1)]);
    let answer = world.send(request).await;
    world.faults.set(&[]);
    answer
}

#[tokio::test(start_paused = true)]
async fn an_update_is_in_effect_where_the_match_is_as_written_and_not_where_there_is_one() {
    let world = World::new();
    assert_eq!(world.send(update("1", "Ann")).await.status, 201);
    let done = with_fault(&world, (Method::PUT, Fault::Reset), update("1", "Anna")).await;
    assert_eq!((done.status, done.header("triage-verdict")), (200, "already-applied"), "{done:?}");
    assert_eq!((done.header("etag"), done.json()["name"][0]["text"].as_str()), ("W/\"2\"", Some("Anna")));
    assert_eq!(world.server.count(&Method::PUT), 2, "it was not sent again");
    // An older match is no proof. The update is sent once the first one can no longer be applied.
    world.faults.set(&[(Method::PUT, 1.0, Fault::Refused(503))]);
    let (made, ()) = tokio::join!(world.send(update("1", "Anne")), async {
        sleep(Duration::from_secs(59)).await;
        world.faults.set(&[]);
    });
    assert_eq!((made.status, made.header("triage-attempts")), (200, "2"), "{made:?}");
    assert_eq!(world.server.name("1"), ("Anne".to_owned(), "3".to_owned()));
    one_of_each(&world.server.patients(), 1);
}

/// The updated resource need not match its condition, so an empty search proves nothing.
#[tokio::test(start_paused = true)]
async fn an_update_that_leaves_its_condition_is_not_made_twice() {
    let world = World::new();
    assert_eq!(world.send(update("1", "Ann")).await.status, 201);
    let (head, _) = update("1", "Ann").into_parts();
    let renamed = Request::from_parts(head, update("2", "Ann").into_body());
    let answer = with_fault(&world, (Method::PUT, Fault::Reset), renamed).await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "effect-unknown"), "{answer:?}");
    assert_eq!(world.server.count(&Method::PUT), 2);
    assert_eq!(world.server.patients().into_iter().collect::<Vec<_>>(), [("2".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_conditional_delete_takes_nothing_that_was_created_since() {
    let world = World::new();
    assert_eq!(world.send(update("1", "Ann")).await.status, 201);
    let done = with_fault(&world, (Method::DELETE, Fault::Reset), delete("1")).await;
    assert_eq!((done.status, done.header("triage-verdict"), done.body.len()), (204, "already-applied", 0), "{done:?}");
    // A later match may be another patient, so an operator must settle it.
    assert_eq!(world.send(update("1", "Another")).await.status, 201);
    let refused = with_fault(&world, (Method::DELETE, Fault::Refused(503)), delete("1")).await;
    assert_eq!((refused.status, refused.problem().as_str()), (504, "effect-unknown"), "{refused:?}");
    assert_eq!(world.server.count(&Method::DELETE), 1, "the second one was refused before it arrived");
    one_of_each(&world.server.patients(), 1);
    // Its caller has checked, and sends it again.
    let again = world.send(delete("1")).await;
    assert_eq!((again.status, again.header("triage-attempts")), (204, "1"), "{again:?}");
    assert!(world.server.patients().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_update_and_a_create_with_one_condition_take_turns() {
    let world = World::new();
    let mut conditional = create("1", "Ann");
    conditional.headers_mut().insert("if-none-exist", "identifier=urn:mrn%7C1".parse().unwrap());
    let (made, changed) = tokio::join!(world.send(conditional), world.send(update("1", "Anna")));
    assert_eq!((made.status, changed.status), (201, 200), "{made:?} {changed:?}");
    one_of_each(&world.server.patients(), 1);
}

/// A patch may add the same value again, so it is never sent twice, even if the resource is found.
#[tokio::test(start_paused = true)]
async fn a_conditional_patch_is_sent_once() {
    let world = World::new();
    let mut patch = update("1", "Ann");
    *patch.method_mut() = Method::PATCH;
    let answer = with_fault(&world, (Method::PATCH, Fault::Failed(503)), patch).await;
    assert_eq!((answer.status, answer.header("triage-verdict")), (503, "unknown"), "{answer:?}");
    assert_eq!((world.server.count(&Method::PATCH), world.server.count(&Method::GET)), (1, 0));
}
