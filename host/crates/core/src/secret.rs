//! Secrets, and the places they are read from.

use std::{fmt, path::PathBuf};

/// The source of a token, password or key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file; white space around its text is ignored.
    File(PathBuf),
    /// The text, which an environment variable gave.
    Environment(Secret),
}

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for comparison or for the wire.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}
