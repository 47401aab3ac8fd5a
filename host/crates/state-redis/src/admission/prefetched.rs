//! Prefetched places: with them, most attempts need no script call. Enabled by `leased` in the group's settings.

use crate::{clock::Timestamp, rate_limit::Quota};
use std::time::Duration;

/// A host prefetches its share of the attempts that the limit allows in this time.
const PREFETCH_TIME: Duration = Duration::from_millis(100);
/// Lifetime of prefetched places. Unused ones are forfeited, so that few are outstanding.
const PREFETCH_TTL: Duration = Duration::from_millis(500);
/// Maximum of places in one prefetch.
const MAX_PREFETCHED: u64 = 1_000;

/// This host's prefetched places.
#[derive(Debug, Default)]
pub(super) struct Leased {
    places: u32,
    until: Timestamp,
}

impl Leased {
    pub(super) fn add(&mut self, places: u32, now: Timestamp) {
        if places > 0 {
            let left = if now < self.until { self.places } else { 0 };
            *self = Self { places: left.saturating_add(places), until: now.after(PREFETCH_TTL) };
        }
    }

    pub(super) fn give_back(&mut self) {
        self.places = self.places.saturating_add(1);
    }

    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        let has_some = now < self.until && self.places > 0;
        if has_some {
            self.places -= 1;
        }
        has_some
    }
}

/// Number of places that one of `live` hosts prefetches: its share of a tenth of a second. None below two: such limits stay exact.
pub(super) fn lot(quota: &Quota, live: u32) -> u32 {
    let in_time = PREFETCH_TIME.as_micros() / quota.interval().as_micros().max(1);
    let part = u64::try_from(in_time).unwrap_or(MAX_PREFETCHED).min(quota.burst.get().into()) / u64::from(live.max(1));
    if part < 2 { 0 } else { u32::try_from(part.min(MAX_PREFETCHED)).unwrap_or(0) }
}
