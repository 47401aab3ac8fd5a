//! The phases of loading a policy.

/// A phase of loading a policy. A refusal names the phase that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum StagePhase {
    /// Reading the file.
    Read,
    /// Pulling the artifact from its registry.
    Pull,
    /// Checking that the policy was not rolled back before.
    Quarantine,
    /// Checking the checksum, if there is one.
    Checksum,
    /// Checking the signature, if there are keys.
    Signature,
    /// Everything up to `configure`: size, format, imports, exports, description, settings.
    Load,
    /// Running the golden cases.
    Cases,
    /// Matching its endpoints with the configuration.
    Configuration,
}

impl StagePhase {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
