//! Hostile guests that lie, trap, spin or use much memory: no write is repeated, and no request fails because of them.
#![allow(clippy::format_collect, clippy::too_many_lines)]

mod clamped;
mod description;
mod fault;
mod file;
pub mod guest;
mod loading;
mod refusal;
mod wasi;

use crate::support::{World, create, create_in, from_guest};
use bytes::Bytes;
use http::{Request, StatusCode};
use std::sync::Arc;
use triage_hospital::emulator::{Call, Fault, Faults, Options, When};

async fn creates_are_not_repeated(guest: &str) {
    let world = Arc::new(World::new(&from_guest(guest), Options { capacity: 20_000, ..Options::immediate() }));
    world.emulator.set_faults(
        Faults::none()
            .on(Call::Create, When::Chance(0.10), Fault::ResetAfter)
            .on(Call::Create, When::Chance(0.05), Fault::Unreadable)
            .on(Call::Create, When::Chance(0.05), Fault::FailAfter(StatusCode::INTERNAL_SERVER_ERROR)),
    );
    let asked = 2_000;
    for row in 0..asked {
        let batch = format!("7d3c5a52-0000-4000-8000-{:012}", row / 20);
        let name = format!("H{row}");
        let first = world.send(create_in(&batch, &name, Some(&format!("key-{row}")))).await;
        // The caller repeats with the same key, like a worker. A false verdict must not have released the key.
        let again = world.send(create_in(&batch, &name, Some(&format!("key-{row}")))).await;
        assert!(again.status != 200 || again.header("triage-replay") == "true", "{guest}: {first:?} {again:?}");
    }
    assert_eq!(world.emulator.duplicates(), 0, "{guest}");
    assert_eq!(world.emulator.made(), asked, "{guest}: every create was sent once");
    assert!(world.emulator.faults_injected() > 300, "faults were injected");
}

#[tokio::test(start_paused = true)]
async fn a_liar_repeats_no_create() {
    creates_are_not_repeated("liar").await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_always_retries_repeats_no_create() {
    creates_are_not_repeated("always-retry").await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_traps_or_overruns_costs_the_fallback_only() {
    for guest in ["trap", "spin", "bomb"] {
        let world = World::new(&from_guest(guest), Options::immediate());
        world.emulator.set_faults(Faults::none().on(
            Call::List,
            When::First(1),
            Fault::FailBefore(StatusCode::BAD_GATEWAY),
        ));
        let list = world.send(Request::get("/hospitals/").body(Bytes::new()).unwrap()).await;
        assert_eq!((list.status, list.header("triage-attempts")), (200, "2"), "{guest}: {list:?}");
        let made = world.send(create("A", None)).await;
        assert_eq!(made.status, 200, "{guest}: {made:?}");
        world.emulator.set_faults(Faults::none().on(Call::Create, When::Always, Fault::ResetAfter));
        let lost = world.send(create("B", None)).await;
        assert_eq!((lost.status, lost.problem().as_str()), (504, "effect-unknown"), "{guest}: {lost:?}");
        assert_eq!(world.emulator.made(), 2, "{guest}");
    }
}
