//! HTTP/2 on both sides, and TLS to the upstream.

use crate::support::{
    front::Front,
    scripted::{Scripted, ok},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use std::{convert::Infallible, net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Responds with the protocol version of the request.
pub async fn serve_tls(issuer: &Issuer, protocols: &[&[u8]]) -> SocketAddr {
    serve(shows(issuer, params("localhost")), protocols).await
}

pub fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).unwrap()
}

/// A server with a certificate of these parameters.
pub fn shows(issuer: &Issuer, params: CertificateParams) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap()
}

pub fn builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
}

pub async fn serve(mut config: ServerConfig, protocols: &[&[u8]]) -> SocketAddr {
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
                    let mut answer = http::Response::new(Full::new(Bytes::from(version)));
                    // The path determines the number of header fields.
                    let fields = request.uri().path().strip_prefix("/fields/").and_then(|count| count.parse().ok());
                    for _ in 0..fields.unwrap_or(0) {
                        answer.headers_mut().append("a", http::HeaderValue::from_static("b"));
                    }
                    Ok::<_, Infallible>(answer)
                });
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

pub fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn front(address: SocketAddr, trusted: &Issuer) -> (Front, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, trusted.pem()).unwrap();
    let keys = format!("ca_file = \"{}\"\n[upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n", file.display());
    let api = format!("[upstreams.api]\nbase_url = \"https://localhost:{}\"\n{keys}", address.port());
    (Front::with_admin("", &api), folder)
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
async fn an_answer_over_tls_may_have_as_many_fields() {
    let issuer = authority();
    for (offered, reason) in [(&b"h2"[..], "too-many-fields"), (b"http/1.1", "head-too-large")] {
        let address = serve_tls(&issuer, &[offered]).await;
        let (front, _folder) = front(address, &issuer);
        assert_eq!(front.ask("GET", "/fields/200", "").await.status(), "200", "{reason}");
        let got = front.ask("GET", "/fields/300", "").await;
        let problem: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!((got.status(), problem["failure_reason"].as_str()), ("502", Some(reason)), "{problem}");
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

/// Reads something from each connection, sends these bytes, and closes it.
pub async fn says(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 512];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(bytes).await;
        }
    });
    address
}

#[tokio::test]
async fn a_failed_handshake_says_why() {
    let issuer = authority();
    let itself = builder()
        .with_no_client_auth()
        .with_single_cert(vec![issuer.der().clone()], issuer.key().serialize_der().try_into().unwrap())
        .unwrap();
    let dated = |from: (i32, u8, u8), to: (i32, u8, u8)| {
        let mut params = params("localhost");
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        shows(&issuer, params)
    };
    let known = {
        let mut roots = RootCertStore::empty();
        roots.add(issuer.der().clone()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params("localhost").signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap()
    };
    let h1 = &[&b"http/1.1"[..]];
    // A fatal alert: protocol_version (RFC 8446 section 6).
    let alert = says(&[21, 3, 3, 0, 2, 2, 70]).await;
    let h2 = &[&b"h2"[..]];
    let named = |name: &str| shows(&issuer, params(name));
    for (address, expected, sent, words, certificate) in [
        (
            serve(shows(&authority(), params("localhost")), h1).await,
            "unknown-authority",
            "no",
            "set ca_file to the upstream's authority",
            "",
        ),
        (
            serve(itself, h1).await,
            "authority-as-server",
            "no",
            "an authority's certificate as its server certificate",
            "",
        ),
        (
            serve(named("other.example"), h1).await,
            "wrong-name",
            "no",
            "does not cover the host name in base_url",
            "the certificate's names: other.example",
        ),
        (
            serve(named("10.1.2.3"), h2).await,
            "wrong-name",
            "no",
            "does not cover the host name in base_url",
            "the certificate's names: 10.1.2.3",
        ),
        (
            serve(dated((2001, 1, 1), (2002, 1, 1)), h1).await,
            "expired",
            "no",
            "has expired",
            "the certificate expired on Tue, 01 Jan 2002 00:00:00 GMT",
        ),
        (
            serve(dated((4000, 1, 1), (4001, 1, 1)), h2).await,
            "not-yet-valid",
            "no",
            "not valid yet",
            "the certificate is valid from Sat, 01 Jan 4000 00:00:00 GMT",
        ),
        (
            says(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await,
            "not-tls",
            "no",
            "write http:// in base_url",
            "",
        ),
        (alert, "tls-version", "no", "no version or cipher suite", ""),
        (serve(known, h1).await, "client-certificate", "maybe", "requires a client certificate", ""),
    ] {
        let (front, _folder) = front(address, &issuer);
        let got = front.send("POST", "/a", "", "x").await;
        let problem: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
        assert_eq!(
            (problem["failure_reason"].as_str(), got.header("triage-sent")),
            (Some(expected), Some(sent)),
            "{problem}"
        );
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
        // A write that may have been sent is unknown after any failure.
        let (status, kind) = if sent == "no" { ("502", Some("tls")) } else { ("504", None) };
        assert_eq!((got.status(), problem["failure"].as_str()), (status, kind), "{problem}");
        // The output of `triage explain`.
        let timeline = front.get_json(&format!("/api/v1/requests/{}", got.header("triage-request-id").unwrap())).await;
        let failed = timeline["steps"].as_array().unwrap().iter().find(|step| step["step"] == "failed").unwrap();
        assert_eq!(failed["reason"], expected, "{timeline:#}");
        assert!(failed["text"].as_str().unwrap().contains(words), "{timeline:#}");
        // Only operators are told what the certificate says.
        assert_eq!(failed["certificate"].as_str().unwrap_or_default(), certificate, "{timeline:#}");
        assert!(failed["text"].as_str().unwrap().contains(certificate), "{timeline:#}");
        assert!(certificate.is_empty() || !got.text().contains(certificate), "{}", got.text());
    }
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
    // The host itself as an upstream with HTTP/2 without TLS.
    let outer = Front::of(&front.url(""), "http2_prior_knowledge = true\n");
    let got = outer.ask("GET", "/b", "").await;
    assert_eq!((got.status(), got.text().as_str()), ("200", "over h1"));
    assert_eq!(upstream.seen().last().unwrap().all("via").join(", "), "1.1 triage, 1.1 triage");
}
