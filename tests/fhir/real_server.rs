//! An independent FHIR server: sekmet-fhir, a test server from the Python registry. `.ci/run` installs it.

use super::{UPSTREAM, create, created, faults, one_of_each, settings};
use crate::support::{
    Answered,
    faulty::{Between, Faulty},
    read,
};
use bytes::Bytes;
use http::{Method, Request};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::time::sleep;
use triage::Host;
use triage_core::{clock::Clock, rng::Rng};
use triage_upstream::HttpClient;

/// The running server, killed on drop.
struct Sekmet {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Sekmet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Sekmet {
    /// Starts the server. Without the program, prints that the test is skipped and returns none.
    fn start() -> Option<Self> {
        let program = std::env::var("TRIAGE_TEST_SEKMET").unwrap_or_else(|_| "sekmet".to_owned());
        let found = Command::new(&program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            println!("skipped: {program} does not run; `pip install sekmet-fhir`, or set TRIAGE_TEST_SEKMET");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string()]).current_dir(folder.path());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Some(Self { process, port, _folder: folder })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/fhir", self.port)
    }
}

struct World {
    host: Host,
    faults: Arc<Faulty>,
    sekmet: Sekmet,
}

impl World {
    async fn new() -> Option<Self> {
        let sekmet = Sekmet::start()?;
        let own = r#"policy_settings = { commit_within = "4s", wait = { kind = "fixed", seconds = 0.01 } }"#;
        let mut settings = settings(&format!("{own}\n{UPSTREAM}"));
        settings.upstreams[0].connection.base_url = sekmet.url().parse().unwrap();
        let client = HttpClient::new(&settings.upstreams[0].connection).unwrap();
        let faults = Faulty::new(Arc::new(client));
        let transport = Arc::new(Between(Arc::clone(&faults)));
        let host = Host::with_transports(&settings, Clock::system(), Rng::system(), vec![transport]).unwrap();
        let world = Self { host, faults, sekmet };
        for _ in 0..600 {
            if world.get("/metadata", "application/fhir+json").await.status == 200 {
                return Some(world);
            }
            sleep(Duration::from_millis(200)).await;
        }
        panic!("sekmet on port {} does not come up", world.sekmet.port);
    }

    async fn send(&self, request: Request<Bytes>) -> Answered {
        read(self.host.call(request).await).await
    }

    async fn get(&self, path: &str, accept: &str) -> Answered {
        self.send(Request::get(path).header("accept", accept).body(Bytes::new()).unwrap()).await
    }

    async fn total(&self, identifier: usize) -> usize {
        let path = format!("/Patient?identifier=urn:mrn%7C{identifier}");
        let found: Value = self.get(&path, "application/fhir+json").await.json();
        found["total"].as_u64().unwrap_or_else(|| panic!("{found}")).try_into().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditional_creates_through_faults_make_one_patient_an_identifier() {
    const CREATES: usize = 120;
    let Some(world) = World::new().await else { return };
    world.faults.set(&faults(Duration::from_secs(2)));
    let gave_up = created(CREATES, |_, request| world.send(request)).await;
    world.faults.set(&[]);
    sleep(Duration::from_secs(3)).await;
    let mut patients = BTreeMap::new();
    for identifier in 0..CREATES / 3 {
        patients.insert(identifier.to_string(), world.total(identifier).await);
    }
    println!("{CREATES} creates, {} faults, {gave_up} gave up", world.faults.injected());
    one_of_each(&patients, CREATES / 3);
    assert_eq!(gave_up, 0);
    assert!(world.faults.injected() > 15, "faults were injected: {}", world.faults.injected());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_answers_are_judged_in_json_and_in_xml() {
    let Some(world) = World::new().await else { return };
    let made = world.send(create("1", "Ann")).await;
    assert_eq!((made.status, made.header("triage-verdict")), (201, "applied"), "{made:?}");
    let again = world.send(create("1", "Ann")).await;
    assert_eq!((again.status, again.header("triage-verdict")), (200, "already-applied"), "{again:?}");
    // The host's response to a lost create equals the server's own.
    world.faults.set(&[(Method::POST, 1.0, crate::support::faulty::Fault::Reset)]);
    let found = world.send(create("1", "Ann")).await;
    assert_eq!((found.status, found.header("triage-verdict")), (200, "already-applied"), "{found:?}");
    assert_eq!(found.json(), again.json());
    assert_eq!(found.header("etag"), again.header("etag"));
    assert!(again.header("location").ends_with(found.header("location")), "{again:?} {found:?}");
    world.faults.set(&[]);
    for accept in ["application/fhir+json", "application/fhir+xml"] {
        let missing = world.get("/Patient/nope", accept).await;
        assert_eq!((missing.status, missing.header("triage-verdict")), (404, "rejected"), "{missing:?}");
        assert!(missing.header("content-type").starts_with(accept), "{missing:?}");
    }
}
