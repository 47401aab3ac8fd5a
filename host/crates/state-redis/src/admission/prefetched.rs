//! Prefetched permits: with them, most attempts need no script call. Enabled by `leased` in the group's settings.

use crate::{clock::Timestamp, rate_limit::Quota};
use std::time::Duration;

/// A host prefetches its share of the attempts that the limit allows in this time.
const PREFETCH_TIME: Duration = Duration::from_millis(100);
/// Lifetime of prefetched permits. Unused ones are forfeited, so that few are outstanding.
const PREFETCH_TTL: Duration = Duration::from_millis(500);
/// Maximum of permits in one prefetch.
const MAX_PREFETCHED: u64 = 1_000;

/// This host's prefetched permits.
#[derive(Debug, Default)]
pub(super) struct Leased {
    permits: u32,
    until: Timestamp,
}

impl Leased {
    pub(super) fn add(&mut self, permits: u32, now: Timestamp) {
        if permits > 0 {
            let left = if now < self.until { self.permits } else { 0 };
            *self = Self { permits: left.saturating_add(permits), until: now.after(PREFETCH_TTL) };
        }
    }

    pub(super) fn give_back(&mut self) {
        self.permits = self.permits.saturating_add(1);
    }

    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        let has_some = now < self.until && self.permits > 0;
        if has_some {
            self.permits -= 1;
        }
        has_some
    }
}

/// Number of permits that one of `live` hosts prefetches: its share of a tenth of a second. None below two: such limits stay exact.
pub(super) fn lot(quota: &Quota, live: u32) -> u32 {
    let in_time = PREFETCH_TIME.as_micros() / quota.interval().as_micros().max(1);
    let part = u64::try_from(in_time).unwrap_or(MAX_PREFETCHED).min(quota.burst.get().into()) / u64::from(live.max(1));
    if part < 2 { 0 } else { u32::try_from(part.min(MAX_PREFETCHED)).unwrap_or(0) }
}
