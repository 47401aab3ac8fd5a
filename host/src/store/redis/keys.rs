//! How everything is named.

use std::{fmt::Display, sync::Arc};

/// Makes keys that all begin with the fleet's prefix. A script may only touch keys of one Cluster slot: those whose names have
/// the same part in braces.
#[derive(Debug, Clone)]
pub struct Keys(Arc<str>);

impl Keys {
    /// Keys that begin with `prefix` and a colon.
    pub fn new(prefix: &str) -> Self {
        Self(prefix.into())
    }

    /// The prefix.
    pub fn prefix(&self) -> &str {
        &self.0
    }

    /// `prefix:{tag}:what`: one of several keys that one script touches.
    pub fn tagged(&self, tag: impl Display, what: impl Display) -> String {
        format!("{}:{{{tag}}}:{what}", self.0)
    }

    /// `prefix:kind:{name}`: a key that stands by itself, such as `triage:idem:{5f0c...}`.
    pub fn single(&self, kind: impl Display, name: impl Display) -> String {
        format!("{}:{kind}:{{{name}}}", self.0)
    }

    /// What is known of the server: see [`super::Lost`].
    pub fn census(&self) -> String {
        format!("{}:census", self.0)
    }

    /// The channel on which hosts tell each other what changed.
    pub fn channel(&self) -> String {
        format!("{}:events", self.0)
    }
}
