//! Finds a Rust compiler that has, or can build, a standard library for WebAssembly.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The target of policies.
pub(super) const TARGET: &str = "wasm32-unknown-unknown";

/// A cargo with the flags and the environment that compile for WebAssembly.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Toolchain {
    pub(super) cargo: PathBuf,
    pub(super) compiler: &'static str,
    pub(super) flags: &'static [&'static str],
    pub(super) environment: Vec<(&'static str, OsString)>,
}

/// The installed parts of a toolchain.
#[derive(Debug, Default)]
struct Found {
    /// Whether rustup's standard library for the target is installed.
    installed_target: bool,
    /// Whether Debian's compiler and the sources of its standard library are installed.
    debian: bool,
    /// A linker for WebAssembly.
    linker: Option<PathBuf>,
}

/// Debian's rustc-web, cargo-web and rust-web-src.
const DEBIAN: [&str; 3] = ["/usr/bin/rustc", "/usr/bin/cargo", "/usr/lib/rustlib/src/rust/library/Cargo.toml"];

impl Toolchain {
    /// Finds the best toolchain of this machine.
    pub(super) fn find() -> Option<Self> {
        let sysroot = output("rustc", &["--print", "sysroot"]).map(PathBuf::from);
        let installed = |sysroot: &PathBuf| sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir();
        let host = output("rustc", &["-vV"])
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)));
        let in_sysroot =
            sysroot.as_ref().zip(host).map(|(root, host)| root.join("lib/rustlib").join(host).join("bin/rust-lld"));
        let linkers = in_sysroot.into_iter().chain(["/usr/bin/wasm-ld", "/usr/bin/rust-lld"].map(PathBuf::from));
        Self::choose(Found {
            installed_target: sysroot.as_ref().is_some_and(installed),
            debian: DEBIAN.iter().all(|path| Path::new(path).exists()),
            linker: linkers.into_iter().find(|path| path.exists()),
        })
    }

    /// The toolchain in words, for a log line.
    pub(super) fn described(&self) -> &'static str {
        if self.flags.is_empty() {
            "rustup's standard library"
        } else {
            "Debian's sources of the standard library; compiling those takes a minute or two the first time"
        }
    }

    fn choose(found: Found) -> Option<Self> {
        if found.installed_target {
            return Some(Self { cargo: "cargo".into(), compiler: "rustc", flags: &[], environment: Vec::new() });
        }
        let linker = found.linker.filter(|_| found.debian)?;
        Some(Self {
            cargo: DEBIAN[1].into(),
            compiler: DEBIAN[0],
            flags: &["-Zbuild-std=std,panic_abort"],
            environment: vec![
                ("RUSTC_BOOTSTRAP", "1".into()),
                ("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker.into()),
            ],
        })
    }
}

/// The folder of the crate's workspace, or of the crate itself.
pub(super) fn workspace(dir: &Path) -> PathBuf {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let is_workspace = |folder: &&Path| {
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml"));
        manifest.is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]"))
    };
    dir.ancestors().find(is_workspace).unwrap_or(&dir).to_owned()
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustups_target_goes_before_debians() {
        let linker = Some(PathBuf::from("lld"));
        let choose = |installed_target, debian, linker: &Option<PathBuf>| {
            Toolchain::choose(Found { installed_target, debian, linker: linker.clone() }).map(|found| found.cargo)
        };
        assert_eq!(choose(true, true, &linker), Some("cargo".into()));
        assert_eq!(choose(false, true, &linker), Some("/usr/bin/cargo".into()));
        assert_eq!(choose(false, true, &None), None, "without a linker");
        assert_eq!(choose(false, false, &linker), None, "without a compiler");
    }
}
