//! What a component's outside says of it, read without compiling: names of imports and exports, the contract that it was
//! built for, and the tier it runs on.

use super::convert;
use wasmparser::{Chunk, Parser, Payload};

/// The package that host and policies speak.
const PACKAGE: &str = "triage:policy";
/// Its version in `wit/`.
pub const VERSION: &str = "0.1.0";
/// From this size on there is an interpreter inside: it wants more memory, tables and modules than a policy needs.
const INTERPRETER_BYTES: usize = 1 << 20;
/// Imports and exports that are looked at. A policy has a few dozen.
const NAMES: usize = 1000;

/// The contracts that this host loads. A contract that gets a newer minor version stays here, with an adapter of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// 0.1, the one in `wit/`: no adapter.
    V0_1,
}

/// Where a component runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Compiled languages without imports: little memory, and a fresh instance in microseconds.
    Fast,
    /// What brings an interpreter or imports WASI: more memory, and a WASI that gives nothing.
    Roomy,
}

impl Tier {
    /// Its name on the compiler's command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Roomy => "roomy",
        }
    }

    /// The tier of a name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        [Self::Fast, Self::Roomy].into_iter().find(|tier| tier.name() == name)
    }
}

/// Built for a contract that this host does not load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the component was built for {PACKAGE}@{version}; this host loads 0.1 (wit/ is {VERSION}): {}",
    if *newer { "update the host, or build it with this host's `triage policy build`" } else { "build it again with `triage policy build`" }
)]
pub struct OtherContract {
    /// The version that it names.
    pub version: String,
    /// Whether that is newer than any that this host knows.
    pub newer: bool,
}

impl Contract {
    /// The contract of a version, by its minor: patches change words only.
    fn of(version: &str) -> Result<Self, OtherContract> {
        let other = |newer| OtherContract { version: convert::short(version, 32), newer };
        let mut parts = version.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(0)), Some(Ok(1)), Some(Ok(_)), None) => Ok(Self::V0_1),
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(_)), None) => Err(other((major, minor) > (0, 1))),
            // A pre-release is never what was released.
            _ => Err(other(true)),
        }
    }

    /// Its version, as `inspect` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_1 => "triage:policy@0.1",
        }
    }
}

/// A component's outside.
#[derive(Debug, Default)]
pub(super) struct Outline {
    names: Vec<String>,
    bytes: usize,
}

impl Outline {
    /// Reads the names of a component's own imports and exports. What does not parse is left to the engine, which says why.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut outline = Self { names: Vec::new(), bytes: bytes.len() };
        let (mut parser, mut rest) = (Parser::new(0), bytes);
        while let Ok(Chunk::Parsed { consumed, payload }) = parser.parse(rest, true) {
            let mut past = consumed;
            match payload {
                // Nested: not this component's outside.
                Payload::ModuleSection { unchecked_range: range, .. }
                | Payload::ComponentSection { unchecked_range: range, .. } => past = past.saturating_add(range.len()),
                Payload::ComponentImportSection(section) => {
                    outline.take(section.into_iter().map_while(Result::ok).map(|import| import.name.name));
                }
                Payload::ComponentExportSection(section) => {
                    outline.take(section.into_iter().map_while(Result::ok).map(|export| export.name.name));
                }
                Payload::End(_) => break,
                _ => {}
            }
            let Some(after) = rest.get(past..) else { break };
            rest = after;
        }
        outline
    }

    fn take<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let room = NAMES.saturating_sub(self.names.len());
        self.names.extend(names.take(room).map(str::to_owned));
    }

    /// The contract that it was built for; 0.1 for one that names none, which the check of its exports refuses.
    ///
    /// # Errors
    /// [`OtherContract`] where this host has no adapter for it.
    pub(super) fn contract(&self) -> Result<Contract, OtherContract> {
        let versions = self.names.iter().filter_map(|name| {
            let (interface, version) = name.split_once('@')?;
            interface.strip_prefix(PACKAGE)?.starts_with('/').then_some(version)
        });
        versions.map(Contract::of).try_fold(Contract::V0_1, |_, contract| contract)
    }

    /// Where it runs.
    pub(super) fn tier(&self) -> Tier {
        let wasi = self.names.iter().any(|name| name.starts_with("wasi:"));
        if wasi || self.bytes > INTERPRETER_BYTES { Tier::Roomy } else { Tier::Fast }
    }
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
            assert!(outline.names.contains(&format!("{PACKAGE}/types@{VERSION}")), "{name}: {:?}", outline.names);
            assert_eq!((outline.contract(), outline.tier()), (Ok(Contract::V0_1), Tier::Fast), "{name}");
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
            // What is no version at all does not even parse as a name.
            if found.names.is_empty() {
                continue;
            }
            let other = newer.map(|newer| OtherContract { version: version.to_owned(), newer });
            assert_eq!(found.contract().err(), other, "{version}");
        }
    }

    #[test]
    fn wasi_and_size_ask_for_room() {
        assert_eq!(outline("(component)").tier(), Tier::Fast);
        assert_eq!(outline("(component (import \"wasi:cli/exit@0.2.0\" (instance)))").tier(), Tier::Roomy);
        let inside = "(component (component (import \"wasi:cli/exit@0.2.0\" (instance))))";
        assert_eq!(outline(inside).tier(), Tier::Fast, "what is nested is not imported");
        let large = format!("(component (core module (memory 1) (data \"{}\")))", "x".repeat(INTERPRETER_BYTES));
        assert_eq!(outline(&large).tier(), Tier::Roomy);
    }
}
