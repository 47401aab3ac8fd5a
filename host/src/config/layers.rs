//! The sources, one on top of the other.

use super::{Inputs, Problem, Problems, environment};
use std::{collections::BTreeMap, fmt};
use toml::{Table, Value};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The host's default.
    Default,
    /// A policy's proposal.
    Policy(String),
    /// The file.
    File(String),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Policy(name) => write!(f, "policy {name}"),
            Self::File(name) => write!(f, "file {name}"),
            Self::Environment(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The values, and where each came from.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) root: Table,
    sources: BTreeMap<String, Source>,
}

impl Layers {
    pub(super) fn stack(inputs: &Inputs) -> Result<Self, Problems> {
        let mut layers = Self::default();
        if let Some((name, text)) = &inputs.file {
            layers.root = text.parse::<Table>().map_err(|error| syntax(name, text, &error))?;
            let mut found = Vec::new();
            leaves("", &layers.root, &mut found);
            layers.sources = found.into_iter().map(|key| (key, Source::File(name.clone()))).collect();
        }
        environment::lay(&mut layers, &inputs.environment);
        inputs.flags.lay(&mut layers);
        Ok(layers)
    }

    /// Puts a value at a key path, over whatever is there.
    pub(super) fn put(&mut self, key: &str, value: Value, source: Source) {
        let mut table = &mut self.root;
        let mut path: Vec<&str> = key.split('.').collect();
        let Some(last) = path.pop() else { return };
        for part in path {
            let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            let Some(inner) = entry.as_table_mut() else { return };
            table = inner;
        }
        table.insert(last.to_owned(), value);
        self.sources.insert(key.to_owned(), source);
    }

    /// Where a key's value came from.
    pub(super) fn source(&self, key: &str) -> Option<&Source> {
        // A list or an inline table has its source at its own key.
        self.sources.get(key).or_else(|| key.rsplit_once('.').and_then(|(parent, _)| self.source(parent)))
    }

    /// The names of the upstreams so far.
    pub(super) fn upstreams(&self) -> Vec<String> {
        let upstreams = self.root.get("upstreams").and_then(Value::as_table);
        upstreams.map(|table| table.keys().cloned().collect()).unwrap_or_default()
    }
}

fn leaves(prefix: &str, table: &Table, found: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => leaves(&path, inner, found),
            _ => found.push(path),
        }
    }
}

fn syntax(name: &str, text: &str, error: &toml::de::Error) -> Problems {
    let line = error.span().map_or(0, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
    Problems(vec![Problem {
        key: format!("{name}:{line}"),
        got: error.message().lines().next().unwrap_or_default().to_owned(),
        must: "be TOML".to_owned(),
        source: None,
    }])
}
