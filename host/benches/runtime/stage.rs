//! A host with a folder of policies, an upstream that always responds 404, and callers that measure latency.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use triage::server::Server;
use triage_config as config;
use triage_engine::{CachePaths, Digest};
use triage_rollout::Event;

/// A runtime for callers and upstreams.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// An upstream that responds 404 to everything, so that the policy decides on each response and the host delivers it.
pub async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answers(stream));
        }
    });
    address
}

async fn answers(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut head = Vec::new();
    while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            if stream.write_all(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n").await.is_err() {
                return;
            }
        }
    }
}

pub struct Stage {
    pub folder: TempDir,
    pub server: Server,
}

impl Stage {
    /// A host with upstreams `a` and `b`, whose policies are the files `a.wasm` and `b.wasm`.
    pub fn new(upstream: SocketAddr, cached: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["a.wasm", "b.wasm"] {
            fs::write(path(name), triage_engine::prebuilt::embedded("http-standard").unwrap()).unwrap();
        }
        let one = |name: &str| {
            format!(
                "[upstreams.{name}]\nbase_url = \"http://{upstream}\"\npolicy = {:?}\npath_prefix = \"/{name}\"\n\
                 [upstreams.{name}.defaults]\nbreaker = {{ enabled = false }}\n",
                path(&format!("{name}.wasm"))
            )
        };
        let text = format!("[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"off\"\n{}{}", one("a"), one("b"));
        let mut settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        // The key that seals the cache is in a user's home folder, which a configuration alone does not name.
        let places = CachePaths { dir: path("cache").into(), key: path("state/key").into() };
        settings.policies.cache = cached.then_some(places);
        Self { server: Server::start(&settings).unwrap(), folder }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    /// Writes a component atomically, as operators should. Returns the time at which its file was closed.
    pub fn drop_in(&self, upstream: &str, component: &[u8]) -> Instant {
        let beside: PathBuf = self.folder.path().join("new.tmp");
        fs::write(&beside, component).unwrap();
        let closed = Instant::now();
        fs::rename(beside, self.folder.path().join(format!("{upstream}.wasm"))).unwrap();
        closed
    }

    /// Waits until an event matches.
    pub fn wait(&self, upstream: &str, matches: impl Fn(&Event) -> bool) -> Event {
        for _ in 0..500_000 {
            let events = self.server.host().policy_events(upstream).unwrap();
            if let Some(event) = events.into_iter().rev().find(&matches) {
                return event;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        panic!("there were {:?}", self.server.host().policy_events(upstream));
    }

    /// Waits until the component serves, which means that the last installed digest is its.
    pub fn serves(&self, upstream: &str, component: &[u8]) {
        let own = Some(Digest::of(component));
        for _ in 0..500_000 {
            let events = self.server.host().policy_events(upstream).unwrap();
            let last = events.iter().rev().find(|event| matches!(event, Event::Installed { .. }));
            if matches!(last, Some(Event::Installed { digest, .. }) if *digest == own) {
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        panic!("there were {:?}", self.server.host().policy_events(upstream));
    }
}

/// Makes the digest of a component unique with an additional custom section.
pub fn unique(component: &[u8], number: u32) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes.extend_from_slice(&[0, 6, 1, b'n']);
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes
}

/// A prebuilt policy from `guest-policies/`.
pub fn prebuilt(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-policies/prebuilt").join(format!("{name}.wasm"));
    fs::read(path).unwrap()
}

/// The result of a request: when it was sent, its latency, the status and the policy's label.
#[derive(Debug, Clone)]
pub struct Got {
    pub asked: Instant,
    pub took: Duration,
    pub status: u16,
    pub policy: String,
}

/// Sends requests for `path` on one connection, one after the other, until `over` is set.
pub async fn caller(address: SocketAddr, path: &str, over: Arc<AtomicBool>) -> Vec<Got> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n");
    let mut all = Vec::new();
    let mut head = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).await.unwrap();
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0, "the connection was closed");
        }
        let took = asked.elapsed();
        let text = String::from_utf8_lossy(&head);
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let policy = text.lines().find_map(|line| line.strip_prefix("triage-policy: ")).unwrap_or_default().to_owned();
        all.push(Got { asked, took, status, policy });
    }
    all
}

/// The value at a percentile.
pub fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}
