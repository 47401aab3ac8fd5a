//! Components are compiled in a process of their own, which ends where they take too much.

use std::{path::PathBuf, time::Duration};
use triage::policy::{CompileError, Compiler, Engine, LoadError, Loading, Policy, prebuilt};

fn compiler() -> Compiler {
    Compiler {
        program: PathBuf::from(env!("CARGO_BIN_EXE_triage")),
        memory_bytes: 2 << 30,
        time: Duration::from_secs(300),
    }
}

fn load(compiler: Compiler, component: &[u8]) -> Result<String, LoadError> {
    let engine = Engine::start().unwrap().compiling_with(compiler);
    Policy::load(&engine, component, &Loading::default()).map(|policy| policy.description().name.clone())
}

#[test]
fn what_a_child_compiled_serves() {
    let component = prebuilt::embedded("http-standard").unwrap();
    assert_eq!(load(compiler(), component).unwrap(), "http-standard");
}

#[test]
fn what_does_not_compile_is_told_as_if_it_were_compiled_here() {
    let component = wat::parse_str("(component (core module (func (result i32))))").unwrap();
    let here = Policy::load(&Engine::start().unwrap(), &component, &Loading::default()).unwrap_err();
    let there = load(compiler(), &component).unwrap_err();
    assert!(matches!((&here, &there), (LoadError::Invalid(_), LoadError::Invalid(_))), "{here:?} {there:?}");
}

#[test]
fn a_compilation_ends_at_its_limits() {
    let component = prebuilt::embedded("hospital-directory").unwrap();
    let slow = load(Compiler { time: Duration::from_millis(1), ..compiler() }, component).unwrap_err();
    assert!(matches!(slow, LoadError::Compile(CompileError::TooSlow(_))), "{slow}");
    // Less than a process has that does nothing.
    let large = load(Compiler { memory_bytes: 1 << 20, ..compiler() }, component).unwrap_err();
    assert!(matches!(large, LoadError::Compile(CompileError::TooMuchMemory(_))), "{large}");
    let none = load(Compiler { program: "/nowhere/triage".into(), ..compiler() }, component).unwrap_err();
    assert!(matches!(none, LoadError::Compile(CompileError::Process(_))), "{none}");
    let other = load(Compiler { program: "/bin/false".into(), ..compiler() }, component).unwrap_err();
    assert!(matches!(other, LoadError::Compile(CompileError::Died(_))), "{other}");
}
