//! HTTP/2 on both sides, and TLS to the upstream.

use crate::support::{
    front::Front,
    scripted::{Scripted, ok},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{convert::Infallible, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Answers with the protocol version that it was spoken to in.
async fn serve_tls(issuer: &CertifiedIssuer<'static, KeyPair>, protocols: &[&[u8]]) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let version = format!("{:?}", request.version());
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(version))))
                });
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

pub fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn front(address: SocketAddr, trusted: &CertifiedIssuer<'static, KeyPair>) -> (Front, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, trusted.pem()).unwrap();
    let keys = format!("ca_file = \"{}\"\n[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n", file.display());
    (Front::of(&format!("https://localhost:{}", address.port()), &keys), folder)
}

#[tokio::test]
async fn a_configured_authority_is_trusted_and_alpn_chooses_the_protocol() {
    let issuer = authority();
    for (offered, expected) in
        [(&[b"h2".as_slice(), b"http/1.1"][..], "HTTP/2.0"), (&[b"http/1.1".as_slice()][..], "HTTP/1.1")]
    {
        let address = serve_tls(&issuer, offered).await;
        let (front, _folder) = front(address, &issuer);
        let got = front.ask("GET", "/a", "").await;
        assert_eq!((got.status(), got.text().as_str()), ("200", expected));
    }
}

#[tokio::test]
async fn another_authority_is_not_trusted_and_nothing_is_sent() {
    let address = serve_tls(&authority(), &[b"http/1.1"]).await;
    let (front, _folder) = front(address, &authority());
    let got = front.send("POST", "/a", "", "x").await;
    assert_eq!((got.status(), got.header("triage-sent")), ("502", Some("no")), "{}", got.text());
    let problem: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(problem["failure"], "tls", "{problem}");
}

#[tokio::test]
async fn http2_is_spoken_on_both_sides() {
    let upstream = Scripted::start(|_| ok("connection: x-inner\r\nx-inner: 1\r\n", "over h1")).await;
    let front = Front::of(&upstream.url(), "");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let caller = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let got = caller.get(front.url("/a")).send().await.unwrap();
    assert_eq!(got.version(), http::Version::HTTP_2);
    assert!(!got.headers().contains_key("x-inner"));
    assert_eq!(got.text().await.unwrap(), "over h1");
    // The host itself as an upstream that speaks HTTP/2 without TLS.
    let outer = Front::of(&front.url(""), "http2_prior_knowledge = true\n");
    let got = outer.ask("GET", "/b", "").await;
    assert_eq!((got.status(), got.text().as_str()), ("200", "over h1"));
    assert_eq!(upstream.seen().last().unwrap().all("via").join(", "), "1.1 triage, 1.1 triage");
}
