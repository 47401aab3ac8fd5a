//! Configuration problems, and the source of each value.

use std::{fmt, path::PathBuf};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Triage's own default.
    Default,
    /// A proposal of the policy with this name.
    Policy(String),
    /// Triage's default or the policy's proposal, adjusted to fit the value of the key named here.
    Adapted(&'static str),
    /// The configuration file.
    File {
        /// The file's path as given.
        path: PathBuf,
        /// The line number from 1, if known.
        line: Option<usize>,
    },
    /// The environment variable of this name.
    Env(String),
    /// The flag of this name, with its dashes.
    Flag(&'static str),
}

impl Source {
    /// Whether the operator set the value. Defaults and proposals give way to such a value.
    pub fn is_operator(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Env(_) | Self::Flag(_))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Policy(name) => write!(f, "policy {name}"),
            Self::Adapted(key) => write!(f, "adapted to {key}"),
            Self::File { path, line: None } => write!(f, "file {}", path.display()),
            Self::File { path, line: Some(line) } => write!(f, "file {}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The key does not take this value.
    Value {
        /// The value as written.
        got: String,
        /// The values that the key takes.
        must_be: String,
    },
    /// There is no such key, variable or flag.
    Unknown {
        /// The most similar known name, if it is close enough.
        near: Option<String>,
    },
    /// The value is valid alone, but conflicts with another.
    Conflict {
        /// The value as written.
        got: String,
        /// The value it conflicts with.
        because: String,
        /// The values that would fit.
        must_be: String,
    },
    /// The file is not TOML.
    Syntax(String),
    /// The named policy or file is missing or cannot be used; the text says why.
    Refused(String),
}

/// One problem in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key path, such as `server.listen`.
    pub key: String,
    /// What is wrong.
    pub fault: Fault,
    /// Where the value was set; none for a missing value.
    pub source: Option<Source>,
}

impl Problem {
    pub(super) fn value(key: impl Into<String>, got: impl Into<String>, must_be: impl Into<String>) -> Self {
        let fault = Fault::Value { got: got.into(), must_be: must_be.into() };
        Self { key: key.into(), fault, source: None }
    }

    pub(super) fn conflict(
        key: impl Into<String>,
        got: impl Into<String>,
        because: impl Into<String>,
        must_be: impl Into<String>,
    ) -> Self {
        let fault = Fault::Conflict { got: got.into(), because: because.into(), must_be: must_be.into() };
        Self { key: key.into(), fault, source: None }
    }

    pub(super) fn unknown(key: impl Into<String>, near: Option<String>) -> Self {
        Self { key: key.into(), fault: Fault::Unknown { near }, source: None }
    }

    /// The problem of a policy or file that cannot be used.
    pub fn refused(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self { key: key.into(), fault: Fault::Refused(why.into()), source: None }
    }

    /// The same problem with the source of the value.
    #[must_use]
    pub fn from(mut self, source: &Source) -> Self {
        self.source = Some(source.clone());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            Fault::Value { got, must_be } => write!(f, "{}: got {got}; must be {must_be}", self.key)?,
            Fault::Conflict { got, because, must_be } => {
                write!(f, "{}: got {got}, but {because}; must be {must_be}", self.key)?;
            }
            Fault::Unknown { near: None } => write!(f, "{}: is not known; remove it", self.key)?,
            Fault::Unknown { near: Some(near) } => write!(f, "{}: is not known; did you mean {near}?", self.key)?,
            Fault::Refused(why) => write!(f, "{}: {why}", self.key)?,
            Fault::Syntax(what) => write!(f, "not TOML: {what}")?,
        }
        match &self.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

/// Every problem of a configuration in reading order, at least one. Displayed one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Accepts a configuration without problems.
    ///
    /// # Errors
    /// All problems that were found.
    pub fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// The problems in the order of their paths.
    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }

    /// Every problem in reading order.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl std::error::Error for Problems {}
