//! Checks what readers would type: configurations load, and commands and their options exist.

use super::{all_pages, blocks, read, repository};
use std::process::Command;
use toml::{Table, Value};
use triage_config as config;

/// Completes a configuration, since a page may show only a part of one.
fn completed(block: &str) -> Result<String, String> {
    // Pages abbreviate digests.
    let text = block.replace("sha256:...", &format!("sha256:{}", "0".repeat(64)));
    let mut table: Table = text.parse().map_err(|error| format!("{error}"))?;
    let upstreams = table.entry("upstreams").or_insert_with(|| Value::Table(Table::new()));
    let upstreams = upstreams.as_table_mut().ok_or("`upstreams` is no table")?;
    if upstreams.is_empty() {
        upstreams.insert("api".to_owned(), Value::Table(Table::new()));
    }
    for (_, upstream) in upstreams.iter_mut() {
        let upstream = upstream.as_table_mut().ok_or("an upstream is no table")?;
        upstream.entry("base_url").or_insert_with(|| Value::String("https://api.example".to_owned()));
    }
    toml::to_string(&table).map_err(|error| error.to_string())
}

#[test]
fn each_configuration_in_a_page_loads() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in all_pages() {
        for (language, block) in blocks(&read(&page)) {
            if language != "toml" {
                continue;
            }
            seen += 1;
            let loaded = completed(&block)
                .and_then(|text| config::from_toml(&text).map(drop).map_err(|problems| problems.to_string()));
            if let Err(why) = loaded {
                wrong.push(format!("{}: {why}\n{block}", page.strip_prefix(repository()).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 8, "only {seen} configurations were found");
}

/// The commands of a block that begin with `triage`.
fn commands(block: &str) -> Vec<&str> {
    block
        .lines()
        .map(|line| line.strip_prefix("$ ").unwrap_or(line))
        .filter(|line| line.starts_with("triage "))
        .collect()
}

/// Parses each line with a shell, as a reader would. With `--help` appended, the command only checks its names and options.
#[test]
fn each_command_in_a_page_is_there() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in all_pages() {
        for (language, block) in blocks(&read(&page)) {
            if !matches!(language.as_str(), "" | "sh") {
                continue;
            }
            for line in commands(&block) {
                seen += 1;
                let script = format!("triage() {{ \"$PROGRAM\" \"$@\" --help; }}\n{line}\n");
                let mut shell = Command::new("sh");
                let output = shell.arg("-c").arg(script).env("PROGRAM", env!("CARGO_BIN_EXE_triage")).output().unwrap();
                if !output.status.success() {
                    let page = page.strip_prefix(repository()).unwrap().display().to_string();
                    wrong.push(format!("{page}: {line}\n{}", String::from_utf8_lossy(&output.stderr)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 15, "only {seen} commands were found");
}
