//! The same policy in Rust, JavaScript and Python: each is built here and passes the same cases.
//!
//! A language without an available toolchain is skipped; the last line of output counts them.

use std::path::{Path, PathBuf};
use triage_engine::{
    Engine, LoadOptions, Policy, Tier,
    build::{BuildError, build},
    golden_tests,
    guest_language::Language,
};

/// A DELETE with 404 after an unknown one needs its own endpoint, which the example does not describe.
const DOES_NOT_APPLY: &str = "DELETE,/anything,request,2,yes,";
const STANDARD: &str = include_str!("http-standard.csv");
const CASES: &str = include_str!("../../guest-policies/examples/parcels.cases.csv");

fn folder(language: Language) -> PathBuf {
    let name = if language == Language::JavaScript { "javascript" } else { language.name() };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-policies/examples").join(name)
}

#[test]
fn the_same_cases_pass_in_each() {
    let out = tempfile::tempdir().unwrap();
    let engine = Engine::start().unwrap();
    let (mut passed, mut skipped) = (0, 0);
    for language in Language::ALL {
        let title = language.title();
        let built = match build(&folder(language), Some(&out.path().join(language.name()).with_extension("wasm"))) {
            Ok(built) => built,
            Err(error @ (BuildError::NoToolchain | BuildError::NoProgram { .. } | BuildError::Install { .. })) => {
                println!("skipped {title}: {error}");
                skipped += 1;
                continue;
            }
            Err(error) => panic!("{title}: {error}"),
        };
        let component = std::fs::read(&built.file).unwrap();
        let policy =
            Policy::load(&engine, &component, &LoadOptions::default()).unwrap_or_else(|e| panic!("{title}: {e:?}"));
        let tier = if language == Language::Rust { Tier::Sync } else { Tier::Wasi };
        assert_eq!(policy.tier(), Some(tier), "{title}");
        assert_eq!(policy.description().name, "parcels", "{title}");
        let played = golden_tests::play(&policy, CASES).unwrap_or_else(|error| panic!("{title}: {error}"));
        let standard: Vec<&str> = STANDARD.lines().filter(|line| !line.starts_with(DOES_NOT_APPLY)).collect();
        let vectors = golden_tests::play(&policy, &standard.join("\n"))
            .unwrap_or_else(|error| panic!("{title}, vectors: {error}"));
        assert_eq!(vectors, STANDARD.lines().count() - 2, "{title}: all but one");
        println!("{title}: {played} cases and {vectors} vectors pass, {} bytes", built.bytes);
        let reused = LoadOptions { reuse_instances: true, ..LoadOptions::default() };
        let reused = Policy::load(&engine, &component, &reused).unwrap_or_else(|e| panic!("{title}: {e:?}"));
        let safe = super::safety::play("parcels", &reused, super::safety::FEW_VARIANTS);
        println!("{title}: no write is repeated in {} outcomes", safe.requests);
        // A policy that cannot parse the operator's settings refuses them.
        let settings = LoadOptions { settings: "[".to_owned(), ..LoadOptions::default() };
        let refused = Policy::load(&engine, &component, &settings).map(|_| ()).unwrap_err().to_string();
        assert!(refused.starts_with("the policy refused its settings: "), "{title}: {refused}");
        passed += usize::from(played == 11);
    }
    println!("{passed} languages pass, {skipped} skipped");
    assert_eq!(passed + skipped, Language::ALL.len());
    assert!(passed > 0, "no language could be built");
}
