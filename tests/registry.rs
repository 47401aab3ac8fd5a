//! Components from OCI registries: a real one, and hostile ones.

use crate::{
    process::child::{Triage, run, triage},
    support::{
        front::Front,
        oci_registry::OciRegistry,
        scripted::{Reply, Scripted, Seen, status},
        stage::prebuilt,
    },
};
use minisign::KeyPair;
use std::{fs, io::Cursor, path::Path, time::Duration};
use triage::server::Server;
use triage_config as config;
use triage_engine::Digest;
use triage_registry::{Artifact, Credentials, Registry, RegistryError};

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// A manifest by the conventions.
fn manifest(component: &[u8]) -> String {
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\
         \"application/vnd.wasm.config.v0+json\",\"digest\":\"sha256:{}\",\"size\":2}},\"layers\":[{{\"mediaType\":\
         \"application/wasm\",\"digest\":\"sha256:{}\",\"size\":{}}}]}}",
        digest(b"{}"),
        digest(component),
        component.len()
    )
}

/// A response with status 200 and these bytes.
fn answer(body: &[u8]) -> Reply {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    Reply::Bytes([head.as_bytes(), body].concat())
}

async fn fetched(registry: Registry, artifact: &Artifact) -> Result<Vec<u8>, RegistryError> {
    let artifact = artifact.clone();
    tokio::task::spawn_blocking(move || registry.fetch(&artifact).map(|pulled| pulled.component)).await.unwrap()
}

fn anybody() -> Registry {
    Registry::new(Credentials::default(), None)
}

/// Fetches a component by its manifest's digest from a registry with this script.
async fn asked(
    component: &[u8],
    patience: Duration,
    mut script: impl FnMut(&Seen) -> Option<Reply> + Send + 'static,
) -> Result<Vec<u8>, RegistryError> {
    let (own, manifest) = (component.to_vec(), manifest(component));
    let name = digest(manifest.as_bytes());
    let scripted = Scripted::start(move |seen| {
        script(seen).unwrap_or_else(|| match seen.line() {
            line if line.contains("/manifests/") => answer(manifest.as_bytes()),
            line if line.contains("/blobs/") => answer(&own),
            _ => answer(b"{}"),
        })
    })
    .await;
    let artifact: Artifact = format!("oci://{}/team/a@sha256:{name}", scripted.address).parse().unwrap();
    fetched(anybody().with_time_limit(patience), &artifact).await
}

type Script = Box<dyn FnMut(&Seen) -> Option<Reply> + Send>;

const PATIENT: Duration = Duration::from_secs(60);

fn message(error: &RegistryError) -> String {
    let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

#[tokio::test]
async fn a_component_from_a_registry_must_match_its_digest() {
    let component = b"\0asm and more".to_vec();
    assert_eq!(asked(&component, PATIENT, |_| None).await.unwrap(), component, "an honest one");
    let other = Scripted::start(|_| answer(b"\0asm and less")).await;
    let elsewhere = format!("HTTP/1.1 307 T\r\ncontent-length: 0\r\nlocation: {}/x\r\n\r\n", other.url());
    let around = "HTTP/1.1 307 T\r\ncontent-length: 0\r\nlocation: /v2/team/a/blobs/x\r\n\r\n".to_owned();
    let is_manifest = |seen: &Seen| seen.line().contains("/manifests/");
    let is_blob = |seen: &Seen| seen.line().contains("/blobs/");
    let forged_layer = manifest(b"\0asm and less");
    let huge = vec![b' '; (4 << 20) + 1];
    let long = [&component[..], &[0; 10]].concat();
    let on = |which: fn(&Seen) -> bool, reply: Vec<u8>| -> Script {
        Box::new(move |seen| which(seen).then(|| Reply::Bytes(reply.clone())))
    };
    let body = |bytes: &[u8]| match answer(bytes) {
        Reply::Bytes(bytes) => bytes,
        _ => unreachable!(),
    };
    let all: Vec<(&str, Script, &str)> = vec![
        (
            "another manifest",
            on(is_manifest, body(forged_layer.as_bytes())),
            "sends a manifest with the digest sha256:",
        ),
        ("a huge manifest", on(is_manifest, body(&huge)), "sends a manifest of more than 4194304 bytes"),
        ("another component", on(is_blob, body(b"\0asm and moRe")), "sends a component with the digest sha256:"),
        ("a longer component", on(is_blob, body(&long)), "sends a component of more than 13 bytes"),
        ("a shorter component", on(is_blob, body(b"\0asm")), "sends a component with the digest sha256:"),
        ("led elsewhere", on(is_blob, elsewhere.into_bytes()), "sends a component with the digest sha256:"),
        ("led around", on(is_blob, around.into_bytes()), "did not send the component: "),
        (
            "no manifest",
            on(is_manifest, b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".to_vec()),
            "did not send the manifest: ",
        ),
        ("no HTTP", on(is_manifest, b"hello\r\n\r\n".to_vec()), "did not send the manifest: "),
    ];
    for (what, script, expected) in all {
        let error = asked(&component, PATIENT, script).await.map(|_| ()).unwrap_err();
        let message = message(&error);
        assert!(message.contains(expected) && message.starts_with("registry 127.0.0.1:"), "{what}: {message}");
        assert!(message.len() < 700, "{what}: {message}");
    }
    let slow = asked(&component, Duration::from_millis(300), move |seen| is_blob(seen).then_some(Reply::Hang));
    let message = message(&slow.await.unwrap_err());
    assert!(message.contains("did not send its whole answer within 300 ms"), "{message}");
}

/// The credentials sent to a host.
fn sent(seen: &[Seen]) -> Vec<String> {
    seen.iter().flat_map(|seen| seen.all("authorization")).map(str::to_owned).collect()
}

/// A registry that requires `authorization` for a component of one byte, else responds with this challenge.
async fn guarded(authorization: &'static str, challenge: String) -> (Scripted, Artifact) {
    let manifest = manifest(b"x");
    let name = digest(manifest.as_bytes());
    let upstream = Scripted::start(move |seen| {
        if seen.all("authorization") != [authorization] {
            let head = format!("HTTP/1.1 401 Who\r\nwww-authenticate: {challenge}\r\ncontent-length: 0\r\n\r\n");
            return Reply::Bytes(head.into());
        }
        if seen.line().contains("/manifests/") { answer(manifest.as_bytes()) } else { answer(b"x") }
    })
    .await;
    let artifact = format!("oci://{}/a@sha256:{name}", upstream.address).parse().unwrap();
    (upstream, artifact)
}

fn with_login(host: &str) -> Registry {
    let json = format!("{{\"auths\": {{\"{host}\": {{\"username\": \"a\", \"password\": \"b\"}}}}}}");
    Registry::new(Credentials::read(&json, "x").unwrap(), None)
}

/// Names, passwords and tokens are sent only to the registry they belong to.
#[tokio::test]
async fn a_registry_gets_its_own_credentials_or_none() {
    let (upstream, artifact) = guarded("basic ytpi", "Basic realm=\"x\"".to_owned()).await;
    let own = upstream.address.to_string();
    assert_eq!(fetched(with_login(&own), &artifact).await.unwrap(), b"x");
    let before = upstream.seen().len();
    let error = fetched(with_login("registry.example"), &artifact).await.unwrap_err();
    assert!(message(&error).contains("it requires a name and a password, or different ones"), "{}", message(&error));
    assert_eq!(sent(&upstream.seen()[before..]), [""; 0], "another's were sent");

    let realm = Scripted::start(|_| answer(b"{\"token\": \"T0KEN\"}")).await;
    let challenge = format!("Bearer realm=\"{}/token\",service=\"reg\"", realm.url());
    let (upstream, artifact) = guarded("bearer t0ken", challenge).await;
    let own = upstream.address.to_string();
    assert_eq!(fetched(with_login(&own), &artifact).await.unwrap(), b"x", "with a token");
    let asked = &realm.seen()[0];
    assert!(asked.line().starts_with("get /token?service=reg&scope=repository%3aa%3apull "), "{}", asked.line());
    assert_eq!(sent(&realm.seen()), [""; 0], "a password went to another host without TLS");
    assert_eq!(sent(&upstream.seen()), ["bearer t0ken"; 2]);
}

/// After the first start, a host needs no registry. The stored files are checked again.
#[tokio::test]
async fn a_pulled_component_is_kept_and_checked_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = || Registry::new(Credentials::default(), Some(folder.path().join("kept")));
    let manifest = manifest(b"x");
    let name = digest(manifest.as_bytes());
    let upstream = Scripted::start(move |seen| match seen.line() {
        line if line.contains("/manifests/") => answer(manifest.as_bytes()),
        line if line.contains("/blobs/") => answer(b"x"),
        _ => answer(b"{}"),
    })
    .await;
    let artifact: Artifact = format!("oci://{}/a@sha256:{name}", upstream.address).parse().unwrap();
    assert_eq!(fetched(store(), &artifact).await.unwrap(), b"x");
    let asked = upstream.seen().len();
    assert_eq!(fetched(store(), &artifact).await.unwrap(), b"x");
    assert_eq!(upstream.seen().len(), asked, "the registry was asked again");
    fs::write(folder.path().join("kept").join(format!("{}.wasm", digest(b"x"))), b"y").unwrap();
    assert_eq!(fetched(store(), &artifact).await.unwrap(), b"x", "pulled again");
    assert!(upstream.seen().len() > asked);
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    fs::write(folder.join(name), text).unwrap();
    folder.join(name).display().to_string()
}

/// An operator's steps: push with a password, configure the printed digest, serve, and serve again without the registry.
#[tokio::test]
async fn a_pushed_policy_serves_by_its_digest() {
    let Some(registry) = OciRegistry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let auth = write(folder.path(), "auth.json", &registry.credentials());
    let component = folder.path().join("next.wasm");
    fs::copy(prebuilt("always-retry"), &component).unwrap();
    let component = component.display().to_string();
    let target = format!("oci://{}/team/policies/next", registry.address);
    let stranger = run(&["policy", "push", &component, &target]);
    assert_eq!(stranger.code, Some(1), "{stranger:?}");
    assert!(stranger.err.contains("did not take the component: "), "{stranger:?}");
    let KeyPair { pk, sk } = KeyPair::generate_unencrypted_keypair().unwrap();
    let bytes = fs::read(&component).unwrap();
    let push = || {
        let mut command = triage(&["policy", "push", &component, &target]);
        let ended = Triage::start(command.env("TRIAGE_REGISTRY_AUTH", registry.credentials())).ended();
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
        let named = ended.out.lines().last().unwrap().trim().to_owned();
        assert!(named.starts_with(&format!("policy = \"{target}@sha256:")), "{ended:?}");
        (named, ended.out)
    };
    let (unsigned, said) = push();
    assert!(
        said.starts_with("always-retry 0.1.0 is published as 0.1.0, not signed. In the configuration:\n"),
        "{said}"
    );
    let signature = minisign::sign(None, &sk, Cursor::new(bytes), None, None).unwrap().into_string();
    fs::write(format!("{component}.minisig"), signature).unwrap();
    let (signed, said) = push();
    assert!(said.contains(", signed. In the configuration:"), "{said}");
    assert_ne!(unsigned, signed);

    let upstream = Scripted::start(|_| status(503)).await;
    let configured = |policy: &str, keys: &str, cache: &str| {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[admin]\nlisten = \"off\"\n[policies]\n\
             registry_auth_file = {auth:?}\ncache_dir = {:?}\n{keys}[upstreams.api]\nbase_url = {:?}\n{policy}\n\
             [upstreams.api.defaults]\nretry = {{ max_attempts = 1 }}\n",
            folder.path().join(cache).display().to_string(),
            upstream.url(),
        )
    };
    // Like `serve` with a home folder, which contains the key of the compiled-code cache.
    let settings = |text: &str| {
        let mut settings = config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
        settings.policies.cache =
            Some(triage_engine::CachePaths { dir: folder.path().join("cache"), key: folder.path().join("state/key") });
        settings
    };
    let serves = |text: String| {
        let server = Server::start(&settings(&text)).unwrap();
        async move {
            let front = Front::of_server(server, settings(&text));
            let got = front.ask("GET", "/a", "").await;
            assert!(got.header("triage-policy").unwrap().starts_with("always-retry;digest="), "{got:?}");
        }
    };
    serves(configured(&unsigned, "", "cache")).await;
    let keys = format!("keys = [{:?}]\n", pk.to_base64());
    serves(configured(&signed, &keys, "cache")).await;
    let refused = Server::start(&settings(&configured(&unsigned, &keys, "cache"))).map(|_| ()).unwrap_err();
    let causes = std::iter::successors(Some(&refused as &dyn std::error::Error), |link| link.source());
    let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    assert!(
        text.contains("the artifact is not signed; with `policies.keys` one of those keys must sign every component"),
        "{text}"
    );
    drop(registry);
    serves(configured(&unsigned, "", "cache")).await;
}

#[test]
fn a_name_that_is_none_is_the_operators_problem() {
    let toml = |policy: &str| format!("[upstreams.a]\nbase_url = \"http://a.example\"\npolicy = \"{policy}\"\n");
    for (policy, message) in [
        ("oci://registry.example/a:1.0", "it must end with @sha256: and 64 hexadecimal digits"),
        ("oci://user:pass@registry.example/a@sha256:00", "it must end with @sha256: and 64"),
    ] {
        let problems = config::from_toml(&toml(policy)).unwrap_err().to_string();
        assert!(problems.contains(message), "{policy}: {problems}");
    }
}
