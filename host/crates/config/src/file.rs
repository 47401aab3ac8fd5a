//! The file layer: TOML, with the line number of every key.

use super::{
    builder::Draft,
    layers::Raw,
    problem::{Fault, Problem, Source},
    schema::{self, KeyScope},
};
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Errors after these are usually consequences of the first ones.
const MAX_SYNTAX_ERRORS: usize = 10;

/// Reads a file into the draft. Returns false if it is not TOML: no value is taken then, and a key that seems missing may be in the file.
pub(super) fn read(draft: &mut Draft, path: &Path, text: &str) -> bool {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(MAX_SYNTAX_ERRORS) {
        let source = Source::File { path: path.to_owned(), line: error.span().map(|span| line(text, span.start)) };
        let fault = Fault::Syntax(error.message().to_owned());
        draft.fault(Problem { key: String::new(), fault, source: None }, &source);
    }
    if errors.is_empty() {
        Walk { draft, path, text }.table(&mut Vec::new(), document.get_ref());
    }
    // Tables are visited one by one, but a file is fixed from top to bottom.
    draft.problems.sort_by_key(|problem| match problem.source {
        Some(Source::File { line, .. }) => line,
        _ => None,
    });
    errors.is_empty()
}

fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

struct Walk<'a> {
    draft: &'a mut Draft,
    path: &'a Path,
    text: &'a str,
}

impl Walk<'_> {
    fn table(&mut self, path: &mut Vec<String>, table: &DeTable<'_>) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            let source = Source::File { path: self.path.to_owned(), line: Some(line(self.text, key.span().start)) };
            self.entry(path, value.get_ref(), source);
            path.pop();
        }
    }

    fn entry(&mut self, path: &mut Vec<String>, value: &DeValue<'_>, source: Source) {
        let fine = match schema::scope(path) {
            KeyScope::Leaf(..) | KeyScope::Unknown(_) => false,
            KeyScope::Branch => true,
            KeyScope::Upstream(name) => self.draft.upstream(&name, &source),
            KeyScope::Endpoint(upstream, name) => self.draft.endpoint(&upstream, &name, &source),
        };
        match value {
            DeValue::Table(table) if fine => self.table(path, table),
            DeValue::Table(_) if matches!(schema::scope(path), KeyScope::Upstream(_) | KeyScope::Endpoint(..)) => {}
            _ => self.draft.state(path, &Raw::of(value), source),
        }
    }
}
