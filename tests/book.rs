//! The book: each page is in its summary, and each relative link leads to a page, a heading or a file.

mod snippets;

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src")
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

/// The lines of a page that are not code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// A line without its code spans: what looks like a link in there is none.
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

/// The ids of a page's headings, as mdBook and GitHub make them.
fn heading_ids(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let id = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(id).collect()
}

/// A path without `.` and `..`.
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

/// What is wrong with a page's links.
fn broken_links(page: &Path, text: &str, folder: &Path) -> Vec<String> {
    let mut broken = Vec::new();
    for link in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, heading) = link.split_once('#').map_or((link.as_str(), None), |(path, id)| (path, Some(id)));
        let target = if path.is_empty() { page.to_owned() } else { plain(&page.parent().unwrap().join(path)) };
        let name = page.strip_prefix(folder).unwrap().display();
        // The built book holds what is below its source folder, and nothing else of the repository.
        if !target.starts_with(folder) || !target.is_file() {
            broken.push(format!("{name}: ({link}) is no file of the book"));
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
    let broken: Vec<String> = pages(&folder).iter().flat_map(|page| broken_links(page, &read(page), &folder)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_broken_link_is_found() {
    let folder = plain(&source_folder());
    let page = folder.join("introduction.md");
    let text = "[a](introduction.md#words) [b](gone.md) [c](introduction.md#gone) [d](https://a.example) `[e](code.md)`\n\
                ```\n[f](fenced.md)\n```\n[g](../../CHANGELOG.md) [h](#words)\n";
    let broken = broken_links(&page, text, &folder);
    assert_eq!(
        broken,
        [
            "introduction.md: (gone.md) is no file of the book",
            "introduction.md: (introduction.md#gone) names no heading",
            "introduction.md: (../../CHANGELOG.md) is no file of the book",
        ]
    );
}
