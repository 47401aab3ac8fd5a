//! The roles of callers, and the actions that each role permits.

/// A caller's permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Role {
    /// May read.
    Read,
    /// May read and act.
    Write,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        self.into()
    }
}
