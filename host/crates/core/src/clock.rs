//! The only module that reads clocks.
//!
//! All other modules take `now` as an argument. The monotonic clock is tokio's, so that tests
//! can drive a whole host with paused time. The wall clock can be anchored to the monotonic one for the same reason.

use std::time::Duration;
use tokio::time::Instant;

/// A point on a store's time line, in microseconds. Timestamps of different stores cannot be compared, so hosts exchange durations and
/// never timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time from `earlier` to this, zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This point moved by `by` into the future, saturating.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(micros(by)))
    }

    /// This point moved by `by` into the past, saturating at the origin.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(micros(by)))
    }
}

/// A duration in whole microseconds, saturating.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A duration in whole milliseconds, saturating.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The processor time of this thread so far. Costs a system call.
pub fn thread_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}

/// The processor time of this process so far.
pub fn process_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(spent).unwrap_or_default()
}

/// Monotonic and wall time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    anchored_unix_ms: Option<u64>,
}

impl Clock {
    /// The system's clocks. Timestamps count from now, plus one hour so that nothing lies before the origin.
    pub fn system() -> Self {
        Self { origin: Instant::now(), anchored_unix_ms: None }
    }

    /// A wall clock that starts at `unix_ms` and follows the monotonic one: for tests and replays.
    pub fn anchored(unix_ms: u64) -> Self {
        Self { origin: Instant::now(), anchored_unix_ms: Some(unix_ms) }
    }

    /// Now, on the time line of this process.
    pub fn now(&self) -> Timestamp {
        self.timestamp(Instant::now())
    }

    /// Where `instant` lies on the time line of this process.
    pub fn timestamp(&self, instant: Instant) -> Timestamp {
        const HOUR: Duration = Duration::from_secs(3600);
        Timestamp::default().after(HOUR + instant.saturating_duration_since(self.origin))
    }

    /// Milliseconds from 1970 to a point of the past on the time line of this process.
    pub fn unix_ms_at(&self, at: Timestamp) -> u64 {
        self.unix_ms().saturating_sub(millis(self.now().since(at)))
    }

    /// Milliseconds since 1970.
    #[allow(clippy::disallowed_methods)]
    pub fn unix_ms(&self) -> u64 {
        match self.anchored_unix_ms {
            Some(anchor) => anchor.saturating_add(millis(self.origin.elapsed())),
            None => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, millis),
        }
    }
}
