//! The languages for which `triage policy new` and `triage policy build` work.

use std::path::{Path, PathBuf};

/// A language for policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Language {
    /// A crate that uses the SDK: the smallest and fastest components.
    Rust,
    /// A module that componentize-js packs into a component.
    #[strum(serialize = "js")]
    JavaScript,
    /// A module that componentize-py packs into a component.
    Python,
}

impl Language {
    /// All languages; the first is the default.
    pub const ALL: [Self; 3] = [Self::Rust, Self::JavaScript, Self::Python];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The name in messages.
    pub fn title(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::JavaScript => "JavaScript",
            Self::Python => "Python",
        }
    }

    /// The manifest's file name. The manifest names the policy, and its file name shows the language.
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Rust => "Cargo.toml",
            Self::JavaScript => "package.json",
            Self::Python => "pyproject.toml",
        }
    }

    /// The path of the policy's source file in its folder.
    pub fn source(self) -> &'static str {
        match self {
            Self::Rust => "src/lib.rs",
            Self::JavaScript => "policy.js",
            Self::Python => "policy.py",
        }
    }

    /// The language of the policy in a folder, and its manifest.
    pub fn of(dir: &Path) -> Option<(Self, PathBuf)> {
        Self::ALL.into_iter().map(|language| (language, dir.join(language.manifest()))).find(|(_, path)| path.is_file())
    }

    /// The policy's name in a manifest, if it is usable as a file name.
    pub fn package(self, manifest: &str) -> Option<String> {
        let name = match self {
            Self::Rust => toml_name(manifest, "package"),
            Self::Python => toml_name(manifest, "project"),
            Self::JavaScript => {
                let manifest: serde_json::Value = serde_json::from_str(manifest).ok()?;
                manifest.get("name")?.as_str().map(str::to_owned)
            }
        }?;
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (!name.is_empty() && name.chars().all(fits)).then_some(name)
    }
}

fn toml_name(manifest: &str, table: &str) -> Option<String> {
    let manifest: toml::Table = manifest.parse().ok()?;
    Some(manifest.get(table)?.get("name")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_names_the_policy_and_no_path() {
        let name = |language: Language, manifest: &str| language.package(manifest);
        assert_eq!(name(Language::Rust, "[package]\nname = \"a-b\""), Some("a-b".to_owned()));
        assert_eq!(name(Language::Python, "[project]\nname = \"a\""), Some("a".to_owned()));
        assert_eq!(name(Language::JavaScript, "{\"name\": \"a_1\"}"), Some("a_1".to_owned()));
        for (language, manifest) in [
            (Language::Rust, "[workspace]"),
            (Language::Rust, "[package]\nname = 1"),
            (Language::JavaScript, "{\"name\": \"@scope/../a\"}"),
            (Language::JavaScript, "{\"name\": \"\"}"),
            (Language::Python, "no toml"),
        ] {
            assert_eq!(name(language, manifest), None, "{manifest}");
        }
    }
}
