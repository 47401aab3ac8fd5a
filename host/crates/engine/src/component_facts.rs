//! Facts about a component for a person, read without compiling or running any of it.

use super::{
    LoadError,
    component_info::{Contract, PACKAGE, Tier},
    convert, load,
};

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentFacts {
    /// The contract for which it was built.
    pub contract: Contract,
    /// The tier on which it runs.
    pub tier: Tier,
    /// The interfaces that it imports, without the contract's own, which have types only.
    pub imports: Vec<String>,
    /// The functions of the contract that it does not export.
    pub missing_exports: Vec<&'static str>,
}

impl ComponentFacts {
    /// Reads a component's bytes.
    ///
    /// # Errors
    /// [`LoadError`] if the bytes are not a component, or one for another contract.
    pub fn read(bytes: &[u8]) -> Result<Self, LoadError> {
        const EXPORTS: [&str; 3] = ["describe", "configure", "decide"];
        let (outline, contract) = load::outline(bytes)?;
        let own = |name: &&String| name.strip_prefix(PACKAGE).is_some_and(|rest| rest.starts_with('/'));
        let imports = outline.imports.iter().filter(|name| !own(name)).map(|name| convert::short(name, 160)).collect();
        let is_missing = |name: &&str| !outline.exports.iter().any(|export| export == *name);
        Ok(Self {
            contract,
            tier: outline.tier(),
            imports,
            missing_exports: EXPORTS.into_iter().filter(is_missing).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::prebuilt;
    use super::*;

    #[test]
    fn the_facts_for_a_person_name_what_a_policy_lacks_and_what_it_may_not_import() {
        let policy = ComponentFacts::read(prebuilt::embedded("fhir").unwrap()).unwrap();
        let facts = |imports: &[&str], missing_exports: &[&'static str]| ComponentFacts {
            contract: Contract::V0_1,
            tier: Tier::Sync,
            imports: imports.iter().map(|name| (*name).to_owned()).collect(),
            missing_exports: missing_exports.to_vec(),
        };
        assert_eq!(policy, facts(&[], &[]));
        let other = wat::parse_str("(component (import \"a:b/c\" (instance)))").unwrap();
        assert_eq!(ComponentFacts::read(&other).unwrap(), facts(&["a:b/c"], &["describe", "configure", "decide"]));
        let module = ComponentFacts::read(b"\0asm\x01\0\0\0").unwrap_err();
        assert!(matches!(module, LoadError::CoreModule), "{module}");
    }
}
