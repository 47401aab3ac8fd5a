//! `triage policy build`: builds a policy's source into a component, with the tools that a fresh machine has.

mod interpreted;
mod rust;
pub mod sources;
mod syntax;
mod target_folder;
mod toolchain;
mod user_folders;

use super::{Digest, guest_language::Language};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};
use toolchain::TARGET;

/// A component that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The component's path.
    pub file: PathBuf,
    /// The component's size in bytes.
    pub bytes: usize,
    /// The component's digest.
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
    /// No Rust toolchain has a standard library for WebAssembly.
    #[error(
        "no standard library for {TARGET} was found; install one: `rustup target add {TARGET}`, or on Debian \
         `apt-get install rustc-web cargo-web rust-web-src` (with rustup's toolchain for its linker)"
    )]
    NoToolchain,
    /// A program that builds policies of this language is missing.
    #[error("{needed} cannot be run, and building {language} policies needs it; install {install}")]
    NoProgram {
        /// The language's name in messages.
        language: &'static str,
        /// The missing program.
        needed: &'static str,
        /// The packages to install.
        install: &'static str,
    },
    /// The builder could not be installed from its registry.
    #[error("{tool} could not be installed into {}; the first build downloads it from its registry: {said}", into.display())]
    Install {
        /// Package and version.
        tool: String,
        /// The folder for the installation.
        into: PathBuf,
        /// The installer's output.
        said: String,
    },
    /// Neither `XDG_CACHE_HOME` nor `HOME` names a folder for tools.
    #[error("there is no folder to install build tools into; set XDG_CACHE_HOME or HOME")]
    NoFolder,
    /// The folder contains no manifest of a policy.
    #[error("{} contains no Cargo.toml, package.json or pyproject.toml; name the folder of a policy", .0.display())]
    NoPolicy(PathBuf),
    /// The manifest names no package.
    #[error("{} names no package; name the manifest of a policy, not of a workspace", .0.display())]
    NoPackage(PathBuf),
    /// The folder and its parents contain no `wit/policy.wit`.
    #[error("no wit/policy.wit was found in {} or above it; copy this host's wit/ folder there", .0.display())]
    NoContract(PathBuf),
    /// A program could not be run.
    #[error("{program} could not be run")]
    Run {
        /// Which.
        program: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The compiler refused the crate.
    #[error("the crate does not compile; cargo's messages are above")]
    Compile,
    /// The source of a JavaScript or Python policy does not parse.
    #[error("{file} does not parse:\n{said}")]
    Syntax {
        /// The source file.
        file: &'static str,
        /// The error with line and caret.
        said: String,
    },
    /// The builder of JavaScript or Python policies refused the source.
    #[error("the policy does not build; {tool} said:\n{said}")]
    Interpreted {
        /// Name and version of the builder.
        tool: String,
        /// The builder's output.
        said: String,
    },
    /// A file cannot be read or written.
    #[error("{} cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The module does not export a policy.
    #[error("the module cannot be converted to a component: {0}; it must export a policy with triage_policy::export!")]
    Encode(String),
}

/// Builds the policy in `dir` and writes its component to `out`, or to `NAME.wasm` beside the manifest. The manifest's file name shows the
/// language. The first build of a JavaScript or Python policy installs the builder from npm or `PyPI`.
///
/// # Errors
/// [`BuildError`] names what to install or to correct.
pub fn build(dir: &Path, out: Option<&Path>) -> Result<Built, BuildError> {
    let (language, manifest) = Language::of(dir).ok_or_else(|| BuildError::NoPolicy(dir.to_owned()))?;
    let text = fs::read_to_string(&manifest).map_err(|source| BuildError::File { path: manifest.clone(), source })?;
    let name = language.package(&text).ok_or(BuildError::NoPackage(manifest))?;
    let component = match language {
        Language::Rust => rust::component(dir, &name)?,
        Language::JavaScript | Language::Python => interpreted::component(language, dir)?,
    };
    let file = out.map_or_else(|| dir.join(format!("{name}.wasm")), Path::to_owned);
    // Write a temporary file and rename it: a host that watches the folder must not load half a component.
    let beside = file.with_extension("wasm.new");
    let failed = |source| BuildError::File { path: file.clone(), source };
    fs::write(&beside, &component).and_then(|()| fs::rename(&beside, &file)).map_err(failed)?;
    Ok(Built { bytes: component.len(), digest: Digest::of(&component), file })
}

/// Builds every policy of `guest-policies/` and its `testing/` into a folder, and writes the digest of the sources there.
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
        let name = folder.file_name().unwrap_or_default();
        built.push(build(folder, Some(&into.join(name).with_extension("wasm")))?);
    }
    let sources = into.join(sources::FILE);
    let digest = sources::digest(guest_policies)?;
    fs::write(&sources, format!("{digest}\n")).map_err(|source| BuildError::File { path: sources, source })?;
    Ok(built)
}
