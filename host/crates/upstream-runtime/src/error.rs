//! Why an upstream cannot be served.

use crate::{
    StagePhase, config,
    policy::{EngineError, LoadError, golden_tests::CasesError, prebuilt, signature::SignatureError},
    registry::RegistryError,
    route::RouteError,
};
use std::path::PathBuf;

/// Why an upstream cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The policy engine could not be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The policy's file could not be read.
    #[error("policy file {} of upstream {upstream} cannot be read; it must be a component", path.display())]
    File {
        /// The upstream's name.
        upstream: String,
        /// The file's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The policy's checksum or signature was refused, so its author is not proven.
    #[error("policy {} of upstream {upstream} is refused", path.display())]
    Unproven {
        /// The upstream's name.
        upstream: String,
        /// The file's path, or the artifact's reference.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<SignatureError>,
    },
    /// No embedded policy has this name.
    #[error("upstream {upstream}: {name:?} is not an embedded policy; the embedded policies are {}", prebuilt::names().join(", "))]
    NoSuchPolicy {
        /// The upstream's name.
        upstream: String,
        /// The name given.
        name: String,
    },
    /// The policy could not be fetched from its registry.
    #[error("the policy of upstream {upstream} cannot be pulled from its registry")]
    Registry {
        /// The upstream's name.
        upstream: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// The component was refused when it was loaded.
    #[error("the policy of upstream {upstream} was refused")]
    Policy {
        /// The upstream's name.
        upstream: String,
        /// Why.
        #[source]
        source: LoadError,
    },
    /// The policy fails the golden cases delivered with it.
    #[error("the policy of upstream {upstream} does not pass the cases in its artifact")]
    Cases {
        /// The upstream's name.
        upstream: String,
        /// The cases that differ.
        #[source]
        source: CasesError,
    },
    /// The configuration does not fit the policy.
    #[error("the configuration of upstream {upstream} does not fit its policy: {problems}")]
    Config {
        /// The upstream's name.
        upstream: String,
        /// Every problem.
        problems: config::Problems,
    },
    /// The paths of endpoints overlap or are malformed.
    #[error("upstream {upstream}: {source}")]
    Route {
        /// The upstream's name.
        upstream: String,
        /// Why.
        #[source]
        source: RouteError,
    },
}

impl ServiceError {
    /// The load phase that failed.
    pub fn step(&self) -> StagePhase {
        match self {
            Self::File { .. } | Self::NoSuchPolicy { .. } => StagePhase::Read,
            Self::Registry { .. } => StagePhase::Pull,
            Self::Unproven { source, .. } if source.is_checksum() => StagePhase::Checksum,
            Self::Unproven { .. } => StagePhase::Signature,
            Self::Engine(_) | Self::Policy { .. } => StagePhase::Load,
            Self::Cases { .. } => StagePhase::Cases,
            Self::Config { .. } | Self::Route { .. } => StagePhase::Configuration,
        }
    }
}
