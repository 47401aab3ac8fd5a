//! The breaker's report of a write that failed and is being verified: what verification finds decides what it says.

use crate::{admission::Permit, breaker, policy::contract::BreakerSignal};
use std::time::Duration;
use tokio::time::Instant;

/// A failure that is not reported yet. It is reported exactly once: by [`PendingReport::settled`], else as a failure, at the
/// latest when it is dropped.
///
/// The permit of a half-open breaker's probe is a lease. Such a report is held only as long as the lease covers what comes next:
/// a result after its lease would count for nothing, and other attempts would wait for it.
#[derive(Debug)]
pub(crate) struct PendingReport {
    /// None: it was reported.
    permit: Option<Permit>,
    took: Duration,
    /// What it counts as if the write is found applied.
    settled: BreakerSignal,
    /// When the lease no longer covers it; none for an attempt without a lease.
    until: Option<Instant>,
}

impl PendingReport {
    /// Holds the report of an attempt that has just failed after `took`. `lease`: how long a half-open breaker's probe may hold
    /// its place, counted from its send.
    pub(super) fn new(permit: Permit, took: Duration, settled: BreakerSignal, lease: Duration) -> Self {
        let left = lease.saturating_sub(took).saturating_sub(breaker::LEASE_MARGIN);
        let until = permit.is_probe().then(|| Instant::now() + left);
        Self { permit: Some(permit), took, settled, until }
    }

    /// Whether it can still be reported after `time`.
    pub(super) fn covers(&self, time: Duration) -> bool {
        self.until.is_none_or(|until| until.saturating_duration_since(Instant::now()) > time)
    }

    /// Verification has found the write applied.
    pub(super) fn settled(mut self) {
        self.report(self.settled);
    }

    /// Verification has not found it applied, or not in time.
    pub(super) fn failed(mut self) {
        self.report(BreakerSignal::Failure);
    }

    fn report(&mut self, signal: BreakerSignal) {
        if let Some(permit) = self.permit.take() {
            permit.report(signal, self.took);
        }
    }
}

impl Drop for PendingReport {
    fn drop(&mut self) {
        self.report(BreakerSignal::Failure);
    }
}
