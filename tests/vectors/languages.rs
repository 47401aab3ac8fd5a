//! The same policy in Rust, JavaScript and Python: built here, and each passes the same cases.
//!
//! A language whose toolchain is not here and cannot be had is skipped; the last line says how many were.

use std::path::{Path, PathBuf};
use triage::policy::{
    Engine, Loading, Policy, Tier,
    build::{BuildError, build},
    cases,
    language::Language,
};

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
            Policy::load(&engine, &component, &Loading::default()).unwrap_or_else(|e| panic!("{title}: {e:?}"));
        let tier = if language == Language::Rust { Tier::Fast } else { Tier::Roomy };
        assert_eq!(policy.tier(), Some(tier), "{title}");
        assert_eq!(policy.description().name, "parcels", "{title}");
        let played = cases::play(&policy, CASES).unwrap_or_else(|error| panic!("{title}: {error}"));
        println!("{title}: {played} cases pass, {} bytes", built.bytes);
        // What the operator wrote is refused by a policy that cannot read it.
        let settings = Loading { settings: "[".to_owned(), ..Loading::default() };
        let refused = Policy::load(&engine, &component, &settings).map(|_| ()).unwrap_err().to_string();
        assert!(refused.starts_with("the policy refused its settings: "), "{title}: {refused}");
        passed += usize::from(played == 6);
    }
    println!("{passed} languages pass, {skipped} skipped");
    assert_eq!(passed + skipped, Language::ALL.len());
    assert!(passed > 0, "no language could be built");
}
