//! Checks that the generated parts of the reference pages are up to date.
//!
//! `UPDATE_BOOK=1 cargo nextest run --test integration book::reference` rewrites them.

use super::{read, source_folder};
use crate::{process::child::run, refusals};
use serde_json::Value;
use std::{env, fmt::Write as _, fs};
use triage_admin::openapi;
use triage_config as config;
use triage_telemetry as telemetry;

/// Compares the text between a page's markers with the program's output.
fn compare(page: &str, marker: &str, said: &str) {
    let file = source_folder().join(page);
    let text = read(&file);
    let (begin, end) = (format!("<!-- {marker} -->\n"), format!("<!-- /{marker} -->"));
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?)));
    let (before, (between, after)) = parts.unwrap_or_else(|| panic!("{page} has no markers {begin}{end}"));
    let (between, said) = (between.trim(), said.trim());
    if between != said && env::var_os("UPDATE_BOOK").is_some() {
        fs::write(&file, format!("{before}{begin}{said}\n{end}{after}")).unwrap();
        return;
    }
    let wrong = between.lines().zip(said.lines()).find(|(there, wanted)| there != wanted);
    assert!(
        between == said,
        "{page} is not what the program says; UPDATE_BOOK=1 writes it. First line that differs: {wrong:?}"
    );
}

/// Escapes text for a table cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[test]
fn the_configuration() {
    compare("reference/config.md", "config", &config::reference());
}

#[test]
fn the_metrics() {
    compare("reference/metrics.md", "metrics", &telemetry::reference());
}

#[test]
fn the_problem_types() {
    compare("reference/problems.md", "problems", &refusals::reference());
}

/// The help of a command.
fn help(path: &[&str], flag: &str) -> String {
    let ended = run(&[path, &[flag]].concat());
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{path:?}: {ended:?}");
    let lines: Vec<&str> = ended.out.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// The names of a command's subcommands.
fn subcommands(path: &[&str]) -> Vec<String> {
    let short = help(path, "-h");
    let Some((_, list)) = short.split_once("Commands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

fn command_pages(path: &[&str], page: &mut String) {
    let name = [&["triage"], path].concat().join(" ");
    write!(page, "## {name}\n\n```text\n{}\n```\n\n", help(path, "--help").trim()).unwrap();
    for own in subcommands(path) {
        command_pages(&[path, &[&own]].concat(), page);
    }
}

#[test]
fn the_command_line() {
    let mut page = String::new();
    command_pages(&[], &mut page);
    for command in ["## triage serve\n", "## triage policy push\n", "## triage records resolve\n"] {
        assert!(page.contains(command), "{command} is missing: {page}");
    }
    compare("reference/cli.md", "cli", &page);
}

/// A schema with its reference resolved.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// The name and description of a parameter or body field.
fn field(name: &str, about: &Value, is_required: bool) -> String {
    let words = about["description"].as_str().unwrap_or_default();
    let words = if words.is_empty() { String::new() } else { format!(": {words}") };
    format!("`{name}`{}{words}", if is_required { " (required)" } else { "" })
}

/// The query parameters and body fields of an operation.
fn taken(document: &Value, operation: &Value) -> String {
    let mut fields = Vec::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        if parameter["in"] == "query" {
            fields.push(field(parameter["name"].as_str().unwrap(), parameter, parameter["required"] == true));
        }
    }
    let body = resolved(document, &operation["requestBody"]["content"]["application/json"]["schema"]);
    for (name, about) in body["properties"].as_object().into_iter().flatten() {
        let is_required = body["required"].as_array().is_some_and(|all| all.iter().any(|own| own == name.as_str()));
        fields.push(field(name, about, is_required));
    }
    fields.join("; ")
}

#[test]
fn the_admin_api() {
    let document: Value = serde_json::from_str(openapi()).unwrap();
    let mut table = String::from("| request | does | query or body |\n|---|---|---|\n");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let text = |key: &str| operation[key].as_str().unwrap_or_default();
            let does = format!("{} {}", text("summary"), text("description"));
            let taken = taken(&document, operation);
            let method = method.to_uppercase();
            writeln!(table, "| `{method} {path}` | {} | {} |", cell(does.trim()), cell(&taken)).unwrap();
        }
    }
    assert!(table.lines().count() > 20, "{table}");
    compare("reference/admin-api.md", "admin-api", &table);
}
