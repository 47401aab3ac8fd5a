//! What a request waits for besides an attempt. A wait without a name would be a gap in the timeline.

use std::fmt;

/// What the request waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum WaitedFor {
    /// The caller sent the body slowly.
    RequestBody,
    /// An equal request, or one with the same condition, was under way.
    EqualRequest,
    /// The endpoint's `concurrency` was in use.
    Concurrency,
    /// Another request was waking the upstream.
    Waking,
    /// The upstream sent the body slowly.
    ResponseBody,
}

impl WaitedFor {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for WaitedFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RequestBody => "the body of the request",
            Self::EqualRequest => "an equal request under way",
            Self::Concurrency => "one of the endpoint's concurrent requests to end (concurrency)",
            Self::Waking => "another request that wakes the upstream",
            Self::ResponseBody => "the body of the answer",
        })
    }
}
