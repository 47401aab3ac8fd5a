//! The types for editors in the examples, and so in new policies, are those that the builders derive from the contract.
//!
//! `UPDATE_TYPINGS=1 cargo nextest run typings` rewrites them. A language is skipped if its builder is not installed; building a policy
//! installs it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const TYPES_OF_JAVASCRIPT: &str = r"
import { readFileSync } from 'node:fs';
const { $init, generateTypes } = await import(process.argv[1]);
await $init;
const world = readFileSync(process.argv[2] + '/policy.wit', 'utf8').replace(/^package .*$/m, '');
const source = readFileSync(process.argv[2] + '/types.wit', 'utf8') + world;
const files = generateTypes('policy', {
  wit: { tag: 'source', val: source }, world: 'policy', features: { tag: 'list', val: [] }, guest: true, tlaCompat: false,
  flagsAsBigint: false, variantsInlineCases: false, useNamespaceObjects: false, enumValuesScreamingSnakeCase: false,
});
const text = (bytes) => new TextDecoder().decode(bytes);
console.log(JSON.stringify(Object.fromEntries(files.map(([name, bytes]) => [name, text(bytes)]))));
";

const TYPES_OF_PYTHON: &str = "import sys
from componentize_py import script
sys.argv = ['componentize-py', '--wit-path', sys.argv[1], '--world', 'policy', 'bindings', sys.argv[2]]
sys.exit(script())";

/// The folder of an installed builder.
fn builder(prefix: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    let mut found = fs::read_dir(cache.join("triage/tools")).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    found.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares files below a folder of the examples with the builder's.
fn compare(folder: &str, expected: &BTreeMap<&str, String>) {
    let folder = repository().join("guest-policies/examples").join(folder);
    for (name, expected) in expected {
        let file = folder.join(name);
        if std::env::var_os("UPDATE_TYPINGS").is_some() {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, expected).unwrap();
        }
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(found == *expected, "{name} is not what the builder derives from wit/: UPDATE_TYPINGS=1 rewrites it");
    }
}

#[test]
fn the_types_for_javascript_are_those_of_the_contract() {
    let bindings = "node_modules/@bytecodealliance/jco-transpile/vendor/js-component-bindgen-component.js";
    let Some(bindings) = builder("componentize-js-").map(|folder| folder.join(bindings)).filter(|file| file.exists())
    else {
        return println!("skipped JavaScript: its builder is not installed");
    };
    let mut node = Command::new("node");
    node.args(["--input-type=module", "--eval", TYPES_OF_JAVASCRIPT, "--"]).arg(bindings).arg(repository().join("wit"));
    let output = node.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let files: BTreeMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(files.len(), 2, "{:?}", files.keys());
    compare("javascript/types", &files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect());
}

#[test]
fn the_types_for_python_are_those_of_the_contract() {
    let Some(builder) = builder("componentize-py-") else {
        return println!("skipped Python: its builder is not installed");
    };
    let folder = tempfile::tempdir().unwrap();
    let bindings = folder.path().join("bindings");
    let mut python = Command::new("python3");
    python.args(["-c", TYPES_OF_PYTHON]).arg(repository().join("wit")).arg(&bindings);
    let output = python.env("PYTHONPATH", builder).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let files =
        ["componentize_py_types", "wit_world/__init__", "wit_world/imports/__init__", "wit_world/imports/types"];
    let names = files.map(|file| (format!("{file}.pyi"), format!("{file}.py")));
    let expected = names.iter().map(|(name, own)| (name.as_str(), fs::read_to_string(bindings.join(own)).unwrap()));
    compare("python/typings", &expected.collect());
}
