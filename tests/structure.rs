//! The layers inside each crate: no two top-level modules import each other, directly or indirectly.
//!
//! Modules in a cycle cannot be understood, tested or moved separately. Test code may import anything.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Imports by module.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// The top-level modules that a source refers to by paths from the crate's root. `depth` is the number of modules above its items, and that
/// many `super` lead to the root.
fn imports_of(source: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let tokens: TokenStream = source.parse().unwrap_or_else(|error| panic!("no Rust source: {error}"));
    collect(tokens, depth, &mut found);
    found
}

fn collect(tokens: TokenStream, depth: usize, found: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut index = 0;
    while index < tokens.len() {
        if let Some(after) = test_item(&tokens[index..]) {
            index += after;
        } else if let Some(after) = root(&tokens[index..], depth) {
            index += after;
            match tokens.get(index) {
                Some(TokenTree::Ident(name)) => {
                    found.insert(name.to_string());
                }
                Some(TokenTree::Group(group)) => firsts(group.stream(), found),
                _ => {}
            }
        } else {
            if let TokenTree::Group(group) = &tokens[index] {
                collect(group.stream(), depth, found);
            }
            index += 1;
        }
    }
}

/// The number of tokens of an item with `#[cfg(test)]`, including the attribute; none if no such item begins here.
fn test_item(tokens: &[TokenTree]) -> Option<usize> {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), item @ ..] = tokens else { return None };
    let is_test = hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)";
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    };
    is_test.then(|| 2 + item.iter().position(ends).map_or(item.len(), |end| end + 1))
}

/// The number of tokens of `crate::`, or of the `super::` that lead to the crate's root.
fn root(tokens: &[TokenTree], depth: usize) -> Option<usize> {
    let begins = |tokens: &[TokenTree], word: &str| {
        let [TokenTree::Ident(first), TokenTree::Punct(one), TokenTree::Punct(two), ..] = tokens else { return false };
        first == word && one.as_char() == ':' && two.as_char() == ':'
    };
    if begins(tokens, "crate") {
        return Some(3);
    }
    let mut supers = 0;
    while begins(&tokens[3 * supers..], "super") {
        supers += 1;
    }
    (supers > 0 && supers == depth).then_some(3 * supers)
}

/// Collects the first name of each path in the braces of a `use`.
fn firsts(tree: TokenStream, found: &mut BTreeSet<String>) {
    let mut is_first = true;
    for token in tree {
        match token {
            TokenTree::Ident(name) if is_first => {
                found.insert(name.to_string());
                is_first = false;
            }
            TokenTree::Punct(punct) if punct.as_char() == ',' => is_first = true,
            _ => {}
        }
    }
}

/// Reads every source below a folder. `path` lists the modules above it.
fn read(folder: &Path, path: &[String], imports: &mut Imports) {
    for entry in fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        // Files with these names are test modules.
        if name == "tests" || name == "test_server" {
            continue;
        }
        let path: Vec<String> = path.iter().cloned().chain([name]).collect();
        if file.is_dir() {
            read(&file, &path, imports);
        } else if file.extension().is_some_and(|extension| extension == "rs") {
            let own = imports.entry(path[0].clone()).or_default();
            own.extend(imports_of(&fs::read_to_string(&file).unwrap(), path.len()));
        }
    }
}

/// A cycle that ends with its first module; none if there is no cycle.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    fn visit(
        module: &str,
        imports: &Imports,
        done: &mut BTreeSet<String>,
        way: &mut Vec<String>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = way.iter().position(|own| own == module) {
            return Some(way[begin..].iter().cloned().chain([module.to_owned()]).collect());
        }
        if !done.insert(module.to_owned()) {
            return None;
        }
        way.push(module.to_owned());
        let found = imports.get(module).into_iter().flatten().find_map(|next| visit(next, imports, done, way));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|module| visit(module, imports, &mut done, &mut Vec::new()))
}

/// The crates: the library, and the ones below it. Cargo forbids cycles between them.
fn crates() -> BTreeMap<String, PathBuf> {
    let host = Path::new(env!("CARGO_MANIFEST_DIR"));
    let below = fs::read_dir(host.join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let named = below.map(|folder| (folder.file_name().unwrap().to_string_lossy().into_owned(), folder.join("src")));
    named.chain([("triage".to_owned(), host.join("src"))]).collect()
}

/// The imports of a crate's modules, without the program's `main.rs` and `command` above the library.
fn modules_of(sources: &Path) -> Imports {
    let mut imports = Imports::new();
    read(sources, &[], &mut imports);
    for above in ["lib", "main", "command"] {
        imports.remove(above);
    }
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    for (module, own) in &mut imports {
        own.retain(|import| import != module && modules.contains(import));
    }
    imports
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let crates = crates();
    assert!(crates.len() > 12, "the crates are not where they were: {crates:?}");
    let mut circles = Vec::new();
    for (name, sources) in &crates {
        let imports = modules_of(sources);
        circles.extend(circle(&imports).map(|circle| format!("{name}: {}", circle.join(" -> "))));
    }
    assert!(modules_of(&crates["core"])["breaker"].contains("clock"), "imports are not found any more");
    assert!(circles.is_empty(), "cut one of these imports: move what both need into a module below them: {circles:#?}");
}

#[test]
fn imports_are_found_in_each_form_and_not_in_tests() {
    let source = "
        use crate::{clock::Clock, gate, store::{memory, redis}};
        use super::super::route::Router;
        use super::local;
        /// [`crate::admin`]
        fn f() { tracing::debug!(at = crate::units::write(1)); let text = \"crate::demo\"; }
        #[cfg(test)]
        mod tests { use crate::emulator; }
        #[cfg(test)]
        pub(crate) mod more;
        fn g() -> crate::retry::Limit { todo!() }
    ";
    let found: Vec<String> = imports_of(source, 2).into_iter().collect();
    assert_eq!(found, ["clock", "gate", "retry", "route", "store", "units"]);
}

#[test]
fn a_circle_is_found_through_others() {
    let imports = |all: &[(&str, &[&str])]| -> Imports {
        all.iter().map(|(name, own)| ((*name).to_owned(), own.iter().map(|own| (*own).to_owned()).collect())).collect()
    };
    assert_eq!(circle(&imports(&[("a", &["b"]), ("b", &["c"]), ("c", &[])])), None);
    let found = circle(&imports(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]));
    assert_eq!(found.unwrap(), ["b", "c", "b"]);
}
