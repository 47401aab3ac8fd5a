//! The rule for records that shared state may have lost.

/// What becomes of a request that shared state may have forgotten, where a verification finds what it asks for and no claim says
/// which request made that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterLoss {
    /// It stays unknown until its caller or an operator says what it is: an equal request may have made it.
    Ask,
    /// It is adopted: a request may be given what an equal one made.
    Adopt,
}

impl AfterLoss {
    /// Its word in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Adopt => "adopt",
        }
    }
}
