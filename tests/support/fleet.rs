//! Hosts that share a Redis in front of one emulated directory, in real time, since an external server has no paused clock.

use super::{Answered, create_in, read, redis_server::RedisServer};
use std::sync::Arc;
use triage::Host;
use triage_config::{
    self as config,
    settings::{Settings, State},
};
use triage_core::{clock::Clock, rng::Rng};
use triage_hospital::emulator::{Call, Emulator, InProcess, Options};

/// The key that encrypts stored responses.
pub const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Limits, budget and breaker are switched off.
pub const UPSTREAM: &str = r#"
policy = "hospital-directory"
[upstreams.hospital.defaults]
breaker = { enabled = false }
limits = []
budget = { percent = 100, floor_per_second = 1000000, capacity = 1000000 }
[upstreams.hospital.endpoints.create-hospital]
limits = []
concurrency = 10000
"#;

/// The shared parts of a fleet.
pub struct Fleet {
    pub server: RedisServer,
    pub emulator: Arc<Emulator>,
    /// The server's URL for the hosts, if it differs from the server's own.
    pub url: Option<String>,
    /// Further keys of `[state]`.
    pub state: String,
    pub key: Option<&'static str>,
    /// The upstream's keys, by default [`UPSTREAM`].
    pub upstream: String,
}

impl Fleet {
    pub fn new() -> Self {
        Self::of(RedisServer::start())
    }

    pub fn of(server: RedisServer) -> Self {
        Self {
            server,
            emulator: Emulator::new(Options::immediate()),
            url: None,
            state: String::new(),
            key: Some(KEY),
            upstream: UPSTREAM.to_owned(),
        }
    }

    pub fn settings(&self) -> Settings {
        let url = self.url.clone().unwrap_or_else(|| self.server.url());
        shared(&url, &self.state, "http://hospital.invalid", &self.upstream, self.key)
    }

    /// Adds a host to the fleet.
    pub fn host(&self) -> Member {
        let transport = Arc::new(InProcess(Arc::clone(&self.emulator)));
        let host = Host::with_transports(&self.settings(), Clock::system(), Rng::system(), vec![transport]);
        Member(host.unwrap())
    }

    /// The creates that reached the directory. The very first request is a health call, since the upstream might be asleep.
    pub fn creates(&self) -> usize {
        self.emulator.arrivals().iter().filter(|arrival| arrival.call == Call::Create).count()
    }

    pub fn made(&self) -> usize {
        self.emulator.hospitals().len()
    }
}

/// Settings with shared state.
pub fn shared(url: &str, state: &str, base_url: &str, upstream: &str, key: Option<&str>) -> Settings {
    // Much longer than a step takes on a busy machine. Tests of timeouts set their own.
    let timeout = if state.contains("timeout") { "" } else { "timeout = \"5s\"" };
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n[state]\nurl = \"{url}\"\n{timeout}\n{state}\n\
         [upstreams.hospital]\nbase_url = \"{base_url}\"\n{upstream}"
    );
    let mut settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let State::Shared(shared) = &mut settings.state else { panic!("state is in memory") };
    shared.key = key.map(|key| triage_core::secret::TokenSource::Environment(triage_core::secret::Secret::new(key)));
    settings
}

/// A host of a fleet.
#[derive(Clone)]
pub struct Member(pub Host);

impl Member {
    pub async fn create(&self, name: &str, key: Option<&str>) -> Answered {
        self.create_in(super::BATCH, name, key).await
    }

    pub async fn create_in(&self, batch: &str, name: &str, key: Option<&str>) -> Answered {
        self.send(create_in(batch, name, key)).await
    }

    pub async fn send(&self, request: http::Request<bytes::Bytes>) -> Answered {
        read(self.0.call(request).await).await
    }
}
