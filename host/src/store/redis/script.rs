//! A script: one atomic step on the server, known there by the digest of its text.

use ring::digest;
use std::{fmt::Write as _, sync::OnceLock};

/// A script's text and, once asked for, its digest. Scripts are statics.
#[derive(Debug)]
pub struct Script {
    name: &'static str,
    source: &'static str,
    sha: OnceLock<String>,
}

impl Script {
    /// A script by its text. `name` stands in logs.
    pub const fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, sha: OnceLock::new() }
    }

    /// The name in logs.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The text.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// The digest under which a server keeps it.
    pub fn sha(&self) -> &str {
        self.sha.get_or_init(|| sha1(self.source))
    }
}

fn sha1(text: &str) -> String {
    let mut hex = String::with_capacity(40);
    for byte in digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_known_by_the_sha1_of_its_text() {
        static SCRIPT: Script = Script::new("one", "return 1");
        assert_eq!(SCRIPT.sha(), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
