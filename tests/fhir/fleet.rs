//! The same with three hosts around one Redis, in real time.

use super::{UPSTREAM, create, created, faults, one_of_each, with};
use crate::support::{
    Answered,
    faulty::{Between, Fault, Faulty},
    fhir_server::{FhirServer, InProcess},
    fleet::{KEY, shared},
    read,
    redis_server::RedisServer,
};
use bytes::Bytes;
use http::{Method, Request};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use triage::Host;
use triage_core::{clock::Clock, rng::Rng};

/// How late a create may be committed in this test.
const SETTINGS: &str = r#"policy_settings = { commit_within = "2s", wait = { kind = "fixed", seconds = 0.01 } }"#;

struct Fleet {
    _redis: RedisServer,
    server: Arc<FhirServer>,
    faults: Arc<Faulty>,
    hosts: [Host; 3],
}

impl Fleet {
    fn new() -> Self {
        let redis = RedisServer::start();
        let server = FhirServer::new(Duration::from_millis(20));
        let faults = Faulty::new(Arc::new(InProcess(Arc::clone(&server))));
        let upstream = format!("{SETTINGS}\n{}", UPSTREAM.replace(".ehr.", ".hospital."));
        let settings = shared(&redis.url(), "", "http://ehr.invalid", &upstream, Some(KEY));
        let hosts = std::array::from_fn(|_| {
            let transport = Arc::new(Between(Arc::clone(&faults)));
            Host::with_transports(&settings, Clock::system(), Rng::system(), vec![transport]).unwrap()
        });
        Self { _redis: redis, server, faults, hosts }
    }

    async fn send(&self, host: usize, request: Request<Bytes>) -> Answered {
        read(self.hosts[host % 3].call(request).await).await
    }
}

async fn through_faults(count: usize) {
    let fleet = Fleet::new();
    fleet.faults.set(&faults(Duration::from_millis(1_500)));
    let began = Instant::now();
    // The three creates of an identifier go to different hosts.
    let gave_up = created(count, |row, request| fleet.send(row, request)).await;
    let took = began.elapsed();
    sleep(Duration::from_secs(3)).await;
    let identifiers = count.div_ceil(3);
    println!(
        "{count} creates of {identifiers} patients by 3 hosts in {took:?}: {} POST and {} GET arrived, {} faults, {gave_up} gave up",
        fleet.server.count(&Method::POST),
        fleet.server.count(&Method::GET),
        fleet.faults.injected()
    );
    one_of_each(&fleet.server.patients(), identifiers);
    assert_eq!(gave_up, 0);
}

#[tokio::test]
async fn conditional_creates_of_three_hosts_make_one_patient_an_identifier() {
    through_faults(60).await;
}

#[tokio::test]
#[ignore = "a minute and more"]
async fn a_thousand_conditional_creates_of_three_hosts_make_one_patient_an_identifier() {
    through_faults(1_000).await;
}

/// A host verifies a create that another host left unknown before it sends its own.
#[tokio::test]
async fn a_host_verifies_a_create_that_another_host_left_unknown() {
    let fleet = Fleet::new();
    fleet.faults.set(&[(Method::POST, 1.0, Fault::Late(Duration::from_millis(1_500)))]);
    let first = fleet.send(0, with(create("1", "Ann"), &[("triage-deadline-ms", "100")])).await;
    assert_eq!((first.status, first.problem().as_str()), (504, "effect-unknown"), "{first:?}");
    fleet.faults.set(&[]);
    let next = fleet.send(1, create("1", "Anna")).await;
    assert_eq!((next.status, next.json()["name"][0]["text"].as_str()), (200, Some("Ann")), "{next:?}");
    assert_eq!(fleet.server.count(&Method::POST), 1);
    one_of_each(&fleet.server.patients(), 1);
}
