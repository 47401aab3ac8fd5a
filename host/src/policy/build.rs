//! `triage policy build`: from a crate to a component, with what a fresh machine has.

pub mod sources;
mod toolchain;

use super::Digest;
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};
use toolchain::Toolchain;

const TARGET: &str = "wasm32-unknown-unknown";
/// A policy needs little stack; the linker's default of 1 MiB makes every fresh instance larger.
const FLAGS: &str = "-Clink-arg=-zstack-size=32768";

/// A component that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Where it is.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: usize,
    /// Its digest.
    pub digest: Digest,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {} bytes  sha256:{}", self.file.display(), self.bytes, self.digest)
    }
}

/// Why a policy could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No toolchain.
    #[error(
        "no standard library for {TARGET} was found; install one: `rustup target add {TARGET}`, or on Debian \
         `apt-get install rustc-web cargo-web rust-web-src` (with rustup's toolchain for its linker)"
    )]
    NoToolchain,
    /// The folder is no crate.
    #[error("{} holds no Cargo.toml; name the folder of a policy's crate", .0.display())]
    NoCrate(PathBuf),
    /// The manifest names no package.
    #[error("{} names no package; it must be a policy's crate, not a workspace", .0.display())]
    NoPackage(PathBuf),
    /// The compiler could not be run.
    #[error("cargo could not be run")]
    Run(#[source] io::Error),
    /// The compiler refused the crate.
    #[error("the crate does not compile; cargo said:\n{0}")]
    Compile(String),
    /// A file.
    #[error("{} cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The module is no policy.
    #[error("the module cannot be made a component: {0}; it must export a policy with triage_policy::export!")]
    Encode(String),
}

/// Builds the crate in `dir` and writes its component to `out`, or beside the crate as NAME.wasm.
///
/// # Errors
/// [`BuildError`] says what to install or to correct.
pub fn build(dir: &Path, out: Option<&Path>) -> Result<Built, BuildError> {
    let name = package(dir)?;
    let module = compile(dir, &name)?;
    let core = fs::read(&module).map_err(|source| BuildError::File { path: module.clone(), source })?;
    let component = encode(&core)?;
    let file = out.map_or_else(|| dir.join(format!("{name}.wasm")), Path::to_owned);
    // Written beside and renamed: a host that watches the folder never sees half of it.
    let beside = file.with_extension("wasm.new");
    let failed = |source| BuildError::File { path: file.clone(), source };
    fs::write(&beside, &component).and_then(|()| fs::rename(&beside, &file)).map_err(failed)?;
    Ok(Built { bytes: component.len(), digest: Digest::of(&component), file })
}

/// Builds every policy of `guest-policies/`, those in `testing/` too, into a folder, and notes the digest of the sources.
///
/// # Errors
/// [`BuildError`] as for [`build`].
pub fn rebuild(guest_policies: &Path, into: &Path) -> Result<Vec<Built>, BuildError> {
    let mut folders: Vec<PathBuf> = super::prebuilt::names().iter().map(|name| guest_policies.join(name)).collect();
    let testing = guest_policies.join("testing");
    let failed = |source| BuildError::File { path: testing.clone(), source };
    let mut tests: Vec<PathBuf> =
        fs::read_dir(&testing).map_err(failed)?.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    tests.sort();
    folders.append(&mut tests);
    let mut built = Vec::with_capacity(folders.len());
    for folder in folders.iter().filter(|folder| folder.join("Cargo.toml").is_file()) {
        let name = package(folder)?;
        built.push(build(folder, Some(&into.join(format!("{name}.wasm"))))?);
    }
    let sources = into.join(sources::FILE);
    let digest = sources::digest(guest_policies)?;
    fs::write(&sources, format!("{digest}\n")).map_err(|source| BuildError::File { path: sources, source })?;
    Ok(built)
}

fn package(dir: &Path) -> Result<String, BuildError> {
    let manifest = dir.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(|_| BuildError::NoCrate(dir.to_owned()))?;
    let named = |table: toml::Table| Some(table.get("package")?.get("name")?.as_str()?.to_owned());
    text.parse().ok().and_then(named).ok_or(BuildError::NoPackage(manifest))
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
    let output = cargo.output().map_err(BuildError::Run)?;
    if !output.status.success() {
        return Err(BuildError::Compile(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(target.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_"))))
}

/// The linker's flags, and no path of this machine in the result: the same sources give the same bytes anywhere.
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

/// The core module as a component; one that is a component already stays as it is.
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
