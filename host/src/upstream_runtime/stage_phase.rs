//! The phases in which a component becomes a policy that may serve.

/// A phase of loading a policy; a refused component names the one that refused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StagePhase {
    /// Reading the file.
    Read,
    /// Pulling it from its registry.
    Pull,
    /// It was rolled back before.
    Quarantine,
    /// Its checksum, where there is one.
    Checksum,
    /// Its signature, where there are keys.
    Signature,
    /// Everything up to `configure`: size, format, imports, exports, description, settings.
    Load,
    /// Its golden cases.
    Cases,
    /// Its endpoints and the configuration.
    Configuration,
}

impl StagePhase {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Pull => "pull",
            Self::Quarantine => "quarantine",
            Self::Checksum => "checksum",
            Self::Signature => "signature",
            Self::Load => "load",
            Self::Cases => "cases",
            Self::Configuration => "configuration",
        }
    }
}
