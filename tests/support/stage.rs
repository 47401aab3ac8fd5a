//! A host whose policies come from a folder.

use super::{
    front::Front,
    scripted::{Scripted, Seen, status},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use triage_engine::Digest;
use triage_rollout::Event;

pub fn prebuilt(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-policies/prebuilt").join(format!("{name}.wasm"))
}

/// A host with a policy folder, in front of an upstream that always responds 503, so that the policy decides on every response.
pub struct Stage {
    folder: tempfile::TempDir,
    pub front: Front,
    upstream: Scripted,
}

impl Stage {
    pub async fn new(before: &[(&str, &str)]) -> Self {
        Self::with("", before).await
    }

    /// Starts a host with further keys of `policies`.
    pub async fn with(keys: &str, before: &[(&str, &str)]) -> Self {
        let upstream = Scripted::start(|_| status(503)).await;
        let folder = tempfile::tempdir().unwrap();
        let stage = |(name, guest): &(&str, &str)| fs::copy(prebuilt(guest), folder.path().join(name)).unwrap();
        for file in before {
            stage(file);
        }
        let front = Front::with_admin(
            "",
            &format!(
                "[policies]\ndir = \"{}\"\npoll = \"50ms\"\n{keys}\n[upstreams.api]\nbase_url = \"{}\"\n\
             [upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\nbreaker = {{ enabled = false }}\n",
                folder.path().display(),
                upstream.url()
            ),
        );
        Self { folder, front, upstream }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the file atomically, as operators should.
    pub fn drop_in(&self, bytes: &[u8]) {
        let beside = self.path("new.tmp");
        fs::write(&beside, bytes).unwrap();
        fs::rename(beside, self.path("http-standard.wasm")).unwrap();
    }

    pub fn drop_guest(&self, guest: &str) {
        self.drop_in(&fs::read(prebuilt(guest)).unwrap());
    }

    pub fn events(&self) -> Vec<Event> {
        self.front.host().policy_events("api").unwrap()
    }

    /// The requests that reached the upstream.
    pub fn seen(&self) -> Vec<Seen> {
        self.upstream.seen()
    }

    /// Waits until a component serves, without sending requests.
    pub async fn loaded(&self, what: &str, own: Digest) {
        for _ in 0..2000 {
            if let Some(event) = self.events().pop() {
                match event {
                    Event::Installed { digest, .. } if digest == Some(own) => return,
                    Event::Refused { digest, .. } if digest == Some(own) => panic!("{what}: {event}"),
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what} was not loaded; there were {:?}", self.events());
    }

    pub async fn policy(&self) -> String {
        let got = self.front.ask("GET", "/a", "").await;
        assert_eq!(got.status(), "503", "{}", got.text());
        got.header("triage-policy").unwrap().split(';').next().unwrap().to_owned()
    }

    /// Waits for an event, and sends requests meanwhile, so that the policy makes decisions.
    pub async fn until(&self, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        for _ in 0..2000 {
            if let Some(event) = self.events().into_iter().find(&matches) {
                return event;
            }
            self.policy().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no event: {what}; there were {:?}", self.events());
    }

    pub async fn installed(&self, generation: u64) {
        self.until(
            "installed",
            |event| matches!(event, Event::Installed { generation: own, .. } if *own == generation),
        )
        .await;
    }
}
