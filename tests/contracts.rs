//! Every released contract: a component built for it still loads, and `wit/` is compatible with it.
//!
//! `contracts/VERSION/` holds the WIT of a release and a component built then. These files never change; each release adds a folder.

use std::{
    fs,
    path::{Path, PathBuf},
};
use triage_engine::{Contract, Engine, LoadOptions, Policy, VERSION};
use wit_component::semver_check;
use wit_parser::{PackageId, Resolve};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// The released versions, oldest first.
fn released() -> Vec<(u32, u32, u32)> {
    let entries = fs::read_dir(folder("tests/contracts")).unwrap();
    let parsed = |name: &str| {
        let parts: Vec<u32> = name.split('.').map(|part| part.parse().unwrap()).collect();
        <[u32; 3]>::try_from(parts).map(|[major, minor, patch]| (major, minor, patch)).unwrap()
    };
    let mut versions: Vec<_> = entries.map(|entry| parsed(entry.unwrap().file_name().to_str().unwrap())).collect();
    versions.sort_unstable();
    versions
}

fn corpus((major, minor, patch): (u32, u32, u32)) -> PathBuf {
    folder("tests/contracts").join(format!("{major}.{minor}.{patch}"))
}

/// Adds the contract of a folder under a different package version than the present one.
fn add(resolve: &mut Resolve, wit: &Path, version: &str) -> PackageId {
    let text = |name: &str| fs::read_to_string(wit.join(name)).unwrap();
    let package = |text: &str| text.lines().next().unwrap().to_owned();
    let (types, world) = (text("types.wit"), text("policy.wit"));
    assert_eq!(package(&types), package(&world), "{}", wit.display());
    let both = format!("{types}\n{}", world.replacen(&package(&world), "", 1));
    let both = both.replacen(&package(&types), &format!("package triage:policy@{version};"), 1);
    resolve.push_str(wit.join("all.wit"), &both).unwrap()
}

/// Whether components of one contract work with the other.
fn fits(before: &Path, after: &Path) -> Result<(), String> {
    let mut resolve = Resolve::default();
    let (before, after) = (add(&mut resolve, before, "0.0.1"), add(&mut resolve, after, "0.0.2"));
    let world = |package| resolve.select_world(&[package], Some("policy")).unwrap();
    let (before, after) = (world(before), world(after));
    semver_check(resolve, before, after).map_err(|error| format!("{error:?}"))
}

#[test]
fn components_of_every_released_contract_load() {
    let engine = Engine::start().unwrap();
    let mut loaded = 0;
    for version in released() {
        for entry in fs::read_dir(corpus(version)).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.extension().is_none_or(|extension| extension != "wasm") {
                continue;
            }
            let policy = Policy::load(&engine, &fs::read(&entry).unwrap(), &LoadOptions::default());
            let policy = policy.unwrap_or_else(|error| panic!("{}: {error:?}", entry.display()));
            let named = policy.contract().map(Contract::name).unwrap();
            assert_eq!(named, format!("triage:policy@{}.{}", version.0, version.1), "{}", entry.display());
            loaded += 1;
        }
    }
    assert!(loaded >= released().len(), "a release without a component");
}

#[test]
fn the_contract_breaks_none_of_its_own_minor() {
    let parts: Vec<u32> = VERSION.split('.').map(|part| part.parse().unwrap()).collect();
    let now = (parts[0], parts[1], parts[2]);
    let last = released().into_iter().filter(|version| (version.0, version.1) == (now.0, now.1)).max();
    let Some(last) = last else { return };
    assert!(last <= now, "{last:?} was released already, and wit/ says {now:?}");
    let hint = "wit/ differs from its last release; give it a new minor version, and the old one an adapter";
    fits(&corpus(last), &folder("wit")).unwrap_or_else(|error| panic!("{hint}: {error}"));
    // Types that a host passes to components must not grow either, since older components do not know the additions.
    fits(&folder("wit"), &corpus(last)).unwrap_or_else(|error| panic!("{hint}: {error}"));
}

#[test]
fn the_check_finds_a_changed_contract() {
    let changed = tempfile::tempdir().unwrap();
    let types = fs::read_to_string(folder("wit/types.wit")).unwrap();
    fs::copy(folder("wit/policy.wit"), changed.path().join("policy.wit")).unwrap();
    for (what, before, after) in [
        ("a field more", "keyed: bool,", "keyed: bool, again: bool,"),
        ("a class more", "    rejected,\n  }", "    rejected,\n    lost,\n  }"),
        ("another type", "remaining-ms: u64", "remaining-ms: u32"),
    ] {
        let other = types.replacen(before, after, 1);
        assert_ne!(other, types, "{what}");
        fs::write(changed.path().join("types.wit"), other).unwrap();
        let both = [fits(&folder("wit"), changed.path()), fits(changed.path(), &folder("wit"))];
        assert!(both.iter().any(Result::is_err), "{what} is not found");
    }
}
