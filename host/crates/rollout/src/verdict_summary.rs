//! The part of a verdict by which a candidate is compared with the live policy.

use crate::policy::contract::{BreakerSignal, Next, Verdict};
use std::fmt;

/// The part of a verdict that is compared. Waits may differ by chance, and reasons are free text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerdictSummary {
    class: &'static str,
    breaker: BreakerSignal,
    next: &'static str,
    replaced_by: Option<http::StatusCode>,
}

impl VerdictSummary {
    /// Summarizes a verdict.
    pub fn of(verdict: &Verdict) -> Self {
        let (next, replaced_by) = match &verdict.next {
            Next::Deliver => ("deliver", None),
            Next::Retry(_) => ("retry", None),
            Next::Verify(_) => ("verify", None),
            Next::Replace(answer) => ("replace by", Some(answer.status)),
        };
        Self { class: verdict.class.name(), breaker: verdict.breaker, next, replaced_by }
    }

    /// The summary of a response that was settled by its status, without a policy call.
    pub const SETTLED: Self =
        Self { class: "applied", breaker: BreakerSignal::Success, next: "deliver", replaced_by: None };
}

impl fmt::Display for VerdictSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let breaker = self.breaker.name();
        write!(f, "{}, {breaker}, {}", self.class, self.next)?;
        self.replaced_by.map_or(Ok(()), |status| write!(f, " {}", status.as_u16()))
    }
}
