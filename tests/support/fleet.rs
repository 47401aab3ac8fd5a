//! Hosts that share a Redis, in front of one emulated directory. On real time: a server of its own keeps no paused clock.

use super::{Answered, create_in, read, redis_server::RedisServer};
use std::sync::Arc;
use triage::{
    Host,
    clock::Clock,
    config::{
        self,
        settings::{Settings, State},
    },
    emulator::{Call, Emulator, InProcess, Options},
    rng::Rng,
};

/// The key that seals answers.
pub const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Limits, budget and breaker stay out of the way.
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

/// Where a fleet's state is.
pub struct Fleet {
    pub server: RedisServer,
    pub emulator: Arc<Emulator>,
    /// Where hosts look for the server, if not where it is.
    pub url: Option<String>,
    /// Further keys of `[state]`.
    pub state: String,
    pub key: Option<&'static str>,
    /// Instead of [`UPSTREAM`].
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

    /// One more host of the fleet.
    pub fn host(&self) -> Member {
        let transport = Arc::new(InProcess(Arc::clone(&self.emulator)));
        let host = Host::with_transports(&self.settings(), Clock::system(), Rng::system(), vec![transport]);
        Member(host.unwrap())
    }

    /// Creates that have reached the directory. The first request of all is a health call: it may be asleep.
    pub fn creates(&self) -> usize {
        self.emulator.arrivals().iter().filter(|arrival| arrival.call == Call::Create).count()
    }

    pub fn made(&self) -> usize {
        self.emulator.hospitals().len()
    }
}

/// Settings with shared state.
pub fn shared(url: &str, state: &str, base_url: &str, upstream: &str, key: Option<&str>) -> Settings {
    // Far above what a step takes on a busy machine: tests of time-outs say their own.
    let timeout = if state.contains("timeout") { "" } else { "timeout = \"5s\"" };
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n[state]\nurl = \"{url}\"\n{timeout}\n{state}\n\
         [upstreams.hospital]\nbase_url = \"{base_url}\"\n{upstream}"
    );
    let mut settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let State::Shared(shared) = &mut settings.state else { panic!("state is in memory") };
    shared.key = key.map(|key| triage::secret::TokenSource::Environment(triage::secret::Secret::new(key)));
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
