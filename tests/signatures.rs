//! Signed components: with configured keys, no component without a valid signature is loaded.

use crate::support::{
    front::Front,
    scripted::{Scripted, status},
    stage::{Stage, prebuilt},
};
use minisign::{KeyPair, PublicKey, SecretKey};
use std::{fs, io::Cursor, path::Path};
use triage::server::Server;
use triage_config as config;
use triage_engine::{
    Digest,
    signature::{KeyError, KeySource, Keys, SignatureError},
};
use triage_rollout::Event;
use triage_upstream_runtime::StagePhase;

/// A signer with a key pair.
struct Signer {
    public: PublicKey,
    secret: SecretKey,
}

impl Signer {
    fn new() -> Self {
        let KeyPair { pk: public, sk: secret } = KeyPair::generate_unencrypted_keypair().unwrap();
        Self { public, secret }
    }

    fn key(&self) -> String {
        self.public.to_base64()
    }

    fn sign(&self, bytes: &[u8]) -> String {
        minisign::sign(None, &self.secret, Cursor::new(bytes), None, None).unwrap().into_string()
    }
}

fn guest(name: &str) -> Vec<u8> {
    fs::read(prebuilt(name)).unwrap()
}

/// Drops a component in, and returns the step and reason of its refusal.
async fn refused(stage: &Stage, what: &str, bytes: &[u8]) -> (StagePhase, String) {
    stage.drop_in(bytes);
    let own = Digest::of(bytes);
    let is_own =
        |event: &Event| matches!(event, Event::Refused { digest, .. } if *digest == Some(own)) || is_installed(event);
    let Event::Refused { step, reason, .. } = stage.until(what, is_own).await else { panic!("{what}: it got in") };
    assert_eq!(stage.policy().await, "http-standard", "{what}: the one before serves on");
    (step, reason)
}

fn is_installed(event: &Event) -> bool {
    matches!(event, Event::Installed { .. })
}

#[tokio::test]
async fn a_component_signed_by_any_key_is_installed() {
    let [ours, others] = [Signer::new(), Signer::new()];
    let keys = format!("keys = [{:?}, {:?}]", others.key(), ours.key());
    let stage = Stage::with(&keys, &[]).await;
    for (generation, name) in (2..).zip(["fhir", "always-retry"]) {
        fs::write(stage.path("http-standard.wasm.minisig"), ours.sign(&guest(name))).unwrap();
        stage.drop_guest(name);
        stage.installed(generation).await;
        assert_eq!(stage.policy().await, name);
    }
}

#[tokio::test]
async fn a_component_without_a_valid_signature_is_refused() {
    let [ours, stranger] = [Signer::new(), Signer::new()];
    let [fhir, other] = [guest("fhir"), guest("always-retry")];
    let good = ours.sign(&fhir);
    // The signature covers its trusted comment.
    let commented = good.replace("trusted comment: ", "trusted comment: by all means ");
    for (what, signature, reason) in [
        (
            "no signature",
            None,
            "the component is not signed: there is no http-standard.wasm.minisig; with `policies.keys` one of those keys must sign every component: sign it with `minisign -Sm http-standard.wasm`, and copy the signature there before the component",
        ),
        (
            "a stranger's",
            Some(stranger.sign(&fhir)),
            "none of `policies.keys` has signed the component; sign it with one of them, or add its key to `policies.keys`",
        ),
        (
            "another file's",
            Some(ours.sign(&other)),
            "the signature does not match the component; copy both again, or sign the component again",
        ),
        (
            "one with another comment",
            Some(commented.replacen("untrusted comment: by all means ", "untrusted comment: ", 1)),
            "the signature does not match the component; copy both again, or sign the component again",
        ),
        (
            "half a signature",
            Some(good.lines().next().unwrap().to_owned()),
            "http-standard.wasm.minisig is not a minisign signature; it must be a file that `minisign -S` wrote: copy it again: Invalid \
             encoding in minisign data",
        ),
        (
            "a book",
            Some("a".repeat(9000)),
            "http-standard.wasm.minisig cannot be read; it must be a file of at most 8192 bytes: the file has more than 8192 bytes; files of at most that size are read",
        ),
    ] {
        let stage = Stage::with(&format!("keys = [{:?}]", ours.key()), &[]).await;
        if let Some(signature) = signature {
            fs::write(stage.path("http-standard.wasm.minisig"), signature).unwrap();
        }
        let (step, message) = refused(&stage, what, &fhir).await;
        assert_eq!((step, message.as_str()), (StagePhase::Signature, reason), "{what}");
        // The right signature arrives later, without a change of the component.
        fs::write(stage.path("http-standard.wasm.minisig"), &good).unwrap();
        stage.installed(2).await;
        assert_eq!(stage.policy().await, "fhir", "{what}");
    }
}

#[tokio::test]
async fn nothing_of_an_unsigned_component_runs() {
    // It is no component, but the signature is checked first.
    let stage = Stage::with(&format!("keys = {:?}", Signer::new().key()), &[]).await;
    let (step, _) = refused(&stage, "a core module", b"\0asm\x01\0\0\0").await;
    assert_eq!(step, StagePhase::Signature);
}

#[tokio::test]
async fn a_checksum_is_checked_where_there_is_one() {
    let fhir = guest("fhir");
    let digest = Digest::of(&fhir).to_string();
    let wrong = "0".repeat(64);
    let stage = Stage::new(&[]).await;
    let sum = stage.path("http-standard.wasm.sha256");
    fs::write(&sum, format!("{wrong}  http-standard.wasm\n")).unwrap();
    let (step, message) = refused(&stage, "a wrong checksum", &fhir).await;
    let reason = format!(
        "the component's SHA-256 is {digest}, but http-standard.wasm.sha256 contains {wrong}; they must be equal: copy both again"
    );
    assert_eq!((step, message), (StagePhase::Checksum, reason));
    fs::write(&sum, format!("{}  http-standard.wasm\n", digest.to_uppercase())).unwrap();
    stage.installed(2).await;
    assert_eq!(stage.policy().await, "fhir");
}

#[tokio::test]
async fn a_file_that_the_configuration_names_must_be_signed_too() {
    let signer = Signer::new();
    let upstream = Scripted::start(|_| status(503)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.wasm");
    fs::write(&file, guest("fhir")).unwrap();
    let key = folder.path().join("team.pub");
    fs::write(&key, signer.public.to_box().unwrap().into_string()).unwrap();
    let text = format!(
        "[policies]\nkeys = [{:?}]\n[upstreams.api]\nbase_url = {:?}\npolicy = {:?}\n",
        key.display().to_string(),
        upstream.url(),
        file.display().to_string()
    );
    let settings = config::from_toml(&format!("[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n{text}")).unwrap();
    assert!(Server::start(&settings).is_err(), "unsigned");
    let message = triage::preflight::check(&settings).unwrap_err().to_string();
    assert!(
        message
            .contains("own.wasm of upstream api is refused: the component is not signed: there is no own.wasm.minisig"),
        "{message}"
    );
    fs::write(folder.path().join("own.wasm.minisig"), signer.sign(&guest("fhir"))).unwrap();
    let front = Front::serve(&text);
    assert!(front.ask("GET", "/a", "").await.header("triage-policy").unwrap().starts_with("fhir"));
}

#[test]
fn keys_that_are_none_are_refused() {
    for (keys, message) in [
        ("[\"RWabc\"]", "policies.keys: got a list; must be a list of at most 16 minisign public keys"),
        ("[3]", "policies.keys: got a list; must be a list of at most 16 minisign public keys"),
        ("true", "policies.keys: got true; must be a list of at most 16 minisign public keys"),
    ] {
        let text = format!("[policies]\nkeys = {keys}\n[upstreams.a]\nbase_url = \"http://a.invalid\"\n");
        let problems = config::from_toml(&text).unwrap_err().to_string();
        assert!(problems.contains(message), "{keys}: {problems}");
    }
    let missing = Keys::open(&[KeySource::File("missing.pub".into())]).unwrap_err();
    assert!(matches!(missing, KeyError::File { .. }), "{missing}");
    assert_eq!(
        missing.to_string(),
        "the key file missing.pub cannot be read; it must be a file that `minisign -G` made"
    );
}

#[test]
fn no_single_bit_of_a_signature_may_differ() {
    let signer = Signer::new();
    let keys = Keys::open(&[signer.key().parse().unwrap()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.wasm");
    let signature = signer.sign(b"component");
    let said = |signature: &[u8]| {
        fs::write(folder.path().join("a.wasm.minisig"), signature).unwrap();
        keys.check(Path::new(&file), b"component")
    };
    said(signature.as_bytes()).unwrap();
    // The first line is a comment without signature.
    let from = signature.find('\n').unwrap() + 1;
    for at in (from..signature.trim_end().len()).filter(|at| signature.as_bytes()[*at] != b'\n') {
        let mut bent = signature.clone().into_bytes();
        bent[at] ^= 1;
        let Err(error) = said(&bent) else { panic!("byte {at} of {signature:?}") };
        assert!(!matches!(error, SignatureError::Unsigned { .. }), "{at}: {error}");
    }
}
