//! Commands at a listener with TLS: what they trust, what they show, and what they say if that fails.

use crate::{
    process::child::triage,
    proxy::tls::{authority, builder, params, says, serve, shows},
    support::front::Front,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use std::{fs, path::Path};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Writes a certificate and its key, and returns their paths.
fn pair(issuer: &Issuer, folder: &Path, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = params("localhost").signed_by(&key, issuer).unwrap();
    (
        write(folder, &format!("{name}.pem"), &certificate.pem()),
        write(folder, &format!("{name}.key"), &key.serialize_pem()),
    )
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

fn named_authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A host whose admin listener requires a certificate of `callers`.
fn host(folder: &Path, issuer: &Issuer, callers: &Issuer) -> Front {
    let (certificate, key) = pair(issuer, folder, "own");
    let client_ca = write(folder, "callers.pem", &callers.pem());
    Front::start(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\ntls = {{ certificate = \"{certificate}\", key \
         = \"{key}\", client_ca = \"{client_ca}\" }}\n[upstreams.api]\nbase_url = \"http://127.0.0.1:9\"\n"
    ))
}

/// The exit code of `triage policy list` at this URL, and what it said.
async fn list(url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = triage(&["policy", "list", "--admin", url]);
    command.args(arguments).envs(environment.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_shows_its_certificate_and_trusts_the_given_authority() {
    let (issuer, callers, folder) = (authority(), authority(), tempfile::tempdir().unwrap());
    let front = host(folder.path(), &issuer, &callers);
    let port = front.admin_address().port();
    let url = format!("https://localhost:{port}");
    let ca = write(folder.path(), "ca.pem", &issuer.pem());
    let (certificate, key) = pair(&callers, folder.path(), "caller");
    let (strange, strange_key) = pair(&named_authority("Strangers"), folder.path(), "stranger");
    // Its name is that of the callers' authority, so that the listener finds a wrong signature.
    let (recreated, recreated_key) = pair(&authority(), folder.path(), "recreated");

    let given = ["--ca-file", &ca, "--client-certificate", &certificate, "--client-key", &key];
    let (code, told) = list(&url, &given, &[]).await;
    assert!(code == Some(0) && told.contains("api"), "{told}");
    let variables = [
        ("TRIAGE_ADMIN_CA_FILE", ca.as_str()),
        ("TRIAGE_ADMIN_CLIENT_CERTIFICATE", &certificate),
        ("TRIAGE_ADMIN_CLIENT_KEY", &key),
    ];
    let (code, told) = list(&url, &[], &variables).await;
    assert!(code == Some(0) && told.contains("api"), "{told}");

    let none = "it requires a client certificate; give one with --client-certificate FILE and --client-key FILE";
    let refused = "it refuses this client certificate; give one that is valid now and signed by an authority of \
                   admin.tls.client_ca";
    let pairs = ["--ca-file", &ca, "--client-certificate", &strange, "--client-key", &strange_key];
    let mixed = ["--ca-file", &ca, "--client-certificate", &certificate, "--client-key", &strange_key];
    let does_not_fit = format!(
        "the client certificate in {certificate} cannot be used with the key in {strange_key}; give the key that belongs to the certificate"
    );
    let no_key = format!(
        "a private key could not be read from {ca}; it must be a PEM file with the key of the client certificate"
    );
    let no_certificate = format!("a client certificate could not be read from {key}; it must be a PEM file");
    let plain = format!("http://localhost:{port}");
    for (url, arguments, words) in [
        (&url, &["--ca-file", &ca][..], none),
        (&url, &pairs, refused),
        (
            &url,
            &["--ca-file", &ca, "--client-certificate", &recreated, "--client-key", &recreated_key],
            "the TLS handshake failed, perhaps because it refuses this client certificate; see the host's log",
        ),
        (&url, &mixed, &does_not_fit),
        (&url, &["--client-certificate", &certificate, "--client-key", &ca], &no_key),
        (&url, &["--client-certificate", &key, "--client-key", &key], &no_certificate),
        (
            &url,
            &["--client-certificate", &certificate],
            "a client certificate needs its private key; give it with --client-key FILE",
        ),
        (&url, &["--client-key", &key], "a client key needs its certificate; give it with --client-certificate FILE"),
        (&url, &["--ca-file", &key], "certificate authorities could not be read from"),
        (&plain, &["--ca-file", &ca], "is not encrypted, and --ca-file and --client-certificate are for https"),
        (&plain, &[], "if the listener has TLS, write https:// in the URL"),
    ] {
        let (code, told) = list(url, arguments, &[]).await;
        assert!(code == Some(1) && told.contains(words), "{words}\n{code:?} {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_says_why_a_handshake_failed() {
    let (issuer, folder) = (authority(), tempfile::tempdir().unwrap());
    let ca = write(folder.path(), "ca.pem", &issuer.pem());
    let itself = builder()
        .with_no_client_auth()
        .with_single_cert(vec![issuer.der().clone()], issuer.key().serialize_der().try_into().unwrap())
        .unwrap();
    let dated = |from: i32, to: i32| {
        let mut params = params("localhost");
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        shows(&issuer, params)
    };
    let h1 = &[&b"http/1.1"[..]];
    for (address, words) in [
        (
            serve(shows(&authority(), params("localhost")), h1).await,
            "no trusted authority has signed its certificate; give its authority with --ca-file FILE",
        ),
        (
            serve(itself, h1).await,
            "it uses an authority's certificate as its server certificate; set admin.tls.certificate",
        ),
        (
            serve(shows(&issuer, params("other.example")), h1).await,
            "its certificate does not cover the host name of this URL (the certificate's names: other.example); use a name of the \
             certificate in --admin URL",
        ),
        (
            serve(dated(2001, 2002), h1).await,
            "its certificate has expired (the certificate expired on Tue, 01 Jan 2002 00:00:00 GMT); renew",
        ),
        (
            serve(dated(4000, 4001), h1).await,
            "its certificate is not valid yet (the certificate is valid from Sat, 01 Jan 4000 00:00:00 GMT); correct the clock",
        ),
        (
            says(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await,
            "it does not speak TLS on this port; write http:// in the URL",
        ),
        // A fatal alert: protocol_version (RFC 8446 section 6).
        (says(&[21, 3, 3, 0, 2, 2, 70]).await, "it shares no version or cipher suite of TLS with this command"),
    ] {
        let url = format!("https://localhost:{}", address.port());
        let (code, told) = list(&url, &["--ca-file", &ca], &[]).await;
        let whole = format!("no answer from {url}: {words}");
        assert!(code == Some(1) && told.contains(&whole), "{whole}\n{code:?} {told}");
    }
}
