//! The breaker report of a failed write that is being verified: the verification decides whether the attempt counts as a failure.

use crate::{admission::Permit, breaker, policy::contract::BreakerSignal};
use std::time::Duration;
use tokio::time::Instant;

/// An unreported failure. It is reported exactly once: by [`PendingReport::settled`], else as a failure, at the latest on drop.
///
/// A half-open probe's permit is a lease. A report after its lease counts for nothing, while other attempts wait for it. So the report is
/// deferred only while the lease covers the next verification.
#[derive(Debug)]
pub(crate) struct PendingReport {
    /// None once reported.
    permit: Option<Permit>,
    took: Duration,
    /// The signal to report if the write is found applied.
    settled: BreakerSignal,
    /// When the lease ends, less a margin; none for an attempt without a lease.
    until: Option<Instant>,
}

impl PendingReport {
    /// Defers the report of an attempt that has just failed after `took`. `lease`: how long a half-open probe may hold its permit, counted
    /// from its send.
    pub(super) fn new(permit: Permit, took: Duration, settled: BreakerSignal, lease: Duration) -> Self {
        let left = lease.saturating_sub(took).saturating_sub(breaker::LEASE_MARGIN);
        let until = permit.is_probe().then(|| Instant::now() + left);
        Self { permit: Some(permit), took, settled, until }
    }

    /// Whether a report after `time` still falls within the lease.
    pub(super) fn covers(&self, time: Duration) -> bool {
        self.until.is_none_or(|until| until.saturating_duration_since(Instant::now()) > time)
    }

    /// Verification has found the write applied.
    pub(super) fn settled(mut self) {
        self.report(self.settled);
    }

    /// Verification has not found the write applied, or not in time.
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
