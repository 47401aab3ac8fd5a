//! Values of configuration keys that choose one of a few ways.

use crate::registry::Artifact;
use std::{fmt, path::PathBuf};

/// The source of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicySource {
    /// Built into the host. Trusted to settle unknown writes.
    Embedded(String),
    /// A component file. Trusted to settle unknown writes only if the operator says so.
    File(PathBuf),
    /// A component in a registry, by digest. Trusted to settle unknown writes only if the operator says so.
    Registry(Artifact),
    /// The native policy that all others fall back to.
    Builtin,
}

impl fmt::Display for PolicySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Registry(artifact) => artifact.fmt(f),
            Self::Builtin => f.write_str("built-in"),
        }
    }
}

/// How a candidate policy is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Mode {
    /// Shadow: the candidate decides after the live policy, and its verdicts are only compared.
    Shadow,
    /// Canary: the candidate decides for a share of the requests.
    Canary,
}

impl Mode {
    /// The name in the configuration and in logs.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// How URLs in responses that lead to the upstream are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Redirects {
    /// Rewrite them to the host's address that the caller used.
    Rewrite,
    /// Keep them; callers may then bypass the host.
    Pass,
}

impl Redirects {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
