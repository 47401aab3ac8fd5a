//! A host in front of the emulator, in one process and paused time.

pub mod browser;
pub mod faulty;
pub mod fhir_server;
pub mod fleet;
pub mod front;
pub mod oci_registry;
pub mod policies;
pub mod redis_server;
pub mod scripted;
pub mod stage;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use std::sync::Arc;
use triage::Host;
use triage_config::{self as config, settings::Settings};
use triage_core::{clock::Clock, rng::Rng};
use triage_hospital::emulator::{Emulator, InProcess, Options};

/// A batch for all tests, since each has its own emulator.
pub const BATCH: &str = "7d3c5a52-0000-4000-8000-000000000001";

/// A host and its upstream.
pub struct World {
    pub host: Host,
    pub emulator: Arc<Emulator>,
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answered {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {} {:?}", self.status, String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn problem(&self) -> String {
        let kind = self.json()["type"].as_str().unwrap_or_default().to_owned();
        kind.strip_prefix("urn:triage:problem:").unwrap_or_default().to_owned()
    }
}

/// Default settings for a hospital directory.
pub fn settings() -> Settings {
    config::for_upstream("http://hospital.invalid", "hospital-directory").unwrap()
}

/// Settings without limits, budget and breaker.
pub fn unlimited() -> Settings {
    let text = r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "hospital-directory"
        [upstreams.hospital.defaults]
        breaker = { enabled = false }
        limits = []
        budget = { percent = 100, floor_per_second = 1000000, capacity = 1000000 }
        [upstreams.hospital.idempotency]
        max_records = 1000000
        [upstreams.hospital.endpoints.create-hospital]
        limits = []
        concurrency = 10000
        [upstreams.hospital.endpoints.list-batch]
        limits = []
    "#;
    config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"))
}

impl World {
    pub fn new(settings: &Settings, options: Options) -> Self {
        let emulator = Emulator::new(options);
        let transport = Arc::new(InProcess(Arc::clone(&emulator)));
        let clock = Clock::anchored(1_767_225_600_000);
        let host = Host::with_transports(settings, clock, Rng::seeded(7), vec![transport]).unwrap();
        Self { host, emulator }
    }

    pub async fn send(&self, request: Request<Bytes>) -> Answered {
        read(self.host.call(request).await).await
    }

    pub async fn create(&self, name: &str, key: Option<&str>) -> Answered {
        self.send(create(name, key)).await
    }
}

/// A create in [`BATCH`].
pub fn create(name: &str, key: Option<&str>) -> Request<Bytes> {
    create_in(BATCH, name, key)
}

pub fn create_in(batch: &str, name: &str, key: Option<&str>) -> Request<Bytes> {
    let body = json!({"name": name, "address": "1 Main St", "creation_batch_id": batch});
    let mut request = Request::post("/hospitals/").header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.body(Bytes::from(body.to_string())).unwrap()
}

pub async fn read(response: Response<triage_upstream::Body>) -> Answered {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("the body is whole").to_bytes();
    Answered { status: head.status.as_u16(), headers: head.headers, body }
}

/// Settings with a test guest as the policy, loaded from a file and thus without a grant.
pub fn from_guest(name: &str) -> Settings {
    let file = format!("{}/../guest-policies/prebuilt/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    config::from_toml(&format!(
        r#"
        [upstreams.hospital]
        base_url = "http://hospital.invalid"
        policy = "{file}"
        [upstreams.hospital.defaults]
        breaker = {{ enabled = false }}
        "#
    ))
    .unwrap_or_else(|problems| panic!("{problems}"))
}
