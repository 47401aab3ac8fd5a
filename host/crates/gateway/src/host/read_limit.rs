//! The limit on how often callers read the status of records.

use crate::{
    clock::Timestamp,
    rate_limit::{Gcra, Quota},
};
use parking_lot::Mutex;
use std::{num::NonZeroU32, time::Duration};

/// The limit on reads of all records together: more than callers need that follow `Retry-After`, and little load for a store.
pub(crate) const READ_QUOTA: Quota =
    Quota { requests: READS_PER_SECOND, period: Duration::from_secs(1), burst: READS_PER_SECOND };

const READS_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(99);

/// Limits the record reads of this host.
#[derive(Debug, Default)]
pub(crate) struct ReadLimit(Mutex<Gcra>);

impl ReadLimit {
    pub(crate) fn admit(&self, now: Timestamp) -> Result<(), Duration> {
        let mut reads = self.0.lock();
        let due = reads.earliest(&READ_QUOTA, now);
        if due > now {
            return Err(due.since(now));
        }
        reads.take(&READ_QUOTA, due);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_are_bounded() {
        let limit = ReadLimit::default();
        let now = Timestamp(5_000_000);
        let admitted = (0..1_000).filter(|_| limit.admit(now).is_ok()).count();
        assert_eq!(admitted, 100);
        assert_eq!(limit.admit(now).unwrap_err(), Duration::from_millis(10));
        assert!(limit.admit(now.after(Duration::from_millis(10))).is_ok());
    }
}
