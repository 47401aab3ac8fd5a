//! What is wrong with a configuration: key path, what it got, what it must be, and where it came from.

use super::layers::Source;
use std::fmt;

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key path, such as `upstreams.hospital.base_url`.
    pub key: String,
    /// What was found there; empty where the key is missing.
    pub got: String,
    /// What it must be.
    pub must: String,
    /// Where the value came from.
    pub source: Option<Source>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.key)?;
        if !self.got.is_empty() {
            write!(f, "got {}", self.got)?;
            if let Some(source) = &self.source {
                write!(f, " ({source})")?;
            }
            f.write_str("; ")?;
        }
        write!(f, "must {}", self.must)
    }
}

/// Every problem of a configuration, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
