//! A Lua script, which Redis runs atomically and caches under the digest of its text.

use ring::digest;
use std::{fmt::Write as _, sync::OnceLock};

/// The text of a script and its digest, which is computed at first use. Scripts are statics.
#[derive(Debug)]
pub struct Script {
    name: &'static str,
    source: &'static str,
    sha: OnceLock<String>,
}

impl Script {
    /// A script with this text. `name` is for logs and metrics.
    pub const fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, sha: OnceLock::new() }
    }

    /// The name in logs and metrics.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The Lua text.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// SHA-1 of the text in hexadecimal, for EVALSHA.
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
