//! Checks the book, the README and the pages in `.github`: each page is in the summary, each relative link leads to a page, a heading or a
//! file, and commands and configurations are valid.

mod commands;
mod reference;
mod snippets;

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src")
}

/// The root of the repository.
fn repository() -> PathBuf {
    plain(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
}

/// The pages outside the book. They may link to any file of the repository.
fn pages_beside() -> Vec<PathBuf> {
    let root = repository();
    let mut found = vec![root.join("README.md"), root.join("host/CHANGELOG.md")];
    found.extend(pages(&root.join(".github")));
    found
}

/// All pages: the book's and those beside it.
fn all_pages() -> Vec<PathBuf> {
    pages(&plain(&source_folder())).into_iter().chain(pages_beside()).collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every page below a folder.
fn pages(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.insert(path);
        }
    }
    found
}

/// The code blocks of a page, each with its language.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), open.take()) {
            (Some(word), None) => open = Some((word.trim().to_owned(), String::new())),
            (Some(_), Some(block)) => found.push(block),
            (None, Some((word, code))) => open = Some((word, code + line + "\n")),
            (None, None) => {}
        }
    }
    found
}

/// The lines of a page that are not code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// A line without its code spans, so that they contain no links.
fn without_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let line = without_code_spans(line);
        for rest in line.split("](").skip(1) {
            found.push(rest.split(')').next().unwrap_or_default().to_owned());
        }
    }
    found
}

/// The ids of a page's headings, by the rules of mdBook and GitHub.
fn heading_ids(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let id = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(id).collect()
}

/// Removes `.` and `..` from a path.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// The broken links of a page. A target must be in `folder`, because the built book contains only its source folder.
fn broken_links(page: &Path, text: &str, folder: &Path) -> Vec<String> {
    let mut broken = Vec::new();
    for link in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, heading) = link.split_once('#').map_or((link.as_str(), None), |(path, id)| (path, Some(id)));
        let target = if path.is_empty() { page.to_owned() } else { plain(&page.parent().unwrap().join(path)) };
        let name = page.strip_prefix(folder).unwrap().display();
        if !target.starts_with(folder) || !target.exists() {
            broken.push(format!("{name}: ({link}) leads to nothing"));
        } else if let Some(heading) = heading
            && !heading_ids(&read(&target)).contains(heading)
        {
            broken.push(format!("{name}: ({link}) names no heading"));
        }
    }
    broken
}

#[test]
fn each_page_is_in_the_summary_once() {
    let folder = plain(&source_folder());
    let listed: Vec<PathBuf> =
        links(&read(&folder.join("SUMMARY.md"))).iter().map(|link| plain(&folder.join(link))).collect();
    let distinct: BTreeSet<PathBuf> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), distinct.len(), "a page is listed twice");
    let mut there = pages(&folder);
    there.remove(&folder.join("SUMMARY.md"));
    assert_eq!(there, distinct, "left: pages below host/docs/src; right: those that SUMMARY.md lists");
}

#[test]
fn each_relative_link_leads_somewhere() {
    let folder = plain(&source_folder());
    let mut broken: Vec<String> =
        pages(&folder).iter().flat_map(|page| broken_links(page, &read(page), &folder)).collect();
    let root = repository();
    broken.extend(pages_beside().iter().flat_map(|page| broken_links(page, &read(page), &root)));
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Paths of the repository in a page's code spans.
fn named_paths(text: &str) -> Vec<String> {
    let spans = prose(text).flat_map(|line| line.split('`').skip(1).step_by(2));
    let is_path = |span: &&str| {
        let begins = ["host/", "tests/", "wit/", "guest-policies/", ".ci/", ".github/"];
        begins.iter().any(|begin| span.starts_with(begin)) && !span.contains([' ', '*', '<', '…'])
    };
    spans.filter(is_path).map(str::to_owned).collect()
}

#[test]
fn each_path_that_a_page_names_is_there() {
    let root = repository();
    let mut missing = Vec::new();
    // The changelog may name paths that no longer exist.
    for page in all_pages().iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let paths = named_paths(&read(page)).into_iter().filter(|path| !root.join(path).exists());
        missing.extend(paths.map(|path| format!("{}: {path}", page.strip_prefix(&root).unwrap().display())));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn the_readme_is_short_and_leads_to_the_book() {
    let readme = read(&repository().join("README.md"));
    assert!(readme.lines().count() <= 150, "{} lines: what needs more belongs into the book", readme.lines().count());
    for command in ["cargo run --profile demo -- demo", "bash .ci/run"] {
        assert!(readme.lines().any(|line| line.starts_with(command)), "{command} is missing");
    }
    assert!(readme.contains("```mermaid\n"), "the picture of a request's way is missing");
}

#[test]
fn a_broken_link_is_found() {
    let folder = plain(&source_folder());
    let page = folder.join("introduction.md");
    let text = "[a](introduction.md#where-to-read) [b](gone.md) [c](introduction.md#gone) [d](https://a.example) `[e](code.md)`\n\
                ```\n[f](fenced.md)\n```\n[g](../../CHANGELOG.md) [h](#where-to-read)\n";
    let broken = broken_links(&page, text, &folder);
    assert_eq!(
        broken,
        [
            "introduction.md: (gone.md) leads to nothing",
            "introduction.md: (introduction.md#gone) names no heading",
            "introduction.md: (../../CHANGELOG.md) leads to nothing",
        ]
    );
}
