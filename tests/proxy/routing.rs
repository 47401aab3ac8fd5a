//! Several upstreams in one host.

use crate::support::{
    front::{Front, raw},
    scripted::{Scripted, ok},
};
use triage::server::Server;
use triage_config as config;

async fn named(name: &'static str) -> Scripted {
    Scripted::start(move |_| ok("", name)).await
}

#[tokio::test]
async fn prefix_and_host_choose_the_upstream() {
    let (plain, below, hosted) = (named("plain").await, named("below").await, named("hosted").await);
    let front = Front::serve(&format!(
        "[upstreams.plain]\nbase_url = \"{}\"\n[upstreams.below]\nbase_url = \"{}/v1\"\npath_prefix = \"/api\"\n\
         [upstreams.hosted]\nbase_url = \"{}\"\nhost = \"fhir.test\"\n",
        plain.url(),
        below.url(),
        hosted.url()
    ));
    for (host, path, expected) in [
        ("x.test", "/", "plain"),
        ("x.test", "/apis", "plain"),
        ("x.test", "/api", "below"),
        ("x.test", "/api/hospitals?x=1", "below"),
        ("fhir.test", "/a", "hosted"),
        ("FHIR.test:8080", "/a", "hosted"),
        ("fhir.test", "/api/a", "hosted"),
    ] {
        let got = front.raw(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(got.text(), expected, "{host}{path}");
    }
    let lines: Vec<String> = below.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert_eq!(
        lines,
        ["get /v1/ http/1.1", "get /v1/hospitals?x=1 http/1.1"],
        "the prefix is taken off, the base put on"
    );
}

#[tokio::test]
async fn a_listener_chooses_the_upstream() {
    let (plain, own) = (named("plain").await, named("own").await);
    // A port that was free a moment ago, since an upstream's listener is configured by number.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = config::from_toml(&format!(
        "admin.listen = \"off\"\n[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[upstreams.plain]\nbase_url = \"{}\"\n\
         [upstreams.own]\nbase_url = \"{}\"\nlisten = \"{free}\"\n",
        plain.url(),
        own.url()
    ))
    .unwrap();
    let server = Server::start(&settings).unwrap();
    for (address, expected) in [(server.addresses()[0], "plain"), (free, "own")] {
        let got = raw(address, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(got.text(), expected, "{address}");
    }
}

/// Connection permits belong to callers: a listener that waits for a connection uses none.
#[tokio::test]
async fn one_place_serves_every_listener() {
    let (plain, own) = (named("plain").await, named("own").await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = config::from_toml(&format!(
        "admin.listen = \"off\"\n[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\nmax_connections = 1\n\
         [upstreams.plain]\nbase_url = \"{}\"\n[upstreams.own]\nbase_url = \"{}\"\nlisten = \"{free}\"\n",
        plain.url(),
        own.url()
    ))
    .unwrap();
    let server = Server::start(&settings).unwrap();
    for (address, expected) in [(server.addresses()[0], "plain"), (free, "own"), (server.addresses()[0], "plain")] {
        let asked = raw(address, b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let got = tokio::time::timeout(std::time::Duration::from_secs(60), asked).await.expect("a place is free");
        assert_eq!(got.text(), expected, "{address}");
    }
}

#[tokio::test]
async fn without_an_upstream_for_it_a_request_is_refused() {
    let upstream = named("api").await;
    let front = Front::of(&upstream.url(), "path_prefix = \"/api\"\n");
    let got = front.ask("GET", "/other", "").await;
    assert_eq!(got.status(), "404");
    assert!(got.text().contains("urn:triage:problem:"), "{}", got.text());
    assert!(upstream.seen().is_empty());
}
