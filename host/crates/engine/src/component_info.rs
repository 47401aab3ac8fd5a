//! Facts about a component, read without compiling it: the names of its imports and exports, the contract for which it was built, and
//! the tier on which it runs.

use super::convert;
use wasmparser::{Chunk, ComponentTypeRef, Parser, Payload};

/// The WIT package of the contract between host and policies.
pub(super) const PACKAGE: &str = "triage:policy";
/// The version of the contract in `wit/`.
pub const VERSION: &str = "0.1.0";
/// A component above this size contains an interpreter, which needs more memory, tables and modules than a compiled policy.
const INTERPRETER_BYTES: usize = 1 << 20;
/// The maximum number of names that are read. A policy has a few dozen imports and exports.
const MAX_NAMES: usize = 1000;

/// The contracts that this host loads. When a newer minor version appears, the older one stays here and gets an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// Version 0.1, the one in `wit/`. It needs no adapter.
    V0_1,
}

/// The engine on which a component runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
pub enum Tier {
    /// For components without imports, from compiled languages: little memory, and a fresh instance in microseconds.
    #[strum(serialize = "fast")]
    Sync,
    /// For components that contain an interpreter or import WASI: more memory, and a WASI that gives access to nothing.
    #[strum(serialize = "roomy")]
    Wasi,
}

impl Tier {
    /// The tier's name on the compiler's command line.
    pub(super) fn name(self) -> &'static str {
        self.into()
    }
}

/// The component was built for a contract that this host does not load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the component was built for {PACKAGE}@{version}; this host loads 0.1 (wit/ is {VERSION}): {}",
    if *newer { "update the host, or build the component with this host's `triage policy build`" } else { "build it again with `triage policy build`" }
)]
pub struct OtherContract {
    /// The version that the component names.
    pub version: String,
    /// Whether this version is newer than all that this host loads.
    pub newer: bool,
}

impl Contract {
    /// The contract of a version, by its minor version: a patch changes only documentation.
    fn of(version: &str) -> Result<Self, OtherContract> {
        let other = |newer| OtherContract { version: convert::short(version, 32), newer };
        let mut parts = version.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(0)), Some(Ok(1)), Some(Ok(_)), None) => Ok(Self::V0_1),
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(_)), None) => Err(other((major, minor) > (0, 1))),
            // A pre-release is another contract than the release.
            _ => Err(other(true)),
        }
    }

    /// Package and version, as `triage policy inspect` shows them.
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_1 => "triage:policy@0.1",
        }
    }
}

/// A component's size, and the names of its imports and exports.
#[derive(Debug, Default)]
pub(super) struct Outline {
    pub(super) imports: Vec<String>,
    pub(super) exports: Vec<String>,
    bytes: usize,
}

impl Outline {
    /// Reads the names of a component's own imports and exports. Stops at a part that does not parse: the engine's error then says more.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut outline = Self { bytes: bytes.len(), ..Self::default() };
        let (mut parser, mut rest) = (Parser::new(0), bytes);
        while let Ok(Chunk::Parsed { consumed, payload }) = parser.parse(rest, true) {
            let mut past = consumed;
            match payload {
                // Skip nested modules and components: their imports are not this component's.
                Payload::ModuleSection { unchecked_range: range, .. }
                | Payload::ComponentSection { unchecked_range: range, .. } => past = past.saturating_add(range.len()),
                Payload::ComponentImportSection(section) => {
                    let imports = section.into_iter().map_while(Result::ok);
                    let named = imports.filter(|import| !matches!(import.ty, ComponentTypeRef::Type(_)));
                    take(&mut outline.imports, named.map(|import| import.name.name));
                }
                Payload::ComponentExportSection(section) => {
                    take(
                        &mut outline.exports,
                        section.into_iter().map_while(Result::ok).map(|export| export.name.name),
                    );
                }
                Payload::End(_) => break,
                _ => {}
            }
            let Some(after) = rest.get(past..) else { break };
            rest = after;
        }
        outline
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.imports.iter().chain(&self.exports)
    }

    /// The contract for which the component was built. A component that names none counts as 0.1; the check of its exports then refuses it.
    ///
    /// # Errors
    /// [`OtherContract`] if this host has no adapter for the contract.
    pub(super) fn contract(&self) -> Result<Contract, OtherContract> {
        let versions = self.names().filter_map(|name| {
            let (interface, version) = name.split_once('@')?;
            interface.strip_prefix(PACKAGE)?.starts_with('/').then_some(version)
        });
        versions.map(Contract::of).try_fold(Contract::V0_1, |_, contract| contract)
    }

    /// The tier on which the component runs.
    pub(super) fn tier(&self) -> Tier {
        let wasi = self.names().any(|name| name.starts_with("wasi:"));
        if wasi || self.bytes > INTERPRETER_BYTES { Tier::Wasi } else { Tier::Sync }
    }
}

fn take<'a>(into: &mut Vec<String>, names: impl Iterator<Item = &'a str>) {
    let remaining = MAX_NAMES.saturating_sub(into.len());
    into.extend(names.take(remaining).map(str::to_owned));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outline(text: &str) -> Outline {
        Outline::of(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn the_policies_at_hand_are_of_this_contract_and_fast() {
        for name in super::super::prebuilt::names() {
            let outline = Outline::of(super::super::prebuilt::embedded(name).unwrap());
            assert!(outline.imports.contains(&format!("{PACKAGE}/types@{VERSION}")), "{name}: {outline:?}");
            assert_eq!((outline.contract(), outline.tier()), (Ok(Contract::V0_1), Tier::Sync), "{name}");
        }
    }

    #[test]
    fn the_version_here_is_that_of_the_contract() {
        let wit = include_str!("../../../../wit/types.wit");
        assert_eq!(wit.lines().next(), Some(format!("package {PACKAGE}@{VERSION};").as_str()));
    }

    #[test]
    fn another_minor_is_another_contract_and_another_patch_is_not() {
        for (version, newer) in [
            ("0.1.0", None),
            ("0.1.7", None),
            ("0.0.9", Some(false)),
            ("0.2.0", Some(true)),
            ("1.0.0", Some(true)),
            ("0.1.0-draft", Some(true)),
            ("0.1", Some(true)),
            ("x", Some(true)),
        ] {
            let found = outline(&format!("(component (import \"{PACKAGE}/types@{version}\" (instance)))"));
            // An invalid version does not parse as a name.
            if found.imports.is_empty() {
                continue;
            }
            let other = newer.map(|newer| OtherContract { version: version.to_owned(), newer });
            assert_eq!(found.contract().err(), other, "{version}");
        }
    }

    #[test]
    fn wasi_and_size_ask_for_room() {
        assert_eq!(outline("(component)").tier(), Tier::Sync);
        assert_eq!(outline("(component (import \"wasi:cli/exit@0.2.0\" (instance)))").tier(), Tier::Wasi);
        let inside = "(component (component (import \"wasi:cli/exit@0.2.0\" (instance))))";
        assert_eq!(outline(inside).tier(), Tier::Sync, "what is nested is not imported");
        let large = format!("(component (core module (memory 1) (data \"{}\")))", "x".repeat(INTERPRETER_BYTES));
        assert_eq!(outline(&large).tier(), Tier::Wasi);
    }
}
