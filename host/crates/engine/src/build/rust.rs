//! Builds a policy that is a Rust crate.

use super::{
    BuildError,
    target_folder::TargetFolder,
    toolchain::{self, TARGET, Toolchain},
};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A policy needs little stack; the linker's default of 1 MiB makes every fresh instance larger.
const FLAGS: &str = "-Clink-arg=-zstack-size=32768";

/// Builds the crate into a component.
pub(super) fn component(dir: &Path, name: &str) -> Result<Vec<u8>, BuildError> {
    encode(&compile(dir, name)?)
}

/// Compiles the crate into a core module. cargo writes its progress and its messages to standard error.
fn compile(dir: &Path, name: &str) -> Result<Vec<u8>, BuildError> {
    let toolchain = Toolchain::find().ok_or(BuildError::NoToolchain)?;
    tracing::info!("building {name} for {TARGET} with {}", toolchain.described());
    let workspace = toolchain::workspace(dir);
    let target = TargetFolder::take(&workspace, name)?;
    let mut cargo = Command::new(&toolchain.cargo);
    cargo
        .current_dir(dir)
        .args(["build", "--release", "--lib", "--target", TARGET, "--package", name])
        .args(toolchain.flags)
        .env("CARGO_TARGET_DIR", &target.path)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags())
        .env("RUSTC", target.compiler())
        .env("TRIAGE_RUSTC", toolchain.compiler)
        .env("TRIAGE_WORKSPACE", &workspace)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for (key, value) in &toolchain.environment {
        cargo.env(key, value);
    }
    let status = cargo.status().map_err(|source| BuildError::Run { program: "cargo", source })?;
    if !status.success() {
        return Err(BuildError::Compile);
    }
    let module = target.module(name);
    fs::read(&module).map_err(|source| BuildError::File { path: module, source })
}

/// The linker's flags, and a flag that keeps cargo's folder out of the result: the same sources give the same bytes on each machine. The
/// flags are the same for each policy, so that cargo compiles the dependencies once.
fn rust_flags() -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let home = home.map(|path| format!("--remap-path-prefix={}=cargo", path.display()));
    [FLAGS.to_owned()].into_iter().chain(home).collect::<Vec<_>>().join("\u{1f}")
}

/// Encodes a core module as a component. Returns a component unchanged.
fn encode(core: &[u8]) -> Result<Vec<u8>, BuildError> {
    if !core.starts_with(b"\0asm\x01\0\0\0") {
        return Ok(core.to_vec());
    }
    let encode_error = |error: &dyn fmt::Display| BuildError::Encode(format!("{error:#}"));
    wit_component::ComponentEncoder::default()
        .module(core)
        .map_err(|error| encode_error(&error))?
        .validate(true)
        .encode()
        .map_err(|error| encode_error(&error))
}
