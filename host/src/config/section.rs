//! One table of the configuration while it is read: every key is asked for once, what is left over is unknown.

use super::{Problem, Problems, layers::Layers, value::Kind};
use std::cell::RefCell;
use toml::{Table, Value};

/// Collects problems.
pub(super) struct Reading<'a> {
    pub(super) layers: &'a Layers,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self { layers, problems: RefCell::default() }
    }

    /// Notes a problem with the value at `key`.
    pub(super) fn wrong(&self, key: &str, got: impl Into<String>, must: impl Into<String>) {
        let source = self.layers.source(key).cloned();
        let problem = Problem { key: key.to_owned(), got: got.into(), must: must.into(), source };
        self.problems.borrow_mut().push(problem);
    }

    /// The value where there was no problem.
    pub(super) fn done<T>(self, value: Option<T>) -> Result<T, Problems> {
        let problems = self.problems.into_inner();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => Err(Problems(problems)),
        }
    }
}

/// A table.
pub(super) struct Section<'a> {
    pub(super) reading: &'a Reading<'a>,
    pub(super) path: String,
    table: Option<&'a Table>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub(super) fn root(reading: &'a Reading<'a>) -> Self {
        Self { reading, path: String::new(), table: Some(&reading.layers.root), known: RefCell::default() }
    }

    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn value(&self, name: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().push(name);
        self.table.and_then(|table| table.get(name))
    }

    /// A value of a kind; a wrong one is noted and counts as absent.
    pub(super) fn get<T>(&self, name: &'static str, kind: Kind<T>) -> Option<T> {
        let value = self.value(name)?;
        let parsed = kind.0(value);
        if parsed.is_none() {
            self.reading.wrong(&self.key(name), shown(value), kind.1);
        }
        parsed
    }

    /// A text that `parse` turns into something.
    pub(super) fn parsed<T>(&self, name: &'static str, must: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = self.value(name)?;
        let parsed = value.as_str().and_then(parse);
        if parsed.is_none() {
            self.reading.wrong(&self.key(name), shown(value), must);
        }
        parsed
    }

    /// Any value as it is.
    pub(super) fn raw(&self, name: &'static str) -> Option<&'a Value> {
        self.value(name)
    }

    /// A table below this one; an absent one reads as empty.
    pub(super) fn section(&self, name: &'static str) -> Section<'a> {
        let value = self.value(name);
        if let Some(value) = value.filter(|value| !value.is_table()) {
            self.reading.wrong(&self.key(name), shown(value), "be a table");
        }
        self.below(name, value.and_then(Value::as_table))
    }

    /// Every table below this one, by its own name.
    pub(super) fn sections(&self) -> Vec<(String, Section<'a>)> {
        let mut found = Vec::new();
        for (name, value) in self.table.into_iter().flatten() {
            match value.as_table() {
                Some(table) => found.push((name.clone(), self.below(name, Some(table)))),
                None => self.reading.wrong(&self.key(name), shown(value), "be a table"),
            }
        }
        found
    }

    fn below(&self, name: &str, table: Option<&'a Table>) -> Section<'a> {
        Section { reading: self.reading, path: self.key(name), table, known: RefCell::default() }
    }

    /// Tables of a list, each with its own path.
    pub(super) fn list(&self, name: &'static str) -> Option<Vec<Section<'a>>> {
        let value = self.value(name)?;
        let Some(items) = value.as_array() else {
            self.reading.wrong(&self.key(name), shown(value), "be a list of tables");
            return None;
        };
        let section = |(index, item): (usize, &'a Value)| {
            let path = format!("{}[{index}]", self.key(name));
            if !item.is_table() {
                self.reading.wrong(&path, shown(item), "be a table");
            }
            Section { reading: self.reading, path, table: item.as_table(), known: RefCell::default() }
        };
        Some(items.iter().enumerate().map(section).collect())
    }

    /// Notes what nobody asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for key in self.table.into_iter().flat_map(Table::keys).filter(|key| !known.contains(&key.as_str())) {
            let near = known.iter().map(|name| (strsim::levenshtein(name, key), name)).min();
            let must = match near {
                Some((distance, name)) if distance <= 3 => format!("be a known key; did you mean {name:?}?"),
                _ => {
                    let mut names: Vec<&str> = known.clone();
                    names.sort_unstable();
                    format!("be a known key: one of {}", names.join(", "))
                }
            };
            self.reading.wrong(&self.key(key), "an unknown key", must);
        }
    }
}

/// A value in a message: as written, cut short.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}
