//! A Lua script, which Redis runs atomically and caches under the digest of its text.
//!
//! `redis::Script` does not serve here. To a server that does not know a digest it sends SCRIPT LOAD, which a Cluster client sends to
//! every master: a master that is down would fail a script of another one, and a call would take three round trips. We send EVAL to the
//! node of the keys instead.

use data_encoding::HEXLOWER;
use ring::digest;
use std::sync::OnceLock;

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
        self.sha.get_or_init(|| {
            HEXLOWER.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.source.as_bytes()).as_ref())
        })
    }
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
