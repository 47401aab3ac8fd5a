//! Short ways to say a verdict.

pub use crate::bindings::triage::policy::types::{BreakerSignal, Class};
use crate::{Next, Probe, Replacement, Verdict};

impl Verdict {
    /// The answer goes to the caller; the upstream works, unless what became of the request is unknown.
    #[must_use]
    pub fn deliver(class: Class, reason: &str) -> Self {
        let breaker = if class == Class::Unknown { BreakerSignal::Failure } else { BreakerSignal::Success };
        Self { class, breaker, next: Next::Deliver, claim: None, pause_ms: None, reason: reason.to_owned() }
    }

    /// The request is sent again; the upstream is in trouble.
    #[must_use]
    pub fn retry(class: Class, delay_ms: u64, reason: &str) -> Self {
        Self { next: Next::Retry(delay_ms), breaker: BreakerSignal::Failure, ..Self::deliver(class, reason) }
    }

    /// The upstream wants fewer requests: the whole fleet waits, then the request is sent again.
    #[must_use]
    pub fn throttled(delay_ms: u64, pause_ms: Option<u64>) -> Self {
        let retry = Self::retry(Class::Throttled, delay_ms, "the upstream wants fewer requests");
        Self { breaker: BreakerSignal::Ignore, pause_ms, ..retry }
    }

    /// A look at what became of the write, after a delay.
    #[must_use]
    pub fn verify(path_and_query: String, delay_ms: u64, reason: &str) -> Self {
        let probe = Probe { method: "GET".to_owned(), path_and_query, headers: Vec::new(), delay_ms };
        Self { next: Next::Verify(probe), ..Self::deliver(Class::Unknown, reason) }
    }

    /// The caller gets this JSON.
    #[must_use]
    pub fn replace(class: Class, status: u16, body: Vec<u8>, reason: &str) -> Self {
        let content = crate::Header { name: "content-type".to_owned(), value: "application/json".to_owned() };
        let answer = Replacement { status, headers: vec![content], body };
        Self { next: Next::Replace(answer), ..Self::deliver(class, reason) }
    }

    /// The same with another signal.
    #[must_use]
    pub fn breaker(self, breaker: BreakerSignal) -> Self {
        Self { breaker, ..self }
    }

    /// The same with a claim.
    #[must_use]
    pub fn claiming(self, claim: String) -> Self {
        Self { claim: Some(claim), ..self }
    }
}
