//! Builds a policy that is a Rust crate.

use super::{
    BuildError,
    toolchain::{self, Toolchain},
};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

pub(super) const TARGET: &str = "wasm32-unknown-unknown";
/// A policy needs little stack; the linker's default of 1 MiB makes every fresh instance larger.
const FLAGS: &str = "-Clink-arg=-zstack-size=32768";

/// Builds the crate into a component.
pub(super) fn component(dir: &Path, name: &str) -> Result<Vec<u8>, BuildError> {
    let module = compile(dir, name)?;
    let core = fs::read(&module).map_err(|source| BuildError::File { path: module, source })?;
    encode(&core)
}

fn compile(dir: &Path, name: &str) -> Result<PathBuf, BuildError> {
    let toolchain = Toolchain::find().ok_or(BuildError::NoToolchain)?;
    tracing::info!("building {name} for {TARGET} with {}", toolchain.described());
    let workspace = toolchain::workspace(dir);
    let target = workspace.join("target");
    let mut cargo = Command::new(&toolchain.cargo);
    cargo
        .current_dir(dir)
        .args(["build", "--release", "--quiet", "--lib", "--target", TARGET, "--package", name])
        .args(toolchain.flags)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&workspace))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    for (key, value) in &toolchain.environment {
        cargo.env(key, value);
    }
    let output = cargo.output().map_err(|source| BuildError::Run { program: "cargo", source })?;
    if !output.status.success() {
        return Err(BuildError::Compile(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(target.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_"))))
}

/// The linker's flags, and flags that keep paths of this machine out of the result: the same sources give the same bytes on each machine.
fn rust_flags(workspace: &Path) -> String {
    let mut flags = vec![FLAGS.to_owned()];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    for (path, name) in [(Some(workspace.to_owned()), "policies"), (home, "cargo")] {
        if let Some(path) = path {
            flags.push(format!("--remap-path-prefix={}={name}", path.display()));
        }
    }
    flags.join("\u{1f}")
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
