//! TLS on the host's own listeners.

use super::tls::authority;
use crate::support::{
    front::Front,
    scripted::{Scripted, ok},
};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use std::{fs, path::Path};

/// Writes a certificate for localhost and its key.
fn write_pair(issuer: &CertifiedIssuer<'static, KeyPair>, folder: &Path, name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
    fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    certificate.pem() + &key.serialize_pem()
}

fn caller(trusted: &CertifiedIssuer<'static, KeyPair>, identity: Option<&str>) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = reqwest::Certificate::from_pem(trusted.pem().as_bytes()).unwrap();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([root]).pool_max_idle_per_host(0);
    let identity = identity.map(|pem| reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
    identity.into_iter().fold(builder, reqwest::ClientBuilder::identity).build().unwrap()
}

fn front(folder: &Path, upstream: &Scripted, further: &str) -> Front {
    let file = |name: &str| folder.join(name).display().to_string();
    let pair = format!("tls = {{ certificate = \"{}\", key = \"{}\"{further} }}", file("own.pem"), file("own.key"));
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n{pair}\n[admin]\nlisten = \"127.0.0.1:0\"\n{pair}\n[upstreams.api]\nbase_url = \"{}\"\n",
        upstream.url()
    );
    Front::start(&text)
}

#[tokio::test]
async fn callers_speak_tls_and_a_new_certificate_is_taken_on_a_reload() {
    let (issuer, folder) = (authority(), tempfile::tempdir().unwrap());
    write_pair(&issuer, folder.path(), "own");
    let upstream = Scripted::start(|_| ok("", "done")).await;
    let front = front(folder.path(), &upstream, "");
    let at = |port: u16, path: &str| format!("https://localhost:{port}{path}");
    let (port, admin) = (front.address().port(), front.admin_address().port());
    let got = caller(&issuer, None).get(at(port, "/a")).send().await.unwrap();
    assert_eq!((got.version(), got.text().await.unwrap().as_str()), (http::Version::HTTP_2, "done"));
    assert_eq!(upstream.seen()[0].all("x-forwarded-proto"), ["https"]);
    assert_eq!(caller(&issuer, None).get(at(admin, "/readyz")).send().await.unwrap().status(), 200);
    let plain = tokio::net::TcpStream::connect(front.address()).await.unwrap();
    plain.writable().await.unwrap();
    plain.try_write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    plain.readable().await.unwrap();
    let mut bytes = [0; 64];
    let read = plain.try_read(&mut bytes).unwrap_or(0);
    assert!(!bytes[..read].starts_with(b"HTTP"), "plain text is not answered");
    // Another authority's certificate replaces the first one.
    let other = authority();
    write_pair(&other, folder.path(), "own");
    front.reload().unwrap();
    for port in [port, admin] {
        assert!(caller(&issuer, None).get(at(port, "/readyz")).send().await.is_err(), "the old certificate is gone");
        assert!(caller(&other, None).get(at(port, "/readyz")).send().await.is_ok());
    }
    // An unreadable certificate changes nothing.
    fs::write(folder.path().join("own.key"), "nonsense").unwrap();
    assert!(front.reload().is_err());
    assert!(caller(&other, None).get(at(port, "/a")).send().await.is_ok());
}

/// The host detects a renewed certificate by itself.
#[tokio::test]
async fn a_renewed_certificate_is_taken_by_itself() {
    let (issuer, other, folder) = (authority(), authority(), tempfile::tempdir().unwrap());
    write_pair(&issuer, folder.path(), "own");
    let upstream = Scripted::start(|_| ok("", "done")).await;
    let front = front(folder.path(), &upstream, "");
    let ports = [front.address().port(), front.admin_address().port()];
    let url = |port: u16| format!("https://localhost:{port}/readyz");
    for port in ports {
        assert!(caller(&issuer, None).get(url(port)).send().await.is_ok());
    }
    write_pair(&other, folder.path(), "own");
    for port in ports {
        // Repeats until the host has checked its files; the test runner has a timeout.
        while caller(&other, None).get(url(port)).send().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(caller(&issuer, None).get(url(port)).send().await.is_err(), "the old one is gone");
    }
    // A certificate that does not match its key: the last valid pair stays, and an event reports it.
    fs::write(folder.path().join("own.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    loop {
        let events = caller(&other, None).get(format!("https://localhost:{}/api/v1/events", ports[1])).send().await;
        if events.unwrap().text().await.unwrap().contains("reload-refused") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(caller(&other, None).get(url(ports[0])).send().await.is_ok());
}

/// A TLS connection with this negotiated protocol.
async fn agreed(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    front: &Front,
    protocol: &str,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = tokio::net::TcpStream::connect(front.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

#[tokio::test]
async fn the_protocol_that_was_agreed_on_is_the_one_that_is_spoken() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (issuer, folder) = (authority(), tempfile::tempdir().unwrap());
    write_pair(&issuer, folder.path(), "own");
    let upstream = Scripted::start(|_| ok("", "done")).await;
    let front = front(folder.path(), &upstream, "");
    let says = async |protocol: &str, bytes: &[u8]| {
        let mut stream = agreed(&issuer, &front, protocol).await;
        stream.write_all(bytes).await.unwrap();
        let mut read = Vec::new();
        let _ = stream.read_to_end(&mut read).await;
        read
    };
    let received = says("h2", b"INVALID CONNECTION PREFACE\r\n\r\n").await;
    // The head of a GOAWAY frame of 8 bytes, which ends with PROTOCOL_ERROR.
    let goaway = received.windows(17).find(|frame| frame[..5] == [0, 0, 8, 7, 0]);
    assert!(goaway.is_some_and(|frame| frame.ends_with(&[0, 0, 0, 1])), "{received:?}");
    let received = says("h2", b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(received.windows(5).any(|head| head == [0, 0, 8, 7, 0]), "{received:?}");
    let received = says("http/1.1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(received, b"", "closed: nothing that both read alike can be said");
    let received = says("http/1.1", b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(received.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&received));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn mutual_tls_lets_in_who_has_a_certificate() {
    let (issuer, callers, folder) = (authority(), authority(), tempfile::tempdir().unwrap());
    write_pair(&issuer, folder.path(), "own");
    fs::write(folder.path().join("callers.pem"), callers.pem()).unwrap();
    let upstream = Scripted::start(|_| ok("", "done")).await;
    let further = format!(", client_ca = \"{}\"", folder.path().join("callers.pem").display());
    let front = front(folder.path(), &upstream, &further);
    let identity = write_pair(&callers, folder.path(), "caller");
    let stranger = write_pair(&authority(), folder.path(), "stranger");
    for port in [front.address().port(), front.admin_address().port()] {
        let url = format!("https://localhost:{port}/readyz");
        assert!(caller(&issuer, Some(&identity)).get(&url).send().await.is_ok());
        assert!(caller(&issuer, None).get(&url).send().await.is_err(), "nobody comes in without one");
        assert!(caller(&issuer, Some(&stranger)).get(&url).send().await.is_err(), "nor with another's");
    }
}
