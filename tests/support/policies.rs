//! A registry, a Redis, and hosts that follow the fleet's announcements.

use super::{
    front::{Front, Got},
    oci_registry::OciRegistry,
    redis_server::RedisServer,
    scripted::{Scripted, status},
};
use crate::hostile::guest::{Guest, TRAP, at};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};
use triage::server::Server;
use triage_config as config;
use triage_engine::{CachePaths, Digest};
use triage_registry::{Credentials, Publication, Registry};

/// The repository that every host uses.
pub const REPOSITORY: &str = "team/policies/next";

/// A component that only reports its name.
pub fn named(name: &str) -> Vec<u8> {
    Guest::new().text(at::NAME, name).build()
}

/// A component with this name that traps in every decision.
pub fn trapping(name: &str) -> Vec<u8> {
    Guest::new().text(at::NAME, name).decide(TRAP).build()
}

/// The parts that all hosts share.
pub struct Policies {
    pub redis: RedisServer,
    pub registry: OciRegistry,
    pub upstream: Scripted,
    pub folder: tempfile::TempDir,
    /// The component in every host's configuration.
    pub configured: Digest,
}

/// The differences of one host.
#[derive(Default)]
pub struct Own<'a> {
    /// The Redis URL that it uses.
    pub redis: Option<String>,
    /// The registry that it uses.
    pub registry: Option<String>,
    /// Further keys of `[policies]`.
    pub policies: &'a str,
    /// The component in its configuration.
    pub configured: Option<Digest>,
    /// The folder for pulled components.
    pub kept: Option<PathBuf>,
}

impl Policies {
    /// Starts all parts with `v1` in the registry; none without a registry.
    pub async fn start() -> Option<Self> {
        let registry = OciRegistry::start()?;
        let upstream = Scripted::start(|_| status(503)).await;
        let folder = tempfile::tempdir().unwrap();
        let mut all = Self { redis: RedisServer::start(), registry, upstream, folder, configured: Digest::of(b"") };
        all.configured = all.push(named("v1")).await;
        Some(all)
    }

    pub async fn push(&self, component: Vec<u8>) -> Digest {
        self.publish(component, None, None).await
    }

    /// Publishes a component without the checks of `triage policy push`.
    pub async fn publish(&self, component: Vec<u8>, signature: Option<String>, cases: Option<String>) -> Digest {
        let registry = Registry::new(Credentials::read(&self.registry.credentials(), "x").unwrap(), None);
        let tag = &Digest::of(&component).to_string()[..12];
        let signed = if signature.is_some() { "-signed" } else { "" };
        let publication = Publication {
            target: format!("oci://{}/{REPOSITORY}:{tag}{signed}", self.registry.address).parse().unwrap(),
            component,
            signature,
            cases,
            name: "next".to_owned(),
            version: "1".to_owned(),
        };
        let published = tokio::task::spawn_blocking(move || registry.publish(&publication)).await.unwrap();
        published.unwrap().artifact.digest()
    }

    /// The configuration of a host.
    pub fn toml(&self, own: &Own<'_>) -> String {
        let registry = own.registry.as_deref().unwrap_or(&self.registry.address);
        let auth = self.folder.path().join(format!("auth-{registry}.json"));
        std::fs::write(&auth, self.registry.credentials().replace(&self.registry.address, registry)).unwrap();
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ndrain = \"1s\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [state]\nurl = {:?}\ntimeout = \"5s\"\n[policies]\nregistry_auth_file = {:?}\n{}\n\
             [upstreams.api]\nbase_url = {:?}\nfollow_fleet = true\npolicy = \"oci://{registry}/{REPOSITORY}@sha256:{}\"\n\
             [upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\nbreaker = {{ enabled = false }}\n",
            own.redis.clone().unwrap_or_else(|| self.redis.url()),
            auth.display().to_string(),
            own.policies,
            self.upstream.url(),
            own.configured.unwrap_or(self.configured),
        )
    }

    pub fn host(&self) -> Front {
        self.host_with(&Own::default())
    }

    pub fn host_with(&self, own: &Own<'_>) -> Front {
        let mut settings = config::from_toml(&self.toml(own)).unwrap_or_else(|problems| panic!("{problems}"));
        settings.policies.cache =
            own.kept.as_ref().map(|dir| CachePaths { dir: dir.join("cache"), key: dir.join("state/key") });
        Front::of_server(Server::start(&settings).unwrap(), settings)
    }

    /// Three hosts that know each other.
    pub async fn hosts(&self) -> [Front; 3] {
        let hosts = [self.host(), self.host(), self.host()];
        for host in &hosts {
            until("the hosts know each other", || async { fleet(host).await["hosts"].as_array().unwrap().len() == 3 })
                .await;
        }
        hosts
    }
}

/// Waits until a condition is true.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    for _ in 0..1500 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never happened: {what}");
}

/// The name of the policy that decides a request at a host.
pub async fn judge(host: &Front) -> String {
    let got = host.ask("GET", "/a", "").await;
    assert_eq!(got.status(), "503", "{}", got.text());
    got.header("triage-policy").unwrap().split(';').next().unwrap().to_owned()
}

/// Waits until the policy serves at each host.
pub async fn serves(hosts: &[Front], name: &str) {
    for (number, host) in hosts.iter().enumerate() {
        until(&format!("{name} at host {number}"), || async { judge(host).await == name }).await;
    }
}

/// The fleet's state, as one host reports it.
pub async fn fleet(host: &Front) -> Value {
    host.get_json("/api/v1/policies/api").await["fleet"].clone()
}

/// Sends an action on a component to a host.
pub async fn act(host: &Front, verb: &str, digest: Option<Digest>) -> Got {
    let body = digest.map_or_else(String::new, |digest| format!("{{\"digest\": \"sha256:{digest}\"}}"));
    host.admin("POST", &format!("/api/v1/policies/api/{verb}"), "", &body).await
}

/// Announces a component at a host, which must accept it.
pub async fn announce(host: &Front, digest: Digest) {
    let got = act(host, "announce", Some(digest)).await;
    assert_eq!(got.status(), "200", "{}", got.text());
}

/// The texts of a host's events of one kind.
pub async fn event_texts(host: &Front, kind: &str) -> Vec<String> {
    let events = host.get_json("/api/v1/events").await;
    let own = events.as_array().unwrap().iter().filter(|event| event["kind"] == kind);
    own.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
}
