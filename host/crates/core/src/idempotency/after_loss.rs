//! The rule for records that shared state may have lost.

/// The rule for a request whose record shared state may have lost, if a verification finds a matching resource but no claim names
/// the request that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum AfterLoss {
    /// The effect stays unknown until the caller or an operator settles it: an equal request may have made the resource.
    Ask,
    /// The request adopts the resource, even if an equal request may have made it.
    Adopt,
}

impl AfterLoss {
    /// The value in a configuration.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
