//! Components are compiled in a separate process with limits.

use super::child::{Triage, serving};
use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};
use triage_engine::{CompileError, Compiler, Engine, LoadError, LoadOptions, Policy, prebuilt};

fn compiler() -> Compiler {
    Compiler {
        program: PathBuf::from(env!("CARGO_BIN_EXE_triage")),
        memory_bytes: 2 << 30,
        time: Duration::from_secs(300),
    }
}

fn load(compiler: Compiler, component: &[u8]) -> Result<String, LoadError> {
    let engine = Engine::start().unwrap().compiling_with(compiler);
    Policy::load(&engine, component, &LoadOptions::default()).map(|policy| policy.description().name.clone())
}

#[test]
fn a_component_compiled_by_a_child_serves() {
    let component = prebuilt::embedded("http-standard").unwrap();
    assert_eq!(load(compiler(), component).unwrap(), "http-standard");
}

#[test]
fn the_error_of_a_compiler_process_is_that_of_the_host() {
    let component = wat::parse_str("(component (core module (func (result i32))))").unwrap();
    let here = Policy::load(&Engine::start().unwrap(), &component, &LoadOptions::default()).unwrap_err();
    let there = load(compiler(), &component).unwrap_err();
    assert!(matches!((&here, &there), (LoadError::Invalid(_), LoadError::Invalid(_))), "{here:?} {there:?}");
}

#[test]
fn a_compilation_ends_at_its_limits() {
    let component = prebuilt::embedded("hospital-directory").unwrap();
    let slow = load(Compiler { time: Duration::from_millis(1), ..compiler() }, component).unwrap_err();
    assert!(matches!(slow, LoadError::Compile(CompileError::TooSlow(_))), "{slow}");
    // A limit below what a process needs at its start.
    let large = load(Compiler { memory_bytes: 1 << 20, ..compiler() }, component).unwrap_err();
    assert!(matches!(large, LoadError::Compile(CompileError::TooMuchMemory(_))), "{large}");
    let none = load(Compiler { program: "/nowhere/triage".into(), ..compiler() }, component).unwrap_err();
    assert!(matches!(none, LoadError::Compile(CompileError::Process(_))), "{none}");
    let other = load(Compiler { program: "/bin/false".into(), ..compiler() }, component).unwrap_err();
    assert!(matches!(other, LoadError::Compile(CompileError::Died(_))), "{other}");
}

/// An upgrade replaces the executable's file. A policy that arrives before the restart is still compiled by the running program, and not by
/// the new file.
#[test]
fn a_host_whose_file_was_replaced_compiles_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (program, policies) = (folder.path().join("triage"), folder.path().join("policies"));
    fs::create_dir(&policies).unwrap();
    let built = env!("CARGO_BIN_EXE_triage");
    fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).unwrap();
    let config = folder.path().join("triage.toml");
    let text = format!(
        "[policies]\ndir = {policies:?}\ncache = false\n[upstreams.api]\nbase_url = \"http://127.0.0.1:9\"\npolicy = \"http-standard\"\n"
    );
    fs::write(&config, text).unwrap();
    let mut host = Triage::start(&mut serving(&program, &["--config", config.to_str().unwrap()]));
    host.says("http-standard");
    let (called, upgrade) = (folder.path().join("called"), folder.path().join("upgrade"));
    fs::write(&upgrade, format!("#!/bin/sh\ntouch {called:?}\nexit 1\n")).unwrap();
    fs::set_permissions(&upgrade, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(&upgrade, &program).unwrap();
    // An additional custom section gives the component a new digest.
    let mut component = prebuilt::embedded("http-standard").unwrap().to_vec();
    component.extend_from_slice(&[0, 2, 1, b'x']);
    let dropped = policies.join("dropped.wasm");
    fs::write(&dropped, component).unwrap();
    fs::rename(&dropped, policies.join("http-standard.wasm")).unwrap();
    host.logs("policy: generation 2 ");
    assert!(!called.exists(), "the new program was asked");
    host.terminate();
    assert_eq!(host.ended().code, Some(0));
}
