//! Names of keys and channels in Redis.

use std::{fmt::Display, sync::Arc};

/// Makes keys that begin with the fleet's prefix. A script may touch keys of one Cluster hash slot only: keys with the same part
/// in braces.
#[derive(Debug, Clone)]
pub struct Keys(Arc<str>);

impl Keys {
    /// Keys that begin with `prefix` and a colon.
    pub fn new(prefix: &str) -> Self {
        Self(prefix.into())
    }

    /// The prefix, without the colon: `state.prefix`.
    pub fn prefix(&self) -> &str {
        &self.0
    }

    /// `prefix:{tag}:what`: one of several keys that one script touches.
    pub fn tagged(&self, tag: impl Display, what: impl Display) -> String {
        format!("{}:{{{tag}}}:{what}", self.0)
    }

    /// `prefix:kind:{name}`: a key that a script touches alone, such as `triage:claim:{5f0c...}`.
    pub fn single(&self, kind: impl Display, name: impl Display) -> String {
        format!("{}:{kind}:{{{name}}}", self.0)
    }

    /// The key that holds the server's identity and the last loss of data: see [`super::Lost`].
    pub fn census(&self) -> String {
        format!("{}:census", self.0)
    }

    /// The pub/sub channel on which hosts announce changes.
    pub fn channel(&self) -> String {
        format!("{}:events", self.0)
    }
}
