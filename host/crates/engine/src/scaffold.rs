//! `triage policy new`: writes a policy that builds, with golden cases that pass and a copy of all that it depends on.

use super::guest_language::Language;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The examples of `guest-policies/`. The tests build and run them, so a new policy works too.
const RUST: &str = include_str!("../../../../guest-policies/examples/rust/src/lib.rs");
const JAVASCRIPT: &str = include_str!("../../../../guest-policies/examples/javascript/policy.js");
const PYTHON: &str = include_str!("../../../../guest-policies/examples/python/policy.py");
const PACKAGE_JSON: &str = include_str!("../../../../guest-policies/examples/javascript/package.json");
const PYPROJECT: &str = include_str!("../../../../guest-policies/examples/python/pyproject.toml");
const CASES: &str = include_str!("../../../../guest-policies/examples/parcels.cases.csv");
/// The examples' name, which the new policy's name replaces.
const EXAMPLE: &str = "parcels";

const CONTRACT: [(&str, &str); 2] = [
    ("wit/policy.wit", include_str!("../../../../wit/policy.wit")),
    ("wit/types.wit", include_str!("../../../../wit/types.wit")),
];

/// A copy of the SDK for the new policy, so that SDK and contract are those of this host.
const SDK: [(&str, &str); 7] = [
    ("src/lib.rs", include_str!("../../../../guest-policies/sdk/src/lib.rs")),
    ("src/bindings.rs", include_str!("../../../../guest-policies/sdk/src/bindings.rs")),
    ("src/panics.rs", include_str!("../../../../guest-policies/sdk/src/panics.rs")),
    ("src/retry.rs", include_str!("../../../../guest-policies/sdk/src/retry.rs")),
    ("src/status.rs", include_str!("../../../../guest-policies/sdk/src/status.rs")),
    ("src/testing.rs", include_str!("../../../../guest-policies/sdk/src/testing.rs")),
    ("src/verdict.rs", include_str!("../../../../guest-policies/sdk/src/verdict.rs")),
];
const SDK_MANIFEST: &str = include_str!("../../../../guest-policies/sdk/Cargo.toml");

/// The versions of the dependencies, so that the same sources give the same component, and new policies share what cargo has compiled. cargo
/// drops the packages that a new policy does not need.
const LOCK: &str = include_str!("../../../../guest-policies/Cargo.lock");

/// Types for editors, as the builders derive them from the contract.
const TYPES_OF_JAVASCRIPT: [(&str, &str); 3] = [
    ("jsconfig.json", include_str!("../../../../guest-policies/examples/javascript/jsconfig.json")),
    ("types/policy.d.ts", include_str!("../../../../guest-policies/examples/javascript/types/policy.d.ts")),
    (
        "types/interfaces/triage-policy-types.d.ts",
        include_str!("../../../../guest-policies/examples/javascript/types/interfaces/triage-policy-types.d.ts"),
    ),
];
const TYPES_OF_PYTHON: [(&str, &str); 4] = [
    (
        "typings/componentize_py_types.pyi",
        include_str!("../../../../guest-policies/examples/python/typings/componentize_py_types.pyi"),
    ),
    (
        "typings/wit_world/__init__.pyi",
        include_str!("../../../../guest-policies/examples/python/typings/wit_world/__init__.pyi"),
    ),
    (
        "typings/wit_world/imports/__init__.pyi",
        include_str!("../../../../guest-policies/examples/python/typings/wit_world/imports/__init__.pyi"),
    ),
    (
        "typings/wit_world/imports/types.pyi",
        include_str!("../../../../guest-policies/examples/python/typings/wit_world/imports/types.pyi"),
    ),
];

/// Why no policy was written.
#[derive(Debug, thiserror::Error)]
pub enum ScaffoldError {
    /// The name has an invalid character, or an invalid length.
    #[error(
        "{0:?} is not a valid policy name; it must have 1 to 64 characters of a-z, 0-9 and '-', and begin with a \
             letter"
    )]
    Name(String),
    /// The folder exists.
    #[error("{} exists already; choose another name, or another folder", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("{} cannot be written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Writes a policy into a new folder of its name in `parent`, and returns the folder.
///
/// # Errors
/// [`ScaffoldError`]. Existing files stay as they are.
pub fn scaffold(parent: &Path, name: &str, language: Language) -> Result<PathBuf, ScaffoldError> {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if name.len() > 64 || !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.bytes().all(fits) {
        return Err(ScaffoldError::Name(name.to_owned()));
    }
    let folder = parent.join(name);
    if folder.exists() {
        return Err(ScaffoldError::Exists(folder));
    }
    let write = |path: PathBuf, text: &str| {
        let failed = |source| ScaffoldError::File { path: path.clone(), source };
        path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text)).map_err(failed)
    };
    let (source, manifest, contract_in) = match language {
        Language::Rust => (RUST, cargo_toml(name), folder.join("triage-policy")),
        Language::JavaScript => (JAVASCRIPT, PACKAGE_JSON.replace(EXAMPLE, name), folder.clone()),
        Language::Python => (PYTHON, PYPROJECT.replace(EXAMPLE, name), folder.clone()),
    };
    write(folder.join(language.manifest()), &manifest)?;
    write(folder.join(language.source()), &source.replace(EXAMPLE, name))?;
    write(folder.join(format!("{name}.cases.csv")), CASES)?;
    write(folder.join(".gitignore"), "target/\n*.wasm\n")?;
    for (path, text) in CONTRACT {
        write(contract_in.join(path), text)?;
    }
    let types: &[(&str, &str)] = match language {
        Language::Rust => &[],
        Language::JavaScript => &TYPES_OF_JAVASCRIPT,
        Language::Python => &TYPES_OF_PYTHON,
    };
    for (path, text) in types {
        write(folder.join(path), text)?;
    }
    if language == Language::Rust {
        for (path, text) in SDK {
            // In this repository `wit/` is two levels above the SDK; in the new policy it is inside the SDK's crate.
            write(contract_in.join(path), &text.replace("path: \"../../wit\"", "path: \"wit\""))?;
        }
        write(contract_in.join("Cargo.toml"), SDK_MANIFEST)?;
        write(folder.join("Cargo.lock"), LOCK)?;
    }
    Ok(folder)
}

fn cargo_toml(name: &str) -> String {
    format!(
        r#"[package]
name = "{name}"
version.workspace = true
edition.workspace = true
license.workspace = true
publish.workspace = true

[lib]
crate-type = ["cdylib"]

[dependencies]
triage-policy = {{ path = "triage-policy" }}

[workspace]
members = ["triage-policy"]

[workspace.package]
version = "0.1.0"
edition = "2024"
license = "Apache-2.0"
publish = false

[profile.release]
opt-level = "s"
lto = true
codegen-units = 1
panic = "abort"
strip = true
"#
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "A", "a b", "../a", "1a", "-a", "ä", &"a".repeat(65)] {
            let refused = scaffold(folder.path(), name, Language::Rust).unwrap_err().to_string();
            assert!(refused.ends_with("begin with a letter"), "{name:?}: {refused}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
    }

    #[test]
    fn a_scaffold_overwrites_no_existing_folder() {
        let folder = tempfile::tempdir().unwrap();
        scaffold(folder.path(), "mine", Language::Rust).unwrap();
        let file = folder.path().join("mine/src/lib.rs");
        fs::write(&file, "changed").unwrap();
        let refused = scaffold(folder.path(), "mine", Language::Rust).unwrap_err();
        assert!(matches!(refused, ScaffoldError::Exists(_)), "{refused}");
        assert_eq!(fs::read_to_string(file).unwrap(), "changed");
    }
}
