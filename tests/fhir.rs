//! FHIR: conditional writes are verified by their condition, against a server with the races of real ones.

mod fleet;
mod real_server;
mod updates;

use crate::support::{
    Answered,
    faulty::{Between, Fault, Faulty},
    fhir_server::{FhirServer, InProcess},
    read,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use triage::Host;
use triage_config::{self as config, settings::Settings};
use triage_core::{clock::Clock, rng::Rng};
use triage_engine::{Engine, LoadError, LoadOptions, Policy, prebuilt};

/// Limits, budget and breaker are switched off.
const UPSTREAM: &str = r#"
policy = "fhir"
[upstreams.ehr.defaults]
breaker = { enabled = false }
limits = []
retry = { max_attempts = 20, min_wait = "10ms" }
budget = { percent = 100, floor_per_second = 1000000, capacity = 1000000 }
"#;

/// A host in front of a FHIR server.
struct World {
    host: Host,
    server: Arc<FhirServer>,
    faults: Arc<Faulty>,
}

impl World {
    fn new() -> Self {
        Self::with(&settings(UPSTREAM))
    }

    fn with(settings: &Settings) -> Self {
        let server = FhirServer::new(Duration::from_millis(200));
        let faults = Faulty::new(Arc::new(InProcess(Arc::clone(&server))));
        let transport = Arc::new(Between(Arc::clone(&faults)));
        let clock = Clock::anchored(1_767_225_600_000);
        let host = Host::with_transports(settings, clock, Rng::seeded(7), vec![transport]).unwrap();
        Self { host, server, faults }
    }

    async fn send(&self, request: Request<Bytes>) -> Answered {
        read(self.host.call(request).await).await
    }

    async fn get(&self, path: &str) -> Answered {
        self.send(Request::get(path).body(Bytes::new()).unwrap()).await
    }
}

fn settings(upstream: &str) -> Settings {
    let text = format!("[upstreams.ehr]\nbase_url = \"http://ehr.invalid\"\n{upstream}");
    config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A conditional create of a patient with this identifier and name.
fn create(identifier: &str, name: &str) -> Request<Bytes> {
    let body = json!({
        "resourceType": "Patient", "name": [{"text": name}],
        "identifier": [{"system": "urn:mrn", "value": identifier}],
    });
    let request = Request::post("/Patient").header("content-type", "application/fhir+json");
    request.header("if-none-exist", format!("identifier=urn:mrn|{identifier}")).body(body.to_string().into()).unwrap()
}

fn with(mut request: Request<Bytes>, fields: &[(&'static str, &'static str)]) -> Request<Bytes> {
    for (name, value) in fields {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Sends creates, 9 at a time: three per identifier, with different bodies. Their callers repeat them until they get a response. Returns
/// the number of callers that gave up.
async fn created<F: Future<Output = Answered>>(count: usize, send: impl Fn(usize, Request<Bytes>) -> F) -> usize {
    let one = |row: usize| {
        let send = &send;
        async move {
            for _ in 0..8 {
                let answer = send(row, create(&(row / 3).to_string(), &format!("Row {row}"))).await;
                match answer.status {
                    200 | 201 => {
                        let own = answer.json()["identifier"][0]["value"].as_str() == Some(&(row / 3).to_string());
                        assert!(own, "the answer is the patient asked for: {answer:?}");
                        return 0;
                    }
                    409 | 503 | 504 => sleep(Duration::from_secs(1)).await,
                    _ => panic!("{answer:?}"),
                }
            }
            1
        }
    };
    stream::iter(0..count).map(one).buffer_unordered(9).fold(0, async |sum, gave_up| sum + gave_up).await
}

/// Faults for 30 % of the creates: applied and answered 503 or reset, applied late, or not applied. One search in twenty fails.
fn faults(late: Duration) -> [(Method, f64, Fault); 5] {
    [
        (Method::POST, 0.10, Fault::Failed(503)),
        (Method::POST, 0.10, Fault::Reset),
        (Method::POST, 0.05, Fault::Late(late)),
        (Method::POST, 0.05, Fault::Refused(503)),
        (Method::GET, 0.05, Fault::Refused(502)),
    ]
}

fn one_of_each(patients: &BTreeMap<String, usize>, count: usize) {
    let several: Vec<_> = patients.iter().filter(|(_, own)| **own != 1).collect();
    assert!(several.is_empty(), "{} of {count} identifiers have several patients: {several:?}", several.len());
    assert_eq!(patients.len(), count, "each identifier has its patient");
}

/// The main check: without locks, verifications and records of unknown effects, some identifiers would get several patients.
#[tokio::test(start_paused = true)]
async fn a_thousand_conditional_creates_through_faults_make_one_patient_an_identifier() {
    let world = World::new();
    world.faults.set(&faults(Duration::from_secs(55)));
    let gave_up = created(1_000, |_, request| world.send(request)).await;
    sleep(Duration::from_secs(120)).await;
    one_of_each(&world.server.patients(), 334);
    assert_eq!(gave_up, 0);
    assert!(world.faults.injected() > 150, "faults were injected: {}", world.faults.injected());
}

#[tokio::test(start_paused = true)]
async fn the_server_races() {
    let server = FhirServer::new(Duration::from_millis(200));
    let faults = Faulty::new(Arc::new(InProcess(Arc::clone(&server))));
    let settings = settings("policy = \"http-standard\"\n");
    let transport = Arc::new(Between(faults));
    let host = Host::with_transports(&settings, Clock::system(), Rng::seeded(7), vec![transport]).unwrap();
    created(9, |_, request| async { read(host.call(request).await).await }).await;
    assert_eq!(server.patients().values().sum::<usize>(), 9, "three identifiers, and nine patients");
}

#[tokio::test(start_paused = true)]
async fn equal_conditions_take_turns_whatever_their_bodies() {
    let world = World::new();
    let answers = stream::iter(0..3).map(|row| world.send(create("1", &format!("Row {row}")))).buffer_unordered(3);
    let statuses: Vec<u16> = answers.map(|answer| answer.status).collect().await;
    assert_eq!((statuses.iter().filter(|own| **own == 201).count(), statuses.len()), (1, 3), "{statuses:?}");
    one_of_each(&world.server.patients(), 1);
    // Other identifiers are not delayed.
    let began = Instant::now();
    let others = stream::iter(2..9).map(|row| world.send(create(&row.to_string(), "X"))).buffer_unordered(9);
    assert!(others.all(async |answer| answer.status == 201).await);
    assert!(began.elapsed() < Duration::from_millis(400), "one after another: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn spellings_of_one_condition_take_turns() {
    let world = World::new();
    let spellings = [
        "identifier=urn:mrn|1",
        "identifier=urn:mrn%7C1",
        "identifier=urn%3Amrn%7c1",
        "?identifier=urn:mrn|1",
        "Patient?identifier=urn:mrn%7C1",
    ];
    let creates = spellings.map(|spelling| with(create("1", spelling), &[("if-none-exist", spelling)]));
    let answers = stream::iter(creates).map(|request| world.send(request)).buffer_unordered(spellings.len());
    let statuses: Vec<u16> = answers.map(|answer| answer.status).collect().await;
    assert_eq!(statuses.iter().filter(|own| **own == 201).count(), 1, "{statuses:?}");
    one_of_each(&world.server.patients(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_resource_that_verification_finds_is_the_answer() {
    let world = World::new();
    world.faults.set(&[(Method::POST, 1.0, Fault::Reset)]);
    let answer = world.send(create("1", "Ann")).await;
    assert_eq!((answer.status, answer.header("triage-verdict")), (200, "already-applied"), "{answer:?}");
    assert_eq!((answer.header("etag"), answer.header("location")), ("W/\"1\"", "Patient/1/_history/1"));
    assert_eq!(answer.header("content-type"), "application/fhir+json");
    assert_eq!((answer.json()["id"].as_str(), answer.json()["name"][0]["text"].as_str()), (Some("1"), Some("Ann")));
    assert_eq!(answer.header("triage-attempts"), "1");
    let brief = world.send(with(create("2", "Bob"), &[("prefer", "return=minimal")])).await;
    assert_eq!((brief.status, brief.header("location"), brief.body.len()), (200, "Patient/2/_history/1", 0));
    assert_eq!(brief.header("content-type"), "");
    one_of_each(&world.server.patients(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_verification_says_who_asks_and_not_what_was_written() {
    let text = format!("idempotency.tenant_header = \"x-tenant\"\n{UPSTREAM}");
    let world = World::with(&settings(&text));
    world.faults.set(&[(Method::POST, 1.0, Fault::Failed(503))]);
    let fields = [
        ("authorization", "Bearer t"),
        ("x-api-key", "k"),
        ("x-tenant", "a"),
        ("x-partition", "p"),
        ("x-http-method-override", "PUT"),
        ("x-request-id", "r"),
        ("accept", "application/json"),
    ];
    assert_eq!(world.send(with(create("a b&_count=0", "A"), &fields)).await.status, 504, "no such identifier");
    let verifications: Vec<_> =
        world.server.arrived().into_iter().filter(|arrived| arrived.method == Method::GET).collect();
    let verification = verifications.first().expect("a verification");
    assert_eq!(verification.path_and_query, "/Patient?identifier=urn:mrn%7Ca%20b");
    let header = |name: &str| verification.headers.get(name).map(|value| value.to_str().unwrap());
    for (name, value) in [
        ("authorization", Some("Bearer t")),
        ("x-api-key", Some("k")),
        ("x-tenant", Some("a")),
        ("x-partition", Some("p")),
        ("x-http-method-override", None),
        ("x-request-id", None),
        ("accept", Some("application/fhir+json")),
        ("cache-control", Some("no-cache")),
        ("prefer", Some("handling=strict")),
        ("if-none-exist", None),
        ("content-type", None),
    ] {
        assert_eq!(header(name), value, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn absence_counts_after_the_operators_time_and_not_before() {
    let text = format!("policy_settings = {{ commit_within = \"20s\" }}\n{UPSTREAM}");
    for (upstream, seconds) in [(UPSTREAM, 60), (&*text, 20)] {
        let world = World::with(&settings(upstream));
        world.faults.set(&[(Method::POST, 1.0, Fault::Refused(503))]);
        let began = Instant::now();
        let (answer, ()) = tokio::join!(world.send(create("1", "Ann")), async {
            sleep(Duration::from_secs(seconds - 1)).await;
            assert_eq!(world.server.count(&Method::POST), 0);
            world.faults.set(&[]);
        });
        assert_eq!((answer.status, answer.header("triage-attempts")), (201, "2"), "{answer:?}");
        let took = began.elapsed().as_secs();
        assert!((seconds..seconds + 15).contains(&took), "{took} s, not {seconds}");
        one_of_each(&world.server.patients(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn several_matches_are_left_to_an_operator() {
    let world = World::new();
    world.server.add("urn:mrn", "1");
    world.server.add("urn:mrn", "1");
    world.faults.set(&[(Method::POST, 1.0, Fault::Failed(503))]);
    let answer = world.send(create("1", "Ann")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (504, "effect-unknown"), "{answer:?}");
    assert_eq!((world.server.count(&Method::POST), world.server.count(&Method::GET)), (1, 1), "verified once");
}

/// A caller with a short deadline leaves its create unknown. Another caller's create with the same condition verifies it first.
#[tokio::test(start_paused = true)]
async fn the_next_create_verifies_an_unknown_create() {
    let world = World::new();
    world.faults.set(&[(Method::POST, 1.0, Fault::Late(Duration::from_secs(40)))]);
    let began = Instant::now();
    let first = world.send(with(create("1", "Ann"), &[("triage-deadline-ms", "2000")])).await;
    assert_eq!((first.status, first.problem().as_str()), (504, "effect-unknown"), "{first:?}");
    assert!(began.elapsed() <= Duration::from_secs(3), "its deadline holds: {:?}", began.elapsed());
    world.faults.set(&[]);
    let next = world.send(create("1", "Anna")).await;
    assert_eq!((next.status, next.json()["name"][0]["text"].as_str()), (200, Some("Ann")), "{next:?}");
    assert_eq!(next.header("triage-attempts"), "0", "nothing was sent");
    assert_eq!(world.server.count(&Method::POST), 1);
    // A known result is not verified again.
    let after = world.send(create("1", "Anna")).await;
    assert_eq!((after.status, after.header("triage-attempts")), (200, "1"), "{after:?}");
    one_of_each(&world.server.patients(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_plain_create_stays_unknown_and_is_not_looked_up() {
    let world = World::new();
    world.faults.set(&[(Method::POST, 1.0, Fault::Failed(503))]);
    for condition in [None, Some("_count=1")] {
        let mut request = create("1", "Ann");
        request.headers_mut().remove("if-none-exist");
        if let Some(condition) = condition {
            request.headers_mut().insert("if-none-exist", condition.parse().unwrap());
        }
        let answer = world.send(request).await;
        assert_eq!((answer.status, answer.header("triage-verdict")), (503, "unknown"), "{condition:?}: {answer:?}");
    }
    assert_eq!((world.server.count(&Method::POST), world.server.count(&Method::GET)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_key_with_another_condition_is_a_mismatch() {
    // The callers' tokens differ, so the key alone must identify the request.
    let world = World::with(&settings(&format!("idempotency.tenant_header = \"off\"\n{UPSTREAM}")));
    let keyed = |request| with(request, &[("idempotency-key", "k")]);
    let first = world.send(keyed(create("1", "Ann"))).await;
    assert_eq!(first.status, 201, "{first:?}");
    let again = world.send(with(keyed(create("1", "Ann")), &[("authorization", "Bearer fresh")])).await;
    assert_eq!((again.status, again.header("triage-replay")), (201, "true"), "{again:?}");
    let other = with(keyed(create("1", "Ann")), &[("if-none-exist", "identifier=urn:mrn|2")]);
    let other = world.send(other).await;
    assert_eq!((other.status, other.problem().as_str()), (422, "key-reused"), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_search_by_post_is_a_read_and_an_export_starts_a_job() {
    let world = World::new();
    let search = || Request::post("/Patient/_search").body(Bytes::from_static(b"identifier=urn:mrn|1")).unwrap();
    world.faults.set(&[(Method::POST, 0.5, Fault::Failed(503)), (Method::GET, 1.0, Fault::Failed(503))]);
    for _ in 0..10 {
        assert_eq!(world.send(search()).await.status, 200);
    }
    assert!(world.server.count(&Method::POST) > 10, "some were retried");
    let gone = search();
    world.faults.set(&[(Method::POST, 1.0, Fault::Reset), (Method::GET, 1.0, Fault::Failed(503))]);
    let failed = world.send(with(gone, &[("triage-deadline-ms", "3000")])).await;
    assert_eq!(
        (failed.status, failed.problem().as_str()),
        (502, "upstream-failed"),
        "no effect is unknown: {failed:?}"
    );
    for path in ["/$export", "/Patient/$export"] {
        let before = world.server.count(&Method::GET);
        let answer = world.get(path).await;
        assert_eq!((answer.status, answer.header("triage-verdict")), (503, "unknown"), "{path}: {answer:?}");
        assert_eq!(world.server.count(&Method::GET), before + 1, "{path} was sent again");
    }
}

/// A verification counts against the limits of the endpoint that it reads.
#[tokio::test(start_paused = true)]
async fn a_verification_waits_for_a_place_of_the_reads() {
    let text = format!("{UPSTREAM}[upstreams.ehr.endpoints.read]\nlimits = [{{ requests = 1, period = \"25s\" }}]\n");
    let world = World::with(&settings(&text));
    assert_eq!(world.get("/Patient?identifier=urn:mrn|9").await.status, 200);
    world.faults.set(&[(Method::POST, 1.0, Fault::Reset)]);
    let began = Instant::now();
    let answer = world.send(create("1", "Ann")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(began.elapsed() >= Duration::from_secs(24), "the place was free after {:?}", began.elapsed());
    assert_eq!(world.server.count(&Method::GET), 2);
}

/// The policy passes the operator's `commit_within` to the host.
#[test]
fn commit_within_is_a_setting_that_the_host_sees() {
    let engine = Engine::start().unwrap();
    let load = |settings: &str| {
        let loading = LoadOptions { settings: settings.to_owned(), ..LoadOptions::default() };
        Policy::load(&engine, prebuilt::embedded("fhir").unwrap(), &loading)
    };
    let seen = |settings: &str| {
        let policy = load(settings).unwrap_or_else(|error| panic!("{settings}: {error}"));
        let create = policy.description().endpoints.iter().find(|endpoint| endpoint.name == "create").unwrap().clone();
        (create.commit_within.unwrap().as_millis(), create.defaults.deadline.unwrap() > create.commit_within.unwrap())
    };
    assert_eq!(seen(""), (60_000, true));
    assert_eq!(seen("{\"wait\":{\"kind\":\"fixed\",\"seconds\":1}}"), (60_000, true));
    assert_eq!(seen("{\"commit_within\":\"150ms\"}"), (150, true));
    assert_eq!(seen("{\"commit_within\":90}"), (90_000, true));
    let refused = load("{\"commit_within\":\"2h\"}").unwrap_err();
    assert!(matches!(&refused, LoadError::Settings(why) if why.contains("from 1ms to 55m")), "{refused}");
}
