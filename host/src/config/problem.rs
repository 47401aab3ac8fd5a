//! What is wrong with a configuration, and where each value came from.

use std::{fmt, path::PathBuf};

/// Who said a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody: Triage's own default.
    Default,
    /// The policy proposes it; its name.
    Policy(String),
    /// Triage's own default or the policy's proposal, moved so that it fits the value of another key.
    Adapted(&'static str),
    /// The file.
    File {
        /// The file's path as it was given.
        path: PathBuf,
        /// The line, from 1, where it is known.
        line: Option<usize>,
    },
    /// The environment variable of this name.
    Env(String),
    /// The flag of this name, with its dashes.
    Flag(&'static str),
}

impl Source {
    /// Whether it is the operator's word, and not a default or a proposal that gives way to it.
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

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The value is not one that the key takes.
    Value {
        /// What it got.
        got: String,
        /// What it must be.
        must_be: String,
    },
    /// There is no such key, variable or flag.
    Unknown {
        /// A known one that is near.
        near: Option<String>,
    },
    /// The value is fine by itself, but not beside another.
    Conflict {
        /// What it got.
        got: String,
        /// What forbids it.
        because: String,
        /// What it must be.
        must_be: String,
    },
    /// The file is not TOML.
    Syntax(String),
    /// What the value names is there, or should be, and cannot be used: a policy, a file.
    Refused(String),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key path, such as `server.listen`.
    pub key: String,
    /// What is wrong.
    pub fault: Fault,
    /// Where it was said; none for what is missing.
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

    /// What the value names cannot be used.
    pub fn refused(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self { key: key.into(), fault: Fault::Refused(why.into()), source: None }
    }

    /// The same problem, with who said the value.
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

/// Every problem of a configuration, in the order in which it was read; never empty. Displayed one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// The problems.
    pub(crate) fn into_vec(self) -> Vec<Problem> {
        self.0
    }

    /// The problems.
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
