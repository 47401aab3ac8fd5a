//! An upstream with data partitions that a header selects: a verification must carry that header, or it proves nothing.

use super::{COMMIT_WITHIN, Settling, blind, settings};
use crate::support::{Answered, create, read};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use std::{sync::Arc, time::Duration};
use triage::Host;
use triage_core::{clock::Clock, rng::Rng};
use triage_engine::contract::Failure;
use triage_hospital::emulator::{Call, Emulator, Fault, Faults, InProcess, Options, When};
use triage_upstream::{Inbound, Outbound, Transport};

/// An emulator for requests with the partition header, and one for all others.
#[derive(Debug)]
struct Partitions {
    named: Arc<Emulator>,
    default: Arc<Emulator>,
}

impl Transport for Partitions {
    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let is_named = request.headers.contains_key("x-clinic-partition");
        let own = InProcess(Arc::clone(if is_named { &self.named } else { &self.default }));
        Box::pin(async move { own.send(request).await })
    }
}

struct World {
    host: Host,
    named: Arc<Emulator>,
    default: Arc<Emulator>,
}

impl World {
    fn new(keys: &str) -> Self {
        let [named, default] = [(); 2].map(|()| Emulator::new(Options::default()));
        let upstream = Arc::new(Partitions { named: Arc::clone(&named), default: Arc::clone(&default) });
        let clock = Clock::anchored(1_767_225_600_000);
        let host = Host::with_transports(&settings(120, keys), clock, Rng::seeded(7), vec![upstream]).unwrap();
        Self { host, named, default }
    }

    /// Creates and verifications without the header. The health call needs none.
    fn strays(&self) -> usize {
        let arrivals = self.default.arrivals();
        arrivals.iter().filter(|arrival| matches!(arrival.call, Call::Create | Call::ListBatch)).count()
    }

    /// A create in the named partition, with a further header.
    async fn create(&self, padding: &str) -> Answered {
        let mut request: Request<Bytes> = create("A", Some("k"));
        request.headers_mut().insert("x-clinic-partition", "b".parse().unwrap());
        request.headers_mut().insert("x-padding", padding.parse().unwrap());
        read(self.host.call(request).await).await
    }
}

/// Applied and reset: only the partition's own list contains it.
#[tokio::test(start_paused = true)]
async fn a_verification_asks_the_partition_that_the_write_changed() {
    let world = World::new("");
    world.named.set_faults(Faults::none().on(Call::Create, When::First(1), Fault::ResetAfter));
    let answer = world.create("").await;
    assert_eq!((answer.status, answer.header("triage-verdict")), (200, "already-applied"), "{answer:?}");
    assert_eq!((world.named.hospitals().len(), world.strays()), (1, 0));
}

/// The same for a write that is verified without its caller.
#[tokio::test(start_paused = true)]
async fn settlement_asks_the_partition_that_the_write_changed() {
    let world = World::new("");
    world.named.set_faults(blind().on(Call::Create, When::Always, Fault::ResetAfter));
    let unknown = world.create("").await;
    assert_eq!(unknown.problem(), "effect-unknown", "{unknown:?}");
    world.named.set_faults(Faults::none());
    let _settling = Settling::at(&world.host);
    tokio::time::sleep(COMMIT_WITHIN * 2).await;
    let answer = world.create("").await;
    assert_eq!((answer.status, answer.header("triage-replay")), (200, "true"), "{answer:?}");
    assert_eq!((world.named.hospitals().len(), world.strays()), (1, 0));
}

/// Headers that are too large to store leave the write unknown: without them, its absence cannot be proven.
#[tokio::test(start_paused = true)]
async fn a_write_whose_headers_are_not_kept_is_not_verified_without_its_caller() {
    let world = World::new("");
    world.named.set_faults(blind().on(Call::Create, When::Always, Fault::ResetAfter));
    let padding = "x".repeat(17 << 10);
    assert_eq!(world.create(&padding).await.problem(), "effect-unknown");
    world.named.set_faults(Faults::none());
    let asked = world.named.arrivals().len();
    let _settling = Settling::at(&world.host);
    tokio::time::sleep(COMMIT_WITHIN * 2 + Duration::from_secs(60)).await;
    assert_eq!((world.named.arrivals().len(), world.strays()), (asked, 0));
    // Its caller sends the headers again.
    let answer = world.create(&padding).await;
    assert_eq!((answer.status, answer.header("triage-replay")), (200, ""), "{answer:?}");
    assert_eq!(world.named.hospitals().len(), 1);
}
