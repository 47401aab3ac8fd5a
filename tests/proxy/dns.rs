//! The upstream's name changes its address while connections to the old one still work.

use crate::support::{
    read,
    scripted::{Scripted, ok},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request};
use parking_lot::Mutex;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};
use triage::Host;
use triage_config as config;
use triage_core::{clock::Clock, rng::Rng};
use triage_upstream::{HttpClient, Resolver};

/// A resolver with configurable addresses that counts lookups.
#[derive(Debug, Default)]
struct Names {
    addresses: Mutex<Vec<IpAddr>>,
    lookups: Mutex<usize>,
}

/// The same resolver, owned by a client.
#[derive(Debug)]
struct TestResolver(Arc<Names>);

impl Resolver for TestResolver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        assert_eq!(name, "upstream.example");
        *self.0.lookups.lock() += 1;
        let all: Vec<_> = self.0.addresses.lock().iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        let none = all.is_empty().then(|| io::Error::other("no such name"));
        Box::pin(async move { none.map_or(Ok(all), Err) })
    }
}

const OLD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const NEW: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Two upstreams on one port, a name that resolves to the first one, and a host.
struct Moving {
    names: Arc<Names>,
    old: Scripted,
    new: Scripted,
    host: Host,
}

impl Moving {
    async fn new(refresh: &str) -> Self {
        let old = Scripted::start(|_| ok("", "old")).await;
        let new = Scripted::start_at((NEW, old.address.port()).into(), |_| ok("", "new")).await;
        let names = Arc::new(Names::default());
        names.addresses.lock().push(OLD);
        let url = format!("http://upstream.example:{}", old.address.port());
        let text = format!("[upstreams.api]\nbase_url = \"{url}\"\ndns_refresh = \"{refresh}\"\n");
        let settings = config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let resolver = Arc::new(TestResolver(Arc::clone(&names)));
        let client = HttpClient::with_resolver(&settings.upstreams[0].connection, resolver).unwrap();
        let host = Host::with_transports(&settings, Clock::system(), Rng::system(), vec![Arc::new(client)]).unwrap();
        Self { names, old, new, host }
    }

    async fn asks(&self, method: Method) -> String {
        let request = Request::builder().method(method).uri("/a").body(Bytes::new()).unwrap();
        let answer = read(self.host.call(request).await).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    /// Sends requests until this number of further lookups was made.
    async fn after_lookups(&self, further: usize) {
        let wanted = *self.names.lookups.lock() + further;
        while *self.names.lookups.lock() < wanted {
            self.asks(Method::GET).await;
        }
    }
}

#[tokio::test]
async fn connections_to_an_address_that_is_gone_are_let_go() {
    let moving = Moving::new("1ms").await;
    for method in [Method::GET, Method::POST] {
        assert_eq!(moving.asks(method).await, "old");
    }
    moving.after_lookups(3).await;
    *moving.names.addresses.lock() = vec![NEW];
    // The second lookup confirms the change. The third one begins after its result was processed.
    moving.after_lookups(3).await;
    let before = moving.old.seen().len();
    for _ in 0..20 {
        for method in [Method::GET, Method::POST] {
            assert_eq!(moving.asks(method).await, "new");
        }
    }
    assert_eq!(moving.old.seen().len(), before);
    assert!(moving.new.seen().len() >= 40);
}

#[tokio::test]
async fn a_lookup_that_fails_or_errs_once_moves_nothing() {
    let moving = Moving::new("1ms").await;
    moving.after_lookups(3).await;
    moving.names.addresses.lock().clear();
    moving.after_lookups(5).await;
    assert_eq!(moving.asks(Method::GET).await, "old");
    let connections = |moving: &Moving| moving.old.seen().iter().map(|seen| seen.connection).max();
    let before = connections(&moving);
    *moving.names.addresses.lock() = vec![OLD];
    moving.after_lookups(5).await;
    assert_eq!(moving.asks(Method::GET).await, "old");
    assert_eq!(connections(&moving), before, "the connection that there was is used on");
}

/// Tripwire: without `dns_refresh`, a pool keeps the old address.
#[tokio::test]
async fn tripwire_switched_off_connections_stay_where_they_lead() {
    let moving = Moving::new("off").await;
    assert_eq!(moving.asks(Method::GET).await, "old");
    *moving.names.addresses.lock() = vec![NEW];
    for _ in 0..50 {
        assert_eq!(moving.asks(Method::GET).await, "old");
    }
    assert_eq!(*moving.names.lookups.lock(), 1, "for the one connection");
}
